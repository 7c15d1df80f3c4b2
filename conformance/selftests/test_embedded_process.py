from __future__ import annotations

import dataclasses
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.request
from pathlib import Path
from typing import TYPE_CHECKING

import psutil
import pytest

from mlflow_triton.embedded import EmbeddedTriton, Runtime, provision
from mlflow_triton.embedded.process import _listening_ports
from mlflow_triton.errors import EmbeddedServerError, InvalidParameter, RepositoryError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

pytestmark = pytest.mark.slow

MODEL = """
import triton_python_backend_utils as pb_utils

class TritonPythonModel:
    def execute(self, requests):
        return [
            pb_utils.InferenceResponse([pb_utils.Tensor("Y", pb_utils.get_input_tensor_by_name(r, "X").as_numpy())])
            for r in requests
        ]
"""
CONFIG = """
backend: "python"
input [ { name: "X" data_type: TYPE_FP32 dims: [ 2 ] } ]
output [ { name: "Y" data_type: TYPE_FP32 dims: [ 2 ] } ]
instance_group [ { count: 1 kind: KIND_CPU } ]
"""
LOADS = ["--load-model=identity", "--load-model=onnx_float32_int32_int32"]
OWNER = """
import os, sys, time
from mlflow_triton.embedded import EmbeddedTriton

server = EmbeddedTriton(sys.argv[1], arguments=sys.argv[3:])
server.start()
if sys.argv[2] == "forks" and os.fork() == 0:
    time.sleep(60)
    os._exit(0)
print(server.pid, flush=True)
time.sleep(60)
"""

FORK = """
import os, sys, time
from mlflow_triton.embedded import EmbeddedTriton

server = EmbeddedTriton(sys.argv[1])
server.start()
child = os.fork()
if child == 0:
    server.poll()
    server.stop()
    os._exit(0)
os.waitpid(child, 0)
time.sleep(1)
print(server.poll())
server.stop()
print(server.poll())
"""


@dataclasses.dataclass
class Traces:
    """All that one running server has on this machine."""

    processes: list[psutil.Process]
    directory: Path
    shared_memory: list[Path]

    @classmethod
    def of(cls, pid: int) -> Traces:
        """Find the traces of the server with this process id."""
        server = psutil.Process(pid)
        supervisor = server.parent()
        assert supervisor
        processes = [supervisor, server, *server.children(recursive=True)]
        mapped = {mapping.path for process in processes for mapping in process.memory_maps()}
        regions = [Path(path) for path in mapped if path.startswith("/dev/shm/")]  # noqa: S108 - where they are
        return cls(processes, Path(server.environ()["TMPDIR"]), regions)

    def running(self) -> list[psutil.Process]:
        """Return the processes that still run."""
        return [p for p in self.processes if p.is_running() and p.status() != psutil.STATUS_ZOMBIE]

    def left(self) -> list[object]:
        """Return all that is still there."""
        return [*self.running(), *(path for path in [*self.shared_memory, self.directory] if path.exists())]


@pytest.fixture(scope="module")
def runtime() -> Runtime:
    """Provision once, into the user's own cache."""
    return provision()


@pytest.fixture
def repository(tmp_path: Path) -> Path:
    """Return a model repository with the Python model `identity` and an ONNX model, the example's."""
    example = Path(__file__).parents[2] / "examples" / "onnx_float32_int32_int32"
    shutil.copytree(example, tmp_path / "models" / example.name)
    version = tmp_path / "models" / "identity" / "1"
    version.mkdir(parents=True)
    (version / "model.py").write_text(MODEL)
    (version.parent / "config.pbtxt").write_text(CONFIG)
    return tmp_path / "models"


