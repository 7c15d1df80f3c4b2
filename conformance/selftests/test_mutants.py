from __future__ import annotations

import subprocess
import sys

import pytest

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
