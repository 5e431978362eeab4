"""`mdw table`: Markdown tables from tidy CSVs of sweeps and runs, with one row per student."""

import difflib
import math
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np

from mdw_jax.errors import UserError
from mdw_jax.io.checksums import DamagedError
from mdw_jax.io.files import write_atomically
from mdw_jax.io.scores import METRICS, SCORES, read_scores
from mdw_jax.reporting.noise_text import estimate_in_words
from mdw_jax.reporting.preset_info import preset_info
from mdw_jax.reporting.stats import deviation, half_interval
from mdw_jax.reporting.text import AT_EDGE, AT_EDGE_MEANS, markdown_table, plural, printable

_NEEDED = ("preset", "set", "student", "select_on")
_OPTIMISTIC = "(optimistic)"
SWEEP = "sweep.csv"


def table_command(files: Sequence[str], rows: Sequence[str], columns: Sequence[str] | None, metric: str, interval: bool,
                  out: str | None, plot: str | None) -> None:
    """Print the table of these CSVs, or write it to the file `out`; with `plot`, also draw it as a PNG there.

    `columns` None: noise.rate, where the CSVs have it (a run's scores.csv, of one rate, has not).
    """
    data = read_rows(files)
    if columns is None:
        columns = ["noise.rate"] if "noise.rate" in data[0] and "noise.rate" not in rows else []
    text = table(data, rows, columns, metric, interval)
    if plot is not None:
        try:
            draw(data, rows, columns, metric, plot)
        except OSError as error:
            raise UserError(f"cannot write '{plot}' ({error.strerror}); choose another --plot.") from None
        print(f"figure: {plot}")
    if out is None:
        print(text, end="")
        return
    try:
        write_atomically(out, text.encode())
    except OSError as error:
        raise UserError(f"cannot write '{out}' ({error.strerror}); choose another --out.") from None
    print(f"table: {out}")


def read_rows(files: Iterable) -> list[dict[str, str]]:
    """Read several tables of students as one.

    Args:
        files: paths of CSVs with the columns preset, set, student and select_on, or of the folders of runs or sweeps.

    Returns:
        The rows as text, each with the columns of all files; a row that occurs twice is kept once.

    Raises:
        UserError: a file cannot be read or is not such a CSV, or two rows of the same student differ in their scores.
    """
    tables = {str(path): _read(Path(path)) for path in files}
    names = list(dict.fromkeys(name for rows in tables.values() for row in rows for name in row))
    unique: dict[tuple, tuple[str, dict, dict]] = {}
    for path, rows in tables.items():
        for row in rows:
            row = {name: row.get(name, "") for name in names}
            student = tuple((name, _canonical(row[name])) for name in names if _identifies(name))
            scores = {name: _canonical(text) for name, text in row.items() if name not in ("seconds", "commit")}
            other_path, other_scores, _ = unique.setdefault(student, (path, scores, row))
            if scores != other_scores:
                raise UserError(f"'{path}' and '{other_path}' disagree about student {row['student']} of set "
                                f"{row['set']} of preset {row['preset']}: they differ in a setting that is not a "
                                "column; tabulate them separately.")
    return [row for _, _, row in unique.values()]


def _read(path: Path) -> list[dict[str, str]]:
    if path.is_dir():
        held = [path / name for name in (SWEEP, SCORES) if (path / name).is_file()]
        if not held:
            raise UserError(f"'{path}' is a directory without {SWEEP} (of mdw sweep) or {SCORES} (of mdw run); give a "
                            "directory that has one, or a CSV.")
        path = held[0]
    try:
        return [{printable(name): printable(cell) for name, cell in row.items()} for row in read_scores(path, _NEEDED)]
    except FileNotFoundError:
        raise UserError(f"there is no file '{path}'; mdw sweep writes {SWEEP}, and mdw run {SCORES}.") from None
    except OSError as error:
        raise UserError(f"'{path}' cannot be read ({error.strerror}); give a CSV.") from None
    except DamagedError as error:
        raise UserError(f"'{path}' is damaged, or was edited in its place ({error}); give the command that wrote it again, "
                        "or tabulate a copy elsewhere if it is as you mean it.") from None
    except ValueError as error:
        raise UserError(f"'{path}' {error}.") from None


