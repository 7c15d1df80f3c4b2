"""A client or a server that is killed before any system call by which an operation changes the repository.

``ALL_STEPS=1`` tries every one, else a part that `STEPS_SEED` chooses; ``-s`` shows the tables.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from system_calls import SUPPORTED
from trials import AWAY, PLAIN, THEN_AWAY, Trials
from worlds import alone, save_models, worlds_in

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

pytestmark = pytest.mark.skipif(not SUPPORTED, reason="hands over system calls by their numbers")

#: How many steps of each operation are tried unless ALL_STEPS is set.
POINTS = {
    "kill client": 8,
    f"kill client{PLAIN}": 2,
    f"kill client{AWAY}": 2,
    f"kill client{THEN_AWAY}": 2,
    "kill server": 5,
}


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Three models that tell by their answers which one they are, by path."""
    return save_models(tmp_path_factory.mktemp("saved"))


@pytest.fixture
def trials(tmp_path: Path, models: dict[str, str], request: pytest.FixtureRequest) -> Iterator[Trials]:
    """As many worlds as asked for, to try steps in."""
    with worlds_in(tmp_path, models, request.param) as worlds:
        yield Trials(worlds)


@pytest.mark.parametrize("trials", [1], indirect=True)
def test_a_killed_client(trials: Trials) -> None:
    """A client that is killed while the model that it publishes is loaded is made up for by the next operation."""
    names = [call.name for call in trials.steps("update")]
    trials.attempt("update", "kill client", [names.index("renameat2") + 1])
    assert trials.failures == []
    assert trials.outcomes == {("update", "kill client", "killed, new"): 1}


@pytest.mark.slow
@pytest.mark.timeout(7200)
@pytest.mark.parametrize("trials", [4], indirect=True)
@pytest.mark.parametrize("kind", POINTS)
def test_every_step(trials: Trials, kind: str) -> None:
    """After a kill at any step: old or new, whole; and the next operation, or the doctor, leaves nothing over."""
    if kind.endswith((AWAY, THEN_AWAY)) and (reason := alone(lambda: None)):
        pytest.skip(reason)
    trials.every(kind, points=POINTS[kind])
