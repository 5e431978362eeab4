import gc
import os
import re
import sys
from pathlib import Path

import pytest

# Most of the suite's time is compiling: without the costly passes it takes half of it. Before jax is imported.
CHEAP = "--xla_backend_optimization_level=0 --xla_llvm_disable_expensive_passes=true"
if CHEAP not in os.environ.get("XLA_FLAGS", ""):  # a worker has it from the process that started it
    os.environ["XLA_FLAGS"] = f"{CHEAP} {os.environ.get('XLA_FLAGS', '')}".strip()

HERE = Path(__file__).parent
# What several of them share.
sys.path[:0] = [str(HERE), *(str(HERE / package) for package in ("method", "runtime", "reporting"))]

# What jax keeps of every program makes a full collection long, and there is little to collect.
gc.set_threshold(100_000, 50, 50)


@pytest.fixture(scope="session", autouse=True)
def compilation_cache(tmp_path_factory, worker_id):
    """Many tests compile the same things, in all workers."""
    import jax

    base = tmp_path_factory.getbasetemp()
    jax.config.update("jax_compilation_cache_dir", str((base if worker_id == "master" else base.parent) / "xla"))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)


# ---- what is skipped -------------------------------------------------------------------------------------------------

_MISSING = re.compile(r"could not import '([\w.]+)'|is an extra|is not installed")


def _failed_if_it_must_run(report):
    """The report; of a test that was skipped for want of a package that PACKAGES_TO_TEST, as .ci/run sets it, says is
    here, a failed one."""
    packages = os.environ.get("PACKAGES_TO_TEST", "").split()
    reason = str(report.longrepr[2]) if report.skipped and isinstance(report.longrepr, tuple) else ""
    found = _MISSING.search(reason)
    if packages and found and (found[1] is None or found[1].partition(".")[0] in packages):
        report.outcome = "failed"
        report.longrepr = f"{report.nodeid} was skipped, and its package should be installed: {reason}"
    return report


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item, call):
    """Of a skipped test."""
    return _failed_if_it_must_run((yield))


@pytest.hookimpl(wrapper=True)
def pytest_make_collect_report(collector):
    """Of a module that skips itself."""
    return _failed_if_it_must_run((yield))
