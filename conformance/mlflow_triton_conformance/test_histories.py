"""Whatever MLflow, others and the server do one after the other, an oracle of a few lines says what there is then."""

from __future__ import annotations

import itertools
import shutil
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from mlflow.deployments import get_deploy_client
from mlflow.exceptions import MlflowException

from mlflow_triton_conformance.conftest import environment_of
from mlflow_triton_conformance.drawing import costly
from mlflow_triton_conformance.restarts import Restarted, restarted
from mlflow_triton_conformance.zoo import CONFIG, python_model, write
from pytest_mlflow_triton.options import resolved
from pytest_mlflow_triton.servers.specs import TritonSpec

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from mlflow_triton_conformance.protocol import Protocol

requirement = pytest.mark.requirement
EXAMPLES = {"quick": 1, "default": 2, "soak": 200}
BROKEN = "class TritonPythonModel:\n    def initialize(self, args):\n        raise RuntimeError('broken')\n"
FOREIGN = 9
"""What a model that MLflow did not deploy answers."""
UNLOADABLE = 0
"""Stands for a model that no server can load."""


@dataclass(frozen=True, slots=True)
class Step:
    """Something that happens.

    Attributes:
        verb: ``create``, ``update`` or ``delete`` of the plugin; ``unload`` by somebody else; ``foreign``: a model appears
            that MLflow did not deploy; ``restart`` or ``kill`` of the server.
        which: With which of the names; one is the beginning of the other.
        value: What the model answers that is to be deployed.
    """

    verb: str
    which: int = 0
    value: int = 1


@dataclass(frozen=True, slots=True)
class State:
    """What there is under a name.

    Attributes:
        value: What it answers; None if there is nothing.
        ours: Whether it is a deployment.
        ready: Whether it serves.
    """

    value: int | None = None
    ours: bool = False
    ready: bool = False


NOTHING = State()


def after(step: Step, state: State) -> tuple[bool, State]:
    """Say whether what the plugin is asked for is done, and what there is then under the name."""
    if step.verb == "foreign":
        return True, State(FOREIGN, ready=True) if state == NOTHING else state
    if step.verb in ("unload", "restart", "kill"):
        return True, replace(state, ready=False)
    if step.verb == "delete":  # of nothing is no error
        return (True, NOTHING) if state.ours or state == NOTHING else (False, state)
    fits = state.ours if step.verb == "update" else state == NOTHING
    if not fits or step.value == UNLOADABLE:
        return False, state
    return True, State(step.value, ours=True, ready=True)


def histories(*more: str) -> st.SearchStrategy[list[Step]]:
    """Draw what happens; with more verbs, one of them is among them, and something after it."""
    verbs = ["create", "create", "update", "update", "delete", "unload", "foreign"]
    step = st.builds(Step, st.sampled_from(verbs), st.integers(0, 1), st.sampled_from([UNLOADABLE, 1, 2, 2]))
    if not more:
        return st.lists(step, min_size=3, max_size=6)
    few = st.lists(step, min_size=2, max_size=4)
    return st.builds(
        lambda before, it, then: [*before, it, *then], few, st.builds(Step, st.sampled_from(more)), few
    )


ORDINARY = [
    Step("create", 0, 1),
    Step("update", 0, UNLOADABLE),
    Step("foreign", 1),
    Step("delete", 1),
    Step("unload", 0),
    Step("update", 0, 2),
    Step("create", 0, 1),
    Step("unload", 0),
    Step("delete", 0),
    Step("create", 0, UNLOADABLE),
]
BROKEN_OFF = [
    Step("create", 0, 1),
    Step("create", 1, 2),
    Step("kill"),
    Step("create", 0, 2),
    Step("update", 0, 2),
    Step("restart"),
    Step("delete", 0),
    Step("update", 1, UNLOADABLE),
    Step("update", 1, 1),
]


@pytest.fixture
def saved(directory_model: Callable[[Mapping[str, str]], str]) -> dict[int, str]:
    """Models by what they answer."""
    codes = {1: python_model(1), 2: python_model(2), UNLOADABLE: BROKEN}
    return {
        value: directory_model({"config.pbtxt": CONFIG, "1/model.py": code}) for value, code in codes.items()
    }


