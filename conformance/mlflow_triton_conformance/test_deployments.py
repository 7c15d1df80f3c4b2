"""What MLflow's deployments API promises of any plugin, one promise at a time."""

from __future__ import annotations

import inspect
import shutil
import uuid
from typing import TYPE_CHECKING, Any

import mlflow
import numpy as np
import pytest
from click.testing import CliRunner
from mlflow.deployments import BaseDeploymentClient, PredictionsResponse, cli
from mlflow.exceptions import MlflowException

from mlflow_triton_conformance import plugins
from mlflow_triton_conformance.wire import request, tensor

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from contextlib import AbstractContextManager

    from mlflow_triton_conformance.protocol import Protocol

requirement = pytest.mark.requirement
METHODS = (
    "create_deployment",
    "update_deployment",
    "delete_deployment",
    "list_deployments",
    "get_deployment",
    "predict",
)
X = {"x": np.ones((1, 1), np.float32)}


@pytest.fixture(scope="module")
def created(module_client: Any, saved: Callable[[float], str]) -> Iterator[tuple[str, Any]]:
    """The name of a deployment that adds one, and what create_deployment returned."""
    name = f"deployments-{uuid.uuid4().hex[:8]}"
    yield name, module_client.create_deployment(name, saved(1.0), flavor="onnx")
    module_client.delete_deployment(name)


def adds(client: Any, name: str) -> Any:
    """Ask a deployment what it adds."""
    outputs = client.predict(name, X)["outputs"]
    return outputs["y"].tolist()[0][0] - 1.0


@requirement("MLF-CLIENT-001")
def test_one_client_class(target: str) -> None:
    """MLflow can tell which class of the module is the client."""
    module = plugins.module(target)
    found = [
        it for it in vars(module).values() if inspect.isclass(it) and issubclass(it, BaseDeploymentClient)
    ]
    assert len({it for it in found if it is not BaseDeploymentClient}) == 1


@requirement("MLF-CLIENT-002")
@pytest.mark.parametrize("method", METHODS)
def test_arguments(deployment_client: Any, method: str) -> None:
    """A method takes all arguments of MLflow's, by their names, and those with a default may be left out."""
    wanted = inspect.signature(getattr(BaseDeploymentClient, method)).parameters
    found = inspect.signature(getattr(type(deployment_client), method)).parameters
    assert wanted.keys() - found.keys() == set()
    needed = {
        name for name, it in found.items() if it.default is it.empty and it.kind is it.POSITIONAL_OR_KEYWORD
    }
    assert needed <= {"self", "name", "model_uri", "deployment_name", "inputs"}


@requirement("MLF-CLIENT-003")
def test_run_local(target: str) -> None:
    """run_local is there, with MLflow's arguments."""
    assert {"name", "model_uri", "flavor", "config"} <= inspect.signature(
        plugins.module(target).run_local
    ).parameters.keys()


@requirement("MLF-CLIENT-004", "MLF-CLI-008")
def test_help(target: str, deployment_client: Any) -> None:
    """target_help names the setting that no deployment goes without, and the command prints it."""
    text = plugins.module(target).target_help()
    assert "TRITON_MODEL_REPO" in text
    result = CliRunner().invoke(cli.commands, ["help", "-t", target])
    assert (result.exit_code, result.stdout.strip()) == (0, text.strip())


@requirement("MLF-CREATE-001")
def test_create_returns_the_name(created: tuple[str, Any]) -> None:
    """What create_deployment returns has the deployment's name."""
    name, returned = created
    assert returned["name"] == name


@requirement("MLF-CREATE-002", "MLF-SETTING-001", "MLF-SETTING-002")
def test_create_ends_when_it_serves(
    deployment_client: Any,
    deployment_name: str,
    saved: Callable[[float], str],
    protocol: Protocol,
    latency: Callable[[str], AbstractContextManager[None]],
) -> None:
    """The first request after create_deployment is answered, by the server that TRITON_URL names."""
    with latency("create, ONNX model"):
        deployment_client.create_deployment(deployment_name, saved(2.0), flavor="onnx")
    assert adds(deployment_client, deployment_name) == 2.0
    assert protocol.is_ready(deployment_name)
    assert (protocol.server.model_repository / deployment_name).is_dir()
    with latency("delete, ONNX model"):
        deployment_client.delete_deployment(deployment_name)


