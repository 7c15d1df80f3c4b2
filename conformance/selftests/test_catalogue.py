from __future__ import annotations

import importlib
import re
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Any

import mlflow_triton_conformance
from mlflow_triton.embedded.wheels import SERVERS
from mlflow_triton_conformance.catalogue import CATALOGUE, CHAPTERS
from mlflow_triton_conformance.expectations import Expectations

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

MODULES = sorted(path.stem for path in Path(mlflow_triton_conformance.__file__).parent.glob("test_*.py"))


def named() -> Iterator[tuple[str, list[str]]]:
    """Return each of the suite's tests, with the ids that it names; one for each parameter that names any."""
    for module in MODULES:
        members = vars(importlib.import_module(f"mlflow_triton_conformance.{module}"))
        for name, function in members.items():
            if name.startswith("test_"):
                marks = getattr(function, "pytestmark", [])
                own = list(ids(marks))
                cases = [case for mark in marks if mark.name == "parametrize" for case in mark.args[1]]
                marked = [case for case in cases if getattr(case, "marks", ())]
                for case in marked:
                    yield f"{module}::{name}[{case.id}]", [*own, *ids(case.marks)]
                if len(marked) < len(cases) or not cases:
                    yield f"{module}::{name}", own


def ids(marks: Iterable[Any]) -> Iterator[str]:
    """Return what marks name."""
    return (name for mark in marks if mark.name == "requirement" for name in mark.args)


def test_every_test_names_what_it_proves() -> None:
    """Each of the suite's tests names a requirement, none of them twice, and only those that there are."""
    found = dict(named())
    assert [name for name, proves in found.items() if not proves] == []
    assert {one for proves in found.values() for one in proves} - CATALOGUE.keys() == set()
    assert [name for name, proves in found.items() if len(set(proves)) < len(proves)] == []


def test_every_requirement_has_a_test() -> None:
    """Each requirement of the catalogue is named by a test."""
    assert CATALOGUE.keys() - {one for _, proves in named() for one in proves} == set()


def test_requirements_are_well_formed() -> None:
    """Ids have their form and count up without gaps; sentences are sentences, and none is there twice."""
    topics: dict[str, list[int]] = {}
    for it in CATALOGUE.values():
        found = re.fullmatch(r"((?:MLF|TRT|OIP)-[A-Z]+)-(\d{3})", it.id)
        assert found, it.id
        topics.setdefault(found[1], []).append(int(found[2]))
        assert re.fullmatch(r"\S.*\.", it.sentence), it
        assert it.source.url.startswith("https://"), it
    gaps = {topic for topic, numbers in topics.items() if sorted(numbers) != list(range(1, len(numbers) + 1))}
    assert gaps == {"OIP-JSON"}  # FP16 has no JSON form
    assert [
        text for text, count in Counter(it.sentence for it in CATALOGUE.values()).items() if count > 1
    ] == []
    assert {it.chapter for it in CATALOGUE.values()} == {chapter.id for chapter in CHAPTERS}
    assert {it.level for it in CATALOGUE.values()} == {"MUST", "SHOULD"}


def test_what_older_tritons_are_known_to_fail() -> None:
    """Each file of expectations is of an embedded Triton that there is, and names requirements that there are."""
    files = sorted((Path(__file__).parents[1] / "known").iterdir())
    assert {file.stem.removeprefix("triton-") for file in files} <= SERVERS.keys()
    for file in files:
        assert Expectations.read(file).failures.keys() <= CATALOGUE.keys()
