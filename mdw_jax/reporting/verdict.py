"""The verdict on a run in two to six sentences: what its set is worth, and what to try next.

A difference counts where its 95 % interval (Welch) leaves out 0: over sets, the independent unit, where both rows have
several, otherwise over students, which does not say how much another set would differ. Imports neither jax nor matplotlib.
"""

import math
from collections.abc import Iterable, Sequence
from typing import NamedTuple

from mdw_jax.reporting.noise_text import estimate_in_words
from mdw_jax.reporting.run_files import Run
from mdw_jax.reporting.stats import half_interval, welch
from mdw_jax.reporting.text import bytes_text, plural
from mdw_jax.reporting.verdict_results import Results, Row, guessing, results_of

NEAR_GUESSING = 1.5  # a score of at most so many times that of guessing is called one
SAME_SIZE = 0.05  # sizes that differ by at most this share are called equal
MUCH_KEPT = 0.8  # from here on, nothing is said about more pairs
SHARP = 0.05  # half an interval of a difference, in points, up to which it is printed as 0: more data narrow nothing
NOISY = 0.05  # share of mismatched pairs from which those of val and test matter
WIDE = 2.0  # half an interval of a mean, in points, beyond which more sets or students are advised
FEW_VAL_IMAGES = 100
LARGE_SIDE = 64  # of stored images, from which smaller ones are advised: they buy pairs for the same bytes
MOST_ADVICE = 3
CLEARLY_BELOW = 1.0  # points of r_mean on val by which experts are called worse than the closed form


class Comparison(NamedTuple):
    """The main row against another.

    Attributes:
        label: of the other row.
        difference: main - other, in points of r_mean.
        low, high: ends of its 95 % interval; nan where a row has a single student.
        size: bytes of the other row over those of the main row.
    """

    label: str
    difference: float
    low: float
    high: float
    size: float

    @property
    def half(self) -> float:
        """Half the width of the interval; nan where there is none."""
        return (self.high - self.low) / 2

    @property
    def finding(self) -> str:
        """ "better", "worse", "none" (no difference beyond chance), or "unknown" (no interval)."""
        if math.isnan(self.low):
            return "unknown"
        return "better" if self.low > 0 else "worse" if self.high < 0 else "none"


def verdict_of(run: Run) -> list[str]:
    """The verdict on a finished run. Raises UserError where a file of it is damaged."""
    return verdict(results_of(run))


def verdict(results: Results) -> list[str]:
    """Two to six sentences on a run.

    Args:
        results: what it reached.

    Returns:
        The sentences: the score; what it is better and not better than; what distilling added, and what is kept of the
        best reference on all data; whether the experts are worse than the closed form; what limits all that; what to try
        next. Those with nothing to say are left out.
    """
    if results.main.kind == "reference":
        return [*_of_references(results), *filter(None, [_experts_below(results)])]
    found = comparisons(results)
    sentences = [_score(results), _compared(found), _gained(results), _experts_below(results), _limits(results, found),
                 _advice(results, found)]
    return [sentence for sentence in sentences if sentence]


def comparisons(results: Results) -> list[Comparison]:
    """The main row against random pairs, other chosen pairs, sets that are not learned, and the best learned one."""
    rows = [row for row in results.others if row.kind != "reference"]
    random = [row for row in rows if row.name == "random"]
    chosen = [row for row in rows if row.kind == "coreset" and row not in random]
    starts = [row for row in rows if row.kind == "distilled" and not row.learned]
    learned = [row for row in rows if row.kind == "distilled" and row.learned]
    return [_against(results.main, row, label)
            for row, label in [*_labelled(random), *_best(chosen, "choices of real pairs"), *_labelled(starts),
                               *_best(learned, "other methods")]]


def _labelled(rows: Iterable[Row]) -> list[tuple[Row, str]]:
    return [(row, f'"{row.label}"' if "," in row.label else row.label) for row in rows]


def _best(rows: Sequence[Row], noun: str) -> list[tuple[Row, str]]:
    """The best of several rows, and how it is called."""
    if len(rows) < 2:
        return _labelled(rows)
    [(best, label)] = _labelled([max(rows, key=lambda row: row.mean)])
    return [(best, f"{label} (the best of {len(rows)} {noun})")]


