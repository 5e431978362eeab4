"""Whole runs at the smallest size: what they leave behind, and that nothing is done twice."""

import csv
import importlib.util
import json
import shutil

import jax
import numpy as np
import pytest
from tiny_config import tiny_config
from tiny_models import BERT, write_model

import mdw_jax
from mdw_jax.config import base
from mdw_jax.config.loading import load_config
from mdw_jax.data.synthetic.scenes import scenes
from mdw_jax.errors import UserError
from mdw_jax.export.command import export_command
from mdw_jax.io.checksums import write_listed_json
from mdw_jax.io.distilled_set import load_distilled
from mdw_jax.io.trajectory import open_trajectory, read_snapshot
from mdw_jax.method import noise_rate
from mdw_jax.pipeline import distill_loop, run
from mdw_jax.pipeline.run import STAGES
from mdw_jax.reporting.run_list import described
from mdw_jax.runtime.may_train import may_train

TINY = {
    "run.presets": ("random", "infonce", "mdw", "experts"), "run.seed": 0,
    "data.name": "scenes", "data.size": 16, "data.train": 60, "data.val": 30, "data.test": 30,
    "noise.rate": 0.4, "text.encoder": "bow", "text.dim": 24,
    "model.tower": "convnet", "model.mode": "full", "model.patches": (8,), "model.widths": (16,),
    "experts.count": 1, "experts.epochs": 2, "experts.recovery_start": 1, "experts.batch": 32,
    "distill.pairs": 8, "distill.steps": 4, "distill.inner_steps": 2, "distill.batch": 4, "distill.trajectories": 1,
    "distill.rank": 2, "distill.max_start_epoch": 1, "distill.checkpoint_every": 2, "distill.ceo_every": 3,
    "evaluate.students": 2, "evaluate.steps": 10, "evaluate.every": 5, "evaluate.batch": 8,
    "evaluate.lr_scales": (0.3, 1.0),
}
NO_CONVNET = {"model__patches": base().model.patches, "model__widths": base().model.widths}


def tiny(folder, **changes):
    return tiny_config(TINY, folder, **changes)


def one_set(folder, preset):
    """The first set of the configuration TINY (8 pairs)."""
    [directory] = [path.parent for path in folder.glob(f"distilled/{preset}-*/set_0/*")
               if path.name in ("card.json", "checkpoint.safetensors")
               and (path.name != "card.json" or json.loads(path.read_text())["shapes"]["texts"][0] == 8)]
    return directory


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    folder = tmp_path_factory.mktemp("run")
    STAGES["run"](tiny(folder))
    return folder


def test_a_run_leaves_scores_a_table_and_a_page(finished):
    with open(finished / "scores.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert [(row["preset"], row["student"]) for row in rows] == [
        (preset, str(n)) for preset in TINY["run.presets"] for n in range(2)]
    assert all(0 <= float(row["r_mean"]) <= 100 for row in rows)
    table = (finished / "table.md").read_text()
    assert "MDW" in table and len(table.split("\n\n")[0].splitlines()) == 2 + 4
    page = (finished / "index.html").read_text()
    assert all(f">{heading}</h2>" in page for heading in ("How the images changed", "Learned correspondence", "Experts"))
    assert json.loads((finished / "config.json").read_text())["distill"]["pairs"] == 8
    left = {path.name for path in one_set(finished, "mdw").iterdir()}
    assert left >= {"card.json", "nearest.json", "record.safetensors"}
    assert not left & {"checkpoint.safetensors", "history.jsonl", "candidates.jsonl"}


def test_the_example_of_the_package_runs_as_written(finished, tmp_path, monkeypatch, capsys):
    lines = [line.strip() for line in mdw_jax.__doc__.splitlines() if line.startswith("    ")]
    example = lines[: next(n for n, line in enumerate(lines) if line.startswith("data  "))]
    assert len(example) >= 8 and example[0] == "import mdw_jax"
    if importlib.util.find_spec("torch") is None:
        example = [line for line in example if "torch_dataset" not in line]
    (tmp_path / "runs").mkdir()
    (tmp_path / "runs" / "quickstart").symlink_to(finished)
    monkeypatch.chdir(tmp_path)
    names = {}
    exec("\n".join(example), names)
    printed = capsys.readouterr().out
    assert "PresetResults('mdw': 1 set, 2 students, " in printed and "'r_mean': " in printed and "(8 pairs: " in printed
    assert names["run"]["mdw"].trajectory_directories[0].is_dir() and jax.tree.leaves(names["params"])


