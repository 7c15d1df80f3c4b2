"""What reaches Triton of an MLflow model: all of it, nothing else, and with its origin on record."""

from __future__ import annotations

import hashlib
import json
import uuid
from pathlib import Path
from typing import TYPE_CHECKING, Any

import mlflow
import numpy as np
import onnx
import pytest
from mlflow.exceptions import MlflowException

from mlflow_triton_conformance import models
from mlflow_triton_conformance.cases import cases
from mlflow_triton_conformance.models import answered

if TYPE_CHECKING:
    from collections.abc import Iterator

    from pytest_mlflow_triton.handles import PublishOnnx, PublishTriton, TritonServer


def adds(client: Any, name: str) -> float:
    """Ask a deployment of `models.constant` what it adds."""
    return float(answered(client.predict(name, {"x": np.zeros((1, 1), np.float32)}))["y"][0][0])


@pytest.fixture
def deployed(triton_server: TritonServer, deployment_name: str) -> Path:
    """The directory in the model repository that the test's deployment gets."""
    return triton_server.model_repository / deployment_name


@pytest.mark.requirement("MLF-ONNX-002")
def test_external_data(
    deployment_client: Any, deployment_name: str, publish_onnx: PublishOnnx, deployed: Path
) -> None:
    """An ONNX model whose 8 MB of weights MLflow keeps in a file beside it deploys and predicts."""
    weights = np.arange(2 * 1024 * 1024, dtype=np.float32)
    uri = publish_onnx(models.with_weights(weights))
    deployment_client.create_deployment(deployment_name, uri, flavor="onnx")
    (data,) = [path for path in (deployed / "1").iterdir() if path.name != "model.onnx"]
    assert data.stat().st_size == weights.nbytes == 8 * 1024 * 1024
    x = np.ones((1, len(weights)), np.float32)
    response = deployment_client.predict(deployment_name, {"x": x})
    np.testing.assert_array_equal(weights[None] + 1, answered(response)["y"], strict=True)


@pytest.mark.requirement("MLF-ONNX-003")
@pytest.mark.slow
def test_external_data_missing(
    deployment_client: Any, deployment_name: str, publish_onnx: PublishOnnx, tmp_path: Path, deployed: Path
) -> None:
    """A model whose external data is missing is refused by the name of that file, before anything is touched."""
    uri = publish_onnx(models.with_weights(np.zeros(1024, np.float32)))
    local = Path(mlflow.artifacts.download_artifacts(uri, dst_path=str(tmp_path)))
    (initializer,) = onnx.load(local / "model.onnx", load_external_data=False).graph.initializer
    data = local / next(entry.value for entry in initializer.external_data if entry.key == "location")
    data.unlink()
    with pytest.raises(MlflowException, match=data.name) as caught:
        deployment_client.create_deployment(deployment_name, str(local), flavor="onnx")
    assert caught.value.error_code == "INVALID_PARAMETER_VALUE"
    assert not deployed.exists()


@pytest.mark.requirement("MLF-ONNX-005", "MLF-ONNX-007")
@pytest.mark.slow
@pytest.mark.parametrize("kept", ["root", "triton", "extra_files"])
def test_config_found_in_the_model(
    deployment_client: Any,
    deployment_name: str,
    publish_onnx: PublishOnnx,
    deployed: Path,
    tmp_path: Path,
    kept: str,
) -> None:
    """A config.pbtxt and label files inside of the logged model are taken, from each place where MLflow keeps such."""
    uri = publish_onnx(models.constant(1.0))
    local = Path(mlflow.artifacts.download_artifacts(uri, dst_path=str(tmp_path / "model")))
    config = (
        'backend: "onnxruntime"\nmax_batch_size: 3\n'
        'output [ { name: "y" data_type: TYPE_FP32 dims: [ 1 ] label_filename: "names.txt" } ]\n'
    )
    place = local if kept == "root" else local / kept
    place.mkdir(exist_ok=True)
    (place / "config.pbtxt").write_text(config)
    (place / "names.txt").write_text("one\n")
    deployment_client.create_deployment(deployment_name, str(local), flavor="onnx")
    assert (deployed / "config.pbtxt").read_text() == config
    assert (deployed / "names.txt").read_text() == "one\n"
    assert not (deployed / "requirements.txt").exists()


