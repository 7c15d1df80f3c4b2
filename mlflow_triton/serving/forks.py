"""Forks of a process whose other threads use gRPC: gRPC would wait for ever in the new process.

A fork waits for a moment until no call is under way. If one still is, the new process refuses to use gRPC.
"""

from __future__ import annotations

import os
import threading
from contextlib import contextmanager
from typing import TYPE_CHECKING

from mlflow_triton.errors import ServerUnavailable

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = ["under_way"]

#: Seconds that a fork waits for the calls that are under way.
PATIENCE = 5.0


class _Calls:
    """The calls of this process that are under way."""

    def __init__(self) -> None:
        self._lost = False
        self._reset()

    def _reset(self) -> None:
        self._changed = threading.Condition()
        self._number = 0
        self._forking = False
        self._lost_in_child = False

    @contextmanager
    def one(self) -> Iterator[None]:
        with self._changed:
            self._changed.wait_for(lambda: not self._forking)
            if self._lost:
                raise ServerUnavailable(
                    f"This process was forked while other threads had waited for answers over gRPC for {PATIENCE:g} s, and "
                    "cannot use gRPC. Nothing was sent. Use HTTP (TRITON_TRANSPORT=http), or start processes with spawn."
                )
            self._number += 1
        try:
            yield
        finally:
            with self._changed:
                self._number -= 1
                self._changed.notify_all()

    def before_fork(self) -> None:
        """Wait, and let no call begin until the fork is over."""
        self._changed.acquire()
        self._forking = True
        self._lost_in_child = self._lost or not self._changed.wait_for(lambda: not self._number, PATIENCE)

    def after_fork_in_parent(self) -> None:
        self._forking = False
        self._changed.notify_all()
        self._changed.release()

    def after_fork_in_child(self) -> None:
        self._lost = self._lost_in_child
        self._reset()  # the threads whose calls these are have stayed behind


_calls = _Calls()
under_way = _calls.one
os.register_at_fork(
    before=_calls.before_fork,
    after_in_parent=_calls.after_fork_in_parent,
    after_in_child=_calls.after_fork_in_child,
)
