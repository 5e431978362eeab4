"""Dual-track collaborative learning: experts on noisy pairs (METHOD section 2).

An expert is two networks, A and B. After a warm-up under the tolerant loss, each divides the pairs into clean and risky
by its own losses, and the *other* one trains on that division:

    L = sum over clean pairs  w_n * clean_loss
      + lambda * sum over risky pairs  tolerant_loss                       (while they are not recovered)
      + mu     * sum over risky images tolerant_loss on a caption drawn from the teacher's top k  (recovery)
      + nu     * sum over all pairs    cross entropy to the teacher's matching probabilities      (guidance)

The teacher of a network is other networks (its peer first), never itself; what it says comes from averaged weights.
With `scouts` the warm-up is a generation of its own: networks that learn under the tolerant loss alone, and what they
come to know, all of them together, divides the pairs for the experts proper and teaches them from their first step.
Recovery, guidance, averaging and scouts are ours.

All networks of a generation advance together, epoch by epoch; between two epochs it can be stopped, and go on later.
"""

import dataclasses
import functools
import json
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from mdw_jax.data.augment import augment
from mdw_jax.data.lazy_images import LazyImages
from mdw_jax.data.streaming import chunks, in_chunks, streamed_epochs
from mdw_jax.errors import UserError
from mdw_jax.io.checkpoint import restore
from mdw_jax.method.certificate import debiased
from mdw_jax.method.division import divide, division_quality
from mdw_jax.method.losses import agreement, infonce, label_loss, pair_losses, shuffled_losses
from mdw_jax.method.noise_rate import Rate, estimate_rate
from mdw_jax.method.retrieval import METRICS, recalls
from mdw_jax.models.dual_encoder import DualEncoder, side_by_side
from mdw_jax.models.image.conv import on_cpu
from mdw_jax.runtime import preemption
from mdw_jax.runtime.mesh import for_each, jitted, replicated, rows
from mdw_jax.runtime.rng import named_generator, named_key


@dataclasses.dataclass(frozen=True)
class Recipe:
    """How experts are trained: the fields of `config.experts`, explained there."""

    scouts: int
    scout_epochs: int
    epochs: int
    batch: int
    lr: float
    lr_taught: float
    momentum: float
    weight_decay: float
    augment: str
    dual: bool
    warmup: int
    division: str
    clean_loss: str
    clean_q: float
    tolerant_loss: str
    tolerant_q: float
    tolerant_weight: float
    recovery_weight: float
    recovery_top_k: int
    recovery_start: int
    guidance_weight: float
    guidance_tau: float
    teachers: int
    average: float
    debias: bool
    rescale_step: bool


class Inputs(NamedTuple):
    """One split as a model sees it.

    images: (N, ...) uint8 pixels, maybe streamed, or float features. texts: (K, d) features or (K, L) token ids.
    image_of: (K,).
    """

    images: Any
    texts: Any
    image_of: Any


class Plan(NamedTuple):
    """One epoch, each (steps, B).

    rows: which pair. images, captions: what it pairs. pixels: that image itself, (steps, B, ...), if they are
    streamed; None if they are all at hand. unrelated: a caption of another batch. clean, tolerant: weights of the tracks.
    """

    rows: Any
    images: Any
    pixels: Any
    captions: Any
    unrelated: Any
    clean: Any
    tolerant: Any


class Experts(NamedTuple):
    """What training leaves behind, one entry a network (2 e is A and 2 e + 1 is B of expert e).

    snapshots: lists of parameters, entry k after epoch k. log: one dict an epoch and network. best: parameters at the
    best validation r_mean. clean_probability: (K,) mean over networks of the last division (ones without one).
    right: (networks, epochs, K) bool, whether a pair found its partner in its batch, both ways, when it was trained on
    (a pair left out of an epoch keeps what it had).
    """

    snapshots: list
    log: list
    best: list
    clean_probability: np.ndarray
    right: np.ndarray


class Generation(NamedTuple):
    """Everything of a generation that changes from one epoch to the next, entries as in `Experts`.

    epoch: how many are done. params, states, averages: one a network. steps: optimiser steps done.
    """

    epoch: Any
    params: list
    states: list
    averages: list
    steps: Any
    snapshots: list
    best: list
    log: Any
    probability: np.ndarray
    right: np.ndarray


