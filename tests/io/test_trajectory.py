"""The trajectory store: what is saved comes back, one snapshot at a time, or not at all."""

import signal
import subprocess
import sys

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tensorstore as ts

from mdw_jax.errors import UserError
from mdw_jax.io.trajectory import is_finished, open_trajectory, read_snapshot, save_trajectory

KEY = "5" * 64


def make_snapshots(length=4, width=300):
    """Snapshots with what real ones have: a large kernel, small vectors, a scalar, dots in names, jax and numpy."""
    rng = np.random.default_rng(0)
    return [{"image": {"layer1.0": {"kernel": rng.normal(size=(width, width)).astype(np.float32),
                                    "bias": jnp.asarray(rng.normal(size=7), jnp.float32)}},
             "text": {"kernel": rng.normal(size=(5, 3)).astype(np.float32), "scale": jnp.float32(rng.normal())}}
            for _ in range(length)]


def data_files(folder):
    return [path for path in (folder / "snapshots").rglob("*") if path.is_file() and path.parent.name == "d"]


def assert_same(got, expected):
    assert jax.tree.structure(got) == jax.tree.structure(expected)
    chex.assert_trees_all_equal(got, expected)


@pytest.mark.parametrize("length", [1, 4, 5])
def test_float32_round_trip_is_exact(tmp_path, length):
    snapshots = make_snapshots(length, width=8)
    save_trajectory(tmp_path / "a folder" / "expert_0", snapshots, key=KEY, metadata={"val_r_mean": [1.5, None]})
    trajectory = open_trajectory(tmp_path / "a folder" / "expert_0", key=KEY)
    assert (trajectory.length, trajectory.key, trajectory.dtype) == (length, KEY, "float32")
    assert trajectory.metadata == {"val_r_mean": [1.5, None]}
    for index in reversed(range(length)):
        assert_same(read_snapshot(trajectory, index), snapshots[index])


def test_bfloat16_is_read_as_float32_rounded_to_bfloat16_in_half_the_space(tmp_path):
    snapshots, sizes = make_snapshots(), {}
    for dtype in ("float32", "bfloat16"):
        save_trajectory(tmp_path / dtype, snapshots, key=KEY, dtype=dtype)
        sizes[dtype] = sum(path.stat().st_size for path in data_files(tmp_path / dtype))
    got = read_snapshot(open_trajectory(tmp_path / "bfloat16"), 2)
    assert all(leaf.dtype == np.float32 for leaf in jax.tree.leaves(got))
    assert_same(got, jax.tree.map(lambda leaf: jnp.asarray(leaf, jnp.bfloat16).astype(jnp.float32), snapshots[2]))
    assert sizes["bfloat16"] < 0.55 * sizes["float32"]


def test_one_snapshot_is_read_without_the_others(tmp_path):
    snapshots = make_snapshots(length=8)
    save_trajectory(tmp_path / "expert", snapshots, key=KEY)
    trajectory = open_trajectory(tmp_path / "expert")

    def bytes_read():
        (metric,) = ts.experimental_collect_matching_metrics("/tensorstore/kvstore/file/bytes_read")
        return metric["values"][0]["value"]

    before = bytes_read()
    read_snapshot(trajectory, 3)
    one = sum(np.asarray(leaf).nbytes for leaf in jax.tree.leaves(snapshots[3]))
    assert one <= bytes_read() - before < 1.5 * one


def test_damage_to_one_snapshot_is_noticed_and_spares_the_others(tmp_path):
    folder, snapshots = tmp_path / "expert", make_snapshots()
    save_trajectory(folder, snapshots, key=KEY)
    wanted = snapshots[2]["image"]["layer1.0"]["kernel"].tobytes()
    (path,) = [path for path in data_files(folder) if wanted in path.read_bytes()]
    data = bytearray(path.read_bytes())
    data[data.index(wanted) + 1000] ^= 1  # one bit, in the last place of one weight
    path.write_bytes(data)
    trajectory = open_trajectory(folder)
    for index in (0, 1, 3):
        assert_same(read_snapshot(trajectory, index), snapshots[index])
    with pytest.raises(UserError, match=r"'image.layer1.0.kernel' in snapshot 2 .*expert cannot be read back"):
        read_snapshot(trajectory, 2)


