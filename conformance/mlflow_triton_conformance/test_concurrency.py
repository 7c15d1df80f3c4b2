"""Several clients of the plugin at once."""

from __future__ import annotations

import json
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from mlflow.deployments import get_deploy_client
from mlflow.exceptions import MlflowException

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from typing_extensions import Self

    from mlflow_triton_conformance.protocol import Protocol

requirement = pytest.mark.requirement
PATIENCE = 30.0  # seconds


def answers(client: Any, name: str, x: float = 0.0) -> float:
    """Ask a deployment."""
    return float(client.predict(name, {"x": np.array([[x]], np.float32)})["outputs"]["y"][0][0])


def created_twice(target: str, name: str, uris: Iterable[str]) -> list[Exception | None]:
    """Create a deployment at once from each of two models; return what became of each."""
    start = threading.Barrier(2)

    def create(uri: str) -> Exception | None:
        client = get_deploy_client(target)
        start.wait()
        try:
            client.create_deployment(name, uri, flavor="onnx")
        except Exception as error:  # noqa: BLE001 - of which kind it is is a test's affair
            return error
        return None

    with ThreadPoolExecutor(2) as pool:
        return list(pool.map(create, uris))


@requirement("MLF-CONC-001")
def test_one_name(
    deployment_client: Any, deployment_name: str, saved: Callable[[float], str], target: str
) -> None:
    """Of two that create one deployment, one is told that it could not."""
    found = created_twice(target, deployment_name, [saved(1.0), saved(2.0)])
    assert [isinstance(it, MlflowException) for it in found if it is not None] == [True], found


@requirement("MLF-CONC-002")
def test_the_record_tells_what_serves(
    deployment_client: Any,
    deployment_name: str,
    saved: Callable[[float], str],
    target: str,
    protocol: Protocol,
) -> None:
    """After two have created one deployment, what serves is the model that the record names."""
    uris = {saved(value): value for value in (1.0, 2.0)}
    found = created_twice(target, deployment_name, uris)
    assert None in found, found
    record = json.loads((protocol.server.model_repository / deployment_name / "mlflow-meta.json").read_text())
    assert answers(deployment_client, deployment_name) == uris[record["mlflow_model_uri"]]


@requirement("MLF-CONC-003")
def test_two_names(
    deployment_client: Any, deployment_name: str, saved: Callable[[float], str], target: str
) -> None:
    """Two deployments that are created at once both serve, each its own model."""
    wanted = {f"{deployment_name}-{value:.0f}": value for value in (1.0, 2.0)}

    def create(name: str) -> None:
        get_deploy_client(target).create_deployment(name, saved(wanted[name]), flavor="onnx")

    with ThreadPoolExecutor(2) as pool:
        list(pool.map(create, wanted))
    assert {name: answers(deployment_client, name) for name in wanted} == wanted


class Asking:
    """Threads that ask a deployment again and again, each with numbers of its own.

    Args:
        client: The client of each thread.
        name: The deployment's.
        expected: What the deployment may add as of now.
    """

    def __init__(self, client: Callable[[], Any], name: str, expected: Callable[[], set[float]]) -> None:
        self._client, self._name, self._expected = client, name, expected
        self._done = threading.Event()
        self.wrong: list[Any] = []
        self.failed: list[Exception] = []
        self.counts: list[int] = []
        # Not of a pool, whose end waits for them: a client that cannot be shared may hold them for ever.
        self._threads = [
            threading.Thread(target=self._ask, args=(float(number),), daemon=True) for number in range(4)
        ]

    def _ask(self, first: float) -> None:
        client, x = self._client(), first
        while not self._done.is_set():
            expected = {x + added for added in self._expected()}
            try:
                found = answers(client, self._name, x)
            except Exception as error:  # noqa: BLE001 - whatever it is, it is a request that failed
                self.failed.append(error)
                break
            if found not in expected:
                self.wrong.append((x, found, expected))
            x += 8.0
        self.counts.append(int((x - first) / 8))

    def __enter__(self) -> Self:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: object) -> None:
        self._done.set()
        deadline = time.monotonic() + PATIENCE
        for thread in self._threads:
            thread.join(max(0.0, deadline - time.monotonic()))
        stuck = sum(thread.is_alive() for thread in self._threads)
        assert stuck == 0, f"{stuck} of {len(self._threads)} threads did not come back in {PATIENCE:g} s"
        if kind is None:
            assert self.failed or min(self.counts) > 0

    def go_on(self, seconds: float) -> None:
        """Let them ask for so long."""
        self._done.wait(seconds)


@requirement("MLF-CONC-004", "MLF-CONC-005")
def test_update_under_load(
    deployment_client: Any, deployment_name: str, saved: Callable[[float], str], target: str
) -> None:
    """No request fails during an update, and the new model answers once it has returned."""
    client, name = deployment_client, deployment_name
    client.create_deployment(name, saved(0.25), flavor="onnx")
    updated = threading.Event()
    clients = iter([get_deploy_client(target) for _ in range(4)])
    with Asking(lambda: next(clients), name, lambda: {0.75} if updated.is_set() else {0.25, 0.75}) as asking:
        client.update_deployment(name, saved(0.75), flavor="onnx")
        updated.set()
        assert answers(client, name) == 0.75
        asking.go_on(0.3)
    assert (asking.failed, asking.wrong) == ([], [])


@requirement("MLF-CONC-006")
def test_a_shared_client(deployment_client: Any, deployment_name: str, saved: Callable[[float], str]) -> None:
    """Threads that share a client get each its own answers."""
    deployment_client.create_deployment(deployment_name, saved(0.25), flavor="onnx")
    with Asking(lambda: deployment_client, deployment_name, lambda: {0.25}) as asking:
        asking.go_on(0.3)
    assert (asking.failed, asking.wrong) == ([], [])
