"""What an operation is doing, and how long each step of it took, for `logging`.

Every record has the attributes ``operation`` (create, update, …), ``deployment``, ``step``, ``duration_s`` and
``outcome`` (done, failed), for handlers that write JSON or metrics. Steps are logged at DEBUG; at INFO, a step
that failed, what was undone, and the operation as a whole (its step is ``total``).
"""

from __future__ import annotations

import logging
import time
from contextlib import contextmanager
from contextvars import ContextVar
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = ["UNDO", "operation", "step"]

log = logging.getLogger(__name__)

#: The step that is the operation as a whole.
TOTAL = "total"
UNDO = "undo"
_current: ContextVar[tuple[str, str] | None] = ContextVar("operation", default=None)


@contextmanager
def operation(name: str, kind: str) -> Iterator[None]:
    """Log how long the block took, and let the steps in it say what they belong to.

    Args:
        name: The deployment.
        kind: ``create``, ``update``, …
    """
    token = _current.set((kind, name))
    try:
        with step(TOTAL):
            yield
    finally:
        _current.reset(token)


@contextmanager
def step(name: str) -> Iterator[None]:
    """Log how long the block took, with the steps in it; also a decorator.

    Args:
        name: What it does: a verb or a noun of one or two words.
    """
    started = time.monotonic()
    outcome = "failed"
    try:
        yield
        outcome = "done"
    finally:
        duration = time.monotonic() - started
        kind, deployment = _current.get() or (None, None)
        log.log(
            logging.INFO if name in (TOTAL, UNDO) or outcome == "failed" else logging.DEBUG,
            "%s %r: %s %s after %.3f s",
            kind,
            deployment,
            name,
            outcome,
            duration,
            extra={
                "operation": kind,
                "deployment": deployment,
                "step": name,
                "duration_s": duration,
                "outcome": outcome,
            },
        )
