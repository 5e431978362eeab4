"""Data sets of TensorFlow Datasets, prepared as ArrayRecord, read without TensorFlow."""

import hashlib
import re
from collections import Counter
from collections.abc import Iterator, Mapping
from functools import partial
from pathlib import Path

from mdw_jax.data.decoding import Encoded, reason
from mdw_jax.data.pairs import Pairs
from mdw_jax.data.problems import Problems
from mdw_jax.data.readers.hf_columns import Columns, root_of
from mdw_jax.data.record_table import Record, RecordTable
from mdw_jax.data.records import build, names, pick, splits_to_read, text
from mdw_jax.data.tables.cells import captions_in, read_as_notes
from mdw_jax.data.tables.columns import (
    CAPTION_COLUMNS,
    SPLIT_NAMES,
    find_caption_columns,
    find_image_column,
    found_in_words,
    listed,
)
from mdw_jax.errors import UserError


def tfds(source, *, data_dir: str | None = None, image_column: str = "", caption_columns="", key_column: str = "",
         attribute_columns=(), train_split: str = "", val_split: str = "", test_split: str = "", **common) -> Pairs:
    """Read a prepared data set of TensorFlow Datasets with an image feature and captions.

    Args:
        source: a directory with `dataset_info.json` (`.../coco_captions/2014/1.1.0`), or a builder's name
            ("coco_captions/2014") under `data_dir`. It must be prepared already, with file_format "array_record": only
            that format allows random access without TensorFlow.
        data_dir: where data sets were prepared.
        image_column: an `Image` feature; it is read without decoding. "": found.
        caption_columns: one or several features (a tuple, or a string with commas), each of one caption or a sequence,
            which may be written into a text as JSON; "captions/text" goes into nested features. "": found.
        key_column: names the image ("image/filename"); examples of a split with the same key are one image. "": a
            digest of its bytes.
        attribute_columns: kept in `Split.attributes`.
        train_split, val_split, test_split: TFDS split expressions, such as "train+restval" or "train[:90%]". "": the
            usual names (`tables.columns.SPLIT_NAMES`).
        common: see `records.build`.
    Raises:
        UserError: the data set, a split or a feature is not there, or what `records.build` raises.
    """
    library = _library()
    builder = _builder(library, source, data_dir)
    problems, notes = Problems(), []
    asked = Columns(image_column, names(caption_columns), key_column, names(attribute_columns), "")
    columns = _found(library, builder.info.features, asked, f"'{source}'", notes)
    _check(library, builder.info.features, columns, f"'{source}'")
    read_as: Counter = Counter()
    records, read = {}, set()
    for split, asked_split in splits_to_read(common, train=train_split, val=val_split, test=test_split).items():
        there = builder.info.splits
        name = asked_split or next((name for name in SPLIT_NAMES[split] if name in there), "")
        read |= set(re.findall(r"\w+", name))
        try:
            if not name:
                raise ValueError(f"none is called {', '.join(SPLIT_NAMES[split])}")
            examples = builder.as_data_source(split=name, decoders={columns.image: library.decode.SkipDecoding()})
        except NotImplementedError as error:
            raise UserError(f"the data set '{source}' cannot be read at random ({reason(error)}); prepare it with "
                            "tfds build --file_format=array_record.") from error
        except Exception as error:
            what = f"split '{name}'" if name else f"a split for {split}"
            raise UserError(f"cannot read {what} of '{source}' ({reason(error)}); it has "
                            f"{', '.join(f'{name} ({part.num_examples} images)' for name, part in there.items())}: "
                            f"{_way_on(split, there)}.") from error
        records[split] = RecordTable(_records(examples, columns, f"split '{name}' of '{source}'", problems, read_as))
    if others := [f"{part.num_examples} of {name}" for name, part in builder.info.splits.items() if name not in read]:
        notes.append(f"examples of other splits were left out: {', '.join(others)}.")
    notes += read_as_notes(builder.name, read_as)
    return build(builder.name, records, problems=problems, notes=notes, **common)


def _library():
    try:
        import tensorflow_datasets  # an optional dependency, and slow to import
    except ImportError as error:
        raise UserError("the reader 'tfds' needs TensorFlow Datasets: pip install 'mdw-jax[tfds]'.") from error
    return tensorflow_datasets


def _builder(library, source, data_dir: str | None):
    try:
        prepared = (Path(source) / "dataset_info.json").is_file()
        builder = library.builder_from_directory(source) if prepared else library.builder(
            str(source), data_dir=data_dir, file_format="array_record")
    except Exception as error:  # unknown names, or data set code that needs packages that are not installed
        raise UserError(f"cannot find the data set '{source}' ({reason(error)}); give the directory that holds its "
                        "dataset_info.json.") from error
    if not builder.info.splits:
        raise UserError(f"the data set '{source}' is not prepared; run tfds build --file_format=array_record first.")
    return builder


