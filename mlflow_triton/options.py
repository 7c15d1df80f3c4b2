"""Deployment options: the ``-C key=value`` strings of MLflow's CLI to a frozen, typed record."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import MISSING, dataclass, fields
from typing import TYPE_CHECKING, Any

from mlflow_triton.errors import InvalidOption

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

__all__ = [
    "HIGHEST_VERSION",
    "LOCK_TIMEOUT",
    "OPTIONS",
    "DeploymentOptions",
    "OptionDefinition",
    "VersionPolicy",
    "help_text",
]

#: The highest version number that Triton serves; a directory with a higher one aborts its process.
HIGHEST_VERSION = 2**63 - 1
#: Seconds to wait for another operation on the same deployment.
LOCK_TIMEOUT = 60.0
#: Seconds; gRPC takes much longer ones for none at all.
LONGEST_TIMEOUT = 1e7
#: The largest number of most fields of Triton's configuration (int32).
_LARGEST = 2**31 - 1
INSTANCE_KINDS = ("KIND_AUTO", "KIND_CPU", "KIND_GPU", "KIND_MODEL")


@dataclass(frozen=True, slots=True)
class OptionDefinition:
    """How one option is written, and what it means."""

    name: str
    form: str
    help: str
    parse: Callable[[str], Any]


@dataclass(frozen=True, slots=True)
class VersionPolicy:
    """Which of a model's versions Triton serves.

    Attributes:
        kind: ``latest``, ``all`` or ``specific``.
        numbers: How many, for ``latest``; which ones, for ``specific``.
    """

    kind: str
    numbers: tuple[int, ...] = ()

    def __str__(self) -> str:
        return f"{self.kind}:{','.join(map(str, self.numbers))}" if self.numbers else self.kind


def _version(text: str) -> int:
    if not (text.isascii() and text.isdigit() and len(text) < 20 and 1 <= int(text) <= HIGHEST_VERSION):
        raise ValueError(f"a whole number from 1 to {HIGHEST_VERSION}")
    return int(text)


def _seconds(text: str) -> float:
    wanted = f"a positive number of seconds, at most {LONGEST_TIMEOUT:g}"
    try:
        seconds = float(text)
    except ValueError:
        raise ValueError(wanted) from None
    if not 0 < seconds <= LONGEST_TIMEOUT:
        raise ValueError(wanted)
    return seconds


def _switch(text: str) -> bool:
    if text.lower() not in ("true", "false"):
        raise ValueError("true or false")
    return text.lower() == "true"


def _integer(text: str, lowest: int, highest: int) -> int:
    if not (text.isascii() and text.isdigit() and len(text) < 20 and lowest <= int(text) <= highest):
        raise ValueError(f"a whole number from {lowest} to {highest}")
    return int(text)


def _size(text: str) -> int:
    return _integer(text, 0, _LARGEST)


def _count(text: str) -> int:
    return _integer(text, 1, _LARGEST)


def _distinct(text: str, lowest: int, highest: int, wanted: str) -> tuple[int, ...]:
    try:
        numbers = tuple(_integer(part.strip(), lowest, highest) for part in text.split(","))
    except ValueError as error:
        raise ValueError(f"{wanted}, each {error}") from None
    if len(set(numbers)) < len(numbers):
        raise ValueError(f"{wanted}, each once")
    return numbers


def _preferred(text: str) -> tuple[int, ...]:
    return _distinct(text, 1, _LARGEST, "batch sizes with commas between them")


def _gpus(text: str) -> tuple[int, ...]:
    if text.lower() == "none":
        return ()
    return _distinct(text, 0, _LARGEST, "none, or numbers of GPUs with commas between them")


def _kind(text: str) -> str:
    for kind in INSTANCE_KINDS:
        if text.upper() in (kind, kind.removeprefix("KIND_")):
            return kind
    raise ValueError(f"one of {', '.join(INSTANCE_KINDS)}")


def _policy(text: str) -> VersionPolicy:
    wanted = "all, latest, latest:NUMBER or specific:VERSION,…"
    if text.startswith("{"):  # as a dict is written in Python
        policy = _object(text, wanted)
        text = ":".join([*policy, *policy.values()]) if len(policy) == 1 else ""
    kind, colon, numbers = text.partition(":")
    try:
        if kind == "latest":
            return VersionPolicy("latest", (_count(numbers) if colon else 1,))
        if kind == "specific":
            return VersionPolicy(
                "specific", tuple(sorted(_distinct(numbers, 0, HIGHEST_VERSION, "versions")))
            )
    except ValueError as error:
        raise ValueError(f"{wanted}: {numbers!r} is not {error}") from None
    if text != "all":
        raise ValueError(wanted)
    return VersionPolicy("all")


def _path(text: str) -> str:
    if not text or "\0" in text:
        raise ValueError("the path of a file")
    return text


def _parameters(text: str) -> Mapping[str, str]:
    wanted = "KEY:VALUE with commas between them, or a JSON object of texts, numbers, true and false"
    if text.startswith("{"):
        found = _object(text, wanted)
    else:
        pairs = [part.partition(":") for part in text.split(",")]
        if not all(colon for _, colon, _ in pairs):
            raise ValueError(wanted)
        found = {key.strip(): value.strip() for key, _, value in pairs}
        if len(found) < len(pairs):
            raise ValueError(f"{wanted}, each KEY once")
    if not found or not all(found):
        raise ValueError(wanted)
    if reserved := [key for key in found if key.startswith("mlflow.")]:
        raise ValueError(f"free to be set: the plugin itself keeps {', '.join(reserved)}")
    return found


def _object(text: str, wanted: str) -> dict[str, str]:
    """Read a JSON object whose values are scalars or lists of them."""
    try:
        found = json.loads(text)
        return {key: _written(value, nested=True) for key, value in found.items()}
    except (ValueError, RecursionError):
        raise ValueError(wanted) from None


def _warmup(text: str) -> int:
    if text.lower() in ("true", "false"):
        return int(text.lower() == "true")
    try:
        return _size(text)
    except ValueError as error:
        raise ValueError(f"true, false or {error}") from None


def _written(value: Any, *, nested: bool = False) -> str:
    """Write a value of a Python caller as one writes it on the command line.

    Raises:
        ValueError: There is no way to write it.
    """
    if value is None or (nested and isinstance(value, Mapping)):
        raise ValueError
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, Mapping):
        try:
            return json.dumps(dict(value))
        except (TypeError, RecursionError) as error:
            raise ValueError from error
    if isinstance(value, (list, tuple)):
        return ",".join(_written(item, nested=True) for item in value) or "none"
    if isinstance(value, os.PathLike):
        value = os.fspath(value)
    return value if isinstance(value, str) and nested else str(value).strip()


OPTIONS = (
    OptionDefinition(
        "version",
        "NUMBER",
        "Triton version directory for an onnx model (default 1). A triton model brings its own versions.",
        _version,
    ),
    OptionDefinition(
        "load_timeout",
        "SECONDS",
        "Seconds that Triton has to load the model (default: the setting load_timeout).",
        _seconds,
    ),
    OptionDefinition(
        "lock_timeout",
        "SECONDS",
        f"Seconds to wait while another operation is at the same deployment (default {LOCK_TIMEOUT:g}). Also for delete.",
        _seconds,
    ),
    OptionDefinition(
        "adopt",
        "BOOLEAN",
        "true, for create: replace a model of that name that MLflow did not deploy, or whose record is lost or corrupt (default false).",
        _switch,
    ),
    OptionDefinition(
        "smoke_test",
        "BOOLEAN",
        "true: before the change stands, the new model must answer a request: MLflow's input_example of the model, else zeros (default false).",
        _switch,
    ),
    OptionDefinition(
        "dry_run",
        "BOOLEAN",
        "true: say what would change, and change nothing (default false). Also for delete and rollback.",
        _switch,
    ),
    OptionDefinition(
        "keep_previous",
        "BOOLEAN",
        "true: an update keeps what it replaces, for mlflow-triton rollback (default false: nothing is kept, from earlier neither).",
        _switch,
    ),
    OptionDefinition(
        "config_file",
        "PATH",
        "A config.pbtxt on this machine, to be used in place of the model's own. The options below change it as any other.",
        _path,
    ),
    OptionDefinition(
        "version_policy",
        "POLICY",
        "Versions to serve: all, latest:NUMBER or specific:VERSION,…",
        _policy,
    ),
    OptionDefinition(
        "max_batch_size",
        "NUMBER",
        "Largest batch; 0: the model takes no batches.",
        _size,
    ),
    OptionDefinition(
        "instance_count",
        "NUMBER",
        "Instances of the model, on each device.",
        _count,
    ),
    OptionDefinition(
        "instance_kind",
        "KIND",
        "Where they run: KIND_AUTO, KIND_CPU, KIND_GPU or KIND_MODEL.",
        _kind,
    ),
    OptionDefinition(
        "gpus",
        "LIST",
        "GPUs that they run on, such as 0,1; none: the configuration names no GPUs.",
        _gpus,
    ),
    OptionDefinition(
        "dynamic_batching",
        "BOOLEAN",
        "Whether Triton joins requests into batches.",
        _switch,
    ),
    OptionDefinition(
        "max_queue_delay_microseconds",
        "NUMBER",
        "How long a request may wait for others to join it; implies dynamic_batching=true.",
        lambda text: _integer(text, 0, HIGHEST_VERSION),
    ),
    OptionDefinition(
        "preferred_batch_size",
        "LIST",
        "Batch sizes that do not wait any longer, such as 4,8; implies dynamic_batching=true.",
        _preferred,
    ),
    OptionDefinition(
        "parameters",
        "LIST",
        "Parameters for the backend: KEY:VALUE,… or a JSON object. Others that the model has stay.",
        _parameters,
    ),
    OptionDefinition(
        "warmup",
        "NUMBER",
        "Requests of zeros that each instance answers before it serves; true: one; false: none, the model's own neither.",
        _warmup,
    ),
)
#: The options that make a deployment what it is; the others say how the operation is done.
CONFIGURING = (
    "version",
    "config_file",
    "version_policy",
    "max_batch_size",
    "instance_count",
    "instance_kind",
    "gpus",
    "dynamic_batching",
    "max_queue_delay_microseconds",
    "preferred_batch_size",
    "parameters",
    "warmup",
)


@dataclass(frozen=True, slots=True)
class DeploymentOptions:
    """What the caller asked for beyond the model.

    Attributes:
        version: Version directory for a flavor without versions of its own; ``None``: 1.
        load_timeout: Seconds; ``None``: the setting's.
        lock_timeout: Seconds; ``None``: `LOCK_TIMEOUT`.
        adopt: Whether a creation may replace a model that is not a deployment.
        smoke_test: Whether the new model must answer a request before the change stands.
        dry_run: Whether only to say what would change.
        keep_previous: Whether an update keeps what it replaces.
        config_file: Path of a config.pbtxt.

    The others are fields of Triton's model configuration; ``None``: as the model has it. ``warmup`` is a number of
    requests; 0: no warm-up at all.
    """

    version: int | None = None
    load_timeout: float | None = None
    lock_timeout: float | None = None
    adopt: bool = False
    smoke_test: bool = False
    dry_run: bool = False
    keep_previous: bool = False
    config_file: str | None = None
    version_policy: VersionPolicy | None = None
    max_batch_size: int | None = None
    instance_count: int | None = None
    instance_kind: str | None = None
    gpus: tuple[int, ...] | None = None
    dynamic_batching: bool | None = None
    max_queue_delay_microseconds: int | None = None
    preferred_batch_size: tuple[int, ...] | None = None
    parameters: Mapping[str, str] | None = None
    warmup: int | None = None

    @property
    def batches_dynamically(self) -> bool | None:
        """Whether dynamic batching is asked for, by itself or by one of its settings; ``None``: not a word."""
        if self.max_queue_delay_microseconds is not None or self.preferred_batch_size is not None:
            return True
        return self.dynamic_batching

    def applied(self) -> dict[str, Any]:
        """Return the options that make the deployment what it is, as JSON has them."""
        given = {name: getattr(self, name) for name in CONFIGURING}
        return {name: _plain(value) for name, value in given.items() if value is not None}

    def added_to(self, earlier: Mapping[str, Any]) -> dict[str, Any]:
        """Return what `applied` would be, had these options been given together with earlier ones, over them.

        Args:
            earlier: As `applied` returned them.
        """
        stays = {"version"} if self.config_file is not None else set(CONFIGURING)
        if self.batches_dynamically:
            stays -= {"dynamic_batching"}
        if self.dynamic_batching is False:
            stays -= {"max_queue_delay_microseconds", "preferred_batch_size"}
        kept = {name: value for name, value in earlier.items() if name in stays}
        given = self.applied()
        if self.parameters is not None and isinstance(kept.get("parameters"), dict):
            given["parameters"] = {**kept["parameters"], **self.parameters}
        return {**kept, **given}

    @classmethod
    def parse(cls, config: Mapping[str, Any] | None) -> DeploymentOptions:
        """Parse ``-C`` options; values may also be Python's bools, numbers, lists and dicts.

        Raises:
            InvalidOption: Every problem there is, in one message.
        """
        if config is not None and not isinstance(config, Mapping):
            raise InvalidOption(
                f"Nothing was changed. Deployment options (config=) are a dict, not {config!r}."
            )
        known = {option.name: option for option in OPTIONS}
        problems = []
        values = {}
        for key, value in (config or {}).items():
            if key not in known:
                problems.append(f"{key!r} is not an option (known: {', '.join(known)})")
                continue
            try:
                values[key] = known[key].parse(_told(value))
            except ValueError as error:
                problems.append(f"{key}={value!r} is not {error}")
        options = cls(**values)
        if problems := [*problems, *_conflicts(options)]:
            raise InvalidOption(f"Nothing was changed. Wrong deployment options (-C): {'; '.join(problems)}.")
        return options


def _told(value: Any) -> str:
    try:
        return _written(value)
    except ValueError:
        return ""  # which no option takes, and each one says what it takes


def _plain(value: Any) -> Any:
    if isinstance(value, tuple):
        return list(value)
    return str(value) if isinstance(value, VersionPolicy) else value


def _conflicts(options: DeploymentOptions) -> Iterator[str]:
    """Find options that contradict each other, whatever the model."""
    if options.adopt and options.keep_previous:
        yield "keep_previous does not go with adopt, as it keeps a deployment"
    if options.gpus and options.instance_kind in ("KIND_CPU", "KIND_MODEL"):
        yield f"gpus={','.join(map(str, options.gpus))} does not go with instance_kind={options.instance_kind}"
    if options.dynamic_batching is False:
        for name in ("max_queue_delay_microseconds", "preferred_batch_size"):
            if getattr(options, name) is not None:
                yield f"{name} does not go with dynamic_batching=false"
    if options.max_batch_size == 0 and options.batches_dynamically:
        yield "dynamic batching does not go with max_batch_size=0"


def help_text() -> str:
    """Return one line per option, for ``mlflow deployments help``."""
    return "\n".join(f"  -C {option.name}={option.form}\n      {option.help}" for option in OPTIONS)


assert [option.name for option in OPTIONS] == [  # noqa: S101 - a table that must match
    field.name for field in fields(DeploymentOptions) if field.default is not MISSING
]
