from __future__ import annotations

import asyncio
import json
import os
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
import pytest

from mlflow_triton.batch import SLICES
from mlflow_triton.deployments import ASYNC_THREADS, TritonDeploymentClient
from mlflow_triton.embedded import EmbeddedTriton
from mlflow_triton.errors import (
    DeploymentNotFound,
    InferenceFailed,
    InvalidInput,
    InvalidParameter,
    ServerUnavailable,
    TritonPluginError,
)
from mlflow_triton.predict import PARTS_AT_ONCE
from mlflow_triton.serving.control import Control
from mlflow_triton.serving.http import HttpEndpoint
from mlflow_triton.serving.inference import Inference
from mlflow_triton.settings import Settings

if TYPE_CHECKING:
    from collections.abc import Iterator

pytestmark = pytest.mark.slow

LIMIT = 8
#: Doubles x, after so many seconds; fails for a negative one. Says how large the batch was.
MODEL = """
import time
import numpy as np
import triton_python_backend_utils as pb_utils

class TritonPythonModel:
    def execute(self, requests):
        return [self.answer(request) for request in requests]

    def answer(self, request):
        x = pb_utils.get_input_tensor_by_name(request, "x").as_numpy()
        pause = pb_utils.get_input_tensor_by_name(request, "pause")
        if pause is not None:
            time.sleep(float(pause.as_numpy().flat[0]))
        if (x < 0).any():
            raise ValueError("negative")
        size = np.full((len(x), 1)[: x.ndim], len(x), np.int32)
        return pb_utils.InferenceResponse([pb_utils.Tensor("y", x * 2), pb_utils.Tensor("size", size)])
"""


def config(datatype: str, *, limit: int = LIMIT, instances: int = 1) -> str:
    """Return a configuration of the model."""
    dims = [2] if limit else [-1]
    return json.dumps(
        {
            "backend": "python",
            "max_batch_size": limit,
            "input": [
                {"name": "x", "data_type": datatype, "dims": dims},
                {"name": "pause", "data_type": "TYPE_FP32", "dims": [1], "optional": True},
            ],
            "output": [
                {"name": "y", "data_type": datatype, "dims": dims},
                {"name": "size", "data_type": "TYPE_INT32", "dims": [-1] if not limit else [1]},
            ],
            "instance_group": [{"count": instances, "kind": "KIND_CPU"}],
        }
    )


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[EmbeddedTriton]:
    """Run a server with the model, and one of it that takes no batches."""
    repository = tmp_path_factory.mktemp("repository")
    with EmbeddedTriton(repository, arguments=["--disable-auto-complete-config"]) as running:
        settings = Settings.parse(
            f"{running.http_url.replace('http://', 'triton://')}?grpc_url={running.grpc_url}", {}
        )
        control = Control(HttpEndpoint(settings), settings)
        code = {"1/model.py": MODEL.encode()}
        control.load("double", config_json=config("TYPE_INT32", instances=4), files=code)
        control.load("single", config_json=config("TYPE_INT32", limit=0), files=code)
        yield running


@pytest.fixture(params=["http", "grpc"])
def client(server: EmbeddedTriton, request: pytest.FixtureRequest) -> Any:
    """Make a client of the server, over each transport."""
    host = server.http_url.removeprefix("http://")
    return TritonDeploymentClient(f"triton://{host}?grpc_url={server.grpc_url}&transport={request.param}")


def item(number: int, pause: float = 0) -> dict[str, Any]:
    """Make an input."""
    return {"x": [[number, 0]], "pause": [[pause]]}


def answers(results: Any) -> list[Any]:
    """Return the first number of each prediction, and the class of each error."""
    return [
        type(result) if isinstance(result, TritonPluginError) else int(result["outputs"]["y"][0, 0])
        for result in results
    ]


def test_order(client: Any) -> None:
    """Answers come in the order of the items, however long each takes."""
    items = [item(number, pause=0.1 if number % 5 == 0 else 0) for number in range(30)]
    assert answers(client.predict_many("double", items)) == [2 * number for number in range(30)]
    assert answers(client.predict_many("double", items[:1], in_flight=100)) == [0]
    assert answers(client.predict_many("double", [])) == []


