"""The command line: configs reach the commands, mistakes are one sentence and status 2, and help lists what counts."""

import errno
import json
import logging
import os
import re
import shlex
import shutil
import subprocess
import sys
import types
from pathlib import Path

import jax
import pytest
import yaml
from absl import flags

from mdw_jax.cli import COMMANDS, main
from mdw_jax.cli.arguments import parse
from mdw_jax.cli.commands import SHELLS, Command, Operands, Option
from mdw_jax.config import base, resolve
from mdw_jax.config.loading import load_config, parse_value
from mdw_jax.config.options import CHOICES
from mdw_jax.config.sections import flat
from mdw_jax.errors import UserError

ROOT = Path(__file__).parent.parent
CONFIG = "from mdw_jax.config import base\n\ndef get_config():\n    c = base()\n    {}\n    return c\n"


@pytest.fixture(autouse=True)
def no_cache(monkeypatch, tmp_path):
    monkeypatch.setenv("JAX_COMPILATION_CACHE_DIR", str(tmp_path / "cache"))


@pytest.fixture(autouse=True)
def elsewhere(tmp_path, monkeypatch):
    """Commands make their run directory, even where a stub stands for what they do."""
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def file(tmp_path):
    """Writes a config file whose get_config() has one more line; returns its path."""
    def write(line="pass"):
        path = tmp_path / "somewhere else" / "my-config.py"
        path.parent.mkdir(exist_ok=True)
        path.write_text(CONFIG.format(line))
        return str(path)
    return write


@pytest.fixture
def calls(monkeypatch):
    """Stands in for the functions of the stages, of sweep and of table; a list of (function, arguments ...)."""
    calls = []
    for name in ("run", "prepare", "experts", "distill", "evaluate", "sweep", "table"):
        module, function = COMMANDS[name].function.split(":")
        stub = sys.modules.get(f"mdw_jax.{module}")
        if not isinstance(stub, types.SimpleNamespace):
            stub = types.SimpleNamespace()
            monkeypatch.setitem(sys.modules, f"mdw_jax.{module}", stub)
        setattr(stub, function, lambda *arguments, name=function: calls.append((name, *arguments)))
    return calls


def _mistake(capsys, *argv):
    """The one sentence on stderr."""
    assert main(list(argv)) == 2
    out, err = capsys.readouterr()
    assert not out and err.startswith("mdw: ") and err.count("\n") == 1
    return err[5:-1]


@pytest.mark.parametrize("command", ["run", "prepare", "experts", "distill", "evaluate"])
def test_a_command_gets_the_unresolved_config(file, calls, command):
    path = file("c.experts.recipe = 'infonce'")
    assert main([command, f"--config={path}", "--config.distill.pairs=200"]) == 0
    (name, config), = calls
    assert name == f"{command}_command" and config.distill.pairs == 200
    assert config.experts.recipe == "infonce" and config.experts.clean_loss == base().experts.clean_loss
    assert config.is_locked


@pytest.mark.parametrize("words, key, value", [
    (["--config.distill.pairs=200"], "distill.pairs", 200),
    (["--config.distill.pairs", "200"], "distill.pairs", 200),
    (["--config.distill.pairs=1", "--config.distill.pairs=200"], "distill.pairs", 200),
    (["--config.experts.lr=1"], "experts.lr", 1.0),
    (["--config.distill.alpha", "-1e-3"], "distill.alpha", -1e-3),
    (["--config.experts.dual=false"], "experts.dual", False),
    (["--config.experts.dual", "false"], "experts.dual", False),
    (["--noconfig.experts.dual"], "experts.dual", False),
    (["--config.experts.debias", "--config.run.seed=0"], "experts.debias", True),
    (["--config.run.dir=a=b, c"], "run.dir", "a=b, c"),
    (["--config.model.weights="], "model.weights", ""),
    (["--config.evaluate.lr_scales=0.1,0.3"], "evaluate.lr_scales", (0.1, 0.3)),
    (["--config.evaluate.lr_scales=(0.1, 1)"], "evaluate.lr_scales", (0.1, 1.0)),
    (["--config.evaluate.lr_scales=0.1"], "evaluate.lr_scales", (0.1,)),
    (["--config.evaluate.lr_scales", "(0.1,)"], "evaluate.lr_scales", (0.1,)),
    (["--config.model.patches=4,4"], "model.patches", (4, 4)),
    (["--config.run.presets=random,full"], "run.presets", ("random", "full")),
    (["--config.run.presets=('random', 'full')"], "run.presets", ("random", "full")),
    (["--config.run.preset_overrides=()"], "run.preset_overrides", ()),
])
def test_overrides(file, calls, words, key, value):
    assert main(["run", "--config", file(), *words]) == 0
    expected = base()
    expected.update_from_flattened_dict({key: value})
    config = calls[0][1]
    assert config.to_dict() == expected.to_dict()
    section, name = key.split(".")
    assert type(config[section][name]) is type(value)


