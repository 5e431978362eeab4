"""`mdw mismatches RUN`: the suspected mismatches of a run's training pairs, as a CSV and in words."""

import contextlib
import itertools
from pathlib import Path

from mdw_jax.analysis.mismatches.find import judge, quality, suggest, suspected
from mdw_jax.analysis.mismatches.rows import COLUMNS, csv_rows, terminal_rows
from mdw_jax.analysis.mismatches.words import nothing_listed, quality_in_words, rate_in_words, threshold_in_words
from mdw_jax.io.checksums import listed_when_written
from mdw_jax.io.spreadsheet import refuse_other, write_spreadsheet
from mdw_jax.pipeline.announce import announce_source
from mdw_jax.pipeline.reopen import reopen, trained_preset
from mdw_jax.reporting.run_list import is_in_use
from mdw_jax.reporting.text import aligned

NAME = "mismatches.csv"
_SHOWN = 10  # of the list, in the terminal


def mismatches_command(directory: str, out: str | None, preset: str, by: str, below: float, top: int) -> None:
    """Write the list of suspected mismatches and print what it is.

    Args:
        directory: a run directory with finished experts.
        out: the CSV; None: mismatches.csv in the run directory.
        preset: whose experts; "": see `trained_preset`.
        by: "division" or "similarity": see `judge`.
        below: list pairs whose probability of belonging together is below it.
        top: at most so many; 0: all.

    Raises:
        UserError: the directory is no run, holds no finished experts, or the CSV cannot be written, or
            would replace a file that is no such list.
    """
    path = Path(out) if out else Path(directory) / NAME
    refuse_other(path, COLUMNS)  # before anything is computed
    opened = reopen(directory)
    announce_source(opened.prepared.pairs)
    trained, train = trained_preset(opened, preset), opened.prepared.pairs.train
    judged = judge(trained, opened.prepared, by)
    print(f"{len(judged.image_of):,} training pairs of {len(train.images):,} images, judged by {judged.networks} expert "
          f"networks of the preset {judged.preset}.")
    rows = suspected(judged, below, top)
    if not len(rows):
        print(f"{nothing_listed(judged, below)}\n{rate_in_words(judged, 0)}\nNothing was written.")
        return
    print(threshold_in_words(judged, below, len(rows), top))
    print(rate_in_words(judged, len(rows)))
    suggestions = suggest(judged, rows)
    found = quality(judged, rows, suggestions)
    if found is not None and found.recall is not None:
        print(quality_in_words(found))
    # A place of the user's own gets no SHA256SUMS, and that of a run where a process is at work is not ours to write.
    listed = out is None and not is_in_use(Path(directory))
    with listed_when_written(path) if listed else contextlib.nullcontext():
        count = write_spreadsheet(path, COLUMNS, csv_rows(judged, train, rows, suggestions))
    print(f"\n{aligned(terminal_rows(list(itertools.islice(csv_rows(judged, train, rows, suggestions), _SHOWN))))}\n")
    print(f"list: {path} ({count:,} rows; UTF-8 with a byte order mark, text that begins like a formula has an apostrophe)")
