"""Reading .npy and .npz files that may be damaged, or a stranger's: one kind of error for all that can be wrong."""

import contextlib
import struct
import tokenize
import zipfile
import zlib
from collections.abc import Iterator
from typing import Any

import numpy as np

# What numpy and zipfile raise on damaged files, beside OSError.
_DAMAGED = (EOFError, KeyError, NotImplementedError, OverflowError, RecursionError, RuntimeError, SyntaxError, TypeError,
            ValueError, MemoryError, AttributeError, IndexError, struct.error, tokenize.TokenError, zipfile.BadZipFile,
            zlib.error)
_LARGE, _MOST_PACKED = 1 << 30, 200  # bytes of an archive once unpacked, and times its size, beyond which it is refused


@contextlib.contextmanager
def numpy_file(source, mmap_mode: Any = None) -> Iterator[Any]:
    """An open .npy or .npz file, for a `with` block that reads it; nothing in it is unpickled.

    Args:
        source: a path, or an open binary file.
        mmap_mode: as `numpy.load` takes it, for a .npy.

    Yields:
        The array of a .npy, or a mapping from names to the arrays of an .npz, each read when it is asked for.

    Raises:
        OSError: the file cannot be read.
        ValueError: it is damaged, of another kind, or unpacks to far more than it is; also for what is found damaged, or
            missing, inside the block. The message is a short reason.
    """
    try:
        with contextlib.ExitStack() as stack:
            stored: Any = np.load(source, mmap_mode=mmap_mode, allow_pickle=False)
            if not isinstance(stored, np.ndarray):
                stack.enter_context(stored)
                _refuse_bomb(stored.zip)
            yield stored
    except OSError:
        raise
    except _DAMAGED as error:
        raise ValueError(_reason(error)) from error


def _refuse_bomb(archive: zipfile.ZipFile) -> None:
    if any(entry.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED) for entry in archive.infolist()):
        raise ValueError("it is compressed in a way that numpy does not write")  # and that unpacks without bounds
    unpacked = sum(entry.file_size for entry in archive.infolist())
    packed = sum(entry.compress_size for entry in archive.infolist())
    if unpacked > _LARGE and unpacked > _MOST_PACKED * packed:
        raise ValueError(f"it would unpack to {unpacked:,} bytes, {unpacked // max(packed, 1):,} times its size")


def _reason(error: BaseException) -> str:
    text = str(error).split(". If you trust")[0]  # without numpy's advice to unpickle the file
    return f"{type(error).__name__}: {text}".splitlines()[0][:200]
