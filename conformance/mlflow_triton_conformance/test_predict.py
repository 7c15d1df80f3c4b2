"""Predictions equal what NumPy computes, whatever form the inputs have, and bad inputs say why."""

from __future__ import annotations

import io
import json
import uuid
from typing import TYPE_CHECKING, Any

import mlflow
import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as npst
from mlflow.exceptions import MlflowException

from mlflow_triton_conformance.cases import cases
from mlflow_triton_conformance.models import answered
from pytest_mlflow_triton import example

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

Arrays = dict[str, np.ndarray]


class Subject:
    """A client and the name of the example's deployment."""

    def __init__(self, client: Any, name: str) -> None:
        self._client = client
        self.name = name

    def __call__(self, inputs: Any) -> Any:
        """Predict."""
        return self._client.predict(self.name, inputs)


@pytest.fixture(scope="module")
def predict(
    onnx_backend: None, module_client: Any, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Subject]:
    """Predict with the example, deployed once for this module."""
    path = tmp_path_factory.mktemp("predict") / "model"
    mlflow.onnx.save_model(example.build(), str(path), pip_requirements=["onnx"])
    (path / "config.pbtxt").write_text(example.CONFIG)
    name = f"predict-{uuid.uuid4().hex[:8]}"
    module_client.create_deployment(name, str(path), flavor="onnx")
    yield Subject(module_client, name)
    module_client.delete_deployment(name)


def expected(inputs: Arrays) -> Arrays:
    """What the example computes: in float32, then cast, which makes of a value out of range what NumPy does."""
    a, b = inputs["INPUT0"], inputs["INPUT1"]
    with np.errstate(all="ignore"):
        return {"OUTPUT0": (a + b).astype(np.int32), "OUTPUT1": (a - b).astype(np.int32)}


def check(inputs: Arrays, response: Any) -> None:
    """Compare a response with `expected`, bit by bit."""
    wanted, found = expected(inputs), answered(response)
    assert found.keys() == wanted.keys()
    for name, array in wanted.items():
        np.testing.assert_array_equal(array, found[name], strict=True)


FLOATS = st.floats(width=32, allow_nan=True, allow_infinity=True)
BATCHES = st.integers(1, 8).flatmap(
    lambda rows: st.fixed_dictionaries(
        {name: npst.arrays(np.float32, (rows, 16), elements=FLOATS) for name in ("INPUT0", "INPUT1")}
    )
)


@pytest.mark.requirement("MLF-TENSOR-001")
@given(inputs=BATCHES)
def test_float32_over_its_whole_range(predict: Subject, inputs: Arrays) -> None:
    """Any float32, NaN, infinities and denormals among them, is computed as NumPy does."""
    check(inputs, predict(inputs))


def as_cli_reads(inputs: Arrays) -> Any:
    """What MLflow's CLI makes of the documented JSON file."""
    return pd.read_json(io.StringIO(json.dumps({"inputs": {k: v.tolist() for k, v in inputs.items()}})))


