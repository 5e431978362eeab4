"""Tar shards of images and texts: which members make a sample, what cannot be used, and an index of both.

Nothing is extracted: member names are only names, and a shard with one such as "../../x.jpg" is refused.
"""

import json
import os
import re
import tarfile
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import NamedTuple

from mdw_jax.data.archives import check_names
from mdw_jax.data.caption_lines import lines_of
from mdw_jax.data.decoding import Encoded, check_length, reason, threads, validate_images
from mdw_jax.data.problems import Problems, quoted
from mdw_jax.data.records import pick
from mdw_jax.data.tables.cells import captions_in
from mdw_jax.data.tables.columns import CAPTION_COLUMNS, first_called
from mdw_jax.errors import UserError
from mdw_jax.io.files import digest, parse_json, write_atomically
from mdw_jax.io.keyed import read_keyed_json

IMAGES = ("jpg", "jpeg", "png", "webp", "gif", "bmp", "tif", "tiff", "avif", "jfif", "img")
TEXTS = ("txt", "text", "caption", "captions", "cap")
FIELDS = (*CAPTION_COLUMNS, "prompt")
"""What the JSON of a sample calls its captions, in any case; of several the first is taken."""
_KINDS = {**dict.fromkeys(IMAGES, "image"), **dict.fromkeys(TEXTS, "text"), "json": "json"}
_NO_SAMPLE = {"cls", "npy", "npz"}  # classes and features: they belong to an image, or to nothing that is read here
_LARGEST_TEXT = 2**20  # bytes: more is no caption, and no name of a member
_LARGEST_JSON = 2**24
_FORMAT = "mdw-shard-3"  # change it when an index would come out differently, so that older ones are not used
_BAD_STATUS = re.compile(rb'"status"\s*:\s*"(?!success")')
_COMPRESSED = {b"\x1f\x8b": "gunzip", b"BZh": "bunzip2", b"\xfd7zXZ": "unxz", b"\x28\xb5\x2f\xfd": "unzstd"}

_WORDS = (tarfile.XHDTYPE, tarfile.XGLTYPE, tarfile.SOLARIS_XHDTYPE, tarfile.GNUTYPE_LONGNAME, tarfile.GNUTYPE_LONGLINK)

Members = dict[str, tuple[int, int] | None]


class Member(NamedTuple):
    """A file of a sample: its extension (lower case; all behind the key, as in "input.jpg"), and where it lies."""

    name: str
    extension: str
    offset: int
    length: int


Sample = dict[str, list[Member]]
"""{"image", "text", "json" or "other": its members}"""


def read_index(path: str, cache, caption_columns: Sequence[str], attribute_columns: Sequence[str], check: bool) -> dict:
    """The index of a shard, from `cache` if it is there.

    Args:
        path: the shard.
        cache: a directory of indices, or None. A shard whose path, size or modification time changed is indexed again.
        caption_columns: fields of the JSON that hold the captions, or paths ("caption/en"); (): the text, or else the
            first of `FIELDS`.
        attribute_columns: fields of the JSON to keep.
        check: decode every image once.
    Returns:
        {"samples": [[name, offset, length, crc, content, captions, attributes], ...], "texts": [texts with several
        lines, texts with any], "fields": {field of the JSON: how many samples have it}, "read_as": {how captions were
        read: how many}, "beside": {extension: members not read, since the sample has a plainer one}, "last_dot": whether
        keys end at the last dot, "counts", "first": of `Problems`}. `crc` is None for a broken image; `content` is that
        of `Encoded`; `captions` is one, or a list, in which a list is the lines of a text.
    Raises:
        UserError: what is no tar file, members that occur twice or lead out of it, samples with two images or texts
            between which nothing decides, captions that are nested, no sample with an image and a text.
    """
    stat = os.stat(path)
    key = digest(_FORMAT, os.path.realpath(path), stat.st_size, stat.st_mtime_ns, list(caption_columns),
                 list(attribute_columns), check)
    index_path = None if cache is None else Path(cache) / f"shard-{key[:16]}.json"
    index = None if index_path is None else read_keyed_json(index_path, key)
    if index is None or index.pop("sha256", "") != digest(index):  # none, or damaged: it is made again
        try:
            with open(path, "rb", buffering=0) as file:
                read = partial(_read_open, file.fileno()) if hasattr(os, "pread") else partial(read_span, path)
                index = {"key": key, **_Indexing(path, read, caption_columns, attribute_columns).index(check)}
        except OSError as error:
            raise UserError(f"'{path}' cannot be read ({reason(error)}); fetch it again, or leave it out.") from error
        if index_path is not None:
            write_atomically(index_path, json.dumps({**index, "sha256": digest(index)}).encode())
    return index


