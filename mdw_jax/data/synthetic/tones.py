"""`tones`: a generated data set of captioned audio, so that audio runs without a download (this work).

A clip holds one to three sounds, one after the other, over a background; its image is the log-mel of its samples.
"""

import dataclasses
from typing import Any

import numpy as np

from mdw_jax.data.log_mel import LogMel
from mdw_jax.data.pairs import Pairs, Split
from mdw_jax.data.synthetic.scene_captions import pick
from mdw_jax.errors import UserError
from mdw_jax.runtime.rng import named_generator

# The keys are attribute values, and the rows the words for them; a caption has any of them.
KINDS = {
    "tone": ("steady tone", "tone", "beep"),
    "rising": ("rising chirp", "rising whistle", "sweep upwards"),
    "falling": ("falling chirp", "falling whistle", "sweep downwards"),
    "warble": ("warble", "trill", "wavering tone"),
    "pulses": ("row of pulses", "ticking", "series of ticks"),
    "noise": ("burst of noise", "hiss", "rush of noise"),
}
PITCHES = {"low": ("low", "deep"), "middle": ("middling", "medium"), "high": ("high", "shrill")}
BACKGROUNDS = {"silence": ("in silence", "and nothing else"), "hum": ("over a hum", "with a drone below"),
               "static": ("over static", "in a noisy recording")}
HERTZ = {"low": 280.0, "middle": 800.0, "high": 2300.0}
"""Frequency of a sound by its pitch; jittered by at most 8 %."""
SLOTS = 3  # sounds that fit into a clip
SAMPLE_RATE = 8000


@dataclasses.dataclass(frozen=True)
class Sound:
    """One sound: what captions state of it, and in which third of the clip it is."""

    kind: str
    pitch: str
    slot: int


def tones(train: int = 2000, val: int = 250, test: int = 500, seed: int = 0, mels: int = 32, frames: int = 64,
          seconds: float = 2.0, captions_per_image: int = 3) -> Pairs:
    """Synthesize a data set of captioned clips at 8 kHz.

    Clip i of a split is a function of (seed, split, i) alone. Attributes, one value for each clip: `sounds` (1 to 3),
    `background`, and of the first sound `kind` and `pitch`. Caption numbers count test, val, then train.

    Args:
        train, val, test: clips in each split.
        seed: of the clips.
        mels, frames, seconds: see `LogMel`.
        captions_per_image: captions of each clip.
    Raises:
        UserError: a count below 1 or no whole number.
    """
    for name, value in (("train", train), ("val", val), ("test", test), ("captions_per_image", captions_per_image)):
        if isinstance(value, bool) or not isinstance(value, (int, np.integer)) or value < 1:
            raise UserError(f"tones: {name} is {value!r}; give a whole number of at least 1.")
    splits: dict[str, Any] = {}
    log_mel, first = LogMel(SAMPLE_RATE, seconds, mels, frames), 0
    for name, count in (("test", test), ("val", val), ("train", train)):
        images, captions, clips = np.empty((count, *log_mel.shape), np.uint8), [], []
        for index in range(count):
            clip = _draw(named_generator(seed, "tones", name, index))
            samples = named_generator(seed, "tones", name, index, "samples")
            images[index] = log_mel.image(wave(samples, *clip, log_mel.samples))
            words = named_generator(seed, "tones", name, index, "captions")
            captions += [_caption(words, *clip) for _ in range(captions_per_image)]
            clips.append(clip)
        splits[name] = Split(
            images=images, captions=tuple(captions),
            image_of=np.repeat(np.arange(count, dtype=np.int64), captions_per_image),
            caption_ids=np.arange(first, first + len(captions), dtype=np.int64),
            attributes={"sounds": np.array([len(sounds) for sounds, _ in clips]),
                        "background": np.array([background for _, background in clips]),
                        "kind": np.array([sounds[0].kind for sounds, _ in clips]),
                        "pitch": np.array([sounds[0].pitch for sounds, _ in clips])})
        first += len(captions)
    return Pairs("tones", **splits, log_mel=log_mel)


def _draw(rng) -> tuple[tuple[Sound, ...], str]:
    """The sounds of one clip, in order of time, and its background."""
    share = rng.random()
    count = 1 if share < 0.25 else 2 if share < 0.7 else 3
    slots = sorted(rng.permutation(SLOTS)[:count].tolist())
    sounds = tuple(Sound(pick(rng, tuple(KINDS)), pick(rng, tuple(PITCHES)), slot) for slot in slots)
    return sounds, pick(rng, tuple(BACKGROUNDS))


def wave(rng, sounds: tuple[Sound, ...], background: str, samples: int, rate: int = SAMPLE_RATE) -> np.ndarray:
    """Synthesize a clip.

    Args:
        rng: draws what captions do not state: jitters and noise.
        sounds: in order of time.
        background: a key of `BACKGROUNDS`.
        samples: length of the clip.
        rate: samples per second.
    Returns:
        (samples,) float64.
    """
    if background not in BACKGROUNDS:
        raise ValueError(f"there is no background '{background}'")
    clip = np.zeros(samples)
    if background == "hum":
        clip += 0.03 * np.sin(2 * np.pi * 110 * np.arange(samples) / rate)
    if background == "static":
        clip += 0.02 * (2 * rng.random(samples) - 1)
    slot_length = samples // SLOTS
    for sound in sounds:
        length = int(slot_length * (0.75 + 0.2 * rng.random()))
        start = sound.slot * slot_length + int((slot_length - length) * rng.random())
        hertz = HERTZ[sound.pitch] * (1 + 0.08 * (2 * rng.random() - 1))
        edge = np.minimum(1, np.minimum(np.arange(length), np.arange(length)[::-1]) / (0.02 * rate))  # no clicks
        clip[start:start + length] += (0.7 + 0.3 * rng.random()) * edge * _voice(rng, sound.kind, hertz, length, rate)
    return clip


def _voice(rng, kind: str, hertz: float, length: int, rate: int) -> np.ndarray:
    seconds = np.arange(length) / rate
    part = seconds * rate / length  # 0 to 1
    if kind == "noise":  # a band around the pitch: slow noise times a tone
        slow = np.convolve(2 * rng.random(length + 15) - 1, np.ones(16) / 4, "valid")
        return slow * np.sin(2 * np.pi * hertz * seconds)
    if kind == "pulses":
        return np.sin(2 * np.pi * hertz * seconds) * ((seconds * 16) % 1 < 0.35)
    if kind == "warble":
        return np.sin(2 * np.pi * hertz * (seconds + 0.15 * np.sin(2 * np.pi * 8 * seconds) / (2 * np.pi * 8)))
    glide = {"tone": 0.0, "rising": 0.45, "falling": -0.45}[kind]  # of the pitch, up and down from its middle
    return np.sin(2 * np.pi * hertz * seconds * (1 + glide * (part - 1)))


def _caption(rng, sounds: tuple[Sound, ...], background: str) -> str:
    """A sentence that leaves out the pitch of some sounds, and the background half the time."""
    phrases = []
    for sound in sounds:
        pitch = f"{pick(rng, PITCHES[sound.pitch])} " if rng.random() < 0.8 else ""
        phrases.append(f"a {pitch}{pick(rng, KINDS[sound.kind])}")
    text = pick(rng, (", then ", " followed by ", " and then ")).join(phrases)
    return f"{text} {pick(rng, BACKGROUNDS[background])}" if rng.random() < 0.5 else text
