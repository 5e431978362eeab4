import numpy as np
import pytest

from mdw_jax.config import base, resolve
from mdw_jax.config.overrides import preset_config
from mdw_jax.config.presets import DISTILLED, LABELS, PRESETS, PresetSpec, preset_spec
from mdw_jax.config.sections import flat
from mdw_jax.errors import UserError


def test_presets_are_labelled():
    assert set(LABELS) == set(PRESETS) and set(DISTILLED) <= set(PRESETS)


@pytest.mark.parametrize("preset", ["mdw", "random", "experts"])
def test_some_presets_are_the_config_itself(preset):
    config = base()
    config.experts.recipe = "filter"
    assert preset_config(config, preset).to_dict() == resolve(config).to_dict()


def test_the_peers_preset_changes_what_it_says_and_nothing_else():
    config = base()
    config.experts.recipe = "filter"  # must not leave its own choices behind
    config.experts.lr_infonce = 0.07
    config.distill.lr_images = 0.123
    config = config.lock()
    resolved = preset_config(config, "infonce")
    assert resolved.is_locked
    e, d = resolved.experts, resolved.distill
    assert (e.recipe, e.division, e.clean_loss, e.lr) == ("infonce", "clean", "infonce", 0.07)
    assert (d.correspondence, d.loss, d.init, d.ceo, d.lr_images) == ("identity", "nce", "random", False, 0.123)
    assert e.tolerant_weight == base().experts.tolerant_weight
    assert config.experts.recipe == "filter" and config.distill.ceo == base().distill.ceo


def test_full_data_has_no_noise():
    config = base()
    config.noise.rate, config.noise.file = 0.6, "noise.npz"
    resolved = preset_config(config, "full")
    assert (resolved.noise.rate, resolved.noise.file, resolved.experts.recipe) == (0.0, "", "infonce")
    assert config.noise.rate == 0.6


def test_unknown_preset():
    with pytest.raises(UserError, match="no preset 'magic'.*run.presets"):
        preset_config(base(), "magic")


BASELINES_CONSTANTS = {  # of their code at (preset, M): inner steps, mini-batch, gradient, loss, P, start epochs
    ("vld", 100): (8, 100, "exact", "nce", "identity", 2),
    ("tesla", 200): (8, 20, "detached", "nce", "identity", 2),
    ("lors", 100): (8, 20, "detached", "wbce", "lowrank", 2),
    ("lors", 500): (8, 40, "detached", "wbce", "lowrank", 3),
    ("repblend", 500): (8, 20, "detached", "wbce", "lowrank", 3),
}
# Their scripts are of 99, 199 and 499 pairs.
LORS_RANK_ALPHA_LR = {99: (10, 3.0, 10.0), 100: (10, 3.0, 10.0), 198: (10, 3.0, 10.0), 199: (5, 1.0, 10.0),
                      200: (5, 1.0, 10.0), 498: (5, 1.0, 10.0), 499: (20, 0.01, 100.0), 500: (20, 0.01, 100.0)}


def at(pairs, preset, overrides=()):
    c = base()
    c.model.mode, c.distill.pairs, c.run.preset_overrides = "projection", pairs, overrides
    return preset_config(c, preset)


@pytest.mark.parametrize("preset, pairs", BASELINES_CONSTANTS)
def test_baselines_have_the_constants_of_their_code(preset, pairs):
    c = at(pairs, preset)
    d = c.distill
    assert BASELINES_CONSTANTS[preset, pairs] == (
        d.inner_steps, d.batch, d.gradient, d.loss, d.correspondence, d.max_start_epoch)
    assert (d.match_epochs, d.optimizer, d.inner_lr_image) == (1, "sgd", 0.1)
    assert (d.init, d.ceo, d.ema_decay) == ("random", False, 0)
    assert d.mixup == (preset == "repblend")
    assert (c.experts.clean_loss, c.experts.division, c.experts.lr, c.experts.ema_decay) == ("infonce", "clean", 0.1, 0)


@pytest.mark.parametrize("pairs", LORS_RANK_ALPHA_LR)
def test_lors_by_budget(pairs):
    d = at(pairs, "lors").distill
    assert LORS_RANK_ALPHA_LR[pairs] == (d.rank, d.alpha, d.lr_correspondence)
    # Theirs is per normalized pixel, (x - mean) / std, std about 0.27: the same step is std squared of it in [0, 1].
    rate = 100 if pairs < 199 else 1000
    assert d.lr_images == pytest.approx(rate * 0.27**2, rel=0.01) and d.lr_texts == rate
    published = at(pairs, "lors_published").distill
    assert (published.lr_images, published.pixel_units, published.lr_texts) == (rate, "tower", rate)
    assert LORS_RANK_ALPHA_LR[pairs] == (published.rank, published.alpha, published.lr_correspondence)


