"""What a caller holds to the named tensors that a model wants; and what may be cast to what.

A cast is made when no value changes, with one exception: a float is rounded to the nearest float
of the model's datatype, as a literal such as 0.1 must be, unless that makes a finite value infinite.
(MLflow's own onnx wrapper rounds float64 to float32 too.)
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from mlflow_triton.errors import InvalidInput
from mlflow_triton.tensors.datatypes import numpy_dtype

if TYPE_CHECKING:
    from collections.abc import Iterable

__all__ = ["cast", "check_shape", "name_values", "to_array"]

Array = np.ndarray[Any, Any]


def name_values(inputs: Any, names: Sequence[str], ranks: Mapping[str, int]) -> dict[str, Any]:
    """Find each tensor's value in whatever the caller passed.

    Args:
        inputs: A mapping from tensor name to array, nested lists or scalar, also inside
            ``{"inputs": …}``; a DataFrame with a column per tensor, or with one column whose index
            names the tensors (what MLflow's CLI makes of ``{"inputs": {NAME: …}}``); a list of records;
            or, for a model with one input, its value alone or a numeric DataFrame.
        names: The model's input names.
        ranks: The number of dimensions of each, the batch dimension included.

    Returns:
        Values by name, for the names that were given.

    Raises:
        InvalidInput: The form is not understood, or names do not fit.
    """
    if inputs is None:
        raise InvalidInput(f"No inputs were given. The model wants {_listed(names)}.")
    if isinstance(inputs, pd.Series):
        inputs = inputs.to_frame()
    if isinstance(inputs, pd.DataFrame):
        return _from_frame(inputs, names, ranks)
    if isinstance(inputs, Mapping):
        if set(inputs) == {"inputs"} and "inputs" not in names:
            return name_values(inputs["inputs"], names, ranks)
        return _checked_names({str(key): value for key, value in inputs.items()}, names)
    if isinstance(inputs, Sequence) and len(inputs) > 0 and all(isinstance(item, Mapping) for item in inputs):
        return _from_records(inputs, names, ranks)
    if isinstance(inputs, (str, bytes)):
        raise InvalidInput(
            f"The inputs are a {type(inputs).__name__}: pass a dict of arrays by tensor name. The model wants {_listed(names)}."
        )
    if len(names) != 1:
        raise InvalidInput(
            f"The inputs are one unnamed {type(inputs).__name__}, but the model has {len(names)} inputs "
            f"({_listed(names)}): pass a dict of arrays by tensor name."
        )
    return {names[0]: inputs}


def _listed(names: Iterable[str]) -> str:
    return ", ".join(repr(name) for name in names)


def _checked_names(values: dict[str, Any], names: Sequence[str]) -> dict[str, Any]:
    if unknown := [name for name in values if name not in names]:
        raise InvalidInput(f"The model has no input {_listed(unknown)}. It wants {_listed(names)}.")
    return values


def _from_frame(frame: pd.DataFrame, names: Sequence[str], ranks: Mapping[str, int]) -> dict[str, Any]:
    columns = [str(label) for label in frame.columns]
    if len(columns) != len(set(columns)):
        raise InvalidInput(f"The DataFrame has two columns of one name among {_listed(columns)}.")
    if any(column in names for column in columns):
        _checked_names(dict.fromkeys(columns), names)
        return {
            column: _stack(list(frame.iloc[:, position]), column, ranks, frame.dtypes.iloc[position])
            for position, column in enumerate(columns)
        }
    index = [str(label) for label in frame.index]
    if len(columns) == 1 and any(label in names for label in index):
        if len(index) != len(set(index)):
            raise InvalidInput(f"The DataFrame names a tensor twice in its index: {_listed(index)}.")
        return _checked_names(dict(zip(index, frame.iloc[:, 0], strict=True)), names)
    if len(names) == 1:
        numeric = all(pd.api.types.is_numeric_dtype(dtype) for dtype in frame.dtypes)
        if len(columns) == 1:
            return {names[0]: _stack(list(frame.iloc[:, 0]), names[0], ranks, frame.dtypes.iloc[0])}
        if numeric:
            return {names[0]: frame.to_numpy()}
    raise InvalidInput(
        f"The DataFrame has the columns {_listed(columns)}, but the model wants {_listed(names)}: "
        "name a column after each tensor."
    )


def _from_records(
    records: Sequence[Mapping[Any, Any]], names: Sequence[str], ranks: Mapping[str, int]
) -> dict[str, Any]:
    given = [{str(key): value for key, value in record.items()} for record in records]
    for number, record in enumerate(given):
        _checked_names(record, names)
        if set(record) != set(given[0]):
            raise InvalidInput(
                f"Record {number} has {_listed(record)}, but record 0 has {_listed(given[0])}."
            )
    return {name: _stack([record[name] for record in given], name, ranks, None) for name in given[0]}


def _stack(rows: list[Any], name: str, ranks: Mapping[str, int], dtype: Any) -> Any:
    """Join the rows of a column: one row is one item of the first dimension."""
    if dtype is not None and dtype != np.object_:
        array = _plain(pd.array(rows, dtype=dtype), name)
    else:
        arrays = [to_array(row, name) for row in rows]
        if len({item.shape for item in arrays}) > 1:
            shapes = sorted({str(list(item.shape)) for item in arrays})
            raise InvalidInput(f"Input {name!r}: the rows have different shapes: {', '.join(shapes)}.")
        array = np.stack(arrays) if arrays else np.empty((0,))
    # A column of plain values for a tensor of shape [-1, 1].
    return array.reshape(*array.shape, 1) if array.ndim == 1 and ranks.get(name) == 2 else array


def _plain(values: Any, name: str) -> Array:
    """Turn a pandas array into a NumPy one, with its missing values refused, not guessed."""
    missing = np.flatnonzero(np.asarray(pd.isna(values)))
    array = (
        np.asarray(values) if not pd.api.types.is_extension_array_dtype(values.dtype) else values.to_numpy()
    )
    if missing.size and array.dtype.kind != "f":
        raise InvalidInput(
            f"Input {name!r} has no value in row {missing[0]}. Triton has no missing values: fill it."
        )
    return np.asarray(array)


def to_array(value: Any, name: str) -> Array:
    """Make an array of anything array-like, without changing a value.

    Raises:
        InvalidInput: It is ragged, masked, sparse or no array at all.
    """
    _refuse(value, name)
    if isinstance(value, (pd.Series, pd.Index)):
        return _plain(value.array, name)
    if isinstance(value, (bytes, bytearray, memoryview)):
        scalar = np.empty((), np.object_)
        scalar[()] = bytes(value)
        return scalar
    if isinstance(value, np.ma.MaskedArray):
        value = value.data
    if isinstance(value, np.ndarray):
        return _flattened(value, name) if value.dtype == np.object_ else np.asarray(value)
    if isinstance(value, (list, tuple)):
        return _from_nested(value, name)
    try:
        array = np.asarray(value)
    except Exception as error:  # noqa: BLE001 - whatever a foreign object's __array__ raises
        raise InvalidInput(f"Input {name!r} ({type(value).__name__}) is not an array: {error}.") from None
    if array.dtype == np.object_ and array.ndim == 0 and value is not None:
        raise InvalidInput(f"Input {name!r} is a {type(value).__name__}, not an array.")
    return array


def _refuse(value: Any, name: str) -> None:
    if isinstance(value, np.ma.MaskedArray) and np.ma.is_masked(value):
        raise InvalidInput(
            f"Input {name!r} has masked elements. Triton has no missing values: use .filled(…)."
        )
    if type(value).__module__.startswith("scipy.sparse"):
        raise InvalidInput(f"Input {name!r} is a sparse matrix. Triton takes dense tensors: use .toarray().")
    if isinstance(value, Mapping):
        raise InvalidInput(f"Input {name!r} is a mapping, not an array.")


def _from_nested(value: Any, name: str) -> Array:
    """Make an array of nested lists, keeping Python's own kinds of values apart."""
    try:
        array = np.array(value, dtype=np.object_)
    except ValueError:
        raise InvalidInput(f"Input {name!r} is ragged: its nested lists have different lengths.") from None
    return _flattened(array, name)


def _flattened(array: Array, name: str) -> Array:
    """Give an object array the NumPy type that all its elements have, if they have one."""
    kinds = {type(element) for element in array.flat}
    if any(issubclass(kind, (list, tuple, np.ndarray)) for kind in kinds):
        if len({np.shape(element) for element in array.flat}) > 1:
            raise InvalidInput(f"Input {name!r} is ragged: its nested lists have different lengths.")
        parts = [to_array(element, name) for element in array.flat]
        return np.stack(parts).reshape(array.shape + parts[0].shape)
    if not kinds:
        return array.astype(np.float64)
    if all(issubclass(kind, (bool, np.bool_)) for kind in kinds):
        return array.astype(np.bool_)
    if all(issubclass(kind, (int, np.integer)) and kind is not bool for kind in kinds):
        low, high = min(array.flat), max(array.flat)
        fitting = [
            kind for kind in (np.int64, np.uint64) if np.iinfo(kind).min <= low and high <= np.iinfo(kind).max
        ]
        return array.astype(fitting[0]) if fitting else array
    if all(issubclass(kind, (int, float, np.integer, np.floating)) and kind is not bool for kind in kinds):
        # JSON writes 1 for 1.0; an integer beyond 2**53 would change beside a float.
        exact = all(float(element) == element for element in array.flat if element == element)  # noqa: PLR0124 - NaN
        return array.astype(np.float64) if exact else array
    return array


def check_shape(array: Array, shape: Sequence[int], name: str) -> None:
    """Compare an array's shape with the one that the model declares (-1: any size).

    Raises:
        InvalidInput: They do not fit.
    """
    fits = array.ndim == len(shape) and all(
        wanted in (-1, size) for wanted, size in zip(shape, array.shape, strict=True)
    )
    if not fits:
        hint = ""
        if array.ndim == len(shape) - 1 and all(
            w in (-1, s) for w, s in zip(shape[1:], array.shape, strict=True)
        ):
            hint = " Add the batch dimension: value[None]."
        raise InvalidInput(
            f"Input {name!r} has the shape {list(array.shape)}, but the model wants {list(shape)} (-1: any size).{hint}"
        )


def cast(array: Array, datatype: str, name: str) -> Array:
    """Return the array in the model's datatype, contiguous and little-endian.

    Args:
        array: Any array; `to_array` makes one.
        datatype: Triton's, e.g. ``FP32``.
        name: The tensor, for errors.

    Raises:
        InvalidInput: A value would change; names tensor, index, value and datatype.
    """
    target = numpy_dtype(datatype)
    if datatype == "BYTES":
        return _to_bytes(array, name)
    if array.dtype == target:
        return np.ascontiguousarray(array).reshape(array.shape)
    if array.dtype.newbyteorder("<") == target or array.size == 0:
        return np.ascontiguousarray(array, target).reshape(array.shape)
    kind = array.dtype.kind
    floating = datatype in ("FP16", "BF16", "FP32", "FP64")
    if kind not in "biuf" and not (kind == "V" and array.dtype.name == "bfloat16"):
        raise _unfit(array, None, datatype, name)
    if datatype == "BOOL" and kind == "f":
        raise _unfit(array, None, datatype, name)
    with np.errstate(all="ignore"):
        result = array.astype(target)
        if floating and kind not in "biu":
            changed = np.isfinite(array) & ~np.isfinite(result)
        else:
            changed = ~_equal(array, result)
    if changed.any():
        raise _unfit(array, np.unravel_index(int(np.argmax(changed)), array.shape), datatype, name)
    return np.ascontiguousarray(result).reshape(array.shape)


def _equal(before: Array, after: Array) -> Array:
    """Compare elementwise and exactly: NumPy alone would compare an int64 with a float as two floats."""
    if before.dtype.kind == "f":
        # Float to integer: whole, and inside the range that the float's own comparison can express.
        limits = np.iinfo(after.dtype)
        whole = np.isfinite(before) & (np.trunc(before) == before)
        inside = (before >= before.dtype.type(limits.min)) & (
            before < np.ldexp(before.dtype.type(1), _bits(after))
        )
        return np.asarray(whole & inside)
    if after.dtype.kind in "fV":
        limit = np.float64(2.0**64)
        wide = after.astype(np.float64)
        inside = np.isfinite(wide) & (np.abs(wide) < (limit if before.dtype.kind == "u" else 2.0**63))
        back = np.where(inside, wide, 0).astype(before.dtype)
        return np.asarray((back == before) & (inside | ((before == 0) & (wide == 0))))
    # Between integers (and booleans): back again, and the sign kept.
    return np.asarray((after.astype(before.dtype) == before) & ((after < 0) == (before < 0)))


def _bits(integers: Array) -> int:
    info = np.iinfo(integers.dtype)
    return info.bits - (1 if info.kind == "i" else 0)


def _unfit(array: Array, index: Any, datatype: str, name: str) -> InvalidInput:
    if index is None and array.dtype == np.object_:
        strange = [not isinstance(element, (int, float, np.number)) for element in array.flat]
        index = np.unravel_index(strange.index(True) if any(strange) else 0, array.shape)
    if index is None:
        return InvalidInput(
            f"Input {name!r} is an array of {array.dtype}, which cannot become {datatype} as it is. Convert it first."
        )
    place = ", ".join(str(int(part)) for part in index)
    value = array[index]
    shown = f"{value} ({array.dtype})" if array.dtype != np.object_ else f"{value!r} ({type(value).__name__})"
    return InvalidInput(
        f"Input {name!r}: the value {shown} at [{place}] cannot become {datatype} without changing. "
        "Convert it first, in the way that you mean."
    )


def _to_bytes(array: Array, name: str) -> Array:
    result = np.empty(array.shape, np.object_)
    for index, element in np.ndenumerate(array):
        if isinstance(element, bytes):
            result[index] = element
            continue
        try:
            result[index] = element.encode()
        except (AttributeError, UnicodeEncodeError):
            place = ", ".join(map(str, index))
            raise InvalidInput(
                f"Input {name!r}: the value {element!r} at [{place}] is neither bytes nor a str that UTF-8 can encode, "
                "as BYTES needs. Convert it first."
            ) from None
    return result
