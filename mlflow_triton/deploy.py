"""The deployment transaction: resolve, lay out, stage, publish, load, verify; undone in reverse.

When `create` or `update` returns, the server answers with the new model: it has read it from this
repository (its index lists a directory of an unguessable name put there for the purpose), and it runs
it with this deployment's id (given with the load, read back from the server). When they raise, the
server, the disk and the record are as before.
"""

from __future__ import annotations

import hashlib
import logging
import os
import time
import uuid
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime, timezone
from pathlib import Path
from typing import TYPE_CHECKING

from mlflow_triton import __version__
from mlflow_triton.errors import (
    DeploymentExists,
    DeploymentNotFound,
    InvalidModel,
    InvalidParameter,
    LoadFailed,
    RepositoryError,
    RepositoryMismatch,
    ServerRefused,
    ServerTimeout,
    ServerUnavailable,
    TritonPluginError,
)
from mlflow_triton.models import onnx, triton
from mlflow_triton.models.resolve import resolve
from mlflow_triton.repository import config as model_config
from mlflow_triton.repository.layout import CONFIG_FILE, check_name, lay_out
from mlflow_triton.repository.record import RECORD_NAME, Record
from mlflow_triton.serving.trial import BACKENDS, load_trial

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from mlflow_triton.models.resolve import ResolvedModel
    from mlflow_triton.options import DeploymentOptions
    from mlflow_triton.repository.local import LocalRepository, Workspace
    from mlflow_triton.serving.control import Control, IndexEntry

__all__ = ["DEPLOYMENT_ID", "Deployer", "Deployment"]

log = logging.getLogger(__name__)

#: The model-config parameter that carries a deployment's id to the server.
DEPLOYMENT_ID = "mlflow.deployment_id"
FLAVORS = (onnx.FLAVOR, triton.FLAVOR)
CHUNK = 1 << 20
#: Seconds for each call to the server while a failed change is undone.
UNDO_TIMEOUT = 30.0
READY_TIMEOUT = 5.0


@dataclass(frozen=True, slots=True)
class Deployment:
    """A deployment's record together with what the server says of it now.

    Attributes:
        record: What was deployed.
        version: The version that answers requests which name none; ``None``: none does.
        state: Triton's, or ``NOT_LOADED`` when the server has loaded nothing of it (as after a restart).
        reason: Triton's, for a state other than READY; may be empty.
    """

    record: Record
    version: str | None
    state: str
    reason: str