def test_presets_as_published_differ_by_what_published_code_does():
    def differing(preset):
        one, other = (flat(at(499, name)) for name in (preset, f"{preset}_published"))
        return {key: other[key] for key in one if one[key] != other[key]}

    common = {"distill.clip_images": False, "distill.inner_lr_form": "linear", "distill.lr_inner_lr": 0.01,
              "distill.lr_images": 1000.0, "distill.pixel_units": "tower", "distill.expert_order": "cycled",
              "distill.init_augment": "rand_augment", "distill.on_divergence": "keep", "evaluate.lr_scales": (1.0,)}
    assert differing("lors") == common | {"distill.loss": "wbce_published", "evaluate.schedule": "lors"}
    assert differing("repblend") == common | {"distill.loss": "wbce_published", "evaluate.schedule": "repblend"}
    assert differing("vld") == common | {
        "distill.logit_scale": pytest.approx(np.log(1 / 0.07)), "distill.batches": "fresh", "evaluate.batch": 64,
        "evaluate.schedule": "vld"}


def test_merged_data_is_of_detached_plain_steps():
    assert at(100, "lors", ("lors:distill.loss_merge=merged_data",)).distill.loss_merge == "merged_data"
    for change in ("gradient=exact", "inner_optimizer=momentum"):
        with pytest.raises(UserError, match="merged_data .* set these, or loss_merge to merged"):
            at(100, "lors", ("lors:distill.loss_merge=merged_data", f"lors:distill.{change}"))


def test_a_small_budget_caps_what_cannot_exceed_it():
    assert at(8, "lors").distill.batch == 8 and at(8, "lors").distill.rank == 8


def test_baselines_on_our_experts_differ_in_the_experts_only():
    own, ours, mdw = at(100, "lors"), at(100, "lors_dtcl"), at(100, "mdw")
    assert own.distill.to_dict() == ours.distill.to_dict() and ours.experts.to_dict() == mdw.experts.to_dict()


def test_overrides_reach_their_preset_alone_and_overrule_it():
    overrides = ("lors:distill.lr_images=0.5", "lors:distill.optimizer=adam", "mdw:distill.ceo=false",
             "lors:distill.batch=7")
    lors, vld, mdw = (at(100, name, overrides).distill for name in ("lors", "vld", "mdw"))
    assert (lors.lr_images, lors.optimizer, lors.batch, lors.ceo) == (0.5, "adam", 7, False)
    assert vld.to_dict() == at(100, "vld").distill.to_dict() and not mdw.ceo


def test_overrides_can_begin_at_a_budget():
    overrides = ("lors:distill.rank=3", "lors@200:distill.rank=7", "lors@500:distill.rank=9")
    assert [at(pairs, "lors", overrides).distill.rank for pairs in (100, 200, 499, 500)] == [3, 7, 7, 9]


@pytest.mark.parametrize("entry", ["lors", "lors:distill.lr_images", "lors:distill.lr=1", "nobody:distill.lr_images=1",
                                   "lors:distill.batch=many", "mdw:distill.ceo=perhaps", "mdw:run.presets=a"])
def test_an_override_that_cannot_be(entry):
    with pytest.raises(UserError, match="run.preset_overrides holds"):
        at(100, "lors", (entry,))


def test_mixing_needs_features():
    c = base()
    with pytest.raises(UserError, match="model.mode to projection"):
        preset_config(c, "repblend")


@pytest.mark.parametrize("fields, match", [
    ({"overrides": None}, "overrides are a dict"), ({"overrides": [("a", "b")]}, "overrides are a dict"),
    ({"overrides": {1: 2}}, "overrides are a dict"), ({"overrides_by_pairs": {"8": {}}}, "overrides_by_pairs"),
    ({"overrides_by_pairs": {8: 5}}, "overrides_by_pairs"), ({"overrides_by_pairs": []}, "overrides_by_pairs"),
    ({"label": 5}, "label is text"), ({"label": "a\nb"}, "label is text"), ({"kind": "other"}, "kind is one of"),
    ({"kind": "coreset"}, "names a coreset"), ({"coreset": "random"}, "names a coreset"),
    ({"kind": "coreset", "coreset": len}, "coreset is a name"), ({"needs_experts": 1}, "needs_experts"),
    ({"needs_experts": False}, "needs_experts"), ({"kind": "reference", "needs_experts": False}, "needs_experts")])
