"""Servers with one defect each."""

from __future__ import annotations

import json
import math
import threading
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import grpc
from tritonclient.grpc import service_pb2

from mlflow_triton_conformance.catalogue.datatypes import DATATYPES
from mutants.changes import (
    INFER,
    answers,
    asks,
    ignores,
    infers,
    only,
    refuses,
    replies,
    requests,
    rpc_refuses,
    says,
    succeeds,
)
from mutants.mutant import Mutant
from mutants.proxy import LENGTH, Answer, Request

if TYPE_CHECKING:
    from collections.abc import Callable

    from mutants.proxy import Forward, Http, Rpc

__all__ = ["SERVERS"]

LOAD, UNLOAD, INDEX = (
    r"/repository/models/[^/]+/load$",
    r"/repository/models/[^/]+/unload$",
    r"/repository/index$",
)
METADATA, CONFIG, STATISTICS = r"^/v2/models/[^/]+$", r"/config$", r"/stats$"
REGION = r"/systemsharedmemory/"


def down(answer: Answer) -> Answer:
    """Answer that it is not ready."""
    return replace(answer, status=503)


def up(answer: Answer) -> Answer:
    """Answer that it is ready."""
    return replace(answer, status=200)


def inputs(request: Request) -> list[dict[str, Any]]:
    """Return the inputs of a request."""
    document = request.document
    return list(document.get("inputs", ())) if isinstance(document, dict) else []


def put(key: str, value: Any) -> Callable[[Any], Any]:
    """Change a value."""
    return lambda document: document.update({key: value})


def drop(*keys: str) -> Callable[[Any], Any]:
    """Leave keys out."""
    return lambda document: [document.pop(key, None) for key in keys] and None


def dropped(key: str) -> Callable[[Any], Any]:
    """Leave a key out of each item of a list."""
    return lambda document: [it.pop(key, None) for it in document] and None


def cleared(key: str) -> Callable[[Any], Any]:
    """Leave a field of a message out."""
    return lambda message: message.ClearField(key)


def each(key: str, change: Callable[[Any], Any]) -> Callable[[Any], Any]:
    """Change each item of a list."""

    def changed(document: Any) -> None:
        for it in document.get(key, ()):
            change(it)

    return changed


def parameter(key: str, value: Any, of: str = "") -> Callable[[Any], Any]:
    """Change a parameter of what is asked, or of each input or output of it, if it is there."""

    def changed(document: Any) -> None:
        for it in document.get(of, ()) if of else (document,):
            if key in it.get("parameters", {}):
                it["parameters"][key] = value

    return changed


# -- health and metadata


def no_versions_ready(request: Request, forward: Forward) -> Answer:
    """Answer for the model whatever version is asked."""
    path = request.path
    if "/versions/" in path and path.endswith("/ready"):
        path = f"{path.partition('/versions/')[0]}/ready"
    return forward(replace(request, path=path))


def error_as_text(answer: Answer) -> Answer:
    """Write an error as text."""
    return replace(answer, body=b"no such model") if answer.status >= 400 else answer


def open_as_one(document: Any) -> None:
    """Tell open dimensions as one."""
    for it in (*document["inputs"], *document["outputs"]):
        it["shape"] = [max(1, size) for size in it["shape"]]


HEALTH = (
    Mutant("live answers 503", ("OIP-HEALTH-001",), answers("/health/live$", down)),
    Mutant("ready answers 503", ("OIP-HEALTH-002",), answers("/health/ready$", down)),
    Mutant("a ready model is said not to be ready", ("OIP-HEALTH-003",), answers("/models/.*/ready$", down)),
    Mutant("any model is said to be ready", ("OIP-HEALTH-004",), answers("/models/[^/]+/ready$", up)),
    Mutant("readiness ignores the version", ("OIP-HEALTH-005",), no_versions_ready),
    Mutant("ServerLive answers false", ("OIP-HEALTH-006",), rpc=replies("ServerLive", lambda it: it.Clear())),
    Mutant(
        "ServerReady answers false", ("OIP-HEALTH-006",), rpc=replies("ServerReady", lambda it: it.Clear())
    ),
    Mutant(
        "ModelReady answers true for any model",
        ("OIP-HEALTH-007",),
        rpc=lambda method, question, forward: (
            service_pb2.ModelReadyResponse(ready=True) if method == "ModelReady" else forward(question)
        ),
    ),
    Mutant("ModelReady answers false", ("OIP-HEALTH-007",), rpc=replies("ModelReady", lambda it: it.Clear())),
    *(
        Mutant(f"the server's metadata lack {key}", ("OIP-META-001",), says("^/v2/?$", drop(key)))
        for key in ("name", "version", "extensions")
    ),
    *(
        Mutant(f"a model's metadata lack {key}", ("OIP-META-002",), says(METADATA, drop(key)))
        for key in ("name", "versions", "platform", "inputs", "outputs")
    ),
    Mutant(
        "a version's metadata are those of no version",
        ("OIP-META-003",),
        says(r"/models/[^/]+/versions/\d+$", put("versions", [])),
    ),
    Mutant(
        "metadata of an unknown model are an error that is no JSON",
        ("OIP-META-004",),
        answers(METADATA, error_as_text),
    ),
    Mutant("metadata of an unknown model are empty", ("OIP-META-004",), succeeds(METADATA)),
    Mutant(
        "ServerMetadata lacks an extension",
        ("OIP-META-005",),
        rpc=replies("ServerMetadata", lambda it: it.extensions.pop() and None),
    ),
    Mutant(
        "ModelMetadata lacks an output",
        ("OIP-META-006",),
        rpc=replies("ModelMetadata", lambda it: it.outputs.pop() and None),
    ),
    Mutant("open dimensions are told as one", ("OIP-META-007",), says(METADATA, open_as_one)),
)

