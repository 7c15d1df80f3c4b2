"""The claim on a name: lock, notice and journal; what it says of an operation that died."""

from __future__ import annotations

import json
import multiprocessing
import os
import re
import signal
import threading
import time
import warnings
from typing import TYPE_CHECKING

import pytest

from mlflow_triton.errors import DeploymentBusy, RepositoryError
from mlflow_triton.repository.claim import Change, claim, notices
from mlflow_triton.repository.local import LocalRepository

if TYPE_CHECKING:
    from collections.abc import Iterator
    from multiprocessing.connection import Connection
    from pathlib import Path

SPAWN = multiprocessing.get_context("spawn")
NEW = "0" * 32


@pytest.fixture
def repository(tmp_path: Path) -> LocalRepository:
    """An empty repository with a parent of its own."""
    (tmp_path / "models").mkdir()
    return LocalRepository(str(tmp_path / "models"), "the test")


def entries(repository: LocalRepository) -> list[str]:
    """What lies in the repository and beside it."""
    return sorted(path.name for path in [*repository.path.iterdir(), *repository.path.parent.iterdir()])


def hold(path: str, stage: str, ready: Connection) -> None:
    """Hold the name m in another process, up to a stage of an update, until it is killed."""
    repository = LocalRepository(path, "the test")
    with repository.claim("m", "update", timeout=5) as held:
        if stage == "claimed":
            ready.send(os.getpid())
            time.sleep(60)
        with repository.workspace(held) as workspace, workspace.probe():
            (workspace.download / "file").write_text("x")
            if stage == "changing":
                held.begin(NEW, was_ready=True, server_was_ready=True)
            ready.send(os.getpid())
            time.sleep(60)


@pytest.fixture
def holder(
    request: pytest.FixtureRequest, repository: LocalRepository
) -> Iterator[multiprocessing.process.BaseProcess]:
    """Another process at a stage of an update of m."""
    receiving, sending = SPAWN.Pipe(duplex=False)
    process = SPAWN.Process(target=hold, args=(str(repository.path), request.param, sending))
    process.start()
    try:
        assert receiving.recv() == process.pid
        yield process
    finally:
        process.kill()
        process.join()


@pytest.mark.parametrize("holder", ["claimed"], indirect=True)
def test_the_loser_is_told_who_has_the_name(
    repository: LocalRepository, holder: multiprocessing.process.BaseProcess
) -> None:
    """Whoever waits in vain for a name learns operation, process, machine and since when; other names are free."""
    started = time.monotonic()
    with pytest.raises(DeploymentBusy) as caught, repository.claim("m", "delete", timeout=0.5):
        pytest.fail("two have it")
    assert 0.5 <= time.monotonic() - started < 5
    assert re.search(
        rf"'m' is held by update by process {holder.pid} on {os.uname().nodename}, begun 20..-..-..T..:..:..\+00:00",
        caught.value.message,
    )
    assert "lock_timeout" in caught.value.message
    assert caught.value.error_code == "RESOURCE_CONFLICT"
    with repository.claim("m2", "delete", timeout=0.1):
        pass


@pytest.mark.parametrize("holder", ["claimed", "working", "changing"], indirect=True)
def test_a_dead_holder_holds_nothing(
    repository: LocalRepository, holder: multiprocessing.process.BaseProcess
) -> None:
    """What lives is never collected; once its process is killed, the name is free at once and its leftovers go."""
    before = entries(repository)
    assert repository.collect() == []
    assert entries(repository) == before
    holder.kill()
    holder.join()
    (notice,) = repository.notices()
    assert not notice.held
    assert f"process {holder.pid}" in str(notice)
    interrupted = notice.change is not None
    repository.collect()
    if interrupted:
        # What the change needs stays, until it is settled.
        assert entries(repository) == before
    with repository.claim("m", "update", timeout=0.1) as held:
        assert (held.interrupted is not None) == interrupted
        if held.interrupted is not None:
            assert held.interrupted.new == NEW
            assert f"process {holder.pid}" in held.interrupted.by
            assert repository.interrupted_workspace(held.interrupted.token) is not None
            held.settled()
    repository.collect()
    assert entries(repository) == ["models"]


def test_a_change_stays_written_down_until_it_ends(repository: LocalRepository) -> None:
    """A claim's file is there with its change until that is committed or undone, and then is gone."""

    def change() -> Change | None:
        found = notices(repository.path)
        return found[0].change if found else None

    for end in ("commit", "undone"):
        with repository.claim("m", "update", timeout=1) as held:
            assert change() is None
            begun = held.begin(NEW, was_ready=False, server_was_ready=True)
            assert change() == begun
            getattr(held, end)()
            assert change() == (None if end == "commit" else begun)
        assert entries(repository) == ["models"]
    with repository.claim("m", "update", timeout=1) as held:
        begun = held.begin(NEW, was_ready=False, server_was_ready=True)
    for _ in range(3):
        with repository.claim("m", "delete", timeout=1) as held:
            assert held.interrupted == begun == change()