def _is_setting(name: str) -> bool:
    """Whether a column is a choice that must not vary inside a cell; seeds may."""
    return name in ("preset", "select_on") or ("." in name and not _is_seed(name))


def _is_seed(name: str) -> bool:
    return name.endswith(".seed")


def _identifies(name: str) -> bool:
    return name in ("set", "student") or _is_setting(name) or _is_seed(name)


def table(data: list[dict], rows: Sequence[str] = ("preset",), columns: Sequence[str] = ("noise.rate",),
          metric: str = "r_mean", interval: bool = False) -> str:
    """A Markdown table of the mean and spread of a metric in each cell, and a line on what they are computed over.

    The best recall of each column is bold; reference presets do not compete.

    Args:
        data: as from `read_rows`.
        rows: names of CSV columns whose values name the rows of the table.
        columns: names of CSV columns whose values name its columns; may be empty.
        metric: a CSV column of numbers.
        interval: show half the 95 % t-interval of the mean over sets, the independent unit, instead of the standard
            deviation over all students of all sets.

    Raises:
        UserError: an unknown column, a metric without numbers, or a setting that varies inside a cell.
    """
    _check_names(data, rows, columns, metric)
    cells = {}
    for row in data:
        place = tuple(tuple(_canonical(row[name]) for name in names) for names in (rows, columns))
        cells.setdefault(place, []).append(row)
    _check_settings(cells, rows, columns)
    numbers = {place: _mean_and_spread(group, metric, interval) for place, group in cells.items()}
    if all(value is None for value in numbers.values()):
        raise UserError(f"column '{metric}' is empty in every row; choose another --metric.")
    down, across = (_ordered(place[axis] for place in cells) for axis in (0, 1))
    best = {at: _best([(down_at, at) for down_at in down], cells, numbers, metric) for at in across}
    heads = {at: _label(columns, at) or metric for at in across}
    lines = []
    for down_at in down:
        line = {name: value or "-" for name, value in zip(rows, down_at, strict=True)}
        for at, head in heads.items():
            text = _shown(cells.get((down_at, at)), numbers.get((down_at, at)), metric)
            line[head] = f"**{text}**" if (down_at, at) in best[at] else text
        lines.append(line)
    return f"{markdown_table(lines)}\n{_footer(cells, rows, columns, metric, interval)}\n"


def _check_names(data: list[dict], rows: Sequence[str], columns: Sequence[str], metric: str) -> None:
    """Raises UserError for column names that are unknown or repeated."""
    for name in (*rows, *columns, metric):
        if name not in data[0]:
            nearest = difflib.get_close_matches(name, data[0], 1)
            raise UserError(f"there is no column '{name}'; " + (
                f"did you mean {nearest[0]}?" if nearest else f"there are {', '.join(data[0])}."))
    repeated = [name for name, count in Counter((*rows, *columns)).items() if count > 1]
    if repeated:
        raise UserError(f"'{repeated[0]}' is named twice among --rows and --columns; name it once.")
    if not rows:
        raise UserError("--rows names no column; give at least one, such as preset.")


def draw(data: list[dict], rows: Sequence[str], columns: Sequence[str], metric: str, path) -> None:
    """Write a PNG of the table: a line for each of its rows over its one column, with 95 % intervals over sets.

    Args:
        data: as from `read_rows`.
        rows: as in `table`.
        columns: one name of a CSV column of numbers.
        metric: as in `table`.
        path: the PNG file.

    Raises:
        UserError: `columns` is not one column of numbers.
    """
    cells = {}
    for row in data:
        if len(columns) != 1 or not _is_number(row[columns[0]]):
            raise UserError("a figure needs one column of numbers; give one, such as --columns noise.rate.")
        values = tuple(row[name] for name in rows)
        key = _label(rows, values) if len(rows) > 1 else preset_info(values[0]).label
        cells.setdefault(key, {}).setdefault(float(row[columns[0]]), []).append(row)
    series = {}
    for key, places in cells.items():
        points = []
        for x in sorted(places):
            if numbers := _mean_and_spread(places[x], metric, interval=True):
                points.append((x, numbers[0], math.nan if numbers[1] is None else numbers[1]))
        if points:
            series[key] = tuple(zip(*points, strict=True))
    from mdw_jax.reporting import figures  # here, because matplotlib is slow to import and a table does without it

    figures.curves(series, path, columns[0], f"{metric}, %", f"{metric} by {columns[0]}, 95 % intervals over sets")


