"""Predicting: describe the model, encode the inputs, infer, decode the outputs."""

from __future__ import annotations

import json
import time
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

import numpy as np

from mlflow_triton.errors import DeploymentNotFound, InferenceFailed, InvalidInput
from mlflow_triton.models.contents import INPUT_NAMES
from mlflow_triton.serving.inference import Inference, metadata
from mlflow_triton.serving.request import PLAIN
from mlflow_triton.tensors.arrays import to_array
from mlflow_triton.tensors.casting import cast, fit_shape
from mlflow_triton.tensors.declared import listed
from mlflow_triton.tensors.decode import TritonPredictions, decode
from mlflow_triton.tensors.forms import name_values

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from mlflow_triton.serving.control import Control
    from mlflow_triton.serving.http import HttpEndpoint
    from mlflow_triton.serving.inference import ModelMetadata, TensorMetadata
    from mlflow_triton.serving.request import RequestOptions

    Tensors = dict[str, tuple[str, np.ndarray[Any, Any]]]

__all__ = [
    "answer",
    "batch_limit",
    "encode",
    "example_input",
    "predict",
    "prepare",
    "require_outputs",
    "slices",
    "views",
]

#: Of a long table, at most.
PARTS_AT_ONCE = 8
#: Datatypes of outputs that Triton does not classify.
UNRANKED = ("BOOL", "BYTES", "FP16", "BF16")


def predict(  # noqa: PLR0913 - what a request is made of
    server: Inference,
    control: Control,
    name: str,
    inputs: Any,
    *,
    lossy: bool = False,
    options: RequestOptions = PLAIN,
) -> TritonPredictions:
    """Send `inputs` to a model and return its outputs.

    A table of more rows than the model's ``max_batch_size`` is sent in parts: the first one, which tells how long they
    take, then several at once.

    Args:
        server: The server, and what is known of its models.
        control: Of the same server; asked which versions there are where one is missing.
        name: The deployment.
        inputs: See `mlflow_triton.tensors.forms.name_values`.
        lossy: Casts may drop digits; see `mlflow_triton.tensors.casting`.
        options: What the request asks for beside its tensors.

    Raises:
        InvalidInput: The inputs do not fit the model; nothing was sent.
        DeploymentNotFound: The server does not serve the model.
        InferenceFailed: The model failed.
        ServerUnavailable: No usable answer.
    """
    version = options.version
    try:
        known = server.known(name, version)
        try:
            return _predict(server, name, inputs, lossy=lossy, options=options)
        except (InvalidInput, InferenceFailed):
            if known[0] is None or server.is_still(known, name, version):
                raise
        # It was the fault of what was known: the model has been replaced.
        return _predict(server, name, inputs, lossy=lossy, options=options)
    except DeploymentNotFound as error:
        if version is None:
            raise
        raise _no_version(control, name, version, error) from None


def _no_version(control: Control, name: str, version: int, error: DeploymentNotFound) -> DeploymentNotFound:
    """Name the versions that the server serves."""
    served = sorted(
        int(entry.version)
        for entry in control.index()
        if entry.name == name and entry.state == "READY" and entry.version is not None
    )
    if not served:
        return error
    return DeploymentNotFound(
        f"Triton serves no version {version} of {name!r}, but {', '.join(map(str, served))}. Ask for one of those, or "
        "for none, which is the highest."
    )


def _predict(
    server: Inference, name: str, inputs: Any, *, lossy: bool, options: RequestOptions
) -> TritonPredictions:
    model, tensors, rows = encode(server, name, inputs, lossy=lossy, options=options)
    batch = _batch(tensors)
    config = server.config(name, options.version) if batch > 1 else {}
    limit = int(config.get("max_batch_size", 0))
    if not 0 < limit < batch:
        return answer(model, server.infer(name, tensors, options))
    if not rows or "sequence_batching" in config:
        remedy = (
            "A request of a sequence is not sent in parts: send fewer at a time."
            if "sequence_batching" in config
            else "Pass a DataFrame or a list of records, which is sent in parts, or send fewer at a time, with predict_many "
            "several at once."
        )
        raise InvalidInput(
            f"Nothing was sent to {name!r}: the batch has {batch} items, and it takes {limit} at most (max_batch_size). "
            + remedy
        )
    return answer(model, _in_parts(server, name, tensors, batch, limit, options))


