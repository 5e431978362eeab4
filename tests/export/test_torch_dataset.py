"""A PyTorch student learns from an export what a JAX student learns from the set itself."""

import dataclasses
import math
import pickle
import re
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

torch = pytest.importorskip("torch")
import torch.nn.functional as F  # noqa: E402, N812

import mdw_jax  # noqa: E402
from mdw_jax.data.resizing import seen_images  # noqa: E402
from mdw_jax.data.synthetic.scenes import scenes  # noqa: E402
from mdw_jax.errors import UserError  # noqa: E402
from mdw_jax.export.export_set import export_set  # noqa: E402
from mdw_jax.export.formats import NearestCaptions  # noqa: E402
from mdw_jax.io.distilled_set import DistilledSet  # noqa: E402
from mdw_jax.method.correspondence import correspondence  # noqa: E402
from mdw_jax.method.losses import DISTILLATION_LOSSES  # noqa: E402
from mdw_jax.method.retrieval import recalls  # noqa: E402
from mdw_jax.method.students import Protocol, evaluate  # noqa: E402
from mdw_jax.models.dual_encoder import dual_encoder  # noqa: E402
from mdw_jax.models.embedding import Inputs  # noqa: E402
from mdw_jax.models.image.tower import Tower  # noqa: E402
from mdw_jax.models.text.bow import bow_features  # noqa: E402
from mdw_jax.pipeline.sets import student_data  # noqa: E402

M, SIZE, TEXT, DIM, TAU, STEPS, STUDENTS = 60, 16, 64, 32, 0.07, 200, 8
CARD = {"config": {"model": {"tau": TAU}}}


def export(folder, distilled):
    near = NearestCaptions([["a caption"]] * len(distilled.images), np.ones((len(distilled.images), 1)))
    export_set(folder, distilled, near, CARD, formats=["safetensors"], license="cc0-1.0")
    return folder


def normal(*shape):
    return np.random.default_rng(len(shape)).normal(size=shape).astype(np.float32)


P_OF = {"identity": {}, "full": {"matrix": normal(6, 6)},
        "lowrank": {"diag": normal(6), "left": normal(6, 2), "right": 2 * normal(6, 2)}}


def small_set(kind="lowrank", images=(4, 8, 3), loss="nce"):
    return DistilledSet(normal(6, *images), normal(6, 5), P_OF[kind],
                        {"image": float(np.float32(0.3)), "text": 0.25}, 0.7, loss)


@pytest.fixture(scope="module", autouse=True)
def one_thread_and_a_hasty_compiler():
    """All is tiny here: more threads only wait for each other, and compiling is most of the time."""
    before = torch.get_num_threads(), jax.config.read("jax_disable_most_optimizations")
    torch.set_num_threads(1)
    jax.config.update("jax_disable_most_optimizations", True)
    yield
    torch.set_num_threads(before[0])
    jax.config.update("jax_disable_most_optimizations", before[1])


# The data set


@pytest.mark.parametrize("kind", P_OF)
def test_rows_and_blocks(tmp_path, kind):
    made = small_set(kind)
    read = mdw_jax.torch_dataset(export(tmp_path, made))
    assert isinstance(read, torch.utils.data.Dataset) and len(read) == 6
    image, text, row = read[4]
    assert image.shape == (3, 4, 8) and image.dtype == text.dtype == torch.float32 and row == 4
    np.testing.assert_array_equal(image.permute(1, 2, 0), made.images[4])
    np.testing.assert_array_equal(text, made.texts[4])
    assert (read.step_sizes, read.alpha, read.loss, read.tau) == (made.step_sizes, 0.7, "nce", TAU)
    rows = np.array([5, 0, 3])
    params = {name: jnp.asarray(array) for name, array in made.correspondence.items()}
    for asked in (rows.tolist(), torch.from_numpy(rows)):
        expected = correspondence(params, jnp.asarray(rows), 0.7)
        np.testing.assert_allclose(read.correspondence(asked), expected, atol=1e-6)
    np.testing.assert_allclose(read.correspondence()[rows][:, rows], read.correspondence(rows), atol=1e-6)


def test_batches_of_a_loader_and_clips(tmp_path):
    made = small_set(images=(2, 4, 8, 3))
    read = mdw_jax.torch_dataset(str(export(tmp_path, made)))
    assert len(pickle.dumps(read)) > 0  # as loaders send it to workers that are not forked
    found = list(torch.utils.data.DataLoader(read, 4))
    assert [len(rows) for _, _, rows in found] == [4, 2]
    images, texts, rows = (torch.cat(part) for part in zip(*found, strict=True))
    assert images.shape == (6, 2, 3, 4, 8) and rows.tolist() == list(range(6))
    np.testing.assert_array_equal(images.permute(0, 1, 3, 4, 2), made.images)
    np.testing.assert_array_equal(texts, made.texts)


