"""Which pages a newer one replaces."""

import json
import shutil

import pytest
from test_run_report import change_report, make_run

from mdw_jax import cli
from mdw_jax.config.sections import config_digest
from mdw_jax.reporting.html import mark_of
from mdw_jax.reporting.page_file import mark
from mdw_jax.reporting.run_files import Run
from mdw_jax.reporting.run_report import write_report


def with_config(folder, **changes):
    """Change settings of a run, as another `mdw run` in its directory would."""
    config = json.loads((folder / "config.json").read_text())
    for key, value in changes.items():
        section, name = key.split("__")
        config[section][name] = value
    (folder / "config.json").write_text(json.dumps(config))
    about = json.loads((folder / "report.json").read_text())
    (folder / "report.json").write_text(json.dumps(about | {"config": config_digest(config)}))


def pages(folder):
    return sorted(path.name for path in folder.glob("index*.html"))


def test_a_newer_page_of_the_same_run_replaces_the_older(tmp_path, capsys):
    folder = make_run(tmp_path / "run", pairs=12)
    for _ in range(2):
        write_report([Run(folder)], folder / "index.html")
    with_config(folder, run__presets=["random", "mdw"])  # more or fewer presets are the same run
    write_report([Run(folder)], folder / "index.html")
    assert pages(folder) == ["index.html"] and capsys.readouterr().out == ""
    assert mark_of(folder / "index.html") == mark([Run(folder)])


def test_a_page_of_more_presets_or_of_another_config_is_kept(tmp_path, capsys):
    folder = make_run(tmp_path / "run", pairs=12)
    write_report([Run(folder)], folder / "index.html")
    first = (folder / "index.html").read_bytes()
    change_report(folder, lambda presets: presets.__delitem__(2))
    write_report([Run(folder)], folder / "index.html")
    [kept] = [name for name in pages(folder) if name != "index.html"]
    assert (folder / kept).read_bytes() == first and f"kept:   {folder / kept} " in capsys.readouterr().out
    with_config(folder, run__seed=1)
    write_report([Run(folder)], folder / "index.html")
    assert len(pages(folder)) == 3


def test_a_file_that_is_no_page_is_kept_in_the_run_and_refused_elsewhere(tmp_path, capsys):
    folder = make_run(tmp_path / "run", pairs=12)
    (folder / "index.html").write_text("mine")
    write_report([Run(folder)], folder / "index.html")
    assert sorted((folder / name).read_text()[:4] for name in pages(folder)) == ["<!DO", "mine"]
    (tmp_path / "notes.html").write_text("mine")
    capsys.readouterr()
    assert cli.main(["report", str(folder), "--out", str(tmp_path / "notes.html")]) == 2
    assert "is not a page that mdw wrote, and would be overwritten; choose another --out" in capsys.readouterr().err
    assert (tmp_path / "notes.html").read_text() == "mine"


@pytest.mark.parametrize("count", [1, 2])
def test_a_page_of_several_runs_is_another_page_than_that_of_one(tmp_path, count):
    runs = [make_run(tmp_path / "first", pairs=12)]
    runs.append(tmp_path / "second")
    shutil.copytree(*runs)
    with_config(runs[1], run__seed=1)
    out = tmp_path / "index.html"
    write_report([Run(runs[0])], out)
    write_report([Run(path) for path in runs[:count]], out)
    assert len(pages(tmp_path)) == count
