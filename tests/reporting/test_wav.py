"""Whole runs on log-mels: one channel, not square; audio made of them; video clips (T, H, W, C) through the same code."""

import base64
import io
import json
import re
import sys
import types

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image
from scipy.io import wavfile

from mdw_jax.config import base, options
from mdw_jax.data.augment import AUGMENTATIONS, augment
from mdw_jax.data.log_mel import LogMel
from mdw_jax.data.pairs import Pairs, Split
from mdw_jax.data.registry import READERS
from mdw_jax.data.synthetic.tones import tones
from mdw_jax.errors import UserError
from mdw_jax.io.distilled_set import load_distilled
from mdw_jax.method.grad_cam import pixel_weights
from mdw_jax.models.build import BuildContext, build_tower
from mdw_jax.models.dual_encoder import dual_encoder
from mdw_jax.models.image.spectrogram import MIN_SIDE, spectrogram_tower
from mdw_jax.models.image.tower import Tower
from mdw_jax.pipeline.run import STAGES
from mdw_jax.reporting import audio

TINY = {
    "run.presets": ("random", "mdw"), "text.dim": 24,
    "experts.count": 1, "experts.epochs": 2, "experts.recovery_start": 1, "experts.batch": 32,
    "distill.pairs": 6, "distill.steps": 3, "distill.inner_steps": 2, "distill.batch": 4, "distill.trajectories": 1,
    "distill.rank": 2, "distill.checkpoint_every": 3, "distill.ceo_every": 2,
    "evaluate.students": 1, "evaluate.steps": 4, "evaluate.every": 4, "evaluate.batch": 8, "evaluate.lr_scales": (1.0,),
    "evaluate.tower_lr_scales": (1.0,),
}
TONES = {"data.name": "tones", "data.train": 48, "data.val": 20, "data.test": 20, "data.mels": 16, "data.frames": 32,
         "data.seconds": 0.6}
CONVNET = {"model.patches": (8,), "model.widths": (16,)}
VIT = {"model.vit_patch": 8, "model.vit_width": 8, "model.vit_depth": 1, "model.vit_heads": 2}


def tiny(folder, *settings, **changes):
    c = base()
    for entries in (TINY, {"run.dir": str(folder)}, *settings,
                    {name.replace("__", "."): value for name, value in changes.items()}):
        c.update_from_flattened_dict(entries)
    return c


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A run on tones with all that might ask for a square or for three channels."""
    folder = tmp_path_factory.mktemp("tones")
    STAGES["run"](tiny(folder, TONES, CONVNET, VIT, experts__augment="shift_mask", distill__augment="shift_mask",
                       evaluate__tower="vit", evaluate__mode="full"))
    return folder


def shown(folder):
    """The images in a run's report."""
    found = re.findall(r'src="data:image/png;base64,([^"]+)"', (folder / "index.html").read_text())
    return [Image.open(io.BytesIO(base64.b64decode(text))).convert("RGB") for text in found]


def test_audio_goes_from_experts_to_the_report(finished):
    [folder] = (finished / "distilled").glob("mdw-*/set_0")
    distilled, card = load_distilled(folder)
    assert distilled.images.shape == (6, 16, 32, 1) and distilled.images.min() >= 0 and distilled.images.max() <= 1
    assert LogMel(**card["log_mel"]).shape == (16, 32, 1)
    assert "MDW" in (finished / "table.md").read_text()
    images = [np.asarray(image).astype(int) for image in shown(finished)]
    assert max((np.ptp(image, axis=-1) > 60).mean() for image in images) > 0.01  # magma, not gray


@pytest.mark.parametrize("settings, message", [
    ({"model.patches": (16, 2), "model.widths": (8, 8)}, "by 32, not 16 x 32; set model.patches.*data.mels"),
    (VIT | {"model.tower": "vit", "model.vit_patch": 12}, "12 px patches cannot cut images of 16 x 32 px"),
    (CONVNET | {"model.pretrain_epochs": 1}, "square and RGB, not \\(16, 32, 1\\)"),
])
def test_towers_that_do_not_fit_are_refused(tmp_path, settings, message):
    with pytest.raises(UserError, match=message):
        STAGES["prepare"](tiny(tmp_path, TONES, settings))