class Shelf(NamedTuple):
    """Where a generation is kept between epochs; functions, for training knows nothing of files.

    load: name -> what `save` was given, as {name of a leaf: array}, or None. save: (name, pytree of arrays).
    due: () -> whether the last save is long ago. The default keeps nothing.
    """

    load: Callable = lambda name: None
    save: Callable = lambda name, tree: None
    due: Callable = lambda: False


def to_float(images):
    """uint8 pixels -> float32 in [0, 1]; features pass through."""
    return images.astype(jnp.float32) / 255 if images.dtype == jnp.uint8 else images


class Passes(NamedTuple):
    """The compiled functions of one model; `for_all` applies the per-network ones to a list of networks."""

    optimizer: Any
    for_all: Callable
    epoch: Callable
    pair_loss: Callable


def passes(model: DualEncoder, recipe: Recipe, rate: float) -> Passes:
    """Compile what an epoch needs. `rate` is eta, used by the debiased loss and the rescaled step size only."""
    clean_loss = label_loss(recipe.clean_loss, recipe.clean_q)
    tolerant_loss = label_loss(recipe.tolerant_loss, recipe.tolerant_q)
    lr = recipe.lr / (1 - rate) if recipe.rescale_step else recipe.lr
    optimizer = optax.chain(optax.add_decayed_weights(recipe.weight_decay), optax.sgd(lr, recipe.momentum or None))

    def batch_loss(params, images, texts, unrelated, clean, tolerant, said):
        v, t = model.embed_image(params["image"], images), model.embed_text(params["text"], texts)
        logits = v @ t.T / model.tau

        def track(loss):
            pairs = pair_losses(loss, logits)
            if not recipe.debias:
                return pairs
            # Another batch's captions: among this batch's own the true ones would still be candidates.
            shuffled = v @ model.embed_text(params["text"], unrelated).T / model.tau
            return debiased(pairs, shuffled_losses(loss, shuffled), rate)

        loss = (clean * track(clean_loss) + tolerant * track(tolerant_loss)).mean()
        if said is not None:
            loss += recipe.guidance_weight * agreement(logits, said[0] @ said[1].T / recipe.guidance_tau)
        own = jnp.arange(len(logits))
        return loss, (logits.argmax(0) == own) & (logits.argmax(1) == own)

    def epoch(carry, plan, keys, own_teacher, images, texts, common_teacher):
        teacher = own_teacher or common_teacher

        def step(carry, scanned):
            (params, state, (average, count)), (now, key) = carry, scanned
            pixels = images[now.images] if now.pixels is None else now.pixels
            x = rows(augment(key, to_float(pixels), recipe.augment))
            said = teacher and (teacher[0][now.images], teacher[1][now.captions])
            (loss, right), grads = jax.value_and_grad(batch_loss, has_aux=True)(
                params, x, rows(texts[now.captions]), texts[now.unrelated], now.clean, now.tolerant, said
            )
            updates, state = optimizer.update(grads, state, params)
            params = optax.apply_updates(params, updates)
            decay = jnp.minimum(recipe.average, (1 + count) / (10 + count))  # short at first, or it would lag behind
            average = jax.tree.map(lambda a, p: decay * a + (1 - decay) * p, average, params)
            return (params, state, (average, count + 1)), (loss, right)

        carry, (losses, right) = jax.lax.scan(step, carry, (plan, keys))
        return carry, losses, right

    def for_all(function, mapped, *shared):
        """Apply function(one network's, *shared) to each entry of the list `mapped`."""
        if side_by_side(model):
            return for_each(function, mapped, *shared)
        return [jitted(function)(one, *shared) for one in mapped]

    return Passes(
        optimizer, for_all,
        lambda one, *shared: epoch(*one, *shared),
        jitted(_pair_loss(model.tau)),
    )


@functools.lru_cache(maxsize=8)
def _pair_loss(tau: float):
    def pair_loss(v, t, images, captions):
        """Embeddings (N, D) and (K, D), rows (steps, B) of either -> (steps, B) losses, each among its batch."""
        batch = lambda rows: pair_losses(infonce, v[rows[0]] @ t[rows[1]].T / tau)
        return jax.lax.map(batch, (images, captions))

    return pair_loss


