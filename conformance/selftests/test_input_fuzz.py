"""Inputs at random, without a server: TENSOR_EXAMPLES says how many of each kind (20,000 for a proof)."""

from __future__ import annotations

import datetime as dt
import decimal
import json
import logging
import math
from typing import TYPE_CHECKING, Any

import ml_dtypes
import numpy as np
import pandas as pd
import pyarrow as pa  # type: ignore[import-untyped]
import pytest
import scipy.sparse  # type: ignore[import-untyped]
from hypothesis import HealthCheck, event, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as npst

from array_forms import EXAMPLES, FORMS, WHOLE, document
from encoding import Refused, Spec, encode, through_the_cli
from mlflow_triton.errors import TritonPluginError
from mlflow_triton.tensors.casting import cast, fit_shape
from mlflow_triton.tensors.datatypes import DATATYPES, from_wire, numpy_dtype, to_wire
from mlflow_triton.tensors.decode import TritonPredictions, decode
from pytest_mlflow_triton.strategies import tensors

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

Array = np.ndarray[Any, Any]

#: Examples are arrays and files: drawing one may take a while on a busy machine.
AT_RANDOM = settings(
    deadline=None,
    max_examples=EXAMPLES,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large, HealthCheck.filter_too_much],
)
FLOATS = ("FP16", "BF16", "FP32", "FP64")


# --- arrays in every form ---

SHAPES = npst.array_shapes(min_dims=1, max_dims=3, min_side=0, max_side=3)
TYPED = st.tuples(st.sampled_from([*DATATYPES, "BF16"]), SHAPES).flatmap(
    lambda drawn: st.tuples(st.just(drawn[0]), tensors(drawn[0], drawn[1]))
)


def declared_for(datatype: str, array: Array) -> dict[str, Spec]:
    """Declare an input that takes the array: any size where that may be."""
    return {"x": Spec(datatype, (-1, *(size or -1 for size in array.shape[1:])))}


def check(array: Array, encoded: Array, datatype: str, *, payload: bool = True) -> None:
    """Compare bit by bit; NaN's payload, too, unless the form has none."""
    assert encoded.shape == array.shape
    assert encoded.dtype == numpy_dtype(datatype)
    assert encoded.flags.c_contiguous
    if datatype == "BYTES":
        assert encoded.tolist() == array.tolist()
        return
    expected = np.ascontiguousarray(array)
    if not payload and datatype in FLOATS:
        wide, other = expected.astype(float), encoded.astype(float)
        assert np.array_equal(np.isnan(wide), np.isnan(other))
        expected, encoded = wide[~np.isnan(wide)], other[~np.isnan(other)]
    assert encoded.tobytes() == expected.tobytes()


@AT_RANDOM
@given(tensor=TYPED, form=st.sampled_from(list(FORMS)))
def test_every_form_is_bit_exact(tensor: tuple[str, Array], form: str) -> None:
    """Any tensor in any form arrives bit by bit, goes over the wire, and comes back from a response's JSON."""
    datatype, array = tensor
    try:
        inputs = FORMS[form](array)
    except UnicodeDecodeError:
        event("no text")
        return
    before = array.copy()
    if (
        array.size == 0
        and -1 in declared_for(datatype, array)["x"].shape[1:]
        and form not in ("array", "request")
    ):
        event("a list cannot tell the shape")
        return
    event(f"form {form}")
    event(f"datatype {datatype}")
    encoded = encode(inputs, declared_for(datatype, array))["x"]
    check(
        array,
        encoded,
        datatype,
        payload=form in WHOLE,
    )
    assert array.tobytes() == before.tobytes() or datatype == "BYTES"
    received = from_wire(memoryview(bytes(to_wire(encoded))), datatype, encoded.shape)
    check(encoded, received, datatype)
    response = decode({"y": received})
    text = (
        TritonPredictions({"outputs": {"y": received}}).to_json()
        if datatype != "BYTES"
        else response.to_json()
    )
    back = TritonPredictions.from_json(text or "")["outputs"]["y"]
    if datatype != "BYTES" and array.size:
        check(encoded, cast(back, datatype, "y"), datatype, payload=False)


