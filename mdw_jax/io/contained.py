"""Paths inside a folder that may be a stranger's: none that lead out of it, by `..`, an absolute name or a link."""

from pathlib import Path

from mdw_jax.errors import UserError


def inside(folder, place="") -> Path:
    """A path in a folder, refused where it leads out.

    Args:
        folder: the folder; it may itself be reached by a link.
        place: a path relative to it, as a file of the folder names it.

    Raises:
        UserError: it lies outside once all links are followed, or cannot be followed.
    """
    folder = Path(folder)
    path = folder / place
    try:
        contained = path.resolve().is_relative_to(folder.resolve())
    except (OSError, RuntimeError, ValueError):  # a circle of links, a null byte
        contained = False
    if not contained:
        raise UserError(f"'{path}' leads out of '{folder}', and nothing outside of a run folder is read for it; copy it "
                        "there if you trust it.")
    return path


def all_inside(folder, place="") -> Path:
    """`inside`, for a directory and the files in it."""
    path = inside(folder, place)
    if path.is_dir():
        for entry in path.iterdir():
            if entry.is_symlink():
                inside(folder, entry.relative_to(folder))
    return path
