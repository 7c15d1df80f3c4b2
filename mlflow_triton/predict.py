"""Predicting: describe the model, encode the inputs, infer, decode the outputs."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from mlflow_triton.errors import InvalidInput
from mlflow_triton.serving.inference import infer, metadata
from mlflow_triton.tensors.decode import TritonPredictions, decode
from mlflow_triton.tensors.encode import cast, check_shape, name_values, to_array

if TYPE_CHECKING:
    from mlflow_triton.serving.control import Control
    from mlflow_triton.serving.http import HttpEndpoint
    from mlflow_triton.serving.inference import ModelMetadata

__all__ = ["example_input", "predict", "prepare"]


def predict(http: HttpEndpoint, control: Control, name: str, inputs: Any) -> TritonPredictions:
    """Send `inputs` to a model and return its outputs.

    Args:
        http: The server.
        control: Of the same server; asked which inputs are optional when one is missing.
        name: The deployment.
        inputs: See `mlflow_triton.tensors.encode.name_values`.

    Raises:
        InvalidInput: The inputs do not fit the model; nothing was sent.
        DeploymentNotFound: The server does not serve the model.
        InferenceFailed: The model failed.
        ServerUnavailable: No usable answer.
    """
    model, tensors = prepare(http, control, name, inputs)
    outputs = infer(http, name, tensors)
    # Triton answers in the order of its own; users see the model's.
    order = [tensor.name for tensor in model.outputs if tensor.name in outputs]
    return decode({tensor: outputs.pop(tensor) for tensor in order} | outputs)


def prepare(
    http: HttpEndpoint, control: Control, name: str, inputs: Any
) -> tuple[ModelMetadata, dict[str, tuple[str, np.ndarray[Any, Any]]]]:
    """Describe a model and encode inputs for it; see `predict`.

    Returns:
        What the model declares, and by tensor the datatype and an array of it.
    """
    model = metadata(http, name)
    declared = {tensor.name: tensor for tensor in model.inputs}
    try:
        values = name_values(
            inputs, list(declared), {tensor.name: len(tensor.shape) for tensor in model.inputs}
        )
        if missing := [tensor for tensor in declared if tensor not in values]:
            _require_optional(control, name, missing)
        tensors = {}
        for tensor, value in values.items():
            array = cast(to_array(value, tensor), declared[tensor].datatype, tensor)
            check_shape(array, declared[tensor].shape, tensor)
            tensors[tensor] = (declared[tensor].datatype, array)
    except InvalidInput as error:
        raise InvalidInput(f"Nothing was sent to {name!r}. {error.message}") from None
    return model, tensors


def _require_optional(control: Control, name: str, missing: list[str]) -> None:
    config = control.config(name) or {}
    optional = {entry["name"] for entry in config.get("input", []) if entry.get("optional")}
    if required := [repr(tensor) for tensor in missing if tensor not in optional]:
        raise InvalidInput(f"Missing: {', '.join(required)}.")


def example_input(http: HttpEndpoint, name: str) -> dict[str, dict[str, Any]]:
    """Make an input that a model accepts: zeros (or empty strings), one for each dimension of any size.

    Returns:
        ``{"inputs": {NAME: nested lists}}``, as the CLI reads it from a file.
    """
    zero: dict[str, Any] = {"BOOL": False, "BYTES": ""}
    inputs = {}
    for tensor in metadata(http, name).inputs:
        shape = [1 if size == -1 else size for size in tensor.shape]
        inputs[tensor.name] = np.full(shape, zero.get(tensor.datatype, 0), object).tolist()
    return {"inputs": inputs}
