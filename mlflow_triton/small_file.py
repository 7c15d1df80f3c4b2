"""Reading a file that should be small, whatever it turns out to be."""

from __future__ import annotations

import errno
import os
import stat
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pathlib import Path

__all__ = ["LARGEST", "read_small"]

#: Bytes; far beyond any configuration or record, and nothing for the memory.
LARGEST = 16 << 20


def read_small(path: Path) -> bytes:
    """Read a plain file of at most `LARGEST` bytes; a pipe would keep its reader waiting, a sparse file fill the memory.

    Raises:
        OSError: It cannot be read, is no plain file, or is too large.
    """
    descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
    with open(descriptor, "rb") as file:  # noqa: PTH123 - a descriptor
        found = os.fstat(descriptor)
        if not stat.S_ISREG(found.st_mode):
            raise OSError(errno.EINVAL, "it is not a plain file", str(path))
        if found.st_size > LARGEST:
            raise OSError(errno.EFBIG, f"it is larger than {LARGEST >> 20} MiB", str(path))
        return file.read(LARGEST)
