"""The table of commands. To add one, add an entry here: its help, its function, its flags, the config it reads."""

import importlib
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from mdw_jax.config.grid import parse_axes, parse_shard
from mdw_jax.errors import UserError

SHELLS = ("bash", "zsh", "tcsh")
# The sections of the config, by the stage that reads them first. `watch` matters wherever something is trained.
_PREPARE = ("run", "data", "noise", "text", "model")
_EXPERTS = (*_PREPARE, "filter", "experts", "watch")
_DISTILL = (*_EXPERTS, "distill")
_RUN = (*_DISTILL, "evaluate")


class Operands(NamedTuple):
    """The words after a command that are no flags: files, directories, names.

    They reach the function as one list or, where their number is fixed or at most one, as an argument each.
    """

    metavar: str
    help: str
    mistake: str  # what to say when there are too few or too many: {count} of them, {last} the last one
    least: int = 1
    most: int | None = None
    default: tuple[str, ...] = ()
    choices: tuple[str, ...] | None = None
    paths: bool = True  # for shell completion


class Option(NamedTuple):
    """A flag of one command."""

    flag: str
    help: str
    metavar: str | None = None  # how its value is called; None: a switch
    default: Any = None
    parse: Callable[[Any], Any] = lambda value: value  # from the text (the texts, if repeated) to the argument
    repeated: bool = False
    many: bool = False  # whether several values may follow it
    override: str | None = None  # the config key that it sets; the function gets no argument then
    config: str | None = None  # the config where it is given and none is
    path: bool = False  # for shell completion


class Command(NamedTuple):
    """What the command line knows of one command.

    The function gets the config, if the command reads one, then the operands, then the values of the options, in order.
    """

    help: str
    function: str  # module inside mdw_jax, and name in it
    example: str
    sections: tuple[str, ...] = ()  # of the config that it reads; none: it takes no --config
    needs_file: bool = True  # whether a config has to be given
    trains: bool = True  # whether it trains what is missing; False: only with --train
    checked: bool = True  # whether the config and all its presets have to resolve before the command starts
    compiles: bool = True  # whether it runs jax programs, so that their cache is worth setting up
    in_run_directory: bool = True  # whether it works in run.dir, and keeps other processes out of it
    operands: Operands | None = None
    options: tuple[Option, ...] = ()
    details: str = ""

    @property
    def takes_data(self) -> bool:
        """Whether it has --data beside a config."""
        return bool(self.sections) and any(option.flag == "--data" for option in self.options)

    def load(self) -> Callable[..., None]:
        """The function, whose module is imported only now: most of them import jax."""
        module, _, name = self.function.partition(":")
        return getattr(importlib.import_module(f"mdw_jax.{module}"), name)


def _names(text: str) -> Sequence[str]:
    return [name for name in text.split(",") if name]


def _names_or_none(text: str | None) -> Sequence[str] | None:
    return None if text is None else _names(text)


