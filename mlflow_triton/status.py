"""What is deployed, at a glance: disk, server, registry and Triton's statistics side by side.

Nothing is changed and no name is claimed. A server that is down or hangs costs one deadline, and the disk's part is
told all the same.
"""

from __future__ import annotations

import hashlib
import json
import re
import textwrap
import threading
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any

import mlflow
from mlflow.store.artifact.utils.models import get_model_name_and_version

from mlflow_triton.deploy import describe, operation_text
from mlflow_triton.errors import InvalidSetting, RepositoryError, TritonPluginError
from mlflow_triton.models.tracking import foreign_errors, require_server
from mlflow_triton.recovery import Recovery
from mlflow_triton.repository.layout import check_name
from mlflow_triton.repository.local import LocalRepository
from mlflow_triton.serving.control import Control
from mlflow_triton.serving.http import HttpEndpoint

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from mlflow_triton.repository.claim import Notice
    from mlflow_triton.repository.record import Record
    from mlflow_triton.serving.control import IndexEntry
    from mlflow_triton.settings import Settings

__all__ = ["DeploymentStatus", "Report", "report", "table"]

#: Seconds for everything that is asked of MLflow, all deployments together.
REGISTRY_TIMEOUT = 10.0
#: A URI that may mean another version tomorrow: by an alias, a stage, or as the latest.
MOVABLE = re.compile(r"models:/+(?:[^/@]+@[^/]+|[^/@]+/(?!\d+$)[^/]+)")
WIDTH = 110


@dataclass(slots=True)
class DeploymentStatus:
    """One deployment; ``None`` where something is not known or does not apply.

    Attributes:
        name: Triton's model name.
        state: Triton's, ``NOT_LOADED``, ``NOT_FOUND``, ``NOT_DEPLOYED`` (no record), or ``UNKNOWN`` (no server).
        reason: For a state other than READY; may be empty.
        serving_versions: Of Triton, ascending; those that are READY.
        mlflow_model_uri: As given when it was deployed.
        model_name: Registered model.
        model_version: Registered version that was deployed.
        deployment_id: On record.
        serving_id: The deployment id that the server runs.
        digest: Over paths and digests of all published files; ``sha256:…``.
        changed_files: What on disk is not as it was published.
        operation: Under way, or interrupted.
        previous: What is kept for a rollback, as ``mlflow-triton history`` tells of it.
        registry_version: What the URI's alias, stage or ``latest`` means in the registry now.
        drift: Whether that is another version than the deployed one.
        registry_error: Why the registry could not say.
        inferences: Inferences that succeeded since the model was loaded, over all its versions.
        requests: Requests that succeeded.
        failures: Requests that failed.
        latency_ms: Mean of a successful request.
        queue_ms: The part of it that it waited.
        compute_ms: The part of it that the model took, copying tensors included.
        problems: Why it is not as recorded and serving.
    """

    name: str
    state: str = "UNKNOWN"
    reason: str = ""
    serving_versions: list[int] = field(default_factory=list)
    mlflow_model_uri: str | None = None
    model_name: str | None = None
    model_version: str | None = None
    deployment_id: str | None = None
    serving_id: str | None = None
    digest: str | None = None
    changed_files: list[str] | None = None
    operation: str | None = None
    previous: dict[str, str | None] | None = None
    registry_version: str | None = None
    drift: bool | None = None
    registry_error: str | None = None
    inferences: int | None = None
    requests: int | None = None
    failures: int | None = None
    latency_ms: float | None = None
    queue_ms: float | None = None
    compute_ms: float | None = None
    problems: list[str] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class Report:
    """All of it.

    Attributes:
        triton_url: Of the server that was asked.
        model_repository: The directory that was read.
        server_error: Why the server could not say everything; ``None``: it did.
        ok: Whether everything is READY and as recorded.
        deployments: In the order of their names, or as asked for.
    """

    triton_url: str
    model_repository: str
    server_error: str | None
    ok: bool
    deployments: list[DeploymentStatus]

    def to_json(self) -> str:
        """Return one JSON object with the attributes as keys."""
        return json.dumps(asdict(self), indent=2)


