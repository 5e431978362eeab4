"""Tables of hand-made CSVs with known means."""

import csv

import pytest

from mdw_jax.errors import UserError
from mdw_jax.reporting import figures
from mdw_jax.reporting.result_table import read_rows, table, table_command

FIXED = {"noise.protocol": "image", "select_on": "val", "lr_scale": "0.3", "commit": "abc", "run.seed": "0"}


def rows(preset, rate, sets, **more):
    """One row per student: sets is a list of lists of r_mean."""
    return [{"preset": preset, "noise.rate": rate, "set": index, "student": student, "r_mean": value, **FIXED,
             **{name.replace("__", "."): value for name, value in more.items()}}
            for index, students in enumerate(sets) for student, value in enumerate(students)]


@pytest.fixture
def write(tmp_path):
    """Writes rows to a CSV; returns its path."""
    def write(data, name="sweep.csv"):
        with open(tmp_path / name, "w", newline="") as file:
            writer = csv.DictWriter(file, dict.fromkeys(key for row in data for key in row))
            writer.writeheader()
            writer.writerows(data)
        return str(tmp_path / name)
    return write


GRID = [*rows("random", "0.4", [[1, 3], [5, 7]]), *rows("mdw", "0.4", [[10, 10], [14, 14]]),
        *rows("full", "0.4", [[50, 52]]), *rows("random", "0.0", [[2, 2], [2, 2]]),
        *rows("mdw", "0.0", [[1, 1], [1, 2]])]


def test_means_and_deviations_over_students_and_sets(write):
    assert table(read_rows([write(GRID)])).splitlines() == [
        "| preset | noise.rate = 0 | noise.rate = 0.4 |",
        "| :-- | :-- | :-- |",
        "| random | **2.00 +- 0.00** | 4.00 +- 2.58 |",
        "| mdw | 1.25 +- 0.50 | **12.00 +- 2.31** |",
        "| full | - | 51.00 +- 1.41 |",
        "",
        "r_mean: mean +- standard deviation over sets x students; each 2 sets x 2 students, except 2 networks "
        "(preset = full); select_on val; run.seed 0; commit abc.",
    ]


def test_an_interval_takes_sets_as_the_unit(write):
    # sets have means 2, 6, 7: mean 5, deviation sqrt(7), and 95 % of t with 2 degrees of freedom lie within 4.303
    text = table(read_rows([write(rows("mdw", "0.4", [[1, 3], [5, 7], [7, 7]]) + GRID[8:10])]), interval=True)
    assert f"| mdw | **5.00 +- {4.302653 * (7 / 3) ** 0.5:.2f}** |" in text
    assert "| full | 51.00 |" in text and "t-interval over sets" in text


def test_a_score_at_the_edge_of_its_search_is_marked_and_its_column_is_no_setting(write):
    data = [*rows("random", "0.4", [[1, 3]], at_edge=""), *rows("mdw", "0.4", [[9, 9], [9, 9]], at_edge="steps")]
    data[-1]["at_edge"] = ""  # of one set alone
    text = table(read_rows([write(data)]))
    assert "| random | 2.00 +- 1.41 |" in text and "| mdw | **9.00 +- 0.00 (edge)** |" in text
    assert text.splitlines()[-1].count("(edge): the best number of steps") == 1
    assert "(edge)" not in table(read_rows([write(data[:2])]))


def test_sets_of_several_seeds_are_several_sets(write):
    data = rows("mdw", "0.4", [[1, 1]]) + rows("mdw", "0.4", [[3, 3]], run__seed="1")
    text = table(read_rows([write(data)]), interval=True)
    assert f"2.00 +- {12.706205 * 2**0.5 / 2**0.5:.2f}" in text
    assert "each 2 sets x 2 students; select_on val; run.seed 0, 1;" in text


def test_columns_that_vary_inside_a_cell_are_an_error(write):
    data = [row for pairs in (8, 100, 20) for row in rows("mdw", "0.4", [[pairs]], distill__pairs=pairs)]
    read = read_rows([write(data)])
    with pytest.raises(UserError, match=r"^distill.pairs varies \(8, 20, 100\) inside the cell preset = mdw, "
                                        r"noise.rate = 0.4; add it: --rows preset,distill.pairs\.$"):
        table(read)
    lines = table(read, ["preset", "distill.pairs"]).splitlines()[2:5]
    assert [line.split(" | ")[1] for line in lines] == ["8", "20", "100"]
    assert "| preset | distill.pairs = 8 | distill.pairs = 20 | distill.pairs = 100 |" in table(
        read, columns=["distill.pairs"])
    assert "| distill.pairs | r_mean |" in table(read, ["distill.pairs"], [])


