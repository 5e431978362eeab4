"""Messages for paths one level too high or too low: which of the things that runs write a path is or holds."""

import os
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from mdw_jax.errors import UserError
from mdw_jax.io.run_lock import is_run_lock

_OF_A_RUN = ("environment.json", "scores.csv", "cache", "noise", "filter", "experts", "distilled")  # beside config.json
_MAX_CHARACTERS = 100  # of a path that is too long, in a message
MAX_NAMED, _MAX_VISITED, _MAX_PARENTS = 3, 2000, 5  # paths in a message; entries and parents looked at


class _Kind(NamedTuple):
    """One kind of directory that runs write.

    Attributes:
        noun: its name in messages.
        matches: whether a directory is one.
        below: patterns of where such directories lie below others.
    """

    noun: str
    matches: Callable[[Path], bool]
    below: tuple[str, ...]


def _is_set(path: Path) -> bool:
    return (path / "distilled.safetensors").is_file() and (path / "card.json").is_file()


def _is_trajectory(path: Path) -> bool:
    return (path / "snapshots").is_dir() and (path / "header").exists()


def _is_run(path: Path) -> bool:
    if (path / "config.json").is_file() and any((path / name).exists() for name in _OF_A_RUN):
        return True
    return is_run_lock(path / ".lock")


KINDS = {
    "run": _Kind("run directory", _is_run, ("*", "*/*")),
    "set": _Kind("distilled set", _is_set, ("set_*", "*/set_*", "distilled/*/set_*", "*/distilled/*/set_*", "*-*",
                                            "export/*")),
    "trajectory": _Kind("trajectory", _is_trajectory, ("net_*", "*/net_*", "experts/*/net_*", "*/experts/*/net_*")),
}


def refuse_unusable_path(path) -> None:
    """Raise UserError for a path that the system cannot look up, such as one that is too long."""
    try:
        os.stat(os.path.join(path, "distilled.safetensors"))  # the longest name that is read in it
    except (FileNotFoundError, NotADirectoryError):
        return
    except (OSError, ValueError) as error:
        text, reason = str(path), getattr(error, "strerror", None) or str(error)
        shown = text if len(text) <= _MAX_CHARACTERS else f"{text[:_MAX_CHARACTERS]}..."
        raise UserError(f"the path '{shown}' cannot be opened ({reason}); check the path.") from None


def wrong_level(path, kind: str) -> str | None:
    """One sentence on what `path` is, and which path was probably meant.

    Args:
        path: a local path that is not what the caller wants.
        kind: what the caller wants: a key of `KINDS`.

    Returns:
        The sentence; None where there is nothing helpful to say.
    """
    path, wanted = Path(path), KINDS[kind]
    if not path.exists() or wanted.matches(path):
        return None
    for parent in list(path.parents)[:_MAX_PARENTS]:
        if wanted.matches(parent):
            return f"'{path}' lies inside the {wanted.noun} '{parent}'; give that."
    actual = next((other.noun for other in KINDS.values() if other.matches(path)), None)
    inside = [str(entry) for entry in _inside(path, wanted)]
    if inside:
        more = ", ..." if len(inside) > MAX_NAMED else ""
        names = ", ".join(inside[:MAX_NAMED]) + more
        if actual:
            return f"'{path}' is a {actual}; its {_plural(wanted.noun)} are {names}: give one of them."
        return f"'{path}' is not a {wanted.noun}, but holds {_plural(wanted.noun)}: {names}; give one of them."
    return f"'{path}' is a {actual}, not a {wanted.noun}; check the path." if actual else None


def _inside(path: Path, wanted: _Kind) -> list[Path]:
    """One more than `MAX_NAMED` of the wanted things below a path, at most."""
    matches: dict[Path, None] = {}
    visited = 0
    for pattern in wanted.below if path.is_dir() else ():
        for entry in sorted(path.glob(pattern)):
            visited += 1
            if visited > _MAX_VISITED or len(matches) > MAX_NAMED:
                return list(matches)
            if wanted.matches(entry):
                matches[entry] = None
    return list(matches)


def _plural(noun: str) -> str:
    return noun.removesuffix("y") + "ies" if noun.endswith("y") else f"{noun}s"
