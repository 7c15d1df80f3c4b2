"""What the steps of encoding know of a model's inputs."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Protocol

from mlflow_triton.errors import InvalidInput

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

__all__ = ["Declared", "listed", "require_known", "shown"]

SHOWN = 20
"""How many names an error shows."""


class Declared(Protocol):
    """A tensor as the model declares it."""

    @property
    def datatype(self) -> str:
        """Triton's, e.g. ``FP32``."""

    @property
    def shape(self) -> tuple[int, ...]:
        """The sizes, batch dimension included; -1: any size."""


def listed(names: Iterable[Any]) -> str:
    """Write names for an error."""
    shown = [repr(name) for name in names]
    return ", ".join(shown[:SHOWN]) + (f" and {len(shown) - SHOWN} more" if len(shown) > SHOWN else "")


def shown(value: object) -> str:
    """Write a value for an error, on one line."""
    try:
        text = " ".join(repr(value).split())
    except Exception:  # noqa: BLE001 - a foreign object's own, while another error is told
        text = object.__repr__(value)
    return text if len(text) <= 80 else f"{text[:77]}..."


def require_known(names: Iterable[str], declared: Mapping[str, Declared]) -> None:
    """Check that the model has inputs of these names.

    Raises:
        InvalidInput: It has not.
    """
    if unknown := [name for name in names if name not in declared]:
        raise InvalidInput(f"The model has no input {listed(unknown)}. It wants {listed(declared)}.")
