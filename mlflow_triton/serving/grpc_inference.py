"""Inference over gRPC: the messages of the Open Inference Protocol, whose tensors pass protobuf by.

Protobuf copies a tensor at every step. A message is the concatenation of its fields, so the tensors
can be left out of what protobuf writes, and set behind it; they are found in the answer alike.
"""

from __future__ import annotations

import math
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np
from google.protobuf.message import DecodeError
from tritonclient.grpc import service_pb2 as pb

from mlflow_triton.errors import InferenceFailed, InvalidInput, ServerUnavailable
from mlflow_triton.serving.request import PLAIN
from mlflow_triton.tensors.datatypes import from_wire, numpy_dtype, to_wire

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from mlflow_triton.serving.grpc_endpoint import GrpcEndpoint
    from mlflow_triton.serving.inference import Tensors, _Slots
    from mlflow_triton.serving.request import RequestOptions
    from mlflow_triton.serving.shared_memory import Region

    Shared: TypeAlias = tuple[Region, _Slots]

__all__ = ["fields", "infer", "outputs", "reading", "request"]

Array: TypeAlias = np.ndarray[Any, Any]

#: Bytes that a message may have, for protobuf and for gRPC.
LARGEST = (1 << 31) - 1
RAW_INPUT = pb.ModelInferRequest.DESCRIPTOR.fields_by_name["raw_input_contents"].number
RAW_OUTPUT = pb.ModelInferResponse.DESCRIPTOR.fields_by_name["raw_output_contents"].number


def infer(
    grpc: GrpcEndpoint,
    name: str,
    inputs: Tensors,
    *,
    options: RequestOptions = PLAIN,
    shared: Shared | None = None,
) -> dict[str, Array]:
    """Execute one inference request; args, returns and raises as `mlflow_triton.serving.inference.infer`.

    Raises:
        InvalidInput: The request is larger than gRPC's limit of 2 GiB; nothing was sent.
    """
    answer = grpc.unary(
        "ModelInfer",
        request(name, inputs, options=options, shared=shared),
        name,
        options,
        # Two of them would write to the same memory.
        repeatable=shared is None and options.sequence_id is None,
    )
    return outputs(grpc, name, memoryview(answer), shared)[0]


def request(
    name: str,
    inputs: Tensors,
    *,
    options: RequestOptions = PLAIN,
    parameters: Mapping[str, object] | None = None,
    shared: Shared | None = None,
) -> bytes:
    """Serialize a ``ModelInferRequest``.

    Args:
        name: As `infer`.
        inputs: Same.
        options: Same; what concerns the call and not the message is passed over.
        parameters: In addition to the options'.
        shared: As `infer`.

    Raises:
        InvalidInput: It is larger than gRPC's limit of 2 GiB.
    """
    message = pb.ModelInferRequest(model_name=name, id=options.request_id or "")
    if options.version is not None:
        message.model_version = str(options.version)
    _set(message.parameters, {**options.wire_parameters(), **(parameters or {})})
    payloads = []
    for tensor, (datatype, array) in inputs.items():
        entry = message.inputs.add(name=tensor, datatype=datatype, shape=array.shape)
        if shared is not None and tensor in shared[1].inputs:
            _set(entry.parameters, _place(shared[0], shared[1].inputs[tensor]))
        else:
            payloads.append(to_wire(array))
    _want(message, options, shared)
    pieces = [message.SerializeToString()]
    for payload in payloads:
        pieces += [_varint(RAW_INPUT << 3 | 2), _varint(len(payload)), payload]
    if (size := sum(map(len, pieces))) > LARGEST:
        raise InvalidInput(
            f"The request to {name!r} has {size} bytes, and gRPC carries {LARGEST} at most. Nothing was sent. Send fewer "
            "items at a time; with a server on this machine that shares its memory (/dev/shm), large tensors need no message."
        )
    return b"".join(pieces)


def _want(message: Any, options: RequestOptions, shared: Shared | None) -> None:
    """Name the outputs, if they are not simply all of them."""
    for tensor in options.outputs or (() if shared is None else shared[1].outputs):
        entry = message.outputs.add(name=tensor)
        if options.classification is not None:
            _set(entry.parameters, {"classification": options.classification})
        if shared is not None and (slot := shared[1].output(tensor))[1]:
            _set(entry.parameters, _place(shared[0], slot))


