"""MLflow's input example of a model, as it was logged with it."""

from __future__ import annotations

import json
import logging
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any

import mlflow
from mlflow.models import Model

from mlflow_triton.errors import InvalidModel, TritonPluginError
from mlflow_triton.models.resolve import SERVED, ResolvedModel
from mlflow_triton.models.tracking import first_words, foreign_errors, require_server

if TYPE_CHECKING:
    from mlflow_triton.models.resolve import Origin

__all__ = ["Example", "input_example", "logged_example"]

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Example:
    """An input that the model's author gave as an example.

    Attributes:
        value: What the author passed: a DataFrame, an array, a dict of arrays, or what JSON makes of
            other things.
    """

    value: Any


def input_example(model: ResolvedModel) -> Example | None:
    """Read a model's input example; ``None``: it was logged without one.

    Args:
        model: The resolved model; its files must still be in place.

    Raises:
        InvalidModel: MLmodel names an example that is not there, leads out of the model, or cannot be read.
    """
    try:
        logged = Model.load(str(model.path / "MLmodel"))
        info = logged.saved_input_example_info
        if not info:
            return None
        name = info["artifact_path"]
        if not isinstance(name, str):
            raise TypeError("MLmodel does not say where it is")  # noqa: TRY301 - handled as the others
        path = model.path / name
        if path.is_symlink() or not path.resolve().is_relative_to(model.path.resolve()):
            raise ValueError(f"{name!r} is outside of the model")  # noqa: TRY301 - as the others
        document = json.loads(path.read_bytes())
        data = document["inputs"] if info.get("params") else document
        # MLflow takes a string there for the path of another file, wherever that is.
        if info["type"] == "ndarray" and isinstance(data, str):
            raise TypeError("it is said to be an array, and is a string")  # noqa: TRY301 - as the others
        example = logged.load_input_example(str(model.path))
    except Exception as error:  # noqa: BLE001 - MLflow raises whatever its parsers raise on a broken file
        raise InvalidModel(
            f"{model.origin.uri}: its input_example, which -C smoke_test=true would send, cannot be read: "
            f"{first_words(error)} Nothing was changed. Log the model with another input_example, or deploy it "
            "without the option."
        ) from None
    return Example(example)


def logged_example(origin: Origin, destination: Path) -> Example | None:
    """Fetch the input example of a model that has been deployed, and nothing else of it.

    Args:
        origin: Where the model came from.
        destination: An empty directory.

    Returns:
        ``None``: it was logged without one, or cannot be had any more; the log says why.
    """
    if origin.model_name is not None and origin.model_version is not None:
        uri = f"models:/{origin.model_name}/{origin.model_version}"  # an alias may have moved
    else:
        uri = f"models:/{origin.model_id}" if origin.model_id is not None else origin.uri
    try:
        if uri.partition(":")[0] in SERVED:
            require_server()
        with foreign_errors(f"The input_example of {uri}", destination):
            fetched = mlflow.artifacts.download_artifacts(f"{uri}/MLmodel", dst_path=str(destination))
            info = Model.load(fetched).saved_input_example_info or {}
            name = info.get("artifact_path")
            if not isinstance(name, str) or PurePosixPath(name).name != name:
                return None
            mlflow.artifacts.download_artifacts(f"{uri}/{name}", dst_path=str(destination))
        return input_example(ResolvedModel(Path(fetched).parent, {}, origin))
    except TritonPluginError as error:
        log.info("Testing %s without its input_example: %s", uri, error.message)
        return None