class Deployer:
    """Creates, updates, deletes and describes the deployments of one server and its repository.

    Args:
        repository: Where the models' directories are.
        control: The server that reads them.
    """

    def __init__(self, repository: LocalRepository, control: Control) -> None:
        self._repository = repository
        self._control = control

    def create(self, name: str, model_uri: str, flavor: str | None, options: DeploymentOptions) -> Deployment:
        """Deploy a model under a new name, and describe what serves.

        Raises:
            DeploymentExists: Something has the name already, here or on the server.
            TritonPluginError: Whatever else went wrong; nothing is left behind.
        """
        self._begin(name)
        if self._repository.exists(name):
            raise self._taken(name)
        with self._transaction(name) as (workspace, undo):
            if self._control.lists(name):
                raise RepositoryMismatch(
                    f"The server has a model {name!r} that is not in {self._repository.path}, but in another of its "
                    "model repositories. It is untouched. Take another name."
                )
            record, override = self._stage(workspace, name, model_uri, flavor, options)
            was_ready = self._control.is_server_ready()
            try:
                workspace.publish(name)
            except FileExistsError:
                raise self._taken(name) from None
            undo.append(lambda: self._make_ready_again(record, was_ready=was_ready))
            undo.append(lambda: workspace.remove(name))
            undo.append(lambda: self._control.unload(name, timeout=UNDO_TIMEOUT))
            self._load(record, override, options, otherwise=f"Nothing of {name!r} is left behind.")
            deployment = _describe(record, self._control.index())
        log.info("Created the deployment %r (%s) of %s.", name, record.deployment_id, model_uri)
        return deployment

    def update(
        self, name: str, model_uri: str | None, flavor: str | None, options: DeploymentOptions
    ) -> Deployment:
        """Replace a deployment's model, without an inference request failing in between, and describe it.

        Raises:
            DeploymentNotFound: There is none of that name.
            TritonPluginError: Whatever else went wrong; the old model serves, on disk and on the server.
        """
        self._begin(name)
        old = self._managed(name)
        if model_uri is None:
            raise InvalidParameter(
                f"Nothing to update {name!r} with: give the URI of a model (-m, model_uri=). "
                f"It is unchanged and serves {old.mlflow_model_uri}."
            )
        with self._transaction(name) as (workspace, undo):
            was_ready = self._control.is_ready(name)
            record, override = self._stage(workspace, name, model_uri, flavor, options)
            undo.append(lambda: self._serve_again(old, was_ready))
            workspace.swap(name)
            undo.append(lambda: workspace.swap(name))
            unchanged = f"{name!r} still serves {old.mlflow_model_uri}, which is also still on disk."
            try:
                self._load(record, override, options, otherwise=unchanged)
            except ServerUnavailable:
                # The load may still end well, after everything here has been undone.
                undo[0] = lambda: self._serve_again(old, was_ready, unsure=True)
                raise
            deployment = _describe(record, self._control.index())
        log.info("Updated the deployment %r (%s) to %s.", name, record.deployment_id, model_uri)
        return deployment

    def delete(self, name: str) -> None:
        """Unload a deployment and remove its directory; a name that nothing has is no error.

        Raises:
            DeploymentNotFound: The name is that of a model that MLflow did not deploy; it is untouched.
            TritonPluginError: Whatever else went wrong.
        """
        self._begin(name)
        if not self._repository.exists(name):
            log.info("There is no deployment %r to delete.", name)
            return
        old = self._managed(name)
        with self._transaction(name) as (workspace, undo):
            was_ready = self._control.is_ready(name)
            undo.append(lambda: self._serve_again(old, was_ready))
            try:
                self._control.unload(name)
            except ServerTimeout as error:
                raise ServerTimeout(f"{error.message} {name!r} was not deleted and serves on.") from None
            workspace.remove(name)
        log.info("Deleted the deployment %r.", name)

    def get(self, name: str) -> Deployment:
        """Describe one deployment.

        Raises:
            DeploymentNotFound: There is none of that name.
        """
        check_name(name)
        self._repository.check()
        return _describe(self._managed(name), self._control.index())

    def all(self) -> list[Deployment]:
        """Describe every deployment in the repository, loaded or not, by name."""
        self._repository.check()
        index = self._control.index()
        if index and not any(self._repository.exists(entry.name) for entry in index):
            log.warning(
                "None of the models that the server knows is in %s: is it the server's model repository?",
                self._repository.path,
            )
        return [_describe(record, index) for record in self._repository.records()]

    def serving_id(self, name: str) -> str | None:
        """Return the deployment id with which the server runs a model; ``None``: none of ours."""
        config = self._control.config(name)
        return None if config is None else model_config.parameter(config, DEPLOYMENT_ID)

    def _begin(self, name: str) -> None:
        check_name(name)
        self._repository.check()

    def _taken(self, name: str) -> DeploymentExists:
        if (record := self._repository.record(name)) is not None:
            return DeploymentExists(
                f"The deployment {name!r} exists already (of {record.mlflow_model_uri}); it is unchanged. Use update, "
                "delete it first, or take another name."
            )
        return DeploymentExists(
            f"{self._repository.path / name} exists and was not deployed by MLflow (it has no {RECORD_NAME}). "
            "It is untouched. Take another name, or move that model away."
        )

    def _managed(self, name: str) -> Record:
        record = self._repository.record(name)
        if record is None and self._repository.exists(name):
            raise DeploymentNotFound(
                f"There is no deployment {name!r}: {self._repository.path / name} was not deployed by MLflow "
                f"(it has no {RECORD_NAME}), and is untouched."
            )
        if record is None:
            raise DeploymentNotFound(
                f"There is no deployment {name!r} in {self._repository.path}. "
                "See what is deployed with: mlflow deployments list -t triton"
            )
        return record

    @contextmanager
    def _transaction(self, name: str) -> Iterator[tuple[Workspace, list[Callable[[], None]]]]:
        """Prove that the server reads this repository, then run the block; undo its steps if it fails."""
        with self._repository.workspace() as workspace:
            undo: list[Callable[[], None]] = []
            try:
                self._prove_repository(workspace, name)
                yield workspace, undo
            except BaseException as error:
                problems = [problem for step in reversed(undo) if (problem := _attempt(step))]
                if problems:
                    log.error("Undoing a change of %r failed: %s", name, " ".join(problems))  # noqa: TRY400 - raised below
                    if isinstance(error, Exception):
                        raise RepositoryError(
                            f"{error} Undoing it failed as well: {' '.join(problems)} "
                            f"See what serves with: mlflow deployments get -t triton --name {name}"
                        ) from error
                if isinstance(error, OSError):
                    raise RepositoryError(
                        f"{name!r} is as it was before: {error.strerror or error} "
                        f"({error.filename or self._repository.path})."
                    ) from error
                raise

    def _prove_repository(self, workspace: Workspace, name: str) -> None:
        with workspace.probe() as probe:
            seen = self._control.lists(probe)
        if not seen:
            raise RepositoryMismatch(
                f"The model repository {self._repository.path} is not one that the Triton server reads: the server "
                f"does not see what is put there. {name!r} is unchanged. Set TRITON_MODEL_REPO to the directory "
                "of the server's --model-repository, as mounted on this machine."
            )
        self._control.require_explicit()

    def _stage(
        self, workspace: Workspace, name: str, model_uri: str, flavor: str | None, options: DeploymentOptions
    ) -> tuple[Record, str]:
        """Build the new model directory in the workspace; return its record and its load override."""
        model = resolve(model_uri, workspace.download)
        chosen = _flavor(model, flavor)
        if chosen == onnx.FLAVOR:
            run_files = workspace.download / ".run"
            run_files.mkdir()
            contents = onnx.contents(model, version=options.version or 1, run_files=run_files)
        elif options.version is not None:
            raise InvalidParameter(
                f"Nothing was changed: -C version={options.version} does not go with the flavor {triton.FLAVOR}, "
                "whose directory brings its own version numbers."
            )
        else:
            contents = triton.contents(model)
        layout = lay_out(
            contents.files,
            origin=model_uri,
            config_text=contents.config_text,
            directories=contents.directories,
            unusual=contents.unusual,
        )
        layout.check(name)
        for directory in layout.directories:
            (workspace.model / directory).mkdir(parents=True, exist_ok=True)
        digests = {
            str(target): _place(source, workspace.model / target) for target, source in layout.files.items()
        }
        if layout.config_text is not None:
            (workspace.model / CONFIG_FILE).write_bytes(layout.config_text)
            digests[CONFIG_FILE] = _digest(workspace.model / CONFIG_FILE)
        deployment_id = uuid.uuid4().hex
        record = Record(
            name=name,
            triton_model_path=str(self._repository.path / name),
            mlflow_model_uri=model_uri,
            flavor=chosen,
            deployment_id=deployment_id,
            model_name=model.origin.model_name,
            model_version=model.origin.model_version,
            model_id=model.origin.model_id,
            run_id=model.origin.run_id,
            versions=layout.versions,
            files=dict(sorted(digests.items())),
            plugin_version=__version__,
            created_at=datetime.now(timezone.utc).isoformat(timespec="seconds"),
        )
        (workspace.model / RECORD_NAME).write_text(record.to_json(), encoding="utf-8")
        _finish(workspace.model, self._repository.path.stat().st_mode)
        return record, _override(layout.config, deployment_id)

    def _load(self, record: Record, override: str, options: DeploymentOptions, *, otherwise: str) -> None:
        """Load what was published and prove that it is what serves; `otherwise` tells what a failure leaves."""
        started = time.monotonic()
        try:
            self._control.load(record.name, config_json=override, timeout=options.load_timeout)
        except (LoadFailed, ServerUnavailable) as error:
            raise type(error)(f"{error.message} {otherwise}") from None
        serving = self.serving_id(record.name)
        if serving != record.deployment_id:
            raise RepositoryMismatch(
                f"Triton says that it loaded {record.name!r}, but serves deployment {serving or 'nothing of ours'} "
                f"and not {record.deployment_id}: another client changed it in the meantime, or TRITON_GRPC_URL and "
                f"TRITON_URL are not one server. {otherwise}"
            )
        if not self._control.is_ready(record.name):
            raise LoadFailed(
                f"Triton loaded {record.name!r} but does not call it ready. Look at the server's log."
            )
        log.info("Triton loaded %r in %.2f s.", record.name, time.monotonic() - started)

    def _make_ready_again(self, record: Record, *, was_ready: bool) -> None:
        """Undo what a failed load does to a server with strict readiness: it stays unready for good."""
        if not was_ready or self._control.is_server_ready():
            return
        for version in record.versions:
            any(
                load_trial(self._control, backend, record.name, version=version, timeout=UNDO_TIMEOUT) is None
                for backend in BACKENDS
            )
        # Other models that are being loaded or unloaded make a server unready as well, for a while.
        deadline = time.monotonic() + READY_TIMEOUT
        while not self._control.is_server_ready():
            if time.monotonic() > deadline:
                raise ServerRefused(
                    "The server calls itself not ready (/v2/health/ready) since the load failed, as Triton does by "
                    "default until it is restarted; --strict-readiness=false prevents it."
                )
            time.sleep(0.1)

    def _serve_again(self, old: Record, was_ready: bool, *, unsure: bool = False) -> None:
        """Bring the server back to a deployment whose directory is in place again.

        `unsure`: a load of something else may be under way; Triton takes this one after it.
        """
        if not was_ready:
            self._control.unload(old.name, timeout=UNDO_TIMEOUT)
        elif unsure or self.serving_id(old.name) != old.deployment_id or not self._control.is_ready(old.name):
            config = model_config.parse(self._repository.config_text(old.name), origin=old.name)
            override = _override(config, old.deployment_id)
            self._control.load(old.name, config_json=override, timeout=UNDO_TIMEOUT)


