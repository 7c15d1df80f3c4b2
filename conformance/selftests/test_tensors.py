from __future__ import annotations

import io
import json
import math
import re
import sys
from fractions import Fraction
from typing import TYPE_CHECKING, Any, NamedTuple

import ml_dtypes
import numpy as np
import pandas as pd
import pytest
import scipy.sparse  # type: ignore[import-untyped]
from hypothesis import example, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from tritonclient import utils as tritonclient

from mlflow_triton.errors import InvalidInput, InvalidParameter
from mlflow_triton.tensors import forms
from mlflow_triton.tensors.arrays import to_array
from mlflow_triton.tensors.casting import cast, fit_shape
from mlflow_triton.tensors.datatypes import DATATYPES, from_wire, numpy_dtype, to_wire
from mlflow_triton.tensors.decode import TritonPredictions, decode

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

Array = np.ndarray[Any, Any]

SOURCES = (
    *("?", "u1", "u2", "u4", "u8", "i1", "i2", "i4", "i8", "f2", "f4", "f8"),
    *(">u2", ">u4", ">u8", ">i2", ">i4", ">i8", ">f2", ">f4", ">f8"),
)
TARGETS = (*(name for name in DATATYPES if name != "BYTES"), "BF16")
#: By datatype: bits of the significand, and the power of two that is too big. Source: IEEE 754; bfloat16.
FLOATS = {"FP16": (11, 16), "BF16": (8, 128), "FP32": (24, 128), "FP64": (53, 1024)}
EDGES = [
    sign * (2**power + step) for power in (0, 7, 8, 11, 15, 16, 24, 31, 32, 53, 63, 64, 127, 128)
    for step in (-1, 0, 1) for sign in (1, -1)
]  # fmt: skip
FRACTIONS = [
    0.5,
    -0.5,
    0.1,
    1e-45,
    1e-300,
    65504.0,
    65519.0,
    65520.0,
    1e300,
    3.5e38,
    math.inf,
    -math.inf,
    math.nan,
]


def exact(value: Any) -> Fraction | None:
    """Return a NumPy scalar's value as a number without limits; ``None`` if it is not finite."""
    if value.dtype.kind in "biu":
        return Fraction(int(value))
    number = float(value)
    return Fraction(number) if math.isfinite(number) else None


def fits(value: Any, datatype: str) -> bool:
    """Say, by arithmetic on Python's numbers alone, whether a scalar may become a datatype."""
    number = exact(value)
    if datatype == "BOOL":
        return number in (0, 1)
    if datatype in FLOATS:
        bits, beyond = FLOATS[datatype]
        if value.dtype.kind in "biu":
            odd = abs(int(value))
            while odd and odd % 2 == 0:
                odd //= 2
            return odd.bit_length() <= bits and abs(int(value)).bit_length() <= beyond
        # A float is rounded to nearest: it overflows from half a step beyond the greatest one on.
        return number is None or abs(number) < Fraction(2) ** beyond - Fraction(2) ** (beyond - bits - 1)
    width = int(re.sub(r"\D", "", datatype))
    low, high = (0, 2**width - 1) if datatype.startswith("U") else (-(2 ** (width - 1)), 2 ** (width - 1) - 1)
    return number is not None and number.denominator == 1 and low <= number <= high


def same(before: Any, after: Any, datatype: str) -> bool:
    """Say whether a cast scalar is what it was, or the nearest float of the datatype."""
    if before.dtype.kind == "f" and datatype in FLOATS:
        with np.errstate(all="ignore"):
            nearest = before.astype(before.dtype.newbyteorder("=")).astype(numpy_dtype(datatype))
        return bool(
            np.array_equal(nearest, after, equal_nan=True) and np.signbit(nearest) == np.signbit(after)
        )
    return exact(before) == exact(after)


def check_cast(array: Array, datatype: str) -> None:
    """Compare a cast with what `fits` and `same` say of each element."""
    refused = [index for index in np.ndindex(array.shape) if not fits(array[index], datatype)]
    before = array.copy()
    if not refused:
        result = cast(array, datatype, "tensor")
        assert result.shape == array.shape
        assert result.dtype == numpy_dtype(datatype)
        assert result.flags.c_contiguous
        assert all(same(array[index], result[index], datatype) for index in np.ndindex(array.shape))
    else:
        with pytest.raises(InvalidInput) as caught:
            cast(array, datatype, "tensor")
        message = caught.value.message
        assert "'tensor'" in message
        assert datatype in message
        place = ", ".join(map(str, refused[0]))
        assert f"the value {array[refused[0]]} ({array.dtype}) at [{place}]" in message
    assert np.array_equal(array, before, equal_nan=array.dtype.kind == "f")


