"""Checks of functions from outside the package, `module:function`, before data are read and anything is trained.

Most are only traced on small shapes. Readers, towers, presets, coresets and metrics writers are checked where they are
called.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

from mdw_jax.config.plugin_values import plugin_values
from mdw_jax.config.plugins import error_summary, function_of, is_path
from mdw_jax.config.presets import PresetSpec
from mdw_jax.data.augment import augment
from mdw_jax.data.registry import image_shape
from mdw_jax.errors import UserError
from mdw_jax.method.losses import distillation_loss, expert_loss
from mdw_jax.method.matching import student_optimizer

_LOGITS = jax.ShapeDtypeStruct((4, 4), jnp.float32)
_EXPONENTS = {"experts.clean_loss": "clean_q", "experts.tolerant_loss": "tolerant_q"}
_DIRECTION_ALONE = "give the direction alone, without sign and step size, as optax.identity or optax.trace(0.9) do"


def check_plugins(config: ConfigDict, spec: PresetSpec) -> None:
    """Check the losses, augmentations, student optimizer and coreset of a preset that are from outside the package.

    Args:
        config: the preset's resolved config.
        spec: the preset.

    Raises:
        UserError: one of them fails, or returns something of another shape than is expected.
    """
    for key, [name, *_] in plugin_values(config, "experts", "distill").items():
        if key in _EXPONENTS:
            _check_expert_loss(key, name, config.experts[_EXPONENTS[key]])
        elif key == "distill.loss":
            _check_distillation_loss(key, name)
        elif key == "distill.inner_optimizer":
            _check_student_optimizer(key, name)
    if not is_path(config.data.name):  # the shape of images from a reader of one's own is not known yet
        check_augmentations(config, image_shape(config.data))
    if is_path(spec.coreset):
        function_of(spec.coreset, "the coreset of a preset in run.presets")


def check_augmentations(config: ConfigDict, shape: tuple[int, ...]) -> None:
    """Check the augmentations that are from outside the package.

    Args:
        config: a resolved config.
        shape: (H, W, C) of one image, or (T, H, W, C) of a video clip.

    Raises:
        UserError: one fails, or changes the shape of images.
    """
    images = jax.ShapeDtypeStruct((2, *shape), jnp.float32)
    for key in ("experts.augment", "distill.augment", "distill.init_augment"):
        name = plugin_values(config).get(key, ("none",))[0]
        if is_path(name):
            output = _traced(key, name, lambda seed, images, name=name: augment(jax.random.key(seed), images, name), 0,
                             images)
            _require_same(key, name, output, images, "a key and images")


def _check_expert_loss(key: str, name: str, q: float) -> None:
    output = _traced(key, name, lambda logits: expert_loss(name, q, key)(logits), _LOGITS)
    _require_same(key, name, output, _LOGITS, "logits")


def _check_distillation_loss(key: str, name: str) -> None:
    output = _traced(key, name, distillation_loss(name), _LOGITS, _LOGITS)
    _require_same(key, name, output, jax.ShapeDtypeStruct((), jnp.float32), "logits and a target, both (4, 4),")


def _check_student_optimizer(key: str, name: str) -> None:
    """Its state and directions have the structure that a loop needs, and its directions point along the gradient."""
    # All gradients positive and none like another: centered ones still point along themselves. Parameters are 0, so
    # that weight decay adds nothing.
    gradient = {"bias": np.array([0.5, 1.5], np.float32), "kernel": np.array([[1, 2], [3, 4.5]], np.float32)}
    params = jax.tree.map(np.zeros_like, gradient)
    optimizer = _call(key, name, student_optimizer, name)
    state = _call(key, name, optimizer.init, params)
    output, next_state = _traced(key, name, optimizer.update, gradient, state, params)
    for what, before, after in (("directions", gradient, output), ("a state", state, next_state)):
        if _shapes(before) != _shapes(after):
            raise UserError(f"{key} names '{name}', whose update returns {what} of another structure, shape or dtype "
                            f"than it takes: {_describe(after)} instead of {_describe(before)}; keep it as it is.")
    direction, _ = _call(key, name, optimizer.update, gradient, state, params)
    along = sum(float((g * d).sum()) for g, d in zip(*map(jax.tree.leaves, (gradient, direction)), strict=True))
    if along < 0:
        raise UserError(f"{key} names '{name}': its update points against the gradient: {_DIRECTION_ALONE}.")
    if not 0 < along < np.inf:
        raise UserError(f"{key} names '{name}', whose first update is 0, infinite or NaN for gradients of about 1: "
                        f"{_DIRECTION_ALONE}.")


def _traced(key: str, name: str, function: Callable, *args):
    """The shapes that a function returns for arguments of these shapes, as pytree of `jax.ShapeDtypeStruct`."""
    return _call(key, name, jax.eval_shape, function, *args)


def _call(key: str, name: str, function: Callable, *args):
    """What a function returns. Raises UserError, of one sentence, where it fails."""
    try:
        return function(*args)
    except UserError:
        raise
    except (Exception, SystemExit) as error:
        raise UserError(f"{key} names '{name}', which fails when it is tried ({error_summary(error)}); fix it (--debug "
                        "shows where).") from error


def _require_same(key: str, name: str, output: Any, expected: jax.ShapeDtypeStruct, arguments: str) -> None:
    """Raises UserError where a function returns anything but one array of floats of the expected shape."""
    one = isinstance(output, jax.ShapeDtypeStruct)
    if not one or output.shape != expected.shape or not jnp.issubdtype(output.dtype, jnp.floating):
        raise UserError(f"{key} names '{name}', which returns {_describe(output)} for {arguments}; let it return "
                        f"{_describe(expected) if expected.shape else 'one number, float32 ()'}.")


def _shapes(tree) -> tuple:
    """What a loop needs to stay the same: structure, shapes and dtypes."""
    leaves, structure = jax.tree.flatten(tree)
    return structure, [(np.shape(leaf), jnp.result_type(leaf)) for leaf in leaves]


def _describe(tree) -> str:
    """The arrays of a pytree in words: "float32 (4, 4)"."""
    words = [f"{jnp.result_type(leaf)} {np.shape(leaf)}" for leaf in jax.tree.leaves(tree)]
    if len(words) == 1 and hasattr(tree, "shape"):
        return words[0]
    return f"{type(tree).__name__} of {', '.join(words[:4]) or 'no arrays'}{', ...' if len(words) > 4 else ''}"
