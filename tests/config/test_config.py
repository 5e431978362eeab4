from pathlib import Path

import pytest

from mdw_jax.config import base, published, resolve
from mdw_jax.config.loading import load_config
from mdw_jax.config.overrides import preset_config
from mdw_jax.config.recipes import RECIPES
from mdw_jax.config.validation import check_starts, refuse_unused
from mdw_jax.data.registry import settings_of
from mdw_jax.errors import UserError

CONFIGS = Path(__file__).parents[2] / "configs"
SHIPPED = [path for path in sorted(CONFIGS.rglob("*.py")) if "def get_config" in path.read_text()]


def changed(**values):
    """base() with values given as section__name=value."""
    c = base()
    c.update_from_flattened_dict({name.replace("__", "."): value for name, value in values.items()})
    return c


def test_the_defaults_resolve_into_a_locked_copy():
    config = base()
    resolved = resolve(config)
    assert resolved.is_locked and not config.is_locked
    with pytest.raises((AttributeError, KeyError)):
        resolved.distill.no_such_option = 1
    assert resolve(resolved).to_dict() == resolved.to_dict()


@pytest.mark.parametrize("recipe", RECIPES)
def test_every_recipe_resolves_to_its_choices(recipe):
    config = changed(experts__recipe=recipe, experts__lr=0.3, experts__lr_infonce=0.07)
    resolved = resolve(config).experts
    untouched = base().experts
    for name in untouched:
        if name not in ("recipe", "lr", "lr_infonce"):
            assert resolved[name] == RECIPES[recipe].get(name, untouched[name])
    assert resolved.lr == (0.07 if recipe in ("infonce", "infonce_ema", "debiased") else 0.3)
    assert config.experts.lr == 0.3


@pytest.mark.parametrize("values, words", [
    ({"experts__recipe": "magic"}, "no expert recipe 'magic'"),
    ({"distill__max_start_epoch": 0}, "max_start_epoch"),
    ({"distill__max_start_epoch": 3, "distill__match_epochs": 2, "experts__epochs": 3}, "epoch 4 .*epochs is 3"),
    ({"noise__rate": 1.0}, "noise.rate"),
    ({"noise__rate": -0.1}, "noise.rate"),
    ({"experts__division": "half"}, "no division 'half'; set experts.division to one of gmm, oracle"),
    ({"distill__init": "zero"}, "distill.init"),
    ({"distill__optimizer": "lion"}, "distill.optimizer"),
    ({"evaluate__select_on": "train"}, "evaluate.select_on"),
    ({"data__name": "coco"}, "data.name"),
    ({"model__tower": "resnet"}, "model.tower"),
    ({"experts__augment": "mixup"}, "experts.augment"),
    ({"distill__augment": "mixup"}, "distill.augment"),
    ({"model__mode": "projection", "experts__augment": "flip"}, "experts.augment.*projection"),
    ({"evaluate__every": 30, "evaluate__steps": 20}, r"evaluate.every \(30\) exceeds evaluate.steps \(20\)"),
    ({"evaluate__lr_scales": ()}, "evaluate.lr_scales"),
    *(({name: 0}, name.replace("__", ".")) for name in (
        "distill__inner_steps", "distill__batch", "distill__sets", "distill__trajectories",
        "distill__checkpoint_every", "distill__match_epochs", "experts__count", "experts__epochs", "experts__batch",
        "evaluate__students", "evaluate__steps", "evaluate__every")),
])
def test_impossible_combinations(values, words):
    if "experts__epochs" not in values:
        values = {"experts__epochs": 6, **values}
    with pytest.raises(UserError, match=words):
        resolve(changed(**values))


