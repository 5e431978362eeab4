"""CSV files for people."""

import csv

import pytest

from mdw_jax.errors import UserError
from mdw_jax.io.spreadsheet import safe_cell, write_spreadsheet


@pytest.mark.parametrize("text", ["=1+1", "+49", "-2", "@SUM(A1)", "\tcell", "\rcell", "=cmd|' /C calc'!A0"])
def test_text_that_begins_like_a_formula(text):
    assert safe_cell(text) == f"'{text}"


@pytest.mark.parametrize("value", ["a dog", "", "a = b", -0.5, 3, None])
def test_other_cells_stay(value):
    assert safe_cell(value) == value


def test_what_is_written_is_read_back(tmp_path):
    rows = [{"caption": "=a, \"dog\"\nof Zoë", "similarity": -0.25}, {"caption": "犬", "similarity": None}]
    path = tmp_path / "new" / "list.csv"
    assert write_spreadsheet(path, ("caption", "similarity", "empty"), iter(rows)) == 2
    assert path.read_bytes().startswith(b"\xef\xbb\xbf")
    with open(path, encoding="utf-8-sig", newline="") as file:
        got = list(csv.DictReader(file))
    assert got == [{"caption": "'=a, \"dog\"\nof Zoë", "similarity": "-0.25", "empty": ""},
                   {"caption": "犬", "similarity": "", "empty": ""}]
    assert [file.name for file in path.parent.iterdir()] == ["list.csv"]


def test_a_place_that_cannot_be_written(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match="choose another place"):
        write_spreadsheet(tmp_path / "file" / "list.csv", ("a",), [])


def test_an_interrupted_list_leaves_the_old_one(tmp_path):
    def rows():
        yield {"a": 1}
        raise KeyboardInterrupt

    path = tmp_path / "list.csv"
    path.write_text("old")
    with pytest.raises(KeyboardInterrupt):
        write_spreadsheet(path, ("a",), rows())
    assert path.read_text() == "old" and len(list(tmp_path.iterdir())) == 1
