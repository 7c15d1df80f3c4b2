"""What goes wrong is said in one line, with MLflow's error code, and leaves everything as it was."""

from __future__ import annotations

import json
import re
import shutil
import socket
import uuid
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import mlflow
import numpy as np
import pytest
from click.testing import CliRunner
from mlflow.deployments import cli, get_deploy_client
from mlflow.exceptions import MlflowException

from mlflow_triton_conformance import models
from mlflow_triton_conformance.cases import ATTEMPTS, cases
from mlflow_triton_conformance.models import answered

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from mlflow_triton_conformance.capabilities import Capabilities
    from mlflow_triton_conformance.protocol import Protocol
    from pytest_mlflow_triton.handles import PublishTriton, TritonServer


X = {"x": np.ones((1, 1), np.float32)}


@pytest.fixture(scope="module")
def good(onnx_backend: None, tmp_path_factory: pytest.TempPathFactory) -> str:
    """The URI of a model that can be deployed: it adds one."""
    path = tmp_path_factory.mktemp("good") / "model"
    mlflow.onnx.save_model(models.constant(1.0), str(path), pip_requirements=["onnx"])
    return str(path)


class Deployed:
    """A deployment of `good`, which is replaced after a test that did it harm."""

    def __init__(self, uri: str) -> None:
        self.uri = uri
        self.names: list[str] = []
        self.whole = False

    def name(self, client: Any) -> str:
        """Return the name of one that serves the model."""
        if not self.whole:
            name = f"failures-{uuid.uuid4().hex}"  # no name that is tidied up after a test
            self.names.append(name)
            client.create_deployment(name, self.uri, flavor="onnx")
            self.whole = True
        return self.names[-1]

    def examine(self, client: Any) -> tuple[object, ...]:
        """Return what it answers, and what the plugin says of it; note whether that is still right."""
        self.whole = False
        found = client.get_deployment(self.names[-1])
        answer = answered(client.predict(self.names[-1], X))["y"].tolist()
        state = (answer, found["state"], found.get("in_sync", True))
        self.whole = state == WHOLE
        return state


WHOLE = ([[2.0]], "READY", True)


@pytest.fixture(scope="module")
def deployed(
    capabilities: Capabilities, good: str, protocol: Protocol, triton_server: TritonServer
) -> Iterator[Deployed]:
    """What tests of failures are done to; whatever has become of it, it is gone afterwards."""
    if reason := capabilities.missing(["plugin"]):
        pytest.skip(f"does not apply without {reason}")
    deployed = Deployed(good)
    yield deployed
    for name in deployed.names:
        protocol.let_go(name)
        shutil.rmtree(triton_server.model_repository / name, ignore_errors=True)


@pytest.fixture
def serving(deployed: Deployed, deployment_client: Any) -> Iterator[str]:
    """A deployment of `good`, which must serve it after the test as before."""
    yield deployed.name(deployment_client)
    assert deployed.examine(deployment_client) == WHOLE


def unused() -> str:
    """A name that nothing has; what is left under it is tidied up after the test."""
    return f"failures-{uuid.uuid4().hex[:8]}"


def raised(call: Callable[..., object], *args: object, **kwargs: object) -> Exception | None:
    """Return what a call raises, None if it does not."""
    try:
        call(*args, **kwargs)
    except Exception as error:  # noqa: BLE001 - whatever it is, a test says it
        return error
    return None


def refused(code: str, pattern: str, function: Callable[[], object]) -> None:
    """Assert that a call fails with this code and a message of one line."""
    with pytest.raises(MlflowException, match=pattern) as caught:
        function()
    assert caught.value.error_code == code
    assert "\n" not in caught.value.message


def rejected(function: Callable[[], object]) -> None:
    """Assert that a call fails with MLflow's exception, whatever it says."""
    error = raised(function)
    assert isinstance(error, MlflowException), repr(error)


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
# Model URIs that name nothing, and what of each an error has to say.
NOWHERE = {
    "models:/no-such-model/1": "no-such-model",
    "models:/no-such-model@champion": "no-such-model",
    "runs:/0123456789abcdef0123456789abcdef/model": "0123456789abcdef",
    "/no/such/directory": "/no/such/directory",
    "": "empty",
}


