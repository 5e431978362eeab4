"""Bad inputs through the command line: status 2, one sentence that says what, where and what to do, nothing damaged."""

import csv
import errno
import gzip
import hashlib
import io
import json
import os
import pickle
import re
import shutil
import struct
import tarfile
import warnings
import wave
import zipfile
import zlib

import jax
import numpy as np
import pytest
from PIL import Image
from safetensors import safe_open
from safetensors.numpy import load_file, save, save_file
from tiny_models import write_model

from mdw_jax import load_distilled, open_run, open_trajectory
from mdw_jax.cli import main
from mdw_jax.errors import UserError
from mdw_jax.io import checksums
from mdw_jax.io.checksums import SUMS

TINY = {
    "data.size": 16, "data.train": 40, "data.val": 20, "data.test": 20, "text.dim": 24,
    "model.mode": "projection", "model.patches": (8,), "model.widths": (16,), "model.dim": 8,
    "experts.count": 1, "experts.epochs": 2, "experts.recovery_start": 1, "experts.batch": 32,
    "distill.pairs": 8, "distill.steps": 2, "distill.inner_steps": 2, "distill.batch": 4, "distill.trajectories": 1,
    "distill.rank": 2, "distill.max_start_epoch": 1, "distill.checkpoint_every": 2, "distill.ceo": False,
    "experts.recipe": "tolerant",  # little to compile
    "evaluate.students": 2, "evaluate.steps": 4, "evaluate.every": 2, "evaluate.batch": 8, "evaluate.lr_scales": (0.3,),
    "run.presets": ("mdw",), "plan.images": 40, "plan.captions": 40, "plan.text_dim": 24, "plan.compile": False,
}
OF_ONE_OPTION = {
    "data.name": {"data.train": 2000, "data.val": 250, "data.test": 500}, "text.encoder": {"text.dim": 384},
    "model.tower": {"model.patches": (4, 2, 2), "model.widths": (64, 128, 128)},
}
# For data sets of a handful of images.
FEW = {"distill.pairs": 2, "distill.batch": 2, "distill.rank": 1, "experts.batch": 2, "experts.recovery_top_k": 2}
SPLITS = ("train", "train", "train", "train", "val", "test")
LONGEST = 350  # characters of a sentence without the paths in it
REMEDY = re.compile(r"; |: .* (did|write|give)|did you mean|must |needs? ")


def config_file(path, **changes):
    path.write_text(f"from mdw_jax.config import base\n\n\ndef get_config():\n    c = base()\n"
                    f"    c.update_from_flattened_dict({TINY | changes!r})\n    return c\n")
    return path


def contents(folder):
    """{path: bytes} of a run folder; lock files are nobody's."""
    return {path: path.read_bytes() for path in sorted(folder.rglob("*"))
            if path.is_file() and not path.name.endswith(".lock") and path.stat().st_size < 2**28}


def text_of(value):
    return ",".join(map(str, value)) + "," * (len(value) == 1) if isinstance(value, tuple) else str(value)


def words(settings):
    """The settings as arguments. Where they choose another option, what TINY sets of its own goes back to its default."""
    defaults = {name: value for key, values in OF_ONE_OPTION.items() if key in settings for name, value in values.items()}
    return [f"--config.{name}={text_of(value)}" for name, value in (defaults | settings).items()]


class Trap:
    """Warns when it is unpickled, and no warning is let pass."""

    def __reduce__(self):
        return warnings.warn, ("a pickle was run",)


def traps(count):
    return np.array([Trap() for _ in range(count)], object)


@pytest.fixture(autouse=True)
def outside(monkeypatch):
    monkeypatch.setenv("JAX_COMPILATION_CACHE_DIR", "the one that jax has already")
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setenv("HF_DATASETS_OFFLINE", "1")


@pytest.fixture(scope="module", autouse=True)
def carelessly():
    """Compile without care: nothing here runs for long."""
    before = jax.config.read("jax_disable_most_optimizations")
    jax.config.update("jax_disable_most_optimizations", True)
    yield
    jax.config.update("jax_disable_most_optimizations", before)


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A finished run and its config file."""
    folder = tmp_path_factory.mktemp("finished")
    file = config_file(folder / "config.py", **{"run.dir": str(folder / "run")})
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("JAX_COMPILATION_CACHE_DIR", "the one that jax has already")
        assert main(["distill", f"--config={file}"]) == main(["sweep", f"--config={file}"]) == 0
    shutil.copytree(folder / "run", folder / "pristine")
    return folder / "run", file


def refused(argv, folders, capfd, recwarn, late=False):
    """Runs the command, checks all that holds of every bad input; returns the sentence. late: stages have spoken."""
    before = {path: data for folder in folders for path, data in contents(folder).items()}
    capfd.readouterr()
    recwarn.clear()
    status = main([str(word) for word in argv])
    said = capfd.readouterr().err
    assert status == 2, said
    assert "Traceback" not in said
    *others, line = said.splitlines()
    assert said.endswith(".\n") or line.endswith("?"), said
    assert line.startswith("mdw: ") and (late or not others), said
    assert not any(other.startswith("mdw: ") for other in others), said
    assert not [warning for warning in recwarn if not issubclass(warning.category, DeprecationWarning)]
    sentence = line.removeprefix("mdw: ")
    assert len(re.sub(r"/\S+", "", sentence)) <= LONGEST, len(sentence)
    assert REMEDY.search(sentence), sentence
    for path, data in before.items():
        if late and path.name in ("config.json", "config_as_given.json", "environment.json", "nearest.json"):
            continue  # what was asked last, by which commit; what follows from a set that was put here
        assert path.is_file() and path.read_bytes() == data, f"{path} is damaged"
    return sentence


# ---- the command line and the config file ----------------------------------------------------------------------------

FILES = {  # the text of a config file, and what is said of it
    "not Python": ("c = {", r"config.py is not Python.*line 1"),
    "bytes": (b"\xff\xfe\x00", r"config.py is not Python"),
    "raises": ("def get_config():\n    raise KeyError('tower')", r"config.py fails at line 2: KeyError"),
    "raises an error of many lines": ("def get_config():\n    raise ValueError('a\\nb\\nc')",
                                      r"line 2: ValueError: a b c"),
    "imports what is not there": ("import flickr", r"config.py fails at line 1: ModuleNotFoundError"),
    "no get_config": ("x = 1", r"config.py has no function get_config"),
    "returns None": ("def get_config():\n    pass", r"config.py returns NoneType"),
    "unknown key": ("from mdw_jax.config import base\ndef get_config():\n    c = base()\n    c.distill.pear = 3\n"
                    "    return c", r"config.distill.pear.*did you mean config.distill.pairs"),
    "text for a number": ("from mdw_jax.config import base\ndef get_config():\n    c = base()\n"
                          "    c.distill.pairs = 'many'\n    return c", r"config.py fails at line 4: TypeError"),
    "None for a number": ("from mdw_jax.config import base\ndef get_config():\n    c = base()\n"
                          "    c.experts.lr = None\n    return c", r"config.experts.lr must be a number"),
    "a list of the wrong kind": ("from mdw_jax.config import base\ndef get_config():\n    c = base()\n"
                                 "    c.evaluate.lr_scales = ('big',)\n    return c", r"evaluate.lr_scales"),
    "a list of presets that are numbers": ("from mdw_jax.config import base\ndef get_config():\n    c = base()\n"
                                           "    c.run.presets = (1, 2)\n    return c", r"run.presets"),
    "returns a section": ("from mdw_jax.config import base\ndef get_config():\n    return base().distill",
                          r"config\.\w+"),
}


@pytest.mark.parametrize("name", FILES)
def test_config_files(name, tmp_path, finished, capfd, recwarn):
    text, says = FILES[name]
    path = tmp_path / "config.py"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    run, *_ = finished
    argv = ["prepare", f"--config={path}", f"--config.run.dir={run}"]
    assert re.search(says, refused(argv, [run], capfd, recwarn))


# Settings, and what is said of them.
SETTINGS = [
    # unknown, or of the wrong type
    ({"distill.pear": 3}, r"no config.distill.pear"),
    ({"distill": 3}, r"config.distill is a section"),
    ({"distill.pairs": "many"}, r"config.distill.pairs must be a whole number, not 'many'"),
    ({"distill.pairs": 2.5}, r"config.distill.pairs must be a whole number"),
    ({"experts.lr": "fast"}, r"config.experts.lr must be a number"),
    ({"distill.ceo": "perhaps"}, r"config.distill.ceo must be true or false"),
    ({"model.widths": "16,x"}, r"config.model.widths must be a list"),
    ({"evaluate.lr_scales": "0.1;0.2"}, r"config.evaluate.lr_scales must be a list"),
    # names that nothing has
    *(({key: "mystery"}, rf"'mystery'; set {re.escape(key)} to one of") for key in (
        "data.name", "data.captions", "noise.protocol", "text.encoder", "text.pooling", "model.tower", "model.mode",
        "model.dtype", "experts.clean_loss", "experts.tolerant_loss", "experts.augment",
        "experts.store_dtype", "distill.gradient", "distill.loss_merge", "distill.loss", "distill.correspondence",
        "distill.init", "distill.optimizer", "distill.decay", "distill.augment", "evaluate.select_on", "evaluate.tower",
        "evaluate.mode")),
    ({"experts.recipe": "dtcl", "experts.division": "mystery"}, r"no division 'mystery'; set experts.division"),
    ({"experts.recipe": "dtcl", "experts.teacher_count": -1}, r"experts.teacher_count.*-1"),
    ({"experts.recipe": "mystery"}, r"no expert recipe 'mystery'; set experts.recipe"),
    ({"run.presets": ("mystery",)}, r"no preset 'mystery'; set run.presets"),
    ({"run.presets": ()}, r"run.presets is empty; give"),
    # numbers out of range
    *(({key: value}, rf"{re.escape(key)}.*{re.escape(str(value))}") for key, value in {
        "noise.rate": 1.0, "noise.seed": -1, "run.seed": -1, "data.size": -16, "data.train": -5, "data.val": -1,
        "data.limit": -1, "data.holdout_val": -3, "data.skew": 1.5, "data.seed": -1, "text.dim": 0, "text.seed": -1,
        "model.dim": 0, "model.tau": 0.0, "model.pretrain_epochs": -1,
        "experts.count": 0, "experts.epochs": 0, "experts.batch": 0, "experts.lr": -0.1,
        "experts.lr_infonce": 0.0, "experts.lr_with_teachers": -1.0, "experts.momentum": 1.0, "experts.weight_decay": -1.0,
        "experts.warmup": -1, "experts.clean_q": 0.0, "experts.tolerant_q": 1.5, "experts.tolerant_weight": -1.0,
        "experts.recovery_weight": -0.5, "experts.recovery_top_k": 0, "experts.recovery_start": -2,
        "experts.guidance_weight": -1.0, "experts.guidance_tau": 0.0, "experts.peers": 0, "experts.ema_decay": 1.0,
        "distill.pairs": 0, "distill.sets": -1, "distill.steps": -1, "distill.inner_steps": 0, "distill.batch": 0,
        "distill.trajectories": 0, "distill.match_epochs": 0, "distill.lr_images": -0.1,
        "distill.lr_texts": -1.0, "distill.lr_correspondence": -1.0, "distill.lr_inner_lr": -1.0,
        "distill.inner_lr_image": 0.0, "distill.inner_lr_text": -1.0, "distill.ema_decay": 1.0, "distill.ceo_every": 0,
        "distill.ceo_top_k": 0, "distill.ceo_beta": -1.0, "distill.checkpoint_every": 0,
        "evaluate.students": 0, "evaluate.steps": -1, "evaluate.every": 0, "evaluate.batch": 0,
        "evaluate.momentum": 1.0, "evaluate.weight_decay": -1.0, "evaluate.lr": 0.0,
    }.items()),
    *(({key: value}, rf"{re.escape(key)}.*{value}") for key in (
        "noise.rate", "model.tau", "experts.lr", "distill.alpha", "distill.lr_images", "distill.ceo_beta")
      for value in ("nan", "inf")),
    ({"evaluate.lr_scales": (0.1, float("nan"))}, r"evaluate.lr_scales.*nan"),
    ({"evaluate.lr_scales": (0.0,)}, r"evaluate.lr_scales.*0\.0"),
    ({"model.patches": (0,)}, r"model.patches.*0"),
    ({"model.widths": (-16,)}, r"model.widths.*-16"),
    ({"model.patches": (), "model.widths": ()}, r"model.patches"),
    ({"data.captions": "generic", "data.captions_rate": 2.0}, r"data.captions_rate.*2\.0"),
    # what cannot be together
    ({"distill.correspondence": "lowrank", "distill.rank": 9}, r"distill.rank must lie in 1..8 .distill.pairs., not 9"),
    ({"distill.pairs": 41}, r"distill.pairs is 41 but there are only 40 training images; lower"),
    ({"distill.pairs": 41, "run.presets": ("random",)}, r"distill.pairs is 41 but there are only 40"),
    ({"distill.max_start_epoch": 2},
     r"epoch 3 needs as many expert epochs.*experts.epochs is 2; raise experts.epochs, or lower .*max_start_epoch \(2\)"),
    ({"distill.max_start_epoch": 0}, r"distill.max_start_epoch must be at least 1, not 0"),
    ({"distill.match_epochs": 3},
     r"epoch 3 needs as many.*experts.epochs is 2; raise experts.epochs, or lower .*distill.match_epochs \(3\)"),
    ({"experts.batch": 201}, r"experts.batch is 201 but there are only 200"),
    ({"experts.recovery_top_k": 5000}, r"experts.recovery_top_k.*5000"),
    ({"evaluate.every": 5}, r"evaluate.every \(5\) exceeds evaluate.steps \(4\)"),
    ({"evaluate.lr_scales": ()}, r"evaluate.lr_scales"),
    ({"model.mode": "full", "distill.mixup": "true"}, r"distill.mixup.*set model.mode"),
    ({"experts.augment": "flip"}, r"experts.augment \(flip\)"),
    ({"text.train": "true"}, r"text.train needs text.encoder"),
    ({"noise.protocol": "natural", "experts.recipe": "oracle"}, r"experts.recipe"),
    ({"noise.protocol": "none", "noise.rate": 0.4}, r"noise.*rate 0"),
    ({"data.name": "folder", "noise.rate": 0.4}, r"noise.protocol is not set.*noise.protocol=image to"),
    ({"data.captions": "generic", "text.encoder": "precomputed"}, r"data.captions.*text.encoder"),
    ({"model.patches": (8, 2), "model.widths": (16,)}, r"model.patches"),
    ({"model.patches": (5,)}, r"model.patches"),
    ({"model.tower": "vit", "model.vit_patch": 5}, r"model.vit_patch"),
    ({"model.tower": "vit", "model.vit_patch": 8, "model.vit_heads": 3}, r"model.vit_heads"),
    ({"model.tower": "vit", "model.vit_patch": 8, "model.vit_depth": -1}, r"model.vit_depth.*-1"),
    ({"data.size": 8}, r"size is 8; give"),
    # what the chosen option does not take
    ({"data.split_column": "split"}, r"data.split_column is set, but the reader 'scenes' does not take it; leave"),
    ({"data.stream": "true"}, r"data.stream is set, but the reader 'scenes'"),
    ({"model.vit_depth": 2}, r"model.vit_depth is set, but the tower 'convnet' does not take it"),
    ({"text.pooling": "cls"}, r"text.pooling is set, but the encoder 'bow' does not take it"),
    # functions of one's own
    ({"data.name": "no_such_module:read"}, r"data.name names 'no_such_module:read'.*PYTHONPATH"),
    ({"data.name": "json:no_such_function"}, r"data.name names 'json:no_such_function'"),
    ({"data.name": "math:pi"}, r"data.name names 'math:pi', which is not a function; write"),
    ({"data.name": ":"}, r"data.name names ':'"),
    ({"data.name": "mine:raises"}, r"data.name.*mine:raises.*no such disk"),
    ({"data.name": "mine:returns_none"}, r"data.name.*mine:returns_none"),
    ({"data.name": "json:dumps"}, r"data.name.*json:dumps|'obj'"),
    ({"data.name": "breaks:read"}, r"data.name names 'breaks:read'.*ZeroDivisionError"),
    ({"model.tower": "no_such_module:tower"}, r"model.tower names 'no_such_module:tower'"),
    ({"model.tower": "mine:raises"}, r"model.tower.*mine:raises.*no such disk"),
    ({"model.tower": "mine:returns_none"}, r"model.tower.*mine:returns_none"),
    ({"evaluate.tower": "mine:nothing", "run.presets": ("random",)}, r"evaluate.tower"),
    # single presets
    ({"run.preset_overrides": ("mdw",)}, r"run.preset_overrides holds 'mdw'; write"),
    ({"run.preset_overrides": ("mystery:distill.steps=3",)}, r"run.preset_overrides holds 'mystery:"),
    ({"run.preset_overrides": ("mdw:distill.pear=3",)}, r"run.preset_overrides holds 'mdw:distill.pear=3'"),
    ({"run.preset_overrides": ("mdw:distill.steps=many",)}, r"run.preset_overrides holds"),
    ({"run.preset_overrides": ("mdw@lots:distill.steps=3",)}, r"run.preset_overrides holds"),
    ({"run.preset_overrides": ("mdw:distill.ceo=perhaps",)}, r"run.preset_overrides holds"),
    ({"run.preset_overrides": ("mdw:distill=3",)}, r"run.preset_overrides holds"),
    ({"run.preset_overrides": ("mdw:distill.steps=-1",)}, r"distill.steps must be at least 0"),
]
MINE = ("def raises(shape=0, **settings):\n    raise OSError('no such disk')\n"
        "def returns_none(shape=0, **settings): pass\n")


def _id(settings):
    return " ".join(f"{name}={text_of(value)}" for name, value in settings.items())


@pytest.fixture
def mine(tmp_path, monkeypatch):
    """Modules of the user's on the Python path."""
    (tmp_path / "mine.py").write_text(MINE)
    (tmp_path / "breaks.py").write_text("1 / 0\n")
    monkeypatch.syspath_prepend(tmp_path)