def test_flags_of_the_process_stay_as_they_are(file, calls):
    before = set(flags.FLAGS)
    assert main(["run", f"--config={file()}", "--config.run.seed=1"]) == 0
    assert set(flags.FLAGS) == before


def test_a_reference_in_the_file_follows_an_override(file):
    config = load_config(file("c.noise.seed = c.run.get_ref('seed')"), [("run.seed", "7")])
    assert config.noise.seed == 7


def test_config_prints_everything(file, capsys):
    assert main(["config", f"--config={file()}", "--config.distill.pairs=200"]) == 0
    out = capsys.readouterr().out
    expected = base()
    expected.distill.pairs = 200
    printed = yaml.safe_load(out)
    assert list(printed) == sorted(printed)
    assert {s: {k: tuple(v) if isinstance(v, list) else v for k, v in keys.items()} for s, keys in printed.items()} \
        == resolve(expected).to_dict()
    assert "\n  lr_scales: [0.3, 1.0, 3.0]\n" in out


@pytest.mark.parametrize("override, sentence", [
    ("--config.distil.pairs=3", "there is no config.distil.pairs; did you mean config.distill.pairs?"),
    ("--config.distill.step=3", "there is no config.distill.step; did you mean config.distill.steps?"),
    ("--config.tau=3", "there is no config.tau; did you mean config.model.tau?"),
    ("--config.qqqq=3", "there is no config.qqqq; `mdw config` lists all keys."),
    ("--config.distill=3", "config.distill is a section; set one of its keys, such as config.distill.alpha."),
    ("--config.distill.pairs=2.5", "config.distill.pairs must be a whole number, not '2.5'."),
    ("--config.experts.lr=fast", "config.experts.lr must be a number, not 'fast'."),
    ("--config.experts.dual=maybe", "config.experts.dual must be true or false, not 'maybe'."),
    ("--config.distill.pairs", "config.distill.pairs needs a value; write --config.distill.pairs=VALUE."),
    ("--config.model.patches=4,2.5", "config.model.patches must be a list such as 4,2,2, not '4,2.5'."),
    ("--config.experts.recipe=dctl", "there is no expert recipe 'dctl'"),
    ("--config.noise.rate=2", "noise.rate must lie in [0, 1), not 2.0."),
    ("--confg=x", "there is no flag --confg; did you mean --config?"),
    ("--distill.pairs=3", "there is no flag --distill.pairs; did you mean --config.distill.pairs?"),
    ("--qqqq", "there is no flag --qqqq; see mdw --help."),
    ("--config=other.py", "--config is given twice"),
    ("prepare", "one command at a time: 'prepare' follows 'run'."),
])
def test_mistakes_on_the_command_line(file, calls, capsys, override, sentence):
    assert sentence in _mistake(capsys, "run", f"--config={file()}", override)
    assert not calls


@pytest.mark.parametrize("argv, sentence", [
    ([], "no command given; begin with mdw run quickstart, or, for your own data, mdw run --data "),
    (["distil", "--config=c.py"], "there is no command 'distil'; did you mean distill?"),
    (["qqqq", "--config=c.py"], "there is no command 'qqqq'; choose one of run, inspect, prepare"),
    (["run"], "no config given; write mdw run CONFIG, where CONFIG is a run folder, a name that mdw config --list shows, "
              "or a config file. For your own data: mdw run --data PATH."),
    (["evaluate"], "no config given; write mdw evaluate CONFIG, where CONFIG is a run folder, a name that mdw config "
                   "--list shows, or a config file."),
    (["run", "quickstrat"], "there is no run folder, config file or config 'quickstrat'; did you mean quickstart?"),
    (["run", "quickstart", "flickr8k"], "mdw run takes one config, not both 'quickstart' and 'flickr8k'; keep one."),
    (["run", "quickstart", "--config=coco"], "mdw run takes one config, not both 'quickstart' and 'coco'; keep one."),
    (["run", "--data"], "--data needs a value; see mdw run --help."),
    (["run", "--data", "no/where"], "there is no '"),
    (["run", "quickstart", "--train"], "mdw run has no flag --train; see mdw run --help."),
    (["run", "--config"], "--config names no file; write --config=FILE."),
    (["run", "--config=none.py"], "there is no config file none.py; check the path."),
])
def test_mistakes_without_a_file(calls, capsys, argv, sentence):
    assert _mistake(capsys, *argv).startswith(sentence)


