"""What goes wrong is said in one line, with MLflow's error code, and leaves everything as it was."""

from __future__ import annotations

import json
import shutil
import socket
import uuid
from pathlib import Path
from typing import TYPE_CHECKING, Any

import mlflow
import numpy as np
import pytest
from click.testing import CliRunner
from mlflow.deployments import cli, get_deploy_client
from mlflow.exceptions import MlflowException

from mlflow_triton_conformance import models
from mlflow_triton_conformance.cases import cases

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from mlflow_triton_conformance.protocol import Protocol
    from pytest_mlflow_triton.handles import PublishTriton, TritonServer


X = {"x": np.ones((1, 1), np.float32)}


@pytest.fixture(autouse=True)
def _bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    """On some servers a load that fails does not come back: that must not take the whole time that a test has."""
    monkeypatch.setenv("TRITON_LOAD_TIMEOUT", "60")


@pytest.fixture(scope="module")
def good(onnx_backend: None, tmp_path_factory: pytest.TempPathFactory) -> str:
    """The URI of a model that can be deployed: it adds one."""
    path = tmp_path_factory.mktemp("good") / "model"
    mlflow.onnx.save_model(models.constant(1.0), str(path), pip_requirements=["onnx"])
    return str(path)


@pytest.fixture(scope="module")
def deployed(
    module_client: Any, protocol: Protocol, triton_server: TritonServer
) -> Iterator[dict[str, bool]]:
    """Deployments of `good` by name: whether they serve it still. One, which is replaced after a test that did it harm."""
    names: dict[str, bool] = {}
    yield names
    for name in names:
        protocol.let_go(name)
        shutil.rmtree(triton_server.model_repository / name, ignore_errors=True)


@pytest.fixture
def serving(deployed: dict[str, bool], deployment_client: Any, good: str) -> Iterator[str]:
    """A deployment of `good`, which must serve it after the test as before."""
    name = next((name for name, whole in deployed.items() if whole), None)
    if name is None:
        name = f"failures-{uuid.uuid4().hex}"  # no name that is tidied up after a test
        deployment_client.create_deployment(name, good, flavor="onnx")
    deployed[name] = False
    yield name
    answer = deployment_client.predict(name, X)
    assert answer["outputs"]["y"].tolist()[0][0] == 2.0
    found = deployment_client.get_deployment(name)
    assert (found["state"], found.get("in_sync", True)) == ("READY", True)
    deployed[name] = True


def unused() -> str:
    """A name that nothing has; what is left under it is tidied up after the test."""
    return f"failures-{uuid.uuid4().hex[:8]}"


def refused(code: str, pattern: str, function: Callable[[], object]) -> None:
    """Assert that a call fails with this code and a message of one line."""
    with pytest.raises(MlflowException, match=pattern) as caught:
        function()
    assert caught.value.error_code == code
    assert "\n" not in caught.value.message


def _edited(uri: str, tmp_path: Path, edit: Callable[[Path], object]) -> str:
    local = Path(mlflow.artifacts.download_artifacts(uri, dst_path=str(tmp_path / "edited")))
    edit(local)
    return str(local)


def _python(tmp_path: Path, edit: Callable[[Path], object], publish: PublishTriton) -> str:
    uri = publish(models.write_python(tmp_path / "source", {1: 1}))
    local = Path(mlflow.artifacts.download_artifacts(uri, dst_path=str(tmp_path / "edited")))
    edit(local / "source")
    return str(local)