# -- inference


def first_outputs_only(request: Request, forward: Forward) -> Answer:
    """Answer the first output where none is asked for."""
    answer = forward(request)
    document = request.document
    if answer.status == 200 and not document.get("outputs"):
        told = answer.document
        return answer.saying(told | {"outputs": told["outputs"][:1]})
    return answer


def without_outputs(document: Any) -> None:
    """Forget which outputs are asked for."""
    document.pop("outputs", None)


def shifted(output: dict[str, Any]) -> None:
    """Answer other numbers."""
    if output.get("data") and isinstance(output["data"][0], int | float):
        output["data"] = [value + 1 for value in output["data"]]


def spoil_tail(change: Callable[[bytes], bytes]) -> Http:
    """Change the binary data of an answer."""

    def changed(answer: Answer) -> Answer:
        return answer.saying(answer.document, change(answer.tail)) if answer.tail else answer

    return answers(INFER, changed)


def sizes_left_out(document: Any) -> None:
    """Leave the sizes of binary data out."""
    for output in document["outputs"]:
        output.get("parameters", {}).pop("binary_data_size", None)


def mixed(request: Request) -> bool:
    """Tell whether a request has JSON data and binary data."""
    return len({"data" in it for it in inputs(request)}) > 1


def long_lengths(tail: bytes) -> bytes:
    """Write the lengths of BYTES in big-endian order."""
    changed, place = b"", 0
    while place < len(tail):
        length = int.from_bytes(tail[place : place + 4], "little")
        changed += length.to_bytes(4, "big") + tail[place + 4 : place + 4 + length]
        place += 4 + length
    return changed


def raw_spoiled(answer: Any) -> None:
    """Change the last element of raw contents."""
    for place, data in enumerate(answer.raw_output_contents):
        if data:
            answer.raw_output_contents[place] = data[:-1] + bytes([data[-1] ^ 1])


def one_label_less(output: dict[str, Any]) -> None:
    """Leave the labels of a classification out."""
    output["data"] = [it.rpartition(":")[0] for it in output["data"]]


class Cut:
    """Drops the second answer of a stream."""

    def __init__(self) -> None:
        self.count = 0

    def __call__(self, method: str, question: Any, forward: Callable[[Any], Any]) -> Any:
        """Pass on what is not to be dropped."""
        answer = forward(question)
        if method == "ModelStreamInfer":
            self.count += 1
            if self.count == 2:
                return None
        return answer


def offset(place: int, of: str) -> Http:
    """Take another place of a region."""
    return asks(INFER, parameter("shared_memory_offset", place, of))


def shared_over_grpc(question: Any) -> bool:
    """Tell whether a request names a region."""
    return any("shared_memory_region" in it.parameters for it in question.inputs)


class Started:
    """Starts a sequence that did not."""

    def __init__(self) -> None:
        self.seen: set[int] = set()

    def __call__(self, document: Any) -> None:
        """Set what the request lacks."""
        told = document.get("parameters", {})
        if "sequence_id" in told and told["sequence_id"] not in self.seen:
            self.seen.add(told["sequence_id"])
            told["sequence_start"] = True


def restarted(document: Any) -> None:
    """Start a sequence with each request."""
    if "sequence_id" in document.get("parameters", {}):
        document["parameters"]["sequence_start"] = True


