"""A process that asks a model in every way that is compared, and measures itself.

The model answers with its input. A way is a function that takes a tensor and returns the answer's.
"""

from __future__ import annotations

import json
import mmap
import os
import re
import secrets
import socket
import statistics
import sys
import threading
import time
import traceback
import weakref
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np

from benchmarks.figures import Quantity
from benchmarks.usage import memory, reset_peak

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

    import pandas as pd

    Ask: TypeAlias = Callable[[np.ndarray[Any, Any]], np.ndarray[Any, Any]]

__all__ = ["BATCHED", "COPY", "FRAME", "MODEL", "RAW", "SHARED", "SHARED_MEMORY", "SOCKET", "TABLES", "WAYS"]

MODEL = "identity"
#: The same, for batches.
BATCHED = "batched"
#: Values in a row of the tensor.
WIDTH = 16
#: A header without which the server shares no memory, so that predict sends large tensors over HTTP.
SHARED_MEMORY = {"x-benchmark": "shared-memory"}
TIMEOUT = 300.0
SHM = "/dev/shm"  # noqa: S108 - where Triton looks
#: Bytes that the head and the JSON of an answer have at most.
HEAD = 4096
_OF_THREAD = threading.local()


def tensor(size: int) -> np.ndarray[Any, Any]:
    """Return numbers at random, `size` bytes of them, as rows of a table."""
    return np.random.default_rng(size).random((size // 4 // WIDTH, WIDTH), np.float32)


def _client(address: str, headers: Mapping[str, str], grpc: str | None = None) -> Any:
    os.environ |= {"TRITON_HEADERS": json.dumps(headers), "TRITON_REQUEST_TIMEOUT": str(TIMEOUT)}
    from mlflow_triton.deployments import TritonDeploymentClient  # noqa: PLC0415 - not for the other ways

    query = "" if grpc is None else f"?transport=grpc&grpc_url={grpc}"
    return TritonDeploymentClient(f"triton://{address}{query}")


def _predict(headers: Mapping[str, str], http: str, _: str) -> Ask:
    client = _client(http, headers)
    return lambda x: np.asarray(client.predict(MODEL, {"x": x})["outputs"]["y"])


def _predict_grpc(http: str, grpc: str) -> Ask:
    client = _client(http, {}, grpc)
    return lambda x: np.asarray(client.predict(MODEL, {"x": x})["outputs"]["y"])


def _predict_frame(http: str, _: str) -> Ask:
    import pandas as pd  # noqa: PLC0415 - not for the other ways

    client = _client(http, {})
    frames: dict[int, pd.DataFrame] = {}

    def ask(x: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
        if id(x) not in frames:
            frames.clear()
            frames[id(x)] = pd.DataFrame(x)
        return np.asarray(client.predict(MODEL, frames[id(x)])["outputs"]["y"])

    return ask


def _raw(triton: Any, client: Any) -> Ask:
    def ask(x: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
        sent = triton.InferInput("x", list(x.shape), "FP32")
        sent.set_data_from_numpy(x)
        return np.asarray(client.infer(MODEL, [sent]).as_numpy("y"))

    return ask


def _raw_http(http: str, _: str) -> Ask:
    import tritonclient.http as triton  # noqa: PLC0415 - not for the other ways

    return _raw(triton, triton.InferenceServerClient(http, network_timeout=TIMEOUT))


def _raw_grpc(_: str, grpc: str) -> Ask:
    import tritonclient.grpc as triton  # noqa: PLC0415 - not for the other ways

    return _raw(triton, triton.InferenceServerClient(grpc))


class _Bare:
    """A connection over which a request goes that was put together before."""

    def __init__(self, address: str) -> None:
        host, _, port = address.partition(":")
        self._address = address
        self._connection = socket.create_connection((host, int(port)), timeout=TIMEOUT)
        self._connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)

    def prepare(
        self, document: Mapping[str, Any], payload: memoryview, path: str = f"models/{MODEL}/infer"
    ) -> None:
        """Put a request together, whose answer has no more than the payload's bytes beside its head and JSON."""
        header = json.dumps(document).encode()
        lines = [
            f"POST /v2/{path} HTTP/1.1",
            f"Host: {self._address}",
            f"Content-Length: {len(header) + len(payload)}",
            f"Inference-Header-Content-Length: {len(header)}",
            *(f"{name}: {value}" for name, value in SHARED_MEMORY.items()),
        ]
        head = b"".join(["\r\n".join([*lines, "", ""]).encode(), header])
        self._pieces: list[memoryview | bytes] = [head, payload] if len(payload) > HEAD else [head + payload]
        self._room, self._end = len(payload) + HEAD, 0

    def exchange(self) -> memoryview:
        """Send it and return the answer."""
        view = _used(self._room)
        for piece in self._pieces:
            self._connection.sendall(piece)
        received = self._connection.recv_into(view)
        if not self._end:
            self._end = _end(bytes(view[: min(received, HEAD)]))
        while received < self._end:
            received += self._connection.recv_into(view[received : self._end])
        return view[: self._end]


def _used(size: int) -> memoryview:
    """Return memory of this thread, the same each time."""
    if len(getattr(_OF_THREAD, "memory", b"")) < size:
        _OF_THREAD.memory = memoryview(bytearray(size))
    return memoryview(_OF_THREAD.memory)[:size]


def _bytes(x: np.ndarray[Any, Any]) -> memoryview:
    return x.reshape(-1).view(np.uint8).data


def _socket(http: str, _: str) -> Ask:
    connection, asked = _Bare(http), np.empty(0)

    def ask(x: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
        nonlocal asked
        if asked is not x:
            sent = {**_described(x), "parameters": {"binary_data_size": x.nbytes}}
            connection.prepare({"inputs": [sent], "parameters": {"binary_data_output": True}}, _bytes(x))
            asked = x
        return np.frombuffer(connection.exchange()[-x.nbytes :], x.dtype).reshape(x.shape)

    return ask


def _described(x: np.ndarray[Any, Any]) -> dict[str, Any]:
    return {"name": "x", "shape": x.shape, "datatype": "FP32"}


def _shared(http: str, _: str) -> Ask:
    """Copy into memory that the server has known before, ask, and copy into memory that was used before."""
    connection, name = _Bare(http), f"benchmark-{secrets.token_hex(8)}"
    registered = asked = np.empty((2, 0), np.float32)

    def forget() -> None:
        if registered.size:
            connection.prepare({}, memoryview(b""), f"systemsharedmemory/region/{name}/unregister")
            connection.exchange()

    def register(x: np.ndarray[Any, Any]) -> None:
        nonlocal registered
        forget()
        with Path(SHM, name).open("x+b") as file:
            try:
                os.posix_fallocate(file.fileno(), 0, 2 * x.nbytes)
                place = {"key": f"/{name}", "offset": 0, "byte_size": 2 * x.nbytes}
                connection.prepare(place, memoryview(b""), f"systemsharedmemory/region/{name}/register")
                connection.exchange()
                shared = mmap.mmap(file.fileno(), 2 * x.nbytes)
            finally:
                Path(SHM, name).unlink()
        registered = np.frombuffer(shared, x.dtype).reshape(2, *x.shape)
        place = {"shared_memory_region": name, "shared_memory_byte_size": x.nbytes}
        output = {"name": "y", "parameters": {**place, "shared_memory_offset": x.nbytes}}
        sent = {**_described(x), "parameters": place}
        connection.prepare({"inputs": [sent], "outputs": [output]}, memoryview(b""))

    def ask(x: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
        nonlocal asked
        if asked is not x:
            register(x)
            asked = x
        np.copyto(registered[0], x)
        connection.exchange()
        return _copied(registered[1])

    weakref.finalize(ask, forget)
    return ask


def _end(received: bytes) -> int:
    """Return how long an answer is of which this is the beginning."""
    head, found, _ = received.partition(b"\r\n\r\n")
    length = re.search(rb"(?i)\r\ncontent-length: *(\d+)", head)
    if not head.startswith(b"HTTP/1.1 200 ") or not found or length is None:
        raise RuntimeError(f"The server answered with {head[:200]!r}.")
    return len(head) + len(found) + int(length[1])


def _copied(x: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    answer = np.frombuffer(_used(x.nbytes), x.dtype).reshape(x.shape)
    np.copyto(answer, x)
    return answer


def _copy(_: str, __: str) -> Ask:
    return _copied


RAW, SOCKET, COPY, FRAME = "tritonclient.http", "bare socket", "memcpy", "predict, DataFrame"
SHARED = "bare shared memory"
#: Name -> what makes the way, of the addresses of HTTP and gRPC.
WAYS: dict[str, Callable[[str, str], Ask]] = {
    "predict, HTTP": partial(_predict, {}),
    "predict, shared memory": partial(_predict, SHARED_MEMORY),
    "predict, gRPC": _predict_grpc,
    FRAME: _predict_frame,
    RAW: _raw_http,
    "tritonclient.grpc": _raw_grpc,
    SOCKET: _socket,
    SHARED: _shared,
    COPY: _copy,
}
#: Of them, those that one client serves several threads in; of the others, each thread has one of its own.
SHARED_BY_THREADS = {"predict, HTTP", "predict, shared memory", "predict, gRPC", "tritonclient.grpc"}


def one_thread(
    ways: Mapping[str, Ask], size: int, turns: int, repeat: int
) -> tuple[dict[str, dict[str, list[float]]], list[str]]:
    """Ask in turns, each in an order of its own.

    Args:
        ways: Name to way.
        size: Of the tensor, in bytes.
        turns: How often each way has its turn.
        repeat: How often it asks in a turn, of which the median counts.

    Returns:
        By way: seconds, and seconds of this process' processor time, of each turn; and what was wrong.
    """
    x = tensor(size)
    # The plugin knows the size of an answer from the second one on, and has the memory for it from the third.
    wrong = {name for name, ask in ways.items() for _ in range(3) if (ask(x) != x).any()}
    taken: dict[str, dict[str, list[float]]] = {name: {"time": [], "CPU": []} for name in ways}
    order = np.random.default_rng(turns)
    for _ in range(turns):
        # What one leaves behind, such as memory that the server has just freed, is not always the same one's.
        for name in map(str, order.permutation([*ways])):
            ask, times = ways[name], []
            processor = time.process_time()
            for _ in range(repeat):
                start = time.perf_counter()
                ask(x)
                times.append(time.perf_counter() - start)
            taken[name]["CPU"].append((time.process_time() - processor) / repeat)
            taken[name]["time"].append(statistics.median(times))
    return taken, [f"{name}: the answer of {size} bytes is not the input" for name in wrong]


def threads(
    makers: Mapping[str, Callable[[], Ask]], size: int, turns: int, window: float, count: int
) -> dict[str, list[float]]:
    """Ask from several threads at once, way after way.

    Args:
        makers: By name what makes the way that a thread uses.
        size: Of the tensor, in bytes.
        turns: How often each way has its turn.
        window: Seconds that a turn lasts.
        count: Of threads.

    Returns:
        By way: requests in a second, of each turn.
    """
    x = tensor(size)
    rates: dict[str, list[float]] = {name: [] for name in makers}
    for _ in range(turns):
        for name, make in makers.items():
            rates[name].append(_rate(make, x, window, count))
    return rates


def _rate(make: Callable[[], Ask], x: np.ndarray[Any, Any], window: float, count: int) -> float:
    ready = threading.Barrier(count)

    def work(_: int) -> tuple[int, float]:
        ask = make()  # here, as tritonclient.http's connections work in the thread only that opened them
        ask(x)
        ready.wait(TIMEOUT)
        asked, start = 0, time.perf_counter()
        while time.perf_counter() < start + window:
            ask(x)
            asked += 1
        return asked, time.perf_counter() - start

    with ThreadPoolExecutor(count) as pool:
        return sum(asked / taken for asked, taken in pool.map(work, range(count)))


def _rows(client: Any, frame: pd.DataFrame, size: int) -> Iterator[np.ndarray[Any, Any]]:
    for start in range(0, len(frame), size):
        yield client.predict(BATCHED, frame.iloc[start : start + size])["outputs"]["y"]


def _many(client: Any, frame: pd.DataFrame, _: int) -> Iterator[np.ndarray[Any, Any]]:
    for answer in client.predict_many(BATCHED, frame):
        if isinstance(answer, Exception):
            raise answer
        yield answer["outputs"]["y"]


#: Name -> function of a client, a table and a number of rows, and whether all of the table is sent.
TABLES: dict[str, tuple[Callable[[Any, pd.DataFrame, int], Iterator[np.ndarray[Any, Any]]], bool]] = {
    "predict, row by row": (lambda client, frame, _: _rows(client, frame, 1), False),
    "predict, batch by batch": (_rows, True),
    "predict, whole": (lambda client, frame, _: _rows(client, frame, len(frame)), True),
    "predict_many": (_many, True),
}


def table(http: str, size: int, rows: int, batch: int, turns: int) -> dict[str, dict[str, list[float]]]:
    """Send a table in every way of `TABLES`, in turns.

    Args:
        http: HOST:PORT.
        size: Of a row, in bytes.
        rows: Of the table.
        batch: The rows that the model takes at once.
        turns: How often each way has its turn.

    Returns:
        By way, of each turn: rows in a second, and bytes of memory at the worst moment beyond the table.
    """
    import pandas as pd  # noqa: PLC0415 - not for the other verbs

    client = _client(http, {})
    x = tensor(size * rows)
    frame = pd.DataFrame(x)
    found: dict[str, dict[str, list[float]]] = {name: {"rows": [], "memory": []} for name in TABLES}
    client.predict(BATCHED, frame.iloc[:1])
    for _ in range(turns):
        for name, (way, whole) in TABLES.items():
            part = frame if whole else frame.iloc[: max(1, rows // 500)]
            reset_peak()
            before, start, done = memory("VmRSS"), time.perf_counter(), 0
            for answer in way(client, part, batch):
                if (answer != x[done : done + len(answer)]).any():
                    raise RuntimeError(f"{name}: the answer after row {done} is not the input.")
                done += len(answer)
            found[name]["rows"].append(done / (time.perf_counter() - start))
            found[name]["memory"].append(max(0, memory("VmHWM") - before))
    return found


def peak(ask: Ask, size: int) -> int:
    """Return how many bytes of memory this process takes at the worst moment of two requests, beyond their input."""
    ask(tensor(4 * WIDTH))
    x = tensor(size)
    reset_peak()
    before = memory("VmRSS")
    for _ in range(2):  # the plugin knows the size of an answer from the second one on
        ask(x)
    return max(0, memory("VmHWM") - before)


def _forked(measure: Callable[[], int]) -> int:
    """Return what a function returns in a process of its own."""
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            os.write(writer, str(measure()).encode())
        except BaseException:  # noqa: BLE001 - whatever it is, this process must not go on as its parent
            traceback.print_exc()
        finally:
            os._exit(0)
    os.close(writer)
    with open(reader, "rb") as answer:  # noqa: PTH123 - a number, not a path
        measured = answer.read()
    os.waitpid(child, 0)
    if not measured:
        raise RuntimeError("The process that measures its memory has failed; its error is above.")
    return int(measured)


def peaks(names: list[str], http: str, grpc: str, size: int) -> dict[str, int]:
    """Return the `peak` of each way, in a process of its own, which has imported everything already."""
    import tritonclient.http  # noqa: F401, PLC0415 - in time

    from mlflow_triton import predict  # noqa: F401, PLC0415 - in time

    return {name: _forked(lambda way=WAYS[name]: peak(way(http, grpc), size)) for name in names}  # type: ignore[misc]


def main(verb: str, http: str, grpc: str, sizes: list[dict[str, Any]]) -> None:
    """Measure and print the results as JSON.

    Args:
        verb: ``one thread``, ``threads``, ``peaks`` or ``table``.
        http: HOST:PORT.
        grpc: HOST:PORT.
        sizes: Arguments of the function that measures, for each size; ``names`` are of `WAYS`.
    """
    ways: dict[str, Ask] = {}
    found: list[Any] = []
    for more in sizes:
        print(f"predict: {verb}, {Quantity((more['size'],), 'B')}", file=sys.stderr, flush=True)
        names = more.pop("names", [])
        if verb == "threads":
            ways |= {name: WAYS[name](http, grpc) for name in SHARED_BY_THREADS & {*names} - ways.keys()}
            makers = {
                name: partial(ways.__getitem__, name) if name in ways else partial(WAYS[name], http, grpc)
                for name in names
            }
            found.append(threads(makers, **more))
        elif verb == "one thread":
            ways |= {name: WAYS[name](http, grpc) for name in names if name not in ways}
            found.append(one_thread({name: ways[name] for name in names}, **more))
        elif verb == "table":
            found.append(table(http, **more))
        else:
            found.append(peaks(names, http, grpc, **more))
    print(json.dumps(found))


if __name__ == "__main__":
    main(**json.loads(sys.argv[1]))
