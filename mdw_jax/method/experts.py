"""Dual-track collaborative learning: experts on noisy pairs (docs/method.md, section 2).

An expert is two networks, A and B. After a warm-up under the tolerant loss, other networks divide the pairs of each one
into clean and risky ones by their own losses, and it trains on that division:

    L = sum over clean pairs  w_n * clean_loss
      + lambda * sum over risky pairs  tolerant_loss                       (while they are not recovered)
      + mu     * sum over risky images tolerant_loss on a caption drawn from the teachers' top k  (recovery)
      + nu     * sum over all pairs    cross entropy to the teachers' matching probabilities      (guidance)

The teachers of a network are other networks of its generation (the other one of its pair first), never itself, and
they teach by their averaged weights. With `teacher_count` above 0 the warm-up is a generation of its own: its networks
learn under the tolerant loss alone, and the ensemble of them divides the pairs for the experts proper and teaches them
from their first step. Recovery, guidance, averaging and the generation of teachers are this work's.

All networks of a generation advance together, epoch by epoch (`generation_epochs`). Between two epochs training can be
stopped and resumed, with a result that is equal bit for bit.
"""

import dataclasses
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import jax
import numpy as np

from mdw_jax.data.prefetch import LoaderStats
from mdw_jax.data.stored_rows import stays_on_host
from mdw_jax.data.streaming import streamed_epochs
from mdw_jax.errors import UserError
from mdw_jax.io.scores import METRICS
from mdw_jax.method.caption_search import require_search
from mdw_jax.method.division import divide, division_quality
from mdw_jax.method.expert_state import Checkpointer, ExpertTrainState
from mdw_jax.method.expert_step import (
    EpochBatches,
    EpochInputs,
    NetworkState,
    Recipe,
    make_epoch_batches,
    track_weights,
    undivided_weights,
)
from mdw_jax.method.generation import Generation, make_generation, restore_state, save_state
from mdw_jax.method.retrieval import scores
from mdw_jax.method.teacher_embeddings import teacher_ensembles
from mdw_jax.method.teachers import (
    Phase,
    Teacher,
    all_pair_losses,
    epoch_phase,
    recovered_captions,
    recovery_candidates,
    teacher_indices,
)
from mdw_jax.models.dual_encoder import DualEncoder
from mdw_jax.models.embedding import Inputs
from mdw_jax.runtime import preemption


class TrainedExperts(NamedTuple):
    """The result of training, one entry per network (2 e is A and 2 e + 1 is B of expert e).

    Attributes:
        epochs: epochs done, those of all generations.
        snapshots: lists of parameters (the averaged weights); entry k is after epoch k, 0 before training. They are the
            experts' own, or, with `trajectory_epochs`, those of the networks that they taught last.
        log: one dict for each epoch and network, in the order of the generations.
        best: parameters at the best validation r_mean.
        clean_probability: (K,) mean over networks of the last division; ones where pairs were not divided.
        correct_bits: (networks, epochs, ceil(K / 8)) uint8, `correct` as `np.packbits` packs it.
    """

    epochs: int
    snapshots: list
    log: list[dict]
    best: list
    clean_probability: np.ndarray
    correct_bits: np.ndarray

    @property
    def correct(self) -> np.ndarray:
        """(networks, epochs, K) bool: whether image and caption of a pair found each other in its batch, when the pair
        was trained on; a pair left out of an epoch keeps the value of the epoch before."""
        return np.unpackbits(self.correct_bits, axis=-1, count=len(self.clean_probability)).astype(bool)


class TeacherSignals(NamedTuple):
    """What one network learns from its teachers in one epoch; None where it is not used.

    Attributes:
        embeddings: the ensemble's embeddings of all images (N, D) and of all captions (K, D).
        clean_probability: (K,) w_n.
        candidates: (N, k) captions to draw from for each image with a risky pair.
    """

    embeddings: tuple | None = None
    clean_probability: np.ndarray | None = None
    candidates: np.ndarray | None = None


