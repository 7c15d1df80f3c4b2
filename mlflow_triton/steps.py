"""What an operation is doing, and how long each step of it took, for `logging`.

Every record has the attributes ``operation`` (create, update, …), ``deployment``, ``step``, ``duration_s`` and
``outcome`` (done, or the name of the error), for handlers that write JSON or metrics. Steps are logged at DEBUG; at
INFO, a step that failed, what was undone, and the operation as a whole (its step is ``total``), with what came of it.
"""

from __future__ import annotations

import logging
import time
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = ["UNDO", "conclude", "operation", "step"]

log = logging.getLogger(__name__)

#: The step that is the operation as a whole.
TOTAL = "total"
UNDO = "undo"


@dataclass(slots=True)
class _Operation:
    kind: str
    deployment: str
    conclusion: str = ""


_current: ContextVar[_Operation | None] = ContextVar("operation", default=None)


@contextmanager
def operation(name: str, kind: str) -> Iterator[None]:
    """Log how long the block took, and let the steps in it say what they belong to.

    Args:
        name: The deployment.
        kind: ``create``, ``update``, …
    """
    token = _current.set(_Operation(kind, name))
    try:
        with step(TOTAL):
            yield
    finally:
        _current.reset(token)


def conclude(text: str) -> None:
    """Let the line about the present operation as a whole end with this sentence."""
    if (current := _current.get()) is not None:
        current.conclusion = text


@contextmanager
def step(name: str) -> Iterator[None]:
    """Log how long the block took, with the steps in it; also a decorator.

    Args:
        name: What it does: a verb or a noun of one or two words.
    """
    started = time.monotonic()
    outcome = "done"
    try:
        yield
    except BaseException as error:
        outcome = type(error).__name__
        raise
    finally:
        duration = time.monotonic() - started
        current = _current.get() or _Operation("-", "-")
        done = outcome == "done"
        log.log(
            logging.INFO if name in (TOTAL, UNDO) or not done else logging.DEBUG,
            "%s %r: %s %s after %.3f s%s",
            current.kind,
            current.deployment,
            name,
            "done" if done else f"failed ({outcome})",
            duration,
            f": {current.conclusion}" if name == TOTAL and done and current.conclusion else "",
            extra={
                "operation": current.kind,
                "deployment": current.deployment,
                "step": name,
                "duration_s": duration,
                "outcome": outcome,
            },
        )