INFERENCE = (
    *(
        Mutant(f"an output lacks {key}", ("OIP-INFER-001",), infers(drop(key), "y"))
        for key in ("datatype", "shape", "data")
    ),
    Mutant("an output in JSON has other numbers", ("OIP-INFER-001",), infers(shifted, "y")),
    Mutant("the answer has not the id of the request", ("OIP-INFER-002",), says(INFER, drop("id"))),
    Mutant("the answer names another model", ("OIP-INFER-003",), says(INFER, put("model_name", "other"))),
    Mutant("the answer names another version", ("OIP-INFER-003",), says(INFER, put("model_version", "2"))),
    Mutant(
        "all outputs are answered, whatever is asked for", ("OIP-INFER-004",), asks(INFER, without_outputs)
    ),
    Mutant(
        "the first output is answered where none is asked for",
        ("OIP-INFER-005",),
        only(INFER, first_outputs_only),
    ),
    Mutant("parameters of a request are dropped", ("OIP-INFER-006",), asks(INFER, drop("parameters"))),
    Mutant(
        "JSON is answered as text",
        ("OIP-INFER-007",),
        answers(INFER, lambda it: replace(it, headers=it.headers | {"content-type": "text/plain"})),
    ),
    Mutant(
        "binary input is refused",
        ("OIP-BINARY-001",),
        refuses(INFER, lambda it: LENGTH in it.headers),
    ),
    Mutant("the sizes of binary outputs are left out", ("OIP-BINARY-002",), says(INFER, sizes_left_out)),
    Mutant("the last byte of binary outputs is dropped", ("OIP-BINARY-002",), spoil_tail(lambda it: it[:-1])),
    Mutant(
        "binary_data_output is ignored",
        ("OIP-BINARY-003",),
        asks(INFER, lambda it: it.get("parameters", {}).pop("binary_data_output", None) and None),
    ),
    Mutant("JSON data beside binary data are refused", ("OIP-BINARY-004",), refuses(INFER, mixed)),
    Mutant("the lengths of BYTES are big-endian", ("OIP-BINARY-005",), spoil_tail(long_lengths)),
    Mutant("raw contents are changed", ("OIP-RPC-001",), rpc=replies("ModelInfer", raw_spoiled)),
    Mutant(
        "typed contents are refused",
        ("OIP-RPC-002",),
        rpc=rpc_refuses("ModelInfer", lambda it: not it.raw_input_contents),
    ),
    *(
        Mutant(
            f"the answer over gRPC lacks {key}",
            ("OIP-RPC-003",),
            rpc=replies("ModelInfer", cleared(key)),
        )
        for key in ("id", "model_name", "model_version")
    ),
    Mutant(
        "all outputs are answered over gRPC",
        ("OIP-RPC-004",),
        rpc=requests("ModelInfer", lambda it: it.ClearField("outputs")),
    ),
    Mutant("a response of a stream is lost", ("OIP-STREAM-001",), rpc=Cut()),
    Mutant(
        "a classification has the highest value last",
        ("OIP-CLASS-001",),
        infers(lambda it: it["data"].reverse(), "y"),
    ),
    Mutant("a classification has no labels", ("OIP-CLASS-002",), infers(one_label_less, "y")),
    Mutant("an input is read from another place of its region", ("OIP-SHM-001",), offset(16, "inputs")),
    Mutant("an output is written to another place of its region", ("OIP-SHM-002",), offset(48, "outputs")),
    *(
        Mutant(
            f"the status of a region lacks {key}",
            ("OIP-SHM-003",),
            says(f"{REGION}.*status$", dropped(key)),
        )
        for key in ("key", "offset", "byte_size")
    ),
    Mutant("the status of all regions is empty", ("OIP-SHM-003",), says(f"{REGION}status$", lambda _: [])),
    Mutant(
        "regions are refused over gRPC", ("OIP-SHM-004",), rpc=rpc_refuses("ModelInfer", shared_over_grpc)
    ),
    Mutant("unregistering a region does nothing", ("OIP-SHM-005",), ignores("/unregister$")),
    Mutant("a key that does not exist is registered", ("OIP-SHM-006",), succeeds("/register$")),
    Mutant("each request starts its sequence anew", ("OIP-SEQ-001",), asks(INFER, restarted)),
    Mutant("all sequences are one", ("OIP-SEQ-002",), asks(INFER, parameter("sequence_id", 101))),
    Mutant("a sequence that did not start is started", ("OIP-SEQ-003",), asks(INFER, Started())),
)

# -- datatypes and shapes


def binary_of(datatype: str) -> Http:
    """Change the last byte of what has a datatype."""

    def changed(answer: Answer) -> Answer:
        if answer.status == 200 and answer.tail and answer.document["outputs"][0]["datatype"] == datatype:
            return answer.saying(answer.document, answer.tail[:-1] + bytes([answer.tail[-1] ^ 1]))
        return answer

    return answers(INFER, changed)


