"""Operations with a fault at one of the system calls that they make, and what must be true afterwards, whatever the fault.

The calls are not picked by hand: an operation is run once, and each of its calls that change something in the
repository or beside it is noted; then it is run once more for each of these calls, with the fault there.
"""

from __future__ import annotations

import json
import os
import queue
import threading
import time
from collections import Counter
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from mlflow_triton.repository import claim
from mlflow_triton.repository.layout import KEPT
from worlds import NEW, NEXT, OLD, Fault, World, can_fail, succeeded

if TYPE_CHECKING:
    from collections.abc import Iterable

    from system_calls import Call

#: By operation, which model there is before and after it, and which one it keeps. ``keep`` is an update with keep_previous.
OPERATIONS = {
    "create": ((None, None), (NEW, None)),
    "update": ((OLD, None), (NEW, None)),
    "delete": ((OLD, None), (None, None)),
    "keep": ((OLD, None), (NEW, OLD)),
    "rollback": ((OLD, NEW), (NEW, OLD)),
}
#: What a kind of fault may end with: on a filesystem whose renames neither exchange nor refuse to replace; on another
#: machine, which sees the repository as a mount of its own, and not what lies beside it; and the next operation there.
PLAIN, AWAY, THEN_AWAY = ", plain renames", ", elsewhere", ", next elsewhere"
#: Seconds in which an operation must have ended whose server died.
BOUND = 40.0
#: Calls that remove what the operation made. What they leave is for the next one.
REMOVING = {"unlink", "unlinkat", "rmdir"}
#: Always the same one by default: what CI tries has been tried before.
SEED = int(os.environ.get("STEPS_SEED", "0"))