@pytest.mark.requirement("MLF-ONNX-006")
@pytest.mark.slow
def test_no_config(
    deployment_client: Any, deployment_name: str, publish_onnx: PublishOnnx, deployed: Path
) -> None:
    """A model without a config.pbtxt gets one that lets the server complete it."""
    deployment_client.create_deployment(deployment_name, publish_onnx(models.constant(2.0)), flavor="onnx")
    assert 'backend: "onnxruntime"' in (deployed / "config.pbtxt").read_text()
    assert adds(deployment_client, deployment_name) == 2.0


@pytest.mark.requirement("MLF-OPTION-004")
@pytest.mark.slow
def test_version_option(
    deployment_client: Any, deployment_name: str, publish_onnx: PublishOnnx, deployed: Path
) -> None:
    """`-C version=7` deploys an onnx model as Triton's version 7."""
    uri = publish_onnx(models.constant(2.0))
    result = deployment_client.create_deployment(deployment_name, uri, flavor="onnx", config={"version": "7"})
    assert result["version"] == "7"
    assert (deployed / "7" / "model.onnx").is_file()
    assert not (deployed / "1").exists()


@pytest.fixture(scope="module")
def several(
    module_client: Any, triton_server: TritonServer, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[tuple[Path, Path]]:
    """A model directory with the versions 1 and 3, and where it was deployed."""
    from mlflow_triton import flavor  # noqa: PLC0415 - slow, and a server alone does not need it

    directory = models.write_python(tmp_path_factory.mktemp("source") / "several", {1: 10, 3: 30})
    saved = tmp_path_factory.mktemp("saved") / "model"
    flavor.save_model(directory, saved)
    name = f"several-{uuid.uuid4().hex[:8]}"
    module_client.create_deployment(name, str(saved), flavor="triton")
    yield directory, triton_server.model_repository / name
    module_client.delete_deployment(name)


@pytest.mark.requirement("MLF-TRITON-001")
def test_whole_triton_directory(several: tuple[Path, Path]) -> None:
    """A triton model arrives with every version, label file and nested folder."""
    directory, deployed = several
    for source in (path for path in directory.rglob("*") if path.is_file()):
        assert (deployed / source.relative_to(directory)).read_bytes() == source.read_bytes()


@pytest.mark.requirement("MLF-TRITON-003")
def test_the_highest_version(module_client: Any, several: tuple[Path, Path]) -> None:
    """The highest version answers, and list and get tell that one."""
    name = several[1].name
    answer = answered(module_client.predict(name, {"x": np.zeros(1, np.int32)}))
    assert answer["y"].tolist() == [3030]
    (listed,) = [entry for entry in module_client.list_deployments() if entry["name"] == name]
    assert (listed["version"], module_client.get_deployment(name)["version"]) == ("3", "3")


@pytest.mark.requirement("MLF-TRITON-004")
@pytest.mark.slow
def test_named_directory_is_taken(
    deployment_client: Any,
    deployment_name: str,
    publish_triton: PublishTriton,
    deployed: Path,
    tmp_path: Path,
) -> None:
    """The directory that MLmodel names is deployed, and not another one beside it."""
    uri = publish_triton(models.write_python(tmp_path / "wanted", {1: 1}))
    local = Path(mlflow.artifacts.download_artifacts(uri, dst_path=str(tmp_path / "model")))
    models.write_python(local / "a_decoy", {1: 666})
    deployment_client.create_deployment(deployment_name, str(local), flavor="triton")
    assert (deployed / "1" / "assets" / "value.txt").read_text() == "1"


@pytest.mark.requirement("MLF-LIFE-005")
@pytest.mark.slow
def test_nothing_survives_an_update(
    deployment_client: Any,
    deployment_name: str,
    publish_triton: PublishTriton,
    publish_onnx: PublishOnnx,
    deployed: Path,
    tmp_path: Path,
) -> None:
    """An update to a model of another flavor leaves no version, label or config of the old one."""
    old = publish_triton(models.write_python(tmp_path / "old", {1: 1, 2: 2}))
    deployment_client.create_deployment(deployment_name, old, flavor="triton")
    deployment_client.update_deployment(deployment_name, publish_onnx(models.constant(5.0)), flavor="onnx")
    found = {str(path.relative_to(deployed)) for path in deployed.rglob("*") if path.is_file()}
    assert found == {"config.pbtxt", "mlflow-meta.json", "1/model.onnx"}
    assert adds(deployment_client, deployment_name) == 5.0


@pytest.mark.requirement("MLF-LIFE-004")
def test_back_to_an_older_model(
    deployment_client: Any, deployment_name: str, publish_onnx: PublishOnnx
) -> None:
    """Going back to an older version serves the older model: Triton alone would miss it."""
    older, newer = publish_onnx(models.constant(1.0)), publish_onnx(models.constant(2.0))
    deployment_client.create_deployment(deployment_name, older, flavor="onnx")
    for uri, expected in [(newer, 2.0), (older, 1.0), (newer, 2.0)]:
        deployment_client.update_deployment(deployment_name, uri, flavor="onnx")
        assert adds(deployment_client, deployment_name) == expected


@pytest.mark.requirement("MLF-DELETE-003", "MLF-DELETE-004")
@pytest.mark.slow
def test_delete_leaves_nothing(
    deployment_client: Any, deployment_name: str, publish_onnx: PublishOnnx, deployed: Path
) -> None:
    """A deletion unloads the model, removes its directory, and may be repeated."""
    deployment_client.create_deployment(deployment_name, publish_onnx(models.constant(1.0)), flavor="onnx")
    deployment_client.delete_deployment(deployment_name)
    assert not deployed.exists()
    with pytest.raises(MlflowException) as caught:
        adds(deployment_client, deployment_name)
    assert caught.value.error_code == "RESOURCE_DOES_NOT_EXIST"
    deployment_client.delete_deployment(deployment_name)


@pytest.mark.requirement("MLF-RECORD-001", "MLF-RECORD-002", "MLF-RECORD-003")
@pytest.mark.slow
def test_record(
    deployment_client: Any, deployment_name: str, publish_onnx: PublishOnnx, deployed: Path
) -> None:
    """The record has NVIDIA's keys, the version that an alias meant, and the digest of each file."""
    uri = publish_onnx(models.constant(1.0))
    _, registered, version = uri.replace(":", "").split("/")
    mlflow.MlflowClient().set_registered_model_alias(registered, "champion", version)
    alias = f"models:/{registered}@champion"
    deployment_client.create_deployment(deployment_name, alias, flavor="onnx")
    record = json.loads((deployed / "mlflow-meta.json").read_text())
    assert record["name"] == deployment_name
    assert record["triton_model_path"] == str(deployed)
    assert record["mlflow_model_uri"] == alias
    assert record["flavor"] == "onnx"
    assert (record["model_name"], record["model_version"]) == (registered, version)
    files = {"1/model.onnx", "config.pbtxt"}
    assert record["files"] == {
        file: f"sha256:{hashlib.sha256((deployed / file).read_bytes()).hexdigest()}" for file in files
    }
    run = mlflow.MlflowClient().get_model_version(registered, version).run_id
    assert record["run_id"] == run
    assert deployment_client.get_deployment(deployment_name)["in_sync"] is True


@pytest.mark.slow
@pytest.mark.parametrize(
    "form",
    cases(
        {
            "models:/{name}/latest": "MLF-URI-003",
            "models:/{name}@alias": "MLF-URI-002",
            "{path}": "MLF-URI-004 MLF-URI-005",
        }
    ),
)
def test_model_uris(
    deployment_client: Any, deployment_name: str, publish_onnx: PublishOnnx, tmp_path: Path, form: str
) -> None:
    """A model is found by version, alias, and path; the URI's own directory stays as it is."""
    uri = publish_onnx(models.constant(4.0))
    name, version = uri.removeprefix("models:/").split("/")
    mlflow.MlflowClient().set_registered_model_alias(name, "alias", version)
    path = tmp_path / "saved"
    mlflow.onnx.save_model(models.constant(4.0), str(path), pip_requirements=["onnx"])
    before = sorted(path.rglob("*"))
    deployment_client.create_deployment(deployment_name, form.format(name=name, path=path), flavor="onnx")
    assert adds(deployment_client, deployment_name) == 4.0
    assert sorted(path.rglob("*")) == before


@pytest.mark.requirement("MLF-ONNX-001")
@pytest.mark.slow
def test_onnx_file_is_the_published_one(
    deployment_client: Any, deployment_name: str, publish_onnx: PublishOnnx, deployed: Path
) -> None:
    """The deployed file is the model that was published, node for node."""
    model = models.constant(9.0)
    deployment_client.create_deployment(deployment_name, publish_onnx(model), flavor="onnx")
    assert onnx.load(deployed / "1" / "model.onnx") == model