def json_of(datatype: str) -> Http:
    """Drop the last element of what has a datatype."""

    def changed(output: dict[str, Any]) -> None:
        if output["datatype"] == datatype and output.get("data"):
            output["data"].pop()

    return infers(changed)


def grpc_of(datatype: str) -> Rpc:
    """Change the last byte of what has a datatype."""

    def changed(answer: Any) -> None:
        if answer.outputs[0].datatype == datatype:
            raw_spoiled(answer)

    return replies("ModelInfer", changed)


def transposed(output: dict[str, Any]) -> None:
    """Write a matrix column by column."""
    if output.get("data") and len(output["shape"]) == 2:
        rows, columns = output["shape"]
        output["data"] = [
            output["data"][row * columns + column] for column in range(columns) for row in range(rows)
        ]


def empty_lost(document: Any) -> None:
    """Tell a shape without elements as one dimension."""
    for output in document["outputs"]:
        if 0 in output["shape"]:
            output["shape"] = [0]


def wide(request: Request) -> bool:
    """Tell whether an input has more than eight columns."""
    return any(it["shape"][-1] > 8 for it in inputs(request))


def nested(request: Request) -> bool:
    """Tell whether an input's data are nested."""
    return any(isinstance(it.get("data", [0])[0], list) for it in inputs(request))


TENSORS = (
    *(
        mutant
        for number, datatype in enumerate(DATATYPES, start=1)
        for mutant in (
            Mutant(f"the last bit of {datatype} is changed", (f"OIP-TYPE-{number:03}",), binary_of(datatype)),
            *(
                [
                    Mutant(
                        f"the last {datatype} is dropped of JSON",
                        (f"OIP-JSON-{number:03}",),
                        json_of(datatype),
                    )
                ]
                if datatype != "FP16"
                else []
            ),
            Mutant(
                f"the last bit of {datatype} is changed over gRPC",
                (f"OIP-GRPC-{number:03}",),
                rpc=grpc_of(datatype),
            ),
        )
    ),
    Mutant("the shape of a tensor without elements is lost", ("OIP-SHAPE-001",), says(INFER, empty_lost)),
    Mutant("a matrix is answered column by column", ("OIP-SHAPE-002",), infers(transposed)),
    Mutant(
        "the batch is no dimension of an output",
        ("OIP-SHAPE-003",),
        infers(lambda it: it.update(shape=[math.prod(it["shape"])]), "y"),
    ),
    Mutant("an open dimension takes no more than eight", ("OIP-SHAPE-004",), refuses(INFER, wide)),
    Mutant("nested data are refused", ("OIP-SHAPE-005",), refuses(INFER, nested)),
)

# -- errors


def has(**wanted: Any) -> Callable[[Request], bool]:
    """Tell whether a request has an input with these values."""
    return lambda request: any(all(it.get(k) == v for k, v in wanted.items()) for it in inputs(request))


def lacks_x(request: Request) -> bool:
    """Tell whether a request has no input x."""
    return "x" not in [it["name"] for it in inputs(request)]


def wrong_count(request: Request) -> bool:
    """Tell whether the data of a request are more or less than its shapes say."""
    return any("data" in it and len(it["data"]) != math.prod(it["shape"]) for it in inputs(request))


def unknown_output(request: Request) -> bool:
    """Tell whether a request asks for the output nothing."""
    return "nothing" in [it["name"] for it in (request.document or {}).get("outputs", ())]


def wrong_size(request: Request) -> bool:
    """Tell whether the sizes of binary data are not what shapes say of FP32."""
    return any(
        it.get("parameters", {}).get("binary_data_size", size) != size
        for it in inputs(request)
        for size in [4 * math.prod(it["shape"])]
    )


def in_region(request: Request) -> bool:
    """Tell whether an input is in a region."""
    return any("shared_memory_region" in it.get("parameters", {}) for it in inputs(request))


def mute(answer: Answer) -> Answer:
    """Leave out what an error is about."""
    return replace(answer, body=b'{"error": "failed"}') if answer.status >= 400 else answer


def rpc_succeeds(method: str) -> Rpc:
    """Answer OK in place of an error."""

    def succeeded(called: str, question: Any, forward: Callable[[Any], Any]) -> Any:
        try:
            return forward(question)
        except grpc.RpcError:
            if called != method:
                raise
            return getattr(service_pb2, f"{method}Response")()

    return succeeded


