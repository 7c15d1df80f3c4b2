"""What predict does with inputs, up to where a server would be asked; and MLflow's own command in front of it."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple
from unittest import mock

import numpy as np
from click.testing import CliRunner
from mlflow.deployments import cli as mlflow_cli
from mlflow.deployments import interface

from mlflow_triton.input_file import as_written
from mlflow_triton.serving.document import own_options
from mlflow_triton.serving.request import PLAIN
from mlflow_triton.tensors.arrays import to_array
from mlflow_triton.tensors.casting import cast, fit_shape
from mlflow_triton.tensors.decode import TritonPredictions, decode
from mlflow_triton.tensors.forms import name_values

if TYPE_CHECKING:
    from collections.abc import Mapping

Array = np.ndarray[Any, Any]


class Spec(NamedTuple):
    """A tensor as a model declares it."""

    datatype: str
    shape: tuple[int, ...]


def encode(inputs: Any, declared: Mapping[str, Spec]) -> dict[str, Array]:
    """Encode inputs as predict does."""
    inputs, _ = own_options(inputs, PLAIN)
    arrays = {}
    for name, value in name_values(inputs, declared).by_input.items():
        tensor = declared[name]
        arrays[name] = cast(fit_shape(to_array(value, name), tensor.shape, name), tensor.datatype, name)
    return arrays


class Refused(Exception):
    """MLflow's reader did not take a file, so that the plugin was not asked."""


def through_the_cli(text: str, declared: Mapping[str, Spec], *, exact: bool = True) -> dict[str, Array]:
    """Predict with a JSON file through MLflow's own command, up to where the server would be asked.

    Args:
        text: The file's.
        declared: The model's inputs.
        exact: The file is read once more, as predict does; else what pandas has read counts.

    Raises:
        Refused: The plugin was not asked.
    """
    seen: dict[str, Array] = {}
    asked = []

    class Client:
        def __init__(self, target_uri: str) -> None:
            assert target_uri == "triton"

        def predict(self, deployment_name: str, inputs: Any) -> TritonPredictions:  # noqa: ARG002 - MLflow's
            asked.append(True)
            seen.update(encode(as_written(inputs) if exact else inputs, declared))
            return decode(seen)

    with mock.patch.object(interface, "get_deploy_client", Client), tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "input.json")
        path.write_text(text, "utf-8", "surrogatepass")
        arguments = ["-t", "triton", "--name", "x", "--input-path", str(path)]
        result = CliRunner().invoke(mlflow_cli.predict, arguments, standalone_mode=False)
    if result.exception is not None:
        raise result.exception if asked else Refused(type(result.exception).__name__)
    return seen
