"""Image files by name, in directories and zip files (read in place, never extracted)."""

import glob
import os
import posixpath
import shlex
import threading
import unicodedata
import zipfile
from bisect import bisect_left
from collections.abc import Container, Iterable, Iterator, Sequence
from functools import cached_property, partial

from mdw_jax.data.decoding import Encoded, check_length
from mdw_jax.data.problems import Problems, quoted
from mdw_jax.data.tables.columns import fetching
from mdw_jax.errors import UserError

_TABLE_FORMS = ("csv", "tsv", "json", "jsonl", "parquet")  # that img2dataset reads


def locate(names: Sequence[Sequence[str]], images, problems: Problems | None = None, *, table: str = "",
           column: str = "") -> list[Encoded | None]:
    """Find images by their names.

    A name is a path in a directory or zip file or, where that is not there, the end of one: a folder that holds
    another with the images is as good as that one. What macOS adds to archives (`__MACOSX/`, `._name`) is no image.

    Args:
        names: for each image the names that it may have, the likeliest first; that is its key.
        images: a directory, a zip file, a glob pattern, a comma-separated string of these, or a list of these. Zip
            files stay open as long as one of their images is referenced.
        problems: counts the images that are absent; None: they are an error.
        table, column: where the names come from, for messages.
    Returns:
        One image for each entry of `names`; None for absent ones.
    Raises:
        UserError: images are missing, there twice, since nobody knows which of the two the captions describe, or named
            by addresses in the web.
    """
    sources = image_sources(images)
    images = ", ".join(map(str, images)) if isinstance(images, (list, tuple)) else images
    located: list[Encoded | None] = []
    absent, doubled, places = [], [], []
    for keys in names:
        if keys[0][:4].lower() == "http" and keys[0].lower().startswith(("http://", "https://")):
            raise UserError(_fetch_first(keys[0], table, column))
        matches = _matches(keys, sources)
        located.append(matches[0][0].image(matches[0][1], keys[0]) if matches else None)
        if not matches:
            absent.append(keys[0])
        elif len(matches) > 1:
            doubled.append(keys[0])
            places = places or [source.place(path) for source, path in matches]
    if doubled:
        raise UserError(f"{len(doubled)} of {len(names)} images are more than once in '{images}' (as {quoted(places[0])} "
                        f"and {quoted(places[1])}), the first is '{doubled[0]}'; leave one copy.")
    if absent and problems is None:
        raise UserError(f"{len(absent)} of {len(names)} images are not in '{images}', the first is "
                        f"{quoted(absent[0])}{_hint(absent[0], sources)}; check where the images are.")
    if absent:
        problems.add("absent image", f"{quoted(absent[0])} is not in '{images}'{_hint(absent[0], sources)}", len(absent))
    return located


def _matches(keys: Sequence[str], sources: Sequence["_Directory | _Archive"]) -> list[tuple["_Directory | _Archive", str]]:
    """Where an image is, by the first of its names that is anywhere: one place, or several different ones.

    Only what no directory has directly is looked for inside their directories, which takes a walk through all.
    """
    for key in keys:
        if found := [(source, path) for source in sources for path in source.find(key)]:
            return found if len(found) == 1 else _different(found)
    for key in keys:
        if found := [(source, path) for source in sources for path in source.find_deep(key)]:
            return found if len(found) == 1 else _different(found)
    return []


def _different(found: list[tuple]) -> list[tuple]:
    """Without the same file again: one source may be inside another, or a link to a file beside it."""
    return list({os.path.realpath(source.place(path)): (source, path) for source, path in found}.values())


def _fetch_first(name: str, table: str, column: str) -> str:
    """What to do about images that are named by their addresses."""
    plain = str(table).lower().removesuffix(".gz")
    form = next((form for form in _TABLE_FORMS if plain.endswith(f".{form}")), "csv")
    form += ".gz" * str(table).lower().endswith(".gz")
    command = fetching(shlex.quote(column) if column else "COLUMN",
                       table=shlex.quote(str(table)) if table else "TABLE", form=form)
    return (f"{quoted(name)} is an address in the web, not a file, and nothing is fetched here; fetch the images with "
            f"`{command}`, then read shards/*.tar with data.name=webdataset.")


