"""Tables and the figure of `mdw fairness`."""

from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from mdw_jax.analysis.fairness import metrics
from mdw_jax.analysis.fairness.attributes import MIN_GROUP, REST, WORDS_PREFIX, Attribute
from mdw_jax.reporting.figures import save_png
from mdw_jax.reporting.text import markdown_table

LIMITS = (
    "A distilled pair counts by its nearest real image and caption. A distilled image shows nobody, and one that blends "
    "two groups counts for whichever is slightly nearer.",
    "Neighbors are by features of the frozen encoders (where the backbone is trained, of its first weights), which may "
    "be blind to a group or favor one. Rows 'val' count held-out real pairs in the same way and compare them with their "
    "true groups: where these ratios are off 1, the counting is the cause. Where nearest neighbors are hardly more "
    "consistent than random ones, ratios near 1 mean nothing.",
    "A ratio of 1 is the real data's share. It does not say whether that share was fair to begin with.",
    "Recall differs between groups for reasons other than bias too: some scenes are easier, some captions say more. A "
    "group is compared within its own test images, all images being candidates.",
    f"A model that finds nothing has no gap: read a gap beside the recalls. Groups of less than {MIN_GROUP} test images "
    "are in no gap.",
    "Intervals are over distilled pairs and sets, or over test images. They contain none of the chance in training "
    "experts and students. Many are printed: without any effect one in twenty leaves out parity.",
)

LIMITS_OF_WORDS = (
    "Words in captions are what writers called people: no identity, and a guess from looks. The lists are short, in "
    "English, and know only the two genders and three ages that they name.",
    "Who goes unmentioned is in no group, and writers mention some groups more readily than others. One caption that "
    "names a group decides where the others name none.",
    'Words mislead: "girl" is said of women, "he" of dogs, and "baby" of a stroller. Edit the lists (fairness.words).',
)


def report(rows: Sequence[dict], reference: str | None, other_attributes: Sequence[str]) -> str:
    """The tables in Markdown, how many findings chance alone would make, and what the numbers do not show.

    Args:
        rows: of fairness.csv.
        reference: the preset that gaps are compared with, or None.
        other_attributes: names of usable attributes that were not chosen.
    """
    by_key = {(row["attribute"], row["group"], row["source"], row.get("modality"), row["measure"]): row for row in rows}
    groups, gaps, consistency = [], [], []
    for attribute, group, source in _keys(rows):
        find = lambda measure, modality=None: by_key.get((attribute, group, source, modality, measure))
        if find("gap"):
            gaps.append({"attribute": attribute, "source": source, "best - worst": group,
                         "gap in r_mean": _number(find("gap")), "by chance below": f"{find('gap')['chance']:.1f}",
                         **({f"ratio to {reference}": _number(find("gap_ratio"), 2)} if reference else {})})
        elif find("neighbor_consistency", "image"):
            consistency.append({"attribute": attribute, **{
                f"{name} {modality}": f"{100 * find('neighbor_consistency', modality)[value]:.1f}%"
                for modality in ("image", "text") for name, value in (("nearest", "value"), ("random", "chance"))}})
        else:
            shares, recall = [find("share", modality) for modality in ("image", "text")], find("r_mean")
            if recall is None and not any(row["value"] for row in shares):
                continue  # no real image, and none of this set
            groups.append({
                "attribute": attribute, "group": group, "source": source, "images": _share(shares[0]),
                "ratio": _ratio(find("ratio", "image")), "texts": _share(shares[1]),
                "ratio of texts": _ratio(find("ratio", "text")), "test images": str(recall["count"]) if recall else "-",
                "r_mean": _number(recall)})
    lines = [markdown_table(groups), markdown_table(gaps)] if gaps else [markdown_table(groups)]
    if consistency:
        lines += ["How often the nearest training image (caption) of a real val image (caption) shares its group, and "
                  "how often a random one does:\n", markdown_table(consistency)]
    by_words = any(row["attribute"].startswith(WORDS_PREFIX) for row in rows)
    lines += [_counts(rows), "What these numbers do not show:\n",
              *(f"* {line}" for line in (*LIMITS, *(LIMITS_OF_WORDS if by_words else ())))]
    if other_attributes:
        lines.append(f"\nNot shown: {', '.join(other_attributes)}. Name attributes in fairness.attributes.")
    return "\n".join(lines) + "\n"


