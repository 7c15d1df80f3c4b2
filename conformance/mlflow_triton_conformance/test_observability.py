"""What can be seen of models in a server, without any plugin."""

from __future__ import annotations

import re
import time
import urllib.request
from typing import TYPE_CHECKING, Any

import pytest

from mlflow_triton_conformance.wire import request, tensor

if TYPE_CHECKING:
    from collections.abc import Callable

    from mlflow_triton_conformance.protocol import Protocol

requirement = pytest.mark.requirement
GOOD = request(tensor("x", "FP32", [2, 1], [1.0, 2.0]))
BAD = request(tensor("x", "FP32", [1, 1], [1e39]))  # infinity, at which the model raises


def gained(read: Callable[[], list[float]], act: Callable[[], None], expected: list[float]) -> list[float]:
    """Return what counters gain by an act: a server may count a request just after it has answered it."""
    before: list[float] = []
    while (now := read()) != before:  # requests before this one may still be counted
        before = now
        time.sleep(0.1)
    act()
    deadline = time.monotonic() + 10
    while True:
        gain = [new - old for new, old in zip(read(), before, strict=True)]
        if gain == expected or time.monotonic() > deadline:
            return gain
        time.sleep(0.05)


def statistics(protocol: Protocol, model: str) -> dict[str, Any]:
    """Return the statistics of a model's only version."""
    (found,) = protocol.get(f"/models/{model}/stats").json["model_stats"]
    return dict(found)


def executions(found: dict[str, Any], size: int) -> int:
    """Return how often batches of a size were executed."""
    return sum(
        int(it["compute_infer"]["count"]) for it in found.get("batch_stats", []) if it["batch_size"] == size
    )


def counts(found: dict[str, Any]) -> tuple[int, int]:
    """Return how many requests succeeded and failed."""
    told = found["inference_stats"]
    return int(told["success"].get("count", 0)), int(told["fail"].get("count", 0))


@requirement("TRT-STAT-001", "TRT-STAT-002", "TRT-STAT-003")
def test_statistics(protocol: Protocol, zoo: dict[str, str]) -> None:
    """Two requests of two rows that succeed and one that fails are counted as such, with their time."""

    def ask() -> None:
        answers = [protocol.infer(zoo["add"], it).status == 200 for it in (GOOD, GOOD, BAD)]
        assert answers == [True, True, False]

    def read() -> list[float]:
        found = statistics(protocol, zoo["add"])
        return [*counts(found), found["inference_count"], executions(found, 2)]

    before = statistics(protocol, zoo["add"])
    assert gained(read, ask, [2, 1, 4, 2]) == [2, 1, 4, 2]
    after = statistics(protocol, zoo["add"])
    assert after["inference_stats"]["success"]["ns"] > before["inference_stats"]["success"].get("ns", 0)


@requirement("TRT-STAT-004")
def test_statistics_over_grpc(protocol: Protocol, grpc: Any, zoo: dict[str, str]) -> None:
    """GRPC tells the counts that HTTP tells."""

    def read() -> list[float]:
        return [*counts(statistics(protocol, zoo["add"]))]

    def ask() -> None:
        assert protocol.infer(zoo["add"], GOOD).status == 200

    assert gained(read, ask, [1, 0]) == [1, 0]
    (told,) = grpc.get_inference_statistics(zoo["add"]).model_stats
    expected = statistics(protocol, zoo["add"])
    assert (told.name, told.version, told.inference_count) == (zoo["add"], "1", expected["inference_count"])
    assert (told.inference_stats.success.count, told.inference_stats.fail.count) == counts(expected)


@requirement("TRT-STAT-005")
def test_statistics_of_an_unknown_model(protocol: Protocol) -> None:
    """A model that nobody has has no statistics."""
    assert protocol.get("/models/no-such-model/stats").error


def metrics(protocol: Protocol) -> str:
    """Read the metrics."""
    with urllib.request.urlopen(str(protocol.server.metrics_url), timeout=10) as answer:
        return str(answer.read().decode())


def metric(protocol: Protocol, name: str, model: str) -> float:
    """Add up a metric of a model."""
    lines = re.findall(
        rf'^{name}\{{[^}}]*model="{re.escape(model)}"[^}}]*\}} (\S+)$', metrics(protocol), re.MULTILINE
    )
    return sum(map(float, lines))


@requirement("TRT-METRIC-001")
def test_metrics(protocol: Protocol, zoo: dict[str, str]) -> None:
    """Each line is a comment, or a metric with labels and a number."""
    text = metrics(protocol)
    assert "# TYPE nv_inference_request_success counter" in text
    label = r'[a-zA-Z_]\w*="([^"\\]|\\.)*"'
    pattern = re.compile(rf"[a-zA-Z_:][\w:]*(\{{({label},?)*\}})? [-+.\deEinfNa]+")
    assert [
        line for line in text.split("\n") if line[:1] not in ("#", "") and not pattern.fullmatch(line)
    ] == []


@requirement("TRT-METRIC-002", "TRT-METRIC-003")
def test_counters(protocol: Protocol, zoo: dict[str, str]) -> None:
    """A request that succeeds and one that fails count each in its own metric."""
    names = ("nv_inference_request_success", "nv_inference_request_failure")

    def read() -> list[float]:
        return [metric(protocol, name, zoo["add"]) for name in names]

    def ask() -> None:
        assert [protocol.infer(zoo["add"], it).status == 200 for it in (GOOD, BAD)] == [True, False]

    assert gained(read, ask, [1, 1]) == [1, 1]


@requirement("TRT-LOG-001")
def test_log_settings(protocol: Protocol) -> None:
    """A log setting can be read and set, and is then what it was set to."""
    before = protocol.get("/logging").json
    other = {"log_verbose_level": 0, "log_warning": not before["log_warning"]}
    try:
        assert protocol.post("/logging", other).status == 200
        assert protocol.get("/logging").json == before | other
    finally:
        protocol.post("/logging", {name: before[name] for name in other})
    assert protocol.get("/logging").json == before


@requirement("TRT-TRACE-001")
def test_trace_settings(protocol: Protocol) -> None:
    """The trace settings are told."""
    assert {"trace_level", "trace_rate"} <= protocol.get("/trace/setting").json.keys()
