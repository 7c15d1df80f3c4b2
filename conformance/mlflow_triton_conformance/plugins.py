"""Which plugin MLflow finds for a target."""

from __future__ import annotations

from importlib import import_module, metadata
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from types import ModuleType

__all__ = ["distribution", "module"]

GROUP = "mlflow.deployments"


def distribution(target: str) -> tuple[str, str]:
    """Return name and version of the distribution that claims a target; of all of them, if there are several.

    Args:
        target: MLflow's target, with or without what follows the scheme.
    """
    scheme = target.partition(":")[0]
    claims = {
        entry.dist.name: entry.dist.version
        for entry in metadata.entry_points(group=GROUP, name=scheme)
        if entry.dist is not None
    }
    return ", ".join(claims), ", ".join(claims.values())


def module(target: str) -> ModuleType:
    """Import the module that MLflow takes for a target, which is the last one that claims it.

    Raises:
        LookupError: None does.
    """
    found = [entry.value for entry in metadata.entry_points(group=GROUP, name=target.partition(":")[0])]
    if not found:
        raise LookupError(f"No plugin is installed for the target {target!r}.")
    return import_module(found[-1])
