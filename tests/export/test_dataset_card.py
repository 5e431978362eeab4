"""The PyTorch recipe of a dataset card, for losses and student optimizers of this package and of others."""

import dataclasses
import importlib
import sys

import numpy as np
import pytest

from mdw_jax.errors import UserError
from mdw_jax.export.dataset_card import dataset_card, torch_recipe
from mdw_jax.io.distilled_set import DistilledSet
from mdw_jax.method.losses import DISTILLATION_LOSSES
from mdw_jax.method.matching import STUDENT_OPTIMIZERS

SET = DistilledSet(np.zeros((3, 4, 4, 3), np.float32), np.ones((3, 5), np.float32), {}, {"image": 0.5, "text": 0.25},
                   1.0, "nce")
CARD = {"preset": "mdw", "formats": ["safetensors"], "license": "cc0-1.0", "png": None, "config": {}}


def with_optimizer(name):
    return {**CARD, "config": {"distill": {"inner_optimizer": name}}}


@pytest.fixture
def plugin(tmp_path, monkeypatch):
    (tmp_path / "my_soft_losses.py").write_text(
        "from mdw_jax.method.losses import DistillationLoss, mse\n"
        "def plain(logits, target):\n    return mse(logits, target)\n"
        "with_twin = DistillationLoss(mse, 'my_torch_loss(logits, target)')\n"
        "without_twin = DistillationLoss(mse)\n")
    monkeypatch.syspath_prepend(tmp_path)


@pytest.mark.parametrize("name", DISTILLATION_LOSSES)
def test_the_recipe_holds_the_twin_of_the_loss(name):
    distilled = dataclasses.replace(SET, loss=name)
    assert f"    loss = {DISTILLATION_LOSSES[name].torch}\n" in torch_recipe(distilled, 0.07)
    assert "```python\n" in dataset_card(distilled, CARD, real=False)


@pytest.mark.parametrize("name", ["plain", "without_twin"])
def test_a_loss_without_a_twin_leaves_the_rest_of_the_card(plugin, name):
    distilled = dataclasses.replace(SET, loss=f"my_soft_losses:{name}")
    card, whole = (dataset_card(one, CARD, real=False) for one in (distilled, SET))
    assert f"There is no PyTorch recipe for the loss `my_soft_losses:{name}` of this set" in card
    assert "```python" not in card
    for part in ("## Contents", "## Files", "torch_dataset", "## Limits and license", "license: cc0-1.0"):
        assert part in card and part in whole


def test_the_twin_of_a_loss_from_another_module(plugin):
    assert "    loss = my_torch_loss(logits, target)\n" in torch_recipe(
        dataclasses.replace(SET, loss="my_soft_losses:with_twin"), 0.07)


def test_the_recipe_uses_the_optimizer_that_the_step_sizes_were_learned_for():
    assert "\noptimizer = torch.optim.SGD(groups)\n" in dataset_card(SET, CARD, real=False)
    for name, optimizer in STUDENT_OPTIMIZERS.items():
        card = dataset_card(SET, with_optimizer(name), real=False)
        assert f"\noptimizer = {optimizer.torch}\n" in card and '"lr": d["step_size.text"].item()}]\n' in card
    assert "torch.optim.SGD(groups, momentum=0.9)" in dataset_card(SET, with_optimizer("momentum"), real=False)
    assert "torch.optim.Adam(groups)" in dataset_card(SET, with_optimizer("adam"), real=False)
    card = dataset_card(SET, with_optimizer("my_steps:lion"), real=False)
    assert "There is no PyTorch recipe for the optimizer `my_steps:lion` of this set" in card
    # Without learned step sizes no optimizer was used.
    assert "torch.optim.SGD(groups)" in dataset_card(dataclasses.replace(SET, step_sizes={}), with_optimizer("adam"), True)


def test_an_optimizer_from_another_module(tmp_path, monkeypatch):
    (tmp_path / "my_student_steps.py").write_text(
        "import optax\nfrom mdw_jax.method.matching import StudentOptimizer\n"
        "plain = lambda: optax.trace(0.5)\n"
        "with_twin = StudentOptimizer(plain, 'torch.optim.SGD(groups, momentum=0.5)')\n")
    monkeypatch.syspath_prepend(tmp_path)
    card = dataset_card(SET, with_optimizer("my_student_steps:plain"), real=False)
    assert "There is no PyTorch recipe for the optimizer `my_student_steps:plain` of this set" in card
    dataset_card(SET, with_optimizer("my_student_steps:with_twin"), real=False)
    assert "my_student_steps" not in sys.modules  # a card chooses nothing that is imported
    importlib.import_module("my_student_steps")  # as a config that names it does
    card = dataset_card(SET, with_optimizer("my_student_steps:with_twin"), real=False)
    assert "\noptimizer = torch.optim.SGD(groups, momentum=0.5)\n" in card


def test_an_unknown_loss_is_a_user_error():
    with pytest.raises(UserError, match="there is no distillation loss 'ncee'"):
        dataset_card(dataclasses.replace(SET, loss="ncee"), CARD, real=False)


def test_the_card_says_how_p_is_read_and_how_large_the_set_is():
    full = dataclasses.replace(SET, correspondence={"matrix": np.eye(3, dtype=np.float32)}, loss="probability")
    card = dataset_card(full, CARD, real=False)
    assert "the target is softmax(10 P)" in card
    assert "Size: 200 bytes (images 144, texts 30, correspondence 18, step sizes 8)" in card
    assert "It is the target itself" in dataset_card(SET, CARD, real=False)
    assert "enlarge" not in card and "interpolate" not in card


def test_the_card_tells_drawn_noise_and_of_natural_noise_the_estimate():
    def card(**noise):
        return " ".join(dataset_card(SET, {**CARD, "noise": noise}, real=False).split())

    estimate = {"eta": 0.125, "low": 0.1, "high": 0.15, "confidence": 0.95}
    assert "40% were mismatched on purpose before that (protocol image)" in card(protocol="image", rate=0.4)
    natural = card(protocol="natural", rate=None, estimated=estimate)
    assert "an estimated 12.5% [10.0%, 15.0%] of the training pairs are mismatched (95% interval)" in natural
    assert "on purpose" not in natural and "clean" not in natural and "noisy" not in natural
    unknown = card(protocol="natural", rate=None)  # of a set that was made before estimates were kept
    assert "how many of them are mismatched is not known" in unknown
    assert "mismatched" not in card(protocol="image", rate=0.0)
