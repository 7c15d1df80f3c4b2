"""Inference over HTTP with the binary tensor extension of the Open Inference Protocol."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np

from mlflow_triton.errors import (
    DeploymentNotFound,
    InferenceFailed,
    InvalidInput,
    ServerRefused,
    ServerUnavailable,
)
from mlflow_triton.serving.http import Response, response, segment
from mlflow_triton.serving.refusal import refused
from mlflow_triton.serving.request import PLAIN, compressed
from mlflow_triton.serving.shared_memory import LARGE, LARGE_OUTPUT, Regions, aligned
from mlflow_triton.tensors.datatypes import from_wire, numpy_dtype, to_wire
from mlflow_triton.tensors.memory import empty

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from mlflow_triton.serving.answer import Answer
    from mlflow_triton.serving.grpc_endpoint import GrpcEndpoint
    from mlflow_triton.serving.http import HttpEndpoint
    from mlflow_triton.serving.request import RequestOptions
    from mlflow_triton.serving.shared_memory import Region

__all__ = ["Inference", "ModelMetadata", "TensorMetadata", "infer", "metadata"]

_Known: TypeAlias = "tuple[ModelMetadata | None, Mapping[str, Any] | None]"
Tensors: TypeAlias = "Mapping[str, tuple[str, np.ndarray[Any, Any]]]"

HEADER_LENGTH = "inference-header-content-length"
#: In Triton's error where shared memory is unknown to it or too small.
SHARED_MEMORY = "shared memory"


@dataclass(frozen=True, slots=True)
class TensorMetadata:
    """A tensor as the model declares it; -1 in `shape` stands for any size."""

    name: str
    datatype: str
    shape: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class ModelMetadata:
    """What ``GET /v2/models/NAME`` says; shapes include the batch dimension."""

    name: str
    inputs: tuple[TensorMetadata, ...]
    outputs: tuple[TensorMetadata, ...]


@dataclass(frozen=True, slots=True)
class _LastAnswer:
    """How large the outputs were that inputs of these datatypes and shapes led to; 0: not for shared memory."""

    shapes: Mapping[str, tuple[str, tuple[int, ...]]]
    sizes: Mapping[str, int]


class _Slots:
    """Where tensors lie in shared memory: start and size by name, in bytes; an output of size 0 is not in it."""

    def __init__(self, inputs: Mapping[str, int], outputs: Mapping[str, int]) -> None:
        self.size = 0
        self.inputs = {name: self._next(size) for name, size in inputs.items()}
        self.outputs = {name: self._next(size) for name, size in outputs.items()}

    def output(self, name: str) -> tuple[int, int]:
        """Return where an output lies; of size 0: not here."""
        return self.outputs.get(name, (0, 0))

    def _next(self, size: int) -> tuple[int, int]:
        start = self.size
        self.size += aligned(size)
        return start, size


def _missing(name: str, http: HttpEndpoint, reason: str) -> DeploymentNotFound:
    return DeploymentNotFound(
        f"Triton at {http.url} serves no model {name!r}: {reason} "
        "See what is deployed with: mlflow deployments list -t triton"
    )


def metadata(http: HttpEndpoint, name: str, version: int | None = None) -> ModelMetadata:
    """Ask for the inputs and outputs of a model, or of a version of it.

    Raises:
        DeploymentNotFound: The server does not serve it.
        ServerUnavailable: No usable answer.
    """
    path = _path(name, version)
    answer = http.json("GET", path)
    if isinstance(answer, Response):
        if answer.status in (400, 404):
            raise _missing(name, http, answer.error)
        raise ServerRefused(f"Triton at {http.url} refused {path}: {answer.error}")
    try:
        return ModelMetadata(answer["name"], _tensors(answer["inputs"]), _tensors(answer["outputs"]))
    except (KeyError, TypeError, ValueError):
        raise ServerUnavailable(
            f"Triton at {http.url} answered {path} in a form that Triton never uses."
        ) from None


def _path(name: str, version: int | None) -> str:
    return f"/v2/models/{segment(name)}" + ("" if version is None else f"/versions/{version}")


def _tensors(entries: list[dict[str, Any]]) -> tuple[TensorMetadata, ...]:
    return tuple(
        TensorMetadata(
            str(entry["name"]), str(entry["datatype"]), tuple(int(size) for size in entry["shape"])
        )
        for entry in entries
    )


class Inference:
    """Predictions of one client: what it knows of the models, and the memory that it shares with the server.

    Safe to share between threads, and after a fork. What is known may be out of date, since anyone may
    deploy. That makes no wrong tensor: Triton checks names, datatypes and shapes of what it is sent, and
    an answer says what it holds. It may make an error, which therefore counts only once `renewed` has
    said that the model is still the same.

    Args:
        http: The server.
        grpc: Carries the requests, if given; what is known of the models and of shared memory is asked over HTTP.
        share: Whether large tensors may go through shared memory.
    """

    def __init__(self, http: HttpEndpoint, grpc: GrpcEndpoint | None = None, *, share: bool = True) -> None:
        self._http = http
        self._grpc = grpc
        self._models: dict[tuple[str, int | None], ModelMetadata] = {}
        self._configs: dict[tuple[str, int | None], Mapping[str, Any]] = {}
        self._answers: dict[tuple[str, int | None, Sequence[str] | None], _LastAnswer] = {}
        self._regions = Regions(http)
        self._share = share

    def time(self, options: RequestOptions) -> float:
        """Return the seconds that a request has in the server."""
        return options.timeout or self._http.timeout

    def known(self, name: str, version: int | None = None) -> _Known:
        """Return what `metadata` and `config` would return without asking; ``None``: they would ask."""
        return self._models.get((name, version)), self._configs.get((name, version))

    def metadata(self, name: str, version: int | None = None) -> ModelMetadata:
        """Return what is known of a model, and ask for it if that is nothing. Raises as `metadata`."""
        return self._models.get((name, version)) or self.renewed(name, version)

    def renewed(self, name: str, version: int | None = None) -> ModelMetadata:
        """Ask for a model's inputs and outputs again. Raises as `metadata`."""
        self._models.pop((name, version), None)
        self._configs.pop((name, version), None)
        found = self._models[name, version] = metadata(self._http, name, version)
        return found

    def config(self, name: str, version: int | None = None, *, fresh: bool = False) -> Mapping[str, Any]:
        """Return the configuration that the server runs a model with, and ask for it if it is not known.

        Args:
            name: The model.
            version: Its version; ``None``: the highest one.
            fresh: Ask in any case: for what an old configuration would get wrong without an error.

        Raises:
            DeploymentNotFound: The server does not serve it.
            ServerUnavailable: No usable answer.
        """
        found = None if fresh else self._configs.get((name, version))
        if found is None:
            path = f"{_path(name, version)}/config"
            found = self._http.json("GET", path)
            if isinstance(found, Response):
                raise _missing(name, self._http, found.error)
            if not isinstance(found, dict):
                raise ServerUnavailable(
                    f"Triton at {self._http.url} answered {path} in a form that Triton never uses."
                )
            self._configs[name, version] = found
        return found

    def is_still(self, known: _Known, name: str, version: int | None = None) -> bool:
        """Ask again for what was known of a model, and say whether it is still that. Raises as `metadata`."""
        model, config = known
        return self.renewed(name, version) == model and (
            config is None or self.config(name, version) == config
        )

    def infer(
        self, name: str, inputs: Tensors, options: RequestOptions = PLAIN
    ) -> dict[str, np.ndarray[Any, Any]]:
        """Execute one inference request; large tensors go through shared memory where the server shares it.

        Args, returns and raises as `infer`.
        """
        if options.classification is not None and options.outputs is None:
            named = tuple(tensor.name for tensor in self.metadata(name, options.version).outputs)
            options = replace(options, outputs=named)
        shapes = {tensor: (datatype, array.shape) for tensor, (datatype, array) in inputs.items()}
        key = name, options.version, options.outputs
        last = self._answers.get(key)
        expected = last.sizes if last is not None and last.shapes == shapes else {}
        if options.sequence_id is not None:
            expected = {}  # `_shared` may have to send the request again for them
        sent = {t: a.nbytes for t, (_, a) in inputs.items() if a.dtype != np.object_ and a.nbytes >= LARGE}
        slots = _Slots(sent, expected)
        region = self._regions.take(slots.size) if slots.size and self._share else None
        outputs = None if region is None else self._shared(name, inputs, options, region, slots)
        if outputs is None:
            outputs = self._send(name, inputs, options)
        least = LARGE_OUTPUT if options.outputs is None else LARGE
        sizes = {t: 0 if a.dtype == np.object_ or a.nbytes < least else a.nbytes for t, a in outputs.items()}
        if any(sizes.values()):
            self._answers[key] = _LastAnswer(shapes, sizes)
        elif last is not None:
            self._answers.pop(key, None)
        return outputs

    def _shared(
        self, name: str, inputs: Tensors, options: RequestOptions, region: Region, slots: _Slots
    ) -> dict[str, np.ndarray[Any, Any]] | None:
        """Return what a request through shared memory answers; ``None``: the memory did not do, send it without."""
        for tensor, (start, size) in slots.inputs.items():
            array = inputs[tensor][1]
            np.copyto(region.memory[start : start + size].view(array.dtype).reshape(array.shape), array)
        try:
            outputs = self._send(name, inputs, options, (region, slots))
        except InferenceFailed as error:
            if SHARED_MEMORY not in error.message:
                self._regions.put(region)
                raise
            self._answers.pop((name, options.version, options.outputs), None)
            self._regions.refused(region)
            return None
        self._regions.put(region)
        if slots.outputs and options.outputs is None:
            # All outputs had to be named, and a model that was replaced meanwhile may have others.
            there = {tensor.name for tensor in self.renewed(name, options.version).outputs}
            return outputs if there == set(outputs) else None
        return outputs

    def _send(
        self,
        name: str,
        inputs: Tensors,
        options: RequestOptions,
        shared: tuple[Region, _Slots] | None = None,
    ) -> dict[str, np.ndarray[Any, Any]]:
        if self._grpc is None:
            return infer(self._http, name, inputs, options=options, shared=shared)
        from mlflow_triton.serving import grpc_inference  # noqa: PLC0415 - 0.3 s that HTTP does not need

        return grpc_inference.infer(self._grpc, name, inputs, options=options, shared=shared)


