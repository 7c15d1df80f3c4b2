"""What is asked of a request reaches the model and the server, and its answer comes back as asked."""

from __future__ import annotations

import json
import threading
import time
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
import pytest
from click.testing import CliRunner
from mlflow.deployments import cli as mlflow_cli
from mlflow.deployments import get_deploy_client

from mlflow_triton.embedded import EmbeddedTriton
from mlflow_triton.errors import (
    DeploymentNotFound,
    InferenceFailed,
    InvalidInput,
    InvalidParameter,
    ServerTimeout,
    TritonPluginError,
)
from mlflow_triton.options import HIGHEST_VERSION
from mlflow_triton.tensors.decode import TritonPredictions

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

TELLS = """\
import json, time
import numpy as np
import triton_python_backend_utils as pb_utils

class TritonPythonModel:
    def execute(self, requests):
        answers = []
        for request in requests:
            x = pb_utils.get_input_tensor_by_name(request, "x").as_numpy()
            time.sleep(max(0.0, -float(x.flat[0])))
            seen = {
                "parameters": json.loads(request.parameters()),
                "id": request.request_id(),
                "sequence": request.correlation_id() if isinstance(request.correlation_id(), int) else None,
                "flags": request.flags(),
                "outputs": sorted(request.requested_output_names()),
            }
            tensors = [pb_utils.Tensor("y", x * 2), pb_utils.Tensor("seen", np.array([[json.dumps(seen)]], np.object_))]
            answers.append(pb_utils.InferenceResponse([t for t in tensors if t.name() in request.requested_output_names()]))
        return answers
"""
CONFIG = """\
backend: "python"
max_batch_size: 4
input { name: "x" data_type: TYPE_FP32 dims: [-1] }
output { name: "y" data_type: TYPE_FP32 dims: [-1] label_filename: "labels.txt" }
output { name: "seen" data_type: TYPE_STRING dims: [1] }
version_policy { all {} }
"""
QUEUE = """\
dynamic_batching {
  priority_levels: 2
  default_priority_level: 2
  default_queue_policy { default_timeout_microseconds: 60000000 allow_timeout_override: true }
}
"""
SEQUENCES = "sequence_batching { max_sequence_idle_microseconds: 60000000 }"


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[EmbeddedTriton]:
    """A server with models that answer what they see of a request."""
    repository = tmp_path_factory.mktemp("requests") / "models"
    for name, extra, versions in (("tells", QUEUE, (1, HIGHEST_VERSION)), ("sequence", SEQUENCES, (1,))):
        for version in versions:
            (repository / name / str(version)).mkdir(parents=True)
            (repository / name / str(version) / "model.py").write_text(TELLS, encoding="utf-8")
        (repository / name / "config.pbtxt").write_text(CONFIG + extra, encoding="utf-8")
        (repository / name / "labels.txt").write_text("cat\ndog\nfox\n", encoding="utf-8")
    patterns = [f"--{protocol}-header-forward-pattern=x-.*" for protocol in ("http", "grpc")]
    with EmbeddedTriton(repository, arguments=["--load-model=*", *patterns]) as running:
        yield running


@pytest.fixture(params=["http", "grpc"])
def client(server: EmbeddedTriton, request: pytest.FixtureRequest) -> Any:
    """A client of the server, over each transport."""
    host = server.http_url.partition("://")[2]
    return get_deploy_client(f"triton://{host}?grpc_url={server.grpc_url}&transport={request.param}")


X = {"x": np.array([[1.0, 3.0, 2.0]], np.float32)}


def seen(response: Any) -> dict[str, Any]:
    """What the model has seen of the request."""
    document: dict[str, Any] = json.loads(response["outputs"]["seen"][0, 0])
    return document


def test_parameters_headers_and_id_reach_the_model(client: Any) -> None:
    """Custom parameters keep their types, a header that the server forwards is one of them, and the id is the request's."""
    parameters = {"a": 1, "b": "text", "c": True, "d": 1.5}
    found = seen(client.predict("tells", X, parameters=parameters, headers={"x-who": "me"}, request_id="r7"))
    assert found["parameters"] == {**parameters, "x-who": "me"}
    assert found["id"] == "r7"


