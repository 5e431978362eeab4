"""What a run compiles can be lowered for GPUs and TPUs, here, where there are none. That says nothing of how fast it is."""

import jax
import pytest
from jax import export

from mdw_jax.analysis.cost.programs import Programs
from mdw_jax.config import base
from mdw_jax.config.overrides import preset_config
from mdw_jax.models.image.conv import as_on_accelerator


@pytest.mark.parametrize("mode, dtype", [("full", "bfloat16"), ("projection", "float32")])
def test_all_steps_lower_for_accelerators(mode, dtype):
    c = base()
    c.update_from_flattened_dict({
        "model.mode": mode, "model.dtype": dtype, "model.widths": (8, 12), "model.patches": (4, 2), "data.size": 16,
        "distill.pairs": 8, "distill.batch": 4, "distill.inner_steps": 2, "distill.rank": 2, "experts.batch": 8,
        "plan.images": 20, "plan.captions": 20, "plan.text_dim": 10})
    with as_on_accelerator():
        programs = Programs(preset_config(c, "mdw"))
        for function, *arguments in (
                (programs.outer_step, *programs.outer_arguments()),
                (programs.expert_step, *programs.expert_arguments()), programs.pixel_weights()):
            exported = export.export(jax.jit(function), platforms=["cuda", "tpu"])(*arguments)
            assert exported.platforms == ("cuda", "tpu") and "stablehlo.dot_general" in exported.mlir_module()
