"""Every reader on thousands of damaged files: one sentence or a result, never a traceback (slow).

MDW_FUZZ=5000 sets how many mutations of each kind are tried; each is named by its number, so that it can be made again,
and MDW_FUZZ_FROM=1200 goes on at that number.
"""

import contextlib
import functools
import io
import os
import shutil
import tarfile
import warnings
import zipfile

import forms
import numpy as np
import pytest
from fuzz_mutations import mutated
from safetensors.numpy import save
from test_run_report import make_run
from tiny_models import write_model

from mdw_jax import load_distilled, open_run, open_trajectory
from mdw_jax.cli import arguments, main
from mdw_jax.data import noise
from mdw_jax.data.decoding import decode
from mdw_jax.data.registry import load
from mdw_jax.data.synthetic.scenes import scenes
from mdw_jax.errors import UserError
from mdw_jax.io.checkpoint import read_checkpoint, save_checkpoint
from mdw_jax.io.keyed import read_keyed_arrays, write_keyed_arrays
from mdw_jax.io.trajectory import read_snapshot, save_trajectory
from mdw_jax.models.text.encoder import load_text_encoder
from mdw_jax.models.text.precomputed import precomputed_features
from mdw_jax.models.weights.hub import read_tensors

COUNT, FIRST = (int(os.environ.get(name, default)) for name, default in (("MDW_FUZZ", "60"), ("MDW_FUZZ_FROM", "0")))
_EVERY = 500  # mutations after which it is said how far a kind is
PAIRS = scenes(train=12, val=4, test=4, size=16, captions_per_image=1)


@pytest.fixture(autouse=True)
def parsers_made_once(monkeypatch):
    """Half the time of a command on little data goes into its parser, which reads no file."""
    monkeypatch.setattr(arguments, "make_parsers", functools.cache(arguments.make_parsers))


def command(*words, names=("",)):
    """A command line on a folder, or on these files of it: status 0 or 2, which is returned, and no traceback."""
    def read(folder):
        status = main([*words, *(str(folder / name) for name in names)])
        assert status in (0, 2), f"status {status}"
        return status

    return read


# ---- kinds: (name, makes files in a folder, reads the folder) ---------------------------------------------------------


def _run(folder):
    make_run(folder / "run", pairs=6, side=8)


def _read_run(folder):
    run = open_run(folder / "run")
    for preset in run.presets:
        _ = preset.experts, preset.scores
        if preset.has_sets:
            _ = preset.displayed_set, preset.byte_budget, preset.captions, preset.candidates, preset.image_history
    _ = run["mdw"].metrics, run["mdw"].trajectory_directories
    return command("runs")(folder)


def _noise(folder):
    noise.save(noise.draw(PAIRS, "image", 0.4, 0), folder / "noise.npz")
    noise.write_index(noise.draw(PAIRS, "image", 0.4, 0), folder / "index.npy", "image")


def _read_noise(folder):
    with contextlib.suppress(UserError):
        noise.load(folder / "noise.npz", PAIRS)
    noise.read_index(folder / "index.npy", PAIRS)


def _features(folder):
    generator = np.random.default_rng(0)
    np.savez(folder / "a.npz", features=generator.normal(size=(12, 5)).astype(np.float32), ids=np.arange(12))
    np.save(folder / "b.npy", generator.normal(size=(12, 5)).astype(np.float32))


def _read_features(folder):
    with contextlib.suppress(UserError):
        precomputed_features(folder / "a.npz", np.arange(12))
    precomputed_features(folder / "b.npy", np.arange(12))


def _arrays(folder):
    tree = {"a": np.arange(12.0, dtype=np.float32), "b": {"c": np.int32(3)}}
    save_checkpoint(folder / "checkpoint.safetensors", tree, "key")
    write_keyed_arrays(folder / "cache.safetensors", {"a": np.ones((3, 4), np.float32)}, "key")
    save_trajectory(folder / "net", [{"head": {"w": np.full((2, 3), n, np.float32)}} for n in range(2)], key="key")


def _read_arrays(folder):
    with contextlib.suppress(UserError):
        read_checkpoint(folder / "checkpoint.safetensors", "key")
    assert read_keyed_arrays(folder / "cache.safetensors", "key") is None or True
    read_snapshot(open_trajectory(folder / "net", key="key"), 1)


def _weights(folder):
    generator = np.random.default_rng(0)
    (folder / "model.safetensors").write_bytes(save({"a.weight": generator.normal(size=(3, 4)).astype(np.float32)}))


def _audio(folder):
    soundfile = pytest.importorskip("soundfile")
    for n, extension in enumerate(3 * ("wav", "flac", "ogg")):
        soundfile.write(folder / f"{n}.{extension}", 0.1 * np.sin(np.arange(4000) / (20 + n)), 8000)
    (folder / "t.csv").write_text("file_name,caption,split\n" + "".join(
        f"{n}.{extension},tone {n},{'train' if n < 3 else 'val' if n < 6 else 'test'}\n"
        for n, extension in enumerate(3 * ("wav", "flac", "ogg"))))


def _read_audio(folder):
    load("audio", annotations=folder / "t.csv", images=folder, caption_columns=("caption",), sample_rate=8000, seconds=0.5,
         mels=16, frames=16)