def answer(model: ModelMetadata, outputs: dict[str, np.ndarray[Any, Any]]) -> TritonPredictions:
    """Make a response of a model's outputs, in the model's order: Triton answers in one of its own."""
    order = [tensor.name for tensor in model.outputs if tensor.name in outputs]
    return decode({tensor: outputs.pop(tensor) for tensor in order} | outputs)


def prepare(http: HttpEndpoint, name: str, inputs: Any) -> tuple[ModelMetadata, Tensors]:
    """Describe a model and encode inputs for it; see `predict`.

    Returns:
        What the model declares, and by tensor the datatype and an array of it.
    """
    model, tensors, _ = encode(Inference(http), name, inputs)
    return model, tensors


def require_outputs(wanted: Sequence[str], model: ModelMetadata) -> None:
    """Refuse names that are none of the model's outputs.

    Raises:
        InvalidInput: There is one.
    """
    known = [tensor.name for tensor in model.outputs]
    if unknown := [name for name in wanted if name not in known]:
        raise InvalidInput(
            f"Nothing was sent to {model.name!r}. It has no output {listed(unknown)}; it has {listed(known)}."
        )


def _require_classes(model: ModelMetadata, options: RequestOptions) -> None:
    """Refuse what Triton cannot rank: at BYTES, it crashes."""
    if others := [
        f"{output.name!r} ({output.datatype})"
        for output in model.outputs
        if output.datatype in UNRANKED and (options.outputs is None or output.name in options.outputs)
    ]:
        raise InvalidInput(
            f"Nothing was sent to {model.name!r}: Triton makes no classification of {', '.join(others)}, but of integers, FP32 "
            "and FP64. Name others with outputs=[…]."
        )


def encode(
    server: Inference,
    name: str,
    inputs: Any,
    *,
    lossy: bool = False,
    options: RequestOptions = PLAIN,
) -> tuple[ModelMetadata, Tensors, bool]:
    """Make tensors of inputs; args and raises as `predict`.

    Returns:
        What the model declares; by tensor the datatype and an array of it; and whether the inputs are a table.
    """
    model = server.metadata(name, options.version)
    declared = {tensor.name: tensor for tensor in model.inputs}
    try:
        named = name_values(
            inputs, declared, lambda: _signature(server.config(name, options.version, fresh=True))
        )
        if missing := [tensor for tensor in declared if tensor not in named.by_input]:
            _require_optional(server.config(name, options.version), missing, declared)
        tensors = {}
        for tensor, value in named.by_input.items():
            array = fit_shape(to_array(value, tensor), declared[tensor].shape, tensor)
            datatype = declared[tensor].datatype
            tensors[tensor] = (datatype, cast(array, datatype, tensor, lossy=lossy))
        sizes = {array.shape[:1] for _, array in tensors.values()}
        if len(sizes) > 1 or (0,) in sizes:
            _require_batch(server.config(name, options.version), tensors)
    except InvalidInput as error:
        raise InvalidInput(f"Nothing was sent to {name!r}. {error.message}") from None
    if options.outputs is not None:
        require_outputs(options.outputs, model)
    if options.classification is not None:
        _require_classes(model, options)
    return model, tensors, named.rows


def _batch(tensors: Tensors) -> int:
    """Return the size that all tensors have as their first one; 1 if there is none."""
    sizes = {array.shape[:1] for _, array in tensors.values()}
    return sizes.pop()[0] if len(sizes) == 1 and () not in sizes else 1


def slices(rows: int, limit: int) -> Iterator[tuple[int, int]]:
    """Cut a table of so many rows; yield where each slice, of `limit` rows at most, starts and stops."""
    for start in range(0, rows, limit):
        yield start, min(start + limit, rows)


