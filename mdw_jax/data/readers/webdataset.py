"""WebDataset shards: tar files as img2dataset writes them, read in place and at random.

Nothing is extracted: member names are only names, and a shard with one such as "../../x.jpg" is refused.
"""

import glob
import json
import os
import re
import tarfile
from collections import Counter
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

from mdw_jax.data.archives import check_names
from mdw_jax.data.decoding import Encoded, check_length, reason, threads, validate_images
from mdw_jax.data.pairs import Pairs, caption_error
from mdw_jax.data.records import Record, build, names, splits_to_read
from mdw_jax.errors import UserError
from mdw_jax.io.files import digest, parse_json, write_atomically
from mdw_jax.io.keyed import read_keyed_json

IMAGES = ("jpg", "jpeg", "png", "webp")
MOST_SHARDS = 1_000_000
_FORMAT = "mdw-shard-2"  # change it when an index would come out differently, so that older ones are not used


def webdataset(train_shards, val_shards="", test_shards="", *, cache=None, caption_columns="",
               attribute_columns=(), **common) -> Pairs:
    """Read image-caption shards: members `KEY.jpg` (jpeg, png, webp) with `KEY.txt`, `KEY.json` or both.

    The key of an image is its shard's name and its own: "train-00003/000030042". caption_ids count usable samples.
    Web data always have broken samples, which are left out whatever `skip_broken` says. `Pairs.skipped` counts them:
    "no image", "broken image", "no caption", "empty caption", "unreadable json", and captions that are not in UTF-8,
    too long or no Unicode.

    Args:
        train_shards, val_shards, test_shards: local tar files, by brace and glob patterns
            ("train-{00000..00331}.tar"), several joined by "::" or in a list.
        cache: a directory for the index of each shard (where each image lies, its checksum, its captions), so that
            later starts read no shard. A shard whose path, size or modification time changed is indexed again. None:
            indexed at every start.
        caption_columns: fields of the JSON (a tuple, or a string with commas), each one caption or a list of them. "":
            the text file, and without one the field "caption".
        attribute_columns: fields of the JSON kept in `Split.attributes`.
        common: see `records.build`.
    Raises:
        UserError: missing, remote, compressed or damaged shards, two of the same name, names in one that occur twice
            or lead out of it, or no usable sample.
    """
    patterns = {"train": train_shards, "val": val_shards, "test": test_shards}
    caption_columns, attribute_columns = names(caption_columns), names(attribute_columns)
    check = common.pop("check", True)
    records, skipped = {}, Counter()
    shards = {split: _shards(split, pattern) for split, pattern in splits_to_read(common, **patterns).items()}
    stems = [Path(path).stem for paths in shards.values() for path in paths]
    if doubled := [stem for stem, count in Counter(stems).items() if count > 1]:
        raise UserError(f"{len(doubled)} names of shards occur more than once, the first is '{doubled[0]}.tar'; give "
                        "each shard once and under its own name.")
    for split, paths in shards.items():
        records[split] = []
        for path in paths:
            usable, left_out = read_shard(path, cache, caption_columns, attribute_columns, check)
            records[split] += usable
            skipped.update(left_out)
        if not records[split]:
            raise UserError(f"no sample of '{patterns[split]}' is usable ({_counts(skipped)}); give shards "
                            "of images with captions.")
    common["skip_broken"] = True
    name = Path(os.path.abspath(shards["train"][0])).parent.name
    return build(name, records, check=False, skipped=skipped, **common)


def _shards(split: str, pattern) -> list[str]:
    if not pattern:
        remedy = f"set {split}_shards" if split == "train" else f"set {split}_shards or holdout_{split}"
        raise UserError(f"no shards are given for split '{split}'; {remedy}.")
    return shard_paths(pattern)


def shard_paths(pattern) -> list[str]:
    """The shards that a pattern stands for, in its order; matches of a glob are sorted.

    Raises:
        UserError: addresses that are not local files, missing shards, or files that are not `.tar`.
    """
    parts = pattern if isinstance(pattern, (list, tuple)) else str(pattern).split("::")
    paths, missing = [], []
    for part in (piece for entry in parts for piece in _braces(os.path.expanduser(os.fspath(entry).strip()))):
        if re.match(r"[a-z0-9+]{2,}:", part):
            raise UserError(f"'{part}' is not a local file; copy the shards here first.")
        matches = [part] if os.path.isfile(part) else sorted(glob.glob(part))
        paths += matches
        missing += [] if matches else [part]
    if missing:
        raise UserError(f"{len(missing)} of the shards '{pattern}' are missing, the first is '{missing[0]}'; check "
                        "the pattern, or fetch them.")
    for path in paths:
        if not path.endswith(".tar"):
            raise UserError(f"'{path}' is not a plain .tar file, and no other can be read at random; unpack it to one.")
    return paths


def _braces(pattern: str) -> list[str]:
    """`pattern` with "{000..012}" and "{a,b}" written out, as a shell does."""
    match = re.search(r"\{([^{}]*)\}", pattern)
    if match is None:
        return [pattern]
    numbers = re.fullmatch(r"(\d+)\.\.(\d+)", match[1])
    if numbers:
        low, high = numbers.groups()
        width = max(len(low), len(high)) if "0" in (low[0], high[0]) else 0
        if int(high) - int(low) >= MOST_SHARDS:
            raise UserError(f"'{{{match[1]}}}' stands for more than {MOST_SHARDS:,} shards; give fewer.")
        options = [f"{number:0{width}}" for number in range(int(low), int(high) + 1)]
    else:
        options = match[1].split(",")
    return [text for option in options
            for text in _braces(f"{pattern[:match.start()]}{option}{pattern[match.end():]}")]