@st.composite
def arrays(draw: st.DrawFn) -> Array:
    """Draw arrays of every source type, near the limits of all types, in any memory layout."""
    dtype: np.dtype[Any] = np.dtype(draw(st.sampled_from(SOURCES)))
    anything: st.SearchStrategy[Any] = hnp.from_dtype(dtype)
    if dtype.kind in "iu":
        limits = np.iinfo(dtype)
        inside = [edge for edge in EDGES if limits.min <= edge <= limits.max]
        anything = st.one_of(anything, st.sampled_from(inside))
    elif dtype.kind == "f":
        with np.errstate(all="ignore"):
            near = [np.array(float(edge)).astype(dtype)[()] for edge in (*EDGES, *FRACTIONS)]
        anything = st.one_of(anything, st.sampled_from(near))
    shape = draw(hnp.array_shapes(min_dims=0, max_dims=3, min_side=0, max_side=3))
    array: Array = draw(hnp.arrays(dtype, shape, elements=anything))
    layout = draw(st.sampled_from(["plain", "transposed", "strided", "readonly"]))
    if layout == "transposed":
        array = array.T
    elif layout == "strided" and array.ndim:
        array = np.repeat(array, 2, axis=0)[::2]
    elif layout == "readonly":
        array.setflags(write=False)
    return array


@settings(deadline=None, max_examples=600)
@given(arrays(), st.sampled_from(TARGETS))
def test_cast_changes_no_value(array: Array, datatype: str) -> None:
    """A cast keeps each value, or rounds a float to the nearest finite one; it refuses just the rest."""
    check_cast(array, datatype)


@pytest.mark.parametrize("source", [*SOURCES, "bfloat16"])
def test_cast_at_the_limits(source: str) -> None:
    """Each value beside the limit of some datatype becomes every datatype that has it, and no other."""
    dtype = np.dtype(ml_dtypes.bfloat16) if source == "bfloat16" else np.dtype(source)
    numbers: list[Any] = [*EDGES, *FRACTIONS] if dtype.kind in "fV" else EDGES
    if dtype.kind in "iu":
        numbers = [edge for edge in EDGES if np.iinfo(dtype).min <= edge <= np.iinfo(dtype).max]
    with np.errstate(all="ignore"):
        if dtype.kind in "fV":
            numbers = [float(number) for number in numbers]
        values = [np.array(number).astype(dtype) for number in numbers]
    for value in values:
        for datatype in TARGETS:
            if dtype.kind != "V":
                check_cast(value, datatype)
            elif fits(value.astype(np.float32), datatype):
                after = cast(value, datatype, "tensor")
                assert same(value.astype(np.float32)[()], after[()], datatype), (value, datatype)
            else:
                with pytest.raises(InvalidInput, match="'tensor'.*" + datatype):
                    cast(value, datatype, "tensor")


def test_the_oracle_rounds_where_numpy_does() -> None:
    """The limits of `fits` are NumPy's own: the last float that rounds to a finite one, and the first that does not."""
    for datatype, (bits, beyond) in FLOATS.items():
        if datatype == "FP64":
            continue
        # ml_dtypes goes through float32, so that a float64 any nearer is rounded twice.
        source = np.float32 if datatype == "BF16" else np.float64
        edge = source(Fraction(2) ** beyond - Fraction(2) ** (beyond - bits - 1))
        with np.errstate(all="ignore"):
            below, at = (
                number.astype(numpy_dtype(datatype)) for number in (np.nextafter(edge, source(0)), edge)
            )
        assert np.isfinite(below)
        assert not np.isfinite(at)


@pytest.mark.parametrize("dtype", ["U3", "M8[s]", "m8[s]", "c16", "S2", [("a", "i4")]])
@pytest.mark.parametrize("datatype", ["FP32", "INT64", "BOOL"])
def test_cast_refuses_what_are_no_numbers(dtype: Any, datatype: str) -> None:
    """Texts, times, complex numbers and records become no number; the error names tensor, index, value and types."""
    array = np.zeros((2, 1), dtype)
    with pytest.raises(InvalidInput) as caught:
        cast(array, datatype, "x")
    words = f"'x': the value {array[0, 0].item()!r} ({array.dtype}) at [0, 0] cannot become {datatype} without changing"
    assert words in caught.value.message


