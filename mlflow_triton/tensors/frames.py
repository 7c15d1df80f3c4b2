"""DataFrames to values by tensor, and what pandas' JSON reader did to them undone.

MLflow's CLI reads ``--input-path`` with ``pandas.read_json``, which takes names for numbers or dates
(``"00"`` becomes 0), and columns of plain values for what they look like. Names are found again;
values that cannot be known again are refused.
"""

from __future__ import annotations

import io
import json
import math
import warnings
from functools import lru_cache
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
from pandas.api.types import is_scalar

from mlflow_triton.errors import InvalidInput
from mlflow_triton.tensors.arrays import column, stacked, to_array
from mlflow_triton.tensors.declared import listed, require_known

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping, Sequence

    from mlflow_triton.tensors.declared import Declared

__all__ = ["document", "rows", "values"]

Array = np.ndarray[Any, Any]

EXACT = 2**53
"""Up to here, float64 has every integer."""


def document(frame: pd.DataFrame, keys: Sequence[str]) -> dict[str, Any] | None:
    """Find the JSON object with one of MLflow's keys that MLflow's CLI read as a frame, if it was one.

    Args:
        frame: What the caller passed.
        keys: MLflow's.

    Returns:
        The object; ``None`` if the frame is a table, or names tensors in its index.
    """
    columns = [label for label in frame.columns if label != "id"]
    if len(columns) != 1 or columns[0] not in keys:
        return None
    content = frame[columns[0]]
    if columns[0] == "dataframe_split":
        return {"dataframe_split": dict(zip(frame.index, content, strict=True))}
    if columns[0] == "dataframe_records" or (
        len(content) and all(isinstance(cell, dict) for cell in content)
    ):
        return {columns[0]: content.tolist()}
    return None


def values(
    frame: pd.DataFrame, declared: Mapping[str, Declared], signature: Callable[[], Sequence[str]]
) -> tuple[dict[str, Any], bool]:
    """Find each tensor's value in a frame; args as `mlflow_triton.tensors.forms.name_values`.

    Returns:
        Values by name; and whether the frame's rows are items of the batch.

    Raises:
        InvalidInput: Names do not fit, or a value cannot be known.
    """
    columns = _names(frame.columns, declared)
    if len(columns) != len(set(columns)):
        raise InvalidInput(f"The DataFrame has two columns of one name among {listed(columns)}.")
    # A model may have an input called "inputs" itself.
    wrapped = columns == ["inputs"] or (len(columns) == 1 and columns[0] not in declared)
    index = _names(frame.index, declared) if wrapped and len(frame) <= 2 * len(declared) else []
    if any(label in declared for label in index):
        if len(index) != len(set(index)):
            raise InvalidInput(f"The DataFrame names a tensor twice in its index: {listed(index)}.")
        require_known(index, declared)
        cells = frame.iloc[:, 0]
        for at, label in enumerate(index):
            if cells.dtype != np.object_:
                _checked(cells.iloc[[at]], label, declared[label])
        return dict(zip(index, cells, strict=True)), False
    if any(label in declared for label in columns):
        require_known(columns, declared)
        return {
            label: rows(frame.iloc[:, at], label, declared[label]) for at, label in enumerate(columns)
        }, True
    if len(declared) == 1 and columns:
        name, tensor = next(iter(declared.items()))
        if len(columns) > 1:
            frame = _ordered(frame, columns, signature())
        if (array := _table(frame, name, tensor)) is not None:
            return {name: array}, True
    raise _unnamed(columns, declared)


def _unnamed(columns: list[str], declared: Mapping[str, Declared]) -> InvalidInput:
    if columns == ["inputs"] and len(declared) > 1:
        return InvalidInput(
            f"The inputs have no names, but the model has {len(declared)} inputs ({listed(declared)}): write "
            '{"inputs": {NAME: …, …}}.'
        )
    return InvalidInput(
        f"The DataFrame has {f'the columns {listed(columns)}' if columns else 'no columns'}, but the model wants "
        f"{listed(declared)}: name a column after each tensor."
    )