def test_a_preset_has_fields_of_their_types(fields, match):
    with pytest.raises(ValueError, match=match):
        PresetSpec(**fields)


@pytest.fixture
def plugin(tmp_path, monkeypatch):
    """A module of presets; `from_source` writes it."""
    monkeypatch.syspath_prepend(tmp_path)

    def from_source(name, body):
        (tmp_path / f"{name}.py").write_text(f"from mdw_jax.config.presets import PresetSpec\n{body}\n")

    return from_source


@pytest.mark.parametrize("number, body", list(enumerate([
    "def p(): raise SystemExit(3)", "def p(): raise RuntimeError", "def p(): return 3", "def p(x): return PresetSpec()",
    "def p(): return PresetSpec(label=5)", "p = PresetSpec()"])))
def test_a_preset_function_that_fails(plugin, number, body):
    plugin(f"presets_that_fail_{number}", body)
    with pytest.raises(UserError, match="run.presets names 'presets_that_fail"):
        preset_spec(f"presets_that_fail_{number}:p")


@pytest.mark.parametrize("number, overrides, match", [
    (0, '{"distill.nope": 1}', "not a config key"), (1, '{"distill": 1}', "not a config key"),
    (2, '{"distill.pairs": "x"}', "must be a whole number"), (3, '{"distill.loss": None}', "must be text"),
    (4, '{"evaluate.lr_scales": [0.1, "a"]}', "must be a list"), (5, '{"distill.batch": "4"}', "must be a whole number"),
    (6, '{"run.dir": "elsewhere"}', "config.run.dir holds for all presets of a run"),
    (7, '{"model.tau": 5.0}', "config.model.tau holds for all"), (8, '{"data.size": 32}', "config.data.size holds for all"),
    (9, '{"text.dim": 8}', "text.dim holds for all"), (10, '{"watch.project": "a"}', "watch.project holds for all"),
    (11, '{}, overrides_by_pairs={100000: {"distill.nope": 1}}', "not a config key"),
    (12, '{}, overrides_by_pairs={100000: {"distill.steps": 1.5}}', "must be a whole number"),
    (13, '{"distill.ceo": 1}', "must be true or false")])
def test_what_a_preset_cannot_override(plugin, number, overrides, match):
    plugin(f"presets_that_override_{number}", f"def p(): return PresetSpec({overrides})")
    with pytest.raises(UserError, match=match):
        preset_config(base(), f"presets_that_override_{number}:p")


@pytest.mark.parametrize("key", ["model.tau=5", "data.size=64", "text.dim=8", "run.dir=a", "run.seed=1", "plan.images=3",
                                 "watch.project=a"])
def test_keys_that_hold_for_all_presets(key):
    with pytest.raises(UserError, match=f"config.{key.partition('=')[0]} holds for all presets of a run"):
        at(100, "mdw", (f"lors:{key}",))


def test_a_preset_can_override_a_list_and_a_whole_number_for_a_number(plugin):
    plugin("presets_that_are_fine", 'def p(): return PresetSpec({"evaluate.lr_scales": [0.1], "distill.lr_texts": 2})')
    c = preset_config(base(), "presets_that_are_fine:p")
    assert tuple(c.evaluate.lr_scales) == (0.1,) and c.distill.lr_texts == 2.0


@pytest.mark.parametrize("number, presets, match", [
    (0, ("mdw", "infonce", "mdw"), "run.presets holds 'mdw' twice"),
    (1, ("vld", "clashing:vld"), "the presets 'vld' and 'clashing:vld' of run.presets have the same label, 'VLD'"),
    (2, ("clashing:bad_coreset",), "no coreset 'nope' for|there is no coreset 'nope'"),
    (3, ("clashing:no_module",), "coreset of the preset 'clashing:no_module' names 'no_such_module:x'"),
    (4, ("clashing:Holder.p", "clashing:vld"), "the presets 'clashing:Holder.p' and 'clashing:vld'")])
def test_presets_of_a_run_differ_and_name_coresets_that_exist(plugin, number, presets, match):
    plugin("clashing", """
def vld(): return PresetSpec(label="VLD")
def bad_coreset(): return PresetSpec(kind="coreset", coreset="nope", needs_experts=False)
def no_module(): return PresetSpec(kind="coreset", coreset="no_such_module:x", needs_experts=False)
class Holder:
    p = staticmethod(vld)""")
    config = base()
    config.run.presets = presets
    with pytest.raises(UserError, match=match):
        resolve(config)
