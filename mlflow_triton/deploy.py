"""The deployment transaction: claim, prove, stage, write down, publish, load, verify, commit; or undo.

When `create` or `update` returns, the server answers with the new model: it has read it from this
repository (its index lists a directory of an unguessable name put there for the purpose), and it runs
it with this deployment's id (given with the load, read back from the server). When they raise, the
server, the disk and the record are as before. When they are killed, the next operation on the
deployment finishes or undoes what they did (`mlflow_triton.recovery`).
"""

from __future__ import annotations

import logging
import os
import shutil
import time
import uuid
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from datetime import datetime, timezone
from pathlib import Path
from typing import TYPE_CHECKING

from mlflow_triton import __version__
from mlflow_triton.configure import configured
from mlflow_triton.errors import (
    DeploymentBusy,
    DeploymentExists,
    DeploymentNotFound,
    InvalidModel,
    InvalidParameter,
    LoadFailed,
    RepositoryError,
    RepositoryMismatch,
    ServerTimeout,
    ServerUnavailable,
    SmokeTestFailed,
    TritonPluginError,
)
from mlflow_triton.models import onnx, triton
from mlflow_triton.options import LOCK_TIMEOUT, DeploymentOptions
from mlflow_triton.plan import Plan, Side, model_text
from mlflow_triton.recovery import DEPLOYMENT_ID, Recovery, told, unfinished
from mlflow_triton.repository import config as model_config
from mlflow_triton.repository.layout import CONFIG_FILE, KEPT, check_name
from mlflow_triton.repository.record import RECORD_NAME, Record, digest, text_digest
from mlflow_triton.scratch import remove_abandoned, scratch
from mlflow_triton.staging import deployed, downloaded, keep
from mlflow_triton.steps import conclude, step
from mlflow_triton.steps import operation as operation_of

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from mlflow_triton.models.example import Example
    from mlflow_triton.repository.claim import Claim, Notice
    from mlflow_triton.repository.layout import Layout
    from mlflow_triton.repository.local import LocalRepository, Workspace
    from mlflow_triton.repository.record import Served
    from mlflow_triton.serving.control import Control, IndexEntry
    from mlflow_triton.staging import Source

__all__ = ["DEPLOYMENT_ID", "Deployer", "Deployment", "Restored", "describe", "operation_text"]

log = logging.getLogger(__name__)

#: Triton itself loads four models at once, by default.
PARALLEL_LOADS = 8


@dataclass(frozen=True, slots=True)
class Deployment:
    """A deployment's record together with what the server says of it now.

    Attributes:
        record: What was deployed.
        version: The version that answers requests which name none; ``None``: none does.
        state: Triton's, or ``NOT_LOADED`` when the server has loaded nothing of it (as after a restart).
        reason: Triton's, for a state other than READY; may be empty.
        operation: One that is under way on it, or that died and is neither finished nor undone yet; ``None``:
            there is none.
        previous: What a rollback would bring back; ``None``: nothing.
    """

    record: Record
    version: str | None
    state: str
    reason: str
    operation: str | None
    previous: Record | None = None


@dataclass(frozen=True, slots=True)
class Restored:
    """How the loading of one deployment went.

    Attributes:
        name: The deployment.
        text: What was done, or why it failed.
        failed: Whether it does not serve.
    """

    name: str
    text: str
    failed: bool


@dataclass(frozen=True, slots=True)
class _Wanted:
    """What the caller of a create or an update asked for."""

    name: str
    model_uri: str | None  # None: what is deployed already, or for a rollback, what it keeps
    flavor: str | None
    options: DeploymentOptions
    operation: str = "create"
    old: Record | None = None  # what it takes the place of


