"""The presets "..., as published" against three whole updates made by running the peers' own outer-step code.

What follows from the preset comes from the preset; the file gives sizes, random choices, and the networks.
"""

import dataclasses
import functools
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from goldens import assert_close, golden_files

from mdw_jax.config import base
from mdw_jax.config.overrides import preset_config
from mdw_jax.method.correspondence import correspondence
from mdw_jax.method.distill import init_state, optimizer_of, outer_update, pixel_std
from mdw_jax.method.objective import Blend, Draws, method_of, objective, roll_out, step_sizes, student_inputs
from mdw_jax.models.dual_encoder import dual_encoder
from mdw_jax.models.image.tower import Tower
from mdw_jax.runtime.pytree import stack

FILES = golden_files("published")
TOLERANCE = 1e-4
# Units of pixels: the peer's own, already normalized, as the files have them, and those of this package.
UNITS = {"normalized": ((0.0, 0.0, 0.0), (1.0, 1.0, 1.0)), "pixels": ((0.48, 0.46, 0.41), (0.27, 0.26, 0.28))}


class Replay:
    """A golden file as arguments of the outer step.

    Attributes:
        golden, config: the file, and its hyper-parameters.
        mean, std: pixels are `std * (those of the file) + mean`.
    """

    def __init__(self, path, units):
        self.golden = np.load(path)
        self.config = json.loads(str(self.golden["config"]))
        self.mean, self.std = (np.array(numbers, np.float32) for numbers in UNITS[units])
        self.full = "tower/dense.weight" not in self.golden.files

    @functools.cached_property
    def method(self):
        """The preset at the file's sizes."""
        c, numbers = base(), self.config
        c.model.mode = "full" if self.full else "projection"
        c.distill.pairs = numbers["pairs"]
        method = method_of(preset_config(c, f"{numbers['peer']}_published"))
        sizes = {"inner_steps": numbers["inner_steps"], "batch": numbers["batch"]}
        if "alpha" in numbers:
            sizes |= {"alpha": numbers["alpha"], "rank": numbers["rank"], "lr_correspondence": numbers["lr_similarity"]}
        sizes |= {"lr_images": numbers["lr_images"], "lr_texts": numbers["lr_texts"], "lr_inner_lr": numbers["lr_lr"]}
        if numbers.get("merge"):
            sizes["loss_merge"] = "merged_data"
        return dataclasses.replace(method, **sizes)

    @functools.cached_property
    def model(self):
        scale = self.config["scale"]
        # VLD's factor is of the unroll alone, so it has to come from the preset.
        tau = 0.07 if self.config["peer"] == "vld" else 1 / scale

        def feature_map(params, images):
            flat = ((images - self.mean) / self.std).reshape(len(images), -1)
            return jnp.tanh(flat @ params["weight"].T + params["bias"])[:, None, None]

        width = self.config["embedding_width"] if self.full else self.config["feature_width"]
        backbone = None if self.full else self.dense("tower/")
        tower = Tower("dense", lambda key: {}, feature_map, width, std=tuple(float(x) for x in self.std))
        return dual_encoder(tower, backbone, self.config["text_width"], mode="full" if self.full else "projection",
                            dim=self.config["embedding_width"], tau=tau)

    def dense(self, prefix):
        return {name: jnp.asarray(self.golden[f"{prefix}dense.{name}"]) for name in ("weight", "bias")}

    def head(self, prefix):
        """A projection head of the file in the layout of this package."""
        read = lambda name: jnp.asarray(self.golden[prefix + name])
        linear = lambda name: {"kernel": read(f"{name}.weight").T, "bias": read(f"{name}.bias")}
        return {"projection": linear("projection"), "fc": linear("fc"),
                "layer_norm": {"scale": read("layer_norm.weight"), "bias": read("layer_norm.bias")}}

    def snapshot(self, epoch):
        prefix = f"snapshot_{epoch}/image/"
        image = {"backbone": self.dense(prefix)} if self.full else {"head": self.head(prefix)}
        return {"image": image, "text": self.head(f"snapshot_{epoch}/text/")}

    def ends(self, update):
        """(starts, targets) of an update, each of one trajectory."""
        start = int(self.golden["start"][update - 1])
        ahead = self.config["expert_epochs"]
        return stack([self.snapshot(start)]), stack([self.snapshot(start + ahead)])

    def draws(self, update):
        read = lambda name: jnp.asarray(self.golden[name][update - 1])[None]
        blends = Blend(read("blend"), read("permutations")) if "blend" in self.golden.files else Blend()
        return Draws(read("batches"), blends, jax.random.key(0))

    def state(self):
        """The state before the first update."""
        state = init_state(jax.random.key(0), self.method, self.golden["images"] * self.std + self.mean,
                           self.golden["texts"])
        learned = state.learned | {"inner_lr": {branch: jnp.float32(self.golden[f"lr_{branch}"])
                                                for branch in ("image", "text")}}
        if learned["correspondence"]:
            learned["correspondence"] = {name: jnp.asarray(self.golden[name]) for name in ("diag", "left", "right")}
        return state._replace(learned=learned, average=learned)

    def named(self, learned, gradient=False):
        """Learned tensors, or their gradients, by the names and in the units of the file."""
        images = learned["images"] * self.std if gradient else (learned["images"] - self.mean) / self.std
        sizes = learned["inner_lr"]
        return {"images": images, "texts": learned["texts"], "lr_image": sizes["image"], "lr_text": sizes["text"],
                **learned["correspondence"]}

    def flat(self, final, branch):
        """Parameters of a branch, in the order of the file."""
        order = [name.split("/")[2] for name in self.golden.files if name.startswith(f"snapshot_0/{branch}/")]
        part = final[branch].get("backbone") or final[branch].get("head", final[branch])
        values = []
        for name in order:
            layer, _, leaf = name.rpartition(".")
            if layer == "dense":
                values.append(part[leaf])
            elif layer == "layer_norm":
                values.append(part[layer]["scale" if leaf == "weight" else "bias"])
            else:
                values.append(part[layer]["kernel"].T if leaf == "weight" else part[layer]["bias"])
        return np.concatenate([np.ravel(value) for value in values])


