"""Triton's model configuration: the text of a config.pbtxt, the protobuf message, and its JSON.

Everything here is pure. The schema is Triton's own (``tritonclient.grpc.model_config_pb2``), so a
config.pbtxt is read here as the server will read it; the server's only word for one that it
cannot read is "failed to poll from model repository".
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Collection, Iterator, Mapping
from typing import Any, Final

from google.protobuf import json_format, text_format
from tritonclient.grpc.model_config_pb2 import DESCRIPTOR, DataType, ModelConfig

from mlflow_triton.errors import InvalidModelConfig

__all__ = [
    "ModelConfig",
    "check",
    "datatype",
    "from_json",
    "is_ensemble",
    "members",
    "parameter",
    "parse",
    "served",
    "to_json",
    "with_parameter",
]

_NO_FIELD: Final = re.compile(r'Message type "(?P<type>[\w.]+)" has no field named "(?P<word>[^"]*)"')
_NO_VALUE: Final = re.compile(
    r"""Enum type "(?P<type>[\w.]+)" has no value named ["']?(?P<word>[^"'.]*)""",
)
_LONGEST_PROBLEM: Final = 300
_LIBRARY: Final = re.compile(r"[A-Za-z0-9_-][A-Za-z0-9_.-]*")
# What Prometheus takes for a label with the "_" that Triton puts before it; Triton ends on any other one (measured).
_LABEL: Final = re.compile(r"([A-Za-z0-9][A-Za-z0-9_]*)?")
# An instance's name is a part of its stub process's command line.
_UNSAFE_IN_COMMAND: Final = re.compile(r"[\s\"'`$\\;&|<>(){}\[\]*?!#~]")
# What tritonserver 2.51 maps to a backend; any other platform without a backend is a poll failure.
_PLATFORMS: Final = frozenset(
    {
        "ensemble",
        "onnxruntime_onnx",
        "pytorch_libtorch",
        "tensorflow_graphdef",
        "tensorflow_savedmodel",
        "tensorrt_plan",
    },
)


def parse(text: str | bytes, *, origin: str) -> ModelConfig:
    """Read the text of a config.pbtxt.

    Bytes that are not UTF-8 are accepted where Triton does not need their meaning (comments), and
    refused in values. A byte order mark is refused, as Triton does.

    Args:
        text: The content of the file, decoded or not.
        origin: Where it comes from, for the message: a path or a URI.

    Returns:
        The configuration, as written: nothing is completed, nothing is checked for its meaning
        (see `check`).

    Raises:
        InvalidModelConfig: The text does not follow Triton's schema. The message is one line and
            gives origin, line, column, the problem, and the nearest field or the possible values.
    """
    if isinstance(text, bytes):
        text = text.decode("utf-8", "surrogateescape")
    if text.startswith("\ufeff"):
        raise _invalid(f"{origin}:1:1", "it begins with a byte order mark (BOM), which Triton cannot read")
    try:
        return text_format.Parse(text, ModelConfig())
    except text_format.ParseError as error:
        line, column = error.GetLine(), error.GetColumn()
        place = origin if line is None else f"{origin}:{line}:{column or 1}"
        raise _invalid(place, _explain(error)) from None


def to_json(config: ModelConfig) -> str:
    """Write a configuration as the JSON text that Triton's load override takes, with nothing lost.

    Field names are those of the schema (``max_batch_size``), as in ``GET /v2/models/X/config``;
    64-bit integers are strings, which Triton's protobuf reader accepts.

    Args:
        config: The configuration.

    Returns:
        One line of JSON, for ``parameters.config`` of ``POST /v2/repository/models/X/load``.
    """
    return json_format.MessageToJson(config, preserving_proto_field_name=True, indent=None, ensure_ascii=True)


def from_json(answer: Mapping[str, Any]) -> ModelConfig | None:
    """Read the configuration that a server has answered; ``None``: it is none that this schema knows.

    Args:
        answer: The decoded JSON of ``GET /v2/models/X/config``.
    """
    try:
        return json_format.ParseDict(dict(answer), ModelConfig(), ignore_unknown_fields=True)
    except json_format.ParseError:
        return None