@pytest.mark.parametrize("text, sentence", [
    ("def get_config(:", "is not Python: invalid syntax"),
    ("\x00", "is not Python: source code string cannot contain null bytes"),
    ("get_config = 3", "has no function get_config(); define one"),
    ("def get_config():\n    return {}", "returns dict, not a ConfigDict; return a changed mdw_jax.config.base()."),
    ("import nothing_by_this_name", "fails at line 1: ModuleNotFoundError: No module named 'nothing_by_this_name'; fix "
     "the file."),
    ("\ndef get_config():\n    return 1 / 0", "fails at line 3: ZeroDivisionError: division by zero; fix"
     " the file."),
    ("raise SystemExit(0)", "fails at line 1: SystemExit: 0; fix the file."),
    ("from ml_collections import ConfigDict as get_config", "does not set config."),
    (CONFIG.format("c.distill.pairs = 'many'"), "fails at line 5: TypeError: "),
    (CONFIG.format("c.distil.pairs = 3"), "fails at line 5: AttributeError: "),
    (CONFIG.format("c.distill.pair = 3"), "there is no config.distill.pair; did you mean config.distill.pairs?"),
    (CONFIG.format("c.distill.pairs = None"), "config.distill.pairs must be a whole number, not None."),
])
def test_mistakes_in_the_file(tmp_path, calls, capsys, text, sentence):
    path = tmp_path / "c.py"
    path.write_text(text)
    message = _mistake(capsys, "run", f"--config={path}")
    assert str(path) in message and sentence in message


def test_a_sweep_gets_typed_axes_in_order(file, calls):
    words = ["--grid", "noise.rate=0, 0.4", "--grid=preset=random,mdw", "--grid", "model.widths=32,64;(64,)",
             "--grid", "experts.dual=false", "--seeds", "3", "--shard=1/2", "--dry-run", "--config.run.seed=5"]
    assert main(["sweep", "--config", file("c.distill.batch = 5000"), *words]) == 0  # impossible, but not a cell
    (_, config, axes, part, dry), = calls
    assert list(axes.items()) == [("noise.rate", (0.0, 0.4)), ("preset", ("random", "mdw")),
                                  ("model.widths", ((32, 64), (64,))), ("experts.dual", (False,))]
    assert type(axes["noise.rate"][0]) is float
    assert (config.distill.sets, config.run.seed, part, dry) == (3, 5, (1, 2), True)
    assert main(["sweep", "--config", file()]) == 0
    assert calls[1][2:] == ({}, (0, 1), False) and calls[1][1].distill.sets == base().distill.sets


@pytest.mark.parametrize("words, sentence", [
    (["--grid", "noise.rat=0"], "there is no config.noise.rat; did you mean config.noise.rate?"),
    (["--grid", "noise=0"], "config.noise is a section; set one of its keys"),
    (["--grid", "noise.rate=0,x"], "config.noise.rate must be a number, not 'x'."),
    (["--grid", "noise.rate=0,,1"], "config.noise.rate must be a number, not ''."),
    (["--grid", "preset=random,mwd"], "there is no preset 'mwd'; did you mean mdw?"),
    (["--grid", "preset=random,qqqq"], "there is no preset 'qqqq'; choose some of random, "),
    (["--grid", "noise.rate=0", "--grid", "noise.rate=0.2"], "--grid noise.rate is given twice; give all its values"),
    (["--grid", "noise.rate=0,0.0"], "--grid noise.rate has 0.0 twice"),
    (["--grid", "noise.rate="], "--grid noise.rate= has no values"),
    (["--grid", "noise.rate"], "--grid noise.rate has no values"),
    (["--grid"], "--grid needs a value"),
    (["--grid", "run.dir=a,b"], "all cells share one directory"),
    (["--grid", "run.presets=mdw;random"], "write --grid preset="),
    (["--seeds", "two"], "config.distill.sets must be a whole number, not 'two'."),
    (["--seeds=1", "--seeds=2"], "--seeds is given twice; keep one."),
    (["--shard", "2/2"], "--shard must be I/N"),
    (["--shard", "half"], "--shard must be I/N"),
    (["--dry-run=yes"], "--dry-run takes no value"),
    (["--rows=preset"], "mdw sweep has no flag --rows; see mdw sweep --help."),
    (["table.csv"], "mdw sweep takes one config, not both 'table.csv' and '"),
])
def test_mistakes_of_a_sweep(file, calls, capsys, words, sentence):
    assert sentence in _mistake(capsys, "sweep", f"--config={file()}", *words)
    assert not calls


