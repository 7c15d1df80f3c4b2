"""ONNX's own standard tests (``onnx.backend.test``): models with inputs and outputs that nobody here wrote.

The package onnx makes some of them by running its operators' definitions, which takes seconds for all of them,
and has others on disk. Triton cannot be told of all of them; `StandardCase.obstacle` says of which not, and why.
"""

from __future__ import annotations

import importlib
import re
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property, partial
from importlib.resources import files
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import numpy as np
import onnx
from onnx import TensorProto, numpy_helper

from pytest_mlflow_triton.assertions import assert_tensors_equal

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

__all__ = ["Maker", "StandardCase", "every", "limitation", "sample"]

Array = np.ndarray[Any, Any]

KINDS_ON_DISK: Final = ("simple", "pytorch-converted", "pytorch-operator")
#: Source: Triton's model configuration, "Datatypes".
DATATYPES: Final[dict[int, str]] = {
    TensorProto.BOOL: "TYPE_BOOL",
    TensorProto.UINT8: "TYPE_UINT8",
    TensorProto.UINT16: "TYPE_UINT16",
    TensorProto.UINT32: "TYPE_UINT32",
    TensorProto.UINT64: "TYPE_UINT64",
    TensorProto.INT8: "TYPE_INT8",
    TensorProto.INT16: "TYPE_INT16",
    TensorProto.INT32: "TYPE_INT32",
    TensorProto.INT64: "TYPE_INT64",
    TensorProto.FLOAT16: "TYPE_FP16",
    TensorProto.FLOAT: "TYPE_FP32",
    TensorProto.DOUBLE: "TYPE_FP64",
    TensorProto.STRING: "TYPE_STRING",
    TensorProto.BFLOAT16: "TYPE_BF16",
}
#: What the server's ONNX Runtime says of a model of which it, and not the plugin or Triton, is incapable.
LIMITATIONS: Final = (
    (
        re.compile(r"(?:Could not find an implementation|Failed to find kernel) for (?P<what>\w+)"),
        "the server's ONNX Runtime has no kernel: {what}",
    ),
    (
        re.compile(
            r"(?:only \*guarantees\* support|is under development and support|No opset import|No Op registered|is not a registered function/op|Unsupported model IR version)"
        ),
        "the server's ONNX Runtime does not know the model's operator set or operator",
    ),
    (
        re.compile(
            r"Type Error: Type '(?P<what>[^']+)'|is a (?P<other>\S+) in the model, which this backend cannot serve"
        ),
        "the server's ONNX Runtime does not take the type: {what}",
    ),
)


Maker = Callable[[], "StandardCase | None"]


@dataclass(frozen=True)
class StandardCase:
    """One model of the standard tests.

    Attributes:
        name: The test's, unique in the package onnx.
        model: The model.
        data: Inputs and outputs of each of its requests, in the order of the graph's.
        rtol: The relative tolerance that ONNX compares with.
        atol: The absolute one.
    """

    name: str
    model: onnx.ModelProto
    data: Sequence[tuple[Sequence[Any], Sequence[Any]]]
    rtol: float
    atol: float

    @cached_property
    def inputs(self) -> list[onnx.ValueInfoProto]:
        """What a request gives: the graph's inputs without those that have a value."""
        given = {tensor.name for tensor in self.model.graph.initializer}
        return [value for value in self.model.graph.input if value.name not in given]

    @property
    def obstacle(self) -> str:
        """Why no configuration of Triton's can describe the model; empty if one can."""
        for value in (*self.inputs, *self.model.graph.output):
            kind = value.type.WhichOneof("value")
            if kind != "tensor_type":
                return f"Triton has no {str(kind).removesuffix('_type')} types"
            tensor = value.type.tensor_type
            if tensor.elem_type not in DATATYPES:
                return f"Triton has no datatype {TensorProto.DataType.Name(tensor.elem_type)}"
            if any(size.HasField("dim_value") and size.dim_value == 0 for size in tensor.shape.dim):
                return "Triton has no dimension of the fixed size 0"
        return ""

    @property
    def config(self) -> str:
        """The whole config.pbtxt, which leaves nothing for the server to complete.

        A scalar is a tensor of one element, as Triton's ONNX Runtime backend has it.
        """
        inputs, outputs = self.data[0]
        return "\n".join(
            [
                'backend: "onnxruntime"',
                'default_model_filename: "model.onnx"',
                "max_batch_size: 0",
                "instance_group [ { count: 1 kind: KIND_CPU } ]",
                *(
                    f'{role} [ {{ name: "{value.name}" data_type: {DATATYPES[value.type.tensor_type.elem_type]} '
                    f"dims: {_dims(value, example)} }} ]"
                    for role, values, examples in (
                        ("input", self.inputs, inputs),
                        ("output", self.model.graph.output, outputs),
                    )
                    for value, example in zip(values, examples, strict=True)
                ),
                "",
            ]
        )

    def requests(self) -> Iterator[tuple[dict[str, Array], dict[str, Array]]]:
        """Inputs and expected outputs by name, of each request."""
        for inputs, outputs in self.data:
            yield (
                {value.name: _array(it) for value, it in zip(self.inputs, inputs, strict=True)},
                {value.name: _array(it) for value, it in zip(self.model.graph.output, outputs, strict=True)},
            )

    def check(self, predict: Callable[[dict[str, Array]], Mapping[str, Array]]) -> str:
        """Send each request and compare the answers as ONNX's own runner does.

        Args:
            predict: Inputs by name to outputs by name.

        Returns:
            Empty; or that the answers are not those of the standard, but those that ONNX Runtime gives here, too.

        Raises:
            AssertionError: An answer is neither.
        """
        deviation = ""
        for inputs, expected in self.requests():
            answers = dict(predict(inputs))
            try:
                self._compare(answers, expected, inputs)
            except AssertionError:
                try:
                    self._compare(answers, self._by_runtime(inputs), inputs)
                except Exception:  # noqa: BLE001 - another answer, or none: what is to be told is the first difference
                    deviation = ""
                else:
                    deviation = "ONNX Runtime itself answers otherwise than the standard"
                if not deviation:
                    raise
        return deviation

    def refused(self) -> str:
        """Say that ONNX Runtime refuses the model, or one of its requests, here as well; nothing if it does not."""
        try:
            for inputs, _ in self.requests():
                self._by_runtime(inputs)
        except Exception:  # noqa: BLE001 - onnxruntime's errors have no common base
            return "ONNX Runtime refuses it, without Triton as well"
        return ""

    def _compare(
        self, actual: dict[str, Array], expected: dict[str, Array], inputs: dict[str, Array]
    ) -> None:
        found = {
            name: array.reshape(()) if array.shape == (1,) and expected.get(name, array).ndim == 0 else array
            for name, array in actual.items()
        }
        rough = any(array.dtype.name == "bfloat16" for array in expected.values())
        rtol = max(self.rtol, 2**-6) if rough else self.rtol
        assert_tensors_equal(found, expected, rtol=rtol, atol=self.atol, inputs=inputs)

    def _by_runtime(self, inputs: dict[str, Array]) -> dict[str, Array]:
        import onnxruntime  # noqa: PLC0415 - slow, and seldom needed

        options = onnxruntime.SessionOptions()
        options.log_severity_level = 4  # what it refuses is an answer here
        session = onnxruntime.InferenceSession(
            self.model.SerializeToString(), options, providers=["CPUExecutionProvider"]
        )
        names = [output.name for output in session.get_outputs()]
        return {name: _array(it) for name, it in zip(names, session.run(names, inputs), strict=True)}


