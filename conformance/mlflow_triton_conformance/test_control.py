"""Loading and unloading models in a server in explicit model control mode, without any plugin."""

from __future__ import annotations

import base64
import json
import threading
import time
import uuid
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

import pytest

from mlflow_triton_conformance.wire import request, tensor
from mlflow_triton_conformance.zoo import CONFIG, KINDS, ensemble, placed, python_model, write

if TYPE_CHECKING:
    from collections.abc import Callable
    from contextlib import AbstractContextManager

    from mlflow_triton_conformance.protocol import Protocol

requirement = pytest.mark.requirement
ASK = request(tensor("x", "INT32", [1], [0]))
BROKEN = "raise ValueError('broken for good')\n"


def files(value: int) -> dict[str, str]:
    """A model that answers a value."""
    return {"config.pbtxt": CONFIG, "1/model.py": python_model(value)}


def answer(protocol: Protocol, name: str) -> int:
    """Ask a model."""
    return int(protocol.infer(name, ASK).json["outputs"][0]["data"][0])


@pytest.fixture
def name() -> str:
    """A name that nobody has."""
    return f"control-{uuid.uuid4().hex[:8]}"


@requirement("TRT-INDEX-001", "TRT-INDEX-003", "TRT-LOAD-005", "TRT-UNLOAD-004")
def test_not_loaded(protocol: Protocol, name: str) -> None:
    """A model in the repository is in the index, but neither ready nor served; unloading it is no error."""
    with placed(protocol, name, files(1)):
        (entry,) = protocol.index(name)
        assert entry.get("state") != "READY"
        assert protocol.index(name, ready=True) == []
        assert not protocol.is_ready(name)
        assert protocol.infer(name, ASK).error
        assert protocol.unload(name).status == 200


@requirement("TRT-INDEX-005")
def test_index_over_grpc(protocol: Protocol, grpc: Any, name: str) -> None:
    """The index over gRPC has the names, versions and states of the one over HTTP."""
    with placed(protocol, name, files(1)):
        entries = grpc.get_model_repository_index().models
        assert name in [it.name for it in entries]
        found = [
            {"name": it.name, "version": it.version, "state": it.state, "reason": it.reason} for it in entries
        ]
        expected = protocol.post("/repository/index", {}).json
        assert [{key: value for key, value in it.items() if value} for it in found] == expected


@requirement("TRT-LOAD-003")
def test_load_of_nothing(protocol: Protocol, name: str) -> None:
    """A load of what is not there is refused by its name."""
    assert name in protocol.load(name).error


@requirement(
    "TRT-LOAD-001",
    "TRT-INDEX-002",
    "TRT-LOAD-008",
    "TRT-UNLOAD-001",
    "TRT-UNLOAD-002",
    "TRT-LOAD-006",
)
def test_a_life(
    protocol: Protocol, name: str, latency: Callable[[str], AbstractContextManager[None]]
) -> None:
    """A model is loaded, loaded again, changed, unloaded and loaded, and answers what it is each time."""
    with placed(protocol, name, files(1)) as directory:
        with latency("load over HTTP, Python model"):
            assert protocol.load(name).status == 200
        assert protocol.is_ready(name)
        assert answer(protocol, name) == 1
        (entry,) = protocol.index(name)
        assert (entry["version"], entry["state"]) == ("1", "READY")
        assert protocol.load(name).status == 200
        assert answer(protocol, name) == 1

        (directory / "1" / "model.py").write_text(python_model(200))
        assert protocol.load(name).status == 200
        assert answer(protocol, name) == 200

        (directory / "1" / "model.py").write_text(python_model(3000))
        with latency("unload over HTTP, Python model"):
            protocol.remove(name)
        assert protocol.infer(name, ASK).error
        assert protocol.load(name).status == 200
        assert answer(protocol, name) == 3000


@requirement("TRT-LOAD-007")
def test_a_reload_that_fails(protocol: Protocol, name: str) -> None:
    """A model that is broken while it serves still answers what it was, also after it was to be loaded again."""
    with placed(protocol, name, files(1)) as directory:
        assert protocol.load(name).status == 200
        (directory / "1" / "model.py").write_text(BROKEN)
        assert "broken for good" in protocol.load(name).error
        assert answer(protocol, name) == 1


@requirement("TRT-LOAD-002", "TRT-UNLOAD-003")
def test_grpc(protocol: Protocol, grpc: Any, name: str) -> None:
    """A model is loaded and unloaded over gRPC."""
    with placed(protocol, name, files(5)):
        grpc.load_model(name)
        assert protocol.is_ready(name)
        assert answer(protocol, name) == 5
        grpc.unload_model(name)
        assert protocol.infer(name, ASK).error


@requirement("TRT-LOAD-004", "TRT-INDEX-004")
def test_a_load_that_fails(protocol: Protocol, name: str) -> None:
    """A model that raises is not loaded, and both the answer and the index say why."""
    with placed(protocol, name, {"config.pbtxt": CONFIG, "1/model.py": BROKEN}) as directory:
        assert "broken for good" in protocol.load(name).error
        (entry,) = protocol.index(name)
        assert entry["state"] == "UNAVAILABLE"
        assert "broken for good" in entry["reason"]
        # A server with strict readiness is unready until a load of this name has succeeded.
        (directory / "1" / "model.py").write_text(python_model(1))
        assert protocol.load(name).status == 200


