"""CLIP's image tower against outputs of `transformers`."""

import json

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from golden_weights import compare, jit, read
from goldens import golden_files

from mdw_jax.errors import UserError
from mdw_jax.models.image.pretrained import clip_spec, tower_of

FILES = golden_files("clip_vision")
CONFIG = {"hidden_size": 24, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 3,
          "image_size": 32, "patch_size": 8, "projection_dim": 20}


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_outputs_and_gradients_equal_those_of_transformers(path):
    config = json.loads(str(read(path)[0]["config"]))
    compare(path, "clip", clip_spec(config))
    whole = {"vision_config": {**config, "projection_dim": 999}, "projection_dim": config["projection_dim"]}
    assert clip_spec(whole).module((64, 64, 3)) == clip_spec(config).module((64, 64, 3))


def test_a_whole_model_is_read_and_what_is_missing_is_named():
    shape = (24, 40, 3)  # not the grid of the weights: positions are resized
    fresh = tower_of(clip_spec(CONFIG), "clip", shape)
    generator = np.random.default_rng(0)
    h, m = CONFIG["hidden_size"], CONFIG["intermediate_size"]
    dense = {"self_attn.q_proj": (h, h), "self_attn.k_proj": (h, h), "self_attn.v_proj": (h, h),
             "self_attn.out_proj": (h, h), "mlp.fc1": (m, h), "mlp.fc2": (h, m), "layer_norm1": (h,),
             "layer_norm2": (h,)}
    shapes = {"embeddings.class_embedding": (h,), "embeddings.patch_embedding.weight": (h, 3, 8, 8),
              "embeddings.position_embedding.weight": (17, h), "pre_layrnorm.weight": (h,), "pre_layrnorm.bias": (h,),
              "post_layernorm.weight": (h,), "post_layernorm.bias": (h,)}
    for i in range(CONFIG["num_hidden_layers"]):
        for name, size in dense.items():
            shapes |= {f"encoder.layers.{i}.{name}.weight": size, f"encoder.layers.{i}.{name}.bias": size[:1]}
    tensors = {f"vision_model.{name}": generator.normal(size=size) for name, size in shapes.items()}
    tensors |= {"visual_projection.weight": generator.normal(size=(CONFIG["projection_dim"], h)),
                "text_projection.weight": np.zeros((3, 3)), "logit_scale": np.zeros(())}
    params = tower_of(clip_spec(CONFIG), "clip", shape, tensors).init(None)
    expected = jax.eval_shape(fresh.init, jax.random.key(0))
    chex.assert_trees_all_equal_shapes(params, expected)
    del tensors["vision_model.encoder.layers.1.mlp.fc2.bias"]
    with pytest.raises(UserError, match="1 tensors .*vision_model.encoder.layers.1.mlp.fc2.bias is missing"):
        tower_of(clip_spec(CONFIG), "clip", shape, tensors)


def test_grad_cam_sees_patches_and_colors_are_normalized_as_clip_normalizes_them():
    spec = clip_spec(CONFIG)
    tower = tower_of(spec, "clip", (24, 40, 3))
    params = tower.init(jax.random.key(0))
    images = jnp.asarray(np.random.default_rng(0).uniform(size=(2, 24, 40, 3)), jnp.float32)
    last = jit(tower.feature_map)(params, images)
    slopes = tower.grid(jit(jax.grad(lambda x: tower.pool(params, x).sum()))(last))
    assert slopes.shape == (2, 3, 5, 24) and np.abs(slopes).max(-1).min() > 0
    mean = jnp.broadcast_to(jnp.asarray([0.48145466, 0.4578275, 0.40821073]), images.shape)
    module = spec.module((24, 40, 3))
    expected = jit(module.apply)({"params": params}, 0 * images)
    np.testing.assert_allclose(jit(tower.feature_map)(params, mean), expected, atol=1e-5)


@pytest.mark.parametrize("change, message", [
    ({"patch_size": None}, "patch_size = None"), ({"projection_dim": "512"}, "projection_dim = '512'"),
    ({"hidden_act": "swishy"}, "activation 'swishy'"), ({"num_attention_heads": 5}, "5 attention heads do not divide"),
    ({"patch_size": 7}, "patches of 7 px")])
def test_configurations_that_are_no_tower_of_ours_are_refused(change, message):
    with pytest.raises(UserError, match=message):
        tower_of(clip_spec(CONFIG | change), "clip", (32, 32, 3))