def _against(main: Row, other: Row, label: str) -> Comparison:
    by_set = [[sum(scores) / len(scores) for scores in row.scores] for row in (other, main)]
    a, b = by_set if min(map(len, by_set)) > 1 else (other.students, main.students)
    size = other.size / main.size if other.size and main.size else 1.0
    label += " (selected on test, so optimistic)" * (other.on_test and not main.on_test)
    return Comparison(label, *welch(a, b), size)


def _of_references(results: Results) -> list[str]:
    """The verdict on a run without small sets."""
    best = max((results.main, *results.others), key=lambda row: row.mean)
    return [f"No small set in this run; the best from all the data is {best.mean:.1f} % r_mean (mean recall on test; "
            f"{best.label}){_guessed(results, best)}.",
            "To know what a small set keeps of it, add the presets mdw, random and correspond to run.presets."]


def _score(results: Results) -> str:
    main = results.main
    size = "" if main.size is None else f" ({bytes_text(main.size)})"
    optimistic = "; students were selected on test, so this is optimistic" if main.on_test else ""
    return (f"{main.label}: {main.mean:.1f} % r_mean (mean recall on test; {_interval(main)}) with "
            f"{plural(results.pairs, 'pair')}{size} instead of {results.captions:,}, {_mismatched(results)}{optimistic}"
            f"{_guessed(results, main)}.")


def _interval(row: Row) -> str:
    """The 95 % interval of a mean, and what it is over."""
    half = _half_interval(row)
    if half is None:
        return "one student, so no interval"
    over = f"{len(row.scores)} sets" if len(row.scores) > 1 else f"{len(row.students)} students of one set"
    low, high = row.mean - half, row.mean + half
    if low < 0 or high > 100:  # a recall is never beyond these ends
        return f"{max(low, 0):.1f} to {min(high, 100):.1f}, 95 % over {over}"
    return f"±{half:.1f}, 95 % over {over}"


def _half_interval(row: Row) -> float | None:
    """Half the 95 % interval of the mean, over sets or else over students; None from one student."""
    return half_interval([sum(scores) / len(scores) for scores in row.scores] if len(row.scores) > 1 else row.students)


def _mismatched(results: Results) -> str:
    """What is known of the noise, in words that call nothing clean that nobody has checked."""
    noise = results.noise
    if noise["rate"]:
        return f"{noise['label']} of them mismatched on purpose"
    if noise["rate"] is not None:
        return "none of them mismatched on purpose"
    words = estimate_in_words(noise.get("estimated"))
    return f"an estimated {words} of them mismatched" if words else "an unknown share of them mismatched"


def _is_guessing(results: Results, row: Row) -> bool:
    if not (results.test_images and results.test_captions):
        return False
    return row.mean <= NEAR_GUESSING * guessing(results.test_images, results.test_captions)


def _guessed(results: Results, row: Row) -> str:
    if not _is_guessing(results, row):
        return ""
    level = guessing(results.test_images or 1, results.test_captions or 1)
    return f"; that is about what guessing gives ({level:.1f} % with {results.test_images:,} images)"


def _compared(found: Sequence[Comparison]) -> str:
    """What the set is better than, not different from, and worse than; each with its difference and interval."""
    groups = {finding: [one for one in found if one.finding == finding]
              for finding in ("better", "none", "worse", "unknown")}
    parts = [f"{words} {_and(_difference(one) for one in group)}" for words, group in (
        ("better", groups["better"]), ("worse", groups["worse"])) if group]
    parts = [f"Beyond chance it is {_and(parts)}"] if parts else []
    if groups["none"]:
        parts.append(f"no difference that this run can tell {_and(f'from {_signed(one)}' for one in groups['none'])}")
    if groups["unknown"]:
        parts.append(f"against {_and(map(_signed, groups['unknown']))} a single student does not tell chance from gain")
    text = "; ".join(parts)
    return text[:1].upper() + text[1:] + "." if text else ""