@pytest.mark.parametrize("settings, says", SETTINGS, ids=[_id(settings) for settings, _ in SETTINGS])
def test_settings(settings, says, finished, mine, capfd, recwarn):
    run, file = finished
    command = "evaluate" if "evaluate.tower" in settings else "prepare"
    argv = [command, f"--config={file}", *words(settings)]
    assert re.search(says, refused(argv, [run], capfd, recwarn, late=command == "evaluate"))


COMMANDS = {  # words after the command, and what is said
    "nothing": ([], r"no command given; begin with"),
    "no such command": (["distil", "--config=FILE"], r"no command 'distil'; did you mean distill"),
    "no config": (["prepare"], r"no config given; write"),
    "config that is not there": (["prepare", "--config=/nowhere/c.py"], r"no config file /nowhere/c.py"),
    "config that is a folder": (["prepare", "--config=/"], r"'/' is not a run"),
    "config twice": (["prepare", "--config=FILE", "--config=FILE"], r"--config is given twice"),
    "no such flag": (["prepare", "--config=FILE", "--distill.pairs=3"], r"did you mean --config.distill.pairs"),
    "sweep of a key that is not there": (["sweep", "--config=FILE", "--grid", "noise.rat=0"], r"config.noise.rat;"),
    "sweep of a section": (["sweep", "--config=FILE", "--grid", "noise=0"], r"config.noise is a section"),
    "sweep without values": (["sweep", "--config=FILE", "--grid", "noise.rate="], r"--grid noise.rate= has no values"),
    "sweep of folders": (["sweep", "--config=FILE", "--grid", "run.dir=a,b"], r"write --config.run.dir"),
    "sweep with one value twice": (["sweep", "--config=FILE", "--grid", "distill.pairs=8,8"], r"has 8 twice; give"),
    "sweep of no such preset": (["sweep", "--config=FILE", "--grid", "preset=mystery"], r"no preset 'mystery'; choose"),
    "sweep with a cell that cannot be": (["sweep", "--config=FILE", "--grid", "distill.pairs=8,0"],
                                         r"cell 2 of 2 .*distill.pairs=0.*is not valid: distill.pairs must be at"),
    "sweep of nan": (["sweep", "--config=FILE", "--grid", "experts.lr=0.1,nan"], r"cell 2 .*experts.lr.*nan"),
    "sweep of part 3/2": (["sweep", "--config=FILE", "--shard", "3/2"], r"--shard must be I/N"),
    "sweep of no seeds": (["sweep", "--config=FILE", "--seeds", "0"], r"distill.sets must be at least 1"),
    "table without files": (["table"], r"no CSV given; write"),
    "table of a file that is not there": (["table", "/nowhere.csv"], r"no file '/nowhere.csv'; mdw sweep writes sweep.csv"),
    "table of a folder": (["table", "/"], r"'/' is a directory without sweep.csv \(of mdw sweep\) or scores.csv"),
    "table of other bytes": (["table", "DATA/bytes.csv"], r"bytes.csv' is not a CSV"),
    "table of another CSV": (["table", "DATA/other.csv"], r"other.csv' is not a table of students"),
    "table of an empty file": (["table", "DATA/empty.csv"], r"empty.csv' is not a table of students"),
    "table without rows": (["table", "DATA/header.csv"], r"header.csv' holds no rows yet; finish"),
    "table of ragged rows": (["table", "DATA/ragged.csv"], r"ragged.csv'.*rows are longer than its header"),
    "table of an unknown column": (["table", "DATA/good.csv", "--columns=", "--rows=prest"], r"did you mean preset"),
    "table of a metric that is text": (["table", "DATA/good.csv", "--columns=", "--metric=preset"],
                                       r"column 'preset' holds no numbers"),
    "table of nan": (["table", "DATA/nan.csv", "--columns="], r"column 'r_mean'.*nan"),
    "table into a folder that cannot be": (["table", "DATA/good.csv", "--columns=", "--out=DATA/good.csv/t.md"],
                                           r"cannot write '.*t.md'.*choose another --out"),
    "picture into a folder that cannot be": (
        ["table", "DATA/rates.csv", "--plot=DATA/good.csv/t.png"], r"cannot write '.*t.png'.*--plot"),
    "picture of no numbers": (["table", "DATA/good.csv", "--columns=set,student", "--plot=DATA/t.png"],
                              r"a figure needs one column of numbers; give"),
    "weights of nothing": (["weights"], r"no model given; write"),
    "weights that are not there": (["weights", "/nowhere/m.safetensors"], r"no weights file '/nowhere/m.safetensors'"),
    "weights that are pickled": (["weights", "DATA/model.bin"], r"pickled weights, which are not read; convert"),
    "weights that are cut short": (["weights", "DATA/short.safetensors"], r"short.safetensors' cannot be read"),
    "weights of a folder without any": (["weights", "DATA"], r"has no model.safetensors.*convert"),
    "weights of no Hub name": (["weights", "no such model"], r"'no such model'"),
    "export without a license": (["export", "--config=FILE"], r"export.license is not set; set it"),
    "export of a format there is not": (["export", "--config=FILE", "--config.export.license=unknown",
                                         "--config.export.formats=pickle"],
                                        r"no export format 'pickle'; set export.formats"),
    "export of no neighbors": (["export", "--config=FILE", "--config.export.license=unknown",
                                 "--config.export.neighbors=0"], r"export.neighbors must be at least 1, not 0"),
    "export of more neighbors than captions": (
        ["export", "--config=FILE", "--config.export.license=unknown", "--config.export.neighbors=1000"],
        r"export.neighbors.*1000"),
    "export of what is no set": (["export", "--config=FILE", "--config.export.license=unknown",
                                  "--config.run.presets=full"], r"none of run.presets .full. ends in a set"),
    "certify of no confidence": (["certify", "--config=FILE", "--config.certify.confidence=1"], r"certify.confidence"),
    "certify of rates that are words": (["certify", "--config=FILE", "--config.certify.rates=low"], r"certify.rates"),
    "certify of rates above 1": (["certify", "--config=FILE", "--config.certify.rates=0,2"], r"certify.rates"),
    "certify of coresets": (["certify", "--config=FILE", "--config.run.presets=random"], r"run.presets"),
    "fairness by a column that is not there": (["fairness", "--config=FILE", "--config.fairness.attributes=shoe"],
                                               r"fairness.attributes names 'shoe'.*choose from"),
    "fairness by lists that are not there": (["fairness", "--config=FILE", "--config.fairness.words=/no.toml"],
                                             r"'/no.toml' cannot be read.*check fairness.words"),
    "fairness by lists that are no TOML": (["fairness", "--config=FILE", "--config.fairness.words=DATA/bad.toml"],
                                           r"bad.toml' are not TOML"),
    "fairness by lists of numbers": (["fairness", "--config=FILE", "--config.fairness.words=DATA/numbers.toml"],
                                     r"numbers.toml' must be a table"),
    "fairness of no neighbors": (["fairness", "--config=FILE", "--config.fairness.neighbors=0"],
                                  r"fairness.neighbors \(0\)"),
    "fairness of more neighbors than pairs": (["fairness", "--config=FILE", "--config.fairness.neighbors=1000"],
                                               r"fairness.neighbors.*1000"),
    "plan with half of the numbers": (["plan", "--config=FILE", "--config.plan.images=5", "--config.plan.captions=0"],
                                      r"plan.images is 5 and plan.captions is 0; set both"),
    "plan for no such device": (["plan", "--config=FILE", "--config.plan.device=abacus"],
                                r"no device 'abacus'; set plan.device"),
    "plan of no use of the device": (["plan", "--config=FILE", "--config.plan.utilization=0"], r"plan.utilization.*0"),
    "plan of a recipe there is not": (["plan", "--config=FILE", "--config.experts.recipe=x"], r"no expert recipe 'x'"),
    "bench of a trained text encoder": (["bench", "--config=FILE", "--config.text.encoder=transformer",
                                         "--config.text.dim=384", "--config.text.train"],
                                        r"mdw bench.*set text.train to false"),
    "bench of a tower that does not fit": (["bench", "--config=FILE", "--config.model.patches=5,"], r"model.patches"),
    "config that cannot be": (["config", "--config=FILE", "--config.distill.batch=0"], r"distill.batch must be at least 1"),
    "run.dir that is a file": (["prepare", "--config=FILE", "--config.run.dir=DATA/good.csv"],
                               r"run directory '.*good.csv'.*set run.dir"),
    "run.dir inside a file": (["prepare", "--config=FILE", "--config.run.dir=DATA/good.csv/run"],
                              r"run directory '.*good.csv/run'.*set run.dir"),
    "run.dir that is no name": (["prepare", "--config=FILE", "--config.run.dir=DATA/" + "x" * 300],
                                r"run directory.*set run.dir"),
    "run.dir of nothing": (["prepare", "--config=FILE", "--config.run.dir="], r"run.dir"),
    "run.dir under /proc": (["prepare", "--config=FILE", "--config.run.dir=/proc/run"], r"'/proc/run'.*set run.dir"),
}