@pytest.fixture
def make(repository: Path, runtime: Runtime) -> Iterator[Callable[..., EmbeddedTriton]]:
    """Return a factory of servers that are stopped after the test."""
    made: list[EmbeddedTriton] = []

    def build(**options: object) -> EmbeddedTriton:
        options = {"model_repository": repository, "runtime": runtime, **options}
        made.append(EmbeddedTriton(**options))  # type: ignore[arg-type]
        return made[-1]

    yield build
    for server in made:
        server.stop()


def wait_until(condition: Callable[[], object], seconds: float = 15.0) -> bool:
    """Wait for a condition; return whether it came true."""
    deadline = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.02)
    return True


def fetch(url: str) -> bytes:
    """Get a URL of a server of ours."""
    with urllib.request.urlopen(url, timeout=5) as answer:
        return bytes(answer.read())


def infer(server: EmbeddedTriton) -> list[float]:
    """Send a request to `identity` and return what it answers."""
    body = {"inputs": [{"name": "X", "datatype": "FP32", "shape": [2], "data": [1.5, -2.0]}]}
    request = urllib.request.Request(
        f"{server.http_url}/v2/models/identity/infer", data=json.dumps(body).encode(), method="POST"
    )
    with urllib.request.urlopen(request, timeout=10) as answer:
        data: list[float] = json.load(answer)["outputs"][0]["data"]
        return data


def test_a_server_serves_and_leaves_nothing(make: Callable[..., EmbeddedTriton]) -> None:
    """A started server answers on all three addresses, and a stopped one leaves nothing but its log."""
    server = make(arguments=[*LOADS, "--exit-timeout-secs=20"])
    with server:
        traces = Traces.of(server.pid)
        assert len(traces.processes) >= 4  # supervisor, server, a stub for each model
        assert traces.shared_memory
        assert infer(server) == [1.5, -2.0]
        assert server.version == json.loads(fetch(f"{server.http_url}/v2"))["version"]
        assert b"nv_inference_request_success" in fetch(server.metrics_url)
        host, port = server.grpc_url.split(":")
        socket.create_connection((host, int(port)), timeout=5).close()
        assert server.poll() is None
    assert server.poll() == 0
    assert traces.left() == []
    assert "successfully unloaded 'identity'" in server.log()
    assert server.log_tail(1) == server.log().splitlines()[-1]
    server.stop()


def test_a_server_can_be_started_again(make: Callable[..., EmbeddedTriton]) -> None:
    """A stopped server starts again; a running one refuses to."""
    server = make()
    server.start()
    first = server.pid
    with pytest.raises(EmbeddedServerError, match="running already"):
        server.start()
    server.stop()
    server.start()
    assert server.pid != first
    assert server.poll() is None


