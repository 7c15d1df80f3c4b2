"""Parameters of tests, each of which proves a requirement of its own."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from collections.abc import Mapping

    from _pytest.mark import ParameterSet

__all__ = ["cases"]


def cases(requirements: Mapping[str, str]) -> list[ParameterSet]:
    """Make a parameter of each name, marked with the ids of the requirements that it proves, apart by a space."""
    return [
        pytest.param(name, marks=pytest.mark.requirement(*ids.split()), id=name)
        for name, ids in requirements.items()
    ]
