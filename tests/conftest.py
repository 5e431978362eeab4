import gc
import os
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
