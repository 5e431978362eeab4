"""Memory that was freed and that the C library keeps for later: given back to the system after a pass over much data.

glibc has a heap for each thread, in which it keeps freed blocks of up to 32 MB. Batches are allocated in one thread and
freed in another, so that each epoch leaves holes in other places: 0.6 GB after sixteen of them, measured for this work.
"""

import ctypes
import functools
from collections.abc import Callable


def give_back() -> None:
    """Give pages that hold nothing back to the system; does nothing where the C library is not glibc."""
    _trim()(0)


@functools.cache
def _trim() -> Callable[[int], object]:
    try:
        return ctypes.CDLL(None).malloc_trim
    except (OSError, AttributeError, TypeError):  # macOS, musl, Windows
        return lambda kept: None
