"""Which plugin MLflow finds for a target."""

from __future__ import annotations

from importlib import metadata

__all__ = ["distribution"]

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
