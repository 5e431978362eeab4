"""Sounds again from log-mel pictures: Griffin-Lim by librosa, WAV files, and the export of a distilled clip.

    python -c "from mdw_jax.reporting.audio import export; export('runs/esc50/distilled/mdw-.../set_0', 0, 'clip')"
"""

import io
from pathlib import Path

import numpy as np
from scipy.io import wavfile

from mdw_jax.data.log_mel import LogMel, decibels
from mdw_jax.errors import UserError
from mdw_jax.io.distilled_set import load_distilled
from mdw_jax.io.files import write_atomically
from mdw_jax.reporting.figures import image_grid

STEPS = 64  # of Griffin-Lim
PEAK = 0.9  # of full scale: absolute loudness is not in a log-mel


def griffin_lim(picture, log_mel: LogMel, steps: int = STEPS) -> np.ndarray:
    """Samples (n,) float32, within +-`PEAK`, whose log-mel is about `picture` (mels, frames, 1), in [0, 1].

    Magnitudes by non-negative least squares from the mel bands, phases by Griffin and Lim's iteration (1984, its fast
    form), from a fixed seed. Coarse pictures sound coarse: a hop of tens of milliseconds is far more than speech codecs
    allow themselves. Raises UserError without librosa, or for a picture that is not of `log_mel`'s shape.
    """
    picture = np.asarray(picture)
    if picture.shape != log_mel.shape:
        raise UserError(f"a picture of shape {picture.shape} is no log-mel of shape {log_mel.shape}.")
    librosa = _librosa()
    power = np.where(picture[..., 0] > 0, 10 ** (decibels(picture[..., 0]) / 10), 0)  # `FLOOR` and below is silence
    magnitude = librosa.feature.inverse.mel_to_stft(power, sr=log_mel.sample_rate, n_fft=log_mel.window, power=2.0)
    wave = librosa.griffinlim(magnitude, n_iter=steps, hop_length=log_mel.hop, n_fft=log_mel.window,
                              length=log_mel.frames * log_mel.hop - 1, random_state=0)
    wave = np.pad(wave, (0, log_mel.samples - len(wave)))
    return (PEAK * wave / max(np.abs(wave).max(), 1e-9)).astype(np.float32)


def write_wav(path, wave, rate: int) -> None:
    """Write samples (n,) in [-1, 1] as a 16 bit WAV file, atomically."""
    buffer = io.BytesIO()
    wavfile.write(buffer, rate, np.round(np.clip(wave, -1, 1) * 32767).astype(np.int16))
    write_atomically(path, buffer.getvalue())


def export(folder, index: int, path, caption: str = "") -> None:
    """Write pair `index` of the distilled set in `folder` as `<path>.png`, its spectrogram, and `<path>.wav`.

    Raises UserError for a set that is not of sounds or has no such pair, and for what `griffin_lim` raises.
    """
    distilled, card = load_distilled(folder)
    if not card.get("log_mel"):
        raise UserError(f"the distilled set in '{folder}' is not of sounds: its card has no log_mel.")
    if not 0 <= index < len(distilled.images):
        raise UserError(f"the distilled set in '{folder}' has pairs 0 to {len(distilled.images) - 1}, no pair {index}.")
    log_mel, path = LogMel(**card["log_mel"]), Path(path)
    image_grid(distilled.images[index:index + 1], [caption], path.with_name(path.name + ".png"), spectrogram=True)
    write_wav(path.with_name(path.name + ".wav"), griffin_lim(distilled.images[index], log_mel), log_mel.sample_rate)


def can_sound() -> bool:
    """Whether the packages for `griffin_lim` are there."""
    try:
        _librosa()
    except UserError:
        return False
    return True


def _librosa():
    try:
        import librosa  # an optional dependency, and slow to import
    except ImportError as error:
        raise UserError("making sounds of spectrograms needs librosa: pip install 'mdw-jax[audio]'.") from error
    return librosa
