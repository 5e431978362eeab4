"""`mdw plan`: its formulas against operations counted in programs, what presets share, own data, memory, disk, price."""

import re

import jax
import jax.numpy as jnp
import pytest
from end_to_end.test_run import tiny
from forms import N, captions, name, write, write_images

from mdw_jax.analysis.cost import counts as counts_module
from mdw_jax.analysis.cost.counts import Counts, counts_of
from mdw_jax.analysis.cost.devices import DEVICES, Device
from mdw_jax.analysis.cost.expert_work import generations
from mdw_jax.analysis.cost.flops import count_flops
from mdw_jax.analysis.cost.model_cost import model_cost, programs_of
from mdw_jax.analysis.cost.plan import head_lines, merged, note_lines, peak_memory, plan, plan_command, table_rows
from mdw_jax.analysis.cost.set_work import outer_flops, outer_work
from mdw_jax.analysis.cost.times import in_words, seconds_by_stage, seconds_of, waits_for_images
from mdw_jax.analysis.cost.unit import Work, student_step
from mdw_jax.analysis.cost.work import run_work
from mdw_jax.config import base, frozen_backbone, resolve
from mdw_jax.config.loading import load_config
from mdw_jax.config.overrides import preset_config
from mdw_jax.errors import UserError
from mdw_jax.models.dual_encoder import dual_encoder
from mdw_jax.models.image.convnet import convnet
from mdw_jax.models.text.bow import bow_features
from mdw_jax.pipeline.prepared import prepare
from mdw_jax.pipeline.preset_run import open_preset, planned_preset

COUNTS = Counts(100, 320, 20, 64, 20, 64, 12)
KNOWN = Device(1e12, 1e9, 1e11, 1e12, measured=True)


def config(start=base, **changes):
    c = start()
    c.update_from_flattened_dict({
        "data.size": 32, "model.patches": (4, 2), "model.widths": (32, 48), "model.mode": "full", "experts.count": 2,
        "experts.epochs": 3, "experts.batch": 32, "distill.pairs": 40, "distill.inner_steps": 4, "distill.batch": 20,
        "distill.trajectories": 2, "distill.rank": 2, "distill.ceo": False, "plan.images": 100, "plan.captions": 320,
        "plan.text_dim": 12, "plan.device": "h100", "run.presets": ("mdw",)})
    c.update_from_flattened_dict({name.replace("__", "."): value for name, value in changes.items()})
    return c


def costs(c):
    return model_cost(resolve(c), 12)[0], programs_of(resolve(c), 12)


@pytest.mark.parametrize("mode", ["projection", "full"])
@pytest.mark.parametrize("gradient", ["exact", "detached"])
def test_the_formula_of_the_outer_step_is_what_its_program_counts(mode, gradient):
    c = config(model__mode=mode, distill__gradient=gradient)
    model, programs = costs(c)
    counted = count_flops(programs.outer_step, *programs.outer_arguments())
    assert sum(outer_flops(resolve(c), model)) == pytest.approx(counted, rel=0.15)


@pytest.mark.parametrize("mode", ["projection", "full"])
def test_the_formula_of_the_experts_step_is_what_its_program_counts(mode):
    c = config(model__mode=mode, experts__guidance_weight=0.0)
    model, programs = costs(c)
    counted = count_flops(programs.expert_step, *programs.expert_arguments())
    assert student_step(model, 32).flops == pytest.approx(counted, rel=0.15)


def test_sizes_of_the_model():
    model, _ = costs(config())
    tower = convnet((32, 32, 3), (4, 2), (32, 48))
    built = dual_encoder(tower, None, 12, mode="full", dim=48)
    params = built.init(jax.random.key(0))
    assert model.parameters == sum(leaf.size for leaf in jax.tree.leaves(params))
    assert model.tower == count_flops(tower.features, params["image"]["backbone"], jnp.ones((1, 32, 32, 3)))
    assert (model.dim, model.features, model.pixels, model.projection) == (48, 48, 3072, False)


