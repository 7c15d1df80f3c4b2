"""Every system call by which a process changes files, before it is made: seen, let through, refused, or its process killed.

The kernel hands them over (seccomp's user notification, Linux 5.5), so that nothing is missed: no thread, no
library, no write through a file object. No privilege is needed, and nothing is changed in the process itself.
"""

from __future__ import annotations

import ctypes
import fcntl
import os
import platform
import select
import socket
import struct
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["SUPPORTED", "Call", "hand_over", "supervise"]

#: The numbers below are those of x86-64.
SUPPORTED = sys.platform == "linux" and platform.machine() == "x86_64"

_PATH, _AT, _FILE = "path", "at", "file"
#: By number: the call, and where the arguments are that name what it changes: a path, a directory's descriptor and
#: the path that follows it, or an open file.
_CALLS: dict[int, tuple[str, tuple[tuple[str, int], ...]]] = {
    1: ("write", ((_FILE, 0),)),
    2: ("open", ((_PATH, 0),)),
    16: ("ioctl", ((_FILE, 0),)),
    18: ("pwrite64", ((_FILE, 0),)),
    20: ("writev", ((_FILE, 0),)),
    40: ("sendfile", ((_FILE, 0),)),
    73: ("flock", ((_FILE, 0),)),
    74: ("fsync", ((_FILE, 0),)),
    75: ("fdatasync", ((_FILE, 0),)),
    76: ("truncate", ((_PATH, 0),)),
    77: ("ftruncate", ((_FILE, 0),)),
    82: ("rename", ((_PATH, 0), (_PATH, 1))),
    83: ("mkdir", ((_PATH, 0),)),
    84: ("rmdir", ((_PATH, 0),)),
    85: ("creat", ((_PATH, 0),)),
    86: ("link", ((_PATH, 0), (_PATH, 1))),
    87: ("unlink", ((_PATH, 0),)),
    88: ("symlink", ((_PATH, 1),)),
    90: ("chmod", ((_PATH, 0),)),
    91: ("fchmod", ((_FILE, 0),)),
    92: ("chown", ((_PATH, 0),)),
    93: ("fchown", ((_FILE, 0),)),
    94: ("lchown", ((_PATH, 0),)),
    132: ("utime", ((_PATH, 0),)),
    133: ("mknod", ((_PATH, 0),)),
    188: ("setxattr", ((_PATH, 0),)),
    189: ("lsetxattr", ((_PATH, 0),)),
    190: ("fsetxattr", ((_FILE, 0),)),
    197: ("removexattr", ((_PATH, 0),)),
    198: ("lremovexattr", ((_PATH, 0),)),
    199: ("fremovexattr", ((_FILE, 0),)),
    235: ("utimes", ((_PATH, 0),)),
    257: ("openat", ((_AT, 0),)),
    258: ("mkdirat", ((_AT, 0),)),
    259: ("mknodat", ((_AT, 0),)),
    260: ("fchownat", ((_AT, 0),)),
    261: ("futimesat", ((_AT, 0),)),
    263: ("unlinkat", ((_AT, 0),)),
    264: ("renameat", ((_AT, 0), (_AT, 2))),
    265: ("linkat", ((_AT, 0), (_AT, 2))),
    266: ("symlinkat", ((_AT, 1),)),
    268: ("fchmodat", ((_AT, 0),)),
    275: ("splice", ((_FILE, 2),)),
    277: ("sync_file_range", ((_FILE, 0),)),
    280: ("utimensat", ((_AT, 0),)),
    285: ("fallocate", ((_FILE, 0),)),
    296: ("pwritev", ((_FILE, 0),)),
    316: ("renameat2", ((_AT, 0), (_AT, 2))),
    326: ("copy_file_range", ((_FILE, 2),)),
    328: ("pwritev2", ((_FILE, 0),)),
    437: ("openat2", ((_AT, 0),)),
    452: ("fchmodat2", ((_AT, 0),)),
}
#: Where the flags of those are which may open a file just for reading.
_FLAGS = {"open": 1, "openat": 2}
_WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC
#: linux/fs.h: FICLONE, FICLONERANGE
_CLONING = (0x40049409, 0x4020940D)
_AT_FDCWD = -100

# linux/seccomp.h, linux/filter.h, linux/prctl.h
_SECCOMP, _SET_MODE_FILTER, _NEW_LISTENER = 317, 1, 8
_NOTIFY, _ALLOW = 0x7FC00000, 0x7FFF0000
_LOAD, _EQUAL, _RETURN = 0x20, 0x15, 0x06
_RECEIVE, _SEND = 0xC0502100, 0xC0182101
_CONTINUE = 1
_NO_NEW_PRIVILEGES = 38
_NOTIFICATION = struct.Struct("=QIIiIQ6Q")
_ANSWER = struct.Struct("=QqiI")
_PAGE = 4096


