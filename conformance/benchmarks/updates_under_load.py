"""What those notice who ask a deployment while it is updated: failures, old answers, slow answers."""

from __future__ import annotations

import json
import subprocess
import sys
import threading
import time
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

from benchmarks.figures import Quantity, Result, Table, percentile, ratio
from benchmarks.requester import CONNECTIONS, TRANSPORTS, Request

if TYPE_CHECKING:
    from collections.abc import Iterator

    from benchmarks.bench import Bench, Triton

__all__ = ["run"]

THREADS = 4
#: Seconds that a requester may take to start and, after its standard input has ended, to end.
REQUESTER_TIMEOUT = 60.0
CONTROLS = {"gRPC": True, "HTTP": False}
PERCENTILES = {"p50": 50, "p99": 99, "max": 100}


@dataclass(frozen=True, slots=True)
class Phase:
    """A time in which one update was under way, or none.

    Attributes:
        control: How models were controlled; empty: there was no update.
        start: Seconds of CLOCK_MONOTONIC.
        end: The same.
    """

    control: str
    start: float
    end: float


def run(bench: Bench) -> Result:
    """Update one deployment again and again while four threads ask it, over either transport."""
    updates = 1 if bench.quick else 6
    rows: list[dict[str, str | int | Quantity]] = []
    problems: list[str] = []
    # Triton finding out what is configured already makes a load take its usual time: most of two seconds.
    with bench.triton(*(["--disable-auto-complete-config"] if bench.quick else [])) as server:
        for transport in TRANSPORTS:
            bench.say(f"updates_under_load: {2 * updates} updates, inference over {transport}")
            requests, phases, oldest = _measure(bench, server, transport, updates)
            quiet = _phase(requests, phases, "")
            for control in CONTROLS:
                during = _phase(requests, phases, control)
                failed = [request for request in during if request.answer is None]
                old = [
                    request
                    for request in requests
                    if request.answer is not None and request.answer < _due(oldest, request, control)
                ]
                row: dict[str, str | int | Quantity] = {
                    "inference": transport,
                    "model control": control,
                    "updates": updates,
                    "requests": len(during),
                    "failed": len(failed),
                    "old answers": len(old),
                }
                row["requests/s ratio"] = ratio(_rate(requests, phases, control), _rate(requests, phases, ""))
                for name, percent in PERCENTILES.items():
                    with_updates = _latency(during, percent)
                    row[name] = with_updates
                    row[f"{name} ratio"] = ratio(with_updates, _latency(quiet, percent))
                rows.append(row)
                what = f"inference over {transport}, model control over {control}"
                problems += [f"{what}: a request failed: {request.error}" for request in failed[:3]]
                problems += [
                    f"{what}: model {request.answer} answered {request.start - _when(oldest, request):.3f} s after "
                    f"the update that replaced it had returned"
                    for request in old[:3]
                ]
            problems += [
                f"inference over {transport}, between updates: a request failed: {request.error}"
                for request in quiet
                if request.answer is None
            ][:3]
    notes = [
        (
            f"{THREADS} threads on one deployment; over HTTP each one takes {CONNECTIONS} connections in turn. Updates "
            "with the two kinds of model control alternate, with as long a time without an update between them."
        ),
        (
            "requests: those that were under way during an update. old answers: of a model whose update had returned "
            "before the request began."
        ),
        (
            "ratio: to the same figure of the times without an update, in the same run. A thread that waits sends "
            "nothing, so that a stall also shows in requests/s."
        ),
    ]
    return Result([Table("Requests during updates", rows, notes)], problems)


def _measure(
    bench: Bench, server: Triton, transport: str, updates: int
) -> tuple[list[Request], list[Phase], list[tuple[float, int, str]]]:
    """Return every request, the phases, and for each update when it returned, its number and its control."""
    clients = {control: server.client(grpc=grpc) for control, grpc in CONTROLS.items()}
    name = f"busy-{transport}"
    uris = [bench.save_for_mlflow(number) for number in range(1 + 2 * updates)]
    clients["gRPC"].create_deployment(name, uris[0])
    phases: list[Phase] = []
    returned: list[tuple[float, int, str]] = []
    report = bench.directory / f"requests-{transport}.json"
    address = server.grpc_url if transport == "gRPC" else server.http_url.removeprefix("http://")
    with _requester([transport, address, name, str(THREADS), str(report)]):
        pause = 0.5
        for number, uri in enumerate(uris[1:], start=1):
            control = tuple(CONTROLS)[number % 2]
            start = time.monotonic()
            time.sleep(pause)
            begun = time.monotonic()
            phases.append(Phase("", start, begun))
            clients[control].update_deployment(name, uri)
            end = time.monotonic()
            phases.append(Phase(control, begun, end))
            returned.append((end, number, control))
            pause = end - begun
        time.sleep(0.2)  # for requests that begin after the last update
    requests = [Request(*request) for request in json.loads(report.read_bytes())]
    return requests, phases, returned


@contextmanager
def _requester(arguments: list[str]) -> Iterator[None]:
    """Let a process send requests while the block runs; the arguments are those of its `main`."""
    command = [sys.executable, "-m", "benchmarks.requester", *arguments]
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    overdue = threading.Timer(REQUESTER_TIMEOUT, process.kill)
    overdue.start()
    try:
        assert process.stdout is not None
        if process.stdout.readline() != "started\n":
            raise RuntimeError("The process that sends requests did not start; its error is above.")
        overdue.cancel()
        yield
        process.communicate(timeout=REQUESTER_TIMEOUT)
        if process.returncode:
            raise RuntimeError(f"The process that sends requests ended with {process.returncode}.")
    finally:
        overdue.cancel()
        process.kill()
        process.communicate()


def _phase(requests: list[Request], phases: list[Phase], control: str) -> list[Request]:
    """Return the requests that were under way during updates with this control; without updates: all the time."""
    chosen = [phase for phase in phases if phase.control == control]
    if not control:
        return [r for r in requests if any(p.start <= r.start and r.end <= p.end for p in chosen)]
    return [r for r in requests if any(r.start <= p.end and p.start <= r.end for p in chosen)]


def _latency(requests: list[Request], percent: float) -> Quantity:
    return Quantity((percentile((request.end - request.start for request in requests), percent),), "s")


def _rate(requests: list[Request], phases: list[Phase], control: str) -> Quantity:
    """Return how many requests ended in a second of the phases with this control; one sample."""
    chosen = [phase for phase in phases if phase.control == control]
    ended = sum(phase.start <= request.end <= phase.end for request in requests for phase in chosen)
    return Quantity((ended / sum(phase.end - phase.start for phase in chosen),), "x")


def _due(returned: list[tuple[float, int, str]], request: Request, control: str) -> int:
    """Return the lowest number that may answer a request, as far as updates with this control ask for one."""
    return max((number for at, number, by in returned if at < request.start and by == control), default=0)


def _when(returned: list[tuple[float, int, str]], request: Request) -> float:
    """Return when the first update after the answering model returned."""
    return min(at for at, number, _ in returned if request.answer is not None and number > request.answer)
