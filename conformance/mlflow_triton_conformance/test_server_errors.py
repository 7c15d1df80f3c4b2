"""What the server refuses, it refuses in the protocol's way, and it lives on."""

from __future__ import annotations

import uuid
from multiprocessing.shared_memory import SharedMemory
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from tritonclient.grpc import InferInput
from tritonclient.utils import InferenceServerException

from mlflow_triton_conformance.cases import cases
from mlflow_triton_conformance.wire import request, send, tensor

if TYPE_CHECKING:
    from collections.abc import Iterator

    from mlflow_triton_conformance.protocol import Protocol

ROW = [1.0, 2.0, 3.0]
GOOD = tensor("x", "FP32", [1, 3], ROW)

# Requests to the model add, and words of the refusal.
WRONG: dict[str, tuple[Any, str]] = {
    "missing input": (request(tensor("extra", "FP32", [1, 1], [0.0])), "x"),
    "unknown input": (request(GOOD, tensor("nothing", "FP32", [1, 1], [0.0])), "nothing"),
    "another datatype": (request(tensor("x", "INT32", [1, 3], [1, 2, 3])), "FP32"),
    "another shape": (request(GOOD, tensor("extra", "FP32", [1, 2], [0.0, 1.0])), "extra"),
    "too few elements": (request(tensor("x", "FP32", [1, 3], [1.0])), "hape"),
    "too many elements": (request(tensor("x", "FP32", [1, 1], ROW)), "hape"),
    "unknown output": (request(GOOD, outputs=[{"name": "nothing"}]), "nothing"),
    "no JSON": (b"{'inputs'", ""),
    "error of the model": (request(tensor("x", "FP32", [1, 1], [-1e39])), "the model says no"),
    "exception in the model": (request(tensor("x", "FP32", [1, 1], [1e39])), "the model fails"),
    "too large a batch": (request(tensor("x", "FP32", [5, 1], [0.0] * 5)), "4"),
}


@pytest.fixture(autouse=True)
def _lives_on(protocol: Protocol) -> Iterator[None]:
    yield
    assert protocol.get("/health/live").status == 200


@pytest.mark.requirement("OIP-ERROR-001")
def test_unknown_model(protocol: Protocol) -> None:
    """A request to a model that nobody has is refused by its name."""
    assert "no-such-model" in protocol.infer("no-such-model", request(GOOD)).error


@pytest.mark.requirement("OIP-ERROR-009")
def test_unknown_version(protocol: Protocol, zoo: dict[str, str]) -> None:
    """A request to a version that the model has not is refused by its number."""
    assert "77" in protocol.infer(zoo["add"], request(GOOD), version="77").error


@pytest.mark.parametrize(
    "case",
    cases(
        {
            "missing input": "OIP-ERROR-002",
            "unknown input": "OIP-ERROR-003",
            "another datatype": "OIP-ERROR-004",
            "another shape": "OIP-ERROR-005",
            "too few elements": "OIP-ERROR-006",
            "too many elements": "OIP-ERROR-006",
            "unknown output": "OIP-ERROR-007",
            "no JSON": "OIP-ERROR-008",
            "error of the model": "OIP-ERROR-010",
            "exception in the model": "OIP-ERROR-010",
            "too large a batch": "OIP-ERROR-011",
        }
    ),
)
def test_wrong_requests(protocol: Protocol, zoo: dict[str, str], case: str) -> None:
    """A request that does not fit is refused with a message, and the next one is answered."""
    document, words = WRONG[case]
    assert words in protocol.infer(zoo["add"], document).error
    assert protocol.infer(zoo["add"], request(GOOD)).status == 200


@pytest.mark.requirement("OIP-ERROR-012")
@pytest.mark.parametrize("told", [0, 8, 16])
def test_binary_data_of_another_size(protocol: Protocol, zoo: dict[str, str], told: int) -> None:
    """Sizes that do not go with shape, datatype or body are refused."""
    assert send(protocol, zoo["add"], {"x": np.ones((1, 3), np.float32)}, sizes={"x": told}).error
    assert protocol.infer(zoo["add"], request(GOOD)).status == 200


@pytest.mark.requirement("OIP-ERROR-013")
def test_unknown_model_over_grpc(grpc: Any) -> None:
    """A request over gRPC to a model that nobody has fails by its name."""
    given = InferInput("x", [1], "FP32")
    given.set_data_from_numpy(np.zeros(1, np.float32))
    with pytest.raises(InferenceServerException, match="no-such-model"):
        grpc.infer("no-such-model", [given])


@pytest.mark.requirement("OIP-ERROR-014")
def test_another_shape_over_grpc(grpc: Any, zoo: dict[str, str]) -> None:
    """A request over gRPC with a tensor that does not fit fails by its name."""
    given = [InferInput(name, [1, 2], "FP32") for name in ("x", "extra")]
    for it in given:
        it.set_data_from_numpy(np.zeros((1, 2), np.float32))
    with pytest.raises(InferenceServerException, match="extra"):
        grpc.infer(zoo["add"], given)


def shared(region: str, size: int) -> dict[str, Any]:
    """Make a request whose x is in a region of shared memory."""
    parameters = {"shared_memory_region": region, "shared_memory_byte_size": size}
    return request({"name": "x", "datatype": "FP32", "shape": [1, 3], "parameters": parameters})


@pytest.mark.requirement("OIP-ERROR-015")
def test_unknown_region(protocol: Protocol, zoo: dict[str, str]) -> None:
    """A region of shared memory that nobody registered is refused by its name."""
    name = f"region-{uuid.uuid4().hex[:8]}"
    assert name in protocol.infer(zoo["add"], shared(name, 12)).error


@pytest.mark.requirement("OIP-ERROR-016")
def test_beyond_a_region(protocol: Protocol, zoo: dict[str, str]) -> None:
    """A tensor that does not lie within its region is refused."""
    memory = SharedMemory(create=True, size=64)
    path = f"/systemsharedmemory/region/{memory.name}"
    try:
        document = {"key": f"/{memory.name}", "offset": 0, "byte_size": 8}
        assert protocol.post(f"{path}/register", document).status == 200
        assert protocol.infer(zoo["add"], shared(memory.name, 12)).error
    finally:
        protocol.post(f"{path}/unregister", {})
        memory.close()
        memory.unlink()
