"""`mdw run` with an estimate of its time among its first lines."""

from ml_collections import ConfigDict

from mdw_jax.analysis.cost.counts import counts_of_pairs, text_width
from mdw_jax.analysis.cost.times import estimate_in_words
from mdw_jax.data.pairs import Pairs
from mdw_jax.pipeline import run


def run_command(config: ConfigDict) -> None:
    """Do all stages of every preset (`mdw_jax.pipeline.run.run_command`); say before how long that takes from the start."""
    run.run_command(config, estimate=_estimate)


def _estimate(config: ConfigDict, pairs: Pairs) -> str:
    return f"{estimate_in_words(config, counts_of_pairs(pairs, text_width(config)))}; less where parts are there already"
