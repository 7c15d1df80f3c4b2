"""The smoke test: one request to a model that has just been loaded, before its deployment stands."""

from __future__ import annotations

import logging
import time
import uuid
from contextlib import closing
from typing import TYPE_CHECKING, Any

from mlflow_triton.errors import SmokeTestFailed, TritonPluginError
from mlflow_triton.predict import example_input, prepare
from mlflow_triton.serving.grpc_endpoint import GrpcEndpoint
from mlflow_triton.serving.grpc_inference import request
from mlflow_triton.serving.inference import infer
from mlflow_triton.serving.request import RequestOptions
from mlflow_triton.serving.streaming import FINAL, stream

if TYPE_CHECKING:
    from collections.abc import Mapping

    import numpy as np

    from mlflow_triton.models.example import Example
    from mlflow_triton.serving.control import Control

__all__ = ["smoke_test"]

log = logging.getLogger(__name__)

#: Characters of each tensor's values that a message shows.
LONGEST = 60


def smoke_test(control: Control, name: str, *, version: int, example: Example | None) -> None:
    """Let a model answer one request; it has the setting `request_timeout` for it.

    Args:
        control: The server, which serves the model.
        name: The model.
        version: The version that is to answer. Naming it, and not the default, keeps an older one from
            answering that is being unloaded meanwhile.
        example: What to send, in a form that predict takes; ``None``: zeros, or empty strings, with one
            for each dimension of any size.

    Raises:
        SmokeTestFailed: The input does not fit the model, or it was not answered; says what was sent.
    """
    what = "MLflow's input_example" if example is not None else "an input of zeros, made from its metadata"
    sent = "Nothing was sent."
    started = time.monotonic()
    try:
        value = example.value if example is not None else example_input(control.http, name)
        _, tensors = prepare(control.http, name, value)
        sent = f"Sent: {_shown(tensors)}."
        config = control.config(name) or {}
        options = _options(config, version)
        if _decoupled(config):
            outputs = _streamed(control, name, tensors, options)
        else:
            outputs = infer(control.http, name, tensors, options=options)
    except TritonPluginError as error:
        raise SmokeTestFailed(
            f"The smoke test of {name!r} with {what} failed: {error.message} {sent} Correct the model or log it with "
            "an input_example that it takes; without -C smoke_test=true, it is deployed untested."
        ) from None
    log.info(
        "%r passed its smoke test with %s in %.3f s. %s It answered: %s.",
        name,
        what,
        time.monotonic() - started,
        sent,
        ", ".join(f"{tensor} {list(array.shape)}" for tensor, array in outputs.items()),
    )


def _decoupled(config: Mapping[str, Any]) -> bool:
    """Say whether a model, by its configuration, answers a request as often as it likes, over a gRPC stream only."""
    policy = config.get("model_transaction_policy")
    return isinstance(policy, dict) and policy.get("decoupled") is True


def _streamed(
    control: Control,
    name: str,
    tensors: Mapping[str, tuple[str, np.ndarray[Any, Any]]],
    options: RequestOptions,
) -> Mapping[str, np.ndarray[Any, Any]]:
    """Return the first answer of a decoupled model, which may have none, once the last has come or the time is over."""
    sent = request(name, tensors, options=options, parameters={FINAL: True})
    deadline = time.monotonic() + control.settings.request_timeout.value
    first: Mapping[str, np.ndarray[Any, Any]] = {}
    with closing(stream(GrpcEndpoint(control.settings), name, [sent], options)) as answers:
        for answer in answers:
            first = first or answer
            if time.monotonic() > deadline:
                break  # some have no end
    return first


def _options(config: Mapping[str, Any], version: int) -> RequestOptions:
    """Make the request a sequence of its own, for a model that takes nothing else."""
    if "sequence_batching" not in config:
        return RequestOptions(version=version)
    return RequestOptions(
        version=version, sequence_id=uuid.uuid4().int >> 66, sequence_start=True, sequence_end=True
    )


def _shown(tensors: Mapping[str, tuple[str, np.ndarray[Any, Any]]]) -> str:
    texts = []
    for tensor, (datatype, array) in tensors.items():
        values = str(array.reshape(-1)[:LONGEST].tolist())
        values = values if len(values) <= LONGEST else f"{values[:LONGEST]}…"
        texts.append(f"{tensor} {datatype} {list(array.shape)} {values}")
    return ", ".join(texts)