@pytest.mark.parametrize("owner", ["plain", "forks"])
def test_nothing_outlives_an_owner_that_is_killed(owner: str, repository: Path) -> None:
    """SIGKILL of the owner ends server and stubs, and removes shared memory and temporary files."""
    with subprocess.Popen(
        [sys.executable, "-W", "ignore", "-c", OWNER, str(repository), owner, *LOADS],
        stdout=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stdout
        traces = Traces.of(int(process.stdout.readline()))
        children = psutil.Process(process.pid).children()
        assert len(traces.processes) >= 4
        assert traces.shared_memory
        assert traces.directory.is_dir()
        process.kill()
    assert wait_until(lambda: not traces.left()), traces.left()
    for child in children:  # the fork, which is still asleep
        if child.is_running():
            child.kill()


@pytest.mark.parametrize("victim", ["supervisor", "server"])
def test_a_killed_process_takes_the_rest_along(victim: str, make: Callable[..., EmbeddedTriton]) -> None:
    """SIGKILL of the supervisor or of the server is seen by the owner, and nothing of the rest stays."""
    server = make(arguments=LOADS)
    server.start()
    traces = Traces.of(server.pid)
    assert len(traces.processes) >= 4
    traces.processes[["supervisor", "server"].index(victim)].kill()
    assert wait_until(lambda: server.poll() is not None)
    assert server.poll() == -signal.SIGKILL
    assert wait_until(lambda: not traces.left()), traces.left()


def test_an_interrupt_is_the_owners_to_decide_about(repository: Path) -> None:
    """Supervisor, server and stubs are outside the process group that Ctrl-C in a terminal interrupts."""
    with subprocess.Popen(
        [sys.executable, "-c", OWNER, str(repository), "plain", *LOADS],
        stdout=subprocess.PIPE,
        text=True,
        start_new_session=True,
    ) as process:
        assert process.stdout
        traces = Traces.of(int(process.stdout.readline()))
        assert os.getpgid(process.pid) not in {os.getpgid(p.pid) for p in traces.processes}
        process.kill()
    assert wait_until(lambda: not traces.left()), traces.left()


def test_no_process_outlives_owner_and_supervisor(repository: Path) -> None:
    """SIGKILL of the owner and of the supervisor at once still ends the server and its stubs."""
    with subprocess.Popen(
        [sys.executable, "-c", OWNER, str(repository), "plain", *LOADS], stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout
        traces = Traces.of(int(process.stdout.readline()))
        supervisor = traces.processes[0]
        for victim in (supervisor, psutil.Process(process.pid)):
            victim.suspend()  # neither shall see the other die
        for victim in (supervisor, psutil.Process(process.pid)):
            victim.kill()
    try:
        assert wait_until(lambda: not traces.running()), traces.running()
    finally:  # nobody is left who could
        for process_left in traces.running():
            process_left.kill()
        for region in traces.shared_memory:
            region.unlink(missing_ok=True)
        shutil.rmtree(traces.directory)


def test_a_server_survives_the_thread_that_started_it(make: Callable[..., EmbeddedTriton]) -> None:
    """The end of the thread that started a server does not end the server."""
    server = make()
    thread = threading.Thread(target=server.start)
    thread.start()
    thread.join()
    time.sleep(0.5)
    assert server.poll() is None
    assert fetch(f"{server.http_url}/v2/health/ready") == b""


def test_a_fork_of_the_owner_cannot_stop_the_server(repository: Path) -> None:
    """Only the process that started a server ends it, not a fork that drops its copy."""
    result = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", FORK, str(repository)],
        capture_output=True,
        text=True,
        check=True,
        timeout=60,
    )
    assert result.stdout.split() == ["None", "0"]


@pytest.mark.parametrize(
    ("arguments", "said"),
    [(["--no-such-option"], "unrecognized option '--no-such-option'"), (["--load-model=absent"], "'absent'")],
)
def test_an_early_end_is_told_with_the_log(
    arguments: list[str], said: str, make: Callable[..., EmbeddedTriton]
) -> None:
    """A server that ends before it is ready makes an error that shows why."""
    with pytest.raises(EmbeddedServerError, match="exit code 1 before it was ready") as caught:
        make(arguments=arguments).start()
    assert said in str(caught.value)


def test_a_late_server_is_given_up(make: Callable[..., EmbeddedTriton]) -> None:
    """A server that is not ready before the deadline is ended."""
    server = make(startup_timeout=0.0)
    with pytest.raises(EmbeddedServerError, match="not ready after 0 s"):
        server.start()
    assert server.poll() is not None
    assert not psutil.pid_exists(server.pid)


def test_a_port_lost_in_between_is_replaced(
    make: Callable[..., EmbeddedTriton], monkeypatch: pytest.MonkeyPatch
) -> None:
    """When another server takes a port that was found free, it is not mistaken for this one, which moves on."""
    server = make()
    with make() as other:
        choose = server._choose_ports
        choices: list[dict[str, int]] = []

        def unlucky_once() -> dict[str, int]:
            choices.append(choose() if choices else {**choose(), "http": other._ports["http"]})
            return choices[-1]

        monkeypatch.setattr(server, "_choose_ports", unlucky_once)
        server.start()
        assert len(choices) == 2
        assert server.http_url == f"http://127.0.0.1:{choices[1]['http']}"
        assert server.http_url != other.http_url


def test_a_chosen_port_that_is_taken_is_refused(make: Callable[..., EmbeddedTriton]) -> None:
    """A port that the user chose is never replaced by another one."""
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(EmbeddedServerError, match="Another process has the port") as caught:
            make(http_port=port).start()
    assert str(port) in str(caught.value)


def test_another_process_does_not_pass_for_the_server() -> None:
    """Only ports on which the process itself listens count as its own."""
    other = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    with other, socket.create_server(("127.0.0.1", 0)) as own:
        port = own.getsockname()[1]
        assert port in _listening_ports(os.getpid())
        assert port not in _listening_ports(other.pid)
        other.kill()


def test_a_missing_library_is_found_before_the_start(
    make: Callable[..., EmbeddedTriton], runtime: Runtime, tmp_path: Path
) -> None:
    """A stub without one of its libraries, which would make loads hang, is refused before anything starts."""
    broken = tmp_path / "broken"
    stub = Path("pytriton/tritonserver/backends/python/triton_python_backend_stub")
    (broken / stub).parent.mkdir(parents=True)
    shutil.copy(runtime.library_dir.parent / stub, broken / stub)
    (broken / "nvidia_pytriton.libs").mkdir()
    server = make(runtime=dataclasses.replace(runtime, backend_dir=(broken / stub).parent.parent))
    with pytest.raises(EmbeddedServerError, match=r"stub cannot start: libcudart\S* is missing"):
        server.start()
    assert server.poll() is None
    with pytest.raises(EmbeddedServerError, match="never started"):
        _ = server.pid


@pytest.mark.parametrize("name", ["with space", "modèles", "a$b", "it's"])
def test_a_path_that_hangs_triton_is_refused(
    name: str, make: Callable[..., EmbeddedTriton], tmp_path: Path
) -> None:
    """A model repository that Triton's Python backend cannot read is refused before anything starts."""
    (tmp_path / name).mkdir()
    with pytest.raises(RepositoryError, match="makes loads hang"):
        make(model_repository=tmp_path / name).start()


def test_a_missing_repository_is_refused(make: Callable[..., EmbeddedTriton], tmp_path: Path) -> None:
    """A model repository that does not exist is not created."""
    with pytest.raises(RepositoryError, match="mkdir -p"):
        make(model_repository=tmp_path / "absent").start()
    assert not (tmp_path / "absent").exists()


@pytest.mark.parametrize("argument", ["--http-port=1", "--grpc-address=0.0.0.0", "--allow-metrics=false"])
def test_contradicting_arguments_are_refused(argument: str, make: Callable[..., EmbeddedTriton]) -> None:
    """An argument that would make the reported addresses wrong is refused."""
    with pytest.raises(InvalidParameter, match=re.escape(argument)):
        make(arguments=[argument]).start()


def test_arguments_override(make: Callable[..., EmbeddedTriton]) -> None:
    """The caller's arguments come last and win over the defaults."""
    with make(arguments=["--model-control-mode=none"]) as server:
        assert infer(server) == [1.5, -2.0]


def test_gpus_are_hidden_by_default(
    make: Callable[..., EmbeddedTriton], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A server sees the GPUs that its owner sees only with gpu=True."""
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0")
    seen = {}
    for gpu in (False, True):
        with make(gpu=gpu) as server:
            seen[gpu] = psutil.Process(server.pid).environ()["CUDA_VISIBLE_DEVICES"]
    assert seen == {False: "", True: "0"}


def test_the_log_is_appended_to_a_named_file(make: Callable[..., EmbeddedTriton], tmp_path: Path) -> None:
    """A named log file keeps what it held; log() returns this server's part alone."""
    path = tmp_path / "triton.log"
    path.write_text("before\n")
    with make(log_path=path) as server:
        assert "Started HTTPService" in server.log()
    assert path.read_text() == "before\n" + server.log()
