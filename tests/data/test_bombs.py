"""Small files that stand for gigabytes are refused in a sentence, before they fill the memory."""

import json
import re
import subprocess
import sys
import zipfile
from pathlib import Path

import bombs
import forms
import pytest

from mdw_jax.data import archives
from mdw_jax.data.registry import load
from mdw_jax.errors import UserError

# How each is read, under which name, and what is said of it.
TABLES = {
    bombs.line_without_end: ("folder", "t.csv.gz", r"t\.csv\.gz' has [\d,]+ bytes and unpacks to more than [\d,]+, as no "
                                                   "table of captions does; if you trust it, unpack it with gunzip"),
    bombs.rows_without_end: ("folder", "t.csv.gz", r"has [\d,]+ bytes and has over [\d,]+ lines, which take of the memory"),
    bombs.json_lines_without_end: ("folder", "t.jsonl.gz", r"unpacks to more than [\d,]+, .* unpack it with gunzip"),
    bombs.line_in_utf_16: ("folder", "t.tsv.gz", r"unpacks to more than [\d,]+"),
    bombs.list_in_a_cell: ("folder", "t.tsv.gz", r"1 caption of more than 100,000 characters \(.*'a\.jpg'"),
    bombs.document_of_empty_objects: ("folder", "t.json.gz", r"its values would take some [\d,]+ bytes of memory, and may "
                                                             r"take 2,147,483,648\); .* write one object per line"),
    bombs.plain_document_of_empty_objects: ("folder", "t.json", r"its values would take some [\d,]+ bytes of memory"),
    bombs.karpathy_of_empty_lists: ("karpathy", "t.json.gz", r"its values would take some [\d,]+ bytes of memory"),
    bombs.caption_of_a_gigabyte: ("folder", "t.jsonl", r"line 2 of .* is longer than 16,777,216 bytes"),
    bombs.row_over_lines: ("folder", "t.csv", r"the row that begins in line 3 of .* has more than 16,777,216 characters"),
    bombs.parquet_page: ("folder", "t.parquet", r"unpacks, up to its column 'caption', to more than [\d,]+, .* write its "
                                                "captions as CSV"),
    bombs.parquet_rows: ("folder", "t.parquet", r"counts 140,000,000 rows, which take more than [\d,]+"),
    bombs.parquet_dictionary_in_lists: ("folder", "t.parquet", r"holds, up to its column 'captions', more than [\d,]+"),
    bombs.arrow_buffer: ("folder", "t.arrow", r"unpacks to more than [\d,]+"),
    bombs.arrow_views: ("folder", "t.arrow", r"holds, up to its column 'caption', more than [\d,]+"),
    bombs.tar_header: ("webdataset", "t.tar", "not a readable tar file .*a header of 8,588,886,016 bytes, where 1,048,576"),
    bombs.parquet_dictionary: ("folder", "t.parquet", r"holds, up to its column 'caption', more than [\d,]+"),
}
BY_LIBRARY = (bombs.parquet_dictionary, bombs.arrow_buffer)  # that the datasets library would read
# Reads all of them in one process, and prints what is said of each and the most memory so far, in MB.
_PROGRAM = """
import json
import re
import sys
from mdw_jax.data.registry import load
from mdw_jax.errors import UserError
for name, settings in json.loads(sys.argv[1]):
    try:
        said = repr(load(name, holdout_val=1, holdout_test=1, size=8, **settings))
    except UserError as error:
        said = str(error)
    most = re.search(r"VmHWM:\\s+(\\d+) kB", open("/proc/self/status").read())  # getrusage would count what forked it
    print(json.dumps((said, int(most[1]) // 1024)))
"""
_SOURCES = {"folder": "annotations", "karpathy": "annotations", "webdataset": "train_shards", "hf": "source"}


@pytest.fixture(scope="module")
def said(tmp_path_factory):
    """{bomb: what is said of it, and the most memory that the process had taken by then, in MB}."""
    pytest.importorskip("pyarrow")
    root = tmp_path_factory.mktemp("bombs")
    forms.write_images(root / "images", lambda i: f"{'abcd'[i]}.jpg", range(4))
    calls = []
    for bomb, (reader, file, _) in TABLES.items():
        path = root / bomb.__name__ / file
        path.parent.mkdir()
        bomb(path)
        settings = {_SOURCES[reader]: str(path)}
        if reader in ("folder", "karpathy"):
            settings["images"] = str(root / "images")
        calls.append((reader, settings))
    done = subprocess.run([sys.executable, "-c", _PROGRAM, json.dumps(calls)], capture_output=True, text=True, check=True,
                          env={"PYTHONPATH": ":".join(filter(None, sys.path))}, timeout=300)
    return dict(zip(TABLES, map(json.loads, done.stdout.splitlines()), strict=True))


@pytest.mark.parametrize("bomb", TABLES, ids=lambda bomb: bomb.__name__)
def test_a_bomb_is_refused_in_a_sentence_before_it_fills_the_memory(said, bomb):
    sentence, megabytes = said[bomb]
    assert re.search(TABLES[bomb][2], sentence), sentence
    assert megabytes < (1600 if bomb is bombs.parquet_dictionary else 1000), sentence


def test_the_datasets_library_is_given_no_bomb(tmp_path):
    pytest.importorskip("datasets")
    for bomb in BY_LIBRARY:
        path = tmp_path / f"{bomb.__name__}{Path(TABLES[bomb][1]).suffix}"
        bomb(path)
        with pytest.raises(UserError, match=TABLES[bomb][2]):
            load("hf", source=str(path), holdout_val=1, holdout_test=1, size=8)


@pytest.mark.parametrize("bomb, reason", [(bombs.zip_that_lies, "Bad CRC-32"), (bombs.zip_of_bzip2, "packed in a way")],
                         ids=["lies", "bzip2"])
def test_a_member_of_a_zip_file_unpacks_to_what_is_announced(tmp_path, bomb, reason):
    bomb(tmp_path / "images.zip")
    image, = archives.locate([["a.jpg"]], str(tmp_path / "images.zip"))
    with pytest.raises((OSError, ValueError, zipfile.BadZipFile), match=reason):
        image.read()