def test_cast_takes_what_numpy_has_no_type_for() -> None:
    """Elements without a common NumPy type are cast one by one, and the one that does not fit is named."""
    mixed = to_array([True, 2, 3.0, np.int8(4)], "x")
    assert mixed.dtype == np.object_
    assert cast(mixed, "INT32", "x").tolist() == [1, 2, 3, 4]
    assert cast(to_array([2**63, -1], "x"), "FP32", "x").tolist() == [2.0**63, -1.0]
    assert cast(to_array(2**70, "x"), "FP32", "x").tolist() == 2.0**70
    for value, place, shown in (
        ([[1, 2], [3, 2**70]], "[1, 1]", "1180591620717411303424 (int)"),
        ([1, 2**64 + 1], "[1]", "18446744073709551617 (int)"),
        ([0.5, 2**53 + 1], "[0]", "0.5 (float)"),
        ([1, None], "[1]", "None (NoneType)"),
        ([1, "2"], "[1]", "'2' (str)"),
        ([1, 10**400], "[1]", f"1{'0' * 76}... (int)"),
    ):
        with pytest.raises(InvalidInput) as caught:
            cast(to_array(value, "x"), "INT32", "x")
        assert f"Input 'x': the value {shown} at {place} cannot become INT32" in caught.value.message


def test_numpy_integers_beside_floats_keep_their_value() -> None:
    """An integer that float64 lacks is refused beside a float, also when it is one of NumPy's."""
    for big in (2**53 + 1, np.int64(2**53 + 1), np.uint64(2**53 + 1)):
        with pytest.raises(InvalidInput, match="9007199254740993"):
            cast(to_array([big, 0.5], "x"), "FP64", "x")
    assert cast(to_array([np.int64(2**53), 0.5], "x"), "FP64", "x").tolist() == [2.0**53, 0.5]


@given(hnp.arrays(np.object_, hnp.array_shapes(min_dims=0), elements=st.one_of(st.binary(), st.text())))
def test_bytes_are_kept(array: Array) -> None:
    """BYTES takes bytes as they are and str as UTF-8, trailing NULs included; anything else is refused."""
    expected = [
        item if isinstance(item, bytes) else item.encode("utf-8", "surrogatepass") for item in array.flat
    ]
    if all(isinstance(item, bytes) or not re.search("[\ud800-\udfff]", item) for item in array.flat):
        assert list(cast(to_array(array, "x"), "BYTES", "x").flat) == expected
        assert list(cast(to_array(array.tolist(), "x"), "BYTES", "x").flat) == expected
    else:
        with pytest.raises(InvalidInput, match="UTF-8"):
            cast(array, "BYTES", "x")


@pytest.mark.parametrize("value", [1, 1.5, True, None, math.nan, object()])
def test_bytes_refuse_what_is_no_text(value: Any) -> None:
    """BYTES is never given the text of a number, and the error names tensor, index and value."""
    array = np.empty((1, 2), np.object_)
    array[:] = [["a", value]]
    with pytest.raises(InvalidInput) as caught:
        cast(array, "BYTES", "x")
    assert f"Input 'x': the value {value!r} at [0, 1] is neither bytes nor a str" in caught.value.message


def test_a_long_value_is_not_shown_whole() -> None:
    """An error shows the beginning of a value, not all of a megabyte."""
    for datatype in ("FP32", "BYTES"):
        with pytest.raises(InvalidInput) as caught:
            cast(
                to_array(["x" * 10**6, 7] if datatype == "FP32" else [b"", {"x" * 10**6}], "x"), datatype, "x"
            )
        assert len(caught.value.message) < 400


# --- the wire ---


@st.composite
def typed(draw: st.DrawFn) -> tuple[str, Array]:
    """Draw a datatype and an array of it."""
    datatype = draw(st.sampled_from([*DATATYPES, "BF16"]))
    shape = draw(hnp.array_shapes(min_dims=0, max_dims=3, min_side=0, max_side=3))
    if datatype == "BYTES":
        return datatype, draw(hnp.arrays(np.object_, shape, elements=st.binary(max_size=9)))
    if datatype == "BF16":
        floats = draw(hnp.arrays(np.float32, shape, elements=st.floats(width=16)))
        return datatype, floats.astype(ml_dtypes.bfloat16)
    return datatype, draw(hnp.arrays(DATATYPES[datatype], shape))


