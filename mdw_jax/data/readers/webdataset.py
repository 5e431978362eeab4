"""WebDataset shards: tar files of images and texts, as img2dataset and others write them, read in place and at random."""

import glob
import os
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path

from mdw_jax.data.caption_lines import captions_of, check_mode, mode_by_counts, several_lines
from mdw_jax.data.decoding import Encoded
from mdw_jax.data.pairs import Pairs
from mdw_jax.data.problems import Problems
from mdw_jax.data.record_table import Record, RecordTable
from mdw_jax.data.records import build, names, splits_to_read
from mdw_jax.data.shards import read_index, read_span, unpacking
from mdw_jax.errors import UserError
from mdw_jax.io.files import read_json

MOST_SHARDS = 1_000_000


def webdataset(train_shards, val_shards="", test_shards="", *, cache=None, caption_columns="",
               attribute_columns=(), caption_lines: str = "", **common) -> Pairs:
    """Read image-caption shards: members `KEY.jpg` with `KEY.txt`, `KEY.json` or both (`shards.IMAGES`, `TEXTS`).

    A key ends at the first dot of a member's name, as in `KEY.input.jpg`, or at the last one where only this pairs
    images with texts. The key of an image is its shard's name and its own: "train-00003/000030042"; where shards share
    a name, those of all begin with as many directories as it takes: "train/0/s0000001". caption_ids count the captions
    of all samples with an image, also of a broken one.

    Args:
        train_shards, val_shards, test_shards: local tar files, by brace and glob patterns
            ("train-{00000..00331}.tar"), several joined by "::" or in a list; a directory stands for the sorted `.tar`
            files in it.
        cache: a directory for the index of each shard (where each image lies, its checksum, its captions, what cannot
            be used), so that later starts read no shard. A shard whose path, size or modification time changed is
            indexed again. None: indexed at every start.
        caption_columns: fields of the JSON (a tuple, or a string with commas), each one caption or a list of them. "":
            the text file, and without one the first field of the JSON that is called as captions are
            (`shards.FIELDS`).
        attribute_columns: fields of the JSON kept in `Split.attributes`.
        caption_lines: what several lines in a text are: `split`: a caption each; `join`: one caption; "": found out by
            the first shard of each split (`caption_lines.find_mode`).
        common: see `records.build`.
    Raises:
        UserError: missing, remote, compressed or damaged shards, one given twice, what `shards.read_index` raises, or no
            usable sample.
    """
    check_mode(caption_lines)
    patterns = {"train": train_shards, "val": val_shards, "test": test_shards}
    check = common.pop("check", True)
    shards = {split: _shards(split, pattern) for split, pattern in splits_to_read(common, **patterns).items()}
    reading = _Reading(cache, names(caption_columns), names(attribute_columns), check)
    prefixes = _prefixes([path for paths in shards.values() for path in paths])
    records = {}
    for split, paths in shards.items():
        problems = Problems()
        records[split] = reading.records(split, {path: prefixes[path] for path in paths}, caption_lines, problems)
        if not len(records[split]):
            why = str(problems) if problems.counts else "they are empty"
            raise UserError(f"no sample of '{patterns[split]}' can be used ({why}); give shards of images with "
                            "captions, and name the field of their JSON in data.caption_columns if it is an unusual one.")
        reading.problems.update(problems.counts, problems.first)
    notes = [*reading.notes(), *_failed_downloads(prefixes)]
    directory = os.path.commonpath([os.path.dirname(os.path.abspath(path)) for path in prefixes])
    reading.problems.source = directory
    name = Path(directory).name or Path(os.path.abspath(next(iter(prefixes)))).parent.name
    return build(name, records, check=False, problems=reading.problems, notes=notes, **common)


def _shards(split: str, pattern) -> list[str]:
    if not pattern:
        remedy = f"set {split}_shards" if split == "train" else f"set {split}_shards or holdout_{split}"
        raise UserError(f"no shards are given for split '{split}'; {remedy}.")
    return shard_paths(pattern)


def shard_paths(pattern) -> list[str]:
    """The shards that a pattern stands for, in its order; matches of a glob and files of a directory are sorted.

    Raises:
        UserError: addresses that are not local files, missing shards, or files that are not `.tar`.
    """
    parts = pattern if isinstance(pattern, (list, tuple)) else str(pattern).split("::")
    paths, missing = [], []
    for part in (piece for entry in parts for piece in _braces(os.path.expanduser(os.fspath(entry).strip()))):
        if re.match(r"[a-z0-9+]{2,}:", part):
            raise UserError(f"'{part}' is not a local file; copy the shards here first.")
        matches = [part] if os.path.exists(part) else sorted(glob.glob(part))
        paths += [path for match in matches for path in (_in_directory(match) if os.path.isdir(match) else [match])]
        missing += [] if matches else [part]
    if missing:
        raise UserError(f"{len(missing)} of the shards '{pattern}' are missing, the first is '{missing[0]}'; check "
                        "the pattern, or fetch them.")
    for path in paths:
        if not path.endswith(".tar"):
            command = unpacking(path)
            raise UserError(f"'{path}' is not a plain .tar file, and no other can be read at random; " + (
                f"unpack it with `{command}`." if command else "give only tar files, as in 'DIRECTORY/*.tar'."))
    return paths


