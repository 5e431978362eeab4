"""Audio from log-mel spectrograms: Griffin-Lim by librosa, WAV files, and the export of one distilled pair.

    from mdw_jax.reporting.audio import export_pair
    export_pair("runs/esc50/distilled/mdw-.../set_0", 0, "pair")
"""

import io
from pathlib import Path

import numpy as np
from scipy.io import wavfile

from mdw_jax.data.log_mel import LogMel, decibels
from mdw_jax.errors import UserError
from mdw_jax.io.distilled_set import load_for_display
from mdw_jax.io.files import write_atomically
from mdw_jax.reporting.figures import image_grid

STEPS = 64  # of Griffin-Lim
PEAK = 0.9  # of full scale: absolute loudness is not in a log-mel spectrogram


def griffin_lim(spectrogram, log_mel: LogMel, steps: int = STEPS) -> np.ndarray:
    """Audio whose log-mel spectrogram is about the given one.

    Magnitudes come from the mel bands by non-negative least squares, phases by the iteration of Griffin and Lim (1984,
    its fast form) from a fixed seed. Coarse spectrograms give coarse audio: a hop of tens of milliseconds is far longer
    than in speech codecs.

    Args:
        spectrogram: (mels, frames, 1) in [0, 1].
        log_mel: its settings.
        steps: iterations.

    Returns:
        (n,) float32 samples within +-`PEAK`.

    Raises:
        UserError: librosa is missing, or the spectrogram is not of the shape of `log_mel`.
    """
    spectrogram = np.asarray(spectrogram)
    if spectrogram.shape != log_mel.shape:
        raise UserError(f"an image of shape {spectrogram.shape} is not a log-mel spectrogram of shape {log_mel.shape}.")
    librosa = _librosa()
    # At the floor and below, there is silence.
    power = np.where(spectrogram[..., 0] > 0, 10 ** (decibels(spectrogram[..., 0]) / 10), 0)
    magnitude = librosa.feature.inverse.mel_to_stft(power, sr=log_mel.sample_rate, n_fft=log_mel.window, power=2.0)
    wave = librosa.griffinlim(magnitude, n_iter=steps, hop_length=log_mel.hop, n_fft=log_mel.window,
                              length=log_mel.frames * log_mel.hop - 1, random_state=0)
    wave = np.pad(wave, (0, log_mel.samples - len(wave)))
    return (PEAK * wave / max(np.abs(wave).max(), 1e-9)).astype(np.float32)


def write_wav(path, wave, rate: int) -> None:
    """Write audio as a 16 bit WAV file, atomically.

    Args:
        path: the file.
        wave: (n,) samples in [-1, 1].
        rate: samples per second.
    """
    buffer = io.BytesIO()
    wavfile.write(buffer, rate, np.round(np.clip(wave, -1, 1) * 32767).astype(np.int16))
    write_atomically(path, buffer.getvalue())


def export_pair(directory, index: int, path, caption: str = "") -> None:
    """Write one pair of a distilled set of audio as `<path>.png`, its spectrogram, and `<path>.wav`.

    Args:
        directory: of the distilled set.
        index: of the pair.
        path: of both files, without their suffixes.
        caption: text below the spectrogram.

    Raises:
        UserError: the set is not of audio or has no such pair, or librosa is missing.
    """
    distilled, card = load_for_display(directory)
    if not card.get("log_mel"):
        raise UserError(f"the distilled set in '{directory}' is not of audio: its card has no log_mel.")
    if not 0 <= index < len(distilled.images):
        raise UserError(f"the distilled set in '{directory}' has pairs 0 to {len(distilled.images) - 1}, no pair "
                        f"{index}.")
    log_mel, path = LogMel(**card["log_mel"]), Path(path)
    image_grid(distilled.images[index:index + 1], [caption], path.with_name(path.name + ".png"), spectrogram=True)
    write_wav(path.with_name(path.name + ".wav"), griffin_lim(distilled.images[index], log_mel), log_mel.sample_rate)


def can_synthesize() -> bool:
    """Whether the packages that `griffin_lim` needs are installed."""
    try:
        _librosa()
    except UserError:
        return False
    return True


def _librosa():
    try:
        import librosa  # an optional dependency, and slow to import
    except ImportError as error:
        raise UserError("making audio from spectrograms needs librosa: pip install 'mdw-jax[audio]'.") from error
    return librosa