def reference(datatype: str, array: Array) -> bytes:
    """Serialise as NVIDIA's client does; a BF16 is the upper half of a float32."""
    if datatype == "BYTES":
        return b"".join(tritonclient.serialize_byte_tensor(array).flat)
    if datatype == "BF16":
        upper: bytes = (array.astype("<f4").view("<u4") >> 16).astype("<u2").tobytes()
        return upper
    return array.tobytes()


@settings(deadline=None)
@given(typed())
@example(("BYTES", np.empty((2, 0), np.object_)))
@example(("FP32", np.empty((0, 3), np.float32)))
def test_the_wire_format_is_tritons(tensor: tuple[str, Array]) -> None:
    """What is sent is what NVIDIA's client would send, and comes back as it was, writable."""
    datatype, array = tensor
    data = to_wire(array)
    if array.size:
        assert data == reference(datatype, array)
    back = from_wire(memoryview(data), datatype, array.shape)
    assert back.dtype == numpy_dtype(datatype)
    assert back.shape == array.shape
    assert back.flags.writeable
    assert to_wire(back) == data
    assert back.tobytes() == array.tobytes() or datatype == "BYTES"


def test_the_wire_is_row_major() -> None:
    """A transposed array is sent in the order of its indices, not of its memory."""
    array = np.arange(6, dtype=np.int32).reshape(2, 3).T
    assert to_wire(array) == np.array([0, 3, 1, 4, 2, 5], "<i4").tobytes()


@given(st.sampled_from([*DATATYPES, "BF16"]), st.binary(max_size=40), st.lists(st.integers(0, 5), max_size=3))
def test_a_wrong_size_on_the_wire_is_an_error(datatype: str, data: bytes, shape: list[int]) -> None:
    """Data that do not have the size of datatype and shape are a ValueError, never a guess."""
    try:
        array = from_wire(memoryview(data), datatype, tuple(shape))
    except ValueError:
        if datatype != "BYTES":
            assert len(data) != math.prod(shape) * numpy_dtype(datatype).itemsize
    else:
        assert array.shape == tuple(shape)
        assert to_wire(array) == data or datatype == "BOOL"


@pytest.mark.parametrize("data", [b"\1", b"\1\0\0\0", b"\xff\xff\xff\xffabc", b"\1\0\0\0ab"])
def test_a_cut_string_is_an_error(data: bytes) -> None:
    """A string that runs past the end of the data is a ValueError."""
    with pytest.raises(ValueError, match=r"past the end|reshape"):
        from_wire(memoryview(data), "BYTES", (1,))


def test_unknown_datatypes(monkeypatch: pytest.MonkeyPatch) -> None:
    """An unknown datatype is named; BF16 without ml_dtypes says what to install."""
    with pytest.raises(InvalidInput, match="FP8"):
        numpy_dtype("FP8")
    monkeypatch.setitem(sys.modules, "ml_dtypes", None)
    with pytest.raises(InvalidInput, match="pip install ml_dtypes"):
        numpy_dtype("BF16")


def test_the_table_is_tritons() -> None:
    """Every datatype has the NumPy type that NVIDIA's client gives it."""
    assert {name: np.dtype(tritonclient.triton_to_np_dtype(name)) for name in DATATYPES} == DATATYPES


# --- the forms of a caller's inputs ---


class Spec(NamedTuple):
    """A tensor as a model declares it."""

    datatype: str
    shape: tuple[int, ...]


def name_values(inputs: Any, names: list[str], ranks: dict[str, int]) -> dict[str, Any]:
    """Name the values for FP32 tensors of any size."""
    declared = {name: Spec("FP32", (-1,) * ranks.get(name, 1)) for name in names}
    return forms.name_values(inputs, declared).by_input


AB = {"A": 2, "B": 1}
A_ROWS = [[1, 2], [3, 4]]
B_ROWS = [5.5, 6.0]


def cli(document: Any) -> pd.DataFrame:
    """Read JSON as ``mlflow deployments predict`` does."""
    return pd.read_json(io.StringIO(json.dumps(document)))


