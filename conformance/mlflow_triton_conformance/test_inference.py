"""The Open Inference Protocol and Triton's extensions of it, over HTTP, gRPC and shared memory."""

from __future__ import annotations

import json
import queue
import uuid
from multiprocessing import shared_memory
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from tritonclient.grpc import InferInput, InferRequestedOutput, service_pb2

from mlflow_triton_conformance.wire import binary, request, tensor

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from contextlib import AbstractContextManager

    from mlflow_triton_conformance.protocol import Protocol

requirement = pytest.mark.requirement
ONE_TO_THREE = [1.0, 2.0, 3.0]


def x(rows: int = 1, **more: Any) -> dict[str, Any]:
    """The input of the model add: rows of one, two, three."""
    return tensor("x", "FP32", [rows, 3], ONE_TO_THREE * rows, **more)


@requirement("OIP-HEALTH-001")
def test_live(protocol: Protocol) -> None:
    """The server says that it is live."""
    assert protocol.get("/health/live").status == 200


@requirement("OIP-HEALTH-002")
def test_ready(protocol: Protocol, zoo: dict[str, str]) -> None:
    """With models that are all ready, the server says that it is ready."""
    assert protocol.get("/health/ready").status == 200


@requirement("OIP-HEALTH-003", "OIP-HEALTH-005")
def test_model_ready(protocol: Protocol, zoo: dict[str, str]) -> None:
    """A model that serves is ready, and so is its version; another version is not."""
    assert protocol.is_ready(zoo["add"])
    assert protocol.is_ready(zoo["add"], "1")
    assert not protocol.is_ready(zoo["add"], "9")


@requirement("OIP-HEALTH-004")
def test_unknown_model_is_not_ready(protocol: Protocol) -> None:
    """A model that nobody has is not ready, which is an error status."""
    assert protocol.get("/models/no-such-model/ready").status >= 400


@requirement("OIP-HEALTH-006")
def test_live_and_ready_over_grpc(grpc: Any, zoo: dict[str, str]) -> None:
    """The server says over gRPC that it is live and ready."""
    assert (grpc.is_server_live(), grpc.is_server_ready()) == (True, True)


@requirement("OIP-HEALTH-007")
def test_model_ready_over_grpc(grpc: Any, zoo: dict[str, str]) -> None:
    """A model that serves is ready over gRPC, and one that nobody has is not."""
    assert grpc.is_model_ready(zoo["add"])
    assert not grpc.is_model_ready("no-such-model")


@requirement("OIP-META-001")
def test_server_metadata(protocol: Protocol) -> None:
    """The server tells name, version and extensions."""
    told = protocol.get("").json
    assert all(isinstance(told[key], str) and told[key] for key in ("name", "version"))
    assert all(isinstance(name, str) for name in told["extensions"])


@requirement("OIP-META-002", "OIP-META-007")
def test_model_metadata(protocol: Protocol, zoo: dict[str, str]) -> None:
    """A model's metadata has its tensors, with -1 for the batch and for each dimension that is open."""
    told = protocol.get(f"/models/{zoo['add']}").json
    assert (told["name"], told["versions"]) == (zoo["add"], ["1"])
    assert isinstance(told["platform"], str)
    assert told["inputs"][0] == {"name": "x", "datatype": "FP32", "shape": [-1, -1]}
    assert told["outputs"] == [
        {"name": "y", "datatype": "FP32", "shape": [-1, -1]},
        {"name": "z", "datatype": "BYTES", "shape": [-1, 1]},
    ]


@requirement("OIP-META-003")
def test_metadata_of_a_version(protocol: Protocol, zoo: dict[str, str]) -> None:
    """A version has the metadata of its model."""
    assert protocol.get(f"/models/{zoo['add']}/versions/1").json == protocol.get(f"/models/{zoo['add']}").json