class History:
    """Plays steps on a server, and holds what there is against the oracle.

    Args:
        client: Makes a client of the plugin, for the server as it runs now.
        protocol: The server as it runs now.
        saved: Models by what they answer.
        name: For the first deployment; the second has one letter more.
        server: What restarts the server, if anything does.
    """

    def __init__(
        self,
        client: Callable[[], Any],
        protocol: Callable[[], Protocol],
        saved: Mapping[int, str],
        name: str,
        server: Restarted | None = None,
    ) -> None:
        self._client, self._protocol, self._saved, self._server = client, protocol, saved, server
        self.states = {name: NOTHING, f"{name}2": NOTHING}

    def play(self, steps: list[Step]) -> None:
        """Play steps, and look at everything after each."""
        for number, step in enumerate(steps, start=1):
            name = list(self.states)[step.which]
            done, state = after(step, self.states[name])
            assert self._do(step, name, self.states[name]) is done, steps[:number]
            self.states[name] = state
            if step.verb in ("restart", "kill"):
                self.states = {one: replace(it, ready=False) for one, it in self.states.items()}
            assert self._found() == self.states, steps[:number]

    def remove(self) -> None:
        """Take out what is left."""
        protocol = self._protocol()
        for name in self.states:
            protocol.remove(name)
            shutil.rmtree(protocol.server.model_repository / name, ignore_errors=True)

    def _do(self, step: Step, name: str, state: State) -> bool:
        """Do it; tell whether it was no error."""
        protocol = self._protocol()
        if step.verb in ("restart", "kill"):
            assert self._server is not None
            self._server.restart(kill=step.verb == "kill")
        elif step.verb == "unload":
            protocol.remove(name)
        elif step.verb == "foreign":
            if state == NOTHING:
                directory = protocol.server.model_repository / name
                write(directory, {"config.pbtxt": CONFIG, "1/model.py": python_model(FOREIGN)})
                assert protocol.load(name).status == 200
        else:
            arguments = () if step.verb == "delete" else (self._saved[step.value], "triton")
            try:
                getattr(self._client(), f"{step.verb}_deployment")(name, *arguments)
            except MlflowException:
                return False
        return True

    def _found(self) -> dict[str, State]:
        client, protocol = self._client(), self._protocol()
        listed = [it["name"] for it in client.list_deployments()]
        found = {}
        for name, wanted in self.states.items():
            there = (protocol.server.model_repository / name).exists()
            assert listed.count(name) <= 1, listed
            ready = protocol.is_ready(name)
            value: int | None = wanted.value if there else None
            if ready:
                answer = client.predict(name, {"x": np.zeros(1, np.int32)})
                value = int(answer["outputs"]["y"][0])
            found[name] = State(value, ours=name in listed, ready=ready)
        return found


@pytest.mark.slow
@requirement("MLF-LIFE-015")
def test_any_history(
    deployment_client: Any,
    deployment_name: str,
    protocol: Protocol,
    saved: dict[int, str],
    pytestconfig: pytest.Config,
) -> None:
    """After each of any steps, what is listed, on disk, ready and answered is what an oracle says."""
    numbers = itertools.count()

    @costly(pytestconfig, EXAMPLES)
    @given(steps=histories())
    @example(steps=ORDINARY)
    def run(steps: list[Step]) -> None:
        history = History(
            lambda: deployment_client, lambda: protocol, saved, f"{deployment_name}-{next(numbers)}"
        )
        try:
            history.play(steps)
        finally:
            history.remove()

    run()


@pytest.mark.slow
@requirement("MLF-LIFE-016")
def test_any_history_with_restarts(
    deployment_client: Any,
    deployment_name: str,
    saved: dict[int, str],
    target: str,
    monkeypatch: pytest.MonkeyPatch,
    pytestconfig: pytest.Config,
) -> None:
    """The same, while the server is restarted and killed: what it served is listed, not ready, and can be updated and deleted."""
    numbers = itertools.count()
    spec = resolved(pytestconfig).triton
    with restarted(spec.version if isinstance(spec, TritonSpec) else "") as server:

        def client() -> Any:
            environment_of(monkeypatch, server.protocol.server)
            return get_deploy_client(target)

        @costly(pytestconfig, EXAMPLES)
        @given(steps=histories("restart", "kill"))
        @example(steps=BROKEN_OFF)
        def run(steps: list[Step]) -> None:
            name = f"{deployment_name}-{next(numbers)}"
            history = History(client, lambda: server.protocol, saved, name, server)
            try:
                history.play(steps)
            finally:
                history.remove()

        run()
