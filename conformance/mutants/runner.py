"""Runs the tests of the requirements that each mutant breaks, in one process of pytest, on one server."""

from __future__ import annotations

import time
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import hypothesis
import pytest
from _pytest.runner import runtestprotocol

import mlflow_triton_conformance
from mlflow_triton_conformance import cases, plugin, protocol
from mlflow_triton_conformance.results import test_id
from mutants import behind

if TYPE_CHECKING:
    from collections.abc import Generator, Sequence

    from mutants.mutant import Mutant

__all__ = ["Caught", "Runner", "run"]

ARGUMENTS = (
    str(Path(mlflow_triton_conformance.__file__).parent),
    "--conformance-profile=default",
    "-p",
    "no:cacheprovider",
    "-p",
    "no:timeout",
    "-p",
    "no:xdist",
    "-q",
    "--tb=native",  # parses no source for a traceback that nobody sees
    "-W",
    "ignore::pytest.PytestAssertRewriteWarning",  # the catalogue is read before pytest starts
)
PATIENCE = 15.0
"""Seconds for what never comes of a mutant."""


@dataclass(frozen=True, slots=True)
class Caught:
    """What came of a mutant.

    Attributes:
        mutant: Which one.
        by: For each requirement, the first test that failed; those without are missing.
        seconds: How long it took.
    """

    mutant: Mutant
    by: dict[str, str] = field(default_factory=dict)
    seconds: float = 0.0


class Runner:
    """The plugin of pytest that runs mutants in place of tests.

    Args:
        mutants: Which ones.

    Attributes:
        found: What came of each one.
        spoiled: Tests that fail without any mutant, so that what they caught counts for nothing.
    """

    def __init__(self, mutants: Sequence[Mutant]) -> None:
        self._mutants = mutants
        self._played: ExitStack = ExitStack()
        self.found: list[Caught] = []
        self.spoiled: list[str] = []

    def pytest_configure(self, config: pytest.Config) -> None:
        """Come after every other plugin."""
        config.pluginmanager.register(behind)

    @pytest.hookimpl(tryfirst=True)
    def pytest_collection(self) -> None:
        """Generate few examples, and do not shrink those that fail."""
        phases = (hypothesis.Phase.explicit, hypothesis.Phase.generate)
        hypothesis.settings.register_profile(
            "mutants", hypothesis.settings.get_profile("conformance-quick"), phases=phases
        )
        hypothesis.settings.load_profile("mutants")

    @pytest.hookimpl(tryfirst=True)
    def pytest_runtestloop(self, session: pytest.Session) -> bool:
        """Run each mutant against the tests of what it breaks."""
        tests: dict[str, list[pytest.Item]] = {}
        for item in session.items:
            for name in plugin.identifiers(item):
                tests.setdefault(name, []).append(item)
        self._warm(tests)
        patience, protocol.TIMEOUT = protocol.TIMEOUT, PATIENCE
        try:
            catching: dict[str, pytest.Item] = {}
            for mutant in self._mutants:
                started = time.monotonic()
                by: dict[str, str] = {}
                failed: dict[pytest.Item, str] = {}
                for name in mutant.breaks:
                    for item in tests[name]:
                        if item not in failed:
                            failed[item] = self._failure(session, item, mutant)
                        if failed[item]:
                            by[name] = test_id(item.nodeid, item.path)
                            catching[by[name]] = item
                            break
                self.found.append(Caught(mutant, by, time.monotonic() - started))
                survived = " ".join(name for name in mutant.breaks if name not in by)
                print(f"{f'SURVIVED {survived}' if survived else 'caught'}: {mutant.defect}", flush=True)
                for why in dict.fromkeys(filter(None, failed.values())):
                    print(f"    {why}", flush=True)
            # What has caught a mutant must pass without one.
            self.spoiled += [name for name, item in catching.items() if self._failure(session, item, None)]
        finally:
            protocol.TIMEOUT = patience
        return True

    @pytest.hookimpl(wrapper=True, tryfirst=True)
    def pytest_runtest_teardown(self) -> Generator[None, None, None]:
        """Let a test clean up on a subject without defect."""
        self._played.close()
        return (yield)

    def _warm(self, tests: dict[str, list[pytest.Item]]) -> None:
        """Start what all tests share on a server without defect."""
        (item,) = tests["OIP-HEALTH-002"]
        if failure := self._failure(item.session, item, None):
            pytest.exit(f"{item.nodeid} fails without any mutant: {failure}", pytest.ExitCode.INTERNAL_ERROR)

    def _failure(self, session: pytest.Session, item: pytest.Item, mutant: Mutant | None) -> str:
        """Run a test against a mutant; return in a line how it fails, empty if it does not."""
        with ExitStack() as self._played:
            if mutant is not None:
                if mutant.http or mutant.rpc:
                    proxies = session.config.stash[behind.PROXIES]
                    proxies.play(mutant.http, mutant.rpc)
                    self._played.callback(proxies.play, None, None)
                if mutant.plugin is not None:
                    self._played.enter_context(mutant.plugin())
            # What the session shares is kept; what a module does is made anew.
            session.config.stash[cases.ATTEMPTS] = {}
            nextitem: Any = session
            reports = runtestprotocol(item, log=False, nextitem=nextitem)
        failed = [it for it in reports if it.failed and it.when != "teardown"]
        broken = session.config.stash[behind.PROXIES].broken if behind.PROXIES in session.config.stash else []
        if broken:
            print(f"the proxy itself failed: {broken!r}", flush=True)
            self.spoiled.append(item.nodeid)
            broken.clear()
        if not failed:
            return ""
        crash = getattr(failed[0].longrepr, "reprcrash", None)
        return str(crash.message if crash is not None else failed[0].longreprtext).partition("\n")[0][:160]


def run(mutants: Sequence[Mutant], *arguments: str) -> Runner:
    """Run mutants.

    Args:
        mutants: Which ones.
        arguments: More for pytest.
    """
    runner = Runner(mutants)
    code = pytest.main([*ARGUMENTS, *arguments], plugins=[runner])
    if code not in (pytest.ExitCode.OK, pytest.ExitCode.TESTS_FAILED):
        raise SystemExit(f"pytest ended with {code!r}: no mutant counts.")
    return runner