@requirement("OIP-META-004")
def test_metadata_of_an_unknown_model(protocol: Protocol) -> None:
    """A model that nobody has has no metadata, which the error names."""
    assert "no-such-model" in protocol.get("/models/no-such-model").error


@requirement("OIP-META-005")
def test_server_metadata_over_grpc(protocol: Protocol, grpc: Any) -> None:
    """The server tells over gRPC what it tells over HTTP."""
    told = grpc.get_server_metadata()
    found = {"name": told.name, "version": told.version, "extensions": list(told.extensions)}
    assert found == protocol.get("").json


@requirement("OIP-META-006")
def test_model_metadata_over_grpc(protocol: Protocol, grpc: Any, zoo: dict[str, str]) -> None:
    """A model's metadata over gRPC are those over HTTP."""
    told = grpc.get_model_metadata(zoo["add"], as_json=True)
    expected = protocol.get(f"/models/{zoo['add']}").json
    for kind in ("inputs", "outputs"):
        found = [it | {"shape": [int(size) for size in it["shape"]]} for it in told[kind]]
        assert found == expected[kind]
    assert (told["name"], told["versions"]) == (expected["name"], expected["versions"])


@requirement("OIP-INFER-001", "OIP-INFER-003", "OIP-INFER-005", "OIP-INFER-007")
def test_json(
    protocol: Protocol, zoo: dict[str, str], latency: Callable[[str], AbstractContextManager[None]]
) -> None:
    """A JSON request is answered in JSON with every output, by the model and the version that it names."""
    for _ in range(10):
        with latency("infer over HTTP, JSON, 1x3"):
            answer = protocol.infer(zoo["add"], request(x()))
    assert answer.status == 200, answer
    assert answer.headers["content-type"].startswith("application/json")
    told = answer.json
    assert (told["model_name"], told["model_version"]) == (zoo["add"], "1")
    outputs = {it["name"]: it for it in told["outputs"]}
    assert outputs.keys() == {"y", "z"}
    assert outputs["y"] == tensor("y", "FP32", [1, 3], [1.5, 2.5, 3.5])


@requirement("OIP-INFER-002")
def test_id(protocol: Protocol, zoo: dict[str, str]) -> None:
    """The answer has the id of its request."""
    assert protocol.infer(zoo["add"], request(x(), id="the-42nd")).json["id"] == "the-42nd"


@requirement("OIP-INFER-004")
def test_outputs_that_are_asked_for(protocol: Protocol, zoo: dict[str, str]) -> None:
    """The answer has just the output that the request names."""
    told = protocol.infer(zoo["add"], request(x(), outputs=[{"name": "z"}])).json
    assert [it["name"] for it in told["outputs"]] == ["z"]


@requirement("OIP-INFER-006")
def test_parameters(protocol: Protocol, zoo: dict[str, str]) -> None:
    """Parameters of any of the protocol's types reach the model."""
    parameters = {"text": "word", "number": 7, "truth": True}
    told = protocol.infer(zoo["add"], request(x(), parameters=parameters, outputs=[{"name": "z"}])).json
    assert json.loads(told["outputs"][0]["data"][0])["parameters"] == parameters


@requirement("OIP-BINARY-001", "OIP-BINARY-002")
def test_binary(protocol: Protocol, zoo: dict[str, str]) -> None:
    """Data go and come behind the JSON, whose length is in a header, their sizes in it."""
    data = np.array([ONE_TO_THREE], np.float32)
    outputs = [{"name": "y", "parameters": {"binary_data": True}}]
    answer = binary(protocol, zoo["add"], {"x": data}, outputs=outputs)
    told, parts = answer
    (found,) = told["outputs"]
    assert found["parameters"]["binary_data_size"] == data.nbytes
    assert "data" not in found
    assert parts == {"y": (data + np.float32(0.5)).tobytes()}