def views(tensors: Mapping[str, tuple[str, np.ndarray[Any, Any]]], start: int, stop: int) -> Tensors:
    """Return a slice of each tensor, without copying it."""
    return {tensor: (datatype, array[start:stop]) for tensor, (datatype, array) in tensors.items()}


def batch_limit(config: Mapping[str, Any]) -> int:
    """Return a model's ``max_batch_size``; 0: the model has no batches, or takes sequences, which are not split."""
    return 0 if "sequence_batching" in config else int(config.get("max_batch_size", 0))


def _in_parts(  # noqa: PLR0913, PLR0917 - what a request is made of
    server: Inference, name: str, tensors: Tensors, batch: int, limit: int, options: RequestOptions
) -> dict[str, np.ndarray[Any, Any]]:
    def infer(rows: tuple[int, int]) -> dict[str, np.ndarray[Any, Any]]:
        start, stop = rows
        part = server.infer(name, views(tensors, start, stop), options)
        for tensor, array in part.items():
            if array.shape[:1] != (stop - start,):
                raise InferenceFailed(
                    f"{name!r} answered rows {start} to {stop - 1} with {tensor!r} of the shape {list(array.shape)}, "
                    "which is not one item for each row: the answers cannot be joined. Send at most "
                    f"{limit} rows at a time."
                )
        return part

    first, *others = slices(batch, limit)
    began = time.monotonic()
    parts = [infer(first)]
    # A model that takes them in turn is to have answered the last one in half of the time that a request has.
    fitting = server.time(options) / 2 / max(time.monotonic() - began, 1e-6)
    with ThreadPoolExecutor(max(1, min(PARTS_AT_ONCE, len(others), int(fitting)))) as pool:
        parts += pool.map(infer, others)
    return {tensor: np.concatenate([part[tensor] for part in parts]) for tensor in parts[0]}


def _signature(config: Mapping[str, Any]) -> list[str]:
    """Return the input names of the model's MLflow signature, as the deployment has left them in its configuration."""
    try:
        names = json.loads(config["parameters"][INPUT_NAMES]["string_value"])
    except (KeyError, TypeError, ValueError):
        return []
    return names if isinstance(names, list) else []


def _require_optional(
    config: Mapping[str, Any], missing: list[str], declared: Mapping[str, TensorMetadata]
) -> None:
    optional = {entry["name"] for entry in config.get("input", []) if entry.get("optional")}
    if required := [declared[tensor] for tensor in missing if tensor not in optional]:
        wanted = [f"{tensor.name!r} ({tensor.datatype}, {list(tensor.shape)})" for tensor in required]
        raise InvalidInput(f"Missing: {', '.join(wanted)}.")


def _require_batch(config: Mapping[str, Any], tensors: Tensors) -> None:
    """Refuse an empty batch, too: Triton never answers one, or crashes."""
    if not config.get("max_batch_size", 0):
        return
    shapes = ", ".join(f"{tensor!r} {list(array.shape)}" for tensor, (_, array) in tensors.items())
    if len({array.shape[:1] for _, array in tensors.values()}) > 1:
        raise InvalidInput(
            f"The inputs have different numbers of items: {shapes}. The first size is that of the batch, "
            "which all of them have in common."
        )
    raise InvalidInput(
        f"The batch has no items: {shapes}. The first size is that of the batch, and Triton takes no empty one."
    )


def example_input(http: HttpEndpoint, name: str) -> dict[str, dict[str, Any]]:
    """Make an input that a model accepts: zeros (or empty strings), one for each dimension of any size.

    Returns:
        ``{"inputs": {NAME: nested lists}}``, as the CLI reads it from a file.
    """
    zero: dict[str, Any] = {"BOOL": False, "BYTES": ""}
    inputs = {}
    for tensor in metadata(http, name).inputs:
        shape = [1 if size == -1 else size for size in tensor.shape]
        inputs[tensor.name] = np.full(shape, zero.get(tensor.datatype, 0), object).tolist()
    return {"inputs": inputs}