BROKEN = {
    "garbage": "MLF-ERROR-001",
    "empty": "MLF-ERROR-002",
    "file gone": "MLF-ERROR-003",
    "no MLmodel": "MLF-ERROR-004",
    "broken MLmodel": "MLF-ERROR-005",
    "unknown operator": "MLF-ERROR-006",
    "unknown config field": "MLF-ERROR-007",
    "config syntax": "MLF-ERROR-008",
    "config of another name": "MLF-ERROR-009",
    "config that does not fit the model": "MLF-ERROR-010",
    "no version": "MLF-ERROR-011",
    "version beyond 64 bits": "MLF-ERROR-012",
    "leading zero": "MLF-ERROR-013",
    "no model.py": "MLF-ERROR-014",
    "label file gone": "MLF-ERROR-015",
    "a record of its own": "MLF-ERROR-016",
}
HARMFUL = dict.fromkeys(BROKEN_TRITON, "MLF-LIFE-006") | {
    "version beyond 64 bits": "MLF-LIFE-006 MLF-ERROR-012",
    "symbolic link": "MLF-SEC-003",
}
BAD = "INVALID_PARAMETER_VALUE"


class Attempt(NamedTuple):
    """What came of a create and an update with a broken model.

    Attributes:
        errors: What each of them raised, None if nothing.
        pictures: Of repository and server: before, after the create, after the update.
        examined: The deployment that was to be updated.
    """

    errors: list[Exception | None]
    pictures: list[object]
    examined: object


@pytest.fixture
def attempt(
    request: pytest.FixtureRequest,
    case: str,
    deployed: Deployed,
    deployment_client: Any,
    good: str,
    world: Callable[[], object],
    tmp_path: Path,
) -> Attempt:
    """Create a deployment of a broken model, and update another with it."""
    attempts: dict[str, Attempt] = request.config.stash.setdefault(ATTEMPTS, {})
    if case not in attempts:
        flavor = "onnx" if case in BROKEN_ONNX else "triton"
        if flavor == "onnx":
            uri = _edited(good, tmp_path, BROKEN_ONNX[case][0])
        else:
            uri = _python(tmp_path, BROKEN_TRITON[case][0], request.getfixturevalue("publish_triton"))
        name = deployed.name(deployment_client)
        pictures: list[object] = [world()]
        errors: list[Exception | None] = []
        for call in (deployment_client.create_deployment, deployment_client.update_deployment):
            errors.append(raised(call, unused() if not errors else name, uri, flavor=flavor))
            pictures.append(world())
        try:
            examined: object = deployed.examine(deployment_client)
        except Exception as error:  # noqa: BLE001 - whatever it is, a test says it
            examined = error
        attempts[case] = Attempt(errors, pictures, examined)
    return attempts[case]


@pytest.mark.parametrize("case", cases(BROKEN))
def test_broken_models(attempt: Attempt, case: str) -> None:
    """A broken model can neither be created nor take a deployment's place."""
    for error in attempt.errors:
        assert isinstance(error, MlflowException), repr(error)
        if case == "unknown operator":
            assert BROKEN_ONNX[case][2] in str(error)  # the server's reason


@pytest.mark.parametrize("case", cases(dict.fromkeys(BROKEN, "MLF-ERROR-020")))
def test_messages(attempt: Attempt, case: str) -> None:
    """The message is one line that names what is wrong."""
    pattern = BROKEN_ONNX[case][2] if case in BROKEN_ONNX else BROKEN_TRITON[case][1]
    for error in attempt.errors:
        assert isinstance(error, MlflowException), repr(error)
        assert re.search(pattern, error.message)
        assert "\n" not in error.message


@pytest.mark.parametrize("case", cases(dict.fromkeys(BROKEN, "MLF-ERROR-021")))
def test_codes(attempt: Attempt, case: str) -> None:
    """The error code tells whose it is to mend."""
    for error in attempt.errors:
        assert isinstance(error, MlflowException), repr(error)
        assert error.error_code == (BROKEN_ONNX[case][1] if case in BROKEN_ONNX else BAD)


@pytest.mark.parametrize("case", cases(dict.fromkeys(BROKEN_ONNX, "MLF-LIFE-003")))
def test_after_a_failed_create(attempt: Attempt, case: str) -> None:
    """A create that fails leaves repository and server as they were."""
    before, created, _ = attempt.pictures
    assert created == before


@pytest.mark.parametrize("case", cases(dict.fromkeys(BROKEN_ONNX, "MLF-LIFE-001")))
def test_after_a_failed_update(attempt: Attempt, case: str) -> None:
    """After an update that fails the old model serves, and the plugin says so."""
    assert isinstance(attempt.examined, tuple), repr(attempt.examined)
    assert attempt.examined[:2] == WHOLE[:2]


@pytest.mark.parametrize("case", cases(dict.fromkeys(BROKEN_ONNX, "MLF-LIFE-002")))
def test_files_after_a_failed_update(attempt: Attempt, case: str) -> None:
    """After an update that fails repository and server are as they were, and the plugin says so."""
    _, before, updated = attempt.pictures
    assert updated == before
    assert attempt.examined == WHOLE