def test_a_table_needs_no_config(calls):
    assert main(["table", "a.csv", "--ci", "b.csv"]) == 0
    words = ["--rows", "preset,distill.pairs", "--columns=", "--metric=IR@1", "--out", "t.md", "--plot=t.png"]
    assert main(["table", "a.csv", *words]) == 0
    assert calls == [("table_command", ["a.csv", "b.csv"], ["preset"], None, "r_mean", True, None, None),
                     ("table_command", ["a.csv"], ["preset", "distill.pairs"], [], "IR@1", False, "t.md", "t.png")]


@pytest.mark.parametrize("words, sentence", [
    ([], "no CSV given; write mdw table FILE.csv."),
    (["a.csv", "--config=c.py"], "mdw table reads no config; leave --config out."),
    (["a.csv", "--rows"], "--rows needs a value"),
    (["a.csv", "--dry-run"], "mdw table has no flag --dry-run; see mdw table --help."),
    (["a.csv", "--row=preset"], "there is no flag --row; did you mean --rows?"),
])
def test_mistakes_of_a_table(calls, capsys, words, sentence):
    assert sentence in _mistake(capsys, "table", *words)
    assert not calls


def _stub(monkeypatch, error):
    def stage(config):
        raise error
    monkeypatch.setitem(sys.modules, "mdw_jax.analysis.cost.announced_run", types.SimpleNamespace(run_command=stage))


def test_a_user_error_in_a_stage(file, monkeypatch, capsys):
    _stub(monkeypatch, UserError("the folder is full; empty it."))
    assert _mistake(capsys, "run", f"--config={file()}") == "the folder is full; empty it."
    assert main(["run", f"--config={file()}", "--debug"]) == 2
    err = capsys.readouterr().err
    assert "Traceback" in err and err.endswith("\nmdw: the folder is full; empty it.\n")


def test_an_interruption(file, monkeypatch, capsys):
    _stub(monkeypatch, KeyboardInterrupt())
    assert main(["run", f"--config={file()}"]) == 130
    assert capsys.readouterr().err == "mdw: interrupted; the same command goes on where it stopped.\n"


def test_a_bug_keeps_its_traceback(file, monkeypatch):
    _stub(monkeypatch, IndexError("bug"))
    with pytest.raises(IndexError):
        main(["run", f"--config={file()}"])


@pytest.mark.parametrize("command", COMMANDS)
def test_help_of_a_command(capsys, command):
    assert main([command, "--help"]) == 0
    text = capsys.readouterr().out
    assert main(["help", command]) == main([command, "--config=none.py", "--no-such-flag", "-h"]) == 0
    assert capsys.readouterr().out == 2 * text
    entry = COMMANDS[command]
    assert text.startswith(f"usage: mdw {command}") and entry.example in text and max(map(len, text.splitlines())) <= 120
    assert all(f"  {option.flag}" in text for option in entry.options)
    assert entry.operands is None or f"  {entry.operands.metavar} " in text
    for key, default in flat(base()).items():
        listed = re.search(rf"^    {re.escape(key)}=(\S*)", text, re.MULTILINE)
        assert (listed is not None) == (key.split(".")[0] in entry.sections)
        assert command != "config" or parse_value(key, listed[1]) == default  # the defaults are written as overrides


def test_help_lists_the_choices_of_a_key(monkeypatch, capsys):
    entry = CHOICES["distill.loss"]
    monkeypatch.setitem(CHOICES, "distill.loss", entry._replace(names=(*entry.names, "mystery")))
    assert main(["config", "--help"]) == 0
    text = " ".join(capsys.readouterr().out.split())
    for key, choice in CHOICES.items():
        last = ["module:function"] if choice.plugin else []
        *names, last = [*filter(None, choice.names), *last]
        assert re.search(rf" {re.escape(key)}=[^=]*; (one|some) of {', '.join(names)} or {last} ", text + " "), key


