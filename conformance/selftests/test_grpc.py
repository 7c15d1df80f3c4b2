from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import grpc
import ml_dtypes  # noqa: F401 - BF16 for NumPy
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tritonclient.grpc import service_pb2 as pb

from mlflow_triton.deployments import TritonDeploymentClient
from mlflow_triton.embedded import EmbeddedTriton
from mlflow_triton.errors import (
    DeploymentNotFound,
    InferenceFailed,
    InvalidInput,
    InvalidSetting,
    ServerTimeout,
    ServerUnavailable,
    TritonPluginError,
)
from mlflow_triton.serving import forks
from mlflow_triton.serving.control import Control
from mlflow_triton.serving.grpc_endpoint import GrpcEndpoint
from mlflow_triton.serving.grpc_inference import RAW_OUTPUT, _varint, fields, infer, outputs, request
from mlflow_triton.serving.http import HttpEndpoint
from mlflow_triton.serving.inference import Inference
from mlflow_triton.serving.request import RequestOptions
from mlflow_triton.serving.shared_memory import LARGE_OUTPUT
from mlflow_triton.serving.streaming import stream
from mlflow_triton.settings import Settings
from mlflow_triton.tensors.datatypes import DATATYPES, numpy_dtype

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

slow = pytest.mark.slow

TYPES = [*DATATYPES, "BF16"]
#: Hands every input through; BF16, which NumPy does not know there, by DLPack.
SAME = """
import triton_python_backend_utils as pb_utils

class TritonPythonModel:
    def execute(self, requests):
        return [pb_utils.InferenceResponse([self.same(tensor) for tensor in request.inputs()]) for request in requests]

    def same(self, tensor):
        name = "out_" + tensor.name()
        if tensor.name() == "BF16":
            return pb_utils.Tensor.from_dlpack(name, tensor.to_dlpack())
        return pb_utils.Tensor(name, tensor.as_numpy())
"""
#: Answers 0, 1, 2 … as often as it is told, each after so many seconds; a negative number at its end: it fails then.
COUNT = """
import time
import numpy as np
import triton_python_backend_utils as pb_utils

class TritonPythonModel:
    def execute(self, requests):
        for request in requests:
            sender = request.get_response_sender()
            times, last = pb_utils.get_input_tensor_by_name(request, "times").as_numpy()
            pause = pb_utils.get_input_tensor_by_name(request, "pause").as_numpy()[0]
            for number in range(times):
                time.sleep(float(pause))
                if request.is_cancelled():
                    open(__file__ + ".cancelled", "a").close()
                    break
                sender.send(pb_utils.InferenceResponse([pb_utils.Tensor("y", np.array([number], np.int32))]))
            if last < 0:
                sender.send(pb_utils.InferenceResponse(error=pb_utils.TritonError("negative")))
            sender.send(flags=pb_utils.TRITONSERVER_RESPONSE_COMPLETE_FINAL)
"""
#: Adds up what one sequence sends; says how many sequences are open.
ADD = """
import numpy as np
import triton_python_backend_utils as pb_utils

class TritonPythonModel:
    def initialize(self, args):
        self.sums = {}

    def execute(self, requests):
        return [self.answer(request) for request in requests]

    def answer(self, request):
        x, start, end, sequence = (
            int(pb_utils.get_input_tensor_by_name(request, name).as_numpy().flat[0])
            for name in ("x", "start", "end", "id")
        )
        total = x + (0 if start else self.sums[sequence])
        self.sums[sequence] = total
        y = np.array([[total, len(self.sums)]], np.int64)
        if end:
            del self.sums[sequence]
        return pb_utils.InferenceResponse([pb_utils.Tensor("y", y)])
"""
#: Fails before it has any way to answer.
RAISE = """
class TritonPythonModel:
    def execute(self, requests):
        raise ValueError("no such weather")
"""
CPU = 'backend: "python"\ninstance_group [ { count: 1 kind: KIND_CPU } ]\n'
MODELS = {
    "same": (
        SAME,
        "\n".join(
            f'input {{ name: "{name}" data_type: TYPE_{name.replace("BYTES", "STRING")} dims: [ -1, -1 ] optional: true }}\n'
            f'output {{ name: "out_{name}" data_type: TYPE_{name.replace("BYTES", "STRING")} dims: [ -1, -1 ] }}'
            for name in TYPES
        ),
    ),
    "count": (
        COUNT,
        """
        input [ { name: "times" data_type: TYPE_INT32 dims: [ 2 ] }, { name: "pause" data_type: TYPE_FP32 dims: [ 1 ] } ]
        output { name: "y" data_type: TYPE_INT32 dims: [ 1 ] }
        model_transaction_policy { decoupled: true }
        """,
    ),
    "raise": (
        RAISE,
        """
        input { name: "x" data_type: TYPE_INT32 dims: [ 1 ] }
        output { name: "y" data_type: TYPE_INT32 dims: [ 1 ] }
        model_transaction_policy { decoupled: true }
        """,
    ),
    "add": (
        ADD,
        """
        max_batch_size: 4
        input { name: "x" data_type: TYPE_INT64 dims: [ 1 ] }
        output { name: "y" data_type: TYPE_INT64 dims: [ 2 ] }
        sequence_batching { oldest { max_candidate_sequences: 4 } control_input [
          { name: "start" control { kind: CONTROL_SEQUENCE_START int32_false_true: [ 0, 1 ] } },
          { name: "end" control { kind: CONTROL_SEQUENCE_END int32_false_true: [ 0, 1 ] } },
          { name: "id" control { kind: CONTROL_SEQUENCE_CORRID data_type: TYPE_UINT64 } }
        ] }
        """,
    ),
}


