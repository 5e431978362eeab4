"""The footers that are read here say what pyarrow says of them, and damage is a sentence and no end of the process."""

import random

import numpy as np
import pytest

from mdw_jax.data.tables import arrow_rows, parquet_footer
from mdw_jax.errors import UserError

pyarrow = pytest.importorskip("pyarrow")
parquet = pytest.importorskip("pyarrow.parquet")

TABLE = pyarrow.table({
    "image": [f"{n}.jpg" for n in range(300)], "caption": ["A red dog.", None, "Zwei Vögel."] * 100,
    "nested": [[{"raw": "a"}, {"raw": "b"}]] * 300, "digest": pyarrow.array([bytes(16)] * 300, pyarrow.binary(16)),
    "number": np.arange(300)})
WAYS = {
    "plain": {"compression": "none", "use_dictionary": False}, "dictionaries": {"compression": "none"},
    "zstd": {"compression": "zstd", "row_group_size": 100}, "pages of version 2": {"data_page_version": "2.0"},
}


@pytest.mark.parametrize("settings", WAYS.values(), ids=WAYS)
def test_footers_are_read_as_pyarrow_reads_them(tmp_path, settings):
    parquet.write_table(TABLE, tmp_path / "t.parquet", **settings)
    metadata = parquet.ParquetFile(tmp_path / "t.parquet").metadata
    rows, chunks = parquet_footer.chunks_of(tmp_path / "t.parquet")
    wanted = [metadata.row_group(group).column(column) for group in range(metadata.num_row_groups)
              for column in range(metadata.num_columns)]
    found = list(chunks)
    assert rows == metadata.num_rows and len(found) == len(wanted)
    for chunk, column in zip(found, wanted, strict=True):
        assert (chunk.path, chunk.values, chunk.unpacked) == (column.path_in_schema, column.num_values,
                                                              column.total_uncompressed_size)
        text = column.physical_type == "BYTE_ARRAY"
        assert (chunk.width > 0) == (column.has_dictionary_page if text else chunk.path == "digest")
        assert chunk.width <= max(chunk.unpacked, 16)


def test_a_dictionary_is_as_wide_as_its_values(tmp_path):
    captions = pyarrow.DictionaryArray.from_arrays(np.zeros(50, np.int32), ["x" * 1000, "y" * 500])
    parquet.write_table(pyarrow.table({"caption": captions}), tmp_path / "t.parquet", compression="zstd")
    chunk, = parquet_footer.chunks_of(tmp_path / "t.parquet")[1]
    assert chunk.width == 1500 + 2 * 4  # each has its length before it


@pytest.mark.parametrize("form", ["parquet", "file", "stream"])
def test_damage_is_told_in_a_sentence(tmp_path, form):
    if form == "parquet":
        parquet.write_table(TABLE, tmp_path / "t", compression="zstd")
    else:
        options = pyarrow.ipc.IpcWriteOptions(compression="zstd")
        with pyarrow.OSFile(str(tmp_path / "t"), "wb") as file, getattr(pyarrow.ipc, f"new_{form}")(
                file, TABLE.schema, options=options) as writer:
            writer.write_table(TABLE, max_chunksize=100)
    whole = (tmp_path / "t").read_bytes()
    assert [row for _, row in arrow_rows.rows(tmp_path / "t", "t")] == TABLE.to_pylist()
    generator, refused = random.Random(form), 0
    for _ in range(200):
        data = bytearray(whole)
        for _ in range(generator.choice([1, 3, 20])):
            data[generator.randrange(len(data))] = generator.randrange(256)
        (tmp_path / "t").write_bytes(data)
        try:
            list(arrow_rows.rows(tmp_path / "t", "t"))
        except UserError as error:
            refused += 1
            assert "\n" not in str(error)
    assert refused > 50
