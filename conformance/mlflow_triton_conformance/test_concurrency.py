"""Several clients of the plugin at once."""

from __future__ import annotations

import json
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

import mlflow
import numpy as np
import pytest
from mlflow.deployments import get_deploy_client
from mlflow.exceptions import MlflowException

from mlflow_triton_conformance import models

if TYPE_CHECKING:
    from collections.abc import Callable

    from mlflow_triton_conformance.protocol import Protocol

requirement = pytest.mark.requirement
PATIENCE = 30.0  # seconds


@pytest.fixture(scope="module")
def saved(onnx_backend: None, tmp_path_factory: pytest.TempPathFactory) -> Callable[[float], str]:
    """Save a model that adds a value; return its path."""

    def save(value: float) -> str:
        path = tmp_path_factory.mktemp("saved") / "model"
        mlflow.onnx.save_model(models.constant(value), str(path), pip_requirements=["onnx"])
        return str(path)

    return save


def answers(client: Any, name: str, x: float = 0.0) -> float:
    """Ask a deployment."""
    return float(client.predict(name, {"x": np.array([[x]], np.float32)})["outputs"]["y"][0][0])


@requirement("MLF-CONC-001", "MLF-CONC-002")
def test_one_name(
    deployment_client: Any,
    deployment_name: str,
    saved: Callable[[float], str],
    target: str,
    protocol: Protocol,
) -> None:
    """Of two that create one deployment one fails, and what serves is the model that the record names."""
    uris = {saved(value): value for value in (1.0, 2.0)}
    start = threading.Barrier(2)

    def create(uri: str) -> bool:
        client = get_deploy_client(target)
        start.wait()
        try:
            client.create_deployment(deployment_name, uri, flavor="onnx")
        except MlflowException:
            return False
        return True

    with ThreadPoolExecutor(2) as pool:
        assert sorted(pool.map(create, uris)) == [False, True]
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


@requirement("MLF-CONC-004", "MLF-CONC-005", "MLF-CONC-006")
def test_update_under_load(
    deployment_client: Any, deployment_name: str, saved: Callable[[float], str], target: str
) -> None:
    """Threads that share a client get their own answers during an update, of the new model once it has returned."""
    client = deployment_client
    client.create_deployment(deployment_name, saved(0.25), flavor="onnx")
    updated, done = threading.Event(), threading.Event()
    wrong: list[Any] = []

    counts: list[int] = []

    def ask(first: float) -> None:
        x = first
        while not done.is_set():
            expected = {x + 0.75} if updated.is_set() else {x + 0.25, x + 0.75}
            try:
                found = answers(client, deployment_name, x)
            except Exception as error:  # noqa: BLE001 - whatever it is, it is a request that failed
                wrong.append(error)
                break
            if found not in expected:
                wrong.append((x, found, expected))
            x += 8.0
        counts.append(int((x - first) / 8))

    # Not of a pool, whose end waits for them: a client that cannot be shared may hold them for ever.
    threads = [threading.Thread(target=ask, args=(float(number),), daemon=True) for number in range(4)]
    for thread in threads:
        thread.start()
    try:
        get_deploy_client(target).update_deployment(deployment_name, saved(0.75), flavor="onnx")
        updated.set()
        done.wait(0.3)
    finally:
        done.set()
    deadline = time.monotonic() + PATIENCE
    for thread in threads:
        thread.join(max(0.0, deadline - time.monotonic()))
    stuck = sum(thread.is_alive() for thread in threads)
    assert stuck == 0, (
        f"{stuck} of {len(threads)} threads that share a client did not come back in {PATIENCE:g} s"
    )
    assert wrong == []
    assert min(counts) > 0