def _is_number(text: str) -> bool:
    try:
        return math.isfinite(float(text))
    except ValueError:
        return False


def _canonical(text: str) -> str:
    """The text of a value, the same for all spellings of a number, so that 0.0 and 0 are one column."""
    try:
        return f"{float(text):.12g}" if math.isfinite(float(text)) else text
    except ValueError:
        return text


def _ordered(keys: Iterable[tuple]) -> list[tuple]:
    """Distinct keys, each part in order of first appearance, or by size where all are numbers."""
    keys = list(dict.fromkeys(keys))
    ranks = []
    for values in map(dict.fromkeys, zip(*keys, strict=True)):
        try:
            ordered = sorted(values, key=float)
        except ValueError:
            ordered = list(values)
        ranks.append({value: rank for rank, value in enumerate(ordered)})
    return sorted(keys, key=lambda key: [rank[value] for rank, value in zip(ranks, key, strict=True)])


def _label(names: Sequence[str], values: Sequence[str]) -> str:
    empty = {"noise.rate": "unknown"}  # of natural noise
    return ", ".join(f"{name} = {value or empty.get(name, '-')}" for name, value in zip(names, values, strict=True))


def _check_settings(cells: dict[tuple, list[dict]], rows: Sequence[str], columns: Sequence[str]) -> None:
    """Raises UserError, naming all of them, if settings that are no row or column vary inside a cell."""
    varying: dict[str, list[str]] = {}  # setting -> its values in the first cell where it varies
    first = None
    for place, group in cells.items():
        for name in group[0]:
            if name in varying or name in (*rows, *columns) or not _is_setting(name):
                continue
            values = _ordered((_canonical(row[name]),) for row in group)
            if len(values) > 1:
                varying[name] = [value or "-" for value, in values]
                first = place if first is None else first
    if first is None:
        return
    cell = _label((*rows, *columns), sum(first, ()))
    settings = [f"{name} ({', '.join(distinct)})" for name, distinct in varying.items()]
    option = f"--rows {','.join((*rows, *varying))}"
    if len(varying) == 1:
        name, distinct = varying.popitem()
        raise UserError(f"{name} varies ({', '.join(distinct)}) inside the cell {cell}; add it: {option}.")
    raise UserError(f"{', '.join(settings[:-1])} and {settings[-1]} vary inside cells, such as {cell}; add them: "
                    f"{option}.")


def _sets(group: list[dict]) -> dict[tuple, list[dict]]:
    """Rows by the set they belong to: distilled sets of other seeds are other sets."""
    sets = {}
    for row in group:
        sets.setdefault(tuple(row[name] for name in row if name == "set" or _is_seed(name)), []).append(row)
    return sets


def _mean_and_spread(group: list[dict], metric: str, interval: bool) -> tuple[float, float | None] | None:
    """Mean, and deviation or half-interval (None if a single value gives none); None for a cell without numbers."""
    sets = [values for rows in _sets(group).values() if (values := _numbers(rows, metric))]
    if not sets:
        return None
    # The mean over sets, as the interval is about it; the same as over students where sets have equally many.
    values = [float(np.mean(values)) for values in sets] if interval else np.concatenate(sets)
    mean = float(np.mean(values))
    if interval:
        return mean, half_interval(values)
    return mean, deviation(values)


def _numbers(rows: list[dict], metric: str) -> list[float]:
    texts = [row[metric] for row in rows if row[metric] != ""]
    try:
        numbers = [float(text) for text in texts]
        if wrong := [text for text, number in zip(texts, numbers, strict=True) if not math.isfinite(number)]:
            raise ValueError(wrong[0])
        return numbers
    except ValueError as error:
        raise UserError(f"column '{metric}' holds no numbers ({error}); choose another --metric.") from None


def _is_optimistic(group: list[dict]) -> bool:
    return group[0]["select_on"] == "test"  # as is every row of a cell


def _is_reference(group: list[dict]) -> bool:
    return not preset_info(group[0]["preset"]).has_sets(group)


