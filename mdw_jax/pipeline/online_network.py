"""The network of covariance matching: begun anew every few outer steps, trained on real pairs in between."""

import functools

import jax.numpy as jnp

from mdw_jax.errors import UserError
from mdw_jax.method.covariance import RealBatch, make_network_step
from mdw_jax.pipeline.experts import kept_pairs
from mdw_jax.pipeline.prepared import Prepared
from mdw_jax.pipeline.preset_run import PresetRun
from mdw_jax.runtime.rng import named_generator, named_key

_network_step = functools.lru_cache(maxsize=4)(make_network_step)  # all sets of a preset share the compiled step


class OnlineNetwork:
    """The network and the real batch of each outer step, as functions of the step alone.

    Nothing of it is saved: a run that resumes in the middle of a network's life trains it again from its beginning, on
    the same batches.
    """

    def __init__(self, run: PresetRun, prepared: Prepared, index: int):
        """run, prepared, index: as in `distill_set`.

        Raises:
            UserError: there are fewer pairs than `experts.batch`.
        """
        experts = run.config.experts
        self._seed, self._names = run.config.run.seed, ("covariance", run.name, index)
        self._data, self._rows, self._batch = prepared.train(run.noise), kept_pairs(run, prepared), experts.batch
        if self._batch > len(self._rows):
            raise UserError(f"experts.batch is {self._batch} but there are only {len(self._rows)} training pairs; lower "
                            "it.")
        self._life = run.config.distill.network_steps
        self._start, self._step = _network_step(prepared.model, experts.lr_infonce, experts.momentum,
                                                experts.weight_decay)
        self._at, self._network = -1, (None, None)  # a step, and the network then: parameters, optimizer state

    def arguments(self, step: int) -> tuple:
        """(parameters of the network, the real batch) of an outer step."""
        born = step - step % self._life
        if not born <= self._at <= step:
            self._at, self._network = born, self._start(named_key(self._seed, *self._names, born))
        while self._at < step:
            self._network = self._step(self._network, self._real_batch(self._at))
            self._at += 1
        return self._network[0], self._real_batch(step)

    def _real_batch(self, step: int) -> RealBatch:
        """Random real pairs, without replacement."""
        rows = named_generator(self._seed, *self._names, "batch", step).choice(self._rows, self._batch, replace=False)
        return RealBatch(jnp.asarray(self._data.images[self._data.image_of[rows]]), self._data.texts[jnp.asarray(rows)])
