from __future__ import annotations

import json
import math
from typing import TYPE_CHECKING, Any

import ml_dtypes
import numpy as np
import pandas as pd
import pyarrow as pa  # type: ignore[import-untyped]
import pytest
import scipy.sparse  # type: ignore[import-untyped]

from encoding import Spec, encode, through_the_cli
from mlflow_triton.errors import InvalidInput, TritonPluginError
from mlflow_triton.input_file import as_written
from mlflow_triton.tensors.arrays import to_array
from mlflow_triton.tensors.casting import cast
from mlflow_triton.tensors.decode import TritonPredictions, decode
from mlflow_triton.tensors.forms import name_values

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

Array = np.ndarray[Any, Any]


@pytest.fixture
def cli() -> Callable[..., dict[str, Array]]:
    """Predict with a JSON file through MLflow's own command."""

    def predict(text: Any, declared: Mapping[str, Spec], *, exact: bool = True) -> dict[str, Array]:
        return through_the_cli(text if isinstance(text, str) else json.dumps(text), declared, exact=exact)

    return predict


X = {"x": Spec("FP64", (-1, -1))}
PLAIN = {"x": Spec("FP64", (-1,))}


@pytest.mark.parametrize("number", [1.7976931348623157e308, 5e-324, 1.1234567890123457, -0.0, 2.0**53 + 2])
def test_the_cli_keeps_every_digit(cli: Callable[..., dict[str, Array]], number: float) -> None:
    """Each bit of a float in a JSON file arrives, in a nested list and in a column."""
    for document, declared in (
        ({"inputs": {"x": [[number, 1.5]]}}, X),
        ({"x": [[number, 1.5]]}, X),
        ({"x": [number, 1.0]}, PLAIN),
    ):
        assert cli(document, declared)["x"].ravel()[0].tobytes() == np.float64(number).tobytes()


@pytest.mark.parametrize(
    ("document", "spec", "expected"),
    [
        ({"x": ["00123", "1"]}, Spec("BYTES", (-1,)), [b"00123", b"1"]),
        ({"inputs": {"x": "007"}}, Spec("BYTES", (1,)), [b"007"]),
        ({"x": [9007199254740993, 2]}, Spec("INT64", (-1,)), [9007199254740993, 2]),
        ({"x": [18446744073709551615]}, Spec("UINT64", (-1,)), [18446744073709551615]),
        ({"x": {"0": 1, "1": 2}}, Spec("INT8", (-1,)), [1, 2]),
        ({"x": [True, False]}, Spec("BOOL", (-1,)), [True, False]),
        ([1.5, 2], Spec("FP32", (-1, 1)), [[1.5], [2.0]]),
        ([[1, 2], [3, 4]], Spec("FP32", (-1, 2)), [[1, 2], [3, 4]]),
        ({"a": [1, 3], "b": [2.5, 4]}, Spec("FP32", (-1, 2)), [[1, 2.5], [3, 4]]),
        ({"instances": [[1, 2]]}, Spec("INT8", (-1, 2)), [[1, 2]]),
        ({"dataframe_split": {"columns": ["x"], "data": [["01"]]}}, Spec("BYTES", (-1,)), [b"01"]),
        ({"dataframe_records": [{"x": "1"}, {"x": "01"}]}, Spec("BYTES", (-1,)), [b"1", b"01"]),
        (
            {"id": "7", "inputs": [{"name": "x", "shape": [1, 2], "datatype": "INT8", "data": [1, 2]}]},
            Spec("INT8", (-1, 2)),
            [[1, 2]],
        ),
    ],
)
def test_the_cli_takes_what_stands_in_the_file(
    cli: Callable[..., dict[str, Array]], document: Any, spec: Spec, expected: Any
) -> None:
    """What pandas' reader would have changed arrives as it was written."""
    assert cli(document, {"x": spec})["x"].tolist() == expected


@pytest.mark.parametrize("name", ["00", "1e3", "2020-01-01", "1600000000", "0.50", "nan", "", "created_at"])
def test_names_that_pandas_changes(cli: Callable[..., dict[str, Array]], name: str) -> None:
    """A name that pandas makes a number or a date is found again, in the file and in pandas' frame."""
    declared = {name: Spec("INT64", (-1, 1)), "other": Spec("INT64", (-1, 1))}
    for document in ({"inputs": {name: [[1600000000]]}}, {name: [[1600000000]]}):
        for exact in (True, False):
            assert cli(document, declared, exact=exact)[name].tolist() == [[1600000000]]


