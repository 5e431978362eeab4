"""The processes of one run: how they find each other (`jax.distributed`), and how they agree.

Environment variables:

    MDW_COORDINATOR, MDW_PROCESSES, MDW_PROCESS
        host:port of process 0, the number of processes, and the number of this one; set by launch/local.sh and
        launch/gke.yaml
    MDW_DISTRIBUTED=1
        jax finds the other processes itself: under SLURM's srun, on the hosts of a TPU slice, under Open MPI

All processes run the same program. Only process 0 writes files and prints to the terminal. jax and numpy are imported
only where several processes exist, so that `mdw --help` and `mdw runs` start quickly.
"""

import json
import os
import sys
from collections.abc import Callable, Mapping
from typing import Any

from mdw_jax.errors import UserError

_EXPLICIT = ("MDW_COORDINATOR", "MDW_PROCESSES", "MDW_PROCESS")


def join(environment: Mapping[str, str] = os.environ) -> None:
    """Join the other processes of this run; without the variables above, or with a single process, do nothing.

    Call it before the first use of a device. SIGTERM stays with `mdw_jax.runtime.preemption`: jax's own handler is
    turned off.

    Raises:
        UserError: some variables are set and others are not, they are inconsistent, or the others cannot be found.
    """
    explicit = {name: environment[name] for name in _EXPLICIT if environment.get(name)}
    automatic = environment.get("MDW_DISTRIBUTED", "0") not in ("", "0")
    if explicit:
        arguments = _explicit_arguments(explicit)
        if arguments["num_processes"] == 1:
            return
    elif automatic and environment.get("SLURM_NTASKS") != "1":
        arguments = {}
    else:
        return
    import jax

    if jax.distributed.is_initialized():
        return
    jax.config.update("jax_enable_preemption_service", False)
    try:
        jax.distributed.initialize(**arguments)
    except (ValueError, RuntimeError) as error:
        where = f"at {arguments['coordinator_address']}" if arguments else "by MDW_DISTRIBUTED=1"
        raise UserError(f"the other processes of this run cannot be found {where} ({_first_line(error)}); check that "
                        "all of them are started, and with the same settings.") from error


def _explicit_arguments(variables: Mapping[str, str]) -> dict[str, Any]:
    """Arguments of jax.distributed.initialize from the MDW_ variables; jax's automatic detection is turned off."""
    missing = [name for name in _EXPLICIT if name not in variables]
    if missing:
        raise UserError(f"{', '.join(variables)} is set but {', '.join(missing)} is not; set all three, or none.")
    try:
        count, process = int(variables["MDW_PROCESSES"]), int(variables["MDW_PROCESS"])
    except ValueError:
        count, process = 0, 0
    if not 0 <= process < count:
        raise UserError(f"MDW_PROCESSES={variables['MDW_PROCESSES']} and MDW_PROCESS={variables['MDW_PROCESS']} make "
                        "no sense; they are the number of processes and the number of this one, from 0.")
    host, colon, port = variables["MDW_COORDINATOR"].rpartition(":")
    if not (host and colon and port.isdigit()):
        raise UserError(f"MDW_COORDINATOR={variables['MDW_COORDINATOR']} is not host:port.")
    return {"coordinator_address": variables["MDW_COORDINATOR"], "num_processes": count, "process_id": process,
            "cluster_detection_method": "deactivate"}


def _first_line(error: Exception) -> str:
    return str(error).splitlines()[0].rstrip(".") if str(error) else type(error).__name__


def several_processes() -> bool:
    """Whether the run has more than one process."""
    jax = sys.modules.get("jax")  # a process that has not imported jax has not joined any other
    return jax is not None and jax.distributed.is_initialized() and jax.process_count() > 1


def is_main() -> bool:
    """Whether this process writes files and prints to the terminal."""
    return not several_processes() or sys.modules["jax"].process_index() == 0


def barrier() -> None:
    """Wait until all processes are here; after it, all see the files that process 0 wrote before it."""
    broadcast_from_main(lambda: None)


def raise_if_any_failed(error: UserError | None) -> None:
    """Raise in all processes if any of them has failed.

    Args:
        error: the error of this process; None if it has not failed.

    Raises:
        UserError: the error of this process, or a note that another one failed.
    """
    failed = [error is not None]
    if several_processes():
        import numpy as np
        from jax.experimental import multihost_utils

        failed = multihost_utils.process_allgather(np.array(error is not None)).ravel().tolist()
    if error is not None:
        raise error
    if any(failed):
        raise UserError(f"process {failed.index(True)} stopped, and all others with it; see its own message.")


def broadcast_from_main(decide: Callable[..., Any]) -> Any:
    """Call `decide` in process 0 alone, and return its result in all processes.

    All processes see the files that process 0 wrote before.

    Args:
        decide: returns something JSON can hold, or None.

    Raises:
        UserError: in the other processes, if `decide` raises in process 0.
    """
    if not several_processes():
        return decide()
    import numpy as np
    from jax.experimental import multihost_utils

    error, message = None, b""
    if is_main():
        try:
            message = json.dumps([decide()]).encode()
        except Exception as caught:  # the others must not wait for a process that is gone
            error, message = caught, json.dumps(str(caught)).encode()
    size = int(multihost_utils.broadcast_one_to_all(np.array(len(message))))
    buffer = np.zeros(size, np.uint8)
    if is_main():
        buffer[:] = np.frombuffer(message, np.uint8)
    received = json.loads(bytes(multihost_utils.broadcast_one_to_all(buffer)))
    if error is not None:
        raise error
    if isinstance(received, str):
        raise UserError(received)
    return received[0]
