"""One flipped bit in what commands write for people and for other programs: as `test_flipped_bits.py` (slow).

Exported sets and students, read by `mdw train`, `mdw search` and `mdw demo`; metrics.csv, read by `mdw watch`; and files
that no command reads, which `sha256sum -c` checks.
"""

import contextlib
import hashlib
import io
import json
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
from test_flipped_bits import TINY, Readers, flip_each
from tiny_config import tiny_config

from mdw_jax.analysis.demo.browse import all_pairs
from mdw_jax.analysis.demo.source import Demo
from mdw_jax.analysis.fairness.command import fairness_command
from mdw_jax.analysis.mismatches.command import mismatches_command
from mdw_jax.errors import UserError
from mdw_jax.export.command import export_command
from mdw_jax.export.train_command import train_command
from mdw_jax.io.checksums import DamagedError, read_verified
from mdw_jax.io.files import digest
from mdw_jax.io.run_lock import hold_run_directory
from mdw_jax.pipeline.run import STAGES
from mdw_jax.reporting.live import live_page

EXPORT, STUDENT = "export/mdw-0", "export/mdw-0/student"
CHANGES = {"run__presets": ("random", "mdw"), "export__license": "unknown", "export__formats": ("safetensors", "folder"),
           "export__with_test": True, "fairness__resamples": 100}
READ_BY = (
    (r"export/mdw-0/[^/]*\.(json|safetensors)|export/mdw-0/SHA256SUMS", ("train", "demo")),
    (r"export/mdw-0/student/.*", ("search", "demo")),
    (r"export/.*|fairness\.csv|mismatches\.csv|SHA256SUMS", ("sums",)),
    (r"\.?metrics\.csv.*|config\.json", ("live",)),
)
READ = r"export/mdw-0/.*|fairness\.csv|mismatches\.csv|\.metrics\.csv\.sha256|metrics\.csv|config\.json|SHA256SUMS"


class ExportReaders(Readers):
    """What reads exports and students, and what is for people."""

    def train(self):
        out = self.folder.with_name("trained")
        said = self.command("train", str(self.folder / EXPORT), "--out", str(out))
        student = {path.name: path.read_bytes() for path in out.iterdir() if path.is_file()}
        shutil.rmtree(out)
        return said, student

    def search(self):
        """With embeddings that an earlier search kept; how many of these can be used may differ."""
        found = self.command("search", str(self.folder / STUDENT), "a red square", "--images",
                             str(self.folder.with_name("photos")))
        return re.sub(r"\(\d+ embedded now, \d+ kept", "(", found)

    def demo(self):
        demo = Demo([str(self.folder / STUDENT), str(self.folder / EXPORT)])
        view, = map(demo.view, demo.sets)
        cards, said = demo.by_sentence(demo.places[0], "a red square")
        return [json.dumps(all_pairs(view, demo.fit("the set")), default=float), digest(view.rgb), said,
                [(digest(np.asarray(card[0])), repr(card[1:])) for card in cards]]

    def live(self):
        return re.sub(r"\d+ (s|min|h)\b", "", live_page(self.folder))

    def sums(self):
        """As `sha256sum -c` in every folder."""
        for path in sorted(self.folder.rglob("SHA256SUMS")):
            for line in path.read_bytes().decode(errors="replace").splitlines():
                if line[64:66] == "  ":
                    place = path.parent / line[66:]
                    try:  # a name with a folder in it is listed above its folder
                        self._verify(place, path.parent)
                    except (OSError, ValueError) as error:
                        raise UserError(f"'{place}', listed in SHA256SUMS: {error}") from None

    @staticmethod
    def _verify(place, folder):
        if place.parent == folder:
            read_verified(place)
        elif f"{digest_of(place)}  {place.relative_to(folder).as_posix()}" not in (folder / "SHA256SUMS").read_text():
            raise DamagedError("another sha256")


def digest_of(path):
    return hashlib.sha256(path.read_bytes()).hexdigest()


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    """A finished run with an export, a student, its search, and lists for people."""
    folder = tmp_path_factory.mktemp("flips") / "run"
    config = tiny_config(TINY, folder, **CHANGES).lock()
    with hold_run_directory(folder), contextlib.redirect_stdout(io.StringIO()):
        STAGES["run"](config)
        export_command(config)
        fairness_command(config)
    mismatches_command(str(folder), None, "mdw", "division", 1.1, 0)
    train_command(str(folder / EXPORT), (), None, None, None, None, "1", None)
    shutil.copytree(folder / EXPORT / "images", folder.with_name("photos"))
    readers = ExportReaders(folder, config)
    readers.search()
    shutil.copytree(folder, folder.with_name("pristine"))
    return readers


@pytest.mark.slow
def test_no_flipped_bit_of_an_export_gives_another_result(exported, capsys):
    before = {name: getattr(exported, name)() for _, some in READ_BY for name in some}
    assert before == {name: getattr(exported, name)() for name in before}
    files = [path.relative_to(exported.folder) for path in sorted(exported.folder.rglob("*"))
             if path.is_file() and path.stat().st_size]
    names = [Path(where) for where in files if re.fullmatch(READ, where.as_posix())]
    assert {where.name for where in names} >= {
        "training.json", "backbone.safetensors", "test.safetensors", "distilled.safetensors", "card.json", "train.py",
        "student.json", "student.safetensors", "README.md", "metadata.jsonl", "fairness.csv", "mismatches.csv",
        "metrics.csv", ".metrics.csv.sha256"} and any(where.match("cache/images-*.safetensors") for where in names)
    table = flip_each(exported, names, READ_BY, before, capsys)
    flipped = sum(row["flipped"] for row in table.values())
    assert sum(row["found"] for row in table.values()) > 0.8 * flipped