@functools.cache
def replay(path, units):
    """The replay of a file, and all that its updates gave: {key of the file: value}."""
    replayed = Replay(path, units)
    model, method = replayed.model, replayed.method
    optimizer = optimizer_of(method, pixel_std(model.tower, method))
    rows = jnp.arange(replayed.config["pairs"])
    weights = jnp.ones((*replayed.golden["images"].shape[:3], 1))

    def update(state, starts, targets, draws):
        (loss, inner), gradient = jax.value_and_grad(objective, argnums=2, has_aux=True)(
            model, method, state.learned, starts, targets, draws)
        learned = {**state.learned, "inputs": student_inputs(model, method, state.learned, draws.augment)}
        first = jax.tree.map(lambda x: x[0], (starts, draws.batches, draws.blends))
        final, _ = roll_out(model, method, learned, step_sizes(learned), *first)
        new, metrics = outer_update(model, method, optimizer, state, starts, targets, weights, draws)
        p = correspondence(new.learned["correspondence"], rows, method.alpha)
        return new, (loss, inner, gradient, final, p, metrics)

    update, state, values = jax.jit(update), replayed.state(), {}
    for k in range(1, replayed.config["updates"] + 1):
        state, (loss, inner, gradient, final, p, metrics) = update(state, *replayed.ends(k), replayed.draws(k))
        assert metrics["first_nonfinite"] == -1 and metrics["loss"] == loss
        outcome = {"loss": loss, "inner": inner, **replayed.named(state.learned),
                   **{f"d_{name}": value for name, value in replayed.named(gradient, gradient=True).items()},
                   **{f"final_{branch}_params": replayed.flat(final, branch) for branch in ("image", "text")}}
        if method.correspondence != "identity":
            outcome["similarity"] = p
        values |= {f"update_{k}/{name}": value for name, value in outcome.items()}
    return replayed, values


# Files of one peer are enough for the units of pixels: compiling is what takes the time here.
CASES = [(path, "normalized") for path in FILES] + [(path, "pixels") for path in FILES if "vld" in path.stem]


@pytest.mark.parametrize("path, units", CASES, ids=[f"{path.stem}-{units}" for path, units in CASES])
def test_updates_are_those_of_the_published_code(path, units):
    replayed, values = replay(path, units)
    keys = [key for key in replayed.golden.files if key.startswith("update_")]
    parts = {f"update_{k}/loss_{branch}" for k in range(1, replayed.config["updates"] + 1) for branch in ("image", "text")}
    assert set(keys) == set(values) | parts  # of `loss` there are also its two parts
    worst = {}
    for key in values:
        expected = replayed.golden[key]
        worst[key] = float(np.abs(np.asarray(values[key]) - expected).max() / np.abs(expected).max())
    assert max(worst.values()) <= TOLERANCE, max(worst.items(), key=lambda item: item[1])


@pytest.mark.parametrize("path", [path for path in FILES if any(
    name.startswith("merged/") for name in np.load(path).files)], ids=lambda path: path.stem)
def test_merged_gradients_leave_the_step_sizes_as_published(path):
    replayed = Replay(path, "normalized")
    method = dataclasses.replace(replayed.method, loss_merge="merged_data")
    gradient = jax.jit(jax.grad(lambda learned: objective(
        replayed.model, method, learned, *replayed.ends(1), replayed.draws(1))[0]))(replayed.state().learned)
    for name, value in replayed.named(gradient, gradient=True).items():
        assert_close(value, replayed.golden[f"merged/d_{name}"], TOLERANCE)


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_constants_of_the_preset_are_those_of_the_file(path):
    config = json.loads(str(np.load(path)["config"]))
    c = base()
    c.model.mode = "projection"
    rates = []
    for pairs in (99, 199, 499):
        c.distill.pairs = pairs
        method = method_of(preset_config(c, f"{config['peer']}_published"))
        rates.append((method.lr_images, method.lr_texts))
        assert (method.optimizer, method.lr_inner_lr, method.decay) == ("sgd", config["lr_lr"], "none")
        assert method.gradient == {"unroll": "exact", "two-pass": "detached"}[config["gradient"]]
        assert (method.inner_lr_form, method.clip_images, config["clamp"]) == (config["step_sizes"], False, None)
        if method.logit_scale:
            assert method.logit_scale == pytest.approx(config["scale"], rel=1e-6)
    assert (config["lr_images"], config["lr_texts"]) in rates
