"""Anything array-like to a NumPy array that holds just the same values."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from itertools import chain
from typing import Any

import numpy as np
import pandas as pd

from mlflow_triton.errors import InvalidInput

__all__ = ["column", "stacked", "to_array", "typed"]

Array = np.ndarray[Any, Any]

DEEPEST = 32
"""Dimensions: NumPy 1 has no more."""

HOST_DEVICES = (1, 3, 11)
"""DLPack's kDLCPU, and the memory of the host that CUDA and ROCm have pinned."""

MISSING = {type(None), type(pd.NA), type(pd.NaT)}
"""What stands for a missing value in a column of objects."""

ARRAY_LIKE = ("__array__", "__array_interface__", "__dlpack__", "__cuda_array_interface__", "__len__")


def to_array(value: Any, name: str) -> Array:
    """Make an array of anything array-like, without changing a value.

    Args:
        value: An array, nested lists, a scalar; a Series; anything on the CPU with ``__array__`` or DLPack.
        name: The tensor, for errors.

    Returns:
        An array of numbers, or an array of objects: ``bytes`` and ``str``, and numbers that have no NumPy
        type in common, such as an integer beside a float.

    Raises:
        InvalidInput: It is ragged, masked, sparse, on a GPU, has missing values, or is no array at all.
    """
    if isinstance(value, np.ndarray):
        return value if type(value) is np.ndarray and value.dtype != np.object_ else _from_numpy(value, name)
    if isinstance(value, (list, tuple)):
        return _from_nested(value, name)
    if isinstance(value, (pd.Series, pd.Index, pd.DataFrame, pd.api.extensions.ExtensionArray)):
        return _from_pandas(value, name)
    if isinstance(value, bytearray) or (isinstance(value, memoryview) and value.format in ("B", "b", "c")):
        value = bytes(value)
    if isinstance(value, (str, bytes, int)):
        return typed([value], {type(value)}, ())
    if isinstance(value, Sequence) and not any(hasattr(value, mark) for mark in ARRAY_LIKE[:-1]):
        return _from_nested(list(value), name)
    return _foreign(value, name)


def _from_numpy(value: Array, name: str) -> Array:
    if isinstance(value, np.ma.MaskedArray):
        if np.ma.is_masked(value):
            raise InvalidInput(
                f"Input {name!r} has masked elements. Triton has no missing values: use .filled(…)."
            )
        value = value.data
    array = np.asarray(value)
    return _from_objects(array, name) if array.dtype == np.object_ else array


def _from_pandas(value: Any, name: str) -> Array:
    if isinstance(value, pd.DataFrame):
        columns = [column(value.iloc[:, at], name) for at in range(value.shape[1])]
        return np.moveaxis(stacked(columns, name), 0, -1)
    return column(value if isinstance(value, pd.Index) else pd.Series(value), name)


def _foreign(value: Any, name: str) -> Array:
    """Ask another library's object for its array."""
    kind = type(value).__name__
    if isinstance(value, Mapping):
        raise InvalidInput(f"Input {name!r} holds a mapping, which is not an array.")
    if hasattr(value, "toarray") and not hasattr(value, "__array__"):
        raise InvalidInput(
            f"Input {name!r} is a sparse matrix ({kind}). Triton takes dense tensors: use .toarray()."
        )
    if _on_gpu(value):
        raise InvalidInput(
            f"Input {name!r} ({kind}) lies on a GPU. Copy it to the host first: .cpu() or .get()."
        )
    try:
        nulls = getattr(value, "null_count", 0)
        nulls = nulls() if callable(nulls) else nulls
        array = np.asarray(value) if hasattr(value, "__array__") else _without_array(value)
    except Exception as error:  # noqa: BLE001 - whatever a foreign object's __array__ raises
        raise InvalidInput(
            f"Input {name!r} ({kind}) cannot be read as an array: {' '.join(str(error).split())[:300]}"
        ) from None
    if nulls:
        raise InvalidInput(f"Input {name!r} ({kind}) has {nulls} missing values. Triton has none: fill them.")
    if array.dtype == np.object_:
        # An object without any array in it comes back as itself.
        if array.ndim == 0 and array[()] is value and kind != "NoneType":
            raise InvalidInput(f"Input {name!r} is a {kind}, not an array.")
        return _from_objects(array, name)
    return array


def _without_array(value: Any) -> Array:
    return np.from_dlpack(value) if hasattr(value, "__dlpack__") else np.asarray(value)


def _on_gpu(value: Any) -> bool:
    if not hasattr(value, "__dlpack_device__"):
        return hasattr(value, "__cuda_array_interface__")
    try:
        return int(value.__dlpack_device__()[0]) not in HOST_DEVICES
    except Exception:  # noqa: BLE001 - pyarrow, of what DLPack cannot express; whether it can be read is seen next
        return False