FORMS: dict[str, Callable[[Arrays], Any]] = {
    "arrays": lambda inputs: inputs,
    "nested lists": lambda inputs: {name: array.tolist() for name, array in inputs.items()},
    "under inputs": lambda inputs: {"inputs": inputs},
    "cli json": as_cli_reads,
    "frame by tensor": lambda inputs: pd.DataFrame({name: list(array) for name, array in inputs.items()}),
    "records": lambda inputs: [
        dict(zip(inputs, rows, strict=True))
        for rows in zip(*(a.tolist() for a in inputs.values()), strict=True)
    ],
    "float64": lambda inputs: {name: array.astype(np.float64) for name, array in inputs.items()},
    "big-endian": lambda inputs: {name: array.astype(">f4") for name, array in inputs.items()},
    "fortran order": lambda inputs: {name: np.asfortranarray(array) for name, array in inputs.items()},
    "reversed view": lambda inputs: {name: array[::-1].copy()[::-1] for name, array in inputs.items()},
    "open inference": lambda inputs: {
        "inputs": [
            {"name": name, "shape": list(array.shape), "datatype": "FP32", "data": array.ravel().tolist()}
            for name, array in inputs.items()
        ]
    },
    "instances": lambda inputs: {"instances": FORMS["records"](inputs)},
    "dataframe split": lambda inputs: {
        "dataframe_split": {
            "columns": list(inputs),
            "data": [list(row) for row in zip(*(array.tolist() for array in inputs.values()), strict=True)],
        }
    },
    "integers": lambda inputs: {name: array.astype(np.int16) for name, array in inputs.items()},
}
WHOLE = st.integers(1, 4).flatmap(
    lambda rows: st.fixed_dictionaries(
        {
            name: npst.arrays(np.float32, (rows, 16), elements=st.integers(-30_000, 30_000).map(float))
            for name in ("INPUT0", "INPUT1")
        }
    )
)


@pytest.mark.parametrize(
    "form",
    cases(
        {
            "arrays": "MLF-FORM-001",
            "nested lists": "MLF-FORM-002",
            "under inputs": "MLF-FORM-003",
            "cli json": "MLF-FORM-004",
            "frame by tensor": "MLF-FORM-005",
            "records": "MLF-FORM-006",
            "float64": "MLF-FORM-007",
            "big-endian": "MLF-FORM-008",
            "fortran order": "MLF-FORM-009",
            "reversed view": "MLF-FORM-010",
            "open inference": "MLF-FORM-011",
            "instances": "MLF-FORM-012",
            "dataframe split": "MLF-FORM-013",
            "integers": "MLF-FORM-014",
        }
    ),
)
@given(inputs=WHOLE)
def test_forms(predict: Subject, form: str, inputs: Arrays) -> None:
    """The same numbers give the same answer in every form in which MLflow users hold them."""
    check(inputs, predict(FORMS[form](inputs)))


EXAMPLE = {name: np.array(value, np.float32) for name, value in example.INPUT["inputs"].items()}


@pytest.mark.requirement("MLF-TENSOR-002")
def test_arrays(predict: Subject) -> None:
    """The answer holds NumPy arrays, of the model's datatype, with the example's numbers."""
    found = answered(predict(EXAMPLE))
    for name, values in example.EXPECTED_OUTPUT["outputs"].items():
        assert isinstance(found[name], np.ndarray)
        np.testing.assert_array_equal(np.array(values, np.int32), found[name], strict=True)


@pytest.mark.requirement("MLF-PREDICT-003")
def test_json(predict: Subject) -> None:
    """The answer writes the documented JSON."""
    assert json.loads(predict(EXAMPLE).to_json()) == example.EXPECTED_OUTPUT


@pytest.mark.requirement("MLF-PREDICT-004")
def test_frame(predict: Subject) -> None:
    """The answer makes a DataFrame with a column for each output."""
    frame = predict(EXAMPLE).get_predictions()
    assert list(frame.columns) == ["OUTPUT0", "OUTPUT1"]
    assert frame["OUTPUT0"][0].tolist() == example.EXPECTED_OUTPUT["outputs"]["OUTPUT0"][0]


