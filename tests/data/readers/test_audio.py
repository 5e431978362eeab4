"""Sounds as log-mels: the arithmetic, the reader of files and tables, ESC-50, and the synthesised data set."""

import builtins
import csv
import io
import wave

import numpy as np
import pytest

from mdw_jax.data.log_mel import FLOOR, LogMel, decibels, filters
from mdw_jax.data.readers.audio import TEMPLATES, audio, esc50
from mdw_jax.data.registry import load
from mdw_jax.data.synthetic.tones import KINDS, PITCHES, tones
from mdw_jax.errors import UserError

SMALL = {"sample_rate": 8000, "seconds": 1.0, "mels": 16, "frames": 24}


def sine(hertz, seconds=1.0, rate=8000):
    return 0.5 * np.sin(2 * np.pi * hertz * np.arange(int(seconds * rate)) / rate)


def wav(samples, rate=8000, channels=1):
    """16 bit WAV bytes by the standard library."""
    buffer = io.BytesIO()
    with wave.open(buffer, "wb") as file:
        file.setnchannels(channels)
        file.setsampwidth(2)
        file.setframerate(rate)
        file.writeframes(np.repeat(np.round(samples * 32767).astype("<i2"), channels).tobytes())
    return buffer.getvalue()


def table(path, rows):
    with open(path, "w", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    return path


def test_a_tone_sounds_in_its_band_while_it_lasts_and_nowhere_else():
    log_mel = LogMel(8000, 2.0, 32, 40)
    image = log_mel.image(np.concatenate([np.zeros(8000), sine(1000)]))
    assert image.shape == log_mel.shape == (32, 40, 1) and image.dtype == np.uint8
    row, column, _ = np.unravel_index(image.argmax(), image.shape)
    response = filters(8000, log_mel.window, 32)[:, round(1000 * log_mel.window / 8000)]
    assert row == response.argmax() and column >= 20 and image.max() == 255
    assert not image[:, :18].any() and (image[row, 22:] > 250).all()
    assert not log_mel.image(np.zeros(100)).any()


def test_a_pixel_is_decibels_below_the_loudest_and_loudness_itself_is_lost():
    log_mel = LogMel(8000, 2.0, 32, 40)
    loud, quiet = sine(500), sine(2000) / 100  # 40 dB apart
    image = log_mel.image(np.concatenate([loud, quiet]))
    np.testing.assert_array_equal(image, log_mel.image(0.01 * np.concatenate([loud, quiet])))
    level = decibels(image[..., 0] / 255)
    area = 10 * np.log10(filters(8000, log_mel.window, 32).max(1))  # triangles of equal area: higher bands are lower
    high = level[:, 25:35].max(1)
    assert level.max() == 0 and level.min() == FLOOR
    assert high.max() == pytest.approx(-40 + area[high.argmax()] - area[level[:, 5:15].max(1).argmax()], abs=3)


def test_images_agree_with_librosa():
    librosa = pytest.importorskip("librosa")
    log_mel = LogMel(16000, 2.0, 40, 48)
    np.testing.assert_allclose(filters(16000, log_mel.window, 40),
                               librosa.filters.mel(sr=16000, n_fft=log_mel.window, n_mels=40), atol=1e-7)
    samples = np.random.default_rng(0).normal(size=32000) * np.linspace(0, 1, 32000)
    power = librosa.feature.melspectrogram(y=samples, sr=16000, n_fft=log_mel.window, hop_length=log_mel.hop, n_mels=40)
    level = librosa.power_to_db(power[:, :48], ref=power[:, :48].max(), top_db=80)
    half_a_step = -FLOOR / 255 / 2
    assert np.abs(decibels(log_mel.image(samples)[..., 0] / 255) - level).max() < half_a_step * 1.01


@pytest.mark.parametrize("wrong", [{"mels": 0}, {"frames": 0}, {"sample_rate": 0}, {"seconds": 0.0}, {"mels": 600}])
def test_log_mels_that_cannot_be(wrong):
    with pytest.raises(UserError, match="mel"):
        LogMel(**SMALL | wrong)


@pytest.fixture
def clotho(tmp_path):
    """Six files in three folders and three tables in Clotho's form."""
    pytest.importorskip("soundfile")
    tables, number = {}, 0
    for split in ("train", "val", "test"):
        (tmp_path / split).mkdir()
        rows = []
        for _ in range(2):
            (tmp_path / split / f"{number}.wav").write_bytes(wav(sine(300 + 500 * number)))
            rows.append({"file_name": f"{number}.wav"} |
                        {f"caption_{i}": f"tone {number}, again {i}" for i in range(1, 6)})
            number += 1
        tables[split] = str(table(tmp_path / f"{split}.csv", rows))
    return {"annotations": tables["train"], "val_annotations": tables["val"], "test_annotations": tables["test"],
            "images": ",".join(str(tmp_path / split) for split in tables)}


def test_clotho_form(clotho):
    pairs = audio(**clotho, **SMALL)
    assert pairs.log_mel == LogMel(**SMALL)
    for number, split in enumerate((pairs.train, pairs.val, pairs.test)):
        assert len(split.images) == 2 and len(split.captions) == 10
        for row in range(2):
            hertz = 300 + 500 * (2 * number + row)
            # 16 bit samples are rounded: quiet bands differ
            exact = pairs.log_mel.image(sine(hertz)).astype(int)
            assert np.abs(split.images[row].astype(int) - exact)[exact > 100].max() <= 1
            assert split.captions[5 * row] == f"tone {2 * number + row}, again 1"
    lazy = audio(**clotho, **SMALL, stream=True)
    np.testing.assert_array_equal(np.asarray(lazy.train.images), pairs.train.images)
    other = audio(**clotho, **SMALL | {"sample_rate": 4000}, stream=True)
    assert other.train.images.shape == lazy.train.images.shape
    assert other.train.fingerprint != lazy.train.fingerprint


def test_audiocaps_form_with_other_rates_channels_lengths_and_codecs(tmp_path):
    soundfile = pytest.importorskip("soundfile")
    (tmp_path / "Ya.wav").write_bytes(wav(sine(700, 3.0, 22050), 22050, channels=2))
    (tmp_path / "Yb.wav").write_bytes(wav(sine(700, 0.5)))
    for name, kind in (("c", "FLAC"), ("d", "OGG"), ("e", "MP3")):
        buffer = io.BytesIO()
        soundfile.write(buffer, sine(700, 1.0, 16000), 16000, format=kind)
        (tmp_path / f"Y{name}.wav").write_bytes(buffer.getvalue())  # the content counts, not the name
    rows = [{"audiocap_id": i, "youtube_id": name, "start_time": 0, "caption": f"a beep {name} {i}"}
            for i, name in enumerate("abcdea")]
    pairs = load("audio", annotations=table(tmp_path / "all.csv", rows), image_column="youtube_id",
                 caption_columns="caption", file_pattern="Y{}.wav", holdout_val=1, holdout_test=1, **SMALL)
    assert pairs.train.images.shape == (3, 16, 24, 1)
    splits = (pairs.train, pairs.val, pairs.test)
    images = {key: image for split in splits for key, image in zip(split.attributes["key"], split.images)}
    assert sum(len(split.captions) for split in splits) == 6
    # Louder than what resampling and lossy codecs add, all are the same tone; one ends half way.
    exact = pairs.log_mel.image(sine(700)).astype(int)
    for name in "acde":
        assert np.abs(images[f"Y{name}.wav"].astype(int) - exact)[:, 4:-4][exact[:, 4:-4] > 215].max() <= 12, name
    assert images["Yb.wav"][:, :10].max() == 255 and not images["Yb.wav"][:, 16:].any()


@pytest.mark.parametrize("change, message", [
    ({"images": "empty"}, r"3 absent images \(the first: 'a.wav' is not in 'empty'\)"),
    ({"data": b"no sound"}, r"1 broken image \('b.wav', line 2 of '.*/b.csv' \(.*Format not recognised"),
    ({"data": wav(np.zeros(0))}, r"1 broken image \('b.wav', line 2 of .*no samples"),
    ({"caption_columns": "text"}, "has no column 'text'"), ({"mels": 0}, "mels")])
def test_what_is_wrong_with_files_and_tables_is_said(tmp_path, monkeypatch, change, message):
    pytest.importorskip("soundfile")
    monkeypatch.chdir(tmp_path)
    (tmp_path / "sounds").mkdir()
    (tmp_path / "empty").mkdir()
    data = change.pop("data", wav(sine(400)))
    for name in "abc":
        (tmp_path / "sounds" / f"{name}.wav").write_bytes(data if name == "b" else wav(sine(400)))
    paths = [table(tmp_path / f"{name}.csv", [{"file_name": f"{name}.wav", "caption": "x"}]) for name in "abc"]
    given = dict(zip(("annotations", "val_annotations", "test_annotations"), paths))
    with pytest.raises(UserError, match=message):
        audio(**{**given, "images": "sounds", "caption_columns": "caption", **SMALL, **change})


def test_a_clip_in_two_tables_is_refused(clotho):
    with pytest.raises(UserError, match="2 images of .* are in two splits, train and test, the first is '0.wav'"):
        audio(**clotho | {"test_annotations": clotho["annotations"]}, **SMALL)


def test_reading_audio_without_soundfile_names_the_extra(tmp_path, monkeypatch):
    real = builtins.__import__

    def without(module, *rest, **more):
        if module == "soundfile":
            raise ImportError(module)
        return real(module, *rest, **more)
    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(UserError, match=r"mdw-jax\[audio\]"):
        audio(tmp_path / "t.csv")


CLASSES = ("dog", "sea_waves")


def stored(folder, folds=(1, 2, 3, 5)):
    """ESC-50 in miniature, its log-mels made."""
    fold = np.repeat(np.array(folds, np.uint8), 4)
    target = np.tile(np.array([0, 0, 1, 1], np.uint8), len(folds))
    clip = np.array([f"{f}-{i}-A" for i, f in enumerate(fold)])
    images = np.random.default_rng(0).integers(0, 256, (len(fold), 6, 10), np.uint8)
    np.savez(folder / "esc50_logmel.npz", logmel=images, fold=fold, target=target, clip=clip)
    (folder / "esc50_labels.json").write_text('{"classes": ["dog", "sea_waves"]}')
    return images, fold


def test_esc50_folds_and_captions(tmp_path):
    images, fold = stored(tmp_path)
    pairs = esc50(tmp_path)
    for split, folds in ((pairs.train, (1, 2)), (pairs.val, (3,)), (pairs.test, (5,))):
        np.testing.assert_array_equal(split.images[..., 0], images[np.isin(fold, folds)])
        for caption, image in zip(split.captions, split.image_of):
            name = split.attributes["category"][image].replace("_", " ")
            assert caption in {template.format(name) for template in TEMPLATES}
        assert len(split.captions) == 3 * len(split.images)
    # No ties in a test set: every clip of a class has captions of its own.
    assert len(set(pairs.test.captions)) == len(pairs.test.captions)
    assert pairs.log_mel.shape == (6, 10, 1)
    assert esc50(tmp_path, seed=1).test.captions != pairs.test.captions
    assert len(set(TEMPLATES)) >= 3 * 8  # the real one has eight clips a class and fold


@pytest.mark.parametrize("given, message", [
    ({"val_split": "4"}, "no clips of fold 4, only of"), ({"val_split": "2"}, "must be different numbers"),
    ({"test_split": "five"}, "must be different numbers"), ({"source": "nowhere"}, "neither meta/esc50.csv nor"),
    ({"holdout_val": 3}, "the splits of esc50 are its folds"), ({"stream": True}, "data.stream is set, and the log-mels")])
def test_esc50_that_is_not_there(tmp_path, given, message):
    stored(tmp_path)
    with pytest.raises(UserError, match=message):
        esc50(**{"source": tmp_path, **given})


def test_esc50_as_published_reads_the_sounds(tmp_path):
    pytest.importorskip("soundfile")
    (tmp_path / "audio").mkdir()
    (tmp_path / "meta").mkdir()
    rows = [{"filename": f"{fold}-{i}.wav", "fold": fold, "category": CLASSES[i]}
            for fold in (1, 2, 3, 5) for i in (0, 1)]
    for row in rows:
        (tmp_path / "audio" / row["filename"]).write_bytes(wav(sine(400, 0.2)))
    table(tmp_path / "meta" / "esc50.csv", rows)
    pairs = load("esc50", source=str(tmp_path), train_split="1,2", **SMALL)
    assert pairs.train.images.shape == (4, 16, 24, 1) and pairs.test.images.shape == (2, 16, 24, 1)
    assert list(pairs.val.attributes["category"]) == list(CLASSES)
    assert all("sea waves" in caption for caption in pairs.val.captions[3:])


def test_tones_are_the_same_everywhere_and_a_longer_split_extends_a_shorter_one():
    few, more = tones(4, 2, 3), tones(9, 2, 3)
    np.testing.assert_array_equal(few.train.images, more.train.images[:4])
    assert few.train.captions == more.train.captions[:12] and few.test.fingerprint == more.test.fingerprint
    assert few.fingerprint == "2adf454ce7e175e944be66615a305be5d84802eb503d080149113d337a4a56a1"
    assert (tones(4, 2, 3, seed=1).train.images != few.train.images).any()


def test_captions_of_tones_are_true():
    split = tones(60, 1, 1).train
    words = {word: kind for kind, phrases in KINDS.items() for word in phrases}
    for number, caption in enumerate(split.captions):
        image = split.image_of[number]
        first = caption.split(", then ")[0].split(" followed by ")[0].split(" and then ")[0]
        longest = max((word for word in words if word in first), key=len)
        assert words[longest] == split.attributes["kind"][image], caption
        assert not any(f" {word} " in f"{first} " for pitch, phrases in PITCHES.items() for word in phrases
                       if pitch != split.attributes["pitch"][image]), caption


def test_the_pitch_of_a_tone_is_where_the_caption_says():
    split = tones(400, 1, 1).train
    alone = (split.attributes["sounds"] == 1) & (split.attributes["kind"] == "tone")
    rows = {pitch: split.images[alone & (split.attributes["pitch"] == pitch)].max(2)[..., 0].argmax(1)
            for pitch in PITCHES}
    assert all(len(found) for found in rows.values())
    assert rows["low"].max() < rows["middle"].min() and rows["middle"].max() < rows["high"].min()


@pytest.mark.parametrize("wrong", [{"train": 0}, {"val": 1.5}, {"captions_per_image": True}])
def test_counts_of_tones_must_be_whole(wrong):
    with pytest.raises(UserError, match="give a whole number"):
        tones(**wrong)