def _hint(name: str, sources: Sequence["_Directory | _Archive"]) -> str:
    """In parentheses why an image is not found, and what may be meant; "" if nothing is like it."""
    notes = ["names that lead out of a directory are not followed"] if _leads_out(name) else []
    wanted = posixpath.basename(name.replace("\\", "/"))
    letters, stem = folded(wanted), folded(posixpath.splitext(wanted)[0])
    likely: tuple[int, str] = (4, "")
    for path in (path for source in sources for path in source.paths()):
        file = posixpath.basename(path)
        if file == wanted:
            likely = min(likely, (0, f"there is {quoted(path)}"))
        elif folded(file) == letters:
            likely = min(likely, (1, f"there is {quoted(path)}, spelled in other letters"))
        elif folded(posixpath.splitext(file)[0]) == stem:
            likely = min(likely, (2, f"there is {quoted(path)}, with another extension"))
        elif file.endswith(".zip"):
            likely = min(likely, (3, f"there is {quoted(path)}; zip files are read where data.images names them"))
    notes += [likely[1]] if likely[1] else []
    return f" ({'; '.join(notes)})" if notes else ""


def folded(name: str) -> str:
    """A name as it is in all spellings: of letters' case, and of accents, which macOS stores apart."""
    return name.lower() if name.isascii() else unicodedata.normalize("NFKC", name).casefold()


def image_sources(images) -> list["_Directory | _Archive"]:
    """The directories and zip files that `images` lists, each once, in order; UserError where one is not there."""
    entries = images if isinstance(images, (list, tuple)) else [images]
    sources = {}
    for part in (piece for entry in entries for piece in _pieces(os.fspath(entry))):
        matches = [part] if os.path.exists(part) else sorted(glob.glob(part))
        if not matches:
            raise UserError(f"there is no image directory or zip file '{part}'; check where the images are.")
        sources.update((os.path.realpath(match), match) for match in matches)
    if not sources:
        raise UserError("no image directory or zip file is given; set data.images to where the images are.")
    return [_source(path) for path in sources.values()]


def _pieces(text: str) -> Iterator[str]:
    """The comma-separated pieces of `text`, unless a path of just that name exists."""
    pieces = [text] if os.path.exists(os.path.expanduser(text)) else text.split(",")
    yield from (os.path.expanduser(piece.strip()) for piece in pieces if piece.strip())


def _source(path: str) -> "_Directory | _Archive":
    if os.path.isdir(path):
        return _Directory(path)
    try:
        return _Archive(path, zipfile.ZipFile(path))
    except (zipfile.BadZipFile, OSError) as error:
        raise UserError(f"'{path}' is neither a directory nor a readable zip file ({error}); fetch it again.") from error


def check_names(source, names: Iterable[str]) -> None:
    """Raises UserError if an archive has a name that leads out of it. Nothing is unpacked here, but others may."""
    if astray := next(filter(_leads_out, names), None):
        raise UserError(f"'{source}' holds '{astray}', a name that leads out of it; do not unpack it, and fetch it "
                        "from a source that you trust.")


def _leads_out(name: str) -> bool:
    return name.startswith("/") or (".." in name and ".." in name.split("/"))


class _Directory:
    """Images in a directory, by their paths under it.

    Args:
        path: the directory.
    """

    def __init__(self, path: str):
        self._path, self._root = path, os.path.abspath(path)

    def find(self, name: str) -> list[str]:
        """The path that `name` is, if a file is there."""
        if ".." in name or os.path.isabs(name):
            name = os.path.relpath(os.path.normpath(os.path.join(self._root, name)), self._root)
            if _leads_out(name.replace(os.sep, "/")):
                return []
        return [name] if os.path.isfile(os.path.join(self._root, name)) else []

    def find_deep(self, name: str) -> list[str]:
        """The paths that end in `name`; the first call walks through the directory."""
        return [path for path in self._ends.find(name) if os.path.isfile(os.path.join(self._root, path))]

    def paths(self) -> Iterator[str]:
        """The paths of all files."""
        return iter(self._ends)

    def place(self, path: str) -> str:
        """Where the file of a path is."""
        return os.path.join(self._path, path)

    def image(self, path: str, key: str) -> Encoded:
        """The image at a path, as that of `key`."""
        return Encoded(key, partial(_read_file, os.path.join(self._root, path)))

    @cached_property
    def _ends(self) -> "_Ends":
        return _Ends(self._walk())

    def below(self, tops: Container[str] | None) -> Iterator[str]:
        """The paths of all files, or of those in the folders of these names (`folded`; "": in none) at the top alone."""
        for path in self.paths() if tops is None else self._walk(tops):
            if (tops is None or "/" in path or "" in tops) and _may_be_image(path):
                yield path

    def _walk(self, tops: Container[str] | None = None) -> Iterator[str]:
        for directory, folders, files in os.walk(self._root):  # links to directories are not followed
            folders[:] = [folder for folder in folders if not folder.startswith(".")]  # thumbnails, caches, trash
            under = os.path.relpath(directory, self._root).replace(os.sep, "/")
            if under == "." and tops is not None:
                folders[:] = [folder for folder in folders if folded(folder) in tops]
            yield from files if under == "." else (f"{under}/{file}" for file in files)


