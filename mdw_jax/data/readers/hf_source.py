"""Where data sets of the `datasets` library lie: on the Hub, in directories, in Parquet and Arrow files."""

import glob
import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path

from mdw_jax.data.decoding import reason
from mdw_jax.data.problems import quoted
from mdw_jax.data.readers.sidecar import split_called
from mdw_jax.data.tables import arrow_rows
from mdw_jax.data.tables.arrow_rows import ARROW_FILE, ARROW_STREAM, PARQUET
from mdw_jax.data.tables.columns import is_image_file
from mdw_jax.errors import UserError

_BATCH = 10_000  # rows that are taken out of a table at a time
_UNNAMED = "unnamed"  # the split of files whose names say none, where those of others do


def library():
    try:
        import datasets  # an optional dependency, and slow to import
    except ImportError as error:
        raise UserError("the reader 'hf' needs the datasets library: pip install 'mdw-jax[datasets]'.") from error
    return datasets


def load(source: str, options: tuple[str, str, str | None], notes: list[str]) -> Mapping:
    """{split: Dataset} of `source`, of any of its kinds; `options` are config, revision and cache."""
    datasets = library()
    config, revision, cache = options
    directory = Path(source)
    _check_local(source)
    try:
        if (directory / "dataset_dict.json").is_file() or (directory / "state.json").is_file():
            loaded = datasets.load_from_disk(source)
            return loaded if isinstance(loaded, Mapping) else {"train": loaded}
        if files := _files(source):
            builder = datasets.load_dataset_builder(_form(files), data_files=_by_split(files), cache_dir=cache)
        else:
            builder = datasets.load_dataset_builder(source, config or None, revision=revision or None, cache_dir=cache)
        builder.download_and_prepare()
        loaded = builder.as_dataset()
    except UserError:
        raise
    except Exception as error:  # the library raises a dozen kinds, its own and those of network and file systems
        cause = f"; {reason(error.__cause__)}" if error.__cause__ else ""
        raise UserError(f"cannot load the data set '{source}' ({reason(error)}{cause}); check its name or path, and the "
                        "network if it is on the Hub.") from error
    if directory.is_dir():
        notes += _not_loaded(builder, loaded, directory)
    return loaded


def _check_local(source: str) -> None:
    """Raises UserError for local files that unpack to far more than they are, which the library would do."""
    places = sorted(Path(source).rglob("*")) if os.path.isdir(source) else map(Path, glob.glob(source, recursive=True))
    for path in places:
        if path.suffix in (".parquet", ".arrow") and path.is_file():
            arrow_rows.check(path, f"'{path}'")


def _files(source: str) -> list[Path]:
    """The Parquet or Arrow files that a path or a glob pattern names; [] if it names something else."""
    if os.path.isfile(source):
        return [Path(source)]
    if files := [Path(path) for path in sorted(glob.glob(source, recursive=True)) if os.path.isfile(path)]:
        return files
    if source.endswith((".parquet", ".arrow")) or (glob.has_magic(source) and not os.path.exists(source)):
        raise FileNotFoundError(f"there is no such file: {source}")
    return []


def _form(files: Sequence[Path]) -> str:
    """The module of the library that reads these files, by their first bytes."""
    forms = {}
    for path in files:
        with open(path, "rb") as file:
            start = file.read(6)
        form = "parquet" if start[:4] == PARQUET else "arrow" if (
            start == ARROW_FILE or start[:4] == ARROW_STREAM) else ""
        if not form:
            raise UserError(f"'{path}' is neither a Parquet nor an Arrow file; read tables of text with data.name=folder "
                            "and tar shards with data.name=webdataset.")
        forms[form] = path
    if len(forms) > 1:
        raise UserError(f"'{forms['parquet']}' is a Parquet file and '{forms['arrow']}' an Arrow file; give files of one "
                        "form.")
    return next(iter(forms))


def _by_split(files: Sequence[Path]) -> dict[str, list[str]]:
    """{split: files}, the splits as the names of files (or of their directories) say; all train where none does."""
    named: dict[str, list[str]] = {}
    for path in files:
        words = [*re.split(r"[^a-z]+", path.name.lower()), path.absolute().parent.name.lower()]
        named.setdefault(next((word for word in words if split_called(word)), _UNNAMED), []).append(str(path))
    return {"train": named[_UNNAMED]} if list(named) == [_UNNAMED] else named


def _not_loaded(builder, tables: Mapping, directory: Path) -> list[str]:
    """What of a directory the library passes over without a word."""
    used = {os.path.realpath(file) for files in (builder.config.data_files or {}).values() for file in map(str, files)}
    notes = []
    endings = {Path(file).suffix for file in used}
    passed = sorted(path.relative_to(directory).as_posix() for path in directory.rglob("*")
                    if path.suffix in endings and path.is_file() and os.path.realpath(path) not in used
                    and not any(part.startswith((".", "__")) for part in path.relative_to(directory).parts))
    if passed:
        notes.append(f"in '{directory}', {len(passed)} file{'s' * (len(passed) != 1)} of no split: not read (the first: "
                     f"{quoted(passed[0])}); name the files to read as train-*, validation-* and test-*.")
    if builder.name == "imagefolder" and len(images := {file for file in used if is_image_file(file)}):
        listed_images = set()
        for table in tables.values():
            for batch in table.select_columns(["image"]).with_format("arrow").iter(_BATCH):
                listed_images |= {os.path.realpath(cell["path"]) for cell in batch.column(0).to_pylist()
                                  if cell and cell["path"]}
        if missing := len(images - listed_images):
            notes.append(f"in '{directory}', {missing} image file{'s' * (missing != 1)} in no row of the metadata: "
                         "not read.")
    return notes
