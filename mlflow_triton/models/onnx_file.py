"""Which external data files an ONNX model names, read from the file itself.

A walk over the protobuf wire format of onnx.proto that reads only the few fields on the way to
``TensorProto.external_data`` and skips everything else, so that neither the package onnx nor the
memory for a model of gigabytes is needed.
"""

from __future__ import annotations

import mmap
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING

from mlflow_triton.errors import InvalidModel

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = ["external_data", "tensor_names"]

# Where a TensorProto can stand, by message: field number -> message of the field.
# Source: onnx/onnx.proto, IR version 12.
MESSAGES: dict[str, dict[int, str]] = {
    "Model": {7: "Graph", 20: "TrainingInfo", 25: "Function"},
    "TrainingInfo": {1: "Graph", 2: "Graph"},
    "Function": {7: "Node", 11: "Attribute"},
    "Graph": {1: "Node", 5: "Tensor", 15: "SparseTensor"},
    "Node": {5: "Attribute"},
    "Attribute": {5: "Tensor", 6: "Graph", 10: "Tensor", 11: "Graph", 22: "SparseTensor", 23: "SparseTensor"},
    "SparseTensor": {1: "Tensor", 2: "Tensor"},
    "Tensor": {13: "Entry"},
}
#: Field numbers of the same source.
GRAPH, INITIALIZERS, INPUTS, OUTPUTS, VALUE_NAME, TENSOR_NAME = 7, 5, 11, 12, 1, 8
#: Deeper than any model nests its subgraphs, and far from Python's recursion limit.
DEEPEST = 200


def external_data(path: Path) -> tuple[PurePosixPath, ...]:
    """Return the external data files that a model names, relative to its directory, in order.

    Raises:
        InvalidModel: The file is no ONNX model, or a location leaves the model's directory.
    """
    if path.stat().st_size == 0:
        raise InvalidModel(
            f"{path.name} is empty: it is no ONNX model. Nothing was changed. Log the model again."
        )
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
        try:
            locations = list(_walk(data, 0, len(data), "Model", 0))
        except (ValueError, IndexError):
            raise InvalidModel(
                f"{path.name} is no ONNX model, or is cut off. Nothing was changed. Log the model again."
            ) from None
    return tuple(dict.fromkeys(_inside(location, path.name) for location in locations))


def tensor_names(path: Path) -> tuple[frozenset[str], frozenset[str]]:
    """Return the names of a model's inputs and of its outputs, as a runtime has them: without initializers.

    Args:
        path: A file of which `external_data` has been read.
    """
    found: dict[int, set[str]] = {INITIALIZERS: set(), INPUTS: set(), OUTPUTS: set()}
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
        for graph, left, right in _fields(data, 0, len(data)):
            if graph != GRAPH:
                continue
            for number, start, end in _fields(data, left, right):
                if number in found:
                    name = TENSOR_NAME if number == INITIALIZERS else VALUE_NAME
                    found[number] |= {
                        data[a:b].decode(errors="replace")
                        for n, a, b in _fields(data, start, end)
                        if n == name
                    }
    return frozenset(found[INPUTS] - found[INITIALIZERS]), frozenset(found[OUTPUTS])


def _inside(location: str, name: str) -> PurePosixPath:
    target = PurePosixPath(location)
    if (
        target.is_absolute()
        or ".." in target.parts
        or not target.parts
        or "\\" in location
        or "\0" in location
    ):
        raise InvalidModel(
            f"{name} names the external data file {location!r}, which is outside of the model. Nothing was changed. "
            "Save the model with its data beside it (onnx.save_model(…, save_as_external_data=True))."
        )
    return target


def _walk(data: mmap.mmap, start: int, end: int, message: str, depth: int) -> Iterator[str]:
    if depth > DEEPEST:
        raise ValueError("nested too deeply")
    fields = MESSAGES[message]
    for number, left, right in _fields(data, start, end):
        if number not in fields:
            continue
        if fields[number] == "Entry":
            entry = {n: data[a:b].decode() for n, a, b in _fields(data, left, right)}
            if entry.get(1) == "location":
                yield entry.get(2, "")
        else:
            yield from _walk(data, left, right, fields[number], depth + 1)


def _fields(data: mmap.mmap, position: int, end: int) -> Iterator[tuple[int, int, int]]:
    """Yield number, start and end of each length-delimited field."""
    while position < end:
        key, position = _varint(data, position, end)
        number, wire = key >> 3, key & 7
        if number == 0:
            raise ValueError("field number 0")
        if wire == 0:
            _, position = _varint(data, position, end)
        elif wire == 1:
            position += 8
        elif wire == 2:
            length, position = _varint(data, position, end)
            if position + length > end:
                raise ValueError("a field runs past its message")
            yield number, position, position + length
            position += length
        elif wire == 5:
            position += 4
        else:
            raise ValueError(f"wire type {wire}")
    if position != end:
        raise ValueError("a field runs past its message")


def _varint(data: mmap.mmap, position: int, end: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        if position >= end or shift > 63:
            raise ValueError("a number runs past its message")
        byte = data[position]
        position += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, position
        shift += 7