def _attempt(step: Callable[[], None]) -> str | None:
    try:
        step()
    except (TritonPluginError, OSError) as error:
        return str(error)
    return None


def _flavor(model: ResolvedModel, wanted: str | None) -> str:
    has = ", ".join(model.flavors) or "none"
    if wanted is not None and wanted not in FLAVORS:
        raise InvalidParameter(
            f"The flavor {wanted!r} cannot be deployed to Triton; {' and '.join(FLAVORS)} can. Nothing was changed. "
            f"The flavors of {model.origin.uri} are: {has}."
        )
    if wanted is not None and wanted not in model.flavors:
        raise InvalidModel(
            f"{model.origin.uri} has no flavor {wanted!r}. Nothing was changed. Its flavors are: {has}. "
            "Leave the flavor out, or log the model with the one that you want."
        )
    chosen = wanted or next(
        (flavor for flavor in (triton.FLAVOR, onnx.FLAVOR) if flavor in model.flavors), None
    )
    if chosen is None:
        raise InvalidModel(
            f"{model.origin.uri} has no flavor that can be deployed to Triton ({', '.join(FLAVORS)}). Nothing was changed. "
            f"Its flavors are: {has}. Publish it as a Triton model directory: mlflow-triton publish."
        )
    return chosen


def _override(config: model_config.ModelConfig, deployment_id: str | None) -> str:
    """Return the configuration to load with: the model's own, and the deployment's id."""
    if deployment_id is not None:
        config = model_config.with_parameter(config, DEPLOYMENT_ID, deployment_id)
    return model_config.to_json(config)


