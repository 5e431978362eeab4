"""The noise of a run's pairs in words. Of natural noise only an estimate is known: nothing here calls pairs clean."""

from collections.abc import Mapping


def estimate_in_words(estimate: Mapping | None) -> str:
    """An estimated noise rate and its interval: "38.9% [38.1%, 39.6%]"; "" where there is none, or it says nothing.

    Args:
        estimate: fields of `mdw_jax.method.noise_rate.Rate`.
    """
    if estimate is None or (estimate["low"], estimate["high"]) == (0, 1):  # of data too few: the whole range
        return ""
    return f"{estimate['eta']:.1%} [{estimate['low']:.1%}, {estimate['high']:.1%}]"


def natural_noise(noise: Mapping) -> str:
    """A sentence on natural noise: "Natural noise: 38.9% [...] of the training pairs are mismatched, as estimated ...".

    Args:
        noise: of a preset in report.json, or of a set's card with `estimated`.
    """
    words, assumed = estimate_in_words(noise.get("estimated")), noise.get("assumed")
    sentence = ("Natural noise: the pairs are taken as they came, and how many of them are mismatched is not known"
                f"{' (the estimate could not tell, of so few pairs)' if noise.get('estimated') else ''}."
                if not words else
                f"Natural noise: the pairs are taken as they came, and an estimated {words} of the training pairs are "
                f"mismatched ({noise['estimated']['confidence']:.0%} interval).")
    return sentence + (f" {assumed:.1%} were assumed." if assumed else "")


def noise_in_words(noise: Mapping) -> str:
    """The noise of a preset in a few words: "image, 40%", "natural, 38.9% [38.1%, 39.6%] estimated"."""
    if noise["rate"] is not None:
        return f"{noise['protocol']}, {noise['label']}"
    words = estimate_in_words(noise.get("estimated"))
    return f"natural, {words} estimated" if words else "natural, of unknown rate"
