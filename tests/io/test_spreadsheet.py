"""CSV files for people."""

import csv

import pytest

from mdw_jax.errors import UserError
from mdw_jax.io.spreadsheet import refuse_other, safe_cell, write_spreadsheet


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
    write_spreadsheet(path, ("a",), [{"a": 7}])
    old = path.read_bytes()
    with pytest.raises(KeyboardInterrupt):
        write_spreadsheet(path, ("a",), rows())
    assert path.read_bytes() == old and len(list(tmp_path.iterdir())) == 1


@pytest.mark.parametrize("content", ["image,caption\na.png,a dog\n", "a,b,c\n", "a", "x" * 10_000, "\ufeffb,a\r\n"])
def test_a_file_of_others_is_not_overwritten(tmp_path, content):
    path = tmp_path / "captions.csv"
    path.write_text(content, newline="")
    with pytest.raises(UserError, match=r"captions.csv' is not such a list that mdw wrote, and would be overwritten"):
        write_spreadsheet(path, ("a", "b"), [{"a": 1}])
    assert path.read_text() == content.replace("\r\n", "\n") and len(list(tmp_path.iterdir())) == 1


def test_an_older_list_and_an_empty_file_are_replaced(tmp_path):
    path = tmp_path / "list.csv"
    path.touch()
    columns = ("a, with a comma", "b")
    for rows in ([{"b": 1}], [{"b": 2}, {"b": 3}]):
        assert write_spreadsheet(path, columns, rows) == len(rows)
    path.write_text(path.read_text(encoding="utf-8-sig").replace("\r\n", "\n"))  # as an editor may leave it
    refuse_other(path, columns)
    assert write_spreadsheet(path, columns, []) == 0
