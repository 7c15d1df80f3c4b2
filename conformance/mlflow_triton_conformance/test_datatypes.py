"""Tensors of every datatype and shape, bit for bit, through the server alone and through the plugin."""

from __future__ import annotations

import math
import uuid
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tritonclient.grpc import InferInput, InferRequestedOutput

from mlflow_triton_conformance import zoo as models
from mlflow_triton_conformance.catalogue.datatypes import DATATYPES
from mlflow_triton_conformance.models import answered
from mlflow_triton_conformance.wire import NUMPY, binary, request, tensor, unpacked
from pytest_mlflow_triton.assertions import assert_tensors_equal
from pytest_mlflow_triton.strategies import tensors

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from _pytest.mark import ParameterSet

    from mlflow_triton_conformance.protocol import Protocol

Array = np.ndarray[Any, Any]
OPEN = (-1, -1)


def each(prefix: str, without: str = "") -> list[ParameterSet]:
    """Make a parameter of each datatype, which proves the requirement of its number."""
    return [
        pytest.param(name, marks=pytest.mark.requirement(f"{prefix}-{number:03}"), id=name)
        for number, name in enumerate(DATATYPES, start=1)
        if name != without
    ]


@pytest.mark.parametrize("datatype", each("OIP-TYPE"))
@given(data=st.data())
def test_binary(protocol: Protocol, zoo: dict[str, str], datatype: str, data: st.DataObject) -> None:
    """Any tensor comes back as binary data bit for bit."""
    array = data.draw(tensors(datatype, OPEN))
    output = {"name": f"OUT_{datatype}", "parameters": {"binary_data": True}}
    told, parts = binary(protocol, zoo["echo"], {f"IN_{datatype}": array}, outputs=[output])
    (found,) = told["outputs"]
    assert (found["datatype"], found["shape"]) == (datatype, list(array.shape))
    actual = unpacked(parts[f"OUT_{datatype}"], datatype, found["shape"])
    assert_tensors_equal(actual, array, inputs={f"IN_{datatype}": array})


@pytest.mark.parametrize("datatype", each("OIP-JSON", without="FP16"))
@given(data=st.data())
def test_json(protocol: Protocol, zoo: dict[str, str], datatype: str, data: st.DataObject) -> None:
    """Any tensor whose values JSON has comes back with its values."""
    array = data.draw(tensors(datatype, OPEN).filter(_has_json))
    values = [it.decode() if isinstance(it, bytes) else it for it in array.ravel().tolist()]
    answer = protocol.infer(
        zoo["echo"],
        request(
            tensor(f"IN_{datatype}", datatype, list(array.shape), values),
            outputs=[{"name": f"OUT_{datatype}"}],
        ),
    )
    assert answer.status == 200, answer
    (found,) = answer.json["outputs"]
    assert (found["datatype"], found["shape"]) == (datatype, list(array.shape))
    returned = [it.encode() for it in found["data"]] if datatype == "BYTES" else found["data"]
    actual = np.empty(len(returned), NUMPY[datatype])
    actual[:] = returned
    # A decimal number that is read twice may end up beside where it began, and does in Triton.
    place = {"rtol": float(np.finfo(array.dtype).eps), "atol": 1e-44} if array.dtype.kind == "f" else {}
    assert_tensors_equal(actual.reshape(array.shape), array, **place, inputs={f"IN_{datatype}": array})


def _has_json(array: Array) -> bool:
    """Tell whether each value is in JSON: numbers that are none are not, nor are bytes that are no text."""
    if array.dtype != np.object_:
        return array.dtype.kind != "f" or bool(np.isfinite(array).all())
    try:
        return all(it.decode().isprintable() for it in array.ravel().tolist())
    except UnicodeDecodeError:
        return False


