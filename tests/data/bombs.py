"""Small files that stand for far more than they are, each written by a function of its path."""

import gzip
import tarfile
import zipfile
from pathlib import Path

import numpy as np

MEGABYTE = 2**20


def _gzipped(path: Path, start: bytes, repeat: bytes, megabytes: int) -> None:
    """A gzipped file: `start`, and then the same bytes over and over, in members of a megabyte."""
    block = gzip.compress(repeat * (MEGABYTE // len(repeat)))
    path.write_bytes(gzip.compress(start) + block * megabytes)


def line_without_end(path: Path) -> None:
    """A CSV, gzipped, whose second line has 300 MB."""
    _gzipped(path, b"image,caption\na.jpg,", b"x", 300)


def rows_without_end(path: Path) -> None:
    """A CSV, gzipped, of 20 million rows."""
    _gzipped(path, b"image,caption\n", b"a.jpg,b\n", 150)


def json_lines_without_end(path: Path) -> None:
    """JSON lines, gzipped, of 300 MB: few long ones."""
    _gzipped(path, b'{"image": "a.jpg", "caption": "b"}\n', b'{"image": "a.jpg", "caption": "' + b"b" * 9000 + b'"}\n', 300)


def line_in_utf_16(path: Path) -> None:
    """A table in UTF-16, gzipped, of one line of 300 MB."""
    _gzipped(path, b"\xff\xfea\0", b"x\0", 300)


def list_in_a_cell(path: Path) -> None:
    """A cell with a list of millions of numbers, for which Python's own reader takes a hundred bytes each."""
    path.write_bytes(gzip.compress(b"image\tcaption\na.jpg\t[" + b"1," * 7_000_000 + b"1]\n"
                                   b"b.jpg\tA bird.\nc.jpg\tA cat.\nd.jpg\tA dog.\n"))


def document_of_empty_objects(path: Path) -> None:
    """A JSON object, gzipped, of 45 million empty ones: 130 MB of text, 4 GB in memory."""
    _gzipped(path, b'{"images": [{}', b",{}", 128)


def plain_document_of_empty_objects(path: Path) -> None:
    """The same, of 15 million, as it is."""
    path.write_bytes(b'{"images": [{}' + b",{}" * 15_000_000 + b'], "annotations": []}')


def karpathy_of_empty_lists(path: Path) -> None:
    """Karpathy's JSON, gzipped, of 45 million empty lists."""
    _gzipped(path, b'{"images": [[]', b",[]", 128)


def caption_of_a_gigabyte(path: Path) -> None:
    """JSON lines with a caption of 1 GB, in a file with a hole."""
    with open(path, "wb") as file:
        file.write(b'{"image": "a.jpg", "caption": "b"}\n{"image": "c.jpg", "caption": "')
        file.seek(2**30)
        file.write(b'"}\n')


def row_over_lines(path: Path) -> None:
    """A row of CSV whose cells go over all lines of the file."""
    path.write_bytes(b'image,caption\na.jpg,"one, two"\nb.jpg,"' + (b"c" * 30_000 + b'\n","') * 700)


def parquet_dictionary(path: Path) -> None:
    """A million rows, all of the one value of a dictionary: 100 GB in 2 MB."""
    rows = 1_000_000
    _parquet(path, image=[f"{row}.jpg" for row in range(rows)], caption=_same_text(rows))


def parquet_dictionary_in_lists(path: Path) -> None:
    """The same in lists of ten captions: 100 GB in 0.3 MB."""
    import pyarrow

    rows = 1_000_000
    lists = pyarrow.ListArray.from_arrays(np.arange(0, rows + 1, 10, dtype=np.int32), _same_text(rows))
    _parquet(path, image=[f"{row}.jpg" for row in range(rows // 10)], captions=lists)


def _same_text(rows: int):
    import pyarrow

    return pyarrow.DictionaryArray.from_arrays(np.zeros(rows, np.int32), ["x" * 99_000])


def parquet_page(path: Path) -> None:
    """A caption of 300 MB in a page of 10 kB."""
    _parquet(path, image=["a.jpg"], caption=["x" * 300_000_000], use_dictionary=False, write_statistics=False)


def _parquet(path: Path, use_dictionary: bool = True, write_statistics: bool = True, **columns) -> None:
    import pyarrow
    import pyarrow.parquet

    pyarrow.parquet.write_table(pyarrow.table(columns), path, compression="zstd", dictionary_pagesize_limit=2**30,
                                use_dictionary=use_dictionary, write_statistics=write_statistics)


def parquet_rows(path: Path) -> None:
    """A table of 140 million rows without anything in them."""
    import pyarrow
    import pyarrow.parquet

    part = pyarrow.table({name: pyarrow.nulls(14_000_000, pyarrow.string()) for name in ("image", "caption")})
    with pyarrow.parquet.ParquetWriter(path, part.schema, compression="zstd") as writer:
        for _ in range(10):
            writer.write_table(part, row_group_size=14_000_000)


def arrow_buffer(path: Path) -> None:
    """A compressed Arrow file whose buffer unpacks to 300 MB."""
    import pyarrow

    table = pyarrow.table({"image": ["a.jpg"], "caption": ["x" * 300_000_000]})
    options = pyarrow.ipc.IpcWriteOptions(compression="zstd")
    with pyarrow.OSFile(str(path), "wb") as file, pyarrow.ipc.new_file(file, table.schema, options=options) as writer:
        writer.write_table(table)


def arrow_views(path: Path) -> None:
    """An Arrow stream of 100,000 rows that are all views of one text: 10 GB."""
    import pyarrow

    text = b"x" * 99_000
    views = np.zeros((100_000, 4), np.int32)
    views[:, 0], views[:, 1] = len(text), int.from_bytes(text[:4], "little")
    array = pyarrow.Array.from_buffers(pyarrow.string_view(), len(views),
                                       [None, pyarrow.py_buffer(views), pyarrow.py_buffer(text)])
    batch = pyarrow.record_batch({"image": [f"{row}.jpg" for row in range(len(views))], "caption": array})
    with pyarrow.OSFile(str(path), "wb") as file, pyarrow.ipc.new_stream(file, batch.schema) as writer:
        writer.write_batch(batch)


def zip_that_lies(path: Path) -> None:
    """A zip file with an image of 256 MB whose directory says that it has a hundred bytes."""
    _zip(path, zipfile.ZIP_DEFLATED, 256)
    data = bytearray(path.read_bytes())
    length = data.rindex(b"PK\x01\x02") + 24
    data[length:length + 4] = (100).to_bytes(4, "little")
    path.write_bytes(data)


def zip_of_bzip2(path: Path) -> None:
    """An image in bzip2, which packs a thousand times more tightly than deflate."""
    _zip(path, zipfile.ZIP_BZIP2, 16)


def npz_of_bzip2(path: Path) -> None:
    """An .npz that is packed by bzip2."""
    _zip(path, zipfile.ZIP_BZIP2, 16, "features.npy")


def _zip(path: Path, method: int, megabytes: int, name: str = "a.jpg") -> None:
    with zipfile.ZipFile(path, "w", method) as archive, archive.open(name, "w") as member:
        for _ in range(megabytes):
            member.write(bytes(MEGABYTE))


def tar_header(path: Path) -> None:
    """A tar file with a hole, whose first header announces 8 GB of words on its first member."""
    member = tarfile.TarInfo("a.jpg")
    member.type, member.size = tarfile.XHDTYPE, 2**33 - MEGABYTE
    with open(path, "wb") as file:
        file.write(member.tobuf(tarfile.GNU_FORMAT))
        file.truncate(2**33)
