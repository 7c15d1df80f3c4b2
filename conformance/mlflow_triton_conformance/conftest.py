"""What every chapter of the suite needs."""

from __future__ import annotations

import hashlib
import http.client
import itertools
import json
import os
import re
import shutil
import signal
import time
import urllib.error
import urllib.request
import uuid
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import HealthCheck, settings
from tritonclient.grpc import InferenceServerClient

from mlflow_triton_conformance import capabilities as discovery
from mlflow_triton_conformance import models, options, plugin, plugins
from mlflow_triton_conformance.catalogue import CATALOGUE
from mlflow_triton_conformance.protocol import Protocol
from mlflow_triton_conformance.results import LONGEST
from mlflow_triton_conformance.zoo import CONFIG, python_model, serving, write
from pytest_mlflow_triton import logs
from pytest_mlflow_triton.fixtures.deployments import unique_name
from pytest_mlflow_triton.handles import TritonServer
from pytest_mlflow_triton.options import resolved
from pytest_mlflow_triton.servers import shared

if TYPE_CHECKING:
    from collections.abc import Callable, Generator, Iterator, Mapping
    from contextlib import AbstractContextManager

    from mlflow_triton_conformance.capabilities import Capabilities
    from mlflow_triton_conformance.report import CapabilityFound
    from pytest_mlflow_triton.fixtures.servers import Isolation
    from pytest_mlflow_triton.handles import MlflowServer, PublishOnnx, PublishTriton, Server

OURS = re.compile(r"-[0-9a-f]{8}(-|\d?$)")
"""What is in every name that the suite makes."""
FAILED = pytest.StashKey[bool]()
"""Whether the last phase of a test failed."""
SERVED = pytest.StashKey[bool]()
"""Whether there ever was a server."""
CONNECTIONS = 16
"""Twice the threads that serve Triton's HTTP."""
PATIENCE = 5.0
"""Seconds for an answer, and for the loads that a failed test leaves."""
LONGEST_FILES = ("histories", "generated", "onnx_standard", "example", "repository", "control", "deployments")
"""The longest first: under pytest-xdist, a long file that comes last is waited for, alone."""
EXAMPLES = {"quick": 10, "default": 50, "soak": 2000}


def pytest_configure(config: pytest.Config) -> None:
    """Declare the suite's marker, also where no pyproject.toml does, and choose how much is generated."""
    if plugin.EVIDENCE not in config.stash:
        raise pytest.UsageError(
            "The suite's own pytest plugin is not loaded. Install mlflow-triton-plugin again, or give pytest "
            "-p mlflow_triton_conformance.plugin."
        )
    config.addinivalue_line("markers", "slow: left out of the suite's quick part (-m 'not slow')")
    # One server answers every example of a property, and it is not the examples' time that is tested.
    for name, examples in EXAMPLES.items():
        settings.register_profile(
            f"conformance-{name}",
            deadline=None,
            suppress_health_check=[HealthCheck.function_scoped_fixture],
            max_examples=examples,
            database=None,  # a run does not depend on those before it
        )
    settings.load_profile(f"conformance-{options.profile(config)}")
    if not hasattr(config, "workerinput") and signal.getsignal(signal.SIGTERM) is signal.SIG_DFL:
        _obey_sigterm(config)


