"""The command line: a command, a config file, overrides. The only place that reads arguments and shows tracebacks."""

import contextlib
import errno
import importlib
import importlib.metadata
import os
import re
import sys
import traceback
from pathlib import Path
from typing import Any

import yaml
from ml_collections import ConfigDict

from mdw_jax.config import base, resolve
from mdw_jax.config.loading import _meant, _override, load_config
from mdw_jax.config.presets import PRESETS, preset_config
from mdw_jax.config.sections import flat
from mdw_jax.errors import UserError
from mdw_jax.io.files import run_folder_held
from mdw_jax.runtime import processes
from mdw_jax.runtime.preemption import Interrupted, exit_status, handle_signals

COMMANDS = {
    "run": "all stages in order: prepare, experts, distill, evaluate",
    "prepare": "load the data, draw the noise, embed the captions",
    "experts": "train the experts and store their trajectories",
    "distill": "learn the distilled sets from the trajectories",
    "evaluate": "train students on every set and write the table",
    "sweep": "run a grid of configs and presets in one folder, into one CSV",
    "table": "turn CSVs of sweeps into a table in Markdown (needs no config)",
    "report": "make one HTML page of one or several finished run folders (needs no config, data or accelerator)",
    "runs": "list runs with their state and headline number (needs no config)",
    "diff": "where two runs differ, in their configs and in their scores (needs no config)",
    "fairness": "who is in the data and in the sets, and who is found: shares and recalls by group (see config.fairness)",
    "certify": "what noise can cost the experts at most, and what it did: bounds beside measurements (see config.certify)",
    "export": "write the sets for others, with a dataset card: image folder, Parquet, WebDataset (see config.export)",
    "plan": "say what a run would cost, from its config alone: memory, operations, time (see config.plan)",
    "bench": "measure how fast a config's computations are here, in ratios to plainer ways; needs no data",
    "weights": "fetch a model of the Hugging Face Hub, or look at a local one, and say what is in it",
    "config": "print the config in full, as the other commands would see it; without a file, the defaults",
}
OWN_FLAGS = {  # flags of one command alone, and whether a value follows
    "sweep": {"--grid": True, "--seeds": True, "--shard": True, "--dry-run": False},
    "table": {"--rows": True, "--columns": True, "--metric": True, "--ci": False, "--out": True,
              "--plot": True},
    "report": {"--out": True},
}
OF_A_CONFIG = {  # commands that are a function of the config, beside the stages of `run`
    "certify": "analysis.certificate.command", "export": "export.command", "fairness": "analysis.fairness.command",
    "plan": "analysis.cost.plan", "bench": "analysis.benchmark.command"}
BESIDE_A_RUN = ("plan", "bench")  # commands that leave what a run does in the folder alone
WITHOUT_CONFIG = ("table", "weights", "report", "runs", "diff")
_REFUSALS = {errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES, errno.EPERM, errno.EIO, errno.EMFILE}
OPTIONS = ("--config", "--debug", "--help", "--version")
HELP = """\
usage: mdw {command} --config=FILE [--config.SECTION.KEY=VALUE ...] [--debug]

{commands}

  --config=FILE               a Python file with get_config(), which changes what it likes in mdw_jax.config.base()
  --config.SECTION.KEY=VALUE  set one key over the file, as often as needed: --config.distill.pairs=200
                              switches: --config.experts.dual=false
                              lists: --config.evaluate.lr_scales=0.1,0.3 or --config.run.presets=random,mdw
                              (in brackets too, quoted from the shell: "--config.evaluate.lr_scales=(0.1,0.3)")
  --debug                     show the traceback of an error
  --help, --version

A command does only what is not done yet: after an interruption, give it again. `mdw config` alone lists all keys with
their defaults; `mdw COMMAND --help` says what sweep, table, report, runs, diff and weights take.
"""
SWEEP_HELP = """
  --grid KEY=VALUE,VALUE      an axis of the grid, the last one given varying fastest; KEY is any SECTION.KEY of the
                              config, or preset (run.presets, if not given): --grid noise.rate=0,0.2 --grid preset=mdw
                              values that are lists themselves go apart by semicolons, quoted from the shell:
                              --grid "model.widths=32,64;64,128"
  --seeds N                   distilled sets of different seeds for each cell: --config.distill.sets=N
  --shard I/N                  do only every N-th cell, from the I-th (0 to N - 1): N processes share one folder
  --dry-run                       list the cells and which of them are done

Writes sweep.csv in config.run.dir, one row a student. Finished cells are skipped, failed ones tried again.
"""
TABLE_HELP = """\
usage: mdw table FILE.csv [FILE.csv ...] [--rows KEYS] [--columns KEYS] [--metric NAME] [--ci] [--out FILE.md]
                 [--plot FILE.png]

  --rows KEYS                 columns of the CSV that tell the table's rows apart (preset), such as preset,distill.pairs
  --columns KEYS              likewise for its columns (noise.rate); nothing, --columns=, for a single one
  --metric NAME               the number to show (r_mean)
  --ci                  half the 95 % interval of the mean over distilled sets, not the standard deviation
  --out FILE.md               write there and not to the terminal
  --plot FILE.png          draw it too: a line a row over the one column, with intervals
"""


