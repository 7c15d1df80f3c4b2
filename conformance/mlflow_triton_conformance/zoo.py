"""Models for the server's own chapters, put into the repository by hand and loaded without any plugin."""

from __future__ import annotations

import shutil
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import TYPE_CHECKING

from mlflow_triton_conformance.catalogue.datatypes import DATATYPES

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from pathlib import Path

    from mlflow_triton_conformance.protocol import Protocol

__all__ = ["CONFIG", "CPU", "KINDS", "ensemble", "placed", "python_model", "serving", "write"]

CPU = "instance_group [ { count: 1 kind: KIND_CPU } ]\n"

#: Hands through the tensors that it is given, of every datatype, in two dimensions of any size.
_ECHO = """\
import triton_python_backend_utils as pb_utils


class TritonPythonModel:
    def execute(self, requests):
        return [
            pb_utils.InferenceResponse(
                [pb_utils.Tensor("OUT_" + it.name()[3:], it.as_numpy()) for it in request.inputs()]
            )
            for request in requests
        ]
"""
_ECHO_CONFIG = (
    'backend: "python"\nmax_batch_size: 0\n'
    + CPU
    + "".join(
        f'input [ {{ name: "IN_{name}" data_type: TYPE_{name.replace("BYTES", "STRING")} dims: [ -1, -1 ] optional: true }} ]\n'
        f'output [ {{ name: "OUT_{name}" data_type: TYPE_{name.replace("BYTES", "STRING")} dims: [ -1, -1 ] }} ]\n'
        for name in DATATYPES
    )
)

#: y = x + the parameter step; z says what the request's own parameters and shape were. Negative infinity is
#: answered with an error, positive infinity raises, NaN waits for a second.
_ADD = """\
import json
import time

import numpy as np
import triton_python_backend_utils as pb_utils


class TritonPythonModel:
    def initialize(self, args):
        self.step = float(json.loads(args["model_config"])["parameters"]["step"]["string_value"])

    def execute(self, requests):
        return [self.answer(request) for request in requests]

    def answer(self, request):
        x = pb_utils.get_input_tensor_by_name(request, "x").as_numpy()
        if np.isneginf(x).any():
            return pb_utils.InferenceResponse(error=pb_utils.TritonError("the model says no"))
        if np.isposinf(x).any():
            raise ValueError("the model fails")
        if np.isnan(x).any():
            time.sleep(1.0)
        extra = pb_utils.get_input_tensor_by_name(request, "extra")
        said = {"parameters": json.loads(request.parameters()), "extra": extra is not None, "shape": list(x.shape)}
        z = np.array([json.dumps(said).encode()] * len(x), np.object_).reshape(len(x), 1)
        return pb_utils.InferenceResponse(
            [pb_utils.Tensor("y", (x + self.step).astype(np.float32)), pb_utils.Tensor("z", z)]
        )
"""
_ADD_CONFIG = """\
backend: "python"
max_batch_size: 4
parameters { key: "step" value { string_value: "0.5" } }
input [
  { name: "x" data_type: TYPE_FP32 dims: [ -1 ] },
  { name: "extra" data_type: TYPE_FP32 dims: [ 1 ] optional: true }
]
output [
  { name: "y" data_type: TYPE_FP32 dims: [ -1 ] label_filename: "labels.txt" },
  { name: "z" data_type: TYPE_STRING dims: [ 1 ] }
]
"""

#: Adds up what a sequence sends; and, decoupled, answers as often as it is told.
_SUM = """\
import numpy as np
import triton_python_backend_utils as pb_utils


class TritonPythonModel:
    def initialize(self, args):
        self.sums = {}

    def execute(self, requests):
        responses = []
        for request in requests:
            def of(name):
                return pb_utils.get_input_tensor_by_name(request, name).as_numpy().reshape(-1)[0]

            number = int(of("id"))
            self.sums[number] = of("x") + (0 if of("start") else self.sums[number])
            responses.append(pb_utils.InferenceResponse([pb_utils.Tensor("y", np.array([[self.sums[number]]], np.int32))]))
        return responses
"""
_SUM_CONFIG = """\
backend: "python"
max_batch_size: 4
input [ { name: "x" data_type: TYPE_INT32 dims: [ 1 ] } ]
output [ { name: "y" data_type: TYPE_INT32 dims: [ 1 ] } ]
sequence_batching {
  max_sequence_idle_microseconds: 60000000
  oldest { max_candidate_sequences: 4 }
  control_input [
    { name: "start" control [ { kind: CONTROL_SEQUENCE_START int32_false_true: [ 0, 1 ] } ] },
    { name: "id" control [ { kind: CONTROL_SEQUENCE_CORRID data_type: TYPE_UINT64 } ] }
  ]
}
"""
_MANY = """\
import numpy as np
import triton_python_backend_utils as pb_utils


class TritonPythonModel:
    def execute(self, requests):
        for request in requests:
            sender = request.get_response_sender()
            for number in range(int(pb_utils.get_input_tensor_by_name(request, "x").as_numpy()[0])):
                sender.send(pb_utils.InferenceResponse([pb_utils.Tensor("y", np.array([number], np.int32))]))
            sender.send(flags=pb_utils.TRITONSERVER_RESPONSE_COMPLETE_FINAL)
"""
_MANY_CONFIG = """\
backend: "python"
max_batch_size: 0
model_transaction_policy { decoupled: true }
input [ { name: "x" data_type: TYPE_INT32 dims: [ 1 ] } ]
output [ { name: "y" data_type: TYPE_INT32 dims: [ 1 ] } ]
"""


