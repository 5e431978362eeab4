"""Suspected mismatches as rows of a table: of the CSV, and of the terminal."""

from collections.abc import Iterator

import numpy as np

from mdw_jax.analysis.mismatches.find import Judged, Suggestions
from mdw_jax.data.pairs import Split
from mdw_jax.reporting.text import probability_text

COLUMNS = ("rank", "image", "caption", "clean_probability", "similarity", "suggested_caption",
           "suggested_caption_similarity", "suggested_caption_from", "suggested_image", "suggested_image_similarity",
           "image_row", "caption_row", "caption_id", "truth", "true_image", "suggested_caption_is_true",
           "suggested_image_is_true")
"""Columns of the CSV, one row per pair.

rank: 1 is the most suspicious. image: the key (file name) of the image, as the data set calls it. caption: the given one.
clean_probability: that the two belong together. similarity: their mean cosine over the expert networks.
suggested_caption: the training caption of largest similarity to the image; suggested_caption_from: the image that it is
given for (the same image: nothing fits better than what it has). suggested_image: the training image of largest
similarity to the caption. image_row, caption_row: rows in the training split, from 0. caption_id: the data set's own
number of the caption, or, where it has none, its number in the source, from 0.
truth: "mismatched" or "matched" where mismatches were drawn, empty where nobody knows; true_image: the image that the
caption came with; suggested_..._is_true: whether the suggestion is what came together.
"""
_WIDTH = 34  # letters of a caption in the terminal


def image_name(train: Split, row: int) -> str:
    """What the data set calls an image; images of data sets without names are numbered."""
    for column in ("key", "filename"):
        if column in train.attributes:
            return str(train.attributes[column][row])
    return f"image {row}"


def csv_rows(judged: Judged, train: Split, rows: np.ndarray, suggestions: Suggestions) -> Iterator[dict]:
    """Rows with the columns of `COLUMNS`.

    Args:
        judged: all pairs.
        train: the training split.
        rows: (n,) the listed ones, the most suspicious first.
        suggestions: for each of them.
    """
    truth = judged.true_image_of
    for n, row in enumerate(rows.tolist()):
        image, caption, other = int(judged.image_of[row]), int(suggestions.caption[n]), int(suggestions.image[n])
        known = {} if truth is None else {
            "truth": "matched" if truth[row] == image else "mismatched", "true_image": image_name(train, truth[row]),
            "suggested_caption_is_true": "yes" if truth[caption] == image else "no",
            "suggested_image_is_true": "yes" if truth[row] == other else "no"}
        yield {"rank": n + 1, "image": image_name(train, image), "caption": train.captions[row],
               "clean_probability": f"{judged.clean_probability[row]:.4g}", "similarity": _number(judged.similarity[row]),
               "suggested_caption": train.captions[caption],
               "suggested_caption_similarity": _number(suggestions.caption_similarity[n]),
               "suggested_caption_from": image_name(train, int(judged.image_of[caption])),
               "suggested_image": image_name(train, other),
               "suggested_image_similarity": _number(suggestions.image_similarity[n]),
               "image_row": image, "caption_row": row, "caption_id": int(train.caption_ids[row]), **known}


def _number(value) -> float:
    """Four decimals, as a number: a negative one is no formula."""
    return round(float(value), 4)


def terminal_rows(table: list[dict]) -> list[dict[str, str]]:
    """A few columns of rows of the CSV, captions cut, for a terminal."""
    return [{"": str(row["rank"]), "image": _cut(row["image"], 26), "caption": _cut(row["caption"]),
             "belong together": probability_text(float(row["clean_probability"])), "cosine": f"{row['similarity']:.2f}",
             "fits better": "(the given one)" if row["suggested_caption"] == row["caption"] else
             _cut(row["suggested_caption"]), "cosine of it": f"{row['suggested_caption_similarity']:.2f}",
             **({"truth": row["truth"]} if "truth" in row else {})} for row in table]


def _cut(text: str, width: int = _WIDTH) -> str:
    return text if len(text) <= width else f"{text[:width - 3]}..."