def test_a_header_takes_the_place_of_the_settings(client: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """A header of a request replaces the settings' one of that name, in whatever case it is written."""
    monkeypatch.setenv("TRITON_HEADERS", json.dumps({"X-Who": "settings", "x-other": "stays"}))
    other = get_deploy_client(client.target_uri)
    before = seen(other.predict("tells", X))["parameters"]
    assert {name.lower(): value for name, value in before.items()} == {
        "x-who": "settings",
        "x-other": "stays",
    }
    found = seen(other.predict("tells", X, headers={"x-who": "request"}))["parameters"]
    assert found == {"x-who": "request", "x-other": "stays"}


@pytest.mark.parametrize("size", [3, 2_000_000])
def test_outputs_are_selected(client: Any, size: int) -> None:
    """Only the outputs that are asked for are computed and come back, large ones too, and the next request has all."""
    x = np.arange(size, dtype=np.float32)[np.newaxis]
    for _ in range(2):
        response = client.predict("tells", {"x": x}, outputs=["y"])
        assert list(response["outputs"]) == ["y"]
        np.testing.assert_array_equal(response["outputs"]["y"], x * 2)
        response = client.predict("tells", {"x": x})
        assert list(response["outputs"]) == ["y", "seen"]
        np.testing.assert_array_equal(response["outputs"]["y"], x * 2)
    assert seen(client.predict("tells", {"x": x}, outputs=["seen"]))["outputs"] == ["seen"]


def test_an_unknown_output_is_refused(client: Any) -> None:
    """An output that the model does not have is named, with those that it has."""
    with pytest.raises(
        InvalidInput, match=r"Nothing was sent to 'tells'\. It has no output 'z'; it has 'y', 'seen'"
    ):
        client.predict("tells", X, outputs=["z", "y"])


def test_no_classification_of_text(client: Any) -> None:
    """Of an output that Triton crashes at, none is asked for."""
    for options in ({}, {"outputs": ["seen"]}, {"outputs": ["y", "seen"]}):
        with pytest.raises(
            InvalidInput, match=r"Nothing was sent to 'tells'.* no classification of 'seen' \(BYTES\)"
        ):
            client.predict("tells", X, classification=2, **options)


def test_classification(client: Any) -> None:
    """The highest values come with index and label, of the outputs asked for or of all."""
    response = client.predict("tells", X, outputs=["y"], classification=2)
    assert response["outputs"]["y"].tolist() == [["6.000000:1:dog", "4.000000:2:fox"]]


@pytest.mark.parametrize("compression", ["gzip", "deflate"])
@pytest.mark.parametrize("size", [3, 50_000])
def test_compression(client: Any, compression: str, size: int) -> None:
    """A compressed request and its compressed answer hold the same values; an error is read, too."""
    x = np.arange(size, dtype=np.float32)[np.newaxis]
    response = client.predict("tells", {"x": x}, compression=compression)
    np.testing.assert_array_equal(response["outputs"]["y"], x * 2)
    with pytest.raises(InferenceFailed, match="must specify a non-zero or non-empty correlation ID"):
        client.predict("sequence", {"x": x}, compression=compression)


def test_an_answer_in_mlflows_formats(client: Any) -> None:
    """Several outputs, NaN and texts among them, come in a frame, as arrays, and through JSON and back."""
    x = np.array([[1.5, np.nan, -np.inf, -0.0, 1e-45]], np.float32)
    response = client.predict("tells", {"x": x})
    texts = response["outputs"]["seen"]
    frame = response.get_predictions()
    assert list(frame.columns) == ["y", "seen"]
    np.testing.assert_array_equal(np.stack(frame["y"]), x * 2)
    assert frame["seen"].tolist() == texts[:, 0].tolist()  # a column of one value each has plain values
    arrays = response.get_predictions("ndarray")
    np.testing.assert_array_equal(arrays["y"], x * 2, strict=True)
    assert arrays["seen"].tolist() == texts.tolist()
    text = response.to_json()
    assert json.loads(text)["outputs"]["seen"] == texts.tolist()
    back = TritonPredictions.from_json(text)["outputs"]
    np.testing.assert_array_equal(np.asarray(back["y"], np.float32), x * 2)
    assert np.asarray(back["seen"]).tolist() == texts.tolist()


def test_a_lossy_cast_is_asked_for(client: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Digits are dropped on request of a call, or of the settings for all of them; a call goes before the settings."""
    wide = {"x": [[2**24 + 1]]}
    words = r"Nothing was sent to 'tells'\. Input 'x'.* 16777217 .*\[0, 0\].*FP32"
    with pytest.raises(InvalidInput, match=words):
        client.predict("tells", wide)
    assert client.predict("tells", wide, allow_lossy=True)["outputs"]["y"].tolist() == [[2.0**25]]
    monkeypatch.setenv("TRITON_LOSSY_CASTS", "true")
    other = get_deploy_client(client.target_uri)
    assert other.predict("tells", wide)["outputs"]["y"].tolist() == [[2.0**25]]
    with pytest.raises(InvalidInput, match=words):
        other.predict("tells", wide, allow_lossy=False)


@pytest.mark.parametrize(
    ("target", "options"),
    [
        ("tells/1", {}),
        (f"tells/{HIGHEST_VERSION}", {}),
        ("tells", {"version": 1}),
        ("tells/1", {"version": 1}),
    ],
)
def test_a_version_is_selected(client: Any, target: str, options: dict[str, Any]) -> None:
    """NAME/VERSION, or the argument, selects a version that is served."""
    np.testing.assert_array_equal(client.predict(target, X, **options)["outputs"]["y"], X["x"] * 2)


def test_a_version_that_is_not_served(client: Any) -> None:
    """The error names the versions that are served; a model that is not there is said not to be there."""
    with pytest.raises(DeploymentNotFound, match=f"serves no version 2 of 'tells', but 1, {HIGHEST_VERSION}"):
        client.predict("tells/2", X)
    with pytest.raises(DeploymentNotFound, match="serves no model 'nothing'"):
        client.predict("nothing/2", X)


@pytest.mark.parametrize(
    ("target", "options"), [("tells/x", {}), ("tells/", {}), ("tells/1", {"version": 3})]
)
def test_no_version(client: Any, target: str, options: dict[str, Any]) -> None:
    """What is neither NAME nor NAME/VERSION, or names two versions, is refused."""
    with pytest.raises(InvalidParameter, match="neither the name of a deployment nor NAME/VERSION"):
        client.predict(target, X, **options)
    with pytest.raises(InvalidParameter, match="UTF-8 cannot encode it"):
        client.predict(f"\ud800{target}", X, **options)


def test_an_endpoint_is_a_deployment(client: Any) -> None:
    """`endpoint` names the deployment for callers that know no other way; two different names are refused."""
    assert client.predict(endpoint="tells", inputs=X)["outputs"]["y"].shape == (1, 3)
    with pytest.raises(
        InvalidParameter, match="Which one, the deployment 'tells' or the endpoint 'sequence'"
    ):
        client.predict("tells", X, endpoint="sequence")


def test_a_batch_that_is_too_large(client: Any) -> None:
    """It is refused before it is sent, with the limit and the remedies; a table is sent in parts, but not in a sequence."""
    x = np.ones((5, 2), np.float32)
    words = "Nothing was sent to '{}': the batch has 5 items, and it takes 4 at most"
    with pytest.raises(InvalidInput, match=words.format("tells")):
        client.predict("tells", {"x": x})
    table = pd.DataFrame({"x": list(x)})
    response = client.predict("tells", table, outputs=["y"])
    np.testing.assert_array_equal(response["outputs"]["y"], x * 2)
    with pytest.raises(InvalidInput, match=words.format("sequence") + ".* not sent in parts: send fewer"):
        client.predict("sequence", table, sequence_id=9, sequence_start=True)


def test_a_sequence(client: Any) -> None:
    """The requests of a sequence have its id and say where it starts and ends."""
    for start, end, flags in ((True, False, 1), (False, False, 0), (False, True, 2)):
        found = seen(client.predict("sequence", X, sequence_id=7, sequence_start=start, sequence_end=end))
        assert (found["sequence"], found["flags"]) == (7, flags)
    with pytest.raises(InferenceFailed, match="must specify the START flag"):
        client.predict("sequence", X, sequence_id=8)


def test_a_timeout_is_tritons(client: Any) -> None:
    """A request that waits in the queue for longer than its timeout is refused by the server, and its model runs on."""
    busy = threading.Thread(target=client.predict, args=("tells", {"x": np.array([[-3.0]], np.float32)}))
    busy.start()
    time.sleep(0.5)
    try:
        with pytest.raises(InferenceFailed, match="Request timeout expired"):
            client.predict("tells", X, timeout=0.2)
    finally:
        busy.join(60)


def test_a_timeout_is_the_clients(client: Any) -> None:
    """A model that runs for longer than the timeout is waited for one second more, whatever the settings say."""
    started = time.monotonic()
    with pytest.raises(ServerTimeout, match=r"did not answer (ModelInfer )?within 1\.2 s"):
        client.predict("tells", {"x": np.array([[-4.0]], np.float32)}, timeout=0.2)
    assert time.monotonic() - started < 3.5
    client.predict("tells", X)  # comes when the model has ended


def test_what_nobody_knows_is_refused(client: Any) -> None:
    """An argument that is none is named, with all that there are."""
    with pytest.raises(TritonPluginError, match=r"predict does not know 'output'.*outputs, classification"):
        client.predict("tells", X, output="y")


def protocol_request(**beside: Any) -> dict[str, Any]:
    """A request of the Open Inference Protocol for the model that tells."""
    return {"inputs": [{"name": "x", "shape": [1, 2], "datatype": "FP32", "data": [1.5, 2.5]}], **beside}


def test_a_request_of_the_protocol_is_honoured(client: Any) -> None:
    """Its id, parameters and outputs count; arguments go before them."""
    document = protocol_request(id="d1", parameters={"a": 1, "priority": 1}, outputs=[{"name": "seen"}])
    response = client.predict("tells", document)
    assert list(response["outputs"]) == ["seen"]
    assert (seen(response)["id"], seen(response)["parameters"]) == ("d1", {"a": 1})
    assert seen(client.predict("tells", document, request_id="mine"))["id"] == "mine"


@pytest.mark.parametrize("wrapped", [False, True])
@pytest.mark.parametrize("where", ["--name", "--endpoint"])
def test_a_request_of_the_protocol_in_a_file(client: Any, tmp_path: Path, where: str, wrapped: bool) -> None:
    """MLflow's command sends a file's request as it stands; in a list, pandas' reader in front of it takes any."""
    document = protocol_request(id="file", outputs=[{"name": "seen"}])
    if wrapped:
        document["parameters"] = {"a": "b"}
        document["outputs"].append({"name": "y"})
    path = tmp_path / "request.json"
    path.write_text(json.dumps([document] if wrapped else document), encoding="utf-8")
    arguments = ["-t", client.target_uri, where, "tells/1", "--input-path", str(path)]
    result = CliRunner().invoke(mlflow_cli.predict, arguments)
    assert result.exit_code == 0, result.output
    outputs = json.loads(result.stdout)["outputs"]
    told = json.loads(outputs["seen"][0][0])
    assert (told["id"], told["parameters"]) == ("file", {"a": "b"} if wrapped else {})
    assert outputs.get("y") == ([[3.0, 5.0]] if wrapped else None)
