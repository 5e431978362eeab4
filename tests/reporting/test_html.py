import base64
import hashlib
from html.parser import HTMLParser

import numpy as np
import pytest

from mdw_jax.reporting.html import (
    Section,
    facts,
    figures,
    folded,
    html_table,
    image,
    mark_of,
    tiles,
    unfolding,
    write_page,
)
from mdw_jax.reporting.html import page as page_of
from mdw_jax.reporting.svg import bars, lines, ticks
from mdw_jax.reporting.text import markdown_table

NASTY = """<script>alert("1")</script> & 'quotes' </td> é 犬 </style>"""
VOID = {"meta", "img", "link", "br"}
PIXEL = "data:image/png;base64,AAAA"


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

    def handle_startendtag(self, tag, attrs):
        self.found.append((tag, dict(attrs)))

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if self.open:
            self.text[self.open[-1]][-1] += data

    def attributes(self, tag):
        return [attrs for name, attrs in self.found if name == tag]


@pytest.fixture
def page(tmp_path):
    rows = [{"set": NASTY, "r_mean": 41.256, "note": "x"}, {"set": "random", "r_mean": None, "bytes": 1234567}]
    sections = [
        Section(NASTY, NASTY, html_table(rows, NASTY), folded=False), Section("Empty", "nothing", ""),
        Section("Pictures", "two", folded([(NASTY, figures([(image(PIXEL, NASTY), NASTY), (image(PIXEL, "P"), "P")])),
                                    ("none", ""), ("other", figures([(image(PIXEL, "Q"), "Q")]))])),
        Section("Charts", "two", lines({NASTY: ([0, 1, 2], [1, 2, 2])}, NASTY, NASTY, NASTY)
         + bars({NASTY: [0.5, 0.5]}, [0, 0.5, 1], NASTY, NASTY, NASTY)),
        Section("Facts", "all", facts({NASTY: NASTY, "seeds": "0, 1"}))]
    made = page_of(NASTY, tiles([("43 %", NASTY)]), sections, mark=NASTY)
    size = write_page(tmp_path / "out" / "page.html", made)
    written = (tmp_path / "out" / "page.html").read_bytes()
    assert len(written) == size
    return written.decode()


def test_everything_is_escaped_and_comes_back(page):
    reader = Reader(page)
    assert reader.text["title"] == reader.text["h1"] == [NASTY]
    assert reader.text["h2"] == [NASTY, "Pictures", "Charts", "Facts"]
    assert reader.text["figcaption"][:3] == [NASTY, "P", "Q"] and reader.text["b"] == [NASTY] * 2
    assert reader.text["strong"] == ["43 %"] and NASTY in reader.text["span"] and NASTY in reader.text["text"]
    assert reader.text["dt"] == [NASTY, "seeds"] and reader.text["dd"] == [NASTY, "0, 1"]
    assert "script" not in reader.text and "Empty" not in page
    assert [drawn["alt"] for drawn in reader.attributes("img")] == [NASTY, "P", "Q"]


def test_what_is_folded_is_open_at_the_first(page):
    reader = Reader(page)
    found = reader.attributes("details")
    assert [one.get("class") for one in found] == ["section", None, None, "section", "section"]
    assert ["open" in one for one in found] == [False, True, False, False, False]
    assert [words for words in reader.text["summary"] if words] == [NASTY, "other"]  # the others hold a heading
    assert unfolding(NASTY, "") == "" and Reader(unfolding(NASTY, "<p>x</p>")).text["summary"] == [NASTY]
    assert folded([("one", "<p>x</p>"), ("none", "")]) == "<p>x</p>"


def test_the_table_has_every_column_and_row(page):
    reader = Reader(page)
    assert reader.text["th"] == ["set", "r_mean", "note", "bytes", NASTY, "random"]
    assert reader.text["td"] == ["41.26", "x", "", "", "", "1,234,567"]
    assert [cell.get("class") for cell in reader.attributes("th")[:4]] == [None, "number", None, "number"]
    [box] = [one for one in reader.attributes("div") if one.get("class") == "wide"]
    assert box["aria-label"] == NASTY and box["tabindex"] == "0"


