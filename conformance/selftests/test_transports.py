"""Tensors at random through a real server, over every transport, in and out: a third of TENSOR_EXAMPLES each."""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING, Any, NamedTuple

import ml_dtypes  # noqa: F401 - BF16 for NumPy
import numpy as np
import pytest
from hypothesis import HealthCheck, event, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as npst

from array_forms import EXAMPLES, FORMS, WHOLE
from mlflow_triton.deployments import TritonDeploymentClient
from mlflow_triton.embedded import EmbeddedTriton
from mlflow_triton.serving import inference
from mlflow_triton.tensors.datatypes import DATATYPES, numpy_dtype
from pytest_mlflow_triton.strategies import tensors

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping
    from pathlib import Path

Array = np.ndarray[Any, Any]

pytestmark = pytest.mark.slow

TYPES = (*DATATYPES, "BF16")
RANKS = (1, 2, 3)
FLOATS = ("FP16", "BF16", "FP32", "FP64")
LIMIT = 4
AT_RANDOM = settings(
    deadline=None,
    max_examples=EXAMPLES // 3,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large, HealthCheck.filter_too_much],
)
#: Hands every input through; BF16, which NumPy does not know there, by DLPack.
SAME = """\
import triton_python_backend_utils as pb_utils

class TritonPythonModel:
    def execute(self, requests):
        return [pb_utils.InferenceResponse([self.same(tensor) for tensor in request.inputs()]) for request in requests]

    def same(self, tensor):
        name = tensor.name().replace("x", "y")
        if "BF16" in name:
            return pb_utils.Tensor.from_dlpack(name, tensor.to_dlpack())
        return pb_utils.Tensor(name, tensor.as_numpy())
"""
CPU = 'backend: "python"\ninstance_group [ { count: 1 kind: KIND_CPU } ]\n'


def declare(kind: str, name: str, datatype: str, dims: list[int], more: str = "") -> str:
    """Write an input or output of config.pbtxt."""
    return f'{kind} {{ name: "{name}" data_type: TYPE_{datatype.replace("BYTES", "STRING")} dims: {dims} {more} }}\n'


def one_of(datatype: str, rank: int) -> str:
    """Write a model of one input, x, that another one hands through: an ensemble is no process more."""
    any_size = [-1] * rank
    return f"""\
platform: "ensemble"
{declare("input", "x", datatype, any_size)}{declare("output", "y", datatype, any_size)}
ensemble_scheduling {{ step {{
  model_name: "same" model_version: -1
  input_map {{ key: "x_{datatype}_{rank}" value: "x" }} output_map {{ key: "y_{datatype}_{rank}" value: "y" }}
}} }}
"""


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[EmbeddedTriton]:
    """A server with a model of every datatype and rank at once, one of each of them alone, and one of batches."""
    repository: Path = tmp_path_factory.mktemp("transports") / "models"
    every = "".join(
        declare("input", f"x_{datatype}_{rank}", datatype, [-1] * rank, "optional: true")
        + declare("output", f"y_{datatype}_{rank}", datatype, [-1] * rank)
        for datatype in TYPES
        for rank in RANKS
    )
    scalars = "".join(
        declare("input", f"x_{datatype}", datatype, [1], "reshape { shape: [] } optional: true")
        + declare("output", f"y_{datatype}", datatype, [1], "reshape { shape: [] }")
        for datatype in TYPES
    )
    configs = {
        "same": CPU + every,
        "scalars": f"{CPU}max_batch_size: {LIMIT}\n{scalars}",
        **{f"{datatype}-{rank}": one_of(datatype, rank) for datatype in TYPES for rank in RANKS},
    }
    for name, config in configs.items():
        directory = repository / name / "1"
        directory.mkdir(parents=True)
        (directory.parent / "config.pbtxt").write_text(config, encoding="utf-8")
        if "ensemble" not in config:
            (directory / "model.py").write_text(SAME, encoding="utf-8")
    with EmbeddedTriton(
        repository, arguments=["--load-model=*", "--disable-auto-complete-config"]
    ) as running:
        yield running


class Transport(NamedTuple):
    """A way to the server and back."""

    name: str
    predict: Callable[[str, Any], Any]


@pytest.fixture(scope="module")
def transports(server: EmbeddedTriton) -> Iterator[list[Transport]]:
    """Every way that a tensor may go; the one through shared memory is taken by tensors of one byte."""

    def client(**query: str) -> TritonDeploymentClient:
        options = "&".join(f"{key}={value}" for key, value in {"grpc_url": server.grpc_url, **query}.items())
        return TritonDeploymentClient(f"triton://{server.http_url.partition('://')[2]}?{options}")

    http, grpc = (client(transport=name, shared_memory="off") for name in ("http", "grpc"))
    shared = {f"{name}, shared memory": client(transport=name) for name in ("http", "grpc")}

    def streamed(name: str, inputs: Any) -> Any:
        (answer,) = grpc.predict_stream(name, inputs)
        return answer

    def many(name: str, inputs: Any) -> Any:
        (answer,) = http.predict_many(name, [inputs])
        return answer

    with pytest.MonkeyPatch.context() as patch:
        for limit in ("LARGE", "LARGE_OUTPUT"):
            patch.setattr(inference, limit, 1)
        yield [
            Transport("http", http.predict),
            Transport("grpc", grpc.predict),
            *(Transport(name, one.predict) for name, one in shared.items()),
            Transport("http, gzip", lambda name, inputs: http.predict(name, inputs, compression="gzip")),
            Transport(
                "grpc, deflate", lambda name, inputs: grpc.predict(name, inputs, compression="deflate")
            ),
            Transport("stream", streamed),
            Transport("many", many),
        ]
        for one in shared.values():
            assert one._inference is not None
            assert one._inference._regions._all, "no tensor has gone through shared memory"