@requirement("OIP-BINARY-003")
def test_all_outputs_binary(protocol: Protocol, zoo: dict[str, str]) -> None:
    """One parameter asks for every output as binary data."""
    _, parts = binary(
        protocol, zoo["add"], {"x": np.ones((1, 1), np.float32)}, parameters={"binary_data_output": True}
    )
    assert parts.keys() == {"y", "z"}


@requirement("OIP-BINARY-004")
def test_binary_beside_json(protocol: Protocol, zoo: dict[str, str]) -> None:
    """One input comes as JSON and one as binary data, and both are what they are."""
    mine = tensor("IN_INT8", "INT8", [1, 2], [1, -2])
    told, _ = binary(
        protocol,
        zoo["echo"],
        {"IN_FP64": np.array([[0.1]])},
        more=[mine],
        outputs=[{"name": "OUT_INT8"}, {"name": "OUT_FP64"}],
    )
    found = {it["name"]: it["data"] for it in told["outputs"]}
    assert found == {"OUT_INT8": [1, -2], "OUT_FP64": [0.1]}


@requirement("OIP-BINARY-005")
def test_binary_bytes(protocol: Protocol, zoo: dict[str, str]) -> None:
    """BYTES are written as length and content, one after the other, also those that are empty or no text."""
    values = [[b"", b"\xff\x00", "ü".encode()]]
    _, parts = binary(
        protocol,
        zoo["echo"],
        {"IN_BYTES": np.array(values, np.object_)},
        outputs=[{"name": "OUT_BYTES", "parameters": {"binary_data": True}}],
    )
    assert parts["OUT_BYTES"] == b"\0\0\0\0" + b"\2\0\0\0\xff\x00" + b"\2\0\0\0" + "ü".encode()


@requirement("OIP-RPC-001", "OIP-RPC-003")
def test_raw_contents_over_grpc(
    grpc: Any, zoo: dict[str, str], latency: Callable[[str], AbstractContextManager[None]]
) -> None:
    """Raw contents go and come over gRPC, and the answer says whose it is."""
    data = np.array([ONE_TO_THREE], np.float32)
    given = InferInput("x", [1, 3], "FP32")
    given.set_data_from_numpy(data)
    for _ in range(10):
        with latency("infer over gRPC, 1x3"):
            result = grpc.infer(zoo["add"], [given], request_id="the-43rd")
    np.testing.assert_array_equal(data + np.float32(0.5), result.as_numpy("y"), strict=True)
    told = result.get_response()
    assert (told.id, told.model_name, told.model_version) == ("the-43rd", zoo["add"], "1")


@requirement("OIP-RPC-002")
def test_typed_contents_over_grpc(grpc: Any, zoo: dict[str, str]) -> None:
    """Contents of the tensor's own type are taken over gRPC."""
    message = service_pb2.ModelInferRequest(model_name=zoo["add"])
    given = message.inputs.add(name="x", datatype="FP32", shape=[1, 3])
    given.contents.fp32_contents.extend(ONE_TO_THREE)
    answer = grpc._client_stub.ModelInfer(message)  # noqa: SLF001 - the client itself sends raw contents only
    place = [it.name for it in answer.outputs].index("y")
    assert np.frombuffer(answer.raw_output_contents[place], np.float32).tolist() == [1.5, 2.5, 3.5]


@requirement("OIP-RPC-004")
def test_outputs_that_are_asked_for_over_grpc(grpc: Any, zoo: dict[str, str]) -> None:
    """The answer over gRPC has just the output that the request names."""
    given = InferInput("x", [1, 1], "FP32")
    given.set_data_from_numpy(np.zeros((1, 1), np.float32))
    result = grpc.infer(zoo["add"], [given], outputs=[InferRequestedOutput("y")])
    assert [it.name for it in result.get_response().outputs] == ["y"]