@pytest.mark.parametrize(
    ("text", "spec", "words"),
    [
        ('{"x": ["00123", "1"]}', Spec("BYTES", (-1,)), "a column of numbers"),
        ('{"created_at": [1600000000]}', Spec("INT64", (-1,)), "a column of dates"),
        ('{"date": ["2020-01-01"]}', Spec("BYTES", (-1,)), "a column of dates"),
        ('{"x": [9007199254740993, 0.5, 1e17]}', Spec("INT64", (-1,)), "a column of floats"),
        ('{"x": [1, null]}', Spec("INT64", (-1,)), "the value nan"),
    ],
)
def test_what_pandas_has_lost_is_refused(
    cli: Callable[..., dict[str, Array]], text: str, spec: Spec, words: str
) -> None:
    """Where only pandas' frame is there, a value that it may have changed beyond knowing is refused."""
    name = next(iter(json.loads(text)))
    with pytest.raises(InvalidInput, match=words):
        cli(text, {name: spec}, exact=False)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ('{"x": [1.5, null]}', "no value in row 1"),
        ('{"inputs": {"x": [[1.5, null]]}}', r"None \(NoneType\) at \[0, 1\]"),
        ('{"x": [1e400, 1.5]}', "1e400 is beyond all floats"),
        ('{"inputs": {"x": [[1]], "x": [[2]]}}', "the key 'x' twice in one object"),
        ('{"x": {"0": 1.5, "1": 2}, "y": {"0": 1}}', "columns with different rows: '0', '1' and '0'"),
    ],
)
def test_the_cli_guesses_nothing(cli: Callable[..., dict[str, Array]], text: str, words: str) -> None:
    """A null is not NaN, a number beyond all floats not infinite, and of a key that is there twice, neither counts."""
    with pytest.raises(InvalidInput, match=words):
        cli(text, PLAIN if "inputs" not in text else X)


@pytest.mark.filterwarnings("ignore")  # pandas' own, about lists of different lengths
def test_no_row_is_filled_up(cli: Callable[..., dict[str, Array]]) -> None:
    """Rows of different lengths, and records without a value, are refused, where pandas puts NaN."""
    for document, words in (
        ([[1.5, 2.5], [3.5]], "ragged"),
        ([{"x": 1.5}, {"y": 2.5}], "no input 'y'"),
        ({"dataframe_split": {"data": [[1, 2], [3]]}}, r"rows and columns are \[1, 2\] wide"),
        ({"dataframe_records": [{"a": 1}, {"b": 2}]}, "Record 1 has 'b', but record 0 has 'a'|no input"),
    ):
        with pytest.raises(InvalidInput, match=words):
            cli(document, X if "x" not in str(document) else PLAIN)


def test_an_empty_list_has_the_dimensions_that_the_model_fixes() -> None:
    """No rows are a tensor of no rows."""
    assert encode({"x": []}, {"x": Spec("FP32", (-1, 3))})["x"].shape == (0, 3)
    assert encode(pd.DataFrame({"x": np.empty(0)}), {"x": Spec("BYTES", (-1, 1))})["x"].shape == (0, 1)
    with pytest.raises(InvalidInput, match=r"has the shape \[0\], but the model wants \[-1, -1\]"):
        encode({"x": []}, {"x": Spec("FP32", (-1, -1))})


