"""All mutants."""

from __future__ import annotations

from mlflow_triton_conformance.catalogue import CATALOGUE
from mutants.plugins import PLUGINS
from mutants.servers import SERVERS

__all__ = ["MUTANTS", "untested"]

MUTANTS = (*SERVERS, *PLUGINS)


def untested() -> list[str]:
    """Return the MUSTs that no mutant breaks."""
    broken = {name for mutant in MUTANTS for name in mutant.breaks}
    return [it.id for it in CATALOGUE.values() if it.level == "MUST" and it.id not in broken]
