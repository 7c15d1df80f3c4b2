"""What a caller holds to a value for each input of the model, whatever its form."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from mlflow_triton.errors import InvalidInput
from mlflow_triton.tensors import frames
from mlflow_triton.tensors.arrays import to_array
from mlflow_triton.tensors.casting import cast
from mlflow_triton.tensors.datatypes import DATATYPES
from mlflow_triton.tensors.declared import listed, require_known, shown

if TYPE_CHECKING:
    from mlflow_triton.tensors.declared import Declared

__all__ = ["REQUEST_TENSOR", "Named", "name_values"]

ENVELOPES = ("inputs", "instances", "dataframe_split", "dataframe_records")
"""The keys of MLflow's scoring protocol; the first one is Triton's, too."""

REQUEST_TENSOR = {"name", "shape", "datatype", "data"}
"""The keys of a tensor in a request of the Open Inference Protocol."""


@dataclass(frozen=True, slots=True)
class Named:
    """A value for each input that was given.

    Attributes:
        by_input: Anything that `to_array` takes.
        rows: Whether the caller holds rows, each of which is an item of the batch: a table, which may be
            longer than the model's batch.
    """

    by_input: dict[str, Any]
    rows: bool = False


def name_values(
    inputs: Any, declared: Mapping[str, Declared], signature: Callable[[], Sequence[str]] = tuple
) -> Named:
    """Find each tensor's value in whatever the caller passed.

    Args:
        inputs: One of

            - a mapping from tensor name to array, nested lists or scalar (``None``: not given);
            - a DataFrame with a column per tensor, a Series, or a list of records: one row is one item;
            - a frame of one column whose index names the tensors, as MLflow's CLI makes of
              ``{"inputs": {NAME: …}}``;
            - a request of the Open Inference Protocol, ``{"inputs": [{name, shape, datatype, data}]}``;
            - what MLflow's scoring server takes: ``{"inputs": …}``, ``{"instances": …}``,
              ``{"dataframe_split": …}``, ``{"dataframe_records": …}``;
            - for a model with one input, its value alone, or a numeric DataFrame, whose columns are its
              last dimension, in the signature's order if it has their names.
        declared: The model's inputs by name.
        signature: Called where names are not the model's, for the input names of its MLflow signature; none if it
            has none.

    Raises:
        InvalidInput: The form is not understood, or names do not fit.
    """
    if inputs is None:
        raise InvalidInput(f"No inputs were given. The model wants {listed(declared)}.")
    if isinstance(inputs, pd.Series):
        inputs = inputs.to_frame()
    if isinstance(inputs, pd.DataFrame):
        document = frames.document(
            inputs, [key for key in ENVELOPES if key not in declared or key == "inputs"]
        )
        if document is not None:
            return name_values(document, declared, signature)
        return Named(*frames.values(inputs, declared, signature))
    if isinstance(inputs, Mapping):
        return _from_mapping(inputs, declared, signature)
    if isinstance(inputs, Sequence) and len(inputs) > 0 and all(isinstance(item, Mapping) for item in inputs):
        if all(set(item) >= REQUEST_TENSOR for item in inputs) and not set(declared) >= REQUEST_TENSOR:
            return _from_request(inputs, declared)
        _require_whole(inputs, declared, signature)
        return Named(_from_records(inputs, declared, signature), rows=True)
    return _unnamed(inputs, declared)


def _require_whole(
    records: Sequence[Mapping[Any, Any]],
    declared: Mapping[str, Declared],
    signature: Callable[[], Sequence[str]],
) -> None:
    """Refuse a request of the Open Inference Protocol that lacks something, before it is taken for records."""
    for number, record in enumerate(records):
        lacking = sorted(REQUEST_TENSOR - record.keys())
        if (
            lacking
            and record.keys() >= {"name", "datatype"}
            and "datatype" not in declared
            and "datatype" not in signature()
        ):
            raise InvalidInput(
                f"Tensor {number} of the request, {shown(record['name'])}, lacks {listed(lacking)}: a tensor has name, "
                "shape, datatype and data."
            )


def _unnamed(inputs: Any, declared: Mapping[str, Declared]) -> Named:
    kind = type(inputs).__name__
    if isinstance(inputs, (str, bytes)):
        raise InvalidInput(
            f"The inputs are a {kind}: pass a dict of arrays by tensor name. The model wants {listed(declared)}."
        )
    if hasattr(inputs, "to_pandas") and hasattr(inputs, "columns"):
        raise InvalidInput(
            f"The inputs are a table ({kind}) of another library than pandas: pass .to_pandas()."
        )
    if len(declared) != 1:
        raise InvalidInput(
            f"The inputs are one unnamed {kind}, but the model has {len(declared)} inputs "
            f"({listed(declared)}): pass a dict of arrays by tensor name."
        )
    return Named({next(iter(declared)): inputs})


def _from_mapping(
    inputs: Mapping[Any, Any], declared: Mapping[str, Declared], signature: Callable[[], Sequence[str]]
) -> Named:
    for key in ENVELOPES:
        # A model may have an input of that name itself.
        if key in inputs and (key not in declared or _wraps(inputs[key], declared)):
            others = [other for other in inputs if other not in (key, "id")]
            if others:
                raise InvalidInput(
                    f"The inputs have {listed(others)} beside {key!r}, which is not taken from there. Pass {key!r} alone."
                )
            return _unwrapped(key, inputs[key], declared, signature)
    return _by_name(inputs, declared, signature)


def _by_name(
    inputs: Mapping[Any, Any], declared: Mapping[str, Declared], signature: Callable[[], Sequence[str]]
) -> Named:
    values = {str(name): value for name, value in inputs.items()}
    if len(values) < len(inputs):
        raise InvalidInput(f"The inputs name a tensor twice: {listed(inputs)}.")
    if len(declared) == 1 and values and not values.keys() & declared.keys():
        names = list(signature())
        if len(names) == 1 and names == list(values):
            return Named(dict(zip(declared, values.values(), strict=True)))
        if set(names) == values.keys() and all(isinstance(value, (list, tuple)) for value in values.values()):
            return Named(*frames.values(_columns(values), declared, signature))
    require_known(values, declared)
    return Named({name: value for name, value in values.items() if value is not None})


def _columns(values: Mapping[str, Any]) -> pd.DataFrame:
    if len(set(map(len, values.values()))) > 1:
        raise InvalidInput(f"The columns {listed(values)} have different lengths.")
    return pd.DataFrame(dict(values), dtype=object)


def _wraps(value: Any, declared: Mapping[str, Declared]) -> bool:
    """Say whether a value under a key is all inputs, though an input has the key's name."""
    if isinstance(value, Mapping):
        return any(str(name) in declared for name in value)
    return (
        isinstance(value, list)
        and bool(value)
        and all(isinstance(item, Mapping) and set(item) >= REQUEST_TENSOR for item in value)
    )


