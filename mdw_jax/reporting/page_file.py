"""Where pages are written. A page is replaced by a newer one of the same run alone: any other is kept under a new name."""

import hashlib
from collections.abc import Sequence
from pathlib import Path

from mdw_jax.config.sections import config_digest
from mdw_jax.errors import UserError
from mdw_jax.reporting import html
from mdw_jax.reporting.run_files import Run


def mark(runs: Sequence[Run]) -> str:
    """What a page says of its runs: for each a digest of its config without `run.presets`, and its presets.

    The config that several calls of one run share may name more presets each time; its scores belong to all of them.
    """
    return " ".join(f"{_digest(run)}:{','.join(sorted(run))}" for run in runs)


def _digest(run: Run) -> str:
    settings = {name: value for name, value in run.config["run"].items() if name != "presets"}
    return config_digest({**run.config, "run": settings})[:16]


def keep_other(path: Path, new_mark: str, ours: bool) -> Path | None:
    """Rename what is at `path` unless it is an older page of the same runs, with no preset that the new one lacks.

    Args:
        path: where a page is about to be written.
        new_mark: its `mark`.
        ours: whether the path is one of this package's own (index.html of a run), where any file may be moved away.
            Elsewhere a file that is no page is refused.

    Returns:
        The new name of the older file; None if there was none to keep.

    Raises:
        UserError: there is a file that is no page, and the path is not `ours`.
        OSError: it cannot be read or renamed.
    """
    if not path.is_file():
        return None
    old_mark = html.mark_of(path)
    if old_mark is not None and _covers(new_mark, old_mark):
        return None
    if old_mark is None and not ours:
        raise UserError(f"'{path}' is not a page that mdw wrote, and would be overwritten; choose another --out, or delete "
                        "it.")
    name = hashlib.sha256(path.read_bytes()).hexdigest()[:8]
    return path.rename(path.with_name(f"{path.stem}-{name}{path.suffix}"))


def _covers(new: str, old: str) -> bool:
    """Whether a page shows the same runs as an older one, and at least the presets of it."""
    runs = [[part.partition(":")[::2] for part in mark.split()] for mark in (new, old)]
    return len(runs[0]) == len(runs[1]) and all(
        a[0] == b[0] and set(a[1].split(",")) >= set(b[1].split(",")) for a, b in zip(*runs, strict=True))
