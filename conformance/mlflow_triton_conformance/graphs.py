"""ONNX graphs that nobody wrote, with inputs for them and the outputs that they must have.

Each output is one operator on one input, of those whose result NumPy knows to the bit. Dynamic dimensions have names, and
one size for each name, as a runtime asks for.
"""

from __future__ import annotations

import string
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx
from hypothesis import strategies as st
from onnx import helper, numpy_helper

from pytest_mlflow_triton.strategies import tensors

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

__all__ = ["Graph", "graphs"]

#: Triton's datatype by ONNX's.
DATATYPES: dict[int, str] = {
    onnx.TensorProto.BOOL: "BOOL",
    onnx.TensorProto.UINT8: "UINT8",
    onnx.TensorProto.UINT16: "UINT16",
    onnx.TensorProto.UINT32: "UINT32",
    onnx.TensorProto.UINT64: "UINT64",
    onnx.TensorProto.INT8: "INT8",
    onnx.TensorProto.INT16: "INT16",
    onnx.TensorProto.INT32: "INT32",
    onnx.TensorProto.INT64: "INT64",
    onnx.TensorProto.FLOAT16: "FP16",
    onnx.TensorProto.FLOAT: "FP32",
    onnx.TensorProto.DOUBLE: "FP64",
    onnx.TensorProto.STRING: "BYTES",
}
#: What ONNX Runtime adds.
ADDED = ("FP32", "FP64", "INT32", "INT64")
SIZES = {"n": 2, "length": 3, "width": 1}
FIRST, REST = string.ascii_letters + "_", string.ascii_letters + string.digits + "_.:/-"
WEIGHTS = 1024
"""Elements of float32: from here on MLflow keeps a tensor in a file of its own."""
TEXT = st.text(max_size=8).map(str.encode)  # ONNX's strings are UTF-8


@dataclass(frozen=True, slots=True)
class Graph:
    """A model, and an example of what it does.

    Attributes:
        model: The model.
        inputs: An array for each input.
        outputs: The array that each output must be.
    """

    model: onnx.ModelProto
    inputs: Mapping[str, np.ndarray[Any, Any]]
    outputs: Mapping[str, np.ndarray[Any, Any]]


@st.composite
def graphs(draw: st.DrawFn) -> Graph:
    """Draw a graph of one to three inputs and outputs, of any datatypes, ranks and dimensions, maybe with external data."""
    names = draw(st.lists(_names(), min_size=6, max_size=6, unique_by=str.lower))
    inputs: dict[str, np.ndarray[Any, Any]] = {}
    outputs: dict[str, np.ndarray[Any, Any]] = {}
    declared: list[onnx.ValueInfoProto] = []
    promised: list[onnx.ValueInfoProto] = []
    nodes, weights = [], []
    for name in names[: draw(st.integers(1, 3))]:
        element = draw(st.sampled_from(sorted(DATATYPES)))
        dims = draw(
            st.lists(st.one_of(st.integers(1, 3), st.sampled_from(sorted(SIZES))), min_size=1, max_size=4)
        )
        shape = [SIZES[it] if isinstance(it, str) else it for it in dims]
        elements = TEXT if DATATYPES[element] == "BYTES" else None
        inputs[name] = draw(tensors(DATATYPES[element], shape, elements=elements))
        declared.append(helper.make_tensor_value_info(name, element, dims))
    given = list(zip(declared, inputs.items(), strict=True))
    for output in names[3 : 3 + draw(st.integers(len(given), 3))]:
        # Every input has an output: ONNX Runtime would drop one that nothing needs.
        number = len(promised)
        info, (name, array) = given[number] if number < len(given) else draw(st.sampled_from(given))
        kind = info.type.tensor_type
        dims = [it.dim_param or it.dim_value for it in kind.shape.dim]
        operator = draw(
            st.sampled_from(
                ["Identity", "Transpose", *(["Add"] if DATATYPES[kind.elem_type] in ADDED else [])]
            )
        )
        if operator == "Transpose":
            array, dims = array.transpose(), dims[::-1]
        taken = [name]
        if operator == "Add":
            one = np.ones(1, array.dtype)
            weights.append(numpy_helper.from_array(one, f"one of {output}"))
            taken.append(weights[-1].name)
            with np.errstate(all="ignore"):
                array = array + one
        nodes.append(helper.make_node(operator, taken, [output]))
        promised.append(helper.make_tensor_value_info(output, kind.elem_type, dims))
        outputs[output] = np.ascontiguousarray(array)
    if draw(st.booleans()) or _taken_for_batches([*declared, *promised]):
        table = np.arange(WEIGHTS, dtype=np.float32)
        weights += [
            numpy_helper.from_array(table, "table"),
            numpy_helper.from_array(np.array([WEIGHTS - 1]), "last"),
        ]
        nodes.append(helper.make_node("Gather", ["table", "last"], ["picked"]))
        promised.append(helper.make_tensor_value_info("picked", onnx.TensorProto.FLOAT, [1]))
        outputs["picked"] = table[-1:]
    graph = helper.make_graph(nodes, "drawn", declared, promised, weights)
    model = helper.make_model(graph, ir_version=8, opset_imports=[helper.make_opsetid("", 16)])
    onnx.checker.check_model(model, full_check=True)
    return Graph(model, inputs, outputs)


def _names() -> st.SearchStrategy[str]:
    return st.builds(str.__add__, st.sampled_from(FIRST), st.text(REST, max_size=12))


def _taken_for_batches(tensors: Iterable[onnx.ValueInfoProto]) -> bool:
    """Tell whether a server that completes the configuration would take for a batch what is none.

    Triton does where each tensor begins with a dynamic dimension; it also makes ``[-1, 1]`` of ``[-1]`` then. A tensor whose
    first dimension is fixed keeps it from that.
    """
    shapes = [[it.dim_param for it in tensor.type.tensor_type.shape.dim] for tensor in tensors]
    first = {shape[0] for shape in shapes}
    return "" not in first and (len(first) > 1 or any(len(shape) == 1 for shape in shapes))
