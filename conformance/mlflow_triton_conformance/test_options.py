"""Deployment options reach Triton: what the server's configuration is, what is on disk, and what is on record."""

from __future__ import annotations

import json
import tempfile
import urllib.request
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from click.testing import CliRunner
from mlflow.deployments.cli import commands
from mlflow.exceptions import MlflowException

from mlflow_triton_conformance import models
from mlflow_triton_conformance.models import answered

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from pytest_mlflow_triton.handles import PublishOnnx, PublishTriton, TritonServer

X = {"x": np.zeros((1, 1), np.float32)}


@pytest.fixture
def served(triton_server: TritonServer, deployment_name: str) -> Callable[[], dict[str, Any]]:
    """Ask the server for the deployment's configuration."""

    def ask() -> dict[str, Any]:
        url = f"{triton_server.http_url}/v2/models/{deployment_name}/config"
        with urllib.request.urlopen(url, timeout=10) as answer:
            return dict(json.load(answer))

    return ask


@pytest.mark.requirement(
    "MLF-OPTION-005", "MLF-OPTION-006", "MLF-OPTION-007", "MLF-OPTION-008", "MLF-OPTION-012"
)
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
    response = deployment_client.predict(deployment_name, {"x": np.ones((16, 1), np.float32)})
    assert response["outputs"]["y"].tolist() == [[2.0]] * 16
    got = deployment_client.get_deployment(deployment_name)
    assert (got["in_sync"], got["options"]) == (True, created["options"])


@pytest.mark.requirement("MLF-OPTION-009", "MLF-OPTION-010", "MLF-OPTION-011")
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


@pytest.mark.requirement("MLF-OPTION-002")
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