@pytest.mark.parametrize("damage", ["truncate", "delete"])
def test_each_truncated_or_missing_file_is_a_user_error(tmp_path, damage):
    folder, snapshots = tmp_path / "expert", make_snapshots(length=2, width=20)
    save_trajectory(folder, snapshots, key=KEY)
    noticed = 0
    for path in [*data_files(folder), folder / "snapshots" / "manifest.ocdbt", folder / "header" / "data.json"]:
        whole = path.read_bytes()
        path.unlink() if damage == "delete" else path.write_bytes(whole[: len(whole) // 2])
        try:
            trajectory = open_trajectory(folder)
            for index in range(2):  # a file that was only a stepping stone of the save may be spared
                assert_same(read_snapshot(trajectory, index), snapshots[index])
        except UserError as error:
            assert str(folder) in str(error)
            noticed += 1
        path.write_bytes(whole)
    assert noticed >= 4  # manifest, header, a file of index and a file of weights
    assert_same(read_snapshot(open_trajectory(folder), 1), snapshots[1])


SAVE_AND_DIE = """
import os, signal, sys
import numpy as np
from mdw_jax.io.trajectory import save_trajectory
folder, moment = sys.argv[1:]

def die(event, args):
    if event in ("os.mkdir", "open", "os.rename") and str(args[0]).startswith(folder):
        if moment in (event, os.path.basename(str(args[0]))):
            os.kill(os.getpid(), signal.SIGKILL)

sys.addaudithook(die)
save_trajectory(folder, [{"image": {"w": np.full((50, 50), k, np.float32)}} for k in range(3)], key="old")
"""


def test_a_save_killed_at_any_moment_is_not_finished_and_can_be_repeated(tmp_path):
    moments = ["os.mkdir", "orbax.checkpoint", "_CHECKPOINT_METADATA", "os.rename"]
    running = {moment: subprocess.Popen([sys.executable, "-c", SAVE_AND_DIE, str(tmp_path / moment / "expert"), moment])
               for moment in moments}
    snapshots = make_snapshots(width=8)
    for moment, process in running.items():
        assert process.wait(timeout=120) == -signal.SIGKILL, f"never came to {moment}"
        parent = tmp_path / moment
        left = list(parent.iterdir()) if parent.exists() else []
        assert not any(is_finished(path) for path in [*left, parent / "expert"])
        with pytest.raises(UserError, match="no finished trajectory"):
            open_trajectory(parent / "expert")
        save_trajectory(parent / "expert", snapshots, key=KEY)
        assert is_finished(parent / "expert") and len(list(parent.iterdir())) == 1
        assert_same(read_snapshot(open_trajectory(parent / "expert", key=KEY), 3), snapshots[3])


def test_the_remains_of_a_save_in_place_are_replaced(tmp_path):
    """Where renaming is not atomic (object stores), Orbax writes in place: an unfinished directory has the final name."""
    folder = tmp_path / "expert"
    save_trajectory(folder, make_snapshots(width=8), key="old")
    (folder / "_CHECKPOINT_METADATA").unlink()
    (folder / "commit_success.txt").unlink(missing_ok=True)
    assert not is_finished(folder)
    save_trajectory(folder, make_snapshots(width=8), key=KEY)
    assert open_trajectory(folder).key == KEY


def test_a_wrong_key_is_refused(tmp_path):
    save_trajectory(tmp_path / "expert", make_snapshots(width=8), key=KEY)
    with pytest.raises(UserError, match=r"other data, noise, recipe or seed .*555555555555, not 777777777777"):
        open_trajectory(tmp_path / "expert", key="7" * 64)


@pytest.mark.parametrize("index", [-1, 4])
def test_a_snapshot_that_was_not_stored_is_refused(tmp_path, index):
    save_trajectory(tmp_path / "expert", make_snapshots(width=8), key=KEY)
    with pytest.raises(UserError, match=rf"snapshot {index} was not stored.* holds 0 to 3; lower distill.max_start"):
        read_snapshot(open_trajectory(tmp_path / "expert"), index)


def test_a_finished_trajectory_is_replaced_only_on_request(tmp_path):
    folder, snapshots = tmp_path / "expert", make_snapshots(width=8)
    save_trajectory(folder, snapshots, key=KEY)
    with pytest.raises(UserError, match="already holds a finished trajectory"):
        save_trajectory(folder, snapshots[:2], key="new")
    assert open_trajectory(folder).length == 4
    save_trajectory(folder, snapshots[:2], key="new", overwrite=True)
    assert open_trajectory(folder, key="new").length == 2


def test_what_is_not_a_trajectory_is_never_replaced(tmp_path):
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(UserError, match="'notes.txt', which is not part of a trajectory"):
        save_trajectory(tmp_path, make_snapshots(width=8), key=KEY, overwrite=True)
    assert (tmp_path / "notes.txt").read_text() == "mine"
    assert not is_finished(tmp_path) and not is_finished(tmp_path / "nowhere")


def test_metadata_that_json_cannot_hold_leaves_the_old_trajectory_alone(tmp_path):
    save_trajectory(tmp_path / "expert", make_snapshots(width=8), key=KEY)
    with pytest.raises(TypeError):
        save_trajectory(tmp_path / "expert", make_snapshots(width=8), key="new", metadata={"r": object()},
                        overwrite=True)
    assert open_trajectory(tmp_path / "expert").key == KEY


def test_bad_snapshots_are_refused(tmp_path):
    good = {"w": np.zeros(3, np.float32)}
    for snapshots, reason in [([], "at least one"), ([good, {}], "same parameters"),
                              ([good, {"w": np.zeros(4, np.float32)}], "same shape"),
                              ([{"w": np.zeros(3, np.int32)}], "floating point only"),
                              ([{"w": [np.zeros(3, np.float32)]}], "nested dicts"),
                              ([{"w": good["w"], "b": {}}], "nested dicts"), ([{0: good["w"]}], "nested dicts"),
                              ([{"a.b": good["w"], "a": {"b": good["w"]}}], "nested dicts")]:
        with pytest.raises(ValueError, match=reason):
            save_trajectory(tmp_path / "expert", snapshots, key=KEY)
    with pytest.raises(UserError, match="float32 or bfloat16, not as 'float16'"):
        save_trajectory(tmp_path / "expert", [good], key=KEY, dtype="float16")
    assert not (tmp_path / "expert").exists()
