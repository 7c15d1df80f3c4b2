from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from multiprocessing import get_context
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from mlflow_triton.deployments import TritonDeploymentClient
from mlflow_triton.embedded import EmbeddedTriton
from mlflow_triton.errors import InferenceFailed
from mlflow_triton.serving.http import HttpEndpoint
from mlflow_triton.serving.inference import Inference
from mlflow_triton.serving.shared_memory import DIRECTORY, LARGE, LARGE_OUTPUT, PREFIX, Region, Regions
from mlflow_triton.settings import Settings

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

pytestmark = pytest.mark.slow

MODEL = """
import numpy as np
import triton_python_backend_utils as pb_utils

class TritonPythonModel:
    def execute(self, requests):
        return [self.answer(request) for request in requests]

    def answer(self, request):
        x = pb_utils.get_input_tensor_by_name(request, "x").as_numpy()
        if x.flat[0] < 0:
            raise ValueError("negative")
        times = pb_utils.get_input_tensor_by_name(request, "times").as_numpy()[0]
        text = np.array([str(x.size).encode()], object)
        return pb_utils.InferenceResponse(
            [pb_utils.Tensor("y", np.tile(x, times)), pb_utils.Tensor("text", text)]
        )
"""
CONFIG = """
backend: "python"
input [
  { name: "x" data_type: TYPE_FP64 dims: [ -1 ] },
  { name: "times" data_type: TYPE_INT32 dims: [ 1 ] }
]
output [ { name: "y" data_type: TYPE_FP64 dims: [ -1 ] }, { name: "text" data_type: TYPE_STRING dims: [ 1 ] } ]
instance_group [ { count: 1 kind: KIND_CPU } ]
"""
WORKER = """
import sys
import numpy as np
from mlflow_triton.deployments import TritonDeploymentClient

client = TritonDeploymentClient(sys.argv[1])
for _ in range(2):
    client.predict("tile", {"x": np.ones(1 << 20), "times": [1]})
print(*client._inference._regions._all)
"""


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[EmbeddedTriton]:
    """Run a server with a model that repeats its input."""
    repository = tmp_path_factory.mktemp("repository")
    directory = repository / "tile" / "1"
    directory.mkdir(parents=True)
    (directory / "model.py").write_text(MODEL)
    (directory.parent / "config.pbtxt").write_text(CONFIG)
    with EmbeddedTriton(repository, arguments=["--load-model=tile"]) as running:
        yield running


def target(server: EmbeddedTriton) -> str:
    """Return the target URI of a server."""
    return server.http_url.replace("http://", "triton://")


def http(server: EmbeddedTriton) -> HttpEndpoint:
    """Make a connection to a server."""
    return HttpEndpoint(Settings.parse(target(server), {}))


def registered(server: EmbeddedTriton) -> set[str]:
    """Return the names of the regions that the server knows."""
    return {entry["name"] for entry in http(server).json("GET", "/v2/systemsharedmemory/status")}


def files() -> set[str]:
    """Return the names of the regions on this machine."""
    return {path.name for path in DIRECTORY.glob(f"{PREFIX}*")}


def tensors(x: np.ndarray[Any, Any], times: int = 1) -> dict[str, tuple[str, np.ndarray[Any, Any]]]:
    """Make an input of the model."""
    return {"x": ("FP64", x), "times": ("INT32", np.array([times], "<i4"))}


