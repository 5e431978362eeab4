"""Files are written whole or not at all; JSON and CSV that may be damaged are refused with a reason."""

import numpy as np
import pytest

from mdw_jax.io.files import (
    MAX_JSON_DEPTH,
    parse_csv,
    parse_json,
    parse_json_lines,
    read_at_most,
    read_json,
    write_array,
    write_arrays,
    write_atomically,
    write_csv,
    write_json,
)


def test_a_write_that_fails_leaves_what_was_there(tmp_path):
    path = write_atomically(tmp_path / "deep" / "file", b"before")
    with pytest.raises(TypeError):
        write_atomically(path, "not bytes")
    assert path.read_bytes() == b"before" and list(path.parent.iterdir()) == [path]


def test_json_comes_back_as_it_was_written(tmp_path):
    value = {"name": "犬", "rows": [1, 2.5, None, {"deep": [[]]}]}
    assert read_json(write_json(tmp_path / "a.json", value)) == value
    assert read_json(write_json(tmp_path / "b.json", [1]), list) == [1]
    assert read_json(write_json(tmp_path / "c.json", "text"), (list, str)) == "text"
    assert parse_json_lines(b'{"a": 1}\n{"b": 2}\n') == [{"a": 1}, {"b": 2}]


@pytest.mark.parametrize("data, reason", [
    (b"[1]", "outermost value is not an object"),
    (b"1", "outermost value is not an object"),
    (b"", "Expecting value"),
    (b"{", "Expecting property name"),
    (b'{"a": "\xff"}', "utf-8"),
    (b'{"a": ' * MAX_JSON_DEPTH + b"1" + b"}" * MAX_JSON_DEPTH, "nested more than 64 levels"),
    (b'{"a": ' + b"[" * 200_000 + b"]" * 200_000 + b"}", "nested more than 64 levels"),
])
def test_json_that_is_refused(tmp_path, data, reason):
    path = write_atomically(tmp_path / "a.json", data)
    with pytest.raises(ValueError, match=reason):
        read_json(path)
    with pytest.raises(ValueError, match=reason):
        parse_json(data)


def test_json_that_is_too_large_or_is_not_there(tmp_path):
    path = write_json(tmp_path / "a.json", {"a": "b" * 100})
    with pytest.raises(ValueError, match="larger than 50 bytes"):
        read_json(path, max_bytes=50)
    with pytest.raises(ValueError, match="larger than 50 bytes"):
        read_at_most(path, max_bytes=50)
    with pytest.raises(FileNotFoundError):
        read_json(tmp_path / "b.json")
    with pytest.raises(OSError):
        read_json(tmp_path)
    with pytest.raises(ValueError, match="not an object"):
        parse_json_lines(b"{}\n[]\n")


def test_arrays_come_back_and_are_the_same_bytes_again(tmp_path):
    array = np.arange(6.0, dtype=np.float32).reshape(2, 3).T
    np.testing.assert_array_equal(np.load(write_array(tmp_path / "a.npy", array), allow_pickle=False), array)
    paths = [write_arrays(tmp_path / name, a=array, b=np.array([True])) for name in ("a.npz", "b.npz")]
    assert paths[0].read_bytes() == paths[1].read_bytes()
    with np.load(paths[0], allow_pickle=False) as file:
        assert set(file) == {"a", "b"} and file["b"].dtype == bool
    with pytest.raises(ValueError, match="[Oo]bject arrays"):
        write_array(tmp_path / "c.npy", np.array([object()]))


def test_csv(tmp_path):
    path = write_csv(tmp_path / "a.csv", ["a", "b"], [{"a": 1, "b": "x,y"}, {"b": 2}])
    assert parse_csv(path.read_bytes()) == (["a", "b"], [{"a": "1", "b": "x,y"}, {"a": "", "b": "2"}])
    path.write_text("a,b\n1\n")
    assert parse_csv(path.read_bytes()) == (["a", "b"], [{"a": "1", "b": ""}])
    for damaged, reason in ((b"a,b\n1,2,3\n", "longer than its header"), (b"a\n\xff\n", "utf-8"),
                            (b'a\n"1"2\n', "expected after")):
        path.write_bytes(damaged)
        with pytest.raises(ValueError, match=reason):
            parse_csv(path.read_bytes())
