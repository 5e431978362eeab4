"""A list of suspected mismatches in words: what it holds, by which threshold, and how far it can be right."""

from mdw_jax.analysis.mismatches.find import Judged, Quality
from mdw_jax.reporting.noise_text import estimate_in_words

SOURCES = {  # what a probability is, by `Judged.divided_by`
    "experts": "by the division that the experts were trained by",
    "nobody": "by the division that the experts were trained by, which is none: counted alike, the pairs served them best",
    "similarity": "by a division of the experts' similarities (each less what is usual among its neighbors)",
    "similarity, for want of a division": "by a division of the experts' similarities (each less what is usual among its "
                                          "neighbors), which was made here because their recipe has none that it found",
}
DEFAULT_BELOW = 0.5  # where the experts find a mismatch likelier than a match


def threshold_in_words(judged: Judged, below: float, listed: int, top: int) -> str:
    """By which threshold how many pairs are listed."""
    pairs = len(judged.clean_probability)
    suspected = int((judged.clean_probability < below).sum())
    why = "which is where a mismatch is the likelier of the two" if below == DEFAULT_BELOW else "as you set it"
    text = (f"Listed are pairs whose probability of belonging together is below {below:g} ({why}), "
            f"{SOURCES[judged.divided_by]}: {suspected:,} of {pairs:,}, {suspected / pairs:.1%}.")
    if judged.dropped.any():
        text += f" {int(judged.dropped.sum()):,} of them have the probability 0, because the preset's filter dropped them."
    if top:
        text += (f" Of these the {listed:,} most suspicious are kept." if listed < suspected else
                 f" That is fewer than the {top:,} that were asked for; raise --below for more." if listed < top else "")
    return text


def rate_in_words(judged: Judged, listed: int) -> str:
    """How many pairs are mismatched at all, as far as that is known, against how many are listed."""
    pairs, true, estimate = len(judged.clean_probability), judged.rate["true"], judged.rate["estimated"]
    if judged.true_image_of is not None:
        if not true:
            return ("No mismatches were drawn in these pairs. Whether the data had some of their own, nobody knows"
                    f"{': what is listed fits least by the experts, and no more is known of it' if listed else ''}.")
        return (f"{true:.1%} of the pairs were mismatched on purpose, {round(true * pairs):,} of them; mismatches that the "
                "data had before count as matched.")
    words = estimate_in_words(estimate)
    if not words:
        why = ("was not estimated (the experts of a preset with a filter, or noise.estimate is off)" if estimate is None
               else "could not be estimated from so few pairs")
        return (f"The share of mismatched pairs {why}: nobody knows how many there are, or whether there is any."
                f"{' The list says which pairs fit least, not that they are wrong.' if listed else ''}")
    low, high = estimate["low"] * pairs, estimate["high"] * pairs
    text = (f"Estimated are {words} mismatched pairs ({estimate['confidence']:.0%} interval), about "
            f"{estimate['eta'] * pairs:,.0f}")
    if low < 1:
        text += ", and none at all is possible"
    if listed > high:
        return (f"{text}: by that at most {high / listed:.0%} of the list can be mismatched; the others fit badly and are "
                f"right. --top {max(1, round(estimate['eta'] * pairs))} keeps as many as are estimated.")
    if listed < low and judged.divided_by == "nobody":
        return f"{text}: --by similarity --top {max(1, round(estimate['eta'] * pairs))} lists as many."
    if listed < low:
        return f"{text}: at least {low - listed:,.0f} are not listed; raise --below (or --top) for more of them."
    return f"{text}, which agrees with the length of the list."


def nothing_listed(judged: Judged, below: float) -> str:
    """What an empty list means."""
    if judged.divided_by == "nobody":
        return ("Nothing is listed: the experts divided these pairs into no two groups (counted alike, the pairs served "
                "them best), so there are no probabilities. --by similarity ranks the pairs by how badly image "
                "and caption fit.")
    return (f"No pair has a probability below {below:g} (the lowest is {judged.clean_probability.min():.3f}): the experts "
            f"suspect none at this threshold, {SOURCES[judged.divided_by]}. That does not show that all pairs are right; "
            "--below with a larger number, or --by similarity, lists those that fit least.")


def quality_in_words(found: Quality) -> str:
    """Precision and recall, and how often what is suggested is what belonged together."""
    precision, recall, captions, images = ("-" if share is None else f"{share:.1%}" for share in found)
    return (f"Against the mismatches that were drawn: precision {precision}, recall {recall}. Of the listed mismatched "
            f"pairs the suggested caption is one that came with the image in {captions}, and the suggested image the one "
            f"that the caption came with in {images}.")
