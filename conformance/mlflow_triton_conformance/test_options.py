"""Deployment options reach Triton: what the server's configuration is, what is on disk, and what is on record."""

from __future__ import annotations

import json
import urllib.request
from typing import TYPE_CHECKING, Any

import pytest
from mlflow.exceptions import MlflowException

from mlflow_triton_conformance import models

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from pytest_mlflow_triton.handles import PublishOnnx, PublishTriton, TritonServer


@pytest.fixture
def served(triton_server: TritonServer, deployment_name: str) -> Callable[[], dict[str, Any]]:
    """Ask the server for the deployment's configuration."""

    def ask() -> dict[str, Any]:
        url = f"{triton_server.http_url}/v2/models/{deployment_name}/config"
        with urllib.request.urlopen(url, timeout=10) as answer:
            return dict(json.load(answer))

    return ask


def test_options_of_a_model_without_configuration(
    deployment_client: Any,
    deployment_name: str,
    publish_onnx: PublishOnnx,
    served: Callable[[], dict[str, Any]],
) -> None:
    """An ONNX model that has no config.pbtxt is deployed with what the options say, and the rest is completed."""
    options = {"max_batch_size": 16, "instance_count": "1", "instance_kind": "cpu", "parameters": {"a": 1}}
    options |= {"max_queue_delay_microseconds": 200, "preferred_batch_size": [2, 4]}
    created = deployment_client.create_deployment(
        deployment_name, publish_onnx(models.constant(1.0)), config=options
    )
    config = served()
    assert config["max_batch_size"] == 16
    assert [(group["count"], group["kind"]) for group in config["instance_group"]] == [(1, "KIND_CPU")]
    assert config["dynamic_batching"]["max_queue_delay_microseconds"] == 200
    assert config["dynamic_batching"]["preferred_batch_size"] == [2, 4]
    assert config["parameters"]["a"] == {"string_value": "1"}
    assert [tensor["name"] for tensor in config["input"]] == ["x"]
    assert created["options"] == {
        "max_batch_size": 16,
        "instance_count": 1,
        "instance_kind": "KIND_CPU",
        "max_queue_delay_microseconds": 200,
        "preferred_batch_size": [2, 4],
        "parameters": {"a": "1"},
    }
    response = deployment_client.predict(deployment_name, {"x": [[1]] * 16})
    assert response["outputs"]["y"].tolist() == [[2.0]] * 16
    got = deployment_client.get_deployment(deployment_name)
    assert (got["in_sync"], got["options"]) == (True, created["options"])


def test_options_of_a_model_with_configuration(
    deployment_client: Any,
    deployment_name: str,
    publish_triton: PublishTriton,
    triton_server: TritonServer,
    served: Callable[[], dict[str, Any]],
    tmp_path: Path,
) -> None:
    """The fields that options name are changed in the model's config.pbtxt, and the model warms up."""
    directory = models.write_python(tmp_path / "source", {1: 1, 2: 2})
    deployment_client.create_deployment(
        deployment_name, publish_triton(directory), config={"version_policy": "specific:1", "warmup": "2"}
    )
    config = served()
    assert config["version_policy"] == {"specific": {"versions": [1]}}
    assert [(warmup["name"], warmup["count"]) for warmup in config["model_warmup"]] == [("mlflow", 2)]
    assert [output["label_filename"] for output in config["output"]] == ["labels.txt"]
    assert deployment_client.get_deployment(deployment_name)["version"] == "1"
    written = (triton_server.model_repository / deployment_name / "config.pbtxt").read_text()
    assert "specific" in written
    assert "mlflow.deployment_id" not in written


def test_options_that_do_not_fit(
    deployment_client: Any,
    deployment_name: str,
    publish_triton: PublishTriton,
    world: Callable[[], object],
    tmp_path: Path,
) -> None:
    """Options that contradict the model are refused, all of them at once, before anything is touched."""
    uri = publish_triton(models.write_python(tmp_path / "source", {1: 1}))
    before = world()
    with pytest.raises(MlflowException, match=r"do not fit.*gpus=0 .*specific lists 9") as caught:
        deployment_client.create_deployment(
            deployment_name, uri, config={"gpus": "0", "version_policy": "specific:9"}
        )
    assert caught.value.error_code == "INVALID_PARAMETER_VALUE"
    assert world() == before