@pytest.mark.requirement("MLF-UPDATE-004", "MLF-OPTION-014")
@pytest.mark.slow
def test_update_with_options_alone(
    deployment_client: Any,
    deployment_name: str,
    publish_onnx: PublishOnnx,
    triton_server: TritonServer,
    served: Callable[[], dict[str, Any]],
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """Options without a model change just their fields: the files are those that are there, MLflow is not asked."""
    uri = publish_onnx(models.with_weights(np.zeros(1024 * 1024, np.float32)))
    first = deployment_client.create_deployment(
        deployment_name, uri, config={"max_batch_size": 8, "parameters": "a:1", "instance_count": 1}
    )
    directory = triton_server.model_repository / deployment_name
    (large,) = [path for path in (directory / "1").iterdir() if path.name != "model.onnx"]
    with monkeypatch.context() as away:
        away.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:1")
        second = deployment_client.update_deployment(
            deployment_name, config={"parameters": {"b": 2}, "max_queue_delay_microseconds": 7}
        )
        assert served()["max_batch_size"] == 8
        assert served()["dynamic_batching"]["max_queue_delay_microseconds"] == 7
        assert {"a", "b"} <= served()["parameters"].keys()
        third = deployment_client.update_deployment(deployment_name, config={"version": 5})
    assert second["options"] == first["options"] | {
        "parameters": {"a": "1", "b": "2"},
        "max_queue_delay_microseconds": 7,
    }
    assert (third["version"], third["options"]) == ("5", second["options"] | {"version": 5})
    origin = ("mlflow_model_uri", "model_name", "model_version", "model_id", "run_id", "flavor")
    assert [first[key] for key in origin] == [third[key] for key in origin]
    assert len({it["deployment_id"] for it in (first, second, third)}) == 3
    assert [path.name for path in directory.iterdir() if path.is_dir()] == ["5"]
    assert first["files"][f"1/{large.name}"] == third["files"][f"5/{large.name}"]
    got = deployment_client.get_deployment(deployment_name)
    assert (got["in_sync"], got["changed_files"]) == (True, [])
    caplog.clear()
    fourth = deployment_client.update_deployment(deployment_name, uri, config={"max_batch_size": 2})
    assert fourth["options"] == {"max_batch_size": 2}
    (message,) = [text for text in caplog.messages if "its own configuration" in text]
    assert "the options instance_count, max_queue_delay_microseconds, parameters, version of" in message


@pytest.mark.requirement("MLF-OPTION-003")
def test_options_alone_that_fail(
    deployment_client: Any, deployment_name: str, publish_onnx: PublishOnnx, world: Callable[[], object]
) -> None:
    """Options that the server refuses leave the deployment as it was, on disk and in service."""
    deployment_client.create_deployment(deployment_name, publish_onnx(models.constant(1.0)))
    before = world()
    with pytest.raises(MlflowException, match=r"execution_mode.* still serves "):
        deployment_client.update_deployment(deployment_name, config={"parameters": "execution_mode:7"})
    assert world() == before
    got = deployment_client.get_deployment(deployment_name)
    assert (got["in_sync"], got["options"]) == (True, {})


@pytest.mark.parametrize(
    "arguments",
    [
        pytest.param({"flavor": "onnx"}, marks=pytest.mark.requirement("MLF-UPDATE-005"), id="flavor alone"),
        pytest.param({}, marks=pytest.mark.requirement("MLF-UPDATE-006"), id="nothing"),
    ],
)
def test_update_of_nothing_new(
    deployment_client: Any,
    deployment_name: str,
    saved: Callable[[float], str],
    world: Callable[[], object],
    arguments: dict[str, str],
) -> None:
    """An update that names nothing to change is refused, and nothing is changed."""
    deployment_client.create_deployment(deployment_name, saved(1.0), flavor="onnx")
    before = world()
    with pytest.raises(MlflowException):
        deployment_client.update_deployment(deployment_name, **arguments)
    assert world() == before


@pytest.mark.requirement("MLF-OPTION-013")
@pytest.mark.slow
def test_options_alone_keep_what_was_changed_by_hand(
    deployment_client: Any,
    deployment_name: str,
    publish_triton: PublishTriton,
    triton_server: TritonServer,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """What somebody changed in the model repository stays, is told, and is on record from then on."""
    uri = publish_triton(models.write_python(tmp_path / "source", {1: 1}))
    created = deployment_client.create_deployment(deployment_name, uri)
    directory = triton_server.model_repository / deployment_name
    (directory / "labels.txt").write_text("other\n")
    updated = deployment_client.update_deployment(deployment_name, config={"instance_count": 2})
    assert f"Not as published, and kept as it is now: labels.txt of {deployment_name!r}." in caplog.messages
    assert (directory / "labels.txt").read_text() == "other\n"
    changed = {name for name in created["files"] if created["files"][name] != updated["files"][name]}
    assert changed == {"labels.txt", "config.pbtxt"}
    assert deployment_client.get_deployment(deployment_name)["in_sync"] is True


@pytest.mark.requirement("MLF-DRYRUN-001", "MLF-DRYRUN-002")
@pytest.mark.slow
def test_dry_run(
    deployment_client: Any,
    deployment_name: str,
    publish_triton: PublishTriton,
    triton_server: TritonServer,
    world: Callable[[], object],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A dry run says what the operation then does, file by file, and leaves everything as it is."""
    first = publish_triton(models.write_python(tmp_path / "first", {1: 1, 2: 2}))
    second = publish_triton(models.write_python(tmp_path / "second", {2: 5, 3: 3}))
    temporary = tmp_path / "temporary"
    temporary.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(temporary))
    client, name, dry = deployment_client, deployment_name, {"dry_run": "true"}
    directory = triton_server.model_repository / name

    def untouched(call: Callable[[], Any]) -> Any:
        before = world()
        plan = call()
        assert (world(), list(temporary.iterdir())) == (before, [])
        assert plan["dry_run"] is True
        return plan

    def digests() -> dict[str, str]:
        return dict(client.get_deployment(name)["files"])

    plan = untouched(lambda: client.create_deployment(name, first, config=dry))
    assert not directory.exists()
    client.create_deployment(name, first)
    old = digests()
    assert plan["files"] == {"added": old | {"mlflow-meta.json": None}, "changed": {}, "removed": {}}
    assert (plan["flavor"], plan["versions"]) == ("triton", [[], [1, 2]])
    assert plan["config"]["version_policy"] == [None, {"all": {}}]

    plan = untouched(lambda: client.update_deployment(name, config={"instance_count": 3, **dry}))
    assert plan["files"]["changed"].keys() == {"config.pbtxt", "mlflow-meta.json"}
    assert (plan["files"]["added"], plan["files"]["removed"]) == ({}, {})
    assert plan["config"] == {
        "instance_group": [[{"count": count, "kind": "KIND_CPU"}] for count in (1, 3)],
    }
    assert plan["options"] == {"instance_count": [None, 3]}

    plan = untouched(lambda: client.update_deployment(name, second, config=dry))
    client.update_deployment(name, second)
    new = digests()
    assert plan["files"] == {
        "added": {file: new[file] for file in new.keys() - old.keys()},
        "changed": {
            file: [old[file], new[file]] for file in new.keys() & old.keys() if old[file] != new[file]
        }
        | {"mlflow-meta.json": [None, None]},
        "removed": {file: old[file] for file in old.keys() - new.keys()},
    }
    assert (plan["versions"], plan["config"]) == ([[1, 2], [2, 3]], {})

    plan = untouched(lambda: client.delete_deployment(name, config=dry))
    assert plan["files"]["removed"] == new | {"mlflow-meta.json": None}
    with pytest.raises(MlflowException, match="exists already"):
        client.create_deployment(name, first, config=dry)

    (directory / "mlflow-meta.json").unlink()
    plan = untouched(lambda: client.create_deployment(name, second, config={"adopt": True, **dry}))
    assert plan["files"] == {"added": {"mlflow-meta.json": None}, "changed": {}, "removed": {}}
    client.create_deployment(name, second, config={"adopt": True})


@pytest.mark.requirement("MLF-DRYRUN-003")
def test_dry_run_of_the_command(
    deployment_name: str,
    deployment_client: Any,
    publish_triton: PublishTriton,
    world: Callable[[], object],
    target: str,
    tmp_path: Path,
) -> None:
    """On the command line a dry run prints what would change, and no word of having done it."""
    uri = publish_triton(models.write_python(tmp_path / "source", {1: 1}))
    before = world()
    arguments = ["-t", target, "--name", deployment_name, "-C", "dry_run=true"]
    result = CliRunner().invoke(commands, ["create", *arguments, "-m", uri, "-C", "warmup=1"])
    assert result.exit_code == 0, result.output
    head, *lines = result.stdout.splitlines()
    assert head == f"Dry run: nothing was changed. Create of {deployment_name!r} would mean:"
    assert f"  model: none -> {uri} (version 1)" in lines
    assert "  file added: mlflow-meta.json (the record)" in lines
    assert [line for line in lines if line.startswith("  options ")] == ["  options warmup: none -> 1"]
    assert "created" not in result.stdout
    result = CliRunner().invoke(commands, ["delete", *arguments])
    nothing = f"Dry run: nothing was changed. There is no deployment {deployment_name!r} to delete.\n"
    assert (result.exit_code, result.stdout) == (0, nothing)
    assert world() == before
    with pytest.raises(MlflowException, match="restore has no dry run"):
        deployment_client.restore([deployment_name], {"dry_run": True})


@pytest.mark.requirement("MLF-LIFE-008", "MLF-LIFE-009")
def test_keep_previous_of_a_model_without_configuration(
    deployment_client: Any, deployment_name: str, publish_onnx: PublishOnnx
) -> None:
    """What an update keeps does not keep Triton from finding out what kind of model has taken its place."""
    uri = publish_onnx(models.constant(1.0))
    deployment_client.create_deployment(deployment_name, uri)
    deployment_client.update_deployment(
        deployment_name, publish_onnx(models.constant(2.0)), config={"keep_previous": "true"}
    )
    assert answered(deployment_client.predict(deployment_name, X))["y"].tolist() == [[2.0]]
    assert deployment_client.rollback_deployment(deployment_name)["mlflow_model_uri"] == uri
    assert answered(deployment_client.predict(deployment_name, X))["y"].tolist() == [[1.0]]