def _best(places: list[tuple], cells: dict, numbers: dict, metric: str) -> list[tuple]:
    """The bold cells of one column: the best with sets. Cells selected on test do not compete with those on val."""
    if not metric.startswith(("IR@", "TR@")) and not metric.endswith("r_mean"):
        return []  # of bytes or seconds, more is not better
    competing = [place for place in places if numbers.get(place) and not _is_reference(cells[place])]
    competing = [place for place in competing if not _is_optimistic(cells[place])] or competing
    top = max((numbers[place][0] for place in competing), default=None)
    return [place for place in competing if numbers[place][0] == top]


def _is_at_edge(group: list[dict], metric: str) -> bool:
    return metric in METRICS and any(row.get("at_edge") for row in group)


def _shown(group: list[dict] | None, numbers: tuple | None, metric: str) -> str:
    if numbers is None:
        return "-"
    mean, spread = numbers
    digits = 0 if metric == "bytes" else 2
    text = f"{mean:.{digits}f}" + (f" +- {spread:.{digits}f}" if spread or spread is not None and digits else "")
    text += f" {AT_EDGE}" * _is_at_edge(group, metric)
    return f"{text} {_OPTIMISTIC}" if _is_optimistic(group) else text


def _footer(cells: dict, rows, columns, metric: str, interval: bool) -> str:
    """What the numbers are computed over: sets and students (and exceptions), selection, seeds, commits."""
    data = [row for group in cells.values() for row in group]
    facts = [f"{name} {', '.join(dict.fromkeys(row.get(name) or 'unknown' for row in data))}"
             for name in ("select_on", *filter(_is_seed, data[0]), "commit")]
    if estimates := list(filter(None, dict.fromkeys(map(_estimate, data)))):
        facts.append(f"natural noise, estimated {', '.join(estimates)}")
    if any(map(_is_optimistic, cells.values())):
        facts[0] += f" {_OPTIMISTIC[:-1]}: with test, the best of the test evaluations)"
    spread = ("half the 95 % t-interval over sets (none where there is one set)" if interval else
              "standard deviation over sets x students")
    edge = f" {AT_EDGE_MEANS}" * any(_is_at_edge(group, metric) for group in cells.values())
    return f"{metric}: mean +- {spread}; {'; '.join([_counts(cells, rows, columns), *facts])}.{edge}"


def _estimate(row: dict) -> str:
    """The estimated rate of natural noise in a row of a sweep's CSV: "38.9% [38.1%, 39.6%]"; "" where there is none."""
    texts = [row.get(name, "") for name in ("estimated_rate", "estimated_low", "estimated_high")]
    if row.get("noise.protocol") != "natural" or not all(map(_is_number, texts)):
        return ""
    return estimate_in_words(dict(zip(("eta", "low", "high"), map(float, texts), strict=True)))


def _counts(cells: dict, rows, columns) -> str:
    """The most common count, then every other one: "each 3 sets x 5 students, except 4 networks (preset = full)"."""
    counts = {place: _count(group) for place, group in cells.items()}
    distilled = [count for place, count in counts.items() if not _is_reference(cells[place])]
    usual = Counter(distilled or counts.values()).most_common(1)[0][0]
    exceptions = {}
    for down_at in dict.fromkeys(place[0] for place in counts):
        own = {place: count for place, count in counts.items() if place[0] == down_at and count != usual}
        entire_row = len(set(own.values())) == 1 and len(own) == sum(place[0] == down_at for place in counts)
        for place, count in own.items():
            where = _label(rows, down_at) if entire_row else _label((*rows, *columns), sum(place, ()))
            exceptions.setdefault(count, {})[where] = None
    others = ", ".join(f"{count} ({'; '.join(places)})" for count, places in exceptions.items())
    return f"each {usual}" + (f", except {others}" if others else "")


def _count(group: list[dict]) -> str:
    sets = _sets(group)
    students = {len(rows) for rows in sets.values()}
    if _is_reference(group):
        return plural(len(group), "network")
    if len(students) > 1:
        return f"{plural(len(sets), 'set')} with {len(group)} students in all"
    return f"{plural(len(sets), 'set')} x {plural(students.pop(), 'student')}"