class Deployer:
    """Creates, updates, deletes and describes the deployments of one server and its repository.

    Args:
        repository: Where the models' directories are.
        control: The server that reads them.
    """

    def __init__(self, repository: LocalRepository, control: Control) -> None:
        self._repository = repository
        self._control = control
        self._recovery = Recovery(repository, control)
        self._dependants = self._recovery.dependants

    def create(self, name: str, model_uri: str, flavor: str | None, options: DeploymentOptions) -> Deployment:
        """Deploy a model under a new name, and describe what serves.

        With the option `adopt`, the name may be that of a model that is not a deployment. It is replaced as an
        update would do it, and is what is put back if that fails.

        Raises:
            DeploymentExists: Something has the name already, here or on the server.
            TritonPluginError: Whatever else went wrong; nothing is left behind.
        """
        with self._operation(name, "create", options) as claim:
            if claim.interrupted is None and self._repository.exists(name):
                self._adoptable(name, options)
            with self._proven(claim) as workspace:
                if self._repository.exists(name):
                    self._adoptable(name, options)
                    claim.operation = "adopt"
                    unchanged = f"What was in {self._repository.path / name} is there as before."
                    adopting = _Wanted(name, model_uri, flavor, options, "adopt")
                    return self._replace(claim, workspace, adopting, unchanged)
                self._refuse_elsewhere(name)
                record, layout, example = self._stage(
                    workspace, _Wanted(name, model_uri, flavor, options), set()
                )
                self._dependants.refuse_missing(name, layout)
                with (
                    self._dependants.members_proven(layout.config),
                    self._change(claim, workspace, record, was_ready=False, to_be_tested=options.smoke_test),
                ):
                    try:
                        with step("publish"):
                            workspace.publish(name)
                    except FileExistsError:
                        raise self._taken(name) from None
                    # The server tells which versions it knows of a model that is in the repository.
                    self._refuse_cached(layout, name, self._known_versions(name), record.flavor)
                    nothing = f"Nothing of {name!r} is left behind."
                    self._load(record, layout, options, otherwise=nothing)
                    self._smoke_test(record, layout, example, options, otherwise=nothing)
                    deployment = self._described(record, self._control.index(), None)
            conclude(f"deployment {record.deployment_id} of {model_uri} serves")
        return deployment

    def update(
        self, name: str, model_uri: str | None, flavor: str | None, options: DeploymentOptions
    ) -> Deployment:
        """Replace a deployment's model, without an inference request failing in between, and describe it.

        Raises:
            DeploymentNotFound: There is none of that name.
            TritonPluginError: Whatever else went wrong; the old model serves, on disk and on the server.
        """
        with self._operation(name, "update", options) as claim:
            if claim.interrupted is None:
                self._updatable(name, model_uri, flavor, options)
            with self._proven(claim) as workspace:
                old = self._updatable(name, model_uri, flavor, options)
                _warn_of_dropped(old, model_uri, options)
                unchanged = f"{name!r} still serves {old.mlflow_model_uri}, which is also still on disk."
                wanted = _Wanted(name, model_uri, flavor, options, "update", old)
                return self._replace(claim, workspace, wanted, unchanged)

    def rollback(self, name: str, options: DeploymentOptions) -> Deployment:
        """Bring back what the last update has kept, as an update does, and keep what is replaced; describe it.

        A rollback that died and has reached its goal all the same is not made once more, which would undo it.

        Raises:
            DeploymentNotFound: There is none of that name, or it keeps nothing.
            TritonPluginError: Whatever else went wrong; the present model serves, on disk and on the server.
        """
        with self._operation(name, "rollback", options) as claim:
            interrupted = claim.interrupted
            if interrupted is None:
                self._kept(name)
            with self._proven(claim) as workspace:
                old = self._managed(name)
                if interrupted is not None and (interrupted.operation, interrupted.new) == (
                    "rollback",
                    old.deployment_id,
                ):
                    return self._described(old, self._control.index(), None)
                self._kept(name)
                unchanged = f"{name!r} still serves {old.mlflow_model_uri}, which is also still on disk."
                wanted = _Wanted(name, None, None, replace(options, keep_previous=True), "rollback", old)
                return self._replace(claim, workspace, wanted, unchanged)

    def history(self, name: str) -> list[Served]:
        """List what a deployment was, the oldest first, and what it is.

        Raises:
            DeploymentNotFound: There is none of that name.
        """
        check_name(name)
        self._repository.check()
        record = self._managed(name)
        return [*record.history, record.served(None)]

    def kept(self, name: str) -> Record | None:
        """Return what a rollback of a deployment would bring back; ``None``: nothing."""
        return self._repository.kept(name)

    def _described(self, record: Record, index: list[IndexEntry], notice: Notice | None) -> Deployment:
        return replace(describe(record, index, notice), previous=self._previous(record.name))

    def _previous(self, name: str) -> Record | None:
        try:
            return self._repository.kept(name)
        except RepositoryError as error:
            log.warning("%s", error.message)
            return None

    def _kept(self, name: str) -> Record:
        record = self._managed(name)
        kept = self._repository.kept(name)
        if kept is None:
            raise DeploymentNotFound(
                f"{name!r} keeps no previous deployment to roll back to. It is unchanged and serves "
                f"{record.mlflow_model_uri}. An update with -C keep_previous=true keeps what it replaces; to go back "
                f"without it, update to the earlier model: mlflow-triton history {name}"
            )
        return kept

    def _replace(self, claim: Claim, workspace: Workspace, wanted: _Wanted, unchanged: str) -> Deployment:
        """Put a new model in the place of what is there; `unchanged` tells what a failure leaves."""
        name, options = wanted.name, wanted.options
        was_ready = self._control.is_ready(name)
        known = self._known_versions(name)
        record, layout, example = self._stage(workspace, wanted, known)
        self._dependants.refuse_missing(name, layout)
        ensembles = self._dependants.refuse_update(name, layout, workspace.model)
        with (
            self._dependants.members_proven(layout.config),
            self._change(claim, workspace, record, was_ready=was_ready, to_be_tested=options.smoke_test),
        ):
            with step("publish"):
                workspace.swap(name)
            self._load(record, layout, options, otherwise=unchanged)
            self._dependants.refuse_broken(name, ensembles, unchanged)
            self._smoke_test(record, layout, example, options, otherwise=unchanged)
            deployment = self._described(record, self._control.index(), None)
        conclude(f"deployment {record.deployment_id} of {record.mlflow_model_uri} serves")
        return deployment

    def delete(self, name: str, options: DeploymentOptions) -> None:
        """Unload a deployment and remove its directory; a name that nothing has is no error.

        Raises:
            DeploymentNotFound: The name is that of a model that MLflow did not deploy; it is untouched.
            TritonPluginError: Whatever else went wrong.
        """
        with self._operation(name, "delete", options) as claim:
            if claim.interrupted is None and not self._repository.exists(name):
                conclude("there was none")
                return
            if claim.interrupted is None:
                self._managed(name)
            with self._proven(claim) as workspace:
                if not self._repository.exists(name):
                    return  # deleted by the deletion that has just been finished
                self._managed(name)
                self._dependants.refuse_delete(name)
                with self._change(claim, workspace, None, was_ready=self._control.is_ready(name)):
                    try:
                        with step("unload"):
                            self._control.unload(name, timeout=options.load_timeout)
                    except ServerTimeout as error:
                        raise ServerTimeout(
                            f"{error.message} {name!r} was not deleted and serves on."
                        ) from None
                    with step("remove"):
                        workspace.remove(name)

    def plan(
        self,
        operation: str,
        name: str,
        model_uri: str | None = None,
        flavor: str | None = None,
        options: DeploymentOptions = DeploymentOptions(),  # noqa: B008 - frozen
    ) -> Plan:
        """Say what a create, an update, a rollback or a delete would change, and change nothing.

        What it downloads goes into a temporary directory of the system, which holds nothing of the repository's: if this
        process is killed, the next operation on this machine removes it. It refuses what the operation would refuse,
        before it publishes anything.
        """
        check_name(name)
        self._repository.check()
        notice = next((notice for notice in self._repository.notices() if notice.name == name), None)
        if notice is not None and (notice.held or notice.change is not None):
            raise DeploymentBusy(
                f"What would change cannot be said: there is an operation on {name!r} ({operation_text(notice)})."
            )
        try:
            with operation_of(name, f"dry run of {operation}"):
                return self._plan(operation, _Wanted(name, model_uri, flavor, options))
        except OSError as error:
            raise RepositoryError(
                f"Nothing was changed, and what would be cannot be said: {error.strerror or error} ({error.filename})."
            ) from error

    def _plan(self, operation: str, wanted: _Wanted) -> Plan:
        name, there = wanted.name, self._repository.exists(wanted.name)
        if operation == "delete":
            if not there:
                return Plan(operation, name, Side(), Side())
            old = self._side(name, self._managed(name))
            self._dependants.refuse_delete(name)
            return Plan(operation, name, old, Side())
        if operation == "rollback":
            self._kept(name)
            wanted = replace(wanted, operation=operation, options=replace(wanted.options, keep_previous=True))
            old = self._side(name, self._managed(name))
        elif operation == "update":
            record = self._updatable(name, wanted.model_uri, wanted.flavor, wanted.options)
            _warn_of_dropped(record, wanted.model_uri, wanted.options)
            old = self._side(name, record)
        elif there:
            self._adoptable(name, wanted.options)
            old = self._side(name, None)
        else:
            self._refuse_elsewhere(name)
            old = Side()
        new = self._planned(wanted)
        keeps = wanted.options.keep_previous and operation != "create"
        return Plan(operation, name, old, replace(new, previous=old.model if keeps else None))

    def _planned(self, wanted: _Wanted) -> Side:
        """Describe a deployment as it would be; refuse what a create or an update would refuse."""
        name = wanted.name
        with scratch() as download:
            source, layout = self._laid_out(download, wanted, self._known_versions(name))
            self._dependants.refuse_missing(name, layout)
            if self._repository.exists(name):
                self._dependants.refuse_update(name, layout, None)
            digests = source.digests_of(layout.files, None)
            if layout.config_text is not None:
                digests[CONFIG_FILE] = text_digest(layout.config_text)
            record = self._record(name, source, layout, digests)
            return Side.of(record, layout.config_text or b"", {**digests, RECORD_NAME: None})

    def _side(self, name: str, record: Record | None) -> Side:
        """Describe what is on disk: a deployment, or without a record a model that MLflow did not deploy."""
        root = self._repository.path / name
        changed = [] if record is None else self._repository.changed_files(record)
        known = (
            {} if record is None else {file: it for file, it in record.files.items() if file not in changed}
        )
        contents = triton.scan(root, origin=str(root))
        digests: dict[str, str | None] = {
            str(path): None if str(path) == RECORD_NAME else known.get(str(path)) or digest(file)
            for path, file in contents.files.items()
            if path.parts[0] != KEPT
        }
        if contents.config_text is not None:
            digests[CONFIG_FILE] = text_digest(contents.config_text)
        side = Side.of(record, contents.config_text or b"", digests)
        previous = None if record is None else self._previous(name)
        return side if previous is None else replace(side, previous=model_text(previous))

    def get(self, name: str) -> Deployment:
        """Describe one deployment.

        Raises:
            DeploymentNotFound: There is none of that name.
        """
        check_name(name)
        self._repository.check()
        notice = next((notice for notice in self._repository.notices() if notice.name == name), None)
        try:
            record = self._managed(name)
        except DeploymentNotFound as error:
            if notice is None:
                raise
            raise DeploymentNotFound(
                f"{error.message} There is an operation on it: {operation_text(notice)}."
            ) from None
        return self._described(record, self._control.index(), notice)

    def all(self) -> list[Deployment]:
        """Describe every deployment in the repository, loaded or not, by name."""
        self._repository.check()
        index = self._control.index()
        if index and not any(self._repository.exists(entry.name) for entry in index):
            log.warning(
                "None of the models that the server knows is in %s: is it the server's model repository?",
                self._repository.path,
            )
        notices = {notice.name: notice for notice in self._repository.notices()}
        records = list(self._repository.records())
        for name in notices.keys() - {record.name for record in records}:
            if notices[name].change is not None:
                log.warning(
                    "%r is not deployed; there is an operation on it: %s.",
                    name,
                    operation_text(notices[name]),
                )
        return [self._described(record, index, notices.get(record.name)) for record in records]

    def restore(self, names: Sequence[str], options: DeploymentOptions) -> list[Restored]:
        """Load deployments again, in parallel, as after a restart of the server.

        Args:
            names: Of the deployments; none: all that the repository has.
            options: `lock_timeout` and `load_timeout` are used, for each of them.

        Returns:
            How it went, for each one, in order.
        """
        self._repository.check()
        self._control.server()  # one error, if it is out of reach
        wanted = list(dict.fromkeys(names)) or self._repository.names()
        outcomes: dict[str, Restored] = {}
        with ThreadPoolExecutor(max_workers=PARALLEL_LOADS) as pool:
            for group in self._dependants.load_order(wanted):
                outcomes |= zip(
                    group, pool.map(lambda name: self._restore(name, options), group), strict=True
                )
        return [outcomes[name] for name in wanted]

    def _restore(self, name: str, options: DeploymentOptions) -> Restored:
        started = time.monotonic()
        try:
            with self._operation(name, "restore", options) as claim, self._proven(claim):
                record = self._managed(name)
                if self.serving_id(name) == record.deployment_id and self._control.is_ready(name):
                    conclude("it served already")
                    return Restored(name, "serves already", failed=False)
                with step("load"):
                    self._recovery.serve(name, timeout=options.load_timeout)
                self._prove(record, f"The files of {name!r} are untouched.")
        except TritonPluginError as error:
            return Restored(name, error.message, failed=True)
        return Restored(name, f"loaded in {time.monotonic() - started:.1f} s", failed=False)

    def changed_files(self, record: Record) -> list[str]:
        """List what in a deployment's directory is not as it was published: changed, missing, or a new version."""
        return self._repository.changed_files(record)

    def serving_id(self, name: str) -> str | None:
        """Return the deployment id with which the server runs a model; ``None``: none of ours."""
        return self._recovery.serving_id(name)

    def _refuse_elsewhere(self, name: str) -> None:
        if self._control.lists(name):
            raise RepositoryMismatch(
                f"The server has a model {name!r} that is not in {self._repository.path}, but in another of "
                "its model repositories. It is untouched. Take another name."
            )

    def _adoptable(self, name: str, options: DeploymentOptions) -> None:
        """Refuse to create what is there, unless it is no deployment and may be adopted."""
        if options.adopt:
            try:
                if self._repository.record(name) is None:
                    return
            except RepositoryError:
                return
        raise self._taken(name)

    def _taken(self, name: str) -> DeploymentExists:
        if (record := self._repository.record(name)) is not None:
            return DeploymentExists(
                f"The deployment {name!r} exists already (of {record.mlflow_model_uri}); it is unchanged. Use update, "
                "delete it first, or take another name."
            )
        return DeploymentExists(
            f"{self._repository.path / name} exists and was not deployed by MLflow (it has no {RECORD_NAME}). "
            "It is untouched. Take another name, move that model away, or let it be replaced: -C adopt=true."
        )

    def _updatable(
        self, name: str, model_uri: str | None, flavor: str | None, options: DeploymentOptions
    ) -> Record:
        if options.adopt:
            raise InvalidParameter(
                f"-C adopt=true goes with create, and not with update. {name!r} is unchanged. Leave it out of the "
                "update of a deployment."
            )
        old = self._managed(name)
        given = options.applied()
        if model_uri is None and (flavor is not None or not given):
            nothing = "a flavor alone" if flavor is not None else "nothing"
            raise InvalidParameter(
                f"{name!r} cannot be updated with {nothing}: give the URI of a model (-m, model_uri=), or options that "
                f"change its configuration (-C, config=). It is unchanged and serves {old.mlflow_model_uri}."
            )
        return old

    def _managed(self, name: str) -> Record:
        record = self._repository.record(name)
        if record is None and self._repository.exists(name):
            raise DeploymentNotFound(
                f"There is no deployment {name!r}: {self._repository.path / name} was not deployed by MLflow "
                f"(it has no {RECORD_NAME}), and is untouched. To replace it by a deployment: mlflow deployments create "
                f"-t triton --name {name} -m URI -C adopt=true"
            )
        if record is None:
            raise DeploymentNotFound(
                f"There is no deployment {name!r} in {self._repository.path}. "
                "See what is deployed with: mlflow deployments list -t triton"
            )
        return record

    @contextmanager
    def _operation(self, name: str, operation: str, options: DeploymentOptions) -> Iterator[Claim]:
        """Hold the name while the block runs, and remove what operations that died have left."""
        check_name(name)
        self._repository.check()
        with operation_of(name, operation), ExitStack() as held:
            with step("claim"):
                timeout = options.lock_timeout or LOCK_TIMEOUT
                claim = held.enter_context(self._repository.claim(name, operation, timeout=timeout))
                self._repository.collect()
                remove_abandoned()
            try:
                yield claim
            except ServerUnavailable as error:
                if repr(name) in error.message:
                    raise
                raise type(error)(f"{error.message} {name!r} is as it was before.") from None

    @contextmanager
    def _proven(self, claim: Claim) -> Iterator[Workspace]:
        """Make a workspace for the block, once the server is known to read this repository and nothing is in doubt."""
        try:
            with self._repository.workspace(claim) as workspace:
                with step("prove repository"):
                    self._recovery.prove_repository(workspace, claim.name)
                self._recovery.settle(claim, workspace, repeated=claim.operation == "create")
                yield workspace
        except OSError as error:
            raise RepositoryError(
                f"{claim.name!r} is as it was before: {error.strerror or error} "
                f"({error.filename or self._repository.path})."
            ) from error

    @contextmanager
    def _change(
        self,
        claim: Claim,
        workspace: Workspace,
        new: Record | None,
        *,
        was_ready: bool,
        to_be_tested: bool = False,
    ) -> Iterator[None]:
        """Make the block a change that stands when it has ended, and is undone if it fails."""
        server_was_ready = self._control.is_server_ready()
        identity = None if new is None else new.deployment_id
        change = claim.begin(
            identity, was_ready=was_ready, server_was_ready=server_was_ready, to_be_tested=to_be_tested
        )
        try:
            yield
            if new is not None:
                with step("sync"):
                    self._repository.sync(new)
            with step("commit"):
                claim.commit()
        except BaseException as error:
            if not claim.in_doubt:
                raise  # it stands
            sure = isinstance(error, (LoadFailed, SmokeTestFailed))
            problems = self._recovery.undo(claim.name, change, workspace, sure=sure)
            later = any(map(unfinished, problems))
            if not later:
                claim.undone()
            elif not self._recovery.is_on_disk(claim.name, change):
                workspace.discard()  # what is left to do is the server's
            if problems:
                problem = " ".join(dict.fromkeys(map(told, problems)))
                if later:
                    problem += f" The next operation on {claim.name!r}, or mlflow-triton doctor --repair, tries again."
                log.error("Undoing a change of %r failed: %s", claim.name, problem)  # noqa: TRY400 - raised below
                if isinstance(error, Exception):
                    raise RepositoryError(
                        f"{told(error)} Undoing it failed as well: {problem} See what serves with: "
                        f"mlflow deployments get -t triton --name {claim.name}"
                    ) from error
            raise

    @step("stage")
    def _stage(
        self, workspace: Workspace, wanted: _Wanted, known: set[int]
    ) -> tuple[Record, Layout, Example | None]:
        """Build the new model directory in the workspace; return its record, its layout, and what to test it with.

        `known`: versions that the server has loaded under this name; see `_refuse_cached`.
        """
        source, layout = self._laid_out(workspace.download, wanted, known)
        # The server may run as another user, and neither this user's umask nor a downloaded file's permissions know of it.
        mode = self._repository.path.stat().st_mode
        for directory in layout.directories:
            (workspace.model / directory).mkdir(parents=True, exist_ok=True)
        for target, file in layout.files.items():
            if source.directory is None:
                _place(file, workspace.model / target, mode)
            else:
                source.copy(file, workspace.model / target)
        digests = source.digests_of(layout.files, workspace.model)
        if layout.config_text is not None:
            (workspace.model / CONFIG_FILE).write_bytes(layout.config_text)
            digests[CONFIG_FILE] = digest(workspace.model / CONFIG_FILE)
        record = self._record(wanted.name, source, layout, digests, times=_times(workspace.model))
        old = wanted.old
        history = () if old is None else old.history_for(record.created_at)
        record = replace(record, operation=wanted.operation, history=history)
        (workspace.model / RECORD_NAME).write_text(record.to_json(), encoding="utf-8")
        if old is not None and wanted.options.keep_previous:
            changed = self._repository.changed_files(old)
            keep(old, self._repository.path / wanted.name, changed, workspace.model / KEPT)
        _finish(workspace.model, mode)
        return record, layout, source.example

    def _record(
        self,
        name: str,
        source: Source,
        layout: Layout,
        digests: dict[str, str],
        *,
        times: dict[str, int] | None = None,
    ) -> Record:
        return Record(
            name=name,
            triton_model_path=str(self._repository.path / name),
            mlflow_model_uri=source.origin.uri,
            flavor=source.flavor,
            deployment_id=uuid.uuid4().hex,
            model_name=source.origin.model_name,
            model_version=source.origin.model_version,
            model_id=source.origin.model_id,
            run_id=source.origin.run_id,
            versions=layout.versions,
            files=dict(sorted(digests.items())),
            plugin_version=__version__,
            created_at=datetime.now(timezone.utc).isoformat(timespec="seconds"),
            options=source.options,
            times=times or {},
        )

    def _laid_out(self, download: Path, wanted: _Wanted, known: set[int]) -> tuple[Source, Layout]:
        """Get hold of what was asked for, check it, and lay it out; the repository is not touched."""
        name, options, source = wanted.name, wanted.options, self._source(download, wanted)
        layout = configured(source.contents, options, name=name, origin=source.name)
        cached = layout.config.response_cache.enable and not source.answers_alike(layout.config)
        if (
            cached
            and source.flavor == onnx.FLAVOR
            and options.version is None
            and known.intersection(layout.versions)
        ):
            layout = layout.renumbered(layout.versions[0], max(known) + 1)
            log.info(
                "%r becomes version %d: Triton may have cached answers of the others.", name, max(known) + 1
            )
        layout.check(name)
        decoupled = layout.config.model_transaction_policy.decoupled
        if options.smoke_test and decoupled and not self._control.grpc_answers():
            raise InvalidParameter(
                f"-C smoke_test=true cannot test {source.name} without gRPC: it is decoupled, and answers over a gRPC stream "
                "only. Nothing was changed. Set TRITON_GRPC_URL, or deploy it without the option."
            )
        if cached:
            self._refuse_cached(layout, name, known, source.flavor)
        return source, layout

    @step("download")
    def _source(self, download: Path, wanted: _Wanted) -> Source:
        if wanted.model_uri is not None:
            return downloaded(wanted.model_uri, wanted.flavor, wanted.options, download)
        back = wanted.operation == "rollback"
        record = self._kept(wanted.name) if back else self._managed(wanted.name)
        directory = self._repository.path / wanted.name / (KEPT if back else "")
        changed = self._repository.changed_files(record, kept=back)
        return deployed(record, directory, changed, wanted.options, download)

    @step("load")
    def _load(self, record: Record, layout: Layout, options: DeploymentOptions, *, otherwise: str) -> None:
        """Load what was published and prove that it is what serves; `otherwise` tells what a failure leaves."""
        try:
            identity = str(record.deployment_id)
            self._recovery.load_new(record.name, layout.config, identity, timeout=options.load_timeout)
        except (LoadFailed, ServerUnavailable) as error:
            raise type(error)(f"{error.message} {otherwise}") from None
        self._prove(record, otherwise)

    def _smoke_test(
        self,
        record: Record,
        layout: Layout,
        example: Example | None,
        options: DeploymentOptions,
        *,
        otherwise: str,
    ) -> None:
        """Let the deployment that has just been proven answer a request, if that is wanted."""
        if not options.smoke_test:
            return
        from mlflow_triton.smoke import smoke_test  # noqa: PLC0415 - pandas, which nothing else here needs

        try:
            version = model_config.served(layout.config, layout.versions)[-1]
            with step("smoke test"):
                smoke_test(self._control, record.name, version=version, example=example)
        except SmokeTestFailed as error:
            raise SmokeTestFailed(f"{error.message} {otherwise}") from None
        self._prove(record, otherwise)  # another client may have loaded something else meanwhile

    @step("verify")
    def _prove(self, record: Record, otherwise: str) -> None:
        """Refuse what the server runs after a load, if it is not this deployment."""
        serving = self.serving_id(record.name)
        if serving != record.deployment_id:
            raise RepositoryMismatch(
                f"Triton says that it loaded {record.name!r}, but serves deployment {serving or 'nothing of ours'} "
                f"and not {record.deployment_id}: another client changed it in the meantime, or TRITON_GRPC_URL and "
                f"TRITON_URL are not one server. {otherwise}"
            )
        if not self._control.is_ready(record.name):
            raise LoadFailed(
                f"Triton loaded {record.name!r} but does not call it ready. Look at the server's log. {otherwise}"
            )

    def _known_versions(self, name: str) -> set[int]:
        """Return the versions of a model in the repository that the server has loaded since its start."""
        return {
            int(entry.version)
            for entry in self._control.index()
            if entry.name == name and entry.version is not None and entry.version.isdigit()
        }

    def _refuse_cached(self, layout: Layout, name: str, known: set[int], flavor: str) -> None:
        """Refuse versions under which Triton's response cache may have answers of another model.

        Its key is the model's name, the version and the inputs; its entries outlive a reload and an unload.
        """
        if not layout.config.response_cache.enable:
            return
        used = sorted(known.intersection(model_config.served(layout.config, layout.versions)))
        if not used:
            return
        number = max(known.union(layout.versions)) + 1
        way = f"use -C version={number}" if flavor == onnx.FLAVOR else f"publish it with the version {number}"
        raise InvalidModel(
            f"{layout.origin} has response_cache enabled, and Triton may hold answers that an earlier model gave as "
            f"version {', '.join(map(str, used))} of {name!r}; it would give them for the new one. Nothing was "
            f"changed. For an unused version number, {way}; or disable response_cache in config.pbtxt; or restart "
            "Triton, which empties its cache."
        )