def test_all_columns_that_vary_are_named_at_once(write):
    data = [*rows("mdw", "0", [[1]], distill__pairs=8, model__tower="convnet"),
            *rows("mdw", "0.4", [[1]], distill__pairs=8, model__tower="convnet", text__dim=4),
            *rows("mdw", "0.4", [[2]], distill__pairs=20, model__tower="convnet", text__dim=4),
            *rows("vld", "0.4", [[1]], distill__pairs=20, model__tower="convnet", text__dim=4),
            *rows("vld", "0.4", [[2]], distill__pairs=20, model__tower="vit", text__dim=4)]
    read = read_rows([write(data)])
    with pytest.raises(UserError, match=r"^distill.pairs \(8, 20\) and model.tower \(convnet, vit\) vary inside cells, "
                                        r"such as preset = mdw, noise.rate = 0.4; add them: --rows "
                                        r"preset,distill.pairs,model.tower\.$"):
        table(read)
    assert len(table(read, ["preset", "distill.pairs", "model.tower"]).splitlines()) == 2 + 4 + 2


def test_selection_on_test_is_labeled_and_beats_no_row_selected_on_val(write):
    data = rows("mdw", "0.4", [[20, 22]], select_on="test") + rows("random", "0.4", [[10, 10]])
    text = table(read_rows([write(data)]))
    assert "| mdw | 21.00 +- 1.41 (optimistic) |" in text and "| random | **10.00 +- 0.00** |" in text
    assert "select_on test, val (optimistic: with test, the best of the test evaluations);" in text
    assert "| mdw | **21.00 +- 1.41 (optimistic)** |" in table(read_rows([write(data[:2])]))
    assert "optimistic" not in table(read_rows([write(GRID)]))


def test_counts_name_the_exceptions(write):
    data = [*rows("random", "0", [[1], [1]]), *rows("random", "0.4", [[1]]), *rows("mdw", "0", [[1], [1]]),
            *rows("mdw", "0.4", [[1], [1]]), *rows("infonce", "0.4", [[1, 2], [3]]),
            *(row for rate in ("0", "0.2", "0.4", "0.6") for row in rows("full", rate, [[1, 2]]))]
    text = table(read_rows([write(data)]))
    assert ("each 2 sets x 1 student, except 1 set x 1 student (preset = random, noise.rate = 0.4), "
            "2 sets with 3 students in all (preset = infonce), 2 networks (preset = full);") in text


def test_several_files_are_united(write):
    more = rows("lors", "0.40", [[3, 5]], experts__recipe="dtcl", commit="def")
    files = [write(GRID), write(more, "more.csv"), write(GRID[:5], "again.csv")]  # read twice, counted once
    text = table(read_rows(files))
    assert "| lors | - | 4.00 +- 1.41 |" in text
    assert "| random | **2.00 +- 0.00** | 4.00 +- 2.58 |" in text and "except 2 networks (preset = full)" in text
    assert "commit abc, def." in text
    with pytest.raises(UserError, match="more.csv' and '.*sweep.csv' disagree about student 0 of set 0 of "):
        read_rows([write(GRID), write(rows("random", "0.4", [[9]]), "more.csv")])


def test_other_metrics(write):
    data = [{**row, "bytes": "" if row["preset"] == "full" else 800} for row in GRID]
    text = table(read_rows([write(data)]), metric="bytes")
    assert "| mdw | 800 | 800 |" in text and "| full | - | - |" in text  # none is the best


def test_out(write, tmp_path, capsys):
    path = write(GRID)
    table_command([path], ["preset"], ["noise.rate"], "r_mean", False, None, None)
    printed = capsys.readouterr().out
    table_command([path], ["preset"], ["noise.rate"], "r_mean", False, str(tmp_path / "table.md"), None)
    assert (tmp_path / "table.md").read_text() == printed == table(read_rows([path]))
    with pytest.raises(UserError, match="cannot write"):
        table_command([path], ["preset"], ["noise.rate"], "r_mean", False, f"{path}/table.md", None)


def test_the_scores_of_a_run_have_one_column(write, tmp_path, capsys):
    scores = [{name: value for name, value in row.items() if "." not in name and name != "commit"} for row in GRID[:8]]
    path = write(scores, "scores.csv")
    for given in (path, str(tmp_path)):  # the folder of a run
        table_command([given], ["preset"], None, "r_mean", False, None, None)
        assert "| preset | r_mean |" in (printed := capsys.readouterr().out) and "| random | 4.00 +- 2.58 |" in printed
    write(GRID)  # the folder of a sweep
    table_command([str(tmp_path)], ["preset"], None, "r_mean", False, None, None)
    assert "| preset | noise.rate = 0 | noise.rate = 0.4 |" in capsys.readouterr().out
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match="a directory without sweep.csv .* or scores.csv"):
        read_rows([tmp_path / "empty"])