#: What is answered with 200 in place of an error, and the requirement that it breaks.
SWALLOWED: dict[str, tuple[str, str, Callable[[Request], bool]]] = {
    "a request to an unknown model": ("OIP-ERROR-001", "no-such-model/infer$", lambda _: True),
    "a request without a required input": ("OIP-ERROR-002", INFER, lacks_x),
    "a request with an unknown input": ("OIP-ERROR-003", INFER, has(name="nothing")),
    "another datatype": ("OIP-ERROR-004", INFER, has(name="x", datatype="INT32")),
    "another shape": ("OIP-ERROR-005", INFER, has(name="extra", shape=[1, 2])),
    "too few or too many elements": ("OIP-ERROR-006", INFER, wrong_count),
    "an unknown output": ("OIP-ERROR-007", INFER, unknown_output),
    "a body that is no JSON": ("OIP-ERROR-008", INFER, lambda it: it.document is None),
    "an unknown version": ("OIP-ERROR-009", r"/versions/\d+/infer$", lambda _: True),
    "an exception in the model": ("OIP-ERROR-010", INFER, has(name="x", data=[1e39])),
    "an error of the model": ("OIP-ERROR-010", INFER, has(name="x", data=[-1e39])),
    "too large a batch": ("OIP-ERROR-011", INFER, has(name="x", shape=[5, 1])),
    "binary data of another size": ("OIP-ERROR-012", INFER, wrong_size),
    "an unknown region": ("OIP-ERROR-015", INFER, in_region),
    "what lies beyond a region": ("OIP-ERROR-016", INFER, in_region),
}
ERRORS = (
    *(
        Mutant(f"{what} is answered with 200", (requirement,), succeeds(path, when))
        for what, (requirement, path, when) in SWALLOWED.items()
    ),
    Mutant("errors are text, not JSON", ("OIP-ERROR-001",), answers(INFER, error_as_text)),
    Mutant(
        "errors do not say what they are about",
        ("OIP-ERROR-003", "OIP-ERROR-010"),
        answers(INFER, mute),
    ),
    Mutant(
        "errors of inference over gRPC are answered with OK",
        ("OIP-ERROR-013", "OIP-ERROR-014"),
        rpc=rpc_succeeds("ModelInfer"),
    ),
)

# -- model control


def listed_when_loaded(document: Any) -> Any:
    """Leave out of the index what has never been loaded."""
    return [it for it in document if it.get("state")]


def model_of(request: Request) -> str:
    """Return the model that a path is about."""
    return request.path.split("/models/")[1].split("/")[0]


def ready(model: str, forward: Forward) -> bool:
    """Ask whether a model is ready."""
    return forward(Request("GET", f"/v2/models/{model}/ready")).status == 200


def told_config(model: str, forward: Forward) -> dict[str, Any]:
    """Ask for a model's configuration; it must be loaded."""
    return dict(forward(Request("GET", f"/v2/models/{model}/config")).document)


def act(model: str, what: str, forward: Forward, **parameters: Any) -> Answer:
    """Load or unload a model."""
    body = json.dumps({"parameters": parameters} if parameters else {}).encode()
    return forward(Request("POST", f"/v2/repository/models/{model}/{what}", {}, body))


def loads_all(request: Request, forward: Forward) -> Answer:
    """Load what is in the repository without being asked."""
    for entry in forward(request).document:
        if not entry.get("state"):
            act(entry["name"], "load", forward)
    return forward(request)


def loads_once(request: Request, forward: Forward) -> Answer:
    """Load nothing that serves already."""
    return Answer() if ready(model_of(request), forward) else forward(request)


def loads_only_once(request: Request, forward: Forward) -> Answer:
    """Refuse the load of what serves already."""
    if ready(model_of(request), forward):
        return Answer(400, {}, b'{"error": "loaded already"}')
    return forward(request)


def fails_for_good(request: Request, forward: Forward) -> Answer:
    """Unload a model whose reload fails."""
    answer = forward(request)
    if answer.status >= 400:
        act(model_of(request), "unload", forward)
    return answer


def configured(change: Callable[[dict[str, Any]], bool]) -> Http:
    """Load a model, and load it once more with another configuration."""

    def loaded(request: Request, forward: Forward) -> Answer:
        answer = forward(request)
        if answer.status == 200:
            config = told_config(model_of(request), forward)
            if change(config):
                return act(model_of(request), "load", forward, config=json.dumps(config))
        return answer

    return only(LOAD, loaded)


def serves_all(config: dict[str, Any]) -> bool:
    """Let every version of a model without policy serve."""
    config["version_policy"] = {"all": {}}
    return True


def serves_latest(config: dict[str, Any]) -> bool:
    """Let the highest version alone serve."""
    config["version_policy"] = {"latest": {"num_versions": 1}}
    return True


