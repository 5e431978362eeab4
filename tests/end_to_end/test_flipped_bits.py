"""One flipped bit in any file of a finished run: it is found and the file named, or everything reads as before (slow).

Every file of the run folder is damaged in turn, at MDW_FLIPS places (default 3), and read again by all that reads it.
What a stage reads is read by the stages themselves with the data in memory; the rest by the commands. Likewise every file
that an interrupted distillation and interrupted experts go on from.
"""

import collections
import contextlib
import csv
import hashlib
import io
import json
import os
import random
import re
import shutil

import numpy as np
import pytest
from tiny_config import tiny_config

from mdw_jax.cli import main
from mdw_jax.config import resolve
from mdw_jax.config.stored import read_run_config
from mdw_jax.errors import UserError
from mdw_jax.io.files import digest
from mdw_jax.io.image_history import load as load_history
from mdw_jax.io.run_lock import hold_run_directory
from mdw_jax.io.trajectory import open_trajectory, read_snapshot
from mdw_jax.pipeline.closed_form import closed_form_stage, load_closed_form
from mdw_jax.pipeline.coreset import _correct_history
from mdw_jax.pipeline.distill import distill_stage
from mdw_jax.pipeline.distill_loop import DistillationLoop
from mdw_jax.pipeline.evaluate import evaluate_stage, stored_scores
from mdw_jax.pipeline.expert_networks import expert_networks
from mdw_jax.pipeline.experts import ExpertCheckpointer, experts_stage, kept_pairs
from mdw_jax.pipeline.prepared import prepare
from mdw_jax.pipeline.preset_run import open_preset, read_division
from mdw_jax.pipeline.run import STAGES
from mdw_jax.pipeline.sets import set_folder
from mdw_jax.pipeline.sweep import sweep_command
from mdw_jax.reporting.run_files import open_run
from mdw_jax.runtime.may_train import may_train

FLIPS = int(os.environ.get("MDW_FLIPS", "3"))
TINY = {
    "run.presets": ("random", "mdw", "correspond", "filter_random", "closed_form", "experts"), "run.seed": 0,
    "data.name": "scenes", "data.size": 16, "data.train": 60, "data.val": 30, "data.test": 30,
    "noise.rate": 0.4, "text.encoder": "bow", "text.dim": 24,
    "model.tower": "convnet", "model.mode": "projection", "model.patches": (8,), "model.widths": (8,),
    "model.pretrain_epochs": 1, "model.pretrain_images": 64,
    "experts.count": 1, "experts.epochs": 2, "experts.recovery_start": 1, "experts.batch": 32,
    "distill.pairs": 8, "distill.steps": 2, "distill.inner_steps": 2, "distill.batch": 4, "distill.trajectories": 1,
    "distill.rank": 2, "distill.max_start_epoch": 1, "distill.checkpoint_every": 2, "distill.ceo_every": 2,
    "evaluate.students": 2, "evaluate.steps": 10, "evaluate.every": 5, "evaluate.batch": 8,
    "evaluate.lr_scales": (0.3, 1.0),
}
SAY_IT = ("listing", "live")  # readers that show what is left, and a word on what is damaged
NOT_READ = {  # pattern of a path -> why no flip is tried
    r"(.*/)?\.?[^/]*lock": "a lock: empty, or who holds it",
    r"\.?metrics\.csv.*": "in test_flipped_exports.py, with what commands write for people and other programs",
    r"figures/.*|(.*/)?[^/]*\.(png|svg)": "a picture for people",
    r".*\.html|table\.md": "a page for people",
}


