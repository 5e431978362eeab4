"""Log-mel spectrograms of audio as uint8 images of one channel, so that everything that takes images takes audio.

A pixel is a level in decibels below the loudest band of its clip: 0 is `FLOOR` and quieter, 255 is 0 dB. Eight bits
cost at most 0.16 dB, far less than an ear or a tower notices, and `decibels` is the way back. Phase and absolute
loudness are lost. All is float64 numpy: where machines differ in a last bit, the byte it is rounded to is the same but
for a chance of about 1e-11 for each pixel.
"""

import dataclasses
import functools

import numpy as np

from mdw_jax.errors import UserError

FLOOR = -80.0
"""Decibels of pixel 0; pixel 255 is 0 dB, the loudest band of the clip."""


@dataclasses.dataclass(frozen=True)
class LogMel:
    """The settings of a log-mel image of an audio clip: (mels, frames, 1) uint8, row 0 the lowest band.

    Attributes:
        sample_rate: samples per second.
        seconds: length of the clip; longer audio is cut, shorter audio ends in silence.
        mels: bands from 0 to sample_rate / 2 Hz, on Slaney's mel scale, their triangles of equal area.
        frames: columns, evenly spaced over the clip, the first centered on its start.
    Raises:
        UserError: settings that leave no samples, or bands that are too narrow for any frequency of the spectrum.
    """

    sample_rate: int = 16000
    seconds: float = 10.0
    mels: int = 64
    frames: int = 128

    def __post_init__(self):
        if self.sample_rate < 1 or self.mels < 1 or self.frames < 1 or self.samples < self.frames:
            raise UserError(f"log-mels of {self.seconds} s at {self.sample_rate} Hz cannot be {self.mels} bands x "
                            f"{self.frames} frames; set data.sample_rate, data.seconds, data.mels and data.frames "
                            "above 0.")
        if not filters(self.sample_rate, self.window, self.mels).any(1).all():
            raise UserError(f"{self.mels} mel bands are too narrow for windows of {self.window} samples at "
                            f"{self.sample_rate} Hz: some would be empty; lower data.mels or data.frames.")

    @property
    def samples(self) -> int:
        """Samples in a clip."""
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
        """(mels, frames, 1), the shape of one image."""
        return self.mels, self.frames, 1

    def image(self, wave) -> np.ndarray:
        """(n,) samples at `sample_rate` -> (mels, frames, 1) uint8. A silent clip is all 0."""
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


def decibels(pixels) -> np.ndarray:
    """Pixels of `LogMel.image` scaled to [0, 1] -> decibels below the clip's loudest band, `FLOOR` to 0."""
    return np.clip(np.asarray(pixels, np.float64), 0, 1) * -FLOOR + FLOOR


@functools.lru_cache(maxsize=8)
def filters(sample_rate: int, window: int, mels: int) -> np.ndarray:
    """Triangles between equal steps in mel from 0 to sample_rate / 2 Hz, of area 1 (Slaney 1998).

    Args:
        sample_rate: samples per second.
        window: samples in a window.
        mels: how many bands.
    Returns:
        (mels, window // 2 + 1) float64.
    """
    edges = _hertz(np.linspace(0, _mel(sample_rate / 2), mels + 2))
    bins = np.arange(window // 2 + 1) * sample_rate / window
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
