"""The embedded server's ONNX Runtime backend, on a real tritonserver.

Two servers: auto-completion costs a load over a second, so it is on only where a test needs it.
"""

from __future__ import annotations

import copy
import importlib
import queue
import re
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx
import onnxruntime
import psutil
import pytest
import tritonclient.grpc as grpcclient
import tritonclient.http as httpclient
from google.protobuf import json_format
from onnx import TensorProto, external_data_helper, helper, numpy_helper
from tritonclient.utils import InferenceServerException, np_to_triton_dtype

from mlflow_triton.embedded.process import EmbeddedTriton
from mlflow_triton.embedded.runtime import provision

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence
    from pathlib import Path

    import numpy.typing as npt

    Array = npt.NDArray[Any]
    Port = tuple[str, str, Sequence[int | str]]

pytestmark = pytest.mark.slow

TENSOR_TYPES = {
    "BOOL": TensorProto.BOOL,
    "UINT8": TensorProto.UINT8,
    "UINT16": TensorProto.UINT16,
    "UINT32": TensorProto.UINT32,
    "UINT64": TensorProto.UINT64,
    "INT8": TensorProto.INT8,
    "INT16": TensorProto.INT16,
    "INT32": TensorProto.INT32,
    "INT64": TensorProto.INT64,
    "FP16": TensorProto.FLOAT16,
    "FP32": TensorProto.FLOAT,
    "FP64": TensorProto.DOUBLE,
    "STRING": TensorProto.STRING,
}


# --- models ---------------------------------------------------------------------------------------------------


def node(kind: str, inputs: str, outputs: str, **attributes: Any) -> onnx.NodeProto:
    """A node; its tensors' names stand in two strings."""
    return helper.make_node(kind, inputs.split(), outputs.split(), **attributes)


def graph(
    nodes: Sequence[onnx.NodeProto], inputs: Sequence[Port], outputs: Sequence[Port], **constants: Array
) -> onnx.ModelProto:
    """A checked model; its inputs and outputs are (name, Triton datatype, shape)."""
    takes, gives = (
        [
            helper.make_tensor_value_info(name, TENSOR_TYPES[datatype], shape)
            for name, datatype, shape in ports
        ]
        for ports in (inputs, outputs)
    )
    initializers = [numpy_helper.from_array(array, name) for name, array in constants.items()]
    made = helper.make_model(
        helper.make_graph(nodes, "graph", takes, gives, initializers),
        opset_imports=[helper.make_opsetid("", 19)],
        ir_version=9,
    )
    onnx.checker.check_model(made)
    return made


def doubling(shape: Sequence[int | str], factor: int = 2) -> onnx.ModelProto:
    """Y = 2 X, or as many times X as asked."""
    return graph([node("Sum", " ".join(["X"] * factor), "Y")], [("X", "FP32", shape)], [("Y", "FP32", shape)])


# Y is the row of `table` that X names: an X that names none fails in the middle of the run.
LOOKUP = graph(
    [node("Gather", "table X", "Y")],
    [("X", "INT64", ["n", 1])],
    [("Y", "FP32", ["n", 1])],
    table=np.array([0.5, 1.5, 2.5], np.float32),
)
# Every row of Y holds the number of rows that the run had.
ROWS = graph(
    [node("Shape", "X", "rows", end=1), node("Shape", "X", "shape"), node("Expand", "rows shape", "Y")],
    [("X", "FP32", ["n", 1])],
    [("Y", "INT64", ["n", 1])],
)
# Y has a row for each number in X that is not 0, so its rows are not those of X.
NONZERO = graph(
    [node("NonZero", "X", "found"), node("Transpose", "found", "Y")],
    [("X", "FP32", ["n", 1])],
    [("Y", "INT64", ["k", 2])],
)
# An input with an initializer is optional.
SCALED = graph(
    [node("Mul", "X scale", "Y")],
    [("X", "FP32", [2]), ("scale", "FP32", [1])],
    [("Y", "FP32", [2])],
    scale=np.array([10], np.float32),
)
SUM_AND_DIFFERENCE = graph(
    [node("Add", "A B", "SUM"), node("Sub", "A B", "DIFFERENCE")],
    [("A", "FP32", ["n", 2]), ("B", "FP32", ["n", 2])],
    [("SUM", "FP32", ["n", 2]), ("DIFFERENCE", "FP32", ["n", 2])],
)
EVERYTHING = graph(
    [node("Identity", f"IN_{datatype}", f"OUT_{datatype}") for datatype in TENSOR_TYPES],
    [(f"IN_{datatype}", datatype, ["n", "m"]) for datatype in TENSOR_TYPES],
    [(f"OUT_{datatype}", datatype, ["n", "m"]) for datatype in TENSOR_TYPES],
)
SAME_TEXT = graph(
    [node("Equal", "A B", "Y"), node("Identity", "A", "ECHO")],
    [("A", "STRING", ["n"]), ("B", "STRING", ["n"])],
    [("Y", "BOOL", ["n"]), ("ECHO", "STRING", ["n"])],
)
SEQUENCE = graph(
    [node("Mul", "START hundred", "bonus"), node("Add", "X bonus", "Y")],
    [("X", "INT32", ["n", 1]), ("START", "INT32", ["n", 1])],
    [("Y", "INT32", ["n", 1])],
    hundred=np.array([100], np.int32),
)
LIST = helper.make_model(
    helper.make_graph(
        [node("SequenceConstruct", "X", "Y")],
        "graph",
        [helper.make_tensor_value_info("X", TensorProto.FLOAT, ["n", 2])],
        [helper.make_tensor_sequence_value_info("Y", TensorProto.FLOAT, None)],
    ),
    opset_imports=[helper.make_opsetid("", 19)],
    ir_version=9,
)