def outputs(
    grpc: GrpcEndpoint, name: str, answer: memoryview, shared: Shared | None = None
) -> tuple[dict[str, Array], Mapping[str, Any]]:
    """Read a ``ModelInferResponse``.

    Returns:
        Every output by name, each in memory of its own, BYTES as object arrays of ``bytes``; and the answer's
        parameters.

    Raises: as `reading`.
    """
    head, raw = [], []
    result = {}
    with reading(grpc, name):
        for number, whole, content in fields(answer):
            if number == RAW_OUTPUT:
                raw.append(content)
            else:
                head.append(whole)
        message = pb.ModelInferResponse.FromString(b"".join(head))
        for output, content in zip(message.outputs, raw, strict=True):
            shape = tuple(output.shape)
            if any(length < 0 for length in shape):
                raise ValueError(f"a tensor has the shape {list(shape)}")
            data = content
            # An output that Triton has put into shared memory is empty here.
            if shared is not None and shared[1].output(output.name)[1] and not content:
                data = _in_place(
                    shared, output.name, math.prod(shape) * numpy_dtype(output.datatype).itemsize
                )
            result[output.name] = from_wire(data, output.datatype, shape)
    return result, {key: _value(value) for key, value in message.parameters.items()}


@contextmanager
def reading(grpc: GrpcEndpoint, name: str) -> Iterator[None]:
    """Say what it means if an answer cannot be read.

    Raises:
        InferenceFailed: A tensor's datatype is none that this package reads.
        ServerUnavailable: The answer is broken.
    """
    try:
        yield
    except InvalidInput as error:
        raise InferenceFailed(
            f"{name!r} answered with a tensor that cannot be read. {error.message}"
        ) from None
    except (ValueError, OverflowError, DecodeError) as error:
        raise ServerUnavailable(
            f"Triton's gRPC endpoint {grpc.url} sent a broken answer for {name!r} ({error}). Nothing was changed; "
            "look at the server's log."
        ) from None


def fields(message: memoryview) -> Iterator[tuple[int, memoryview, memoryview]]:
    """Find the fields of a message in protobuf's wire format.

    Returns:
        For each one its number, all of it, and its content (of one without a length: all of it).

    Raises:
        ValueError: The message is broken.
    """
    position = 0
    while position < len(message):
        start = position
        tag, position = _read_varint(message, position)
        begin = start
        if tag & 7 == 0:
            _, position = _read_varint(message, position)
        elif tag & 7 == 2:
            length, begin = _read_varint(message, position)
            position = begin + length
        elif tag & 7 in (1, 5):
            position += 8 if tag & 7 == 1 else 4
        else:
            raise ValueError(f"a field has the wire type {tag & 7}")
        if position > len(message):
            raise ValueError("it ends in the middle of a field")
        yield tag >> 3, message[start:position], message[begin:position]


def _read_varint(data: memoryview, position: int) -> tuple[int, int]:
    value = 0
    for place, byte in enumerate(data[position : position + 10]):
        value |= (byte & 127) << 7 * place
        if byte < 128:
            return value, position + place + 1
    raise ValueError("it ends in the middle of a number")


def _varint(value: int) -> bytes:
    encoded = bytearray()
    while value > 127:
        encoded.append(value & 127 | 128)
        value >>= 7
    encoded.append(value)
    return bytes(encoded)


def _set(parameters: Any, values: Mapping[str, object]) -> None:
    """Fill a message's parameters; an integer beyond 63 bits is unsigned."""
    for key, value in values.items():
        if isinstance(value, bool):
            parameters[key].bool_param = value
        elif isinstance(value, int):
            if value >> 63 > 0:
                parameters[key].uint64_param = value
            else:
                parameters[key].int64_param = value
        elif isinstance(value, float):
            parameters[key].double_param = value
        else:
            parameters[key].string_param = str(value)


def _value(parameter: Any) -> object:
    kind = parameter.WhichOneof("parameter_choice")
    return None if kind is None else getattr(parameter, kind)


def _place(region: Region, slot: tuple[int, int]) -> dict[str, object]:
    start, size = slot
    return {
        "shared_memory_region": region.name,
        "shared_memory_offset": start,
        "shared_memory_byte_size": size,
    }


def _in_place(shared: Shared, name: str, size: int) -> memoryview:
    region, slots = shared
    start, room = slots.outputs[name]
    if size > room:
        raise ValueError("a tensor is larger than the memory that it is in")
    return region.memory[start : start + size].data