def _obey_sigterm(config: pytest.Config) -> None:
    """Take it for Ctrl-C: what was put into a server that is somebody's is taken out, and there is a report."""

    def restore() -> None:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)

    signal.signal(signal.SIGTERM, signal.default_int_handler)
    config.add_cleanup(restore)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Bring the suite's longest files to the front."""
    ranks = {Path(__file__).parent / f"test_{name}.py": rank for rank, name in enumerate(LONGEST_FILES)}
    items.sort(key=lambda item: ranks.get(item.path, len(ranks)))


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Note that a test failed; break off a run that has no server at all, in which each one would, for the same reason."""
    report = yield
    item.stash[FAILED] = report.failed
    if report.when == "setup" and report.failed and not item.config.stash.get(SERVED, False):
        item.session.shouldstop = (
            "There is no server to test, see above. None of the tests that follow was run."
        )
    return report


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_teardown(item: pytest.Item) -> None:
    """Say during which test a server ended, or began to hang, and let the tests that follow have another one.

    Everything that is set up depends on a server, so all of it is torn down; the next test sets up what it needs.
    """
    running = item.config.stash[logs.KEY].servers
    ended = [name for name, server in running.items() if _ended(server)]
    said = "ended during"
    if not ended and item.stash.get(FAILED, False):
        ended = [name for name, server in running.items() if _hangs(server)]
        said = "hangs since"
        for name in ended:
            shared.end(running[name])
    if not ended:
        return
    for name in ended:
        item.add_report_section("teardown", f"{name} log", running[name].log()[-LONGEST:])
    with suppress(Exception, pytest.fail.Exception):  # what cannot be tidied up without a server
        item.session._setupstate.teardown_exact(None)  # noqa: SLF001 - pytest has no other way to end a fixture early
    pytest.fail(
        f"The {' and the '.join(ended)} {said} this test. The tests that follow have another one.",
        pytrace=False,
    )


def _ended(server: Server) -> bool:
    """Tell whether a server has ended, or is about to: one that was killed lets go of its port a little later."""
    if not logs.answers(server):
        return True
    try:
        _asked(_health(server))
    except (ConnectionError, http.client.BadStatusLine):
        return _lets_go(server)
    except urllib.error.URLError as error:
        return isinstance(error.reason, ConnectionError) and _lets_go(server)
    except (OSError, http.client.HTTPException):
        return False
    return False


def _lets_go(server: Server) -> bool:
    deadline = time.monotonic() + PATIENCE
    while logs.answers(server):
        if time.monotonic() > deadline:
            return False
        time.sleep(0.05)
    return True


def _hangs(server: Server) -> bool:
    """Tell whether a server that was started here leaves a connection without an answer, or has a load that does not end.

    Such a load has one of the few threads for ever, and so has whatever asks for its model afterwards.
    """
    if server.launcher == "attached":
        return False
    deadline = time.monotonic() + PATIENCE
    try:
        while isinstance(server, TritonServer) and _is_loading(server):
            if time.monotonic() > deadline:
                return True
            time.sleep(0.1)
        for _ in range(CONNECTIONS):
            _asked(_health(server))
    except OSError:
        return True
    return False


def _health(server: Server) -> str:
    return f"{server.url}/v2/health/live" if isinstance(server, TritonServer) else f"{server.url}/health"


def _is_loading(server: TritonServer) -> bool:
    index = json.loads(_asked(f"{server.url}/v2/repository/index", b"{}") or b"[]")
    return any(entry.get("state") == "LOADING" for entry in index)


def _asked(url: str, body: bytes | None = None) -> bytes:
    """Return what a server answers: nothing if that is a refusal, as MLflow's."""
    try:
        with urllib.request.urlopen(url, body, timeout=PATIENCE) as answer:
            return bytes(answer.read())
    except urllib.error.HTTPError:
        return b""


@pytest.fixture(scope="session")
def triton_isolation() -> Isolation:
    """Under pytest-xdist, each worker has servers of its own: tests look at all that a server has."""
    return "worker"


@pytest.fixture(scope="session")
def target(pytestconfig: pytest.Config) -> str:
    """MLflow's target of the plugin under test."""
    return options.value(pytestconfig, options.TARGET)


@pytest.fixture(scope="session")
def capabilities(request: pytest.FixtureRequest, triton_server: TritonServer, target: str) -> Capabilities:
    """What server and plugin have."""
    request.config.stash[SERVED] = True
    gpu = triton_server.launcher == "attached" or resolved(request.config).gpu != "off"
    facts = discovery.of_server(triton_server, gpu=gpu)
    expected = request.config.stash[plugin.EXPECTATIONS]
    if options.subject(request.config) == "plugin":
        with pytest.MonkeyPatch.context() as patch:
            environment_of(patch, triton_server)
            facts["capabilities"] |= of_plugin(target)
    else:
        facts["capabilities"]["plugin"] = {"present": False, "detail": "the subject is the server alone"}
    request.config.stash[plugin.EVIDENCE].facts = facts
    return discovery.Capabilities(facts["capabilities"], expected.lacks)