# What is wrong with an onnx model: how to break a good one, the error code, and words of the message.
BROKEN_ONNX: dict[str, tuple[Callable[[Path], object], str, str]] = {
    "garbage": (
        lambda p: (p / "model.onnx").write_bytes(b"not a model" * 9),
        "INVALID_PARAMETER_VALUE",
        "model.onnx",
    ),
    "empty": (lambda p: (p / "model.onnx").write_bytes(b""), "INVALID_PARAMETER_VALUE", "empty"),
    "file gone": (lambda p: (p / "model.onnx").unlink(), "INVALID_PARAMETER_VALUE", "model.onnx"),
    "no MLmodel": (lambda p: (p / "MLmodel").unlink(), "INVALID_PARAMETER_VALUE", "MLmodel"),
    "broken MLmodel": (lambda p: (p / "MLmodel").write_text("{: ["), "INVALID_PARAMETER_VALUE", "MLmodel"),
    "unknown operator": (
        lambda p: (p / "model.onnx").write_bytes(models.unloadable().SerializeToString()),
        "INVALID_STATE",
        "NoSuchOperator",
    ),
    "unknown config field": (
        lambda p: (p / "config.pbtxt").write_text('backend: "onnxruntime"\nmax_batch_sise: 8\n'),
        "INVALID_PARAMETER_VALUE",
        r"config.pbtxt:2:.*max_batch_sise.*max_batch_size",
    ),
    "config syntax": (
        lambda p: (p / "config.pbtxt").write_text('backend: "onnxruntime\n'),
        "INVALID_PARAMETER_VALUE",
        r"config.pbtxt:1:",
    ),
    "config of another name": (
        lambda p: (p / "config.pbtxt").write_text('name: "other"\nbackend: "onnxruntime"\n'),
        "INVALID_PARAMETER_VALUE",
        "other",
    ),
    "config that does not fit the model": (
        lambda p: (p / "config.pbtxt").write_text(
            'backend: "onnxruntime"\ninput [ { name: "z" data_type: TYPE_FP32 dims: [ 1 ] } ]\n'
        ),
        "INVALID_STATE",
        "'z'",
    ),
}
# The same for a triton model; several of these would hang or end the server.
BROKEN_TRITON: dict[str, tuple[Callable[[Path], object], str]] = {
    "no version": (lambda p: shutil.rmtree(p / "1"), "version"),
    "version beyond 64 bits": (
        lambda p: (p / "1").rename(p / "99999999999999999999"),
        "99999999999999999999",
    ),
    "leading zero": (lambda p: (p / "1").rename(p / "01"), "01"),
    "no model.py": (lambda p: (p / "1" / "model.py").unlink(), "model.py"),
    "symbolic link": (lambda p: (p / "1" / "passwd").symlink_to("/etc/passwd"), "passwd"),
    "label file gone": (lambda p: (p / "labels.txt").unlink(), "labels.txt"),
    "a record of its own": (lambda p: (p / "mlflow-meta.json").write_text("{}"), "mlflow-meta.json"),
}


# Names that lead out of the repository, and names that Triton cannot serve.
OUTSIDE = [".", "..", "../out", "/abs", "a/b"]
UNSERVABLE = ["a b", "", "ü", ".hidden", "a\n", "x" * 300, "%41"]


@pytest.mark.parametrize(
    "case",
    cases(
        {
            "garbage": "MLF-ERROR-001",
            "empty": "MLF-ERROR-002",
            "file gone": "MLF-ERROR-003",
            "no MLmodel": "MLF-ERROR-004",
            "broken MLmodel": "MLF-ERROR-005",
            "unknown operator": "MLF-ERROR-006 MLF-LIFE-001 MLF-LIFE-002 MLF-LIFE-003",
            "unknown config field": "MLF-ERROR-007",
            "config syntax": "MLF-ERROR-008",
            "config of another name": "MLF-ERROR-009",
            "config that does not fit the model": "MLF-ERROR-010",
        }
    ),
)
def test_broken_onnx_models(
    deployment_client: Any, serving: str, good: str, world: Callable[[], object], tmp_path: Path, case: str
) -> None:
    """A broken onnx model can neither be created nor take a deployment's place, and the message says why."""
    edit, code, pattern = BROKEN_ONNX[case]
    uri = _edited(good, tmp_path, edit)
    before = world()
    refused(code, pattern, lambda: deployment_client.create_deployment(unused(), uri, flavor="onnx"))
    assert world() == before
    refused(code, pattern, lambda: deployment_client.update_deployment(serving, uri, flavor="onnx"))
    assert world() == before


@pytest.mark.parametrize(
    "case",
    cases(
        {
            "no version": "MLF-ERROR-011",
            "version beyond 64 bits": "MLF-ERROR-012 MLF-LIFE-006",
            "leading zero": "MLF-ERROR-013",
            "no model.py": "MLF-ERROR-014",
            "symbolic link": "MLF-SEC-003",
            "label file gone": "MLF-ERROR-015",
            "a record of its own": "MLF-ERROR-016",
        }
    ),
)
def test_broken_triton_models(
    deployment_client: Any,
    serving: str,
    publish_triton: PublishTriton,
    world: Callable[[], object],
    tmp_path: Path,
    case: str,
) -> None:
    """A directory that Triton cannot load, or does not survive, never reaches it."""
    edit, pattern = BROKEN_TRITON[case]
    uri = _python(tmp_path, edit, publish_triton)
    before = world()
    for call in (
        lambda: deployment_client.create_deployment(unused(), uri, flavor="triton"),
        lambda: deployment_client.update_deployment(serving, uri, flavor="triton"),
    ):
        refused("INVALID_PARAMETER_VALUE", pattern, call)
    assert world() == before