def test_nothing_is_fetched(page):
    reader = Reader(page)
    assert "://" not in page and "@import" not in page and "url(" not in page
    assert {tag for tag, _ in reader.found}.isdisjoint({"script", "iframe"})
    assert [one["href"] for one in reader.attributes("link")] == ["data:,"]  # else browsers ask for favicon.ico
    policy = next(meta["content"] for meta in reader.attributes("meta") if "http-equiv" in meta)
    assert "default-src 'none'" in policy and "prefers-color-scheme: dark" in page


def test_a_page_says_of_what_it_is(tmp_path, page):
    (tmp_path / "a.html").write_text(page)
    assert mark_of(tmp_path / "a.html") == NASTY
    (tmp_path / "b.html").write_text("<html><body>mine</body></html>")
    assert mark_of(tmp_path / "b.html") is None


def test_a_page_that_is_served_runs_its_own_script_and_no_other():
    script = "setInterval(() => fetch('/version'), 1000);"
    text = page_of("t", "", [], script=script)
    policy = next(meta["content"] for meta in Reader(text).attributes("meta") if "http-equiv" in meta)
    sha256 = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    assert policy.endswith(f"; script-src 'sha256-{sha256}'; connect-src 'self'") and f"<script>{script}</script>" in text


def test_charts_say_what_they_show_and_draw_gaps_as_gaps():
    reader = Reader(lines({"a": ([0, 1, 2, 3, 4], [1, 2, float("nan"), 4, 5]), "b": ([0, 4], [3, 3])},
                          "step", "loss", "L"))
    assert len(reader.attributes("polyline")) == 3
    [shown] = [one for one in reader.attributes("svg") if one.get("role") == "img"]
    assert shown["aria-label"] == "L. loss by step. a: 1 to 5; b: 3 to 3"
    points = [tuple(map(float, point.split(","))) for one in reader.attributes("polyline")
              for point in one["points"].split()]
    assert points[0][0] < points[1][0] and points[0][1] > points[1][1]  # more is further up
    assert all(0 <= x <= 420 and 0 <= y <= 250 for x, y in points)
    assert lines({}, "x", "y", "t") == lines({"a": ([0], [float("nan")])}, "x", "y", "t") == ""
    b = {"b": ([0, 1, 2], [1, 2, 3])}
    assert lines({"a": ([], []), **b}, "x", "y", "t") == lines(b, "x", "y", "t")
    nan = float("nan")
    two = {"a": ([0, 1], [1, 2]), "b": ([0, 1, 2], [1, 2, nan])}
    assert lines(two, "x", "y", "t") == ""  # two points are no curve
    assert len(Reader(lines(two | {"c": ([0, 1, 2], [1, 2, 3])}, "x", "y", "t")).attributes("polyline")) == 3
    assert bars({"a": [0, 0]}, [0, 1, 2], "x", "y", "t") == ""
    many = Reader(lines({str(n): ([0, 1, 2], [n, n, n]) for n in range(20)}, "x", "y", "t"))
    looks = {(one["class"], one.get("stroke-dasharray")) for one in many.attributes("polyline")}
    assert len(looks) == 20


@pytest.mark.parametrize("values", [[0.0, 1.0], [2.0, 2.0], [0.0, 0.0], [-3.2, 17.9], [1e-7, 3e-7], [0.5899, 0.5931],
                                    [1e9, 3e9]])
def test_ticks_are_round_and_enclose(values):
    found = ticks(values)
    assert found[0] <= min(values) and max(values) <= found[-1] and 2 <= len(found) <= 8
    np.testing.assert_allclose(np.diff(found), found[1] - found[0], rtol=1e-6)
    assert all(float(one).is_integer() for one in ticks([1, 3], integers=True))


def test_markdown_table():
    assert markdown_table([]) == "" == html_table([], "none")
    rows = [{"set": "a|b\nc\\", "r_mean": 41.256, "IR@1": "12.0 ± 0.4"},
            {"set": "random", "r_mean": np.float32(7), "pairs": np.int64(1000), "lr": 3e-4, "ok": True}]
    assert markdown_table(rows) == (
        "| set | r_mean | IR@1 | pairs | lr | ok |\n"
        "| :-- | --: | --: | --: | --: | :-- |\n"
        "| a\\|b c\\\\ | 41.26 | 12.0 ± 0.4 |  |  |  |\n"
        "| random | 7.00 |  | 1,000 | 0.0003 | True |\n")
