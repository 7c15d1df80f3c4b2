"""Several processes at once: on one name, where one wins and the others are told, and on several, which do not wait."""

from __future__ import annotations

import json
import os
import threading
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING

import pytest

from mlflow_triton import flavor
from worlds import CONFIG, VALUES, World, alone, save_models, succeeded, worlds_in

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

pytestmark = [
    pytest.mark.skipif(not hasattr(os, "fork"), reason="forks its clients"),
    pytest.mark.slow,
]

#: What two processes do to one name in the same moment, and the seconds that each waits for the other.
RACES = (
    ("update", "update", 30),
    ("update", "delete", 30),
    ("create", "create", 30),
    ("create", "delete", 30),
    ("update", "update", 0.01),
)
ROUNDS = int(os.environ.get("RACE_ROUNDS", "200" if os.environ.get("ALL_STEPS") else "20"))


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    """A server with its repository."""
    models = save_models(tmp_path_factory.mktemp("saved"))
    with worlds_in(tmp_path_factory.mktemp("worlds"), models, 1) as worlds:
        yield worlds[0]


@pytest.mark.timeout(1800)
@pytest.mark.parametrize("machines", [1, 2])
def test_races(world: World, machines: int) -> None:
    """Of two processes at one name, each is told how it ended; disk, record and server agree on one of the models.

    Another machine sees the repository as a mount of its own, and does not see what lies beside it.
    """
    if machines == 2 and (reason := alone(lambda: None)):
        pytest.skip(reason)
    told: Counter[str] = Counter()
    for turn in range(ROUNDS):
        *verbs, patience = RACES[turn % len(RACES)]
        if "create" not in verbs and world.on_disk() is None:
            world.run("create", None, "old")
        before = world.on_disk()
        outcomes: dict[str, str] = {}

        def work(verb: str, model: str, patience: float, outcomes: dict[str, str]) -> None:
            arguments = ("m",) if verb == "delete" else ("m", world.models[model], None)
            away = machines == 2 and model == "next"
            outcomes[model] = world.forked(
                lambda client: getattr(client, f"{verb}_deployment")(*arguments, {"lock_timeout": patience}),
                away=away,
            )

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
        described = world.client(None, "get_deployment", "m")
        if disk is None:
            assert described.startswith("DeploymentNotFound"), (outcomes, described)
        else:
            assert json.loads(described)["in_sync"] is True, (outcomes, described)
            assert json.loads(described)["changed_files"] == [], (outcomes, described)
        # Of two that both were done, one came after the other, and what it left is what is there.
        assert len(outcomes) == 2
        if all(map(succeeded, outcomes.values())) and "delete" not in verbs:
            assert disk in written, (outcomes, disk)
    print(f"\n{ROUNDS} races on {machines} machines: {dict(told)}")  # noqa: T201 - the figures are the point
    assert told["DeploymentBusy"] >= 1


SLEEPER = """\
import time
class TritonPythonModel:
    def initialize(self, args):
        with open({path!r}, "a") as file:
            file.write("+")
        time.sleep(1)
        with open({path!r}, "a") as file:
            file.write("-")
    def execute(self, requests):
        return []
"""


def test_different_names_in_parallel(world: World, tmp_path: Path) -> None:
    """Deployments of different names do not wait for each other: their models are loaded at the same time."""
    loads = tmp_path / "loads"
    (tmp_path / "source" / "1").mkdir(parents=True)
    (tmp_path / "source" / "1" / "model.py").write_text(SLEEPER.format(path=str(loads)))
    (tmp_path / "source" / "config.pbtxt").write_text(CONFIG)
    flavor.save_model(tmp_path / "source", tmp_path / "saved")

    def create(number: int) -> None:
        outcome = world.client(None, "create_deployment", f"m{number}", str(tmp_path / "saved"))
        assert succeeded(outcome), outcome

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(create, range(4)))
    text = loads.read_text()
    assert sorted(text) == ["+"] * 4 + ["-"] * 4
    assert "++" in text, text
