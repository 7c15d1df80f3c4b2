"""The example, deployed as NVIDIA's documentation does it, with both flavors, from the CLI and from Python."""

from __future__ import annotations

import json
import uuid
from typing import TYPE_CHECKING, Any

import mlflow
import numpy as np
import pytest
from click.testing import CliRunner, Result
from mlflow.deployments import cli

from mlflow_triton_conformance.cases import cases
from mlflow_triton_conformance.models import answered
from pytest_mlflow_triton import example

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from pytest_mlflow_triton.handles import PublishOnnx, PublishTriton

requirement = pytest.mark.requirement
INPUTS = {name: np.array(value, np.float32) for name, value in example.INPUT["inputs"].items()}
X = {"x": np.zeros((1, 1), np.float32)}


@pytest.fixture
def publish(
    publish_onnx: PublishOnnx, publish_triton: PublishTriton, example_directory: Path
) -> Callable[[str], str]:
    """Register the example with a flavor, each time as a new version of one model; return its URI."""
    names = {flavor: f"example-{flavor}-{uuid.uuid4().hex[:8]}" for flavor in ("onnx", "triton")}

    def register(flavor: str) -> str:
        if flavor == "triton":
            return publish_triton(example_directory, name=names[flavor])
        return publish_onnx(example.build(), name=names[flavor], config=example.CONFIG)

    return register


def check_answer(client: Any, name: str) -> None:
    """Ask a deployment of the example, and compare with expected_output.json."""
    found = answered(client.predict(name, INPUTS))
    assert {key: array.tolist() for key, array in found.items()} == example.EXPECTED_OUTPUT["outputs"]


@requirement("MLF-URI-001")
@pytest.mark.parametrize("flavor", cases({"onnx": "MLF-FLAVOR-001", "triton": "MLF-FLAVOR-002"}))
def test_python(
    deployment_client: Any, deployment_name: str, publish: Callable[[str], str], flavor: str
) -> None:
    """The documented Python calls create, list, get, predict, update and delete a deployment."""
    client, name = deployment_client, deployment_name
    first, second = publish(flavor), publish(flavor)
    assert client.create_deployment(name, first, flavor=flavor)["name"] == name
    (listed,) = [entry for entry in client.list_deployments() if entry["name"] == name]
    assert (listed["state"], listed["mlflow_model_uri"], listed["flavor"]) == ("READY", first, flavor)
    check_answer(client, name)
    assert client.update_deployment(name, second, flavor=flavor)["flavor"] == flavor
    assert client.get_deployment(name)["mlflow_model_uri"] == second
    check_answer(client, name)
    client.delete_deployment(name)
    assert name not in [entry["name"] for entry in client.list_deployments()]


@requirement("MLF-ONNX-004", "MLF-TRITON-002")
@pytest.mark.parametrize("flavor", ["onnx", "triton"])
def test_config_is_kept(
    deployment_client: Any,
    deployment_name: str,
    publish: Callable[[str], str],
    flavor: str,
    triton_server: Any,
) -> None:
    """config.pbtxt arrives byte for byte, also when it was attached with mlflow.log_artifact."""
    deployment_client.create_deployment(deployment_name, publish(flavor), flavor=flavor)
    deployed = triton_server.model_repository / deployment_name / "config.pbtxt"
    assert deployed.read_text() == example.CONFIG


def deployments(verb: str, target: str, *arguments: str) -> Result:
    """Run ``mlflow deployments VERB``."""
    return CliRunner().invoke(cli.commands, [verb, "-t", target, *arguments])