def with_parameter(config: ModelConfig, key: str, value: str) -> ModelConfig:
    """Copy a configuration with one string parameter set.

    Args:
        config: The configuration; it stays as it is.
        key: The parameter's name, such as ``mlflow.deployment_id``.
        value: Its value; replaces one that is there.

    Returns:
        The copy.
    """
    copy = ModelConfig()
    copy.CopyFrom(config)
    copy.parameters[key].string_value = value
    return copy


def parameter(config_json: Mapping[str, Any], key: str) -> str | None:
    """Read one string parameter of a configuration that a Triton server has answered.

    Args:
        config_json: The decoded JSON of ``GET /v2/models/X/config``.
        key: The parameter's name.

    Returns:
        Its value, or None where the server has no such parameter (or something other than a
        parameter in its place: the answer is the server's, and not a reason to fail).
    """
    parameters = config_json.get("parameters")
    entry = parameters.get(key) if isinstance(parameters, Mapping) else None
    value = entry.get("string_value") if isinstance(entry, Mapping) else None
    return value if isinstance(value, str) else None


def is_ensemble(config: ModelConfig) -> bool:
    """Say whether this model is an ensemble, which has version directories but no files in them."""
    return bool(config.platform == "ensemble" or config.HasField("ensemble_scheduling"))


def members(config: ModelConfig) -> set[str]:
    """Return the names of the models that an ensemble's steps use; none for any other model."""
    return {step.model_name for step in config.ensemble_scheduling.step}


def datatype(number: int) -> str:
    """Return a datatype's name in the schema, such as ``TYPE_FP32``."""
    return DataType.Name(number) if number in DataType.values() else str(number)


def served(config: ModelConfig, versions: Collection[int]) -> tuple[int, ...]:
    """Select the versions that Triton would load under the configuration's version policy.

    The rule is Triton's: ``latest`` (1 where there is no policy) takes the highest numbers, ``all``
    takes all, ``specific`` takes those listed and skips the absent ones in silence.

    Args:
        config: The configuration.
        versions: The versions that are there.

    Returns:
        The selected versions, in ascending order.
    """
    policy = config.version_policy
    kind = policy.WhichOneof("policy_choice")
    if kind == "all":
        return tuple(sorted(versions))
    if kind == "specific":
        return tuple(sorted(set(policy.specific.versions) & set(versions)))
    count = policy.latest.num_versions if kind == "latest" else 1
    return tuple(sorted(versions)[-count:]) if count else ()


def check(config: ModelConfig, *, name: str | None, versions: Collection[int] | None = None) -> list[str]:
    """Find what Triton would refuse at load without a reason in its answer, or accept and ignore.

    Args:
        config: The configuration.
        name: The deployment's name, which is the name of the model's directory; None where it is not
            known yet (when publishing), which leaves the rule about names out.
        versions: The versions that are there; None leaves the rules about them out.

    Returns:
        One phrase per problem, each with its remedy, none of them ending in a full stop; empty if
        there is none.
    """
    return [
        *_identity(config, name),
        *_shapes(config),
        *_versions(config, versions),
        *(
            f"instance_group name {_quoted(group.name)} holds characters that hang the load of a Python-based "
            "model for ever: use letters, digits, '_', '-' and '.'"
            for group in config.instance_group
            if _UNSAFE_IN_COMMAND.search(group.name)
        ),
        *(
            f"metric_tags key {_quoted(key)} makes no label of Prometheus, and would end the server: use ASCII letters, "
            "digits and '_', beginning with a letter or a digit"
            for key in sorted(config.metric_tags)
            if not _LABEL.fullmatch(key)
        ),
        *(
            f"model_warmup {_quoted(warmup.name)} has batch_size 0, which makes Triton skip it without a "
            "word: set batch_size to 1 or more"
            for warmup in config.model_warmup
            if not warmup.batch_size
        ),
    ]