@pytest.mark.parametrize(
    "name",
    [
        *(pytest.param(name, marks=pytest.mark.requirement("MLF-SEC-001")) for name in OUTSIDE),
        *(pytest.param(name, marks=pytest.mark.requirement("MLF-SEC-002")) for name in UNSERVABLE),
    ],
)
def test_bad_names(deployment_client: Any, good: str, world: Callable[[], object], name: str) -> None:
    """A name that Triton cannot serve, or that leaves the repository, is refused by every verb."""
    before = world()
    for call in (
        lambda: deployment_client.create_deployment(name, good, flavor="onnx"),
        lambda: deployment_client.update_deployment(name, good, flavor="onnx"),
        lambda: deployment_client.delete_deployment(name),
        lambda: deployment_client.get_deployment(name),
    ):
        refused("INVALID_PARAMETER_VALUE", "name", call)
    assert world() == before


@pytest.mark.requirement("MLF-ERROR-017", "MLF-ERROR-020")
@pytest.mark.parametrize(
    ("uri", "pattern"),
    [
        ("models:/no-such-model/1", "no-such-model"),
        ("models:/no-such-model@champion", "no-such-model"),
        ("runs:/0123456789abcdef0123456789abcdef/model", "0123456789abcdef"),
        ("/no/such/directory", "/no/such/directory"),
        ("", "empty"),
    ],
)
def test_bad_uris(
    deployment_client: Any, serving: str, world: Callable[[], object], uri: str, pattern: str
) -> None:
    """A model URI that names nothing is an error that names it."""
    before = world()
    refused(
        "RESOURCE_DOES_NOT_EXIST",
        pattern,
        lambda: deployment_client.create_deployment(unused(), uri, flavor="onnx"),
    )
    refused(
        "RESOURCE_DOES_NOT_EXIST",
        pattern,
        lambda: deployment_client.update_deployment(serving, uri, flavor="onnx"),
    )
    assert world() == before


@pytest.mark.requirement("MLF-FLAVOR-003", "MLF-FLAVOR-004")
def test_flavors(deployment_client: Any, serving: str, good: str, world: Callable[[], object]) -> None:
    """A flavor that the model has not, or that is none, is refused with what there is."""
    before = world()
    create = deployment_client.create_deployment
    refused("INVALID_PARAMETER_VALUE", "onnx", lambda: create(unused(), good, flavor="triton"))
    refused("INVALID_PARAMETER_VALUE", "are: onnx", lambda: create(unused(), good, flavor="pytorch"))
    assert world() == before


@pytest.mark.requirement("MLF-OPTION-001", "MLF-ERROR-018")
def test_options(deployment_client: Any, serving: str, good: str, world: Callable[[], object]) -> None:
    """Wrong options are refused, all of them in one message."""
    before = world()
    config = {"version": "zero", "no_such_option": "1"}
    refused(
        "INVALID_PARAMETER_VALUE",
        "no_such_option.*version|version.*no_such_option",
        lambda: deployment_client.create_deployment(unused(), good, flavor="onnx", config=config),
    )
    refused("INVALID_PARAMETER_VALUE", "-m", lambda: deployment_client.update_deployment(serving))
    for call in (
        lambda: deployment_client.create_deployment(unused(), good, flavor="onnx", config=["version=1"]),
        lambda: deployment_client.create_deployment(unused(), None),
        lambda: deployment_client.create_deployment(None, good, flavor="onnx"),
        lambda: deployment_client.predict(5, X),
    ):
        refused("INVALID_PARAMETER_VALUE", ".", call)
    assert world() == before


@pytest.mark.requirement("MLF-CREATE-006", "MLF-LIST-003", "MLF-SEC-005")
def test_names_that_are_taken(
    deployment_client: Any,
    serving: str,
    good: str,
    world: Callable[[], object],
    triton_server: TritonServer,
) -> None:
    """Neither a deployment nor a model that MLflow did not deploy is overwritten, updated, listed or deleted."""
    foreign = triton_server.model_repository / unused()
    models.write_python(foreign, {1: 1})
    try:
        before = world()
        refused(
            "RESOURCE_ALREADY_EXISTS",
            "update",
            lambda: deployment_client.create_deployment(serving, good, flavor="onnx"),
        )
        name = foreign.name
        refused(
            "RESOURCE_ALREADY_EXISTS",
            name,
            lambda: deployment_client.create_deployment(name, good, flavor="onnx"),
        )
        refused(
            "RESOURCE_DOES_NOT_EXIST",
            name,
            lambda: deployment_client.update_deployment(name, good, flavor="onnx"),
        )
        refused("RESOURCE_DOES_NOT_EXIST", name, lambda: deployment_client.delete_deployment(name))
        refused("RESOURCE_DOES_NOT_EXIST", name, lambda: deployment_client.get_deployment(name))
        assert name not in [entry["name"] for entry in deployment_client.list_deployments()]
        assert world() == before
    finally:
        shutil.rmtree(foreign, ignore_errors=True)  # which the subject may have taken away