def infer(
    http: HttpEndpoint,
    name: str,
    inputs: Tensors,
    *,
    options: RequestOptions = PLAIN,
    shared: tuple[Region, _Slots] | None = None,
) -> dict[str, np.ndarray[Any, Any]]:
    """Execute one inference request.

    Args:
        http: The server.
        name: The model.
        inputs: Tensor name to datatype and array, the array already of that datatype
            (little-endian; ``bytes`` objects for BYTES).
        options: What the request asks for beside that; for a classification, with the outputs' names.
        shared: Memory that the server shares, and which tensors are where in it.

    Returns:
        Every output by name; BYTES as object arrays of ``bytes``.

    Raises:
        DeploymentNotFound: The server does not serve the model.
        InferenceFailed: The model or the server answered with an error.
        ServerUnavailable: No usable answer.
    """
    region, slots = shared or (None, _Slots({}, {}))
    header, payloads = _written(inputs, options, region, slots)
    body: list[memoryview | bytes] = [header, *payloads]
    headers = f"{HEADER_LENGTH}: {len(header)}\r\ncontent-type: application/octet-stream\r\n"
    instead = options.headers
    if options.compression is not None:
        body = [compressed(body, options.compression)]
        headers += f"content-encoding: {options.compression}\r\n"
        instead = {**instead, "accept-encoding": options.compression}

    def read(answer: Answer) -> dict[str, np.ndarray[Any, Any]] | Response:
        return _outputs(answer, region, slots) if answer.status == 200 else response(answer)

    try:
        found = http.exchange(
            "POST",
            f"{_path(name, options.version)}/infer",
            read,
            body=body,
            headers=headers,
            instead=instead,
            encoding=options.compression,
            timeout=options.patience,
            # Two of them would write to the same memory.
            repeatable=shared is None and options.sequence_id is None,
        )
    except InvalidInput as error:
        raise InferenceFailed(
            f"{name!r} answered with a tensor that cannot be read. {error.message}"
        ) from None
    except (KeyError, TypeError, ValueError, OverflowError, RecursionError) as error:
        raise ServerUnavailable(
            f"Triton at {http.url} sent a broken answer for {name!r} ({error}). Nothing was changed; "
            "look at the server's log."
        ) from None
    if not isinstance(found, Response):
        return found
    # A region that the server does not know is a 404 as well.
    if found.status == 404 and not (shared and SHARED_MEMORY in found.error):
        raise _missing(name, http, found.error)
    raise refused(name, f"Triton at {http.url}", found.error)


