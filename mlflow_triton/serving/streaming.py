"""Inference over a gRPC stream: any number of answers to a request, as a decoupled model gives them."""

from __future__ import annotations

from queue import SimpleQueue
from typing import TYPE_CHECKING, Any

from tritonclient.grpc import service_pb2 as pb

from mlflow_triton.errors import ServerUnavailable
from mlflow_triton.serving.grpc_inference import fields, outputs, reading
from mlflow_triton.serving.http import one_line
from mlflow_triton.serving.refusal import refused
from mlflow_triton.serving.request import PLAIN

if TYPE_CHECKING:
    from collections.abc import Generator, Iterable

    import numpy as np

    from mlflow_triton.serving.grpc_endpoint import GrpcEndpoint
    from mlflow_triton.serving.request import RequestOptions

__all__ = ["FINAL", "stream"]

METHOD = "ModelStreamInfer"
ERROR = pb.ModelStreamInferResponse.DESCRIPTOR.fields_by_name["error_message"].number
RESPONSE = pb.ModelStreamInferResponse.DESCRIPTOR.fields_by_name["infer_response"].number
#: The parameter that asks Triton to say which answer is the last one, even if that is an empty one.
FINAL = "triton_enable_empty_final_response"


def stream(
    endpoint: GrpcEndpoint,
    name: str,
    requests: Iterable[bytes],
    options: RequestOptions = PLAIN,
) -> Generator[dict[str, np.ndarray[Any, Any]], None, None]:
    """Send requests over one stream, each once all answers to the one before are there, and yield the answers.

    Closing the iterator cancels what is under way. Nothing is sent twice.

    Args:
        endpoint: The server.
        name: The model.
        requests: Serialized, with the parameter `FINAL`; each is drawn when it is its turn.
        options: See `GrpcEndpoint.stream`.

    Yields:
        The outputs of each answer by name.

    Raises:
        DeploymentNotFound: The server does not serve the model.
        InferenceFailed: The model or the server answered with an error. The answers before it have been yielded.
        ServerTimeout: No answer in time.
        ServerUnavailable: No usable answer.
    """
    queue: SimpleQueue[bytes | None] = SimpleQueue()
    with endpoint.stream(METHOD, iter(queue.get, None), name, options) as answer:
        try:
            for request in requests:
                queue.put(request)
                last = False
                while not last:
                    found, last = _read(endpoint, name, answer())
                    if found or not last:
                        yield found
        finally:
            queue.put(None)  # ends gRPC's thread that waits for requests


def _read(
    endpoint: GrpcEndpoint, name: str, answer: bytes | None
) -> tuple[dict[str, np.ndarray[Any, Any]], bool]:
    """Read a ``ModelStreamInferResponse``: outputs by name, and whether the request has no further answer."""
    if answer is None:
        raise ServerUnavailable(
            f"Triton's gRPC endpoint {endpoint.url} ended the stream of {name!r} before its last answer. "
            "Look at the server's log."
        )
    content = memoryview(b"")
    with reading(endpoint, name):
        for number, _, value in fields(memoryview(answer)):
            if number == ERROR:
                raise refused(name, f"Triton's gRPC endpoint {endpoint.url}", one_line(bytes(value).decode()))
            if number == RESPONSE:
                content = value
    found, parameters = outputs(endpoint, name, content)
    return found, bool(parameters.get("triton_final_response", True))
