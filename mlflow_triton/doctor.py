"""Checks whether a deployment would work, and says what to do where it would not."""

from __future__ import annotations

import uuid
from dataclasses import dataclass
from importlib import metadata
from typing import TYPE_CHECKING

import mlflow

from mlflow_triton.errors import RepositoryError, TritonPluginError
from mlflow_triton.models.tracking import foreign_errors, require_server, tracking_uri
from mlflow_triton.recovery import Recovery
from mlflow_triton.repository.local import LocalRepository
from mlflow_triton.scratch import abandoned, remove_abandoned
from mlflow_triton.serving.control import Control
from mlflow_triton.serving.http import HttpEndpoint
from mlflow_triton.serving.trial import load_trial

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from mlflow_triton.settings import Settings

__all__ = ["Finding", "diagnose"]

AFTER_HTTP = ("triton grpc", "model control", "backend onnxruntime", "model repository")


@dataclass(frozen=True, slots=True)
class Finding:
    """The outcome of one check.

    Attributes:
        check: What was looked at.
        level: ``ok``; ``warning``: a new deployment works, but not all is as it should be; ``failed``: none works.
        text: What was found and, unless it is well, what to do.
    """

    check: str
    level: str
    text: str


def diagnose(settings: Settings, *, repair: bool = False) -> Iterator[Finding]:
    """Run every check; a check that another one makes pointless says so.

    What is put into the repository or loaded into the server for a check is gone afterwards.

    Args:
        settings: Where the servers and the repository are.
        repair: Finish or undo the operations that were interrupted, and remove what they left. Without the
            server, only the disk is put in order.
    """
    http = HttpEndpoint(settings)
    control = Control(http, settings)
    yield _finding("mlflow", _mlflow)
    yield _finding("target", _target)
    triton = _finding("triton http", lambda: _http(control, settings))
    yield triton
    if triton.level == "failed":
        skipped = "not checked, as Triton does not answer over HTTP"
        yield from (Finding(check, "failed", skipped) for check in AFTER_HTTP)
        yield _finding("operations", lambda: _operations(control, settings, repair=repair))
        return
    yield _finding("triton grpc", lambda: _grpc(control, settings))
    mode = _finding("model control", lambda: _explicit(control))
    yield mode
    if mode.level == "failed":
        yield Finding("backend onnxruntime", "failed", "not checked, as Triton loads no model on request")
    else:
        yield _finding("backend onnxruntime", lambda: _backend(control))
    yield _finding("model repository", lambda: _repository(control, settings))
    yield _finding("operations", lambda: _operations(control, settings, repair=repair))


def _finding(check: str, function: Callable[[], tuple[str, str]]) -> Finding:
    try:
        return Finding(check, *function())
    except TritonPluginError as error:
        return Finding(check, "failed", error.message)


def _mlflow() -> tuple[str, str]:
    version = require_server()
    with foreign_errors("The model registry"):
        mlflow.MlflowClient().search_registered_models(max_results=1)
    server = f", server {version}" if version else ""
    return "ok", f"{tracking_uri()} answers (client {mlflow.__version__}{server})"


def _target() -> tuple[str, str]:
    found = {
        f"{point.dist.name} {point.dist.version}" if point.dist else point.value
        for point in metadata.entry_points(group="mlflow.deployments")
        if point.name == "triton"
    }
    if len(found) > 1:
        return "failed", (
            f"several distributions claim the target triton, and MLflow takes one of them without a word: "
            f"{', '.join(sorted(found))}. Uninstall all but one."
        )
    if not found:
        return (
            "failed",
            "no distribution claims the target triton. Install this package: pip install mlflow-triton-plugin",
        )
    return "ok", f"triton is {found.pop()}"


def _http(control: Control, settings: Settings) -> tuple[str, str]:
    server = control.server()
    return "ok", f"{settings.http_url}: {server.name} {server.version}"


def _grpc(control: Control, settings: Settings) -> tuple[str, str]:
    if control.grpc_answers():
        return "ok", str(settings.grpc_url)
    return "warning", (
        f"{settings.grpc_url.value or 'no gRPC URL is known'} (from {settings.grpc_url.source}): no usable answer; "
        "models are loaded over HTTP, which stalls inference meanwhile. Set TRITON_GRPC_URL to HOST:PORT."
    )


def _explicit(control: Control) -> tuple[str, str]:
    control.require_explicit()
    return "ok", "explicit"


def _backend(control: Control) -> tuple[str, str]:
    for entry in control.index():
        if entry.state == "READY" and (control.config(entry.name) or {}).get("backend") == "onnxruntime":
            return "ok", f"{entry.name} runs on it"
    was_ready = control.is_server_ready()
    name = f"mlflow-triton-{uuid.uuid4().hex}"
    reason = load_trial(control, "onnxruntime", name, version=1, timeout=60)
    if reason is None:
        return "ok", "loads a trial model"
    if was_ready and not control.is_server_ready():
        # A failed load leaves a server with strict readiness unready; a successful one of that name mends it.
        load_trial(control, "python", name, version=1, timeout=60)
    return "failed", (
        f"models of the flavor onnx cannot be served: {reason} Use a Triton that has the onnxruntime backend, "
        "such as the images tritonserver:XX.YY-py3."
    )


def _repository(control: Control, settings: Settings) -> tuple[str, str]:
    path = settings.model_repository
    if path.value is None:
        return "failed", (
            "TRITON_MODEL_REPO is not set: set it to the directory of the server's --model-repository, as mounted here."
        )
    repository = LocalRepository(path.value, path.source)
    repository.check()
    with (
        repository.claim(f"doctor-{uuid.uuid4().hex}", "check", timeout=1) as claim,
        repository.workspace(claim) as workspace,
        workspace.probe() as probe,
    ):
        seen = control.lists(probe)
    if not seen:
        return "failed", (
            f"{path} is writable, but is not what the server reads. Set TRITON_MODEL_REPO to the directory of the "
            "server's --model-repository, as mounted here."
        )
    if corrupt := list(_corrupt(repository)):
        return "warning", f"{path} is writable, and the server reads it. {' '.join(corrupt)}"
    return "ok", f"{path} is writable, and the server reads it"


def _corrupt(repository: LocalRepository) -> Iterator[str]:
    for name in repository.names():
        try:
            repository.record(name)
        except RepositoryError as error:  # noqa: PERF203 - each one is told
            yield error.message


def _operations(control: Control, settings: Settings, *, repair: bool) -> tuple[str, str]:
    path = settings.model_repository
    if path.value is None:
        return "ok", "not checked, as TRITON_MODEL_REPO is not set"
    repository = LocalRepository(path.value, path.source)
    repository.check()
    if repair:
        done = list(Recovery(repository, control).repair())
        done += [
            ("", True, f"Removed {path}, which a dry run that died had left.") for path in remove_abandoned()
        ]
        level = "ok" if all(well for _, well, _ in done) else "failed"
        return level, " ".join(text for _, _, text in done) or "none was interrupted, nothing was left behind"
    found = [
        f"{notice.change.by} of {notice.name!r} was interrupted"
        for notice in repository.notices()
        if notice.change is not None and not notice.held
    ]
    found += [f"{left} was left behind" for left in (*repository.leftovers(), *abandoned())]
    if not found:
        return "ok", "none was interrupted, nothing was left behind"
    return "warning", (
        f"{'; '.join(found)}. The next operation on the deployment settles it, and so does mlflow-triton doctor --repair."
    )
