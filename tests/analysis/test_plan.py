import jax
import pytest

from mdw_jax.analysis.cost.plan import plan
from mdw_jax.config import base, resolve
from mdw_jax.errors import UserError
from mdw_jax.models.dual_encoder import dual_encoder
from mdw_jax.models.image.convnet import convnet


def config(**changes):
    c = base()
    c.update_from_flattened_dict({
        "data.size": 16, "model.patches": (4, 2), "model.widths": (16, 24), "model.mode": "full", "experts.count": 2,
        "experts.epochs": 3, "experts.batch": 32, "distill.pairs": 8, "distill.inner_steps": 2, "distill.batch": 4,
        "distill.trajectories": 1, "distill.rank": 2, "plan.images": 100, "plan.captions": 320, "plan.text_dim": 12,
        "plan.device": "h100"})
    c.update_from_flattened_dict({name.replace("__", "."): value for name, value in changes.items()})
    return resolve(c)


def test_what_can_be_counted_by_hand():
    found = plan(config(experts__store_dtype="bfloat16"))
    model = dual_encoder(convnet((16, 16, 3), (4, 2), (16, 24)), None, 12, mode="full", dim=24)
    params = model.init(jax.random.key(0))
    image, text = (sum(leaf.size for leaf in jax.tree.leaves(params[branch])) for branch in ("image", "text"))
    assert found["parameters, image backbone"] == f"{image:,}" and found["parameters, text head"] == f"{text:,}"
    # Two experts of two networks each, snapshots 0 to 2, two bytes a number.
    assert found["trajectories on disk"].startswith(f"{4 * 3 * (image + text) * 2 / 1024:.3g} KiB (4 networks x 3")
    assert found["training images in memory, uint8"] == "75 KiB"
    assert "12 network epochs of 10 steps" in " ".join(found)
    assert all("of memory at most" in value for what, value in found.items() if " step " in what)


def test_projection_mode_counts_a_frozen_backbone_once_an_outer_step():
    quick = {"model__mode": "projection", "plan__compile": False}
    few, many = (plan(config(distill__inner_steps=s, **quick)) for s in (2, 4))
    assert few["parameters, frozen backbone"] == plan(config())["parameters, image backbone"]
    cost = [float(next(v for k, v in found.items() if k.startswith("outer step")).split()[0]) for found in (few, many)]
    assert cost[0] < cost[1] < 2 * cost[0]


def test_a_preset_without_distillation_has_no_outer_step():
    assert not any("outer" in what for what in plan(config(plan__compile=False), "full"))


@pytest.mark.parametrize("changes, said", [({"plan__device": "abacus"}, "set plan.device to one of a100"),
                                           ({"plan__images": 0}, "mdw plan opens no data")])
def test_user_errors(changes, said):
    with pytest.raises(UserError, match=said):
        plan(config(**changes))
