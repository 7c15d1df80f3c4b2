"""How long create and update take, beside placing the files by hand and Triton's own load."""

from __future__ import annotations

from contextlib import ExitStack
from typing import TYPE_CHECKING

from benchmarks.bench import interleaved, seconds
from benchmarks.figures import Quantity, Result, Table, ratio
from benchmarks.floor import ByHand

if TYPE_CHECKING:
    from collections.abc import Callable

    from benchmarks.bench import Bench, Logged, Triton

__all__ = ["run"]

LARGE = 512 << 20
LARGE_QUICK = 2 << 20
FAST_LOAD = "--disable-auto-complete-config"


def run(bench: Bench) -> Result:
    """Create and update a small and a large model from files and from an MLflow server."""
    large = LARGE_QUICK if bench.quick else LARGE
    rows: list[dict[str, str | int | Quantity]] = []
    problems: list[str] = []

    def add(server: Triton, store: str, size: int, load: str, turns: int) -> None:
        model = "small" if size == 0 else str(Quantity((size,), "B"))
        bench.say(f"duration: {model} from {store}, Triton's load {load}")
        models = bench.log(1, size=size), bench.log(2, size=size)
        found, wrong = _measure(server, models, turns)
        for operation, (floor, plugin) in found.items():
            rows.append(
                {
                    "operation": operation,
                    "model": model,
                    "from": store,
                    "Triton's load": load,
                    "by hand": floor,
                    "plugin": plugin,
                    "ratio": ratio(plugin, floor),
                    "beyond": Quantity(
                        tuple(one - other for one, other in zip(plugin.samples, floor.samples, strict=True)),
                        "s",
                    ),
                }
            )
        problems.extend(wrong)

    turns = 1 if bench.quick else 5
    with bench.triton(FAST_LOAD) as server:
        for store, tracking in {"files": bench.mlflow_files, "MLflow server": bench.mlflow_server}.items():
            if bench.quick and store != "files":
                continue  # its start takes longer than all the rest
            with tracking():
                for size in [large] if bench.quick else [0, large]:
                    add(server, store, size, "fast", turns)
    if not bench.quick:
        with bench.triton() as server, bench.mlflow_files():
            add(server, "files", 0, "usual", turns)
    notes = [
        (
            "by hand: files linked (from a store on this filesystem) or downloaded with one plain request each, renamed "
            "into the repository, loaded over a kept gRPC connection: no proof, digests, record, lock, sync or way back."
        ),
        f"Triton's load: usual; or fast, with {FAST_LOAD}, so that the plugin's own share shows more.",
        "ratio and beyond: of the two, turn by turn; median (lowest-highest).",
    ]
    return Result([Table("Duration of create and update", rows, notes)], problems)


def _measure(
    server: Triton, models: tuple[Logged, Logged], turns: int
) -> tuple[dict[str, tuple[Quantity, Quantity]], list[str]]:
    """Return seconds by hand and by the plugin for each operation, and wrong answers."""
    client = server.client()
    hand = ByHand(server, "by-hand")
    first, second = models
    wrong: list[str] = []

    def measured(function: Callable[[], object], name: str, model: Logged) -> float:
        taken = seconds(function)
        wrong.extend(server.wrong(name, model.number))
        return taken

    def create() -> float:
        return measured(lambda: client.create_deployment("plugin", first.uri), "plugin", first)

    def update() -> float:
        taken = measured(lambda: client.update_deployment("plugin", second.uri), "plugin", second)
        client.delete_deployment("plugin")
        return taken

    def create_by_hand() -> float:
        return measured(lambda: hand.create(first), "by-hand", first)

    def update_by_hand() -> float:
        taken = measured(lambda: hand.update(second), "by-hand", second)
        hand.delete()
        return taken

    with ExitStack() as stack:
        stack.enter_context(hand.connected())
        ways = {
            "by hand, create": create_by_hand,
            "by hand, update": update_by_hand,
            "create": create,
            "update": update,
        }
        if turns > 1:
            interleaved(1, ways)  # imports, connections
        found = interleaved(turns, ways)
    return {name: (found[f"by hand, {name}"], found[name]) for name in ("create", "update")}, wrong