@pytest.mark.parametrize("number, words", [
    (errno.ENOSPC, "cannot write 'a.npz' ("), (errno.EROFS, "cannot write 'a.npz' ("),
    (errno.EACCES, "cannot open or write 'a.npz' (")])
def test_an_error_of_the_machine_is_a_sentence(file, monkeypatch, capsys, number, words):
    _stub(monkeypatch, OSError(number, os.strerror(number), "a.npz"))
    assert _mistake(capsys, "run", f"--config={file()}").startswith(f"{words}{os.strerror(number)}); make room or change")


@pytest.mark.parametrize("command", COMMANDS)
def test_examples(command, monkeypatch):
    monkeypatch.chdir(ROOT)
    *_, example = COMMANDS[command].example.split('"$(')  # of completion: what is inside eval "$(...)"
    program, *words = shlex.split(example.removesuffix(')"'))
    call = parse(words)
    assert program == "mdw" and call.command is COMMANDS[command]
    if call.command.sections:
        if call.config and not call.config.startswith("runs/"):  # those are folders that a reader has, and a test has not
            load_config(call.config, call.overrides)


def test_a_command_is_one_entry(monkeypatch, capsys):
    """Its help, its flags and what its function gets follow from the entry."""
    calls = []
    monkeypatch.setitem(sys.modules, "mdw_jax.of_a_test", types.SimpleNamespace(count=lambda *args: calls.append(args)))
    entry = Command("count files", "of_a_test:count", "mdw count a b", operands=Operands("FILE", "a file", "none given."),
                    options=(Option("--from", "where to start", "N", "0", int), Option("--all", "all of them")))
    monkeypatch.setitem(COMMANDS, "count", entry)
    assert main(["count", "--from=3", "a", "--all", "b"]) == main(["count", "c"]) == 0
    assert calls == [(["a", "b"], 3, True), (["c"], 0, False)]
    assert main(["count", "--help"]) == 0
    assert capsys.readouterr().out.startswith("usage: mdw count FILE [FILE ...] [--from N] [--all]")
    assert _mistake(capsys, "count") == "none given."


def test_flags_may_stand_before_the_command(file, calls):
    assert main(["--debug", f"--config={file()}", "--config.run.seed=4", "run"]) == 0
    assert main(["--grid", "noise.rate=0", f"--config={file()}", "sweep"]) == 0
    assert calls[0][1].run.seed == 4 and calls[1][2] == {"noise.rate": (0.0,)}


@pytest.mark.parametrize("argv, sentence", [
    (["help", "distil"], "there is no command 'distil'; did you mean distill?"),
    (["help", "run", "sweep"], "mdw help takes one command; leave 'sweep' out."),
    (["nope", "--help"], f"there is no command 'nope'; choose one of {', '.join(COMMANDS)}."),
    (["--help", "distil"], "there is no command 'distil'; did you mean distill?"),
    (["completion"], "mdw completion takes one shell, not 0; write mdw completion bash."),
    (["completion", "csh"], "SHELL of mdw completion must be one of bash, zsh, tcsh, not 'csh'."),
    (["diff", "a", "b", "c"], "mdw diff compares two runs, not 3; write mdw diff A B."),
    (["report"], "no run directory given; write mdw report RUN."),
    (["--qqqq"], "there is no flag --qqqq; see mdw --help."),
    (["run", "--debug=yes"], "--debug takes no value; see mdw run --help."),
])
def test_mistakes_without_a_config(capsys, argv, sentence):
    assert _mistake(capsys, *argv) == sentence


@pytest.mark.parametrize("shell", SHELLS)
def test_completion(capsys, tmp_path, shell):
    pytest.importorskip("shtab")
    assert main(["completion", shell]) == 0
    script = tmp_path / f"mdw.{shell}"
    script.write_text(capsys.readouterr().out)
    assert all(name in script.read_text() for name in COMMANDS)
    if shutil.which(shell):
        subprocess.run([shell, "-n", script], check=True)


