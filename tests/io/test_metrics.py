"""metrics.csv has every number once, whatever happened to the run; TensorBoard and W&B get the same numbers."""

import contextlib
import csv
import json
import struct
import sys
import time
from pathlib import Path

import pytest

from mdw_jax.config import base, resolve
from mdw_jax.errors import UserError
from mdw_jax.io import metrics
from mdw_jax.io.checksums import DamagedError
from mdw_jax.pipeline.metrics import open_writers
from mdw_jax.pipeline.sweep import grid


def config(folder, **watched):
    c = base()
    c.run.dir = str(folder)
    c.watch.update(watched)
    return c


@pytest.fixture(autouse=True)
def no_pause(monkeypatch):
    monkeypatch.setattr(metrics, "_PAUSE", 0)


def opened(folder, name="distilled/mdw-1/set_0", **watched):
    return contextlib.closing(open_writers(config(folder, **watched), folder / name))


def rows(folder):
    with open(folder / "metrics.csv", newline="") as file:
        return list(csv.DictReader(file))


def numbers(folder):
    """(step, metric, value) of every row."""
    return [(int(row["step"]), row["metric"], float(row["value"])) for row in rows(folder)]


def test_rows_are_there_at_once_and_none_comes_twice(tmp_path):
    with opened(tmp_path) as writer, opened(tmp_path, "experts/dtcl-2") as other:
        writer.write("distill", 0, {"loss": 0.1 + 0.2, "gradient": 3})
        other.write("experts/0A", 1, {"loss": 0.5})
        assert rows(tmp_path) == [
            {"stage": stage, "name": name, "step": step, "metric": metric, "value": value} for
            stage, name, step, metric, value in (
                ("distill", "distilled/mdw-1/set_0", "0", "loss", "0.30000000000000004"),
                ("distill", "distilled/mdw-1/set_0", "0", "gradient", "3.0"),
                ("experts/0A", "experts/dtcl-2", "1", "loss", "0.5"))]
        before = (tmp_path / "metrics.csv").read_bytes()
    with opened(tmp_path) as writer:  # goes on
        writer.write("distill", 0, {"loss": 0.1 + 0.2, "gradient": 3})
        assert (tmp_path / "metrics.csv").read_bytes() == before
        writer.write("distill", 0, {"loss": 0.1 + 0.2, "gradient": 3, "val_r_mean": 7})
    assert (tmp_path / "metrics.csv").read_text().removeprefix(before.decode()).splitlines() == [
        "distill,distilled/mdw-1/set_0,0,val_r_mean,7.0"]


def test_half_a_line_is_taken_off_and_other_values_take_the_place_of_old_ones(tmp_path):
    with opened(tmp_path) as writer:
        writer.write("distill", 0, {"loss": 1.0})
        writer.write("distill", 1, {"loss": 2.0})
    whole = (tmp_path / "metrics.csv").read_bytes()
    (tmp_path / "metrics.csv").write_bytes(whole[:-5])  # killed in the middle of a line
    with opened(tmp_path) as writer:
        assert numbers(tmp_path) == [(0, "loss", 1.0)]
        writer.write("distill", 0, {"loss": 1.5})
        writer.write("distill", 1, {"loss": 2.0})
    assert numbers(tmp_path) == [(0, "loss", 1.5), (1, "loss", 2.0)]
    with open(tmp_path / "metrics.csv", "ab") as file:  # another process, killed while this one is at work
        with opened(tmp_path, "experts/dtcl-2") as other:
            file.write(b"distill,dist")
            file.flush()
            other.write("experts/0A", 1, {"loss": 0.5})
    assert numbers(tmp_path)[2:] == [(1, "loss", 0.5)]