# --- configurations -------------------------------------------------------------------------------------------

ONE_INSTANCE = "instance_group { count: 1 kind: KIND_CPU }"


def port(kind: str, name: str, datatype: str, dims: Sequence[int], more: str = "") -> str:
    """One input or output of a config.pbtxt."""
    return f'{kind} {{ name: "{name}" data_type: TYPE_{datatype} dims: {[*dims]} {more} }}'


def parameter(key: str, value: str) -> str:
    """One parameter of a config.pbtxt."""
    return f'parameters {{ key: "{key}" value: {{ string_value: "{value}" }} }}'


def complete(model: onnx.ModelProto, *more: str, batch: int = 0) -> str:
    """A config.pbtxt that says all that there is to say of a model."""
    datatypes = {int(number): datatype for datatype, number in TENSOR_TYPES.items()}
    ports = [
        port(
            kind,
            info.name,
            datatypes[info.type.tensor_type.elem_type],
            [dim.dim_value or -1 for dim in info.type.tensor_type.shape.dim][1 if batch else 0 :],
        )
        for kind, infos in (("input", model.graph.input), ("output", model.graph.output))
        for info in infos
    ]
    return " ".join(['backend: "onnxruntime"', f"max_batch_size: {batch}", *ports, *more, ONE_INSTANCE])


# --- servers --------------------------------------------------------------------------------------------------


class Server:
    """A running embedded server with a client and its repository."""

    def __init__(self, repository: Path, triton: EmbeddedTriton) -> None:
        self.repository = repository
        self.triton = triton
        self.client = grpcclient.InferenceServerClient(triton.grpc_url)

    def write(
        self, name: str, model: onnx.ModelProto | bytes, config: str | None, *, file: str = "1/model.onnx"
    ) -> None:
        """Put one version of a model into the repository."""
        path = self.repository / name / file
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(model if isinstance(model, bytes) else model.SerializeToString())
        if config is not None:
            (self.repository / name / "config.pbtxt").write_text(config)

    def load(self, name: str, model: onnx.ModelProto | bytes, config: str | None = None) -> None:
        """Put a model into the repository and load it."""
        self.write(name, model, config)
        self.client.load_model(name)

    def refusal(self, name: str, model: onnx.ModelProto | bytes, config: str | None = None) -> str:
        """Load a model that cannot be loaded; returns what the server says."""
        with pytest.raises(InferenceServerException) as caught:
            self.load(name, model, config)
        return str(caught.value.message())

    def config(self, name: str) -> dict[str, Any]:
        """The configuration that the server uses, as a dict with proto field names."""
        answer = self.client.get_model_config(name)
        found: dict[str, Any] = json_format.MessageToDict(answer.config, preserving_proto_field_name=True)
        return found

    def infer(self, name: str, inputs: Mapping[str, Array], **options: Any) -> dict[str, Array]:
        """The outputs of one request, by name."""
        result = self.client.infer(name, [tensor(key, array) for key, array in inputs.items()], **options)
        return {output.name: result.as_numpy(output.name) for output in result.get_response().outputs}

    def infer_together(self, name: str, requests: Sequence[Mapping[str, Array]]) -> list[Any]:
        """Send requests at once; returns an output Y or an error for each, in order."""
        answers: queue.Queue[tuple[int, Any]] = queue.Queue()
        for index, inputs in enumerate(requests):
            self.client.async_infer(
                name,
                [tensor(key, array) for key, array in inputs.items()],
                lambda result, error, index=index: answers.put((index, error or result.as_numpy("Y"))),
            )
        found = dict(answers.get(timeout=30) for _ in requests)
        return [found[index] for index in range(len(requests))]

    def processes(self, name: str) -> list[int]:
        """The processes that hold the model's instances."""
        children = psutil.Process().children(recursive=True)
        return [child.pid for child in children if any(f"/{name}/" in word for word in arguments_of(child))]


