"""Tables with one row per student: scores.csv of a run, sweep.csv of a sweep."""

import math
from collections.abc import Sequence

from mdw_jax.io.checksums import DamagedError, read_verified
from mdw_jax.io.files import parse_csv

SCORES = "scores.csv"
RANKS = (1, 5, 10)
METRICS = (*(f"{side}@{k}" for side in ("IR", "TR") for k in RANKS), "r_mean")  # recall, text -> image first; in %


class OlderVersionError(ValueError):
    """A table of students that an older version of this package wrote; the message goes on after the file's name."""


def read_scores(path, columns: Sequence[str] = ("preset", "set", "select_on"), numbers: Sequence[str] = ()
                ) -> list[dict]:
    """Read a table of students.

    Args:
        path: a CSV.
        columns: the columns it must have, with something in every row.
        numbers: the columns whose cells must be finite numbers, and are returned as such.

    Returns:
        One dict per student; all other cells as text, "" where a row lacks one.

    Raises:
        OSError: the file cannot be read.
        OlderVersionError: an older version wrote it, with other columns.
        ValueError: it is no such table; the message goes on after the file's name.
    """
    try:
        names, rows = parse_csv(read_verified(path))
    except DamagedError:
        raise
    except ValueError as error:
        raise ValueError(f"is not a CSV ({error}); give one that `mdw sweep` or `mdw evaluate` wrote") from None
    if "protocol" in names and "select_on" not in names and {"preset", "set"} <= set(names):
        raise OlderVersionError("was made by an older version of mdw-jax; run mdw again in another directory")
    missing = [name for name in (*columns, *numbers) if name not in names]
    if missing:
        raise ValueError("is not a table of students such as mdw sweep (sweep.csv) and mdw run (scores.csv) write: it has "
                         f"no column '{missing[0]}'; give another")
    if not rows:
        raise ValueError("holds no rows yet; finish a cell of the sweep, or evaluate the run")
    if any(row[name] == "" for row in rows for name in columns):
        raise ValueError("is not a table of students: cells are missing; give another")
    return [{**row, **{name: _number(row, name) for name in numbers}} for row in rows]


def _number(row: dict[str, str], name: str) -> float:
    try:
        value = float(row[name])
    except ValueError:
        value = math.nan
    if not math.isfinite(value):
        raise ValueError(f"holds '{row[name]}' as {name}; give a table of finite numbers")
    return value