def test_damaged_bytes_are_no_traceback_and_the_number_is_written_again(tmp_path):
    with opened(tmp_path) as writer:
        writer.write("distill", 0, {"loss": 1.0})
    whole = (tmp_path / "metrics.csv").read_bytes()
    (tmp_path / "metrics.csv").write_bytes(whole[:-3] + b"\xb1" + whole[-2:])
    with opened(tmp_path) as writer:
        writer.write("distill", 0, {"loss": 1.0})
    assert (tmp_path / "metrics.csv").read_bytes() == whole


def test_every_flipped_bit_is_found_once_nobody_appends(tmp_path, caplog):
    path, seal = tmp_path / "metrics.csv", tmp_path / ".metrics.csv.sha256"
    with opened(tmp_path) as writer:
        writer.write("distill", 0, {"loss": 1.0})
        assert not seal.exists()
        with opened(tmp_path, "experts/dtcl-2"):  # another part of a sweep, which ends first
            pass
        assert metrics.read_metrics(path) == path.read_bytes() and seal.exists()
        writer.write("distill", 1, {"loss": 0.5})
        assert not seal.exists()
    whole, sealed = path.read_bytes(), seal.read_bytes()
    assert metrics.read_metrics(path) == whole
    for changed in (path, seal):
        good = changed.read_bytes()
        for place in range(0, len(good), 7):
            changed.write_bytes(good[:place] + bytes([good[place] ^ 1]) + good[place + 1:])
            with pytest.raises(DamagedError, match=r"does not fit \.metrics\.csv\.sha256 beside it"):
                metrics.read_metrics(path)
        changed.write_bytes(good)
    assert not caplog.records
    path.write_bytes(whole.replace(b"1.0", b"9.0"))
    for said in (1, 1):  # a run goes on, and says it once
        with opened(tmp_path) as writer:
            writer.write("distill", 2, {"loss": 0.25})
        assert len(caplog.records) == said and "its curves may be wrong, no score is; delete it" in caplog.text
    path.unlink()  # as the sentence says
    with opened(tmp_path) as writer:
        writer.write("distill", 3, {"loss": 0.125})
    assert numbers(tmp_path) == [(3, "loss", 0.125)] and len(caplog.records) == 1 and seal.read_bytes() != sealed


def test_mistakes_are_one_sentence(tmp_path, monkeypatch):
    with pytest.raises(UserError, match="no metrics writer 'tensorbord' for watch.writers; did you mean tensorboard"):
        resolve(config(tmp_path, writers=("tensorbord",)))
    for package, name in (("tensorboardX", "tensorboard"), ("wandb", "wandb")):
        monkeypatch.setitem(sys.modules, package, None)
        with pytest.raises(UserError, match=rf"needs {package}: pip install 'mdw-jax\[{name}\]'"):
            open_writers(config(tmp_path, writers=(name,)), tmp_path / "a")


def events(folder):
    """(step, tag, value) of every scalar in TensorBoard's files, read by their framing: length, crc, event, crc."""
    from tensorboardX.proto.event_pb2 import Event

    found = []
    for path in sorted(folder.iterdir()):
        data, at = path.read_bytes(), 0
        while at < len(data):
            size, = struct.unpack_from("<Q", data, at)
            event = Event.FromString(data[at + 12 : at + 12 + size])
            found += [(event.step, value.tag, value.simple_value) for value in event.summary.value]
            at += size + 16
    return found


def test_tensorboard_gets_what_is_new_and_at_first_everything(tmp_path):
    pytest.importorskip("tensorboardX")
    folder = tmp_path / "tensorboard" / "distilled" / "mdw-1" / "set_0"
    with opened(tmp_path) as writer:
        writer.write("distill", 0, {"loss": 1.0})
    with opened(tmp_path, writers=("tensorboard",)) as writer:  # asked for in the middle
        writer.write("distill", 0, {"loss": 1.0})
        writer.write("distill", 1, {"loss": 0.5})
        assert events(folder) == [(0, "distill/loss", 1.0), (1, "distill/loss", 0.5)]  # before it is closed
    with opened(tmp_path, writers=("tensorboard",)) as writer:
        writer.write("distill", 1, {"loss": 0.5})
        writer.write("distill", 2, {"loss": 0.25, "gradient": 2.0})
    assert events(folder)[2:] == [(2, "distill/loss", 0.25), (2, "distill/gradient", 2.0)]


