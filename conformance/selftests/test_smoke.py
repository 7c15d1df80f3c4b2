"""The smoke test of -C smoke_test=true: what is sent, and that a model which fails it never stands."""

from __future__ import annotations

import json
import logging
import subprocess
import sys
import time
from typing import TYPE_CHECKING, Any
from urllib.parse import urlencode

import mlflow
import numpy as np
import pandas as pd
import pytest
from mlflow.deployments import get_deploy_client

from mlflow_triton import flavor
from mlflow_triton.embedded import EmbeddedTriton
from mlflow_triton.errors import InvalidModel, InvalidParameter, SmokeTestFailed
from mlflow_triton.models import resolve
from mlflow_triton.models.example import input_example
from mlflow_triton.repository.claim import PREFIX
from mlflow_triton_conformance import models

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

pytestmark = pytest.mark.slow

SMOKE = {"smoke_test": "true"}
MLFLOW_3 = not mlflow.__version__.startswith("2.")
NAMED = {"name" if MLFLOW_3 else "artifact_path": "model"}
CLIENT = """\
import sys
from mlflow.deployments import get_deploy_client
get_deploy_client(sys.argv[1]).update_deployment("m", sys.argv[2], config={"smoke_test": True})
"""
MODEL = """\
import time
import numpy as np
import triton_python_backend_utils as pb_utils

class TritonPythonModel:
    def execute(self, requests):
        {execute}
        answer = np.array([{value}], np.int32)
        return [pb_utils.InferenceResponse([pb_utils.Tensor("y", answer)]) for _ in requests]
"""
SENDS = "sender.send(pb_utils.InferenceResponse([pb_utils.Tensor('y', np.array([1], np.int32))]))"
STREAMS = (
    f"sender = requests[0].get_response_sender(); {SENDS}; {{then}}; "
    "sender.send(flags=pb_utils.TRITONSERVER_RESPONSE_COMPLETE_FINAL); "
    "return None"
)
BREAKS_OFF = STREAMS.format(
    then="sender.send(pb_utils.InferenceResponse(error=pb_utils.TritonError('no such weather')))"
)
GOES_ON = STREAMS.format(then=f"[({SENDS}, time.sleep(0.1)) for _ in range(45)]")
STREAMS = STREAMS.format(then=SENDS)
FAILS = 'raise ValueError("no such weather")'


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[EmbeddedTriton]:
    """A server of this module's own, for models that fail and hang."""
    repository = tmp_path_factory.mktemp("smoke") / "repository"
    repository.mkdir()
    with EmbeddedTriton(repository) as server:
        yield server


@pytest.fixture
def target(server: EmbeddedTriton, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """The target URI; what a test has deployed goes with it, and nothing of ours is left."""
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path}/mlflow.db")
    query = {
        "model_repository": server.model_repository,
        "grpc_url": server.grpc_url,
        "request_timeout": "3",
    }
    uri = f"{server.http_url.replace('http://', 'triton://')}?{urlencode(query)}"
    yield uri
    get_deploy_client(uri).delete_deployment("m")
    root = server.model_repository
    assert [path.name for path in (*root.iterdir(), *root.parent.glob(f"{PREFIX}*"))] == []


@pytest.fixture
def python(tmp_path: Path) -> Callable[..., str]:
    """Save a model of the Python backend that answers a value; return its path."""

    def save(value: int, execute: str = "pass", config: str = "") -> str:
        source = models.write_python(tmp_path / f"source-{time.monotonic_ns()}", {1: value})
        (source / "1" / "model.py").write_text(MODEL.format(value=value, execute=execute))
        with (source / "config.pbtxt").open("a") as file:
            file.write(config)
        path = tmp_path / f"model-{time.monotonic_ns()}"
        flavor.save_model(source, path)
        return str(path)

    return save


def answer(client: Any) -> int:
    """Ask the deployment m of a Python model."""
    return int(client.predict("m", {"x": [1]})["outputs"]["y"][0])


@pytest.mark.parametrize(
    ("example", "sent"),
    [
        (np.array([[7.0], [8.0]], np.float32), "MLflow's input_example.*x FP32 [2, 1] [7.0, 8.0]"),
        (pd.DataFrame({"x": [7.0, 9.0]}), "x FP32 [2, 1] [7.0, 9.0]"),
        (None, "zeros, made from its metadata.*x FP32 [1, 1] [0.0]"),
    ],
    ids=["array", "DataFrame", "none"],
)
def test_what_is_sent(
    target: str, tmp_path: Path, caplog: pytest.LogCaptureFixture, example: Any, sent: str
) -> None:
    """The model is sent MLflow's input_example, or one of zeros where there is none, and the log says which."""
    path = tmp_path / "model"
    mlflow.onnx.save_model(models.constant(1.0), str(path), pip_requirements=["onnx"], input_example=example)
    caplog.set_level(logging.INFO, "mlflow_triton")
    get_deploy_client(target).create_deployment("m", str(path), config=SMOKE)
    (line,) = [record.getMessage() for record in caplog.records if "smoke test" in record.getMessage()]
    assert all(words in line for words in sent.split(".*"))


def test_what_an_update_of_options_sends(target: str, caplog: pytest.LogCaptureFixture) -> None:
    """The model's own input_example is sent also when it is deployed already; zeros, where MLflow has it no more."""
    example = np.array([[7.0], [8.0]], np.float32)
    with mlflow.start_run():
        mlflow.onnx.log_model(
            models.constant(1.0),
            **NAMED,
            pip_requirements=["onnx"],
            input_example=example,
            registered_model_name="r",
        )
    client = get_deploy_client(target)
    client.create_deployment("m", "models:/r/1")
    caplog.set_level(logging.INFO, "mlflow_triton")
    for count, sent in ((1, "MLflow's input_example"), (2, "an input of zeros")):
        caplog.clear()
        client.update_deployment("m", config={**SMOKE, "instance_count": count})
        (line,) = [record.getMessage() for record in caplog.records if "passed its" in record.getMessage()]
        assert sent in line
        if count == 1:
            mlflow.MlflowClient().delete_model_version("r", "1")
    assert "without its input_example" in caplog.text