def latest_as_text(request: Request, forward: Forward) -> Answer:
    """Take the highest versions in the order of their digits."""
    answer = forward(request)
    model = model_of(request)
    if answer.status != 200:
        return answer
    config = told_config(model, forward)
    count = config.get("version_policy", {}).get("latest", {}).get("num_versions")
    if not count:
        return answer
    act(model, "load", forward, config=json.dumps(config | {"version_policy": {"all": {}}}))
    versions = json.loads(forward(Request("GET", f"/v2/models/{model}")).body)["versions"]
    highest = {"specific": {"versions": sorted(versions)[-count:]}}
    return act(model, "load", forward, config=json.dumps(config | {"version_policy": highest}))


def other_file(request: Request, forward: Forward) -> Answer:
    """Take no other file than model.py."""
    answer = forward(request)
    if answer.status == 200:
        model = model_of(request)
        if told_config(model, forward).get("default_model_filename") not in ("model.py", "model.onnx", ""):
            act(model, "unload", forward)
            return Answer(400, {}, b'{"error": "there is no model.py"}')
    return answer


class Gone:
    """Refuses to load what was unloaded."""

    def __init__(self) -> None:
        self.models: set[str] = set()

    def __call__(self, request: Request, forward: Forward) -> Answer:
        """Remember what is unloaded."""
        if request.path.endswith("/unload"):
            self.models.add(model_of(request))
        if request.path.endswith("/load") and model_of(request) in self.models:
            return Answer(400, {}, b'{"error": "unloaded for good"}')
        return forward(request)


class Versions:
    """Ignores the version that a request names."""

    def __call__(self, request: Request, forward: Forward) -> Answer:
        """Ask the model itself."""
        head, _, rest = request.path.partition("/versions/")
        if rest.endswith("/infer"):
            request = replace(request, path=f"{head}/infer")
        return forward(request)


def extra_version(number: str) -> Http:
    """Tell a version that should be ignored."""
    return says(METADATA, lambda it: it["versions"].append(number))


def member_not_ready(request: Request, forward: Forward) -> Answer:
    """Unload the members of an ensemble once it is loaded."""
    answer = forward(request)
    return replace(answer, status=503) if model_of(request).endswith("-member") else answer


def rpc_ignores(method: str) -> Rpc:
    """Answer OK to what is not even looked at."""

    def ignored(called: str, question: Any, forward: Callable[[Any], Any]) -> Any:
        return getattr(service_pb2, f"{method}Response")() if called == method else forward(question)

    return ignored


def without_parameter(key: str) -> Callable[[Any], Any]:
    """Drop a parameter."""
    return lambda document: document.get("parameters", {}).pop(key, None) and None


def outside(request: Request) -> bool:
    """Tell whether a path leads out."""
    return ".." in request.path


