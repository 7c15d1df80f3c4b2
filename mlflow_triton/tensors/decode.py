"""Triton's output tensors to what MLflow users expect."""

from __future__ import annotations

import base64
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
from mlflow.deployments import PredictionsResponse

from mlflow_triton.errors import InvalidInput, InvalidParameter
from mlflow_triton.tensors.arrays import to_array

if TYPE_CHECKING:
    from collections.abc import Mapping

__all__ = ["TritonPredictions", "decode"]

Array = np.ndarray[Any, Any]


class TritonPredictions(PredictionsResponse):
    """``response["outputs"][NAME]`` is the output tensor, a NumPy array."""

    def get_predictions(
        self, predictions_format: str = "dataframe", dtype: Any = None
    ) -> pd.DataFrame | Array | dict[str, Array]:
        """Return the outputs in one of MLflow's formats.

        Args:
            predictions_format: ``dataframe``: one column per output, one row per item of its first
                dimension (a cell of a tensor with more dimensions is an array);
                ``ndarray``: the array of a model with one output, a dict of arrays otherwise.
            dtype: Cast to this NumPy type.

        Raises:
            InvalidParameter: Another format.
        """
        outputs: dict[str, Array] = {
            name: array if dtype is None else array.astype(dtype) for name, array in self["outputs"].items()
        }
        if predictions_format == "ndarray":
            return next(iter(outputs.values())) if len(outputs) == 1 else outputs
        if predictions_format != "dataframe":
            raise InvalidParameter(
                f"Unknown predictions_format {predictions_format!r}: use 'dataframe' or 'ndarray'."
            )
        if len({array.shape[:1] for array in outputs.values()}) > 1:
            shapes = ", ".join(f"{name} {list(array.shape)}" for name, array in outputs.items())
            raise InvalidParameter(
                f"The outputs do not have one first dimension ({shapes}), so they are no table: use 'ndarray'."
            )
        columns = {}
        for name, tensor in outputs.items():
            # pandas knows no bfloat16; float32 has all of its values.
            array = tensor.astype(np.float32) if tensor.dtype.name == "bfloat16" else tensor
            flat = (
                array.reshape(array.shape[0])
                if array.ndim == 2 and array.shape[1] == 1
                else np.atleast_1d(array)
            )
            columns[name] = pd.Series(list(flat) if flat.ndim > 1 else flat)
        return pd.DataFrame(columns)

    def to_json(self, path: str | None = None) -> str | None:
        """Return the response as JSON, or write it to `path`.

        Floats are written with all their digits. Outputs that are not UTF-8 text are base64, as MLflow
        writes ``bytes``.

        Raises:
            InvalidParameter: `path` cannot be written.
        """
        text = json.dumps({"outputs": {name: _listed(array) for name, array in self["outputs"].items()}})
        if path is None:
            return text
        try:
            Path(path).write_text(text, encoding="utf-8")
        except OSError as error:
            raise InvalidParameter(
                f"The outputs cannot be written to {path}: {error.strerror}. The model has answered; nothing was changed."
            ) from None
        return None

    @classmethod
    def from_json(cls, json_str: str) -> TritonPredictions:
        """Read what `to_json` wrote: the same values, as bool, int64, uint64, float64 or ``str``.

        Raises:
            InvalidParameter: It is something else.
        """
        try:
            return cls(
                {
                    "outputs": {
                        name: to_array(value, name) for name, value in json.loads(json_str)["outputs"].items()
                    }
                }
            )
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError, InvalidInput) as error:
            raise InvalidParameter(f"Not a JSON object with the key 'outputs': {error}.") from None


def _listed(array: Array) -> Any:
    if array.dtype == np.object_ and array.size and isinstance(array.flat[0], bytes):
        encoded = np.empty(array.shape, np.object_)
        for index, element in np.ndenumerate(array):
            encoded[index] = base64.b64encode(element).decode()
        array = encoded
    if array.dtype.name == "bfloat16":
        array = array.astype(np.float32)
    return array.tolist()


def decode(outputs: Mapping[str, Array]) -> TritonPredictions:
    """Make a response of the outputs; a BYTES tensor becomes ``str`` where all of it is UTF-8."""
    return TritonPredictions({"outputs": {name: _text(array) for name, array in outputs.items()}})


def _text(array: Array) -> Array:
    if array.dtype != np.object_:
        return array
    result = np.empty(array.shape, np.object_)
    try:
        for index, element in np.ndenumerate(array):
            result[index] = element.decode()
    except UnicodeDecodeError:
        return array
    return result
