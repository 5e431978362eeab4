import pytest

from mdw_jax.config import base, resolve
from mdw_jax.config.overrides import preset_config
from mdw_jax.config.presets import DISTILLED, LABELS, PRESETS
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


PEERS_CONSTANTS = {  # of their code at (preset, M): inner steps, mini-batch, gradient, loss, P, start epochs
    ("vld", 100): (8, 100, "exact", "nce", "identity", 2),
    ("tesla", 200): (8, 20, "detached", "nce", "identity", 2),
    ("lors", 100): (8, 20, "detached", "wbce", "lowrank", 2),
    ("lors", 500): (8, 40, "detached", "wbce", "lowrank", 3),
    ("repblend", 500): (8, 20, "detached", "wbce", "lowrank", 3),
}
LORS_RANK_ALPHA_LR = {100: (10, 3.0, 10.0), 150: (10, 3.0, 10.0), 200: (5, 1.0, 10.0), 500: (20, 0.01, 100.0)}


def at(pairs, preset, tuned=()):
    c = base()
    c.model.mode, c.distill.pairs, c.run.preset_overrides = "projection", pairs, tuned
    return preset_config(c, preset)


@pytest.mark.parametrize("preset, pairs", PEERS_CONSTANTS)
def test_peers_have_the_constants_of_their_code(preset, pairs):
    c = at(pairs, preset)
    d = c.distill
    assert PEERS_CONSTANTS[preset, pairs] == (
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
    assert d.lr_images == pytest.approx((100 if pairs < 200 else 1000) * 0.27**2, rel=0.01)
    assert d.lr_texts == (100 if pairs < 200 else 1000)


def test_a_small_budget_caps_what_cannot_exceed_it():
    assert at(8, "lors").distill.batch == 8 and at(8, "lors").distill.rank == 8


def test_peers_on_our_experts_differ_in_the_experts_only():
    own, ours, mdw = at(100, "lors"), at(100, "lors_dtcl"), at(100, "mdw")
    assert own.distill.to_dict() == ours.distill.to_dict() and ours.experts.to_dict() == mdw.experts.to_dict()


def test_tuned_settings_reach_their_preset_alone_and_overrule_it():
    tuned = ("lors:distill.lr_images=0.5", "lors:distill.optimizer=adam", "mdw:distill.ceo=false",
             "lors:distill.batch=7")
    lors, vld, mdw = (at(100, name, tuned).distill for name in ("lors", "vld", "mdw"))
    assert (lors.lr_images, lors.optimizer, lors.batch, lors.ceo) == (0.5, "adam", 7, False)
    assert vld.to_dict() == at(100, "vld").distill.to_dict() and not mdw.ceo


def test_tuned_settings_can_begin_at_a_budget():
    tuned = ("lors:distill.rank=3", "lors@200:distill.rank=7", "lors@500:distill.rank=9")
    assert [at(pairs, "lors", tuned).distill.rank for pairs in (100, 200, 499, 500)] == [3, 7, 7, 9]


@pytest.mark.parametrize("entry", ["lors", "lors:distill.lr_images", "lors:distill.lr=1", "nobody:distill.lr_images=1",
                                   "lors:distill.batch=many", "mdw:distill.ceo=perhaps", "mdw:run.presets=a"])
def test_a_tuned_setting_that_cannot_be(entry):
    with pytest.raises(UserError, match="run.preset_overrides holds"):
        at(100, "lors", (entry,))


def test_mixing_needs_features():
    c = base()
    with pytest.raises(UserError, match="model.mode to projection"):
        preset_config(c, "repblend")
