"""A call whose answer may be lost on its way: it ends as well once the server shows that it has done what was asked.

A load takes minutes, in which a proxy or a router may forget the connection; the client hears of it no more than of a
load that goes on.
"""

from __future__ import annotations

import logging
import threading
import time
from concurrent.futures import Future, wait
from typing import TYPE_CHECKING

from mlflow_triton.errors import TritonPluginError

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["watched"]

log = logging.getLogger(__name__)

#: Seconds between two looks at the server, and for each of them.
PAUSE = 1.0
LOOK = 5.0
#: Seconds that the answer has from the moment at which it is not needed any more: it says what the index does not.
GRACE = 3.0


def watched(call: Callable[[], None], reached: Callable[[float], bool], *, what: str, seconds: float) -> None:
    """Make a call in a thread, and look at the server meanwhile.

    Args:
        call: It ends within `seconds`, with or without an error.
        reached: Says, within the seconds that it is given, whether the server has done what the call is for.
        what: That, for the log.
        seconds: The call's own time limit.

    Raises:
        Exception: What the call raises.
    """
    outcome: Future[None] = Future()

    def run() -> None:
        try:
            call()
        except BaseException as error:  # noqa: BLE001 - handed on to the caller's thread
            outcome.set_exception(error)
        else:
            outcome.set_result(None)

    deadline = time.monotonic() + seconds
    threading.Thread(target=run, name=what, daemon=True).start()
    since: float | None = None
    while not wait([outcome], PAUSE).done:
        left = deadline - time.monotonic()
        if left <= 0 or not _look(reached, min(left, LOOK)):
            since = None
        elif since is None:
            since = time.monotonic()
        elif time.monotonic() - since >= GRACE:
            log.warning(
                "Triton has done it (%s), but its answer is lost: something between here and there drops connections.",
                what,
            )
            return
    outcome.result()


def _look(reached: Callable[[float], bool], seconds: float) -> bool:
    try:
        return reached(seconds)
    except TritonPluginError as error:  # the call itself tells better what is wrong with the server
        log.debug("%s", error.message)
        return False