@requirement("OIP-STREAM-001")
def test_decoupled(grpc: Any, zoo: dict[str, str]) -> None:
    """A model answers one request of a stream three times, in its order, and another one not at all."""
    answers: queue.Queue[Any] = queue.Queue()
    grpc.start_stream(lambda result, error: answers.put(error or result))
    try:
        for count in (3, 0):
            given = InferInput("x", [1], "INT32")
            given.set_data_from_numpy(np.array([count], np.int32))
            grpc.async_stream_infer(zoo["many"], [given], enable_empty_final_response=True)
        found = [answers.get(timeout=10) for _ in range(5)]
    finally:
        grpc.stop_stream()
    numbers = [it.as_numpy("y") for it in found]
    assert [None if it is None else it.tolist() for it in numbers].count(None) == 2  # the two ends
    assert [it.tolist() for it in numbers if it is not None] == [[0], [1], [2]]


@requirement("OIP-CLASS-001", "OIP-CLASS-002")
def test_classification(protocol: Protocol, zoo: dict[str, str]) -> None:
    """The two highest values come with their places and their labels, the highest first."""
    given = tensor("x", "FP32", [1, 4], [0.0, 3.0, 1.0, 2.0])
    outputs = [{"name": "y", "parameters": {"classification": 2}}]
    (found,) = protocol.infer(zoo["add"], request(given, outputs=outputs)).json["outputs"]
    assert (found["datatype"], found["shape"]) == ("BYTES", [1, 2])
    parts = [it.split(":") for it in found["data"]]
    assert [(float(value), int(place), label) for value, place, label in parts] == [
        (3.5, 1, "one"),
        (2.5, 3, "three"),
    ]


class Region:
    """A region of system shared memory, registered with the server under its name."""

    def __init__(self, protocol: Protocol, size: int) -> None:
        self.memory = shared_memory.SharedMemory(create=True, size=size)
        assert self.memory.buf is not None
        self.bytes = self.memory.buf[:]
        self.name = f"region-{uuid.uuid4().hex[:8]}"
        self.path = f"/systemsharedmemory/region/{self.name}"
        self.size = size
        answer = protocol.post(
            f"{self.path}/register", {"key": f"/{self.memory.name}", "offset": 0, "byte_size": size}
        )
        assert answer.status == 200, answer

    def read(self, start: int, stop: int) -> bytes:
        """Copy a part of it, so that nothing of a test that fails holds the memory."""
        return bytes(self.bytes[start:stop])

    def parameters(self, offset: int, size: int) -> dict[str, Any]:
        """Name a part of it, as a request does."""
        return {
            "shared_memory_region": self.name,
            "shared_memory_offset": offset,
            "shared_memory_byte_size": size,
        }


@pytest.fixture
def region(protocol: Protocol) -> Iterator[Region]:
    """A region of 64 bytes."""
    it = Region(protocol, 64)
    yield it
    protocol.post(f"{it.path}/unregister", {})
    it.bytes.release()
    it.memory.close()
    it.memory.unlink()


def through(region: Region) -> dict[str, Any]:
    """Make a request whose x is the region's first twelve bytes, and whose y goes to its byte 32."""
    data = np.array(ONE_TO_THREE, np.float32)
    region.bytes[:12] = data.tobytes()
    given = {"name": "x", "datatype": "FP32", "shape": [1, 3], "parameters": region.parameters(0, 12)}
    return request(given, outputs=[{"name": "y", "parameters": region.parameters(32, 12)}])


@requirement("OIP-SHM-001", "OIP-SHM-002")
def test_shared_memory(protocol: Protocol, zoo: dict[str, str], region: Region) -> None:
    """Input and output are read and written where the request says, and are not in the answer."""
    answer = protocol.infer(zoo["add"], through(region))
    assert answer.status == 200, answer
    assert "data" not in answer.json["outputs"][0]
    assert np.frombuffer(region.read(32, 44), np.float32).tolist() == [1.5, 2.5, 3.5]
    assert region.read(44, 64) == bytes(20)


