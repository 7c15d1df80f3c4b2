"""The catalogue: every requirement of the suite, chapter by chapter.

Each has tests, which name its id with ``@pytest.mark.requirement``; each of the suite's tests names what it proves.
"""

from __future__ import annotations

from mlflow_triton_conformance.catalogue import (
    concurrency,
    control,
    datatypes,
    deployments,
    errors,
    faults,
    flavors,
    inference,
    lifecycle,
    observability,
    repository,
    security,
    settings,
)
from mlflow_triton_conformance.catalogue.requirement import Chapter, Level, Requirement, Source

__all__ = ["CATALOGUE", "CHAPTERS", "Chapter", "Level", "Requirement", "Source"]

_MODULES = (
    deployments,
    settings,
    flavors,
    control,
    repository,
    inference,
    datatypes,
    errors,
    lifecycle,
    concurrency,
    faults,
    security,
    observability,
)

CHAPTERS: tuple[Chapter, ...] = tuple(module.CHAPTER for module in _MODULES)

CATALOGUE: dict[str, Requirement] = {}
for _module in _MODULES:
    for _requirement in _module.REQUIREMENTS:
        if _requirement.id in CATALOGUE:
            raise ValueError(f"{_requirement.id} is in the catalogue twice")
        CATALOGUE[_requirement.id] = _requirement