class EpochResults(NamedTuple):
    """One epoch of all networks, an entry per network.

    Attributes:
        networks: the states after it.
        losses: (steps,) each.
        correct: (steps, B) bool each.
        loading: `LoaderStats` each, where images, texts or teachers stay on the host; else None.
    """

    networks: list[NetworkState]
    losses: list
    correct: list
    loading: list[LoaderStats] | None


def train_experts(model: DualEncoder, train: Inputs, val: Inputs, recipe: Recipe, *, count: int, seed: int, keep: int,
                  rate: float = 0.0, mismatched: np.ndarray | None = None, first_teacher: Teacher | None = None,
                  checkpointer: Checkpointer | None = None) -> TrainedExperts:
    """Train experts together, after their teachers if the recipe has any.

    Args:
        model: the dual encoder.
        train: training pairs as paired by the noise draw (`image_of` is the noisy pairing).
        val: truly paired data that the best epoch is chosen on.
        recipe: losses, weights, epochs.
        count: how many experts, of two networks each.
        seed: of all random draws.
        keep: snapshots 0 .. keep are returned.
        rate: eta, the share of mismatched pairs, used by the recipe's `debias` and `rescale_step` alone.
        mismatched: (K,) bool, the truth, for the log and for `division="oracle"`.
        first_teacher: teaches the first generation, and divides the pairs for all: a closed form.
        checkpointer: where to resume from and to keep states. An epoch that is cut short is done again; with the same
            arguments the result is the same, bit for bit.

    Raises:
        UserError: training diverges, or `recovery_top_k` exceeds the number of captions.
    """
    *_, trained = expert_epochs(model, train, val, recipe, count=count, seed=seed, keep=keep, rate=rate,
                                mismatched=mismatched, first_teacher=first_teacher,
                                checkpointer=checkpointer)
    return trained


def expert_epochs(model: DualEncoder, train: Inputs, val: Inputs, recipe: Recipe, *, count: int, seed: int, keep: int,
                  rate: float = 0.0, mismatched: np.ndarray | None = None, first_teacher: Teacher | None = None,
                  checkpointer: Checkpointer | None = None) -> Iterator[TrainedExperts]:
    """`train_experts`, one epoch at a time.

    Yields:
        The experts so far: as they begin or are resumed, and after every epoch. During the teachers' epochs they are
        the teachers. The last one is the result of `train_experts`.
    """
    if recipe.recovery_weight and recipe.recovery_top_k > len(train.image_of):
        raise UserError(f"experts.recovery_top_k is {recipe.recovery_top_k} but there are only {len(train.image_of)} "
                        "training captions; lower it.")
    if recipe.recovery_weight:
        require_search(recipe.recovery_search, len(train.images), len(train.image_of))
    checkpointer = checkpointer or Checkpointer()
    form = first_teacher.form if first_teacher is not None and recipe.init == "closed_form" else None
    teacher, earlier = None, TrainedExperts(0, [], [], [], np.ones(0), np.zeros(0, np.uint8))
    if first_teacher is not None:
        teacher = lambda: first_teacher
        recipe = dataclasses.replace(recipe, lr=recipe.lr_with_teachers)
    if recipe.teacher_count:
        # Without a teacher of their own: the tolerant loss on all pairs.
        first = dataclasses.replace(recipe, warmup=recipe.teacher_epochs) if teacher is None else recipe
        generation = make_generation("teachers", model, train, val, first, count=recipe.teacher_count,
                                     epochs=recipe.teacher_epochs, seed=seed, rate=rate, mismatched=mismatched,
                                     teacher=teacher, form=form, folder=checkpointer.folder)
        for state in generation_epochs(generation, checkpointer):
            yield _trained(state)
        first_teacher = _division_of(first_teacher)
        teacher, earlier = _ensemble_teacher(generation, state.best, first_teacher), _trained(state)
        recipe = dataclasses.replace(recipe, lr=recipe.lr_with_teachers)
    generation = make_generation("experts", model, train, val, recipe, count=count, epochs=recipe.epochs, seed=seed,
                                 keep=0 if recipe.trajectory_epochs else keep, rate=rate, mismatched=mismatched,
                                 teacher=teacher, form=form, folder=checkpointer.folder)
    for state in generation_epochs(generation, checkpointer):
        trained = _trained(state)
        trained = trained._replace(epochs=earlier.epochs + trained.epochs, log=earlier.log + trained.log)
        yield trained
    first_teacher = _division_of(first_teacher)
    if recipe.trajectory_epochs:
        plain = dataclasses.replace(recipe, optimizer="sgd", decay="none", momentum=0.0, lr=recipe.trajectory_lr)
        generation = make_generation("trajectories", model, train, val, plain, count=count, keep=keep, seed=seed, rate=rate,
                                     epochs=recipe.trajectory_epochs, mismatched=mismatched, folder=checkpointer.folder,
                                     teacher=_ensemble_teacher(generation, state.best, first_teacher))
        for state in generation_epochs(generation, checkpointer):
            yield trained._replace(epochs=trained.epochs + state.epoch, log=trained.log + state.log,
                                   snapshots=state.snapshots)


