"""Triton's datatypes and NumPy's, in one table."""

from __future__ import annotations

from typing import Any

import numpy as np

from mlflow_triton.errors import InvalidInput

__all__ = ["DATATYPES", "from_wire", "numpy_dtype", "to_wire"]

#: Source: Triton's model configuration, "Datatypes". BYTES are Python objects here; BF16 has no
#: NumPy type of its own and is looked up when it is met.
DATATYPES: dict[str, np.dtype[Any]] = {
    "BOOL": np.dtype(np.bool_),
    "UINT8": np.dtype("<u1"),
    "UINT16": np.dtype("<u2"),
    "UINT32": np.dtype("<u4"),
    "UINT64": np.dtype("<u8"),
    "INT8": np.dtype("<i1"),
    "INT16": np.dtype("<i2"),
    "INT32": np.dtype("<i4"),
    "INT64": np.dtype("<i8"),
    "FP16": np.dtype("<f2"),
    "FP32": np.dtype("<f4"),
    "FP64": np.dtype("<f8"),
    "BYTES": np.dtype(np.object_),
}


def numpy_dtype(datatype: str) -> np.dtype[Any]:
    """Return the NumPy type of a Triton datatype such as ``FP32``.

    Raises:
        InvalidInput: There is none, or (BF16) the package ``ml_dtypes`` that has it is missing.
    """
    if datatype == "BF16":
        try:
            import ml_dtypes  # noqa: PLC0415 - an optional package, for one datatype
        except ImportError:
            raise InvalidInput(
                "The datatype BF16 needs the package ml_dtypes: pip install ml_dtypes."
            ) from None
        bfloat16: np.dtype[Any] = np.dtype(ml_dtypes.bfloat16)
        return bfloat16
    try:
        return DATATYPES[datatype]
    except KeyError:
        raise InvalidInput(f"The datatype {datatype} is none that this plugin knows.") from None


def to_wire(array: np.ndarray[Any, Any]) -> memoryview | bytes:
    """Return the binary tensor data of the Open Inference Protocol: row-major, little-endian.

    BYTES elements are each preceded by their length as four bytes, little-endian. For other datatypes
    it is a view of the array's own memory, if that is row-major already.
    """
    if array.dtype != np.object_:
        return np.ascontiguousarray(array).reshape(-1).view(np.uint8).data
    parts = []
    for element in array.flat:
        parts.append(len(element).to_bytes(4, "little"))
        parts.append(element)
    return b"".join(parts)


def from_wire(data: memoryview, datatype: str, shape: tuple[int, ...]) -> np.ndarray[Any, Any]:
    """Read binary tensor data; BYTES become an object array of ``bytes``.

    Raises:
        ValueError: The data does not have the size that datatype and shape ask for.
    """
    dtype = numpy_dtype(datatype)
    if dtype != np.object_:
        # Copied as bytes: the data may begin at any address.
        return np.frombuffer(data, np.uint8).copy().view(dtype).reshape(shape)
    elements = []
    position = 0
    while position < len(data):
        start = position + 4
        position = start + int.from_bytes(data[position:start], "little")
        if start > len(data) or position > len(data):
            raise ValueError("a string runs past the end of the data")
        elements.append(bytes(data[start:position]))
    array = np.empty(len(elements), np.object_)
    array[:] = elements
    return array.reshape(shape)
