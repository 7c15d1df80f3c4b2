"""The example, deployed as NVIDIA's documentation does it, with both flavors, from the CLI and from Python."""

from __future__ import annotations

import json
import os
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from click.testing import CliRunner, Result
from mlflow.deployments import cli

from pytest_mlflow_triton import example

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from pytest_mlflow_triton.handles import PublishOnnx, PublishTriton


@pytest.fixture(params=["triton", "onnx"])
def published(
    request: pytest.FixtureRequest,
    publish_onnx: PublishOnnx,
    publish_triton: PublishTriton,
    example_directory: Path,
) -> tuple[str, Callable[[], str]]:
    """A flavor, and a function that registers the example with it as a new version of one model."""
    name = f"example-{request.node.name[-8:].strip('[]')}"
    if request.param == "triton":
        return "triton", lambda: publish_triton(example_directory, name=name)
    return "onnx", lambda: publish_onnx(example.build(), name=name, config=example.CONFIG)


def deployments(*arguments: str) -> Result:
    """Run ``mlflow deployments ARGUMENTS``."""
    return CliRunner().invoke(cli.commands, arguments)


@pytest.fixture
def cli_name(deployment_client: Any, deployment_name: str) -> str:
    """A name that is undeployed afterwards, for the CLI (`deployment_client` set the environment)."""
    return deployment_name


@pytest.mark.requirement("MLF-FLAVOR-001", "MLF-FLAVOR-002", "MLF-URI-001", "MLF-TENSOR-002")
def test_python(
    deployment_client: Any, deployment_name: str, published: tuple[str, Callable[[], str]]
) -> None:
    """The documented Python calls create, list, get, predict, update and delete a deployment."""
    flavor, publish = published
    first, second = publish(), publish()
    created = deployment_client.create_deployment(deployment_name, first, flavor=flavor)
    assert (created["name"], created["flavor"]) == (deployment_name, flavor)

    (listed,) = [entry for entry in deployment_client.list_deployments() if entry["name"] == deployment_name]
    assert (listed["state"], listed["mlflow_model_uri"], listed["flavor"]) == ("READY", first, flavor)
    got = deployment_client.get_deployment(deployment_name)
    assert got["version"] == "1"
    for key, variable in [
        ("triton_url", "TRITON_URL"),
        ("model_repository", "TRITON_MODEL_REPO"),
        ("mlflow_tracking_uri", "MLFLOW_TRACKING_URI"),
    ]:
        assert got[key] == f"{os.environ[variable]} (from environment variable {variable})"

    inputs = {name: np.array(value, np.float32) for name, value in example.INPUT["inputs"].items()}
    outputs = deployment_client.predict(deployment_name, inputs)["outputs"]
    for name, expected in example.EXPECTED_OUTPUT["outputs"].items():
        assert isinstance(outputs[name], np.ndarray)
        np.testing.assert_array_equal(np.array(expected, np.int32), outputs[name], strict=True)

    assert deployment_client.update_deployment(deployment_name, second, flavor=flavor)["flavor"] == flavor
    assert deployment_client.get_deployment(deployment_name)["mlflow_model_uri"] == second

    deployment_client.delete_deployment(deployment_name)
    assert deployment_name not in [entry["name"] for entry in deployment_client.list_deployments()]


@pytest.mark.requirement(
    "MLF-CLI-001",
    "MLF-CLI-002",
    "MLF-CLI-003",
    "MLF-CLI-004",
    "MLF-CLI-005",
    "MLF-CLI-006",
    "MLF-CLI-007",
    "MLF-OBS-002",
)
def test_cli(cli_name: str, published: tuple[str, Callable[[], str]], tmp_path: Path, target: str) -> None:
    """The documented commands do the same, and the written prediction equals expected_output.json."""
    flavor, publish = published
    first, second = publish(), publish()
    given = tmp_path / "input.json"
    written = tmp_path / "output.json"
    given.write_text(json.dumps(example.INPUT))
    to = ("-t", target)

    result = deployments("create", *to, "--flavor", flavor, "--name", cli_name, "-m", first)
    assert result.stdout.strip() == f"{flavor} deployment {cli_name} is created", result.output
    result = deployments("list", *to)
    assert result.exit_code == 0
    assert result.stdout.count(f"'name': '{cli_name}', 'version': '1', 'state': 'READY'") == 1
    result = deployments("get", *to, "--name", cli_name)
    assert result.stdout.splitlines().count(f"name: {cli_name}") == 1
    result = deployments(
        "predict", *to, "--name", cli_name, "--input-path", str(given), "--output-path", str(written)
    )
    assert result.exit_code == 0, result.output
    assert json.loads(written.read_text()) == example.EXPECTED_OUTPUT
    result = deployments("predict", *to, "--name", cli_name, "--input-path", str(given))
    assert json.loads(result.stdout) == example.EXPECTED_OUTPUT
    result = deployments("update", *to, "--flavor", flavor, "--name", cli_name, "-m", second)
    assert result.stdout.strip() == f"Deployment {cli_name} is updated (with flavor {flavor})", result.output
    assert f"mlflow_model_uri: {second}" in deployments("get", *to, "--name", cli_name).stdout.splitlines()
    result = deployments("delete", *to, "--name", cli_name)
    assert result.stdout.strip() == f"Deployment {cli_name} is deleted", result.output
    assert f"'{cli_name}'" not in deployments("list", *to).stdout


@pytest.mark.requirement("MLF-ONNX-004", "MLF-TRITON-002")
def test_config_is_kept(
    deployment_client: Any,
    deployment_name: str,
    published: tuple[str, Callable[[], str]],
    triton_server: Any,
) -> None:
    """config.pbtxt arrives byte for byte, also when it was attached with mlflow.log_artifact."""
    flavor, publish = published
    deployment_client.create_deployment(deployment_name, publish(), flavor=flavor)
    deployed = triton_server.model_repository / deployment_name / "config.pbtxt"
    assert deployed.read_text() == example.CONFIG
