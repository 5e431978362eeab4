import jax
import numpy as np
import pytest
from goldens import assert_close, golden_files

from mdw_jax.method.losses import DISTILLATION_LOSSES


@pytest.mark.parametrize("name", ["bce", "cwcl", "kl", "mse", "nce", "wbce", "wbce_published"])
@pytest.mark.parametrize("path", golden_files("contrastive_losses"), ids=lambda path: path.stem)
def test_soft_losses_match_golden(path, name):
    golden = np.load(path)
    field = name.removesuffix("_published").upper()
    value, (by_logits, by_target) = jax.value_and_grad(DISTILLATION_LOSSES[name], (0, 1))(
        golden["logits"], golden["target"])
    assert_close(value, golden[f"{field}_loss"], 1e-4)
    assert_close(by_logits, golden[f"{field}_dlogits"], 1e-3)
    assert_close(by_target, golden[f"{field}_dtarget"], 1e-3)