def _place(source: Path, target: Path) -> str:
    """Move a file, and return its digest."""
    target.parent.mkdir(parents=True, exist_ok=True)
    source.rename(target)
    return _digest(target)


def _digest(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(CHUNK):
            digest.update(chunk)
    return f"sha256:{digest.hexdigest()}"


def _finish(directory: Path, mode: int) -> None:
    """Make what was built readable for whom the repository is, and new.

    The server may run as another user, and neither this user's umask nor the permissions of a downloaded file
    know of it. Triton takes what is older than its last load for unchanged.

    Args:
        directory: The model's directory.
        mode: The repository's permissions.
    """
    for parent, _, names in os.walk(directory, topdown=False):
        for path in (Path(parent, name) for name in names):
            path.chmod(mode & 0o666 | 0o600 | path.stat().st_mode & 0o100)
            os.utime(path)
        Path(parent).chmod(mode & 0o777 | 0o700)
        os.utime(parent)


def _describe(record: Record, index: list[IndexEntry]) -> Deployment:
    entries = [entry for entry in index if entry.name == record.name]
    versions = sorted(
        (entry for entry in entries if entry.version is not None and entry.version.isdigit()),
        key=lambda entry: int(entry.version or 0),
    )
    ready = [entry for entry in versions if entry.state == "READY"]
    if ready:
        return Deployment(record, ready[-1].version, "READY", "")
    if versions:
        last = versions[-1]
        return Deployment(record, None, last.state or "UNAVAILABLE", last.reason)
    if entries:
        reason = (
            entries[0].reason
            or "the server has loaded nothing of it, as after a restart; update it to load it"
        )
        return Deployment(record, None, entries[0].state or "NOT_LOADED", reason)
    return Deployment(record, None, "NOT_FOUND", "the server does not see this model repository")