def test_wandb_gets_what_is_new_under_one_id(tmp_path, monkeypatch):
    wandb = pytest.importorskip("wandb")
    monkeypatch.setenv("WANDB_MODE", "offline")
    for steps in (range(2), range(1, 3)):
        with opened(tmp_path, writers=("wandb",), project="mine") as writer:
            for step in steps:
                writer.write("distill", step, {"loss": step / 2})
    left = sorted((tmp_path / "wandb").glob("offline-run-*/*.wandb"))
    assert len(left) == 2 and left[0].name == left[1].name
    told = []
    for path in left:
        told += history(path)
    assert told == [(0, 0.0), (1, 0.5), (2, 1.0)] and wandb.run is None


class Recorder(metrics.MetricsWriter):
    """A writer of somebody's own."""

    def __init__(self, config, run_directory, name):
        self.rows, self.closed = [], False
        created.append((self, run_directory, name))

    def write(self, stage, step, metrics):
        self.rows.append((stage, step, metrics))

    def close(self):
        self.closed = True


created = []


def failing(config, run_directory, name):
    raise OSError("no disk")


def test_a_writer_of_ones_own_gets_the_same_rows(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "my_writers", sys.modules[__name__])
    with opened(tmp_path, writers=("my_writers:Recorder",)) as writer:
        writer.write("distill", 0, {"loss": 1.0})
    [(recorder, run_directory, name)] = created
    assert (run_directory, name) == (tmp_path, "distilled/mdw-1/set_0")
    assert recorder.rows == [("distill", 0, {"loss": 1.0})] and recorder.closed
    for name, words in (("my_writers:nothing", "cannot be imported"), ("my_writers:failing", "fails .*no disk"),
                        ("my_writers:created", "not a function"), ("my_writers:numbers", "fails")):
        with pytest.raises(UserError, match=f"watch.writers names '{name}', which .*{words}"):
            opened(tmp_path, writers=("my_writers:Recorder", name))
    assert all(recorder.closed for recorder, *_ in created)  # also those that were opened before the error


def test_no_two_run_directories_share_an_id(tmp_path, monkeypatch):
    found = []
    for machine in ("one", "other", "one"):
        (tmp_path / machine).mkdir(exist_ok=True)
        monkeypatch.chdir(tmp_path / machine)
        found.append(metrics._random_identity(Path("runs/mdw")))
    assert found[0] == found[2] != found[1] and len(found[0]) == 32


def history(path):
    """(step, loss) of the rows in a file of W&B's: a frame a record, of crc, size and kind, the last one "exit"."""
    from wandb.proto.wandb_internal_pb2 import Record

    for _ in range(100):  # its own process writes it, and is not always done when the run is
        data, at, found, ended = path.read_bytes(), 7, [], False
        while at < len(data):
            size, = struct.unpack_from("<H", data, at + 4)
            record = Record.FromString(data[at + 7 : at + 7 + size])
            items = {"/".join(item.nested_key): json.loads(item.value_json) for item in record.history.item}
            found += [(items["distill/step"], items["distill/loss"])] if items else []
            ended |= record.WhichOneof("record_type") == "exit"
            assert record.run.project in ("", "mine")
            at += size + 7
        if ended:
            return found
        time.sleep(0.1)
    raise AssertionError("W&B did not finish its file")


def test_where_metrics_go_is_part_of_no_key(tmp_path):
    one, other = config(tmp_path), config(tmp_path, writers=("tensorboard", "wandb"), project="other")
    assert [cell.key for cell in grid(one, {})] == [cell.key for cell in grid(other, {})]
