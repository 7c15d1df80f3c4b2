"""All mutants, and the requirements that have none."""

from __future__ import annotations

from mutants.plugins import PLUGINS
from mutants.servers import SERVERS

__all__ = ["MUTANTS", "WITHOUT"]

MUTANTS = (*SERVERS, *PLUGINS)

#: The requirements whose defect would be a whole other program, and why.
WITHOUT: dict[str, str] = {}