@requirement("MLF-CREATE-004")
def test_create_without_flavor(
    deployment_client: Any, deployment_name: str, saved: Callable[[float], str]
) -> None:
    """The flavor of the model is found."""
    deployment_client.create_deployment(deployment_name, saved(3.0))
    assert adds(deployment_client, deployment_name) == 3.0


@requirement("MLF-CREATE-003")
def test_create_twice(module_client: Any, created: tuple[str, Any], saved: Callable[[float], str]) -> None:
    """A name that is taken is an MlflowException."""
    with pytest.raises(MlflowException):
        module_client.create_deployment(created[0], saved(9.0), flavor="onnx")


@requirement("MLF-CREATE-005")
def test_create_twice_changes_nothing(
    module_client: Any, created: tuple[str, Any], saved: Callable[[float], str], world: Callable[[], object]
) -> None:
    """A name that is taken keeps its model."""
    before = world()
    with pytest.raises(Exception, match=created[0]):
        module_client.create_deployment(created[0], saved(9.0), flavor="onnx")
    assert world() == before
    assert adds(module_client, created[0]) == 1.0


@requirement("MLF-UPDATE-001", "MLF-LIST-001")
def test_update(
    deployment_client: Any,
    deployment_name: str,
    saved: Callable[[float], str],
    latency: Callable[[str], AbstractContextManager[None]],
) -> None:
    """The first request after update_deployment is answered by the new model; the deployment is listed once."""
    deployment_client.create_deployment(deployment_name, saved(4.0), flavor="onnx")
    with latency("update, ONNX model"):
        deployment_client.update_deployment(deployment_name, saved(5.0), flavor="onnx")
    assert adds(deployment_client, deployment_name) == 5.0
    assert [it["name"] for it in deployment_client.list_deployments()].count(deployment_name) == 1


@requirement("MLF-UPDATE-002")
def test_update_without_flavor(
    deployment_client: Any, deployment_name: str, saved: Callable[[float], str]
) -> None:
    """The flavor of the new model is found."""
    deployment_client.create_deployment(deployment_name, saved(4.0), flavor="onnx")
    deployment_client.update_deployment(deployment_name, saved(6.0))
    assert adds(deployment_client, deployment_name) == 6.0


@requirement("MLF-LIST-002")
def test_list(module_client: Any, created: tuple[str, Any]) -> None:
    """A deployment is listed with state, model URI and flavor."""
    (entry,) = [it for it in module_client.list_deployments() if it["name"] == created[0]]
    assert (entry["state"], entry["flavor"]) == ("READY", "onnx")
    assert entry["mlflow_model_uri"]


@requirement("MLF-GET-001")
def test_get(module_client: Any, created: tuple[str, Any]) -> None:
    """What get_deployment returns has the deployment's name."""
    assert module_client.get_deployment(created[0])["name"] == created[0]


@requirement("MLF-GET-003")
def test_get_tells(module_client: Any, created: tuple[str, Any]) -> None:
    """What get_deployment returns has the version that answers, and where the model is from."""
    found = module_client.get_deployment(created[0])
    assert found["version"] == "1"
    assert found["mlflow_model_uri"]


@requirement("MLF-PREDICT-001")
def test_predict(
    module_client: Any, created: tuple[str, Any], latency: Callable[[str], AbstractContextManager[None]]
) -> None:
    """A prediction is a PredictionsResponse."""
    x = np.ones((1, 1), np.float32)
    for _ in range(20):
        with latency("predict, 1x1"):
            response = module_client.predict(created[0], {"x": x})
    assert isinstance(response, PredictionsResponse)


@pytest.fixture(scope="module")
def deleted(module_client: Any, saved: Callable[[float], str], protocol: Protocol) -> Iterator[str]:
    """The name of a deployment that was created and deleted."""
    name = f"deleted-{uuid.uuid4().hex[:8]}"
    module_client.create_deployment(name, saved(7.0), flavor="onnx")
    module_client.delete_deployment(name)
    yield name
    protocol.remove(name)
    shutil.rmtree(protocol.server.model_repository / name, ignore_errors=True)


@requirement("MLF-DELETE-001")
def test_deleted_is_not_listed(module_client: Any, deleted: str) -> None:
    """What was deleted is not listed."""
    assert deleted not in [it["name"] for it in module_client.list_deployments()]