@pytest.mark.parametrize("words, expected", [
    (["ru"], ["run", "runs"]), (["help", "dis"], ["distill"]), (["completion", ""], list(SHELLS)),
    (["sweep", "--gr"], ["--grid"]), (["run", "--config.distill.pa"], ["--config.distill.pairs"]),
])
def test_bash_completes(capsys, tmp_path, words, expected):
    pytest.importorskip("shtab")
    assert main(["completion", "bash"]) == 0
    script = tmp_path / "mdw.bash"
    script.write_text(f"{capsys.readouterr().out}\nCOMP_WORDS=({shlex.join(['mdw', *words])})\nCOMP_CWORD={len(words)}\n"
                      '_shtab_mdw\nprintf "%s\\n" "${COMPREPLY[@]}"\n')
    done = subprocess.run(["bash", script], capture_output=True, text=True, check=True)
    assert done.stdout.split() == expected


def test_completion_without_its_package(monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "shtab", None)
    assert _mistake(capsys, "completion", "zsh") == ("mdw completion needs the package shtab; install it by pip install "
                                                     "'mdw-jax[completion]'.")


@pytest.mark.parametrize("words, sentence", [
    (["run", "--config.run.presets=mwd"], "there is no preset 'mwd'"),
    (["export", "--config.run.presets=mdw,no_such_module:preset"], "no_such_module:preset"),
    (["plan", "--config.run.preset_overrides=mdw:distill.steps=-1"], "distill.steps must be at least 0"),
    (["certify", "--config.experts.recipe=dctl"], "there is no expert recipe 'dctl'"),
    (["prepare", "--config.model.tower=convent"], "model.tower"),
])
def test_choices_are_checked_first(file, calls, capsys, words, sentence):
    """Before any data are opened, any directory is made and the module of the command is imported."""
    command, *overrides = words
    assert sentence in _mistake(capsys, command, f"--config={file()}", "--config.run.dir=new/run", *overrides)
    assert not calls and not os.path.exists("new")


@pytest.mark.parametrize("words", [["run"], ["sweep"], ["sweep", "--shard=0/2"], ["bench"]])
def test_a_refused_command_leaves_no_directory(file, monkeypatch, capsys, words):
    """Also where a function refuses what the command line cannot know."""
    directory = Path("new/run")
    command, *options = words

    def refuse(config, *_):
        directory.mkdir(parents=True, exist_ok=True)
        (directory / "cache.lock").touch()
        raise UserError("there are no images; check data.images.")

    module, function = COMMANDS[command].function.split(":")
    monkeypatch.setitem(sys.modules, f"mdw_jax.{module}", types.SimpleNamespace(**{function: refuse}))
    argv = [command, f"--config={file()}", f"--config.run.dir={directory}", *options]
    _mistake(capsys, *argv)
    assert not Path("new").exists()
    Path("new").mkdir()
    _mistake(capsys, *argv)
    assert list(Path("new").iterdir()) == []
    directory.mkdir()
    _mistake(capsys, *argv)
    assert directory.is_dir()  # not made by the command


@pytest.mark.parametrize(("seconds", "stays"), [(0.0, False), (1e9, True)])
def test_features_of_a_refused_command_stay_if_they_took_long(file, monkeypatch, capsys, seconds, stays):
    def refuse(config):
        Path(config.run.dir, "cache").mkdir()
        Path(config.run.dir, "cache", "text.safetensors").touch()
        raise UserError("there are only 3 training images; lower distill.pairs.")

    monkeypatch.setattr("mdw_jax.cli._KEPT_AFTER", 60.0 - seconds)
    monkeypatch.setitem(sys.modules, "mdw_jax.analysis.cost.announced_run", types.SimpleNamespace(run_command=refuse))
    _mistake(capsys, "run", f"--config={file()}", "--config.run.dir=run")
    assert Path("run").exists() is stays


def test_what_a_refused_command_wrote_stays(file, monkeypatch, capsys):
    def refuse(config):
        Path(config.run.dir, "features.npz").touch()
        raise UserError("there is no text encoder; set text.path.")

    monkeypatch.setitem(sys.modules, "mdw_jax.analysis.cost.announced_run", types.SimpleNamespace(run_command=refuse))
    _mistake(capsys, "run", f"--config={file()}", "--config.run.dir=run")
    assert Path("run/features.npz").exists()


