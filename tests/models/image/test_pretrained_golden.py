"""Pretrained towers against outputs of `timm`, and what every tower owes the rest of the system."""

import math
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax.traverse_util import flatten_dict, unflatten_dict
from golden_weights import compare, jit, read
from goldens import FOLDER, OURS, assert_close, golden_files

from mdw_jax.errors import UserError
from mdw_jax.models.image import conv
from mdw_jax.models.image.nfnet import NormFreeNet
from mdw_jax.models.image.pretrained import SPECS, PretrainedSpec, pretrained, tower_of
from mdw_jax.models.image.resnet import ResNet
from mdw_jax.models.image.timm_vit import TimmVit
from mdw_jax.models.image.vit_layers import resize_positions

NAMES = ("nf_regnet_b1", "nf_resnet50", "nfnet_l0", "resnet18", "resnet50", "vit_tiny_patch16_224")
FILES = [(path, match[1]) for path in sorted(FOLDER.glob("*.npz"))
         if (match := re.match(r"(\w+?)_\d+x\d+", path.stem)) and match[1] in SPECS]

STATISTICS = (0.5, 0.4, 0.3), (0.2, 0.3, 0.25)
SMALL = {  # every family at a size that compiles soon; between them every kind of layer of the real ones
    "nfnet": NormFreeNet((1,), (32,), "quad", 16, "silu", 0.5, group_size=8, squeeze=0.5, last=24, extra=True),
    "nf_regnet": NormFreeNet((1,), (24,), "3x3", 16, "silu", 2.25, group_size=8, squeeze=0.5, last=32, reg=True),
    "resnet": ResNet((1, 1), bottleneck=False),
    "resnet_bottleneck": ResNet((1,), bottleneck=True),
    "vit": TimmVit((2, 3), 16, 24, 3, depth=2),
}
SHAPE = (32, 48, 3)


def small(name, tensors=None):
    positions = "pos_embed" if name == "vit" else ""
    return tower_of(PretrainedSpec(lambda _: SMALL[name], *STATISTICS, positions=positions), name, SHAPE, tensors)


def drawn(name):
    """A small tower and parameters that are all at work: none of the zeros that initialization puts in."""
    tower, generator = small(name), np.random.default_rng(1)

    def draw(path, leaf):
        z = generator.normal(size=leaf.shape).astype(np.float32)
        if path[-1] == "kernel":
            return z * np.float32(np.prod(leaf.shape[:-1]) ** -0.5)
        return 1 + np.float32(0.1) * z if path[-1] in ("scale", "gain") else np.float32(0.1) * z

    shapes = flatten_dict(jax.eval_shape(tower.init, jax.random.key(0)))
    return tower, unflatten_dict({path: draw(path, leaf) for path, leaf in shapes.items()})


def images(seed=0, count=2):
    return jnp.asarray(np.random.default_rng(seed).uniform(size=(count, *SHAPE)), jnp.float32)


def test_there_is_a_golden_file_of_every_architecture():
    assert FOLDER != OURS or {name for _, name in FILES} == set(NAMES)


# One tower of each family by default; the larger ones of a family take half a minute each.
@pytest.mark.parametrize("path, name", [
    pytest.param(path, name, marks=[pytest.mark.slow] * (name in ("nf_resnet50", "nf_regnet_b1", "resnet50")), id=path.stem)
    for path, name in FILES])
def test_outputs_and_gradients_equal_those_of_timm(path, name):
    compare(path, name, SPECS[name])


@pytest.mark.parametrize("path", golden_files("positions"), ids=lambda path: path.stem)
def test_positions_are_resized_as_timm_resizes_them(path):
    with np.load(path) as golden:
        sizes = [tuple(map(int, name.split("x"))) for name in golden if name != "table"]
        assert sizes
        for size in sizes:
            expected = golden["{}x{}".format(*size)]
            assert_close(resize_positions(golden["table"], size, (14, 14)), expected, 1e-5)
            assert_close(resize_positions(golden["table"][0], size, (7, 7)), expected[0], 1e-5)


