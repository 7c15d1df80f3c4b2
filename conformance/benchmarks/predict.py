"""Predictions, beside the raw clients, the wire and a copy: time, processor time, memory, and eight threads."""

from __future__ import annotations

import http.client
import json
import subprocess
import sys
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from benchmarks.asking import BATCHED, COPY, FRAME, MODEL, RAW, SHARED, SHARED_MEMORY, SOCKET, TABLES, WAYS
from benchmarks.figures import Quantity, Result, Table, ratio
from benchmarks.plot import Curve, Plot
from benchmarks.usage import available

if TYPE_CHECKING:
    from collections.abc import Iterator

    from benchmarks.bench import Bench

__all__ = ["run"]

CONFIG = """\
backend: "python"
instance_group [ { count: 1 kind: KIND_CPU } ]
input [ { name: "x" data_type: TYPE_FP32 dims: [ -1, 16 ] } ]
output [ { name: "y" data_type: TYPE_FP32 dims: [ -1, 16 ] } ]
"""
BATCH = 256
CONFIG_OF_BATCHES = CONFIG.replace("dims: [ -1, 16 ]", "dims: [ 16 ]") + f"max_batch_size: {BATCH}\n"
PYTHON = """\
import triton_python_backend_utils as pb_utils


class TritonPythonModel:
    def execute(self, requests):
        return [pb_utils.InferenceResponse([self.answer(request)]) for request in requests]

    def answer(self, request):
        return pb_utils.Tensor("y", pb_utils.get_input_tensor_by_name(request, "x").as_numpy())
"""
#: Bytes of the tensor -> how often each way has its turn, and requests in a turn.
SIZES = {
    64: (60, 20),
    1 << 20: (40, 3),
    16 << 20: (15, 1),
    128 << 20: (7, 1),
    1 << 30: (7, 1),
}
QUICK_SIZES = {64: (3, 3), 16 << 20: (1, 1)}
#: Bytes of the tensor -> how often each way has its turn with several threads, and seconds of a turn.
SIZES_OF_THREADS = {64: (24, 0.7), 1 << 20: (7, 2.0), 16 << 20: (5, 2.0)}
QUICK_SIZES_OF_THREADS = {64: (1, 0.2)}
LARGEST_FRAME = 16 << 20
#: Below, the memory of a request is lost in that of the process.
SMALLEST_PEAK = 16 << 20
#: What the processes of a size take together, in times the tensor, without gRPC and with it. Linux would end a server.
ROOM, ROOM_FOR_GRPC = 17, 27
THREADS = 8
TIMEOUT = 1800.0


NOTES = [
    "The model answers with its input, in Triton's Python backend. Turn after turn, each in another order: ratios hold where times do not.",
    f"{SOCKET}: bytes put together before, into memory used before: what the wire itself takes. {COPY}: once, in memory.",
    f"{SHARED}: copied into a region used before, asked over a bare socket, copied out into memory used before.",
    "CPU: processor time of the client, all of its threads. Memory: at the worst moment of a request, beyond the input,",
    "  in times the tensor; the answer alone is 1, a frame of it 1 more, and memory shared with the server counts in full.",
]
SHARED_NOTE = "predict and tritonclient.grpc: one client for all threads; the others cannot share one, so each thread has its own."


def run(bench: Bench) -> Result:
    """Ask a model that answers with its input, with tensors of all sizes."""
    with _server(bench) as addresses:
        table, plot, problems = _one_thread(bench, addresses)
        return Result([table, _threads(bench, addresses), _tables(bench, addresses)], problems, [plot])


@contextmanager
def _server(bench: Bench) -> Iterator[dict[str, str]]:
    """Run a server with the model."""
    key, value = next(iter(SHARED_MEMORY.items()))
    with bench.triton(f"--http-restricted-api=shared-memory:{key}={value}") as server:
        address = server.http_url.removeprefix("http://")
        for name, config in {MODEL: CONFIG, BATCHED: CONFIG_OF_BATCHES}.items():
            version = server.model_repository / name / "1"
            version.mkdir(parents=True)
            (version.parent / "config.pbtxt").write_text(config)
            (version / "model.py").write_text(PYTHON)
            connection = http.client.HTTPConnection(address, timeout=TIMEOUT)
            connection.request("POST", f"/v2/repository/models/{name}/load", b"{}")
            answer = connection.getresponse()
            if answer.status != 200:
                raise RuntimeError(f"The model cannot be loaded: {answer.read()!r}")
            connection.close()
        yield {"http": address, "grpc": server.grpc_url}


