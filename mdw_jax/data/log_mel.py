"""Log-mel spectrograms of sounds as uint8 pictures of one channel, so that all that learns from images learns of them.

A pixel is a level in decibels below the loudest band of its clip: 0 is `FLOOR` and quieter, 255 is 0 dB. Eight bits
cost at most 0.16 dB, far less than an ear or a tower notices, and the way back is `decibels`. What is lost is phase and
absolute loudness. All is float64 numpy: where machines differ in a last bit, the byte it is rounded to is the same but
for a chance of about 1e-11 a pixel.
"""

import dataclasses
import functools

import numpy as np

from mdw_jax.errors import UserError

FLOOR = -80.0
"""Decibels of pixel 0; pixel 255 is 0 dB, the loudest band of the clip."""


@dataclasses.dataclass(frozen=True)
class LogMel:
    """A log-mel picture of a clip: (mels, frames, 1) uint8, row 0 the lowest band.

    sample_rate: samples a second. seconds: of the clip; longer sounds are cut, shorter ones end in silence. mels: bands from 0
    to rate / 2 Hz, on Slaney's mel scale, their triangles of equal area. frames: columns, evenly spaced over the clip,
    the first centred on its start.
    Raises UserError for settings that leave nothing to hear.
    """

    sample_rate: int = 16000
    seconds: float = 10.0
    mels: int = 64
    frames: int = 128

    def __post_init__(self):
        if self.sample_rate < 1 or self.mels < 1 or self.frames < 1 or self.samples < self.frames:
            raise UserError(f"log-mels of {self.seconds} s at {self.sample_rate} Hz cannot be {self.mels} bands x "
                            f"{self.frames} frames; set data.sample_rate, data.seconds, data.mels and data.frames above 0.")
        if not filters(self.sample_rate, self.window, self.mels).any(1).all():
            raise UserError(f"{self.mels} mel bands are too fine for windows of {self.window} samples at {self.sample_rate} "
                            "Hz: some would hear nothing; lower data.mels or data.frames.")

    @property
    def samples(self) -> int:
        """How many samples a clip has."""
        return round(self.sample_rate * self.seconds)

    @property
    def hop(self) -> int:
        """Samples from one frame to the next."""
        return self.samples // self.frames

    @property
    def window(self) -> int:
        """Samples in one (Hann) window: the least power of two that is two hops or more, and 256 at least."""
        return max(256, 1 << (2 * self.hop - 1).bit_length())

    @property
    def shape(self) -> tuple[int, int, int]:
        """Of one picture."""
        return self.mels, self.frames, 1

    def picture(self, wave) -> np.ndarray:
        """(n,) samples at `rate` -> (mels, frames, 1) uint8. A silent clip is all 0."""
        wave = np.asarray(wave, np.float64)[: self.samples]
        half, length = self.window // 2, (self.frames - 1) * self.hop + self.window
        padded = np.zeros(max(length, len(wave) + half))
        padded[half:half + len(wave)] = wave
        frames = np.lib.stride_tricks.sliding_window_view(padded, self.window)[:: self.hop][: self.frames]
        window = 0.5 - 0.5 * np.cos(2 * np.pi * np.arange(self.window) / self.window)
        power = np.abs(np.fft.rfft(frames * window, axis=1)) ** 2
        bands = filters(self.sample_rate, self.window, self.mels) @ power.T
        loudest = bands.max()
        level = 10 * np.log10(np.maximum(bands / loudest, 1e-30)) if loudest > 0 else np.full(bands.shape, FLOOR)
        return np.round(255 * np.clip(1 - level / FLOOR, 0, 1)).astype(np.uint8)[..., None]


def decibels(pictures) -> np.ndarray:
    """Pixels in [0, 1] -> decibels below the clip's loudest band, `FLOOR` to 0: what `LogMel.picture` made of them."""
    return np.clip(np.asarray(pictures, np.float64), 0, 1) * -FLOOR + FLOOR


@functools.lru_cache(maxsize=8)
def filters(rate: int, window: int, mels: int) -> np.ndarray:
    """(mels, window // 2 + 1): triangles between equal steps in mel from 0 to rate / 2 Hz, of area 1 (Slaney 1998)."""
    edges = _hertz(np.linspace(0, _mel(rate / 2), mels + 2))
    bins = np.arange(window // 2 + 1) * rate / window
    low, middle, high = (edges[i:i + mels, None] for i in range(3))
    triangles = np.maximum(0, np.minimum((bins - low) / (middle - low), (high - bins) / (high - middle)))
    return triangles * 2 / (high - low)


# Slaney's scale: linear below 1000 Hz (15 mel), logarithmic above, 27 steps to a factor of 6.4.
_LINEAR, _KNEE, _STEP = 200 / 3, 1000.0, np.log(6.4) / 27


def _mel(hertz):
    return hertz / _LINEAR if hertz < _KNEE else _KNEE / _LINEAR + np.log(hertz / _KNEE) / _STEP


def _hertz(mel):
    knee = _KNEE / _LINEAR
    return np.where(mel < knee, mel * _LINEAR, _KNEE * np.exp(_STEP * (np.maximum(mel, knee) - knee)))