def test_positions_of_weights_for_the_very_grid_stay_and_others_must_make_one():
    table = np.arange(26, dtype=np.float32).reshape(13, 2)
    np.testing.assert_array_equal(resize_positions(table, (3, 4), (14, 14)), table)
    with pytest.raises(UserError, match="12 patches, which make neither a square nor 4 x 4"):
        resize_positions(table, (4, 4), (14, 14))
    native = np.random.default_rng(0).normal(size=(197, 2))  # 14 x 14 patches are also 7 x 28, but not these
    assert not np.allclose(resize_positions(native, (7, 28), (14, 14)), native)


@pytest.mark.parametrize("name, width, parameters", [  # timm's and transformers' own counts, without classifiers
    ("nfnet_l0", 2304, 32_769_488), ("nf_resnet50", 2048, 23_508_032), ("nf_regnet_b1", 960, 9_262_984),
    ("resnet18", 512, 11_176_512), ("resnet50", 2048, 23_508_032), ("vit_tiny_patch16_224", 192, 5_524_416),
    ("vit_small_patch16_224", 384, 21_665_664), ("vit_small_patch32_224", 384, 22_493_952),
    ("vit_base_patch16_224", 768, 85_798_656), ("vit_base_patch32_224", 768, 87_455_232),
    ("clip_vit_base_patch32", 512, 87_849_216), ("clip_vit_base_patch16", 512, 86_192_640),
    ("clip_vit_large_patch14", 768, 303_966_208)])
def test_towers_have_as_many_parameters_as_published(name, width, parameters):
    tower = pretrained(name, (224, 224, 3))
    params = jax.eval_shape(tower.init, jax.random.key(0))
    assert sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(params)) == parameters and tower.width == width


def test_tensors_that_do_not_fit_are_named():
    golden, tensors = read(OURS / "resnet18_64x64.npz")
    shape = (*golden["hw"].tolist(), 3)
    pretrained("resnet18", shape, tensors | {"fc.weight": np.zeros((1000, 512))})
    del tensors["layer1.0.bn1.running_mean"]
    tensors["conv1.weight"] = np.zeros((64, 3, 3, 3), np.float32)
    with pytest.raises(UserError) as error:
        pretrained("resnet18", shape, tensors)
    assert "2 tensors" in str(error.value) and "layer1.0.bn1.running_mean is missing" in str(error.value)
    assert "conv1.weight has shape (64, 3, 3, 3), not (64, 3, 7, 7)" in str(error.value)
    with pytest.raises(UserError, match="in 150 tensors .*blocks.0.attn.proj.bias is missing"):
        pretrained("vit_tiny_patch16_224", (64, 64, 3), tensors)


def test_names_and_shapes_that_no_tower_has_are_refused():
    with pytest.raises(UserError, match="no pretrained tower 'resnet19'; choose one of nfnet_l0"):
        pretrained("resnet19", (64, 64, 3))
    with pytest.raises(UserError, match="patches of 16 px, which images of 60 x 64"):
        pretrained("vit_tiny_patch16_224", (60, 64, 3))
    with pytest.raises(UserError, match=r"images \(H, W, 3\), not \(64, 64, 1\)"):
        pretrained("resnet18", (64, 64, 1))