def test_no_set_and_no_torch(tmp_path, monkeypatch):
    with pytest.raises(UserError, match="there is no distilled set .*nowhere"):
        mdw_jax.torch_dataset(tmp_path / "nowhere")
    monkeypatch.setitem(sys.modules, "torch", None)
    with pytest.raises(UserError, match=r"needs torch: pip install 'mdw-jax\[torch\]'"):
        mdw_jax.torch_dataset(tmp_path)


# The recipe of the card


@pytest.mark.parametrize("name", DISTILLATION_LOSSES)
def test_the_losses_that_a_card_spells_out_are_ours(name):
    logits, target = 3 * normal(7, 7), np.random.default_rng(0).uniform(-0.2, 1.2, (7, 7)).astype(np.float32)
    told = {"F": F, "logits": torch.from_numpy(logits).requires_grad_(), "target": torch.from_numpy(target)}
    loss = eval(f"({DISTILLATION_LOSSES[name].torch})", told)
    loss.backward()
    ours, gradient = jax.value_and_grad(DISTILLATION_LOSSES[name])(jnp.asarray(logits), jnp.asarray(target))
    assert loss.item() == pytest.approx(float(ours), rel=1e-4)
    np.testing.assert_allclose(told["logits"].grad, gradient, rtol=1e-3, atol=1e-5)


def run_recipe(folder, branches) -> dict:
    """What is left after the program on an export's card has run."""
    code = re.search(r"```python\n(.*?)```", (folder / "README.md").read_text(), re.DOTALL).group(1)
    told = dict(zip(("image_branch", "text_branch"), branches, strict=True))
    exec(code.replace('"distilled.safetensors"', repr(str(folder / "distilled.safetensors"))), told)
    return told


@pytest.mark.parametrize("kind, loss", [("identity", "nce"), ("full", "wbce"), ("lowrank", "probability")])
def test_the_recipe_of_every_kind_of_set_runs(tmp_path, kind, loss):
    folder = export(tmp_path, small_set(kind, loss=loss))
    branches = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(96, 8)), torch.nn.Linear(5, 8)
    told = run_recipe(folder, branches)
    np.testing.assert_allclose(told["P"], mdw_jax.torch_dataset(folder).correspondence(), atol=1e-6)
    assert [group["lr"] for group in told["optimizer"].param_groups] == [float(np.float32(0.3)), 0.25]


def test_images_that_are_stored_small_are_enlarged_as_models_saw_them(tmp_path):
    made = dataclasses.replace(small_set(images=(4, 4, 3)), seen_size=8)
    folder = export(tmp_path, made)
    wanted = np.moveaxis(np.asarray(seen_images(made)), -1, 1)
    assert wanted.shape == (6, 3, 8, 8)
    np.testing.assert_allclose(mdw_jax.torch_dataset(folder).images, wanted, rtol=1e-5, atol=1e-6)
    branches = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(192, 8)), torch.nn.Linear(5, 8)
    np.testing.assert_allclose(run_recipe(folder, branches)["images"], wanted, rtol=1e-5, atol=1e-6)
    assert "enlarge them bilinearly to 8 x 8" in (folder / "README.md").read_text()


# Students


def blocks(images):
    """The frozen backbone: mean colours of 4 x 4 places, (B, H, W, 3) -> (B, 1, 1, 48)."""
    b, side = len(images), SIZE // 4
    return (4 * images.reshape(b, 4, side, 4, side, 3).mean((2, 4)) - 2).reshape(b, 1, 1, 48)


class Head(torch.nn.Module):
    """The projection head in PyTorch's own terms, begun as Flax begins it (LeCun's normal, cut at two deviations)."""

    def __init__(self, width):
        super().__init__()
        self.projection, self.fc = torch.nn.Linear(width, DIM), torch.nn.Linear(DIM, DIM)
        self.norm = torch.nn.LayerNorm(DIM)
        for layer in (self.projection, self.fc):
            deviation = 1 / math.sqrt(layer.in_features) / 0.87962566  # the cut normal's own deviation is that much
            torch.nn.init.trunc_normal_(layer.weight, std=deviation, a=-2 * deviation, b=2 * deviation)
            torch.nn.init.zeros_(layer.bias)

    def forward(self, x):
        h = self.projection(x)
        return self.norm(self.fc(F.gelu(h)) + h)