@pytest.mark.parametrize(
    "inputs",
    [
        {"A": A_ROWS, "B": B_ROWS},
        {"A": np.array(A_ROWS), "B": np.array(B_ROWS)},
        {"A": tuple(map(tuple, A_ROWS)), "B": pd.Series(B_ROWS)},
        {"A": [np.array(row) for row in A_ROWS], "B": pd.Index(B_ROWS)},
        {"A": np.asfortranarray(np.array(A_ROWS, ">i4")), "B": np.array(B_ROWS, ">f8")},
        {"A": np.ma.array(A_ROWS), "B": np.array([B_ROWS, B_ROWS]).T[:, 0]},
        {"inputs": {"A": A_ROWS, "B": B_ROWS}},
        [{"A": A_ROWS[0], "B": 5.5}, {"A": A_ROWS[1], "B": 6}],
        ({"A": np.array(A_ROWS[0], "i1"), "B": np.float32(5.5)}, {"B": 6, "A": np.array(A_ROWS[1])}),
        pd.DataFrame({"A": A_ROWS, "B": B_ROWS}),
        pd.DataFrame({"B": pd.array(B_ROWS, "Float32"), "A": A_ROWS}, index=["r", "s"]),
        pd.DataFrame({"inputs": {"A": A_ROWS, "B": B_ROWS}}),
        pd.Series({"A": A_ROWS, "B": B_ROWS}),
        cli({"inputs": {"A": A_ROWS, "B": B_ROWS}}),
        cli({"A": A_ROWS, "B": B_ROWS}),
        cli([{"A": A_ROWS[0], "B": 5.5}, {"A": A_ROWS[1], "B": 6.0}]),
    ],
    ids=lambda value: type(value).__name__,
)
def test_every_form_names_its_tensors(inputs: Any) -> None:
    """Mappings, frames, records and what MLflow's CLI makes of JSON all give the same two tensors."""
    values = name_values(inputs, ["A", "B"], AB)
    assert set(values) == {"A", "B"}
    assert cast(to_array(values["A"], "A"), "INT32", "A").tolist() == A_ROWS
    assert cast(to_array(values["B"], "B"), "FP32", "B").tolist() == B_ROWS


@pytest.mark.parametrize(
    "inputs",
    [
        [[1, 2], [3, 4]],
        np.array([[1, 2], [3, 4]], np.uint8),
        pd.DataFrame([[1, 2], [3, 4]]),
        pd.DataFrame({"a": [1, 3], "b": [2.0, 4.0]}),
        pd.DataFrame({"a": pd.array([1, 3], "Int64"), "b": pd.array([2, 4], "int32[pyarrow]")}),
        pd.DataFrame({"whatever": [[1, 2], [3, 4]]}),
        pd.Series([[1, 2], [3, 4]]),
        cli([[1, 2], [3, 4]]),
        cli({"inputs": [[1, 2], [3, 4]]}),
        cli({"inputs": {"x": [[1, 2], [3, 4]]}}),
        {"inputs": [[1, 2], [3, 4]]},
    ],
    ids=lambda value: type(value).__name__,
)
def test_one_input_needs_no_name(inputs: Any) -> None:
    """A model with one input takes its value alone, in any form."""
    values = name_values(inputs, ["x"], {"x": 2})
    assert cast(to_array(values["x"], "x"), "FP32", "x").tolist() == [[1.0, 2.0], [3.0, 4.0]]


@pytest.mark.parametrize("name", ["0", "12", "-1", "inputs"])
def test_names_that_look_like_something_else(name: str) -> None:
    """An input whose name is a number, or "inputs", is found in the documented JSON and in every dict."""
    for inputs in (
        cli({"inputs": {name: [[1, 2]]}}),
        cli({name: [[1, 2]]}),
        {"inputs": {name: [[1, 2]]}},
        {name: [[1, 2]]},
        pd.DataFrame({name: [[1, 2]]}),
    ):
        values = name_values(inputs, [name], {name: 2})
        assert to_array(values[name], name).tolist() == [[1, 2]]
    number = int(name) if name != "inputs" else name
    assert to_array(name_values({number: [7]}, [name, "B"], AB)[name], name).tolist() == [7]


def test_a_column_of_scalars_fits_a_tensor_with_a_dimension_of_one() -> None:
    """Plain values in a column make a tensor of shape [-1, 1] where the model has that rank."""
    frame = pd.DataFrame({"A": [1, 2], "B": ["p", "q"]})
    values = name_values(frame, ["A", "B"], {"A": 2, "B": 1})
    assert values["A"].tolist() == [[1], [2]]
    assert values["B"].tolist() == ["p", "q"]