def test_the_choices_of_a_config_are_those_there_are():
    assert options.AUGMENTATIONS == tuple(AUGMENTATIONS) and list(options.READERS) == list(READERS)


def flat(width=3):
    """A tower of an RGB image that keeps every pixel of every fourth row and column."""
    return Tower("flat", lambda key: {}, lambda params, images: images[:, ::4, ::4], width)


def test_a_listening_tower_sees_rgb_and_keeps_frequencies_apart():
    built = []
    tower = spectrogram_tower(lambda shape: built.append(shape) or flat(), (48, 80, 1))
    assert built == [(144, 240, 3)] and min(built[0][:2]) >= MIN_SIDE and tower.width == 36 * 3
    images = np.random.default_rng(0).uniform(size=(2, 48, 80, 1)).astype(np.float32)
    seen = tower.feature_map({}, jnp.asarray(images))
    assert seen.shape == (2, 36, 60, 3)
    large = jax.image.resize(images, (2, 144, 240, 1), "linear")
    np.testing.assert_allclose(seen, np.repeat(large[:, ::4, ::4], 3, -1), atol=1e-6)
    np.testing.assert_allclose(tower.features({}, images).reshape(2, 36, 3), seen.mean(2), atol=1e-6)
    tokens = flat()._replace(pool=lambda params, feature_map: feature_map[:, 0, 0])
    assert spectrogram_tower(lambda shape: tokens, (48, 80, 1)).features({}, images).shape == (2, 3)


def test_griffin_lim_gives_the_spectrogram_back(tmp_path):
    pytest.importorskip("librosa")
    pairs = tones(6, 1, 1, seconds=1.0, frames=64, mels=48)
    log_mel = pairs.log_mel
    [row] = np.flatnonzero(pairs.train.attributes["background"] == "static")[:1]
    spectrogram = pairs.train.images[row] / 255
    wave = audio.griffin_lim(spectrogram, log_mel)
    assert wave.shape == (8000,) and np.abs(wave).max() == pytest.approx(audio.PEAK)
    np.testing.assert_array_equal(wave, audio.griffin_lim(spectrogram, log_mel))
    again = log_mel.image(wave) / 255
    assert np.corrcoef(again.ravel(), spectrogram.ravel())[0, 1] > 0.9
    audio.write_wav(tmp_path / "a.wav", wave, log_mel.sample_rate)
    rate, samples = wavfile.read(tmp_path / "a.wav")
    assert rate == 8000 and np.abs(samples / 32767 - wave).max() < 1e-4
    with pytest.raises(UserError, match="not a log-mel spectrogram of shape"):
        audio.griffin_lim(spectrogram[:8], log_mel)


def test_a_distilled_pair_is_exported_as_an_image_and_as_audio(finished, tmp_path):
    pytest.importorskip("librosa")
    [folder] = (finished / "distilled").glob("mdw-*/set_0")
    audio.export_pair(folder, 2, tmp_path / "clip", "a low tone")
    assert Image.open(tmp_path / "clip.png").width > 100
    rate, samples = wavfile.read(tmp_path / "clip.wav")
    assert rate == 8000 and len(samples) == 4800 and np.abs(samples).max() > 20000
    assert (finished / "figures" / "mdw-0.wav").exists()
    with pytest.raises(UserError, match="pairs 0 to 5, no pair 6"):
        audio.export_pair(folder, 6, tmp_path / "clip")
    card = json.loads((folder / "card.json").read_text())
    copy = tmp_path / "images"
    copy.mkdir()
    (copy / "distilled.safetensors").write_bytes((folder / "distilled.safetensors").read_bytes())
    (copy / "card.json").write_text(json.dumps(card | {"log_mel": None}))
    with pytest.raises(UserError, match="not of audio"):
        audio.export_pair(copy, 0, tmp_path / "clip")


T, H, W, C = 4, 8, 12, 3