def test_threads_exclude_each_other(repository: LocalRepository) -> None:
    """Many threads that want one name have it one at a time, and all of them get it."""
    inside, most, turns = [0], [0], [0]

    def work() -> None:
        for _ in range(20):
            with repository.claim("m", "update", timeout=60):
                inside[0] += 1
                most[0] = max(most[0], inside[0])
                turns[0] += 1
                time.sleep(0.0005)
                inside[0] -= 1

    threads = [threading.Thread(target=work) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert (most, turns) == ([1], [120])
    assert entries(repository) == ["models"]


def test_a_forked_process_does_not_keep_the_name(repository: LocalRepository) -> None:
    """A process that was forked while a name was held, and outlives its parent, does not hold it."""
    with repository.claim("m", "update", timeout=1):
        child = os.fork()
        if child == 0:  # pragma: no cover - another process
            time.sleep(30)
            os._exit(0)
    try:
        with repository.claim("m", "update", timeout=0.1):
            pass
    finally:
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)


@pytest.mark.slow
def test_a_forked_process_keeps_what_is_its_own(repository: LocalRepository) -> None:
    """A process that is forked while other threads take and give up names loses no open file of its own by it."""
    stop = threading.Event()

    def work(name: str) -> None:
        while not stop.is_set():
            with repository.claim(name, "update", timeout=1):
                pass

    threads = [threading.Thread(target=work, args=(f"m{number}",)) for number in range(3)]
    for thread in threads:
        thread.start()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)  # forking a process with threads is the point
            assert [said_by_a_child() for _ in range(80)] == [b"x"] * 80
    finally:
        stop.set()
        for thread in threads:
            thread.join()


def said_by_a_child() -> bytes:
    """Fork; return what the child says through a pipe."""
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:  # pragma: no cover - another process
        try:
            os.write(writing, b"x")
        finally:
            os._exit(0)
    os.close(writing)
    said = os.read(reading, 1)
    os.close(reading)
    os.waitpid(child, 0)
    return said


HOSTILE = {
    "empty": "",
    "garbage": "\x00\xff{",
    "a list": "[]\n",
    "a workspace elsewhere": json.dumps(
        {
            "change": {
                "operation": "update",
                "token": "../../x",
                "by": "x",
                "new": None,
                "was_ready": True,
                "server_was_ready": True,
            }
        }
    )
    + "\n",
    "control characters": json.dumps(
        {"holder": {"operation": "\x1b[2J", "host": "h", "pid": 1, "since": "s", "token": NEW}}
    )
    + "\n",
    "cut short": json.dumps(
        {
            "change": {
                "operation": "update",
                "token": NEW,
                "by": "x",
                "new": None,
                "was_ready": True,
                "server_was_ready": True,
            }
        }
    ),
}


@pytest.mark.parametrize("case", HOSTILE)
def test_what_is_no_claim_is_passed_over(repository: LocalRepository, case: str) -> None:
    """A file in a claim's place that is not one of ours, or was cut short, tells of no change."""
    path = repository.path / ".mlflow-triton-m.lock"
    path.write_text(HOSTILE[case])
    (notice,) = repository.notices()
    assert (notice.held, notice.holder, notice.change) == (False, None, None)
    with repository.claim("m", "update", timeout=1) as held:
        assert held.interrupted is None
    assert entries(repository) == ["models"]


@pytest.mark.parametrize("kind", ["link", "directory", "pipe"])
def test_what_is_no_file_is_refused(repository: LocalRepository, tmp_path: Path, kind: str) -> None:
    """Something else than a plain file in a claim's place is refused, and neither followed nor waited for."""
    path = repository.path / ".mlflow-triton-m.lock"
    target = tmp_path / "target"
    if kind == "link":
        target.write_text("theirs")
        path.symlink_to(target)
    elif kind == "directory":
        path.mkdir()
    else:
        os.mkfifo(path)
    with (
        pytest.raises(RepositoryError, match=re.escape(path.name)),
        repository.claim("m", "update", timeout=1),
    ):
        pytest.fail("it was taken")
    assert repository.notices() == []
    with repository.claim("other", "update", timeout=1):
        assert repository.collect() == []
    if kind == "link":
        assert target.read_text() == "theirs"


def test_repositories_side_by_side(repository: LocalRepository, tmp_path: Path) -> None:
    """What an operation on another repository has in the same directory is not touched, alive or dead."""
    (tmp_path / "other").mkdir()
    other = LocalRepository(str(tmp_path / "other"), "the test")
    with other.claim("m", "update", timeout=1) as held, other.workspace(held) as workspace:
        assert repository.collect() == []
        assert workspace.model.is_dir()
        with claim(other.path, "n", "update", timeout=1):
            assert other.collect() == []
            assert workspace.model.is_dir()
