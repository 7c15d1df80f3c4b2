"""Deployment options: the ``-C key=value`` strings of MLflow's CLI to a frozen, typed record."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import MISSING, dataclass, fields
from typing import TYPE_CHECKING, Any

from mlflow_triton.errors import InvalidOption

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["HIGHEST_VERSION", "LOCK_TIMEOUT", "OPTIONS", "DeploymentOptions", "OptionDefinition", "help_text"]

#: The highest version number that Triton serves; a directory with a higher one aborts its process.
HIGHEST_VERSION = 2**63 - 1
#: Seconds to wait for another operation on the same deployment.
LOCK_TIMEOUT = 60.0


@dataclass(frozen=True, slots=True)
class OptionDefinition:
    """How one option is written, and what it means."""

    name: str
    form: str
    help: str
    parse: Callable[[str], Any]


def _version(text: str) -> int:
    if not (text.isascii() and text.isdigit() and len(text) < 20 and 1 <= int(text) <= HIGHEST_VERSION):
        raise ValueError(f"a whole number from 1 to {HIGHEST_VERSION}")
    return int(text)


def _seconds(text: str) -> float:
    wanted = "a positive number of seconds"
    try:
        seconds = float(text)
    except ValueError:
        raise ValueError(wanted) from None
    if not 0 < seconds < math.inf:
        raise ValueError(wanted)
    return seconds


def _switch(text: str) -> bool:
    if text.lower() not in ("true", "false"):
        raise ValueError("true or false")
    return text.lower() == "true"


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
        "smoke_test",
        "BOOLEAN",
        "true: before the change stands, the new model must answer a request: MLflow's input_example of the model, else zeros (default false).",
        _switch,
    ),
)


@dataclass(frozen=True, slots=True)
class DeploymentOptions:
    """What the caller asked for beyond the model.

    Attributes:
        version: Version directory for a flavor without versions of its own; ``None``: 1.
        load_timeout: Seconds; ``None``: the setting's.
        lock_timeout: Seconds; ``None``: `LOCK_TIMEOUT`.
        smoke_test: Whether the new model must answer a request before the change stands.
    """

    version: int | None = None
    load_timeout: float | None = None
    lock_timeout: float | None = None
    smoke_test: bool = False

    @classmethod
    def parse(cls, config: Mapping[str, Any] | None) -> DeploymentOptions:
        """Parse ``-C`` options; values may also be Python numbers, as Python callers write them.

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
                values[key] = known[key].parse(str(value).strip())
            except ValueError as error:
                problems.append(f"{key}={value!r} is not {error}")
        if problems:
            raise InvalidOption(f"Nothing was changed. Wrong deployment options (-C): {'; '.join(problems)}.")
        return cls(**values)


def help_text() -> str:
    """Return one line per option, for ``mlflow deployments help``."""
    return "\n".join(f"  -C {option.name}={option.form}\n      {option.help}" for option in OPTIONS)


assert [option.name for option in OPTIONS] == [  # noqa: S101 - a table that must match
    field.name for field in fields(DeploymentOptions) if field.default is not MISSING
]