@pytest.mark.parametrize("mode", ["projection", "full"])
@pytest.mark.slow
def test_memory_of_the_outer_step_is_about_that_of_the_compiled_one(mode):
    c = config(model__mode=mode)
    model, programs = costs(c)
    [work] = [outer_work(planned_preset(c, "mdw"), model, 1)]
    compiled = peak_memory(programs.outer_step, programs.outer_arguments())
    assert 0.4 < work.device_memory / compiled < 2.5


def test_generations_are_those_that_experts_train():
    assert [(g.name, g.networks, g.epochs, g.teacher, g.keep) for g in generations(resolve(config()), 48)] == [
        ("experts", 4, 3, 0, 2)]
    c = config(frozen_backbone, experts__trajectory_epochs=2, distill__match_epochs=2)
    names = [(g.name, g.networks, g.teacher, g.form, g.keep) for g in generations(resolve(c), 48)]
    assert names == [("teachers", 4, 0, True, 0), ("experts", 4, 4 * 48, False, 0), ("trajectories", 4, 4 * 48, False, 2)]


def experts_of(config, captions, text_dim=384):
    """The work of the experts of so many pairs, one caption each."""
    counts = Counts(captions, captions, 500, 500, 500, 500, text_dim)
    found = run_work(config, counts)
    return next(work for work in found if work.stage == "experts" and "noise rate" not in work.what)


def test_pieces_that_read_the_same_are_added_in_all_that_they_cost():
    """Each number is added, but for memory, of which the largest counts."""
    numbers = {name: 3 for name in Work._fields if name not in ("stage", "what", "presets")}
    [both] = merged([Work("experts", "the same", **numbers)] * 2)
    assert {name: getattr(both, name) for name in numbers} == {
        name: 3 if name in ("device_memory", "host_memory") else 6 for name in numbers}


def test_a_share_of_work_has_less_of_its_search_too():
    assert Work("experts", "", flops=4, search=8).part(0.25).operations == 3


def test_the_total_of_a_table_is_no_less_than_its_largest_row(monkeypatch):
    c = config(run__presets=("mdw",))
    found = plan(c)
    of_total = []
    monkeypatch.setattr("mdw_jax.analysis.cost.plan._row", lambda *args: of_total.append(args[3].process_memory) or {})
    table_rows(found)
    assert of_total[-1] == pytest.approx(max(of_total[:-1])) and of_total[-1] > 0


def test_what_is_read_from_files_is_not_held():
    """A million pairs of 256 and 384 features: texts are in a file of 1.5 GB, images of 1.0 GB are on the device."""
    c = load_config("configs/scale.py")
    small, large = (experts_of(c, pairs) for pairs in (200_000, 1_000_000))
    texts = 4 * 384 * 200_000
    assert texts < small.host_memory < 2 * texts
    # Per pair: what is known of it, two networks' batches and candidates, and a closed form's rows in mapped files.
    assert large.host_memory == pytest.approx(1e6 * (320 + 2 * (40 + 20) + 2 * 2 * 256), rel=0.15)
    assert large.device_memory == pytest.approx(4 * 256 * 1e6, rel=0.2)
    more = experts_of(c, 4_000_000)  # images are read from their file too, and the closed form's rows; networks' are mapped
    assert more.device_memory < 0.3e9
    assert more.host_memory == pytest.approx(4e6 * (320 + 2 * (40 + 20) + 2 * 2 * 2 * 64), rel=0.15)


def test_a_closed_forms_rank_is_what_features_allow():
    """Time is counted by a usual rank, files by a large one; neither is above the width of the features."""
    c = load_config("configs/scale.py")
    wide, narrow = (experts_of(c, 1_000_000, text_dim) for text_dim in (384, 50))
    # Two epochs of a closed form's sample search and four of two networks of 64; a third of the images has a risky pair.
    compared = 0.35 * 1e6 * 1e5 * 2
    assert wide.search == pytest.approx(compared * (2 * 100 + 4 * 128), rel=0.01)
    assert narrow.search == pytest.approx(compared * (2 * 50 + 4 * 128), rel=0.01)
    assert wide.disk - narrow.disk > 0 and wide.disk == pytest.approx(2 * 256 * 2e6, rel=0.05)