@AT_RANDOM
@given(tensor=TYPED, columns=st.booleans())
def test_the_clis_file_is_exact(tensor: tuple[str, Array], columns: bool) -> None:
    """Any tensor in a JSON file arrives through MLflow's command bit by bit."""
    datatype, array = tensor
    declared = declared_for(datatype, array)
    try:
        values = document(array)
    except UnicodeDecodeError:
        event("no text")
        return
    if array.size == 0 or any(
        isinstance(value, str) and not value.isprintable() for value in np.ravel(values).tolist()
    ):
        event("no such file")
        return
    text = json.dumps({"x": values} if columns else {"inputs": {"x": values}})
    check(array, through_the_cli(text, declared)["x"], datatype, payload=False)


# --- anything at all ---

NAMES = st.sampled_from(
    [
        "x",
        "y",
        "inputs",
        "instances",
        "dataframe_split",
        "dataframe_records",
        "columns",
        "data",
        "index",
        "id",
        "0",
        "date",
    ]
)
DECLARED = st.dictionaries(
    st.sampled_from(["x", "y", "inputs", "0", "date"]),
    st.builds(
        Spec,
        st.sampled_from([*DATATYPES, "BF16"]),
        st.lists(st.sampled_from([-1, -1, 1, 2]), min_size=1, max_size=3).map(tuple),
    ),
    min_size=1,
    max_size=3,
)
REQUEST = st.fixed_dictionaries(
    {},
    optional={
        "name": NAMES,
        "shape": st.one_of(st.lists(st.integers(-1, 3), max_size=3), st.none(), st.integers()),
        "datatype": st.sampled_from([*DATATYPES, "BF16", "FP8", None, 3]),
        "data": st.lists(st.integers(-300, 300) | st.floats() | st.text(max_size=2), max_size=4),
    },
)
NUMBERS = st.one_of(
    st.integers(-3, 300),
    st.integers(),
    st.sampled_from([2**24 + 1, 2**53 + 1, 2**63, 2**64, -(2**63) - 1, 10**400]),
    st.floats(),
    st.sampled_from([0.5, -0.0, 65520.0, 1e39, 1e-300]),
)
PLAIN = st.one_of(
    st.none(), st.booleans(), NUMBERS, st.text(max_size=3), st.sampled_from(["007", "1", "nan", "2020-01-01"])
)


def nested(
    leaves: st.SearchStrategy[Any], more: st.SearchStrategy[Any] | None = None
) -> st.SearchStrategy[Any]:
    """Draw lists and mappings of leaves, some of them of one kind, and of the forms' own shapes."""
    return st.recursive(
        leaves,
        lambda inner: st.one_of(
            st.lists(inner, max_size=3),
            st.lists(st.lists(NUMBERS, min_size=2, max_size=2), max_size=3),
            st.dictionaries(NAMES, inner, max_size=3),
            st.lists(st.dictionaries(st.sampled_from(["x", "y"]), inner, min_size=1, max_size=2), max_size=3),
            st.tuples(
                st.lists(REQUEST, min_size=1, max_size=2),
                st.dictionaries(st.sampled_from(["id", "outputs", "parameters"]), inner, max_size=2),
            ).map(lambda drawn: {"inputs": drawn[0], **drawn[1]}),
            *([more] if more is not None else []),
        ),
        max_leaves=10,
    )


def leaves_of(node: Any) -> Iterator[Any]:
    """Walk a JSON document."""
    if isinstance(node, dict):
        for item in node.values():
            yield from leaves_of(item)
    elif isinstance(node, list):
        for item in node:
            yield from leaves_of(item)
    else:
        yield node


def stands_for(leaf: Any, value: Any, datatype: str) -> bool:
    """Say whether a tensor's value is what a leaf of the document is, or the nearest float to one."""
    if isinstance(leaf, str) or datatype == "BYTES":
        return isinstance(leaf, str) and isinstance(value, bytes) and value == leaf.encode("utf-8", "replace")
    if isinstance(leaf, float) and datatype in FLOATS:
        return is_nearest(leaf, float(value), datatype)
    if leaf is None or (isinstance(leaf, float) and not math.isfinite(leaf)):
        return False
    return bool(leaf == (float(value) if datatype in FLOATS else int(value)))


def is_nearest(leaf: float, value: float, datatype: str) -> bool:
    """Say whether a value is the float of a datatype that is nearest to a leaf, sign of zero included."""
    if math.isnan(leaf) or math.isinf(leaf):
        return math.isnan(value) if math.isnan(leaf) else value == leaf
    with np.errstate(all="ignore"):
        near = np.float64(leaf).astype(numpy_dtype(datatype))
        # ml_dtypes rounds twice, and may come out beside the nearest.
        ends = [np.nextafter(near, near.dtype.type(end)) for end in (-math.inf, math.inf)]
    candidates = [float(number) for number in ([near, *ends] if datatype == "BF16" else [near])]
    best = min(abs(number - leaf) for number in candidates)
    return (
        math.isfinite(value)
        and abs(value - leaf) == best
        and math.copysign(1, value) == math.copysign(1, leaf)
    )