@pytest.mark.parametrize("options, words", [
    ({"rows": ["presets"]}, "no column 'presets'; did you mean preset?"),
    ({"metric": "qqqq"}, "no column 'qqqq'; there are preset, noise.rate, "),
    ({"metric": "commit"}, "column 'commit' holds no numbers"),
    ({"metric": "empty"}, "column 'empty' is empty in every row"),
    ({"rows": ["preset", "noise.rate"]}, "'noise.rate' is named twice"),
    ({"rows": []}, "--rows names no column"),
])
def test_mistakes_in_what_is_asked(write, options, words):
    with pytest.raises(UserError, match=words):
        table(read_rows([write([{**row, "empty": ""} for row in GRID])]), **options)


@pytest.mark.parametrize("contents, words", [
    (None, "there is no file"),
    (b"", "no column 'preset'"),
    (b"preset,set,student\nmdw,0,0\n", "no column 'select_on'"),
    (b"preset,set,student,select_on\n", "holds no rows yet"),
    (b"preset,set,student,select_on\nmdw,0,0,val,1\n", "longer than its header"),
    (b"\x89PNG\r\n\x1a\n\xff\xff", "is not a CSV"),
    (b'preset,"set\n', "is not a CSV"),
])
def test_mistakes_in_files(tmp_path, contents, words):
    if contents is not None:
        (tmp_path / "t.csv").write_bytes(contents)
    with pytest.raises(UserError, match=f"t.csv'.*{words}|{words}.*t.csv'"):
        read_rows([tmp_path / "t.csv"])


def test_a_figure_has_a_line_a_preset_with_intervals_and_wants_numbers_across(write, tmp_path, monkeypatch):
    drawn = {}
    monkeypatch.setattr(figures, "curves", lambda series, path, *words: drawn.update(series))
    table_command([write(GRID)], ["preset"], ["noise.rate"], "r_mean", False, str(tmp_path / "t.md"), "t.png")
    x, mean, half = drawn["MDW"]
    assert x == (0.0, 0.4) and mean == (1.25, 12.0)
    assert half[1] == pytest.approx(12.706 * 2, rel=1e-3)  # sets 10 and 14: deviation sqrt(8), t(1) = 12.706
    with pytest.raises(UserError, match="one column of numbers"):
        table_command([write(GRID)], ["noise.rate"], ["preset"], "r_mean", False, None, "t.png")


@pytest.mark.parametrize(("steps", "shown", "count"), [
    ("", "| mine:preset | 91.00 +- 1.41 |", "except 2 networks (preset = mine:preset)"),
    ("200", "| mine:preset | **91.00 +- 1.41** |", "each 1 set x 2 students;")])
def test_a_preset_from_outside_without_students_is_a_reference(write, steps, shown, count):
    data = [*rows("random", "0.4", [[1, 3]], steps="200"),
            *rows("mine:preset", "0.4", [[90, 92]], steps=steps, lr_scale="0.3" if steps else "")]
    text = table(read_rows([write(data)]))
    assert shown in text and count in text and ("**2.00" in text) == (steps == "")


def test_control_characters_are_not_printed(write, capsys):
    table_command([write(rows("\x1b[31mred\u202e", "0.4", [[1, 3]], commit="\x07abc"))], ["preset"], ["noise.rate"],
                  "r_mean", False, None, None)
    out = capsys.readouterr().out
    assert all(line.isprintable() for line in out.splitlines()) and "| ?[31mred? |" in out and "commit ?abc." in out


def test_natural_noise_is_of_an_unknown_rate_and_its_estimate_is_in_the_footer(write):
    natural = {"noise__protocol": "natural", "estimated_rate": "0.125", "estimated_low": "0.1", "estimated_high": "0.15"}
    text = table(read_rows([write([*rows("mdw", "", [[10, 10]], **natural), *rows("random", "", [[1, 3]], **natural | {
        "estimated_rate": "", "estimated_low": "", "estimated_high": ""})])]))
    assert "| preset | noise.rate = unknown |" in text
    assert text.count("natural noise, estimated 12.5% [10.0%, 15.0%]") == 1
    assert "natural" not in table(read_rows([write(GRID)]))