@pytest.mark.parametrize("case", cases(HARMFUL))
def test_harmful_directories(attempt: Attempt, case: str) -> None:
    """A directory that Triton cannot load, or does not survive, never reaches it."""
    before, *after = attempt.pictures
    assert after == [before, before]
    assert attempt.examined == WHOLE


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
        assert raised(call)
    assert world() == before


@pytest.mark.requirement("MLF-ERROR-020", "MLF-ERROR-021")
def test_messages_of_bad_names(deployment_client: Any, good: str) -> None:
    """The error for a name that cannot be one says that it is the name."""
    for name in (*OUTSIDE, *UNSERVABLE):
        for call in (
            lambda: deployment_client.create_deployment(name, good, flavor="onnx"),  # noqa: B023 - called at once
            lambda: deployment_client.get_deployment(name),  # noqa: B023
        ):
            refused(BAD, "name", call)


@pytest.mark.requirement("MLF-ERROR-017")
@pytest.mark.parametrize("uri", NOWHERE)
def test_bad_uris(deployment_client: Any, serving: str, world: Callable[[], object], uri: str) -> None:
    """A model URI that names nothing is refused."""
    before = world()
    rejected(lambda: deployment_client.create_deployment(unused(), uri, flavor="onnx"))
    rejected(lambda: deployment_client.update_deployment(serving, uri, flavor="onnx"))
    assert world() == before


@pytest.mark.requirement("MLF-ERROR-020", "MLF-ERROR-021")
@pytest.mark.parametrize("uri", NOWHERE)
def test_messages_of_bad_uris(deployment_client: Any, serving: str, uri: str) -> None:
    """The error for a model URI that names nothing names it."""
    pattern = NOWHERE[uri]
    for call in (
        lambda: deployment_client.create_deployment(unused(), uri, flavor="onnx"),
        lambda: deployment_client.update_deployment(serving, uri, flavor="onnx"),
    ):
        refused("RESOURCE_DOES_NOT_EXIST", pattern, call)


@pytest.mark.requirement("MLF-FLAVOR-003")
def test_flavor_of_another_model(
    deployment_client: Any, serving: str, good: str, world: Callable[[], object]
) -> None:
    """A flavor that the model has not is refused with those that it has."""
    before = world()
    refused(BAD, "onnx", lambda: deployment_client.create_deployment(unused(), good, flavor="triton"))
    assert world() == before


@pytest.mark.requirement("MLF-FLAVOR-004")
def test_unknown_flavor(deployment_client: Any, serving: str, good: str, world: Callable[[], object]) -> None:
    """A flavor that the target cannot deploy is refused."""
    before = world()
    assert raised(deployment_client.create_deployment, unused(), good, flavor="pytorch")
    assert world() == before


@pytest.mark.requirement("MLF-OPTION-001")
def test_unknown_options(
    deployment_client: Any, serving: str, good: str, world: Callable[[], object]
) -> None:
    """Wrong options are refused, all of them in one message."""
    before = world()
    config = {"version": "zero", "no_such_option": "1"}
    refused(
        BAD,
        "no_such_option.*version|version.*no_such_option",
        lambda: deployment_client.create_deployment(unused(), good, flavor="onnx", config=config),
    )
    assert world() == before


@pytest.mark.requirement("MLF-ERROR-018")
def test_arguments_of_a_wrong_type(
    deployment_client: Any, serving: str, good: str, world: Callable[[], object]
) -> None:
    """Arguments of a wrong type, or none where one is needed, are refused."""
    before = world()
    create = deployment_client.create_deployment
    for error in (
        raised(create, unused(), good, flavor="onnx", config=["version=1"]),
        raised(create, unused(), None),
        raised(create, None, good, flavor="onnx"),
        raised(deployment_client.update_deployment, serving),
        raised(deployment_client.predict, 5, X),
    ):
        assert isinstance(error, MlflowException), repr(error)
    assert world() == before


@pytest.fixture
def foreign(triton_server: TritonServer) -> Iterator[str]:
    """The name of a model in the repository that MLflow did not deploy."""
    path = triton_server.model_repository / unused()
    models.write_python(path, {1: 1})
    yield path.name
    shutil.rmtree(path, ignore_errors=True)  # which the subject may have taken away


@pytest.mark.requirement("MLF-CREATE-006")
def test_create_over_a_foreign_model(
    deployment_client: Any, foreign: str, good: str, world: Callable[[], object]
) -> None:
    """A model that MLflow did not deploy is not overwritten."""
    before = world()
    assert raised(deployment_client.create_deployment, foreign, good, flavor="onnx")
    assert world() == before


@pytest.mark.requirement("MLF-LIST-003")
def test_foreign_models_are_not_listed(deployment_client: Any, foreign: str) -> None:
    """A model that MLflow did not deploy is not listed."""
    assert foreign not in [entry["name"] for entry in deployment_client.list_deployments()]


