"""Records in columns: the same images, captions and numbers as from lists of objects."""

import io
from functools import partial

import numpy as np
import pytest
from PIL import Image

from mdw_jax.data.decoding import Encoded
from mdw_jax.data.encoded_columns import EncodedColumns
from mdw_jax.data.record_table import Record, RecordTable
from mdw_jax.data.records import build


def _bytes(shared, *ends):
    return repr((shared, *ends)).encode()


READS = (partial(_bytes, "a.tar", 5, 7), partial(_bytes, "b.tar", 2**40, 1), partial(_bytes, "a.tar", 9),
         partial(_bytes, "x"),
         lambda: b"other", partial(_bytes, "a.tar", "name.jpg"), partial(_bytes, "a.tar", True), partial(bytes, b"data"),
         partial(_bytes, "a.tar", 5, 8), partial(_bytes, shared="keyword"))


def test_images_come_back_as_they_were():
    images = [Encoded(f"{n}/\ud800.jpg", read, (n, 2**32 - 1 - n) if n % 2 else None, f"{n * 2**59:016x}" if n else None)
              for n, read in enumerate(READS)]
    columns = EncodedColumns.of(images)
    for rows in (range(10), [9, 0, 4, 4], slice(3, 8)):
        for found, image in zip(columns[rows if isinstance(rows, slice) else np.array(rows)],
                                images[rows] if isinstance(rows, slice) else [images[row] for row in rows], strict=True):
            assert found._replace(read=None) == image._replace(read=None) and found.read() == image.read()
    assert len(columns.reads.functions) == 6  # what the calls of many images share is there once


def _slow(records, first):
    """{key: [image, captions, numbers]} as a program would that has memory to spare."""
    images, number = {}, first
    for record in records:
        kept = [(caption, count) for caption, count in zip(
            record.captions, record.caption_ids or range(number, number + len(record.captions)), strict=True)
            if isinstance(caption, str) and caption.strip()]
        number += len(record.captions)
        if kept:
            entry = images.setdefault(record.image.key, [record.image.read(), [], [], record.line])
            entry[1] += [caption for caption, _ in kept]
            entry[2] += [count for _, count in kept]
    return images


@pytest.mark.parametrize("numbered", [False, True])
@pytest.mark.parametrize("keys", [5, 40, 10**6])
def test_each_image_once_with_all_its_captions(keys, numbered):
    draw = np.random.default_rng(keys)
    records = [Record(Encoded(f"image {draw.integers(keys)}", partial(_bytes, "a.tar", n)),
                      tuple(["a", "b c", "", None, "dd"][k] for k in draw.integers(5, size=draw.integers(4))),
                      attributes={"row": n}, line=n) for n in range(60)]
    if numbered:
        records = [record._replace(caption_ids=range(7 * n, 7 * n + len(record.captions)))
                   for n, record in enumerate(records)]
    table = RecordTable(records)
    assert len(table) == 60 and table.read == sum(len(record.captions) for record in records)
    assert table.repeated() == 60 - len({record.image.key for record in records})
    assert table.problems.counts["no caption"] == sum(not record.captions for record in records)
    rows, expected = table.rows(300), _slow(records, 300)
    assert rows.images.keys == list(expected)
    for row, (data, captions, numbers, line) in enumerate(expected.values()):
        part = slice(rows.ends[row], rows.ends[row + 1])
        assert rows.captions[part] == captions and rows.caption_ids[part].tolist() == numbers
        assert rows.images[row].read() == data and rows.lines[row] == rows.attributes["row"][row] == line
    some = rows.take(np.array([3, 0]))
    assert some.captions == (*rows.captions[rows.ends[3]:rows.ends[4]], *rows.captions[:rows.ends[1]])
    assert some.ends.tolist() == [0, *np.cumsum(np.diff(rows.ends)[[3, 0]])] and some.attributes["row"] == [
        rows.attributes["row"][3], rows.attributes["row"][0]]


def test_attributes_that_only_some_records_have():
    table = RecordTable([Record(Encoded(key, READS[0]), (caption,), attributes=attributes) for key, caption, attributes in [
        ("a", "x", {}), ("b", "y", {"z": 1}), ("c", "", {"z": 2}), ("d", "v", {}), ("a", "w", {"u": 3})]])
    rows = table.rows(0)
    assert rows.images.keys == ["a", "b", "d"] and rows.captions == ["x", "w", "y", "v"]
    assert rows.attributes == {"z": [None, 1, None], "u": [None, None, None]}


@pytest.mark.parametrize("stream", [False, True])
def test_names_of_files_that_are_no_text(stream):
    images = [Encoded(f"caf\udce9 {n}.png", partial(_png, n)) for n in range(8)]
    pairs = build("x", {"train": [Record(image, ("a caption",)) for image in images]}, size=4, stream=stream,
                  holdout_val=2, holdout_test=2)
    assert len(pairs.train.images) == 4 and len(pairs.fingerprint) == 64


def _png(gray):
    picture = io.BytesIO()
    Image.new("RGB", (4, 4), (gray, gray, gray)).save(picture, "png")
    return picture.getvalue()
