"""Images that lie among those of a table and that no row names: they are not read, and their owner should know."""

import os
import posixpath
from collections.abc import Iterable, Iterator

from mdw_jax.data.archives import folded, image_sources
from mdw_jax.data.problems import quoted
from mdw_jax.data.tables.columns import is_image_file

SHOWN = 3


def uncaptioned_note(named: Iterable[str], images, table: str, everywhere: bool) -> list[str]:
    """How many images no row of a table names, in a sentence with the first of them; nothing where there are none.

    Args:
        named: what the rows call their images, those of splits that are not read among them.
        images: where the images are, as in `archives.locate`; the root of the file system is not looked through.
        table: what the table is called.
        everywhere: look at all images below `images`; else only in those of its folders that hold an image with a name
            (beside a table there may be other things).
    """
    named = [_plain(name) for name in named]
    ends = {folded(name) for name in named}
    tops = None if everywhere else {folded(name.split("/")[0]) if "/" in name else "" for name in named}
    if tops is not None and any(name.startswith("..") for name in named):
        tops = None
    met, found = set(), []
    for source in image_sources(images):
        root = os.path.abspath(source.place(""))
        if root == os.path.dirname(root):
            continue  # a table of absolute names: all files of the machine are not its images, and take long to go through
        for path in filter(is_image_file, source.below(tops)):
            its = [end for end in _ends(source.place(path)) if end in ends]
            met.update(its)
            found += [path] * (not its)
    # Names that no file has may have the directories of another machine; readers then look for the files alone.
    files = {end.rpartition("/")[2] for end in ends - met}
    found = sorted(path for path in found if folded(posixpath.basename(path)) not in files)
    if not found:
        return []
    first = ", ".join(map(quoted, found[:SHOWN])) + (", ..." if len(found) > SHOWN else ".")
    return [f"{len(found)} image file{'s' * (len(found) != 1)} in no row of '{table}' that can be read, so not used: "
            f"{first}"]


def _plain(name: str) -> str:
    """The name as a path with "/" and without detours."""
    return posixpath.normpath(name.replace("\\", "/")).lstrip("/")


def _ends(place: str) -> Iterator[str]:
    """All that a table may call a file: "a/b/c.jpg", "b/c.jpg", "c.jpg"."""
    path = folded(os.path.abspath(place).replace(os.sep, "/").lstrip("/"))
    while path:
        yield path
        path = path.partition("/")[2]
