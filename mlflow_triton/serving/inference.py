"""Inference over HTTP with the binary tensor extension of the Open Inference Protocol."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from mlflow_triton.errors import (
    DeploymentNotFound,
    InferenceFailed,
    InvalidInput,
    ServerRefused,
    ServerUnavailable,
)
from mlflow_triton.serving.http import HttpEndpoint, Response, segment
from mlflow_triton.tensors.datatypes import from_wire, to_wire

if TYPE_CHECKING:
    from collections.abc import Mapping

    import numpy as np

__all__ = ["ModelMetadata", "TensorMetadata", "infer", "metadata"]

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
    response = http.request(
        "POST",
        f"/v2/models/{segment(name)}{versions}/infer",
        body=b"".join([header, *payloads]),
        headers={HEADER_LENGTH: str(len(header)), "content-type": "application/octet-stream"},
    )
    if response.status == 404:
        raise _missing(name, http, response.error)
    if response.status != 200:
        raise InferenceFailed(f"{name!r} on Triton at {http.url} failed: {response.error}")
    try:
        return _outputs(response)
    except InvalidInput as error:
        raise InferenceFailed(
            f"{name!r} answered with a tensor that cannot be read. {error.message}"
        ) from None
    except (KeyError, TypeError, ValueError, OverflowError, RecursionError) as error:
        raise ServerUnavailable(
            f"Triton at {http.url} sent a broken answer for {name!r} ({error}). Nothing was changed; "
            "look at the server's log."
        ) from None


def _outputs(response: Response) -> dict[str, np.ndarray[Any, Any]]:
    body = memoryview(response.body)
    length = int(response.headers.get(HEADER_LENGTH, len(body)))
    document = json.loads(bytes(body[:length]))
    position = length
    result = {}
    for output in document["outputs"]:
        end = position + int(output["parameters"]["binary_data_size"])
        if end > len(body):
            raise ValueError("the body is shorter than it says")
        result[str(output["name"])] = from_wire(
            body[position:end], output["datatype"], tuple(output["shape"])
        )
        position = end
    if position != len(body):
        raise ValueError("the body is longer than it says")
    return result
