"""ONNX's own standard tests, each published to MLflow, deployed, predicted, and compared as ONNX does."""

from __future__ import annotations

import inspect
import threading
import uuid
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from functools import partial
from typing import TYPE_CHECKING, Any, cast

import mlflow
import onnx
import pytest
from mlflow.deployments import get_deploy_client
from mlflow.exceptions import MlflowException

from mlflow_triton_conformance import onnx_standard, options
from mlflow_triton_conformance.models import answered
from pytest_mlflow_triton.fixtures.deployments import mlflow_at

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator
    from concurrent.futures import Future
    from pathlib import Path

    from mlflow_triton_conformance.capabilities import Capabilities
    from mlflow_triton_conformance.onnx_standard import Maker, StandardCase
    from pytest_mlflow_triton.fixtures.servers import LaunchTriton

AT_ONCE = 8
"""Deployments at a time: most of each one's time is Triton's, and much of that is waiting."""
QUICK = 10
"""How many tests of the sample are not slow taken together."""


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Take all tests for a soak, a sample of them otherwise."""
    soak = options.profile(metafunc.config) == "soak"
    makers = onnx_standard.every() if soak else onnx_standard.sample()
    metafunc.parametrize(
        "make",
        [
            pytest.param(make, id=name, marks=() if at < QUICK else pytest.mark.slow)
            for at, (name, make) in enumerate(makers.items())
        ],
    )


class Line:
    """Proves tests ahead of pytest, several at once, in pytest's order.

    Args:
        client: Makes one of the plugin under test: not every plugin's may be shared between threads.
        directory: For what is published, an empty one.
        experiment: The id of the one in which it is published.
        order: What pytest is going to ask for.
    """

    def __init__(
        self, client: Callable[[], Any], directory: Path, experiment: str, order: Iterable[Maker]
    ) -> None:
        self._client = client
        self._directory = directory
        self._experiment = experiment
        self._ahead = iter(order)
        self._pool = ThreadPoolExecutor(AT_ONCE, "onnx-standard")
        self._under_way: dict[Maker, Future[str]] = {}
        self._seen: set[Maker] = set()
        # The package onnx seeds NumPy's generator while it makes a test; MLflow's runs are global, too.
        self._alone = threading.Lock()

    def prove(self, make: Maker) -> str:
        """Wait until a test has been proven.

        Returns:
            Why it cannot be; empty if it has been.

        Raises:
            Exception: What the plugin, or the comparison, raised.
        """
        self._start(make)
        while len(self._under_way) < 2 * AT_ONCE and (following := next(self._ahead, None)):
            if following not in self._seen:
                self._start(following)
        return self._under_way.pop(make).result()

    def close(self) -> None:
        """Wait for those under way to take their deployments away."""
        self._pool.shutdown(cancel_futures=True)

    def _start(self, make: Maker) -> None:
        self._seen.add(make)
        if make not in self._under_way:
            self._under_way[make] = self._pool.submit(self._prove, make)

    def _prove(self, make: Maker) -> str:
        with self._alone:
            case = make()
            if case is None:
                return f"onnx {onnx.__version__} has no such test"
            if case.obstacle:
                return case.obstacle
            uri = self._publish(case)
        name = f"{case.name[:80]}-{uuid.uuid4().hex[:8]}"
        client = self._client()
        try:
            client.create_deployment(name, uri, flavor="onnx")
            try:
                return case.check(lambda inputs: answered(client.predict(name, inputs)))
            finally:
                client.delete_deployment(name)
        except MlflowException as error:
            if reason := onnx_standard.limitation(str(error)) or case.refused():
                return reason
            raise

    def _publish(self, case: StandardCase) -> str:
        config = self._directory / case.name / "config.pbtxt"
        config.parent.mkdir(exist_ok=True)
        config.write_text(case.config)
        parameters = inspect.signature(mlflow.onnx.log_model).parameters
        copy = onnx.ModelProto()  # MLflow moves tensors out of the model that it is given
        copy.CopyFrom(case.model)
        with mlflow.start_run(experiment_id=self._experiment):
            arguments = {
                "name" if "name" in parameters else "artifact_path": "model",
                "pip_requirements": ["onnx"],
            }
            uri = mlflow.onnx.log_model(copy, **arguments).model_uri
            mlflow.log_artifact(str(config), "model")
        return str(uri)


@pytest.fixture(scope="module")
def line(
    request: pytest.FixtureRequest,
    capabilities: Capabilities,
    target: str,
    _launch_triton: LaunchTriton,
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[Line]:
    """On a server that completes no configuration, which loads several times faster, and a store of MLflow's without server."""
    if reason := capabilities.missing(["plugin", "backend:onnxruntime"]):
        pytest.skip(f"does not apply without {reason}")
    directory = tmp_path_factory.mktemp("onnx-standard")
    with ExitStack() as stack:
        server = stack.enter_context(
            _launch_triton("Triton server for the standard tests", ["--disable-auto-complete-config"])
        )
        patch = stack.enter_context(pytest.MonkeyPatch.context())
        patch.setenv("TRITON_URL", server.http_url)
        patch.setenv("TRITON_GRPC_URL", server.grpc_url or "")
        patch.setenv("TRITON_MODEL_REPO", str(server.model_repository))
        stack.enter_context(mlflow_at(f"sqlite:///{directory}/mlflow.db", patch))
        experiment = mlflow.create_experiment("onnx-standard", artifact_location=str(directory / "artifacts"))
        order = [make for item in request.session.items if (make := _maker(item))]
        line = Line(partial(get_deploy_client, target), directory, experiment, order)
        stack.callback(line.close)
        yield line


def _maker(item: pytest.Item) -> Maker | None:
    """Return what makes the test that an item is about, if it is one of this module."""
    if isinstance(item, pytest.Function) and item.module.__name__ == __name__:
        return cast("Maker", item.callspec.params["make"])
    return None


@pytest.mark.requirement("MLF-STANDARD-001")
def test_standard(line: Line, make: Maker) -> None:
    """A model of ONNX's standard tests, published and deployed, answers as the standard says."""
    if reason := line.prove(make):
        pytest.skip(reason)