def limitation(message: str) -> str:
    """Say of what the server's ONNX Runtime is incapable, if that is why it refused a model; else nothing."""
    for pattern, reason in LIMITATIONS:
        if found := pattern.search(message):
            named = found.groupdict()
            return reason.format(what=named.get("what") or named.get("other"))
    return ""


def sample() -> dict[str, Maker]:
    """Choose a hundred tests, always the same, the first ten of which stand for all of them.

    Returns:
        By name, what makes the test; it returns None if this release of the package onnx has no such test.
    """
    lines = files(__package__).joinpath("onnx_sample.txt").read_text(encoding="utf-8").splitlines()
    return {line.partition("/")[2]: partial(_one, *line.split("/")) for line in lines}


def every() -> dict[str, Maker]:
    """Take all tests of the package onnx, by name, in the order of their names."""
    from onnx.backend.test.loader import load_model_tests  # noqa: PLC0415 - it makes them all, for seconds

    with np.errstate(all="ignore"):  # infinities are meant
        found = [case for kind in ("node", *KINDS_ON_DISK) for case in load_model_tests(kind=kind)]
    return {case.name: partial(_read, case) for case in sorted(found, key=lambda case: str(case.name))}


def _one(where: str, name: str) -> StandardCase | None:
    from onnx.backend.test.case import node  # noqa: PLC0415 - slow
    from onnx.backend.test.loader import load_model_tests  # noqa: PLC0415 - slow

    if where in KINDS_ON_DISK:
        found = load_model_tests(kind=where)
    else:
        with np.errstate(all="ignore"):  # the filters of warnings belong to all threads
            try:
                importlib.import_module(f"{node.__name__}.{where}")
            except ModuleNotFoundError:
                return None
        # The public way makes the tests of all operators.
        found = node._NodeTestCases  # noqa: SLF001
    return next((_read(case) for case in found if case.name == name), None)


def _read(case: Any) -> StandardCase:
    if case.model is not None:
        return StandardCase(case.name, case.model, case.data_sets, case.rtol, case.atol)
    directory = Path(case.model_dir)
    model = onnx.load(directory / "model.onnx")
    data = [
        (_tensors(requests, "input"), _tensors(requests, "output"))
        for requests in sorted(directory.glob("test_data_set_*"))
    ]
    return StandardCase(case.name, model, data, case.rtol, case.atol)


def _tensors(directory: Path, role: str) -> list[TensorProto]:
    paths = sorted(directory.glob(f"{role}_*.pb"), key=lambda path: int(path.stem.rpartition("_")[2]))
    return [TensorProto.FromString(path.read_bytes()) for path in paths]


def _array(value: Any) -> Array:
    array = numpy_helper.to_array(value) if isinstance(value, TensorProto) else np.asarray(value)
    return array.astype(np.object_) if array.dtype.kind in "US" else array


def _dims(value: onnx.ValueInfoProto, example: Any) -> list[int]:
    tensor = value.type.tensor_type
    if not tensor.HasField("shape"):
        return [-1] * max(_array(example).ndim, 1)
    return [size.dim_value if size.HasField("dim_value") else -1 for size in tensor.shape.dim] or [1]