class Readers:
    """What reads a run: each returns something that two runs can be compared by, or raises UserError."""

    def __init__(self, folder, config):
        self.folder, self.config = folder, config
        self.prepared = prepare(resolve(config))

    def stages(self):
        """All that the stages, exports and certificates read, without the data, which are in memory."""
        found = []
        for name in self.config.run.presets:
            run = open_preset(self.config, self.prepared, name)
            kept = kept_pairs(run, self.prepared)
            found += [run.noise.sha256, run.experts.key, run.sets.key, np.asarray(kept),
                      json.dumps(evaluate_stage(run, self.prepared), sort_keys=True)]
            if run.spec.closed_form:
                stored = load_closed_form(run, self.prepared, kept)
                found += [*map(np.asarray, stored.form), stored.clean_probability,
                          json.dumps(stored.record, sort_keys=True),
                          json.dumps(closed_form_stage(run, self.prepared, kept), sort_keys=True)]
            if run.spec.needs_experts:
                record = experts_stage(run, self.prepared)
                found += [json.dumps(record), read_division(run), _correct_history(run, self.prepared)]
                for n in range(record["networks"]):
                    for kind in ("net", "best"):
                        stored = open_trajectory(run.experts.path / f"{kind}_{n:02d}", key=run.experts.key)
                        found += [stored.length, stored.dtype, json.dumps(dict(stored.metadata))]
                        found += [np.asarray(leaf) for index in range(stored.length)
                                  for _, leaf in _leaves(read_snapshot(stored, index))]
            if run.spec.has_sets:
                found += [json.dumps(row, sort_keys=True) for row in stored_scores(set_folder(run, 0))]
                history = load_history(set_folder(run, 0))
                found += [array for _, array in sorted((history or {}).items())]
        return [digest(part) for part in found]

    def features(self):
        """What `prepare` reads of the cache."""
        again = prepare(resolve(self.config))
        return [again.key, *(digest(np.asarray(array)) for array in (
            again.train_images, again.val.images, again.test.images, again.texts.train, again.texts.val, again.texts.test))]

    def report(self):
        """All that pages and `open_run` show."""
        run = open_run(self.folder)
        # The commit has "-dirty" from the moment on at which somebody edits a file of the checkout.
        found = [run.config, {name: value for name, value in run.environment.items() if name != "commit"}, run.summary]
        for preset in run.presets:
            found += [preset.rows, preset.metadata, preset.experts, [str(path) for path in preset.trajectory_directories]]
            if preset.has_sets:
                distilled, card = preset.set
                found += [card, preset.metrics, preset.captions, preset.byte_budget, preset.candidates,
                          digest(distilled.images, distilled.texts)]
        return [json.dumps(part, sort_keys=True, default=str) for part in found]

    def stored_config(self):
        """The config that `mdw evaluate RUN` starts from."""
        return json.dumps(read_run_config(self.folder).to_dict(), sort_keys=True, default=str)

    def evaluate(self):
        self.command("evaluate", str(self.folder))
        return (self.folder / "scores.csv").read_bytes()

    def listing(self):
        return self.command("runs", str(self.folder))

    def diff(self):
        return self.command("diff", str(self.folder), str(self.folder))

    def table(self):
        return [self.command("table", str(self.folder / name), "--rows", "preset", "--columns", "set")
                for name in ("scores.csv", "sweep.csv")]

    def sweep(self):
        with contextlib.redirect_stdout(io.StringIO()) as out:
            try:
                sweep_command(self.config, {"preset": ("random",)})
            except UserError as error:
                raise UserError(f"{out.getvalue()}{error}") from None
        with open(self.folder / "sweep.csv", newline="") as file:
            return [{name: cell for name, cell in row.items() if name not in ("seconds", "commit")}
                    for row in csv.DictReader(file)]

    @staticmethod
    def command(*words):
        out, err = io.StringIO(), io.StringIO()
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            status = main(list(words))
        if status:
            assert status == 2, err.getvalue()
            raise UserError(err.getvalue())
        return re.sub(r"\d{4}-\d\d-\d\d \d\d:\d\d|\d+\.?\d* (s|MB|minutes?)\b", "", out.getvalue())


def _leaves(tree):
    for name, value in sorted(tree.items()):
        yield from (_leaves(value) if isinstance(value, dict) else [(name, value)])


