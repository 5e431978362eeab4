import base64
from html.parser import HTMLParser

import numpy as np
import pytest
from PIL import Image

from mdw_jax.errors import UserError
from mdw_jax.page import markdown_table, write_page

NASTY = """<script>alert("1")</script> & 'quotes' </td> é 犬 </style>"""
VOID = {"meta", "img"}


class Reader(HTMLParser):
    """Collects text and attributes by tag, and fails on tags that do not nest."""

    def __init__(self, html):
        super().__init__(convert_charrefs=True)
        self.open, self.found, self.text = [], [], {}
        self.feed(html)
        self.close()
        assert not self.open

    def handle_starttag(self, tag, attrs):
        self.found.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)
            self.text.setdefault(tag, []).append("")

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if self.open:
            self.text[self.open[-1]][-1] += data

    def attributes(self, tag):
        return [attrs for name, attrs in self.found if name == tag]


@pytest.fixture
def page(tmp_path):
    for name in ("a.png", "b.png"):
        Image.new("RGB", (3, 2), "red").save(tmp_path / name)
    rows = [{"set": NASTY, "r_mean": 41.256, "note": "x"}, {"set": "random", "r_mean": None, "bytes": 1234567}]
    write_page(tmp_path / "out" / "page.html", NASTY, rows, [(tmp_path / "a.png", NASTY), (tmp_path / "b.png", "P")],
               {NASTY: NASTY, "seeds": "0, 1"})
    return (tmp_path / "out" / "page.html").read_text(encoding="utf-8")


def test_everything_is_escaped_and_comes_back(page):
    reader = Reader(page)
    assert reader.text["title"] == reader.text["h1"] == [NASTY]
    assert reader.text["figcaption"] == [NASTY, "P"]
    assert reader.text["dt"] == [NASTY, "seeds"] and reader.text["dd"] == [NASTY, "0, 1"]
    assert "script" not in reader.text


def test_the_table_has_every_column_and_row(page):
    reader = Reader(page)
    assert reader.text["th"] == ["set", "r_mean", "note", "bytes", NASTY, "random"]
    assert reader.text["td"] == ["41.26", "x", "", "", "", "1,234,567"]
    assert [cell.get("class") for cell in reader.attributes("th")[:4]] == [None, "number", None, "number"]


def test_every_picture_is_embedded_with_alternative_text(page, tmp_path):
    images = Reader(page).attributes("img")
    assert [image["alt"] for image in images] == [NASTY, "P"]
    for image, name in zip(images, ("a.png", "b.png"), strict=True):
        head, data = image["src"].split(",")
        assert head == "data:image/png;base64" and base64.b64decode(data) == (tmp_path / name).read_bytes()


def test_nothing_is_fetched_and_the_order_is_table_pictures_facts(page):
    reader = Reader(page)
    assert "://" not in page and "@import" not in page and "url(" not in page
    assert {tag for tag, _ in reader.found}.isdisjoint({"link", "script", "iframe"})
    assert page.index("<table") < page.index("<figure") < page.index("<dl")
    names = {meta.get("name") or meta.get("http-equiv") or "charset" for meta in reader.attributes("meta")}
    assert names == {"charset", "viewport", "Content-Security-Policy"} and "prefers-color-scheme: dark" in page


def test_empty_sections_are_left_out(tmp_path):
    assert markdown_table([]) == ""
    write_page(tmp_path / "page.html", "Nothing", [], [], {})
    assert "section" not in Reader((tmp_path / "page.html").read_text()).text


def test_bad_pictures_leave_the_old_page(tmp_path):
    write_page(tmp_path / "page.html", "old", [], [], {})
    for name, match in (("gone.png", "gone.png' cannot be read"), ("a.svgz", "cannot show .*a.svgz")):
        with pytest.raises(UserError, match=match):
            write_page(tmp_path / "page.html", "new", [], [(tmp_path / name, "caption")], {})
    assert Reader((tmp_path / "page.html").read_text()).text["h1"] == ["old"]


def test_markdown_table():
    rows = [{"set": "a|b\nc\\", "r_mean": 41.256, "IR@1": "12.0 ± 0.4"},
            {"set": "random", "r_mean": np.float32(7), "pairs": np.int64(1000), "lr": 3e-4, "ok": True}]
    assert markdown_table(rows) == (
        "| set | r_mean | IR@1 | pairs | lr | ok |\n"
        "| :-- | --: | --: | --: | --: | :-- |\n"
        "| a\\|b c\\\\ | 41.26 | 12.0 ± 0.4 |  |  |  |\n"
        "| random | 7.00 |  | 1,000 | 0.0003 | True |\n")
