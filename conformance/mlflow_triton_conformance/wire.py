"""Documents and bytes of the Open Inference Protocol over HTTP."""

from __future__ import annotations

import json
import struct
from typing import TYPE_CHECKING, Any

import numpy as np

from mlflow_triton_conformance.catalogue.datatypes import DATATYPES

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from mlflow_triton_conformance.protocol import Answer, Protocol

__all__ = ["NUMPY", "binary", "packed", "request", "send", "tensor", "unpacked"]

Array = np.ndarray[Any, Any]
HEADER = "Inference-Header-Content-Length"

#: NumPy's type of each datatype; BYTES are objects.
NUMPY: dict[str, np.dtype[Any]] = {
    name: np.dtype(
        "O" if name == "BYTES" else "bool" if name == "BOOL" else name.lower().replace("fp", "float")
    )
    for name in DATATYPES
}
_DATATYPE = {dtype: name for name, dtype in NUMPY.items()}


def tensor(name: str, datatype: str, shape: list[int], data: Any, **more: Any) -> dict[str, Any]:
    """Describe a tensor with its data in JSON."""
    return {"name": name, "datatype": datatype, "shape": shape, "data": data, **more}


def request(*inputs: Mapping[str, Any], **more: Any) -> dict[str, Any]:
    """Make the document of an inference request."""
    return {"inputs": list(inputs), **more}


def packed(array: Array) -> bytes:
    """Write a tensor as binary data: its elements in row-major order, those of BYTES after their length."""
    if array.dtype != np.object_:
        return np.ascontiguousarray(array).tobytes()
    return b"".join(struct.pack("<I", len(it)) + it for it in array.ravel().tolist())


def unpacked(data: bytes, datatype: str, shape: Iterable[int]) -> Array:
    """Read a tensor from its binary data."""
    shape = tuple(shape)
    if datatype != "BYTES":
        return np.frombuffer(data, NUMPY[datatype]).reshape(shape)
    elements, place = [], 0
    while place < len(data):
        (length,) = struct.unpack_from("<I", data, place)
        elements.append(data[place + 4 : place + 4 + length])
        place += 4 + length
    array = np.empty(len(elements), np.object_)
    array[:] = elements
    return array.reshape(shape)


def send(
    protocol: Protocol,
    model: str,
    inputs: Mapping[str, Array],
    *,
    more: Iterable[Mapping[str, Any]] = (),
    sizes: Mapping[str, int] | None = None,
    **rest: Any,
) -> Answer:
    """Send tensors as binary data.

    Args:
        protocol: The server.
        model: The model.
        inputs: The tensors by name.
        more: Further inputs, in JSON.
        sizes: Sizes in bytes that are to be told in place of the right ones.
        rest: Further keys of the request.
    """
    data = {name: packed(array) for name, array in inputs.items()}
    described = [
        {
            "name": name,
            "datatype": _DATATYPE[array.dtype],
            "shape": list(array.shape),
            "parameters": {"binary_data_size": (sizes or {}).get(name, len(data[name]))},
        }
        for name, array in inputs.items()
    ]
    head = json.dumps(request(*more, *described, **rest)).encode()
    return protocol.post(
        f"/models/{model}/infer", head + b"".join(data.values()), headers={HEADER: str(len(head))}
    )


def binary(
    protocol: Protocol, model: str, inputs: Mapping[str, Array], **rest: Any
) -> tuple[dict[str, Any], dict[str, bytes]]:
    """Send tensors as binary data; return the JSON of the answer, and the binary data in it by the outputs' names."""
    answer = send(protocol, model, inputs, **rest)
    assert answer.status == 200, answer
    length = int(answer.headers.get(HEADER.lower(), len(answer.body)))
    told: dict[str, Any] = json.loads(answer.body[:length])
    parts, place = {}, length
    for output in told["outputs"]:
        size = output.get("parameters", {}).get("binary_data_size")
        if size is not None:
            parts[output["name"]] = answer.body[place : place + size]
            place += size
    assert place == len(answer.body), "there is more in the body than the sizes in it say"
    return told, parts
