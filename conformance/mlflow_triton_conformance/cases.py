"""Parameters of tests, each of which proves a requirement of its own."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from collections.abc import Mapping

    from _pytest.mark import ParameterSet

__all__ = ["ATTEMPTS", "cases"]


ATTEMPTS = pytest.StashKey[dict[str, Any]]()
"""What came of something done once for several tests, by case: kept beside the fixtures, as it may have cost a server and so all of them."""


def cases(requirements: Mapping[str, str]) -> list[ParameterSet]:
    """Make a parameter of each name, marked with the ids of the requirements that it proves, apart by a space."""
    return [
        pytest.param(name, marks=pytest.mark.requirement(*ids.split()), id=name)
        for name, ids in requirements.items()
    ]