def _difference(one: Comparison) -> str:
    low, high = (one.low, one.high) if one.difference > 0 else (-one.high, -one.low)
    return f"than {one.label} by {abs(one.difference):.1f} points [{low:.1f}, {high:.1f}]"


def _signed(one: Comparison) -> str:
    interval = "" if math.isnan(one.low) else f" [{one.low:+.1f}, {one.high:+.1f}]"
    return f"{one.label} ({one.difference:+.1f} points{interval})"


def _gained(results: Results) -> str:
    """What distilling added to the start, and how much of the best reference the set keeps."""
    parts = []
    start, best = _start_and_best(results)
    if start is not None and best is not None:
        gain = best["val_r_mean"] - start["val_r_mean"]
        parts.append("distilling added nothing: val chose the start" if best["step"] == 0 else
                     f"distilling added {gain:.1f} points to the start (on val, which chose the set; no interval)")
    references = [row for row in results.others if row.kind == "reference"]
    if references:
        top = max(references, key=lambda row: row.mean)
        parts.append(f"{_kept(results.main, top)} the best from all the data ({top.label}, {top.mean:.1f} %)")
    text = "; ".join(parts)
    return text[:1].upper() + text[1:] + "." if text else ""


def _kept(main: Row, top: Row) -> str:
    """How much of the best reference the set keeps, in words that go on with "the best"; there is no share of 0."""
    if not top.mean:
        return "no share can be given of"
    kept = main.mean / top.mean
    return f"the set {'reaches' if kept >= 1 else 'keeps'} {kept:.0%} of"


def _experts_below(results: Results) -> str:
    """What to do where the experts ended clearly below the closed form of the same pairs on val."""
    rows = {row.name: row for row in (results.main, *results.others)}
    experts, form = rows.get("experts"), rows.get("closed_form")
    if not (experts and form) or experts.on_val is None or form.on_val is None or experts.mean >= form.mean:
        return ""  # or test says otherwise: the difference on val is chance
    words = below_closed_form(experts.on_val, form.on_val, results.untried)
    return f"{words[:1].upper()}{words[1:]} (on test {experts.mean:.1f} against {form.mean:.1f})." if words else ""


def below_closed_form(experts: float, form: float, untried: Sequence[str]) -> str:
    """That experts ended clearly below the closed form, and what to do, in a clause; "" where they did not.

    Args:
        experts, form: r_mean on val, in %.
        untried: what may help (`without_closed_form`).
    """
    if form - experts < CLEARLY_BELOW:
        return ""
    try_it = f"; {_and(untried)}" if untried else ""
    return (f"the experts ended below the closed form, with {experts:.1f} % r_mean on val against {form:.1f}: by "
            f"that the closed form, in closed_form/ of the run folder, is the better model of these pairs{try_it}")


def _start_and_best(results: Results):
    """The best candidate of step 0, and the best of all; None where there is no choice between start and checkpoints."""
    starts = [row for row in results.candidates if row["step"] == 0]
    if not starts or len(starts) == len(results.candidates):
        return None, None
    return tuple(max(rows, key=lambda row: row["val_r_mean"]) for rows in (starts, results.candidates))


def _limits(results: Results, found: Sequence[Comparison]) -> str:
    parts = []
    unequal = [one for one in found if abs(one.size - 1) > SAME_SIZE]
    if unequal:
        sizes = _and(f"{one.label} {one.size:.2g} times as many bytes" for one in unequal)
        parts.append(f"bytes are not equal: {sizes} as {results.main.label}")
    if results.noise["rate"] is None and _is_uninformative(results.noise.get("estimated")):
        parts.append("the estimate of the noise does not tell how many pairs are mismatched")
    if results.noise["rate"] is None and _may_be_noisy(results):
        parts.append("the pairs held out for val and test are as noisy as train: scores here are lower than they would be "
                     "on clean pairs" if results.held_out else
                     "val and test are as they came too: pairs that are mismatched there make all scores here too low")
    text = "; ".join(parts)
    return text[:1].upper() + text[1:] + "." if text else ""