@requirement("OIP-SHM-003")
def test_shared_memory_status(protocol: Protocol, region: Region) -> None:
    """The status of a region has its key, offset and size, and that of all has it among them."""
    expected = {"name": region.name, "key": f"/{region.memory.name}", "offset": 0, "byte_size": 64}
    assert protocol.get(f"{region.path}/status").json == [expected]
    assert expected in protocol.get("/systemsharedmemory/status").json


@requirement("OIP-SHM-004")
def test_shared_memory_over_grpc(grpc: Any, zoo: dict[str, str], region: Region) -> None:
    """A region that was registered over HTTP is read and written over gRPC."""
    through(region)
    given = InferInput("x", [1, 3], "FP32")
    given.set_shared_memory(region.name, 12)
    wanted = InferRequestedOutput("y")
    wanted.set_shared_memory(region.name, 12, offset=32)
    grpc.infer(zoo["add"], [given], outputs=[wanted])
    assert np.frombuffer(region.read(32, 44), np.float32).tolist() == [1.5, 2.5, 3.5]


@requirement("OIP-SHM-005")
def test_unregistered_shared_memory(protocol: Protocol, zoo: dict[str, str], region: Region) -> None:
    """After it was unregistered, a region is unknown to requests and to the status."""
    assert protocol.post(f"{region.path}/unregister", {}).status == 200
    assert region.name in protocol.infer(zoo["add"], through(region)).error
    assert region.read(32, 64) == bytes(32)


@requirement("OIP-SHM-006")
def test_shared_memory_that_is_not_there(protocol: Protocol) -> None:
    """A key that nobody made cannot be registered."""
    document = {"key": f"/no-such-key-{uuid.uuid4().hex}", "offset": 0, "byte_size": 64}
    assert protocol.post("/systemsharedmemory/region/never/register", document).error


def sequence(protocol: Protocol, zoo: dict[str, str], number: int, value: int, **flags: bool) -> Any:
    """Send a value to a sequence."""
    parameters = {"sequence_id": number, **{f"sequence_{name}": flag for name, flag in flags.items()}}
    given = tensor("x", "INT32", [1, 1], [value])
    return protocol.infer(zoo["sum"], request(given, parameters=parameters))


@requirement("OIP-SEQ-001", "OIP-SEQ-002")
def test_sequences(protocol: Protocol, zoo: dict[str, str]) -> None:
    """Two sequences that are sent in turn add up each for itself."""
    found = []
    for step, flags in enumerate([{"start": True}, {}, {"end": True}]):
        for number in (101, 102):
            answer = sequence(protocol, zoo, number, number * 10**step, **flags)
            assert answer.status == 200, answer
            found.append(answer.json["outputs"][0]["data"][0])
    assert found == [101, 102, 1111, 1122, 11211, 11322]


@requirement("OIP-SEQ-003")
def test_a_sequence_that_did_not_start(protocol: Protocol, zoo: dict[str, str]) -> None:
    """A request in the midst of a sequence that nobody started is refused."""
    assert "must specify the START flag" in sequence(protocol, zoo, 103, 1).error


@requirement("OIP-GEN-001")
def test_generate(protocol: Protocol, zoo: dict[str, str]) -> None:
    """Inputs are fields of the document, and so are outputs."""
    answer = protocol.post(f"/models/{zoo['add']}/generate", {"x": 7.0})
    assert answer.status == 200, answer
    assert answer.json["y"] == 7.5


@requirement("OIP-GEN-002")
def test_generate_stream(protocol: Protocol, zoo: dict[str, str]) -> None:
    """Each response of a decoupled model is an event with its outputs."""
    answer = protocol.post(f"/models/{zoo['many']}/generate_stream", {"x": 3})
    assert answer.status == 200, answer
    assert answer.headers["content-type"].startswith("text/event-stream")
    events = [line.removeprefix("data: ") for line in answer.body.decode().splitlines() if line]
    assert [json.loads(event)["y"] for event in events] == [0, 1, 2]