def test_a_decoupled_model(target: str, python: Callable[..., str], caplog: pytest.LogCaptureFixture) -> None:
    """A model that answers over a gRPC stream only is tested over one, and refused beforehand without gRPC."""
    config = "model_transaction_policy { decoupled: true }"
    client, without = get_deploy_client(target), get_deploy_client(target.partition("&grpc_url")[0])
    with pytest.raises(
        InvalidParameter, match=r"cannot test .* without gRPC: it is decoupled.*Nothing was changed"
    ):
        without.create_deployment("m", python(1, STREAMS, config), config=SMOKE)
    for fails in (FAILS, BREAKS_OFF):
        with pytest.raises(SmokeTestFailed, match="no such weather"):
            client.create_deployment("m", python(1, fails, config), config=SMOKE)
    assert client.list_deployments() == []
    caplog.set_level(logging.INFO, "mlflow_triton")
    client.create_deployment("m", python(1, STREAMS, config), config=SMOKE)
    assert "It answered: y [1]" in caplog.text
    # Longer than the setting request_timeout.
    client.update_deployment("m", python(1, GOES_ON, config), config=SMOKE)


def test_a_model_that_fails_never_stands(target: str, python: Callable[..., str]) -> None:
    """A model that loads but does not answer leaves no trace as a new one, and the old one in its place as an update."""
    client = get_deploy_client(target)
    said = r"smoke test of 'm' with an input of zeros.*no such weather.*Sent: x INT32 \[1\] \[0\].*without -C smoke_test"
    with pytest.raises(SmokeTestFailed, match=rf"{said}.*Nothing of 'm' is left behind"):
        client.create_deployment("m", python(1, FAILS), config=SMOKE)
    assert client.list_deployments() == []
    client.create_deployment("m", python(1), config=SMOKE)
    with pytest.raises(SmokeTestFailed, match=rf"{said}.*'m' still serves"):
        client.update_deployment("m", python(2, FAILS), config=SMOKE)
    assert (answer(client), client.get_deployment("m")["in_sync"]) == (1, True)


def test_a_model_that_hangs(target: str, python: Callable[..., str]) -> None:
    """A model that does not answer within the setting request_timeout fails its smoke test."""
    client = get_deploy_client(target)
    client.create_deployment("m", python(1))
    with pytest.raises(SmokeTestFailed, match=r"did not answer within 3 s.*Sent: x.*'m' still serves"):
        client.update_deployment("m", python(2, "time.sleep(8)"), config=SMOKE)
    assert answer(client) == 1


def test_a_sequence_model(target: str, python: Callable[..., str]) -> None:
    """A model that takes only sequences is tested with one of its own."""
    config = "sequence_batching { max_sequence_idle_microseconds: 1000000 }"
    get_deploy_client(target).create_deployment("m", python(1, config=config), config=SMOKE)


def test_killed_before_the_answer(target: str, python: Callable[..., str]) -> None:
    """A change whose client died before the smoke test was passed is undone, although the new model serves."""
    client = get_deploy_client(target)
    client.create_deployment("m", python(1))
    process = subprocess.Popen([sys.executable, "-c", CLIENT, target, python(2, "time.sleep(2)")])
    before = client.get_deployment("m")["serving_id"]
    deadline = time.monotonic() + 60
    while client.get_deployment("m")["serving_id"] == before:
        assert time.monotonic() < deadline
        time.sleep(0.02)
    process.kill()
    process.wait()
    assert client.restore(["m"])[0].failed is False
    assert (answer(client), client.get_deployment("m")["in_sync"]) == (1, True)


def _info(**changes: object) -> Callable[[Path], None]:
    def edit(path: Path) -> None:
        logged = mlflow.models.Model.load(str(path / "MLmodel"))
        logged.saved_input_example_info = {**(logged.saved_input_example_info or {}), **changes}
        logged.save(str(path / "MLmodel"))

    return edit


BROKEN: dict[str, Callable[[Path], object]] = {
    "gone": lambda path: (path / "input_example.json").unlink(),
    "no JSON": lambda path: (path / "input_example.json").write_text("{"),
    "nested without end": lambda path: (path / "input_example.json").write_text("[" * 200_000),
    "outside": _info(artifact_path="../outside.json"),
    "absolute": _info(artifact_path="/etc/hostname"),
    "no text": _info(artifact_path=["input_example.json"]),
    "another kind": _info(type="pickle"),
    "the path of another file": lambda path: (path / "input_example.json").write_text(
        json.dumps(str(path.parent / "outside.json"))
    ),
}


@pytest.mark.parametrize("case", BROKEN)
def test_a_broken_example(tmp_path: Path, case: str) -> None:
    """An input_example that cannot be read, or is outside of the model, is refused before anything changes."""
    path = tmp_path / "model"
    example = np.array([[7.0]], np.float32)
    mlflow.onnx.save_model(models.constant(1.0), str(path), pip_requirements=["onnx"], input_example=example)
    (tmp_path / "outside.json").write_text("[[1.0]]")
    model = resolve.ResolvedModel(path, {}, resolve.Origin("it", None, None, None, None))
    assert input_example(model) is not None
    BROKEN[case](path)
    with pytest.raises(InvalidModel, match=r"its input_example.*cannot be read.*Nothing was changed"):
        input_example(model)
