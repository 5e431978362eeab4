"""The page of a run that goes on, and the server of it."""

import http.client
import json
import shutil
import socket
import subprocess
import sys
import threading

import pytest
from test_html import NASTY, Reader
from test_run_report import make_run

from mdw_jax import cli
from mdw_jax.config import base, resolve
from mdw_jax.errors import UserError
from mdw_jax.io.run_lock import hold_run_directory
from mdw_jax.reporting.live import live_page, read_curves
from mdw_jax.reporting.run_report import report_command
from mdw_jax.reporting.serve import HOST, LivePage, make_server


def begin(folder, losses=5, epochs=4):
    """The files of a run of 12 outer steps that has done some of them."""
    folder.mkdir(exist_ok=True)
    config = base()
    config.update_from_flattened_dict({"distill.steps": 12, "experts.epochs": 6, "distill.pairs": 10, "distill.batch": 10})
    (folder / "config.json").write_text(json.dumps(resolve(config).to_dict()))
    rows = ["stage,name,step,metric,value"]
    rows += [f"experts/{n}A,experts/dtcl-0123456789,{epoch},val_r_mean,{10 * epoch + 2 * n}"
             for epoch in range(1, epochs + 1) for n in range(2)]
    rows += [f"distill,distilled/mdw-0123456789/set_0,{step},loss,{2 - step / 20}" for step in range(losses)]
    rows += ["scores-val-x,distilled/mdw-0123456789/set_0,0,r_mean,50"]
    (folder / "metrics.csv").write_text("\n".join(rows) + "\ndistill,distilled/mdw-0123456789/set_0,9")  # being written
    return folder


@pytest.fixture
def served(tmp_path):
    """A function (address, host of the request) -> status and text, of a run that goes on in tmp_path / "run"."""
    page = LivePage(begin(tmp_path / "run"))
    server = make_server(page, 0)
    threading.Thread(target=server.serve_forever, daemon=True).start()

    def ask(address, host=None, method="GET"):
        connection = http.client.HTTPConnection(HOST, server.server_port, timeout=30)
        connection.request(method, address, headers={"Host": host or f"{HOST}:{server.server_port}"})
        answer = connection.getresponse()
        return answer.status, answer.read().decode()
    yield ask
    server.shutdown()
    server.server_close()


def test_the_curves_so_far_are_those_of_metrics_csv(tmp_path):
    curves = read_curves(begin(tmp_path / "run", losses=3))
    assert curves["experts", "experts/dtcl-0123456789", "val_r_mean"] == ([1, 2, 3, 4], [11, 21, 31, 41])  # of 2 networks
    assert curves["distill", "distilled/mdw-0123456789/set_0", "loss"] == ([0, 1, 2], [2, 1.95, 1.9])
    assert len(curves) == 2  # no scores of students
    assert read_curves(tmp_path) == {}


def test_the_page_of_a_run_that_goes_on_says_how_far_it_is(tmp_path):
    folder = begin(tmp_path / "run")
    reader = Reader(live_page(folder))
    assert reader.text["p"][0].startswith("Stopped at ")  # no process works in it
    with hold_run_directory(folder):
        reader = Reader(live_page(folder))
    assert reader.text["p"][1] == "Data scenes; presets random, infonce, mdw, full."
    assert reader.text["p"][0].startswith("Running, ") and reader.text["h1"][0].startswith("run: running, ")
    assert reader.text["strong"][1:] == ["4 of 6", "5 of 12"] and "since it was begun" in reader.text["span"]
    assert "epochs of the experts dtcl" in reader.text["span"] and "outer steps of mdw, set 0" in reader.text["span"]
    charts = [one["aria-label"] for one in reader.attributes("svg") if one.get("role") == "img"]
    assert charts == ["Experts. val r_mean, % by epoch. dtcl: 11 to 41",
                      "Matching loss. relative to the experts' movement by outer step. mdw, set 0: 2 to 1.8"]
    (folder / ".metrics.csv.sha256").write_text("of another content")
    paragraphs = Reader(live_page(folder)).text["p"]
    assert paragraphs[1].startswith("metrics.csv is damaged (") and "Nothing has three points yet." in paragraphs
    (folder / ".metrics.csv.sha256").unlink()  # as it says
    begin(folder, losses=2, epochs=2)
    assert "Nothing has three points yet." in live_page(folder)
    (folder / "metrics.csv").unlink()
    assert "Nothing has three points yet." in live_page(folder)
    assert Reader(live_page(folder, note=NASTY)).text["p"][1] == NASTY


def test_a_page_of_a_run_that_goes_on_needs_no_jax(tmp_path):
    program = ("import sys\nfrom mdw_jax.reporting.serve import LivePage\nfrom pathlib import Path\n"
               "LivePage(Path(sys.argv[1])).html()\nassert not {'jax', 'matplotlib'} & set(sys.modules)")
    subprocess.run([sys.executable, "-c", program, begin(tmp_path / "run")], check=True)


def test_the_page_and_its_version_are_served_and_nothing_else(served, tmp_path):
    status, text = served("/")
    assert status == 200 and "5 of 12" in Reader(text).text["strong"]
    status, version = served("/version")
    assert status == 200 and f"const version = '{version}'" in text and served("/version")[1] == version
    for address in ("/config.json", "/../run/config.json", "//etc/passwd", "/%2e%2e/x", "/version/..", "/?x", "/a.html"):
        status, answer = served(address)
        assert status == 404 and answer == "there is nothing here but /\n"
    assert served("/", host="evil.example:80")[0] == 403 and served("/", host="localhost:1")[0] == 200
    assert served("/", method="POST")[0] == 501


def test_the_page_is_made_anew_when_files_change(served, tmp_path):
    version = served("/version")[1]
    begin(tmp_path / "run", losses=7)
    assert served("/version")[1] != version and "7 of 12" in Reader(served("/")[1]).text["strong"]


def test_a_finished_run_is_served_as_its_report(tmp_path):
    folder = make_run(tmp_path / "run", pairs=12)
    page = LivePage(folder)
    text = page.html().decode()
    assert "Distilled pairs" in Reader(text).text["h2"] and "<script>" in text and page.html().decode() is not None
    assert page._made[1] is page.html()  # not made again
    (folder / "report.json").write_text("{}")
    text = page.html().decode()
    assert "The report cannot be made: " in text or "Stopped at" in text
    assert not list(folder.glob("*.html"))  # nothing is written


def test_the_command_refuses_what_it_cannot_follow(tmp_path, capsys):
    run = begin(tmp_path / "run")
    for words, sentence in (([str(run), str(tmp_path), "--serve"], "follows one run and writes no file"),
                            ([str(run), "--serve", "--out", "x.html"], "follows one run and writes no file"),
                            ([str(tmp_path / "none"), "--serve"], "there is no directory"),
                            ([str(tmp_path), "--serve"], "is not a run directory"),
                            ([str(run), "--port", "80"], "add --serve"),
                            ([str(run), "--serve", "--port", "x"], "a whole number below 65536, not 'x'")):
        assert cli.main(["report", *words]) == 2 and sentence in capsys.readouterr().err
    with socket.socket() as taken:
        taken.bind((HOST, 0))
        taken.listen()
        with pytest.raises(UserError, match="cannot serve on port .* give another --port"):
            report_command([str(run)], serve=True, port=taken.getsockname()[1])


def test_a_run_directory_that_vanishes_is_no_traceback(served, tmp_path):
    shutil.rmtree(tmp_path / "run")
    status, text = served("/")
    assert status == 200 and "Never begun" in text
