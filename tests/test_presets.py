import pytest

from mdw_jax.config import base, resolve
from mdw_jax.errors import UserError
from mdw_jax.presets import DISTILLED, LABELS, PRESETS, preset_config


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
