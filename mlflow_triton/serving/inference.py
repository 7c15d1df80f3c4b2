"""Inference over HTTP with the binary tensor extension of the Open Inference Protocol."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from mlflow_triton.errors import (
    DeploymentNotFound,
    InferenceFailed,
    InvalidInput,
    ServerRefused,
    ServerUnavailable,
)
from mlflow_triton.serving.http import Response, segment
from mlflow_triton.tensors.datatypes import from_wire, numpy_dtype, to_wire

if TYPE_CHECKING:
    from collections.abc import Mapping

    from mlflow_triton.serving.connections import Answer
    from mlflow_triton.serving.http import HttpEndpoint

__all__ = ["KnownModels", "ModelMetadata", "TensorMetadata", "infer", "metadata"]

HEADER_LENGTH = "inference-header-content-length"


@dataclass(frozen=True, slots=True)
class TensorMetadata:
    """A tensor as the model declares it; -1 in `shape` stands for any size."""

    name: str
    datatype: str
    shape: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class ModelMetadata:
    """What ``GET /v2/models/NAME`` says; shapes include the batch dimension."""

    name: str
    inputs: tuple[TensorMetadata, ...]
    outputs: tuple[TensorMetadata, ...]


def _missing(name: str, http: HttpEndpoint, reason: str) -> DeploymentNotFound:
    return DeploymentNotFound(
        f"Triton at {http.url} serves no model {name!r}: {reason} "
        "See what is deployed with: mlflow deployments list -t triton"
    )


class KnownModels:
    """What models were last seen to declare, so that a prediction is one request. Safe to share between threads.

    What is known may be out of date, since anyone may deploy. That makes no wrong tensor: Triton checks
    names, datatypes and shapes of what it is sent, and an answer says what it holds. It may make an
    error, which therefore counts only once `renewed` has said that the model is still the same.

    Args:
        http: The server.
    """

    def __init__(self, http: HttpEndpoint) -> None:
        self._http = http
        self._models: dict[str, ModelMetadata] = {}

    def metadata(self, name: str) -> ModelMetadata:
        """Return what is known of a model; ask for it if that is nothing. Raises as `metadata`."""
        known = self._models.get(name)
        return self.renewed(name) if known is None else known

    def renewed(self, name: str) -> ModelMetadata:
        """Ask for a model's inputs and outputs again. Raises as `metadata`."""
        self.forget(name)
        found = self._models[name] = metadata(self._http, name)
        return found

    def knows(self, name: str) -> bool:
        """Say whether `metadata` would ask nobody."""
        return name in self._models

    def forget(self, name: str) -> None:
        """Let the next one who needs a model ask for it."""
        self._models.pop(name, None)


def metadata(http: HttpEndpoint, name: str) -> ModelMetadata:
    """Ask for a model's inputs and outputs.

    Raises:
        DeploymentNotFound: The server does not serve it.
        ServerUnavailable: No usable answer.
    """
    path = f"/v2/models/{segment(name)}"
    answer = http.json("GET", path)
    if isinstance(answer, Response):
        if answer.status in (400, 404):
            raise _missing(name, http, answer.error)
        raise ServerRefused(f"Triton at {http.url} refused {path}: {answer.error}")
    try:
        return ModelMetadata(answer["name"], _tensors(answer["inputs"]), _tensors(answer["outputs"]))
    except (KeyError, TypeError, ValueError):
        raise ServerUnavailable(
            f"Triton at {http.url} answered {path} in a form that Triton never uses."
        ) from None


def _tensors(entries: list[dict[str, Any]]) -> tuple[TensorMetadata, ...]:
    return tuple(
        TensorMetadata(
            str(entry["name"]), str(entry["datatype"]), tuple(int(size) for size in entry["shape"])
        )
        for entry in entries
    )