CONTROL = (
    Mutant(
        "the index leaves out what has not been loaded", ("TRT-INDEX-001",), says(INDEX, listed_when_loaded)
    ),
    *(
        Mutant(
            f"the index lacks {key}",
            (requirement,),
            says(INDEX, dropped(key)),
        )
        for key, requirement in (
            ("version", "TRT-INDEX-002"),
            ("state", "TRT-INDEX-002"),
            ("reason", "TRT-INDEX-004"),
        )
    ),
    Mutant("the index of ready models has all of them", ("TRT-INDEX-003",), asks(INDEX, drop("ready"))),
    Mutant(
        "the index over gRPC has no states",
        ("TRT-INDEX-005",),
        rpc=replies(
            "RepositoryIndex", lambda it: [entry.ClearField("state") for entry in it.models] and None
        ),
    ),
    Mutant("a load answers 200 and loads nothing", ("TRT-LOAD-001",), ignores(LOAD)),
    Mutant(
        "a load over gRPC answers OK and loads nothing",
        ("TRT-LOAD-002",),
        rpc=rpc_ignores("RepositoryModelLoad"),
    ),
    Mutant(
        "a load that fails answers 200",
        ("TRT-LOAD-003", "TRT-LOAD-004", "TRT-REPO-003", "TRT-REPO-004", "TRT-REPO-005"),
        succeeds(LOAD),
    ),
    Mutant("a load that fails does not say why", ("TRT-LOAD-003", "TRT-LOAD-004"), answers(LOAD, mute)),
    Mutant(
        "what is in the repository is loaded without being asked for",
        ("TRT-LOAD-005",),
        only(INDEX, loads_all),
    ),
    Mutant(
        "a load of what serves is passed over",
        ("TRT-LOAD-006", "TRT-VERSION-007", "TRT-VERSION-008"),
        only(LOAD, loads_once),
    ),
    Mutant("a reload that fails unloads the model", ("TRT-LOAD-007",), only(LOAD, fails_for_good)),
    Mutant("a load of what serves is refused", ("TRT-LOAD-008",), only(LOAD, loads_only_once)),
    Mutant(
        "a configuration given with a load is dropped",
        ("TRT-LOAD-009",),
        asks(LOAD, without_parameter("config")),
    ),
    Mutant("an unload answers 200 and unloads nothing", ("TRT-UNLOAD-001",), ignores(UNLOAD)),
    Mutant("what was unloaded is not loaded again", ("TRT-UNLOAD-002",), Gone()),
    Mutant(
        "an unload over gRPC answers OK and unloads nothing",
        ("TRT-UNLOAD-003",),
        rpc=rpc_ignores("RepositoryModelUnload"),
    ),
    Mutant(
        "the members of an ensemble are not ready",
        ("TRT-ENSEMBLE-001",),
        only("/ready$", member_not_ready),
    ),
    Mutant("an ensemble answers other numbers", ("TRT-ENSEMBLE-002",), infers(shifted)),
    Mutant(
        "unload_dependents is ignored",
        ("TRT-ENSEMBLE-003",),
        asks(UNLOAD, without_parameter("unload_dependents")),
    ),
    Mutant("a directory that is no number is a version", ("TRT-REPO-001",), extra_version("12")),
    Mutant("a directory with a leading zero is a version", ("TRT-REPO-002",), extra_version("11")),
    Mutant(
        "an ONNX model's configuration is not completed", ("TRT-REPO-006",), says(CONFIG, put("input", []))
    ),
    Mutant("default_model_filename is ignored", ("TRT-REPO-007",), only(LOAD, other_file)),
    Mutant("without a policy every version serves", ("TRT-VERSION-001",), configured(serves_all)),
    Mutant(
        "every version policy is that of the highest version",
        ("TRT-VERSION-002", "TRT-VERSION-003", "TRT-VERSION-004"),
        configured(serves_latest),
    ),
    Mutant(
        "the highest versions are those whose digits come last",
        ("TRT-VERSION-009",),
        only(LOAD, latest_as_text),
    ),
    Mutant("the version that a request names is ignored", ("TRT-VERSION-005",), Versions()),
    *(
        Mutant(f"the configuration lacks {key}", ("TRT-CONFIG-001",), says(CONFIG, drop(key)))
        for key in ("name", "max_batch_size", "backend", "parameters", "input")
    ),
    *(
        Mutant(f"the configuration lacks {key}", ("TRT-CONFIG-007",), says(CONFIG, drop(key)))
        for key in ("dynamic_batching", "metric_tags")
    ),
    Mutant(
        "the configuration tells the delay of no queue",
        ("TRT-CONFIG-007",),
        says(
            CONFIG,
            lambda it: it.get("dynamic_batching", {}).pop("max_queue_delay_microseconds", None) and None,
        ),
    ),
    Mutant(
        "the configuration over gRPC lacks its parameters",
        ("TRT-CONFIG-002",),
        rpc=replies("ModelConfig", lambda it: it.config.ClearField("parameters")),
    ),
    Mutant("the configuration of an unknown model is empty", ("TRT-CONFIG-003",), succeeds(CONFIG)),
    Mutant(
        "parameters of the configuration do not reach the model", ("TRT-CONFIG-004",), infers(shifted, "y")
    ),
    Mutant(
        "an optional input has to be given",
        ("TRT-CONFIG-005",),
        refuses(INFER, lambda it: "extra" not in [found["name"] for found in inputs(it)]),
    ),
    Mutant(
        "a reshape is ignored", ("TRT-CONFIG-006",), infers(lambda it: it.update(shape=[1], data=[6]), "y")
    ),
    Mutant(
        "a name that leads out of the repository is loaded", ("TRT-SEC-001",), succeeds("/load$", outside)
    ),
)

# -- observability


def success_lost(key: str) -> Http:
    """Count nothing."""
    return says(
        STATISTICS,
        lambda it: [entry["inference_stats"][key].update(count=0) for entry in it["model_stats"]] and None,
    )


def metric_lost(name: str) -> Http:
    """Count nothing in a metric."""

    def changed(answer: Answer) -> Answer:
        lines = answer.body.decode().splitlines()
        lines = [f"{it.rpartition(' ')[0]} 0" if it.startswith(f"{name}{{") else it for it in lines]
        return replace(answer, body="\n".join(lines).encode() + b"\n")

    return answers("/metrics$", changed)


def log_kept(request: Request, forward: Forward) -> Answer:
    """Set nothing."""
    return forward(replace(request, method="GET", body=b""))


