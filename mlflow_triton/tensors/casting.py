"""Arrays to Triton's datatypes and shapes; and what may be cast to what.

A cast is made when no value changes, with one exception: a float is rounded to the nearest float
of the model's datatype, as a literal such as 0.1 must be, unless that makes a finite value infinite.
(MLflow's own onnx wrapper rounds float64 to float32 too.) It is the type of each value that counts:
of the list ``[16777217, 0.5]``, the integer is not rounded to FP32, but refused.

A lossy cast, if asked for, drops digits: a fraction is cut off towards zero, an integer becomes the
nearest float. Never a value that is out of range, or no number: nothing wraps.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from mlflow_triton.errors import InvalidInput
from mlflow_triton.tensors.arrays import typed
from mlflow_triton.tensors.datatypes import numpy_dtype
from mlflow_triton.tensors.declared import shown

if TYPE_CHECKING:
    from collections.abc import Sequence

__all__ = ["cast", "fit_shape"]

Array = np.ndarray[Any, Any]

EXACT_INTEGERS = {"FP16": 2**11, "BF16": 2**8, "FP32": 2**24, "FP64": 2**53}
"""Up to these, every integer is among the floats of a datatype."""


def fit_shape(array: Array, shape: Sequence[int], name: str) -> Array:
    """Give an array the shape that the model declares.

    A scalar has as many dimensions of 1 as it takes, and an empty list those that the model fixes: ``[]``
    for ``[-1, 3]`` has the shape ``[0, 3]``.

    Args:
        array: Any array.
        shape: The model's, batch dimension included; -1: any size.
        name: The tensor, for errors.

    Raises:
        InvalidInput: It has another shape.
    """
    if _fits(array.shape, shape):
        return array
    if array.ndim == 0 and _fits((1,) * len(shape), shape):
        return array.reshape((1,) * len(shape))
    if _fits(array.shape, shape[: array.ndim]) and array.size == 0 and min(shape[array.ndim :]) >= 0:
        return array.reshape((*array.shape, *shape[array.ndim :]))
    hint = ""
    if _fits((1, *array.shape), shape):
        hint = " Add the batch dimension: value[None]."
    elif _fits((*array.shape, 1), shape):
        hint = " Add the last dimension: value[..., None]."
    raise InvalidInput(
        f"Input {name!r} has the shape {list(array.shape)}, but the model wants {list(shape)} (-1: any size).{hint}"
    )


def _fits(shape: Sequence[int], declared: Sequence[int]) -> bool:
    return len(shape) == len(declared) and all(
        wanted in (-1, size) for wanted, size in zip(declared, shape, strict=True)
    )


def cast(array: Array, datatype: str, name: str, *, lossy: bool = False) -> Array:
    """Return the array in the model's datatype, contiguous and little-endian.

    Args:
        array: Any array; `mlflow_triton.tensors.arrays.to_array` makes one.
        datatype: Triton's, e.g. ``FP32``.
        name: The tensor, for errors.
        lossy: Digits may be dropped.

    Raises:
        InvalidInput: A value would change; names tensor, index, value and datatype.
    """
    target = numpy_dtype(datatype)
    if datatype == "BYTES":
        return _to_bytes(array, name)
    if array.dtype == target or array.dtype.newbyteorder("<") == target:
        return np.asarray(array, target, order="C")
    if array.size == 0:
        return np.empty(array.shape, target)
    result, misfits = _converted(array, target, datatype, lossy=lossy)
    if misfits is not None:
        raise _unfit(array, np.unravel_index(int(np.argmax(misfits)), array.shape), datatype, name)
    return np.asarray(result, order="C")


def _converted(
    array: Array, target: np.dtype[Any], datatype: str, *, lossy: bool
) -> tuple[Array, Array | None]:
    """Cast, and say which elements that does not fit, if any."""
    if array.dtype == np.object_:
        return _by_kind(array, target, datatype, lossy=lossy)
    if array.dtype.kind not in "biuf" and array.dtype.name != "bfloat16":
        return np.zeros(array.shape, target), np.ones(array.shape, np.bool_)
    if array.dtype.name == "bfloat16":
        array = array.astype(np.float32)
    with np.errstate(all="ignore"):
        if array.dtype.kind == "b" or datatype == "BOOL":
            result = array.astype(target)
            return result, _any(result.astype(array.dtype) != array)
        if datatype not in EXACT_INTEGERS:
            return _to_integers(array, target, lossy=lossy)
        return _to_floats(array, target, datatype, lossy=lossy)


def _to_floats(
    array: Array, target: np.dtype[Any], datatype: str, *, lossy: bool
) -> tuple[Array, Array | None]:
    if array.dtype.kind == "f":
        result = _rounded(array, target)
        finite = np.isfinite(result)
        return result, None if finite.all() else _any(np.isfinite(array) & ~finite)
    result = array.astype(target)
    highest = EXACT_INTEGERS[datatype]
    if -highest <= int(array.min()) and int(array.max()) <= highest:
        return result, None
    if lossy:
        result = _rounded(array.astype(np.float64), target)
        return result, _any(~np.isfinite(result))
    wide = result.astype(np.float64)
    inside = _whole(wide, array.dtype)
    return result, _any(~(inside & (np.where(inside, wide, 0).astype(array.dtype) == array)))


def _any(misfits: Array) -> Array | None:
    return misfits if misfits.any() else None


def _to_integers(array: Array, target: np.dtype[Any], *, lossy: bool) -> tuple[Array, Array | None]:
    limits = np.iinfo(target)
    if array.dtype.kind == "f":
        numbers = np.trunc(array) if lossy else array
        inside = _whole(numbers, target)
        return numbers.astype(target), _any(~inside)
    result = array.astype(target)
    if limits.min <= int(array.min()) and int(array.max()) <= limits.max:
        return result, None
    # Back again, and the sign kept.
    return result, _any((result.astype(array.dtype) != array) | ((result < 0) != (array < 0)))


def _whole(floats: Array, integers: np.dtype[Any]) -> Array:
    """Say which floats are among the integers of a type."""
    limits = np.iinfo(integers)
    low = floats.dtype.type(limits.min)
    # One more than the highest integer, which floats cannot express themselves.
    beyond = np.ldexp(floats.dtype.type(1), limits.bits - (limits.kind == "i"))
    return np.asarray(
        np.isfinite(floats) & (np.trunc(floats) == floats) & (floats >= low) & (floats < beyond)
    )


def _rounded(array: Array, target: np.dtype[Any]) -> Array:
    """Round to the nearest float."""
    if target.name != "bfloat16" or array.itemsize <= 4:
        return array.astype(target)
    # ml_dtypes goes through float32, which rounds twice. To the odd neighbour first, the second one is right.
    array = np.ascontiguousarray(array, np.float64).reshape(array.shape)
    halfway = array.astype(np.float32)
    wide = halfway.astype(np.float64)
    inexact = np.isfinite(halfway) & (wide != array)
    bits = halfway.view(np.int32)
    bits -= inexact & (np.abs(wide) > np.abs(array))
    bits |= inexact
    return halfway.astype(target)


def _by_kind(
    array: Array, target: np.dtype[Any], datatype: str, *, lossy: bool
) -> tuple[Array, Array | None]:
    """Cast elements that have no NumPy type in common, such as a boolean beside an integer, type by type."""
    flat = array.ravel().tolist()
    kinds = list(map(type, flat))
    result = np.zeros(len(flat), target)
    misfits = np.zeros(len(flat), np.bool_)
    for kind in set(kinds):
        places = np.flatnonzero([one is kind for one in kinds])
        members = [flat[place] for place in places]
        part = typed(members, {kind}, places.shape)
        if part.dtype != np.object_:
            result[places], wrong = _converted(part, target, datatype, lossy=lossy)
            if wrong is not None:
                misfits[places] = wrong
        elif issubclass(kind, int):
            for place, member in zip(places, members, strict=True):
                result[place], misfits[place] = _from_long(member, target, datatype, lossy=lossy)
        else:
            misfits[places] = True
    return result.reshape(array.shape), _any(misfits.reshape(array.shape))


def _from_long(number: int, target: np.dtype[Any], datatype: str, *, lossy: bool) -> tuple[Any, bool]:
    """Cast one integer of any length; say whether it does not fit."""
    single = typed([number], {int}, ())
    if single.dtype == np.object_:
        try:
            nearest = float(number)
        except OverflowError:
            return 0, True
        if datatype not in EXACT_INTEGERS or not (lossy or nearest == number):
            return 0, True
        single = np.array(nearest)
        with np.errstate(all="ignore"):
            rounded = _rounded(single, target)
        return rounded[()], not np.isfinite(rounded) or not (lossy or float(rounded) == number)
    result, misfits = _converted(single, target, datatype, lossy=lossy)
    return result[()], misfits is not None


def _unfit(array: Array, index: tuple[Any, ...], datatype: str, name: str) -> InvalidInput:
    place = ", ".join(str(int(part)) for part in index)
    value = array[index]
    text = (
        f"{value if array.dtype.kind in 'biuf' else shown(value.item())} ({array.dtype})"
        if array.dtype != np.object_
        else f"{shown(value)} ({type(value).__name__})"
    )
    alone = array[(*index, None)]
    _, misfits = _converted(alone, numpy_dtype(datatype), datatype, lossy=True)
    allow = (
        " Or allow digits to be lost: allow_lossy=True, or TRITON_LOSSY_CASTS=true."
        if misfits is None
        else ""
    )
    dtype = numpy_dtype(datatype)
    limits = np.iinfo(dtype) if dtype.kind in "iu" else None
    held = "" if limits is None else f"{datatype} holds {limits.min} to {limits.max}. "
    return InvalidInput(
        f"Input {name!r}: the value {text} at [{place}] cannot become {datatype} without changing. {held}"
        f"Convert it first, in the way that you mean.{allow}"
    )


def _to_bytes(array: Array, name: str) -> Array:
    if array.size == 0:
        return np.empty(array.shape, np.object_)
    # Of anything but text, the first element says it all.
    flat = array.ravel()[: None if array.dtype.kind in "OSUT" else 1].tolist()
    kinds = set(map(type, flat))
    if kinds == {bytes}:
        encoded = flat
    elif kinds == {str} and all(map(str.isascii, flat)):
        encoded = list(map(str.encode, flat))
    else:
        encoded = [_element(element, index, array.shape, name) for index, element in enumerate(flat)]
    return np.fromiter(encoded, np.object_, len(encoded)).reshape(array.shape)


def _element(element: Any, position: int, shape: tuple[int, ...], name: str) -> bytes:
    if isinstance(element, (bytes, bytearray)):
        return bytes(element)
    try:
        return str.encode(element)
    except (TypeError, UnicodeEncodeError):
        place = ", ".join(str(int(part)) for part in np.unravel_index(position, shape))
        raise InvalidInput(
            f"Input {name!r}: the value {shown(element)} at [{place}] is neither bytes nor a str that UTF-8 can encode, "
            "as BYTES needs. Convert it first."
        ) from None
