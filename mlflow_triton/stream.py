"""Predicting over a stream: the answers of a decoupled model as they come, and the requests of a sequence."""

from __future__ import annotations

import uuid
from collections.abc import Iterator
from contextlib import closing
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from mlflow_triton.errors import InferenceFailed, InvalidInput
from mlflow_triton.predict import answer, encode
from mlflow_triton.serving.document import own_options
from mlflow_triton.serving.grpc_inference import request
from mlflow_triton.serving.request import PLAIN
from mlflow_triton.serving.streaming import FINAL, stream

if TYPE_CHECKING:
    from collections.abc import Generator, Iterable

    from mlflow_triton.serving.control import Control
    from mlflow_triton.serving.grpc_endpoint import GrpcEndpoint
    from mlflow_triton.serving.inference import Inference
    from mlflow_triton.serving.request import RequestOptions
    from mlflow_triton.tensors.decode import TritonPredictions

__all__ = ["predict_stream"]


def predict_stream(  # noqa: PLR0913 - what a request is made of
    server: Inference,
    control: Control,
    grpc: GrpcEndpoint,
    name: str,
    inputs: Any,
    *,
    lossy: bool = False,
    options: RequestOptions = PLAIN,
) -> Generator[TritonPredictions, None, None]:
    """Send one request, or those of an iterator one after the other, and yield every answer as it comes.

    Closing the generator cancels what is under way.

    Args:
        server: See `mlflow_triton.predict.predict`.
        control: Same; asked whether the model takes sequences.
        grpc: Carries the stream.
        name: The deployment.
        inputs: What `predict` takes; or an iterator of such, each of which is drawn once the one before the last
            has been answered. For a model that takes sequences, they are one.
        lossy: See `predict`.
        options: Same, for each request; the start of a sequence is that of the first one, its end that of the last.

    Raises:
        InvalidInput: An input does not fit the model; it was not sent. The answers to those before have been yielded.
        DeploymentNotFound: The server does not serve the model.
        InferenceFailed: The model failed.
        ServerUnavailable: No usable answer.
    """
    model = server.metadata(name, options.version)
    if options.sequence_id is None and "sequence_batching" in (control.config(name) or {}):
        options = replace(options, sequence_id=uuid.uuid4().int >> 66, sequence_start=True, sequence_end=True)

    def requests() -> Iterator[bytes]:
        nonlocal model
        for item, first, last in _marked(inputs if isinstance(inputs, Iterator) else [inputs]):
            plain, own = own_options(item, options)
            try:
                model, tensors, _ = encode(server, name, plain, lossy=lossy, options=own)
            except InvalidInput:
                if server.renewed(name, options.version) == model:
                    raise
                model, tensors, _ = encode(server, name, plain, lossy=lossy, options=own)
            start, end = own.sequence_start and first, own.sequence_end and last
            own = replace(own, sequence_start=start, sequence_end=end)
            yield request(name, tensors, options=own, parameters={FINAL: True})

    try:
        with closing(stream(grpc, name, requests(), options)) as answers:
            for outputs in answers:
                yield answer(model, outputs)
    except InferenceFailed:
        server.renewed(name, options.version)  # it may have gone, which the error of a stream does not tell
        raise


def _marked(items: Iterable[Any]) -> Iterator[tuple[Any, bool, bool]]:
    """Yield each item and whether it is the first one, and the last one, for which the next one is drawn."""
    drawn = iter(items)
    first, over = True, object()
    item = next(drawn, over)
    while item is not over:
        following = next(drawn, over)
        yield item, first, following is over
        item, first = following, False