def test_what_lies_on_disk_can_be_counted_by_hand():
    c = config(experts__store_dtype="bfloat16", run__presets=("experts",))
    model, _ = costs(c)
    [experts] = [work for work in run_work(c, COUNTS) if work.stage == "experts" and "noise rate" not in work.what]
    # Two experts of two networks, snapshots 0 to 2 of two bytes a number, and the best in float32; who matched whom.
    assert experts.disk == 4 * (3 * 2 + 4) * model.parameters + 4 * 3 * 320 / 8 + 4 * 320


def test_presets_share_in_a_plan_what_they_share_in_a_run(tmp_path):
    names = ("random", "vld", "lors", "infonce", "mdw", "correspond", "full", "experts", "filter_vld", "filter_lors",
             "vld_dtcl", "closed_form", "closed_form_full", "covmatch")
    c = tiny(tmp_path)
    prepared = prepare(resolve(c))
    real, planned = [open_preset(c, prepared, n) for n in names], [planned_preset(c, n) for n in names]

    def groups(runs, key):
        return [[key(a) == key(b) for b in runs] for a in runs]

    for key in (lambda r: r.experts.key, lambda r: r.noise.sha256, lambda r: r.filter and r.filter.folder.key):
        assert groups(planned, key) == groups(real, key)


def test_shared_experts_and_closed_forms_count_once():
    c = config(frozen_backbone, model__mode="projection", distill__init="division",
               run__presets=("random", "vld", "lors", "mdw", "correspond", "filter_vld", "closed_form", "experts"))
    work = run_work(c, COUNTS)
    trained = {piece.presets for piece in work if piece.stage == "experts" and "noise rate" not in piece.what}
    assert trained == {("vld", "lors"), ("mdw", "correspond", "experts"), ("filter_vld",)}
    forms = [piece.presets for piece in work if piece.stage == "closed form"]
    assert len(forms) == len({id(f) for f in forms}) and ("mdw", "correspond", "closed_form", "experts") in [
        tuple(n for n in presets if n not in ("filter_vld", "vld", "lors")) for presets in forms]
    students = {name for piece in work if piece.stage == "students" for name in piece.presets}
    assert students == {"random", "vld", "lors", "mdw", "correspond", "filter_vld"}
    assert [piece.what for piece in work if piece.stage == "distillation" and "outer" in piece.what]


def test_natural_noise_is_estimated_and_drawn_noise_is_not():
    drawn = {"noise__protocol": "image", "noise__rate": 0.4}
    natural = {"noise__protocol": "natural", "noise__rate": 0.0}
    found = [["noise rate" in piece.what for piece in run_work(config(**noise), COUNTS)] for noise in (drawn, natural)]
    assert not any(found[0]) and sum(found[1]) == 1


def test_a_table_for_eight_devices_with_a_price(capsys):
    c = config(plan__devices=8, plan__price=2.0, run__presets=("random", "mdw"))
    plan_command(c)
    text = capsys.readouterr().out
    for stage in ("features", "experts", "distillation", "students", "report", "total"):
        assert f"| {stage} |" in text
    assert all(part in text for part in ("8 x h100", "no data are opened", "Fits: "))
    assert re.search(r"Price: 0\.\d\d \(", text)
    one, eight = (plan(config(plan__devices=n, plan__price=2.0)) for n in (1, 8))
    assert eight.seconds < one.seconds and one.total_price == pytest.approx(2.0 * one.seconds / 3600)