def _written(
    inputs: Tensors, options: RequestOptions, region: Region | None, slots: _Slots
) -> tuple[bytes, list[memoryview | bytes]]:
    """Return a request's JSON, and the tensors that follow it."""

    def place(slot: tuple[int, int]) -> dict[str, object]:
        start, size = slot
        return {
            "shared_memory_region": region.name if region else "",
            "shared_memory_offset": start,
            "shared_memory_byte_size": size,
        }

    payloads: list[memoryview | bytes] = []
    described = []
    for tensor, (datatype, array) in inputs.items():
        if tensor in slots.inputs:
            where = place(slots.inputs[tensor])
        else:
            payloads.append(to_wire(array))
            where = {"binary_data_size": len(payloads[-1])}
        described.append({"name": tensor, "shape": array.shape, "datatype": datatype, "parameters": where})
    document: dict[str, object] = {
        "inputs": described,
        "parameters": {**options.wire_parameters(), "binary_data_output": True},
    }
    if options.request_id is not None:
        document["id"] = options.request_id
    if named := options.outputs or tuple(slots.outputs):
        plain: dict[str, object] = {"binary_data": True}
        if options.classification is not None:
            plain["classification"] = options.classification
        document["outputs"] = [
            {"name": tensor, "parameters": place(slot) if (slot := slots.output(tensor))[1] else plain}
            for tensor in named
        ]
    return json.dumps(document).encode(), payloads