def _images(folder):
    for extension, kind in (("jpg", "JPEG"), ("png", "PNG"), ("webp", "WEBP"), ("gif", "GIF"), ("bmp", "BMP")):
        forms.picture(3).save(folder / f"a.{extension}", kind)


def _read_images(folder):
    for path in sorted(folder.iterdir()):
        try:
            decode(path.read_bytes(), 16)
        except Exception as error:  # readers name the file and pass the reason on; these are what Pillow raises
            assert not isinstance(error, (MemoryError, RecursionError)), repr(error)


def _shards(folder):
    for shard in range(2):
        with tarfile.open(folder / f"{shard:05}.tar", "w") as archive:
            for i in range(6 * shard, 6 * shard + 6):
                for extension, data in (("jpg", forms.jpeg(i)), ("txt", forms.captions(i)[0].encode()),
                                        ("json", b'{"caption": "a", "key": "%d"}' % i)):
                    member = tarfile.TarInfo(f"{i:09}.{extension}")
                    member.size = len(data)
                    archive.addfile(member, io.BytesIO(data))


def _zips(folder):
    with zipfile.ZipFile(folder / "images.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        for i in range(6):
            archive.writestr(f"images/{forms.name(i)}", forms.jpeg(i))
    (folder / "captions.csv").write_text(forms.as_csv([(forms.name(i), forms.captions(i)[0]) for i in range(6)]))


def _parquet(folder):
    pa, pq = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    table = pa.table({"image": [{"bytes": forms.jpeg(i), "path": f"{i}.jpg"} for i in range(6)],
                      "caption": [forms.captions(i)[0] for i in range(6)]})
    pq.write_table(table, folder / "train-00000-of-00001.parquet")


def _model(folder):
    (folder / "model").mkdir()
    write_model(folder / "model", "bert")


def _read_model(folder):
    _, _, tokenize = load_text_encoder(str(folder / "model"), max_tokens=16)
    tokenize(["a dog on a beach", ""])


def _set_only(folder):
    make_run(folder / "run", pairs=6, side=8)
    shutil.move(folder / "run" / "distilled" / "mdw" / "set_0", folder / "set")
    shutil.rmtree(folder / "run")


KINDS = {
    "run folder": (_run, _read_run), "config.json": (_run, lambda folder: command("config")(folder / "run")),
    "noise": (_noise, _read_noise), "text features": (_features, _read_features), "arrays": (_arrays, _read_arrays),
    "weights": (_weights, lambda folder: read_tensors(folder / "model.safetensors")),
    "audio": (_audio, _read_audio), "images": (_images, _read_images),
    "distilled set": (_set_only, lambda folder: load_distilled(folder / "set")),
    "shards": (_shards, command("inspect")), "parquet": (_parquet, command("inspect")),
    "zip": (_zips, command("inspect", names=("images.zip", "captions.csv"))), "text model": (_model, _read_model),
    **{form.__name__: (form, None) for form in forms.FORMS},
}
REFUSED = ("addresses",)  # there is nothing to read in it, and that is said


def form_reader(folder, files):
    """What reads a form in which a file is damaged, (folder, file): as the directory, and as the file itself where it is
    a table of captions; some directories hold several, and one is to be named. Then the first serves other files."""
    inspect = lambda name: command("inspect", "--no-check", names=(name,))
    readable = [name for name in ("", *files) if inspect(name)(folder) == 0]

    def read(folder, file):
        names = [name for name in ("", file) if name in readable] or readable[:1] or [""]
        return max(inspect(name)(folder) for name in names)

    return read


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_damaged_files_are_one_sentence_or_a_result(kind, tmp_path, capsys):
    make, read = KINDS[kind]
    source, folder = tmp_path / "source", tmp_path / "data"
    source.mkdir()
    make(source)
    files = sorted(path.relative_to(source) for path in source.rglob("*") if path.is_file())
    # Decoding has a kind of its own.
    whole = [path for path in files if path.suffix not in (".jpg", ".jpeg")] if kind != "images" else files
    shutil.copytree(source, folder)
    with contextlib.redirect_stdout(io.StringIO()) as said, contextlib.redirect_stderr(said):
        of_file = form_reader(folder, whole) if read is None else lambda folder, _: read(folder)
        statuses = [of_file(folder, file) for file in whole]
    assert kind in REFUSED or 2 not in statuses, f"not even whole files are read: {said.getvalue()}"
    found = []
    for n in range(FIRST, COUNT):
        if n % _EVERY == 0 and n > FIRST:
            with capsys.disabled():
                print(f"{kind}: {n} of {COUNT} mutations, {len(found)} tracebacks so far", flush=True)
        place = whole[n % len(whole)]
        (folder / place).write_bytes(mutated((source / place).read_bytes(), f"{kind} {n}"))
        try:
            with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()), \
                    contextlib.redirect_stderr(io.StringIO()):
                warnings.simplefilter("ignore")
                of_file(folder, place)
        except UserError as error:
            assert "\n" not in str(error).strip() or len(str(error)) < 2000
        except Exception as error:  # what a user would see as a traceback
            found.append(f"{kind} {n}, {place}: {type(error).__name__}: {str(error)[:200]}")
        shutil.copy(source / place, folder / place)
    if COUNT > _EVERY:
        with capsys.disabled():
            print(f"{kind}: {COUNT - FIRST} mutations, {len(found)} tracebacks", flush=True)
    assert not found, "\n".join(found[:20])