@pytest.fixture(scope="module")
def odds(tmp_path_factory):
    """Small files for commands to stumble over."""
    folder = tmp_path_factory.mktemp("odds")
    head = "preset,set,student,select_on,r_mean\n"
    for name, text in {
            "bytes.csv": b"\xff\xfe\x00\x01", "other.csv": b"a,b\n1,2\n", "empty.csv": b"", "header.csv": head.encode(),
            "ragged.csv": (head + "mdw,0,0,val,3,4\n").encode(), "good.csv": (head + "mdw,0,0,val,3\n").encode(),
            "nan.csv": (head + "mdw,0,0,val,nan\n").encode(), "bad.toml": b"[gender\n",
            "numbers.toml": b"[a]\nb = 3\n",
            "rates.csv": b"preset,set,student,select_on,r_mean,noise.rate\nmdw,0,0,val,3,0.4\n",
            "model.bin": pickle.dumps(Trap()), "short.safetensors": struct.pack("<Q", 1000) + b"{"}.items():
        (folder / name).write_bytes(text)
    return folder


@pytest.mark.parametrize("name", COMMANDS)
def test_commands(name, finished, odds, capfd, recwarn):
    given, says = COMMANDS[name]
    run, file = finished
    argv = [word.replace("FILE", str(file)).replace("DATA", str(odds)) for word in given]
    assert re.search(says, refused(argv, [run, odds], capfd, recwarn, late=argv[:1] == ["bench"]))


# ---- data ------------------------------------------------------------------------------------------------------------


def png(i=0, size=(16, 16), mode="RGB"):
    buffer = io.BytesIO()
    Image.new(mode, size, (i * 40, 90, 200) if mode == "RGB" else i * 40).save(buffer, "TIFF" if mode == "F" else "PNG")
    return buffer.getvalue()


