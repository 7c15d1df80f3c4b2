"""Small models that tell by their answer which one they are."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

if TYPE_CHECKING:
    from pathlib import Path

ONE_INSTANCE = 'backend: "onnxruntime"\ninstance_group [ { count: 1 kind: KIND_CPU } ]\n'
"""A configuration for tests that are not about it: Triton would make two instances, and take a second to unload each."""

__all__ = ["ONE_INSTANCE", "answered", "constant", "unloadable", "with_weights", "write_python"]


def answered(response: Any) -> dict[str, Any]:
    """Outputs by name, of an answer of any plugin's: a PredictionsResponse or a dict, or NVIDIA's DataFrame."""
    return dict(response["outputs"].items())


def constant(value: float) -> onnx.ModelProto:
    """A model that adds `value` to its input ``x`` (FP32, ``[-1, 1]``); its output is ``y``."""
    return _add(np.array([value], np.float32), width=1)


def with_weights(weights: np.ndarray) -> onnx.ModelProto:
    """A model that adds `weights` to each row of its input ``x`` (FP32); its output is ``y``."""
    return _add(weights, width=len(weights))


def unloadable() -> onnx.ModelProto:
    """A well-formed ONNX file with an operator that no runtime has."""
    model = constant(0.0)
    model.graph.node[0].op_type = "NoSuchOperator"
    return model


def _add(weights: np.ndarray, *, width: int) -> onnx.ModelProto:
    shape: list[str | int] = ["batch", width]
    graph = helper.make_graph(
        [helper.make_node("Add", ["x", "w"], ["y"])],
        "add",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, shape)],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, shape)],
        [numpy_helper.from_array(weights, "w")],
    )
    return helper.make_model(graph, ir_version=8, opset_imports=[helper.make_opsetid("", 13)])


PYTHON_MODEL = """\
from pathlib import Path

import numpy as np
import triton_python_backend_utils as pb_utils


class TritonPythonModel:
    def initialize(self, args):
        here = Path(__file__).parent
        self.value = int(here.name) * 1000 + int((here / "assets" / "value.txt").read_text())

    def execute(self, requests):
        answer = np.array([self.value], np.int32)
        return [pb_utils.InferenceResponse([pb_utils.Tensor("y", answer)]) for _ in requests]
"""

PYTHON_CONFIG = """\
backend: "python"
max_batch_size: 0
version_policy { all { } }
instance_group [ { count: 1 kind: KIND_CPU } ]
input [ { name: "x" data_type: TYPE_INT32 dims: [ 1 ] } ]
output [ { name: "y" data_type: TYPE_INT32 dims: [ 1 ] label_filename: "labels.txt" } ]
"""


def write_python(directory: Path, values: dict[int, int]) -> Path:
    """Write a model of Triton's Python backend, with label file and nested folders, and return its directory.

    Args:
        directory: Where to make it.
        values: Version number to the value that it answers, plus a thousand times the version.
    """
    for version, value in values.items():
        assets = directory / str(version) / "assets"
        assets.mkdir(parents=True)
        (assets / "value.txt").write_text(str(value))
        (directory / str(version) / "model.py").write_text(PYTHON_MODEL)
    (directory / "config.pbtxt").write_text(PYTHON_CONFIG)
    (directory / "labels.txt").write_text("only\n")
    return directory
