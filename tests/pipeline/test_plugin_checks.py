"""Functions from outside the package that do not do what is expected are refused before data are read."""

import pytest
from end_to_end.test_run import NO_CONVNET, tiny

from mdw_jax.config import presets
from mdw_jax.config.presets import PresetSpec
from mdw_jax.errors import UserError
from mdw_jax.pipeline import run
from mdw_jax.pipeline.prepared import prepare
from mdw_jax.pipeline.preset_run import resolve_run
from mdw_jax.pipeline.sweep import grid

MODULE = """
import jax
import jax.numpy as jnp
import optax
from mdw_jax.models.image.tower import Tower

def row_loss(logits): return -jnp.diagonal(jax.nn.log_softmax(logits))
def count(logits): return jnp.zeros(logits.shape, int)
def undecided(logits, q): return logits**2 + q
def branches(logits):
    if logits[0, 0] > 0:
        return logits
    return -logits
def per_row(logits, target): return ((logits - target) ** 2).mean(-1)
def only_logits(logits): return logits.mean()
def pair(logits, target): return logits.mean(), target.mean()
def halves(key, images): return images[:, ::2]
def breaks(key, images): raise ValueError("of no use,\\n  at all")
def sgd(): return optax.sgd(0.1)
def nothing(): return optax.set_to_zero()
def count_steps():
    return optax.GradientTransformation(lambda params: 0, lambda g, state, params=None: (g, (state, state)))
def flat():
    return optax.GradientTransformation(lambda params: (), lambda g, state, params=None: (jax.tree.leaves(g), state))
def needs_rate(rate): return optax.identity()
def chain(): return optax.chain(optax.clip(1.0), optax.centralize(), optax.add_decayed_weights(0.1), optax.trace(0.5))
def wide(shape): return Tower("wide", lambda key: {"w": jnp.ones(3)}, lambda params, x: x * params["w"], width=7)
def broken(shape): return Tower("broken", lambda key: {}, lambda params, x: x @ jnp.ones((5, 5)), width=5)
"""
MISTAKES = {
    ("experts.clean_loss", "row_loss"): r"which returns float32 \(4,\) for logits; let it return float32 \(4, 4\)",
    ("experts.tolerant_loss", "row_loss"): r"which returns float32 \(4,\)",
    ("experts.clean_loss", "count"): r"which returns int32 \(4, 4\)",
    ("experts.clean_loss", "undecided"): "has an exponent q without a default; give it one",
    ("experts.tolerant_loss", "branches"): r"fails when it is tried \(TracerBoolConversionError: .*--debug shows where\)",
    ("distill.loss", "per_row"): r"which returns float32 \(4,\) for logits and a target, .*; let it return one number",
    ("distill.loss", "only_logits"): r"fails when it is tried \(TypeError: only_logits\(\) takes 1 positional",
    ("distill.loss", "pair"): r"which returns tuple of float32 \(\), float32 \(\)",
    ("experts.augment", "halves"): r"returns float32 \(2, 8, 16, 3\) for a key and images; .* float32 \(2, 16, 16, 3\)",
    ("distill.augment", "breaks"): r"fails when it is tried \(ValueError: of no use, at all\); fix it \(--debug",
    ("distill.inner_optimizer", "sgd"): "its update points against the gradient: give the direction alone, without sign",
    ("distill.inner_optimizer", "nothing"): "whose first update is 0, infinite or NaN",
    ("distill.inner_optimizer", "count_steps"): "whose update returns a state of another structure",
    ("distill.inner_optimizer", "flat"): "whose update returns directions of another structure",
    ("distill.inner_optimizer", "needs_rate"): r"fails when it is tried \(TypeError: needs_rate\(\) missing",
}


@pytest.fixture(autouse=True)
def module(tmp_path, monkeypatch):
    (tmp_path / "my_mistakes.py").write_text(MODULE)
    monkeypatch.syspath_prepend(tmp_path)


@pytest.mark.parametrize(("key", "name"), MISTAKES)
def test_a_mistake_is_one_sentence_before_data_are_read(tmp_path, monkeypatch, key, name):
    monkeypatch.setattr(run, "prepare", lambda config: pytest.fail("data were read"))
    config = tiny(tmp_path / "run", **{key.replace(".", "__"): f"my_mistakes:{name}", "run__presets": ("mdw",)})
    with pytest.raises(UserError, match=MISTAKES[key, name]) as error:
        run.STAGES["run"](config)
    message = str(error.value)
    assert key in message and f"'my_mistakes:{name}'" in message and "\n" not in message and len(message) < 350
    assert not (tmp_path / "run").exists()
    with pytest.raises(UserError, match=MISTAKES[key, name]):
        grid(config, {"noise.rate": (0.2,)})


@pytest.mark.parametrize("name", ["my_mistakes:chain", "optax:identity", "optax:scale_by_adam", "optax:scale_by_rms"])
def test_optimizers_that_give_directions_pass(tmp_path, name):
    resolve_run(tiny(tmp_path, run__presets=("mdw",), distill__inner_optimizer=name))


def test_what_a_preset_overrides_is_checked_too(tmp_path, monkeypatch):
    preset = PresetSpec({"distill.inner_optimizer": "my_mistakes:sgd"}, "climbs")
    monkeypatch.setitem(presets.PRESETS, "mdw", preset)
    with pytest.raises(UserError, match="points against the gradient"):
        resolve_run(tiny(tmp_path, run__presets=("mdw",)))


def test_a_coreset_that_cannot_be_imported_is_refused_early(tmp_path, monkeypatch):
    preset = PresetSpec(label="lost", kind="coreset", coreset="my_mistakes:lost", needs_experts=False)
    monkeypatch.setitem(presets.PRESETS, "mdw", preset)
    with pytest.raises(UserError, match="names 'my_mistakes:lost', which cannot be imported"):
        resolve_run(tiny(tmp_path, run__presets=("mdw",)))


@pytest.mark.parametrize(("name", "message"), [
    ("wide", r"whose features of images \(2, 16, 16, 3\) are of shape \(2, 3\) and not \(2, 7\)"),
    ("broken", r"whose tower fails for images \(2, 16, 16, 3\) \(TypeError: .*; fix it \(--debug")])
@pytest.mark.parametrize("key", ["model.tower", "evaluate.tower"])
def test_a_tower_that_fails_is_one_sentence_before_anything_is_trained(tmp_path, key, name, message):
    others = NO_CONVNET if key == "model.tower" else {"evaluate__mode": "full"}
    config = tiny(tmp_path, **{key.replace(".", "__"): f"my_mistakes:{name}"}, **others)
    with pytest.raises(UserError, match=message) as error:
        prepare(resolve_run(config))
    assert key in str(error.value) and "\n" not in str(error.value)