def _from_nested(value: list[Any] | tuple[Any, ...], name: str) -> Array:
    """Make an array of nested lists a level at a time, which visits no element in Python."""
    depth, first = 1, value[:1]
    while first and isinstance(first[0], (list, tuple)):
        depth, first = depth + 1, first[0]
        if depth > DEEPEST:
            raise InvalidInput(f"Input {name!r} has more than {DEEPEST} dimensions, or holds itself.")
    shape: list[int] = [len(value)]
    level: Sequence[Any] = value
    kinds = set(map(type, level))
    while kinds and all(issubclass(kind, (list, tuple)) for kind in kinds):
        sizes = set(map(len, level))
        if len(sizes) > 1:
            lengths = [len(item) for item in level]
            other = next(place for place, length in enumerate(lengths) if length != lengths[0])
            first, place = ([int(at) for at in np.unravel_index(one, shape)] for one in (0, other))
            raise InvalidInput(
                f"Input {name!r} is ragged: its nested lists have different lengths, {lengths[0]} at {first} and "
                f"{lengths[other]} at {place}."
            )
        shape += sizes
        level = list(chain.from_iterable(level))
        kinds = set(map(type, level))
    if any(map(_is_array_like, kinds)):
        joined = stacked([to_array(item, name) for item in level], name)
        return joined.reshape((*shape, *joined.shape[1:]))
    return typed(level, kinds, shape)


def _from_objects(array: Array, name: str) -> Array:
    """Give an object array the NumPy type that all its elements have, if they have one."""
    flat = array.ravel().tolist()
    kinds = set(map(type, flat))
    if any(map(_is_array_like, kinds)):
        joined = _from_nested(flat, name)
        return joined.reshape(array.shape + joined.shape[1:])
    return typed(flat, kinds, array.shape)


def _is_array_like(kind: type) -> bool:
    return not issubclass(kind, (str, bytes, np.generic)) and any(hasattr(kind, mark) for mark in ARRAY_LIKE)


def typed(flat: Sequence[Any], kinds: Iterable[type], shape: Sequence[int]) -> Array:
    """Make an array of scalars: of the NumPy type that holds all of them as they are, else of objects.

    Args:
        flat: The scalars, row by row.
        kinds: Their Python types.
        shape: Of the array.
    """
    kinds = tuple(kinds)
    dtype: Any = np.object_
    if not flat or all(issubclass(kind, float) for kind in kinds):
        dtype = np.float64
    elif all(issubclass(kind, (bool, np.bool_)) for kind in kinds):
        dtype = np.bool_
    elif len(kinds) == 1 and (issubclass(kinds[0], np.number) or kinds[0].__name__ == "bfloat16"):
        dtype = flat[0].dtype
    elif all(issubclass(kind, (int, np.integer)) and kind is not bool for kind in kinds):
        # NumPy wraps its own integers in silence, and refuses Python's.
        return _integers(flat if kinds == (int,) else list(map(int, flat)), flat, shape)
    if dtype is np.object_:
        return np.fromiter(flat, np.object_, len(flat)).reshape(shape)
    return np.array(flat, dtype).reshape(shape)


def _integers(numbers: Sequence[int], flat: Sequence[Any], shape: Sequence[int]) -> Array:
    # NumPy 1 would wrap a negative number.
    for dtype in (np.int64,) if min(numbers, default=0) < 0 else (np.int64, np.uint64):
        with suppress(OverflowError):
            return np.array(numbers, dtype).reshape(shape)
    return np.fromiter(flat, np.object_, len(flat)).reshape(shape)


def stacked(parts: Sequence[Array], name: str) -> Array:
    """Put arrays of one shape on top of each other; NumPy alone would make an int64 beside a float a float.

    Raises:
        InvalidInput: They have different shapes.
    """
    if not parts:
        return np.empty((0,))
    if len({part.shape for part in parts}) > 1:
        shapes = sorted({str(list(part.shape)) for part in parts})
        raise InvalidInput(
            f"Input {name!r} is ragged: its parts have different shapes: {', '.join(shapes[:5])}."
        )
    if parts[0].ndim >= DEEPEST:
        raise InvalidInput(f"Input {name!r} has more than {DEEPEST} dimensions.")
    if len({part.dtype for part in parts}) == 1 and parts[0].dtype != np.object_:
        return np.stack(parts)
    return _from_objects(np.stack([part.astype(np.object_) for part in parts]), name)


def column(values: pd.Series[Any] | pd.Index[Any], name: str) -> Array:
    """Make an array of a pandas column; one row is one item of the first dimension.

    Raises:
        InvalidInput: A value is missing, or as for `to_array`.
    """
    items: list[Any] = values.tolist() if values.dtype == np.object_ else []
    if isinstance(values.dtype, np.dtype) and values.dtype.kind in "Of":
        # NaN is a value among NumPy's floats; pandas' own types have it for what is missing.
        absent = MISSING & set(map(type, items))
        missing = [row for row, item in enumerate(items) if type(item) in absent] if absent else []
    else:
        missing = np.flatnonzero(values.isna()).tolist()
    if missing:
        raise InvalidInput(
            f"Input {name!r} has no value in row {missing[0]}. Triton has no missing values: fill it."
        )
    if values.dtype == np.object_:
        return _from_nested(items, name)
    array = values.to_numpy()
    return _from_objects(array, name) if array.dtype == np.object_ else array
