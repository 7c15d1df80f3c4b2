"""What a real server refuses is told with what to do about it, over each transport; requests are taken by priority."""

from __future__ import annotations

import json
import os
import re
import signal
import threading
import time
import urllib.request
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from mlflow_triton.deployments import TritonDeploymentClient
from mlflow_triton.embedded import EmbeddedTriton
from mlflow_triton.errors import InferenceFailed, TritonPluginError
from mlflow_triton.serving.refusal import ADVICE, DEFAULT

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

pytestmark = pytest.mark.slow

#: Waits for as many seconds as x is, and answers the number of requests before, and its process.
COUNTS = """\
import os, time
import numpy as np
import triton_python_backend_utils as pb_utils

class TritonPythonModel:
    number = -1

    def execute(self, requests):
        return [self.answer(request) for request in requests]

    def answer(self, request):
        x = pb_utils.get_input_tensor_by_name(request, "x").as_numpy()
        if x.flat[0] < 0:
            raise ValueError("negative")
        time.sleep(float(x.flat[0]))
        self.number += 1
        y = np.full((len(x), 2), [self.number, os.getpid()], np.int64)
        return pb_utils.InferenceResponse([pb_utils.Tensor("y", y)])
"""
#: Never answers.
SILENT = """\
import triton_python_backend_utils as pb_utils

class TritonPythonModel:
    def execute(self, requests):
        for request in requests:
            request.get_response_sender().send(flags=pb_utils.TRITONSERVER_RESPONSE_COMPLETE_FINAL)
"""
CONFIG = """\
backend: "python"
max_batch_size: 1
input { name: "x" data_type: TYPE_FP32 dims: [1] }
output { name: "y" data_type: TYPE_INT64 dims: [2] }
instance_group { count: 1 kind: KIND_CPU }
"""
QUEUE = """\
dynamic_batching {{
  priority_levels: 2
  default_priority_level: 2
  default_queue_policy {{ default_timeout_microseconds: 60000000 allow_timeout_override: true max_queue_size: {} }}
}}
"""
MODELS = {
    "queue": (COUNTS, QUEUE.format(0)),
    "short": (COUNTS, QUEUE.format(1)),
    "mortal": (COUNTS, ""),
    "sequence": (COUNTS, "sequence_batching { max_sequence_idle_microseconds: 60000000 }"),
    "decoupled": (SILENT, "model_transaction_policy { decoupled: true }"),
}


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[EmbeddedTriton]:
    """A server with a model for each kind of refusal."""
    repository: Path = tmp_path_factory.mktemp("refusals") / "models"
    for name, (code, more) in MODELS.items():
        (repository / name / "1").mkdir(parents=True)
        (repository / name / "1" / "model.py").write_text(code, encoding="utf-8")
        (repository / name / "config.pbtxt").write_text(CONFIG + more, encoding="utf-8")
    with EmbeddedTriton(repository, arguments=["--load-model=*"]) as running:
        yield running


@pytest.fixture(params=["http", "grpc"])
def client(server: EmbeddedTriton, request: pytest.FixtureRequest) -> TritonDeploymentClient:
    """A client of the server, over each transport."""
    host = server.http_url.partition("://")[2]
    return TritonDeploymentClient(f"triton://{host}?grpc_url={server.grpc_url}&transport={request.param}")


def x(seconds: float) -> dict[str, Any]:
    """An input that the model takes so long for."""
    return {"x": np.array([[seconds]], np.float32)}


def waiting(server: EmbeddedTriton, name: str) -> int:
    """How many requests wait for a model, by the server's own metrics."""
    with urllib.request.urlopen(server.metrics_url, timeout=10) as answer:
        text = answer.read().decode()
    (found,) = re.findall(
        rf'^nv_inference_pending_request_count{{model="{name}",version="1"}} (\d+)$', text, re.MULTILINE
    )
    return int(found)


class Queue:
    """Requests to one model that wait behind a long one.

    Args:
        server: The server.
        client: Sends them.
        name: The model.
    """

    def __init__(self, server: EmbeddedTriton, client: TritonDeploymentClient, name: str) -> None:
        self._server, self._client, self._name = server, client, name
        self._threads: list[threading.Thread] = []
        self.answers: dict[str, int] = {}

    def send(self, label: str, seconds: float = 0, **options: Any) -> None:
        """Send a request in a thread, and return when it waits in the queue, or if it is the first one, is computed."""

        def predict() -> None:
            outputs = self._client.predict(self._name, x(seconds), **options)["outputs"]
            self.answers[label] = int(outputs["y"][0, 0])

        self._threads.append(threading.Thread(target=predict))
        self._threads[-1].start()
        if len(self._threads) == 1:
            time.sleep(0.3)
        until = time.monotonic() + 10
        while waiting(self._server, self._name) != len(self._threads) - 1:
            assert time.monotonic() < until
            time.sleep(0.02)

    def join(self) -> list[str]:
        """Wait for all answers, and return the labels in the order in which the model computed them."""
        for thread in self._threads:
            thread.join(60)
        return sorted(self.answers, key=self.answers.__getitem__)