def _in_directory(directory: str) -> list[str]:
    """The shards in a directory. UserError if there are none."""
    files = sorted(os.listdir(directory))
    # Without a plain one, a compressed one: it is refused with the command that unpacks it.
    shards = [file for file in files if file.endswith(".tar") and not file.startswith(".")] or [
        file for file in files if re.search(r"\.(tar\.\w+|tgz)$", file)][:1]
    if not shards:
        raise UserError(f"directory '{directory}' has no .tar files; give one that has.")
    return [os.path.join(directory, file) for file in shards]


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


def _prefixes(paths: Sequence[str]) -> dict[str, str]:
    """{shard: what the keys of its images begin with}: its name, behind as many directories as tell all shards apart.

    Raises:
        UserError: a shard is there twice.
    """
    times = Counter(map(os.path.realpath, paths))
    if doubled := [path for path in dict.fromkeys(paths) if times[os.path.realpath(path)] > 1]:
        number = sum(count > 1 for count in times.values())
        raise UserError(f"{number} {'shards are' if number > 1 else 'shard is'} given more than once, the first is "
                        f"'{doubled[0]}'; give each shard once.")
    parts = {path: Path(os.path.abspath(path)).with_suffix("").parts for path in paths}
    depth = 1
    while len({part[-depth:] for part in parts.values()}) < len(paths):
        depth += 1
    return {path: "/".join(part[-depth:]) for path, part in parts.items()}


class _Reading:
    """From shards to records: what was counted on the way, over all splits."""

    def __init__(self, cache, caption_columns: Sequence[str], attribute_columns: Sequence[str], check: bool):
        self._columns = cache, caption_columns, attribute_columns, check
        self._attribute_columns = attribute_columns
        self._captions = 0  # read so far: the first of a sample has this number
        self._counts: dict[str, Counter] = {"fields": Counter(), "read_as": Counter(), "beside": Counter()}
        self._by_last_dot: list[str] = []
        self._lines: list[str] = []
        self.problems = Problems()

    def records(self, split: str, prefixes: Mapping[str, str], mode: str, problems: Problems) -> RecordTable:
        """The samples of a split's shards, in order; what they cannot give goes to `problems`."""
        records, several_of_split = RecordTable(), 0
        for path, prefix in prefixes.items():
            index = read_index(path, *self._columns)
            problems.update(index["counts"], index["first"])
            for what, counts in self._counts.items():
                counts.update(index[what])
            if index["last_dot"]:
                self._by_last_dot.append(path)
            several, filled = index["texts"]
            several_of_split += several
            if filled and not mode:
                mode = mode_by_counts(several, filled)
            for record in self._of_shard(path, prefix, index["samples"], mode):
                records.append(record)
        if several_of_split:
            self._lines.append(several_lines(several_of_split, split, mode))
        return records

    def _of_shard(self, path: str, prefix: str, samples: Iterable, mode: str) -> Iterator[Record]:
        for name, offset, length, crc, content, captions, attributes in samples:
            if isinstance(captions, str):
                captions = captions,
            elif len(captions) == 1 and isinstance(captions[0], list):
                captions = captions_of("\n".join(captions[0]), mode)
            first, self._captions = self._captions, self._captions + len(captions)
            if crc is not None:
                image = Encoded(f"{prefix}/{name}", partial(read_span, path, offset, length), (length, crc), content)
                yield Record(image, captions, range(first, self._captions),
                             dict(zip(self._attribute_columns, attributes)) if attributes else {})

    def notes(self) -> list[str]:
        """How the shards were read, in sentences, where that is not plain."""
        fields, read_as, beside = self._counts.values()
        notes = [f"the captions of {count} samples were read from the field '{field}' of their JSON."
                 for field, count in fields.items()]
        notes += [f"{count} captions {how}." for how, count in read_as.items()]
        if beside:
            kinds = ", ".join(extension for extension, _ in beside.most_common(8))
            notes.append(f"{beside.total()} members ({kinds}) were not read: their samples have an image or a text with a "
                         "plainer extension.")
        if self._by_last_dot:
            notes.append(f"in {len(self._by_last_dot)} of the shards (the first: '{self._by_last_dot[0]}') keys were read "
                         "up to the last dot of each name: up to the first one they do not pair images with texts.")
        return notes + self._lines


def _failed_downloads(paths: Iterable[str]) -> list[str]:
    """What img2dataset wrote beside its shards of addresses that gave no image, in a sentence."""
    failed = total = 0
    for path in paths:
        try:
            stats = read_json(f"{path.removesuffix('.tar')}_stats.json")
        except (OSError, ValueError):
            continue
        count, successes = stats.get("count"), stats.get("successes")
        if type(count) is int and type(successes) is int and 0 <= successes <= count:
            failed, total = failed + count - successes, total + count
    return [f"{failed} of {total} addresses could not be fetched when these shards were made."] if failed else []