@pytest.mark.requirement("MLF-SEC-006", "MLF-SEC-007")
@pytest.mark.slow
def test_corrupt_record(
    deployment_client: Any,
    serving: str,
    good: str,
    world: Callable[[], object],
    triton_server: TritonServer,
) -> None:
    """A corrupt record is reported by name for its deployment, and harms no other one."""
    other = unused()
    deployment_client.create_deployment(other, good, flavor="onnx")
    record = triton_server.model_repository / other / "mlflow-meta.json"
    kept = record.read_bytes()
    try:
        for content in ("", "{", "[]", '{"name": "another"}', "\x00"):
            record.write_text(content)
            before = world()
            refused("INVALID_STATE", "mlflow-meta.json", lambda: deployment_client.get_deployment(other))
            refused(
                "INVALID_STATE",
                "mlflow-meta.json",
                lambda: deployment_client.update_deployment(other, good, flavor="onnx"),
            )
            refused("INVALID_STATE", "mlflow-meta.json", lambda: deployment_client.delete_deployment(other))
            assert serving in [entry["name"] for entry in deployment_client.list_deployments()]
            assert world() == before
    finally:
        record.write_bytes(kept)
        deployment_client.delete_deployment(other)


@pytest.mark.requirement("MLF-RECORD-004")
def test_record_of_nvidias_plugin(
    deployment_client: Any, serving: str, good: str, triton_server: TritonServer
) -> None:
    """What NVIDIA's plugin deployed is listed, updated and deleted; afterwards its record is complete."""
    record = triton_server.model_repository / serving / "mlflow-meta.json"
    theirs = {
        "name": serving,
        "triton_model_path": str(record.parent),
        "mlflow_model_uri": good,
        "flavor": "onnx",
    }
    record.write_text(json.dumps(theirs, indent=4))
    (listed,) = [entry for entry in deployment_client.list_deployments() if entry["name"] == serving]
    assert {key: listed[key] for key in theirs} == theirs
    assert deployment_client.get_deployment(serving).get("in_sync", False) is False
    deployment_client.update_deployment(serving, good, flavor="onnx")
    assert theirs.keys() <= json.loads(record.read_text()).keys()


def client_of(target: str, server: TritonServer, **changes: str) -> Any:
    """A client whose target URI differs from the right one in `changes`."""
    url = changes.pop("url", server.http_url.removeprefix("http://"))
    parameters = {
        "model_repository": str(server.model_repository),
        "grpc_url": server.grpc_url or "",
        **changes,
    }
    query = "&".join(f"{key}={value}" for key, value in parameters.items() if value)
    return get_deploy_client(f"{target.partition(':')[0]}://{url}?{query}")


@pytest.mark.requirement("MLF-SETTING-006")
def test_wrong_repository(
    serving: str,
    good: str,
    world: Callable[[], object],
    triton_server: TritonServer,
    target: str,
    tmp_path: Path,
) -> None:
    """A directory that the server does not read is found out, also when it holds a model of the same name."""
    shutil.copytree(triton_server.model_repository / serving, tmp_path / serving)
    client = client_of(target, triton_server, model_repository=str(tmp_path))
    before, files = world(), sorted(tmp_path.rglob("*"))
    for call in (
        lambda: client.create_deployment(unused(), good, flavor="onnx"),
        lambda: client.update_deployment(serving, good, flavor="onnx"),
        lambda: client.delete_deployment(serving),
    ):
        refused("INVALID_STATE", "TRITON_MODEL_REPO", call)
    assert world() == before
    assert sorted(tmp_path.rglob("*")) == files


@pytest.mark.requirement("MLF-SETTING-007")
@pytest.mark.parametrize("path", ["/no/such/repository", "s3://bucket/models"])
def test_unusable_repository(
    serving: str, good: str, triton_server: TritonServer, target: str, path: str
) -> None:
    """A repository path that is no directory here is an error that names it and its source."""
    client = client_of(target, triton_server, model_repository=path)
    with pytest.raises(MlflowException, match=f"{path}.*target URI"):
        client.create_deployment(unused(), good, flavor="onnx")
    assert client.predict(serving, X)["outputs"]["y"].tolist() == [[2.0]]


