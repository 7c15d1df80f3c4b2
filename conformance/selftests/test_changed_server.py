"""A client goes on where others change its server: models that are replaced, a server that is started anew."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from mlflow_triton.deployments import TritonDeploymentClient
from mlflow_triton.embedded import EmbeddedTriton
from mlflow_triton.errors import DeploymentNotFound, InvalidInput
from mlflow_triton.serving import inference
from mlflow_triton.serving.control import Control
from mlflow_triton.serving.http import HttpEndpoint
from mlflow_triton.settings import Settings

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

pytestmark = pytest.mark.slow

#: Answers its input times a factor.
TIMES = """\
import triton_python_backend_utils as pb_utils

class TritonPythonModel:
    def execute(self, requests):
        given = [request.inputs()[0].as_numpy() for request in requests]
        return [pb_utils.InferenceResponse([pb_utils.Tensor("y", x * FACTOR)]) for x in given]
"""


def config(name: str, datatype: str, width: int) -> str:
    """Return the configuration of a model with one input, as JSON."""
    return (
        '{"backend": "python", "max_batch_size": 0, "instance_group": [{"count": 1, "kind": "KIND_CPU"}],'
        f'"input": [{{"name": "{name}", "data_type": "TYPE_{datatype}", "dims": [-1, {width}]}}],'
        f'"output": [{{"name": "y", "data_type": "TYPE_{datatype}", "dims": [-1, {width}]}}]}}'
    )


def started(repository: Path, http_port: int = 0, grpc_port: int = 0) -> EmbeddedTriton:
    """Make a server with the model times."""
    return EmbeddedTriton(
        repository, http_port=http_port, grpc_port=grpc_port, arguments=["--load-model=times"]
    )


@pytest.fixture(scope="module")
def repository(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A repository with a model that takes FP32 of two columns."""
    repository: Path = tmp_path_factory.mktemp("changed") / "models"
    (repository / "times" / "1").mkdir(parents=True)
    (repository / "times" / "1" / "model.py").write_text(TIMES.replace("FACTOR", "2"), encoding="utf-8")
    (repository / "times" / "config.pbtxt").write_text(
        'backend: "python"\ninstance_group { count: 1 kind: KIND_CPU }\n'
        'input { name: "x" data_type: TYPE_FP32 dims: [-1, 2] } output { name: "y" data_type: TYPE_FP32 dims: [-1, 2] }',
        encoding="utf-8",
    )
    return repository


@pytest.fixture
def server(repository: Path) -> Iterator[EmbeddedTriton]:
    """A server with that model."""
    with started(repository) as running:
        yield running


def clients(server: EmbeddedTriton) -> list[TritonDeploymentClient]:
    """Make a client for each way that tensors may go."""
    host = server.http_url.partition("://")[2]
    return [
        TritonDeploymentClient(
            f"triton://{host}?grpc_url={server.grpc_url}&transport={transport}&shared_memory={memory}"
        )
        for transport in ("http", "grpc")
        for memory in ("off", "auto")
    ]


@pytest.fixture(autouse=True)
def _shared(monkeypatch: pytest.MonkeyPatch) -> None:
    for limit in ("LARGE", "LARGE_OUTPUT"):
        monkeypatch.setattr(inference, limit, 1)


def y(answer: Any) -> Any:
    """Return the output of an answer."""
    return answer["outputs"]["y"]


def change(server: EmbeddedTriton, document: str, factor: int = 0) -> None:
    """Replace the model, or take it out, as another client than those that predict."""
    settings = Settings.parse(server.http_url.replace("http", "triton") + f"?grpc_url={server.grpc_url}", {})
    control = Control(HttpEndpoint(settings), settings)
    if not document:
        control.unload("times")
        return
    code = TIMES.replace("FACTOR", str(factor)).encode()
    control.load("times", config_json=document, files={"1/model.py": code})


def test_a_model_that_another_client_replaces(server: EmbeddedTriton) -> None:
    """The first request after a change is judged by the new names, datatypes and shapes, over every transport."""
    subjects = clients(server)
    old = np.array([[1.5, 2.5]], np.float32)
    for client in subjects:
        for _ in range(2):  # the size of an output is known from the second one on
            np.testing.assert_array_equal(y(client.predict("times", {"x": old})), old * 2, strict=True)
    change(server, config("x", "FP32", 3), 3)
    wide = np.array([[1.0, 2.0, 3.0]], np.float32)
    for client in subjects[::2]:
        np.testing.assert_array_equal(y(client.predict("times", {"x": wide})), wide * 3, strict=True)
    for client in subjects[1::2]:
        with pytest.raises(InvalidInput, match=r"'x' has the shape \[1, 2\].*\[-1, 3\]"):
            client.predict("times", {"x": old})
    change(server, config("z", "INT64", 2), 4)
    for client in subjects[::2]:
        assert y(client.predict("times", {"z": [[5, 6]]})).tolist() == [[20, 24]]
    for client in subjects[1::2]:
        with pytest.raises(InvalidInput, match=r"'x'.*'z'"):
            client.predict("times", {"x": wide})
    change(server, config("z", "FP64", 2), 5)
    for client in subjects:
        exact = np.array([[0.1, 1e-310]])
        np.testing.assert_array_equal(y(client.predict("times", {"z": exact})), exact * 5, strict=True)
    change(server, "")
    for client in subjects:
        with pytest.raises(DeploymentNotFound, match="'times'"):
            client.predict("times", {"z": [[5.0, 6.0]]})


def test_a_server_that_is_started_anew(repository: Path) -> None:
    """Connections, channels and regions that are kept from before a restart are replaced, without an error."""
    x = np.arange(2 * 40_000, dtype=np.float32).reshape(-1, 2)

    def all_predict(subjects: list[TritonDeploymentClient]) -> None:
        with ThreadPoolExecutor(4 * len(subjects)) as pool:
            for answer in pool.map(lambda client: client.predict("times", {"x": x}), subjects * 4):
                np.testing.assert_array_equal(y(answer), x * 2, strict=True)

    with started(repository) as server:
        ports = [int(url.rpartition(":")[2]) for url in (server.http_url, server.grpc_url)]
        subjects = clients(server)
        all_predict(subjects)
        all_predict(subjects)
    with started(repository, *ports):
        all_predict(subjects)
