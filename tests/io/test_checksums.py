"""SHA256SUMS finds every flipped bit, of a file and of itself, and a kill at any moment leaves a usable one."""

import logging
import shutil
import subprocess

import pytest

from mdw_jax.errors import UserError
from mdw_jax.io import checksums
from mdw_jax.io.checksums import (
    SUMS,
    DamagedError,
    listed_when_written,
    read_verified,
    read_verified_json,
    remove_listed,
    rename_listed,
    write_all_listed,
    write_listed,
    write_listed_json,
)
from mdw_jax.io.files import write_atomically


@pytest.fixture(autouse=True)
def no_pause(monkeypatch):
    monkeypatch.setattr(checksums, "_PAUSE", 0)


def names(folder):
    """The names that a list has, one for each line."""
    return [line.split("  ")[1] for line in (folder / SUMS).read_text().splitlines() if not line.startswith("#")]


def flips(data):
    for place in range(len(data)):
        for bit in range(8):
            yield data[:place] + bytes([data[place] ^ 1 << bit]) + data[place + 1:]


def test_what_is_listed_comes_back(tmp_path):
    path = write_listed(tmp_path / "deep" / "b.npy", b"bytes")
    write_all_listed(path.parent, {"c": b"1", "a": b"2"})
    assert read_verified(path) == b"bytes" and names(path.parent) == ["a", "b.npy", "c"]
    assert read_verified_json(write_listed_json(tmp_path / "x.json", {"a": [1]})) == {"a": [1]}
    with pytest.raises(ValueError, match="larger than 3 bytes"):
        read_verified(path, max_bytes=3)
    with pytest.raises(FileNotFoundError):
        read_verified(tmp_path / "none")


