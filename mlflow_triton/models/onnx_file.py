"""Which external data files an ONNX model names, and its inputs and outputs, read from the file itself.

A walk over the protobuf wire format of onnx.proto that reads only the few fields on the way to
``TensorProto.external_data`` and skips everything else, so that neither the package onnx nor the
memory for a model of gigabytes is needed.
"""

from __future__ import annotations

import mmap
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING

from mlflow_triton.errors import InvalidModel

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = ["Tensor", "external_data", "tensors"]

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
GRAPH, INITIALIZERS, INPUTS, OUTPUTS, TENSOR_NAME = 7, 5, 11, 12, 8
#: ValueInfoProto; TypeProto; its Tensor; TensorShapeProto; its Dimension.
VALUE_NAME, VALUE_TYPE, TENSOR_TYPE, ELEMENT, SHAPE, DIMENSION, SIZE = 1, 2, 1, 1, 2, 1, 1
#: TensorProto.DataType to Triton's datatype in a model configuration.
DATATYPES = {
    1: "TYPE_FP32",
    2: "TYPE_UINT8",
    3: "TYPE_INT8",
    4: "TYPE_UINT16",
    5: "TYPE_INT16",
    6: "TYPE_INT32",
    7: "TYPE_INT64",
    8: "TYPE_STRING",
    9: "TYPE_BOOL",
    10: "TYPE_FP16",
    11: "TYPE_FP64",
    12: "TYPE_UINT32",
    13: "TYPE_UINT64",
    16: "TYPE_BF16",
}
#: Deeper than any model nests its subgraphs, and far from Python's recursion limit.
DEEPEST = 200


@dataclass(frozen=True, slots=True)
class Tensor:
    """An input or an output.

    Attributes:
        datatype: As in a model configuration, such as ``TYPE_FP32``; ``None``: the file does not say, or Triton has none.
        shape: Sizes, the batch's included, -1 for any; ``None``: not even their number is said.
    """

    datatype: str | None
    shape: tuple[int, ...] | None


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


def tensors(path: Path) -> tuple[dict[str, Tensor], dict[str, Tensor]] | None:
    """Return a model's inputs and its outputs by name, as a runtime has them: without initializers.

    Args:
        path: Any file; ``None`` if it is no ONNX model, or is cut off.
    """
    try:
        with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
            return _tensors(data)
    except (ValueError, IndexError):
        return None


def _tensors(data: mmap.mmap) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    initializers: set[str] = set()
    found: dict[int, dict[str, Tensor]] = {INPUTS: {}, OUTPUTS: {}}
    for graph, left, right in _fields(data, 0, len(data)):
        if graph != GRAPH:
            continue
        for number, start, end in _fields(data, left, right):
            if number == INITIALIZERS:
                initializers.add(_text(data, start, end, TENSOR_NAME))
            elif number in found:
                found[number][_text(data, start, end, VALUE_NAME)] = _tensor(data, start, end)
    inputs = {name: tensor for name, tensor in found[INPUTS].items() if name not in initializers}
    return inputs, found[OUTPUTS]


def _tensor(data: mmap.mmap, start: int, end: int) -> Tensor:
    element, shape = None, None
    for kind, left, right in _within(data, start, end, VALUE_TYPE):
        if kind != TENSOR_TYPE:
            continue
        element = _number(data, left, right, ELEMENT)
        for number, a, b in _fields(data, left, right):
            if number == SHAPE:
                sizes = (_number(data, c, d, SIZE) for n, c, d in _fields(data, a, b) if n == DIMENSION)
                shape = tuple(size if size and size < 1 << 63 else -1 for size in sizes)
    return Tensor(DATATYPES.get(element or 0), shape)


def _within(data: mmap.mmap, start: int, end: int, wanted: int) -> Iterator[tuple[int, int, int]]:
    for number, left, right in _fields(data, start, end):
        if number == wanted:
            yield from _fields(data, left, right)


def _text(data: mmap.mmap, start: int, end: int, wanted: int) -> str:
    texts = [
        data[a:b].decode(errors="replace") for number, a, b in _fields(data, start, end) if number == wanted
    ]
    return texts[-1] if texts else ""


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
    return (
        (number, left, right) for number, wire, left, right in _all_fields(data, position, end) if wire == 2
    )


def _number(data: mmap.mmap, position: int, end: int, wanted: int) -> int | None:
    """Return the last value of an integer field; ``None``: the message does not have it."""
    found = [
        _varint(data, left, right)[0]
        for number, wire, left, right in _all_fields(data, position, end)
        if (number, wire) == (wanted, 0)
    ]
    return found[-1] if found else None


def _all_fields(data: mmap.mmap, position: int, end: int) -> Iterator[tuple[int, int, int, int]]:
    """Yield number, wire type, start and end of each field's value."""
    while position < end:
        key, position = _varint(data, position, end)
        number, wire = key >> 3, key & 7
        if number == 0:
            raise ValueError("field number 0")
        start = position
        if wire == 0:
            _, position = _varint(data, position, end)
        elif wire == 1:
            position += 8
        elif wire == 2:
            length, start = _varint(data, position, end)
            position = start + length
        elif wire == 5:
            position += 4
        else:
            raise ValueError(f"wire type {wire}")
        if position > end:
            raise ValueError("a field runs past its message")
        yield number, wire, start, position


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
