"""Eight deployments at once, beside the same eight in turn."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import TYPE_CHECKING

from benchmarks.bench import interleaved, seconds
from benchmarks.figures import Quantity, Result, Table, ratio

if TYPE_CHECKING:
    from benchmarks.bench import Bench, Triton

__all__ = ["run"]

DEPLOYMENTS = 8


def run(bench: Bench) -> Result:
    """Create eight deployments in turn and at once, of models that load quickly and slowly."""
    rows: list[dict[str, str | int | Quantity]] = []
    problems: list[str] = []
    count, turns, durations = (2, 1, [0.2]) if bench.quick else (DEPLOYMENTS, 3, [0.0, 1.0])
    with bench.triton(*(["--disable-auto-complete-config"] if bench.quick else [])) as server:
        for load_seconds in durations:
            bench.say(f"parallel: {count} models that take {load_seconds:g} s in initialize")
            uris = [bench.save_for_mlflow(n, load_seconds=load_seconds) for n in range(count)]
            found = interleaved(
                turns,
                {
                    "in turn": partial(_create, server, uris, 1, problems),
                    "at once": partial(_create, server, uris, count, problems),
                },
            )
            rows.append(
                {
                    "deployments": count,
                    "initialize": f"{load_seconds:g} s",
                    "in turn": found["in turn"],
                    "at once": found["at once"],
                    "times as fast": ratio(found["in turn"], found["at once"]),
                }
            )
    notes = [
        "By threads that share one client. Triton itself loads four models at once, unless told otherwise."
    ]
    return Result([Table("Deployments at once", rows, notes)], problems)


def _create(server: Triton, uris: list[str], threads: int, problems: list[str]) -> float:
    """Create a deployment of each URI and return the seconds; delete them again."""
    client = server.client()
    names = [f"m{number}" for number in range(len(uris))]
    with ThreadPoolExecutor(threads) as pool:
        taken = seconds(lambda: list(pool.map(client.create_deployment, names, uris)))
        for number, name in enumerate(names):
            problems += server.wrong(name, number)
        list(pool.map(client.delete_deployment, names))
    return taken
