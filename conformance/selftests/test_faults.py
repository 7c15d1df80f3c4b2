"""Single calls that fail, a disk that is really full, and a server that dies, at every step of an operation.

Beside `test_crashes`, whose faults last: here what can be undone must have been undone when the error is told.
``ALL_STEPS=1`` tries every step, and ``-s`` shows the tables.
"""

from __future__ import annotations

import ctypes
import json
import os
import shutil
import subprocess
import time
import traceback
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from mlflow_triton.repository import claim
from test_crashes import OPERATIONS, Bench
from worlds import NEEDS_SPACE, NEW, NEXT, OLD, Fault, World, save_models, succeeded

if TYPE_CHECKING:
    from collections.abc import Iterator

pytestmark = [
    pytest.mark.skipif(not hasattr(os, "fork"), reason="forks its clients"),
    pytest.mark.slow,
]

#: What happens, and every how manyth step is tried unless ALL_STEPS is set.
STRIDE = {"one ENOSPC": 6, "EIO": 26, "server": 20}
#: linux/sched.h
CLONE_NEWNS, CLONE_NEWUSER = 0x20000, 0x10000000
#: Seconds in which an operation must have ended whose server died.
BOUND = 40.0
STATES = {"create": (None, NEW), "update": (OLD, NEW), "delete": (OLD, None)}
#: Calls that remove what the operation made: what they leave is for the next one.
CLEANING = {"os.remove", "os.rmdir", "os.rename", "shutil.rmtree"}