def test_large_tensors_are_exact_in_and_out(server: EmbeddedTriton) -> None:
    """Tensors of any layout and all sizes around the thresholds come back bit by bit, strings beside them."""
    subject = Inference(http(server))
    before = registered(server)
    for size in (1, LARGE // 8 - 1, LARGE // 8, LARGE_OUTPUT // 8, LARGE_OUTPUT // 8 + 3, 1 << 20):
        x = np.random.default_rng(size).random(2 * size)
        x[:4] = [np.nan, np.inf, -0.0, 5e-324][: min(4, x.size)]
        for array in (x[::2], np.ascontiguousarray(x[::2]), x[size:]):
            for _ in range(3):  # the size of an output is known from the second one on
                answer = subject.infer("tile", tensors(array, 2))
                assert answer["y"].tobytes() == np.tile(array, 2).tobytes()
                assert answer["y"].flags.writeable
                assert answer["text"].tolist() == [str(array.size).encode()]
    assert registered(server) - before
    assert before | registered(server) <= files()


def test_an_output_larger_than_before(server: EmbeddedTriton) -> None:
    """An output that has no room where the last one had is asked for again, and comes whole; so do smaller ones."""
    subject = Inference(http(server))
    x = np.arange(LARGE_OUTPUT / 8)
    for times in (1, 1, 3, 3, 1, 2):
        np.testing.assert_array_equal(
            subject.infer("tile", tensors(x, times))["y"], np.tile(x, times), strict=True
        )


@pytest.mark.parametrize("transport", ["http", "grpc"])
def test_outputs_that_are_selected(server: EmbeddedTriton, transport: str) -> None:
    """A selected output goes through shared memory as well, and comes alone; of another selection, whole and in order."""
    client = TritonDeploymentClient(f"{target(server)}?transport={transport}&grpc_url={server.grpc_url}")
    x, before = np.arange(LARGE / 128), registered(server)
    for _ in range(2):  # the size of an output is known from the second one on
        assert registered(server) == before
        outputs = client.predict("tile", {"x": x, "times": [64]}, outputs=["y"])["outputs"]
        np.testing.assert_array_equal(outputs["y"], np.tile(x, 64), strict=True)
        assert list(outputs) == ["y"]
    regions = registered(server)
    assert regions > before
    for _ in range(2):
        outputs = client.predict("tile", {"x": x, "times": [64]}, outputs=["text", "y"])["outputs"]
        np.testing.assert_array_equal(outputs["y"], np.tile(x, 64), strict=True)
        assert outputs["text"].tolist() == [str(x.size)]
    assert registered(server) == regions


def test_a_model_that_fails(server: EmbeddedTriton) -> None:
    """A model's own error is the error, and the memory serves the next request."""
    subject = Inference(http(server))
    x = np.arange(LARGE_OUTPUT / 8)
    subject.infer("tile", tensors(x))
    for _ in range(2):
        subject.infer("tile", tensors(x))
        known = registered(server)
        with pytest.raises(InferenceFailed, match="negative"):
            subject.infer("tile", tensors(x - 1))
        assert registered(server) == known
    np.testing.assert_array_equal(subject.infer("tile", tensors(x))["y"], x, strict=True)


def test_a_server_that_has_forgotten(server: EmbeddedTriton) -> None:
    """A server that no longer knows the regions, as after a restart, is given new ones."""
    subject = Inference(http(server))
    x = np.arange(LARGE_OUTPUT / 8)
    for _ in range(3):
        np.testing.assert_array_equal(subject.infer("tile", tensors(x))["y"], x, strict=True)
        http(server).json("POST", "/v2/systemsharedmemory/unregister", {})
        assert not registered(server)
    np.testing.assert_array_equal(subject.infer("tile", tensors(x))["y"], x, strict=True)


def test_threads_share_a_client(server: EmbeddedTriton) -> None:
    """Eight threads with one client get each its own answer, and no more regions than they are."""
    client = TritonDeploymentClient(target(server))
    before = registered(server)

    def run(number: int) -> None:
        x = np.full(LARGE_OUTPUT // 8, float(number))
        for _ in range(4):
            answer = client.predict("tile", {"x": x, "times": [1]})["outputs"]["y"]
            assert (answer == number).all()

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(run, range(8)))
    assert len(registered(server) - before) <= 8 * 2 + 1


def test_a_fork(server: EmbeddedTriton) -> None:
    """A forked process makes regions of its own, and its end takes none from its parent."""
    client = TritonDeploymentClient(target(server))
    x = np.arange(LARGE_OUTPUT / 8)

    def works(values: np.ndarray[Any, Any]) -> bool:
        return bool((client.predict("tile", {"x": values, "times": [1]})["outputs"]["y"] == values).all())

    assert works(x)
    before = registered(server)
    child = os.fork()
    if child == 0:
        os._exit(0 if works(x + 1) and works(x + 2) else 1)
    _, status = os.waitpid(child, 0)
    assert status == 0
    assert before <= registered(server)
    assert works(x)


def test_the_end_of_a_process(server: EmbeddedTriton) -> None:
    """A process that ends lets go of its regions."""
    command = [sys.executable, "-c", WORKER, target(server)]
    used = {*subprocess.check_output(command, text=True, timeout=100).split()}
    assert used
    assert not used & (files() | registered(server))


def test_the_end_of_a_process_of_multiprocessing(server: EmbeddedTriton) -> None:
    """So does one that multiprocessing has started, which runs no exit handlers."""
    context = get_context("fork")
    names = context.SimpleQueue()
    process = context.Process(target=work, args=(target(server), names))
    process.start()
    process.join(60)
    assert process.exitcode == 0
    used = names.get()
    assert used
    assert not used & (files() | registered(server))


def work(url: str, names: Any) -> None:
    """Predict with a client that is still there when the process ends, and tell its regions."""
    client = TritonDeploymentClient(url)
    client.predict("tile", {"x": np.ones(LARGE), "times": [1]})
    assert client._inference
    names.put({*client._inference._regions._all})
    setattr(sys, "kept until the end", client)


def test_a_region_that_is_outgrown(server: EmbeddedTriton) -> None:
    """A region that has become too small is given back, and not kept beside the larger one."""
    subject = Inference(http(server))
    before = registered(server)
    for power in range(15, 21):
        x = np.ones(1 << power)
        for _ in range(2):
            np.testing.assert_array_equal(subject.infer("tile", tensors(x))["y"], x, strict=True)
    assert len(registered(server) - before) == 1


def test_a_huge_region_that_nobody_uses(server: EmbeddedTriton, monkeypatch: pytest.MonkeyPatch) -> None:
    """A huge region is given back once it has been unused for long, and not before; the next request makes a new one."""
    module = "mlflow_triton.serving.shared_memory"
    monkeypatch.setattr(f"{module}.HUGE", 1 << 22)
    before, threads = registered(server), threading.active_count()
    small, x = np.ones(LARGE // 8), np.arange(float(1 << 19))

    def used(subject: Inference, array: np.ndarray[Any, Any]) -> None:
        for _ in range(2):
            np.testing.assert_array_equal(subject.infer("tile", tensors(array))["y"], array, strict=True)

    subject = Inference(http(server))
    used(subject, small)
    assert threading.active_count() == threads
    used(subject, x)
    known = registered(server)
    assert known > before
    assert threading.active_count() == threads + 1
    assert subject._regions.give_back_unused()
    assert registered(server) == known
    made = {*subject._regions._all}
    assert made & files()
    del subject
    monkeypatch.setattr(f"{module}.UNUSED", 0.2)
    subject = Inference(http(server))
    for _ in range(2):
        used(subject, x)
        made |= {*subject._regions._all}
        until = time.monotonic() + 30
        while registered(server) - before or threading.active_count() > threads:
            assert time.monotonic() < until
            time.sleep(0.02)
    assert not files() & made


def test_a_process_that_is_killed(server: EmbeddedTriton, monkeypatch: pytest.MonkeyPatch) -> None:
    """What a killed process has left is collected by the next one; what a living one has is not."""
    monkeypatch.setattr("mlflow_triton.serving.shared_memory.LEFTOVER_AGE", -1.0)
    before = files()
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            subject = Inference(http(server))
            subject.infer("tile", tensors(np.ones(LARGE)))
            os.write(writer, b"ready")
            time.sleep(30)
        finally:
            os._exit(1)
    try:
        assert os.read(reader, 5) == b"ready"
        left = files() - before
        assert left
        first = Regions(http(server))
        assert first.take(1)
        assert left <= files() & registered(server)
    finally:
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
    second = Regions(http(server))
    assert second.take(1)
    assert not left & (files() | registered(server))


def test_a_server_that_sees_other_memory(
    server: EmbeddedTriton, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Where the server does not find the region, as in a container, tensors go over HTTP and nothing is left."""
    monkeypatch.setattr("mlflow_triton.serving.shared_memory.DIRECTORY", tmp_path)
    subject = Inference(http(server))
    before = registered(server)
    x = np.arange(LARGE_OUTPUT / 8)
    for _ in range(2):
        np.testing.assert_array_equal(subject.infer("tile", tensors(x))["y"], x, strict=True)
    assert registered(server) == before
    assert not list(tmp_path.iterdir())


def test_a_region_is_private() -> None:
    """A region's file can be opened by its user only, has all of its memory, and no two have one name."""
    one, other = Region(1 << 20), Region(1 << 20)
    try:
        state = (DIRECTORY / one.name).stat()
        assert state.st_mode & 0o777 == 0o600
        assert state.st_blocks * 512 >= 1 << 20
        assert one.name != other.name
        assert len(one.name) >= len(PREFIX) + 32
    finally:
        one.discard()
        other.discard()
    assert not files() & {one.name, other.name}


def test_memory_that_is_too_small(server: EmbeddedTriton) -> None:
    """More than half of what is free is not taken."""
    state = os.statvfs(DIRECTORY)
    assert Regions(http(server)).take(state.f_bavail * state.f_frsize) is None


def test_the_setting_turns_it_off(server: EmbeddedTriton) -> None:
    """With shared_memory=off, a large tensor goes another way, and no region is made."""
    client = TritonDeploymentClient(f"{target(server)}?shared_memory=off")
    before = files()
    x = np.ones(1 << 20)
    for _ in range(2):
        np.testing.assert_array_equal(client.predict("tile", {"x": x, "times": [1]})["outputs"]["y"], x)
        assert files() == before