WEIGHTS_HELP = """\
usage: mdw weights SOURCE [SOURCE ...]

  SOURCE                      a .safetensors file, a folder that holds one, or the name of a model on the Hugging Face
                              Hub (with @revision, if not the main one), which is downloaded to the Hub's own cache

Prints what it is, its size, its sha256 and where it lies; model.weights and text.path take the same SOURCE.
Pickled weights are never read.
"""


REPORT_HELP = """\
usage: mdw report RUN [RUN ...] [--out FILE.html]

  RUN                         a folder that mdw run (or mdw evaluate) has finished; several are shown side by side
  --out FILE.html             write there (default: report.html in the first of them)

One page that holds everything, pictures included: it opens from a disk, runs nothing and asks no network.
"""


RUNS_HELP = """\
usage: mdw runs [FOLDER ...]

  FOLDER                      where to look for run folders, at any depth (runs)

Prints of each run whether it is finished, running or where it stopped, its data, noise and presets, r_mean on test of
mdw (or of the best distilled preset: mean +- standard deviation over students), and when it last did something.
"""
DIFF_HELP = """\
usage: mdw diff A B

  A B                         two run folders

Prints the settings that differ and, of each preset, r_mean in both and B - A with its 95 % interval (Welch): over
distilled sets where both runs have several, else over students.
"""


def main(argv: list[str] | None = None) -> int:
    """Runs one command; returns the exit status: 0, 2 after a mistake of the user's (one sentence on stderr), 130 after
    Ctrl-C, 0 after SIGTERM (`interrupt.exit_status`)."""
    argv = sys.argv[1:] if argv is None else list(argv)
    try:
        return _main(argv)
    except UserError as error:
        if "--debug" in argv:
            traceback.print_exc()
        print(f"mdw: {error}", file=sys.stderr)
        return 2
    except (OSError, MemoryError, RuntimeError, ValueError) as error:
        sentence = _of_the_machine(error)
        if sentence is None:
            raise
        if "--debug" in argv:
            traceback.print_exc()
        print(f"mdw: {sentence}", file=sys.stderr)
        return 2
    except Interrupted as stop:
        print("mdw: stopped; the same command goes on where it stopped.", file=sys.stderr)
        return exit_status(stop.number)
    except KeyboardInterrupt:
        print("mdw: interrupted; the same command goes on where it stopped.", file=sys.stderr)
        return 130


def _of_the_machine(error: Exception) -> str | None:
    """The sentence for what the machine has run out of, or does not allow; None for all else, which is a bug."""
    text = str(error)
    if isinstance(error, MemoryError) or ("RESOURCE_EXHAUSTED" in text and "memory" in text):
        return (f"there is not enough memory{f' ({text.splitlines()[0][:120]})' if text else ''}; lower what is too "
                "large (data.size, data.limit, experts.batch, distill.pairs), or set data.stream.")
    full = "No space left on device" in text  # as libraries pass it on
    if not full and not (isinstance(error, OSError) and error.errno in _REFUSALS):
        return None
    name = getattr(error, "filename", None)
    file = f"'{name}'" if name else "a file"
    why = "No space left on device" if full else getattr(error, "strerror", "")
    return (f"the system refuses {file} ({why}); make room, or mend its rights, and give "
            "the same command again.")


def use_compilation_cache():
    """Lets jax keep compiled programs in ~/.cache/mdw-jax/xla, unless the user chose a place or home is read-only."""
    if "JAX_COMPILATION_CACHE_DIR" in os.environ:
        return
    try:
        folder = Path.home() / ".cache" / "mdw-jax" / "xla"
        folder.mkdir(parents=True, exist_ok=True)
    except (OSError, RuntimeError):  # RuntimeError: no home at all
        return
    if os.access(folder, os.W_OK):
        import jax  # here, because `mdw config` and `mdw --help` do without it

        jax.config.update("jax_compilation_cache_dir", str(folder))


