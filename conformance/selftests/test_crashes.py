"""Faults at every step of an operation: a killed client, a killed server, a full disk, a revoked permission.

The steps are not picked by hand: a client is run once with a hook that sees each of its calls that change
something in the repository or beside it, and then once more for each of these calls, with the fault there.
Afterwards whatever is there must be whole, and the next operation must succeed and leave nothing over.
"""

from __future__ import annotations

import json
import os
import queue
import threading
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import pytest

from mlflow_triton import flavor
from mlflow_triton.repository import claim
from mlflow_triton.repository.layout import KEPT
from worlds import CONFIG, NEEDS_SPACE, NEW, NEXT, OLD, VALUES, Fault, World, save_models, succeeded

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="forks its clients")

OPERATIONS = ("create", "update", "delete")
#: An update with keep_previous, which does everything that an update does, and a rollback.
KEEPING = ("keep", "rollback")
#: Of the steps, every how manyth is tried; every one if ALL_STEPS is set.
STRIDE = {"kill client": 2, "kill server": 5, "ENOSPC": 3, "EACCES": 6}


@dataclass(slots=True)
class Bench:
    """Tries the steps of an operation on several worlds at once, and counts what came of it."""

    worlds: list[World]
    outcomes: Counter[tuple[str, str, str]] = field(default_factory=Counter)
    failures: list[str] = field(default_factory=list)

    def steps(self, operation: str) -> list[str]:
        """Run an operation without a fault; return the calls that it makes."""
        world = self.worlds[0]
        self.prepare(world, operation)
        outcome, seen = world.run(operation, Fault("none", -1, 0, str(world.directory)), "new")
        assert succeeded(outcome), outcome
        assert world.leftovers() == []
        return seen

    def prepare(self, world: World, operation: str) -> None:
        """Bring a world to where the operation begins."""
        if operation == "rollback":
            self.prepare_rollback(world)
            return
        there = world.on_disk() is not None
        verb = "delete" if operation == "create" else "update" if there else "create"
        outcome, _ = world.run(verb, None, "old")
        assert succeeded(outcome), outcome

    def prepare_rollback(self, world: World) -> None:
        """Bring a world to where the old model serves and the new one is kept."""
        there = (world.on_disk(), world.on_disk(KEPT))
        if there == (NEW, OLD) and world.answers() == NEW:
            steps = [("rollback", "old")]
        elif there == (OLD, NEW) and world.answers() == OLD:
            steps = []
        else:
            steps = [("create" if there[0] is None else "update", "new"), ("keep", "old")]
        for verb, model in steps:
            outcome, _ = world.run(verb, None, model)
            assert succeeded(outcome), outcome

    def attempt(self, operation: str, kind: str, steps: list[tuple[int, str]]) -> None:
        """Try each step, on all worlds."""
        tasks: queue.SimpleQueue[tuple[int, str]] = queue.SimpleQueue()
        for step in steps:
            tasks.put(step)

        def work(world: World) -> None:
            while True:
                try:
                    step, event = tasks.get_nowait()
                except queue.Empty:
                    return
                try:
                    self.outcomes[operation, kind, self.try_one(world, operation, kind, step)] += 1
                except Exception as error:  # noqa: BLE001 - all of them are told together
                    self.failures.append(f"{kind} at step {step} ({event}) of {operation}: {error!r}")
                    self.reset(world)

        threads = [threading.Thread(target=work, args=(world,)) for world in self.worlds]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()

    def reset(self, world: World) -> None:
        """Give a world that a failure has left in disorder a new start."""
        world.stop()
        world.directory = world.directory.with_name(f"{world.directory.name}x")
        world.start()

    def try_one(self, world: World, operation: str, kind: str, step: int) -> str:
        """Run an operation with a fault, look at what is there, run the next operation, and look again."""
        self.prepare(world, operation)
        before, after = {"create": (None, NEW), "delete": (OLD, None)}.get(operation, (OLD, NEW))
        was_kept = world.on_disk(KEPT)
        outcome, _ = world.run(operation, Fault(kind, step, world.server.pid, str(world.directory)), "new")
        told = "done" if succeeded(outcome) else "killed" if outcome == "killed" else "failed"
        if kind == "kill server":
            world.stop()
            world.start()
        else:
            assert world.answers() in (before, after), (outcome, world.answers())
        disk = world.on_disk()
        assert disk in (before, after), outcome
        if told == "done":
            assert disk == after, outcome
        if operation in KEEPING:
            assert world.on_disk(KEPT) == (OLD if disk == after else was_kept), outcome
        committed = disk == after and not any(notice.change for notice in claim.notices(world.repository))
        # The next operation: the same once more, as a script would do.
        again, _ = world.run(operation, None, "next")
        if operation == "create" and committed:
            assert "exists already" in again, again
            expected: int | None = NEW
        else:
            assert succeeded(again), (outcome, again)
            expected = {"delete": None, "rollback": OLD if committed else NEW}.get(operation, NEXT)
        assert world.on_disk() == expected, (outcome, again)
        if not (
            kind == "kill server" and operation == "create" and committed
        ):  # a new server has loaded nothing
            assert world.answers() == expected, (outcome, again)
        assert world.leftovers() == [], (outcome, again, world.leftovers())
        if operation == "rollback":
            assert {world.on_disk(), world.on_disk(KEPT)} == {OLD, NEW}, (outcome, again)
        elif operation == "keep":  # what the first one has put there, finished or undone
            assert world.on_disk(KEPT) in ({NEW} if committed else {OLD, NEW}), (outcome, again)
        return f"{told}, {'new' if disk == after else 'old'}"

    def table(self) -> str:
        """How many points were tried, what the operation itself said, and what was on disk then."""
        columns = ["killed, old", "killed, new", "failed, old", "failed, new", "done, new"]
        lines = [f"{'operation':<10} {'fault':<12} {'points':>6} " + " ".join(columns)]
        for operation, kind in sorted({key[:2] for key in self.outcomes}):
            counts = [self.outcomes[operation, kind, column] for column in columns]
            cells = " ".join(f"{count:>{len(column)}}" for count, column in zip(counts, columns, strict=True))
            lines.append(f"{operation:<10} {kind:<12} {sum(counts):>6} {cells}")
        return "\n".join(lines)


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Three models that tell by their answers which one they are, by path."""
    return save_models(tmp_path_factory.mktemp("saved"))


@pytest.fixture
def bench(tmp_path: Path, models: dict[str, str], request: pytest.FixtureRequest) -> Any:
    """Start as many worlds as asked for."""
    worlds = [World(tmp_path / f"world{number}", models) for number in range(request.param)]
    with ExitStack() as stack:
        for world in worlds:
            world.start()
            stack.callback(world.stop)
        yield Bench(worlds)


@pytest.mark.parametrize("bench", [1], indirect=True)
def test_a_killed_client(bench: Bench) -> None:
    """A client that is killed while the model that it publishes is loaded is made up for by the next operation."""
    steps = bench.steps("update")
    at = steps.index("renameat2") + 1
    bench.attempt("update", "kill client", [(at, steps[at])])
    assert bench.failures == []
    assert bench.outcomes == {("update", "kill client", "killed, new"): 1}


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize("bench", [4], indirect=True)
@pytest.mark.parametrize("kind", STRIDE)
def test_every_step(bench: Bench, kind: str) -> None:
    """After a fault at any step: old or new, whole; and the next operation succeeds and leaves nothing over."""
    started = time.monotonic()
    for operation in (*OPERATIONS, *KEEPING):
        steps = list(enumerate(bench.steps(operation)))
        if kind == "ENOSPC":
            steps = [(step, event) for step, event in steps if event in NEEDS_SPACE]
        stride = 1 if os.environ.get("ALL_STEPS") else STRIDE[kind] * (6 if operation in KEEPING else 1)
        bench.attempt(operation, kind, steps[::stride])
    print(f"\n{bench.table()}\n{time.monotonic() - started:.0f} s")  # noqa: T201 - the table is the point
    assert bench.failures == [], "\n".join(bench.failures)


#: What two processes do to one name in the same moment, and the seconds that each waits for the other.
RACES = (
    ("update", "update", 30),
    ("update", "delete", 30),
    ("create", "create", 30),
    ("create", "delete", 30),
    ("update", "update", 0.01),
)


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.parametrize("bench", [1], indirect=True)
def test_races(bench: Bench) -> None:
    """Of two processes at one name, each is told how it ended; disk, record and server agree on one of the models."""
    (world,) = bench.worlds
    told: Counter[str] = Counter()
    for turn in range(int(os.environ.get("RACE_ROUNDS", "200" if os.environ.get("ALL_STEPS") else "40"))):
        *verbs, patience = RACES[turn % len(RACES)]
        if "create" not in verbs and world.on_disk() is None:
            world.run("create", None, "old")
        before = world.on_disk()
        outcomes: dict[str, str] = {}

        def work(verb: str, model: str, patience: float, outcomes: dict[str, str]) -> None:
            arguments = ("m",) if verb == "delete" else ("m", world.models[model], None)
            config = {"lock_timeout": patience}
            outcomes[model], _ = world.client(None, f"{verb}_deployment", *arguments, config)

        threads = [
            threading.Thread(target=work, args=(verb, model, patience, outcomes))
            for verb, model in zip(verbs, ("new", "next"), strict=True)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        for outcome in outcomes.values():
            told["done" if succeeded(outcome) else outcome.partition(":")[0]] += 1
        assert set(told) <= {"done", "DeploymentBusy", "DeploymentExists", "DeploymentNotFound"}, outcomes
        disk = world.on_disk()
        written = {
            VALUES[model]
            for verb, model in zip(verbs, ("new", "next"), strict=True)
            if succeeded(outcomes[model]) and verb != "delete"
        }
        kept = {before} if not any(map(succeeded, outcomes.values())) else set()
        gone = {None} if "delete" in verbs else set()
        assert disk in written | kept | gone | ({before} if "exists already" in str(outcomes) else set()), (
            outcomes
        )
        assert world.answers() == disk, outcomes
        assert world.leftovers() == [], outcomes
        described, _ = world.client(None, "get_deployment", "m")
        if disk is None:
            assert described.startswith("DeploymentNotFound"), (outcomes, described)
        else:
            assert json.loads(described)["in_sync"] is True, (outcomes, described)
            assert json.loads(described)["changed_files"] == [], (outcomes, described)
        # Of two that both were done, one came after the other, and what it left is what is there.
        assert len(outcomes) == 2
        if all(map(succeeded, outcomes.values())) and "delete" not in verbs:
            assert disk in written, (outcomes, disk)
    print(f"\n{turn + 1} races: {dict(told)}")  # noqa: T201 - the figures are the point
    assert told["DeploymentBusy"] >= 1


SLEEPER = """\
import time
class TritonPythonModel:
    def initialize(self, args):
        time.sleep(1)
    def execute(self, requests):
        return []
"""


@pytest.mark.slow
@pytest.mark.parametrize("bench", [1], indirect=True)
def test_different_names_in_parallel(bench: Bench, tmp_path: Path) -> None:
    """Eight deployments at once take less than half of the time that they take in turn."""
    (world,) = bench.worlds
    (tmp_path / "source" / "1").mkdir(parents=True)
    (tmp_path / "source" / "1" / "model.py").write_text(SLEEPER)
    (tmp_path / "source" / "config.pbtxt").write_text(CONFIG)
    flavor.save_model(tmp_path / "source", tmp_path / "saved")

    def create(number: int) -> None:
        outcome, _ = world.client(None, "create_deployment", f"m{number}", str(tmp_path / "saved"))
        assert succeeded(outcome), outcome

    started = time.monotonic()
    for number in range(8):
        create(number)
    in_turn = time.monotonic() - started
    for number in range(8):
        world.client(None, "delete_deployment", f"m{number}")
    started = time.monotonic()
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(create, range(8)))
    at_once = time.monotonic() - started
    print(f"\nin turn {in_turn:.1f} s, at once {at_once:.1f} s: {in_turn / at_once:.1f} times as fast")  # noqa: T201
    assert in_turn > 2 * at_once
