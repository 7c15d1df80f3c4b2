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
        if set(inputs) == {"inputs"} and ("inputs" not in names or isinstance(inputs["inputs"], Mapping)):
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
    # A model may have an input called "inputs" itself.
    wrapped = columns == ["inputs"] or (len(columns) == 1 and columns[0] not in names)
    index = [str(label) for label in frame.index] if wrapped else []
    if any(label in names for label in index):
        if len(index) != len(set(index)):
            raise InvalidInput(f"The DataFrame names a tensor twice in its index: {_listed(index)}.")
        return _checked_names(dict(zip(index, frame.iloc[:, 0], strict=True)), names)
    if any(column in names for column in columns):
        _checked_names(dict.fromkeys(columns), names)
        return {
            column: _column(frame.iloc[:, position], column, ranks) for position, column in enumerate(columns)
        }
    if len(names) == 1:
        if len(columns) == 1:
            return {names[0]: _column(frame.iloc[:, 0], names[0], ranks)}
        if columns and all(pd.api.types.is_numeric_dtype(dtype) for dtype in frame.dtypes):
            parts = [_plain(frame.iloc[:, position], names[0]) for position in range(len(columns))]
            return {names[0]: np.moveaxis(_joined(parts, names[0]), 0, 1)}
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
    return {name: _column([record[name] for record in given], name, ranks) for name in given[0]}


def _column(values: pd.Series[Any] | list[Any], name: str, ranks: Mapping[str, int]) -> Array:
    """Join the rows of a column: one row is one item of the first dimension."""
    if isinstance(values, pd.Series) and values.dtype != np.object_:
        array = _plain(values, name)
    else:
        array = _joined([to_array(row, name) for row in values], name)
    # A column of plain values for a tensor of shape [-1, 1].
    return array.reshape(*array.shape, 1) if array.ndim == 1 and ranks.get(name) == 2 else array


def _joined(parts: list[Array], name: str) -> Array:
    """Put arrays of one shape on top of each other; NumPy alone would make an int64 beside a float a float."""
    if not parts:
        return np.empty((0,))
    if len({part.shape for part in parts}) > 1:
        shapes = sorted({str(list(part.shape)) for part in parts})
        raise InvalidInput(f"Input {name!r} is ragged: its parts have different shapes: {', '.join(shapes)}.")
    if len({part.dtype for part in parts}) == 1:
        return np.stack(parts)
    return _flattened(np.stack([part.astype(np.object_) for part in parts]), name)


def _plain(values: pd.Series[Any] | pd.Index[Any], name: str) -> Array:
    """Turn a pandas column into an array, with its missing values refused, not guessed."""
    missing = np.flatnonzero(values.isna())
    # NaN is a value among NumPy's floats; pandas' own types have it for what is missing.
    if missing.size and not (isinstance(values.dtype, np.dtype) and values.dtype.kind == "f"):
        raise InvalidInput(
            f"Input {name!r} has no value in row {missing[0]}. Triton has no missing values: fill it."
        )
    array = values.to_numpy()
    return _flattened(array, name) if array.dtype == np.object_ else array


def to_array(value: Any, name: str) -> Array:
    """Make an array of anything array-like, without changing a value.

    Raises:
        InvalidInput: It is ragged, masked, sparse or no array at all.
    """
    _refuse(value, name)
    if isinstance(value, (pd.Series, pd.Index)):
        return _plain(value, name)
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
    if isinstance(value, (int, str)):
        return _flattened(np.array(value, np.object_), name)
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


def _from_nested(value: list[Any] | tuple[Any, ...], name: str) -> Array:
    """Make an array of nested lists, keeping Python's own kinds of values apart."""
    if _has_arrays(value):
        # Whole arrays at a time: it is faster, and a masked one would lose its mask.
        return _joined([to_array(item, name) for item in value], name)
    try:
        array = np.array(value, dtype=np.object_)
    except ValueError:
        raise InvalidInput(f"Input {name!r} is ragged: its nested lists have different lengths.") from None
    return _flattened(array, name)


def _has_arrays(value: list[Any] | tuple[Any, ...]) -> bool:
    kinds = set(map(type, value))
    if any(issubclass(kind, np.ndarray) for kind in kinds):
        return True
    nested = any(issubclass(kind, (list, tuple)) for kind in kinds)
    return nested and any(_has_arrays(item) for item in value if isinstance(item, (list, tuple)))