def _main(argv: list[str]) -> int:
    if "--version" in argv:
        print(f"mdw {_version()}")
        return 0
    if "--help" in argv or "-h" in argv:
        print(_help(next((word for word in argv if word in COMMANDS), None)), end="")
        return 0
    command, path, overrides, files, own = _parse(argv)
    if command == "table":
        keys = ([key for key in own.get(flag, default).split(",") if key]
                for flag, default in (("--rows", "preset"), ("--columns", "noise.rate")))
        importlib.import_module("mdw_jax.reporting.result_table").table_command(
            files, *keys, own.get("--metric", "r_mean"), "--ci" in own, own.get("--out"),
            own.get("--plot"))
        return 0
    if command == "report":
        importlib.import_module("mdw_jax.reporting.run_report").report_command(files, own.get("--out"))
        return 0
    if command == "runs":
        importlib.import_module("mdw_jax.reporting.run_list").runs_command(files)
        return 0
    if command == "diff":
        importlib.import_module("mdw_jax.reporting.run_list").diff_command(*files)
        return 0
    if command == "weights":
        describe_weights = importlib.import_module("mdw_jax.models.weights.hub").describe_weights
        for source in files:
            print(yaml.safe_dump(describe_weights(source), sort_keys=False))
        return 0
    config = load_config(path, overrides)
    if command == "sweep":
        axes, part = _axes(own.get("--grid", [])), _part(own.get("--shard", "0/1"))
        use_compilation_cache()
        # A grid of one process has its folder to itself; parts, also `--shard 0/1`, let others in.
        with contextlib.nullcontext() if "--dry-run" in own else _at_work(config.run.dir, shared="--shard" in own):
            importlib.import_module("mdw_jax.pipeline.sweep").sweep(config, axes, part, "--dry-run" in own)
        return 0
    resolved = resolve(config)
    if command == "config":
        for name in config.run.presets:  # what the others would find in them
            preset_config(config, name)
        print(_yaml(resolved), end="")
        return 0
    use_compilation_cache()
    if command in OF_A_CONFIG:
        function = getattr(importlib.import_module(f"mdw_jax.{OF_A_CONFIG[command]}"), f"{command}_command")
    else:
        function = importlib.import_module("mdw_jax.pipeline.run").STAGES[command]
    # Unresolved: a preset of the table may name another recipe, which must not be filled in on top of this one's.
    with _at_work(config.run.dir) if command not in BESIDE_A_RUN else contextlib.nullcontext():
        function(config)
    return 0


@contextlib.contextmanager
def _at_work(folder: str, shared: bool = False):
    """Around what a command does in its run folder: with the other processes of the run, and without any of another;
    signals stop it where it can go on from."""
    processes.join()
    from mdw_jax.runtime.processes import is_main  # here, because `mdw config` and `mdw --help` do without jax

    with contextlib.ExitStack() as stack:
        if is_main():
            stack.enter_context(run_folder_held(folder, shared))
        else:  # what it would print the first one says; mistakes go to stderr
            stack.enter_context(contextlib.redirect_stdout(stack.enter_context(open(os.devnull, "w"))))
        stack.enter_context(handle_signals())
        yield


def _version() -> str:
    try:
        return importlib.metadata.version("mdw-jax")
    except importlib.metadata.PackageNotFoundError:
        return "(not installed)"


def _help(command: str | None) -> str:
    if command in WITHOUT_CONFIG:
        return {"table": TABLE_HELP, "weights": WEIGHTS_HELP, "report": REPORT_HELP,
                "runs": RUNS_HELP, "diff": DIFF_HELP}[command]
    names = [command] if command else COMMANDS
    lines = (f"  {name:<{max(map(len, names))}}  {COMMANDS[name]}" for name in names)
    return HELP.format(command=command or "COMMAND", commands="\n".join(lines)) + (
        SWEEP_HELP if command == "sweep" else "")