def test_logging(file, monkeypatch, capsys):
    def stage(config):
        logging.getLogger("mdw_jax.pipeline.run").info("two networks")
        logging.getLogger("mdw_jax.pipeline.run").warning("set %d diverged", 3)
        logging.getLogger("elsewhere").info("not of this package")

    monkeypatch.setitem(sys.modules, "mdw_jax.analysis.cost.announced_run", types.SimpleNamespace(run_command=stage))
    assert main(["run", f"--config={file()}"]) == 0
    assert capsys.readouterr().err == "mdw: two networks\nmdw: set 3 diverged\n"
    assert main(["run", "--quiet", f"--config={file()}"]) == 0
    assert capsys.readouterr().err == "mdw: set 3 diverged\n"
    assert not logging.getLogger("mdw_jax").handlers


@pytest.mark.parametrize("words, chosen, level", [([], None, "2"), (["--debug"], None, None), ([], "0", "0")])
def test_of_xlas_own_lines_errors_are_shown(words, chosen, level, monkeypatch):
    monkeypatch.setenv("TF_CPP_MIN_LOG_LEVEL", "")  # so that it is as before after the test
    monkeypatch.delenv("TF_CPP_MIN_LOG_LEVEL")
    if chosen:
        monkeypatch.setenv("TF_CPP_MIN_LOG_LEVEL", chosen)
    assert main(["--version", *words]) == 0
    assert os.environ.get("TF_CPP_MIN_LOG_LEVEL") == level


def test_help_and_version(capsys):
    assert main(["--help"]) == 0
    out = capsys.readouterr().out
    assert out.startswith("usage: mdw COMMAND") and all(f"  {name} " in out for name in COMMANDS)
    assert main(["run", "--help"]) == 0
    out = capsys.readouterr().out
    assert out.startswith("usage: mdw run") and "lr_scales=0.1,0.3" in out and "train the experts" not in out
    for command, word in (("sweep", "--grid KEY=VALUE"), ("table", "usage: mdw table FILE.csv")):
        assert main([command, "--help"]) == 0 and word in capsys.readouterr().out
    assert main(["--version"]) == 0
    assert capsys.readouterr().out.startswith("mdw ")


def test_the_compilation_cache(file, calls, monkeypatch, tmp_path):
    old = jax.config.jax_compilation_cache_dir
    run = ["run", f"--config={file()}"]
    try:
        assert main(run) == 0 and jax.config.jax_compilation_cache_dir == old  # the user's own place
        monkeypatch.delenv("JAX_COMPILATION_CACHE_DIR")
        (tmp_path / "file").touch()
        monkeypatch.setenv("HOME", str(tmp_path / "file"))  # a home that cannot be written, even by root
        assert main(run) == 0 and jax.config.jax_compilation_cache_dir == old
        monkeypatch.setenv("HOME", str(tmp_path))
        assert main(run) == 0
        assert jax.config.jax_compilation_cache_dir == str(tmp_path / ".cache" / "mdw-jax" / "xla")
    finally:
        jax.config.update("jax_compilation_cache_dir", old)


def _python(*words):
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    return subprocess.run([sys.executable, *words], capture_output=True, text=True, env=environment)


def test_as_a_module(file):
    done = _python("-m", "mdw_jax", "config", "--config", file(), "--config.run.seed=3")
    assert done.returncode == 0 and done.stdout.startswith("certify:\n"), done.stderr


SCORES = "preset,set,student,select_on,noise.rate,r_mean\nmdw,0,0,val,0.4,30\nmdw,0,1,val,0.4,31\n"


@pytest.mark.parametrize("words", [
    ["--help"], ["--version"], ["help"], ["run", "--help"], ["config"], ["config", "--config=c.py", "--config.run.seed=1"],
    ["runs", "."], ["diff", "a", "b"], ["table", "t.csv"], ["table", "t.csv", "--out=t.md"], ["run"],
], ids=" ".join)
def test_commands_that_start_fast_import_little(words):
    Path("t.csv").write_text(SCORES)
    Path("c.py").write_text(CONFIG.format("pass"))
    for name in ("a", "b"):
        Path(name).mkdir()
        Path(name, "config.json").write_text(json.dumps(resolve(base()).to_dict()))
        Path(name, "environment.json").write_text("{}")
        Path(name, ".lock").write_text("process 1 on host\n")
    code = ("import sys, mdw_jax.cli as cli; status = cli.main(sys.argv[1:]); "
            "heavy = {'jax', 'matplotlib', 'scipy', 'sklearn'} & {*sys.modules}; sys.exit(str(heavy) if heavy else status)")
    done = _python("-c", code, *words)
    assert done.returncode == (2 if words == ["run"] else 0), done.stderr