def test_a_file_that_cannot_be_read_again(
    cli: Callable[..., dict[str, Array]], caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Pandas' frame is taken as it is, with a warning, when the file is no plain one."""
    monkeypatch.setattr("pathlib.Path.is_file", lambda _: False)
    assert cli({"x": [1, 2]}, PLAIN)["x"].tolist() == [1.0, 2.0]
    assert "is not read again" in caplog.text


def test_only_mlflows_command_reads_a_file() -> None:
    """A frame that is passed in Python is taken as it is."""
    frame = pd.DataFrame({"x": [1.5]})
    assert as_written(frame) is frame


class OnDevice:
    """An array of another library, by DLPack alone."""

    def __init__(self, device: tuple[int, int] | None = None) -> None:
        self._array = np.arange(3, dtype=np.int16)
        self._device = device

    def __dlpack__(self, **arguments: Any) -> Any:
        return self._array.__dlpack__(**arguments)

    def __dlpack_device__(self) -> tuple[int, int]:
        return self._device or self._array.__dlpack_device__()


def test_other_libraries_arrays() -> None:
    """An array of another library is taken on the CPU, also in a list, and refused on a GPU with the remedy."""
    assert to_array(OnDevice(), "x").tolist() == [0, 1, 2]
    assert to_array([OnDevice(), OnDevice()], "x").tolist() == [[0, 1, 2]] * 2
    assert to_array(pa.array([1, 2]), "x").dtype == np.int64
    assert to_array(pa.array(["a"]), "x").tolist() == ["a"]
    for value, words in (
        (OnDevice((2, 0)), r"lies on a GPU\. Copy it to the host first: \.cpu\(\)"),
        ([OnDevice((2, 0))], "lies on a GPU"),
        (pa.array([1, None]), "1 missing values"),
        ({1, 2}, "is a set, not an array"),
        ([scipy.sparse.eye(2)], r"sparse matrix.*\.toarray\(\)"),
    ):
        with pytest.raises(InvalidInput, match=words):
            to_array(value, "x")
    with pytest.raises(InvalidInput, match=r"pass \.to_pandas\(\)"):
        name_values(pa.table({"x": [1]}), PLAIN)
    with pytest.raises(InvalidInput, match=r"\.toarray\(\)"):
        encode(scipy.sparse.eye(2), X)


def test_a_list_that_holds_itself() -> None:
    """A list without an end is refused, not followed."""
    endless: list[Any] = []
    endless += [endless, endless]
    with pytest.raises(InvalidInput, match="holds itself"):
        to_array(endless, "x")


@pytest.mark.parametrize(
    ("value", "datatype", "words"),
    [
        ([16777217, 0.5], "FP32", r"16777217 \(int\) at \[0\]"),
        ([[0.5, 257]], "BF16", r"257 \(int\) at \[0, 1\]"),
        ([2049, 0.5], "FP16", r"2049 \(int\) at \[0\]"),
        ([True, 300], "UINT8", r"300 \(int\) at \[1\]"),
    ],
)
def test_an_integer_beside_a_float_is_not_rounded(value: Any, datatype: str, words: str) -> None:
    """An integer that the datatype lacks is refused wherever it stands, with its index."""
    with pytest.raises(InvalidInput, match=words + f" cannot become {datatype} without changing"):
        cast(to_array(value, "x"), datatype, "x")


@pytest.mark.parametrize(
    ("value", "datatype", "expected"),
    [
        ([1.5, -1.5], "INT8", [1, -1]),
        ([16777217, 0.5], "FP32", [16777216.0, 0.5]),
        ([16777217], "FP32", [16777216.0]),
        ([2**70 + 1], "FP32", [2.0**70]),
        ([257], "BF16", [256.0]),
    ],
)
def test_a_lossy_cast_drops_digits(value: Any, datatype: str, expected: Any) -> None:
    """If asked for, fractions are cut off and integers become the nearest float; the error says how to ask."""
    with pytest.raises(InvalidInput, match="Or allow digits to be lost: allow_lossy=True"):
        cast(to_array(value, "x"), datatype, "x")
    assert cast(to_array(value, "x"), datatype, "x", lossy=True).tolist() == expected


@pytest.mark.parametrize(
    ("value", "datatype"),
    [
        ([300], "INT8"),
        ([128.5], "INT8"),
        ([math.nan], "INT32"),
        ([1e39], "FP32"),
        (["7"], "FP32"),
        ([0.5], "BOOL"),
    ],
)
def test_a_lossy_cast_never_wraps(value: Any, datatype: str) -> None:
    """What is out of range, or no number, is refused by a lossy cast, too, and the error does not offer one."""
    for lossy in (True, False):
        with pytest.raises(InvalidInput) as caught:
            cast(to_array(value, "x"), datatype, "x", lossy=lossy)
        assert "allow_lossy" not in caught.value.message


def test_bfloat16_is_rounded_once() -> None:
    """A float64 just beside the middle of two bfloat16 becomes the nearer one, not the even one."""
    middle = 1.0 + 2.0**-8
    values = np.array(
        [middle, middle + 2.0**-40, middle - 2.0**-40, -(middle + 2.0**-40), 2.0**-133 + 2.0**-180]
    )
    result = cast(values, "BF16", "x")
    assert result.dtype == ml_dtypes.bfloat16
    step = 2.0**-7
    assert result.astype(float).tolist() == [1.0, 1.0 + step, 1.0, -(1.0 + step), 2.0**-133]


def test_a_scalar_has_the_dimensions_that_the_model_wants() -> None:
    """A plain value is a tensor of one element, of any rank."""
    for shape in ((1,), (-1, 1), (-1, -1, -1)):
        assert encode({"x": 5}, {"x": Spec("FP32", shape)})["x"].shape == (1,) * len(shape)
    with pytest.raises(InvalidInput, match=r"has the shape \[\], but the model wants \[-1, 2\]"):
        encode({"x": 5}, {"x": Spec("FP32", (-1, 2))})


TWO = {"x": Spec("FP32", (-1, 1)), "y": Spec("INT64", (-1, 1))}


@pytest.mark.parametrize(
    ("inputs", "words"),
    [
        ({"inputs": {"x": 1}, "params": {}}, "'params' beside 'inputs'"),
        ({"inputs": {"inputs": {"x": 1}}}, "no input 'inputs'"),
        ({"dataframe_records": {"x": [1]}}, "'dataframe_records' is not a list of records"),
        ({"dataframe_split": [1]}, "'dataframe_split' is not of the form"),
        ({"dataframe_split": {"columns": ["x"], "data": [[1, 2]]}}, "'dataframe_split' is no table"),
        ({"inputs": [{"name": "z", "shape": [1], "datatype": "FP32", "data": [1]}]}, "no input 'z'"),
        (
            {"inputs": [{"name": "x", "shape": [2], "datatype": "FP32", "data": [1]}]},
            r"shape is \[2\], but has 1",
        ),
        ({"inputs": [{"name": "x", "shape": [-1], "datatype": "FP32", "data": [1]}]}, "not a list of sizes"),
        (
            {"inputs": [{"name": "x", "shape": [1] * 70, "datatype": "FP32", "data": [1]}]},
            "cannot have the shape",
        ),
        (
            {"inputs": [{"name": "x", "shape": [2**62, 2**62, 0], "datatype": "FP32", "data": []}]},
            "cannot have the shape",
        ),
        (
            {"inputs": [{"name": "x", "shape": [1], "datatype": "FP31", "data": [1]}]},
            "'x' has the datatype 'FP31'.*wants FP32",
        ),
        ({"inputs": [{"name": "x", "shape": [1, 1], "datatype": "UINT8", "data": [300]}]}, "300 .* UINT8"),
        ({"inputs": [{"name": "x", "shape": [1], "datatype": "FP32", "data": [1]}] * 2}, "twice: 'x'"),
        ({"x": [[1]], 1: 2}, "no input '1'"),
        (pd.DataFrame({"y": [2.0**60, 0.5]}), "a column of floats with 1.15"),
    ],
)
def test_documents_that_are_refused(inputs: Any, words: str) -> None:
    """A document of a known form with a wrong content says what is wrong with it."""
    with pytest.raises(TritonPluginError, match=words):
        encode(inputs, TWO)


def test_an_input_that_is_none_is_not_given() -> None:
    """A mapping may name an optional input and leave its value out."""
    assert set(name_values({"x": 1, "y": None}, TWO).by_input) == {"x"}


def test_text_with_a_nul_comes_back_from_json() -> None:
    """`from_json` keeps all of a text, and integers beyond int64."""
    text = decode({"s": np.array([b"a\0"], object), "u": np.array([2**64 - 1], np.uint64)}).to_json()
    back = TritonPredictions.from_json(text or "")["outputs"]
    assert back["s"].tolist() == ["a\0"]
    assert back["u"].tolist() == [2**64 - 1]


def test_bfloat16_in_a_frame() -> None:
    """Pandas gets a bfloat16 output as float32, which has all of its values."""
    frame = decode({"b": np.array([1.5, 2], ml_dtypes.bfloat16)}).get_predictions()
    assert isinstance(frame, pd.DataFrame)
    assert frame["b"].dtype == np.float32
