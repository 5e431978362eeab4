"""A tour of the library: from noisy pairs to students of a distilled set, on images drawn on the spot.

    python examples/tour.py [--steps 60] [--epochs 4]

It takes a minute on two cores, most of it for compiling: set JAX_COMPILATION_CACHE_DIR to a directory, and the second
time is faster. It is plain Python, and an editor that knows `# %%` runs it cell by cell. `mdw run` does the same from
the command line, resumes where it was interrupted, and keeps everything in a run directory.
"""

import argparse

import jax
import jax.numpy as jnp
import numpy as np

import mdw_jax as mdw

parser = argparse.ArgumentParser()
parser.add_argument("--steps", type=int, default=60, help="outer steps of the distillation")
parser.add_argument("--epochs", type=int, default=4, help="epochs of the experts")
arguments, _ = parser.parse_known_args()  # a notebook has arguments of its own
jax.config.update("jax_disable_most_optimizations", True)  # compile faster: there is little to compute
SEED, PAIRS = 0, 30

# %% 1. Settings. Each has a default and a comment that explains it in mdw_jax/config/defaults.py.
config = mdw.base()
config.experts.epochs, config.experts.lr, config.experts.batch = arguments.epochs, 2.0, 64
config.experts.recovery_start = 1
config.distill.pairs, config.distill.batch, config.distill.steps = PAIRS, 20, arguments.steps
config.distill.lr_images, config.distill.inner_steps = 0.02, 8
config.evaluate.students, config.evaluate.steps, config.evaluate.lr_scales = 3, 100, (0.3, 1.0)
config = mdw.resolve(config)  # checks everything, and fills in the recipe of the experts

# %% 2. Data and noise: 40 % of the training images change places, and their five captions stay behind.
pairs = mdw.scenes(train=1000, val=100, test=100, size=16, seed=SEED)
noise = mdw.draw_noise(pairs, "image", 0.4, seed=SEED)
print(f"pairs: {len(pairs.train.captions)} such as '{pairs.train.captions[0]}'; {noise.true_rate:.0%} are mismatched")

# %% 3. A model: a frozen convnet, pretrained on other scenes, frozen text features, and two heads that are trained.
other_scenes = mdw.scenes(train=700, val=1, test=1, size=16, seed=SEED + 1).train
tower = mdw.pretrain(mdw.convnet((16, 16, 3), patches=(8,), widths=(128,)), other_scenes, epochs=10, seed=SEED)
texts = mdw.text_features(pairs, "bow")
model = mdw.dual_encoder(tower, tower.init(None), texts.train.shape[1], mode="projection", dim=64)

# %% 4. The splits as the model sees them. Training pairs follow the noise; val and test are always clean.
image_features = jax.jit(lambda images: model.inputs(images.astype(jnp.float32) / 255))
train = mdw.Inputs(image_features(pairs.train.images), jnp.asarray(texts.train), jnp.asarray(noise.image_of))
val = mdw.Inputs(image_features(pairs.val.images), jnp.asarray(texts.val), jnp.asarray(pairs.val.image_of))
test = mdw.Inputs(image_features(pairs.test.images), jnp.asarray(texts.test), jnp.asarray(pairs.test.image_of))

# %% 5. Experts: two networks that divide the pairs for each other and leave their weights after every epoch.
last_snapshot = config.distill.max_start_epoch - 1 + config.distill.match_epochs
experts = mdw.train_experts(model, train, val, mdw.fields(mdw.Recipe, config.experts), count=1, seed=SEED,
                            keep=last_snapshot, mismatched=noise.mismatched)
on_test = mdw.scores(model, experts.best, test)[:, -1]
print(f"experts: r_mean {on_test.mean():.1f} on test; of the pairs called clean {experts.log[-1]['precision']:.0%} "
      f"are, of all pairs {1 - noise.true_rate:.0%}")

# %% 6. The start of the distilled set: real pairs that the experts call clean.
method = mdw.fields(mdw.Method, config.distill)
rows = mdw.clean_pairs(mdw.named_generator(SEED, "init"), noise.image_of, experts.clean_probability, PAIRS)
real_images, real_texts = np.float32(pairs.train.images[noise.image_of[rows]] / 255), np.asarray(train.texts[rows])
first = mdw.init_state(mdw.named_key(SEED, "P"), method, real_images, real_texts)
state = mdw.init_state(mdw.named_key(SEED, "P"), method, real_images, real_texts)  # an outer step consumes its state


# %% 7. Distillation: train students on the set for a few steps, and move it so that they end where the experts went.
def snapshots(step: int, epochs_ahead: int):
    """Weights of the experts that an outer step starts from, or, some epochs ahead, aims at."""
    networks, starts = mdw.schedule(SEED, 0, step, 1, len(experts.snapshots), config.distill.max_start_epoch)
    return mdw.stack([experts.snapshots[n][start + epochs_ahead] for n, start in zip(networks, starts, strict=True)])


outer_step = mdw.make_outer_step(model, method)
pixel_weights = jnp.ones((PAIRS, 16, 16, 1))  # all pixels count the same; Grad-CAM would weigh them
losses = []
for step in range(method.steps):
    starts, targets = snapshots(step, 0), snapshots(step, config.distill.match_epochs)
    state, metrics = outer_step(state, starts, targets, pixel_weights, mdw.named_key(SEED, "distill", step))
    losses.append(metrics["loss"])
print(f"distillation: matching loss {losses[0]:.2f} -> {losses[-1]:.2f} in {method.steps} steps; "
      f"{PAIRS} pairs stand for {len(pairs.train.captions)}")

# %% 8. Evaluation: fresh students learn from the real pairs of the start, or from the distilled set.
protocol = mdw.fields(mdw.Protocol, config.evaluate)
for name, learned in (("real", first.learned), ("distilled", state.average)):
    step_sizes = {branch: float(jnp.exp(size)) for branch, size in learned["log_inner_lr"].items()}
    data = mdw.StudentData(model.inputs(learned["images"]), learned["texts"], learned["correspondence"], step_sizes,
                           method.loss, method.alpha)
    on_test = mdw.evaluate(model, data, val, test, protocol, seed=SEED).scores[:, -1]
    print(f"students of {PAIRS} {name} pairs: r_mean {on_test.mean():.1f} +- {on_test.std(ddof=1):.1f}")

# %% 9. The learned correspondence P: which texts each image goes with, beside its own.
p = np.asarray(mdw.correspondence(state.average["correspondence"], jnp.arange(PAIRS), method.alpha))
others = np.abs(p - np.diag(np.diag(p)))
image, text = np.unravel_index(others.argmax(), others.shape)
print(f"P: diagonal {np.diag(p).mean():.2f}, beside it {others.mean():.3f} on average; most {p[image, text]:+.2f}, "
      f"of image '{pairs.train.captions[rows[image]]}' and text '{pairs.train.captions[rows[text]]}'")