def _way_on(split: str, there: Mapping) -> str:
    """What to do about a split that is not there."""
    if split == "train":
        return "set data.train_split to one of them"
    train = next((there[name].num_examples for name in SPLIT_NAMES["train"] if name in there), 0)
    hold = f", or data.holdout_{split}={max(1, train // 10)} to hold a tenth of train out" if train else ""
    return f"set data.{split}_split to one of them{hold}"


def _found(library, features, asked: Columns, where: str, notes: list[str]) -> Columns:
    """The columns, with those found that are not given."""
    image, captions = asked.image, asked.captions
    if not image:
        pictures = [name for name, feature in features.items() if isinstance(feature, library.features.Image)]
        if not pictures:
            raise UserError(f"no feature of {where} is an image; it has {listed(sorted(features))}.")
        image = pictures[0] if len(pictures) == 1 else find_image_column(pictures, where)
    if not captions:
        nested = {name: _fields(feature) for name, feature in features.items()}
        texts = [name for name, feature in features.items()
                 if _is_text(library, feature) or any(_is_text(library, inner) for inner in nested[name].values())]
        captions = tuple(
            f"{name}/{next((inner for inner in CAPTION_COLUMNS if inner in nested[name]), next(iter(nested[name])))}"
            if nested[name] else name for name in find_caption_columns(texts, where))
    used = asked._replace(image=image, captions=captions)
    if words := found_in_words(asked, used):
        notes.append(f"{where} was read with {' and '.join(words)}.")
    return used


def _check(library, features, columns: Columns, where: str) -> None:
    """Raises UserError for a feature that is not there, or holds something else."""
    settings = {"image_column": (columns.image,), "caption_columns": columns.captions, "key_column": (columns.key,),
                "attribute_columns": columns.attributes}
    for setting, paths in settings.items():
        for path in filter(None, paths):
            feature, rest, fields = features, path, _fields(features)
            while rest and (name := root_of(rest, list(fields))):
                feature, rest = fields[name], rest[len(name):].strip("/")
                fields = _fields(feature)
            if rest:
                raise UserError(f"{where} has no feature '{path}'; it has {listed(sorted(features))}, and where it ends "
                                f"{listed(sorted(fields)) or 'nothing'}: set data.{setting}.")
            if setting == "caption_columns" and not _is_text(library, feature):
                inside = f" but nested ones: name one, as in '{path}/{next(iter(fields))}'" if fields else ""
                raise UserError(f"feature '{path}' of {where} holds no captions{inside}; set data.{setting}.")
    if not isinstance(dict(features.items()).get(columns.image), library.features.Image):
        raise UserError(f"feature '{columns.image}' of {where} is no image; set data.image_column.")


def _fields(feature) -> dict:
    """{name: feature} of a nested feature, or of a sequence of them; {} of another."""
    while hasattr(feature, "feature"):
        feature = feature.feature
    return dict(feature.items()) if hasattr(feature, "items") else {}


def _is_text(library, feature) -> bool:
    """Whether a feature is text, or a sequence of it."""
    while hasattr(feature, "feature"):
        feature = feature.feature
    return isinstance(feature, library.features.Text) or getattr(feature, "np_dtype", None) in (object, str, bytes)


def _records(examples, columns: Columns, place: str, problems: Problems, read_as: Counter) -> Iterator[Record]:
    for row in range(len(examples)):
        example = examples[row]
        data = example[columns.image]
        if not data:
            problems.add("no image", f"example {row + 1} of {place}")
            continue
        # Surrogates, of bytes that are not in UTF-8, are counted as a caption that is no Unicode.
        captions = tuple(caption for path in columns.captions for value in pick(example, path) for caption in captions_in(
            value.decode(errors="surrogateescape") if isinstance(value, bytes) else value, read_as))
        if columns.key and not pick(example, columns.key):
            problems.add("broken row", f"example {row + 1} of {place} has no '{columns.key}'")
            continue
        key = text(pick(example, columns.key)[0]) if columns.key else hashlib.sha256(data).hexdigest()[:16]
        attributes = {path: next(map(_plain, pick(example, path)), None) for path in columns.attributes}
        yield Record(Encoded(key, partial(_read, examples, columns.image, row)), captions, attributes=attributes,
                     line=row + 1)


def _read(examples, image_column: str, row: int) -> bytes:
    return examples[row][image_column]


def _plain(value):
    return text(value) if isinstance(value, bytes) else value
