"""Single calls that fail, a disk that fails for good, and one that is really full, at every step of an operation.

Beside `test_crashes`. What can be undone must have been undone when the error is told.
``ALL_STEPS=1`` tries every step, else a part that `STEPS_SEED` chooses; ``-s`` shows the tables.
"""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import pytest

from mlflow_triton.models.download import LARGE
from system_calls import SUPPORTED
from trials import OPERATIONS, Trials
from worlds import World, alone, mount, save_models, succeeded, worlds_in

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

pytestmark = [
    pytest.mark.skipif(not SUPPORTED, reason="hands over system calls by their numbers"),
    pytest.mark.slow,
]

#: How many steps of each operation are tried unless ALL_STEPS is set. What is not one lasts.
POINTS = {"ENOSPC": 1, "EACCES": 2, "EIO": 1, "one ENOSPC": 2, "one EACCES": 2, "one EIO": 2}


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Three models that tell by their answers which one they are, by path."""
    return save_models(tmp_path_factory.mktemp("saved"))


@pytest.fixture(scope="module")
def worlds(tmp_path_factory: pytest.TempPathFactory, models: dict[str, str]) -> Iterator[list[World]]:
    """Four worlds to try steps in."""
    with worlds_in(tmp_path_factory.mktemp("worlds"), models, 4) as worlds:
        yield worlds


@pytest.mark.timeout(7200)
@pytest.mark.parametrize("kind", POINTS)
def test_every_step(worlds: list[World], kind: str) -> None:
    """After one call that fails, or all from there on: old or new, whole; and it goes on, with nothing left over."""
    Trials(worlds).every(kind, points=POINTS[kind])


@dataclass(slots=True)
class SmallDisk:
    """A filesystem of its own, of which so much is free as a test wants."""

    directory: Path
    ballast: Path = field(init=False)

    def mount(self) -> None:
        """Mount it."""
        self.directory.mkdir()
        mount("tmpfs", self.directory, kind="tmpfs", options="size=16m")
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


@pytest.mark.timeout(1800)
def test_a_full_disk(tmp_path: Path, models: dict[str, str]) -> None:
    """On a disk with room for only so many pages, each operation is done, or nothing has changed and the disk is named."""
    large = LARGE // os.sysconf("SC_PAGE_SIZE")
    pages = [*range(26), *range(large, large + 34)][:: 1 if os.environ.get("ALL_STEPS") else 25]

    def work() -> list[str]:
        disk = SmallDisk(tmp_path / "disk")
        disk.mount()
        with worlds_in(disk.directory, models, 1) as (world,):
            trials = Trials([world])
            for operation in OPERATIONS:
                for free in pages:
                    outcome = on_full_disk(trials, world, disk, operation, free)
                    trials.outcomes[operation, "full disk", outcome] += 1
            return [trials.table()]

    result = alone(work)
    if isinstance(result, str):
        pytest.skip(result)
    print(f"\n{result[0]}")  # noqa: T201 - the table is the point


def on_full_disk(trials: Trials, world: World, disk: SmallDisk, operation: str, pages: int) -> str:
    """Run an operation with so many pages free; say how it ended, and what was there then."""
    trials.prepare(world, operation)
    before, after = OPERATIONS[operation]
    disk.leave(pages)
    outcome = world.run(operation, None, "new")
    done = succeeded(outcome)
    assert trials.agree(world) == (after if done else before), (pages, outcome)
    assert world.leftovers() == [], (pages, outcome)
    assert done or "No space left on device" in outcome, (pages, outcome)
    disk.clear()
    trials.go_on(world, operation, 1, outcome)
    return f"{'done' if done else 'failed'}, {'new' if done else 'old'}"
