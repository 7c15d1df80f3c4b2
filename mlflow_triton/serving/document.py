"""A request of the Open Inference Protocol, as a caller may write it himself: what it asks for beside its inputs."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from mlflow_triton.errors import InvalidParameter
from mlflow_triton.serving.request import PLAIN, RequestOptions
from mlflow_triton.tensors.declared import shown
from mlflow_triton.tensors.forms import REQUEST_TENSOR

__all__ = ["is_request", "own_options"]

#: Parameters of a request that this plugin sets itself.
FORMAT = ("binary_data", "binary_data_output")


def is_request(document: Any) -> bool:
    """Say whether something is a request of the Open Inference Protocol, tensors and all."""
    return (
        isinstance(document, Mapping)
        and isinstance(tensors := document.get("inputs"), (list, tuple))
        and len(tensors) > 0
        and all(isinstance(tensor, Mapping) and set(tensor) >= REQUEST_TENSOR for tensor in tensors)
    )


def own_options(inputs: Any, options: RequestOptions) -> tuple[Any, RequestOptions]:
    """Take what a request of the Open Inference Protocol asks for beside its inputs.

    Args:
        inputs: Anything that `predict` takes. Such a request may be the only item of a list, the one form in which
            ``mlflow deployments predict`` reads any such request.
        options: What was asked for in other ways, which goes before it.

    Returns:
        The inputs alone, and all that is asked for.

    Raises:
        InvalidParameter: It asks for something that is not possible.
    """
    if isinstance(inputs, list) and len(inputs) == 1 and is_request(inputs[0]):
        inputs = inputs[0]
    if not isinstance(inputs, Mapping) or not is_request(inputs):
        return inputs, options
    asked = {**_parameters(inputs.get("parameters")), **_outputs(inputs.get("outputs"))}
    if inputs.get("id") is not None:
        asked["request_id"] = inputs["id"]
    if asked:
        asked = {
            field: getattr(options, field) if getattr(options, field) != getattr(PLAIN, field) else value
            for field, value in asked.items()
        }
        options = replace(options, **asked)
    return {
        key: value for key, value in inputs.items() if key not in ("id", "outputs", "parameters")
    }, options


def _parameters(given: Any) -> dict[str, Any]:
    if given is None:
        return {}
    if not isinstance(given, Mapping):
        raise InvalidParameter("Nothing was sent: the request's parameters are no JSON object.")
    asked = {key: value for key, value in given.items() if key not in FORMAT}
    own = {
        key: asked.pop(key)
        for key in ("sequence_id", "sequence_start", "sequence_end", "priority", "timeout")
        if key in asked
    }
    # Triton's words for none.
    if isinstance(own.get("sequence_id"), (int, str)) and not own["sequence_id"]:
        own = {key: value for key, value in own.items() if not key.startswith("sequence")}
    for key in ("priority", "timeout"):
        if type(own.get(key)) is int and not own[key]:
            own.pop(key)
    if type(own.get("timeout")) is int:
        own["timeout"] /= 1e6  # microseconds
    elif "timeout" in own:
        raise InvalidParameter(
            f"Nothing was sent: the request's timeout {shown(own['timeout'])} is no integer (of microseconds)."
        )
    return {**own, "parameters": asked} if asked else own


def _outputs(given: Any) -> dict[str, Any]:
    if given is None or (isinstance(given, (list, tuple)) and not given):
        return {}
    if not isinstance(given, (list, tuple)) or not all(
        isinstance(output, Mapping) and isinstance(output.get("parameters") or {}, Mapping)
        for output in given
    ):
        raise InvalidParameter("Nothing was sent: the request's outputs are no list of JSON objects.")
    asked: dict[str, Any] = {"outputs": tuple(output.get("name") for output in given)}
    parameters = [dict(output.get("parameters") or {}) for output in given]
    classes = [one.pop("classification", None) for one in parameters]
    if others := {key for one in parameters for key in one if key not in FORMAT}:
        raise InvalidParameter(
            f"Nothing was sent: the request's outputs have the parameters {', '.join(sorted(map(repr, others)))}; an output "
            "takes classification alone."
        )
    if any(type(number) is not int for number in classes if number is not None):
        raise InvalidParameter(
            "Nothing was sent: the request's outputs have a classification that is no integer."
        )
    if len(set(classes)) > 1:
        raise InvalidParameter(
            "Nothing was sent: the request's outputs differ in classification, which is one number for all of them."
        )
    return {**asked, "classification": classes[0]} if classes[0] else asked
