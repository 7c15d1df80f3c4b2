"""A process that asks one model from several threads until its standard input ends, and reports every request.

It is a process of its own so that nothing that the measured process does (an update's own work) slows its
requests but what happens in the server. Times are of CLOCK_MONOTONIC, which all processes share.
"""

from __future__ import annotations

import http.client
import itertools
import json
import sys
import threading
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["TRANSPORTS", "Request"]

#: Connections that each thread over HTTP uses in turn, as a client with a connection pool does: Triton's HTTP
#: server ties each connection to one of its worker threads.
CONNECTIONS = 8
TIMEOUT = 60.0
BODY = json.dumps({"inputs": [{"name": "x", "shape": [1], "datatype": "INT32", "data": [0]}]}).encode()


@dataclass(frozen=True, slots=True)
class Request:
    """One request and how it ended.

    Attributes:
        start: Seconds of CLOCK_MONOTONIC.
        end: The same.
        answer: What the model answered; ``None``: the request failed.
        error: Why it failed; empty if it did not.
    """

    start: float
    end: float
    answer: int | None
    error: str


def over_http(address: str, model: str) -> Callable[[], int]:
    """Return a function that asks the model with raw requests over kept connections."""
    connections = itertools.cycle(
        [http.client.HTTPConnection(address, timeout=TIMEOUT) for _ in range(CONNECTIONS)]
    )

    def ask() -> int:
        connection = next(connections)
        connection.request("POST", f"/v2/models/{model}/infer", BODY)
        response = connection.getresponse()
        body = response.read()
        if response.status != 200:
            raise RuntimeError(f"HTTP {response.status} {body[:200]!r}")
        return int(json.loads(body)["outputs"][0]["data"][0])

    return ask


def over_grpc(address: str, model: str) -> Callable[[], int]:
    """Return a function that asks the model with tritonclient.grpc."""
    import numpy as np  # noqa: PLC0415 - not needed over HTTP
    import tritonclient.grpc as triton  # noqa: PLC0415 - same

    client = triton.InferenceServerClient(address)
    tensor = triton.InferInput("x", [1], "INT32")
    tensor.set_data_from_numpy(np.zeros(1, np.int32))

    def ask() -> int:
        return int(client.infer(model, [tensor], client_timeout=TIMEOUT).as_numpy("y")[0])

    return ask


TRANSPORTS = {"HTTP": over_http, "gRPC": over_grpc}


def main(transport: str, address: str, model: str, threads: int, report: str) -> None:
    """Ask until standard input ends.

    Args:
        transport: One of `TRANSPORTS`.
        address: HOST:PORT of that endpoint.
        model: The model.
        threads: How many ask at once.
        report: The file to write every request to, as JSON.
    """
    requests: list[tuple[float, float, int | None, str]] = []
    stop = threading.Event()

    def work(ask: Callable[[], int]) -> None:
        while not stop.is_set():
            answer, error = None, ""
            start = time.monotonic()
            try:
                answer = ask()
            except Exception as problem:  # noqa: BLE001 - whatever it is, it is a failed request
                error = f"{type(problem).__name__}: {problem}"
            requests.append((start, time.monotonic(), answer, error))

    workers = [
        threading.Thread(target=work, args=(TRANSPORTS[transport](address, model),)) for _ in range(threads)
    ]
    for worker in workers:
        worker.start()
    print("started", flush=True)
    sys.stdin.read()
    stop.set()
    for worker in workers:
        worker.join()
    with open(report, "w", encoding="utf-8") as file:  # noqa: PTH123 - a name, as given
        json.dump(requests, file)


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], sys.argv[3], int(sys.argv[4]), sys.argv[5])