def _ordered(frame: pd.DataFrame, columns: list[str], signature: Sequence[str]) -> pd.DataFrame:
    """Put columns into the order of the model's signature, unless one of the two has no names.

    Raises:
        InvalidInput: The names differ.
    """
    if not signature or columns == list(signature) or frame.columns.equals(pd.RangeIndex(len(columns))):
        return frame
    if set(columns) != set(signature):
        raise InvalidInput(
            f"The DataFrame has the columns {listed(columns)}, but the model's signature has {listed(signature)}."
        )
    return frame.iloc[:, [columns.index(name) for name in signature]]


def _table(frame: pd.DataFrame, name: str, tensor: Declared) -> Array | None:
    """Make one array of all columns, the last dimension; ``None``: they are no plain values."""
    if frame.shape[1] == 1:
        return rows(frame.iloc[:, 0], name, tensor)
    types = {*frame.dtypes}
    dtype = types.pop()
    # Columns of one type, of which none could be refused.
    taken = "biu" if tensor.datatype.startswith(("INT", "UINT")) else "biuf"
    if not types and isinstance(dtype, np.dtype) and dtype.kind in taken and tensor.datatype != "BYTES":
        return frame.to_numpy()
    parts = [_checked(frame.iloc[:, at], name, tensor) for at in range(frame.shape[1])]
    return np.moveaxis(stacked(parts, name), 0, 1) if all(part.ndim == 1 for part in parts) else None


def rows(items: pd.Series[Any] | list[Any], name: str, tensor: Declared) -> Array:
    """Make an array of rows: each one is an item of the first dimension.

    Plain values fit a tensor of the shape ``[-1, 1]``, too.

    Raises:
        InvalidInput: They are no array, or cannot be known.
    """
    array = _checked(items, name, tensor) if isinstance(items, pd.Series) else to_array(items, name)
    if array.ndim == 1 and len(tensor.shape) == 2 and tensor.shape[1] in (1, -1):
        return array[:, np.newaxis]
    return array


def _checked(items: pd.Series[Any], name: str, tensor: Declared) -> Array:
    """Make an array of a column, unless pandas may have changed what once stood there."""
    array = column(items, name)
    what = ""
    if items.dtype == np.object_ or not array.size:
        return array
    if array.dtype.kind == "M":
        what = "a column of dates, which pandas makes of numbers and texts in a column of such a name"
    elif tensor.datatype == "BYTES" and array.dtype.kind in "iufb":
        what = 'a column of numbers, which pandas makes of texts such as "007"'
    elif array.dtype.kind == "f" and tensor.datatype.startswith(("INT", "UINT")):
        beyond = np.flatnonzero(np.isfinite(array) & (np.abs(array) > EXACT))
        if beyond.size:
            what = (
                f"a column of floats with {array[beyond[0]]} in row {beyond[0]}, beyond which pandas rounds integers "
                "beside a fraction or a missing value"
            )
    if what:
        raise InvalidInput(
            f"Input {name!r} is {what}: what was meant for {tensor.datatype} cannot be known. Convert the column, or "
            f'write it in the JSON file as {{"inputs": {{{json.dumps(name)}: [[…], …]}}}}, which pandas leaves alone.'
        )
    return array


def _names(labels: Iterable[Any], declared: Mapping[str, Declared]) -> list[str]:
    """Return labels as text; one that pandas made of a tensor's name becomes that name again."""
    read: list[tuple[str, Any]] | None = None
    names = []
    for label in labels:
        name = str(label)
        if not isinstance(label, str) and name not in declared:
            read = [(known, _as_read(known)) for known in declared] if read is None else read
            meant = [
                known
                for known, other in read
                if (is_scalar(label) and other == label) or (_is_missing(other) and _is_missing(label))
            ]
            if len(meant) > 1:
                raise InvalidInput(
                    f"The label {name} may be any of the inputs {listed(meant)}, all of which pandas reads as that. "
                    "Pass a dict in Python."
                )
            name = meant[0] if meant else name
        names.append(name)
    return names


def _is_missing(label: Any) -> bool:
    """Say whether pandas made nothing of a name, which no version of it calls equal to itself."""
    return label is pd.NaT or (isinstance(label, float) and math.isnan(label))


@lru_cache(maxsize=1024)
def _as_read(name: str) -> Any:
    """Return what pandas' JSON reader makes of a name."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            return pd.read_json(io.StringIO(json.dumps({"": {name: 0}}))).index[0]
        except ValueError:
            return name
