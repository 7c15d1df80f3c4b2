"""How far a long run has come, for somebody who waits at a terminal."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import pytest

    from mlflow_triton_conformance.results import Results

__all__ = ["Progress"]

EVERY = 30.0
"""Seconds between two lines."""


class Progress:
    """Shows a line now and then, on a terminal only, and not where pytest writes one for each test anyway.

    Args:
        config: pytest's.

    Attributes:
        session: Knows how many tests there are, once they are collected.
    """

    def __init__(self, config: pytest.Config) -> None:
        self.session: pytest.Session | None = None
        self._config = config
        self._started = self._shown = time.monotonic()

    def show(self, nodeid: str, results: Results) -> None:
        """Show the line if it is time: tests, failures, minutes, and the test that begins."""
        reporter = self._config.pluginmanager.getplugin("terminalreporter")
        now = time.monotonic()
        if reporter is None or not reporter.isatty or self._config.option.verbose > 0:
            return
        if now - self._shown < EVERY or not results.tests or self.session is None:
            return
        self._shown = now
        failed = sum(test["outcome"] in ("failed", "error") for test in results.tests.values())
        minutes, seconds = divmod(round(now - self._started), 60)
        if reporter.currentfspath is None:  # as with pytest-xdist
            reporter.write("\n")
        reporter.ensure_newline()
        reporter.write_line(
            f"{len(results.tests)} of {self.session.testscollected} tests, {failed} failed, {minutes}:{seconds:02}; "
            f"now {nodeid.rpartition('/')[2]}"
        )