def _trained(state: ExpertTrainState) -> TrainedExperts:
    return TrainedExperts(state.epoch, state.snapshots, state.log, state.best, state.clean_probability, state.correct_bits)


def _division_of(teacher: Teacher | None) -> Teacher | None:
    """A teacher of which no more than its division is needed: its embeddings, large arrays or mapped files, are let go."""
    return teacher and teacher._replace(images=None, texts=None)


def _ensemble_teacher(generation: Generation, networks: list, first_teacher: Teacher | None) -> Callable[[], Teacher]:
    """Finished networks as one teacher. It divides as the first teacher does, where there is one."""
    division = None if first_teacher is None else first_teacher.clean_probability

    def teacher() -> Teacher:
        images, texts = _ensembles(generation, networks, [range(len(networks))])[0]
        return Teacher(images, texts, division)

    return teacher


def _ensembles(generation: Generation, networks: list, teachers_of) -> list[tuple]:
    """`teacher_ensembles` of networks of a generation."""
    return teacher_ensembles(generation.model, networks, generation.train, teachers_of, generation.folder,
                             generation.name.replace(" ", "-"))


def generation_epochs(generation: Generation, checkpointer: Checkpointer | None = None) -> Iterator[ExpertTrainState]:
    """Train a generation to its end.

    Yields:
        The state that training begins with or is resumed from, then the state after each epoch.

    Raises:
        UserError: training diverges.
    """
    checkpointer = checkpointer or Checkpointer()
    state = restore_state(generation, checkpointer.load(generation.name))
    yield state
    phase, signals = None, None
    for epoch in range(state.epoch, generation.epochs):
        with preemption.save_on_interrupt(lambda state=state: save_state(checkpointer, generation, state)):
            preemption.raise_if_interrupted()
        if signals is None or generation.teacher is None:  # what a finished teacher knows does not change
            phase = epoch_phase(generation.recipe, epoch, generation.teacher is not None)
            signals = teacher_signals(generation, state, phase)
        elif phase.recovering and generation.search == "sample":  # beside which captions are in the sample
            signals = choose_candidates(generation, state.epoch, signals)
        batches = epoch_batches(generation, epoch, phase, signals)
        results = train_epoch(generation, state, batches, phase, signals)
        state = finish_epoch(generation, state, batches, results, signals)
        yield state
        if checkpointer.should_save() or state.epoch == generation.epochs:
            save_state(checkpointer, generation, state)


