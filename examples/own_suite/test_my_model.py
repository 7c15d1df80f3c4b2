"""Does Triton serve the model that we made?"""

import numpy as np
import onnx.parser
from hypothesis import given, settings

from pytest_mlflow_triton import Deploy
from pytest_mlflow_triton.assertions import assert_tensors_equal
from pytest_mlflow_triton.strategies import inputs_for

MODEL = onnx.parser.parse_model("""
    <ir_version: 8, opset_import: ["": 13]>
    halves (float[batch, 3] x) => (float[batch, 3] y) {
        two = Constant <value_float = 2.0> ()
        y = Div (x, two)
    }
""")


def test_my_model(deploy: Deploy) -> None:
    """One input that we know the answer to."""
    model = deploy(MODEL)
    outputs = model.predict({"x": [[1, 2, -0.0]]})
    assert_tensors_equal(outputs, {"y": [[0.5, 1, -0.0]]})


def test_any_input(deploy: Deploy) -> None:
    """Any input that the model takes: any batch, any float, against NumPy."""
    model = deploy(MODEL)

    @settings(deadline=None)
    @given(inputs_for(model.metadata))
    def halves(inputs: dict[str, np.ndarray]) -> None:
        expected = {"y": inputs["x"] / np.float32(2)}
        assert_tensors_equal(model.predict(inputs), expected, inputs=inputs)

    halves()
