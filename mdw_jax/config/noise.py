"""Which noise a config means where it names none, and the line that announces noise that is drawn on purpose.

Data that somebody brings are taken as they are: their noise is `natural`, and its rate unknown. Only the data sets that
this package generates are corrupted by default, because they have no noise of their own to show.
"""

from collections.abc import Iterable

from ml_collections import ConfigDict

from mdw_jax.config.options import GENERATED_READERS
from mdw_jax.errors import UserError

UNSET_RATE = -1.0  # the default of noise.rate: a rate of 0 is a choice too
_DEFAULT_RATE = 0.4  # of noise that is drawn
UNDRAWN = ("natural", "none")  # protocols that mismatch nothing


def fill_in_noise(config: ConfigDict) -> None:
    """Replace a protocol and a rate that are not set by what they stand for, in place.

    Args:
        config: all sections of a config; `noise` is changed.

    Raises:
        UserError: a rate without a protocol, of data that are not generated: it could be one to draw or one to assume.
    """
    noise, is_named = config.noise, bool(config.noise.protocol)
    noise.protocol = noise.protocol or default_protocol(config)
    if not is_named and noise.protocol == "natural" and noise.rate > 0:
        raise UserError(
            f"noise.rate is {noise.rate:g}, but noise.protocol is not set, and the data are not generated "
            f"(data.name={config.data.name}); say which you mean, noise.protocol=image to mismatch that share of the "
            "training pairs on purpose, or noise.protocol=natural to assume that this share came mismatched.")
    if noise.rate == UNSET_RATE:
        noise.rate = 0.0 if noise.protocol in UNDRAWN else _DEFAULT_RATE


def default_protocol(config: ConfigDict) -> str:
    """The protocol of a config that names none: a noise file re-pairs on purpose, and generated data are corrupted."""
    return "image" if config.noise.file or config.data.name in GENERATED_READERS else "natural"


def noise_lines(sections: Iterable[ConfigDict]) -> list[str]:
    """What to tell first of all: noise that is drawn, read from a file, or assumed.

    Args:
        sections: the resolved section `noise` of each preset or cell.

    Returns:
        One line for each kind of noise, with all its rates; none for pairs as they come.
    """
    rates: dict[tuple[str, str], list[float]] = {}
    for noise in sections:
        if noise.file:
            kind = (f"the training pairs are re-paired by '{noise.file}'",
                    "; for data as they are, leave noise.file out and set --config.noise.protocol=natural")
            rates.setdefault(kind, [])
        elif noise.rate:
            kind = (("of the training pairs are assumed to be mismatched (natural)", "") if noise.protocol == "natural" else
                    (f"of the training pairs are mismatched on purpose ({noise.protocol}, seed {noise.seed})",
                     "; for data as they are: --config.noise.protocol=natural --config.noise.rate=0"))
            rates.setdefault(kind, []).append(noise.rate)
    return ["noise: " + " ".join(filter(None, [_listed(of_kind), words])) + advice
            for (words, advice), of_kind in rates.items()]


def _listed(rates: Iterable[float]) -> str:
    """ "10 %, 20 % or 40 %"."""
    texts = [f"{100 * rate:.4g} %" for rate in sorted(set(rates))]
    return " or ".join(filter(None, [", ".join(texts[:-1]), *texts[-1:]]))