@pytest.mark.requirement("MLF-SETTING-005")
def test_no_repository(
    deployment_client: Any, serving: str, good: str, monkeypatch: pytest.MonkeyPatch, target: str
) -> None:
    """Without TRITON_MODEL_REPO, predict works and the other verbs say what to set."""
    del deployment_client
    monkeypatch.delenv("TRITON_MODEL_REPO")
    client = get_deploy_client(target)
    refused(
        "INVALID_PARAMETER_VALUE",
        "TRITON_MODEL_REPO",
        lambda: client.create_deployment("x", good, flavor="onnx"),
    )
    refused("INVALID_PARAMETER_VALUE", "TRITON_MODEL_REPO", client.list_deployments)
    assert client.predict(serving, X)["outputs"]["y"].tolist() == [[2.0]]


@pytest.mark.requirement("MLF-FAULT-001", "MLF-FAULT-002")
def test_dead_server(
    serving: str, good: str, world: Callable[[], object], triton_server: TritonServer, target: str
) -> None:
    """Where nothing listens, every verb says so at once and changes nothing."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        dead = f"127.0.0.1:{probe.getsockname()[1]}"
        client = client_of(target, triton_server, url=dead, grpc_url="")
        before = world()
        for call in (
            lambda: client.create_deployment(unused(), good, flavor="onnx"),
            lambda: client.update_deployment(serving, good, flavor="onnx"),
            lambda: client.delete_deployment(serving),
            lambda: client.get_deployment(serving),
            client.list_deployments,
            lambda: client.predict(serving, X),
        ):
            refused("TEMPORARILY_UNAVAILABLE", dead, call)
        assert world() == before


@pytest.mark.requirement("MLF-FAULT-003")
def test_dead_mlflow(
    deployment_client: Any, serving: str, world: Callable[[], object], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where no MLflow listens, that is said at once, and not after minutes of retries."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        dead = f"127.0.0.1:{probe.getsockname()[1]}"
        monkeypatch.setenv("MLFLOW_TRACKING_URI", f"http://{dead}")
        before = world()
        for call in (
            lambda: deployment_client.create_deployment(unused(), "models:/any/1", flavor="onnx"),
            lambda: deployment_client.update_deployment(serving, "models:/any@champion", flavor="onnx"),
        ):
            refused("TEMPORARILY_UNAVAILABLE", dead, call)
        assert world() == before


@pytest.mark.requirement("MLF-FAULT-004")
@pytest.mark.slow
def test_without_grpc(
    deployment_name: str,
    good: str,
    triton_server: TritonServer,
    target: str,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """Without gRPC, models are loaded over HTTP, which a warning says."""
    client = client_of(target, triton_server, grpc_url="127.0.0.1:9")
    client.create_deployment(deployment_name, good, flavor="onnx")
    assert [record.levelname for record in caplog.records if "over HTTP" in record.getMessage()] == [
        "WARNING"
    ]
    assert client.predict(deployment_name, X)["outputs"]["y"].tolist() == [[2.0]]
    client.delete_deployment(deployment_name)


@pytest.mark.requirement("MLF-ERROR-019")
def test_missing_deployment(deployment_client: Any, deployment_name: str, good: str) -> None:
    """A name that nothing has is RESOURCE_DOES_NOT_EXIST, except for delete, which MLflow wants idempotent."""
    for call in (
        lambda: deployment_client.get_deployment(deployment_name),
        lambda: deployment_client.update_deployment(deployment_name, good, flavor="onnx"),
        lambda: deployment_client.predict(deployment_name, X),
    ):
        refused("RESOURCE_DOES_NOT_EXIST", deployment_name, call)
    deployment_client.delete_deployment(deployment_name)


@pytest.mark.requirement("MLF-CLI-009")
def test_one_line_on_the_cli(deployment_client: Any, deployment_name: str, good: str, target: str) -> None:
    """The command prints one line that begins with Error:, no traceback, and exits with 1."""
    for arguments in (
        ["create", "-t", target, "--name", "a/b", "-m", good],
        ["create", "-t", target, "--name", deployment_name, "-m", "models:/no-such-model/1"],
        ["update", "-t", target, "--name", deployment_name, "-m", good],
        ["get", "-t", target, "--name", deployment_name],
    ):
        result = CliRunner().invoke(cli.commands, arguments)
        assert result.exit_code == 1
        # Both streams: click before 8.2 does not keep them apart here.
        assert len(result.output.strip().splitlines()) == 1, result.output
        assert result.output.startswith("Error: ")
