"""`mdw run` with an estimate of its time among its first lines."""

from collections.abc import Sequence

from ml_collections import ConfigDict

from mdw_jax.analysis.cost.counts import counts_of_pairs, text_width
from mdw_jax.analysis.cost.remaining import what_is_left
from mdw_jax.analysis.cost.times import estimate_in_words
from mdw_jax.data.pairs import Pairs
from mdw_jax.pipeline import run
from mdw_jax.pipeline.prepared import Prepared
from mdw_jax.pipeline.preset_run import PresetRun


def run_command(config: ConfigDict) -> None:
    """Do all stages of every preset (`mdw_jax.pipeline.run.run_command`); say before how long what is left of it takes."""
    run.run_command(config, estimate=_estimate)


def _estimate(config: ConfigDict, pairs: Pairs, prepared: Prepared | None, runs: Sequence[PresetRun]) -> str:
    counts = counts_of_pairs(pairs, text_width(config))
    if prepared is None:
        return estimate_in_words(config, counts)
    words = estimate_in_words(config, counts, what_is_left(prepared, runs))
    return f"{words}; for what is left alone, of which parts that were begun count whole"
