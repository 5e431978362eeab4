"""The same numbers on one device and on many, in one process and in two."""

import os
import socket
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mdw_jax.analysis.cost.collectives import collective_bytes
from mdw_jax.runtime import mesh
from mdw_jax.runtime.processes import broadcast_from_main, is_main

ROOT = Path(__file__).parents[2]


def run(folder, devices: int, processes: int = 1) -> dict:
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = free.getsockname()[1]
    flags = f"{os.environ.get('XLA_FLAGS', '')} --xla_force_host_platform_device_count={devices // processes}"
    environment = {**os.environ, "XLA_FLAGS": flags, "EXPECTED_DEVICES": str(devices), "JAX_PLATFORMS": "cpu",
                   "PYTHONPATH": os.pathsep.join([str(ROOT), *filter(None, sys.path)])}
    out = folder / f"{devices}-{processes}.npz"
    started = [subprocess.Popen([sys.executable, ROOT / "tests" / "mesh_program.py", str(port), str(n), str(processes),
                                 out], env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
               for n in range(processes)]
    for process in started:
        output, _ = process.communicate(timeout=300)
        assert process.returncode == 0, output
    with np.load(out, allow_pickle=False) as file:
        return dict(file)


@pytest.fixture(scope="module")
def one(tmp_path_factory):
    return run(tmp_path_factory.mktemp("one"), 1)


@pytest.mark.parametrize("devices, processes", [
    (2, 1), pytest.param(8, 1, marks=pytest.mark.slow), pytest.param(8, 2, marks=pytest.mark.slow)])
def test_numbers_do_not_depend_on_devices(tmp_path, one, devices, processes):
    found = run(tmp_path, devices, processes)
    assert found.keys() == one.keys() and len(one) > 30
    moved = 0
    for name, wanted in one.items():
        scale = np.abs(wanted).max()
        np.testing.assert_allclose(found[name] / scale, wanted / scale, atol=2e-3, err_msg=name)
        moved += not np.array_equal(found[name], wanted)
    assert moved  # or they were not computed another way at all


def test_map_replicas_is_a_loop():
    trees = [{"a": jnp.arange(3.0) + n} for n in range(3)]
    found = mesh.map_replicas(jax.tree_util.Partial(lambda tree, scale: {"b": tree["a"].sum() * scale}), trees, 2.0)
    assert [float(one["b"]) for one in found] == [6, 12, 18]
    assert broadcast_from_main(lambda: {"x": 1}) == {"x": 1} and is_main()


HLO = """HloModule jit_f, entry_computation_layout={()->f32[]}

%add (x: f32[], y: f32[]) -> f32[] {
  ROOT %sum = f32[] add(%x, %y)
}

%inner (p: (s32[], bf16[6,3])) -> (s32[], bf16[6,3]) {
  %r = bf16[6,3]{1,0} all-reduce(%p), to_apply=%add
  %g = (f32[2]{0}, pred[4]{0}) all-gather-start(%p), dimensions={0}
  %d = f32[8]{0} all-gather-done(%g)
}

%outer (p: s32[]) -> s32[] {
  %w = (s32[]) while(%p), condition=%c, body=%inner, backend_config={"known_trip_count":{"n":"3"}}
}

ENTRY %main (x: f32[8]) -> f32[8] {
  %w = (s32[]) while(%x), condition=%c, body=%outer, backend_config={"known_trip_count":{"n":"2"}}
  %f = f32[8]{0} fusion(%w), kind=kLoop, calls=%fused
  ROOT %p = u8[10]{0} collective-permute(%f), source_target_pairs={{0,1}}
}

%fused (x: f32[8]) -> f32[8] {
  %t = (f32[2]{0}, f32[]) all-reduce(%x), to_apply=%add
}
"""


def test_bytes_of_collectives_in_loops_and_calls():
    assert collective_bytes(HLO) == {"all-reduce": 3 * 2 * 36 + 12, "all-gather": 3 * 2 * 8, "collective-permute": 10}


def test_one_device_sends_nothing():
    compiled = jax.jit(lambda x: jax.lax.scan(lambda c, _: (c @ c, None), x, None, length=3)).lower(jnp.eye(4)).compile()
    assert collective_bytes(compiled.as_text()) == {}