@pytest.mark.parametrize(
    ("inputs", "words"),
    [
        (None, "No inputs were given. The model wants 'A', 'B'"),
        ("text", "The inputs are a str"),
        (b"text", "The inputs are a bytes"),
        ([[1]], "one unnamed list, but the model has 2 inputs ('A', 'B')"),
        (np.ones(3), "one unnamed ndarray"),
        ([], "one unnamed list"),
        ({"C": [1]}, "no input 'C'. It wants 'A', 'B'"),
        ([{"A": 1}, {"B": 1}], "Record 1 has 'B', but record 0 has 'A'"),
        ([{"A": 1}, {"Z": 1}], "no input 'Z'"),
        (
            [{"A": [1, 2]}, {"A": [1]}],
            "Input 'A' is ragged: its nested lists have different lengths, 2 at [0] and 1 at [1]",
        ),
        ([{"name": "A", "shape": [1], "datatype": "FP32"}], "Tensor 0 of the request, 'A', lacks 'data'"),
        (pd.DataFrame({"inputs": [1, 2]}), "The inputs have no names, but the model has 2 inputs ('A', 'B')"),
        (pd.DataFrame({"A": [[1, 2], [1]]}), "Input 'A' is ragged"),
        (pd.DataFrame({"A": [1], "Z": [1]}), "no input 'Z'"),
        (pd.DataFrame({"Y": [1], "Z": [1]}), "the columns 'Y', 'Z', but the model wants 'A', 'B'"),
        (pd.DataFrame([[1, 2]], columns=["A", "A"]), "two columns of one name"),
        (pd.DataFrame({"inputs": [1, 2]}, index=["A", "A"]), "names a tensor twice in its index"),
        (pd.DataFrame({"inputs": [1, 2]}, index=["A", "Z"]), "no input 'Z'"),
        (pd.DataFrame({"A": pd.array([1, None], "Int64")}), "'A' has no value in row 1"),
        (pd.DataFrame({"A": pd.array([1, None], "Float64")}), "'A' has no value in row 1"),
        (pd.DataFrame({"A": pd.array([1, None], "double[pyarrow]")}), "'A' has no value in row 1"),
        (pd.DataFrame({"A": pd.array([True, None], "boolean")}), "'A' has no value in row 1"),
        (pd.DataFrame({"A": pd.array(["a", None], "string")}), "'A' has no value in row 1"),
        (pd.DataFrame({"A": pd.Categorical(["a", None])}), "'A' has no value in row 1"),
        (pd.DataFrame({"A": pd.DatetimeIndex(["2020-01-01", "NaT"])}), "'A' has no value in row 1"),
    ],
)
def test_forms_that_are_refused(inputs: Any, words: str) -> None:
    """Each form that does not fit is refused in words that say what was found and what the model wants."""
    with pytest.raises(InvalidInput) as caught:
        name_values(inputs, ["A", "B"], AB)
    assert words in caught.value.message


@pytest.mark.parametrize(
    ("value", "words"),
    [
        ([[1, 2], [3]], "ragged"),
        ([1, [2]], "ragged"),
        ([[[[1], [2, 3]]], [1]], "ragged"),
        ([[[1, 2], [3, 4]], [[5, 6], [7]]], "different lengths, 2 at [0, 0] and 1 at [1, 1]"),
        ([np.ones((2, 2)), np.ones((2, 3))], "ragged: its parts have different shapes: [2, 2], [2, 3]"),
        (np.ma.array([1, 2], mask=[False, True]), "masked"),
        ([np.ma.array([1, 2], mask=[False, True])], "masked"),
        ([[[np.ma.array([1, 2], mask=[False, True])]]], "masked"),
        ([1, np.ma.masked], "masked"),
        (scipy.sparse.eye(2, format="csr"), "sparse"),
        (scipy.sparse.eye_array(2, format="coo"), "sparse"),
        ({"a": 1}, "mapping"),
        (object(), "is a object, not an array"),
        (pd.Series([1, None], dtype="Int8"), "no value in row 1"),
        (pd.Series(["a", None], dtype=object), "no value in row 1"),
    ],
)
def test_values_that_are_no_tensor(value: Any, words: str) -> None:
    """Ragged, masked, sparse and foreign values are refused, not guessed."""
    with pytest.raises(InvalidInput) as caught:
        to_array(value, "x")
    assert "'x'" in caught.value.message
    assert words in caught.value.message


JSON = st.recursive(
    st.one_of(st.none(), st.booleans(), st.integers(), st.floats(), st.text(max_size=3)),
    lambda inner: st.lists(inner, max_size=3),
    max_leaves=12,
)