READ_BY = (  # pattern of a path, and the readers of such files: all that match
    (r"(cache|noise)/.*", ("features",)),
    (r"(noise|experts|filter|closed_form|distilled)/.*", ("stages",)),
    (r"(experts|distilled)/(?!.*/(net|best)_).*", ("report",)),
    (r"[^/]*", ("stored_config", "report", "listing", "diff", "table")),
    (r"config.*\.json|SHA256SUMS|report\.json|environment\.json", ("evaluate",)),
    (r"sweep/.*|sweep\.csv|SHA256SUMS", ("sweep",)),
)


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A finished run, with one cell of a sweep in its folder."""
    folder = tmp_path_factory.mktemp("flips") / "run"
    config = tiny_config(TINY, folder).lock()
    with hold_run_directory(folder):
        STAGES["run"](config)
        sweep_command(config, {"preset": ("random",)})
    shutil.copytree(folder, folder.with_name("pristine"))
    return Readers(folder, config)


def restore(readers):
    """The folder as it was, with the dates of its files."""
    pristine = readers.folder.with_name("pristine")
    shutil.rmtree(readers.folder)
    shutil.copytree(pristine, readers.folder)


def outcome(readers, names, path, before):
    """ "found", "harmless" or what went wrong, of one damaged file and all that reads it."""
    result, where = "harmless", path.relative_to(readers.folder)
    for name in names:
        try:
            with may_train(False, "a test", str(readers.folder)):
                after = getattr(readers, name)()
        except UserError as error:
            # A trajectory is named, not the file in it; and the files that one sentence names are few.
            of_trajectory = [part for part in where.parts if re.fullmatch(r"(net|best)_\d+", part)]
            if not any(part in str(error) for part in (path.name, *of_trajectory)):
                return f"{name} names another file: {error}"
            result = "found"
        else:
            if after != before[name]:
                if name in SAY_IT and path.name in after and "damaged" in after:
                    result = "found"
                else:
                    return f"{name} gives another result"
    return result


def kind_of(where):
    """The kind of a file for the table: its path without keys and numbers."""
    words = re.sub(r"[0-9a-f]{8,}|(?<=[-_])\d+", "*", where.as_posix())
    words = re.sub(r"(distilled|experts|closed_form|filter)/[^/]*/", r"\1/*/", words)
    return re.sub(r"((net|best)_\*)/.*", r"\1", words)


def show(table, capsys):
    """Print {kind of file: counts}."""
    names = ("flipped", "found", "harmless", "half-used")
    with capsys.disabled():
        print("\n" + " ".join([f"{'file':60}", *(f"{name:>9}" for name in names)]))
        for kind, row in [*sorted(table.items()), ("all", sum(table.values(), collections.Counter()))]:
            print(" ".join([f"{kind:60}", *(f"{row[name]:9}" for name in names)]), flush=True)


def flip_each(readers, files, read_by, before, capsys):
    """Flip bits in each file in turn, and read it by all that does; {kind of file: counts}, printed.

    Args:
        readers: the folder, and what reads it.
        files: in the folder; none may be half-used.
        read_by: (pattern of a path, names of readers); all that match are asked.
        before: {name of a reader: what it gives of the whole folder}.
        capsys: lets the table through.
    """
    table, wrong = collections.defaultdict(collections.Counter), []
    for where in files:
        names = list(dict.fromkeys(name for pattern, some in read_by if re.fullmatch(pattern, where.as_posix())
                                   for name in some))
        assert names, f"nothing is said to read {where}"
        draw, path = random.Random(where.name), readers.folder / where
        good = path.read_bytes()
        for _ in range(FLIPS):
            place, bit = draw.randrange(len(good)), draw.randrange(8)
            path.write_bytes(good[:place] + bytes([good[place] ^ 1 << bit]) + good[place + 1:])
            found = outcome(readers, names, path, before)
            restore(readers)
            row = table[kind_of(where)]
            row["flipped"] += 1
            row[found if found in ("found", "harmless") else "half-used"] += 1
            if found not in ("found", "harmless"):
                wrong.append(f"{where}, bit {bit} of byte {place}: {found}")
    show(table, capsys)
    assert not wrong, "\n".join(wrong)
    return table


@pytest.mark.slow
def test_no_flipped_bit_gives_another_result(finished, capsys):
    names = {name for _, some in READ_BY for name in some}
    before = {name: getattr(finished, name)() for name in names}
    assert before == {name: getattr(finished, name)() for name in names}  # else nothing could be told
    restore(finished)
    pristine = finished.folder.with_name("pristine")
    files = [path.relative_to(pristine) for path in pristine.rglob("*") if path.is_file() and path.stat().st_size]
    table = flip_each(finished, [where for where in sorted(files) if not any(
        re.fullmatch(pattern, where.as_posix()) for pattern in NOT_READ)], READ_BY, before, capsys)
    assert sum(row["found"] for row in table.values()) > sum(row["flipped"] for row in table.values()) / 3


def test_what_is_not_read_is_little(finished):
    """The list of what is not damaged names no record, array or table of a stage."""
    left = [path.relative_to(finished.folder).as_posix() for path in finished.folder.rglob("*") if path.is_file()]
    spared = [name for name in left if any(re.fullmatch(pattern, name) for pattern in NOT_READ)]
    assert spared and not [name for name in spared if name.endswith((".json", ".npy", ".jsonl", ".safetensors", ".npz"))]
    for folder in {name.rpartition("/")[0] for name in left if name.endswith((".jsonl", "card.json", "experts.json"))}:
        listed = (finished.folder / folder / "SHA256SUMS").read_text()
        for name in (finished.folder / folder).iterdir():
            if name.is_file() and name.suffix in (".json", ".jsonl", ".npy"):
                content = hashlib.sha256(name.read_bytes()).hexdigest()
                assert f"{content}  {name.name}\n" in listed, f"{name} is not listed"


class Stopped(BaseException):
    """A process that ends in the middle of its work."""


def stopped_after(monkeypatch, owner, name, work, calls=1):
    """Do `work`, which ends right after so many calls of a function."""
    function, done = getattr(owner, name), []

    def last(*args, **named):
        function(*args, **named)
        done.append(None)
        if len(done) == calls:
            raise Stopped

    with monkeypatch.context() as patched:
        patched.setattr(owner, name, last)
        with pytest.raises(Stopped):
            work()


def begin_again(folder, begun):
    """The run as it was when it was stopped."""
    shutil.rmtree(folder / "run")
    shutil.copytree(folder / begun, folder / "run")


def expert_parameters(run):
    return [digest(np.asarray(leaf)) for network in expert_networks(run.experts) for _, leaf in _leaves(network)]


@pytest.mark.slow
def test_no_flipped_bit_gives_another_end(tmp_path, monkeypatch, capsys):
    """What an interrupted stage goes on from: every file of it, and the set or the experts in the end."""
    config = tiny_config(TINY, tmp_path / "run", distill__steps=6, distill__restarts=1, experts__epochs=3).lock()
    prepared = prepare(resolve(config))
    run = open_preset(config, prepared, "mdw")
    monkeypatch.setattr(ExpertCheckpointer, "should_save", lambda self: True)
    stopped_after(monkeypatch, ExpertCheckpointer, "save", lambda: experts_stage(run, prepared))
    shutil.copytree(tmp_path / "run", tmp_path / "experts begun")
    experts_stage(run, prepared)
    stopped_after(monkeypatch, DistillationLoop, "save_state", lambda: distill_stage(run, prepared), calls=2)
    shutil.copytree(tmp_path / "run", tmp_path / "set begun")
    distill_stage(run, prepared)
    stages = {
        "experts begun": ("experts/*/state-*", lambda: (experts_stage(run, prepared), expert_parameters(run))[1]),
        "set begun": ("distilled/*/set_0/*", lambda: [
            (path / name).read_bytes() for path in distill_stage(run, prepared)
            for name in ("distilled.safetensors", "metrics.jsonl", "record.safetensors")])}
    table, wrong = collections.defaultdict(collections.Counter), []
    for begun, (pattern, finish) in stages.items():
        begin_again(tmp_path, begun)
        expected = finish()
        for source in sorted((tmp_path / begun).glob(pattern)):
            if not source.stat().st_size:
                continue
            good, draw, where = source.read_bytes(), random.Random(source.name), source.relative_to(tmp_path / begun)
            for _ in range(FLIPS):
                place, bit = draw.randrange(len(good)), draw.randrange(8)
                begin_again(tmp_path, begun)
                (tmp_path / "run" / where).write_bytes(good[:place] + bytes([good[place] ^ 1 << bit]) + good[place + 1:])
                try:
                    result = "harmless" if finish() == expected else "half-used"
                except UserError as error:
                    result = "found" if source.name in str(error) else "half-used"
                table[kind_of(where)].update(["flipped", result])
                if result == "half-used":
                    wrong.append(f"{where}, bit {bit} of byte {place}")
    assert {name.rpartition("/")[2] for name in table} >= {
        "checkpoint.safetensors", "checkpoint-good.safetensors", "history.jsonl", "candidates.jsonl", "SHA256SUMS",
        "state-experts.safetensors"}
    show(table, capsys)
    assert not wrong, "\n".join(wrong)


def test_what_the_remedies_delete_is_made_again_or_left_out(finished):
    """Deleted as the messages say, the smallest thing comes back as it was, and curves are left out."""
    before, scores = finished.report(), finished.stages()
    for pattern in ("distilled/*/set_0/nearest.json", "closed_form/*/closed_form.json", "filter/*/filter.json",
                    "distilled/*/set_0/scores-*.json"):
        for path in finished.folder.glob(pattern):
            path.unlink()
    assert finished.stages() == scores and finished.report() == before
    for name in ("config.json", "report.json", "environment.json"):
        (finished.folder / name).unlink()
        finished.command("evaluate", f"--config={finished.folder / 'config_as_given.json'}")
        assert finished.report() == before
    for path in (*finished.folder.glob("experts/*/log.jsonl"), *finished.folder.glob("distilled/*/*/metrics.jsonl")):
        path.unlink()
    finished.command("report", str(finished.folder), "--out", str(finished.folder / "again.html"))
    restore(finished)