def report(settings: Settings, names: Sequence[str] = ()) -> Report:
    """Look at deployments.

    Args:
        settings: Where server and repository are.
        names: Of the deployments; none: all that the repository has.

    Raises:
        InvalidName: One of the names cannot be that of a deployment.
        InvalidSetting: No repository is set.
        RepositoryError: It cannot be read.
    """
    path = settings.model_repository
    if path.value is None:
        raise InvalidSetting(
            "No model repository is set. Set TRITON_MODEL_REPO to the directory of the server's --model-repository."
        )
    for name in names:
        check_name(name)
    repository = LocalRepository(path.value, path.source)
    repository.check()
    control = Control(HttpEndpoint(settings), settings)
    notices = {notice.name: notice for notice in repository.notices()}
    rows = []
    records = {}
    for name in dict.fromkeys(names) if names else _names(repository, notices):
        row, record = _on_disk(repository, name, notices.get(name))
        if record is not None:
            records[name] = record
        rows.append(row)
    error = None
    try:
        _on_server(control, Recovery(repository, control), rows, records, notices)
    except TritonPluginError as problem:
        error = problem.message
        for row in rows:
            if row.state in ("UNKNOWN", "READY") and row.serving_id is None and not row.problems:
                row.problems.append("the server did not say what it runs")
    _in_registry(rows)
    ok = error is None and not any(row.problems for row in rows)
    return Report(str(settings.http_url), str(path), error, ok, rows)


def _names(repository: LocalRepository, notices: dict[str, Notice]) -> list[str]:
    interrupted = {name for name, notice in notices.items() if notice.change is not None and not notice.held}
    return sorted(interrupted.union(repository.names()))


def _on_disk(
    repository: LocalRepository, name: str, notice: Notice | None
) -> tuple[DeploymentStatus, Record | None]:
    row = DeploymentStatus(name)
    if notice is not None and (notice.held or notice.change is not None):
        row.operation = operation_text(notice)
        if not notice.held:
            row.problems.append(row.operation)
    record = None
    try:
        record = repository.record(name)
        if record is None:
            row.state = "NOT_DEPLOYED"
            row.problems.append(f"MLflow has deployed nothing under this name in {repository.path}")
            return row, None
        row.mlflow_model_uri = record.mlflow_model_uri
        row.model_name, row.model_version = record.model_name, record.model_version
        row.deployment_id = record.deployment_id
        if record.files:
            text = json.dumps(sorted(record.files.items())).encode()
            row.digest = f"sha256:{hashlib.sha256(text).hexdigest()}"
        row.changed_files = repository.changed_files(record)
        if (kept := repository.kept(name)) is not None:
            row.previous = asdict(kept.served(record.created_at))
    except RepositoryError as error:
        row.problems.append(error.message)
    except OSError as error:
        row.problems.append(f"{error.filename or name} cannot be read: {error.strerror}")
    if row.changed_files:
        row.problems.append(f"not as published on disk: {', '.join(row.changed_files)}")
    return row, record


def _on_server(
    control: Control,
    recovery: Recovery,
    rows: list[DeploymentStatus],
    records: dict[str, Record],
    notices: dict[str, Notice],
) -> None:
    index = control.index()
    for row in rows:
        if (record := records.get(row.name)) is not None:
            _state(row, record, index, notices.get(row.name))
    statistics = control.statistics()
    for row in rows:
        _count(row, [entry for entry in statistics if entry.get("name") == row.name])
    for row in rows:
        if row.state != "READY":
            continue
        row.serving_id = recovery.serving_id(row.name)
        if row.deployment_id is None:
            row.problems.append("deployed by NVIDIA's plugin, which keeps no record of what serves")
        elif row.serving_id != row.deployment_id:
            row.problems.append(f"the server runs {row.serving_id or 'a plain load'}, which is not on record")


def _state(row: DeploymentStatus, record: Record, index: list[IndexEntry], notice: Notice | None) -> None:
    deployment = describe(record, index, notice)
    row.state, row.reason = deployment.state, deployment.reason
    row.serving_versions = sorted(
        int(entry.version)
        for entry in index
        if entry.name == row.name and entry.state == "READY" and entry.version and entry.version.isdigit()
    )
    if row.state != "READY":
        row.problems.append(f"{row.state}: {row.reason}" if row.reason else row.state)


def _count(row: DeploymentStatus, entries: list[dict[str, Any]]) -> None:
    if not entries:
        return

    def total(*keys: str) -> int:
        return sum(_number(entry, *keys) for entry in entries)

    row.inferences = total("inference_count")
    row.requests = total("inference_stats", "success", "count")
    row.failures = total("inference_stats", "fail", "count")
    if row.requests:
        parts = ("compute_input", "compute_infer", "compute_output")
        row.latency_ms, row.queue_ms, row.compute_ms = (
            round(nanoseconds / row.requests / 1e6, 3)
            for nanoseconds in (
                total("inference_stats", "success", "ns"),
                total("inference_stats", "queue", "ns"),
                sum(total("inference_stats", part, "ns") for part in parts),
            )
        )


