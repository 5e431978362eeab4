"""Every reader is found by name, and settings it does not have are refused before it reads anything."""

import builtins
import inspect

import pytest
from miniature import write_images

from mdw_jax.config import options
from mdw_jax.data.registry import READERS, load, settings_of
from mdw_jax.data.synthetic.scenes import scenes
from mdw_jax.errors import UserError


def test_scenes_by_name():
    assert load("scenes", train=3, val=1, test=1, size=16).fingerprint == scenes(3, 1, 1, size=16).fingerprint


def test_the_settings_are_the_readers_own():
    assert tuple(READERS) == options.READERS
    for name in ("folder", "karpathy", "hf", "tfds", "webdataset", "audio"):
        shared = {"size", "stream", "limit", "on_error", "max_skipped", "check", "holdout_val", "holdout_test",
                  "holdout_seed", "near_duplicates"}
        assert shared <= set(settings_of(name))
        assert not {"problems", "notes", "decoder"} & set(settings_of(name))
    assert settings_of("webdataset")["train_shards"] is inspect.Parameter.empty


@pytest.mark.parametrize("name, settings, message", [
    ("flickr", {}, f"no data reader 'flickr'; set data.name to one of {', '.join(READERS)}"),
    ("scenes", {"stream": True}, "'scenes' has no setting 'stream'; it has train, val"),
    ("webdataset", {"train_shards": "x", "size": 8, "problems": {}}, "has no setting 'problems'"),
    ("folder", {"size": 8}, "'folder' needs the setting 'annotations'"),
    ("karpathy", {"annotations": "", "images": "x"}, "'karpathy' needs the setting 'annotations'"),
])
def test_wrong_names_and_settings(name, settings, message):
    with pytest.raises(UserError, match=message):
        load(name, **settings)


@pytest.mark.parametrize("name, settings, package, extra", [
    ("hf", {"source": "x"}, "datasets", "datasets"), ("tfds", {"source": "x"}, "tensorflow_datasets", "tfds"),
    ("folder", {"annotations": "t.parquet"}, "pyarrow", "parquet")])
def test_a_missing_package_names_its_extra(tmp_path, monkeypatch, name, settings, package, extra):
    write_images(tmp_path, 1)
    (tmp_path / "t.parquet").write_bytes(b"PAR1")
    real = builtins.__import__

    def without(module, *rest, **more):
        if module.split(".")[0] == package:
            raise ImportError(module)
        return real(module, *rest, **more)
    monkeypatch.setattr(builtins, "__import__", without)
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match=rf"mdw-jax\[{extra}\]"):
        load(name, **settings)
