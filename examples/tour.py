"""A tour of the library, from noisy pairs to students and a look at P, on pictures drawn on the spot.

    python examples/tour.py [--steps 60] [--epochs 4]

Plain Python; an editor that knows `# %%` runs it cell by cell. `mdw run` does the same with a run folder around it.
"""

import argparse

import jax
import jax.numpy as jnp
import numpy as np

from mdw_jax import base, resolve
from mdw_jax.cli import use_compilation_cache
from mdw_jax.config.sections import fields
from mdw_jax.data.noise import draw
from mdw_jax.data.synthetic.scenes import scenes
from mdw_jax.method.coresets import clean_pairs
from mdw_jax.method.correspondence import correspondence
from mdw_jax.method.distill import Method, init_state, make_outer_step, schedule
from mdw_jax.method.expert_step import Recipe
from mdw_jax.method.experts import train_experts
from mdw_jax.method.retrieval import scores
from mdw_jax.method.students import Protocol, StudentData, evaluate
from mdw_jax.models.dual_encoder import dual_encoder
from mdw_jax.models.embedding import Inputs, to_float
from mdw_jax.models.image.convnet import convnet
from mdw_jax.models.image.factor_pretraining import pretrain
from mdw_jax.models.text.bow import bow_features
from mdw_jax.runtime.pytree import stack
from mdw_jax.runtime.rng import named_generator, named_key

parser = argparse.ArgumentParser()
parser.add_argument("--steps", type=int, default=60)  # outer steps of the distillation
parser.add_argument("--epochs", type=int, default=4)  # of the experts
asked, _ = parser.parse_known_args()  # a notebook has arguments of its own
use_compilation_cache()  # most of the time goes into compiling, the second time much less
jax.config.update("jax_disable_most_optimizations", True)  # for the same reason
SEED, PAIRS = 0, 30

# %% Settings: every number below has a default, with a line on what it means, in mdw_jax/config.py.
c = base()
c.experts.epochs, c.experts.lr, c.experts.batch = asked.epochs, 2.0, 64
c.distill.pairs, c.distill.batch, c.distill.steps, c.distill.lr_images = PAIRS, 20, asked.steps, 0.02
c.distill.inner_steps = 8
c.evaluate.students, c.evaluate.steps, c.evaluate.lr_scales = 3, 100, (0.3, 1.0)
c = resolve(c)

# %% Pairs, and noise: 40 % of the training images change places, and their five captions stay behind.
pairs = scenes(train=1000, val=100, test=100, size=16, seed=SEED)
noise = draw(pairs, "image", 0.4, seed=SEED)
print(f"pairs: {len(pairs.train.captions)} such as '{pairs.train.captions[0]}'; {noise.true_rate:.0%} are mismatched")

# %% A model: a frozen conv net (it learned to name things elsewhere), frozen text features, two heads that learn.
tower = convnet(pairs.train.images.shape[1:], patches=(8,), widths=(128,))
tower = pretrain(tower, scenes(train=700, val=1, test=1, size=16, seed=SEED + 1).train, epochs=10, seed=SEED)
texts = {name: jnp.asarray(bow_features(getattr(pairs, name).captions)) for name in ("train", "val", "test")}
model = dual_encoder(tower, tower.init(None), texts["train"].shape[1], mode="projection", dim=64)
features = jax.jit(lambda images: model.inputs(to_float(images)))
image_of = {"train": noise.image_of, "val": pairs.val.image_of, "test": pairs.test.image_of}
data = {name: Inputs(features(getattr(pairs, name).images), texts[name], jnp.asarray(image_of[name])) for name in texts}

# %% Experts: two networks that divide the pairs for each other and leave their weights after every epoch.
last = c.distill.max_start_epoch - 1 + c.distill.match_epochs
experts = train_experts(model, data["train"], data["val"], fields(Recipe, c.experts), count=1, seed=SEED, keep=last,
                        mismatched=noise.mismatched)
on_test = scores(model, experts.best, data["test"])[:, -1]
print(f"experts: r_mean {on_test.mean():.1f} on test; of the pairs called clean {experts.log[-1]['precision']:.0%} "
      f"are, of all pairs {1 - noise.true_rate:.0%}")

# %% Distillation: unroll students on a few pairs, and move these so that the students end where the experts went.
method = fields(Method, c.distill)
rows = clean_pairs(named_generator(SEED, "init"), noise.image_of, experts.clean_probability, PAIRS)
real = np.float32(pairs.train.images[noise.image_of[rows]] / 255), np.asarray(texts["train"][rows])
first, state = (init_state(named_key(SEED, "P"), method, *real) for _ in range(2))  # a step uses its state up
outer_step = make_outer_step(model, method)
weights = jnp.ones((PAIRS, 16, 16, 1))  # where CEO would say which pixels matter
losses = []
for step in range(method.steps):
    networks, starts = schedule(SEED, 0, step, 1, len(experts.snapshots), c.distill.max_start_epoch)
    ends = [stack([experts.snapshots[n][k + ahead] for n, k in zip(networks, starts, strict=True)])
            for ahead in (0, c.distill.match_epochs)]
    state, measured = outer_step(state, *ends, weights, named_key(SEED, "distill", step))
    losses.append(measured["loss"])
print(f"distillation: matching loss {losses[0]:.2f} -> {losses[-1]:.2f} in {method.steps} steps; "
      f"{PAIRS} pairs stand for {len(pairs.train.captions)}")

# %% Students: fresh ones that see the distilled pairs alone, or those that distillation began with.
for name, made in (("real", first.learned), ("distilled", state.average)):
    sizes = {branch: float(jnp.exp(size)) for branch, size in made["log_steps"].items()}
    inputs = model.inputs(made["images"])
    lesson = StudentData(inputs, made["texts"], made["correspondence"], sizes, method.loss, method.alpha)
    on_test = evaluate(model, lesson, data["val"], data["test"], fields(Protocol, c.evaluate), seed=SEED).scores[:, -1]
    print(f"students of {PAIRS} {name} pairs: r_mean {on_test.mean():.1f} +- {on_test.std(ddof=1):.1f}")

# %% P: which texts each image goes with, beyond its own.
p = np.asarray(correspondence(made["correspondence"], jnp.arange(PAIRS), method.alpha))
beyond = np.abs(p - np.diag(np.diag(p)))
image, text = np.unravel_index(beyond.argmax(), beyond.shape)
print(f"P: diagonal {np.diag(p).mean():.2f}, beside it {beyond.mean():.3f} on average; most {p[image, text]:+.2f}, "
      f"of image '{pairs.train.captions[rows[image]]}' and text '{pairs.train.captions[rows[text]]}'")