@requirement("TRT-LOAD-009", "TRT-LOAD-010")
def test_given_with_the_load(protocol: Protocol, name: str) -> None:
    """A configuration and a file that come with the load are the model; nothing is in the repository."""
    config = {
        "backend": "python",
        "max_batch_size": 0,
        "instance_group": [{"count": 1, "kind": "KIND_CPU"}],
        "input": [{"name": "x", "data_type": "TYPE_INT32", "dims": [1]}],
        "output": [{"name": "y", "data_type": "TYPE_INT32", "dims": [1]}],
        "parameters": {"origin": {"string_value": "the load"}},
    }
    model = base64.b64encode(python_model(8).encode()).decode()
    try:
        loaded = protocol.load(name, config=json.dumps(config), **{"file:1/model.py": model})
        assert loaded.status == 200, loaded
        assert answer(protocol, name) == 8
        told = protocol.get(f"/models/{name}/config").json
        assert told["parameters"]["origin"] == {"string_value": "the load"}
        assert not (protocol.server.model_repository / name).exists()
    finally:
        protocol.remove(name)


@requirement("TRT-UNLOAD-005")
def test_unload_waits_for_requests(protocol: Protocol, name: str) -> None:
    """A request that runs when its model is unloaded is answered."""
    ask = request(tensor("x", "FP32", [1, 1], [float("nan")]), outputs=[{"name": "y"}])
    with placed(protocol, name, KINDS["add"]):
        assert protocol.load(name).status == 200
        with ThreadPoolExecutor(1) as pool:
            running = pool.submit(protocol.infer, name, ask)
            time.sleep(0.3)  # the model itself waits for a second
            assert protocol.unload(name).status == 200
            assert running.result().status == 200, running.result()


@requirement("TRT-ENSEMBLE-001", "TRT-ENSEMBLE-002", "TRT-ENSEMBLE-003")
def test_ensemble(protocol: Protocol, name: str) -> None:
    """An ensemble loads its member, answers what that answers twice over, and takes it along when it goes."""
    member = f"{name}-member"
    with placed(protocol, member, KINDS["add"]), placed(protocol, name, ensemble(member)):
        assert protocol.load(name).status == 200
        assert protocol.is_ready(member)
        ask = request(tensor("x", "FP32", [1, 2], [1.0, 2.0]))
        assert protocol.infer(name, ask).json["outputs"][0]["data"] == [2.0, 3.0]
        assert protocol.unload(name, unload_dependents=True).status == 200
        assert not protocol.is_ready(name)
        assert not protocol.is_ready(member)


@requirement("TRT-CONC-002")
def test_loads_at_once(protocol: Protocol, name: str) -> None:
    """Two models that are loaded at once are both ready when their loads have returned."""
    names = [f"{name}-{number}" for number in range(2)]
    with placed(protocol, names[0], files(0)), placed(protocol, names[1], files(1)):
        with ThreadPoolExecutor() as pool:
            assert [it.status for it in pool.map(protocol.load, names)] == [200, 200]
        assert [answer(protocol, it) for it in names] == [0, 1]


@requirement("TRT-CONC-003", "TRT-CONC-004")
def test_answers_during_loads(protocol: Protocol, grpc: Any, zoo: dict[str, str], name: str) -> None:
    """While a model is loaded and loaded again, another one answers, and so does the model from its first load on."""
    ask = request(tensor("x", "FP32", [1, 1], [1.0]))
    done = threading.Event()
    refused: list[Any] = []

    def keep_asking(model: str, document: Any) -> int:
        count = 0
        while not done.is_set():
            found = protocol.infer(model, document)
            if found.status != 200:
                refused.append(found)
            count += 1
        return count

    with placed(protocol, name, files(1)) as directory, ThreadPoolExecutor() as pool:
        try:
            other = pool.submit(keep_asking, zoo["add"], ask)
            grpc.load_model(name)
            itself = pool.submit(keep_asking, name, ASK)
            write(directory, {"1/model.py": python_model(20)})
            grpc.load_model(name)
        finally:
            done.set()
        assert min(other.result(), itself.result()) > 0
        assert refused == []
        assert answer(protocol, name) == 20


@requirement("TRT-CONC-001")
def test_requests_at_once(protocol: Protocol, zoo: dict[str, str]) -> None:
    """Eight threads ask one model each for its own, and get it."""

    def ask(number: int) -> Any:
        asked = request(tensor("x", "FP32", [1, 1], [float(number)]), id=str(number), outputs=[{"name": "y"}])
        told = protocol.infer(zoo["add"], asked).json
        return told["id"], told["outputs"][0]["data"]

    with ThreadPoolExecutor(8) as pool:
        assert list(pool.map(ask, range(64))) == [(str(number), [number + 0.5]) for number in range(64)]