def of_plugin(target: str) -> dict[str, CapabilityFound]:
    """Find what the plugin under test has."""
    from mlflow.deployments import get_deploy_client  # noqa: PLC0415 - slow, and a server alone does not need it

    try:
        module = plugins.module(target)
    except LookupError as error:
        pytest.fail(str(error), pytrace=False)
    return {
        "plugin": {"present": True, "detail": f"{target} is {module.__name__}"},
        **discovery.of_plugin(str(module.target_help()), get_deploy_client(target)),
    }


@pytest.fixture(autouse=True)
def _applies(request: pytest.FixtureRequest, capabilities: Capabilities) -> None:
    """Skip what needs a capability that is missing, by its name."""
    names = plugin.identifiers(request.node)
    needs = dict.fromkeys(need for name in names for need in CATALOGUE[name].needs)
    if reason := capabilities.missing(needs):
        pytest.skip(f"does not apply without {reason}")


@pytest.fixture(autouse=True)
def _tidy(_applies: None, protocol: Protocol, triton_server: TritonServer) -> Iterator[None]:
    """Take out what a test has left in the repository, whatever the plugin under test did about it.

    By the names that the suite gives: the server may be somebody's, who deploys to it meanwhile.
    """
    root = triton_server.model_repository
    before = set(root.iterdir())
    yield
    for left in (path for path in set(root.iterdir()) - before if OURS.search(path.name)):
        protocol.let_go(left.name)
        if left.is_dir() and not left.is_symlink():
            shutil.rmtree(left, ignore_errors=True)
        else:
            left.unlink(missing_ok=True)


@pytest.fixture(autouse=True)
def _bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    """On some servers a load that fails does not come back: that must not take the whole time that a test has."""
    monkeypatch.setenv("TRITON_LOAD_TIMEOUT", os.environ.get("TRITON_LOAD_TIMEOUT", "60"))


@pytest.fixture(scope="session")
def protocol(triton_server: TritonServer) -> Protocol:
    """The server, asked in its own protocol."""
    return Protocol(triton_server)


@pytest.fixture(scope="session")
def zoo(capabilities: Capabilities, protocol: Protocol) -> Iterator[dict[str, str]]:
    """Models that serve, put there without any plugin: their names by their kind (see `mlflow_triton_conformance.zoo`)."""
    if reason := capabilities.missing(["backend:python"]):
        pytest.skip(f"does not apply without {reason}")
    with serving(protocol, f"zoo-{uuid.uuid4().hex[:8]}") as names:
        yield names


@pytest.fixture(scope="session")
def onnx_backend(capabilities: Capabilities) -> None:
    """Skip a test that deploys an ONNX model to a server without the backend for it."""
    if reason := capabilities.missing(["backend:onnxruntime"]):
        pytest.skip(f"does not apply without {reason}")


@pytest.fixture(scope="session")
def saved(onnx_backend: None, tmp_path_factory: pytest.TempPathFactory) -> Callable[[float], str]:
    """Save a model that adds a value to its input ``x`` (FP32, ``[-1, 1]``); return its path, the same each time."""
    import mlflow.onnx  # noqa: PLC0415 - slow, and a server alone does not need it

    paths: dict[float, str] = {}

    def save(value: float) -> str:
        if value not in paths:
            path = tmp_path_factory.mktemp("saved") / "model"
            mlflow.onnx.save_model(models.constant(value), str(path), pip_requirements=["onnx"])
            (path / "config.pbtxt").write_text(models.ONE_INSTANCE)
            paths[value] = str(path)
        return paths[value]

    return save


@pytest.fixture
def publish_onnx(onnx_backend: None, publish_onnx: PublishOnnx) -> PublishOnnx:
    """That of the harness."""
    return publish_onnx


@pytest.fixture
def example_directory(onnx_backend: None, example_directory: Path) -> Path:
    """That of the harness: an ONNX model."""
    return example_directory


