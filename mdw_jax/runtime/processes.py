"""How the processes of one run find each other: `jax.distributed`, where the environment says so.

MDW_COORDINATOR, MDW_PROCESSES, MDW_PROCESS
    host:port of process 0, how many processes there are, which of them this is; set by launch/local.sh, launch/gke.yaml
MDW_DISTRIBUTED=1
    jax finds all that out itself: under SLURM's srun, on the hosts of a TPU slice, under Open MPI
"""

import json
import os
import sys

import numpy as np

from mdw_jax.errors import UserError

_BY_HAND = ("MDW_COORDINATOR", "MDW_PROCESSES", "MDW_PROCESS")


def join(environment=os.environ) -> None:
    """Join the other processes of this run; without the variables above, or with a single process, do nothing.

    Call it before the first use of a device. SIGTERM stays ours (`interrupt.py`): jax would take it too.

    Raises UserError: some variables are set and some are not, they make no sense, or the others are not to be found.
    """
    found = {name: environment[name] for name in _BY_HAND if environment.get(name)}
    asked = environment.get("MDW_DISTRIBUTED", "0") not in ("", "0")
    if found:
        arguments = _by_hand(found)
        if arguments["num_processes"] == 1:
            return
    elif asked and environment.get("SLURM_NTASKS") != "1":
        arguments = {}
    else:
        return
    import jax  # here, because `mdw config` and `mdw --help` do without it

    if jax.distributed.is_initialized():
        return
    jax.config.update("jax_enable_preemption_service", False)
    try:
        jax.distributed.initialize(**arguments)
    except (ValueError, RuntimeError) as error:
        where = f"at {arguments['coordinator_address']}" if arguments else "by MDW_DISTRIBUTED=1"
        raise UserError(f"the other processes of this run are not to be found {where} ({_first_line(error)}); check "
                        "that all of them are started, and with the same settings.") from error


def _by_hand(found: dict[str, str]) -> dict:
    """Arguments of jax.distributed.initialize from the MDW_ variables; jax's own guesses are turned off."""
    missing = [name for name in _BY_HAND if name not in found]
    if missing:
        raise UserError(f"{', '.join(found)} is set but {', '.join(missing)} is not; set all three, or none.")
    try:
        count, process = int(found["MDW_PROCESSES"]), int(found["MDW_PROCESS"])
    except ValueError:
        count, process = 0, 0
    if not 0 <= process < count:
        raise UserError(f"MDW_PROCESSES={found['MDW_PROCESSES']} and MDW_PROCESS={found['MDW_PROCESS']} make no sense; "
                        "they are how many processes there are and which of them this is, from 0.")
    host, colon, port = found["MDW_COORDINATOR"].rpartition(":")
    if not (host and colon and port.isdigit()):
        raise UserError(f"MDW_COORDINATOR={found['MDW_COORDINATOR']} is not host:port.")
    return {"coordinator_address": found["MDW_COORDINATOR"], "num_processes": count, "process_id": process,
            "cluster_detection_method": "deactivate"}


def _first_line(error: Exception) -> str:
    return str(error).splitlines()[0].rstrip(".") if str(error) else type(error).__name__


def several_processes() -> bool:
    """Whether there is more than one. Imports no jax: without it a process has not joined any other."""
    jax = sys.modules.get("jax")
    return jax is not None and jax.distributed.is_initialized() and jax.process_count() > 1


def is_main() -> bool:
    """Whether this process writes files and talks to the terminal."""
    return not several_processes() or sys.modules["jax"].process_index() == 0


def barrier() -> None:
    """Until all processes are here: what process 0 wrote before is there for all after it."""
    broadcast_from_main(lambda: None)


def raise_if_any_failed(error: UserError | None) -> None:
    """Raises in all processes if any of them comes with an error: its own, or a word of another's."""
    failed = [error is not None]
    if several_processes():
        from jax.experimental import multihost_utils

        failed = multihost_utils.process_allgather(np.array(error is not None)).ravel().tolist()
    if error is not None:
        raise error
    if any(failed):
        raise UserError(f"process {failed.index(True)} stopped, and all others with it; see what it says.")


def broadcast_from_main(decide):
    """What `decide()` (JSON, or None) says in process 0, in all processes.

    Whatever process 0 wrote before it is there for the others after it. If process 0 raises, all do.
    """
    if not several_processes():
        return decide()
    from jax.experimental import multihost_utils

    error, said = None, b""
    if is_main():
        try:
            said = json.dumps([decide()]).encode()
        except Exception as caught:  # the others must not wait for a process that is gone
            error, said = caught, json.dumps(str(caught)).encode()
    size = int(multihost_utils.broadcast_one_to_all(np.array(len(said))))
    buffer = np.zeros(size, np.uint8)
    if is_main():
        buffer[:] = np.frombuffer(said, np.uint8)
    heard = json.loads(bytes(multihost_utils.broadcast_one_to_all(buffer)))
    if error is not None:
        raise error
    if isinstance(heard, str):
        raise UserError(heard)
    return heard[0]
