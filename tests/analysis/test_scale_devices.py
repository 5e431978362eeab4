"""`mdw bench --devices`: what compiled steps do and send on each of several virtual devices."""

import pytest

from mdw_jax.analysis.scale import devices
from mdw_jax.analysis.scale.device_process import steps_on
from mdw_jax.cli import main
from mdw_jax.config.loading import load_config
from mdw_jax.errors import UserError

SMALL = [("model.widths", "(8,8,8)"), ("distill.pairs", "8"), ("distill.batch", "4"), ("distill.inner_steps", "2"),
         ("distill.trajectories", "1"), ("experts.batch", "8"), ("data.size", "16"), ("model.dim", "8")]


@pytest.mark.slow
def test_one_device_sends_nothing_and_more_work_is_counted():
    config = load_config("quickstart", SMALL)
    once = {(row["step"], row["grown"]): row for row in steps_on(config, 1)}
    twice = {(row["step"], row["grown"]): row for row in steps_on(config, 2)}
    assert len(once) == 4 and all(row["sent"] == 0 and row["flops"] > 0 and row["memory"] > 0 for row in once.values())
    # Here there is one device, which does the work of two: nearly twice the operations of the parts that grow.
    for key in (("expert steps", "networks"), ("expert steps", "pairs a batch")):
        assert 1.5 < twice[key]["flops"] / once[key]["flops"] < 2.6


def test_the_table_has_a_column_for_each_number_of_devices():
    rows = [{"step": "outer step", "grown": "trajectories", "devices": count, "flops": 2e9, "sent": 2**20 * count,
             "memory": 2**21} for count in (1, 2)]
    assert devices.table_rows(rows) == [{
        "step": "outer step", "grows": "trajectories", "1 devices": "2 GFLOP, 1 MiB sent, 2 MiB",
        "2 devices": "2 GFLOP, 2 MiB sent, 2 MiB"}]


@pytest.mark.parametrize("words, said", [
    (["--scale", "many"], "--scale is one whole number above 0, or several with commas, not 'many'"),
    (["--devices", "2,0"], "--devices is one whole number above 0"),
    (["--scale", "5000", "--devices", "2"], "--scale and --devices are two measurements; give one of them"),
    (["--devices", "2"], "no config given"),
])
def test_flags_that_say_nothing_are_refused(words, said, capsys, tmp_path):
    assert main(["bench", *words, f"--config.run.dir={tmp_path}"]) == 2
    assert said in capsys.readouterr().err


def test_too_many_devices_are_refused(tmp_path):
    with pytest.raises(UserError, match="up to 512 virtual devices, not 513"):
        devices.devices_command(load_config("quickstart", [("run.dir", str(tmp_path))]), [1, 513])


@pytest.mark.slow
def test_steps_are_compiled_for_virtual_devices_in_processes_of_their_own(tmp_path, capsys):
    devices.devices_command(load_config("quickstart", [*SMALL, ("run.dir", str(tmp_path))]), [1, 2])
    rows = (tmp_path / "devices.csv").read_text().splitlines()
    assert len(rows) == 9
    sent = {tuple(row.split(",")[:3]): int(row.split(",")[4]) for row in rows[1:]}
    assert sent["expert steps", "networks", "2"] == 0 < sent["outer step", "trajectories", "2"]