@settings(deadline=None)
@given(JSON, st.sampled_from([*TARGETS, "BYTES"]))
def test_any_json_becomes_a_tensor_or_an_error(value: Any, datatype: str) -> None:
    """Whatever JSON can hold is cast without changing, or refused with InvalidInput."""
    try:
        result = cast(to_array(value, "x"), datatype, "x")
    except InvalidInput:
        return
    assert result.dtype == numpy_dtype(datatype)
    if result.size == 0:
        return

    def leaves(node: Any) -> list[Any]:
        return [leaf for item in node for leaf in leaves(item)] if isinstance(node, list) else [node]

    assert result.size == len(leaves(value))
    # JSON writes 1 for 1.0: beside a float, an integer is one.
    floats = {type(leaf) for leaf in leaves(value)} <= {int, float} and float in map(type, leaves(value))
    for before, after in zip(leaves(value), result.flat, strict=True):
        if isinstance(before, str):
            assert before.encode() == after
        elif (floats or isinstance(before, float)) and datatype in FLOATS:
            with np.errstate(all="ignore"):
                assert np.array_equal(np.float64(before).astype(result.dtype), after, equal_nan=True)
            assert math.isfinite(before) == bool(np.isfinite(after))
        else:
            assert Fraction(before) == Fraction(float(after) if datatype in FLOATS else int(after))


def test_rows_of_different_number_types_keep_their_values() -> None:
    """An integer in one row and a float in another never meet in a float that lacks the integer."""
    big = 2**53 + 1
    for inputs in (
        [{"x": big}, {"x": 0.5}],
        pd.DataFrame({"a": [big], "b": [0.5]}),
        [np.array([big]), np.array([0.5])],
        pd.Series([np.int64(big), 0.5], dtype=object),
    ):
        value = name_values(inputs, ["x"], {"x": 2})["x"]
        with pytest.raises(InvalidInput, match="9007199254740993"):
            cast(to_array(value, "x"), "FP64", "x")
    mixed = name_values(pd.DataFrame({"a": np.array([2**63], "u8"), "b": [-1]}), ["x"], {"x": 2})["x"]
    assert cast(to_array(mixed, "x"), "FP64", "x").tolist() == [[2.0**63, -1.0]]


def test_nan_is_a_value_among_floats() -> None:
    """NaN in a plain float column is sent to a float tensor, and refused for an integer one."""
    value = name_values(pd.DataFrame({"x": [1.0, math.nan]}), ["x"], {"x": 1})["x"]
    assert np.array_equal(cast(value, "FP32", "x"), [1.0, math.nan], equal_nan=True)
    with pytest.raises(InvalidInput, match=re.escape("the value nan (float64) at [1]")):
        cast(value, "INT32", "x")


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (5, np.array(5)),
        (2.5, np.array(2.5)),
        (True, np.array([True])[0]),
        (np.float32(0.1), np.array(0.1, np.float32)),
        (pd.Series([1, 2], dtype="Int64"), np.array([1, 2])),
        (pd.Series(["a", "b"], dtype="category"), np.array(["a", "b"], object)),
        (pd.Series(pd.arrays.SparseArray([0, 1])), np.array([0, 1])),
        (pd.Series([True, False], dtype="boolean"), np.array([True, False])),
        (memoryview(b"ab"), np.array(b"ab", object)),
        ("a\0", np.array("a\0", object)),
        ([], np.array([], np.float64)),
        ([[], []], np.empty((2, 0))),
        (range(3), np.array([0, 1, 2])),
    ],
)
def test_array_likes(value: Any, expected: Array) -> None:
    """Scalars, pandas columns, buffers and empty lists become the arrays that they stand for."""
    array = to_array(value, "x")
    assert array.dtype == expected.dtype
    assert array.shape == expected.shape
    assert array.tolist() == expected.tolist()


@pytest.mark.parametrize(
    ("shape", "wanted", "fit"),
    [
        ((2, 3), (-1, 3), True),
        ((0, 3), (-1, 3), True),
        ((), (), True),
        ((2, 4), (-1, 3), False),
        ((3,), (-1, 3), False),
        ((2,), (), False),
    ],
)
def test_shapes(shape: tuple[int, ...], wanted: tuple[int, ...], fit: bool) -> None:
    """A shape fits when each size is the model's or the model takes any; the error names both."""
    if fit:
        fit_shape(np.zeros(shape), wanted, "x")
        return
    with pytest.raises(InvalidInput) as caught:
        fit_shape(np.zeros(shape), wanted, "x")
    assert f"'x' has the shape {list(shape)}, but the model wants {list(wanted)}" in caught.value.message
    assert ("batch dimension" in caught.value.message) == (shape == (3,))


# --- outputs ---