def _warn_of_dropped(old: Record, model_uri: str | None, options: DeploymentOptions) -> None:
    if model_uri is not None and (dropped := old.options.keys() - options.applied().keys()):
        log.warning(
            "A model brings its own configuration: the options %s of %r do not apply to %s, unless given again.",
            ", ".join(sorted(dropped)),
            old.name,
            model_uri,
        )


def _place(source: Path, target: Path, mode: int) -> None:
    """Move a file and give it the repository's permissions."""
    target.parent.mkdir(parents=True, exist_ok=True)
    found = source.stat()
    wanted = _permissions(mode, found.st_mode)
    if found.st_nlink == 1:
        source.rename(target)
        target.chmod(wanted)
    elif wanted & ~found.st_mode:  # the artifact store's own file, which stays as it is
        log.info("Copying %s and not linking it: the server might not be allowed to read it.", source.name)
        shutil.copyfile(source, target)
        target.chmod(wanted)
    else:
        source.rename(target)


def _permissions(mode: int, own: int) -> int:
    """Return a file's permissions in a repository of this mode; one that can be run stays so."""
    return mode & 0o666 | 0o600 | own & 0o100


def _finish(directory: Path, mode: int) -> None:
    """Make what was built readable for whom the repository is, and new.

    Triton takes what is older than its last load for unchanged. It is the same time for all, so that a file with
    another one is seen to have been changed.

    Args:
        directory: The model's directory.
        mode: The repository's permissions.
    """
    now = time.time_ns()
    for parent, _, names in os.walk(directory, topdown=False):
        for path in (Path(parent, name) for name in names):
            found = path.stat()
            # A linked file is the artifact store's as well; Triton sees the time of the link (ctime).
            if found.st_nlink == 1:
                path.chmod(_permissions(mode, found.st_mode))
                os.utime(path, ns=(now, now))
        Path(parent).chmod(mode & 0o777 | 0o700)
        os.utime(parent, ns=(now, now))


