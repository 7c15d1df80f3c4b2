"""The flavor ``onnx``: one ONNX file, its external data, a config.pbtxt and label files if there are any."""

from __future__ import annotations

import json
import logging
import os
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any

from mlflow_triton.errors import InvalidModel
from mlflow_triton.models.contents import INPUT_NAMES, Contents
from mlflow_triton.models.onnx_file import external_data
from mlflow_triton.models.resolve import run_artifacts
from mlflow_triton.models.tracking import foreign_errors
from mlflow_triton.small_file import read_small

if TYPE_CHECKING:
    from collections.abc import Iterable

    from mlflow_triton.models.resolve import ResolvedModel

__all__ = ["FLAVOR", "contents"]

log = logging.getLogger(__name__)

FLAVOR = "onnx"
CONFIG = "config.pbtxt"
#: Text files that MLflow itself writes beside a model; any other one may hold labels.
MLFLOW_TEXT = frozenset({"requirements.txt", "constraints.txt"})
#: Where a config.pbtxt can be inside a logged model, first one first: `log_model_artifact(id, file)`,
#: the same with "triton", and `mlflow.onnx.log_model(…, extra_files=[file])`.
CONFIG_DIRECTORIES = ("", "triton", "extra_files")


def contents(model: ResolvedModel, *, version: int, run_files: Path) -> Contents:
    """Lay out an ``onnx`` model as one Triton version.

    A config.pbtxt is looked for in the model itself (see `CONFIG_DIRECTORIES`), then among the
    artifacts of the run that logged it; without one, a minimal config lets the server complete it.

    Args:
        model: The resolved model.
        version: Number of the version directory.
        run_files: An empty directory, for what is fetched from the run.

    Raises:
        InvalidModel: The ONNX file or a part of its external data is missing or outside the model.
        ServerUnavailable: The run's artifacts cannot be read.
    """
    flavor = model.flavors[FLAVOR]
    source = _model_file(model, flavor)
    extras = _extras(path for directory in CONFIG_DIRECTORIES for path in _listed(model.path / directory))
    if PurePosixPath(CONFIG) not in extras:
        with foreign_errors(f"The artifacts of the run that logged {model.origin.uri}"):
            attached = run_artifacts(model, frozenset({".pbtxt", ".txt"}), run_files)
        if attached:
            log.info(
                "Taking %s from the run that logged the model.", ", ".join(path.name for path in attached)
            )
            extras = {**_extras(attached), **extras}
    files: dict[PurePosixPath, Path] = {}
    target = PurePosixPath(str(version))
    try:
        locations = external_data(source)
    except InvalidModel as error:
        raise InvalidModel(f"{model.origin.uri}: {error.message}") from None
    for location in locations:
        data = source.parent / location
        if data.is_symlink() or not data.is_file():
            raise InvalidModel(
                f"{model.origin.uri} is incomplete: {source.name} keeps tensors in {str(location)!r}, which is not "
                "among its artifacts. Nothing was changed. Log it again from a freshly loaded model: logging one "
                "ModelProto twice loses the data."
            )
        files[target / location] = data
    files[target / source.name] = source
    if (config := extras.pop(PurePosixPath(CONFIG), None)) is not None:
        try:
            return Contents({**files, **extras}, read_small(config))
        except OSError as error:
            raise InvalidModel(
                f"{model.origin.uri}: its {CONFIG} cannot be read: {error.strerror}. Nothing was changed."
            ) from None
    generated = f'backend: "onnxruntime"\ndefault_model_filename: "{source.name}"\n'
    if model.input_names:
        # JSON in ASCII within JSON, whose escapes are protobuf's, too.
        names = json.dumps(json.dumps(model.input_names))
        generated += f'parameters {{ key: "{INPUT_NAMES}" value {{ string_value: {names} }} }}\n'
    return Contents({**files, **extras}, generated.encode())


def _model_file(model: ResolvedModel, flavor: dict[str, Any]) -> Path:
    name = flavor.get("data")
    if not isinstance(name, str) or not name:
        raise InvalidModel(
            f"{model.origin.uri}: MLmodel does not say which file the onnx model is (flavors.onnx.data)."
        )
    path = model.path / name
    if (
        "\0" in name
        or path.is_symlink()
        or not Path(os.path.realpath(path)).is_relative_to(os.path.realpath(model.path))
    ):
        raise InvalidModel(f"{model.origin.uri}: MLmodel names {name!r}, which is outside of the model.")
    if path.is_dir():
        found = sorted(path.glob("*.onnx"))
        if len(found) == 1:
            return found[0]
    if not path.is_file():
        raise InvalidModel(
            f"{model.origin.uri}: MLmodel names the file {name!r}, which is not there. Log the model again."
        )
    return path


def _listed(directory: Path) -> list[Path]:
    return sorted(directory.iterdir()) if directory.is_dir() else []


def _extras(paths: Iterable[Path]) -> dict[PurePosixPath, Path]:
    """Pick config.pbtxt and label files; the first one of a name wins."""
    extras: dict[PurePosixPath, Path] = {}
    for path in paths:
        wanted = path.name == CONFIG or (path.suffix == ".txt" and path.name not in MLFLOW_TEXT)
        if wanted and path.is_file() and not path.is_symlink():
            extras.setdefault(PurePosixPath(path.name), path)
    return extras