def _outputs(answer: Answer, region: Region | None, slots: _Slots) -> dict[str, np.ndarray[Any, Any]]:
    length = int(answer.headers.get(HEADER_LENGTH, answer.length))
    if not 0 <= length <= answer.length:
        raise ValueError("its header has a length beyond its body")
    document = json.loads(answer.read_exactly(length))
    result: dict[str, np.ndarray[Any, Any]] = {}
    total = length
    wanted = []
    for output in document["outputs"]:
        name = str(output["name"])
        # Triton says nothing of the place of a tensor that it has put into shared memory.
        shared = bool(slots.output(name)[1]) and not {"parameters", "data"} & set(output)
        size = 0 if shared else int(output["parameters"]["binary_data_size"])
        total += size
        wanted.append((name, output["datatype"], tuple(output["shape"]), size, shared))
    if total != answer.length:
        raise ValueError("its tensors are not as long as its body")
    for name, datatype, shape, size, shared in wanted:
        if shared and region is not None:
            array = _empty(datatype, shape, None)
            start, room = slots.outputs[name]
            if array.nbytes > room:
                raise ValueError("a tensor is larger than the memory that it is in")
            np.copyto(array, region.memory[start : start + array.nbytes].view(array.dtype).reshape(shape))
            result[name] = array
        else:
            result[name] = _output(answer, datatype, shape, size)
    return result


def _output(answer: Answer, datatype: str, shape: tuple[int, ...], size: int) -> np.ndarray[Any, Any]:
    """Read one tensor into its own memory, or BYTES out of a buffer."""
    if size < 0:
        raise ValueError("a tensor has a negative size")
    if numpy_dtype(datatype) == np.object_:
        return from_wire(memoryview(answer.read_exactly(size)), datatype, shape)
    array = _empty(datatype, shape, size)
    if size:
        answer.read_into(array.reshape(-1).view(np.uint8).data)
    return array


def _empty(datatype: str, shape: tuple[int, ...], size: int | None) -> np.ndarray[Any, Any]:
    """Make an array to read a tensor into, if it is of `size` bytes."""
    dtype = numpy_dtype(datatype)
    if any(type(length) is not int or length < 0 for length in shape):
        raise ValueError(f"a tensor has the shape {list(shape)}")
    if size is not None and math.prod(shape) * dtype.itemsize != size:
        raise ValueError(f"a tensor of the datatype {datatype} and the shape {list(shape)} has {size} bytes")
    return empty(shape, dtype)
