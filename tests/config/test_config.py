import pytest

from mdw_jax.config import base, published, resolve
from mdw_jax.config.options import PRETRAINED
from mdw_jax.config.presets import preset_config
from mdw_jax.config.recipes import RECIPES
from mdw_jax.errors import UserError


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
    ({"distill__batch": 20, "distill__pairs": 10}, r"distill.batch \(20\) exceeds distill.pairs \(10\)"),
    ({"distill__max_start_epoch": 0}, "max_start_epoch"),
    ({"distill__max_start_epoch": 3, "distill__match_epochs": 2, "experts__epochs": 3}, "epoch 4 .*epochs is 3"),
    ({"noise__rate": 1.0}, "noise.rate"),
    ({"noise__rate": -0.1}, "noise.rate"),
    ({"experts__division": "half"}, "experts.division must be one of .*'half'"),
    ({"distill__init": "zero"}, "distill.init"),
    ({"distill__optimizer": "lion"}, "distill.optimizer"),
    ({"evaluate__protocol": "fair"}, "evaluate.select_on"),
    ({"data__name": "coco"}, "data.name"),
    ({"model__tower": "resnet"}, "model.tower"),
    ({"experts__augment": "mixup"}, "experts.augment"),
    ({"distill__augment": "mixup"}, "distill.augment"),
    ({"model__mode": "projection", "experts__augment": "flip"}, "experts.augment.*projection"),
    ({"evaluate__every": 30, "evaluate__steps": 20}, r"evaluate.every \(30\) exceeds evaluate.steps \(20\)"),
    ({"evaluate__lr_scales": ()}, "evaluate.lr_scales"),
    *(({name: 0}, name.replace("__", ".")) for name in (
        "distill__steps", "distill__inner_steps", "distill__batch", "distill__sets", "distill__trajectories",
        "distill__checkpoint_every", "distill__match_epochs", "experts__count", "experts__epochs", "experts__batch",
        "evaluate__students", "evaluate__steps", "evaluate__every")),
])
def test_impossible_combinations(values, words):
    if "experts__epochs" not in values:
        values = {"experts__epochs": 6, **values}
    with pytest.raises(UserError, match=words):
        resolve(changed(**values))


def test_matching_may_reach_the_last_epoch_but_not_beyond():
    limit = {"distill__max_start_epoch": 3, "distill__match_epochs": 2}
    assert resolve(changed(**limit, experts__epochs=4)).experts.epochs == 4


def test_the_pretrained_towers_that_the_config_names_are_those_there_are():
    from mdw_jax.models.image import pretrained

    assert set(PRETRAINED) == set(pretrained.RECIPES)


def test_the_published_setting_and_its_configs_resolve():
    for preset in ("vld", "lors", "repblend", "mdw"):
        config = published()
        config.model.mode = "projection" if preset == "repblend" else "full"
        assert preset_config(config, preset).data.size == 224