class Cubes(nn.Module):
    """Clips in cubes of 2 frames of 4 x 4 pixels: (B, T, H, W, C) -> (B, t, h, w, 16)."""

    @nn.compact
    def __call__(self, clips):
        x = nn.Conv(16, (2, 4, 4), strides=(2, 4, 4))(2 * clips - 1)
        return x + nn.gelu(nn.Dense(16)(nn.gelu(x)))


def cubes(shape):
    """A tower of somebody's own for clips."""
    module = Cubes()
    return Tower("cubes", jax.jit(lambda key: module.init(key, jnp.zeros((1, *shape)))["params"]),
                 lambda params, clips: module.apply({"params": params}, clips), 16)


def moving(seed=0):
    """Clips of a bright column that moves left or right. A reader of somebody's own."""
    def split(count, generator):
        clips = generator.integers(0, 40, (count, T, H, W, C), dtype=np.uint8)
        right = generator.integers(0, 2, count)
        for clip, way in zip(clips, right):
            for frame in range(T):
                clip[frame, :, 4 + (2 * frame if way else -frame)] = 230
        numbers = np.arange(count)
        return Split(clips, tuple(f"it moves {'right' if way else 'left'}" for way in right), numbers, numbers)

    generator = np.random.default_rng(seed)
    return Pairs("moving", split(40, generator), split(20, generator), split(20, generator))


@pytest.mark.parametrize("mode, presets", [
    ("full", ("herding", "mdw")), pytest.param("projection", ("mdw",), marks=pytest.mark.slow)])
@pytest.mark.slow
def test_clips_go_through_unchanged(tmp_path, monkeypatch, mode, presets):
    module = types.ModuleType("my_clips")
    module.cubes, module.moving = cubes, moving
    monkeypatch.setitem(sys.modules, "my_clips", module)
    STAGES["run"](tiny(tmp_path, data__name="my_clips:moving", model__tower="my_clips:cubes", model__mode=mode,
                       model__dim=8, run__presets=presets, distill__augment="crop_flip"))
    for preset in presets:
        [folder] = (tmp_path / "distilled").glob(f"{preset}-*/set_0")
        assert load_distilled(folder)[0].images.shape == (6, T, H, W, C)
    assert len(shown(tmp_path)) >= 6 * len(presets)
    assert "MDW" in (tmp_path / "table.md").read_text()


def test_pixel_weights_of_clips_follow_place_and_time():
    """Only frames that the similarity depends on get weight: here those of the first half."""
    clips = jnp.asarray(np.random.default_rng(0).uniform(0.2, 1, (5, T, H, W, C)), jnp.float32)
    tower = Tower("early", lambda key: {"w": jnp.eye(C)}, lambda params, clips: clips @ params["w"], C,
                  pool=lambda params, maps: maps[:, : T // 2].mean((1, 2, 3)))
    model = dual_encoder(tower, None, 7, mode="full", dim=C)
    texts = jax.random.normal(jax.random.key(1), (5, 7))
    weights = pixel_weights(model, model.init(jax.random.key(0)), clips, texts, {}, alpha=1.0, loss="nce",
                            top_k=5, beta=1.0)
    assert weights.shape == (5, T, H, W, 1)
    moved = np.asarray(weights).std((1, 2, 3, 4)) > 1e-3  # an image whose maps are all zero keeps 1 everywhere
    assert moved.any()
    np.testing.assert_allclose(np.asarray(weights).mean((1, 2, 3, 4)), 1, atol=1e-4)


@pytest.mark.parametrize("policy", AUGMENTATIONS)
@pytest.mark.slow
def test_frames_of_a_clip_share_one_draw(policy):
    frame = jax.random.uniform(jax.random.key(0), (3, 1, H, W, C))
    out = augment(jax.random.key(1), jnp.repeat(frame, T, 1), policy)
    assert out.shape == (3, T, H, W, C)
    np.testing.assert_allclose(out, np.repeat(out[:, :1], T, 1), atol=1e-6)
    np.testing.assert_allclose(out[:, 0], augment(jax.random.key(1), frame[:, 0], policy), atol=1e-5)


def test_towers_of_images_refuse_video_clips():
    with pytest.raises(UserError, match="not video clips"):
        build_tower(base().model, (T, H, W, C), BuildContext())