def plan_epoch(generator, image_of, batch: int, clean, tolerant, captions) -> Plan:
    """Shuffle K pairs into batches (the last few that fill none are left for another epoch).

    image_of, captions: (K,) what each row pairs; clean, tolerant: (K,) weights of the two tracks.
    """
    batch = min(batch, len(image_of))
    steps = len(image_of) // batch
    order = generator.permutation(len(image_of))[: steps * batch].reshape(steps, batch)
    pick = lambda values, dtype: jnp.asarray(np.asarray(values)[order], dtype)
    images, captions = pick(image_of, jnp.int32), pick(captions, jnp.int32)
    return Plan(jnp.asarray(order), images, None, captions, jnp.roll(captions, 1, axis=0), pick(clean, jnp.float32),
                pick(tolerant, jnp.float32))


def tracks(recipe: Recipe, clean_probability, recovered: bool):
    """Weights of the clean and of the tolerant track for each pair: two (K,) arrays."""
    w = np.asarray(clean_probability, np.float32)
    clean = np.where(w >= 0.5, w, 0)
    risky = recipe.recovery_weight if recovered else recipe.tolerant_weight
    return clean, np.where(w >= 0.5, 0, risky).astype(np.float32)


def _undivided(recipe: Recipe, pairs: int, warming_up: bool):
    """Track weights where no pair is told from another: during warm-up, or for a whole recipe."""
    ones, zeros = np.ones(pairs, np.float32), np.zeros(pairs, np.float32)
    if recipe.division == "clean":
        return ones, zeros
    if recipe.division == "both" and not warming_up:
        return ones, ones * recipe.tolerant_weight
    return zeros, ones


def teachers_of(network: int, networks: int, count: int) -> list[int]:
    """Who teaches a network: its peer, then the others in turn, up to `count` of them, never itself."""
    others = [network ^ 1] + [n % networks for n in range(network + 1, network + networks)]
    return list(dict.fromkeys(others))[:count]


def together(embedded):
    """Embeddings of several networks as those of one whose similarity is the mean of theirs: [(N, D)] -> (N, n D)."""
    return jnp.concatenate(embedded, -1) / np.sqrt(len(embedded))


def top_captions(images, texts, k: int):
    """The k captions nearest to each image, best first: (N, D), (K, D) -> (N, k) int."""
    similarity = jax.jit(lambda rows: rows @ texts.T)

    def nearest(rows):
        values = np.asarray(similarity(rows))
        found = np.argpartition(-values, k - 1, axis=1)[:, :k]  # on a CPU far faster than `jax.lax.top_k`
        return np.take_along_axis(found, np.argsort(-np.take_along_axis(values, found, 1), 1, kind="stable"), 1)

    return np.asarray(in_chunks(nearest, images))


def train_experts(model: DualEncoder, train: Inputs, val: Inputs, recipe: Recipe, *, count: int, seed: int, keep: int,
                  rate: float = 0.0, mismatched=None, on_epoch=lambda *_: None, shelf: Shelf = Shelf()) -> Experts:
    """Train `count` experts together, after their scouts if the recipe has any.

    train: pairs as paired by the noise draw (image_of is the noisy pairing). keep: snapshots 0..keep are returned.
    rate: eta, where `debias` or `rescale_step` ask for it. mismatched: (K,) bool, the truth, for the log and for
    `division="oracle"`. on_epoch: called with the index of each epoch done (after a restart, of the last one before
    it), the mean val r_mean after it and the rows of the log since the last call. shelf: where to go on from, and where
    to keep what is done: with the same arguments the result is the same, bit for bit. An epoch that is cut short is
    done again. Raises UserError where training diverges, or `recovery_top_k` exceeds the captions.
    """
    if recipe.recovery_weight and recipe.recovery_top_k > len(train.image_of):
        raise UserError(f"experts.recovery_top_k is {recipe.recovery_top_k} but there are only {len(train.image_of)} "
                        "training captions; lower it.")
    shared = {"seed": seed, "rate": rate, "mismatched": mismatched, "shelf": shelf}
    if not recipe.scouts:
        return _generation(model, train, val, recipe, "experts", count=count, epochs=recipe.epochs, keep=keep,
                           on_epoch=on_epoch, **shared)
    warming_up = dataclasses.replace(recipe, warmup=recipe.scout_epochs)  # the tolerant loss on all pairs, undivided
    scouts = _generation(model, train, val, warming_up, "scouts", count=recipe.scouts, epochs=recipe.scout_epochs,
                         keep=0, on_epoch=on_epoch, **shared)
    taught = dataclasses.replace(recipe, lr=recipe.lr_taught)
    experts = _generation(model, train, val, taught, "experts", count=count, epochs=recipe.epochs, keep=keep,
                          teachers=scouts.best, **shared,
                          on_epoch=lambda epoch, *said: on_epoch(recipe.scout_epochs + epoch, *said))
    return experts._replace(log=scouts.log + experts.log)


