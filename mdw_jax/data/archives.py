"""Image files by name, in directories and zip files (read in place, never extracted)."""

import glob
import os
import threading
import zipfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from pathlib import Path

from mdw_jax.data.decoding import Encoded, check_length
from mdw_jax.errors import UserError

Finder = Callable[[str], list[Encoded]]


def locate(names: Sequence[Sequence[str]], images) -> list[Encoded]:
    """Find images by their names.

    Args:
        names: for each image the names that it may have, the likeliest first; that is its key.
        images: a directory, a zip file, a glob pattern, a comma-separated string of these, or a list of these. Zip
            files stay open as long as one of their images is referenced.
    Returns:
        One image for each entry of `names`.
    Raises:
        UserError: images are missing, or there twice, since nobody knows which of the two the captions describe.
    """
    finders = [_finder(source) for source in _sources(images)]
    located, missing, doubled = [], [], []
    for keys in names:
        matches = next((hits for key in keys if (hits := [hit for find in finders for hit in find(key)])), [])
        if not matches:
            missing.append(keys[0])
        elif len(matches) > 1:
            doubled.append(keys[0])
        located += [image._replace(key=keys[0]) for image in matches[:1]]
    if missing:
        outside = " (names that lead out of a directory are not followed)" if any(map(_leads_out, missing)) else ""
        raise UserError(f"{len(missing)} of {len(names)} images are not in '{images}', the first is "
                        f"'{missing[0]}'{outside}; check where the images are.")
    if doubled:
        raise UserError(f"{len(doubled)} of {len(names)} images are more than once in '{images}', the first is "
                        f"'{doubled[0]}'; leave one copy.")
    return located


def _sources(images) -> list[str]:
    """The directories and zip files that `images` lists, each once, in order."""
    entries = images if isinstance(images, (list, tuple)) else [images]
    sources = {}
    for part in (piece for entry in entries for piece in _pieces(os.fspath(entry))):
        matches = [part] if os.path.exists(part) else sorted(glob.glob(part))
        if not matches:
            raise UserError(f"there is no image directory or zip file '{part}'; check where the images are.")
        sources.update((os.path.realpath(match), match) for match in matches)
    if not sources:
        raise UserError("no image directory or zip file is given; set data.images to where the images are.")
    return list(sources.values())


def _pieces(text: str) -> Iterator[str]:
    """The comma-separated pieces of `text`, unless a path of just that name exists."""
    pieces = [text] if os.path.exists(os.path.expanduser(text)) else text.split(",")
    yield from (os.path.expanduser(piece.strip()) for piece in pieces if piece.strip())


def _finder(source: str) -> Finder:
    """A function from a file name to the images of that name in `source`."""
    if os.path.isdir(source):
        return partial(_in_directory, Path(source))
    try:
        archive = zipfile.ZipFile(source)
    except (zipfile.BadZipFile, OSError) as error:
        raise UserError(f"'{source}' is neither a directory nor a readable zip file ({error}); fetch it again.") from error
    members, tails = {}, {}
    check_names(source, (member.filename for member in archive.infolist()))
    for member in archive.infolist():
        members[member.filename] = member
        parts = member.filename.split("/")
        for i in range(1, len(parts)):
            tails.setdefault("/".join(parts[i:]), []).append(member)
    return partial(_in_archive, archive, threading.Lock(), members, tails)


def check_names(source, names: Iterable[str]) -> None:
    """Raises UserError if an archive has a name that leads out of it. Nothing is unpacked here, but others may."""
    if astray := next(filter(_leads_out, names), None):
        raise UserError(f"'{source}' holds '{astray}', a name that leads out of it; do not unpack it, and fetch it "
                        "from a source that you trust.")


def _leads_out(name: str) -> bool:
    return name.startswith("/") or ".." in name.split("/")


def _in_directory(directory: Path, name: str) -> list[Encoded]:
    path = Path(os.path.normpath(directory / name))
    inside = path.is_relative_to(os.path.normpath(directory))
    return [Encoded(name, partial(_read_file, path))] if inside and os.path.isfile(path) else []


def _read_file(path: Path) -> bytes:
    check_length(path.stat().st_size)
    return path.read_bytes()


def _in_archive(archive, lock, members: dict, tails: dict, name: str) -> list[Encoded]:
    """`name` is a member's whole name or, failing that, the end of it (archives often hold one top directory)."""
    matches = [members[name]] if name in members else tails.get(name, [])
    return [Encoded(name, partial(_read_member, archive, lock, member), (member.file_size, member.CRC))
            for member in matches]


def _read_member(archive: zipfile.ZipFile, lock: threading.Lock, member: zipfile.ZipInfo) -> bytes:
    check_length(member.file_size)
    with lock:  # ZipFile reads bytes under a lock of its own, but counts its open members without one
        file = archive.open(member)
    try:
        return file.read()
    finally:
        with lock:
            file.close()