def read_span(path: str, offset: int, length: int) -> bytes:
    """The bytes of a member. Raises OSError if they are not there, ValueError for too many."""
    check_length(length)
    with open(path, "rb", buffering=0) as file:  # an open costs microseconds, a decode milliseconds
        file.seek(offset)
        return _whole(file.read(length), length)


def _read_open(handle: int, offset: int, length: int) -> bytes:
    check_length(length)
    return _whole(os.pread(handle, length, offset), length)


def _whole(data: bytes, length: int) -> bytes:
    if len(data) != length:
        raise OSError("the shard ends early")
    return data


def unpacking(path: str) -> str:
    """The command that unpacks a compressed file; "" if it is not compressed."""
    with open(path, "rb") as file:
        start = file.read(6)
    program = next((program for magic, program in _COMPRESSED.items() if start.startswith(magic)), None)
    if program is None:
        return ""
    stem, suffix = os.path.splitext(path)
    bare = stem if stem.endswith(".tar") else f"{stem}.tar" if suffix != ".tar" else f"{stem}-unpacked.tar"
    return f"{program} -c '{path}' > '{bare}'"


class _Header(tarfile.TarInfo):
    """A header of a tar file. Of plain ones only the name and the length are read, in a third of the time."""

    @classmethod
    def frombuf(cls, buf, encoding, errors):
        """As in `tarfile.TarInfo`, which gets whatever is not plain."""
        try:
            # The checksum is that of the header with spaces in the place of the checksum.
            plain = len(buf) == tarfile.BLOCKSIZE and buf[156:157] in (tarfile.REGTYPE, tarfile.XHDTYPE) and int(
                buf[148:156].strip(b"\0 "), 8) == sum(buf) - sum(buf[148:156]) + 8 * ord(" ")
            size = int(buf[124:136].strip(b"\0 "), 8) if plain else 0
        except ValueError:  # numbers in base 256, or damaged ones
            plain = False
        if not plain:
            return super().frombuf(buf, encoding, errors)._with_short_name()
        header = cls(buf[:100].partition(b"\0")[0].decode(encoding, errors))
        if buf[345]:
            header.name = f"{buf[345:500].partition(bytes(1))[0].decode(encoding, errors)}/{header.name}"
        header.type, header.size = buf[156:157], size
        return header._with_short_name()

    def _with_short_name(self):
        """Itself. ReadError where a name, or other words on a member, is so long that it would fill the memory."""
        if self.type in _WORDS and self.size > _LARGEST_TEXT:
            raise tarfile.ReadError(f"a header of {self.size:,} bytes, where {_LARGEST_TEXT:,} may be")
        return self