def teacher_signals(generation: Generation, state: ExpertTrainState, phase: Phase) -> list[TeacherSignals]:
    """What each network learns from its teachers in an epoch of this phase."""
    unused: list[Any] = [None] * generation.networks
    embeddings, division = unused, unused
    finished = None
    if phase.recovering or phase.guided or (phase.divided and generation.recipe.division == "gmm"):
        finished = generation.teacher and generation.teacher()
        if finished is not None:
            embeddings = [(finished.images, finished.texts)] * generation.networks
        else:
            embeddings = peer_embeddings(generation, state)
    if phase.divided:
        division = divide_pairs(generation, state.epoch, embeddings, finished)
    signals = [TeacherSignals(*parts) for parts in zip(embeddings, division, strict=True)]
    return choose_candidates(generation, state.epoch, signals) if phase.recovering else signals


def choose_candidates(generation: Generation, epoch: int, signals: list[TeacherSignals]) -> list[TeacherSignals]:
    """The signals with the captions that recovery draws from; networks that have the same teacher share them."""
    recipe, shared_teachers = generation.recipe, generation.teacher is not None
    if shared_teachers and generation.search != "sample":
        epoch = 0  # their candidates stay, and are the same where training is resumed
    candidates = [recovery_candidates(signal.embeddings, generation.image_of, signal.clean_probability >= 0.5,
                                      recipe.recovery_top_k, generation.search,
                                      generation.generator(n, "recovery", epoch))
                  for n, signal in enumerate(signals[:1] if shared_teachers else signals)]
    candidates *= generation.networks // len(candidates)
    return [signal._replace(candidates=own) for signal, own in zip(signals, candidates, strict=True)]


def peer_embeddings(generation: Generation, state: ExpertTrainState) -> list[tuple]:
    """The embeddings of all images and captions by the teachers of each network in its generation, as one ensemble."""
    count, recipe = generation.networks, generation.recipe
    averages = [network.average for network in state.networks]
    return _ensembles(generation, averages,
                      [teacher_indices(n, count, recipe.peers) if recipe.dual else [n] for n in range(count)])


