"""Data sets of TensorFlow Datasets, prepared as ArrayRecord, read without TensorFlow."""

import hashlib
from functools import partial
from pathlib import Path

from mdw_jax.data.decoding import Encoded, reason
from mdw_jax.data.pairs import Pairs
from mdw_jax.data.records import Record, build, names, pick, splits_to_read, text
from mdw_jax.errors import UserError


def tfds(source, *, data_dir: str | None = None, image_column: str = "image", caption_columns="captions/text",
         key_column: str = "", attribute_columns=(), train_split: str = "train", val_split: str = "val",
         test_split: str = "test", **common) -> Pairs:
    """Read a prepared data set of TensorFlow Datasets with an image feature and captions.

    Args:
        source: a directory with `dataset_info.json` (`.../coco_captions/2014/1.1.0`), or a builder's name
            ("coco_captions/2014") under `data_dir`. It must be prepared already, with file_format "array_record": only
            that format allows random access without TensorFlow.
        data_dir: where data sets were prepared.
        image_column: an `Image` feature; it is read without decoding.
        caption_columns: one or several features (a tuple, or a string with commas), each of one caption or a sequence;
            "captions/text" goes into nested features.
        key_column: names the image ("image/filename"); examples of a split with the same key are one image. "": a
            digest of its bytes.
        attribute_columns: kept in `Split.attributes`.
        train_split, val_split, test_split: TFDS split expressions, such as "train+restval" or "train[:90%]".
        common: see `records.build`.
    Raises:
        UserError: the data set, a split or a feature is not there, or what `records.build` raises.
    """
    library = _library()
    caption_columns, attribute_columns = names(caption_columns, "caption_columns"), names(attribute_columns)
    try:
        prepared = (Path(source) / "dataset_info.json").is_file()
        builder = library.builder_from_directory(source) if prepared else library.builder(
            str(source), data_dir=data_dir, file_format="array_record")
    except Exception as error:  # unknown names, or data set code that needs packages that are not installed
        raise UserError(f"cannot find the data set '{source}' ({reason(error)}); give the directory that holds its "
                        "dataset_info.json.") from error
    if not builder.info.splits:
        raise UserError(f"the data set '{source}' is not prepared; run tfds build --file_format=array_record first.")
    if image_column not in builder.info.features:
        raise UserError(f"'{source}' has no feature '{image_column}'; it has "
                        f"{', '.join(sorted(builder.info.features))}.")
    records = {}
    for split, name in splits_to_read(common, train=train_split, val=val_split, test=test_split).items():
        try:
            examples = builder.as_data_source(split=name, decoders={image_column: library.decode.SkipDecoding()})
        except NotImplementedError as error:
            raise UserError(f"the data set '{source}' cannot be read at random ({reason(error)}); prepare it with "
                            "tfds build --file_format=array_record.") from error
        except Exception as error:
            raise UserError(f"cannot read split '{name}' of '{source}' ({reason(error)}); it has "
                            f"{', '.join(builder.info.splits)}: set {split}_split or holdout_{split}.") from error
        records[split] = [_record(examples, row, source, image_column, caption_columns, key_column,
                                  attribute_columns) for row in range(len(examples))]
    return build(builder.name, records, **common)


def _library():
    try:
        import tensorflow_datasets  # an optional dependency, and slow to import
    except ImportError as error:
        raise UserError("the reader 'tfds' needs TensorFlow Datasets: pip install 'mdw-jax[tfds]'.") from error
    return tensorflow_datasets


def _record(examples, row: int, source, image_column, caption_columns, key_column, attribute_columns) -> Record:
    example = examples[row]
    try:
        data = example[image_column]
        captions = tuple(value.decode() if isinstance(value, bytes) else value
                         for feature in caption_columns for value in pick(example, feature))
        key = text(pick(example, key_column)[0]) if key_column else hashlib.sha256(data).hexdigest()[:16]
        attributes = {name: _plain(pick(example, name)[0]) for name in attribute_columns}
    except KeyError as error:
        raise UserError(f"'{source}' has no feature {error}; it has {', '.join(sorted(example))}.") from None
    except UnicodeDecodeError as error:
        raise UserError(f"a caption of row {row} of '{source}' is not in UTF-8 ({error}); fix the data set.") from None
    return Record(Encoded(key, partial(_read, examples, row, image_column)), captions, attributes=attributes)


def _read(examples, row: int, image_column: str) -> bytes:
    return examples[row][image_column]


def _plain(value):
    return text(value) if isinstance(value, bytes) else value
