"""The page of runs, made from folders written here: nothing is trained."""

import csv
import json
import os
import re
import shutil
import subprocess
import sys

import numpy as np
import pytest
from test_html import NASTY, Reader

from mdw_jax import cli
from mdw_jax.config import base, resolve
from mdw_jax.config.sections import config_digest
from mdw_jax.errors import UserError
from mdw_jax.io import image_history
from mdw_jax.io.checksums import SUMS
from mdw_jax.io.distilled_set import CARD, TENSORS, DistilledSet, save_distilled
from mdw_jax.io.scores import METRICS
from mdw_jax.reporting.run_files import Run
from mdw_jax.reporting.run_report import report_command
from mdw_jax.reporting.run_table import BEFORE_NOISE, footnotes, table
from mdw_jax.reporting.stats import half_interval_of_scores

STEPS = 12
SECTIONS = ["Results", "Distilled pairs", "How the images changed", "Learned correspondence",
            "Where updates were strongest", "Experts", "Distillation", "Certificate", "Byte budget", "Repeat it",
            "Words used here"]


def lines(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


def make_run(folder, pairs=30, side=16, sets=1, restart=False, caption=NASTY, **changes):
    """A finished run folder of presets random, mdw and experts; mdw's P has its largest change at image 2, text 5."""
    generator = np.random.default_rng(pairs)
    config = base()
    config.update_from_flattened_dict({"distill.pairs": pairs, "distill.steps": STEPS, "distill.sets": sets,
                                       "distill.batch": 10}
                                      | {name.replace("__", "."): value for name, value in changes.items()})
    folder.mkdir()
    resolved = resolve(config).to_dict()
    (folder / "config.json").write_text(json.dumps(resolved))
    (folder / "environment.json").write_text(json.dumps({
        "python": "3.11", "packages": {"jax": "0.10", "flax": None}, "devices": ["cpu:0"], "commit": "abc"}))
    noise = {"label": "40%", "protocol": "image", "rate": 0.4, "sha256": "f" * 64}
    experts = {"experts": "experts/dtcl", "recipe": "dtcl",
               "division": {"rightly paired": [0, 0, 0, 0, 1, 2, 3, 4, 5, 6],
                            "mismatched": [6, 5, 4, 3, 2, 1, 0, 0, 0, 0]}}
    presets = []
    for name, built in (("random", {}), ("mdw", experts), ("experts", experts)):
        presets.append({"name": name, "pairs": pairs, "noise": noise, **built,
                        "sets": [f"distilled/{name}/set_{n}" for n in range(sets if name != "experts" else 0)]})
    (folder / "report.json").write_text(json.dumps({
        "config": config_digest(resolved), "data": "scenes", "fingerprint": "e" * 64, "images": 200, "captions": 1000,
        "presets": presets}))
    (folder / "experts" / "dtcl").mkdir(parents=True)
    (folder / "experts" / "dtcl" / "experts.json").write_text(json.dumps({"networks": 2, "certificate_inputs": {
        "eta": 0.4, "tracks": {"clean": {"loss": "gce", "q": 0.7, "excess_risk_bound": 0.0243}}}}))
    lines(folder / "experts" / "dtcl" / "log.jsonl", [
        {"generation": "experts", "epoch": epoch, "val_r_mean": 10.0 * epoch + n,
         **({"precision": 0.9, "recall": 0.5} if epoch > 1 else {})} for epoch in (1, 2, 3, 4) for n in range(4)])
    with open(folder / "scores.csv", "w", newline="") as file:
        writer = csv.DictWriter(file, ["preset", "set", "student", "select_on", *METRICS])
        writer.writeheader()
        for name, level in (("random", 10), ("mdw", 40), ("experts", 50)):
            for index in range(sets if name != "experts" else 1):
                for n in range(3):
                    writer.writerow({"preset": name, "set": index, "student": n, "select_on": "val",
                                     **dict.fromkeys(METRICS, level + n + 3 * index)})
    for preset in presets:
        for place in preset["sets"]:
            made = preset["name"] == "mdw"
            images = generator.uniform(size=(pairs, side, side, 3)).astype(np.float32)
            matrix = np.eye(pairs, dtype=np.float32)
            matrix[2, 5], matrix[3, 1] = 0.75, 0.5
            found = DistilledSet(images, generator.normal(size=(pairs, 24)).astype(np.float32),
                                 {"matrix": matrix} if made else {}, {"image": 0.1, "text": 0.2} if made else {},
                                 1.0, "nce")
            save_distilled(folder / place, found, {"log_mel": None})
            (folder / place / SUMS).unlink()  # tests change the card, and runs of earlier versions have no list
            sha256 = json.loads((folder / place / CARD).read_text())["sha256"]
            (folder / place / "nearest.json").write_text(json.dumps({
                "sha256": sha256, "captions": [f"{caption} {n}" for n in range(pairs)]}))
            rows = [{"step": step, "loss": 2 - step / STEPS, "inner_lr_image": 0.1, "inner_lr_text": 0.2}
                    for step in range(STEPS)]
            rows[5] |= {"val_r_mean": 41.0, **({"restart": 1} if restart else {})}
            rows[-1]["val_r_mean"] = 39.0
            lines(folder / place / "metrics.jsonl", rows if made else [])
            if made:
                seen = image_history.begin(images, STEPS)
                for n in range(1, len(seen)):
                    seen[n] = np.clip(seen[0].astype(int) + 5 * n, 0, 255)
                weights = generator.uniform(0.5, 2, size=(pairs, side, side, 1))
                image_history.save(folder / place, {"steps": np.int32(image_history.moments(STEPS)), "images": seen,
                                             "weights": image_history.weight_maps(weights)})
    return folder


def change_report(folder, change):
    """Apply `change` to what report.json says of the presets."""
    about = json.loads((folder / "report.json").read_text())
    change(about["presets"])
    (folder / "report.json").write_text(json.dumps(about))


def page_of(*folders, out=None):
    report_command([str(folder) for folder in folders], out and str(out))
    text = (out or folders[0] / "report.html").read_text()
    return text, Reader(text)


def test_a_page_has_every_section_and_needs_nothing_else(tmp_path, capsys):
    text, reader = page_of(make_run(tmp_path / "run", restart=True))
    assert reader.text["h2"] == SECTIONS
    assert str(tmp_path / "run" / "report.html") in capsys.readouterr().out
    assert "://" not in text and {tag for tag, _ in reader.found}.isdisjoint({"script", "iframe", "audio"})
    assert all(image["src"].startswith("data:image/") and image["alt"].strip() for image in reader.attributes("img"))
    assert len(reader.attributes("img")) == 2 * 30 + 8 + 2 + 1 + 12  # all pairs, strips, entries of P, its map, weights
    folded = [one for one in reader.attributes("details") if one.get("class") == "section"]
    assert len(folded) == len(SECTIONS) - 2 and not any("open" in one for one in folded)  # all but results and pairs
    assert {"The other 21 pairs", "Pairs of 1 other set"} <= set(reader.text["summary"])
    assert sum(image.get("loading") == "lazy" for image in reader.attributes("img")) == 2 * 21
    assert "MDW: all 30 pairs, shown at their 16 pixels." in reader.text["p"]
    assert f"{NASTY} 3" in reader.text["figcaption"]  # a stranger's caption is text, as it stands
    assert reader.text["strong"][:5] == ["41.0 %", "11.0 %", "51.0 %", "30 pairs", "40%"]
    assert [word for word in reader.text["strong"] if word.startswith("+")] == ["+0.750", "+0.500"]
    spans = [words.replace("\N{NO-BREAK SPACE}", " ") for words in reader.text["span"]]
    assert "r_mean of MDW, ± 2.5 (95 %)" in spans  # 4.303 / sqrt 3: t of 2 degrees, a deviation of 1 over 3 students
    assert "mdw certify" in text and "restarts of MDW" in text
    charts = [one["aria-label"] for one in reader.attributes("svg") if one.get("role") == "img"]
    assert any("epoch. dtcl, noise 40%: 11.5 to 41.5" in label for label in charts)
    assert len(charts) == 6  # none of the score on val, which has two points
    assert any("rightly paired: 95% in the upper half" in label for label in charts)
    assert "distill.restart_factor" in reader.text["dt"] and "commit" in reader.text["dt"]
    assert {"step sizes", "correspondence"} <= set(reader.text["th"])


def test_several_runs_are_side_by_side(tmp_path):
    first = make_run(tmp_path / "first", caption="one")
    second = make_run(tmp_path / "second", pairs=10, caption="two", distill__lr_texts=0.5, distill__rank=5)
    _, reader = page_of(first, second, out=tmp_path / "both.html")
    assert [name for name in reader.text["h2"] if name in SECTIONS] == SECTIONS
    assert "What differs" in reader.text["h2"] and {"first", "second"} <= set(reader.text["h2"])
    cells = reader.text["th"]
    assert cells[:2] == ["run", "preset"] and cells.count("first") == 3 + 1 + 2  # scores, differences, bytes
    differing = cells[cells.index("key"):][:6]
    assert differing[:3] == ["key", "first", "second"]
    assert set(differing[3:]) == {"distill.pairs", "distill.rank", "distill.lr_texts"}
    keys = [entry for entry in reader.text["li"] if entry in ("first: MDW", "second: MDW")]
    assert keys.count("first: MDW") == keys.count("second: MDW") == 1  # matching loss; the score on val has two points
    assert {"one 0", "two 0"} <= set(reader.text["figcaption"])
    third = tmp_path / "deeper" / "first"  # of the same name: told apart by their paths
    third.parent.mkdir()
    shutil.copytree(first, third)
    _, reader = page_of(first, third, out=tmp_path / "both.html")
    assert {str(first), str(third)} <= set(reader.text["h2"])


def test_the_interval_is_over_sets_where_there_are_several(tmp_path):
    rows = [{"set": str(n), "r_mean": str(value)} for n, value in ((0, 1), (0, 3), (1, 5), (1, 7))]
    assert half_interval_of_scores(rows) == pytest.approx(12.706 * 2 * 2**0.5 / 2**0.5, rel=1e-3)
    # the means are 2 and 6, t has 1 degree of freedom
    assert half_interval_of_scores(rows[:1]) is None
    entry = table(Run(make_run(tmp_path / "run", sets=2)))[1]
    assert entry["95 %"].startswith("+- 19.0") and entry["of"] == "2 sets x 3 students" and entry["pairs"] == "30"


def test_one_set_and_one_student_are_singular_and_have_no_deviation(tmp_path):
    folder = make_run(tmp_path / "run")
    rows = (folder / "scores.csv").read_text().splitlines()
    (folder / "scores.csv").write_text("\n".join(row for row in rows if ",1,val," not in row and ",2,val," not in row))
    entry = table(Run(folder))[1]
    assert entry["r_mean"] == "40.00" and entry["95 %"] == "-" and entry["of"] == "1 sets x 1 students"
    cells = page_of(folder)[1].text["td"]
    assert {"1 set x 1 student", "1 network"} <= set(cells) and not any("1 sets" in cell for cell in cells)


def test_a_run_gives_its_presets_by_name(tmp_path):
    folder = make_run(tmp_path / "run", sets=2)
    scores = (folder / "scores.csv").read_text().replace("select_on,", "select_on,lr_scale,steps,", 1)
    scores = scores.replace(",val,", ",val,0.3,200,").replace("experts,0,0,val,0.3,200", "experts,0,0,val,,")
    (folder / "scores.csv").write_text(scores)
    run = Run(folder)
    assert list(run) == ["random", "mdw", "experts"] and "mdw" in run and "lors" not in run
    assert run["mdw"] is run.main
    with pytest.raises(UserError, match="has no preset 'lors'; it has random, mdw, experts.$"):
        run["lors"]
    assert repr(run["mdw"]) == "PresetResults('mdw': 2 sets, 6 students, test r_mean 42.50)"
    assert repr(run["experts"]) == "PresetResults('experts': 3 networks, test r_mean 51.00)"
    trajectories = [folder / "experts" / "dtcl" / f"net_0{n}" for n in range(2)]
    assert run["mdw"].trajectory_directories == run["experts"].trajectory_directories == trajectories
    assert run["random"].trajectory_directories == []
    first, last = run["mdw"].rows[0], run["mdw"].rows[-1]
    assert (last["set"], last["student"], last["steps"]) == (1, 2, 200)
    assert {name: type(value) for name, value in first.items()} == {
        "preset": str, "set": int, "student": int, "select_on": str, "lr_scale": float, "steps": int,
        **dict.fromkeys(METRICS, float)}
    assert run["experts"].rows[0]["lr_scale"] is None
    for text in ("{}", '{"networks": "2"}', "{"):
        (folder / "experts" / "dtcl" / "experts.json").write_text(text)
        with pytest.raises(UserError, match="experts.json'"):
            run["mdw"].trajectory_directories  # noqa: B018


def test_the_certificate_of_certify_is_shown(tmp_path):
    folder = make_run(tmp_path / "run")
    (folder / "certificate.csv").write_text(
        "preset,eta,source,loss,measure,value,trivial\nmdw,0.4,known,gce 0.7,clean_risk,0.123,1.38\n"
        "mdw,0.4,known,gce 0.7,noisy_risk,9,1.38\nmdw,0.4,known,gce 0.7,excess_bound_large_n,0.5,\n")
    _, reader = page_of(folder)
    assert {"clean risk", "cost of noise at most", "guessing"} <= set(reader.text["th"])
    assert {"0.123", "0.5", "1.38", "40% (known)"} <= set(reader.text["td"])
    assert "9" not in reader.text["td"]
    (folder / "certificate.csv").write_text("preset,eta,source,loss,measure,value,trivial\nmdw,,,,clean_risk,,\n")
    with pytest.raises(UserError, match="certificate.csv' is damaged"):
        page_of(folder)


def test_coresets_alone_and_sets_without_record_make_a_page(tmp_path):
    folder = make_run(tmp_path / "run")
    change_report(folder, lambda presets: presets.__delitem__(slice(1, None)))
    _, reader = page_of(folder)
    assert reader.text["h2"] == ["Results", "Distilled pairs", "Certificate", "Byte budget", "Repeat it",
                                 "Words used here"]
    (folder / "distilled" / "random" / "set_0" / "nearest.json").unlink()
    _, reader = page_of(folder)
    assert reader.text["figcaption"][0] == "(nearest caption unknown)"


def test_experts_of_one_recipe_are_told_apart_by_their_presets(tmp_path):
    folder = make_run(tmp_path / "run", pairs=12)
    shutil.copytree(folder / "experts" / "dtcl", folder / "experts" / "other")
    change_report(folder, lambda presets: presets[2].update(experts="experts/other"))
    text, reader = page_of(folder)
    keys = [entry for entry in reader.text["li"] if entry.startswith("dtcl of ")]
    assert sorted(set(keys)) == ["dtcl of experts, noise 40%", "dtcl of mdw, noise 40%"] and len(keys) == 2 * 3
    assert {"Last division: dtcl of mdw", "Last division: dtcl of experts"} <= set(reader.text["b"])
    assert {"dtcl of mdw", "dtcl of experts"} <= set(reader.text["th"])  # bounds


def test_the_title_says_what_there_is(tmp_path):
    folder = make_run(tmp_path / "run", pairs=12)
    titles = [page_of(folder)[1].text["h1"]]
    for changes in ({"rate": None}, {"rate": 0.0}):
        change_report(folder, lambda presets, changes=changes: [one["noise"].update(changes) for one in presets])
        titles.append(page_of(folder)[1].text["h1"])
    change_report(folder, lambda presets: presets.__delitem__(slice(2)))
    titles.append(page_of(folder)[1].text["h1"])
    assert sum(titles, []) == ["scenes: 12 pairs from 1000 noisy ones", "scenes: 12 pairs from 1000",
                               "scenes: 12 pairs from 1000", "scenes: experts on 1000 pairs"]


NATURAL = {"label": "natural", "protocol": "natural", "rate": None, "sha256": "f" * 64,
           "estimated": {"eta": 0.125, "low": 0.1, "high": 0.15, "confidence": 0.95}}


def test_rows_without_the_drawn_noise_are_explained(tmp_path):
    folder = make_run(tmp_path / "run")
    assert BEFORE_NOISE not in footnotes(Run(folder))
    change_report(folder, lambda presets: presets[2].update(name="full"))
    scores = folder / "scores.csv"
    scores.write_text(scores.read_text().replace("\nexperts,", "\nfull,"))
    assert BEFORE_NOISE in footnotes(Run(folder))
    change_report(folder, lambda presets: [one["noise"].update({"rate": 0.0}) for one in presets])
    assert BEFORE_NOISE not in footnotes(Run(folder))


def make_natural(folder, **changes):
    """A run of pairs as they came: nobody knows which are mismatched, so the division is of all of them."""
    make_run(folder, caption="a dog")
    division = {"division": {"all pairs": [1] * 10}}
    change_report(folder, lambda presets: [one.update({"noise": NATURAL | changes} | (division if "experts" in one else {}))
                                           for one in presets])
    log = folder / "experts" / "dtcl" / "log.jsonl"
    lines(log, [{name: value for name, value in json.loads(row).items() if name not in ("precision", "recall")}
                for row in log.read_text().splitlines()])
    return folder


def test_with_natural_noise_the_estimate_stands_in_place_of_clean_and_noisy(tmp_path):
    folder = make_natural(tmp_path / "run")
    text, reader = page_of(folder)
    assert reader.text["strong"][4] == "12.5%"
    spans = [words.replace("\N{NO-BREAK SPACE}", " ") for words in reader.text["span"]]
    assert "of the training pairs mismatched as they came, estimated: [10.0%, 15.0%] (95 %)" in spans
    assert "an estimated 12.5% [10.0%, 15.0%] of the training pairs are mismatched (95% interval)" in text
    assert "natural, 12.5% [10.0%, 15.0%] estimated, sha256 ffffffffffff" in text
    # The certificate names the tracks of the experts' losses, and the config its keys.
    shown = "".join(re.split(r"<h2[^>]*>Certificate.*?(?=<h2)|<details><summary>Config</summary>.*", text, flags=re.DOTALL))
    assert "Byte budget" in shown and "experts.clean_loss" not in shown
    assert not re.findall(r"(?i).{0,40}\b(?:clean|noisy)\b.{0,40}", shown.partition("<body")[2])
    [note] = footnotes(Run(folder))
    assert note.startswith("Natural noise: ") and "12.5% [10.0%, 15.0%]" in note


@pytest.mark.parametrize("estimated", [None, {"eta": 0.0, "low": 0.0, "high": 1.0, "confidence": 1.0}])
def test_natural_noise_that_could_not_be_estimated_is_unknown_and_not_zero(tmp_path, estimated):
    folder = make_natural(tmp_path / "run", estimated=estimated, assumed=0.3)
    text, reader = page_of(folder)
    assert reader.text["strong"][4] == "natural" and "noise of the data, of unknown rate" in reader.text["span"]
    [note] = footnotes(Run(folder))
    assert "how many of them are mismatched is not known" in note and note.endswith(". 30.0% were assumed.")
    assert "0.0%" not in note.replace("30.0%", "") and "natural, of unknown rate, sha256" in text


def test_the_page_says_which_candidate_is_the_set(tmp_path):
    run = make_run(tmp_path / "run")
    assert not any("val chose the start" in note for note in footnotes(Run(run)))
    for values, words in (({0: 40.0, 6: 41.0}, "The result is the set of step 6, with 41.0 %"),
                          ({0: 42.0, 6: 41.0}, "The result is the start, to which distilling added nothing on val")):
        for path in run.glob(f"distilled/*/*/{CARD}"):
            rows = [{"step": step, "correspondence": "teachers", "tau": 0.1, "val_r_mean": val, "lr_scale": 1.0}
                    for step, val in values.items()]
            path.write_text(json.dumps({**json.loads(path.read_text()), "candidates": rows}))
        report_command([str(run)])
        assert words in (run / "report.html").read_text()
    assert any("val chose the start of the first set over all that was distilled" in note for note in footnotes(Run(run)))


def test_a_damaged_estimate_is_refused(tmp_path):
    folder = make_natural(tmp_path / "run", estimated={"eta": "x"})
    with pytest.raises(UserError, match="damaged"):
        Run(folder)


def test_a_preset_from_outside_the_package_is_what_report_json_says(tmp_path):
    folder = make_run(tmp_path / "run", pairs=12)
    scores = (folder / "scores.csv").read_text().replace("random,", "my_methods:pick,")
    (folder / "scores.csv").write_text(scores.replace("experts,", "my_methods:train,"))
    change_report(folder, lambda presets: (presets[0].update(name="my_methods:pick", label="my choice", kind="coreset"),
                                           presets[2].update(name="my_methods:train", label="", kind="reference")))
    run = Run(folder)
    assert [(preset.label, preset.kind) for preset in run.presets] == [
        ("my choice", "coreset"), ("MDW", "distilled"), ("my_methods:train", "reference")]
    assert repr(run) == f"Run('{folder}': test r_mean my_methods:pick 11.00, mdw 41.00, my_methods:train 51.00)"
    assert [row["preset"] for row in table(run)] == ["my choice", "MDW", "my_methods:train"]
    _, reader = page_of(folder)
    assert any(image["alt"].startswith("real image 0") for image in reader.attributes("img"))
    change_report(folder, lambda presets: presets.__delitem__(1))
    assert Run(folder).main.name == "my_methods:pick"


def test_files_are_read_as_utf_8_whatever_the_locale(tmp_path):
    folder = make_run(tmp_path / "run", pairs=12)
    about = json.loads((folder / "report.json").read_text()) | {"data": "犬"}
    (folder / "report.json").write_text(json.dumps(about, ensure_ascii=False), encoding="utf-8")
    program = ("import sys\nfrom mdw_jax.reporting.run_files import Run\n"
               "assert Run(sys.argv[1]).summary['data'] == '\\u72ac'")
    subprocess.run([sys.executable, "-X", "utf8=0", "-c", program, folder], check=True, env=os.environ | {
        "LC_ALL": "C", "PYTHONCOERCECLOCALE": "0", "PYTHONPATH": os.pathsep.join(sys.path)})


def edit_score(run, text):
    """Put `text` in place of the last score of the first row."""
    header, row, *others = (run / "scores.csv").read_text().splitlines()
    (run / "scores.csv").write_text("\n".join([header, ",".join([*row.split(",")[:-1], text]), *others]))


@pytest.mark.parametrize(("spoil", "words"), [
    (lambda run: shutil.rmtree(run), "there is no run directory"),
    (lambda run: (run / "config.json").unlink(), "no config.json"),
    (lambda run: (run / "scores.csv").unlink(), "scores.csv is missing"),
    (lambda run: (run / "report.json").write_text("{"), "report.json' cannot be read"),
    (lambda run: (run / "report.json").write_text("{}"), "do not fit together"),
    (lambda run: (run / "report.json").write_text('{"presets": []}'), "do not fit together"),
    (lambda run: (run / "scores.csv").write_text("preset,set\nmdw,0\n"), "do not fit together"),
    (lambda run: edit_score(run, "-0.5"), "do not fit together or are damaged; run mdw evaluate again"),
    (lambda run: edit_score(run, "100.01"), "do not fit together or are damaged; run mdw evaluate again"),
    (lambda run: (run / "scores.csv").write_text(",".join(["preset", "set", "select_on", *METRICS])),
     "do not fit together"),
    (lambda run: (run / "config.json").write_text(json.dumps(resolve(base()).to_dict())), "are of another config"),
    (lambda run: (run / "distilled/mdw/set_0" / CARD).write_text("{}"), "sha256 differs"),
    (lambda run: (run / "distilled/mdw/set_0" / CARD).write_text("no"), "cannot be read"),
    (lambda run: (run / "distilled/mdw/set_0" / TENSORS).unlink(), "no finished distilled set"),
    (lambda run: (run / "distilled/mdw/set_0/record.safetensors").write_bytes(b"no"), "record .* is damaged"),
    (lambda run: image_history.save(run / "distilled/mdw/set_0", {"steps": np.int32([0])}), "record .* is damaged"),
])
def test_what_is_no_finished_run_is_one_clear_sentence(tmp_path, spoil, words):
    run = make_run(tmp_path / "run", pairs=12)
    spoil(run)
    with pytest.raises(UserError, match=words) as said:
        page_of(run)
    assert str(tmp_path) in str(said.value)


def test_curves_that_were_deleted_are_left_out_and_that_is_said(tmp_path, caplog):
    run = make_run(tmp_path / "run", pairs=12)
    for place in ("experts/dtcl/log.jsonl", "distilled/mdw/set_0/metrics.jsonl"):
        (run / place).unlink()
    assert "Learned correspondence" in page_of(run)[0]
    assert "log.jsonl' is missing: its curves are left out" in caplog.text and "metrics.jsonl' is missing" in caplog.text


def test_the_command(tmp_path, capsys):
    run = make_run(tmp_path / "run", pairs=12)
    assert cli.main(["report", str(run), "--out", str(tmp_path / "page.html")]) == 0
    assert (tmp_path / "page.html").exists() and str(tmp_path / "page.html") in capsys.readouterr().out
    (tmp_path / "grid").mkdir()
    (tmp_path / "grid" / "sweep.csv").touch()
    for words, sentence in ((["report"], "no run directory given"),
                            (["report", str(tmp_path)], f"holds run directories: {run};"),
                            (["report", str(run), "--config=x.py"], "reads no config"),
                            (["report", str(run), str(tmp_path / "grid" / ".." / "run")], "is given twice"),
                            (["report", str(tmp_path / "grid")], "compare them with mdw table"),
                            (["report", str(run), "--out", str(tmp_path)], f"cannot write '{tmp_path}' (Is a directory)"),
                            (["report", str(run), "--out", str(run / "scores.csv" / "x")], "cannot write")):
        assert cli.main(words) == 2 and sentence in capsys.readouterr().err
    assert cli.main(["report", "--help"]) == 0 and "usage: mdw report RUN" in capsys.readouterr().out


def test_a_page_of_large_images_stays_small(tmp_path):
    run = make_run(tmp_path / "run", pairs=50, side=224)
    page_of(run)
    assert (run / "report.html").stat().st_size < 2e6
    assert (run / "distilled/mdw/set_0/record.safetensors").stat().st_size < 10e6


def first(**fields):
    return lambda presets: presets[1].update(fields)


@pytest.mark.parametrize("change", [
    first(sets=[5]), first(label=5), first(label=["a"]), first(noise=None), first(noise={"label": 5}), first(experts=5),
    first(division=5), first(division={"a": [1]}), first(division={"a": ["x"] * 10}), first(pairs=None), first(pairs=True),
    first(kind="other"), first(name=None), lambda presets: presets.append(5)])
def test_a_damaged_report_json_is_one_sentence(tmp_path, change):
    run = make_run(tmp_path / "run", pairs=12)
    change_report(run, change)
    with pytest.raises(UserError, match=r"do not fit together or are damaged; run mdw evaluate again\.$"):
        page_of(run)


@pytest.mark.parametrize(("name", "contents"), [
    ("distilled/mdw/set_0/metrics.jsonl", '{"a": 1}\n'),
    ("distilled/mdw/set_0/metrics.jsonl", '{"step": 0, "loss": null, "inner_lr_image": 1, "inner_lr_text": 1}\n'),
    ("experts/dtcl/log.jsonl", '{"a": 1}\n'),
    ("experts/dtcl/log.jsonl", '{"generation": ["a"], "epoch": 1}\n'),
    ("experts/dtcl/experts.json", '{"networks": 2}'),
    ("experts/dtcl/experts.json", '{"networks": 2, "certificate_inputs": {"eta": 0.4, "tracks": {"clean": {}}}}'),
    ("environment.json", '{"packages": 5, "devices": 3}'),
    ("environment.json", '{"packages": {"jax": 5}}'),
])
def test_files_with_other_fields_are_one_sentence(tmp_path, name, contents):
    run = make_run(tmp_path / "run", pairs=12)
    (run / name).write_text(contents)
    with pytest.raises(UserError, match=rf"'.*{name}' is damaged \(.*\); run its command again\.$"):
        page_of(run)


def test_bytes_are_counted_anew_for_cards_of_earlier_versions(tmp_path):
    run = make_run(tmp_path / "run", pairs=12)
    wanted = page_of(run)[0]
    path = run / "distilled/mdw/set_0" / CARD
    path.write_text(json.dumps({"sha256": json.loads(path.read_text())["sha256"], "byte_budget": {"total": 1}}))
    assert page_of(run)[0] == wanted


def test_captions_that_are_none_are_unknown(tmp_path):
    run = make_run(tmp_path / "run", pairs=12)
    path = run / "distilled/mdw/set_0/nearest.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"captions": ["one", 5]}))
    assert "(nearest caption unknown)" in page_of(run)[0]


def test_a_run_of_an_older_version_is_one_sentence(tmp_path):
    run = make_run(tmp_path / "run", pairs=12)
    text = (run / "scores.csv").read_text()
    (run / "scores.csv").write_text(text.replace("select_on", "protocol", 1))
    with pytest.raises(UserError, match=rf"^the run in '{run}' was made by an older version of mdw-jax; run mdw again"):
        page_of(run)