def _unwrapped(
    key: str, value: Any, declared: Mapping[str, Declared], signature: Callable[[], Sequence[str]]
) -> Named:
    if key == "dataframe_split":
        return Named(*frames.values(_split_frame(value), declared, signature))
    if key == "dataframe_records" and not (
        isinstance(value, list) and all(isinstance(item, Mapping) for item in value)
    ):
        raise InvalidInput("'dataframe_records' is not a list of records, such as [{NAME: value, …}, …].")
    if (
        key == "dataframe_records"
        and value
        and not any(str(name) in declared for name in value[0])
        and all(record.keys() == value[0].keys() for record in value)
    ):
        return Named(*frames.values(pd.DataFrame(value, dtype=object), declared, signature))
    if (
        key == "instances"
        and isinstance(value, list)
        and not any(isinstance(item, Mapping) for item in value)
    ):
        named = name_values(value, declared, signature)
        return Named(
            {name: frames.rows(item, name, declared[name]) for name, item in named.by_input.items()},
            rows=True,
        )
    if isinstance(value, Mapping):
        return _by_name(value, declared, signature)
    return name_values(value, declared, signature)


def _split_frame(split: Any) -> pd.DataFrame:
    """Make a frame of ``{"columns": […], "data": [[…]]}``, in which pandas changes no value."""
    if (
        not isinstance(split, Mapping)
        or "data" not in split
        or not set(split) <= {"columns", "data", "index"}
    ):
        raise InvalidInput('\'dataframe_split\' is not of the form {"columns": […], "data": [[…], …]}.')
    data, columns = split["data"], split.get("columns")
    if not isinstance(data, list) or not all(isinstance(row, list) for row in data):
        raise InvalidInput("'dataframe_split' is no table: its data are not a list of rows.")
    # pandas fills a short row with NaN.
    widths = {len(row) for row in data} | ({len(columns)} if isinstance(columns, list) else set())
    if len(widths) > 1:
        raise InvalidInput(f"'dataframe_split' is no table: its rows and columns are {sorted(widths)} wide.")
    try:
        return pd.DataFrame(data, columns=columns, dtype=object)
    except Exception as error:  # noqa: BLE001 - whatever pandas raises at what are no columns
        raise InvalidInput(f"'dataframe_split' is no table: {' '.join(str(error).split())}") from None


def _from_records(
    records: Sequence[Mapping[Any, Any]],
    declared: Mapping[str, Declared],
    signature: Callable[[], Sequence[str]],
) -> dict[str, Any]:
    given = [{str(key): value for key, value in record.items()} for record in records]
    for number, record in enumerate(given):
        if record.keys() != given[0].keys():
            require_known(record, declared)
            raise InvalidInput(f"Record {number} has {listed(record)}, but record 0 has {listed(given[0])}.")
    if (
        len(declared) == 1
        and given[0]
        and not given[0].keys() & declared.keys()
        and set(signature()) == given[0].keys()
    ):
        return frames.values(pd.DataFrame(given, dtype=object), declared, signature)[0]
    require_known(given[0], declared)
    return {name: frames.rows([record[name] for record in given], name, declared[name]) for name in given[0]}


def _from_request(tensors: Sequence[Mapping[str, Any]], declared: Mapping[str, Declared]) -> Named:
    values: dict[str, Any] = {}
    for tensor in tensors:
        name = str(tensor["name"])
        require_known([name], declared)
        if name in values:
            raise InvalidInput(f"The inputs name a tensor twice: {name!r}.")
        shape, datatype = tensor["shape"], tensor["datatype"]
        if not isinstance(shape, (list, tuple)) or not all(type(size) is int and size >= 0 for size in shape):
            raise InvalidInput(f"Input {name!r} has the shape {shape!r}, which is not a list of sizes.")
        if not isinstance(datatype, str):
            raise InvalidInput(f"Input {name!r} has the datatype {datatype!r}, which is no name of one.")
        if datatype not in (*DATATYPES, "BF16"):
            raise InvalidInput(
                f"Input {name!r} has the datatype {datatype!r}, which is none of Triton's; the model wants "
                f"{declared[name].datatype}."
            )
        array = to_array(tensor["data"], name)
        if array.size != np.prod(shape, dtype=object):
            raise InvalidInput(
                f"Input {name!r} says that its shape is {list(shape)}, but has {array.size} values."
            )
        try:
            values[name] = cast(array, datatype, name).reshape(shape)
        except ValueError as error:  # more dimensions, or larger ones, than NumPy has
            raise InvalidInput(f"Input {name!r} cannot have the shape {shown(shape)}: {error}.") from None
    return Named(values)