def test_failures_are_results(client: Any) -> None:
    """An item that fails is an error in its place, and all others are answered."""
    items = [item(1), item(-1), {"x": [["a", 0]]}, item(4), {"z": 1}, item(6)]
    assert answers(client.predict_many("double", items, in_flight=2)) == [
        2,
        InferenceFailed,
        InvalidInput,
        8,
        InvalidInput,
        12,
    ]


def test_items_that_fail(client: Any) -> None:
    """What the iterable raises comes after the answers to all that it gave."""

    def items() -> Iterator[dict[str, Any]]:
        yield item(1, pause=0.1)
        yield item(2)
        raise ZeroDivisionError

    results = client.predict_many("double", items())
    assert answers([next(results), next(results)]) == [2, 4]
    with pytest.raises(ZeroDivisionError):
        next(results)


def test_in_flight_is_bounded(client: Any) -> None:
    """No more items are drawn than are in flight or answered, and closing draws no more and leaves no thread."""
    drawn = []

    def items() -> Iterator[dict[str, Any]]:
        for number in range(1000):
            drawn.append(number)
            yield item(number)

    results = client.predict_many("double", items(), in_flight=3)
    assert not drawn
    for taken in range(1, 20):
        assert answers([next(results)]) == [2 * (taken - 1)]
        assert len(drawn) <= taken - 1 + 3
    results.close()
    drawn_then = len(drawn)
    assert not [
        thread for thread in threading.enumerate() if thread.name.startswith("mlflow-triton-predict_")
    ]
    time.sleep(0.05)
    assert len(drawn) == drawn_then


def test_several_are_under_way_at_once(client: Any) -> None:
    """Requests do not wait for each other: four that take 0.3 s each, on four instances, take less than in turn."""
    began = time.monotonic()
    assert answers(client.predict_many("double", [item(number, pause=0.3) for number in range(4)])) == [
        0,
        2,
        4,
        6,
    ]
    assert time.monotonic() - began < 1.1


@pytest.mark.parametrize("rows", [1, LIMIT, LIMIT + 1, 2 * SLICES * LIMIT + 5])
def test_a_table(client: Any, rows: int) -> None:
    """A table is sent in slices of the batch's limit, and joined they are what predict makes of it."""
    table = pd.DataFrame({"x": list(np.arange(2 * rows).reshape(rows, 2))})
    results = list(client.predict_many("double", table))
    assert [len(result["outputs"]["y"]) for result in results] == [
        min(LIMIT, rows - start) for start in range(0, rows, LIMIT)
    ]
    joined = np.concatenate([result["outputs"]["y"] for result in results])
    np.testing.assert_array_equal(joined, np.arange(2 * rows).reshape(rows, 2) * 2)
    np.testing.assert_array_equal(joined, client.predict("double", table)["outputs"]["y"])
    frames = pd.concat([result.get_predictions() for result in results], ignore_index=True)
    assert list(frames.columns) == ["y", "size"]
    assert len(frames) == rows


