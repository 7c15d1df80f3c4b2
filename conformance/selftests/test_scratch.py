"""Temporary directories, of which a killed process leaves none for good."""

from __future__ import annotations

import shutil
import subprocess
import sys
import tempfile
from typing import TYPE_CHECKING

import pytest

from mlflow_triton.doctor import diagnose
from mlflow_triton.scratch import PREFIX, abandoned, remove_abandoned, scratch
from mlflow_triton.settings import Settings

if TYPE_CHECKING:
    from pathlib import Path

CLIENT = """\
import sys, tempfile, time
from mlflow_triton.doctor import diagnose
from mlflow_triton.scratch import scratch
tempfile.tempdir = sys.argv[1]
with scratch() as path:
    (path / "file").touch()
    print(path, flush=True)
    time.sleep(60)
"""


@pytest.fixture(autouse=True)
def temporary(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A directory of the test's own for temporary files."""
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    return tmp_path


def test_a_killed_process(temporary: Path) -> None:
    """What a process has stays while it lives; once it is killed, the next one removes it."""
    command = [sys.executable, "-c", CLIENT, str(temporary)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        theirs = process.stdout.readline().strip()
        with scratch() as ours:
            assert sorted(map(str, temporary.iterdir())) == sorted([theirs, str(ours)])
            assert list(ours.iterdir()) == []
            assert abandoned() == []
        process.kill()
    assert [str(path) for path in abandoned()] == [theirs]
    with scratch() as ours:
        assert list(temporary.iterdir()) == [ours]
    assert list(temporary.iterdir()) == []


def test_the_doctor(temporary: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The doctor tells of what a killed process has left, and removes it when it repairs."""
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:9")
    (temporary / "repository").mkdir()
    left = temporary / f"{PREFIX}left"
    left.mkdir()
    settings = Settings.parse(f"triton://127.0.0.1:9?model_repository={temporary}/repository", {})
    for repair, words in ((False, f"{left} was left behind"), (True, f"Removed {left}")):
        (text,) = (found.text for found in diagnose(settings, repair=repair) if found.check == "operations")
        assert words in text
    assert not left.exists()


def test_what_is_not_ours(temporary: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    """A link, a file and a directory of another name are never taken for what a process has left."""
    elsewhere = tmp_path_factory.mktemp("elsewhere")
    (temporary / f"{PREFIX}link").symlink_to(elsewhere)
    (temporary / f"{PREFIX}file").touch()
    (temporary / "another").mkdir()
    before = sorted(temporary.iterdir())
    assert remove_abandoned() == []
    assert sorted(temporary.iterdir()) == before
    assert elsewhere.exists()


def test_one_that_was_taken_for_abandoned(temporary: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A directory that another process removes before it is held is made once more."""
    make = tempfile.mkdtemp
    taken: list[str] = []

    def mkdtemp(prefix: str) -> str:
        path = make(prefix=prefix)
        if not taken:
            taken.append(path)
            shutil.rmtree(path)
        return path

    monkeypatch.setattr(tempfile, "mkdtemp", mkdtemp)
    with scratch() as path:
        assert path.is_dir()
        assert str(path) not in taken
    assert list(temporary.iterdir()) == []
