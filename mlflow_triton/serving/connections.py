"""Kept connections to one server, and exchanges of a request and an answer that copy no payload."""

from __future__ import annotations

import contextlib
import os
import time
import weakref
from collections import deque
from typing import TYPE_CHECKING, TypeVar

from mlflow_triton.serving.answer import Answer, NothingAnswered
from mlflow_triton.serving.wire import Wire

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    T = TypeVar("T")

__all__ = ["CONNECT_TIMEOUT", "Connections"]

#: How many connections stay open per client; further ones are opened and closed as needed.
KEPT = 64
CONNECT_TIMEOUT = 10.0


class Connections:
    """The connections of one process to one server. Safe to share between threads.

    Args:
        url: ``http://HOST:PORT`` or ``https://HOST:PORT``.
    """

    def __init__(self, url: str) -> None:
        self._url = url
        self._process = os.getpid()
        self._idle: deque[Wire] = deque()
        weakref.finalize(self, _close_all, self._idle)

    def exchange(
        self,
        pieces: Sequence[memoryview | bytes],
        read: Callable[[Answer], T],
        timeout: float,
        *,
        repeatable: bool,
        encoding: str | None = None,
    ) -> T:
        """Send one request, and have its answer read.

        The connection is kept if all of the answer has been read. One that had been kept and breaks
        before anything was answered is replaced, and the request sent again, once.

        Args:
            pieces: The request: its head, and its body, if it has one.
            read: Called with the answer.
            timeout: Seconds for all of it.
            repeatable: Whether the request may be executed twice.
            encoding: See `Answer`.

        Returns:
            What `read` returns.

        Raises:
            BrokenAnswer, OSError, HTTPError: The last two are the operating system's and urllib3's.
        """
        until = time.monotonic() + timeout
        kept = self._kept()
        if kept is not None:
            try:
                return self._through(kept, pieces, read, until, encoding)
            except NothingAnswered:
                if not repeatable:
                    raise
        return self._through(Wire(self._url, min(timeout, CONNECT_TIMEOUT)), pieces, read, until, encoding)

    def _through(
        self,
        wire: Wire,
        pieces: Sequence[memoryview | bytes],
        read: Callable[[Answer], T],
        until: float,
        encoding: str | None,
    ) -> T:
        reusable = False
        try:
            # A server that refuses a request need not read all of it.
            with contextlib.suppress(ConnectionError):
                wire.send(pieces, until)
            answer = Answer(wire, until, encoding)
            result = read(answer)
            reusable = not answer.rest and not answer.is_last and len(self._idle) < KEPT
            return result
        finally:
            if reusable:
                self._idle.append(wire)
            else:
                wire.close()

    def _kept(self) -> Wire | None:
        if self._process != os.getpid():
            # Those of the process that forked this one carry its answers.
            self._process, self._idle = os.getpid(), deque()
            weakref.finalize(self, _close_all, self._idle)
        while True:
            try:
                wire = self._idle.pop()
            except IndexError:
                return None
            if wire.is_quiet():
                return wire
            wire.close()


def _close_all(wires: deque[Wire]) -> None:
    while wires:
        wires.pop().close()
