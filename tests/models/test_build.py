from pathlib import Path

import jax
import numpy as np
import pytest
from ml_collections import ConfigDict

from mdw_jax.config import base, options
from mdw_jax.errors import UserError
from mdw_jax.models.build import TOWERS, BuildContext, build_tower, tower_without_weights

SHARED = {"feature_dtype", "tower", "mode", "dim", "image_head", "dtype", "tau"}  # what every tower takes


def section(**changes):
    return ConfigDict(base().model.to_dict() | changes)


def test_the_table_has_every_name_and_every_setting():
    assert set(TOWERS) == set(options.TOWERS) == set(options.TOWER_SETTINGS)
    assert {key for keys in options.TOWER_SETTINGS.values() for key in keys} == set(base().model) - SHARED


@pytest.mark.parametrize("setting", ["model.tower", "evaluate.tower"])
def test_an_unknown_name_is_an_error_and_no_conv_net(setting):
    with pytest.raises(UserError, match=f"no image tower 'alexnet'; set {setting} to one of convnet, vit, mobilenet"):
        build_tower(section(tower="alexnet"), (32, 32, 3), BuildContext(setting=setting))


@pytest.mark.parametrize("setting, weights", [("model.tower", "model.weights"), ("evaluate.tower", "evaluate.weights")])
@pytest.mark.parametrize("name", ["mobilenet", "resnet18"])
def test_missing_weights_are_an_error_that_names_their_setting(name, setting, weights):
    with pytest.raises(UserError, match=f"weights.*set {weights}"):
        build_tower(section(tower=name), (32, 32, 3), BuildContext(setting=setting))


@pytest.mark.parametrize("name", ["mobilenet", "resnet18"])
def test_towers_of_rgb_images_refuse_other_channels(name):
    with pytest.raises(UserError, match=f"'{name}' takes images of 1 or 3 channels"):
        build_tower(section(tower=name), (32, 32, 4), BuildContext())


def test_shapes_alone_need_neither_weights_nor_pretraining():
    tower = tower_without_weights(section(pretrain_epochs=1000), (32, 32, 3))
    assert np.isfinite(jax.tree.leaves(tower.init(jax.random.key(0)))[0]).all()
    assert tower_without_weights(section(tower="resnet18"), (64, 64, 3)).width == 512
    assert not list(Path().glob("backbone-*"))