def test_device_work_is_shared_and_host_work_is_not():
    model, _ = costs(config())
    [experts] = [w for w in run_work(config(noise__protocol="image", noise__rate=0.4), COUNTS) if w.stage == "experts"]
    known = KNOWN._replace(measured=False)  # several "devices" of a CPU that is measured share its cores
    fast = known._replace(host=1e9)  # the host takes no time
    assert seconds_of(experts, fast, model, 4) == pytest.approx(seconds_of(experts, fast, model) / 4, rel=1e-3)
    slow = known._replace(matmul=1e30, tower=1e30, bandwidth=1e30)
    assert seconds_of(experts, slow, model, 4) == pytest.approx(seconds_of(experts, slow, model))
    assert seconds_of(experts, slow._replace(busy=3.0), model) == pytest.approx(3 * seconds_of(experts, slow, model))


def test_what_does_not_fit_is_said(monkeypatch):
    monkeypatch.setitem(DEVICES, "h100", DEVICES["h100"]._replace(memory=1e6))
    [misfit] = plan(config()).misfits
    assert re.search("about .* MiB of memory are needed, more than the 977 KiB of one h100; ", misfit)


@pytest.mark.parametrize("share, said", [(0.8, "the fewest that fit are 2 devices (plan.devices=2)"),
                                         (1e-6, "more devices alone do not help (up to 64 were tried)")])
def test_the_fewest_devices_that_fit_are_said(share, said, monkeypatch):
    needed = max(row.work.device_memory for row in plan(config(experts__count=30)).rows)
    monkeypatch.setitem(DEVICES, "h100", DEVICES["h100"]._replace(memory=share * needed))
    [misfit] = plan(config(experts__count=30)).misfits
    assert misfit.endswith(f"; {said}.")
    assert bool(plan(config(experts__count=30, plan__devices=2)).misfits) == (share < 0.1)


def test_rows_that_wait_for_decoded_images_say_so():
    model, _ = costs(config())
    quick, slow = Work("experts", "", tower_gradient=1e14, decoding=1.0), Work("experts", "", decoding=40.0)
    on = (DEVICES["h100"], model, 2, 0.3)
    assert not waits_for_images(quick, *on) and waits_for_images(slow, *on)
    assert seconds_of(slow, *on) == 40 / 16 and seconds_of(quick, *on) > 1 / 16
    streamed = config(data__name="folder", data__annotations="t.csv", data__holdout_val=1, data__holdout_test=1,
                      data__stream=True, plan__images=10**6, plan__captions=10**6)
    found = plan(streamed)
    waiting = [row["stage"] for row in table_rows(found) if row["time"].endswith(" (decoding)")]
    assert "experts" in waiting and "total" not in waiting
    assert any(line.startswith("Decoding: ") and "8 cores" in line for line in note_lines(streamed, found))
    assert not any(line.startswith("Decoding: ") for line in note_lines(config(), plan(config())))


def test_what_takes_the_disk_and_where_the_device_is_from_are_said():
    found = plan(load_config("cc3m", []))
    [line] = [line for line in note_lines(load_config("cc3m", []), found) if line.startswith("Disk: ")]
    assert re.match(r"Disk: \d+ GiB embeddings of teachers, removed .*, [\d.]+ GiB snapshots and records of experts", line)
    scratch = sum(row.work.scratch for row in found.rows)
    assert 0.9 < scratch / sum(row.work.disk for row in found.rows) < 1
    assert "as plan.devices and plan.device of this config say" in head_lines(load_config("cc3m", []), found)[-1]


def test_here_is_measured_and_looks_at_memory_and_disk(tmp_path, monkeypatch):
    found = plan(config(plan__device="here", run__dir=str(tmp_path / "run")))
    assert found.device.measured and not found.misfits and min(found.device[:4]) > 0
    monkeypatch.setattr("mdw_jax.analysis.cost.plan.free_disk", lambda directory: 1000)
    [misfit] = plan(config(plan__device="here", run__dir=str(tmp_path / "run"))).misfits
    assert "more than the 1e+03 B free" in misfit or "free where run.dir" in misfit
    assert not (tmp_path / "run").exists()