def infer(
    http: HttpEndpoint,
    name: str,
    inputs: Mapping[str, tuple[str, np.ndarray[Any, Any]]],
    *,
    version: int | None = None,
    parameters: Mapping[str, object] | None = None,
) -> dict[str, np.ndarray[Any, Any]]:
    """Execute one inference request.

    Args:
        http: The server.
        name: The model.
        inputs: Tensor name to datatype and array, the array already of that datatype
            (little-endian; ``bytes`` objects for BYTES).
        version: The version that is to answer; default: the highest one that is ready.
        parameters: Of the request, such as those of a sequence.

    Returns:
        Every output by name; BYTES as object arrays of ``bytes``.

    Raises:
        DeploymentNotFound: The server does not serve the model.
        InferenceFailed: The model or the server answered with an error.
        ServerUnavailable: No usable answer.
    """
    payloads = [to_wire(array) for _, array in inputs.values()]
    header = json.dumps(
        {
            "inputs": [
                {
                    "name": tensor,
                    "shape": list(array.shape),
                    "datatype": datatype,
                    "parameters": {"binary_data_size": len(payload)},
                }
                for (tensor, (datatype, array)), payload in zip(inputs.items(), payloads, strict=True)
            ],
            "parameters": {**(parameters or {}), "binary_data_output": True},
        }
    ).encode()
    versions = "" if version is None else f"/versions/{version}"
    try:
        with http.exchange(
            "POST",
            f"/v2/models/{segment(name)}{versions}/infer",
            body=[header, *payloads],
            headers={HEADER_LENGTH: str(len(header)), "content-type": "application/octet-stream"},
            repeatable="sequence_id" not in (parameters or {}),
        ) as answer:
            if answer.status == 200:
                return _outputs(answer)
            response = Response(answer.status, answer.headers, answer.read())
    except InvalidInput as error:
        raise InferenceFailed(
            f"{name!r} answered with a tensor that cannot be read. {error.message}"
        ) from None
    except (KeyError, TypeError, ValueError, OverflowError, RecursionError) as error:
        raise ServerUnavailable(
            f"Triton at {http.url} sent a broken answer for {name!r} ({error}). Nothing was changed; "
            "look at the server's log."
        ) from None
    if response.status == 404:
        raise _missing(name, http, response.error)
    raise InferenceFailed(f"{name!r} on Triton at {http.url} failed: {response.error}")


def _outputs(answer: Answer) -> dict[str, np.ndarray[Any, Any]]:
    length = int(answer.headers.get(HEADER_LENGTH, -1 if answer.length is None else answer.length))
    if length < 0 or (answer.length is not None and length > answer.length):
        raise ValueError("its header has no length, or one beyond its body")
    document = json.loads(answer.read_exactly(length))
    described = [
        (
            str(output["name"]),
            output["datatype"],
            tuple(output["shape"]),
            int(output["parameters"]["binary_data_size"]),
        )
        for output in document["outputs"]
    ]
    if answer.length is not None and length + sum(size for *_, size in described) != answer.length:
        raise ValueError("its tensors are not as long as its body")
    result = {name: _output(answer, datatype, shape, size) for name, datatype, shape, size in described}
    if answer.read():
        raise ValueError("its body is longer than it says")
    return result


def _output(answer: Answer, datatype: str, shape: tuple[int, ...], size: int) -> np.ndarray[Any, Any]:
    """Read one tensor into its own memory, or BYTES out of a buffer."""
    dtype = numpy_dtype(datatype)
    if size < 0:
        raise ValueError("a tensor has a negative size")
    if dtype == np.object_:
        return from_wire(memoryview(answer.read_exactly(size)), datatype, shape)
    if (
        any(type(length) is not int or length < 0 for length in shape)
        or math.prod(shape) * dtype.itemsize != size
    ):
        raise ValueError(f"a tensor of the datatype {datatype} and the shape {list(shape)} has {size} bytes")
    array = np.empty(shape, dtype)
    if size:
        answer.read_into(array.reshape(-1).view(np.uint8).data)
    return array
