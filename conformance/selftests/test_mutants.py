from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

import mlflow_triton_conformance
import mutants
from mlflow_triton_conformance.catalogue import CATALOGUE
from mutants.registry import MUTANTS, untested


def test_every_must_has_a_mutant() -> None:
    """Each MUST of the catalogue has a mutant, and mutants break what there is."""
    assert untested() == []
    assert {name for mutant in MUTANTS for name in mutant.breaks} - CATALOGUE.keys() == set()


def test_mutants_are_told_apart() -> None:
    """Each mutant has a name of its own, and a defect in one place."""
    assert len({it.defect for it in MUTANTS}) == len(MUTANTS)
    assert [it.defect for it in MUTANTS if bool(it.http or it.rpc) == bool(it.plugin)] == []


SAMPLE = [
    "OIP-HEALTH",
    "OIP-SHM-00",
    "OIP-ERROR-012",
    "TRT-LOAD-001",
    "the last bit of BYTES",
    "run_local has no flavor",
]


@pytest.mark.slow
def test_sample() -> None:
    """The suite catches a sample of the mutants: a proxy's over HTTP and gRPC, and the plugin's."""
    done = subprocess.run(
        [sys.executable, "-m", "mutants", *SAMPLE], capture_output=True, text=True, timeout=250, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert " 0 survived" in done.stdout
    assert "SURVIVED" not in done.stdout


def test_the_table_is_of_this_suite() -> None:
    """The table of what catches which mutant has a row for each of them, and names tests that there are."""
    rows = re.findall(
        r"^\| ([A-Z]+-[A-Z]+-\d+) \| (.+) \| (.+) \|$",
        (Path(mutants.__file__).parent / "README.md").read_text(),
        re.MULTILINE,
    )
    assert sorted((name, defect) for name, defect, _ in rows) == sorted(
        (name, it.defect) for it in MUTANTS for name in it.breaks
    )
    suite = Path(mlflow_triton_conformance.__file__).parent
    tests = {
        f"{path.stem}::{name}"
        for path in suite.glob("test_*.py")
        for name in re.findall(r"^def (test_\w+)", path.read_text(), re.MULTILINE)
    }
    named = {name for *_, by in rows for name in re.findall(r"`(test_\w+::test_\w+)", by)}
    assert named - tests == set()
