"""Tables and the picture of `mdw fairness`."""

import io
from collections.abc import Sequence

import numpy as np
from matplotlib.figure import Figure

from mdw_jax.analysis.fairness import metrics
from mdw_jax.analysis.fairness.attributes import _WORDS, LEAST, REST, Attribute
from mdw_jax.io.files import write_atomically
from mdw_jax.reporting.text import markdown_table


def report(rows: list[dict], reference: str | None, left_out: Sequence[str]) -> str:
    """The tables in Markdown, how many findings chance alone would make, and what the numbers do not show."""
    found = {(row["attribute"], row["group"], row["of"], row.get("side"), row["measure"]): row for row in rows}
    places = {}  # rows of a group stand together, groups in the order of their attribute
    for row in rows:
        places.setdefault(row["attribute"], {}).setdefault(row["group"], {})[row["of"]] = None
    groups, gaps, agreements = [], [], []
    for attribute, group, of in ((a, g, of) for a, of_a in places.items() for g, of_g in of_a.items() for of in of_g):
        get = lambda measure, side=None: found.get((attribute, group, of, side, measure))
        if get("gap"):
            gaps.append({"attribute": attribute, "of": of, "best - worst": group, "gap in r_mean": _shown(get("gap")),
                         "by chance below": f"{get('gap')['chance']:.1f}",
                         f"ratio to {reference}": _shown(get("gap_ratio"), 2)})
            continue
        if get("agreement", "image"):
            agreements.append({"attribute": attribute, **{
                f"{name} {side}": f"{100 * get('agreement', side)[value]:.1f}%"
                for side in ("image", "text") for name, value in (("nearest", "value"), ("random", "chance"))}})
            continue
        shares, recall = [get("share", side) for side in ("image", "text")], get("r_mean")
        if recall is None and not any(row["value"] for row in shares):
            continue  # no real image, and none of this set
        groups.append({
            "attribute": attribute, "group": group, "of": of, "images": _share(shares[0]),
            "ratio": _ratio(get("ratio", "image")), "texts": _share(shares[1]),
            "ratio of texts": _ratio(get("ratio", "text")), "test images": str(recall["count"]) if recall else "-",
            "r_mean": _shown(recall)})
    if reference is None:
        gaps = [{name: value for name, value in row.items() if not name.startswith("ratio")} for row in gaps]
    ratios = [row for row in rows if row["measure"] == "ratio" and row["of"] != "val" and np.isfinite(row["value"])]
    told = [row for row in rows if row["measure"] == "gap"]
    lines = [markdown_table(groups), markdown_table(gaps)] if gaps else [markdown_table(groups)]
    if agreements:
        lines += ["How often a real val image, and its caption, has the group of the nearest training one, and of a "
                  "random one:\n", markdown_table(agreements)]
    lines.append(f"{sum(map(_off_parity, ratios))} of {len(ratios)} ratios have 95 % intervals that leave out 1 (*); "
                 f"about {(1 - metrics.LEVEL) * len(ratios):.0f} would by chance alone ('val' apart). "
                 f"{sum(row['value'] > row['chance'] for row in told)} of {len(told)} gaps are larger than chance "
                 "makes them 95 times in 100.\n")
    lines.append("What these numbers do not show:\n")
    by_words = any(row["attribute"].startswith(_WORDS) for row in rows)
    lines += [f"* {line}" for line in (*LIMITS, *(LIMITS_OF_WORDS if by_words else ()))]
    if left_out:
        lines.append(f"\nNot shown: {', '.join(left_out)}. Name what is wanted in fairness.attributes.")
    return "\n".join(lines) + "\n"


def _off_parity(row: dict) -> bool:
    return row["low"] > 1 or row["high"] < 1


def _shown(row: dict | None, digits: int = 1) -> str:
    if row is None or np.isnan(row["value"]):
        return "-"
    return f"{row['value']:.{digits}f} [{row['low']:.{digits}f}, {row['high']:.{digits}f}]"