def _read_file(path: str) -> bytes:
    check_length(os.stat(path).st_size)
    with open(path, "rb", buffering=0) as file:
        return file.read()


class _Archive:
    """Images in a zip file, by the names of its members.

    Args:
        path: the zip file.
        archive: the same, opened.
    Raises:
        UserError: it has a name that leads out of it.
    """

    def __init__(self, path: str, archive: zipfile.ZipFile):
        self._path, self._archive, self._lock = path, archive, threading.Lock()
        # Some programs of Windows write backslashes.
        self._members = {member.filename.replace("\\", "/"): member for member in archive.infolist()}
        check_names(path, self._members)
        self._ends = _Ends(self._members)

    def find(self, name: str) -> list[str]:
        """`name` if it is a whole path or, failing that, the paths that end in it (archives often hold one folder)."""
        return [name] if name in self._members and _may_be_image(name) else self._ends.find(name)

    def find_deep(self, name: str) -> list[str]:
        """[]: `find` finds all."""
        return []

    def paths(self) -> Iterator[str]:
        """The paths of all files."""
        return iter(self._ends)

    def below(self, tops: Container[str] | None) -> Iterator[str]:
        """The paths of all files, wherever they are: what is in an archive of images belongs together."""
        return self.paths()

    def place(self, path: str) -> str:
        """Where the file of a path is."""
        return os.path.join(self._path, path)

    def image(self, path: str, key: str) -> Encoded:
        """The image at a path, as that of `key`."""
        member = self._members[path]
        return Encoded(key, partial(_read_member, self._archive, self._lock, member), (member.file_size, member.CRC))


class _Ends:
    """Paths by their ends: of "a/b/c.jpg" these are "b/c.jpg" and "c.jpg", not ".jpg".

    A sorted list of the paths with their parts backwards, "c.jpg/b/a/": it has a third of the size of a table of all
    ends, and finds the paths of an end next to each other.
    """

    def __init__(self, paths: Iterable[str]):
        self._backwards = sorted(map(_backwards, filter(_may_be_image, paths)))

    def find(self, end: str) -> list[str]:
        """The paths with this end."""
        if end in ("", ".") or _leads_out(end):
            return []
        wanted = _backwards(posixpath.normpath(end) if "/" in end else end)
        first = last = bisect_left(self._backwards, wanted)
        while last < len(self._backwards) and self._backwards[last].startswith(wanted):
            last += 1
        return list(map(_forwards, self._backwards[first:last]))

    def __iter__(self) -> Iterator[str]:
        return map(_forwards, self._backwards)


def _backwards(path: str) -> str:
    return "/".join(path.split("/")[::-1]) + "/" if "/" in path else path + "/"


def _forwards(backwards: str) -> str:
    return "/".join(backwards[:-1].split("/")[::-1])


def _may_be_image(path: str) -> bool:
    """Whether a path is of a file that is not one of those that macOS adds."""
    name = path.rpartition("/")[2]
    return name != "" and not name.startswith("._") and not ("__MACOSX" in path and "__MACOSX" in path.split("/"))


def _read_member(archive: zipfile.ZipFile, lock: threading.Lock, member: zipfile.ZipInfo) -> bytes:
    check_length(member.file_size)
    if member.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
        # Python unpacks all of it at a time, and a hundred bytes become a megabyte.
        raise ValueError("it is packed in a way that is not read; write the zip file with deflate, as most programs do")
    with lock:  # ZipFile reads bytes under a lock of its own, but counts its open members without one
        file = archive.open(member)
    try:
        return file.read(member.file_size)  # as is announced, whatever more it would unpack to
    finally:
        with lock:
            file.close()
