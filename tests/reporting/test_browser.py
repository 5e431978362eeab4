"""Pages in a real browser, where one is installed: their height on a phone, their console, what they load."""

import threading

import pytest
from browser import Browser, installed
from test_run_report import make_run
from test_serve import begin

from mdw_jax.reporting.run_files import Run
from mdw_jax.reporting.run_report import write_report
from mdw_jax.reporting.serve import LivePage, make_server

pytestmark = [pytest.mark.slow, pytest.mark.skipif(not installed(), reason="no browser is installed")]
SCREEN = 844


@pytest.fixture
def browser(tmp_path):
    one = Browser(installed(), tmp_path / "profile")
    yield one
    one.close()


@pytest.mark.parametrize("dark", [False, True])
@pytest.mark.parametrize(("width", "screens"), [(390, 4), (1280, 3)])
def test_a_page_is_short_silent_and_whole(tmp_path, browser, width, screens, dark):
    folder = make_run(tmp_path / "run", pairs=60, side=32, caption="a brown dog runs over the grass beside a fence")
    write_report([Run(folder)], folder / "index.html")
    url = (folder / "index.html").as_uri()
    browser.open(url, width, dark)
    browser.screenshot(tmp_path / "page.png")
    assert browser.value("document.documentElement.scrollHeight") < screens * SCREEN
    assert browser.value("document.documentElement.scrollWidth") <= width  # nothing is wider than the screen
    assert browser.messages == [] and browser.requests == [url]
    assert browser.value("getComputedStyle(document.body).backgroundColor") == (
        "rgb(21, 24, 27)" if dark else "rgb(255, 255, 255)")
    browser.value("document.querySelectorAll('details').forEach(one => one.open = true)")
    browser.value("document.querySelectorAll('img').forEach(one => one.loading = 'eager')")
    browser.wait_until("[...document.images].every(one => one.complete && one.naturalWidth > 0)")
    assert browser.value("document.images.length") >= 2 * 60  # of both sets
    assert browser.value("document.documentElement.scrollWidth") <= width and browser.messages == []


def test_a_page_that_is_served_loads_itself_again(tmp_path, browser):
    folder = begin(tmp_path / "run", losses=3)
    server = make_server(LivePage(folder), 0)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        browser.open(f"http://127.0.0.1:{server.server_port}/")
        assert browser.value("document.querySelectorAll('polyline').length") == 2
        browser.value("document.querySelector('details').open = true")
        begin(folder, losses=9)
        browser.wait_until("document.body.textContent.includes('9 of 12')")
        assert browser.value("document.querySelector('details').open")  # what was unfolded stays so
        assert browser.messages == []
        assert {url.rpartition("/")[2] for url in browser.requests} == {"", "version"}
    finally:
        server.shutdown()
        server.server_close()