@pytest.fixture(scope="module")
def served(module_client: Any, onnx_backend: None, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The name of a deployment of the example, for the commands that change nothing."""
    path = tmp_path_factory.mktemp("example") / "model"
    mlflow.onnx.save_model(example.build(), str(path), pip_requirements=["onnx"])
    (path / "config.pbtxt").write_text(example.CONFIG)
    name = f"cli-{uuid.uuid4().hex[:8]}"
    module_client.create_deployment(name, str(path), flavor="onnx")
    yield name
    module_client.delete_deployment(name)


@pytest.fixture
def input_path(tmp_path: Path) -> str:
    """The documented input.json."""
    path = tmp_path / "input.json"
    path.write_text(json.dumps(example.INPUT))
    return str(path)


@requirement("MLF-CLI-001")
@pytest.mark.parametrize("flavor", ["onnx", "triton"])
def test_create_command(
    deployment_client: Any, deployment_name: str, publish: Callable[[str], str], flavor: str, target: str
) -> None:
    """Create deploys, and says so."""
    result = deployments(
        "create", target, "--flavor", flavor, "--name", deployment_name, "-m", publish(flavor)
    )
    assert result.exit_code == 0, result.output
    assert f"{flavor} deployment {deployment_name} is created" in result.stdout.splitlines()
    check_answer(deployment_client, deployment_name)


@requirement("MLF-CLI-002")
def test_list_command(deployment_client: Any, served: str, target: str) -> None:
    """List prints each deployment."""
    result = deployments("list", target)
    assert result.exit_code == 0, result.output
    assert result.stdout.count(f"'name': '{served}'") == 1


@requirement("MLF-CLI-003")
def test_get_command(deployment_client: Any, served: str, target: str) -> None:
    """Get prints a line for each key."""
    result = deployments("get", target, "--name", served)
    assert result.exit_code == 0, result.output
    lines = result.stdout.splitlines()
    assert lines.count(f"name: {served}") == 1
    assert lines.count("flavor: onnx") == 1


@requirement("MLF-CLI-004")
def test_predict_command(deployment_client: Any, served: str, target: str, input_path: str) -> None:
    """Predict prints expected_output.json, and nothing else."""
    result = deployments("predict", target, "--name", served, "--input-path", input_path)
    assert result.exit_code == 0, result.output
    assert json.loads(result.stdout) == example.EXPECTED_OUTPUT


@requirement("MLF-CLI-005")
def test_predict_command_with_a_file(
    deployment_client: Any, served: str, target: str, input_path: str, tmp_path: Path
) -> None:
    """Predict writes expected_output.json to a file."""
    written = tmp_path / "output.json"
    to = ("--input-path", input_path, "--output-path", str(written))
    result = deployments("predict", target, "--name", served, *to)
    assert result.exit_code == 0, result.output
    assert json.loads(written.read_text()) == example.EXPECTED_OUTPUT


@pytest.fixture
def deployed(deployment_client: Any, deployment_name: str, saved: Callable[[float], str]) -> str:
    """The name of a deployment that adds one."""
    deployment_client.create_deployment(deployment_name, saved(1.0), flavor="onnx")
    return deployment_name


@requirement("MLF-CLI-006")
def test_update_command(
    deployment_client: Any, deployed: str, saved: Callable[[float], str], target: str
) -> None:
    """Update puts the new model in, and says so."""
    result = deployments("update", target, "--flavor", "onnx", "--name", deployed, "-m", saved(2.0))
    assert result.exit_code == 0, result.output
    assert f"Deployment {deployed} is updated (with flavor onnx)" in result.stdout.splitlines()
    assert answered(deployment_client.predict(deployed, X))["y"].tolist() == [[2.0]]


@requirement("MLF-CLI-007")
def test_delete_command(deployment_client: Any, deployed: str, target: str) -> None:
    """Delete deletes, and says so."""
    result = deployments("delete", target, "--name", deployed)
    assert result.exit_code == 0, result.output
    assert f"Deployment {deployed} is deleted" in result.stdout.splitlines()
    assert deployed not in [entry["name"] for entry in deployment_client.list_deployments()]


@requirement("MLF-OBS-002")
def test_stdout(
    deployment_client: Any, deployment_name: str, saved: Callable[[float], str], target: str
) -> None:
    """The commands print on stdout what MLflow prints, and nothing else."""
    name = ("--name", deployment_name)
    result = deployments("create", target, "--flavor", "onnx", *name, "-m", saved(1.0))
    assert result.stdout == f"\nonnx deployment {deployment_name} is created\n", result.output
    result = deployments("delete", target, *name)
    assert result.stdout.strip() == f"Deployment {deployment_name} is deleted", result.output