class _Indexing:
    """The making of one index: see `read_index`."""

    def __init__(self, path: str, read: Callable[[int, int], bytes], caption_columns: Sequence[str],
                 attribute_columns: Sequence[str]):
        self.path, self.read = path, read
        self.caption_columns, self.attribute_columns = caption_columns, attribute_columns
        self.problems = Problems()
        self.fields: Counter = Counter()
        self.read_as: Counter = Counter()
        self.beside: Counter = Counter()
        self.several = self.filled = 0

    def index(self, check: bool) -> dict:
        """Walk the headers of the shard, then read its captions and check its images."""
        grouped, last_dot = _samples(self.path)
        samples = []
        for name, sample in grouped.items():
            if (read := self._read(name, sample)) is not None:
                samples.append((name, *read))
        encoded = [Encoded(name, partial(self.read, image.offset, image.length)) for name, image, *_ in samples]
        with ThreadPoolExecutor(threads()) as pool:
            encoded, failures = validate_images(encoded, check, pool)
        rows = []
        for (name, image, captions, attributes), found, failure in zip(samples, encoded, failures):
            if failure:
                self._problem("broken image", name, f"{image.name}: {failure}")
            crc = None if failure else found.sum[1]
            only = captions[0] if len(captions) == 1 and isinstance(captions[0], str) else captions
            rows.append((name, image.offset, image.length, crc, found.content, only, attributes))
        return {"samples": rows, "texts": (self.several, self.filled), "fields": self.fields, "read_as": self.read_as,
                "beside": self.beside, "last_dot": last_dot, "counts": self.problems.counts, "first": self.problems.first}

    def _problem(self, why: str, name: str, what: str) -> None:
        self.problems.add(why, f"{quoted(name)} of '{self.path}', {what}")

    def _read(self, name: str, sample: Sample) -> tuple[Member, list, list] | None:
        """The image, captions and attributes of a sample; None, and a problem, if it cannot be used."""
        image, text = (self._one(name, sample.get(kind, []), kind) for kind in ("image", "text"))
        wanted = bool(self.caption_columns or self.attribute_columns or text is None)
        why, what, captions, document = "", "", [], {}
        try:
            document = self._document(name, sample.get("json", []), wanted)
            failed = _failed(document)
            if failed and (image is None or "error_message" in document):
                why, what = "failed download", f"whose status is {quoted(failed)}"
            elif image is None:
                why, what = "no image", f"which has {_held([sample])}"
            elif text and not self.caption_columns:
                why, what, captions = self._text(text)
            else:
                captions = self._of_json(document)
        except ValueError as error:
            why, what = "unreadable json", reason(error)
        if not (why or captions):
            fields = f" and in its JSON {_listed(document)}" if isinstance(document, dict) and document else ""
            why, what = "no caption", f"which has {_held([sample])}{fields}"
        if why:
            self._problem(why, name, what)
            return None
        return image, captions, [document.get(key) if isinstance(document, dict) else None
                                 for key in self.attribute_columns]

    def _one(self, name: str, members: Sequence[Member], kind: str) -> Member | None:
        """The image or text of a sample; of several the one whose extension has a single part."""
        chosen = _chosen(members)
        if chosen is None and members:
            listed = " and ".join(quoted(member.name) for member in members[:3])
            raise UserError(f"{len(members)} members of sample '{name}' of '{self.path}' could be its {kind}, {listed}, "
                            "and which of them counts is not known; write the shard again with one of them.")
        self.beside.update(f".{member.extension}" for member in members if member is not chosen)
        return chosen

    def _document(self, name: str, members: Sequence[Member], wanted: bool):
        """The JSON of a sample, {} without one or if it says nothing that is wanted. ValueError if it is unreadable."""
        if not wanted:
            for member in members[:1]:
                data = self.read(member.offset, min(member.length, _LARGEST_TEXT))
                if _BAD_STATUS.search(data):
                    try:
                        return parse_json(data)
                    except ValueError:  # the text has the caption, and nothing else of it is asked for
                        continue
            return {}
        member = self._one(name, members, "json")
        if member is None:
            return {}
        if member.length > _LARGEST_JSON:
            raise ValueError(f"it has {member.length:,} bytes, where {_LARGEST_JSON:,} may be")
        return parse_json(self.read(member.offset, member.length), (dict, list, str))

    def _text(self, member: Member) -> tuple[str, str, list]:
        """Why a text cannot be used, and what it is; its captions: one, several, or the list of its lines.

        What lines are is found out later, by many texts.
        """
        if member.length > _LARGEST_TEXT:
            return "caption too long", f"whose {member.name} has {member.length} bytes", []
        try:
            text = self.read(member.offset, member.length).decode("utf-8-sig").strip()
        except UnicodeDecodeError as error:
            return "caption not in Unicode", reason(error), []
        if text[:1] == "[" and (captions := captions_in(text, self.read_as)) != [text]:
            return "", "", _stripped(captions)
        lines = lines_of(text) if "\n" in text or "\r" in text else [text]
        self.filled += bool(text)
        self.several += len(lines) > 1
        return "", "", lines if len(lines) < 2 else [lines]

    def _of_json(self, document) -> list:
        if not isinstance(document, dict):
            return [] if self.caption_columns else _stripped(captions_in(document, self.read_as))
        names = self.caption_columns or list(filter(None, [first_called(document, FIELDS)]))
        values = {name: value for name in names if (value := _at(document, name)) is not None}
        captions = [caption for value in values.values() for caption in captions_in(value, self.read_as)]
        if nested := next((caption for caption in captions if isinstance(caption, dict)), None):
            raise UserError(f"field '{next(iter(values))}' of the JSON in '{self.path}' has nested values with "
                            f"{_listed(nested)}; name one, as in data.caption_columns={next(iter(values))}/"
                            f"{next(iter(nested))}.")
        self.fields.update([] if self.caption_columns else list(values))  # of a mapping it would add the values
        return _stripped(captions)


def _at(document: Mapping, name: str):
    """The value of a field, or at a path such as "caption/en"; None if it is not there."""
    if name in document or "/" not in name:
        return document.get(name)
    try:
        return pick(document, name)
    except KeyError:
        return None


def _stripped(captions: Iterable) -> list:
    return [caption.strip() if isinstance(caption, str) else caption for caption in captions]


def _failed(document) -> str:
    """The status of a failed download, as img2dataset writes it; "" for none."""
    status = document.get("status") if isinstance(document, dict) else None
    return status if isinstance(status, str) and status != "success" else ""