def test_the_metrics_of_a_run_are_those_of_its_stages_own_files(finished):
    with open(finished / "metrics.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    found = {tuple(row.values())[:-1]: float(row["value"]) for row in rows}
    assert len(found) == len(rows)
    expected = {}
    for path in finished.glob("*/*/**/*"):
        of, stage = path.parent.relative_to(finished).as_posix(), path.stem
        read = json.loads(path.read_text()) if path.suffix == ".json" else None
        lines = map(json.loads, path.read_text().splitlines()) if path.suffix == ".jsonl" else ()
        if path.name == "log.jsonl":
            expected |= {(f"{row['generation']}/{row['expert']}{row['network']}", of, str(row["epoch"]), metric): value
                         for row in lines for metric, value in row.items() if isinstance(value, float)}
        elif path.name == "metrics.jsonl":
            expected |= {("distill", of, str(row["step"]), metric): value
                         for row in lines for metric, value in row.items() if metric != "step"}
        elif path.name == "experts.json":
            expected |= {("scores", of, str(n), metric): value for n, scores in enumerate(read["test"])
                         for metric, value in zip(read["metrics"], scores, strict=True)}
        elif stage.startswith("scores-"):
            expected |= {(stage, of, str(row["student"]), metric): row[metric]
                         for row in read["rows"] for metric in ("r_mean", "IR@1", "TR@10", "val_r_mean")}
    assert expected.items() <= found.items()
    assert {row[0] for row in found} == {row[0] for row in expected}
    assert {row[:3] for row in found} == {row[:3] for row in expected}


def test_a_second_run_recomputes_nothing(finished, capsys):
    watched = [path for pattern in ("experts/*/experts.json", "distilled/*/*/card.json", "distilled/*/*/scores-*.json")
               for path in finished.glob(pattern)]
    assert len(watched) == 2 + 3 + 3
    before = [path.stat().st_mtime_ns for path in watched], (finished / "table.md").read_bytes()
    STAGES["run"](tiny(finished, watch__writers=("tensorboard", "wandb")))  # part of no key
    assert before == ([path.stat().st_mtime_ns for path in watched], (finished / "table.md").read_bytes())
    assert "MDW" in capsys.readouterr().out


def test_another_configuration_in_the_same_folder_shares_what_it_can_and_touches_nothing(finished):
    before = {path: path.stat().st_mtime_ns for path in finished.glob("*/*/*/card.json")}
    experts = set(finished.glob("experts/*/experts.json"))
    STAGES["distill"](tiny(finished, run__presets=("mdw",), distill__pairs=6))
    assert set(finished.glob("experts/*/experts.json")) == experts  # of these, all
    after = {path: path.stat().st_mtime_ns for path in finished.glob("*/*/*/card.json")}
    assert len(after) == len(before) + 1 and before.items() <= after.items()


def test_an_interrupted_distillation_ends_where_an_uninterrupted_one_does(finished, tmp_path, monkeypatch):
    config = tiny(tmp_path, run__presets=("mdw",))
    schedule = distill_loop.schedule

    def interrupted(seed, index, step, *rest):
        if step == 3:
            raise KeyboardInterrupt
        return schedule(seed, index, step, *rest)

    monkeypatch.setattr(distill_loop, "schedule", interrupted)
    with pytest.raises(KeyboardInterrupt):
        STAGES["distill"](config)
    folder = one_set(tmp_path, "mdw")
    assert {path.name for path in folder.iterdir()} == {
        "SHA256SUMS", "checkpoint.safetensors", "history.jsonl", "candidates.jsonl"}
    steps = []
    monkeypatch.setattr(distill_loop, "schedule", lambda *args: steps.append(args[2]) or schedule(*args))
    STAGES["distill"](config)
    assert steps == [2, 3]  # from the checkpoint on
    for name in ("distilled.safetensors", "metrics.jsonl", "record.safetensors"):
        assert (folder / name).read_bytes() == (one_set(finished, "mdw") / name).read_bytes()
    assert [json.loads(line)["step"] for line in (folder / "metrics.jsonl").read_text().splitlines()] == [0, 1, 2, 3]


@pytest.mark.slow
def test_coresets_are_real_pairs_and_repblend_runs(tmp_path):
    presets = ("random", "herding", "k_center", "forgetting", "clip_filter", "repblend")
    STAGES["run"](tiny(tmp_path, run__presets=presets, model__mode="projection", model__dim=8, distill__steps=2,
                       run__preset_overrides=("repblend:distill.lr_images=0.1", "repblend:distill.lr_texts=0.1")))
    assert len((tmp_path / "table.md").read_text().split("\n\n")[0].splitlines()) == 2 + len(presets)
    real = {image.tobytes() for image in scenes(train=60, val=30, test=30, size=16, seed=0).train.images}
    for preset in presets[:-1]:
        found, _ = load_distilled(one_set(tmp_path, preset))
        images = {np.round(image * 255).astype(np.uint8).tobytes() for image in found.images}
        assert len(images) == 8 and images <= real, preset


def test_fewer_presets_keep_the_rows_of_the_others(finished, tmp_path, monkeypatch):
    def interrupt(*_):
        raise KeyboardInterrupt

    folder = tmp_path / "run"
    shutil.copytree(finished, folder)
    STAGES["run"](tiny(folder))  # whatever the tests before did to it
    before = sorted((folder / "scores.csv").read_text().splitlines())
    STAGES["run"](tiny(folder, run__presets=("experts",)))
    assert sorted((folder / "scores.csv").read_text().splitlines()) == before
    assert set(mdw_jax.open_run(folder)) == set(TINY["run.presets"])
    assert set(load_config(str(folder)).run.presets) == set(TINY["run.presets"])  # so the folder's run has them all
    with pytest.raises(KeyboardInterrupt):  # interrupted: the scores are still those of before
        with monkeypatch.context() as patch:
            patch.setattr(run, "evaluate_stage", interrupt)
            STAGES["run"](tiny(folder, run__presets=("mdw",), distill__pairs=6))
    STAGES["run"](tiny(folder, run__presets=("random",), distill__pairs=6))  # other settings: another table
    assert list(mdw_jax.open_run(folder)) == ["random"]
    [kept] = folder.glob("scores-*.csv")
    assert sorted(kept.read_text().splitlines()) == before


def test_rows_of_other_data_do_not_stay(finished, tmp_path):
    folder = tmp_path / "run"
    shutil.copytree(finished, folder)
    STAGES["run"](tiny(folder, run__presets=("random",), noise__seed=1))
    assert list(mdw_jax.open_run(folder)) == ["random"]
    summary = json.loads((folder / "report.json").read_text())
    write_listed_json(folder / "report.json", summary | {"key": "of data that changed in their files"})
    STAGES["run"](tiny(folder, run__presets=("experts",), noise__seed=1))
    assert list(mdw_jax.open_run(folder)) == ["experts"]


def results(folder):
    """{file: its bytes} of a run folder, without locks, features and noise draws."""
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file() and path.suffix != ".lock"
            and path.relative_to(folder).parts[0] not in ("cache", "noise")}


