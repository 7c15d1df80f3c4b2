"""The NVIDIA GPUs of this machine, and why there are none.

The driver is asked through its management library (NVML), never through CUDA: a process that has initialised
CUDA can no longer be forked. Standard library only, and nothing is loaded before it is asked for.
"""

from __future__ import annotations

import ctypes
import os
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = ["HostGpu", "host_gpu"]

_DRIVER = Path("/proc/driver/nvidia/version")  # there while the kernel module is loaded, also in containers
_DEVICES = Path("/dev")
_NVML, _CUDA = "libnvidia-ml.so.1", "libcuda.so.1"
_NAME = 96  # bytes; NVML's longest device name
_HIDDEN = ("", "-1", "NoDevFiles")


@dataclass(frozen=True, slots=True)
class HostGpu:
    """What this machine has.

    Attributes:
        names: Each GPU's name, such as ``NVIDIA H100 80GB HBM3``; empty if a server could use none.
        reason: Why it could use none; empty if it could.
    """

    names: tuple[str, ...]
    reason: str

    @property
    def present(self) -> bool:
        """Whether a server on this machine could use a GPU."""
        return bool(self.names)

    def __str__(self) -> str:
        return ", ".join(self.names) or f"none: {self.reason}"


def host_gpu(*, process: bool = False) -> HostGpu:
    """Look for GPUs on this machine, telling apart what may be missing: driver, device, libraries.

    Args:
        process: For a process that inherits this one's environment, in which ``CUDA_VISIBLE_DEVICES`` may
            hide the GPUs; a container inherits nothing.
    """
    # WSL has one device for all GPUs, and its driver is Windows' own.
    windows = (_DEVICES / "dxg").exists()
    if not windows and not _DRIVER.exists():
        return HostGpu((), "no NVIDIA driver is loaded on this machine")
    if not windows and not any(_DEVICES.glob("nvidia[0-9]*")):
        return HostGpu(
            (),
            f"the NVIDIA driver is loaded, but there is no device {_DEVICES}/nvidia0 (in a container: it was "
            "started without --gpus)",
        )
    if process and os.environ.get("CUDA_VISIBLE_DEVICES", "0") in _HIDDEN:
        return HostGpu((), f"CUDA_VISIBLE_DEVICES={os.environ['CUDA_VISIBLE_DEVICES']} hides every GPU")
    try:
        names = _ask_driver()
    except OSError as error:
        return HostGpu((), str(error))
    return HostGpu(names, "" if names else "the NVIDIA driver reports no GPU")


def _ask_driver() -> tuple[str, ...]:
    """Return the GPUs' names.

    Raises:
        OSError: A library of the driver is missing or answers with an error.
    """
    _load(_CUDA)  # which a server will need
    names = []
    with _nvml() as nvml:
        count = ctypes.c_uint()
        _check(nvml, nvml.nvmlDeviceGetCount_v2(ctypes.byref(count)))
        for index in range(count.value):
            device, name = ctypes.c_void_p(), ctypes.create_string_buffer(_NAME)
            _check(nvml, nvml.nvmlDeviceGetHandleByIndex_v2(ctypes.c_uint(index), ctypes.byref(device)))
            _check(nvml, nvml.nvmlDeviceGetName(device, name, ctypes.c_uint(_NAME)))
            names.append(name.value.decode(errors="replace"))
    return tuple(names)


def _load(library: str) -> ctypes.CDLL:
    try:
        return ctypes.CDLL(library)
    except OSError as error:
        raise OSError(f"the NVIDIA driver's library {library} cannot be loaded: {error}") from None


@contextmanager
def _nvml() -> Iterator[ctypes.CDLL]:
    nvml = _load(_NVML)
    nvml.nvmlErrorString.restype = ctypes.c_char_p
    _check(nvml, nvml.nvmlInit_v2())
    try:
        yield nvml
    finally:
        nvml.nvmlShutdown()


def _check(nvml: ctypes.CDLL, code: int) -> None:
    if code != 0:
        raise OSError(f"the NVIDIA driver does not answer (NVML): {nvml.nvmlErrorString(code).decode()}")