@dataclass(slots=True)
class Faults(Bench):
    """Tries steps, and remembers the longest operation and what was said."""

    longest: float = 0.0
    said: Counter[str] = field(default_factory=Counter)

    def try_one(self, world: World, operation: str, kind: str, step: int) -> str:
        """Run an operation with a fault, look whether all agree, then run the next one, and look again."""
        self.prepare(world, operation)
        before, after = STATES[operation]
        one, _, what = kind.rpartition(" ")
        fault = Fault(
            "kill server" if kind == "server" else what,
            step,
            world.server.pid,
            str(world.directory),
            lasting=not one,
        )
        started = time.monotonic()
        outcome, seen = world.run(operation, fault, "new")
        took = time.monotonic() - started
        self.longest = max(self.longest, took)
        assert took < BOUND, outcome
        done = succeeded(outcome)
        if not done:
            self.said[outcome.partition(":")[0]] += 1
            assert "'m'" in outcome or str(world.repository.parent) in outcome, outcome
        if kind == "server":
            world.stop()
            world.start()
            restored, _ = world.forked(lambda client: [entry.text for entry in client.restore()])
            assert succeeded(restored) or restored.startswith("["), restored
            # What is to be done to a name that has no deployment, the next operation on it does.
            for notice in claim.notices(world.repository):
                assert (notice.change is None, world.on_disk()) != (False, OLD)
        elif one:
            left = world.leftovers()
            assert done or self.agree(world) == before, outcome
            assert left == [] or seen[step] in CLEANING or "os.rmdir" in seen, (outcome, left)
            assert not any(notice.change for notice in claim.notices(world.repository)), outcome
        disk = self.agree(world)
        assert disk in (before, after), outcome
        assert disk == after or not done, outcome
        self.go_on(world, operation, outcome, after=after)
        return f"{'done' if done else 'failed'}, {'new' if disk == after else 'old'}"

    def agree(self, world: World) -> int | None:
        """Return which model there is: the one that the disk, the server and the record all have."""
        disk = world.on_disk()
        told, _ = world.client(None, "get_deployment", "m")
        if any(notice.change for notice in claim.notices(world.repository)):
            assert "interrupted" in told, told
            return disk
        assert world.answers() == disk
        if disk is None:
            assert told.startswith("DeploymentNotFound"), told
        else:
            assert json.loads(told)["in_sync"] is True, told
            assert json.loads(told)["changed_files"] == [], told
        return disk

    def go_on(self, world: World, operation: str, outcome: str, *, after: int | None) -> None:
        """Do the same once more, as a script would, and find nothing left over."""
        there = world.on_disk() == after and not any(
            notice.change for notice in claim.notices(world.repository)
        )
        again, _ = world.run(operation, None, "next")
        if operation == "create" and there:
            assert "exists already" in again, (outcome, again)
        else:
            assert succeeded(again), (outcome, again)
        expected = {"create": NEW if there else NEXT, "update": NEXT, "delete": None}[operation]
        assert self.agree(world) == expected, (outcome, again)
        assert world.leftovers() == [], (outcome, again, world.leftovers())


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Three models that tell by their answers which one they are, by path."""
    return save_models(tmp_path_factory.mktemp("saved"))


@pytest.fixture
def faults(tmp_path: Path, models: dict[str, str]) -> Iterator[Faults]:
    """Four worlds to try steps in."""
    worlds = [World(tmp_path / f"world{number}", models) for number in range(4)]
    with ThreadPoolExecutor(len(worlds)) as pool:
        for world in worlds:
            world.start()
        yield Faults(worlds)
        list(pool.map(World.stop, worlds))


@pytest.mark.timeout(1800)
@pytest.mark.parametrize("kind", STRIDE)
def test_every_step(faults: Faults, kind: str, record_property: Any) -> None:
    """After one call that fails, or a server that dies, disk, server and record agree on old or new, and it goes on."""
    started = time.monotonic()
    for operation in OPERATIONS:
        steps = list(enumerate(faults.steps(operation)))
        if kind == "one ENOSPC":
            steps = [(step, event) for step, event in steps if event in NEEDS_SPACE]
        elif kind != "server":
            steps = [(step, event) for step, event in steps if event != "fcntl.flock"]
        faults.attempt(operation, kind, steps[:: 1 if os.environ.get("ALL_STEPS") else STRIDE[kind]])
    seconds = time.monotonic() - started
    table = f"{faults.table()}\nlongest operation {faults.longest:.1f} s, errors {dict(faults.said)}, {seconds:.0f} s"
    record_property("table", table)
    print(f"\n{table}")  # noqa: T201 - the table is the point
    assert faults.failures == [], "\n".join(faults.failures)


def alone(work: Any) -> dict[str, Any]:
    """Do something in a process of its own that may mount filesystems, for itself only; return what it returns."""
    reading, writing = os.pipe()
    pid = os.fork()
    if pid == 0:  # pragma: no cover - another process
        os.close(reading)
        user, group = os.getuid(), os.getgid()
        try:
            if ctypes.CDLL(None).unshare(CLONE_NEWUSER | CLONE_NEWNS) != 0:
                result: dict[str, Any] = {"skip": "no namespaces for this user"}
            else:
                Path("/proc/self/setgroups").write_text("deny")
                Path("/proc/self/uid_map").write_text(f"0 {user} 1")
                Path("/proc/self/gid_map").write_text(f"0 {group} 1")
                result = work()
        except BaseException:  # noqa: BLE001 - to be told to the parent, whatever it is
            result = {"error": traceback.format_exc()}
        with open(writing, "w") as pipe:  # noqa: PTH123 - a descriptor
            json.dump(result, pipe)
        os._exit(0)
    os.close(writing)
    with open(reading) as pipe:  # noqa: PTH123 - a descriptor
        text = pipe.read()
    os.waitpid(pid, 0)
    found: dict[str, Any] = json.loads(text)
    return found


@dataclass(slots=True)
class SmallDisk:
    """A filesystem of its own, of which so much is free as a test wants."""

    directory: Path
    ballast: Path = field(init=False)

    def mount(self) -> None:
        """Mount it."""
        self.directory.mkdir()
        mount = shutil.which("mount")
        assert mount is not None
        subprocess.run([mount, "-t", "tmpfs", "-o", "size=2m", "tmpfs", self.directory], check=True)
        self.ballast = self.directory / "ballast"

    def leave(self, pages: int) -> None:
        """Fill it up but for so many pages."""
        self.ballast.unlink(missing_ok=True)
        free = os.statvfs(self.directory)
        with self.ballast.open("wb") as file:
            file.write(bytes(max(free.f_bavail - pages, 0) * free.f_frsize))

    def clear(self) -> None:
        """Free all of it."""
        self.ballast.unlink()


def test_a_full_disk(tmp_path: Path, models: dict[str, str], record_property: Any) -> None:
    """On a disk with room for only so many pages, each operation is done, or nothing has changed and the disk is named."""

    def work() -> dict[str, Any]:
        disk = SmallDisk(tmp_path / "disk")
        try:
            disk.mount()
        except (subprocess.CalledProcessError, AssertionError) as error:
            return {"skip": f"cannot mount: {error}"}
        world = World(disk.directory / "world", models)
        world.start()
        bench = Faults([world])
        try:
            for operation in OPERATIONS:
                for pages in range(0, 26, 1 if os.environ.get("ALL_STEPS") else 8):
                    bench.outcomes[
                        operation, "full disk", on_full_disk(bench, world, disk, operation, pages)
                    ] += 1
        finally:
            world.stop()
        return {"table": bench.table()}

    result = alone(work)
    if "skip" in result:
        pytest.skip(result["skip"])
    assert "error" not in result, result["error"]
    record_property("table", result["table"])
    print(f"\n{result['table']}")  # noqa: T201 - the table is the point


def on_full_disk(bench: Faults, world: World, disk: SmallDisk, operation: str, pages: int) -> str:
    """Run an operation with so many pages free; say how it ended, and what was there then."""
    bench.prepare(world, operation)
    before, after = STATES[operation]
    disk.leave(pages)
    outcome, _ = world.run(operation, None, "new")
    done = succeeded(outcome)
    assert bench.agree(world) == (after if done else before), (pages, outcome)
    assert world.leftovers() == [], (pages, outcome)
    assert done or "No space left on device" in outcome, (pages, outcome)
    disk.clear()
    bench.go_on(world, operation, outcome, after=after)
    return f"{'done' if done else 'failed'}, {'new' if done else 'old'}"