def test_a_command_that_trains_nothing_refuses_and_leaves_the_run_as_it_was(finished, tmp_path):
    folder = tmp_path / "run"
    shutil.copytree(finished, folder)
    with may_train(False, "mdw export", str(folder)):
        STAGES["evaluate"](tiny(folder))  # all is there
        before = results(folder)
        for changes, missing in (({"distill__lr_images": 1.0}, "set 0 of the preset infonce is"),
                                 ({"experts__lr": 0.1}, "the experts of the preset mdw are"),
                                 ({"distill__pairs": 6}, "set 0 of the preset random is")):
            with pytest.raises(UserError, match=f"{missing} not in .* mdw export trains nothing by itself"):
                STAGES["evaluate"](tiny(folder, **changes))
    assert {path for path, data in results(folder).items() if data != before.get(path)} == set()
    STAGES["evaluate"](tiny(folder))


def test_students_of_another_tower_share_the_set(finished):
    before = set(finished.glob("distilled/mdw-*/set_0/scores-*.json"))
    STAGES["evaluate"](tiny(finished, run__presets=("mdw",), evaluate__tower="vit", evaluate__mode="full",
                            model__vit_patch=8, model__vit_width=8, model__vit_depth=1, model__vit_heads=2,
                            evaluate__tower_lr_scales=(0.1,)))
    [added] = set(finished.glob("distilled/mdw-*/set_0/scores-*.json")) - before
    assert added.parent == one_set(finished, "mdw")
    assert {row["lr_scale"] for row in json.loads(added.read_text())["rows"]} == {0.1}