def _flattened(array: Array, name: str) -> Array:
    """Give an object array the NumPy type that all its elements have, if they have one."""
    kinds = {type(element) for element in array.flat}
    if any(issubclass(kind, (list, tuple, np.ndarray)) for kind in kinds):
        joined = _joined([to_array(element, name) for element in array.flat], name)
        return joined.reshape(array.shape + joined.shape[1:])
    if not kinds:
        return array.astype(np.float64)
    if all(issubclass(kind, (bool, np.bool_)) for kind in kinds):
        return array.astype(np.bool_)
    if all(issubclass(kind, (int, np.integer)) and kind is not bool for kind in kinds):
        low, high = min(array.flat), max(array.flat)
        for integer in (np.int64, np.uint64):
            if np.iinfo(integer).min <= low and high <= np.iinfo(integer).max:
                return array.astype(integer)
    numbers = (int, float, np.integer, np.floating)
    # JSON writes 1 for 1.0; an integer beyond 2**53 would change beside a float.
    if all(issubclass(kind, numbers) and kind is not bool for kind in kinds):
        exact = kinds == {float} or all(map(_is_float, array.flat))
        return array.astype(np.float64) if exact else array
    return array


def _is_float(number: Any) -> bool:
    """Say whether a number is one of float64's."""
    number = number.item() if isinstance(number, np.generic) else number
    try:
        return bool(float(number) == number or number != number)  # noqa: PLR0124 - NaN
    except OverflowError:
        return False


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
    if array.dtype == np.object_:
        return _one_by_one(array, target, datatype, name)
    if array.dtype.name == "bfloat16":
        array = array.astype(np.float32)
    kind = array.dtype.kind
    if kind not in "biuf" or (datatype == "BOOL" and kind == "f"):
        raise InvalidInput(
            f"Input {name!r} is an array of {array.dtype}, which cannot become {datatype} as it is. Convert it first."
        )
    with np.errstate(all="ignore"):
        result = array.astype(target)
        if kind == "f" and datatype in ("FP16", "BF16", "FP32", "FP64"):
            changed = np.isfinite(array) & ~np.isfinite(result)
        else:
            changed = ~_equal(array, result)
    if changed.any():
        raise _unfit(array, np.unravel_index(int(np.argmax(changed)), array.shape), datatype, name)
    return np.ascontiguousarray(result).reshape(array.shape)


def _one_by_one(array: Array, target: np.dtype[Any], datatype: str, name: str) -> Array:
    """Cast elements that have no NumPy type in common, such as a boolean beside an integer."""
    result = np.empty(array.shape, target)
    for index, element in np.ndenumerate(array):
        single = np.asarray(element)
        if single.dtype.kind == "O":
            raise _unfit(array, index, datatype, name)
        try:
            result[index] = cast(single, datatype, name)
        except InvalidInput:
            raise _unfit(array, index, datatype, name) from None
    return result


def _equal(before: Array, after: Array) -> Array:
    """Compare elementwise and exactly: NumPy alone would compare an int64 with a float as two floats."""
    if before.dtype.kind == "f":
        return _whole(before, after.dtype)
    if before.dtype.kind == "b":
        return np.ones(before.shape, np.bool_)
    if after.dtype.kind in "fV":
        wide = after.astype(np.float64)
        inside = _whole(wide, before.dtype)
        return np.asarray(inside & (np.where(inside, wide, 0).astype(before.dtype) == before))
    # Between integers, and to booleans: back again, and the sign kept.
    return np.asarray((after.astype(before.dtype) == before) & ((after < 0) == (before < 0)))


def _whole(floats: Array, integers: np.dtype[Any]) -> Array:
    """Say which floats are among the integers of a type."""
    limits = np.iinfo(integers)
    low = floats.dtype.type(limits.min)
    # One more than the highest integer, which floats cannot express themselves.
    beyond = np.ldexp(floats.dtype.type(1), limits.bits - (limits.kind == "i"))
    return np.asarray(
        np.isfinite(floats) & (np.trunc(floats) == floats) & (floats >= low) & (floats < beyond)
    )


def _unfit(array: Array, index: tuple[Any, ...], datatype: str, name: str) -> InvalidInput:
    place = ", ".join(str(int(part)) for part in index)
    value = array[index]
    shown = (
        f"{value} ({array.dtype})"
        if array.dtype != np.object_
        else f"{_shown(value)} ({type(value).__name__})"
    )
    return InvalidInput(
        f"Input {name!r}: the value {shown} at [{place}] cannot become {datatype} without changing. "
        "Convert it first, in the way that you mean."
    )


def _shown(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:77]}..."


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
                f"Input {name!r}: the value {_shown(element)} at [{place}] is neither bytes nor a str that UTF-8 can encode, "
                "as BYTES needs. Convert it first."
            ) from None
    return result
