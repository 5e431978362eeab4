"""mdw-jax: multi-modal dataset distillation from noisy image-text pairs, in JAX.

Most users run `mdw run` from the command line and open its results from Python:

    import mdw_jax

    run = mdw_jax.open_run("runs/quickstart")  # scores, config, and paths of a finished run
    print(run, run["mdw"])
    print(dict(zip(mdw_jax.METRICS, run["mdw"].scores.mean(0).tolist())))
    distilled, card = mdw_jax.load_distilled(run["mdw"].set_directories[0])
    print(distilled)  # images, texts, correspondence, step sizes
    dataset = mdw_jax.torch_dataset(run["mdw"].set_directories[0])  # the same as a PyTorch Dataset; needs torch

    trajectory = mdw_jax.open_trajectory(run["mdw"].trajectory_directories[0])
    params = mdw_jax.read_snapshot(trajectory, 2)  # weights of an expert after epoch 2

The same names are the parts from which a distillation is put together by hand; examples/tour.py does so in 100 lines:

    data          Pairs, Split, scenes, karpathy, draw_noise, text_features
    models        convnet, pretrain, dual_encoder, Inputs, Tower
    experts       Recipe, ExpertLoss, train_experts, save_trajectory, open_trajectory, read_snapshot, Trajectory
    distillation  Method, clean_pairs, init_state, schedule, make_outer_step, unroll, matching_loss, correspondence
    evaluation    StudentData, student_data, Protocol, evaluate, scores, METRICS
    files         DistilledSet, save_distilled, load_distilled, open_run, Run, PresetResults, torch_dataset, load_student
    settings      base, frozen_backbone, published, resolve, preset_config, fields
    extending     PresetSpec, DistillationLoss, MetricsWriter
    utilities     named_key, named_generator, stack
    errors        UserError

Every name is imported when it is first used, so that the command line starts quickly.
"""

import importlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from mdw_jax.config import base, frozen_backbone, published, resolve
    from mdw_jax.config.overrides import preset_config
    from mdw_jax.config.presets import PresetSpec
    from mdw_jax.config.sections import fields
    from mdw_jax.data.noise import draw as draw_noise
    from mdw_jax.data.pairs import Pairs, Split
    from mdw_jax.data.readers.karpathy import karpathy
    from mdw_jax.data.synthetic.scenes import scenes
    from mdw_jax.errors import UserError
    from mdw_jax.export.student import load_student
    from mdw_jax.export.torch_dataset import torch_dataset
    from mdw_jax.io.distilled_set import DistilledSet, load_distilled, save_distilled
    from mdw_jax.io.metrics import MetricsWriter
    from mdw_jax.io.scores import METRICS
    from mdw_jax.io.trajectory import Trajectory, open_trajectory, read_snapshot, save_trajectory
    from mdw_jax.method.coresets import clean_pairs
    from mdw_jax.method.correspondence import correspondence
    from mdw_jax.method.distill import Method, init_state, make_outer_step, schedule
    from mdw_jax.method.expert_step import Recipe
    from mdw_jax.method.experts import train_experts
    from mdw_jax.method.losses import DistillationLoss, ExpertLoss
    from mdw_jax.method.matching import matching_loss, unroll
    from mdw_jax.method.retrieval import scores
    from mdw_jax.method.students import Protocol, StudentData, evaluate
    from mdw_jax.models.dual_encoder import dual_encoder
    from mdw_jax.models.embedding import Inputs
    from mdw_jax.models.image.convnet import convnet
    from mdw_jax.models.image.factor_pretraining import pretrain
    from mdw_jax.models.image.tower import Tower
    from mdw_jax.models.text.features import text_features
    from mdw_jax.pipeline.sets import student_data
    from mdw_jax.reporting.run_files import PresetResults, Run, open_run
    from mdw_jax.runtime.pytree import stack
    from mdw_jax.runtime.rng import named_generator, named_key

__version__: str  # of the installed package, read when it is first used

# Public name -> "module:name" below mdw_jax; a test holds it equal to the imports above.
_HOMES = {
    # data
    "Pairs": "data.pairs:Pairs", "Split": "data.pairs:Split", "scenes": "data.synthetic.scenes:scenes",
    "karpathy": "data.readers.karpathy:karpathy", "draw_noise": "data.noise:draw",
    "text_features": "models.text.features:text_features",
    # models
    "convnet": "models.image.convnet:convnet", "pretrain": "models.image.factor_pretraining:pretrain",
    "dual_encoder": "models.dual_encoder:dual_encoder", "Inputs": "models.embedding:Inputs",
    "Tower": "models.image.tower:Tower",
    # experts
    "Recipe": "method.expert_step:Recipe", "ExpertLoss": "method.losses:ExpertLoss",
    "train_experts": "method.experts:train_experts",
    "save_trajectory": "io.trajectory:save_trajectory", "open_trajectory": "io.trajectory:open_trajectory",
    "read_snapshot": "io.trajectory:read_snapshot", "Trajectory": "io.trajectory:Trajectory",
    # distillation
    "Method": "method.distill:Method", "clean_pairs": "method.coresets:clean_pairs",
    "init_state": "method.distill:init_state", "schedule": "method.distill:schedule",
    "make_outer_step": "method.distill:make_outer_step", "unroll": "method.matching:unroll",
    "matching_loss": "method.matching:matching_loss", "correspondence": "method.correspondence:correspondence",
    # evaluation
    "StudentData": "method.students:StudentData", "student_data": "pipeline.sets:student_data",
    "Protocol": "method.students:Protocol", "evaluate": "method.students:evaluate", "scores": "method.retrieval:scores",
    "METRICS": "io.scores:METRICS",
    # files
    "DistilledSet": "io.distilled_set:DistilledSet", "save_distilled": "io.distilled_set:save_distilled",
    "load_distilled": "io.distilled_set:load_distilled", "open_run": "reporting.run_files:open_run",
    "Run": "reporting.run_files:Run", "PresetResults": "reporting.run_files:PresetResults",
    "torch_dataset": "export.torch_dataset:torch_dataset", "load_student": "export.student:load_student",
    # settings
    "base": "config:base", "frozen_backbone": "config:frozen_backbone", "published": "config:published",
    "resolve": "config:resolve",
    "preset_config": "config.overrides:preset_config", "fields": "config.sections:fields",
    # extending
    "PresetSpec": "config.presets:PresetSpec", "DistillationLoss": "method.losses:DistillationLoss",
    "MetricsWriter": "io.metrics:MetricsWriter",
    # utilities
    "named_key": "runtime.rng:named_key", "named_generator": "runtime.rng:named_generator",
    "stack": "runtime.pytree:stack",
    "UserError": "errors:UserError",
}
__all__ = sorted(_HOMES)


def __getattr__(name: str):
    if name == "__version__":
        value = _version()
    elif name in _HOMES:
        module, _, attribute = _HOMES[name].partition(":")
        value = getattr(importlib.import_module(f"mdw_jax.{module}"), attribute)
    else:
        raise AttributeError(f"module 'mdw_jax' has no attribute '{name}'")
    globals()[name] = value  # or importing a submodule of the same name would take its place
    return value


def _version() -> str:
    """The version of the installed package; "unknown" where it is not installed."""
    from importlib import metadata

    try:
        return metadata.version("mdw-jax")
    except metadata.PackageNotFoundError:
        return "unknown"


def __dir__() -> list[str]:
    return sorted([*__all__, "__version__"])