@pytest.mark.slow
def test_projection_mode_with_a_pretrained_tower(tmp_path):
    weights = tmp_path / "tiny.q8.npz"
    generator = np.random.default_rng(0)
    ops = [{"op": "CONV_2D", "in": [0], "out": 1, "stride": 4, "pad": "SAME", "act": 3, "w": "conv00"},
           {"op": "AVERAGE_POOL_2D", "in": [1], "out": 2}]
    np.savez(weights, ops_json=json.dumps({"input_tensor": 0, "ops": ops}), **{
        "conv00/kernel_q": generator.integers(0, 256, (3, 3, 3, 8)).astype(np.uint8),
        "conv00/scale": np.array([0.01], np.float32), "conv00/zero": np.array([128], np.int32),
        "conv00/bias": np.ones(8, np.float32)})
    STAGES["run"](tiny(tmp_path / "run", run__presets=("mdw",), model__tower="mobilenet", model__mode="projection",
                       model__weights=str(weights), model__dim=8, distill__steps=2, **NO_CONVNET))
    assert "MDW" in (tmp_path / "run" / "table.md").read_text()
    assert list((tmp_path / "run" / "cache").glob("images-*.npy"))


@pytest.mark.slow
def test_natural_noise_is_estimated_and_everything_else_goes_on(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(noise_rate, "FEWEST_PAIRS", 2)  # so that this data set tells anything
    monkeypatch.setattr(noise_rate, "LEAST_SEPARATION", 0.0)
    natural = {"noise__protocol": "natural", "noise__rate": 0.0, "data__train": 80}
    STAGES["run"](tiny(tmp_path, run__presets=("mdw",), **natural))
    [record] = (json.loads(path.read_text()) for path in tmp_path.glob("experts/*/experts.json"))
    estimate = record["rate"]["estimated"]
    [noise] = (preset["noise"] for preset in json.loads((tmp_path / "report.json").read_text())["presets"])
    assert (noise["protocol"], noise["rate"], noise["estimated"]) == ("natural", None, estimate)
    printed = capsys.readouterr().out
    for text in (printed, *((tmp_path / name).read_text() for name in ("table.md", "index.html"))):
        assert f"an estimated {estimate['eta']:.1%} [{estimate['low']:.1%}, {estimate['high']:.1%}] of the train" in text
    assert "on purpose" not in printed and described(tmp_path)["noise"].startswith(f"natural, {estimate['eta']:.1%} [")
    export_command(tiny(tmp_path, run__presets=("mdw",), export__license="cc0-1.0", **natural))
    assert f"an estimated {estimate['eta']:.1%} [" in (tmp_path / "export" / "mdw-0" / "README.md").read_text()
    assert record["rate"]["true"] is None and 0 <= estimate["low"] <= estimate["eta"] <= estimate["high"] <= 1
    assert record["certificate_inputs"]["eta"] == estimate["eta"]
    STAGES["experts"](tiny(tmp_path, run__presets=("mdw",), **natural))
    assert "estimated" in capsys.readouterr().out
    known = tiny(tmp_path, run__presets=("mdw",), data__train=80)
    STAGES["experts"](known)
    assert "estimated" not in capsys.readouterr().out
    known.noise.estimate = True  # asked later, it is added to the experts that are there
    STAGES["experts"](known)
    assert "estimated, 36.2% true" in capsys.readouterr().out
    with pytest.raises(UserError, match="noise.rate"):
        STAGES["experts"](tiny(tmp_path, run__presets=("mdw",), experts__recipe="debiased", **natural))


@pytest.mark.slow
def test_a_text_encoder_that_is_trained_learns_and_distils_embedded_tokens(tmp_path):
    folder = tmp_path / "encoder"
    folder.mkdir()
    write_model(folder, "bert")
    STAGES["run"](tiny(tmp_path / "run", run__presets=("random", "herding", "mdw", "experts"), text__train=True,
                       text__encoder="transformer", text__dim=base().text.dim, text__path=str(folder),
                       text__max_tokens=12))
    distilled, _ = load_distilled(one_set(tmp_path / "run", "mdw"))
    first, _ = load_distilled(one_set(tmp_path / "run", "random"))
    assert distilled.texts.shape == first.texts.shape and distilled.texts.shape[::2] == (8, BERT["hidden_size"])
    assert (first.texts == 0).all(-1).any()  # captions differ in length, and what is not there stays so
    lengths = (distilled.texts != 0).any(-1).sum(1)
    assert lengths.min() >= 2 and lengths.max() <= 12
    [record] = (tmp_path / "run").glob("experts/*/net_00")
    trajectory = open_trajectory(record)
    begin, end = (read_snapshot(trajectory, k)["text"]["encoder"] for k in (0, 1))
    moved = [np.abs(a - b).max() for a, b in zip(jax.tree.leaves(begin), jax.tree.leaves(end), strict=True)]
    assert "word_embeddings" not in begin and np.mean(np.array(moved) > 0) > 0.8
