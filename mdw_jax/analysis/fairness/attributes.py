"""Groups: by columns of the data set, and by words of its captions."""

import tomllib
from collections.abc import Mapping, Sequence
from importlib import resources
from pathlib import Path
from typing import NamedTuple

import numpy as np

from mdw_jax.analysis.fairness import metrics
from mdw_jax.data.pairs import Pairs
from mdw_jax.errors import UserError


class Attribute(NamedTuple):
    """train: (N, G) bool, the groups of the training images; val, test: likewise. said: (K, G) bool, which training
    caption mentions which value, where the groups come from words, else None."""

    name: str
    values: tuple[str, ...]
    train: np.ndarray
    val: np.ndarray
    test: np.ndarray
    said: np.ndarray | None


def read_word_lists(path: str) -> dict[str, dict[str, list[str]]]:
    """{attribute: {value: words}} of a TOML file; "" is the one that comes with the package.

    Raises UserError for a file that cannot be read, is no such table, or gives one word two values.
    """
    file = Path(path) if path else resources.files("mdw_jax.analysis.fairness") / "words.toml"
    try:
        lists = tomllib.loads(file.read_text(encoding="utf-8"))
    except OSError as error:
        raise UserError(f"the word lists '{file}' cannot be read ({error.strerror}); check fairness.words.") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise UserError(f"the word lists '{file}' are not TOML ({error}); mend the file.") from None
    for attribute, values in lists.items():
        if not isinstance(values, dict) or not all(
                isinstance(words, list) and words and all(isinstance(word, str) and word.strip() for word in words)
                for words in values.values()):
            raise UserError(f"'{attribute}' in the word lists '{file}' must be a table of lists of words, such as "
                            '[gender] with female = ["woman", "women"].')
        words = [word for value in values.values() for word in sorted({metrics.plain(word) for word in value})]
        twice = [word for word in words if words.count(word) > 1]
        if twice:
            raise UserError(f"'{twice[0]}' stands for two values of '{attribute}' in the word lists '{file}'; keep it "
                            "once.")
    return lists


def choose_attributes(pairs: Pairs, wanted: Sequence[str], lists: Mapping) -> tuple[list[Attribute], list[str]]:
    """The attributes of a report and the names of those that would fit too.

    wanted: columns of the data set by name, word lists as "words:NAME". Without any, the first six that fit: word lists
    that training captions mention, then columns of 2 to 12 values. Raises UserError for a name that does not fit.
    """
    columns = {name: metrics.values_of(column) for name, column in pairs.train.attributes.items()
               if name in pairs.val.attributes and name in pairs.test.attributes}
    fitting = [name for name, values in columns.items() if 2 <= len(values) <= MOST_VALUES]
    by_words = {}
    for name, words in lists.items():
        if wanted and _WORDS + name not in wanted:
            continue
        attribute = _by_words(_WORDS + name, words, pairs)
        if attribute.train.any():
            by_words[attribute.name] = attribute
    for name in wanted:
        if name not in by_words and name not in fitting:
            raise UserError(f"fairness.attributes names '{name}', {_unfit(name, columns, lists)}; choose from "
                            f"{', '.join([*(_WORDS + name for name in lists), *fitting])}.")
    names = list(wanted) or [*by_words, *fitting][:SHOWN]
    if not names:
        raise UserError(f"the data set has no column of 2 to {MOST_VALUES} values and no caption holds a word of the "
                        "lists; name columns in data.attribute_columns, or other lists in fairness.words.")
    chosen = [by_words[name] if name in by_words else _by_column(name, columns[name], pairs) for name in names]
    return chosen, [] if wanted else [name for name in [*by_words, *fitting] if name not in names]


def _unfit(name: str, columns: Mapping, lists: Mapping) -> str:
    if name.removeprefix(_WORDS) in lists and name.startswith(_WORDS):
        return "whose words no training caption holds"
    if name in columns:
        return f"a column of {len(columns[name])} values where 2 to {MOST_VALUES} make groups"
    return "which is no column of the data and no word list"


def _by_column(name: str, values: tuple[str, ...], pairs: Pairs) -> Attribute:
    train, val, test = (metrics.members_by_column(split.attributes[name], values)
                        for split in (pairs.train, pairs.val, pairs.test))
    return Attribute(name, values, train, val, test, None)


def _by_words(name: str, words: Mapping[str, Sequence[str]], pairs: Pairs) -> Attribute:
    splits = (pairs.train, pairs.val, pairs.test)
    said = [metrics.mentions(split.captions, words) for split in splits]
    train, val, test = (metrics.members_by_words(mentioned, split.image_of, len(split.images))
                        for mentioned, split in zip(said, splits, strict=True))
    return Attribute(name, tuple(words), train, val, test, said[0])

SHOWN = 6  # attributes of a report, unless they are named

MOST_VALUES = 12  # a column with more is no category

_WORDS = "words:"

LEAST = 10  # test images that a group needs for its recall to enter a gap

REST, ALL = "(none)", "(all)"  # the group of images without a value; what stands for all of them