@settings(deadline=None)
@given(typed())
def test_json_holds_every_digit(tensor: tuple[str, Array]) -> None:
    """Numbers in the JSON of a response come back bit for bit in the output's own type."""
    datatype, array = tensor
    if datatype == "BYTES":
        return
    text = TritonPredictions({"outputs": {"y": array}}).to_json()
    assert text is not None
    back = np.array(json.loads(text)["outputs"]["y"], array.dtype)
    assert np.array_equal(back.reshape(array.shape), array, equal_nan=array.dtype.kind in "fV")


def test_json_file_is_the_json_text(tmp_path: Path) -> None:
    """`to_json(path)` writes what `to_json()` returns, and nothing else."""
    response = TritonPredictions({"outputs": {"y": np.array([[0.1, math.nan]], np.float32)}})
    path = tmp_path / "output.json"
    assert response.to_json(str(path)) is None
    assert path.read_text() == response.to_json() == '{"outputs": {"y": [[0.10000000149011612, NaN]]}}'


def test_json_that_cannot_be_written_is_one_line(tmp_path: Path) -> None:
    """An output path that cannot be written is this package's error, and names the path and the reason."""
    with pytest.raises(InvalidParameter, match=r"missing/output\.json.*No such file"):
        TritonPredictions({"outputs": {}}).to_json(str(tmp_path / "missing" / "output.json"))


def test_text_and_bytes_in_outputs() -> None:
    """A BYTES tensor is str where all of it is UTF-8, else bytes, which JSON holds as base64."""
    text, raw = np.array([[b"caf\xc3\xa9"]], object), np.array([b"\xff", b"a"], object)
    response = decode({"text": text, "raw": raw, "none": np.empty((0,), object)})
    assert response["outputs"]["text"].tolist() == [["café"]]
    assert response["outputs"]["raw"].tolist() == [b"\xff", b"a"]
    document = json.loads(response.to_json() or "")
    assert document == {"outputs": {"text": [["café"]], "raw": ["/w==", "YQ=="], "none": []}}
    assert raw.tolist() == [b"\xff", b"a"]


def test_predictions_in_mlflows_formats() -> None:
    """A response gives a frame with a column per output, or arrays, of a type that the caller may choose."""
    y, z = np.array([[1], [2]], np.int32), np.array([[1.5, 2.5], [3.5, 4.5]], np.float32)
    response = decode({"y": y, "z": z})
    frame = response.get_predictions()
    assert isinstance(frame, pd.DataFrame)
    assert frame["y"].tolist() == [1, 2]
    assert frame["y"].dtype == np.int32
    assert [row.tolist() for row in frame["z"]] == z.tolist()
    both = response.get_predictions("ndarray")
    assert isinstance(both, dict)
    assert both["y"] is y
    assert decode({"y": y}).get_predictions("ndarray") is y
    cast_to = decode({"y": y}).get_predictions("ndarray", dtype="float64")
    assert isinstance(cast_to, np.ndarray)
    assert cast_to.dtype == np.float64
    assert decode({"s": np.array(3)}).get_predictions()["s"].tolist() == [3]
    assert list(decode({"e": np.empty((0, 1))}).get_predictions()["e"]) == []
    with pytest.raises(InvalidParameter, match="'series': use 'dataframe' or 'ndarray'"):
        response.get_predictions("series")


def test_predictions_read_their_own_json() -> None:
    """`from_json` reads what `to_json` wrote."""
    response = TritonPredictions({"outputs": {"y": np.array([[1, 2]]), "s": np.array(["a"], object)}})
    back = TritonPredictions.from_json(response.to_json() or "")
    assert {name: array.tolist() for name, array in back["outputs"].items()} == {"y": [[1, 2]], "s": ["a"]}


@pytest.mark.parametrize(
    "text", ["", "[]", "{}", '{"outputs": 1}', '{"outputs": {"y": [[1], [2, 3]]}}', "nul"]
)
def test_predictions_refuse_other_json(text: str) -> None:
    """JSON that is no response is an error of this package."""
    with pytest.raises(InvalidParameter, match="Not a JSON object with the key 'outputs'"):
        TritonPredictions.from_json(text)


@pytest.mark.parametrize(
    "function",
    [lambda a: cast(a, "INT8", "x"), lambda a: to_array(a, "x"), to_wire],
    ids=["cast", "to_array", "to_wire"],
)
def test_the_callers_array_stays_as_it_is(function: Callable[[Array], Any]) -> None:
    """Nothing on the way writes to the caller's array."""
    array = np.arange(4, dtype=">i4")
    array.setflags(write=False)
    function(array)
    assert array.tolist() == [0, 1, 2, 3]