def test_statistics_of_frozen_normalization_work_but_are_no_parameters():
    tower, params = drawn("resnet_bottleneck")
    assert {path[-1] for path in flatten_dict(params)} == {"kernel", "scale", "bias"}
    tensors = {}  # the same by their PyTorch names, with statistics
    for (*modules, leaf), x in flatten_dict(params).items():
        name = re.sub(r"_(?=\d)", ".", ".".join(modules))
        tensors[f"{name}.{'bias' if leaf == 'bias' else 'weight'}"] = x.transpose(3, 2, 0, 1) if x.ndim == 4 else x
        if leaf == "scale":
            tensors |= {f"{name}.running_mean": 0 * x, f"{name}.running_var": 0 * x + 1}

    def features(changes, count=2):
        tower = small("resnet_bottleneck", tensors | changes)
        return jit(tower.features)(tower.init(None), images()[:count])

    assert_close(features({}), jit(tower.features)(params, images()), 1e-6)
    # Statistics do what a scale and a bias would.
    scale, mean, var = tensors["bn1.weight"], np.linspace(-1, 1, 64), np.linspace(0.5, 2, 64)
    new = scale * np.sqrt((1 + 1e-5) / (var + 1e-5))
    folded = {"bn1.weight": new, "bn1.bias": tensors["bn1.bias"] - mean * new / np.sqrt(1 + 1e-5)}
    frozen = {"bn1.running_mean": mean, "bn1.running_var": var}
    assert_close(features(frozen), features(folded), 1e-5)
    assert np.abs(features(frozen) - features({})).max() > 0.01
    assert_close(features(frozen, 1), features(frozen)[:1], 1e-5)  # one image's features are its own


@pytest.mark.parametrize("name", ["nfnet", "resnet", "vit"])
def test_a_random_tower_gives_features_of_a_sane_size(name):
    tower = small(name)
    features = np.asarray(jit(tower.features)(tower.init(jax.random.key(0)), images(count=8)))
    assert features.shape == (8, tower.width) and 0.02 < features.std() < 5
    assert np.linalg.matrix_rank(features - features.mean(0)) > 1


def _through_a_step(tower, params, pixels, lr=0.1):
    """How far one SGD step on a loss of the features moves them: a second-order function of the pixels."""
    def loss(params):
        return jnp.square(tower.features(params, pixels)).mean() * tower.width

    stepped = jax.tree.map(lambda x, g: x - lr * g, params, jax.grad(loss)(params))
    return jnp.square(tower.features(stepped, images(1))).mean()


def test_gradients_through_a_step_are_the_slope():
    tower, params = drawn("vit")
    objective = jit(jax.value_and_grad(lambda pixels: _through_a_step(tower, params, pixels)))
    gradient = objective(images())[1]
    length = jnp.linalg.norm(gradient)
    ahead = gradient / length * 0.03
    slope = (objective(images() + ahead)[0] - objective(images() - ahead)[0]) / 0.06
    assert length > 0
    np.testing.assert_allclose(slope, length, rtol=0.02)


@pytest.mark.parametrize("name", ["nf_regnet", "resnet_bottleneck"])
def test_gradients_through_a_step_are_those_of_native_convolutions(monkeypatch, name):
    tower, params = drawn(name)
    results = []
    for cpu in (True, False):
        monkeypatch.setattr(conv, "on_cpu", lambda cpu=cpu: cpu)
        results.append(jit(jax.value_and_grad(lambda pixels: _through_a_step(tower, params, pixels)))(images()))
    assert_close(results[0][0], results[1][0], 1e-4)
    assert_close(results[0][1], results[1][1], 1e-3)


@pytest.mark.parametrize("name", ["nfnet", "resnet", "vit"])
def test_towers_compute_in_the_dtype_of_the_images(name):
    tower, params = drawn(name)
    expected = jit(tower.features)(params, images())
    features = jit(tower.features)(params, images().astype(jnp.bfloat16))
    assert features.dtype == jnp.bfloat16 and expected.dtype == jnp.float32
    assert_close(features.astype(jnp.float32), expected, 0.1)


@pytest.mark.parametrize("name", ["nfnet", "vit"])
def test_grad_cam_sees_the_places_of_the_last_map(name):
    tower, params = drawn(name)
    last = jit(tower.feature_map)(params, images())
    gradient = jit(jax.grad(lambda x: tower.pool(params, x).sum()))(last)
    places, slopes = tower.grid(last), tower.grid(gradient)
    assert places.shape == slopes.shape and places.shape[0] == 2 and places.ndim == 4
    if name == "vit":  # rows and columns of patches, the class token left out; each place's slope is its own
        assert places.shape == (2, 2, 3, 24)
        np.testing.assert_array_equal(places[:, 1, 2], last[:, 1 + 1 * 3 + 2])
    assert np.abs(slopes).max(-1).min() > 0