@pytest.mark.requirement("MLF-SEC-005")
def test_foreign_models_are_left_alone(
    deployment_client: Any, foreign: str, good: str, world: Callable[[], object]
) -> None:
    """A model that MLflow did not deploy is neither updated nor deleted."""
    before = world()
    raised(deployment_client.update_deployment, foreign, good, flavor="onnx")
    raised(deployment_client.delete_deployment, foreign)
    assert world() == before


@pytest.mark.requirement("MLF-ERROR-020", "MLF-ERROR-021")
def test_messages_of_foreign_models(deployment_client: Any, foreign: str, good: str) -> None:
    """The error for a model that MLflow did not deploy names it, and tells whether one of its name is in the way."""
    for call in (
        lambda: deployment_client.update_deployment(foreign, good, flavor="onnx"),
        lambda: deployment_client.delete_deployment(foreign),
        lambda: deployment_client.get_deployment(foreign),
    ):
        refused("RESOURCE_DOES_NOT_EXIST", foreign, call)
    create = deployment_client.create_deployment
    refused("RESOURCE_ALREADY_EXISTS", foreign, lambda: create(foreign, good, flavor="onnx"))


CORRUPT = ("", "{", "[]", '{"name": "another"}', "\x00")


@pytest.mark.requirement("MLF-SEC-007")
@pytest.mark.slow
def test_a_corrupt_record_among_others(
    deployment_client: Any, serving: str, good: str, world: Callable[[], object], triton_server: TritonServer
) -> None:
    """A corrupt record harms no other deployment."""
    other = unused()
    deployment_client.create_deployment(other, good, flavor="onnx")
    record = triton_server.model_repository / other / "mlflow-meta.json"
    kept = record.read_bytes()
    try:
        for content in CORRUPT:
            record.write_text(content)
            before = world()
            assert serving in [entry["name"] for entry in deployment_client.list_deployments()]
            assert world() == before
    finally:
        record.write_bytes(kept)
        deployment_client.delete_deployment(other)


@pytest.mark.requirement("MLF-SEC-006")
@pytest.mark.slow
def test_corrupt_record(
    deployment_client: Any, good: str, world: Callable[[], object], triton_server: TritonServer
) -> None:
    """A corrupt record is reported by name for its deployment."""
    other = unused()
    deployment_client.create_deployment(other, good, flavor="onnx")
    record = triton_server.model_repository / other / "mlflow-meta.json"
    kept = record.read_bytes()
    try:
        for content in CORRUPT:
            record.write_text(content)
            before = world()
            refused("INVALID_STATE", "mlflow-meta.json", lambda: deployment_client.get_deployment(other))
            refused(
                "INVALID_STATE",
                "mlflow-meta.json",
                lambda: deployment_client.update_deployment(other, good, flavor="onnx"),
            )
            refused("INVALID_STATE", "mlflow-meta.json", lambda: deployment_client.delete_deployment(other))
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
            rejected(call)
        assert world() == before


@pytest.mark.requirement("MLF-FAULT-003")
def test_dead_mlflow(
    deployment_client: Any, serving: str, world: Callable[[], object], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where no MLflow listens, that is said."""
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "1")  # how soon is not asked here
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        dead = f"127.0.0.1:{probe.getsockname()[1]}"
        monkeypatch.setenv("MLFLOW_TRACKING_URI", f"http://{dead}")
        before = world()
        for call in (
            lambda: deployment_client.create_deployment(unused(), "models:/any/1", flavor="onnx"),
            lambda: deployment_client.update_deployment(serving, "models:/any@champion", flavor="onnx"),
        ):
            rejected(call)
        assert world() == before


@pytest.mark.requirement("MLF-ERROR-020", "MLF-ERROR-021")
def test_messages_of_servers_that_do_not_answer(
    serving: str,
    good: str,
    deployment_client: Any,
    target: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The error where nothing listens names the address, and that of MLflow's does not come after minutes of retries."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        dead = f"127.0.0.1:{probe.getsockname()[1]}"
        monkeypatch.setenv("MLFLOW_TRACKING_URI", f"http://{dead}")
        create = deployment_client.create_deployment
        refused("TEMPORARILY_UNAVAILABLE", dead, lambda: create(unused(), "models:/any/1", flavor="onnx"))
        monkeypatch.setenv("TRITON_URL", dead)
        monkeypatch.setenv("TRITON_GRPC_URL", "")
        client = get_deploy_client(target)
        for call in (
            lambda: client.create_deployment(unused(), good, flavor="onnx"),
            lambda: client.update_deployment(serving, good, flavor="onnx"),
            lambda: client.delete_deployment(serving),
            lambda: client.get_deployment(serving),
            client.list_deployments,
            lambda: client.predict(serving, X),
        ):
            refused("TEMPORARILY_UNAVAILABLE", dead, call)


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