def read_shard(path: str, cache, caption_columns: Sequence[str], attribute_columns: Sequence[str],
               check: bool) -> tuple[list[Record], Mapping[str, int]]:
    """The usable samples of a shard in its order, and how many are left out, by reason; from `cache` if it has them."""
    stat = os.stat(path)
    key = digest(_FORMAT, os.path.realpath(path), stat.st_size, stat.st_mtime_ns, list(caption_columns),
                 list(attribute_columns), check)
    index_path = None if cache is None else Path(cache) / f"shard-{key[:16]}.json"
    index = None if index_path is None else read_keyed_json(index_path, key)
    if index is None:
        index = {"key": key, **_index(path, caption_columns, attribute_columns, check)}
        if index_path is not None:
            write_atomically(index_path, json.dumps(index).encode())
    stem = Path(path).stem
    records = [Record(Encoded(f"{stem}/{name}", partial(_read_span, path, offset, length), (length, crc)),
                      tuple(captions), attributes=dict(zip(attribute_columns, attributes)))
               for name, offset, length, crc, captions, attributes in index["samples"]]
    return records, index["skipped"]


def _index(path: str, caption_columns: Sequence[str], attribute_columns: Sequence[str], check: bool) -> dict:
    """Walk the headers of a shard, then read its captions and check its images."""
    skipped, usable = Counter(), []
    for name, members in _samples(path).items():
        image = next((members[kind] for kind in IMAGES if kind in members), None)
        try:
            captions, attributes = _read_texts(path, members, caption_columns, attribute_columns)
        except UnicodeDecodeError:
            skipped["caption not in UTF-8"] += 1
            continue
        except ValueError:
            skipped["unreadable json"] += 1
            continue
        texts = [text.strip() for text in captions if isinstance(text, str) and text.strip()]
        error = next(filter(None, map(caption_error, texts)), None)
        if image is None or not texts or error:
            skipped["no image" if image is None else f"caption {error}" if error else "empty caption" if captions else
                    "no caption"] += 1
        else:
            usable.append((name, image, texts, attributes))
    encoded = [Encoded(name, partial(_read_span, path, *span)) for name, span, _, _ in usable]
    with ThreadPoolExecutor(threads()) as pool:
        encoded, failures = validate_images(encoded, check, pool)
    samples = [(name, *span, image.sum[1], texts, attributes)
               for (name, span, texts, attributes), image, failure in zip(usable, encoded, failures) if not failure]
    if len(samples) < len(usable):
        skipped["broken image"] += len(usable) - len(samples)
    return {"samples": samples, "skipped": skipped}


def _samples(path: str) -> dict[str, dict[str, tuple[int, int]]]:
    """{key: {extension: (offset, length)}}: a key is a member's name up to the first dot of its last part."""
    samples = {}
    try:
        with tarfile.open(path, "r:") as archive:
            for member in archive:
                head, slash, tail = member.name.rpartition("/")
                stem, dot, extension = tail.partition(".")
                if member.isreg() and not member.issparse() and stem and dot:
                    check_names(path, [member.name])
                    sample = samples.setdefault(f"{head}{slash}{stem}", {})
                    if extension.lower() in sample:
                        raise UserError(f"'{path}' holds '{member.name}' twice, and which of the two counts is not known; "
                                        "write the shard again with every key once.")
                    sample[extension.lower()] = member.offset_data, member.size
            # The tarfile module takes a truncated or damaged header for the end of the archive: the rest would be lost.
            archive.fileobj.seek(archive.offset)
            if archive.fileobj.read(tarfile.BLOCKSIZE) != tarfile.NUL * tarfile.BLOCKSIZE:
                raise tarfile.ReadError(f"no header and no end mark at byte {archive.offset}")
    except (tarfile.TarError, OSError, EOFError) as error:
        raise UserError(f"'{path}' is not a readable tar file ({reason(error)}); fetch it again, or leave it out."
                        ) from error
    return samples


def _read_texts(path: str, members: Mapping, caption_columns: Sequence[str],
                attribute_columns: Sequence[str]) -> tuple[list, list]:
    """The captions of a sample as they are written, and its attributes. Raises ValueError for unreadable JSON."""
    by_text = not caption_columns and "txt" in members
    document = {}
    if "json" in members and (attribute_columns or not by_text):
        document = parse_json(_read_span(path, *members["json"]))
    if by_text:
        captions = [_read_span(path, *members["txt"]).decode()]
    else:
        values = [document.get(name) for name in caption_columns or ("caption",)]
        captions = [text for value in values if value is not None
                    for text in (value if isinstance(value, list) else [value])]
    return captions, [document.get(key) for key in attribute_columns]


def _read_span(path: str, offset: int, length: int) -> bytes:
    check_length(length)
    with open(path, "rb", buffering=0) as file:  # an open costs microseconds, a decode milliseconds
        file.seek(offset)
        data = file.read(length)
    if len(data) != length:
        raise OSError("the shard ends early")
    return data


def _counts(skipped: Mapping[str, int]) -> str:
    return ", ".join(f"{count} {name}" for name, count in sorted(skipped.items())) or "they are empty"