def arguments_of(process: psutil.Process) -> list[str]:
    """A process's command line; none if it has ended."""
    try:
        return list(process.cmdline())
    except psutil.Error:
        return []


def tensor(name: str, array: Array) -> grpcclient.InferInput:
    """An input tensor of a request."""
    made = grpcclient.InferInput(name, array.shape, np_to_triton_dtype(array.dtype))
    made.set_data_from_numpy(array)
    return made


@pytest.fixture(scope="module")
def strict(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A server that takes complete configurations only."""
    repository = tmp_path_factory.mktemp("strict")
    with EmbeddedTriton(repository, arguments=["--disable-auto-complete-config"]) as triton:
        yield Server(repository, triton)


COMPLETED: dict[str, tuple[onnx.ModelProto, str | None]] = {
    "none": (doubling(["n", 2]), None),
    "fixed": (doubling([3, 2]), None),
    "scalar": (doubling([]), None),
    "vector": (doubling(["n"]), None),
    "batch_given": (doubling(["n", 2]), f'platform: "onnxruntime_onnx" max_batch_size: 2 {ONE_INSTANCE}'),
    "batch_of_one": (doubling(["n", 2]), f'backend: "onnxruntime" max_batch_size: 1 {ONE_INSTANCE}'),
    "outputs_missing": (
        SUM_AND_DIFFERENCE,
        f'backend: "onnxruntime" {port("input", "A", "FP32", [2])} {port("input", "B", "FP32", [2])} {ONE_INSTANCE}',
    ),
    "complete": (doubling(["n", 2]), complete(doubling(["n", 2]))),
    "optional": (SCALED, f'backend: "onnxruntime" {ONE_INSTANCE}'),
}
NOT_COMPLETED: dict[str, tuple[onnx.ModelProto | bytes, str | None, str]] = {
    "batch_of_fixed": (
        doubling([3, 2]),
        'backend: "onnxruntime" max_batch_size: 4',
        "model does not support batching while max_batch_size 4 is specified",
    ),
    "list": (LIST, None, "'Y' is a seq(tensor(float)) in the model, which this backend cannot serve"),
    "garbage": (b"garbage" * 10, None, "onnx runtime error 7: Load model from "),
}


@pytest.fixture(scope="module")
def completing(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A server that completes configurations, with the models of COMPLETED loaded."""
    repository = tmp_path_factory.mktemp("completing")
    arguments = [
        "--backend-config=default-max-batch-size=5",
        "--backend-config=onnxruntime,default-max-batch-size=8",
    ]
    with EmbeddedTriton(repository, arguments=arguments) as triton:
        server = Server(repository, triton)
        with ThreadPoolExecutor(4) as pool:
            list(pool.map(lambda item: server.load(item[0], *item[1]), COMPLETED.items()))
        yield server


# --- completing a configuration -------------------------------------------------------------------------------


def test_a_model_without_config_gets_batching_and_tensors(completing: Server) -> None:
    """Without a config.pbtxt, a model with a free first dimension is batched up to the server's default size."""
    found = completing.config("none")
    assert found["max_batch_size"] == 8
    assert "dynamic_batching" in found
    assert found["input"] == [{"name": "X", "data_type": "TYPE_FP32", "dims": ["2"]}]
    assert found["output"] == [{"name": "Y", "data_type": "TYPE_FP32", "dims": ["2"]}]


@pytest.mark.parametrize(("name", "dims"), [("fixed", ["3", "2"]), ("scalar", ["1"])])
def test_a_model_that_cannot_batch_is_not_batched(completing: Server, name: str, dims: list[str]) -> None:
    """A fixed first dimension, or none, means no batching and full dims; a scalar has dims [1]."""
    found = completing.config(name)
    assert "max_batch_size" not in found
    assert "dynamic_batching" not in found
    assert found["input"] == [{"name": "X", "data_type": "TYPE_FP32", "dims": dims}]


def test_a_scalar_is_served_as_one_element(completing: Server) -> None:
    """A tensor of rank 0 travels with shape [1], both ways."""
    answer = completing.infer("scalar", {"X": np.array([1.5], np.float32)})
    np.testing.assert_array_equal(answer["Y"], np.array([3], np.float32), strict=True)


def test_a_batched_vector_is_reshaped(completing: Server) -> None:
    """With its one dimension taken as the batch, a vector's elements travel with shape [n, 1]."""
    assert completing.config("vector")["input"][0]["reshape"] == {}
    answer = completing.infer("vector", {"X": np.array([[1], [2]], np.float32)})
    np.testing.assert_array_equal(answer["Y"], np.array([[2], [4]], np.float32), strict=True)


@pytest.mark.parametrize(("name", "size", "dynamic"), [("batch_given", 2, True), ("batch_of_one", 1, False)])
def test_a_batch_size_given_is_kept(completing: Server, name: str, size: int, dynamic: bool) -> None:
    """A max_batch_size in the config.pbtxt stays; dynamic batching is added if it is more than 1."""
    found = completing.config(name)
    assert found["max_batch_size"] == size
    assert ("dynamic_batching" in found) is dynamic
    assert found["output"] == [{"name": "Y", "data_type": "TYPE_FP32", "dims": ["2"]}]


def test_missing_outputs_are_completed(completing: Server) -> None:
    """A config.pbtxt with inputs only gets the model's outputs, and serves."""
    assert [output["name"] for output in completing.config("outputs_missing")["output"]] == [
        "SUM",
        "DIFFERENCE",
    ]
    a, b = np.array([[1, 2]], np.float32), np.array([[10, 20]], np.float32)
    answer = completing.infer("outputs_missing", {"A": a, "B": b})
    np.testing.assert_array_equal(answer["DIFFERENCE"], a - b, strict=True)


def test_a_complete_config_is_left_alone(completing: Server) -> None:
    """With inputs and outputs given, max_batch_size stays 0 although the model could batch."""
    found = completing.config("complete")
    assert "max_batch_size" not in found
    assert "dynamic_batching" not in found


def test_optional_inputs_are_not_completed(completing: Server) -> None:
    """An input with a default is offered only if the config.pbtxt names it, as with NVIDIA's backend."""
    assert [tensor["name"] for tensor in completing.config("optional")["input"]] == ["X"]


@pytest.mark.parametrize("name", NOT_COMPLETED)
def test_a_config_that_cannot_be_completed_fails_the_load(completing: Server, name: str) -> None:
    """A model that no configuration fits is refused, and the answer says why."""
    model, config, reason = NOT_COMPLETED[name]
    assert reason in completing.refusal(name, model, config)


# --- checking a complete configuration ------------------------------------------------------------------------

X, Y = port("input", "X", "FP32", [-1, 2]), port("output", "Y", "FP32", [-1, 2])


@pytest.mark.parametrize(
    ("ports", "reason"),
    [
        (
            [port("input", "Z", "FP32", [-1, 2]), Y],
            "configuration lacks the input X TYPE_FP32 [-1, 2]; unexpected inference input 'Z', allowed inputs are: X;",
        ),
        ([X, port("output", "Z", "FP32", [-1, 2])], "unexpected inference output 'Z', allowed outputs are: Y;"),
        (
            [port("input", "X", "INT64", [-1, 2]), Y],
            "configuration expects datatype TYPE_INT64 for 'X', model provides TYPE_FP32;",
        ),
        (
            [X, port("output", "Y", "FP64", [-1, 2])],
            "configuration expects datatype TYPE_FP64 for 'Y', model provides TYPE_FP32;",
        ),
        (
            [port("input", "X", "FP32", [-1, 3]), Y],
            "model expects 2 dimensions (shape [-1, 2]) but the model configuration specifies 2 dimensions (shape [-1, 3]);",
        ),
        ([X, port("output", "Y", "FP32", [4, 2])], "tensor 'Y': the model expects 2 dimensions (shape [-1, 2])"),
        (
            ["max_batch_size: 4", X, port("output", "Y", "FP32", [2])],
            "specifies 3 dimensions (shape [-1, -1, 2]) (its first dimension is the batch, because max_batch_size > 0);",
        ),
        ([port("input", "X", "FP32", [-1, 2], "optional: true"), Y], "input 'X' is required in the model;"),
        (
            ["max_batch_size: 4", port("input", "X", "FP32", [2], "allow_ragged_batch: true"), port("output", "Y", "FP32", [2])],
            "this backend does not support allow_ragged_batch (input 'X');",
        ),
    ],
)  # fmt: skip
def test_a_config_that_does_not_fit_fails_the_load(strict: Server, ports: list[str], reason: str) -> None:
    """A wrong name, datatype or shape is refused with all that is wrong and all that the model has."""
    config = " ".join(['backend: "onnxruntime"', *ports, ONE_INSTANCE])
    message = strict.refusal("misfit", doubling(["n", 2]), config)
    assert reason in message
    assert "the model has inputs X TYPE_FP32 [-1, 2]; outputs Y TYPE_FP32 [-1, 2]" in message


def test_a_fixed_first_dimension_cannot_be_a_batch(strict: Server) -> None:
    """max_batch_size on a model whose first dimension is fixed is refused."""
    config = complete(doubling(["n", 2]), batch=4)
    assert "for the model to support batching" in strict.refusal("fixed_batch", doubling([3, 2]), config)


@pytest.mark.parametrize("kind", ["batch", "required"])
def test_an_optional_input_that_cannot_be_is_refused(strict: Server, kind: str) -> None:
    """An input with a default must be optional in the configuration, and cannot be in one that batches."""
    model = graph(
        [node("Mul", "X scale", "Y")],
        [("X", "FP32", ["n", 2]), ("scale", "FP32", ["n", 1])],
        [("Y", "FP32", ["n", 2])],
        scale=np.array([[10]], np.float32),
    )
    if kind == "required":
        reason, config = "input 'scale' is optional in the model;", complete(model)
    else:
        reason = "optional input 'scale' is not supported for models that support batching;"
        config = complete(model, batch=4).replace('name: "scale"', 'name: "scale" optional: true')
    assert reason in strict.refusal(f"default_{kind}", model, config)


@pytest.mark.parametrize(
    ("key", "value", "reason"),
    [
        ("intra_op_thread_count", "many", "'intra_op_thread_count' is a whole number, not 'many'"),
        ("inter_op_thread_count", "1.5", "'inter_op_thread_count' is a whole number, not '1.5'"),
        ("execution_mode", "2", "'execution_mode' is 0 (sequential) or 1 (parallel), not 2"),
    ],
)
def test_a_bad_parameter_fails_the_load(strict: Server, key: str, value: str, reason: str) -> None:
    """A thread count that is no number and an unknown execution mode are refused."""
    model = doubling(["n", 2])
    assert reason in strict.refusal("bad_parameter", model, complete(model, parameter(key, value)))


def test_parameters_reach_onnxruntime(strict: Server) -> None:
    """Thread counts, execution mode and graph level are taken, unknown parameters ignored: the model serves."""
    model = doubling(["n", 2])
    settings = [
        parameter("intra_op_thread_count", "1"),
        parameter("inter_op_thread_count", "3"),
        parameter("execution_mode", "1"),
        parameter("of_nobody", "any"),
        "optimization { graph { level: 2 } }",
    ]
    strict.load("tuned", model, complete(model, *settings))
    strict.load("untuned", model, complete(model, parameter("intra_op_thread_count", "1")))
    x = np.ones((1, 2), np.float32)
    for name in ("tuned", "untuned"):
        np.testing.assert_array_equal(strict.infer(name, {"X": x})["Y"], x * 2, strict=True)
    tuned, untuned = (
        psutil.Process(strict.processes(name)[0]).num_threads() for name in ("tuned", "untuned")
    )
    assert tuned == untuned + 3 - 1


@pytest.mark.parametrize(
    ("more", "reason"),
    [
        ('optimization { execution_accelerators { cpu_execution_accelerator { name: "openvino" } } }', "openvino"),
        ('batch_input { kind: BATCH_ELEMENT_COUNT target_name: "X" data_type: TYPE_FP32 source_input: "X" }', "batch_input"),
    ],
)  # fmt: skip
def test_what_this_backend_cannot_do_fails_the_load(strict: Server, more: str, reason: str) -> None:
    """What NVIDIA's backend has and this one has not is refused, not ignored."""
    model = doubling(["n", 2])
    assert reason in strict.refusal("unsupported", model, complete(model, more))


def test_a_gpu_that_is_not_there_fails_the_load(strict: Server) -> None:
    """KIND_GPU is refused, in Triton's words, where there is no GPU."""
    model = doubling(["n", 2])
    config = complete(model).replace("KIND_CPU", "KIND_GPU")
    assert "has kind KIND_GPU but no GPUs are available" in strict.refusal("gpu", model, config)


def test_kind_gpu_without_cuda_provider_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where there is a GPU but ONNX Runtime is built without CUDA, KIND_GPU is refused with the ways out."""
    runtime = provision()
    monkeypatch.syspath_prepend(runtime.backend_dir / "python")
    utilities = importlib.import_module("triton_python_backend_utils")
    monkeypatch.setattr(utilities, "TritonModelException", RuntimeError, raising=False)  # the stub adds it
    monkeypatch.setitem(sys.modules, "model", None)  # undone, whatever the import leaves there
    del sys.modules["model"]
    monkeypatch.syspath_prepend(runtime.backend_dir / "onnxruntime")
    backend = importlib.import_module("model")
    with pytest.raises(
        RuntimeError, match=r"has no CUDAExecutionProvider: install onnxruntime-gpu .* KIND_CPU"
    ):
        backend._providers({"name": "m", "optimization": {}}, "GPU", 0)


@pytest.mark.parametrize(
    "content",
    [b"garbage" * 10, b"", doubling(["n", 2]).SerializeToString()[:-20]],
    ids=["garbage", "empty", "truncated"],
)
def test_a_broken_file_fails_the_load(strict: Server, content: bytes) -> None:
    """A file that is no ONNX model is refused over HTTP with 400 and ONNX Runtime's reason."""
    strict.write("broken", content, complete(doubling(["n", 2])))
    client = httpclient.InferenceServerClient(strict.triton.http_url.removeprefix("http://"))
    with pytest.raises(InferenceServerException) as caught:
        client.load_model("broken")
    assert caught.value.status() == "400"
    reason = r"unable to load model 'broken': onnx runtime error \d+: Load model from \S+/broken/1/model.onnx failed"
    assert re.search(reason, caught.value.message())


# --- where the model lies -------------------------------------------------------------------------------------


def test_platform_and_file_name(strict: Server) -> None:
    """`platform: "onnxruntime_onnx"` selects the backend, and default_model_filename the file."""
    config = complete(doubling(["n", 2]), 'default_model_filename: "other.onnx"')
    config = config.replace('backend: "onnxruntime"', 'platform: "onnxruntime_onnx"')
    strict.write("named", doubling(["n", 2], 3), config, file="1/other.onnx")
    strict.client.load_model("named")
    x = np.ones((1, 2), np.float32)
    np.testing.assert_array_equal(strict.infer("named", {"X": x})["Y"], x * 3, strict=True)


@pytest.mark.parametrize("there", [True, False])
def test_external_data(strict: Server, there: bool) -> None:
    """Weights in a file beside the model are found; if that file is missing, the load fails and names it."""
    name = f"external_{there}"
    directory = strict.repository / name / "1"
    directory.mkdir(parents=True)
    model = copy.deepcopy(LOOKUP)  # saving moves the weights out of it
    external_data_helper.convert_model_to_external_data(model, location="weights.bin", size_threshold=0)
    onnx.save(model, directory / "model.onnx")
    (directory.parent / "config.pbtxt").write_text(complete(LOOKUP))
    if there:
        strict.client.load_model(name)
        answer = strict.infer(name, {"X": np.array([[2]])})
        np.testing.assert_array_equal(answer["Y"], np.array([[2.5]], np.float32), strict=True)
    else:
        (directory / "weights.bin").unlink()
        with pytest.raises(InferenceServerException, match=r"weights\.bin"):
            strict.client.load_model(name)


def test_each_version_serves_its_own_file(strict: Server) -> None:
    """Of several versions served at once, each answers from its own model."""
    config = complete(doubling(["n", 2]), "version_policy { all {} }")
    for version in (2, 10):
        strict.write("versions", doubling(["n", 2], version), config, file=f"{version}/model.onnx")
    strict.client.load_model("versions")
    x = np.ones((1, 2), np.float32)
    for asked, factor in (("2", 2), ("10", 10), ("", 10)):
        answer = strict.infer("versions", {"X": x}, model_version=asked)
        np.testing.assert_array_equal(answer["Y"], x * factor, strict=True)


def test_instances_are_processes_and_end_with_the_model(strict: Server) -> None:
    """Two instances are two processes, and unloading the model ends them."""
    model = doubling(["n", 2])
    strict.load("twice", model, complete(model).replace("count: 1", "count: 2"))
    assert len(strict.processes("twice")) == 2
    strict.client.unload_model("twice")
    deadline = time.monotonic() + 20
    while strict.processes("twice"):
        assert time.monotonic() < deadline
        time.sleep(0.1)


# --- tensors --------------------------------------------------------------------------------------------------


def values(datatype: str, shape: tuple[int, int]) -> Array:
    """Numbers from the edges of a datatype, or texts."""
    size = shape[0] * shape[1]
    if datatype == "STRING":
        edges = np.array([b"", "é\N{GRINNING FACE}".encode(), b"a\0b", b"\0", b" long " * 1000], np.object_)
    elif datatype == "BOOL":
        edges = np.array([True, False])
    elif datatype.startswith("FP"):
        dtype = np.dtype(f"f{int(datatype[2:]) // 8}")
        info = np.finfo(dtype)
        edges = np.array([np.nan, -np.inf, info.max, -0.0, info.smallest_subnormal, 1 / 3], dtype)
    else:
        limits = np.iinfo(datatype.lower())
        edges = np.array([limits.min, limits.max, 1], datatype.lower())
    return np.resize(edges, size).reshape(shape)


@pytest.fixture(scope="module")
def everything(strict: Server) -> Server:
    """A server that returns tensors of every datatype."""
    strict.load("everything", EVERYTHING, complete(EVERYTHING))
    return strict


@pytest.mark.parametrize("shape", [(2, 3), (1, 1), (0, 3), (2, 0), (0, 0), (40, 40)], ids=str)
def test_every_datatype_round_trips(everything: Server, shape: tuple[int, int]) -> None:
    """A tensor of any datatype comes back bit for bit: NaN, the widest numbers, NULs in text, zero sizes."""
    sent = {datatype: values(datatype, shape) for datatype in TENSOR_TYPES}
    answer = everything.infer("everything", {f"IN_{datatype}": array for datatype, array in sent.items()})
    for datatype, array in sent.items():
        got = answer[f"OUT_{datatype}"]
        assert (got.dtype, got.shape) == (array.dtype, array.shape), datatype
        assert got.tolist() == array.tolist() if datatype == "STRING" else got.tobytes() == array.tobytes(), (
            datatype
        )


def test_answers_equal_those_of_onnxruntime(strict: Server) -> None:
    """The server's numbers are those of ONNX Runtime called here, NaN and infinities included."""
    strict.load("arithmetic", SUM_AND_DIFFERENCE, complete(SUM_AND_DIFFERENCE))
    a = np.array([[np.nan, np.inf], [3e38, 1e-45]], np.float32)
    b = np.array([[1, np.inf], [3e38, -1]], np.float32)
    session = onnxruntime.InferenceSession(SUM_AND_DIFFERENCE.SerializeToString())
    total, difference = session.run(None, {"A": a, "B": b})
    answer = strict.infer("arithmetic", {"A": a, "B": b})
    np.testing.assert_array_equal(answer["SUM"], total, strict=True)
    np.testing.assert_array_equal(answer["DIFFERENCE"], difference, strict=True)


def test_only_requested_outputs_are_returned(strict: Server) -> None:
    """A request that names one output gets that one."""
    strict.load("requested", SUM_AND_DIFFERENCE, complete(SUM_AND_DIFFERENCE))
    a = np.ones((1, 2), np.float32)
    wanted = [grpcclient.InferRequestedOutput("DIFFERENCE")]
    assert list(strict.infer("requested", {"A": a, "B": a}, outputs=wanted)) == ["DIFFERENCE"]


def test_bytes_that_are_not_utf8(strict: Server) -> None:
    """A model may read bytes that are not UTF-8; returning them is an error that says why."""
    strict.load("bytes", SAME_TEXT, complete(SAME_TEXT))
    a = np.array([b"\xff\xfe", "é".encode(), b"\x80"], np.object_)
    b = np.array([b"\xff\xfe", "é".encode(), b"\x81"], np.object_)
    answer = strict.infer("bytes", {"A": a, "B": b}, outputs=[grpcclient.InferRequestedOutput("Y")])
    np.testing.assert_array_equal(answer["Y"], [True, True, False])
    with pytest.raises(InferenceServerException, match="a string in an output is not UTF-8"):
        strict.infer("bytes", {"A": a, "B": b})


def test_optional_inputs_may_be_left_out(strict: Server) -> None:
    """An optional input left out has the model's default, and its own value if given."""
    strict.load("scaled", SCALED, complete(SCALED).replace('name: "scale"', 'name: "scale" optional: true'))
    x = np.array([1, 2], np.float32)
    np.testing.assert_array_equal(strict.infer("scaled", {"X": x})["Y"], x * 10, strict=True)
    scale = np.array([3], np.float32)
    np.testing.assert_array_equal(strict.infer("scaled", {"X": x, "scale": scale})["Y"], x * 3, strict=True)


def test_an_error_carries_the_reason_of_onnxruntime(strict: Server) -> None:
    """A request that fails in the model gets ONNX Runtime's reason, and the next one is served."""
    strict.load("failing", LOOKUP, complete(LOOKUP))
    with pytest.raises(InferenceServerException, match=r"onnx runtime error \d+: .*out of data bounds"):
        strict.infer("failing", {"X": np.array([[9]])})
    answer = strict.infer("failing", {"X": np.array([[1]])})
    np.testing.assert_array_equal(answer["Y"], np.array([[1.5]], np.float32), strict=True)


# --- several requests at once ---------------------------------------------------------------------------------


def batching(model: onnx.ModelProto, size: int) -> str:
    """A configuration that waits for a full batch."""
    queueing = f"dynamic_batching {{ preferred_batch_size: [{size}] max_queue_delay_microseconds: 5000000 }}"
    return complete(model, queueing, batch=size)


def test_requests_share_a_run(strict: Server) -> None:
    """Requests that Triton batches are one run of the model, and each gets its own rows."""
    strict.load("rows", ROWS, batching(ROWS, 4))
    answers = strict.infer_together("rows", [{"X": np.ones((rows, 1), np.float32)} for rows in (1, 2, 1)])
    for answer, rows in zip(answers, (1, 2, 1), strict=True):
        np.testing.assert_array_equal(answer, np.full((rows, 1), 4), strict=True)


def test_a_failing_request_does_not_touch_its_neighbours(strict: Server) -> None:
    """Of three requests in one batch, the one at fault gets the reason, the others their answers."""
    strict.load("lookup", LOOKUP, batching(LOOKUP, 3))
    good, bad, fine = strict.infer_together("lookup", [{"X": np.array([[row]])} for row in (0, 9, 2)])
    np.testing.assert_array_equal(good, np.array([[0.5]], np.float32), strict=True)
    np.testing.assert_array_equal(fine, np.array([[2.5]], np.float32), strict=True)
    assert isinstance(bad, InferenceServerException)
    assert "out of data bounds" in bad.message()


def test_outputs_that_are_no_batch_are_computed_one_by_one(strict: Server) -> None:
    """A model whose outputs do not have a row for each row in answers batched requests correctly."""
    strict.load("nonzero", NONZERO, batching(NONZERO, 4))
    first, second = strict.infer_together(
        "nonzero", [{"X": np.array([[0], [5]], np.float32)}, {"X": np.array([[7], [0]], np.float32)}]
    )
    np.testing.assert_array_equal(first, [[1, 0]])
    np.testing.assert_array_equal(second, [[0, 0]])


def test_texts_share_a_run(strict: Server) -> None:
    """Batched text keeps its NULs, beside a request whose bytes are not UTF-8."""
    model = graph([node("Identity", "X", "Y")], [("X", "STRING", ["n", 1])], [("Y", "STRING", ["n", 1])])
    strict.load("texts", model, batching(model, 3))
    texts = [b"a\0", b"\xff", "é".encode()]
    first, bad, last = strict.infer_together(
        "texts", [{"X": np.array([[text]], np.object_)} for text in texts]
    )
    assert (first.tolist(), last.tolist()) == ([[texts[0]]], [[texts[2]]])
    assert "a string in an output is not UTF-8" in bad.message()


def test_a_sequence_model_gets_its_controls(strict: Server) -> None:
    """The start of a sequence reaches the model as the input that the configuration names."""
    control = (
        "sequence_batching { direct {} control_input "
        '{ name: "START" control { kind: CONTROL_SEQUENCE_START int32_false_true: [0, 1] } } }'
    )
    ports = [port("input", "X", "INT32", [1]), port("output", "Y", "INT32", [1])]
    config = " ".join(['backend: "onnxruntime"', "max_batch_size: 1", *ports, control, ONE_INSTANCE])
    strict.load("sequence", SEQUENCE, config)
    x = np.array([[7]], np.int32)
    for start, expected in ((True, 107), (False, 7), (True, 107)):
        answer = strict.infer("sequence", {"X": x}, sequence_id=5, sequence_start=start)
        np.testing.assert_array_equal(answer["Y"], np.array([[expected]], np.int32), strict=True)