def _times(directory: Path) -> dict[str, int]:
    """Return the modification times of linked files, which `_finish` leaves as they are."""
    found = {path: path.stat() for path in directory.rglob("*") if path.is_file()}
    return {
        str(path.relative_to(directory)): status.st_mtime_ns
        for path, status in found.items()
        if status.st_nlink > 1
    }


def operation_text(notice: Notice) -> str:
    """Say what is under way on a deployment, or was interrupted."""
    if notice.held:
        return f"{notice}, which is under way"
    return (
        f"{notice.change.by if notice.change else notice}, which was interrupted. The next one on {notice.name!r}, "
        "or mlflow-triton doctor --repair, finishes or undoes it"
    )


def describe(record: Record, index: list[IndexEntry], notice: Notice | None) -> Deployment:
    """Put together what the record, the server's index and the claim say of a deployment."""
    operation = None
    if notice is not None and (notice.held or notice.change is not None):
        operation = operation_text(notice)
    entries = [entry for entry in index if entry.name == record.name]
    versions = sorted(
        (entry for entry in entries if entry.version is not None and entry.version.isdigit()),
        key=lambda entry: int(entry.version or 0),
    )
    ready = [entry for entry in versions if entry.state == "READY"]
    if ready:
        return Deployment(record, ready[-1].version, "READY", "", operation)
    if versions:
        last = versions[-1]
        return Deployment(record, None, last.state or "UNAVAILABLE", last.reason, operation)
    if entries:
        reason = (
            entries[0].reason
            or "the server has loaded nothing of it, as after a restart; mlflow-triton restore does"
        )
        return Deployment(record, None, entries[0].state or "NOT_LOADED", reason, operation)
    return Deployment(record, None, "NOT_FOUND", "the server does not see this model repository", operation)