def divide_pairs(generation: Generation, epoch: int, embeddings: list[tuple], finished: Teacher | None
                 ) -> list[np.ndarray]:
    """(K,) clean probabilities w_n of the pairs for each network, by its teachers or by the truth."""
    networks = generation.networks
    if generation.recipe.division == "oracle":
        return [(~generation.mismatched).astype(np.float32) for _ in range(networks)]
    if finished is not None:  # the same teacher for all networks, in all epochs
        if finished.clean_probability is not None:
            return [np.asarray(finished.clean_probability, np.float32)] * networks
        embeddings, epoch = embeddings[:1], 0
    losses = all_pair_losses(embeddings, generation.model.tau, generation.image_of, generation.recipe.batch,
                             seed=generation.seed, epoch=epoch)
    return [divide(values, generation.seed) for values in losses] * (networks // len(losses))


def epoch_batches(generation: Generation, epoch: int, phase: Phase, signals: list[TeacherSignals]) -> list[EpochBatches]:
    """The batches of one epoch for each network: shuffled pairs, weights of the tracks, recovered captions."""
    recipe, image_of = generation.recipe, generation.image_of
    batches = []
    for n, signal in enumerate(signals):
        generator = generation.generator(n, "epoch", epoch)
        captions = np.arange(len(image_of))
        if phase.divided:
            clean, tolerant = track_weights(recipe, signal.clean_probability, phase.recovering)
        else:
            clean, tolerant = undivided_weights(recipe, len(image_of), epoch < recipe.warmup)
        if phase.recovering:
            captions = recovered_captions(generator, signal.candidates, image_of, clean > 0)
        batches.append(make_epoch_batches(generator, image_of, recipe.batch, clean, tolerant, captions))
    return batches


def train_epoch(generation: Generation, state: ExpertTrainState, batches: list[EpochBatches], phase: Phase,
                signals: list[TeacherSignals]) -> EpochResults:
    """One epoch of optimizer steps of all networks."""
    train, steps, shared_teachers = generation.train, generation.steps, generation.teacher is not None
    own = phase.guided and not shared_teachers
    inputs = [EpochInputs(network, batches[n], jax.random.split(generation.key(n, "augment", state.epoch),
                                                                len(batches[n].rows)),
                          signals[n].embeddings if own else None) for n, network in enumerate(state.networks)]
    common_teacher = signals[0].embeddings if phase.guided and shared_teachers else None
    loading = None
    teacher = common_teacher or inputs[0].teacher
    if any(map(stays_on_host, (train.images, train.texts, *(teacher or ())))):
        results, loading = streamed_epochs(steps.epoch, inputs, train.images, train.texts, common_teacher,
                                           unrelated=generation.recipe.debias)
    else:
        results = steps.map_networks(steps.epoch, inputs, train.images, train.texts, common_teacher)
    networks, losses, correct = zip(*results, strict=True)
    return EpochResults(list(networks), list(losses), list(correct), loading)


def finish_epoch(generation: Generation, state: ExpertTrainState, batches: list[EpochBatches], results: EpochResults,
                 signals: list[TeacherSignals]) -> ExpertTrainState:
    """The state after an epoch: scored on val, logged, its best and its first snapshots kept.

    Raises:
        UserError: a network's loss is not finite.
    """
    epoch, networks = state.epoch, range(generation.networks)
    averages = [network.average for network in results.networks]
    on_val = scores(generation.model, averages, generation.val)
    rows = [log_row(generation, epoch, n, results, on_val[n], signals[n]) for n in networks]
    correct_bits = state.correct_bits.copy()
    for n in networks:
        correct = np.unpackbits(correct_bits[n, max(epoch - 1, 0)], count=len(generation.image_of))
        correct[np.asarray(batches[n].rows).ravel()] = np.asarray(results.correct[n]).ravel()
        correct_bits[n, epoch] = np.packbits(correct)
    if generation.form is None:
        best_before = [max((row["val_r_mean"] for row in state.log[n::len(networks)]), default=-1.0) for n in networks]
    else:  # the start may be the best: few pairs teach less than the closed form knows
        best_before = [float(on_val[-1]) for on_val in scores(generation.model, state.best, generation.val)]
    best = [averages[n] if rows[n]["val_r_mean"] > best_before[n] else state.best[n] for n in networks]
    snapshots = state.snapshots
    if epoch + 1 <= generation.keep:
        snapshots = [[*snapshots[n], averages[n]] for n in networks]
    clean_probability = state.clean_probability
    if signals[0].clean_probability is not None:
        clean_probability = np.mean([signal.clean_probability for signal in signals], axis=0)
    return ExpertTrainState(epoch + 1, results.networks, snapshots, best, state.log + rows, clean_probability,
                            correct_bits)


def log_row(generation: Generation, epoch: int, network: int, results: EpochResults, on_val,
            signals: TeacherSignals) -> dict[str, Any]:
    """One network's row of the log of an epoch. Raises UserError where its loss is not finite."""
    loss = float(np.mean(results.losses[network]))
    if not np.isfinite(loss):
        raise UserError(f"expert {network // 2} diverged in epoch {epoch + 1}: its loss is not finite; lower "
                        "experts.lr.")
    row: dict[str, Any] = {"generation": generation.name, "epoch": epoch + 1, "expert": network // 2,
                           "network": "AB"[network % 2], "loss": loss}
    row |= {f"val_{metric}": float(value) for metric, value in zip(METRICS, on_val, strict=True)}
    if results.loading is not None:
        loading = results.loading[network]
        row |= {"pairs_per_second": loading.pairs_per_second, "wait_fraction": loading.wait_fraction}
    if signals.clean_probability is not None and generation.mismatched is not None:
        row |= division_quality(signals.clean_probability, generation.mismatched)
    return row