class ImageBranch(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.head = Head(48)

    def forward(self, images):
        places = F.avg_pool2d(images, SIZE // 4)  # (B, 3, 4, 4)
        return self.head((4 * places - 2).permute(0, 2, 3, 1).flatten(1))


@pytest.fixture(scope="module")
def world():
    """A set of 60 scenes with a caption each; val is their other 240 captions, chance about 10 % r_mean."""
    train = scenes(M, 2, 2, size=SIZE, seed=3).train
    features = bow_features(train.captions, TEXT)
    first = np.unique(train.image_of, return_index=True)[1]
    generator = np.random.default_rng(0)
    left = 0.6 * generator.normal(size=(2, M, 2)).astype(np.float32)
    made = DistilledSet((train.images / 255).astype(np.float32), features[first],
                        {"diag": np.ones(M, np.float32), "left": left[0], "right": left[1]},
                        {"image": float(np.float32(0.3)), "text": float(np.float32(0.2))}, 1.0, "probability")
    others = np.setdiff1d(np.arange(len(features)), first)
    return made, features[others], train.image_of[others]


@pytest.fixture(scope="module")
def jax_scores(world):
    made, texts, image_of = world
    tower = Tower("blocks", lambda key: {}, lambda params, images: blocks(images), 48)
    model = dual_encoder(tower, {}, TEXT, mode="projection", dim=DIM, tau=TAU)
    val = Inputs(model.inputs(jnp.asarray(made.images)), jnp.asarray(texts), jnp.asarray(image_of))
    protocol = Protocol("val", STUDENTS, STEPS, STEPS, 128, 0.0, 0.0, (1.0,), 0.1)
    return evaluate(model, student_data(model, made), val, None, protocol, seed=0).val[:, -1]


def by_data_set(folder, image_branch, text_branch):
    read = mdw_jax.torch_dataset(folder)
    optimizer = torch.optim.SGD([
        {"params": branch.parameters(), "lr": read.step_sizes[name]}
        for name, branch in (("image", image_branch), ("text", text_branch))])
    loader = torch.utils.data.DataLoader(read, 128, shuffle=True)
    for _ in range(STEPS):
        for images, texts, rows in loader:
            v, t = (F.normalize(x, dim=-1) for x in (image_branch(images), text_branch(texts)))
            logits, target = v @ t.T / read.tau, read.correspondence(rows)
            loss = eval(DISTILLATION_LOSSES[read.loss].torch, {"logits": logits, "target": target})
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()


def by_card(folder, image_branch, text_branch):
    run_recipe(folder, (image_branch, text_branch))


def torch_scores(world, folder, train, count, first_seed=0):
    made, texts, image_of = world
    images, found = torch.from_numpy(made.images).permute(0, 3, 1, 2), []
    for seed in range(first_seed, first_seed + count):
        torch.manual_seed(seed)
        branches = ImageBranch(), Head(TEXT)
        train(folder, *branches)
        with torch.no_grad():
            v, t = F.normalize(branches[0](images), dim=-1), F.normalize(branches[1](torch.tensor(texts)), dim=-1)
        found.append(float(recalls(jnp.asarray((v @ t.T).numpy()), jnp.asarray(image_of))[-1]))
    return np.array(found)


def margin(a, b):
    """Four standard errors of the difference of two means of students: one in some 16 000 by chance alone."""
    return 4 * math.sqrt(a.var(ddof=1) / len(a) + b.var(ddof=1) / len(b))


@pytest.mark.parametrize("train", [by_data_set, by_card])
def test_a_pytorch_student_reaches_the_jax_students_score(tmp_path, world, jax_scores, train):
    found = torch_scores(world, export(tmp_path, world[0]), train, STUDENTS)
    assert jax_scores.mean() > 20 and margin(found, jax_scores) < 6
    print(found, jax_scores)
    assert abs(found.mean() - jax_scores.mean()) < margin(found, jax_scores), (found, jax_scores)


def test_the_score_would_tell_pairs_that_were_mixed_up(tmp_path, world, jax_scores):
    made = world[0]
    mixed = DistilledSet(made.images, np.roll(made.texts, 1, 0), made.correspondence, made.step_sizes, 1.0, made.loss)
    found = torch_scores(world, export(tmp_path, mixed), by_data_set, 3)
    assert found.mean() < jax_scores.mean() - margin(found, jax_scores) - 6