@pytest.mark.parametrize("values, words", [
    ({"model__vit_depth": 2}, "model.vit_depth is set, but the tower 'convnet' does not take it; .* model.tower"),
    ({"model__tower": "vit", "model__widths": (8, 8, 8)}, "model.widths is set, but the tower 'vit'"),
    ({"model__tower": "nfnet_l0", "model__weights": "a.safetensors", "model__pretrain_epochs": 1}, "pretrain_epochs"),
    ({"model__weights": "a.safetensors"}, "model.weights is set, but the tower 'convnet'"),
    ({"model__tower": "json:dumps", "model__vit_depth": 2}, "the tower 'json:dumps' does not take it"),
    ({"text__pooling": "cls"}, "text.pooling is set, but the encoder 'bow' does not take it; .* text.encoder"),
    ({"text__path": "features.npz"}, "text.path is set, but the encoder 'bow'"),
    ({"text__encoder": "precomputed", "text__path": "a.npz", "text__dim": 24}, "the encoder 'precomputed'"),
    ({"evaluate__weights": "a.safetensors"}, "evaluate.weights is set, but evaluate.tower is empty"),
    ({"evaluate__tower": "vit", "evaluate__weights": "a.safetensors"}, "evaluate.weights is set, but the tower 'vit'"),
    ({"data__captions_rate": 0.2}, "data.captions_rate is set, but data.captions is empty"),
    ({"model__pretrain_images": 10}, "model.pretrain_images is set, but model.pretrain_epochs is 0"),
    ({"experts__epochs": 2}, "recovery and guidance begin at epoch 2 .* experts.epochs is 2: they would never begin"),
    ({"experts__warmup": 7}, "recovery and guidance begin at epoch 7"),
    ({"experts__recovery_start": 6, "experts__guidance_weight": 0.0},
     r"begin at epoch 6 .*lower experts.recovery_start \(6\) or raise"),
    ({"experts__recovery_start": 6, "experts__recovery_weight": 0.0}, "begin at epoch 6"),
    ({"experts__optimizer": "adam", "experts__momentum": 0.9}, "experts.momentum is of SGD, and experts.optimizer is adam"),
    ({"data__on_error": "warn"}, "data.on_error"),
])
def test_settings_that_cannot_take_effect(values, words):
    with pytest.raises(UserError, match=words):
        resolve(changed(**values))


@pytest.mark.parametrize("values", [
    {"evaluate__tower": "vit", "model__vit_depth": 2, "model__widths": (8, 8, 8)},  # of the students' tower
    {"text__encoder": "transformer", "text__path": "bert", "text__pooling": "cls", "text__max_tokens": 8},
    {"experts__epochs": 2, "experts__teacher_count": 1},  # finished teachers recover and guide from the first epoch
    {"experts__epochs": 2, "experts__recipe": "tolerant"},
    {"experts__epochs": 2, "experts__recovery_weight": 0.0, "experts__guidance_weight": 0.0},
    {"experts__epochs": 2, "run__presets": ("random", "infonce", "full")},  # no preset with the config's own recipe
    {"experts__clean_loss": "mae", "experts__clean_q": 0.3},  # a loss without an exponent ignores it
])
def test_settings_that_can(values):
    resolve(changed(**values))


@pytest.mark.parametrize("values, unused", [
    ({"distill__prototype_steps": 7}, "distill.prototype_steps is set, but nothing uses it: .*distill.init=prototypes"),
    ({"distill__correspondence_init": "identity", "distill__correspondence": "identity",
      "distill__correspondence_tau": (0.2,)}, "distill.correspondence_tau .*distill.correspondence_init=experts"),
    ({"distill__prototype_steps": 7, "distill__init": "prototypes"}, ""),
    ({"distill__prototype_steps": 7, "run__presets": ("prototypes", "vld")}, ""),
    ({"distill__correspondence_init": "identity", "distill__correspondence": "identity",
      "distill__correspondence_tau": (0.2,), "run__presets": ("vld_taught",)}, ""),
])
def test_settings_of_starts_are_used_by_the_config_or_a_preset(values, unused):
    if not unused:
        check_starts(changed(**values))
        return
    with pytest.raises(UserError, match=unused):
        check_starts(changed(**values))


def test_matching_may_reach_the_last_epoch_but_not_beyond():
    limit = {"distill__max_start_epoch": 3, "distill__match_epochs": 2}
    assert resolve(changed(**limit, experts__epochs=4)).experts.epochs == 4


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: path.stem)
def test_shipped_configs_load_and_resolve(path):
    config = load_config(str(path))
    for preset in config.run.presets:
        preset_config(config, preset)
    refuse_unused("data", config.data, "name", "reader", [*settings_of(config.data.name), "name"])


def test_the_published_setting_and_its_configs_resolve():
    for preset in ("vld", "lors", "repblend", "mdw", "vld_published", "lors_published", "repblend_published"):
        config = published()
        if "repblend" in preset:
            config.model.mode, config.experts.augment = "projection", "none"
        assert preset_config(config, preset).data.size == 224


def test_a_set_smaller_than_the_batch_is_the_batch():
    c = base()
    c.distill.pairs, c.distill.batch = 10, 20
    assert resolve(c).distill.batch == 10 and c.distill.batch == 20