def test_compiled_memory_replaces_the_formulas():
    small = {"data__size": 16, "model__widths": (8, 12), "run__presets": ("random", "mdw")}
    rows, compiled = (plan(config(plan__compile=on, **small)).rows for on in (False, True))
    changed = {a.work.what for a, b in zip(rows, compiled, strict=True) if a.work.device_memory != b.work.device_memory}
    assert len(changed) == 2 and any("outer steps" in what for what in changed)


def test_own_photos_are_counted_without_decoding_them(tmp_path, monkeypatch):
    images = write_images(tmp_path / "photos")
    rows = [f"{name(i)},{split},\"{caption}\"" for i, split in enumerate(["train"] * 16 + ["val"] * 4 + ["test"] * 4)
            for caption in captions(i)[:3]]
    table = write(tmp_path / "captions.csv", "\n".join(["image,split,caption", *rows]))
    c = config(data__name="folder", data__annotations=str(table), data__images=str(images), data__size=32,
               plan__images=0, plan__captions=0, run__dir=str(tmp_path / "run"))
    monkeypatch.setattr("mdw_jax.data.records.decode_into", lambda *a: pytest.fail("images are decoded"))
    monkeypatch.setattr("mdw_jax.data.decoding.decode", lambda *a: pytest.fail("images are decoded"), raising=False)
    found, said = counts_of(preset_config(c, "mdw"))
    assert found[:6] == (16, 48, 4, 12, 4, 12) and N == 24
    assert "counted in the data." in said and not (tmp_path / "run").exists()


def test_held_out_splits_are_counted_too(tmp_path):
    images = write_images(tmp_path / "photos")
    table = write(tmp_path / "captions.csv", "\n".join(["image,caption", *(f"{name(i)},number {i}" for i in range(N))]))
    c = config(data__name="folder", data__annotations=str(table), data__images=str(images), data__holdout_val=5,
               data__holdout_test=6, plan__images=0, plan__captions=0, run__dir=str(tmp_path / "run"))
    found, said = counts_of(preset_config(c, "mdw"))
    assert found[:6] == (13, 13, 5, 5, 6, 6) and "read once" in said


def test_generated_data_are_not_drawn(monkeypatch):
    monkeypatch.setattr(counts_module, "load_pairs", lambda *a, **k: pytest.fail("data are drawn"))
    c = config(plan__images=0, plan__captions=0, plan__text_dim=0, data__train=30, text__dim=17)
    assert counts_of(resolve(c))[0][:7] == (30, 150, 250, 1250, 500, 2500, 17)
    assert bow_features(["a"], 17).shape == (1, 17)


@pytest.mark.parametrize("changes, said", [({"plan__device": "abacus"}, "plan.device"),
                                           ({"plan__images": 0}, "set both, or neither"),
                                           ({"plan__device": "here", "plan__devices": 2}, "this machine as it is")])
def test_user_errors(changes, said):
    with pytest.raises(UserError, match=said):
        plan(config(**changes))


def test_an_estimate_in_words():
    assert in_words({"features": 66, "experts": 54, "students": 240, "report": 4}) == (
        "about 6 minutes: features 1.1, experts 0.9, students 4.0")
    assert in_words({"features": 30, "students": 40}) == "about 70 seconds: features 30, students 40"
    model, _ = costs(config())
    seconds = seconds_by_stage(run_work(config(), COUNTS), KNOWN, model)
    assert list(seconds) == ["features", "experts", "distillation", "students", "report"] and min(seconds.values()) > 0


def test_cc3m_fits_one_host_of_eight_h200():
    """Teachers' embeddings of all networks at once were terabytes."""
    found = plan(load_config("cc3m", [("plan.devices", "8")]))
    assert not found.misfits
    most = max(found.rows, key=lambda row: row.work.process_memory).work
    assert most.process_memory < 64e9 and max(row.work.device_memory for row in found.rows) < 120e9
    experts = [row.work for row in found.rows if row.work.stage == "experts" and row.work.what.startswith("infonce")]
    assert all(work.disk < 20e9 for work in experts)  # nobody teaches them: no embeddings in files
