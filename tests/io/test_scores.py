"""Tables of students are read with all their checks in one place."""

import pytest

from mdw_jax.io.files import write_atomically
from mdw_jax.io.scores import METRICS, read_scores


def test_numbers_are_numbers_and_all_else_is_text(tmp_path):
    path = write_atomically(tmp_path / "scores.csv",
                            b"preset,set,select_on,r_mean,lr_scale\nmdw,0,val,1.5,0.3\nvld,1,val,2\n")
    assert read_scores(path) == [
        {"preset": "mdw", "set": "0", "select_on": "val", "r_mean": "1.5", "lr_scale": "0.3"},
        {"preset": "vld", "set": "1", "select_on": "val", "r_mean": "2", "lr_scale": ""}]
    assert [row["r_mean"] for row in read_scores(path, numbers=("r_mean",))] == [1.5, 2.0]


@pytest.mark.parametrize(("text", "reason"), [
    ("", "it has no column 'preset'"),
    ("preset,set\nmdw,0\n", "it has no column 'select_on'"),
    ("preset,set,select_on\nmdw,0,val\n", "it has no column 'r_mean'"),
    ("preset,set,select_on,r_mean\n", "holds no rows yet"),
    ("preset,set,select_on,r_mean\nmdw,0,val,1,2\n", "longer than its header"),
    ("preset,set,select_on,r_mean\nmdw,,val,1\n", "cells are missing"),
    ("preset,set,select_on,r_mean\nmdw,0,val,no\n", "holds 'no' as r_mean"),
    ("preset,set,select_on,r_mean\nmdw,0,val\n", "holds '' as r_mean"),
    ("preset,set,select_on,r_mean\nmdw,0,val,nan\n", "holds 'nan' as r_mean"),
])
def test_what_is_no_table_of_students(tmp_path, text, reason):
    path = write_atomically(tmp_path / "scores.csv", text.encode())
    with pytest.raises(ValueError, match=reason):
        read_scores(path, numbers=("r_mean",))


def test_metrics_are_recalls_and_their_mean():
    assert METRICS == ("IR@1", "IR@5", "IR@10", "TR@1", "TR@5", "TR@10", "r_mean")