# --- drawing ---


def raw(datatype: str, shape: tuple[int, ...]) -> st.SearchStrategy[Array]:
    """Draw arrays of any bits: signalling NaN, denormals, all of them."""
    dtype = numpy_dtype(datatype)
    bits = npst.arrays(
        np.dtype(f"u{dtype.itemsize}"), shape, elements=npst.from_dtype(np.dtype(f"u{dtype.itemsize}"))
    )
    return bits.map(lambda array: array.view(dtype))


def drawn_as(datatype: str, shape: tuple[int, ...]) -> st.SearchStrategy[Array]:
    """Draw arrays of a datatype."""
    typical = tensors(datatype, shape)
    return typical if datatype in ("BOOL", "BYTES") else st.one_of(typical, raw(datatype, shape))


SHAPES = npst.array_shapes(min_dims=1, max_dims=3, min_side=0, max_side=4)
TYPED = st.tuples(st.sampled_from(TYPES), SHAPES).flatmap(
    lambda drawn: st.tuples(st.just(drawn[0]), drawn_as(*drawn))
)


# --- comparing ---


def came_back(answer: Array, sent: Array, *, payload: bool = True) -> None:
    """Compare bit by bit, NaN's payload, too, unless the form has none; BYTES are text where all of it is."""
    assert answer.shape == sent.shape
    if sent.dtype == np.object_:
        expected = sent.ravel().tolist()
        with contextlib.suppress(UnicodeDecodeError):
            expected = [item.decode() for item in expected]
        assert answer.ravel().tolist() == expected
        return
    assert answer.dtype == sent.dtype
    assert answer.flags.writeable
    if payload or sent.dtype.kind not in "fV":
        assert answer.tobytes() == np.ascontiguousarray(sent).tobytes()
        return
    missing = np.isnan(sent)
    assert np.array_equal(np.isnan(answer), missing)
    assert answer[~missing].tobytes() == sent[~missing].tobytes()


@AT_RANDOM
@given(tensor=TYPED, form=st.sampled_from(list(FORMS)))
def test_any_tensor_in_any_form(transports: list[Transport], tensor: tuple[str, Array], form: str) -> None:
    """Any tensor in any form comes back bit by bit from a real server, over each transport."""
    datatype, array = tensor
    try:
        inputs = FORMS[form](array)
    except UnicodeDecodeError:
        event("no text")
        return
    if array.size == 0 and array.ndim > 1 and form not in (*WHOLE, "request"):
        event("a list cannot tell the shape")
        return
    event(f"{datatype}, {form}")
    for transport in transports:
        event(transport.name)
        outputs = transport.predict(f"{datatype}-{array.ndim}", inputs)["outputs"]
        assert list(outputs) == ["y"]
        came_back(outputs["y"], array, payload=form in WHOLE)


@AT_RANDOM
@given(
    data=st.data(),
    chosen=st.sets(st.sampled_from([(t, r) for t in TYPES for r in RANKS]), min_size=1, max_size=5),
)
def test_several_tensors(
    transports: list[Transport], data: st.DataObject, chosen: set[tuple[str, int]]
) -> None:
    """Tensors of several datatypes, ranks and layouts in one request come back each as it was, over each transport."""
    sent, inputs = {}, {}
    for datatype, rank in sorted(chosen):
        shape = data.draw(npst.array_shapes(min_dims=rank, max_dims=rank, min_side=0, max_side=4))
        array = data.draw(drawn_as(datatype, shape))
        layout = data.draw(st.sampled_from([form for form in WHOLE if form != "alone"]))
        sent[f"y_{datatype}_{rank}"] = array
        inputs[f"x_{datatype}_{rank}"] = FORMS[layout](array)["x"]
    for transport in transports:
        check_all(transport.predict("same", inputs)["outputs"], sent)


@AT_RANDOM
@given(
    data=st.data(),
    chosen=st.sets(st.sampled_from(TYPES), min_size=1, max_size=4),
    batch=st.integers(1, LIMIT),
)
def test_scalars(transports: list[Transport], data: st.DataObject, chosen: set[str], batch: int) -> None:
    """What a model reshapes to no dimensions comes back as batch and one; a single value may be of none itself."""
    sent = {datatype: data.draw(drawn_as(datatype, (batch, 1))) for datatype in sorted(chosen)}
    alone = batch == 1 and data.draw(st.booleans())
    inputs = {f"x_{datatype}": array.reshape(()) if alone else array for datatype, array in sent.items()}
    for transport in transports:
        outputs = transport.predict("scalars", inputs)["outputs"]
        check_all(outputs, {f"y_{datatype}": array for datatype, array in sent.items()})


def check_all(outputs: Mapping[str, Array], sent: Mapping[str, Array]) -> None:
    """Compare several outputs with what was sent."""
    assert set(outputs) == set(sent)
    for name, array in sent.items():
        came_back(outputs[name], array)