def _number(document: Any, *keys: str) -> int:
    """Return a number from a server's answer; 0 where it is not there."""
    for key in keys:
        document = document.get(key) if isinstance(document, dict) else None
    return document if type(document) is int else 0


def _in_registry(rows: list[DeploymentStatus]) -> None:
    """Ask what movable URIs mean now, in a thread that may be left behind: MLflow's client tries for minutes."""
    asked = {row.mlflow_model_uri for row in rows if MOVABLE.fullmatch(row.mlflow_model_uri or "")}
    found: dict[str, tuple[str | None, str | None]] = {}

    def ask() -> None:
        uris = sorted(filter(None, asked))
        try:
            require_server()
        except TritonPluginError as error:
            found.update(dict.fromkeys(uris, (None, error.message)))
            return
        for uri in uris:
            found[uri] = _meaning(uri)

    if not asked:
        return
    thread = threading.Thread(target=ask, daemon=True)
    thread.start()
    thread.join(REGISTRY_TIMEOUT)
    late = None, f"MLflow did not answer within {REGISTRY_TIMEOUT:g} s"
    for row in rows:
        if row.mlflow_model_uri in asked:
            row.registry_version, row.registry_error = found.get(row.mlflow_model_uri or "", late)
            if row.registry_version is not None and row.model_version is not None:
                row.drift = row.registry_version != row.model_version


def _meaning(uri: str) -> tuple[str | None, str | None]:
    """Return the version that a URI means now, or why that is not known."""
    try:
        with foreign_errors(uri):
            return str(get_model_name_and_version(mlflow.MlflowClient(), uri)[1]), None
    except TritonPluginError as error:
        return None, error.message


def table(found: Report) -> Iterator[str]:
    """Yield the lines of a table of at most 110 columns; what is long is indented below its deployment."""
    if found.server_error:
        yield from textwrap.wrap(found.server_error, WIDTH, break_on_hyphens=False)
    if not found.deployments:
        yield f"Nothing is deployed in {found.model_repository}."
        return
    widest = min(max(len(row.name) for row in found.deployments), 24)
    yield (
        f"{'NAME':<{widest}}  {'STATE':<12}  {'VERSION':<8}  {'DIGEST':<12}  {'REQUESTS':>9}  {'FAILED':>7}  "
        "MS = QUEUE + COMPUTE"
    )
    for row in found.deployments:
        name = row.name
        if len(name) > widest:
            yield from textwrap.wrap(name, WIDTH)
            name = ""
        versions = ",".join(map(str, row.serving_versions)) or "-"
        latency = "-"
        if row.latency_ms is not None:
            latency = f"{row.latency_ms:.1f} = {row.queue_ms:.1f} + {row.compute_ms:.1f}"
        yield (
            f"{name:<{widest}}  {row.state:<12}  {versions if len(versions) <= 8 else '(below)':<8}  "
            f"{(row.digest or '-').removeprefix('sha256:')[:12]:<12}  {_dash(row.requests):>9}  "
            f"{_dash(row.failures):>7}  {latency}"
        )
        for line in _below(row):
            yield from textwrap.wrap(
                line, WIDTH, initial_indent="    ", subsequent_indent="      ", break_on_hyphens=False
            )


def _below(row: DeploymentStatus) -> Iterator[str]:
    if row.mlflow_model_uri is not None:
        registered = f", version {row.model_version} of {row.model_name}" if row.model_version else ""
        yield f"{row.mlflow_model_uri}{registered}; deployment {row.deployment_id or 'without an id'}"
    if len(versions := ",".join(map(str, row.serving_versions))) > 8:
        yield f"serving: {versions}"
    if row.drift:
        yield f"drift: {row.mlflow_model_uri} is version {row.registry_version} now"
    if row.registry_error:
        yield f"drift unknown: {row.registry_error}"
    if row.previous is not None:
        version = f", version {row.previous['model_version']}" if row.previous["model_version"] else ""
        yield f"kept for a rollback: {row.previous['mlflow_model_uri']}{version}"
    if row.operation and row.operation not in row.problems:
        yield f"operation: {row.operation}"
    for problem in row.problems:
        yield f"! {problem}"


def _dash(number: int | None) -> str:
    return "-" if number is None else str(number)
