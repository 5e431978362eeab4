"""The compiled functions of the distillation loop, and compiling them while experts are trained."""

import contextlib
import functools
import logging
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar

import jax

from mdw_jax.data.resizing import stored_shape
from mdw_jax.io.records import complete
from mdw_jax.method import covariance, distill, grad_cam
from mdw_jax.method.distill import outer_shapes
from mdw_jax.method.objective import Method, method_of
from mdw_jax.models.dual_encoder import DualEncoder
from mdw_jax.models.image.conv import on_cpu
from mdw_jax.models.jit import jit_with_frozen
from mdw_jax.pipeline.prepared import Prepared
from mdw_jax.pipeline.preset_run import PresetRun
from mdw_jax.runtime.processes import several_processes

T = TypeVar("T")
logger = logging.getLogger(__name__)

# The outer step of each `distill.objective`: (model, method) -> jitted step.
OBJECTIVES: dict[str, Callable[[DualEncoder, Method], Callable]] = {
    "trajectories": distill.make_outer_step, "covariance": covariance.make_outer_step,
}


@functools.lru_cache(maxsize=4)  # all sets of a preset share the compiled functions
def compiled_outer_step(model: DualEncoder, method: Method) -> Callable:
    """The jitted outer step of `method.objective`."""
    if method.remat != "none" and on_cpu():
        logger.warning("distill.remat=%s saves no memory on a CPU, where XLA merges what is computed again with the first "
                       "time; lower distill.chunk (projection mode) or distill.batch instead.", method.remat)
    return OBJECTIVES[method.objective](model, method)


@functools.lru_cache(maxsize=4)
def compiled_pixel_weights(model: DualEncoder, method: Method, count: int) -> Callable:
    """The jitted function (params, learned) -> Grad-CAM weights (M, H, W, 1) of the pixels of `count` images."""
    def pixel_weights(model, params, learned):
        return grad_cam.pixel_weights(model, params, learned["images"], learned["texts"], learned["correspondence"],
                                      alpha=method.alpha, loss=method.loss, top_k=min(method.ceo_top_k, count),
                                      beta=method.ceo_beta, seen_size=method.seen_size, chunk=method.chunk)

    return jit_with_frozen(model, pixel_weights)


@contextlib.contextmanager
def compile_in_background(run: PresetRun, prepared: Prepared) -> Iterator[None]:
    """Compile the outer step in a thread while experts are trained inside: on accelerators both take minutes.

    Nothing is compiled ahead for presets that distill nothing, make no outer step, or have no experts; where the experts
    are already trained; and with several processes, which may have to compile in the same order.
    """
    if (run.spec.kind != "distilled" or not run.spec.needs_experts or not run.config.distill.steps or several_processes()
            or complete(run.experts.path / "experts.json", run.experts.key) is not None):
        yield
        return
    settings, model = run.config.distill, prepared.model
    images = (settings.pairs, *stored_shape(prepared.pairs.train.images.shape[1:], settings.image_size))
    texts = (settings.pairs, *jax.eval_shape(model.text_inputs, prepared.captions.train[:1]).shape[1:])
    method = method_of(run.config)
    step: Any = compiled_outer_step(model, method)
    shapes = outer_shapes(model, method, settings.trajectories, images, texts)
    # Leaving waits for the thread in any case: a process that ends while XLA compiles crashes.
    with ThreadPoolExecutor(1) as pool:
        pool.submit(lambda: step.lower(*shapes).compile())  # a failure here shows again when the step is called
        yield


def prepare_next(prepare: Callable[[int], T], numbers: Iterable[int]) -> Iterator[tuple[int, T]]:
    """Yield (n, prepare(n)) for each number, while a thread prepares the next one."""
    numbers = list(numbers)
    with ThreadPoolExecutor(1) as pool:
        future = pool.submit(prepare, numbers[0]) if numbers else None
        for position, n in enumerate(numbers):
            result = future.result()
            following = numbers[position + 1 :][:1]
            future = pool.submit(prepare, following[0]) if following else None
            yield n, result
