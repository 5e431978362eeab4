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
import json
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from mdw_jax.data.lazy_images import LazyImages
from mdw_jax.data.streaming import concat_map, streamed_epochs
from mdw_jax.errors import UserError
from mdw_jax.method.division import divide, division_quality
from mdw_jax.method.expert_step import Recipe, _undivided, make_epoch_batches, make_expert_steps, tracks
from mdw_jax.method.retrieval import METRICS, scores
from mdw_jax.models.dual_encoder import DualEncoder
from mdw_jax.models.embedding import Inputs, embeddings_of_all, ensemble_embeddings
from mdw_jax.runtime import preemption
from mdw_jax.runtime.mesh import replicated
from mdw_jax.runtime.pytree import restore
from mdw_jax.runtime.rng import named_generator, named_key


class TrainedExperts(NamedTuple):
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


class ExpertTrainState(NamedTuple):
    """Everything of a generation that changes from one epoch to the next, entries as in `TrainedExperts`.

    epoch: how many are done. params, states, averages: one a network. steps: optimizer steps done.
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


class Checkpointer(NamedTuple):
    """Where a generation is kept between epochs; functions, for training knows nothing of files.

    load: name -> what `save` was given, as {name of a leaf: array}, or None. save: (name, pytree of arrays).
    due: () -> whether the last save is long ago. The default keeps nothing.
    """

    load: Callable = lambda name: None
    save: Callable = lambda name, tree: None
    due: Callable = lambda: False


def teacher_indices(network: int, networks: int, count: int) -> list[int]:
    """Who teaches a network: its peer, then the others in turn, up to `count` of them, never itself."""
    others = [network ^ 1] + [n % networks for n in range(network + 1, network + networks)]
    return list(dict.fromkeys(others))[:count]


def top_captions(images, texts, k: int):
    """The k captions nearest to each image, best first: (N, D), (K, D) -> (N, k) int."""
    similarity = jax.jit(lambda rows: rows @ texts.T)

    def nearest(rows):
        values = np.asarray(similarity(rows))
        found = np.argpartition(-values, k - 1, axis=1)[:, :k]  # on a CPU far faster than `jax.lax.top_k`
        return np.take_along_axis(found, np.argsort(-np.take_along_axis(values, found, 1), 1, kind="stable"), 1)

    return np.asarray(concat_map(nearest, images))


def train_experts(model: DualEncoder, train: Inputs, val: Inputs, recipe: Recipe, *, count: int, seed: int, keep: int,
                  rate: float = 0.0, mismatched=None, on_epoch=lambda *_: None, shelf: Checkpointer = Checkpointer()) -> TrainedExperts:
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
    if not recipe.teacher_count:
        return _generation(model, train, val, recipe, "experts", count=count, epochs=recipe.epochs, keep=keep,
                           on_epoch=on_epoch, **shared)
    warming_up = dataclasses.replace(recipe, warmup=recipe.teacher_epochs)  # the tolerant loss on all pairs, undivided
    scouts = _generation(model, train, val, warming_up, "scouts", count=recipe.teacher_count, epochs=recipe.teacher_epochs,
                         keep=0, on_epoch=on_epoch, **shared)
    taught = dataclasses.replace(recipe, lr=recipe.lr_with_teachers)
    experts = _generation(model, train, val, taught, "experts", count=count, epochs=recipe.epochs, keep=keep,
                          teachers=scouts.best, **shared,
                          on_epoch=lambda epoch, *said: on_epoch(recipe.teacher_epochs + epoch, *said))
    return experts._replace(log=scouts.log + experts.log)


def _generation(model, train, val, recipe, name: str, *, count, epochs, seed, keep, rate, mismatched, on_epoch, shelf,
                teachers=None) -> TrainedExperts:
    """`count` experts that teach each other from `warmup` on, or are taught by finished `teachers` from the start."""
    run = make_expert_steps(model, recipe, rate)
    nets = range(2 * count)
    params = [model.init(named_key(seed, name, n // 2, "init", n % 2)) for n in nets]
    averages, steps = list(params), jnp.float32(0)
    states = [run.optimizer.init(p) for p in params]
    pairs, image_of = len(train.image_of), np.asarray(train.image_of)
    train = train._replace(texts=replicated(train.texts))
    if not isinstance(train.images, LazyImages):
        train = train._replace(images=replicated(train.images))
    own_captions = np.arange(pairs)
    first, params, states, averages, steps, snapshots, best, log, probability, right = _restore_state(
        shelf.load(name), ExpertTrainState(0, params, states, averages, steps, [[p] for p in params], list(params), [],
                                     np.ones(pairs, np.float32), np.zeros((len(nets), epochs, pairs), bool)), keep)
    best_val = [max((row["val_r_mean"] for row in log[n::len(nets)]), default=-1.0) for n in nets]
    said = division = nearest = None

    def save_state(epoch):
        words = np.frombuffer(json.dumps(log).encode(), np.uint8)
        shelf.save(name, ExpertTrainState(np.int32(epoch), params, states, averages, steps, snapshots, best, words,
                                    probability, right))

    if first:
        on_epoch(first - 1, _mean_val(log[-len(nets):]), log)
    for epoch in range(first, epochs):
        with preemption.save_on_interrupt(lambda epoch=epoch: save_state(epoch)):
            preemption.raise_if_interrupted()
        divided = (epoch >= recipe.warmup or teachers is not None) and recipe.division in ("gmm", "oracle")
        late = epoch >= recipe.recovery_start or teachers is not None
        recovering = divided and late and recipe.recovery_weight > 0
        guided = divided and late and recipe.guidance_weight > 0
        if teachers is not None and said is None:
            said = embeddings_of_all(model, teachers, train)
            taught = [tuple(ensemble_embeddings([one[branch] for one in said]) for branch in (0, 1))] * len(nets)
        elif teachers is None and (recovering or guided or (divided and recipe.division == "gmm")):
            said = embeddings_of_all(model, averages, train)
            who = [teacher_indices(n, len(nets), recipe.peers) if recipe.dual else [n] for n in nets]
            taught = [tuple(ensemble_embeddings([said[t][branch] for t in who[n]]) for branch in (0, 1)) for n in nets]
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
            plans.append(make_epoch_batches(generator, image_of, recipe.batch, clean, tolerant, captions))
        keys = [jax.random.split(named_key(seed, name, n // 2, "augment", epoch, n % 2), len(plans[n].rows))
                for n in nets]
        mapped = [((params[n], states[n], (averages[n], steps)), plans[n], keys[n],
                   taught[n] if guided and teachers is None else None) for n in nets]
        common = taught[0] if guided and teachers is not None else None
        if isinstance(train.images, LazyImages):
            results, meters = streamed_epochs(run.epoch, mapped, train.images, train.texts, common)
        else:
            results = run.map_networks(run.epoch, mapped, train.images, train.texts, common)
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
            save_state(epoch + 1)
    return TrainedExperts(snapshots, log, best, probability, right)


def _mean_val(rows) -> float:
    return float(np.mean([row["val_r_mean"] for row in rows]))


def _restore_state(saved: dict | None, start: ExpertTrainState, keep: int) -> ExpertTrainState:
    """What `save_state` saved, in the structure of `start`; `start` itself if nothing is there that fits."""
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