def _keys(rows: Sequence[dict]) -> list[tuple[str, str, str]]:
    """(attribute, group, source) in the order of first appearance, the rows of an attribute and of a group together."""
    nested: dict[str, dict[str, dict[str, None]]] = {}
    for row in rows:
        nested.setdefault(row["attribute"], {}).setdefault(row["group"], {})[row["source"]] = None
    return [(attribute, group, source) for attribute, groups in nested.items() for group, sources in groups.items()
            for source in sources]


def _counts(rows: Sequence[dict]) -> str:
    """How many ratios and gaps stand out, and how many would by chance."""
    ratios = [row for row in rows if row["measure"] == "ratio" and row["source"] != "val" and np.isfinite(row["value"])]
    gaps = [row for row in rows if row["measure"] == "gap"]
    return (f"{sum(map(_off_parity, ratios))} of {len(ratios)} ratios have 95 % intervals that leave out 1 (*); about "
            f"{(1 - metrics.LEVEL) * len(ratios):.0f} would by chance alone ('val' not counted). "
            f"{sum(row['value'] > row['chance'] for row in gaps)} of {len(gaps)} gaps are larger than 95 % of those that "
            "chance makes.\n")


def _off_parity(row: Mapping) -> bool:
    return row["low"] > 1 or row["high"] < 1


def _number(row: Mapping | None, digits: int = 1) -> str:
    if row is None or np.isnan(row["value"]):
        return "-"
    return f"{row['value']:.{digits}f} [{row['low']:.{digits}f}, {row['high']:.{digits}f}]"


def _ratio(row: Mapping | None) -> str:
    return _number(row, 2) + " *" * (row is not None and _off_parity(row))


def _share(row: Mapping | None) -> str:
    return "-" if row is None else f"{100 * row['value']:.1f}%"


def draw_shares(attributes: Sequence[Attribute], rows: Sequence[dict], path) -> None:
    """Draw a PNG: for each attribute, by images and by texts, real shares as bars and each preset's with intervals.

    Args:
        attributes: one line of panels each.
        rows: of fairness.csv.
        path: the file.
    """
    shares = {(row["attribute"], row["group"], row["source"], row["modality"]): row for row in rows
              if row["measure"] == "share"}
    figure = Figure(figsize=(11, 0.6 + 2.5 * len(attributes)), layout="constrained")
    for panels, attribute in zip(figure.subplots(len(attributes), 2, squeeze=False), attributes, strict=True):
        for axes, modality in zip(panels, ("image", "text"), strict=True):
            _draw_panel(axes, attribute, shares, modality)
    handles, labels = figure.axes[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside upper center", ncols=6, fontsize=8, frameon=False)
    save_png(figure, path)


def _draw_panel(axes: Axes, attribute: Attribute, shares: Mapping[tuple, dict], modality: str) -> None:
    sources = list(dict.fromkeys(source for _, _, source, _ in shares if not source.startswith("real")))
    groups = [group for group in (*attribute.values, REST) if shares[attribute.name, group, "real", "image"]["value"]]
    real = [100 * shares[attribute.name, group, "real", modality]["value"] for group in groups]
    axes.bar(range(len(groups)), real, color="0.85", width=0.9, label="real")
    for n, source in enumerate(sources):
        value, low, high = (np.array([100 * shares[attribute.name, group, source, modality][end] for group in groups])
                            for end in ("value", "low", "high"))
        x = np.arange(len(groups)) + 0.8 * ((n + 0.5) / len(sources) - 0.5)
        axes.errorbar(x, value, (value - low, high - value), fmt="o", markersize=3.5, capsize=2, elinewidth=1,
                      color=f"C{n}", label=source)
    axes.set_xticks(range(len(groups)), groups, fontsize=8, rotation=20 if len(groups) > 5 else 0)
    axes.set_ylabel("share, %")
    axes.set_title(f"{attribute.name}, by {modality}s", fontsize=10)
    axes.spines[["top", "right"]].set_visible(False)
    for text in (axes.title, *axes.get_xticklabels()):
        text.set_parse_math(False)