def check_values(document: Any, encoded: Mapping[str, Array], declared: Mapping[str, Spec]) -> None:
    """See that every value of every tensor stands in the document."""
    leaves = list(leaves_of(document))
    for name, array in encoded.items():
        tensor = declared[name]
        assert array.dtype == numpy_dtype(tensor.datatype)
        assert array.ndim == len(tensor.shape)
        assert all(wanted in (-1, size) for wanted, size in zip(tensor.shape, array.shape, strict=True))
        for value in array.ravel():
            assert any(stands_for(leaf, value, tensor.datatype) for leaf in leaves), (name, value)


def check_message(error: TritonPluginError) -> None:
    """See that an error is one readable line."""
    assert 15 < len(error.message) < 1500
    assert "\n" not in error.message


GOOD = {
    "BOOL": st.booleans(),
    "BYTES": st.one_of(st.text(max_size=3), st.sampled_from(["007", "1", "nan", "2020-01-01"])),
    **dict.fromkeys(FLOATS, st.one_of(st.integers(-100, 100), st.floats(width=16))),
}


SPOILS = st.one_of(PLAIN, PLAIN, st.lists(PLAIN, max_size=2), nested(PLAIN))


@st.composite
def nearly(draw: st.DrawFn, declared: Mapping[str, Spec]) -> Any:
    """Draw a document that would fit, in one of the forms, and spoil it in a few places."""
    rows = draw(st.integers(1, 3))

    def values(spec: Spec, shape: tuple[int, ...]) -> Any:
        if not shape:
            good = GOOD.get(
                spec.datatype,
                st.one_of(st.integers(0, 100), st.sampled_from([3.0, 2**53 + 2, 255, 2**63 - 1])),
            )
            return draw(good if draw(st.integers(0, 30)) else PLAIN)
        return [values(spec, shape[1:]) for _ in range(rows if shape[0] == -1 else shape[0])]

    tensors = {name: values(spec, spec.shape) for name, spec in declared.items()}
    records = [dict(zip(tensors, row, strict=True)) for row in zip(*tensors.values(), strict=False)]
    document = draw(
        st.sampled_from(
            [
                tensors,
                {"inputs": tensors},
                records,
                {"instances": records},
                {"dataframe_records": records},
                {
                    "dataframe_split": {
                        "columns": list(tensors),
                        "data": [list(row.values()) for row in records],
                    }
                },
                {
                    "inputs": [
                        {
                            "name": name,
                            "shape": list(np.shape(value)),
                            "datatype": declared[name].datatype,
                            "data": value,
                        }
                        for name, value in tensors.items()
                    ]
                },
                next(iter(tensors.values())),
            ]
        )
    )
    for _ in range(draw(st.sampled_from([0, 0, 1, 2]))):
        document = spoiled(document, draw(st.lists(st.integers(0, 5), max_size=5)), draw(SPOILS))
    return document


def spoiled(document: Any, path: list[int], value: Any) -> Any:
    """Put a value in some place of a document."""
    if not path or not isinstance(document, (list, dict)) or not document:
        return value
    if isinstance(document, list):
        place = path[0] % len(document)
        return [spoiled(item, path[1:], value) if at == place else item for at, item in enumerate(document)]
    chosen = list(document)[path[0] % len(document)]
    return {key: spoiled(item, path[1:], value) if key == chosen else item for key, item in document.items()}


CASES = DECLARED.flatmap(
    lambda declared: st.tuples(
        st.just(declared), st.one_of(nearly(declared), nearly(declared), nested(PLAIN))
    )
)
CUTS = st.tuples(st.integers(0, 60), st.sampled_from(["", "}", "]", ",", "1e999", "\\u0000", "\ud800"]))


@AT_RANDOM
@given(case=CASES)
def test_any_document_in_python(case: tuple[dict[str, Spec], Any]) -> None:
    """Any JSON document becomes tensors of values that stand in it, or a readable error."""
    declared, document = case
    try:
        encoded = encode(document, declared)
    except TritonPluginError as error:
        event("refused")
        check_message(error)
        return
    event("taken" if encoded else "no tensors")
    check_values(document, encoded, declared)