def _ratio(row: dict | None) -> str:
    return _shown(row, 2) + " *" * (row is not None and _off_parity(row))


def _share(row: dict | None) -> str:
    return "-" if row is None else f"{100 * row['value']:.1f}%"


def draw_shares(attributes: Sequence[Attribute], rows: list[dict], path) -> None:
    """A PNG: for each attribute, by images and by texts, the real shares as bars and each preset's with intervals."""
    shares = {(row["attribute"], row["group"], row["of"], row["side"]): row for row in rows
              if row["measure"] == "share"}
    names = list(dict.fromkeys(of for _, _, of, _ in shares if not of.startswith("real")))
    figure = Figure(figsize=(11, 0.6 + 2.5 * len(attributes)), layout="constrained")
    for place, attribute in zip(figure.subplots(len(attributes), 2, squeeze=False), attributes, strict=True):
        groups = [group for group in (*attribute.values, REST)
                  if shares[attribute.name, group, "real", "image"]["value"]]
        for axes, side in zip(place, ("image", "text"), strict=True):
            real = [100 * shares[attribute.name, group, "real", side]["value"] for group in groups]
            axes.bar(range(len(groups)), real, color="0.85", width=0.9, label="real")
            for n, name in enumerate(names):
                value, low, high = (np.array([100 * shares[attribute.name, group, name, side][end] for group in groups])
                                    for end in ("value", "low", "high"))
                at = np.arange(len(groups)) + 0.8 * ((n + 0.5) / len(names) - 0.5)
                axes.errorbar(at, value, (value - low, high - value), fmt="o", markersize=3.5, capsize=2,
                              elinewidth=1, color=f"C{n}", label=name)
            axes.set_xticks(range(len(groups)), groups, fontsize=8, rotation=20 if len(groups) > 5 else 0)
            axes.set_ylabel("share, %")
            axes.set_title(f"{attribute.name}, by {side}s", fontsize=10)
            axes.spines[["top", "right"]].set_visible(False)
            for text in (axes.title, *axes.get_xticklabels()):
                text.set_parse_math(False)
    handles, labels = figure.axes[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside upper center", ncols=6, fontsize=8, frameon=False)
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=110, facecolor="white")
    write_atomically(path, buffer.getvalue())

LIMITS = (
    "A distilled pair counts by its nearest real image and caption. These are look-alikes: a distilled picture shows "
    "nobody, and one that blends two groups counts for whichever is a little nearer.",
    "Neighbors are those of the frozen encoders (where the backbone is trained, of its first weights), which may be "
    "blind to a group or favour one. Rows 'val' count held-out real pairs in the same way and compare them with what "
    "they truly are: where these ratios are off 1, it is the method's doing. Where nearest neighbors hardly agree "
    "more than random ones, ratios near 1 mean nothing.",
    "A ratio of 1 is the real data's share. Whether that share was fair to begin with it does not say.",
    "Recall differs between groups for reasons other than bias too: some scenes are easier, some captions say more. A "
    "group is compared within its own test images, all images being candidates.",
    f"A model that finds nothing has no gap: read a gap beside the recalls. Groups of less than {LEAST} test images "
    "are in no gap.",
    "Intervals are over distilled pairs and sets, or over test images; they hold none of the chance in training "
    "experts and students, and many are printed: of those without any effect one in twenty leaves out parity.",
)

LIMITS_OF_WORDS = (
    "Words in captions are what writers called people: no identity, and a guess from looks. The lists are short, in "
    "English, and know only the two genders and three ages that they name.",
    "Who goes unmentioned is in no group, and writers mention some groups more readily than others. One caption that "
    "names a group decides where the others name none.",
    'Words mislead: "girl" is said of women, "he" of dogs, and "baby" of a stroller. Edit the lists (fairness.words).',
)