def ensemble(part: str) -> dict[str, str]:
    """Return the files of an ensemble that gives its input to a model twice, one after the other."""

    def step(given: str, made: str) -> str:
        return f"""{{ model_name: "{part}" model_version: -1
      input_map {{ key: "x" value: "{given}" }} output_map {{ key: "y" value: "{made}" }} }}"""

    config = f"""\
platform: "ensemble"
max_batch_size: 4
input [ {{ name: "x" data_type: TYPE_FP32 dims: [ -1 ] }} ]
output [ {{ name: "y" data_type: TYPE_FP32 dims: [ -1 ] }} ]
ensemble_scheduling {{ step [ {step("x", "between")}, {step("between", "y")} ] }}
"""
    return {"config.pbtxt": config, "1/": ""}


#: What each kind of model is made of: files by their path in the model's directory.
KINDS: dict[str, dict[str, str]] = {
    "echo": {"config.pbtxt": _ECHO_CONFIG, "1/model.py": _ECHO},
    "add": {"config.pbtxt": _ADD_CONFIG + CPU, "1/model.py": _ADD, "labels.txt": "zero\none\ntwo\nthree\n"},
    "sum": {"config.pbtxt": _SUM_CONFIG + CPU, "1/model.py": _SUM},
    "many": {"config.pbtxt": _MANY_CONFIG + CPU, "1/model.py": _MANY},
}


def write(directory: Path, files: Mapping[str, str | bytes]) -> None:
    """Write a model's directory.

    Args:
        directory: The model's directory.
        files: Their contents by their path in it; an empty path that ends with a slash makes a directory.
    """
    for name, content in files.items():
        path = directory / name
        if name.endswith("/"):
            path.mkdir(parents=True)
            continue
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content.encode() if isinstance(content, str) else content)


def python_model(value: int) -> str:
    """Write a model that answers one number as its ``y``, in the shape of its ``x`` (both INT32)."""
    return f"""\
import numpy as np
import triton_python_backend_utils as pb_utils


class TritonPythonModel:
    def execute(self, requests):
        given = [pb_utils.get_input_tensor_by_name(it, "x").as_numpy() for it in requests]
        return [pb_utils.InferenceResponse([pb_utils.Tensor("y", np.full_like(it, {value}))]) for it in given]
"""


CONFIG = f"""\
backend: "python"
max_batch_size: 0
{CPU}input [ {{ name: "x" data_type: TYPE_INT32 dims: [ 1 ] }} ]
output [ {{ name: "y" data_type: TYPE_INT32 dims: [ 1 ] }} ]
"""
"""The configuration that goes with `python_model`."""


@contextmanager
def placed(protocol: Protocol, name: str, files: Mapping[str, str | bytes]) -> Iterator[Path]:
    """Put a model into the repository, not loaded, and take it out again."""
    directory = protocol.server.model_repository / name
    write(directory, files)
    try:
        yield directory
    finally:
        protocol.remove(name)
        shutil.rmtree(directory)


@contextmanager
def serving(protocol: Protocol, prefix: str) -> Iterator[dict[str, str]]:
    """Serve a model of each kind, and an ensemble of two steps; yield their names by their kind."""
    root = protocol.server.model_repository
    names = {kind: f"{prefix}-{kind}" for kind in (*KINDS, "ensemble")}
    for kind, files in KINDS.items():
        write(root / names[kind], files)
    write(root / names["ensemble"], ensemble(names["add"]))
    try:
        with ThreadPoolExecutor() as pool:
            for answer in pool.map(protocol.load, (names[kind] for kind in KINDS)):
                assert answer.status == 200, answer
        answer = protocol.load(names["ensemble"])
        assert answer.status == 200, answer
        yield names
    finally:
        for name in reversed(names.values()):
            protocol.unload(name)
        for name in names.values():
            protocol.remove(name)
            shutil.rmtree(root / name)
