"""The table of which test catches which mutant."""

from __future__ import annotations

from typing import TYPE_CHECKING

from mlflow_triton_conformance.catalogue import CATALOGUE, CHAPTERS

if TYPE_CHECKING:
    from collections.abc import Sequence

    from mutants.runner import Caught

__all__ = ["table"]

HEAD = """\
# The tests of the tests

Each mutant is a subject with one defect: our plugin with a part replaced, or a real Triton behind a proxy that changes one answer.
The suite must fail for each requirement that the defect breaks. `nox -s mutants` runs them all and fails if one survives; `-- WORD…` those
whose defect or id has a word in it. `nox -s mutants -- --table conformance/mutants/README.md` writes this page.
"""


def table(found: Sequence[Caught]) -> str:
    """Write the page."""
    musts = {it.id for it in CATALOGUE.values() if it.level == "MUST"}
    have = {name for it in found for name in it.mutant.breaks}
    caught = {name for it in found for name in it.by}
    lines = [
        HEAD,
        f"{len(found)} mutants; of {len(musts)} MUSTs {len(musts & have)} have one, and {len(musts & caught)} one that was caught.",
    ]
    for chapter in CHAPTERS:
        rows = [
            (requirement, it)
            for requirement in CATALOGUE.values()
            if requirement.chapter == chapter.id
            for it in found
            if requirement.id in it.mutant.breaks
        ]
        if rows:
            lines += [
                "",
                f"## {chapter.title}",
                "",
                "| Requirement | Mutant | Caught by |",
                "| --- | --- | --- |",
            ]
            lines += [
                f"| {requirement.id} | {it.mutant.defect} | {_cell(it.by.get(requirement.id, ''))} |"
                for requirement, it in rows
            ]
    return "\n".join(lines) + "\n"


def _cell(test: str) -> str:
    name = test.removeprefix("mlflow_triton_conformance.").replace("|", "\\|")
    return f"`{name}`" if name else "**survived**"