def _samples(path: str) -> tuple[dict[str, Sample], bool]:
    """The samples of a shard, and whether their keys end at the last dot of a name.

    By the convention of WebDataset keys end at the first dot of the last part. Names such as "photo no. 1.jpg" do not
    follow it: where it pairs no image with a text, or leaves doubts, and the last dot pairs them, that counts.

    Raises:
        UserError: no sample has an image and a text.
    """
    members = _members(path)
    samples = _grouped(members, last_dot=False)
    pairs, doubts = sum(map(_is_pair, samples.values())), any(map(_is_doubtful, samples.values()))
    if pairs and not doubts:
        return samples, False
    others = _grouped(members, last_dot=True)
    with_images = [sample for sample in others.values() if "image" in sample]
    paired = sum(map(_is_pair, with_images))
    if paired and (not pairs or paired == len(with_images)):
        return others, True
    if samples and not pairs and not doubts:
        images, texts = (", ".join(f".{extension}" for extension in kind) for kind in (IMAGES, (*TEXTS, "json")))
        links = ", some of them links or sparse files, which are not read" * (None in members.values())
        raise UserError(f"'{path}' holds {len(samples)} {'samples' if len(samples) > 1 else 'sample'}, with extensions "
                        f"{_held(samples.values())}{links}; expected an image ({images}) and a text ({texts}) of the same "
                        "name.")
    return samples, False


def _members(path: str) -> Members:
    """{name: (offset, length)} of the files in a shard that have an extension; None for links out and sparse files."""
    members: Members = {}
    try:
        with tarfile.open(path, "r:", tarinfo=_Header) as archive:
            for member in archive:
                name = member.name.removeprefix("./")
                tail = name.rpartition("/")[2]
                # "._x.jpg" and "__MACOSX/" are what a Mac keeps beside its files.
                if member.isdir() or "." not in tail[1:] or tail[0] == "." or "__MACOSX" in name.split("/"):
                    continue
                if name in members:
                    raise UserError(f"'{path}' holds '{name}' twice, and which of the two counts is not known; write the "
                                    "shard again with every key once.")
                if member.isreg() and not member.issparse():
                    members[name] = member.offset_data, member.size
                else:  # a hard link stands for a member that came before
                    members[name] = members.get(member.linkname.removeprefix("./")) if member.islnk() else None
            # The tarfile module takes a truncated or damaged header for the end of the archive: the rest would be lost.
            archive.fileobj.seek(archive.offset)
            if archive.fileobj.read(tarfile.BLOCKSIZE) != tarfile.NUL * tarfile.BLOCKSIZE:
                raise tarfile.ReadError(f"no header and no end mark at byte {archive.offset}")
    except (tarfile.TarError, OSError, EOFError) as error:
        if command := unpacking(path):
            raise UserError(f"'{path}' is compressed, and cannot be read at random; unpack it with `{command}`."
                            ) from error
        raise UserError(f"'{path}' is not a readable tar file ({reason(error)}); fetch it again, or leave it out."
                        ) from error
    check_names(path, members)
    return members


def _grouped(members: Members, last_dot: bool) -> dict[str, Sample]:
    """{key: sample}, without those that have nothing but classes and features."""
    samples: dict[str, Sample] = {}
    for name, span in members.items():
        head, slash, tail = name.rpartition("/")
        stem, _, extension = tail.rpartition(".") if last_dot else tail.partition(".")
        extension = extension.lower()
        kind = _KINDS.get(extension.rpartition(".")[2], "other") if span else "other"
        samples.setdefault(f"{head}{slash}{stem}", {}).setdefault(kind, []).append(
            Member(name, extension, *(span or (0, 0))))
    return {key: sample for key, sample in samples.items() if sample.keys() != {"other"} or
            any(member.extension.rpartition(".")[2] not in _NO_SAMPLE for member in sample["other"])}


def _chosen(members: Sequence[Member]) -> Member | None:
    """The only one of these members, or the only one with an extension of a single part."""
    plain = members if len(members) == 1 else [member for member in members if "." not in member.extension]
    return plain[0] if len(plain) == 1 else None


def _is_doubtful(sample: Sample) -> bool:
    return any(sample.get(kind) and _chosen(sample[kind]) is None for kind in ("image", "text"))


def _is_pair(sample: Sample) -> bool:
    return _chosen(sample.get("image", [])) is not None and ("json" in sample or
                                                             _chosen(sample.get("text", [])) is not None)


def _held(samples: Iterable[Sample]) -> str:
    """The extensions in some samples, the most frequent first."""
    counts = Counter(f".{member.extension.rpartition('.')[2]}" for sample in samples for members in sample.values()
                     for member in members)
    return _listed([extension for extension, _ in counts.most_common()])


def _listed(names: Iterable[str], most: int = 8) -> str:
    found = list(names)
    return ", ".join(str(name)[:40] for name in found[:most]) + (" and others" if len(found) > most else "")