def make_repository(directory: Path) -> Path:
    """Write the models."""
    for name, (code, config) in MODELS.items():
        (directory / name / "1").mkdir(parents=True)
        (directory / name / "1" / "model.py").write_text(code)
        (directory / name / "config.pbtxt").write_text(CPU + config)
    return directory


def started(repository: Path, http_port: int = 0, grpc_port: int = 0) -> EmbeddedTriton:
    """Make a server of the models."""
    arguments = ["--load-model=*", "--disable-auto-complete-config"]
    return EmbeddedTriton(repository, http_port=http_port, grpc_port=grpc_port, arguments=arguments)


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[EmbeddedTriton]:
    """Run a server with the models."""
    with started(make_repository(tmp_path_factory.mktemp("repository"))) as running:
        yield running


def target(server: EmbeddedTriton, transport: str = "grpc") -> str:
    """Return the target URI of a server."""
    return (
        f"{server.http_url.replace('http://', 'triton://')}?grpc_url={server.grpc_url}&transport={transport}"
    )


def endpoint(address: str, **environment: str) -> GrpcEndpoint:
    """Make an endpoint at an address."""
    return GrpcEndpoint(Settings.parse("triton", {"TRITON_GRPC_URL": address, **environment}))


def count(times: int, *, pause: float = 0, fail: bool = False) -> dict[str, Any]:
    """Make an input of the decoupled model."""
    return {"times": np.array([times, -fail]), "pause": [pause]}


def numbers(answers: Iterator[Any]) -> list[int]:
    """Return what the decoupled model has answered."""
    return [int(answer["outputs"]["y"][0]) for answer in answers]


def bits(datatype: str, shape: tuple[int, ...], seed: int) -> np.ndarray[Any, Any]:
    """Make an array of a datatype with any bits."""
    random = np.random.default_rng(seed)
    size = int(np.prod(shape))
    if datatype == "BYTES":
        texts = np.empty(size, object)
        texts[:] = [random.bytes(int(random.integers(0, 9))) for _ in range(size)]
        return texts.reshape(shape)
    dtype = numpy_dtype(datatype)
    if datatype == "BOOL":
        return random.integers(0, 2, shape).astype(dtype)
    return np.frombuffer(random.bytes(size * dtype.itemsize), dtype).reshape(shape)