@pytest.fixture
def directory_model(publish_triton: PublishTriton, tmp_path: Path) -> Callable[[Mapping[str, str]], str]:
    """Make models of the flavor triton from the files of a model directory: copies of one that was published.

    Returns:
        A function from the files' contents by their paths to the model's path.
    """
    from mlflow.artifacts import download_artifacts  # noqa: PLC0415 - slow, and a server alone does not need it

    source = tmp_path / "source"
    write(source, {"config.pbtxt": CONFIG, "1/model.py": python_model(1)})
    published = Path(download_artifacts(publish_triton(source), dst_path=str(tmp_path / "published")))
    numbers = itertools.count()

    def make(files: Mapping[str, str]) -> str:
        copy = tmp_path / f"copy-{next(numbers)}"
        shutil.copytree(published, copy)
        shutil.rmtree(copy / source.name)
        write(copy / source.name, files)
        return str(copy)

    return make


@pytest.fixture(scope="session")
def grpc(triton_server: TritonServer) -> Iterator[Any]:
    """Triton's gRPC client."""
    if triton_server.grpc_url is None:
        pytest.skip("does not apply without grpc: no --triton-grpc-url")
    with InferenceServerClient(triton_server.grpc_url) as client:
        yield client


@pytest.fixture
def latency(pytestconfig: pytest.Config) -> Callable[[str], AbstractContextManager[None]]:
    """Note in the report how long something takes: a function from its name to a context manager."""
    return pytestconfig.stash[plugin.EVIDENCE].latency


def environment_of(
    patch: pytest.MonkeyPatch, triton: TritonServer, mlflow: MlflowServer | None = None
) -> None:
    """Lead the plugin under test to the servers."""
    if mlflow is not None:
        patch.setenv("MLFLOW_TRACKING_URI", mlflow.tracking_uri)
    patch.setenv("TRITON_URL", triton.http_url)
    patch.setenv("TRITON_GRPC_URL", triton.grpc_url or "")
    patch.setenv("TRITON_MODEL_REPO", str(triton.model_repository))


@pytest.fixture
def deployment_client(mlflow_environment: None, triton_environment: None, target: str) -> Any:
    """A client of the plugin under test, on both servers."""
    from mlflow.deployments import get_deploy_client  # noqa: PLC0415 - slow, and a server alone does not need it

    return get_deploy_client(target)


@pytest.fixture
def deployment_name(request: pytest.FixtureRequest, protocol: Protocol) -> Iterator[str]:
    """A new name, readable in a server's log; what serves under it is unloaded afterwards."""
    name = unique_name(request.node)
    yield name
    protocol.let_go(name)


@pytest.fixture(scope="module")
def module_client(
    capabilities: Capabilities, triton_server: TritonServer, request: pytest.FixtureRequest, target: str
) -> Iterator[Any]:
    """A deployment client for what a module deploys once, for all of its tests."""
    if reason := capabilities.missing(["plugin"]):
        pytest.skip(f"does not apply without {reason}")
    from mlflow.deployments import get_deploy_client  # noqa: PLC0415 - slow, and a server alone does not need it

    with pytest.MonkeyPatch.context() as patch:
        environment_of(patch, triton_server, request.getfixturevalue("mlflow_server"))
        yield get_deploy_client(target)


@pytest.fixture
def world(triton_server: TritonServer) -> Callable[[], object]:
    """Take a picture of all that a failed operation must not change: the server's index and every file."""

    def picture() -> object:
        request = urllib.request.Request(
            f"{triton_server.http_url}/v2/repository/index", data=b"{}", method="POST"
        )
        with urllib.request.urlopen(request, timeout=10) as answer:
            index = json.load(answer)
        root = triton_server.model_repository
        beside = [path.name for path in root.parent.iterdir() if path.name.startswith(".mlflow-triton-")]
        # What was unloaded before may still be leaving.
        staying = [it for it in index if it.get("state") != "UNLOADING" and it.get("reason") != "unloaded"]
        return sorted(map(str, staying)), _files(root), beside

    return picture


def _files(root: Path) -> dict[str, str]:
    # Triton's Python backend writes __pycache__ while it loads a model.
    return {
        str(path.relative_to(root)): hashlib.sha256(path.read_bytes()).hexdigest() if path.is_file() else ""
        for path in sorted(root.rglob("*"))
        if "__pycache__" not in path.parts
    }
