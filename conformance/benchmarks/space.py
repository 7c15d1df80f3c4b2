"""What create and update of a large model write, and take of disk and memory, beside one link and one download."""

from __future__ import annotations

import shutil
from typing import TYPE_CHECKING

from benchmarks.figures import Quantity, Result, Table
from benchmarks.usage import Usage, measure

if TYPE_CHECKING:
    from pathlib import Path

    from benchmarks.bench import Bench, Triton

__all__ = ["run"]

SIZE = 512 << 20
SIZE_QUICK = 2 << 20
COLUMNS = {
    "written": "written",
    "peak disk": "peak_disk",
    "disk after": "disk",
    "peak memory": "peak_memory",
    "grown by": "grown_memory",
}


def run(bench: Bench) -> Result:
    """Measure a large model from files on the repository's filesystem and from an MLflow server."""
    size = SIZE_QUICK if bench.quick else SIZE
    rows: list[dict[str, str | int | Quantity]] = []
    problems: list[str] = []
    with bench.triton("--disable-auto-complete-config") as server:
        for store, tracking in {"files": bench.mlflow_files, "MLflow server": bench.mlflow_server}.items():
            if bench.quick and store != "files":
                continue  # its start takes longer than all the rest
            bench.say(f"space: {Quantity((size,), 'B')} from {store}")
            with tracking():
                found, wrong = _measure(bench, server, size)
            problems += wrong
            for operation, usages in found.items():
                row: dict[str, str | int | Quantity] = {"from": store, "operation": operation}
                for column, field in COLUMNS.items():
                    row[column] = Quantity(tuple(getattr(usage, field) for usage in usages), "B")
                rows.append(row)
    notes = [
        f"A model with a file of {Quantity((size,), 'B')}, each operation in a process of its own.",
        "fetch: the floor; its three files linked or downloaded with a plain request each, by a bare Python.",
        (
            "written: to disks, by the process (write_bytes of /proc/self/io). disk: blocks of all files, each counted "
            "once whatever its links, more than before. memory: resident; grown by: what the operation itself added to "
            "the imports of its process."
        ),
    ]
    return Result([Table("Space of create and update", rows, notes)], problems)


def _measure(bench: Bench, server: Triton, size: int) -> tuple[dict[str, list[Usage]], list[str]]:
    """Return each operation's usages, and wrong answers."""
    first, second = bench.log(1, size=size), bench.log(2, size=size)
    fetched = bench.directory / "fetched"
    steps = {"create": first} if bench.quick else {"create": first, "update": second}
    found: dict[str, list[Usage]] = {verb: [] for verb in ("fetch", *steps)}
    wrong: list[str] = []
    for _ in range(1 if bench.quick else 3):
        found["fetch"].append(_fetch(fetched, first.files, bench.directory))
        for verb, model in steps.items():
            operation = {"verb": verb, "target": server.target(), "model": model.uri, "files": {}}
            found[verb].append(measure(operation, bench.directory))
            wrong += server.wrong("plugin", model.number)
        server.client().delete_deployment("plugin")
    return found, wrong


def _fetch(target: Path, files: object, directory: Path) -> Usage:
    operation = {"verb": "fetch", "target": str(target), "model": "", "files": files}
    usage = measure(operation, directory)
    shutil.rmtree(target)
    return usage