def test_requests_are_taken_by_priority(server: EmbeddedTriton, client: TritonDeploymentClient) -> None:
    """A request of the highest priority is computed before those that came earlier; the others in their order."""
    queue = Queue(server, client, "queue")
    queue.send("busy", 1.5)
    queue.send("low")
    queue.send("usual")
    queue.send("high", priority=1)
    queue.send("lowest", priority=2)
    assert queue.join() == ["busy", "high", "low", "usual", "lowest"]


def refused(call: Callable[[], Any], text: str, advice: str) -> None:
    """See that a call fails with the server's text, followed by the advice, in one line."""
    with pytest.raises(InferenceFailed, match=text) as caught:
        call()
    assert caught.value.message.endswith(f" {advice}")
    assert "\n" not in caught.value.message


def test_a_full_queue_and_a_long_one(server: EmbeddedTriton, client: TritonDeploymentClient) -> None:
    """A request for which the queue has no room, or that waits for too long in it, is told to come again."""
    queue = Queue(server, client, "short")
    queue.send("busy", 1.5)
    queue.send("waits")
    refused(
        lambda: client.predict("short", x(0)),
        "[Ee]xceeds maximum queue size",
        advice("exceeds maximum queue size"),
    )
    assert queue.join() == ["busy", "waits"]
    queue = Queue(server, client, "queue")
    queue.send("busy", 1.5)
    refused(lambda: client.predict("queue", x(0), timeout=0.2), "timeout expired", advice("timeout expired"))
    assert queue.join() == ["busy"]


def advice(mark: str) -> str:
    """What is advised where Triton's text has a mark."""
    return dict(ADVICE)[mark]


def test_a_sequence_that_is_none(client: TritonDeploymentClient) -> None:
    """A request without a sequence, or of one that nobody began, is told how to begin it."""
    refused(lambda: client.predict("sequence", x(0)), "correlation ID", advice("correlation id"))
    refused(
        lambda: client.predict("sequence", x(0), sequence_id=77),
        "must specify the START flag",
        advice("must specify the start flag"),
    )


def test_a_decoupled_model(client: TritonDeploymentClient) -> None:
    """A model that answers any number of times is asked with predict_stream, as the error of predict says."""
    refused(lambda: client.predict("decoupled", x(0)), "decoupled", advice("decoupled"))
    assert list(client.predict_stream("decoupled", x(0))) == []


def test_a_model_that_fails(client: TritonDeploymentClient) -> None:
    """What a model raises is told without its traceback, and the way to the server's log."""
    refused(lambda: client.predict("mortal", x(-1)), "ValueError: negative", DEFAULT)


def test_a_model_whose_process_has_ended(server: EmbeddedTriton, client: TritonDeploymentClient) -> None:
    """A Python model that was killed, as for want of memory, is told to be brought back, at once or from the next request on."""
    process = int(client.predict("mortal", x(0))["outputs"]["y"][0, 1])
    os.kill(process, signal.SIGKILL)
    until, message = time.monotonic() + 20, ""
    try:
        while "is not healthy" not in message:
            assert time.monotonic() < until, message
            with pytest.raises(TritonPluginError) as caught:
                client.predict("mortal", x(0), timeout=5)
            message = caught.value.message
        assert message.endswith(advice("is not healthy"))
    finally:
        load(server, "mortal")


def load(server: EmbeddedTriton, name: str) -> None:
    """Load a model anew: one with another configuration, which Triton does not pass over."""
    config = json.dumps({"parameters": {"config": json.dumps(_config(server, name))}}).encode()
    request = urllib.request.Request(f"{server.http_url}/v2/repository/models/{name}/load", config)
    urllib.request.urlopen(request, timeout=60).close()


def _config(server: EmbeddedTriton, name: str) -> dict[str, Any]:
    with urllib.request.urlopen(f"{server.http_url}/v2/models/{name}/config", timeout=10) as answer:
        config: dict[str, Any] = json.load(answer)
    number = str(int(config.get("parameters", {}).get("n", {}).get("string_value", "0")) + 1)
    return {**config, "parameters": {"n": {"string_value": number}}}