def _generation(model, train, val, recipe, name: str, *, count, epochs, seed, keep, rate, mismatched, on_epoch, shelf,
                teachers=None) -> Experts:
    """`count` experts that teach each other from `warmup` on, or are taught by finished `teachers` from the start."""
    run = passes(model, recipe, rate)
    nets = range(2 * count)
    params = [model.init(named_key(seed, name, n // 2, "init", n % 2)) for n in nets]
    averages, steps = list(params), jnp.float32(0)
    states = [run.optimizer.init(p) for p in params]
    pairs, image_of = len(train.image_of), np.asarray(train.image_of)
    train = train._replace(texts=replicated(train.texts))
    if not isinstance(train.images, LazyImages):
        train = train._replace(images=replicated(train.images))
    own_captions = np.arange(pairs)
    first, params, states, averages, steps, snapshots, best, log, probability, right = _taken_up(
        shelf.load(name), Generation(0, params, states, averages, steps, [[p] for p in params], list(params), [],
                                     np.ones(pairs, np.float32), np.zeros((len(nets), epochs, pairs), bool)), keep)
    best_val = [max((row["val_r_mean"] for row in log[n::len(nets)]), default=-1.0) for n in nets]
    said = division = nearest = None

    def put_away(epoch):
        words = np.frombuffer(json.dumps(log).encode(), np.uint8)
        shelf.save(name, Generation(np.int32(epoch), params, states, averages, steps, snapshots, best, words,
                                    probability, right))

    if first:
        on_epoch(first - 1, _mean_val(log[-len(nets):]), log)
    for epoch in range(first, epochs):
        with preemption.keeping(lambda epoch=epoch: put_away(epoch)):
            preemption.check()
        divided = (epoch >= recipe.warmup or teachers is not None) and recipe.division in ("gmm", "oracle")
        late = epoch >= recipe.recovery_start or teachers is not None
        recovering = divided and late and recipe.recovery_weight > 0
        guided = divided and late and recipe.guidance_weight > 0
        if teachers is not None and said is None:
            said = embeddings_of_all(model, teachers, train)
            taught = [tuple(together([one[branch] for one in said]) for branch in (0, 1))] * len(nets)
        elif teachers is None and (recovering or guided or (divided and recipe.division == "gmm")):
            said = embeddings_of_all(model, averages, train)
            who = [teachers_of(n, len(nets), recipe.teachers) if recipe.dual else [n] for n in nets]
            taught = [tuple(together([said[t][branch] for t in who[n]]) for branch in (0, 1)) for n in nets]
        if divided and recipe.division == "oracle":
            division = [(~mismatched).astype(np.float32) for _ in nets]
        elif divided and (teachers is None or division is None):
            # Finished teachers say the same to all, and always.
            losses = _all_pair_losses(run.pair_loss, taught[:1] if teachers else taught, image_of, recipe.batch, seed,
                                      0 if teachers else epoch)
            division = [divide(values, seed) for values in losses] * (len(nets) // len(losses))

        plans = []
        for n in nets:
            captions = own_captions
            if divided:
                clean, tolerant = tracks(recipe, division[n], recovering)
            else:
                clean, tolerant = _undivided(recipe, pairs, epoch < recipe.warmup)
            generator = named_generator(seed, name, n // 2, "epoch", epoch, n % 2)
            if recovering:
                if teachers is None or nearest is None:  # finished teachers say the same to all
                    nearest = _nearest(taught[n], image_of, clean > 0, recipe.recovery_top_k)
                captions = _recovered(generator, nearest, image_of, clean > 0)
            plans.append(plan_epoch(generator, image_of, recipe.batch, clean, tolerant, captions))
        keys = [jax.random.split(named_key(seed, name, n // 2, "augment", epoch, n % 2), len(plans[n].rows))
                for n in nets]
        mapped = [((params[n], states[n], (averages[n], steps)), plans[n], keys[n],
                   taught[n] if guided and teachers is None else None) for n in nets]
        common = taught[0] if guided and teachers is not None else None
        if isinstance(train.images, LazyImages):
            results, meters = streamed_epochs(run.epoch, mapped, train.images, train.texts, common)
        else:
            results = run.for_all(run.epoch, mapped, train.images, train.texts, common)
        params, states = [r[0][0] for r in results], [r[0][1] for r in results]
        averages, steps = [r[0][2][0] for r in results], results[0][0][2][1]

        on_val = scores(model, averages, val)
        for n in nets:
            loss = float(np.mean(results[n][1]))
            if not np.isfinite(loss):
                raise UserError(f"expert {n // 2} diverged in epoch {epoch + 1}: its loss is not finite; lower "
                                "experts.lr.")
            right[n, epoch] = right[n, max(epoch - 1, 0)]
            right[n, epoch, np.asarray(plans[n].rows).ravel()] = np.asarray(results[n][2]).ravel()
            row: dict[str, Any] = {"generation": name, "epoch": epoch + 1, "expert": n // 2, "network": "AB"[n % 2],
                                   "loss": loss}
            row |= {f"val_{metric}": float(value) for metric, value in zip(METRICS, on_val[n], strict=True)}
            if isinstance(train.images, LazyImages):
                row |= {"pairs_per_second": meters[n].pairs_per_second, "device_waits": meters[n].waiting}
            if divided and mismatched is not None:
                row |= division_quality(division[n], mismatched)
            log.append(row)
            if row["val_r_mean"] > best_val[n]:
                best[n], best_val[n] = averages[n], row["val_r_mean"]
            if epoch + 1 <= keep:
                snapshots[n].append(averages[n])
        if divided:
            probability = np.mean(division, axis=0)
        on_epoch(epoch, _mean_val(log[-len(nets):]), log[-len(nets):])
        if shelf.due() or epoch + 1 == epochs:
            put_away(epoch + 1)
    return Experts(snapshots, log, best, probability, right)


def _mean_val(rows) -> float:
    return float(np.mean([row["val_r_mean"] for row in rows]))


def _taken_up(saved: dict | None, start: Generation, keep: int) -> Generation:
    """What `put_away` saved, in the structure of `start`; `start` itself if nothing is there that fits."""
    if saved is None:
        return start
    try:
        epoch = int(saved[".epoch"])
        found = restore(saved, start._replace(epoch=saved[".epoch"], log=saved[".log"], snapshots=[
            [params] * (min(epoch, keep) + 1) for params in start.params]))
    except (KeyError, ValueError):  # another version's
        return start
    return found._replace(epoch=epoch, log=json.loads(found.log.tobytes()))


def _nearest(teacher, image_of, clean, k: int):
    """(N, k) the captions nearest to each image by its teacher, for images with a risky pair; -1 elsewhere."""
    images = np.unique(image_of[~clean])
    nearest = np.full((len(teacher[0]), k), -1)
    if len(images):
        nearest[images] = top_captions(teacher[0][images], teacher[1], k)
    return nearest


def _recovered(generator, nearest, image_of, clean):
    """(K,) captions: its own for a clean pair, for a risky one a draw from those nearest to its image."""
    drawn = nearest[image_of, generator.integers(nearest.shape[1], size=len(image_of))]
    return np.where(clean, np.arange(len(image_of)), drawn)


def _all_pair_losses(pair_loss, embedded, image_of, batch, seed, epoch, mismatch: bool = False):
    """InfoNCE loss of every pair among a random batch, a list of (K,), one a network.

    mismatch: with the captions of another batch, so that no pair matches (but for those that do so by chance).
    """
    pairs, results = len(image_of), []
    batch = min(batch, pairs)
    for n, (v, t) in enumerate(embedded):
        generator = named_generator(seed, "experts", n // 2, "division", epoch, n % 2)
        order = generator.permutation(pairs)
        order = np.concatenate([order, order[: -pairs % batch]]).reshape(-1, batch)  # the last batch borrows rows
        losses = np.empty(pairs)
        captions = np.roll(order, 1, axis=0) if mismatch else order
        losses[order.ravel()] = np.asarray(pair_loss(v, t, image_of[order], captions)).ravel()
        results.append(losses)
    return results


def noise_rate(model: DualEncoder, train: Inputs, val: Inputs, recipe: Recipe, *, seed: int,
               shelf: Shelf = Shelf()) -> Rate:
    """The share of mismatched pairs (`rate.py`), by networks that were not trained on the pairs they judge.

    Two folds by image: a pair of networks learns on one without any division and judges the other. Those that divide
    would have learned by heart the mismatched pairs that slipped through, and count them as right. A set too small for
    two batches a fold says nothing: 0 to 1.
    """
    image_of = np.asarray(train.image_of)
    division = recipe.division if recipe.division in ("clean", "tolerant", "both") else "tolerant"
    plain = dataclasses.replace(recipe, division=division, recovery_weight=0.0, guidance_weight=0.0, debias=False)
    fold = named_generator(seed, "rate").permutation(image_of.max() + 1)[image_of] % 2
    observed, null, judged = [], [], []
    for side in (0, 1):
        learn, judge = np.flatnonzero(fold != side), np.flatnonzero(fold == side)
        if min(len(learn), len(judge)) < 2 * recipe.batch:
            return Rate(0.0, 0.0, 1.0, 1.0)
        half = Inputs(train.images, train.texts[learn], image_of[learn])
        epochs = recipe.scout_epochs if recipe.scouts else recipe.epochs
        trained = _generation(model, half, val, plain, f"rate {side}", count=1, epochs=epochs, seed=seed, keep=0,
                              rate=0.0, mismatched=None, on_epoch=lambda *_: None, shelf=shelf)
        said = embeddings_of_all(model, trained.best, Inputs(train.images, train.texts[judge], None))
        both = [tuple(together([one[branch] for one in said]) for branch in (0, 1))]
        find = functools.partial(_all_pair_losses, jitted(_pair_loss(model.tau)), both, image_of[judge],
                                 recipe.batch, seed, f"rate {side}")
        observed.append(find()[0])
        null.append(find(mismatch=True)[0])
        judged.append(image_of[judge])
    return estimate_rate(*map(np.concatenate, (observed, null, judged)), seed=seed)


def embeddings(model: DualEncoder, params, data: Inputs):
    """Unit embeddings of all images (N, D) and of all captions (K, D)."""
    return embeddings_of_all(model, [params], data)[0]


def embeddings_of_all(model: DualEncoder, networks: list, data: Inputs) -> list[tuple]:
    """`embeddings` of each network; together where that is faster. Images that are streamed are decoded once for all."""
    together = len(jax.devices()) > 1 or (len(networks) > 1 and not on_cpu())

    def embedded(branch, of):
        branches = [params[branch] for params in networks]
        embed = jitted(_embedder(model, branch))
        if isinstance(of, LazyImages):
            branches = replicated(branches)
            parts = chunks(lambda rows: [embed(params, rows) for params in branches], of)
            return [jnp.concatenate(own) for own in zip(*parts, strict=True)]
        if together:
            return for_each(_whole_embedder(model, branch), branches, of)
        return [in_chunks(lambda rows: embed(params, rows), of) for params in branches]

    return list(zip(embedded("image", data.images), embedded("text", data.texts), strict=True))


@functools.lru_cache(maxsize=64)
def _whole_embedder(model, branch, size: int = 500):
    """All rows of a split in one computation, `size` at a time."""
    embed = _embedder(model, branch)

    def whole(params, data):
        part = lambda x: embed(params, rows(x))
        even = len(data) // size * size
        chunks = jax.lax.map(part, data[:even].reshape(-1, size, *data.shape[1:]))
        rest = [part(data[even:])] if even < len(data) else []
        return jnp.concatenate([chunks.reshape(even, chunks.shape[-1]), *rest])

    return whole


def similarities(model: DualEncoder, params, data: Inputs):
    """(N, K) cosine similarity of all images with all captions."""
    v, t = embeddings(model, params, data)
    return v @ t.T


@functools.lru_cache(maxsize=64)
def _embedder(model, branch):
    if branch == "text":
        return model.embed_text
    return lambda params, images: model.embed_image(params, to_float(images))


def scores(model: DualEncoder, networks: list, data: Inputs) -> np.ndarray:
    """Recalls of each network on one split: (networks, 7) in the order of `retrieval.METRICS`."""
    recall = lambda v, t: np.asarray(jitted(recalls)(v @ t.T, data.image_of))
    return np.stack([recall(v, t) for v, t in embeddings_of_all(model, networks, data)])