@pytest.mark.parametrize("datatype", each("OIP-GRPC"))
@given(data=st.data())
def test_grpc(grpc: Any, zoo: dict[str, str], datatype: str, data: st.DataObject) -> None:
    """Any tensor comes back over gRPC bit for bit."""
    array = data.draw(tensors(datatype, OPEN))
    sent = InferInput(f"IN_{datatype}", list(array.shape), datatype)
    sent.set_data_from_numpy(array)
    result = grpc.infer(zoo["echo"], [sent], outputs=[InferRequestedOutput(f"OUT_{datatype}")])
    assert_tensors_equal(result.as_numpy(f"OUT_{datatype}"), array, inputs={f"IN_{datatype}": array})


@pytest.fixture(scope="module")
def echo(module_client: Any, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Any, str]]:
    """The plugin's client, and the name of a deployment that hands tensors of every datatype through."""
    source: Path = tmp_path_factory.mktemp("echo") / "echo"
    models.write(source, models.KINDS["echo"])
    from mlflow_triton import flavor  # noqa: PLC0415 - slow, and a server alone does not need it

    saved = source.parent / "saved"
    flavor.save_model(source, saved)
    name = f"echo-{uuid.uuid4().hex[:8]}"
    module_client.create_deployment(name, str(saved), flavor="triton")
    yield module_client, name
    module_client.delete_deployment(name)


@pytest.mark.parametrize("datatype", each("MLF-TYPE"))
@given(data=st.data())
def test_predict(echo: tuple[Any, str], datatype: str, data: st.DataObject) -> None:
    """Any tensor comes back through predict bit for bit, bytes that are UTF-8 as text."""
    client, name = echo
    array = data.draw(tensors(datatype, OPEN))
    outputs = answered(client.predict(name, {f"IN_{datatype}": array}))
    assert list(outputs) == [f"OUT_{datatype}"]
    assert_tensors_equal(outputs[f"OUT_{datatype}"], array, inputs={f"IN_{datatype}": array})


@pytest.mark.requirement("OIP-SHAPE-001")
@pytest.mark.parametrize("shape", [(0, 3), (2, 0), (0, 0)])
def test_nothing(protocol: Protocol, zoo: dict[str, str], shape: tuple[int, int]) -> None:
    """A tensor without elements keeps its shape."""
    outputs = [{"name": "OUT_FP32", "parameters": {"binary_data": True}}]
    told, parts = binary(protocol, zoo["echo"], {"IN_FP32": np.zeros(shape, np.float32)}, outputs=outputs)
    assert (told["outputs"][0]["shape"], parts["OUT_FP32"]) == (list(shape), b"")


@pytest.mark.requirement("OIP-SHAPE-002", "OIP-SHAPE-005")
def test_row_major(protocol: Protocol, zoo: dict[str, str]) -> None:
    """Data that are nested and data that are flat, the last dimension running fastest, are the same tensor."""
    nested = np.arange(6, dtype=np.int32).reshape(2, 3)
    for data in (nested.tolist(), list(range(6))):
        asked = request(tensor("IN_INT32", "INT32", [2, 3], data), outputs=[{"name": "OUT_INT32"}])
        answer = protocol.infer(zoo["echo"], asked)
        assert answer.status == 200, answer
        assert answer.json["outputs"] == [tensor("OUT_INT32", "INT32", [2, 3], list(range(6)))]


@pytest.mark.requirement("OIP-SHAPE-003", "OIP-SHAPE-004")
@given(rows=st.integers(1, 4), columns=st.integers(1, 300))
def test_batches(protocol: Protocol, zoo: dict[str, str], rows: int, columns: int) -> None:
    """As many rows as the batch has, of any length, come back as such."""
    data = [float(n) for n in range(rows * columns)]
    asked = request(tensor("x", "FP32", [rows, columns], data), outputs=[{"name": "y"}])
    (found,) = protocol.infer(zoo["add"], asked).json["outputs"]
    assert found["shape"] == [rows, columns]
    assert all(math.isclose(new, old + 0.5) for new, old in zip(found["data"], data, strict=True))