@pytest.mark.skipif(shutil.which("sha256sum") is None, reason="no sha256sum on this system")
def test_sha256sum_takes_the_list(tmp_path):
    write_all_listed(tmp_path, {"a": b"1", "b c": b"2"})
    done = subprocess.run(["sha256sum", "--strict", "-c", SUMS], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0 and done.stdout == "a: OK\nb c: OK\n" and not done.stderr
    (tmp_path / "a").write_bytes(b"3")
    assert subprocess.run(["sha256sum", "-c", SUMS], cwd=tmp_path, capture_output=True).returncode == 1


def test_every_flipped_bit_of_a_file_is_found(tmp_path):
    path = write_listed(tmp_path / "a", b"content")
    for changed in flips(b"content"):
        path.write_bytes(changed)
        with pytest.raises(DamagedError, match=SUMS):
            read_verified(path)


def test_a_flipped_bit_of_the_list_is_found_or_harmless(tmp_path):
    write_all_listed(tmp_path, {"a": b"1", "b": b"2"})
    good = (tmp_path / SUMS).read_bytes()
    refused = {"a": 0, "b": 0}
    for changed in flips(good):
        (tmp_path / SUMS).write_bytes(changed)
        for name, content in (("a", b"1"), ("b", b"2")):
            try:
                assert read_verified(tmp_path / name) == content
            except DamagedError:
                refused[name] += 1
            (tmp_path / name).write_bytes(b"3")  # never taken for good, nor for one that is not listed
            with pytest.raises(DamagedError):
                read_verified(tmp_path / name)
            (tmp_path / name).write_bytes(content)
        with pytest.raises(UserError, match="delete it"):
            write_listed(tmp_path / "c", b"4")
        assert not (tmp_path / "c").exists()
    assert all(0 < count < 8 * len(good) / 2 for count in refused.values())  # a flip elsewhere does not matter to a file


@pytest.mark.parametrize("written", [0, 1, 2, 3, 4])
@pytest.mark.parametrize("exists", [False, True])
def test_a_kill_between_any_two_writes(tmp_path, monkeypatch, written, exists):
    if exists:
        write_all_listed(tmp_path, {"a": b"old a", "b": b"old b"})
    write_listed(tmp_path / "other", b"other")
    count = 0

    def dying(path, data):
        nonlocal count
        count += 1
        if count > written:
            raise KeyboardInterrupt
        return write_atomically(path, data)

    with monkeypatch.context() as patched:
        patched.setattr(checksums, "write_atomically", dying)
        try:
            write_all_listed(tmp_path, {"a": b"new a", "b": b"new b"})
        except KeyboardInterrupt:
            assert written < (4 if exists else 3)  # the list, two files, and the list again where it had old lines
    for name in ("a", "b"):
        if (tmp_path / name).exists():
            assert read_verified(tmp_path / name) in {f"old {name}".encode(), f"new {name}".encode()}
            (tmp_path / name).write_bytes((tmp_path / name).read_bytes()[:-1] + b"?")
            with pytest.raises(DamagedError):
                read_verified(tmp_path / name)
    assert read_verified(tmp_path / "other") == b"other"
    write_all_listed(tmp_path, {"a": b"new a", "b": b"new b"})  # the same command again
    assert [read_verified(tmp_path / name) for name in "ab"] == [b"new a", b"new b"]
    assert names(tmp_path) == ["a", "b", "other"]


def test_lines_that_a_kill_left_go_with_the_next_write(tmp_path):
    path = write_listed(tmp_path / "a", b"1")
    sums = (tmp_path / SUMS).read_bytes()
    write_listed(path, b"2")
    checksums._write_sums(tmp_path, {*checksums._read_sums(tmp_path).lines, (sums[:64].decode(), "a"), ("0" * 64, "gone")})
    assert names(tmp_path) == ["a", "a", "gone"] and read_verified(path) == b"2"
    write_listed(tmp_path / "b", b"3")
    assert names(tmp_path) == ["a", "b"] and read_verified(path) == b"2"


def test_removed_and_renamed_files(tmp_path):
    write_all_listed(tmp_path, {"a": b"1", "b": b"2", "c": b"3"})
    remove_listed(tmp_path, ["a", "none"])
    rename_listed(tmp_path / "b", "d")
    assert names(tmp_path) == ["c", "d"] and read_verified(tmp_path / "d") == b"2"
    (tmp_path / "d").write_bytes(b"3")
    with pytest.raises(DamagedError):
        read_verified(tmp_path / "d")


def test_a_file_that_is_written_piece_by_piece(tmp_path):
    path = tmp_path / "a"
    with listed_when_written(path):
        path.write_bytes(b"1")
    write_listed(tmp_path / "b", b"2")
    with pytest.raises(KeyboardInterrupt), listed_when_written(path):
        path.write_bytes(b"3")
        assert read_verified(path) == b"3"  # not listed
        raise KeyboardInterrupt
    assert read_verified(path) == b"3" and names(tmp_path) == ["b"]
    with listed_when_written(path):
        path.write_bytes(b"4")
    path.write_bytes(b"5")
    with pytest.raises(DamagedError):
        read_verified(path)
    assert names(tmp_path) == ["a", "b"]


def test_files_of_earlier_versions_are_read_with_one_note(tmp_path, caplog, monkeypatch):
    monkeypatch.setattr(checksums, "_noted", set())
    caplog.set_level(logging.INFO)
    for name in "ab":
        (tmp_path / name).write_bytes(b"old")
        assert read_verified(tmp_path / name, note=True) == b"old"
    assert caplog.text.count("earlier version") == 1
    write_listed(tmp_path / "c", b"new")  # the list knows nothing of the old files
    (tmp_path / "a").write_bytes(b"changed")
    assert read_verified(tmp_path / "a") == b"changed"
    rename_listed(tmp_path / "a", "d")
    assert names(tmp_path) == ["c"]


def test_a_list_that_is_none(tmp_path):
    path = tmp_path / "a"
    path.write_bytes(b"1")
    (tmp_path / SUMS).mkdir()
    with pytest.raises(DamagedError, match="is damaged"):
        read_verified(path)
    (tmp_path / SUMS).rmdir()
    (tmp_path / SUMS).write_bytes(b"")
    with pytest.raises(DamagedError, match="is damaged"):
        read_verified(path)


def test_a_reader_that_meets_a_file_before_its_list_waits_for_it(tmp_path, monkeypatch):
    path, pauses = write_listed(tmp_path / "a", b"1"), []
    write_atomically(path, b"2")
    monkeypatch.setattr(checksums.time, "sleep", lambda seconds: pauses.append(write_listed(path, b"2")))
    assert read_verified(path) == b"2" and len(pauses) == 1