@dataclass(frozen=True, slots=True)
class Call:
    """One call that is about to be made.

    Attributes:
        name: The system call's.
        paths: What it changes, one or two absolute paths.
    """

    name: str
    paths: tuple[str, ...]

    def __str__(self) -> str:
        return f"{self.name} {' '.join(self.paths)}"


class _Program(ctypes.Structure):
    _fields_ = (("length", ctypes.c_ushort), ("filter", ctypes.c_char_p))


def hand_over(channel: socket.socket) -> None:
    """Have each of this process's calls, from now on, wait for whoever is at the other end of a channel.

    Raises:
        OSError: The kernel does not allow it.
    """
    instructions = [struct.pack("=HBBI", _LOAD, 0, 0, 0)]  # the call's number
    for left, number in zip(range(len(_CALLS), 0, -1), _CALLS, strict=True):
        instructions.append(struct.pack("=HBBI", _EQUAL, left, 0, number))
    instructions += [struct.pack("=HBBI", _RETURN, 0, 0, answer) for answer in (_ALLOW, _NOTIFY)]
    program = _Program(len(instructions), b"".join(instructions))
    libc = ctypes.CDLL(None, use_errno=True)
    libc.prctl(_NO_NEW_PRIVILEGES, *map(ctypes.c_ulong, (1, 0, 0, 0)))
    listener = libc.syscall(_SECCOMP, _SET_MODE_FILTER, _NEW_LISTENER, ctypes.byref(program))
    if listener < 0:
        number = ctypes.get_errno()
        raise OSError(number, f"seccomp(2): {os.strerror(number)}")
    socket.send_fds(channel, [b"."], [listener])


def supervise(channel: socket.socket, ended: int, decide: Callable[[Call], int | None]) -> bytes:
    """Decide on each call of a process until it closes its end of a pipe; return what came through the pipe.

    Args:
        channel: The other end of the one that the process gives to `hand_over`.
        ended: The pipe, to read from.
        decide: Returns 0 to let the call be made, an error number to refuse it, or ``None`` if it has killed the process.
    """
    _, (listener, *_), _, _ = socket.recv_fds(channel, 1, 1)
    text = b""
    poll = select.poll()
    poll.register(listener, select.POLLIN)
    poll.register(ended, select.POLLIN)
    try:
        while True:
            ready = dict(poll.poll())
            if ready.get(listener, 0) & select.POLLIN:
                notification = bytearray(_NOTIFICATION.size)
                fcntl.ioctl(listener, _RECEIVE, notification)
                identity, thread, _, number, _, _, *arguments = _NOTIFICATION.unpack(notification)
                call = _call(thread, number, arguments)
                error = 0 if call is None else decide(call)
                if error is None:
                    return text
                answer = (identity, 0, -error, 0) if error else (identity, 0, 0, _CONTINUE)
                fcntl.ioctl(listener, _SEND, _ANSWER.pack(*answer))
            elif ended in ready:
                read = os.read(ended, 1 << 16)
                if not read:
                    return text
                text += read
    finally:
        os.close(listener)


def _call(thread: int, number: int, arguments: list[int]) -> Call | None:
    """Return what a thread is about to do; ``None``: it changes no file."""
    name, operands = _CALLS[number]
    if name in _FLAGS and not arguments[_FLAGS[name]] & _WRITING:
        return None
    if name == "ioctl" and arguments[1] not in _CLONING:
        return None
    return Call(name, tuple(_path(thread, kind, arguments[index:]) for kind, index in operands))


def _path(thread: int, kind: str, arguments: list[int]) -> str:
    """Return the path that an argument stands for, or what an open file is called that is none."""
    directory = arguments[0] if kind != _PATH else _AT_FDCWD
    address = {_FILE: 0, _PATH: arguments[0], _AT: arguments[1] if len(arguments) > 1 else 0}[kind]
    name = _text(thread, address) if address else ""
    if name.startswith("/"):
        return os.path.normpath(name)
    directory = ctypes.c_int(directory).value
    link = f"/proc/{thread}/cwd" if directory == _AT_FDCWD else f"/proc/{thread}/fd/{directory}"
    try:
        base = str(Path(link).readlink())
    except FileNotFoundError:
        return name  # a descriptor that is not open: the call will fail
    return os.path.normpath(os.path.join(base, name))  # noqa: PTH118 - a path of the process's


def _text(thread: int, address: int) -> str:
    """Read a string from a thread's memory, which may end with the page that it ends in."""
    found = b""
    with Path(f"/proc/{thread}/mem").open("rb", buffering=0) as memory:
        while b"\0" not in found:
            memory.seek(address + len(found))
            found += memory.read(_PAGE - (address + len(found)) % _PAGE)
    return os.fsdecode(found.partition(b"\0")[0])