def bomb():
    """A PNG of 30000 x 30000 pixels in a few bytes: its header, and no pixels."""
    def chunk(kind, data):
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
    head = struct.pack(">IIBBBBB", 30000, 30000, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", zlib.compress(b"\0")) + chunk(b"IEND", b"")


IMAGES = {f"{i}.png": png(i) for i in range(6)}
LONG = "a dog " * (10 * 2**20 // 6)  # 10 MB


def write_files(folder, files):
    for name, data in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
    return folder


# folder: a table beside images


def table_text(captions=None, names=None, splits=SPLITS):
    captions = captions or {}
    buffer = io.StringIO()
    writer = csv.writer(buffer)
    writer.writerow(["image", "caption", "split"])
    for i, split in enumerate(splits):
        writer.writerow([(names or {}).get(i, f"{i}.png"), captions.get(i, f"photo {i}"), split])
    return buffer.getvalue()


def folder(tmp, table=None, images=IMAGES, suffix="csv", zipped=None, **settings):
    """Settings for a folder of images and a table; zipped: the images in a zip file instead."""
    write_files(tmp, images if zipped is None else {"images.zip": zipped})
    table = table_text() if table is None else table
    (tmp / f"captions.{suffix}").write_bytes(table if isinstance(table, bytes) else table.encode())
    return {"data.name": "folder", "data.annotations": tmp / f"captions.{suffix}", "data.split_column": "split",
            **({} if zipped is None else {"data.images": tmp / "images.zip"}), **settings}


def zip_of(files, **options):
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", **options) as archive:
        for name, data in files.items():
            archive.writestr(name, data)
    return buffer.getvalue()


def zip_bomb():
    """A zip file of a few bytes whose one member says that it unpacks to 3 GB."""
    data = bytearray(zip_of(IMAGES, compression=zipfile.ZIP_DEFLATED))
    for mark, at in ((b"PK\x03\x04", 22), (b"PK\x01\x02", 24)):  # local and central header: where the size stands
        place = data.index(mark) + at
        data[place:place + 4] = struct.pack("<I", 3 * 2**30)
    return bytes(data)


def twice_in_zip():
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for name, data in [*IMAGES.items(), ("a/0.png", IMAGES["0.png"]), ("b/0.png", IMAGES["1.png"])]:
            if name != "0.png":
                archive.writestr(name, data)
    return buffer.getvalue()


def parquet_of(rows):
    import pyarrow
    from pyarrow import parquet

    buffer = io.BytesIO()
    parquet.write_table(pyarrow.table(rows), buffer)
    return buffer.getvalue()


def parquet_not_utf8():
    """A Parquet file whose captions are said to be text, and are not."""
    return parquet_of({"image": [f"{i}.png" for i in range(6)], "split": list(SPLITS),
                       "caption": ["XXXXXXXXXX"] * 6}).replace(b"XXXXXXXXXX", b"\xff\xfe" * 5)


def lines(rows):
    return "".join(json.dumps(row) + "\n" for row in rows)


def rows_of(**changes):
    return [{"image": f"{i}.png", "caption": f"photo {i}", "split": split} | changes.get(f"row{i}", {})
            for i, split in enumerate(SPLITS)]


FOLDERS = {
    "no table": (lambda t: folder(t) | {"data.annotations": t / "none.csv"}, r"no table '.*none.csv'; give"),
    "no table named": (lambda t: {"data.name": "folder"}, r"needs the setting 'annotations'; give"),
    "table of Excel": (lambda t: folder(t, b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1" + bytes(504), suffix="xls"),
                       r"captions.xls' is an Excel .*give"),
    "table of Excel, zipped": (lambda t: folder(t, zip_of({"xl/workbook.xml": b""}), suffix="csv"),
                               r"captions.csv' is a zip file .*, not a table; give"),
    "table of zero bytes": (lambda t: folder(t, b""), r"captions.csv"),
    "table of a header alone": (lambda t: folder(t, "image,caption,split\n"), r"captions.csv.*split 'train'"),
    "table not in UTF-8": (lambda t: folder(t, table_text().encode() + "6.png,café,train\n".encode("latin-1")),
                           r"line 8 of '.*captions.csv' is not in UTF-8.*data.encoding=latin-1"),
    "table of open quotes": (lambda t: folder(t, table_text() + '6.png,"photo'),
                             r"line 8 of '.*captions.csv' begins a cell .* seems to be cut off.*'6.png,\"photo'"),
    "table with a comma in a caption": (lambda t: folder(t, table_text() + "6.png,a dog, running,train\n"),
                                        r"line 8 of '.*captions.csv' has 4 cells for 3 columns.*data.on_error=skip"),
    "no such image column": (lambda t: folder(t) | {"data.image_column": "file"}, r"no column 'file'; it has image"),
    "no such caption column": (lambda t: folder(t) | {"data.caption_columns": "title"}, r"no column 'title'"),
    "no caption column": (lambda t: folder(t, table_text().replace("caption", "weight")),
                          r"captions.csv'.*data.caption_columns"),
    "no such split": (lambda t: folder(t) | {"data.val_split": "dev"},
                      r"no image of split 'dev', only of val .1 rows., train, test; set data.val_split"),
    "an image in two splits": (lambda t: folder(t, table_text() + "0.png,again,test\n"), r"in two splits.*'0.png'; put"),
    "no val and no holdout": (lambda t: folder(t, table_text().replace("split", "part")) | {"data.split_column": ""},
                              r"split 'val' of '.*captions.csv' has no images; hold some out .*data.holdout_val=1"),
    "more held out than there are": (
        lambda t: folder(t) | {"data.split_column": "", "data.holdout_val": 4, "data.holdout_test": 4},
        r"holding out 8 images leaves none of the 6"),
    "a file pattern that fits nothing": (lambda t: folder(t) | {"data.file_pattern": "{}.jpg"},
                                         r"6 absent images .*'0.png.jpg' is not in '/"),
    "empty caption": (lambda t: folder(t, table_text({3: "  "})),
                      r"captions.csv' .*1 empty caption .'3.png', line 5.; fix it, or set data.on_error=skip"),
    "too many empty captions": (lambda t: folder(t, table_text({2: "", 3: "nan"})) | {"data.on_error": "skip"},
                                r"2 of 6 captions of '.*captions.csv' cannot be used .*raise data.max_skipped"),
    "no such way to deal with faults": (lambda t: folder(t) | {"data.on_error": "ignore"},
                                        r"'ignore'; set data.on_error to one of stop, skip"),
    "caption of 10 MB": (lambda t: folder(t, table_text({3: LONG})), r"captions.csv|3.png"),
    "caption of 10 MB in JSON": (lambda t: folder(t, lines(rows_of(row3={"caption": LONG})), suffix="jsonl"),
                                 r"3.png"),
    "caption that is half a character": (
        lambda t: folder(t, lines(rows_of(row3={"caption": "\ud800"})), suffix="jsonl"), r"3.png"),
    "caption that is a number": (lambda t: folder(t, lines(rows_of(row3={"caption": 3})), suffix="jsonl"), r"'3.png'"),
    "caption that is null": (lambda t: folder(t, lines(rows_of(row3={"caption": None})), suffix="jsonl"), r"'3.png'"),
    "no caption in a list": (lambda t: folder(t, lines(rows_of(row3={"caption": []})), suffix="jsonl"), r"'3.png'"),
    "image name that is a list": (lambda t: folder(t, lines(rows_of(row3={"image": ["a", "b"]})), suffix="jsonl"),
                                  r"column 'image' of .*captions.jsonl"),
    "image name that is empty": (lambda t: folder(t, table_text(names={3: ""})),
                                 r"1 sample without an image .line 5 of '.*captions.csv'"),
    "image name with a NUL": (lambda t: folder(t, lines(rows_of(row3={"image": "a\0.png"})), suffix="jsonl"), r"image"),
    "JSON lines that are lists": (lambda t: folder(t, "[1, 2]\n", suffix="jsonl"),
                                  r"entry 1 of '.*captions.jsonl' is no object but '1'; give"),
    "JSON lines cut short": (lambda t: folder(t, lines(rows_of())[:-9], suffix="jsonl"), r"captions.jsonl"),
    "JSON nested without end": (lambda t: folder(t, "[" * 100_000, suffix="jsonl"), r"captions.jsonl"),
    "gzip cut short": (lambda t: folder(t, gzip.compress(table_text().encode())[:-12], suffix="csv.gz"),
                       r"captions.csv.gz"),
    "gzip that is none": (lambda t: folder(t, b"\x1f\x8b" + table_text().encode(), suffix="csv.gz"),
                          r"captions.csv.gz' cannot be read"),
    "Parquet cut short": (lambda t: folder(t, parquet_of({"image": ["0.png"]})[:-9], suffix="parquet"),
                          r"captions.parquet"),
    "Parquet of zero bytes": (lambda t: folder(t, b"", suffix="parquet"), r"captions.parquet"),
    "Parquet with text not in UTF-8": (lambda t: folder(t, parquet_not_utf8(), suffix="parquet"), r"captions.parquet"),
    "image missing": (lambda t: folder(t, images={k: v for k, v in IMAGES.items() if k != "3.png"}),
                      r"captions.csv' .*1 absent image .'3.png' is not in '/.*data.on_error=skip"),
    "image of zero bytes": (lambda t: folder(t, images=IMAGES | {"3.png": b""}), r"'3.png'.*data.on_error=skip"),
    "image cut short": (lambda t: folder(t, images=IMAGES | {"3.png": png(3)[:40]}), r"'3.png'.*data.on_error=skip"),
    "image that is text": (lambda t: folder(t, images=IMAGES | {"3.png": b"hello"}), r"'3.png'.*data.on_error=skip"),
    "image that is a folder": (lambda t: folder(write_files(t, {"3.png/x": b""}), images={
        k: v for k, v in IMAGES.items() if k != "3.png"}), r"'3.png'"),
    "image that is a bomb": (lambda t: folder(t, images=IMAGES | {"3.png": bomb()}),
                             r"'3.png', line 5 .*DecompressionBomb.*data.on_error=skip"),
    "image that is a bomb, streamed": (lambda t: folder(t, images=IMAGES | {"3.png": bomb()}) | {"data.stream": "true"},
                                       r"'3.png', line 5 .*DecompressionBomb"),
    "all images of a split broken": (lambda t: folder(t, images=IMAGES | {"4.png": b""}) | {
        "data.on_error": "skip", "data.max_skipped": 0.5}, r"none of the 1 images of split 'val' .*'4.png', line 6"),
    "images in no folder": (lambda t: folder(t) | {"data.images": t / "none"}, r"no image directory or zip file '.*none'"),
    "images in what is no zip": (lambda t: folder(t, zipped=b"PK"),
                                 r"images.zip' is neither a directory nor a readable zip"),
    "images in a zip cut short": (lambda t: folder(t, zipped=zip_of(IMAGES)[:-30]), r"images.zip' is neither"),
    "images twice in a zip": (lambda t: folder(t, zipped=twice_in_zip()), r"more than once in .*'0.png'; leave"),
    "image names that lead out of the folder": (
        lambda t: folder(write_files(t, {"secret.png": png()}) / "sub", table_text(names={3: "../secret.png"}),
                         images={f"../sub/{name}": data for name, data in IMAGES.items()}), r"'\.\./secret.png'"),
    "image names that are absolute": (
        lambda t: folder(write_files(t, {"secret.png": png()}) / "sub", table_text(names={3: str(t / "secret.png")}),
                         images={f"../sub/{name}": data for name, data in IMAGES.items()}), r"secret.png'"),
    "names in a zip that lead out of it": (
        lambda t: folder(t, zipped=zip_of({("../" * 9 + k if k == "3.png" else k): v for k, v in IMAGES.items()})),
        r"images.zip.*'\.\./\.\./"),
    "names in a zip that are absolute": (
        lambda t: folder(t, zipped=zip_of({("/etc/" + k if k == "3.png" else k): v for k, v in IMAGES.items()})),
        r"images.zip.*'/etc/3.png'"),
    "zip bomb": (lambda t: folder(t, zipped=zip_bomb()), r"'0.png'.*data.on_error=skip"),
    "zip with a flipped bit": (lambda t: folder(t, zipped=flipped(zip_of(IMAGES), IMAGES["3.png"])), r"'3.png'"),
    "zip with a password": (lambda t: folder(t, zipped=encrypted(zip_of(IMAGES))), r"'0.png'.*RuntimeError|encrypted"),
    "image of floats": (lambda t: folder(t, images=IMAGES | {"3.png": png(3, mode="F")}), r"'3.png'.*8 bits"),
}


def flipped(data, part):
    """`data` with one bit of `part` changed."""
    place = data.index(part) + len(part) // 2
    return data[:place] + bytes([data[place] ^ 1]) + data[place + 1:]


def encrypted(data):
    """A zip file whose first member is said to be encrypted."""
    data = bytearray(data)
    for mark, at in ((b"PK\x03\x04", 6), (b"PK\x01\x02", 8)):
        data[data.index(mark) + at] |= 1
    return bytes(data)


# karpathy


def karpathy(tmp, change=lambda document: None, images=IMAGES, raw=None, **settings):
    document = {"dataset": "mini", "images": [
        {"filename": f"{i}.png", "split": split, "sentences": [{"raw": f"photo {i}", "sentid": i}]}
        for i, split in enumerate(SPLITS)]}
    change(document)
    write_files(tmp / "images", images)
    (tmp / "data.json").write_bytes(json.dumps(document).encode() if raw is None else raw)
    return {"data.name": "karpathy", "data.annotations": tmp / "data.json", "data.images": tmp / "images", **settings}


def sentence(i, **changes):
    return lambda document: document["images"][i]["sentences"][0].update(changes)


def entry(i, **changes):
    return lambda document: document["images"][i].update(changes)


KARPATHY = {
    "no annotations": (lambda t: karpathy(t) | {"data.annotations": t / "none.json"},
                       r"no annotation file '.*none.json'"),
    "no images named": (lambda t: karpathy(t) | {"data.images": ""}, r"needs the setting 'images'; give"),
    "zero bytes": (lambda t: karpathy(t, raw=b""), r"data.json' is not a readable JSON"),
    "not JSON": (lambda t: karpathy(t, raw=b"{'a': 1}"), r"data.json' is not a readable JSON"),
    "not UTF-8": (lambda t: karpathy(t, raw=b'{"images": "\xff"}'), r"data.json' is not a readable JSON"),
    "nested without end": (lambda t: karpathy(t, raw=b'{"images":' + b"[" * 100_000), r"data.json' is not a readable"),
    "gzip cut short": (lambda t: karpathy(t, raw=gzip.compress(b"{}" * 99)[:-9]), r"data.json' is not a readable"),
    "gzip bomb": (lambda t: karpathy(t, raw=gzip_bomb()), r"data.json"),
    "another schema": (lambda t: karpathy(t, raw=b'{"annotations": []}'), r"data.json' has no key 'images'"),
    "a list": (lambda t: karpathy(t, raw=b"[]"), r"data.json' has no key 'images'"),
    "no file name": (lambda t: karpathy(t, lambda d: d["images"][2].pop("filename")), r"image 2 .*no key 'filename'"),
    "unknown split": (lambda t: karpathy(t, entry(4, split="dev")),
                      r"data.json' has no image of split 'val', only of dev .1 images., .*data.val_split"),
    "no val": (lambda t: karpathy(t, entry(4, split="train")),
               r"data.json' has no image of split 'val', .*data.holdout_val"),
    "no captions": (lambda t: karpathy(t, entry(2, sentences=[])), r"data.json' .*without a caption .'2.png'.*; fix"),
    "empty caption": (lambda t: karpathy(t, sentence(2, raw=" ")), r"data.json' .*1 empty caption .'2.png'.*; fix"),
    "caption of 10 MB": (lambda t: karpathy(t, sentence(2, raw=LONG)),
                         r"data.json' .*1 caption of more than 100,000 characters .'2.png'"),
    "caption that is half a character": (lambda t: karpathy(t, sentence(2, raw="\udc80")),
                                         r"data.json' .*1 caption that cannot be read as Unicode .'2.png'"),
    "duplicate ids": (lambda t: karpathy(t, sentence(2, sentid=1)), r"sentids.*first is 1; number"),
    "an image twice": (lambda t: karpathy(t, entry(5, filename="0.png")), r"data.json.*'0.png'"),
    "id that is a word": (lambda t: karpathy(t, sentence(2, sentid="two")),
                          r"'sentid' of .*image 2 in '.*data.json' is 'two', no number; number"),
    "name that leads out of the folder": (lambda t: karpathy(
        write_files(t, {"secret.png": png()}), entry(2, filename="../secret.png")), r"'\.\./secret.png'"),
    "folder that leads out of the folder": (lambda t: karpathy(
        write_files(t, {"secret.png": png()}), entry(2, filename="secret.png", filepath="..")), r"secret.png'"),
    "image missing": (lambda t: karpathy(t, entry(2, filename="9.png")),
                      r"data.json' .*1 absent image .'9.png' is not in '/"),
    "image corrupt": (lambda t: karpathy(t, images=IMAGES | {"2.png": b"GIF89a"}), r"'2.png'.*data.on_error=skip"),
}


def gzip_bomb():
    """Spaces a thousand times as long as what they are packed into."""
    return gzip.compress(b" " * 2**24) * 6


# webdataset


def tar_of(samples, links=()):
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as archive:
        for name, data in samples:
            member = tarfile.TarInfo(name)
            member.size = len(data)
            archive.addfile(member, io.BytesIO(data))
        for name, target in links:
            member = tarfile.TarInfo(name)
            member.type, member.linkname = tarfile.SYMTYPE, target
            archive.addfile(member)
    return buffer.getvalue()


def samples(*rows, **changes):
    return [pair for i in rows for pair in (
        (f"{i}.png", changes.get(f"png{i}", png(i))), (f"{i}.txt", changes.get(f"txt{i}", f"photo {i}".encode())))]


def webdataset(tmp, train=None, val=None, **settings):
    write_files(tmp, {"train.tar": tar_of(samples(0, 1, 2, 3)) if train is None else train,
                      "val.tar": tar_of(samples(4)) if val is None else val, "test.tar": tar_of(samples(5))})
    return {"data.name": "webdataset", **{f"data.{split}_shards": tmp / f"{split}.tar"
                                          for split in ("train", "val", "test")}, **settings}


def sparse_tar(tmp):
    """A shard whose image is said to be 3 GB, and is, but takes no room on the disk."""
    member = tarfile.TarInfo("4.png")
    member.size = 3 * 2**30
    with open(tmp / "val.tar", "wb") as file:
        file.write(member.tobuf())
        file.seek(3 * 2**30, 1)
        file.write(tar_of([("4.txt", b"photo 4")]))
    return {"data.val_shards": tmp / "val.tar"}


def both(tmp):
    settings = webdataset(tmp)
    return settings | sparse_tar(tmp)


SHARDS = {
    "no shards": (lambda t: {"data.name": "webdataset"}, r"needs the setting 'train_shards'|no shards are given"),
    "no val shards": (lambda t: webdataset(t) | {"data.val_shards": ""}, r"no shards .*'val'; set val_shards"),
    "shards missing": (lambda t: webdataset(t) | {"data.train_shards": t / "train-{000..002}.tar"},
                       r"3 of the shards .*are missing, the first is '.*train-000.tar'; check"),
    "shards without end": (lambda t: webdataset(t) | {"data.train_shards": t / "{000000000..999999999}.tar"},
                           r"999999999"),
    "remote shards": (lambda t: webdataset(t) | {"data.train_shards": "s3://bucket/0.tar"},
                      r"'s3://bucket/0.tar'.*copy"),
    "compressed shards": (lambda t: webdataset(t, train=gzip.compress(tar_of(samples(0)))),
                          r"train.tar' is compressed.*unpack it with `gunzip -c '.*train.tar' > '.*'`"),
    "zero bytes": (lambda t: webdataset(t, train=b""), r"train.tar"),
    "cut short": (lambda t: webdataset(t, train=tar_of(samples(0, 1, 2, 3))[:3000]),
                  r"train.tar' is not a readable tar"),
    "not a tar": (lambda t: webdataset(t, train=b"hello" * 999), r"train.tar' is not a readable tar"),
    "no images in it": (lambda t: webdataset(t, val=tar_of([("4.txt", b"photo")])),
                        r"val.tar' holds 1 sample, with extensions .txt; expected an image"),
    "only broken images": (lambda t: webdataset(t, val=tar_of(samples(4, png4=b""))), r"val.tar.*1 broken image"),
    "only a bomb": (lambda t: webdataset(t, val=tar_of(samples(4, png4=bomb()))), r"val.tar.*1 broken image"),
    "an image of 3 GB": (both, r"val.tar.*1 broken image"),
    "only empty captions": (lambda t: webdataset(t, val=tar_of(samples(4, txt4=b" "))),
                            r"1 empty caption .'val/4'.; fix it, or set data.on_error=skip"),
    "only captions not in UTF-8": (lambda t: webdataset(t, val=tar_of(samples(4, txt4=b"\xff\xfe"))), r"val.tar.*1 "),
    "only captions of 10 MB": (lambda t: webdataset(t, val=tar_of(samples(4, txt4=LONG.encode()))), r"val.tar.*1 "),
    "only JSON that is none": (lambda t: webdataset(t, val=tar_of([("4.png", png()), ("4.json", b"{")])),
                               r"1 sample with unreadable JSON .'4' of '.*val.tar'"),
    "JSON nested without end": (lambda t: webdataset(t, val=tar_of([("4.png", png()), ("4.json", b"[" * 100_000)])),
                                r"1 sample with unreadable JSON .'4' of '.*val.tar', .*nested"),
    "one shard twice": (lambda t: webdataset(t) | {"data.val_shards": t / "train.tar"},
                        r"1 shard is .*first is '.*train.tar'; give"),
    "duplicate keys": (lambda t: webdataset(t, train=tar_of(samples(0, 1, 1, 2))), r"train.tar.*'1\.(png|txt)'"),
    "names that lead out of it": (
        lambda t: webdataset(t, train=tar_of([*samples(0, 1), ("../../2.png", png()), ("../../2.txt", b"a")])),
        r"train.tar.*'\.\./\.\./2.png'"),
    "names that are absolute": (
        lambda t: webdataset(t, train=tar_of([*samples(0, 1), ("/etc/2.png", png()), ("/etc/2.txt", b"a")])),
        r"train.tar.*'/etc/2.png'"),
    "links to files outside": (
        lambda t: webdataset(t, val=tar_of([("4.txt", b"photo")], [("4.png", "/etc/passwd")])),
        r"val.tar' holds 1 sample, .*links .* not read; expected"),
}


# hf


def saved(tmp, change=lambda rows: None, **settings):
    """A data set on disk as the datasets library keeps it."""
    import datasets

    rows = {"image": [{"bytes": png(i), "path": None} for i in range(6)], "caption": [f"photo {i}" for i in range(6)]}
    change(rows)
    kinds = datasets.Features({"image": {"bytes": datasets.Value("binary"), "path": datasets.Value("string")},
                               "caption": datasets.Value("string")} if isinstance(rows["image"][0], dict) else {
                                   "image": datasets.Value("int64"), "caption": datasets.Value("string")})
    parts = {"train": slice(0, 4), "validation": slice(4, 5), "test": slice(5, 6)}
    datasets.DatasetDict({split: datasets.Dataset.from_dict({k: v[part] for k, v in rows.items()}, features=kinds)
                          for split, part in parts.items()}).save_to_disk(str(tmp / "mini"))
    return {"data.name": "hf", "data.source": tmp / "mini", **settings}


def torn(tmp):
    settings = saved(tmp)
    for path in (tmp / "mini" / "train").glob("*.arrow"):
        path.write_bytes(path.read_bytes()[:200])
    return settings


def not_utf8(tmp):
    settings = saved(tmp, lambda rows: rows["caption"].__setitem__(2, "XXXXXXXXXX"))
    for path in (tmp / "mini" / "train").glob("*.arrow"):
        path.write_bytes(path.read_bytes().replace(b"XXXXXXXXXX", b"\xff\xfe" * 5))
    return settings


HF = {
    "no source": (lambda t: {"data.name": "hf"}, r"needs the setting 'source'; give"),
    "a folder that is not there": (lambda t: {"data.name": "hf", "data.source": t / "none"}, r"none'.*check its name"),
    "a Hub name, offline": (lambda t: {"data.name": "hf", "data.source": "nobody/nothing"}, r"'nobody/nothing'.*check"),
    "no such split": (lambda t: saved(t) | {"data.val_split": "dev"},
                      r"mini' has no split 'dev', only .*set data.val_split"),
    "no such image column": (lambda t: saved(t) | {"data.image_column": "photo"}, r"mini' has no column 'photo'"),
    "no such caption column": (lambda t: saved(t) | {"data.caption_columns": "title"}, r"mini' has no column 'title'"),
    "images that are numbers": (lambda t: saved(t, lambda r: r.update(image=list(range(6)))),
                                r"no column of '.*mini' holds images.*set data.image_column"),
    "an image that is null": (lambda t: saved(t, lambda r: r["image"].__setitem__(2, None)), r"mini.*row|row 2 .*mini"),
    "an image that is broken": (lambda t: saved(t, lambda r: r["image"].__setitem__(2, {"bytes": b"x", "path": None})),
                                r"1 broken image .*row 3 of split 'train' of '.*mini'.*data.on_error=skip"),
    "an image that is a bomb": (lambda t: saved(t, lambda r: r["image"].__setitem__(
        2, {"bytes": bomb(), "path": None})),
                                r"DecompressionBomb"),
    "a caption that is null": (lambda t: saved(t, lambda r: r["caption"].__setitem__(2, None)),
                               r"mini' cannot .*1 empty caption .*row 3 of split 'train' of '.*mini'"),
    "a caption of 10 MB": (lambda t: saved(t, lambda r: r["caption"].__setitem__(2, LONG)),
                           r"more than 100,000 characters .*row 3 of split 'train' of '.*mini'"),
    "captions not in UTF-8": (not_utf8, r"1 caption that cannot be read as Unicode .*row 3 of split 'train' of '.*mini'"),
    "files cut short": (torn, r"mini"),
    "a script": (lambda t: {"data.name": "hf", "data.source": write_files(t / "s", {"s.py": b"raise SystemExit"})},
                 r"cannot load the data set"),
}


# audio


def sound(seconds=0.3, rate=8000):
    buffer = io.BytesIO()
    with wave.open(buffer, "wb") as file:
        file.setnchannels(1)
        file.setsampwidth(2)
        file.setframerate(rate)
        file.writeframes(b"\x10\x20" * int(seconds * rate))
    return buffer.getvalue()


SOUNDS = {f"{i}.wav": sound() for i in range(6)}


def audio(tmp, sounds=SOUNDS, **settings):
    text = table_text(names={i: f"{i}.wav" for i in range(6)})
    return folder(tmp, text, images=sounds) | {
        "data.name": "audio", "data.image_column": "image", "data.caption_columns": "caption", "data.sample_rate": 8000,
        "data.seconds": 0.3, "data.mels": 16, "data.frames": 16, "data.size": 32, **settings}


def esc50(tmp, **arrays):
    n = 6
    found = {"logmel": np.zeros((n, 16, 16), np.uint8), "fold": np.array([1, 1, 2, 2, 3, 5]),
             "target": np.zeros(n, int), "clip": np.array([str(i) for i in range(n)])} | arrays
    np.savez(tmp / "esc50_logmel.npz", **found)
    (tmp / "esc50_labels.json").write_text('{"classes": ["dog"]}')
    return {"data.name": "esc50", "data.source": tmp, "data.size": 32}


AUDIO = {
    "a sound of zero bytes": (lambda t: audio(t, SOUNDS | {"3.wav": b""}), r"'3.wav'"),
    "a sound cut short": (lambda t: audio(t, SOUNDS | {"3.wav": sound()[:30]}), r"'3.wav'"),
    "a sound without samples": (lambda t: audio(t, SOUNDS | {"3.wav": sound(0)}), r"'3.wav'"),
    "a sound that is a picture": (lambda t: audio(t, SOUNDS | {"3.wav": png()}), r"'3.wav'"),
    "a sound that is missing": (lambda t: audio(t, {k: v for k, v in SOUNDS.items() if k != "3.wav"}), r"'3.wav'"),
    "log-mels of no length": (lambda t: audio(t) | {"data.seconds": -1.0}, r"data.seconds"),
    "log-mels of nan": (lambda t: audio(t) | {"data.seconds": "nan"}, r"data.seconds.*nan"),
    "log-mels too fine": (lambda t: audio(t) | {"data.mels": 4000}, r"data.mels"),
    "no folder of ESC-50": (lambda t: {"data.name": "esc50", "data.source": t, "data.size": 32}, r"esc50.*set data.source"),
    "a fold twice": (lambda t: esc50(t) | {"data.val_split": "1"}, r"esc50: the folds"),
    "a fold there is not": (lambda t: esc50(t) | {"data.val_split": "9"}, r"no clips of fold 9"),
    "log-mels that are damaged": (lambda t: esc50(t, target=np.full(6, 7)), r"log-mels in .*damaged"),
    "log-mels that want pickle": (lambda t: esc50(t, clip=traps(6)), r"log-mels in .*damaged"),
    "log-mels of floats": (lambda t: esc50(t, logmel=np.zeros((6, 16, 16))), r"uint8"),
    "log-mels of other lengths": (lambda t: esc50(t, target=np.zeros(5, int)), r"log-mels|esc50"),
}

READERS = {"folder": FOLDERS, "karpathy": KARPATHY, "webdataset": SHARDS, "hf": HF, "audio": AUDIO}


@pytest.mark.parametrize("reader, name", [(reader, name) for reader, cases in READERS.items() for name in cases])
def test_data(reader, name, finished, tmp_path, capfd, recwarn):
    make, says = READERS[reader][name]
    if reader == "hf" or "Parquet" in name:
        pytest.importorskip("datasets")
    if reader == "audio" and re.match(r"a sound|log-mels of no|log-mels of nan|log-mels too", name):
        pytest.importorskip("soundfile")
    run, file = finished
    settings = FEW | make(tmp_path)
    before, outside = contents(tmp_path), sorted(tmp_path.parent.iterdir())
    argv = ["prepare", f"--config={file}", *words(settings)]
    assert re.search(says, refused(argv, [run], capfd, recwarn))
    assert contents(tmp_path).keys() <= before.keys() and sorted(tmp_path.parent.iterdir()) == outside


@pytest.mark.parametrize("make", [folder, karpathy, webdataset, saved, audio, esc50],
                         ids=lambda make: make.__name__)
def test_the_same_data_unspoilt(make, finished, tmp_path):
    """What the cases above spoil is good as it is: they fail for what they are about."""
    if make is saved:
        pytest.importorskip("datasets")
    if make is audio:
        pytest.importorskip("soundfile")
    _, file = finished
    argv = ["prepare", f"--config={file}", *words(FEW | make(tmp_path) | {"run.dir": tmp_path / "run"})]
    if make in (audio, esc50):
        argv.append("--config.model.patches=8,")
    assert main(argv) == 0


# ---- noise, text features, weights -----------------------------------------------------------------------------------


def npz(path, **arrays):
    np.savez(path, **arrays)
    return path


def npy(path, array, **options):
    np.save(path, array, **options)
    return path


def noise_file(run):
    """The first draw there was."""
    return min((run / "noise").glob("image-0.4-seed0-*.npz"), key=lambda path: path.stat().st_mtime)


def cut(path, source, length=-40):
    path.write_bytes(source.read_bytes()[:length])
    return path


def huge_npz(path, name, dtype="<f4"):
    """An .npz whose array says that it is of 10**15 rows, and holds nothing."""
    head = str({"descr": dtype, "fortran_order": False, "shape": (10**15, 4)}).ljust(117) + "\n"
    member = b"\x93NUMPY\x01\x00" + struct.pack("<H", len(head)) + head.encode()
    path.write_bytes(zip_of({f"{name}.npy": member}))
    return path


def forged(path, source, **changes):
    """A noise file with other numbers than its sha256 says."""
    with np.load(source) as file:
        return npz(path, **{name: file[name] for name in file} | changes)


PRECOMPUTED = {"text.encoder": "precomputed"}
CAPTIONS = 400  # as many as the scenes have


def features(tmp, array, **options):
    return PRECOMPUTED | {"text.path": npy(tmp / "features.npy", array, **options)}


def with_nan():
    array = np.ones((CAPTIONS, 24), np.float32)
    array[7, 3] = np.nan
    return array


def bert(tmp, change):
    """A tiny BERT, with something changed in its folder."""
    change(write_model(tmp, "bert"))
    return {"text.encoder": "transformer", "text.path": tmp, "text.max_tokens": 12}


def tensors(change):
    def changed(folder):
        found = load_file(folder / "model.safetensors")
        change(found)
        save_file(found, folder / "model.safetensors")
    return changed


def json_file(name, **changes):
    def changed(folder):
        document = json.loads((folder / name).read_text())
        (folder / name).write_text(json.dumps(document | changes))
    return changed


def tower(tmp, name="resnet18", data=None, **arrays):
    path = tmp / "tower.safetensors"
    save_file(arrays or {"fc.weight": np.zeros((2, 2), np.float32)}, path)
    if data is not None:
        path.write_bytes(data)
    return {"model.tower": name, "model.weights": path, "data.size": 32}


def quantised(tmp, **changes):
    """A tiny MobileNet file."""
    ops = [{"op": "CONV_2D", "in": [0], "out": 1, "stride": 4, "pad": "SAME", "act": 3, "w": "conv00"},
           {"op": "AVERAGE_POOL_2D", "in": [1], "out": 2}]
    arrays = {"ops_json": json.dumps({"input_tensor": 0, "ops": ops}),
              "conv00/kernel_q": np.zeros((3, 3, 3, 8), np.uint8), "conv00/scale": np.array([0.01], np.float32),
              "conv00/zero": np.array([128], np.int32), "conv00/bias": np.ones(8, np.float32)} | changes
    np.savez(tmp / "m.q8.npz", **{name: value for name, value in arrays.items() if value is not None})
    return {"model.tower": "mobilenet", "model.weights": tmp / "m.q8.npz"}


FILES_OF_NUMBERS = {
    "noise file that is not there": (lambda t, run: {"noise.file": t / "none.npz"}, r"no noise file '.*none.npz'; set"),
    "noise file that is a folder": (lambda t, run: {"noise.file": t}, r"cannot read"),
    "noise file of zero bytes": (lambda t, run: {"noise.file": cut(t / "n.npz", noise_file(run), 0)},
                                 r"n.npz' is not a noise"),
    "noise file cut short": (lambda t, run: {"noise.file": cut(t / "n.npz", noise_file(run))},
                             r"n.npz' is not a noise"),
    "noise file of another data set": (lambda t, run: {"noise.file": noise_file(run), "data.seed": 1},
                                       r"was drawn for data set .*but this one is"),
    "noise file with forged numbers": (lambda t, run: {"noise.file": forged(
        t / "n.npz", noise_file(run), image_of=np.zeros(40, np.int64))}, r"n.npz' is damaged.*sha256"),
    "noise file that wants pickle": (lambda t, run: {"noise.file": npz(t / "n.npz", meta=traps(1)[0:1].reshape(()))},
                                     r"n.npz' is not a noise file"),
    "noise file of features": (lambda t, run: {"noise.file": npz(t / "n.npz", features=np.zeros(3))},
                               r"n.npz' is not a noise"),
    "noise file that says it is huge": (lambda t, run: {"noise.file": huge_npz(t / "n.npz", "meta")},
                                        r"n.npz' is not a noise"),
    "noise index of another length": (lambda t, run: {"noise.file": npy(t / "n.npy", np.arange(7))},
                                      r"n.npy' has 7 entries"),
    "noise index out of range": (lambda t, run: {"noise.file": npy(t / "n.npy", np.arange(40) + 1)},
                                 r"n.npy' holds indices"),
    "noise index of floats": (lambda t, run: {"noise.file": npy(t / "n.npy", np.ones(40))}, r"n.npy' holds float64"),
    "noise index that drops images": (lambda t, run: {"noise.file": npy(t / "n.npy", np.zeros(40, int))},
                                      r"n.npy' leaves"),
    "noise index that wants pickle": (lambda t, run: {"noise.file": npy(t / "n.npy", traps(40))},
                                      r"n.npy' is not a readable .npy"),
    "noise index that is a picture": (lambda t, run: {"noise.file": write_files(t, {"n.npy": png()}) / "n.npy"},
                                      r"n.npy' is not a readable"),
    "text features without a file": (lambda t, run: PRECOMPUTED, r"text encoder 'precomputed' needs"),
    "text features that are not there": (lambda t, run: PRECOMPUTED | {"text.path": t / "f.npy"},
                                         r"no text feature file"),
    "text features of too few rows": (lambda t, run: features(t, np.ones((7, 24), np.float32)),
                                      r"features.npy' has 7 rows"),
    "text features with NaN": (lambda t, run: features(t, with_nan()), r"features.npy' has NaN.*row 7.*again"),
    "text features of integers": (lambda t, run: features(t, np.ones((CAPTIONS, 24), int)), r"features.npy' are int64"),
    "text features in one dimension": (lambda t, run: features(t, np.ones(CAPTIONS, np.float32)),
                                       r"features.npy'.*shape"),
    "text features of no width": (lambda t, run: features(t, np.ones((CAPTIONS, 0), np.float32)), r"features.npy'"),
    "text features that want pickle": (lambda t, run: features(t, traps(CAPTIONS)),
                                       r"features.npy' cannot be read"),
    "text features cut short": (lambda t, run: PRECOMPUTED | {"text.path": cut(
        t / "c.npy", npy(t / "f.npy", np.ones((CAPTIONS, 24), np.float32)))}, r"c.npy' cannot be read"),
    "text features of zero bytes": (lambda t, run: PRECOMPUTED | {
        "text.path": write_files(t, {"f.npy": b""}) / "f.npy"},
                                    r"f.npy' cannot be read"),
    "text features of another name": (lambda t, run: PRECOMPUTED | {"text.path": npz(t / "f.npz", x=np.ones(3))},
                                      r"f.npz' holds \['x'\] but no text features"),
    "text features that say they are huge": (lambda t, run: PRECOMPUTED | {
        "text.path": huge_npz(t / "f.npz", "features")}, r"f.npz' cannot be read"),
    "text features without their scale": (lambda t, run: PRECOMPUTED | {"text.path": npz(
        t / "f.npz", features_q=np.ones((CAPTIONS, 24), np.int8))}, r"f.npz'"),
    "text features with another scale": (lambda t, run: PRECOMPUTED | {"text.path": npz(
        t / "f.npz", features_q=np.ones((CAPTIONS, 24), np.int8), scale=np.ones(3, np.float32))}, r"f.npz'.*`scale`"),
    "text encoder without a folder": (lambda t, run: {"text.encoder": "transformer"},
                                      r"text encoder 'transformer' needs"),
    "text encoder of no Hub name": (lambda t, run: {"text.encoder": "transformer", "text.path": "nobody/nothing"},
                                    r"'nobody/nothing'.*unset"),
    "text encoder that is a file": (lambda t, run: {"text.encoder": "transformer", "text.path": write_files(
        t, {"m.safetensors": b"x"}) / "m.safetensors"}, r"single file.*give a directory"),
    "text encoder without a config": (lambda t, run: bert(t, lambda f: (f / "config.json").unlink()),
                                      r"no config.json"),
    "text encoder of another type": (lambda t, run: bert(t, json_file("config.json", model_type="gpt2")),
                                     r"'gpt2' model"),
    "text encoder of another width": (lambda t, run: bert(t, json_file("config.json", hidden_size=32)), r"do not fit"),
    "text encoder of a width that is text": (lambda t, run: bert(t, json_file("config.json", hidden_size="16")),
                                             r"hidden_size"),
    "text encoder with a config that is a list": (lambda t, run: bert(
        t, lambda f: (f / "config.json").write_text("[]")),
                                                  r"config.json' is not a JSON object"),
    "text encoder without a vocabulary": (lambda t, run: bert(t, lambda f: (f / "vocab.txt").unlink()),
                                          r"vocab|tokenizer"),
    "text encoder with another vocabulary": (lambda t, run: bert(t, lambda f: (f / "vocab.txt").write_text(
        (f / "vocab.txt").read_text() + "cat\nmouse\n")), r"tokenizer.*knows token"),
    "text encoder without a tensor": (lambda t, run: bert(t, tensors(lambda found: found.pop(
        "embeddings.LayerNorm.weight"))), r"LayerNorm.weight is missing"),
    "text encoder of NaN": (lambda t, run: bert(t, tensors(lambda found: found[
        "embeddings.LayerNorm.weight"].fill(np.nan))), r"NaN"),
    "text encoder cut short": (lambda t, run: bert(t, lambda f: cut(
        f / "model.safetensors", f / "model.safetensors")), r"model.safetensors' cannot be read"),
    "text encoder that is pickled": (lambda t, run: bert(t, lambda f: (f / "model.safetensors").rename(
        f / "pytorch_model.bin")), r"pickled weights are not read"),
    "text encoder of shards outside its folder": (lambda t, run: bert(t, lambda f: (
        (f / "model.safetensors").rename(f / "a.safetensors"),
        (f / "model.safetensors.index.json").write_text('{"weight_map": {"a": "../../x.safetensors"}}'))),
        r"does not map tensors to files beside it"),
    "text encoder of shards that are not there": (lambda t, run: bert(t, lambda f: (
        (f / "model.safetensors").unlink(),
        (f / "model.safetensors.index.json").write_text('{"weight_map": {"a": "model-1-of-1.safetensors"}}'))),
        r"lacks 1 of 1 shards"),
    "captions of one token": (lambda t, run: bert(t, lambda f: None) | {"text.max_tokens": 1}, r"max_tokens"),
    "tower without weights": (lambda t, run: {"model.tower": "resnet18"}, r"tower 'resnet18' needs weights; set"),
    "tower with pickled weights": (lambda t, run: {"model.tower": "resnet18", "model.weights": write_files(
        t, {"w.bin": pickle.dumps(Trap())}) / "w.bin"}, r"w.bin' holds pickled weights.*convert"),
    "tower with weights that are not there": (lambda t, run: {
        "model.tower": "resnet18", "model.weights": t / "w.safetensors"}, r"no weights file '.*w.safetensors'"),
    "tower with weights of zero bytes": (lambda t, run: tower(t, data=b""), r"tower.safetensors' cannot be read"),
    "tower with weights that say they are huge": (lambda t, run: tower(t, data=struct.pack("<Q", 2**62) + b"{}"),
                                                  r"tower.safetensors' cannot be read"),
    "tower with weights cut short": (lambda t, run: tower(t, data=struct.pack("<Q", 90) + b'{"a": 1'),
                                     r"tower.safetensors' cannot be read"),
    "tower with another's weights": (lambda t, run: tower(t),
                                     r"do not fit the model in 100 tensors .*is missing; .*give"),
    "tower with weights of another shape": (lambda t, run: tower(
        t, **{"conv1.weight": np.zeros((8, 3, 7, 7), np.float32)}), r"conv1.weight has shape"),
    "MobileNet without weights": (lambda t, run: {"model.tower": "mobilenet"},
                                  r"no MobileNet weights.*set model.weights"),
    "MobileNet of a picture": (lambda t, run: {"model.tower": "mobilenet", "model.weights": write_files(
        t, {"m.q8.npz": png()}) / "m.q8.npz"}, r"m.q8.npz' is not a complete MobileNet"),
    "MobileNet without a layer": (lambda t, run: quantised(t, **{"conv00/bias": None}), r"m.q8.npz' is not a complete"),
    "MobileNet of other operations": (lambda t, run: quantised(t, ops_json=json.dumps({"input_tensor": 0, "ops": [
        {"op": "SHELL", "in": [0], "out": 1}, {"op": "AVERAGE_POOL_2D", "in": [1], "out": 2}]})),
            r"m.q8.npz' holds operations"),
    "MobileNet of a graph that is none": (lambda t, run: quantised(t, ops_json="[1, 2]"), r"m.q8.npz' is not a complete"),
    "MobileNet of a kernel of another shape": (lambda t, run: quantised(
        t, **{"conv00/kernel_q": np.zeros((3, 8), np.uint8)}), r"m.q8.npz'"),
    "MobileNet of a bias of another shape": (lambda t, run: quantised(t, **{"conv00/bias": np.ones(5, np.float32)}),
                                             r"m.q8.npz'"),
    "MobileNet of NaN": (lambda t, run: quantised(t, **{"conv00/scale": np.array([np.nan], np.float32)}),
                         r"NaN|not finite"),
    "MobileNet that wants pickle": (lambda t, run: quantised(t, ops_json=traps(1)[0:1].reshape(())),
                                    r"m.q8.npz' is not a complete"),
}


@pytest.mark.parametrize("name", FILES_OF_NUMBERS)
def test_files_of_numbers(name, finished, tmp_path, capfd, recwarn):
    make, says = FILES_OF_NUMBERS[name]
    run, file = finished
    argv = ["prepare", f"--config={file}", *words(make(tmp_path, run))]
    assert re.search(says, refused(argv, [run], capfd, recwarn))


def test_the_same_files_unspoilt(finished, tmp_path):
    run, file = finished
    for settings in ({"noise.file": noise_file(run)}, features(tmp_path, np.ones((CAPTIONS, 24), np.float32)),
                     bert(tmp_path, lambda folder: None), quantised(tmp_path)):
        assert main(["prepare", f"--config={file}", *words(settings | {"run.dir": tmp_path / "run"})]) == 0


# ---- what a run has written ------------------------------------------------------------------------------------------


def one(run, pattern):
    [path] = run.glob(pattern)
    return path


def rewrite(path, change):
    """Change the JSON of a file."""
    document = json.loads(path.read_text())
    path.write_text(json.dumps(change(document)))


def without(*names):
    return lambda document: {name: value for name, value in document.items() if name not in names}


def flip(path, place=0.5):
    data = bytearray(path.read_bytes())
    data[int(len(data) * place)] ^= 1
    path.write_bytes(data)


def experts(run):
    return one(run, "experts/*/experts.json").parent


def chunks(run):
    """The files in which trajectories keep numbers."""
    return [path for path in experts(run).glob("net_0?/snapshots/**/d/*") if path.stat().st_size > 400]


def forget_set(run):
    """As if the experts were there and the set were not."""
    shutil.rmtree(one(run, "distilled/*/set_0"))


def forget_scores(run):
    one(run, "distilled/*/set_0/scores-*.json").unlink()


def new_set(run, **changes):
    """Another set, with a card that fits it."""
    folder = one(run, "distilled/*/set_0")
    path = folder / "distilled.safetensors"
    with safe_open(path, "np") as file:
        metadata = file.metadata()
    found = load_file(path) | changes
    data = save({name: np.asarray(value, order="C") for name, value in found.items() if value is not None}, metadata)
    path.write_bytes(data)
    rewrite(folder / "card.json", lambda card: card | {"sha256": hashlib.sha256(data).hexdigest()})
    forget_scores(run)


BROKEN = {  # what is done to a finished run, what is said; the command is mdw evaluate
    "experts.json of another draw": (lambda r: rewrite(
        one(r, "experts/*/experts.json"), lambda d: d | {"key": "0" * 64}),
                                     r"experts.json' is not the whole record.*delete", [forget_set]),
    "experts.json cut short": (lambda r: cut(one(r, "experts/*/experts.json"), one(r, "experts/*/experts.json")),
                               r"experts.json' is not the whole record.*delete", [forget_set]),
    "experts.json of zero bytes": (lambda r: one(r, "experts/*/experts.json").write_bytes(b""),
                                   r"experts.json' is not the whole record", [forget_set]),
    "experts.json not in UTF-8": (lambda r: one(r, "experts/*/experts.json").write_bytes(b"\xff\xfe"),
                                  r"experts.json' is not the whole record", [forget_set]),
    "experts.json that is a list": (lambda r: one(r, "experts/*/experts.json").write_text("[]"),
                                    r"experts.json' is not the whole record", [forget_set]),
    "experts.json without its numbers": (lambda r: rewrite(
        one(r, "experts/*/experts.json"), without("networks", "rate")),
                                         r"experts.json' is not the whole record", [forget_set]),
    "trajectory missing": (lambda r: shutil.rmtree(one(r, "experts/*/net_01")), r"net_01 holds no finished trajectory",
                           [forget_set]),
    "trajectory of another key": (lambda r: rewrite(header(r), lambda d: d | {"key": "0" * 64}),
                                  r"net_00 comes from other data, noise, recipe", [forget_set]),
    "trajectory too short": (lambda r: rewrite(header(r), lambda d: d | {"length": 1}),
                             r"snapshot \d.*net_00", [forget_set]),
    "trajectory without a header": (lambda r: header(r).unlink(), r"net_00 holds no finished trajectory", [forget_set]),
    "trajectory with a header that is a list": (lambda r: header(r).write_text("[]"),
                                                r"net_00 holds no finished trajectory", [forget_set]),
    "trajectory without checksums": (lambda r: rewrite(header(r), without("checksums")), r"net_00", [forget_set]),
    "trajectory with a flipped bit": (lambda r: [
        flip(path, place / 16) for path in chunks(r) for place in range(1, 16)],
                                      r"net_0\d.*cannot be read back", [forget_set]),
    "trajectory cut short": (lambda r: [cut(path, path, 100) for path in chunks(r)],
                             r"net_0\d.*cannot be read back", [forget_set]),
    "trajectory that is text": (lambda r: (shutil.rmtree(one(r, "experts/*/net_00")),
                                           experts(r).joinpath("net_00").write_text("hello")),
                                r"net_00", [forget_set]),
    "division missing": (lambda r: one(r, "experts/*/division.npy").unlink(), r"division.npy", [forget_set]),
    "division cut short": (lambda r: cut(one(r, "experts/*/division.npy"), one(r, "experts/*/division.npy")),
                           r"division.npy", [forget_set]),
    "division that wants pickle": (lambda r: npy(one(r, "experts/*/division.npy"), traps(40)),
                                   r"division.npy", [forget_set]),
    "division of another length": (lambda r: npy(one(r, "experts/*/division.npy"), np.ones(3)), r"division.npy",
                                   [forget_set]),
    "card cut short": (lambda r: cut(one(r, "distilled/*/*/card.json"), one(r, "distilled/*/*/card.json")),
                       r"card.json' is not the whole record.*delete", []),
    "card of another set": (lambda r: rewrite(one(r, "distilled/*/*/card.json"), lambda d: d | {"key": "0" * 64}),
                            r"card.json' is not the whole record", []),
    "card with another sha256": (lambda r: rewrite(
        one(r, "distilled/*/*/card.json"), lambda d: d | {"sha256": "0" * 64}),
                                 r"sha256 differs.*copy it again", []),
    "set missing": (lambda r: one(r, "distilled/*/*/distilled.safetensors").unlink(),
                    r"distilled.safetensors is missing", []),
    "set with a flipped bit": (lambda r: flip(one(r, "distilled/*/*/distilled.safetensors")), r"sha256 differs", []),
    "set cut short": (lambda r: cut(*[one(r, "distilled/*/*/distilled.safetensors")] * 2), r"sha256 differs", []),
    "set of NaN": (lambda r: new_set(r, texts=np.full((8, 24), np.nan, np.float32)), r"'texts' holds NaN", []),
    "set of images of another size": (lambda r: new_set(r, images=np.zeros((8, 32, 32, 3), np.float32)),
                                      r"32, 32, 3", []),
    "set of texts of another width": (lambda r: new_set(r, texts=np.zeros((8, 5), np.float32)), r"\(8, 5\)|5", []),
    "set of fewer texts": (lambda r: new_set(r, texts=np.zeros((7, 24), np.float32)),
                           r"8 distilled images need texts", []),
    "set without images": (lambda r: new_set(r, images=None), r"not a distilled set of format", []),
    "set with a correspondence of another size": (
        lambda r: new_set(r, **{"correspondence.diag": np.ones(3, np.float32)}),
            r"correspondence of 8 distilled pairs", []),
    "scores cut short": (lambda r: cut(*[one(r, "distilled/*/*/scores-*.json")] * 2),
                         r"scores-.*is not the whole record", []),
    "scores without rows": (lambda r: rewrite(one(r, "distilled/*/*/scores-*.json"), without("rows")),
                            r"scores-.*is not the whole record", []),
    "noise draw cut short": (lambda r: cut(noise_file(r), noise_file(r)),
                             r"\.npz' is not a noise file.*draw it again", []),
    "noise draw of another data set": (lambda r: forged(noise_file(r), noise_file(r), image_of=np.arange(40)),
                                       r"\.npz' is damaged", []),
    "checkpoint of another run": (lambda r: (forget_set(r), checkpoint(r, {"key": "another"})),
                                  r"checkpoint.safetensors' belongs to another", []),
    "checkpoint of other tensors": (lambda r: (forget_set(r), checkpoint(r, None)),
                                    r"checkpoint.safetensors'.*delete", []),
    "checkpoint that is text": (lambda r: (forget_set(r), checkpoint(r, None, b"hello")),
                                r"checkpoint.safetensors' is damaged.*delete", []),
    "state of experts that is text": (lambda r: (forget_set(r), experts(r).joinpath(
        "state-experts.safetensors").write_text("x"), (experts(r) / "experts.json").unlink()),
                                                r"state-experts.safetensors' is damaged.*delete", []),
}


def header(run):
    [path] = [path for path in one(run, "experts/*/net_00").rglob("*") if path.is_file() and "header" in str(path)
              and path.stat().st_size > 100]
    return path


def checkpoint(run, metadata, data=None):
    [key] = [json.loads(path.read_text()) for path in run.glob("key-of-the-set")] or [None]
    folder = next(path for path in run.glob("distilled/*") if path.is_dir()) / "set_0"
    folder.mkdir()
    path = folder / "checkpoint.safetensors"
    save_file({"x": np.zeros(3, np.float32)}, path, metadata or {"key": key or ""})
    if data is not None:
        path.write_bytes(data)


@pytest.mark.parametrize("name", BROKEN)
def test_broken_runs(name, finished, tmp_path, capfd, recwarn, monkeypatch):
    monkeypatch.setattr(checksums, "_noted", {tmp_path})  # that a run has no lists is said once, and elsewhere
    spoil, says, first = BROKEN[name]
    shutil.copytree(finished[0].parent / "pristine", tmp_path / "run")
    run = tmp_path / "run"
    for sums in run.rglob(SUMS):  # as of a run of an earlier version, or a stranger who knows of the lists
        sums.unlink()
    for step in (*first, spoil):
        step(run)
    argv = ["evaluate", "--train", f"--config={finished[1]}", f"--config.run.dir={run}"]
    assert re.search(says, refused(argv, [run], capfd, recwarn, late=True))


def test_a_trajectory_of_an_older_version_says_so(finished, tmp_path):
    shutil.copytree(finished[0].parent / "pristine", tmp_path / "run")
    rewrite(header(tmp_path / "run"), lambda document: document | {"format": "mdw_jax.trajectory.1"})
    with pytest.raises(UserError, match=r"net_00 was made by an older version of mdw-jax; run mdw again in another dir"):
        open_trajectory(experts(tmp_path / "run") / "net_00")


@pytest.mark.parametrize("read", [open_run, load_distilled, open_trajectory])
@pytest.mark.parametrize("path", ["x" * 5000, "x/" * 2500])
def test_a_path_that_is_too_long(read, path):
    with pytest.raises(UserError, match=r"^the path 'x.{99}\.\.\.' cannot be opened \(File name too long\); check"):
        read(path)


def test_a_spoilt_cache_is_made_again(finished, tmp_path):
    shutil.copytree(finished[0].parent / "pristine", tmp_path / "run")
    found = {path: np.load(path) for path in (tmp_path / "run" / "cache").glob("*-*.npy")}
    assert {path.name.split("-")[0] for path in found} == {"images", "text"}
    def mark(path):
        return path.with_suffix(".json")

    spoilers = (lambda path: np.save(path, np.load(path) * np.nan), flip, lambda path: cut(path, path),
                lambda path: path.write_bytes(b""), lambda path: path.unlink(), lambda path: flip(mark(path)),
                lambda path: cut(mark(path), mark(path)), lambda path: mark(path).unlink())
    for spoil in spoilers:
        for path in found:
            spoil(path)
        assert main(["prepare", f"--config={finished[1]}", f"--config.run.dir={tmp_path / 'run'}"]) == 0
        for path, rows in found.items():
            np.testing.assert_array_equal(np.load(path), rows)


@pytest.mark.parametrize("where", ["fsync", "write", "replace"])
def test_a_full_disk(where, finished, tmp_path, monkeypatch, capfd, recwarn):
    """Nothing half written stays, and nothing that was there goes."""
    shutil.copytree(finished[0].parent / "pristine", tmp_path / "run")

    def full(*_):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    if where == "write":
        real = os.open
        monkeypatch.setattr(os, "open", lambda path, *args, **options: full() if str(path).endswith(".mdw-part") else
                            real(path, *args, **options))
    else:
        monkeypatch.setattr(os, where, full)
    argv = ["prepare", f"--config={finished[1]}", f"--config.run.dir={tmp_path / 'run'}", "--config.noise.seed=1"]
    assert re.search(r"cannot write '.*noise/image-.*' \(No space left on device\); make room",
                     refused(argv, [tmp_path / "run"], capfd, recwarn))
    assert not list(tmp_path.rglob("*.mdw-part"))


def test_out_of_memory(finished, monkeypatch, capfd, recwarn):
    monkeypatch.setattr("mdw_jax.data.synthetic.scenes.np.empty", raising(MemoryError("Unable to allocate 3. TiB")))
    argv = ["prepare", f"--config={finished[1]}", "--config.data.seed=9"]
    assert re.search(r"not enough memory .*3. TiB.*lower", refused(argv, finished[:1], capfd, recwarn))


def raising(error):
    def fails(*_, **__):
        raise error
    return fails


def test_debug_shows_where(finished, capfd):
    assert main(["prepare", f"--config={finished[1]}", "--config.data.train=-5", "--debug"]) == 2
    said = capfd.readouterr().err
    assert said.startswith("Traceback") and said.splitlines()[-1].startswith("mdw: ") and "data.train" in said
