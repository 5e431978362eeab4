"""One stage of a run in a process of its own, and what it took."""

import os
import re
import subprocess
import sys
import time
from pathlib import Path
from typing import NamedTuple

from mdw_jax.errors import UserError


class Took(NamedTuple):
    """What a process took.

    Attributes:
        seconds: as they passed.
        processor: of all its cores together.
        memory: bytes at its peak, files that it mapped and read included.
    """

    seconds: float
    processor: float
    memory: float


def run_stage(stage: str, config: Path, log: Path) -> Took:
    """Run `mdw STAGE CONFIG` and wait.

    Args:
        stage: the command.
        config: a config file or a run folder.
        log: file for what it prints.

    Raises:
        UserError: it failed; with its last line.
    """
    start = time.perf_counter()
    with open(log, "w") as file:
        process = subprocess.Popen([sys.executable, "-m", "mdw_jax", stage, str(config)], stdout=file, stderr=file)
        try:
            _, status, usage = os.wait4(process.pid, 0)
        except BaseException:
            process.kill()
            process.wait()
            raise
    process.returncode = os.waitstatus_to_exitcode(status)  # else Popen waits for it again
    if process.returncode:
        said = re.split(r"[\r\n]+", log.read_text(errors="replace").strip())[-1]
        raise UserError(f"mdw {stage} {config} ended with status {process.returncode} ({said or 'it said nothing'}); "
                        f"{log} holds all that it said.")
    unit = 1 if sys.platform == "darwin" else 1024  # of ru_maxrss
    return Took(time.perf_counter() - start, usage.ru_utime + usage.ru_stime, usage.ru_maxrss * unit)