OBSERVABILITY = (
    Mutant("successful requests are not counted", ("TRT-STAT-001",), success_lost("success")),
    Mutant("failed requests are not counted", ("TRT-STAT-002",), success_lost("fail")),
    Mutant(
        "batch sizes are not counted",
        ("TRT-STAT-003",),
        says(STATISTICS, each("model_stats", put("batch_stats", []))),
    ),
    Mutant(
        "each batch size is counted once",
        ("TRT-STAT-003",),
        says(
            STATISTICS, each("model_stats", each("batch_stats", put("compute_infer", {"count": 1, "ns": 1})))
        ),
    ),
    Mutant(
        "the statistics over gRPC count nothing",
        ("TRT-STAT-004",),
        rpc=replies(
            "ModelStatistics",
            lambda it: [entry.ClearField("inference_count") for entry in it.model_stats] and None,
        ),
    ),
    Mutant("statistics of an unknown model are empty", ("TRT-STAT-005",), succeeds(STATISTICS)),
    Mutant(
        "a line of the metrics is none",
        ("TRT-METRIC-001",),
        answers("/metrics$", lambda it: replace(it, body=it.body + b"nv_inference count: 7\n")),
    ),
    Mutant(
        "the metric of successful requests stays",
        ("TRT-METRIC-002",),
        metric_lost("nv_inference_request_success"),
    ),
    Mutant(
        "the metric of failed requests stays",
        ("TRT-METRIC-003",),
        metric_lost("nv_inference_request_failure"),
    ),
    Mutant("log settings are not set", ("TRT-LOG-001",), only("/logging$", log_kept)),
    Mutant("trace settings are empty", ("TRT-TRACE-001",), says("/trace/setting$", lambda _: {})),
)

# -- concurrency and faults


class Busy:
    """Plays a defect while something else is under way.

    Args:
        counts: What is under way.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._running = 0
        self._last: Answer | None = None
        self.loading: str = ""

    def mixes_up(self, request: Request, forward: Forward) -> Answer:
        """Answer what another request has been answered."""
        with self._lock:
            self._running += 1
            busy = self._running > 1
        try:
            answer = forward(request)
            with self._lock:
                last, self._last = self._last, answer
            return last if busy and last is not None else answer
        finally:
            with self._lock:
                self._running -= 1

    def forgets_one(self, request: Request, forward: Forward) -> Answer:
        """Load one at a time, and pass over others."""
        with self._lock:
            self._running += 1
            busy = self._running > 1
        try:
            return Answer() if busy else forward(request)
        finally:
            with self._lock:
                self._running -= 1

    def loads(self, method: str, question: Any, forward: Callable[[Any], Any]) -> Any:
        """Know which model is being loaded over gRPC."""
        if method != "RepositoryModelLoad":
            return forward(question)
        self.loading = question.model_name
        try:
            return forward(question)
        finally:
            self.loading = ""

    def refuses_others(self, request: Request, forward: Forward) -> Answer:
        """Refuse requests to other models than the one that is being loaded."""
        if self.loading and model_of(request) != self.loading:
            return Answer(503, {}, b'{"error": "loading"}')
        return forward(request)

    def refuses_it(self, request: Request, forward: Forward) -> Answer:
        """Refuse requests to the model that is being loaded."""
        if self.loading == model_of(request):
            return Answer(503, {}, b'{"error": "loading"}')
        return forward(request)


OTHERS, ITSELF = Busy(), Busy()


def dead(request: Request, forward: Forward) -> Answer:
    """Serve nobody once somebody has sent what is no request."""
    return Answer(503, {}, b'{"error": "dead"}') if request.abused else forward(request)


TOGETHER = (
    Mutant("requests at once get each other's answers", ("TRT-CONC-001",), only(INFER, Busy().mixes_up)),
    Mutant("of loads at once one is forgotten", ("TRT-CONC-002",), only(LOAD, Busy().forgets_one)),
    Mutant(
        "while a model is loaded, others do not answer",
        ("TRT-CONC-003",),
        only(INFER, OTHERS.refuses_others),
        OTHERS.loads,
    ),
    Mutant(
        "while a model is loaded again, it does not answer",
        ("TRT-CONC-004",),
        only(INFER, ITSELF.refuses_it),
        ITSELF.loads,
    ),
    Mutant("a client that goes away ends the server", ("TRT-FAULT-001",), dead),
    Mutant("what is no HTTP ends the server", ("TRT-FAULT-002",), dead),
)

SERVERS = (*HEALTH, *INFERENCE, *TENSORS, *ERRORS, *CONTROL, *OBSERVABILITY, *TOGETHER)