@pytest.mark.parametrize(("timeout", "at_once"), [(None, range(2, PARTS_AT_ONCE + 1)), (0.5, range(1, 2))])
def test_the_parts_of_a_long_table(
    client: Any, monkeypatch: pytest.MonkeyPatch, timeout: float | None, at_once: range
) -> None:
    """Predict has several parts of a table under way, but not where waiting for each other could make them late."""
    under_way, most, lock = 0, 0, threading.Lock()
    infer = Inference.infer

    def counted(*args: Any) -> Any:
        nonlocal under_way, most
        with lock:
            under_way += 1
            most = max(most, under_way)
        try:
            return infer(*args)
        finally:
            with lock:
                under_way -= 1

    monkeypatch.setattr(Inference, "infer", counted)
    rows = LIMIT * (PARTS_AT_ONCE + 2) + 1
    x = np.arange(2 * rows).reshape(rows, 2)
    table = pd.DataFrame({"x": list(x), "pause": [[0.2]] * rows})
    np.testing.assert_array_equal(client.predict("double", table, timeout=timeout)["outputs"]["y"], x * 2)
    assert most in at_once
    x[rows // 2] = -1
    with pytest.raises(InferenceFailed, match="negative"):
        client.predict("double", table.assign(x=list(x)), timeout=timeout)


def test_inputs_of_different_batches(client: Any) -> None:
    """They are refused before they are sent, with the shapes; a model without batches may take them."""
    inputs = {"x": [[1, 2], [3, 4]], "pause": [[0.0]]}
    with pytest.raises(
        InvalidInput, match=r"Nothing was sent to 'double'\..*'x' \[2, 2\], 'pause' \[1, 1\].*in common"
    ):
        client.predict("double", inputs)
    assert client.predict("single", {"x": [1, 2, 3], "pause": [0.0]})["outputs"]["y"].tolist() == [2, 4, 6]


@pytest.mark.parametrize("inputs", [{"x": np.empty((0, 2))}, pd.DataFrame({"x": []}), {"x": []}])
def test_an_empty_batch(client: Any, inputs: Any) -> None:
    """Triton hangs or crashes at one: it is refused; a table of no rows is no request; without batches it is a tensor."""
    with pytest.raises(
        InvalidInput, match=r"Nothing was sent to 'double'\. The batch has no items: 'x' \[0, 2\]"
    ):
        client.predict("double", inputs)
    with pytest.raises(InvalidInput, match="The batch has no items"):
        next(client.predict_stream("double", inputs))
    assert list(client.predict_many("double", pd.DataFrame({"x": []}))) == []
    (result,) = client.predict_many("single", pd.DataFrame({"x": []}))
    assert result["outputs"]["y"].shape == (0,)


def test_a_missing_input(client: Any) -> None:
    """It is named, with what the model wants of it."""
    with pytest.raises(
        InvalidInput, match=r"Nothing was sent to 'double'\. Missing: 'x' \(INT32, \[-1, 2\]\)\."
    ):
        client.predict("double", {"pause": [[0.0]]})


def test_a_table_with_bad_rows(client: Any) -> None:
    """Rows that do not fit, or that the model fails for, spoil their slice alone, and the error tells which rows."""
    rows = 3 * LIMIT
    cells: list[list[Any]] = [[number, number] for number in range(rows)]
    cells[LIMIT + 2] = ["none", 0]
    cells[2 * LIMIT] = [-1, 0]
    table = pd.DataFrame({"x": cells})
    first, second, third = client.predict_many("double", table)
    assert first["outputs"]["y"][:, 0].tolist() == [2 * number for number in range(LIMIT)]
    assert isinstance(second, InvalidInput)
    assert second.message.startswith(f"Rows {LIMIT} to {2 * LIMIT - 1}: ")
    assert isinstance(third, InferenceFailed)
    assert third.message.startswith(f"Rows {2 * LIMIT} to {3 * LIMIT - 1}: ")


def test_a_table_that_is_one_request(client: Any) -> None:
    """A model without batches gets a table whole, and a frame that names tensors in its index is no table."""
    (result,) = client.predict_many("single", pd.DataFrame({"inputs": [[1, 2]]}, index=["x"]))
    assert result["outputs"]["y"].tolist() == [2, 4]
    (result,) = client.predict_many("single", pd.DataFrame({"x": range(100)}))
    assert result["outputs"]["y"].tolist() == list(range(0, 200, 2))


def test_a_model_that_is_replaced_meanwhile(server: EmbeddedTriton) -> None:
    """Slices that were made for a model that has been replaced are made again for the new one."""
    url = server.http_url.replace("http://", "triton://")
    settings = Settings.parse(f"{url}?grpc_url={server.grpc_url}", {})
    control = Control(HttpEndpoint(settings), settings)
    code = {"1/model.py": MODEL.encode()}
    control.load("changing", config_json=config("TYPE_INT32"), files=code)
    client: Any = TritonDeploymentClient(url)
    table = pd.DataFrame({"x": [[1, 2]] * (4 * LIMIT)})
    results = client.predict_many("changing", table, in_flight=1)
    assert next(results)["outputs"]["y"].dtype == np.int32
    control.load("changing", config_json=config("TYPE_INT64"), files=code)
    rest = list(results)
    assert answers(rest) == [2, 2, 2]
    assert rest[-1]["outputs"]["y"].dtype == np.int64
    control.unload("changing")


def test_what_is_refused(client: Any) -> None:
    """One input instead of many, no room for any request, and a model that is not there are errors of the call."""
    for single in ({"x": [[1, 2]]}, "x", b"x", 3, None):
        with pytest.raises(InvalidParameter, match="use predict"):
            client.predict_many("double", single)
    for in_flight in (0, -1, "3", 2.5, None):
        with pytest.raises(InvalidParameter, match="a whole number of at least 1"):
            client.predict_many("double", [], in_flight=in_flight)
    with pytest.raises(DeploymentNotFound):
        client.predict_many("nothing", [])
    with pytest.raises(ServerUnavailable):
        TritonDeploymentClient("triton://127.0.0.1:1").predict_many("double", [])


def test_threads_and_forks_share_a_client(client: Any) -> None:
    """Threads run predict_many of one client at once, and so does a forked process."""

    def works(number: int) -> bool:
        wanted = [2 * (number + one) for one in range(20)]
        return answers(client.predict_many("double", [item(number + one) for one in range(20)])) == wanted

    async def works_async(number: int) -> bool:
        return answers([await client.predict_async("double", item(number))]) == [2 * number]

    with ThreadPoolExecutor(4) as pool:
        assert all(pool.map(works, range(0, 40, 10)))
    assert asyncio.run(works_async(1))
    child = os.fork()
    if child == 0:
        os._exit(0 if works(1) and asyncio.run(works_async(2)) else 1)
    _, status = os.waitpid(child, 0)
    assert status == 0
    assert works(2)


def test_async(client: Any) -> None:
    """The event loop goes on while predictions are under way; an error is raised where it is awaited."""

    async def run() -> None:
        ticks = 0

        async def tick() -> None:
            nonlocal ticks
            while True:
                await asyncio.sleep(0.01)
                ticks += 1

        ticking = asyncio.create_task(tick())
        results = await asyncio.gather(
            *(
                client.predict_async("double", item(number, pause=0.05))
                for number in range(2 * ASYNC_THREADS)
            ),
            client.predict_async("double", item(-1)),
            return_exceptions=True,
        )
        assert answers(results) == [*range(0, 4 * ASYNC_THREADS, 2), InferenceFailed]
        assert ticks > 5
        ticking.cancel()

    asyncio.run(run())


def test_async_cancellation(client: Any) -> None:
    """A prediction that is cancelled is not waited for, and one that waited for its turn is never sent."""

    async def run() -> None:
        began = time.monotonic()
        with pytest.raises(asyncio.TimeoutError):
            await asyncio.wait_for(client.predict_async("double", item(1, pause=1)), 0.1)
        assert time.monotonic() - began < 0.9
        assert answers([await client.predict_async("double", item(2))]) == [4]

    asyncio.run(run())


def test_async_many(client: Any) -> None:
    """predict_many_async gives what predict_many gives, and leaving it early ends it."""

    async def run() -> None:
        items = [item(1), item(-1), item(3)]
        seen = [result async for result in client.predict_many_async("double", items)]
        assert answers(seen) == [2, InferenceFailed, 6]
        endless = client.predict_many_async("double", (item(number) for number in iter(int, 1)))
        async for result in endless:
            assert answers([result]) == [0]
            break
        await endless.aclose()
        with pytest.raises(DeploymentNotFound):
            [_ async for _ in client.predict_many_async("nothing", items)]

    asyncio.run(run())
    end = time.monotonic() + 10
    while [
        thread for thread in threading.enumerate() if thread.name.startswith("mlflow-triton-predict-many")
    ]:
        assert time.monotonic() < end
        time.sleep(0.02)