def _parse(argv: list[str]) -> tuple[str, str | None, list[tuple[str, str | None]], list[str], dict]:
    """Command, config file, overrides in order, the words after the command, the values of the command's own flags."""
    words = list(argv)
    own: dict[str, Any] = {}
    commands, path, overrides = [], None, []
    takes_value = {flag: takes for flags_of in OWN_FLAGS.values() for flag, takes in flags_of.items()}
    while words:
        word = words.pop(0)
        name, equals, value = word.partition("=")
        value = value if equals else None
        # A value may follow as a word of its own; negative numbers are values, other dashes begin a flag.
        if (value is None and words and not re.match(r"-(?![\d.])", words[0])
                and (name == "--config" or name.startswith("--config.") or takes_value.get(name))):
            value = words.pop(0)
        if not word.startswith("-"):
            commands.append(word)
        elif word == "--debug":
            pass
        elif name.startswith("--noconfig.") and not equals:
            overrides.append((name.removeprefix("--noconfig."), "false"))
        elif name == "--config" or name.startswith("--config."):
            if name != "--config":
                overrides.append((name.removeprefix("--config."), value))
            elif not value:
                raise UserError("--config names no file; write --config=FILE.")
            elif path is not None:
                raise UserError(f"--config is given twice ({path} and {value}); keep one.")
            else:
                path = value
        elif name in takes_value:
            if takes_value[name] == (value is None):
                raise UserError(f"{name} {'needs a value' if value is None else 'takes no value'}; see mdw --help.")
            if name == "--grid":
                own.setdefault(name, []).append(value)
            elif name in own:
                raise UserError(f"{name} is given twice; keep one.")
            else:
                own[name] = value
        else:
            flags_known = [*OPTIONS, *takes_value, *(f"--config.{key}" for key in flat(base()))]
            raise UserError(f"there is no flag {name}{_meant(name, flags_known) or '; see mdw --help.'}")
    if not commands:
        raise UserError(f"no command given; choose one of {', '.join(COMMANDS)} (see mdw --help).")
    if commands[0] not in COMMANDS:
        choose = f"; choose one of {', '.join(COMMANDS)}."
        raise UserError(f"there is no command '{commands[0]}'{_meant(commands[0], COMMANDS) or choose}")
    command, *files = commands
    for name in own:
        if name not in OWN_FLAGS.get(command, {}):
            raise UserError(f"mdw {command} has no flag {name}; see mdw {command} --help.")
    if command in WITHOUT_CONFIG:
        if path or overrides:
            raise UserError(f"mdw {command} reads no config; leave --config out.")
        if command == "runs":
            return command, None, [], files or ["runs"], own
        if command == "diff" and len(files) != 2:
            raise UserError(f"mdw diff compares two runs, not {len(files)}; write mdw diff A B.")
        if not files:
            raise UserError({"table": "no CSV given; write mdw table FILE.csv.",
                             "weights": "no model given; write mdw weights FOLDER, FILE.safetensors or HUB/NAME.",
                             "report": "no run folder given; write mdw report RUN."}[command])
        return command, None, [], files, own
    if files:
        raise UserError(f"one command at a time: '{files[0]}' follows '{command}'.")
    if path is None and command != "config":
        raise UserError(f"no config file given; write mdw {command} --config=FILE.")
    if "--seeds" in own:
        overrides.append(("distill.sets", own["--seeds"]))
    return command, path, overrides, [], own


def _axes(texts: list[str]) -> dict[str, tuple]:
    """{dotted key, or "preset": values} of every --grid, in order. Raises UserError as for an override."""
    known, axes = flat(base()), {}
    for text in texts:
        key, _, values = text.partition("=")
        if not values.strip():
            raise UserError(f"--grid {text} has no values; write --grid KEY=VALUE,VALUE.")
        if key in axes:
            raise UserError(f"--grid {key} is given twice; give all its values in one.")
        if key in ("run.dir", "run.presets"):
            raise UserError(f"--grid {key}: all cells share one folder; write --config.run.dir=FOLDER."
                            if key == "run.dir" else f"--grid {key}: write --grid preset={values}.")
        items = [item.strip() for item in values.split(";" if isinstance(known.get(key), tuple) else ",")]
        axes[key] = tuple(_preset(item) if key == "preset" else _value(known, key, item) for item in items)
        twice = [item for item, value in zip(items, axes[key], strict=True) if axes[key].count(value) > 1]
        if twice:
            raise UserError(f"--grid {key} has {twice[-1]} twice; give each value once.")
    return axes


def _preset(name: str) -> str:
    if name not in PRESETS:
        choose = f"; choose some of {', '.join(PRESETS)}."
        raise UserError(f"--grid preset: there is no preset '{name}'{_meant(name, PRESETS) or choose}")
    return name


def _value(known: dict, key: str, text: str):
    """The value of one key as an override would set it."""
    config = base()
    _override(config, known, key, text)
    return flat(config)[key]


def _part(text: str) -> tuple[int, int]:
    """'1/3' -> (1, 3)."""
    found = re.fullmatch(r"(\d+)/(\d+)", text)
    part = (int(found[1]), int(found[2])) if found else (0, 0)
    if part[0] >= part[1]:
        raise UserError(f"--shard must be I/N with I from 0 to N - 1, such as 0/2 and 1/2, not '{text}'.")
    return part


def _yaml(config: ConfigDict) -> str:
    """One key a line, sections and keys in alphabetical order; lists stay on their line."""

    class Dumper(yaml.SafeDumper):
        """Ours, since representers are registered on the class."""

    def on_one_line(dumper, items):
        return dumper.represent_sequence("tag:yaml.org,2002:seq", items, flow_style=True)

    Dumper.add_representer(tuple, on_one_line)
    Dumper.add_representer(list, on_one_line)
    return yaml.dump(config.to_dict(), Dumper=Dumper, default_flow_style=False)