@dataclass(slots=True)
class Trials:
    """Tries the steps of operations on several worlds at once, and counts what came of it.

    Attributes:
        worlds: To try them in.
        outcomes: By operation, fault, and how both ended.
        failures: What was not as it must be.
        said: The errors that operations ended with.
        longest: Seconds that an operation took at most.
    """

    worlds: list[World]
    outcomes: Counter[tuple[str, str, str]] = field(default_factory=Counter)
    failures: list[str] = field(default_factory=list)
    said: Counter[str] = field(default_factory=Counter)
    longest: float = 0.0

    def steps(self, operation: str, kind: str = "none") -> list[Call]:
        """Run an operation without a fault; return the calls that it makes where such a fault is to happen."""
        world = self.worlds[0]
        self.prepare(world, operation)
        fault = self.fault(world, kind, -1)
        fault.kind = "none"
        outcome = world.run(operation, fault, "new", away=kind.endswith(AWAY))
        assert succeeded(outcome), outcome
        assert self.agree(world) == OPERATIONS[operation][1]
        assert world.leftovers() == []
        return fault.seen

    def fault(self, world: World, kind: str, step: int) -> Fault:
        """Return the fault that a kind's name stands for."""
        return Fault(
            kind.partition(",")[0].removeprefix("one "),
            step,
            world.server.pid,
            str(world.directory),
            lasting=not kind.startswith("one "),
            plain_renames=kind.endswith(PLAIN),
        )

    def every(self, kind: str, *, points: int) -> None:
        """Try each step of each operation, or so many points of each, chosen by the seed, unless ALL_STEPS is set."""
        started = time.monotonic()
        for operation in OPERATIONS:
            calls = self.steps(operation, kind)
            what = kind.removeprefix("one ")
            steps = [step for step, call in enumerate(calls) if "kill" in kind or can_fail(call, what)]
            stride = 1 if os.environ.get("ALL_STEPS") else -(-len(steps) // points)
            names = Counter(call.name for call in calls) if kind == "kill client" else {}
            print(f"{operation}: {len(steps)} of {len(calls)} calls {dict(names) or ''}")  # noqa: T201 - the figures are the point
            self.attempt(operation, kind, steps[SEED % stride :: stride])
        seconds = time.monotonic() - started
        last = (
            f"longest operation {self.longest:.1f} s, errors {dict(self.said)}, seed {SEED}, {seconds:.0f} s"
        )
        print(f"{self.table()}\n{last}")  # noqa: T201
        assert self.failures == [], "\n".join([f"STEPS_SEED={SEED}", *self.failures])

    def attempt(self, operation: str, kind: str, steps: Iterable[int]) -> None:
        """Try steps of an operation, on all worlds."""
        tasks: queue.SimpleQueue[int] = queue.SimpleQueue()
        for step in steps:
            tasks.put(step)

        def work(world: World) -> None:
            while True:
                try:
                    step = tasks.get_nowait()
                except queue.Empty:
                    return
                fault = self.fault(world, kind, step)
                away = kind.endswith(AWAY), kind.endswith(THEN_AWAY)
                try:
                    self.outcomes[operation, kind, self.try_one(world, operation, fault, away)] += 1
                except Exception as error:  # noqa: BLE001 - all of them are told together
                    at = next(iter(fault.seen[step:]), "which was not reached")
                    self.failures.append(f"{kind} at step {step} ({at}) of {operation}: {error!r}")
                    self.reset(world)

        threads = [threading.Thread(target=work, args=(world,)) for world in self.worlds]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()

    def try_one(
        self, world: World, operation: str, fault: Fault, away: tuple[bool, bool] = (False, False)
    ) -> str:
        """Run an operation with a fault, look at what is there, run the next operation, and look again.

        `away`: which of the two are run elsewhere.
        """
        self.prepare(world, operation)
        before, after = OPERATIONS[operation]
        started = time.monotonic()
        outcome = world.run(operation, fault, "new", away=away[0])
        took = time.monotonic() - started
        self.longest = max(self.longest, took)
        assert took < BOUND, outcome
        assert len(fault.seen) > fault.step, outcome
        told = "done" if succeeded(outcome) else "killed" if outcome == "killed" else "failed"
        assert (told == "killed") == (fault.kind == "kill client"), outcome
        if told == "failed":
            self.said[outcome.partition(":")[0]] += 1
            assert "'m'" in outcome or str(world.repository.parent) in outcome, outcome
        if fault.kind == "kill server":
            world.stop()
            world.start()
            if fault.step % 2:
                restored = world.forked(lambda client: [entry.text for entry in client.restore()])
                assert succeeded(restored), restored
        elif fault.kind != "kill client" and not fault.lasting:
            # What can be undone has been undone when the error is told.
            assert self.agree(world) == (after if told == "done" else before), outcome
            assert not interrupted(world), outcome
            if fault.seen[fault.step].name not in REMOVING:
                assert world.leftovers() == [], (outcome, world.leftovers())
        loaded = fault.kind != "kill server" or fault.step % 2 == 1
        found = self.agree(world, loaded=loaded)
        between = fault.plain_renames and interrupted(world) and found[0] is None  # two stand for one
        assert found in (before, after) or between, outcome
        assert found == after or told != "done", outcome
        self.go_on(world, operation, fault.step, outcome, loaded=loaded, away=away)
        return f"{told}, {'new' if found == after else 'old'}"

    def agree(self, world: World, *, loaded: bool = True) -> tuple[int | None, int | None]:
        """Return which model there is, and which one it keeps, by the disk, the server and the record alike.

        Args:
            world: Where.
            loaded: Whether the server has loaded what is on disk, as a server that was killed has not.
        """
        disk = world.on_disk(), world.on_disk(KEPT)
        told = world.client(None, "get_deployment", "m")
        if interrupted(world):
            assert "interrupted" in told, told
            if loaded:
                assert world.answers() in (OLD, NEW, None), world.answers()
            return disk
        if disk[0] is None:
            assert told.startswith("DeploymentNotFound"), told
        else:
            assert json.loads(told)["in_sync"] is loaded, told
            assert json.loads(told)["changed_files"] == [], told
        assert world.answers() == (disk[0] if loaded else None), told
        return disk

    def go_on(
        self,
        world: World,
        operation: str,
        step: int,
        outcome: str,
        *,
        loaded: bool = True,
        away: tuple[bool, bool] = (False, False),
    ) -> None:
        """Have the doctor put things in order, for every third step; do the same once more, as a script would."""
        if step % 3 == 0:
            self.repair(world, outcome, away=away[1])
            assert any(away) or world.leftovers() == [], (outcome, world.leftovers())
        pending = interrupted(world)
        there = world.on_disk(), world.on_disk(KEPT)
        again = world.run(operation, None, "next", away=away[1])
        if operation == "create" and there[0] is not None and not pending:
            assert "exists already" in again, (outcome, again)
        else:
            assert succeeded(again), (outcome, again)
            loaded = True
        assert self.agree(world, loaded=loaded) in self.next(operation, there, pending=pending), (
            outcome,
            again,
        )
        if any(away):  # a machine does not see all that the other one has left over
            self.repair(world, outcome, away=False)
            self.repair(world, outcome, away=True)
        assert world.leftovers() == [], (outcome, again, world.leftovers())

    def repair(self, world: World, outcome: str, *, away: bool) -> None:
        """Have the doctor finish or undo what was interrupted, and remove what is left over."""
        repaired = world.forked(lambda client: list(client._deployer()._recovery.repair()), away=away)
        assert succeeded(repaired), (outcome, repaired)
        assert all(well for _, well, _ in json.loads(repaired)), (outcome, repaired)
        assert not interrupted(world), (outcome, repaired)

    def next(
        self, operation: str, there: tuple[int | None, int | None], *, pending: bool
    ) -> list[tuple[int | None, int | None]]:
        """Return what there may be after the same operation once more, if this was there before it."""
        before, after = OPERATIONS[operation]
        if operation == "create":
            return [(NEXT, None)] if pending or there[0] is None else [after]
        if operation == "rollback":  # one that stands after all is not made again
            return [after] if pending or there == before else [before]
        if operation == "keep":  # of what the first one has put there, finished or undone
            return [(NEXT, NEW), (NEXT, OLD)] if pending else [(NEXT, there[0])]
        return [{"update": (NEXT, None), "delete": (None, None)}[operation]]

    def prepare(self, world: World, operation: str) -> None:
        """Bring a world to where the operation begins."""
        wanted = OPERATIONS[operation][0]
        there = (world.on_disk(), world.on_disk(KEPT))
        serves = world.answers() == there[0]
        if serves and there == wanted:
            steps = []
        elif wanted[0] is None:
            steps = [("delete", "")]
        elif wanted[1] is None:
            steps = [("create" if there[0] is None else "update", "old")]
        elif serves and there == (wanted[1], wanted[0]):
            steps = [("rollback", "")]
        else:
            steps = [("create" if there[0] is None else "update", "new"), ("keep", "old")]
        for verb, model in steps:
            outcome = world.run(verb, None, model)
            assert succeeded(outcome), outcome
        assert self.agree(world) == wanted

    def reset(self, world: World) -> None:
        """Give a world that a failure has left in disorder a new start."""
        world.stop()
        world.directory = world.directory.with_name(f"{world.directory.name}x")
        world.start()

    def table(self) -> str:
        """How many points were tried, what the operation itself said, and what was on disk then."""
        columns = ["killed, old", "killed, new", "failed, old", "failed, new", "done, new"]
        lines = [f"{'operation':<10} {'fault':<26} {'points':>6} " + " ".join(columns)]
        for operation, kind in sorted({key[:2] for key in self.outcomes}):
            counts = [self.outcomes[operation, kind, column] for column in columns]
            cells = " ".join(f"{count:>{len(column)}}" for count, column in zip(counts, columns, strict=True))
            lines.append(f"{operation:<10} {kind:<26} {sum(counts):>6} {cells}")
        return "\n".join(lines)


def interrupted(world: World) -> bool:
    """Say whether a change has been begun, and neither finished nor undone."""
    return any(notice.change for notice in claim.notices(world.repository))
