"""What an operation logs of its steps."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any

import pytest

from mlflow_triton import flavor
from mlflow_triton.errors import LoadFailed
from mlflow_triton_conformance import models

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

BEFORE = ["claim", "prove repository"]
STAGED = ["download", "stage"]
LOADED = ["publish", "verify", "load"]
STANDS = ["sync", "commit", "total"]


def saved(directory: Path, value: int, *, broken: bool = False) -> str:
    """Save a model of the Python backend; return its path."""
    source = models.write_python(directory / f"source-{value}", {1: value})
    if broken:
        (source / "1" / "model.py").write_text("raise RuntimeError")
    flavor.save_model(source, directory / f"model-{value}")
    return str(directory / f"model-{value}")


def steps(caplog: pytest.LogCaptureFixture) -> list[Any]:
    """Return what was logged of steps, and forget it."""
    found: list[Any] = [record for record in caplog.records if record.name == "mlflow_triton.steps"]
    caplog.clear()
    return found


def test_every_step_is_logged(
    deployment_client: Any, deployment_name: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Each step of an operation is logged with what it belongs to, how it ended, and how long it took."""
    caplog.set_level(logging.DEBUG, "mlflow_triton")
    calls: dict[str, tuple[Callable[[], object], list[str]]] = {
        "create": (
            lambda: deployment_client.create_deployment(deployment_name, saved(tmp_path, 1)),
            [*BEFORE, *STAGED, *LOADED, *STANDS],
        ),
        "update": (
            lambda: deployment_client.update_deployment(deployment_name, saved(tmp_path, 2)),
            [*BEFORE, *STAGED, *LOADED, *STANDS],
        ),
        "restore": (lambda: deployment_client.restore([deployment_name]), [*BEFORE, "total"]),
        "delete": (
            lambda: deployment_client.delete_deployment(deployment_name),
            [*BEFORE, "unload", "remove", "commit", "total"],
        ),
    }
    for operation, (call, expected) in calls.items():
        result: Any = call()
        conclusion = {"delete": "", "restore": ": it served already"}.get(operation)
        if conclusion is None:
            conclusion = f": deployment {result['deployment_id']} of {result['mlflow_model_uri']} serves"
        lines = [record for record in caplog.records if record.name.startswith("mlflow_triton")]
        found = steps(caplog)
        assert [record.step for record in found if record.deployment == deployment_name] == expected
        assert {record.operation for record in found} == {operation}
        assert {record.outcome for record in found} == {"done"}
        total = found[-1]
        assert all(0 <= record.duration_s <= total.duration_s for record in found)
        assert [record for record in lines if record.levelno >= logging.INFO] == [total]
        assert (
            total.getMessage()
            == f"{operation} {deployment_name!r}: total done after {total.duration_s:.3f} s{conclusion}"
        )


def test_a_step_that_fails(
    deployment_client: Any, deployment_name: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """The step that failed, and what was undone, can be seen without looking for DEBUG."""
    caplog.set_level(logging.DEBUG, "mlflow_triton.steps")
    with pytest.raises(LoadFailed):
        deployment_client.create_deployment(deployment_name, saved(tmp_path, 3, broken=True))
    assert [(record.step, record.outcome) for record in steps(caplog) if record.levelno >= logging.INFO] == [
        ("load", "LoadFailed"),
        ("undo", "done"),
        ("total", "LoadFailed"),
    ]
