import platform
import re
from pathlib import Path

import pytest

from mdw_jax.runtime import freed_memory


def held() -> float:
    """Megabytes of this process that are no file's."""
    return int(re.search(r"RssAnon:\s+(\d+)", Path("/proc/self/status").read_text())[1]) / 1024


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc" or not Path("/proc/self/status").exists(), reason="of glibc on Linux")
def test_holes_in_the_heap_go_back_to_the_system():
    blocks = [bytearray(100_000) for _ in range(2000)]
    last = bytearray(100_000)  # above the holes: the heap cannot end before it
    del blocks
    before = held()
    freed_memory.give_back()
    assert held() < before - 150 and not any(last)


def test_where_the_c_library_is_another_nothing_happens(monkeypatch):
    monkeypatch.setattr(freed_memory.ctypes, "CDLL", lambda name: object())
    freed_memory._trim.cache_clear()
    try:
        freed_memory.give_back()
    finally:
        freed_memory._trim.cache_clear()