@requirement("MLF-DELETE-003")
def test_deleted_does_not_serve(protocol: Protocol, deleted: str) -> None:
    """What was deleted is not ready, and answers nothing."""
    assert not protocol.is_ready(deleted)
    assert protocol.infer(deleted, request(tensor("x", "FP32", [1, 1], [1.0]))).status >= 400


@requirement("MLF-DELETE-004")
def test_deleted_leaves_no_files(protocol: Protocol, deleted: str) -> None:
    """What was deleted is not in the model repository."""
    assert not (protocol.server.model_repository / deleted).exists()


@requirement("MLF-LIFE-007")
def test_created_again(module_client: Any, deleted: str, saved: Callable[[float], str]) -> None:
    """What was deleted can be created again, and serves."""
    module_client.create_deployment(deleted, saved(1.0), flavor="onnx")
    try:
        assert adds(module_client, deleted) == 1.0
    finally:
        module_client.delete_deployment(deleted)


def missing(call: Callable[[], object]) -> None:
    """Assert that a call fails as MLflow wants."""
    with pytest.raises(MlflowException):
        call()


@requirement("MLF-UPDATE-003")
def test_update_of_nothing(
    deployment_client: Any, deployment_name: str, saved: Callable[[float], str]
) -> None:
    """An update of what is not deployed is an MlflowException."""
    missing(lambda: deployment_client.update_deployment(deployment_name, saved(1.0), flavor="onnx"))


@requirement("MLF-GET-002")
def test_get_of_nothing(deployment_client: Any, deployment_name: str) -> None:
    """What is not deployed cannot be got, which is an MlflowException."""
    missing(lambda: deployment_client.get_deployment(deployment_name))


@requirement("MLF-PREDICT-002")
def test_predict_of_nothing(deployment_client: Any, deployment_name: str) -> None:
    """What is not deployed predicts nothing, which is an MlflowException."""
    missing(lambda: deployment_client.predict(deployment_name, X))


@requirement("MLF-DELETE-002")
def test_delete_of_nothing(deployment_client: Any, deployment_name: str) -> None:
    """Deleting what is not deployed does nothing."""
    deployment_client.delete_deployment(deployment_name)


@requirement("MLF-SEC-008")
def test_delete_by_the_whole_name(
    deployment_client: Any, deployment_name: str, saved: Callable[[float], str], protocol: Protocol
) -> None:
    """Deleting a deployment leaves one alone whose name begins with that name."""
    longer = f"{deployment_name}2"
    deployment_client.create_deployment(longer, saved(8.0), flavor="onnx")
    deployment_client.create_deployment(deployment_name, saved(7.0), flavor="onnx")
    deployment_client.delete_deployment(deployment_name)
    assert adds(deployment_client, longer) == 8.0
    assert (protocol.server.model_repository / longer / "1").is_dir()


@requirement("MLF-SETTING-004")
def test_settings_are_told(deployment_client: Any, created: tuple[str, Any], protocol: Protocol) -> None:
    """get_deployment tells server and repository, and that the environment named them."""
    found = deployment_client.get_deployment(created[0])
    assert protocol.server.http_url in found["triton_url"]
    assert "TRITON_URL" in found["triton_url"]
    assert str(protocol.server.model_repository) in found["model_repository"]
    assert "TRITON_MODEL_REPO" in found["model_repository"]


@requirement("MLF-SETTING-003")
def test_target_uri(
    created: tuple[str, Any], target: str, protocol: Protocol, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The server that the target URI names is asked, whatever the environment says."""
    monkeypatch.setenv("TRITON_URL", "127.0.0.1:9")
    host = protocol.server.http_url.removeprefix("http://")
    client = mlflow.deployments.get_deploy_client(f"{target.partition(':')[0]}://{host}")
    assert adds(client, created[0]) == 1.0


@requirement("MLF-SETTING-008")
@pytest.mark.parametrize("rest", ["://host:port", "://127.0.0.1:8000?no_such_setting=1", ":8000"])
def test_malformed_target_uri(target: str, rest: str) -> None:
    """A target URI that names no server, or what there is not, is an MlflowException."""
    with pytest.raises(MlflowException):
        mlflow.deployments.get_deploy_client(f"{target.partition(':')[0]}{rest}")
