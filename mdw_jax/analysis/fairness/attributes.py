"""Attributes, which divide images into groups: columns of the data set, and words of its captions."""

import tomllib
from collections.abc import Mapping, Sequence
from importlib import resources
from pathlib import Path
from typing import NamedTuple

import numpy as np

from mdw_jax.analysis.fairness import metrics
from mdw_jax.data.pairs import Pairs
from mdw_jax.errors import UserError

MAX_ATTRIBUTES = 6  # of a report, unless they are named
MAX_VALUES = 12  # a column with more is not a category
MIN_GROUP = 10  # test images that a group needs for its recall to enter a gap
WORDS_PREFIX = "words:"  # of the names of attributes from word lists
REST, ALL = "(none)", "(all)"  # names of the group of images without a value, and of all images together


class Attribute(NamedTuple):
    """An attribute and its groups, one per value.

    Attributes:
        name: a column of the data set, or "words:NAME".
        values: names of the G groups.
        train, val, test: (N, G) bool, the groups of each split's images.
        mentioned: (K, G) bool, which training caption mentions which value, for attributes from words; else None.
    """

    name: str
    values: tuple[str, ...]
    train: np.ndarray
    val: np.ndarray
    test: np.ndarray
    mentioned: np.ndarray | None


def read_word_lists(path: str) -> dict[str, dict[str, list[str]]]:
    """Read {attribute: {value: words}} from a TOML file.

    Args:
        path: the file; "" is the one that comes with the package.

    Raises:
        UserError: the file cannot be read, is no such table, or gives one word two values.
    """
    file = Path(path) if path else resources.files("mdw_jax.analysis.fairness") / "words.toml"
    try:
        lists = tomllib.loads(file.read_text(encoding="utf-8"))
    except OSError as error:
        raise UserError(f"the word lists '{file}' cannot be read ({error.strerror}); check fairness.words.") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise UserError(f"the word lists '{file}' are not TOML ({error}); fix the file.") from None
    for attribute, values in lists.items():
        if not isinstance(values, dict) or not all(
                isinstance(words, list) and words and all(isinstance(word, str) and word.strip() for word in words)
                for words in values.values()):
            raise UserError(f"'{attribute}' in the word lists '{file}' must be a table of lists of words, such as "
                            '[gender] with female = ["woman", "women"].')
        words = [word for value in values.values() for word in sorted({metrics.normalized(word) for word in value})]
        repeated = [word for word in words if words.count(word) > 1]
        if repeated:
            raise UserError(f"'{repeated[0]}' stands for two values of '{attribute}' in the word lists '{file}'; keep "
                            "it once.")
    return lists


def choose_attributes(pairs: Pairs, names: Sequence[str], lists: Mapping) -> tuple[list[Attribute], list[str]]:
    """Choose the attributes of a report.

    Args:
        pairs: the data set.
        names: columns of the data set by name, word lists as "words:NAME". Empty chooses the first six usable ones:
            word lists that training captions mention, then columns of 2 to 12 values.
        lists: of `read_word_lists`.

    Returns:
        The attributes, and the names of other usable ones.

    Raises:
        UserError: a name is not usable, or without names nothing is.
    """
    columns = {name: metrics.values_of(column) for name, column in pairs.train.attributes.items()
               if name in pairs.val.attributes and name in pairs.test.attributes}
    usable = [name for name, values in columns.items() if 2 <= len(values) <= MAX_VALUES]
    by_words = {}
    for name, words in lists.items():
        if names and WORDS_PREFIX + name not in names:
            continue
        attribute = attribute_by_words(WORDS_PREFIX + name, words, pairs)
        if attribute.train.any():
            by_words[attribute.name] = attribute
    for name in names:
        if name not in by_words and name not in usable:
            raise UserError(f"fairness.attributes names '{name}', {_why_unusable(name, columns, lists)}; choose from "
                            f"{', '.join([*(WORDS_PREFIX + name for name in lists), *usable])}.")
    chosen = list(names) or [*by_words, *usable][:MAX_ATTRIBUTES]
    if not chosen:
        raise UserError(f"the data set has no column of 2 to {MAX_VALUES} values and no caption holds a word of the "
                        "lists; name columns in data.attribute_columns, or other lists in fairness.words.")
    attributes = [by_words[name] if name in by_words else attribute_by_column(name, columns[name], pairs)
                  for name in chosen]
    return attributes, [] if names else [name for name in [*by_words, *usable] if name not in chosen]


def _why_unusable(name: str, columns: Mapping, lists: Mapping) -> str:
    if name.removeprefix(WORDS_PREFIX) in lists and name.startswith(WORDS_PREFIX):
        return "whose words no training caption holds"
    if name in columns:
        return f"a column of {len(columns[name])} values where 2 to {MAX_VALUES} make groups"
    return "which is no column of the data and no word list"


def attribute_by_column(name: str, values: tuple[str, ...], pairs: Pairs) -> Attribute:
    """The attribute of a column of the data set, with one group per value."""
    train, val, test = (metrics.members_by_column(split.attributes[name], values)
                        for split in (pairs.train, pairs.val, pairs.test))
    return Attribute(name, values, train, val, test, None)


def attribute_by_words(name: str, words: Mapping[str, Sequence[str]], pairs: Pairs) -> Attribute:
    """The attribute of a word list, with one group per value. words: {value: words}."""
    splits = (pairs.train, pairs.val, pairs.test)
    mentioned = [metrics.mentions(split.captions, words) for split in splits]
    train, val, test = (metrics.members_by_words(of_split, split.image_of, len(split.images))
                        for of_split, split in zip(mentioned, splits, strict=True))
    return Attribute(name, tuple(words), train, val, test, mentioned[0])