@slow
@pytest.mark.parametrize("shape", [(1, 1), (3, 5), (0, 4), (300, 1000)])
def test_every_datatype_is_exact(server: EmbeddedTriton, shape: tuple[int, ...]) -> None:
    """Tensors of every datatype, all in one request, come back bit by bit, in messages and through shared memory."""
    settings = Settings.parse(target(server), {})
    subject = Inference(HttpEndpoint(settings), GrpcEndpoint(settings))
    chosen = [name for name in TYPES if name != "BYTES" or np.prod(shape) < 100]
    sent = {name: (name, bits(name, shape, seed)) for seed, name in enumerate(chosen)}
    for _ in range(3):  # the size of an output is known from the second one on
        answer = subject.infer("same", sent)
        assert set(answer) == {f"out_{name}" for name in sent}
        for name, (_, array) in sent.items():
            found = answer[f"out_{name}"]
            assert found.dtype == array.dtype
            assert found.shape == array.shape
            assert found.tolist() == array.tolist() if name == "BYTES" else found.tobytes() == array.tobytes()
            assert found.flags.writeable
            assert found.flags.aligned


@slow
def test_shared_memory_that_the_server_has_forgotten(server: EmbeddedTriton) -> None:
    """Large tensors go through shared memory over gRPC as well, and once more where the server knows it no longer."""
    settings = Settings.parse(target(server), {})
    subject = Inference(HttpEndpoint(settings), GrpcEndpoint(settings))
    array = np.random.default_rng(0).random((2, LARGE_OUTPUT // 8))
    shared = []
    for _ in range(3):
        answer = subject.infer("same", {"FP64": ("FP64", array)})
        np.testing.assert_array_equal(answer["out_FP64"], array, strict=True)
        known = HttpEndpoint(settings).json("GET", "/v2/systemsharedmemory/status")
        shared.append(sum(entry["byte_size"] for entry in known) >= array.nbytes)
        HttpEndpoint(settings).json("POST", "/v2/systemsharedmemory/unregister", {})
    assert shared[0]
    assert not all(shared)  # a request whose memory was refused has gone without


@slow
def test_errors_are_those_of_http(server: EmbeddedTriton) -> None:
    """What is refused over HTTP is refused over gRPC with the same kind of error."""
    cases: list[tuple[str, str, Any]] = [
        ("nothing", "FP32", np.zeros((1, 1))),
        ("same", "FP32", np.zeros((1, 1, 1))),
        ("same", "nothing", np.zeros((1, 1))),
        ("count", "times", np.zeros(2)),
    ]
    for name, tensor, value in cases:
        errors = []
        for transport in ("http", "grpc"):
            with pytest.raises(TritonPluginError) as caught:
                TritonDeploymentClient(target(server, transport)).predict(
                    name, {tensor: value, "pause": [0]} if name == "count" else {tensor: value}
                )
            errors.append(type(caught.value))
        assert errors[0] is errors[1]
    with pytest.raises(InferenceFailed, match="Use predict_stream"):
        TritonDeploymentClient(target(server)).predict("count", count(1))
    directly = GrpcEndpoint(Settings.parse(target(server), {}))
    with pytest.raises(DeploymentNotFound, match="'nothing'"):
        infer(directly, "nothing", {})
    with pytest.raises(InferenceFailed, match="'same'"):
        infer(directly, "same", {"FP32": ("FP32", np.zeros((1, 1, 1), "<f4"))})
    with pytest.raises(DeploymentNotFound, match="version 7"):
        infer(directly, "same", {}, options=RequestOptions(version=7))


@slow
def test_threads_share_a_client(server: EmbeddedTriton) -> None:
    """Eight threads with one client get each its own answers, of requests and of streams."""
    client = TritonDeploymentClient(target(server))

    def run(number: int) -> None:
        array = np.full((1, 100), number, np.int64)
        for _ in range(10):
            answer = client.predict("same", {"INT64": array})["outputs"]["out_INT64"]
            np.testing.assert_array_equal(answer, array)
            assert numbers(client.predict_stream("count", count(number))) == list(range(number))

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(run, range(8)))


@slow
@pytest.mark.filterwarnings("ignore:.*multi-threaded:DeprecationWarning")
def test_a_fork(server: EmbeddedTriton) -> None:
    """A forked process makes a connection of its own, and its end disturbs none of its parent's."""
    client = TritonDeploymentClient(target(server))

    def works(number: int) -> bool:
        answer = client.predict("same", {"INT64": [[number]]})["outputs"]["out_INT64"]
        return bool(answer[0, 0] == number) and numbers(client.predict_stream("count", count(3))) == [0, 1, 2]

    assert works(1)
    running = client.predict_stream("count", count(3))
    assert next(running)
    children = []
    for number in range(3):
        child = os.fork()
        if child == 0:
            os._exit(0 if works(number) else 1)
        children.append(child)
    for child in children:
        _, status = os.waitpid(child, 0)
        assert status == 0
    assert numbers(running) == [1, 2]
    assert works(2)


def forked(run: Callable[[], bool]) -> bool:
    """Fork, and say whether `run` is true in the new process, which has 30 seconds."""
    child = os.fork()
    if child == 0:
        os._exit(0 if run() else 1)
    until = time.monotonic() + 30
    while (ended := os.waitpid(child, os.WNOHANG)) == (0, 0):
        if time.monotonic() > until:
            os.kill(child, signal.SIGKILL)
        time.sleep(0.01)
    return ended[1] == 0


#: Forks while threads predict, and ends with an error if a forked process fails, or has not predicted in 20 seconds.
FORKS = """
import os, signal, sys, threading, time
from mlflow.deployments import get_deploy_client

client = get_deploy_client(sys.argv[1])

def predict():
    assert client.predict("same", {"INT64": [[7]]})["outputs"]["out_INT64"].item() == 7

def go_on():
    while True:
        predict()

for _ in range(4):
    threading.Thread(target=go_on, daemon=True).start()
time.sleep(1)
for _ in range(3):
    child = os.fork()
    if child == 0:
        predict()
        os._exit(0)
    timer = threading.Timer(20, os.kill, (child, signal.SIGKILL))
    timer.start()
    _, status = os.waitpid(child, 0)
    timer.cancel()
    assert status == 0, status
predict()
os._exit(0)
"""


@slow
def test_forks_while_threads_predict(server: EmbeddedTriton) -> None:
    """A process forked while other threads wait for answers over gRPC can predict, and so can they."""
    done = subprocess.run(
        [sys.executable, "-c", FORKS, target(server)],
        check=False,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr


@slow
@pytest.mark.filterwarnings("ignore:.*multi-threaded:DeprecationWarning")
def test_a_fork_beside_a_long_wait(server: EmbeddedTriton, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where a call takes longer than a fork waits, the new process says that it cannot use gRPC, and HTTP works."""
    monkeypatch.setattr(forks, "PATIENCE", 0.1)
    client, http = TritonDeploymentClient(target(server)), TritonDeploymentClient(target(server, "http"))
    one = {"INT64": [[1]]}

    def refuses() -> bool:
        try:
            client.predict("same", one)
        except ServerUnavailable as error:
            return "was forked" in error.message and bool(http.predict("same", one))
        return False

    with ThreadPoolExecutor(1) as pool:
        waiting = pool.submit(lambda: numbers(client.predict_stream("count", count(1, pause=2))))
        time.sleep(1)
        assert forked(refuses)
        assert waiting.result() == [0]
    assert client.predict("same", one)


@slow
def test_a_stream(server: EmbeddedTriton) -> None:
    """A decoupled model's answers come in order, none as well as many, also to several requests in turn."""
    client = TritonDeploymentClient(target(server, "http"))
    assert numbers(client.predict_stream("count", count(4))) == [0, 1, 2, 3]
    assert numbers(client.predict_stream("count", count(0))) == []
    assert numbers(client.predict_stream("count", map(count, (2, 0, 3)))) == [0, 1, 0, 1, 2]
    assert numbers(client.predict_stream("count", iter(()))) == []
    assert numbers(client.predict_stream("count", count(2000))) == list(range(2000))
    same = client.predict_stream("same", ({"INT8": [[number]]} for number in range(3)))
    assert [answer["outputs"]["out_INT8"].item() for answer in same] == [0, 1, 2]


@slow
def test_a_model_that_has_failed_is_let_go_of(server: EmbeddedTriton) -> None:
    """Streams that end with an error are ended by the server: one in some hundred that are cancelled is so for ever."""
    client = TritonDeploymentClient(target(server))
    for _ in range(600):
        with pytest.raises(InferenceFailed, match="no such weather"):
            next(client.predict_stream("raise", {"x": [0]}))
    settings = Settings.parse(target(server), {})
    Control(HttpEndpoint(settings), settings).unload("raise", timeout=30)


@slow
def test_a_stream_that_fails(server: EmbeddedTriton) -> None:
    """Errors come at their place, after the answers before it: the model's, a wrong input's, the caller's own."""
    client = TritonDeploymentClient(target(server))

    def until_error(inputs: Any, name: str = "count") -> tuple[list[int], Exception]:
        answers = client.predict_stream(name, inputs)
        seen: list[int] = []
        with pytest.raises((TritonPluginError, ZeroDivisionError)) as caught:
            seen.extend(int(answer["outputs"]["y"][0]) for answer in answers)
        assert list(answers) == []
        return seen, caught.value

    def broken() -> Iterator[dict[str, Any]]:
        yield count(1)
        yield count(1)
        raise ZeroDivisionError

    seen, error = until_error(iter([count(2), count(3, fail=True), count(9)]))
    assert (seen, type(error)) == ([0, 1, 0, 1, 2], InferenceFailed)
    assert "negative" in str(error)
    seen, error = until_error(iter([count(2), {"times": "many"}]))
    assert (seen, type(error)) == ([0, 1], InvalidInput)
    seen, error = until_error(broken())
    assert (seen, type(error)) == ([0], ZeroDivisionError)
    seen, error = until_error(count(1), "nothing")
    assert (seen, type(error)) == ([], DeploymentNotFound)
    assert numbers(client.predict_stream("count", count(2))) == [0, 1]


@slow
def test_a_stream_that_is_closed(server: EmbeddedTriton) -> None:
    """Closing the generator cancels the model's work; nothing is sent before the first answer is asked for."""
    client = TritonDeploymentClient(target(server))
    marker = server.model_repository / "count" / "1" / "model.py.cancelled"
    client.predict_stream("count", count(1000, pause=0.02)).close()
    answers = client.predict_stream("count", count(1000, pause=0.02))
    assert next(answers)
    answers.close()
    end = time.monotonic() + 10
    while not marker.exists():
        assert time.monotonic() < end
        time.sleep(0.02)
    before = {thread.name for thread in threading.enumerate()}
    assert not [name for name in before if name == "mlflow-triton-stream"] or _gone("mlflow-triton-stream")


def _gone(name: str) -> bool:
    end = time.monotonic() + 10
    while any(thread.name == name for thread in threading.enumerate()):
        if time.monotonic() > end:
            return False
        time.sleep(0.05)
    return True


@slow
def test_a_sequence(server: EmbeddedTriton) -> None:
    """The requests of an iterator are one sequence, begun and ended, and two at once are not mixed."""
    client = TritonDeploymentClient(target(server))

    def totals(values: list[int]) -> Iterator[tuple[int, int]]:
        for answer in client.predict_stream("add", ({"x": [[value]]} for value in values)):
            total, opened = answer["outputs"]["y"][0]
            yield int(total), int(opened)

    assert list(totals([1, 2, 3])) == [(1, 1), (3, 1), (6, 1)]
    both = list(zip(totals([1, 2, 3]), totals([10, 20, 30]), strict=True))
    assert [(first[0], second[0]) for first, second in both] == [(1, 10), (3, 30), (6, 60)]
    (only,) = client.predict_stream("add", {"x": [[5]]})
    assert only["outputs"]["y"].tolist() == [[5, 1]]  # no sequence has been left open


@slow
def test_time_is_up(server: EmbeddedTriton) -> None:
    """A stream has the time limit for each answer and not for all; what the caller takes does not count."""
    client = TritonDeploymentClient(f"{target(server)}&request_timeout=0.5")
    answers = client.predict_stream("count", count(4, pause=0.2))
    time.sleep(0.1)
    seen = []
    for answer in answers:
        seen.append(answer)
        time.sleep(0.6 if len(seen) == 1 else 0)
    assert len(seen) == 4
    began = time.monotonic()
    with pytest.raises(ServerTimeout, match=r"within 0\.5 s"):
        list(client.predict_stream("count", count(1, pause=2)))
    assert time.monotonic() - began < 1.9


@slow
def test_a_server_that_is_killed_and_comes_back(tmp_path: Path) -> None:
    """A server that dies in the midst is an error at once, and one that is back serves the same client."""
    repository = make_repository(tmp_path / "repository")
    with started(repository) as server:
        ports = [int(url.rpartition(":")[2]) for url in (server.http_url, server.grpc_url)]
        client = TritonDeploymentClient(f"{target(server)}&request_timeout=30")
        assert client.predict("same", {"INT8": [[1]]})
        answers = client.predict_stream("count", count(1000, pause=0.02))
        assert next(answers)
        with ThreadPoolExecutor(1) as pool:
            waits = pool.submit(list, client.predict_stream("count", count(1, pause=60)))
            time.sleep(0.3)
            os.kill(server.pid, signal.SIGKILL)
            began = time.monotonic()
            with pytest.raises(ServerUnavailable, match="broke off"):
                list(answers)
            with pytest.raises(ServerUnavailable):
                waits.result()
        with pytest.raises(ServerUnavailable):
            client.predict("same", {"INT8": [[1]]})
        assert time.monotonic() - began < 10
    with started(repository, *ports) as server:
        for _ in range(2):
            assert client.predict("same", {"INT8": [[1]]})["outputs"]["out_INT8"].item() == 1
            assert numbers(client.predict_stream("count", count(2))) == [0, 1]


@contextmanager
def playing(behaviour: Callable[[bytes, Any], Any]) -> Iterator[str]:
    """Run a gRPC server that answers every request as no real server does on demand."""

    class Handler(grpc.GenericRpcHandler):  # type: ignore[misc] # grpc has no types
        def service(self, details: Any) -> Any:
            if details.method.endswith("ModelStreamInfer"):
                return grpc.stream_stream_rpc_method_handler(
                    lambda requests, context: behaviour(next(requests), context)
                )
            return grpc.unary_unary_rpc_method_handler(behaviour)

    server = grpc.server(ThreadPoolExecutor(2), handlers=[Handler()])
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    try:
        yield f"127.0.0.1:{port}"
    finally:
        server.stop(0).wait()


def abort(code: grpc.StatusCode, text: str) -> Callable[[bytes, Any], Any]:
    """Refuse every request."""
    return lambda _, context: context.abort(code, text)


@pytest.mark.parametrize(
    ("code", "text", "expected"),
    [
        ("UNAVAILABLE", "Exceeds maximum queue size", InferenceFailed),
        ("UNAVAILABLE", "Socket closed", ServerUnavailable),
        ("UNKNOWN", "", InferenceFailed),
        ("CANCELLED", "cancelled by the model", InferenceFailed),
        ("DEADLINE_EXCEEDED", "late", ServerTimeout),
        ("UNIMPLEMENTED", "Method not found!", ServerUnavailable),
        ("UNIMPLEMENTED", "unknown service inference.GRPCInferenceService", ServerUnavailable),
        ("UNIMPLEMENTED", "the model supports nothing", InferenceFailed),
        ("NOT_FOUND", "Unable to find shared memory region", InferenceFailed),
        ("NOT_FOUND", "Request for unknown model", DeploymentNotFound),
    ],
)
def test_statuses(code: str, text: str, expected: type[Exception]) -> None:
    """Each gRPC status becomes the error that the same fault is over HTTP."""
    with playing(abort(grpc.StatusCode[code], text)) as address, pytest.raises(expected) as caught:
        infer(endpoint(address), "m", {})
    assert type(caught.value) is expected


def test_nobody_listens() -> None:
    """A port without a server is an error at once that says what to set."""
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{unused.getsockname()[1]}"
    with pytest.raises(ServerUnavailable, match=r"cannot be reached.*TRITON_GRPC_URL"):
        infer(endpoint(address), "m", {})
    with pytest.raises(ServerUnavailable, match=r"cannot be reached.*TRITON_GRPC_URL"):
        list(stream(endpoint(address), "m", [b""]))


def test_a_server_that_says_nothing() -> None:
    """A server that accepts the connection and is silent is an error when the time is up."""
    with socket.create_server(("127.0.0.1", 0)) as silent:
        address = f"127.0.0.1:{silent.getsockname()[1]}"
        for fails in (
            lambda: infer(endpoint(address, TRITON_REQUEST_TIMEOUT="0.3"), "m", {}),
            lambda: list(stream(endpoint(address, TRITON_REQUEST_TIMEOUT="0.3"), "m", [b""])),
        ):
            began = time.monotonic()
            with pytest.raises(ServerTimeout):
                fails()
            assert time.monotonic() - began < 5


@slow
def test_an_http_server(server: EmbeddedTriton) -> None:
    """A server that speaks HTTP/1 where gRPC is expected is an error at once."""
    address = server.http_url.removeprefix("http://")
    began = time.monotonic()
    with pytest.raises(ServerUnavailable, match="TRITON_GRPC_URL"):
        infer(endpoint(address), "m", {})
    with pytest.raises(ServerUnavailable, match="TRITON_GRPC_URL"):
        list(stream(endpoint(address), "m", [b""]))
    assert time.monotonic() - began < 10


def test_a_connection_that_has_worked_is_replaced_once() -> None:
    """A request whose kept connection breaks is sent again, unless it must not be; one on a new one is not."""
    asked = []

    def breaks_on_even(_: bytes, context: Any) -> bytes:
        asked.append(1)
        if len(asked) % 2 == 0:
            context.abort(grpc.StatusCode.UNAVAILABLE, "Socket closed")
        return b""

    with playing(breaks_on_even) as address:
        subject = endpoint(address)
        assert infer(subject, "m", {}) == {}
        assert infer(subject, "m", {}) == {}
        assert len(asked) == 3
        with pytest.raises(ServerUnavailable):
            infer(subject, "m", {}, options=RequestOptions(sequence_id=1))
        assert len(asked) == 4
    asked[:] = [1]
    with playing(breaks_on_even) as address, pytest.raises(ServerUnavailable):
        infer(endpoint(address), "m", {})
    assert len(asked) == 2


def test_a_stream_that_ends_too_early() -> None:
    """A stream that the server ends before the last answer is an error, and not the end of the answers."""
    first = pb.ModelStreamInferResponse(infer_response={"model_name": "m"})
    first.infer_response.parameters["triton_final_response"].bool_param = False

    def answers(_: bytes, context: Any) -> Iterator[bytes]:  # noqa: ARG001 - gRPC's signature
        yield first.SerializeToString()

    with playing(answers) as address:
        found = stream(endpoint(address), "m", [b""])
        assert next(found) == {}
        with pytest.raises(ServerUnavailable, match="before its last answer"):
            next(found)


def response(*tensors: tuple[str, str, list[int], bytes]) -> bytes:
    """Serialize a ModelInferResponse as Triton does."""
    message = pb.ModelInferResponse(model_name="m")
    for name, datatype, shape, data in tensors:
        message.outputs.add(name=name, datatype=datatype, shape=shape)
        message.raw_output_contents.append(data)
    serialized: bytes = message.SerializeToString()
    return serialized


@pytest.mark.parametrize(
    "answer",
    [
        b"\xff" * 20,
        b"\x0b",
        b"\x32\x05ab",
        response(("y", "FP32", [2], bytes(8)))[:-1],
        response(("y", "FP32", [3], bytes(8))),
        response(("y", "FP32", [-1], bytes(8))),
        response(("y", "FP32", [2], bytes(7))),
        response(("y", "BYTES", [1], b"\x09\x00\x00\x00ab")),
        response(("y", "FP32", [2], bytes(8))) + b"\x32\x00",
    ],
)
def test_broken_answers(answer: bytes) -> None:
    """An answer that is no message, or whose tensors do not fit, is an error and never a tensor."""
    with playing(lambda *_: answer) as address, pytest.raises(ServerUnavailable, match="broken answer"):
        infer(endpoint(address), "m", {})
    framed = b"\x12" + _varint(len(answer)) + answer
    with (
        playing(lambda *_: iter([framed])) as address,
        pytest.raises(ServerUnavailable, match="broken answer"),
    ):
        list(stream(endpoint(address), "m", [b""]))


@given(
    st.binary(max_size=60)
    | st.builds(
        lambda data, cut: data[:cut], st.just(response(("y", "FP16", [2], bytes(4)))), st.integers(0, 40)
    )
)
def test_any_bytes(data: bytes) -> None:
    """Any bytes are read as protobuf reads them, or end in an error of ours."""
    try:
        found, _ = outputs(endpoint("localhost:1"), "m", memoryview(data))
    except (ServerUnavailable, InferenceFailed):
        return
    expected = pb.ModelInferResponse.FromString(data)
    assert set(found) == {output.name for output in expected.outputs}
    assert len(expected.outputs) == len(expected.raw_output_contents)


@given(st.lists(st.tuples(st.sampled_from(TYPES), st.lists(st.integers(0, 3), max_size=3)), max_size=4))
def test_messages_are_what_protobuf_reads(tensors: list[tuple[str, list[int]]]) -> None:
    """A request is the message that protobuf would have written, its tensors in their order."""
    sent = {
        f"t{place}": (kind, bits(kind, tuple(shape), place)) for place, (kind, shape) in enumerate(tensors)
    }
    large = {"b": True, "i": -1, "u": 2**63, "f": 0.5, "s": "é"}
    message = pb.ModelInferRequest.FromString(
        request("m", sent, options=RequestOptions(version=3), parameters=large)
    )
    assert (message.model_name, message.model_version) == ("m", "3")
    assert [(entry.name, entry.datatype, tuple(entry.shape)) for entry in message.inputs] == [
        (name, kind, array.shape) for name, (kind, array) in sent.items()
    ]
    assert len(message.raw_input_contents) == len(sent)
    for raw, (kind, array) in zip(message.raw_input_contents, sent.values(), strict=True):
        assert kind == "BYTES" or raw == array.tobytes()
    parameters = message.parameters
    assert parameters["b"].bool_param is True
    assert parameters["i"].int64_param == -1
    assert parameters["u"].uint64_param == 2**63
    assert parameters["f"].double_param == 0.5
    assert parameters["s"].string_param == "é"


@given(st.integers(0, 2**63))
def test_lengths(value: int) -> None:
    """A field of any length is found again."""
    data = memoryview(_varint(RAW_OUTPUT << 3) + _varint(value))
    assert [(number, bytes(whole)) for number, whole, _ in fields(data)] == [(RAW_OUTPUT, bytes(data))]


def test_a_message_that_is_too_large(monkeypatch: pytest.MonkeyPatch) -> None:
    """More than gRPC carries is refused before anything is sent, and says what to do."""
    monkeypatch.setattr("mlflow_triton.serving.grpc_inference.LARGEST", 1000)
    with pytest.raises(
        InvalidInput, match=r"has 10\d\d bytes, and gRPC carries 1000 at most\. Nothing was sent"
    ):
        infer(endpoint("localhost:1"), "m", {"x": ("UINT8", np.zeros(1000, "u1"))})


def test_settings() -> None:
    """Without a gRPC URL, or with a header that gRPC cannot send, nothing is sent and the error says what to set."""
    with pytest.raises(InvalidSetting, match="TRITON_GRPC_URL"):
        GrpcEndpoint(Settings.parse("triton://127.0.0.1:1", {}))
    with pytest.raises(InvalidSetting, match="TRITON_GRPC_URL"):
        TritonDeploymentClient("triton://127.0.0.1:1?transport=grpc").predict("m", {})
    with pytest.raises(InvalidSetting, match="'x!y'"):
        endpoint("localhost:1", TRITON_HEADERS='{"X!y": "1"}')


def test_headers_are_sent() -> None:
    """The settings' headers go along with requests and streams, under lower-case names, one of gRPC's binary ones, too."""
    seen = []

    def look(_: bytes, context: Any) -> Any:
        headers = dict(context.invocation_metadata())
        seen.append((headers.get("authorization"), headers.get("trace-bin")))
        context.abort(grpc.StatusCode.UNAUTHENTICATED, "who is it?")

    with playing(look) as address:
        subject = endpoint(address, TRITON_HEADERS='{"Authorization": "Bearer hush", "Trace-Bin": "7"}')
        with pytest.raises(InferenceFailed, match="who is it"):
            infer(subject, "m", {})
        with pytest.raises(InferenceFailed, match="who is it"):
            list(stream(subject, "m", [b""]))
    assert seen == [("Bearer hush", b"7")] * 2
