"""Arrays in every form that a caller may hold them in; TENSOR_EXAMPLES says how many are tried (20,000 for a proof)."""

from __future__ import annotations

import json
import os
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from mlflow_triton.tensors.datatypes import DATATYPES

if TYPE_CHECKING:
    from collections.abc import Callable

Array = np.ndarray[Any, Any]

EXAMPLES = int(os.environ.get("TENSOR_EXAMPLES", "150"))


class Foreign:
    """Another library's array."""

    def __init__(self, array: Array) -> None:
        self._array = array

    def __array__(self, dtype: Any = None, copy: Any = None) -> Array:
        return self._array


def as_text(array: Array) -> Any:
    """Give BYTES as text, which JSON needs; skip what no text is."""
    if array.dtype != np.object_:
        return array
    return np.fromiter((item.decode() for item in array.flat), object, array.size).reshape(array.shape)


def document(array: Array) -> Any:
    """What JSON makes of an array's values."""
    return json.loads(json.dumps(as_text(array).tolist()))


def spaced(array: Array) -> Array:
    """Return a view of every other element of an array twice as long."""
    return np.repeat(array, 2, axis=0)[::2]


def frozen(array: Array) -> Array:
    """Return a copy that nobody may write to."""
    copy = array.copy()
    copy.flags.writeable = False
    return copy


def unaligned(array: Array) -> Array:
    """Return a copy that begins at an odd address, if it can."""
    if array.dtype == np.object_ or not array.size:
        return array
    return np.frombuffer(b"\0" + array.tobytes(), array.dtype, offset=1).reshape(array.shape)


#: By name: an array to what a caller may hold in its place. Those of `WHOLE` keep NaN's payload, too.
FORMS: dict[str, Callable[[Array], Any]] = {
    "array": lambda array: {"x": array},
    "fortran": lambda array: {"x": np.asfortranarray(array)},
    "big-endian": lambda array: {
        "x": array if array.dtype.kind in "OV" else array.astype(array.dtype.newbyteorder(">"))
    },
    "strided": lambda array: {"x": spaced(array)},
    "reversed": lambda array: {"x": array[::-1].copy()[::-1]},
    "transposed": lambda array: {"x": array.T.copy().T},
    "read-only": lambda array: {"x": frozen(array)},
    "unaligned": lambda array: {"x": unaligned(array)},
    "foreign": lambda array: {"x": Foreign(array)},
    "alone": lambda array: array,
    "lists": lambda array: {"x": array.tolist()},
    "list of arrays": lambda array: {"x": list(array)},
    "objects": lambda array: {"x": array.astype(object)},
    "lists alone": lambda array: array.tolist(),
    "inputs": lambda array: {"inputs": {"x": array.tolist()}},
    "instances": lambda array: {"instances": [{"x": row} for row in array.tolist()]},
    "records": lambda array: [{"x": row} for row in array],
    "column": lambda array: pd.DataFrame({"x": list(array)}, dtype=object),
    "typed column": lambda array: pd.DataFrame(
        {"x": list(array) if array.ndim > 1 or array.dtype.name == "bfloat16" else array}
    ),
    "series": lambda array: pd.Series(list(array), dtype=object),
    "split": lambda array: {"dataframe_split": {"columns": ["x"], "data": [[row] for row in array.tolist()]}},
    "request": lambda array: {
        "inputs": [
            {
                "name": "x",
                "shape": list(array.shape),
                "datatype": datatype_of(array),
                "data": document(array.ravel()),
            }
        ]
    },
}
WHOLE = ("array", "fortran", "big-endian", "strided", "reversed", "transposed", "read-only", "unaligned", "foreign", "alone")  # fmt: skip


def datatype_of(array: Array) -> str:
    """Name an array's datatype."""
    return (
        "BF16"
        if array.dtype.name == "bfloat16"
        else next(name for name, dtype in DATATYPES.items() if dtype == array.dtype)
    )