def _one_thread(bench: Bench, addresses: dict[str, str]) -> tuple[Table, Plot, list[str]]:
    sizes = QUICK_SIZES if bench.quick else SIZES
    named, notes = {}, list(NOTES)
    for size in sizes:
        rooms = available() / size
        gone = [name for name in WAYS if rooms < (ROOM_FOR_GRPC if "grpc" in name.lower() else ROOM)]
        named[size] = [name for name in WAYS if name not in gone and (name != FRAME or size <= LARGEST_FRAME)]
        if gone:
            notes.append(f"{Quantity((size,), 'B')}: the machine has not the memory for {', '.join(gone)}.")
    sizes = {size: taken for size, taken in sizes.items() if RAW in named[size]}
    found = _measured(
        "one thread",
        addresses,
        [
            {"names": named[size], "size": size, "turns": turns, "repeat": repeat}
            for size, (turns, repeat) in sizes.items()
        ],
    )
    large = [size for size in sizes if size >= SMALLEST_PEAK]
    ways = 2 if bench.quick else None  # each is a process
    peaks = _measured("peaks", addresses, [{"names": named[size][:ways], "size": size} for size in large])
    memory = dict(zip(large, peaks, strict=True))
    rows: list[dict[str, str | int | Quantity]] = []
    curves: dict[str, list[tuple[float, float]]] = {name: [] for name in WAYS}
    for size, (taken, _) in zip(sizes, found, strict=True):
        times = {name: Quantity(tuple(taken[name]["time"]), "s") for name in named[size]}
        for name, time in times.items():
            curves[name].append((size, time.median))
            rows.append(
                {
                    "tensor": str(Quantity((size,), "B")),
                    "way": name,
                    "time": time,
                    f"to {RAW}": _median(ratio(time, times[RAW])),
                    f"to {SOCKET}": _median(ratio(time, times[SOCKET])),
                    "CPU": _median(Quantity(tuple(taken[name]["CPU"]), "s")),
                    "memory": f"{memory[size][name] / size:.2f}" if name in memory.get(size, {}) else "",
                }
            )
    plot = Plot(
        "predict.svg",
        "A tensor to Triton and back (median)",
        ("bytes", "seconds"),
        [Curve(name, points) for name, points in curves.items()],
    )
    problems = [problem for _, wrong in found for problem in wrong]
    return Table("Predictions, one thread", rows, notes), plot, problems


def _threads(bench: Bench, addresses: dict[str, str]) -> Table:
    names = [name for name in WAYS if name not in (FRAME, COPY)]
    sizes = QUICK_SIZES_OF_THREADS if bench.quick else SIZES_OF_THREADS
    more = {"names": names, "count": THREADS}
    asked = [
        {**more, "size": size, "turns": turns, "window": window} for size, (turns, window) in sizes.items()
    ]
    rows: list[dict[str, str | int | Quantity]] = []
    for size, found in zip(sizes, _measured("threads", addresses, asked), strict=True):
        rates = {name: Quantity(tuple(found[name]), "/s") for name in names}
        rows += [
            {
                "tensor": str(Quantity((size,), "B")),
                "way": name,
                "requests": rates[name],
                f"to {RAW}": _median(ratio(rates[name], rates[RAW])),
            }
            for name in names
        ]
    return Table(f"Predictions, {THREADS} threads in one process", rows, [SHARED_NOTE])


def _tables(bench: Bench, addresses: dict[str, str]) -> Table:
    rows, turns = (2_000, 1) if bench.quick else (1_000_000, 3)
    (found,) = _measured("table", addresses, [{"size": 64, "rows": rows, "batch": BATCH, "turns": turns}])
    rates = {name: Quantity(tuple(found[name]["rows"]), "/s") for name in TABLES}
    by_row, by_batch = rates["predict, row by row"], rates["predict, batch by batch"]
    shown: list[dict[str, str | int | Quantity]] = [
        {
            "way": name,
            "rows": rates[name],
            "to row by row": _median(ratio(rates[name], by_row)),
            "to batch by batch": _median(ratio(rates[name], by_batch)),
            "memory": Quantity((max(found[name]["memory"]),), "B"),
        }
        for name in TABLES
    ]
    notes = [
        f"The model takes {BATCH} rows at once. Row by row: a part of the table. Whole: predict itself sends it in parts.",
        "memory: of the client, at the worst moment, beyond the table.",
    ]
    return Table(f"A DataFrame of {rows:,} rows of 16 numbers", shown, notes)


def _measured(verb: str, addresses: dict[str, str], sizes: list[dict[str, Any]]) -> Any:
    """Measure in a process of its own; see `benchmarks.asking.main`."""
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.asking", json.dumps({"verb": verb, **addresses, "sizes": sizes})],
        stdout=subprocess.PIPE,
        timeout=TIMEOUT,
        check=True,
    )
    return json.loads(done.stdout)


def _median(quantity: Quantity) -> str:
    return str(Quantity((quantity.median,), quantity.unit))
