"""Memory for large arrays, used again when they are gone.

Of memory that is new to the process, the kernel clears each page when it is first touched, which takes longer
than to fill it, and seconds per GiB on a virtual machine that hands free memory back to its host. The C library
keeps pieces of up to 32 MiB, too, but not while others of their size come and go.
"""

from __future__ import annotations

import contextlib
import ctypes
import math
import mmap
import weakref
from collections import deque
from typing import Any

import numpy as np

__all__ = ["empty"]

#: Bytes. Smaller arrays are NumPy's own.
SMALLEST = 4 << 20
#: Bytes, of which large blocks are multiples; smaller ones are powers of two. Arrays of about the same size use the same.
STEP = 32 << 20
#: Blocks that are kept, and their bytes, those of a new block counted in. They are the kernel's, should it need memory (MADV_FREE).
MOST_KEPT = 32
KEPT = 1 << 30

_idle: deque[mmap.mmap] = deque(maxlen=MOST_KEPT)


def empty(shape: tuple[int, ...], dtype: np.dtype[Any]) -> np.ndarray[Any, Any]:
    """Return a new array whose values are arbitrary, as ``numpy.empty`` does.

    Raises:
        MemoryError: There is not enough.
    """
    size = math.prod(shape) * dtype.itemsize
    if size < SMALLEST:
        return np.empty(shape, dtype)
    block = _block(-(-size // STEP) * STEP if size > STEP else 1 << (size - 1).bit_length())
    # It lives as long as any view of the array.
    owner = (ctypes.c_ubyte * len(block)).from_buffer(block)
    weakref.finalize(owner, _keep, block).atexit = False
    return np.frombuffer(memoryview(owner), np.uint8, size).view(dtype).reshape(shape)


def _block(size: int) -> mmap.mmap:
    for _ in range(len(_idle)):
        with contextlib.suppress(IndexError):  # another thread was faster
            block = _idle.popleft()
            if len(block) == size:
                return block
            _idle.append(block)
    _make_room(size)
    try:
        block = mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    except (OSError, OverflowError, ValueError) as error:
        raise MemoryError(f"no room for {size} bytes") from error
    with contextlib.suppress(OSError):  # a kernel without huge pages
        block.madvise(mmap.MADV_HUGEPAGE)
    return block


def _keep(block: mmap.mmap) -> None:
    if len(block) > KEPT:
        return
    _make_room(len(block))
    with contextlib.suppress(OSError):  # an older kernel
        block.madvise(mmap.MADV_FREE)
    _idle.append(block)


def _make_room(size: int) -> None:
    """Give kept blocks back, until `size` more bytes are no more than are kept."""
    while _idle and size + sum(map(len, tuple(_idle))) > KEPT:
        with contextlib.suppress(IndexError):  # another thread was faster
            _idle.popleft()