@pytest.fixture
def quiet() -> Iterator[None]:
    """Hide the warnings about inputs: thousands of them."""
    log = logging.getLogger("mlflow_triton")
    before = log.level
    log.setLevel(logging.ERROR)
    yield
    log.setLevel(before)


@pytest.mark.usefixtures("quiet")
@pytest.mark.filterwarnings("ignore")  # pandas' own, in MLflow's reader
@AT_RANDOM
@given(case=CASES, cut=st.one_of(st.none(), st.none(), CUTS))
def test_any_file_through_the_cli(case: tuple[dict[str, Spec], Any], cut: tuple[int, str] | None) -> None:
    """Any file becomes tensors of values that stand in it, or a readable error, or MLflow's reader refuses it."""
    declared, document = case
    text = json.dumps(document)
    if cut is not None:
        text = text[: cut[0]] + cut[1] + text[cut[0] + 1 :]
    try:
        encoded = through_the_cli(text, declared)
    except Refused as refused:
        event(f"refused by MLflow: {refused}")
        return
    except TritonPluginError as error:
        event("refused")
        check_message(error)
        return
    try:
        read = json.loads(text)
    except ValueError:  # pandas takes a comma before a bracket, and so do we then, with a warning
        event("not quite JSON")
        return
    event("taken" if encoded else "no tensors")
    check_values(read, encoded, declared)


class Broken:
    """An object whose every method fails."""

    def __array__(self, dtype: Any = None, copy: Any = None) -> Array:
        raise RuntimeError("two\nlines")

    def __len__(self) -> int:
        raise OSError("no length")


ARRAYS = st.one_of(
    npst.arrays(
        st.one_of(
            npst.scalar_dtypes(),
            npst.byte_string_dtypes(),
            npst.unicode_string_dtypes(),
            npst.array_dtypes(max_size=2),
        ),
        npst.array_shapes(min_dims=0, max_dims=3, min_side=0, max_side=3),
    ),
    npst.arrays(np.object_, npst.array_shapes(max_dims=2, max_side=2), elements=PLAIN),
)


def tabled(columns: dict[str, list[Any]]) -> Any:
    """Make a frame of columns of one length, if pandas can."""
    length = min(map(len, columns.values()), default=0)
    try:
        return pd.DataFrame({name: column[:length] for name, column in columns.items()})
    except (OverflowError, ValueError):
        return columns


STRANGE = st.one_of(
    ARRAYS,
    ARRAYS.map(lambda array: np.ma.masked_array(array, mask=array.dtype.kind == "f") if array.dtype.names is None else array),
    st.dictionaries(NAMES, st.lists(PLAIN, max_size=3), max_size=3).map(tabled),
    st.sampled_from(
        [
            object(), Broken(), {1, 2}, 1j, decimal.Decimal("0.1"), dt.date(2020, 1, 1), pd.NaT, pd.NA, pd.Timestamp(0),
            np.float16(0.1), np.uint64(2**63), np.datetime64("NaT"), np.str_("a\0"), np.bytes_(b"\xff"), ml_dtypes.bfloat16(1),
            memoryview(b"ab"), bytearray(b"ab"), range(3), iter([1]), scipy.sparse.eye(2), pa.array([1, None]), pa.array([[1], [2]]),
            pa.table({"x": [1, 2]}), pd.array([1, None]), pd.Series([1, None], dtype="Int8"), pd.Series(["a"], dtype="category"),
            pd.Index([1, 2]), pd.Series({"x": 1, "y": [2]}), np.longdouble("0.1"), np.array([2**70, None]), pd.DataFrame(),
        ]
    ),
)  # fmt: skip


@pytest.mark.filterwarnings("ignore")  # NumPy's and pandas' own, about what they are given here
@AT_RANDOM
@given(inputs=nested(st.one_of(PLAIN, STRANGE), STRANGE), declared=DECLARED)
def test_any_object(inputs: Any, declared: dict[str, Spec]) -> None:
    """Any object becomes tensors that fit the model, or a readable error."""
    try:
        encoded = encode(inputs, declared)
    except TritonPluginError as error:
        event("refused")
        check_message(error)
        return
    event("taken" if encoded else "no tensors")
    for name, array in encoded.items():
        assert array.dtype == numpy_dtype(declared[name].datatype)
        fit_shape(array, declared[name].shape, name)
        assert array.dtype != np.object_ or all(type(item) is bytes for item in array.flat)