def _identity(config: ModelConfig, name: str | None) -> Iterator[str]:
    if name is not None and config.name and config.name != name:
        yield (
            f"it says name: {_quoted(config.name)}, but Triton serves a model only under the name of its "
            f"directory, here {_quoted(name)}: remove the name line, or deploy under the name "
            f"{_quoted(config.name)}"
        )
    if config.platform and not config.backend and config.platform not in _PLATFORMS:
        yield (
            f"Triton knows no platform {_quoted(config.platform)}: write backend: {_quoted(config.platform)} "
            f"if it is a backend, or one of {', '.join(sorted(_PLATFORMS))}"
        )
    if config.platform == "ensemble" and not config.HasField("ensemble_scheduling"):
        yield 'it says platform: "ensemble" without ensemble_scheduling: add the steps of the ensemble'
    # They become parts of the paths of libraries that the server loads.
    named = [("backend", config.backend), ("runtime", config.runtime)]
    named += [("model_repository_agents", agent.name) for agent in config.model_repository_agents.agents]
    for field, value in named:
        if value and not _LIBRARY.fullmatch(value):
            yield f"{field} {_quoted(value)} is no name: write one of letters, digits, '_', '-' and '.'"
    if config.max_batch_size < 0:
        yield f"max_batch_size is {config.max_batch_size}: set it to 0 (no batching) or more"


def _shapes(config: ModelConfig) -> Iterator[str]:
    tensors = [("input", tensor) for tensor in config.input] + [
        ("output", tensor) for tensor in config.output
    ]
    for kind, tensor in tensors:
        what = f"{kind} {_quoted(tensor.name)}"
        if tensor.data_type not in DataType.values():
            yield f"{what} has data_type {tensor.data_type}, which is none of {', '.join(DataType.keys())}"
        for field, shape in (("dims", tensor.dims), ("reshape", tensor.reshape.shape)):
            wrong = [size for size in shape if size == 0 or size < -1]
            if wrong:
                yield f"{what} has {field} {list(shape)}: each size must be 1 or more, or -1 for any size"


def _versions(config: ModelConfig, versions: Collection[int] | None) -> Iterator[str]:
    policy = config.version_policy
    kind = policy.WhichOneof("policy_choice")
    if kind == "latest" and not policy.latest.num_versions:
        yield "version_policy latest has num_versions 0, which serves nothing: set it to 1 or more"
    if kind == "specific":
        listed = sorted(set(policy.specific.versions))
        absent = [number for number in listed if versions is not None and number not in versions]
        if not listed:
            yield "version_policy specific lists no versions, which serves nothing: list at least one"
        if absent:
            yield (
                f"version_policy specific lists {_numbers(absent)}, which the model does not have "
                f"(it has {_numbers(versions or ()) or 'none'}): correct the list or add the version"
            )


def _explain(error: text_format.ParseError) -> str:
    """Say a parser's error in one line, with the names that the schema has at that place."""
    text = str(error)
    if match := _NO_FIELD.search(text):
        message = DESCRIPTOR.pool.FindMessageTypeByName(match["type"])
        names = [field.name for field in message.fields]
        word = _quoted(match["word"])
        near = difflib.get_close_matches(match["word"][:80], names, n=1)
        hint = f"did you mean {_quoted(near[0])}?" if near else f"it has {', '.join(names)}"
        # A field may be newer than the schema of the tritonclient that is installed.
        return (
            f"{message.name} has no field {word}; {hint} (If your Triton is newer and knows this field, "
            "upgrade tritonclient, whose schema is used here)"
        )
    if match := _NO_VALUE.search(text):
        enum = DESCRIPTOR.pool.FindEnumTypeByName(match["type"])
        if match["word"] in enum.values_by_name:
            return f"{enum.name} {match['word']} stands in quotes: remove them"
        return f"{enum.name} has no value {_quoted(match['word'])}; it has {', '.join(enum.values_by_name)}"
    if "surrogate" in text:
        return "the text here is not UTF-8: save the file as UTF-8"
    # "1:7 : 'the whole line': the problem" - the place is said already, and the line may be megabytes.
    problem = text.rpartition("': ")[2] if "': " in text else text.partition(" : ")[2] or text
    problem = (
        re.sub(r'[Mm]essage type "inference\.(\w+)"', r"\1", re.sub(r"\s+", " ", problem)).strip().rstrip(".")
    )
    return problem if len(problem) <= _LONGEST_PROBLEM else problem[:_LONGEST_PROBLEM] + "…"


def _invalid(place: str, problem: str) -> InvalidModelConfig:
    message = f"{place}: {problem}. Nothing has been changed; correct it and publish the model again."
    return InvalidModelConfig("".join(c if c.isprintable() else ascii(c)[1:-1] for c in message))


def _quoted(text: str) -> str:
    return f'"{text}"' if len(text) <= 80 and text.isprintable() else ascii(text[:80])


def _numbers(values: Collection[int]) -> str:
    return ", ".join(map(str, sorted(values)))