def _may_be_noisy(results: Results) -> bool:
    """Whether val and test are too noisy for their scores: they are where train is, as is known of pairs held out of it."""
    estimate = results.noise.get("estimated")
    if estimate is None or _is_uninformative(estimate):
        return results.held_out
    return estimate["high" if results.held_out else "low"] >= NOISY


def _is_uninformative(estimate) -> bool:
    """Whether an estimate was made and leaves more than a third of the range open."""
    return estimate is not None and estimate["high"] - estimate["low"] > 1 / 3


def _advice(results: Results, found: Sequence[Comparison]) -> str:
    """What to try next: at most three things, the most important first."""
    advice = [text for text in (_missing(results), *_settings(results, found)) if text]
    return f"Next: {'; '.join(advice[:MOST_ADVICE])}." if advice else ""


def _missing(results: Results) -> str:
    """The presets that a comparison lacks, and what they would tell."""
    main, names = results.main, {row.name for row in results.others}
    kinds = {row.kind for row in results.others}
    wanted = {"random": "coreset" not in kinds and main.name != "random",
              "correspond": bool(main.learned and main.needs_experts and "correspond" not in names),
              # A question of a study, which those who bring data of their own do not ask.
              "lors": main.learned and results.noise["rate"] is not None and not any(row.learned for row in results.others),
              "experts": "reference" not in kinds}
    told = {"random": "random pairs", "correspond": "real pairs with P from the experts", "lors": "a published method"}
    missing = [name for name, holds in wanted.items() if holds]
    if not missing:
        return ""
    unknown = [f"whether {_or(rivals)} would do as well"] if (rivals := [told[name] for name in missing if name in told]
                                                              ) else []
    unknown += ["how much all the data would give"] * ("experts" in missing)
    return f"add {_and(missing)} to run.presets, to know {_and(unknown)}"


def _settings(results: Results, found: Sequence[Comparison]) -> list[str]:
    """Settings that may help, in order of importance."""
    main, advice = results.main, []
    if _is_guessing(results, main):
        advice.append("published weights (model.weights) or more pairs (distill.pairs): at the level of guessing, "
                      "methods cannot be told apart")
    if main.at_edge:
        keys = {"steps": "evaluate.steps", "lr_scale": "evaluate.lr_scales"}
        advice.append(f"a wider {_and(keys.get(name, name) for name in sorted(main.at_edge))}: the best lies at the end "
                      "of what was allowed")
    if any(one.finding == "unknown" or one.finding == "none" and one.half > SHARP for one in found) or _is_wide(main):
        advice.append("more sets (distill.sets) or students (evaluate.students): intervals are wide")
    elif len(main.scores) == 1:
        advice.append("more sets (distill.sets=3): students of one set do not tell how much another differs")
    return [*advice, *_distillation_settings(results)]


def _is_wide(row: Row) -> bool:
    """Whether the interval of a mean is wider than `WIDE`, or there is none."""
    half = _half_interval(row)
    return half is None or half > WIDE


def _distillation_settings(results: Results) -> list[str]:
    advice, (start, best) = [], _start_and_best(results)
    steps = sorted({row["step"] for row in results.candidates} - {0})
    if start is not None and best["step"] == 0:
        advice.append("another distill.lr_images or more distill.steps: no checkpoint beat the start")
    elif best is not None and len(steps) > 1 and best["step"] == steps[-1]:
        advice.append("more distill.steps: the last checkpoint was the best")
    references = [row.mean for row in results.others if row.kind == "reference"]
    if references and results.main.mean < MUCH_KEPT * max(references):
        side = results.image_side or 0
        advice.append("more pairs (distill.pairs)" + (side >= LARGE_SIDE) * (
            f", which smaller stored images (distill.image_size={side // 2}) pay for"))
    if results.val_images is not None and results.val_images < FEW_VAL_IMAGES:
        advice.append(f"more val data: {plural(results.val_images, 'image')} chose everything")
    return advice


def _and(parts: Iterable[str]) -> str:
    return _joined(parts, "and")


def _or(parts: Iterable[str]) -> str:
    return _joined(parts, "or")


def _joined(parts: Iterable[str], word: str) -> str:
    *first, last = parts
    return f"{', '.join(first)} {word} {last}" if first else last