GOOD = np.zeros((1, 16), np.float32)
BAD = {
    "missing input": ({"INPUT0": GOOD}, "INPUT1"),
    "unknown input": ({"INPUT0": GOOD, "INPUT1": GOOD, "INPUT2": GOOD}, "INPUT2"),
    "wrong width": ({"INPUT0": GOOD, "INPUT1": GOOD[:, :15]}, r"INPUT1.*\[1, 15\].*\[-1, 16\]"),
    "no batch dimension": ({"INPUT0": GOOD, "INPUT1": GOOD[0]}, r"INPUT1.*batch dimension"),
    "ragged": ({"INPUT0": GOOD, "INPUT1": [[0.0] * 16, [0.0]]}, "INPUT1.*ragged"),
    "text": ({"INPUT0": GOOD, "INPUT1": [["7"] + [0.0] * 15]}, r"INPUT1.*'7'.*\[0, 0\].*FP32"),
    "missing value": ({"INPUT0": GOOD, "INPUT1": [[0.0] * 15 + [None]]}, r"INPUT1.*None.*\[0, 15\].*FP32"),
    "too large": ({"INPUT0": GOOD, "INPUT1": [[1e39] + [0.0] * 15]}, r"INPUT1.*1e\+39.*\[0, 0\].*FP32"),
    "inexact integer": ({"INPUT0": GOOD, "INPUT1": [[2**24 + 1] * 16]}, r"INPUT1.*16777217.*FP32"),
    "masked": ({"INPUT0": GOOD, "INPUT1": np.ma.masked_equal(GOOD, 0)}, "INPUT1.*masked"),
    "bare array": (GOOD, "2 inputs.*INPUT0.*INPUT1"),
    "nothing": (None, "INPUT0.*INPUT1"),
    "other columns": (pd.DataFrame({"a": [1.0], "b": [2.0]}), "'a', 'b'.*INPUT0"),
}


@pytest.mark.parametrize(
    "case",
    cases(
        {
            "missing input": "MLF-INPUT-001",
            "unknown input": "MLF-INPUT-002",
            "wrong width": "MLF-INPUT-003",
            "no batch dimension": "MLF-INPUT-004",
            "ragged": "MLF-INPUT-005",
            "text": "MLF-INPUT-006",
            "missing value": "MLF-INPUT-007",
            "too large": "MLF-INPUT-008",
            "inexact integer": "MLF-INPUT-009",
            "masked": "MLF-INPUT-010",
            "bare array": "MLF-INPUT-011",
            "nothing": "MLF-INPUT-012",
            "other columns": "MLF-INPUT-013",
        }
    ),
)
def test_bad_inputs(predict: Subject, case: str) -> None:
    """An input that does not fit is refused."""
    with pytest.raises(MlflowException):
        predict(BAD[case][0])


@pytest.mark.requirement("MLF-INPUT-015")
@pytest.mark.parametrize("case", BAD)
def test_messages_of_bad_inputs(predict: Subject, case: str) -> None:
    """What does not fit is told by tensor, place, value and datatype."""
    inputs, pattern = BAD[case]
    with pytest.raises(MlflowException, match=pattern) as caught:
        predict(inputs)
    assert caught.value.error_code == "INVALID_PARAMETER_VALUE"


TOO_LARGE = {name: np.zeros((9, 16), np.float32) for name in ("INPUT0", "INPUT1")}


@pytest.mark.requirement("MLF-INPUT-014")
def test_too_large_a_batch(predict: Subject) -> None:
    """A batch that the model does not take is refused."""
    with pytest.raises(MlflowException):
        predict(TOO_LARGE)


@pytest.mark.requirement("MLF-INPUT-015")
def test_message_of_too_large_a_batch(predict: Subject) -> None:
    """The error for a batch that the model does not take names the model's limit."""
    with pytest.raises(MlflowException, match=r"\b8\b") as caught:
        predict(TOO_LARGE)
    assert caught.value.error_code in ("BAD_REQUEST", "INVALID_PARAMETER_VALUE")


@pytest.mark.requirement("MLF-FORM-015")
def test_a_long_table(predict: Subject) -> None:
    """A table longer than the model's largest batch is answered whole, row by row in its order."""
    inputs = {
        name: np.arange(start, start + 21 * 16, dtype=np.float32).reshape(21, 16)
        for name, start in (("INPUT0", 0), ("INPUT1", 1000))
    }
    for form in ("frame by tensor", "records"):
        check(inputs, predict(FORMS[form](inputs)))
