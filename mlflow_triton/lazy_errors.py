"""The names of `mlflow_triton.errors`, each of which is imported when it is first used.

Errors are MLflow's, whose import takes seconds; a process that only holds a server needs nothing else of it.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from mlflow_triton.errors import *  # noqa: F403 - all of them, by definition


def __getattr__(name: str) -> Any:
    return getattr(import_module("mlflow_triton.errors"), name)
