"""What every device of several does in one step: `python -m mdw_jax.analysis.scale.device_process CONFIG DEVICES OUT`.

A program of its own, because JAX fixes the number of devices when it starts: `devices.py` starts it with so many virtual
ones. Programs are compiled and not run.
"""

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec
from ml_collections import ConfigDict

from mdw_jax.analysis.benchmark.case import Case, make_case
from mdw_jax.analysis.benchmark.expert_step import expert_problem
from mdw_jax.analysis.benchmark.outer_step import step_and_arguments
from mdw_jax.analysis.benchmark.timing import memory_beyond_inputs, xla_flops
from mdw_jax.analysis.cost.collectives import collective_bytes
from mdw_jax.config.overrides import preset_config
from mdw_jax.config.stored import read_config_file
from mdw_jax.io.files import write_json
from mdw_jax.method.expert_step import EpochInputs, make_expert_steps
from mdw_jax.runtime.mesh import REPLICA, mesh_for, shard, vmapped_jit
from mdw_jax.runtime.pytree import stack


def steps_on(config: ConfigDict, devices: int) -> Iterator[dict]:
    """Rows of the steps of a config that does `devices` times as much work, on all devices of this process.

    Args:
        config: not resolved.
        devices: how many there are.

    Yields:
        dicts of step, grown (what there is more of), devices, flops (XLA's count of one device; of a loop its body once),
        sent (bytes of collectives of one device) and memory (bytes of one device beyond its inputs).
    """
    resolved = ConfigDict(preset_config(config, "mdw").to_dict())
    for section, name, grown, compiled in (
            ("distill", "trajectories", "trajectories", _outer_step), ("distill", "batch", "pairs a batch", _outer_step),
            ("experts", "count", "networks", _expert_steps), ("experts", "batch", "pairs a batch", _one_expert_step)):
        c = ConfigDict(resolved.to_dict())
        c[section][name] *= devices
        c.distill.pairs = max(c.distill.pairs, c.distill.batch)
        call = compiled(make_case(c.lock()), devices)
        yield {"step": "outer step" if section == "distill" else "expert steps", "grown": grown, "devices": devices,
               "flops": xla_flops(call), "sent": sum(collective_bytes(call.as_text()).values()),
               "memory": memory_beyond_inputs(call)}


def _outer_step(case: Case, devices: int):
    step, *arguments = step_and_arguments(case)
    return step.lower(*arguments).compile()


def _expert_steps(case: Case, devices: int):
    return _steps_of_networks(case, devices)


def _one_expert_step(case: Case, devices: int):
    return _steps_of_networks(case, 1)


def _steps_of_networks(case: Case, networks: int):
    """The steps of some networks together; one of them has all devices for its batch."""
    problem = expert_problem(case)
    steps = make_expert_steps(case.model, problem.recipe, 0.0)
    keys = jax.random.split(jax.random.key(0), len(problem.batches.rows))
    inputs = EpochInputs(steps.init(problem.params), problem.batches, keys, problem.teacher)
    mesh = mesh_for(networks)
    shared = shard(mesh, PartitionSpec(), (jnp.asarray(problem.images), jnp.asarray(problem.texts)))
    with jax.set_mesh(mesh):
        stacked = shard(mesh, PartitionSpec(REPLICA), stack([inputs] * networks))
        epoch: Any = vmapped_jit(steps.epoch, 3)
        return epoch.lower(stacked, *shared, None).compile()


def main(config: str, devices: str, out: str) -> None:
    """Write the rows of a config file to a JSON file."""
    if len(jax.devices()) != int(devices):
        raise RuntimeError(f"there are {len(jax.devices())} devices, not {devices}")
    write_json(Path(out), list(steps_on(read_config_file(Path(config)).lock(), int(devices))))


if __name__ == "__main__":
    main(*sys.argv[1:])
