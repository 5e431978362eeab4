"""The processes of one run: how they find each other (`jax.distributed`), and how they agree.

Environment variables:

    MDW_COORDINATOR, MDW_PROCESSES, MDW_PROCESS
        host:port of process 0, the number of processes, and the number of this one; set by launch/local.sh and
        launch/gke.yaml
    MDW_DISTRIBUTED=1
        jax finds the other processes itself: under SLURM's srun, on the hosts of a TPU slice, under Open MPI
    MDW_JOIN_TIMEOUT
        seconds within which all processes have to be there, 300 by default

All processes run the same program. Only process 0 writes files and prints to the terminal. They meet at process 0, which
compares what has to be the same in all of them (`mdw_jax.runtime.meeting`); from then on, the end of one is the end of all
(`mdw_jax.runtime.peers`). jax and numpy are imported only where several processes exist, so that `mdw --help` and
`mdw runs` start quickly.
"""

import atexit
import contextlib
import json
import logging
import os
import sys
import threading
from collections.abc import Callable, Mapping
from typing import Any

from mdw_jax.errors import UserError
from mdw_jax.runtime.agreement import Facts, program_facts
from mdw_jax.runtime.meeting import Place, host_and_port, meet
from mdw_jax.runtime.peers import STATUS, Peers, peers, set_peers
from mdw_jax.runtime.relay import relay_to

_LOG = logging.getLogger(__name__)
_EXPLICIT = ("MDW_COORDINATOR", "MDW_PROCESSES", "MDW_PROCESS")
_TIMEOUT = 300  # seconds; default of MDW_JOIN_TIMEOUT
_HEARTBEAT = 3600  # seconds until jax itself gives a silent process up, with an abort; `peers` is quicker


def join(environment: Mapping[str, str] = os.environ, facts: Facts | None = None) -> None:
    """Join the other processes of this run; without the variables above, or with a single process, do nothing.

    Call it before the first use of a device. SIGTERM stays with `mdw_jax.runtime.preemption`: jax's own handler is
    turned off.

    Args:
        environment: the environment variables.
        facts: what has to be the same in all processes, besides this package and the versions of what it computes with.

    Raises:
        UserError: some variables are set and others are not, they are inconsistent, the others cannot be found, or
            differ from this process.
    """
    explicit = {name: environment[name] for name in _EXPLICIT if environment.get(name)}
    automatic = environment.get("MDW_DISTRIBUTED", "0") not in ("", "0")
    if explicit:
        place, devices = _explicit_place(explicit, environment), None
        if place.processes == 1:
            return
    elif not automatic or environment.get("SLURM_NTASKS") == "1":
        return
    import jax

    if jax.distributed.is_initialized():
        return
    if hasattr(jax.config, "jax_enable_preemption_service"):  # not before jax 0.8
        jax.config.update("jax_enable_preemption_service", False)
    if not explicit:
        place, devices = _detected_place(environment)
        if place.processes == 1:
            return
    met = meet(place, {**(facts or {}), **program_facts()})
    set_peers(Peers(place.process, met))
    atexit.register(peers().finish)
    with met.held or contextlib.nullcontext():
        _initialize(place, met.port, devices)


def _initialize(place: Place, port: int, devices: Any) -> None:
    """`jax.distributed.initialize` at another port of process 0 than where the processes met.

    Where jax cannot connect, it aborts the process; so this module ends it first, with a sentence.
    """
    import jax

    address = host_and_port(place.host, port)
    missed = threading.Timer(place.timeout, _not_connected, (address,))
    missed.daemon = True
    missed.start()
    try:
        jax.distributed.initialize(
            address if place.process == 0 else relay_to(place.host, port), place.processes, place.process,
            devices, cluster_detection_method="deactivate", initialization_timeout=int(place.timeout) + 60,
            heartbeat_timeout_seconds=_HEARTBEAT)
    except (ValueError, RuntimeError) as error:
        raise UserError(f"jax cannot connect the processes of this run at {address} ({_first_line(error)}); "
                        "open this port between their machines.") from error
    finally:
        missed.cancel()


def _not_connected(address: str) -> None:
    """End the process: jax waits for the others, at a port that they do not reach."""
    print(f"mdw: the processes of this run met, but jax cannot connect them at {address}; open this port between their "
          "machines.", file=sys.stderr, flush=True)
    os._exit(STATUS)


def _explicit_place(variables: Mapping[str, str], environment: Mapping[str, str]) -> Place:
    """Where the processes meet by the MDW_ variables; jax's automatic detection is turned off."""
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
    host, port = _host_and_port(variables["MDW_COORDINATOR"], "MDW_COORDINATOR")
    return Place(host, port, count, process, _timeout(environment))


def _detected_place(environment: Mapping[str, str]) -> tuple[Place, Any]:
    """Where the processes meet, and the local devices of this one, as jax detects them.

    jax has no public function for it; the private one has been the same from 0.7 to 0.10.
    """
    from jax._src.clusters import ClusterEnv

    timeout = _timeout(environment)
    try:
        address, count, process, devices = ClusterEnv.auto_detect_unset_distributed_params(
            None, None, None, None, None, int(timeout))
    except (ValueError, RuntimeError, OSError, KeyError) as error:
        raise UserError(f"MDW_DISTRIBUTED=1, but jax cannot tell where the other processes are ({_first_line(error)}); "
                        f"set {', '.join(_EXPLICIT)} instead.") from error
    if address is None or count is None or process is None:
        raise UserError("MDW_DISTRIBUTED=1, but jax finds neither SLURM, nor a TPU slice, nor Open MPI here; start the "
                        f"processes by one of them, or set {', '.join(_EXPLICIT)}.")
    return Place(*_host_and_port(address, "the coordinator that jax found"), int(count), int(process), timeout), devices


def _host_and_port(address: str, name: str) -> tuple[str, int]:
    host, colon, port = address.rpartition(":")
    if not (host and colon and port.isdecimal() and 0 < int(port) < 1 << 16):
        raise UserError(f"{name}={address} is not host:port.")
    return host.strip("[]"), int(port)


def _timeout(environment: Mapping[str, str]) -> float:
    text = environment.get("MDW_JOIN_TIMEOUT") or str(_TIMEOUT)
    if not text.isdecimal() or not int(text):
        raise UserError(f"MDW_JOIN_TIMEOUT={text} is not a number of seconds.")
    return float(text)


def _first_line(error: Exception) -> str:
    return str(error).splitlines()[0].rstrip(".") if str(error) else type(error).__name__


def agree(facts: Facts, within: float | None = None) -> None:
    """Make sure that something is the same in all processes, before they compute together; all call it in the same order.

    Args:
        facts: {what: {key: value}}; JSON holds the values, or their `str`.
        within: seconds in which the others have to come to this point; None: however long they take.

    Raises:
        Disagreement: a process differs in it; in all processes.
        TimeoutError: not all others came in time.
    """
    if (others := peers()) is not None:
        others.agree(facts, within)


def fail(why: str, status: int, *, certain: bool = True, last: Callable[[], None] = lambda: None) -> None:
    """Let this process end for an error, and with it all others; with a single process, do nothing but `last`.

    Args:
        why: one sentence.
        status: the exit status.
        certain: whether the error cannot come from a computation in which another process is missing.
        last: says to the user what happened, if it is this process's to say.
    """
    others = peers()
    if others is None:
        last()
        return
    others.say_failure(why, certain=certain)
    last()
    others.leave(status)


def stopped(number: int) -> None:
    """Let the others know that a signal stops this process."""
    if (others := peers()) is not None:
        others.say_stopped(number)


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