def _probability(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = 0.0
    if not 0 < value <= 1:
        raise UserError(f"--below must be a probability above 0 and up to 1, not '{text}'.")
    return value


def _way(text: str) -> str:
    if text not in ("division", "similarity"):
        raise UserError(f"--by must be division or similarity, not '{text}'.")
    return text


def _count(text: str) -> int:
    if not (text.isascii() and text.isdigit()):
        raise UserError(f"--top must be a whole number, not '{text}'.")
    return int(text)


def _counts(flag: str) -> Callable[[str], Sequence[int]]:
    def parse(text: str) -> Sequence[int]:
        counts = [part.replace("_", "") for part in _names(text)] if text else []
        if text and not counts or not all(part.isascii() and part.isdigit() and int(part) for part in counts):
            raise UserError(f"{flag} is one whole number above 0, or several with commas, not '{text}'.")
        return [int(part) for part in counts]

    return parse


_DATA = Option(
    "--data", "your own data, in any form that mdw inspect knows: directories, tables, zips, shards; beside a config, in "
    "place of its data", "PATH", (), many=True, path=True)
_PAIRS = Option("--pairs", "pairs of the distilled set, as --config.distill.pairs=N", "N", override="distill.pairs")


def _port(text: str | None) -> int | None:
    if text is None:
        return None
    if not (text.isascii() and text.isdigit() and int(text) < 65536):
        raise UserError(f"--port is a whole number below 65536, not '{text}'.")
    return int(text)


COMMANDS = {
    "run": Command(
        "all stages in order: prepare, experts, distill, evaluate", "analysis.cost.announced_run:run_command",
        "mdw run --data photos/ captions.csv --pairs 50", _RUN, options=(_DATA, _PAIRS),
        details="Without --data, CONFIG is mdw run quickstart, for example. To go on with a run: mdw run runs/first."),
    "inspect": Command(
        "say what the files of a data set are taken for, what is in them, and the config lines that read them",
        "analysis.inspection:inspect_command", "mdw inspect photos/ captions.csv",
        operands=Operands("PATH", "directories, tables of captions, zip files, tar shards: all of one data set",
                          "no path is given; write mdw inspect PATH."),
        options=(Option("--no-check", "do not decode every image once to find broken ones"),),
        details="Nothing is written."),
    "prepare": Command(
        "load the data, draw the noise, embed the captions", "pipeline.run:prepare_command",
        "mdw prepare quickstart --config.noise.rate=0.2", _PREPARE, options=(_DATA,)),
    "experts": Command(
        "train the experts and store their trajectories", "pipeline.run:experts_command",
        "mdw experts quickstart --config.experts.recipe=infonce", _EXPERTS, options=(_DATA,)),
    "distill": Command(
        "learn the distilled sets from the trajectories", "pipeline.run:distill_command",
        "mdw distill quickstart --config.distill.sets=3", _DISTILL, options=(_DATA, _PAIRS)),
    "evaluate": Command(
        "train students on every set and write the table", "pipeline.run:evaluate_command",
        "mdw evaluate runs/first --config.evaluate.students=10", _RUN, trains=False),
    "sweep": Command(
        "run a grid of configs and presets in one directory, into one CSV", "pipeline.sweep:sweep_command",
        "mdw sweep quickstart --grid noise.rate=0,0.2,0.4 --grid preset=random,mdw --seeds 3", _RUN, checked=False,
        options=(
            Option("--grid", "an axis of the grid; the last axis varies fastest. KEY is a SECTION.KEY of the config, or "
                   "preset (without it: run.presets). Separate values that are lists themselves by semicolons, in "
                   'quotes: --grid "model.widths=32,64;64,128"', "KEY=VALUE,VALUE", (), parse_axes, repeated=True),
            Option("--shard", "do only every N-th cell, from the I-th (0 to N - 1): N processes share one directory",
                   "I/N", "0/1", parse_shard),
            Option("--dry-run", "list the cells and which of them are done"),
            Option("--seeds", "distilled sets of different seeds for each cell, as --config.distill.sets=N", "N",
                   override="distill.sets")),
        details="Writes sweep.csv in config.run.dir, one row per student. Finished cells are skipped, failed ones are "
                "tried again."),
    "table": Command(
        "turn CSVs of sweeps and runs into a table in Markdown", "reporting.result_table:table_command",
        "mdw table runs/grid/sweep.csv --rows preset --columns noise.rate --out table.md",
        operands=Operands("FILE.csv", "a sweep.csv of mdw sweep or a scores.csv of mdw run, or the folder of one",
                          "no CSV given; write mdw table FILE.csv."),
        options=(
            Option("--rows", "columns of the CSV whose values become the rows of the table (preset), such as "
                   "preset,distill.pairs", "KEYS", "preset", _names),
            Option("--columns", "likewise for its columns (noise.rate, if the CSV has it); --columns= for a single column",
                   "KEYS", None, _names_or_none),
            Option("--metric", "the number to show (r_mean)", "NAME", "r_mean"),
            Option("--ci", "show half the 95 % confidence interval of the mean over distilled sets, instead of the "
                   "standard deviation"),
            Option("--out", "write to this file instead of the terminal", "FILE.md", path=True),
            Option("--plot", "also draw it: one line per row over the one column, with intervals", "FILE.png",
                   path=True))),
    "report": Command(
        "make one HTML page of one or several finished runs, without data or accelerator",
        "reporting.run_report:report_command", "mdw report runs/first runs/second --out comparison.html",
        operands=Operands("RUN", "a run directory that mdw run or mdw evaluate finished; several are shown side by side",
                          "no run directory given; write mdw report RUN."),
        options=(
            Option("--out", "write to this file (default: report.html in the first run)", "FILE.html", path=True),
            Option("--serve", "follow one run live, finished or not: a page on this machine alone (127.0.0.1) that loads "
                   "itself again when the run writes; no file is written"),
            Option("--port", "of the page that is served (8787, or a free one)", "PORT", None, _port)),
        details="One page that holds everything, images included: it opens from a disk and loads nothing from the "
                "network."),
    "runs": Command(
        "list runs with their state and headline number", "reporting.run_list:runs_command", "mdw runs runs /shared/runs",
        operands=Operands("DIRECTORY", "where to look for run directories, at any depth (runs)", "", least=0,
                          default=("runs",)),
        details="Prints for each run whether it is finished, running or where it stopped; its data, noise and presets; "
                "r_mean on test of mdw (or of the best distilled preset: mean +- standard deviation over students); and "
                "when it last did something."),
    "diff": Command(
        "show where two runs differ, in their configs and in their scores", "reporting.run_list:diff_command",
        "mdw diff runs/first runs/second",
        operands=Operands("RUN", "two run directories, A and B",
                          "mdw diff compares two runs, not {count}; write mdw diff A B.", 2, 2),
        details="Prints the settings that differ and, for each preset, r_mean in both runs and B - A with its 95 % "
                "confidence interval (Welch): over distilled sets where both runs have several, else over students."),
    "fairness": Command(
        "measure the shares and the recalls of groups in the data and in the distilled sets",
        "analysis.fairness.command:fairness_command",
        "mdw fairness runs/first --config.fairness.neighbors=5", (*_RUN, "fairness"), trains=False),
    "certify": Command(
        "bound what noise can cost the experts, beside what it did cost", "analysis.certificate.command:certify_command",
        "mdw certify runs/first --config.certify.rates=0,0.2,0.4 --train", (*_EXPERTS, "certify"), trains=False),
    "mismatches": Command(
        "list the training pairs of a run that are probably mismatched, and what would fit better",
        "analysis.mismatches.command:mismatches_command", "mdw mismatches runs/first --out suspects.csv",
        operands=Operands("RUN", "a run directory with finished experts (mdw experts, mdw run)",
                          "mdw mismatches takes one run directory, not {count}; write mdw mismatches RUN.", 1, 1),
        options=(
            Option("--out", "write to this file (default: mismatches.csv in the run)", "FILE.csv", path=True),
            Option("--preset", "whose experts (default: mdw, else the first preset with experts)", "NAME", ""),
            Option("--by", "what the probability comes from: division, by which the experts were trained (default), or "
                   "similarity, which also looks at neighbors", "WAY", "division", _way),
            Option("--below", "list pairs whose probability of belonging together is below P (0.5)", "P", "0.5",
                   _probability),
            Option("--top", "list at most the N most suspicious", "N", "0", _count)),
        details="Trains nothing. Where mismatches were drawn on purpose it also says how many of them the list finds."),
    "demo": Command(
        "open a page on this machine: search by sentence or photo, distilled pairs, suspected mismatches",
        "analysis.demo.command:demo_command", "mdw demo runs/first",
        operands=Operands("PATH", "a run directory, a distilled set or a student; one of each may be given together",
                          "mdw demo takes a run directory, a distilled set or a student, one of each at most; write mdw "
                          "demo RUN.", 1, None),
        options=(
            Option("--preset", "whose experts of the run (default: mdw, else the first preset with experts)", "NAME", ""),
            Option("--port", "of the page on 127.0.0.1 (default: the first free one from 7860 on)", "PORT", None, _port)),
        details="Needs the extra demo. Nothing is trained, shared or sent anywhere."),
    "export": Command(
        "write the distilled sets for others, with a dataset card: image folder, Parquet, WebDataset",
        "export.command:export_command",
        "mdw export runs/first --config.export.license=cc-by-4.0 --config.export.formats=folder,parquet",
        (*_RUN, "export"), trains=False,
        details="With the format safetensors (the default) a directory holds all that training takes: the frozen image "
                "tower, training.json, and train.py in PyTorch. --config.export.with_test=True adds features of the test "
                "split."),
    "train": Command(
        "train students on an exported set, score them, and write the first", "export.train_command:train_command",
        "mdw train runs/first/export/mdw-0 --data photos/ captions.csv --out student",
        operands=Operands("SET", "a directory that mdw export wrote, or a set's directory in a run",
                          "mdw train takes one set, not {count}; write mdw train DIRECTORY.", 1, 1),
        options=(
            Option("--data", "score on these files, in any form that mdw inspect knows (default: the test split of the "
                   "run, where its features are at hand)", "PATH", (), many=True, path=True),
            Option("--out", "write the student here (default: student in SET)", "DIR", path=True),
            Option("--tower", "train another image tower than the set was made for: from scratch, or frozen with "
                   "--weights; steps and step sizes are chosen on the val split of --data", "NAME"),
            Option("--weights", "weights of the image tower, where they are not in SET", "SOURCE", path=True),
            Option("--text", "the text encoder, if SET does not say where it is (a model directory or a Hub name), or a "
                   "file of text features, a row for each caption number of --data", "SOURCE", path=True),
            Option("--students", "students to train; their mean is printed (1)", "N", "1"),
            Option("--seed", "of the first student (default: that of the run)", "N"))),
    "search": Command(
        "find photos for a sentence or for a photo, or captions for a photo, by a trained student",
        "export.search_command:search_command", 'mdw search student --images photos/ "a dog on a beach"',
        operands=Operands("STUDENT SENTENCE", "a directory that mdw train or train.py wrote; and what to look "
                          "for, in quotes",
                          'no student is given; write mdw search STUDENT --images DIR "a dog on a beach".'),
        options=(
            Option("--images", "a directory of photos, with all below it, or a photo", "PATH", (), repeated=True,
                   path=True),
            Option("--captions", "a text file, a caption on each line, to search instead", "FILE", path=True),
            Option("--like", "look for what is like this photo, instead of a sentence", "PHOTO", path=True),
            Option("--top", "how many to print (10)", "K", "10"),
            Option("--weights", "weights of the student's image tower, if they are not where it says", "SOURCE", path=True),
            Option("--text", "the student's text encoder, if it is not where it says: a model directory or a Hub name",
                   "SOURCE", path=True)),
        details="Embeddings of the photos are kept in STUDENT/cache, by what the files hold: the next search embeds new "
                "photos only."),
    "plan": Command(
        "say what a run will cost: time, memory, disk and price, stage by stage, here or on N devices of another kind",
        "analysis.cost.plan:plan_command",
        "mdw plan flickr30k --config.plan.device=h200 --config.plan.devices=8",
        (*_RUN, "export", "plan"), in_run_directory=False, options=(_DATA, _PAIRS)),
    "bench": Command(
        "measure how fast a config's computations are on this machine, relative to reference implementations; needs no "
        "data",
        "analysis.benchmark.command:bench_command", "mdw bench flickr8k --config.run.dir=runs/bench",
        ("run", "data", "text", "model", "experts", "distill", "evaluate", "plan"), in_run_directory=False,
        options=(
            Option("--scale", "instead: whole runs on so many made pairs, as in 50000,200000, each stage in a process of "
                   "its own: seconds, memory, how they grow; CONFIG may be left out", "N", (), _counts("--scale"),
                   config="scale"),
            Option("--devices", "instead: what the compiled steps do and send on each of so many virtual devices, as in "
                   "1,2,4,8, with N times the work on N", "N", (), _counts("--devices")))),
    "weights": Command(
        "download a model of the Hugging Face Hub, or read a local one, and print what is in it",
        "cli.builtin:weights_command", "mdw weights timm/nfnet_l0.ra2_in1k",
        operands=Operands(
            "SOURCE", "a .safetensors file, a directory that holds one, or the name of a model on the Hugging Face Hub "
            "(with @revision, if not the main one), which is downloaded to the Hub's own cache",
            "no model given; write mdw weights DIRECTORY, FILE.safetensors or HUB/NAME."),
        details="Prints its kind, size, sha256 and location; model.weights and text.path take the same SOURCE. Pickled "
                "weights are never read."),
    "config": Command(
        "print the config in full, as the other commands would see it; without a file, the defaults",
        "cli.builtin:config_command", "mdw config quickstart --config.experts.recipe=oracle",
        (*_RUN, "fairness", "certify", "export", "plan"), needs_file=False, compiles=False, in_run_directory=False,
        options=(Option("--list", "list the configs that travel with the package"), _DATA)),
    "completion": Command(
        "print a script that makes a shell complete commands and flags", "cli.builtin:completion_command",
        'eval "$(mdw completion bash)"',
        operands=Operands("SHELL", f"one of {', '.join(SHELLS)}",
                          f"mdw completion takes one shell, not {{count}}; write mdw completion {SHELLS[0]}.", 1, 1,
                          choices=SHELLS, paths=False)),
    "help": Command(
        "show the help of a command, or of all", "cli.builtin:help_command", "mdw help sweep",
        operands=Operands("COMMAND", "the command", "mdw help takes one command; leave '{last}' out.",
                          0, 1, paths=False)),
}
