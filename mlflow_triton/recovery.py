"""What ends a change that did not end by itself: undone, or finished where it had reached its goal.

A change that fails and one whose process died take the same way back. It is found from what is there: the
claim says what was to be done, the disk and the server how far it came. Each step may be repeated.
"""

from __future__ import annotations

import logging
import time
from typing import TYPE_CHECKING

from mlflow_triton.dependants import Dependants
from mlflow_triton.errors import (
    DeploymentBusy,
    LoadFailed,
    RepositoryError,
    RepositoryMismatch,
    ServerRefused,
    ServerTimeout,
    ServerUnavailable,
    TritonPluginError,
)
from mlflow_triton.repository import config as model_config
from mlflow_triton.serving.trial import BACKENDS, load_trial
from mlflow_triton.steps import UNDO, operation, step

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from mlflow_triton.repository.claim import Change, Claim
    from mlflow_triton.repository.local import LocalRepository, Workspace
    from mlflow_triton.serving.control import Control

__all__ = ["DEPLOYMENT_ID", "Recovery", "told", "unfinished"]

log = logging.getLogger(__name__)

#: The model-config parameter that carries a deployment's id to the server.
DEPLOYMENT_ID = "mlflow.deployment_id"
#: Seconds for each call to the server while a change is undone.
UNDO_TIMEOUT = 30.0
READY_TIMEOUT = 5.0
LOST = (
    "What it replaced is gone, or is out of this machine's sight, so that it stands; but the server does not serve it. "
    "Update {name!r}, or delete it."
)


class Recovery:
    """Undoes and finishes changes of one repository and its server.

    Args:
        repository: Where the models' directories are.
        control: The server that reads them.

    Attributes:
        dependants: The ensembles of that repository and server.
    """

    def __init__(self, repository: LocalRepository, control: Control) -> None:
        self._repository = repository
        self._control = control
        self.dependants = Dependants(repository, control, is_proven=self.is_proven, serve=self._load)

    def prove_repository(self, workspace: Workspace, name: str) -> None:
        """Refuse a repository that is not the server's, and a server that loads no models on request.

        Raises:
            RepositoryMismatch: The server does not see what is put there.
            ServerRefused: It runs in another model control mode than EXPLICIT.
        """
        with workspace.probe() as probe:
            seen = self._control.lists(probe)
        if not seen:
            raise RepositoryMismatch(
                f"The model repository {self._repository.path} is not one that the Triton server reads: the server "
                f"does not see what is put there. {name!r} is unchanged. Set TRITON_MODEL_REPO to the directory "
                "of the server's --model-repository, as mounted on this machine."
            )
        self._control.require_explicit()

    def serving_id(self, name: str) -> str | None:
        """Return the deployment id with which the server runs a model; ``None``: none of ours."""
        config = self._control.config(name)
        return None if config is None else model_config.parameter(config, DEPLOYMENT_ID)

    def is_proven(self, name: str) -> bool:
        """Say whether the server runs what the record of a deployment says."""
        record = self._repository.record(name)
        return record is not None and self.serving_id(name) == record.deployment_id

    def serve(self, name: str, *, timeout: float | None = None) -> None:
        """Load what the repository has under a deployment's name, with its id, and an ensemble's members with theirs."""
        config = model_config.parse(self._repository.config_text(name), origin=name)
        with self.dependants.members_proven(config):
            self._load(name, timeout=timeout)

    def _load(self, name: str, *, timeout: float | None = None) -> None:
        config = model_config.parse(self._repository.config_text(name), origin=name)
        try:
            record = self._repository.record(name)
        except RepositoryError:
            record = None  # that of a model which was to be adopted, and is not
        identity = None if record is None else record.deployment_id
        # Whether the server runs it with that id already says nothing of this load, which may still need the files.
        self._control.load(name, config_json=_override(config, identity), timeout=timeout)

    def load_new(
        self, name: str, config: model_config.ModelConfig, identity: str, *, timeout: float | None
    ) -> None:
        """Load a deployment with an id that the server has never seen; once it runs with it, the load has ended."""
        self._control.load(
            name,
            config_json=_override(config, identity),
            timeout=timeout,
            reached=lambda left: self._serves(name, identity, left),
        )

    def _serves(self, name: str, identity: str, timeout: float) -> bool:
        """Say whether the server runs every version of a model that it has with this id, and loads none."""
        deadline = time.monotonic() + timeout
        entries = [entry for entry in self._control.index(timeout=timeout) if entry.name == name]
        ready = [entry.version for entry in entries if entry.state == "READY"]
        if not ready or any(entry.state == "LOADING" for entry in entries):
            return False
        return all(
            model_config.parameter(
                self._control.config(name, version, timeout=max(deadline - time.monotonic(), 0.1)) or {},
                DEPLOYMENT_ID,
            )
            == identity
            for version in ready
        )

    def settle(self, claim: Claim, spare: Workspace, *, repeated: bool = False) -> str | None:
        """Finish or undo the change in whose middle a process died.

        Args:
            claim: On the deployment's name.
            spare: A workspace of this operation.
            repeated: The interrupted creation is made once more: undo it in any case, so that it is not
                refused for what it did itself. So is a change that was to be tested, and was not.

        Returns:
            What was done, as a sentence; ``None``: there was nothing to do.

        Raises:
            RepositoryError: It could not be undone; the next operation tries again.
            ServerUnavailable: The same, as the server is out of reach.
        """
        change, name = claim.interrupted, claim.name
        if change is None:
            return None
        left = self._repository.interrupted_workspace(change.token)
        again = (repeated and change.operation in ("create", "adopt")) or change.to_be_tested
        problems: list[Exception] = []
        replaced = change.operation not in ("create", "delete") and not self._repository.is_aside(
            change.token
        )
        if left is None and replaced and self._has(name, change.new):
            if not self._finish(name, change):
                problems = [RepositoryError(LOST.format(name=name))]
        elif again or not self._finish(name, change):
            problems = self.undo(name, change, left or spare, timeout=None)
            if left is not None and not self.is_on_disk(name, change):
                left.discard()
            for problem in filter(unfinished, problems):
                kind = type(problem) if isinstance(problem, TritonPluginError) else RepositoryError
                raise kind(
                    f"The interrupted {change.by} of {name!r} could not be undone yet: {told(problem)}"
                )
        finished = self.is_on_disk(name, change)
        claim.settled()
        self._repository.drop_aside(change.token)
        if left is not None:
            left.discard()
        outcome = f"The interrupted {change.by} of {name!r} has been {'finished' if finished else 'undone'}."
        outcome = " ".join([outcome, *map(told, problems)])
        log.warning("%s", outcome)
        return outcome

    @step(UNDO)
    def undo(
        self,
        name: str,
        change: Change,
        workspace: Workspace,
        *,
        sure: bool = False,
        timeout: float | None = UNDO_TIMEOUT,
    ) -> list[Exception]:
        """Bring disk and server back to where they were before a change.

        Args:
            name: The deployment's.
            change: What was to be done.
            workspace: Of the operation that did it.
            sure: Whether it is known that no load of the new model is under way, unseen.
            timeout: Seconds for each call to the server; ``None``: the setting `load_timeout`.

        Returns:
            What could not be done.
        """
        # Before the record is gone.
        versions = self._versions(name) if self._has(name, change.new) else ()

        def put_back() -> None:
            workspace.put_back(change, name, new_is_there=self._has(name, change.new))

        steps: list[Callable[[], None]] = [put_back]
        if change.operation == "create":
            # While its directory is there, the server tells when it has really let go of a model.
            steps.insert(0, lambda: self._control.unload(name, timeout=timeout))
            steps.append(lambda: self._make_ready_again(name, versions, change))
        else:
            if not sure and self._has(name, change.new):
                steps.insert(0, lambda: self._wait_for_loads(name, timeout))
            steps.append(lambda: self._serve_again(name, change, sure=sure, timeout=timeout))
        problems: list[Exception] = []
        for undone in steps:
            problem = _attempt(undone)
            problems += [problem] if problem else []
            # A load that is under way must keep its files: Triton waits for ever for the process of a Python
            # model whose file has gone. And where the disk is not as before, the server should not be either.
            if isinstance(problem, OSError) or (
                undone is not put_back and isinstance(problem, ServerTimeout)
            ):
                break
        return problems

    def is_on_disk(self, name: str, change: Change) -> bool:
        """Say whether the repository has what a change is for."""
        return not self._repository.exists(name) if change.new is None else self._has(name, change.new)

    def repair(self) -> Iterator[tuple[str, bool, str]]:
        """Settle every interrupted change, with the server if it answers, and remove all leftovers.

        Without the server, the disk is put in order, so that the server can be started; the rest is left
        to the next operation.

        Yields:
            The deployment's name (empty: leftovers), whether all is well with it now, and what was done.
        """
        for notice in self._repository.notices():
            if notice.held or notice.change is None:
                continue
            try:
                with (
                    operation(notice.name, "repair"),
                    self._repository.claim(notice.name, "repair", timeout=1) as claim,
                    self._repository.workspace(claim) as spare,
                ):
                    if self._answers():
                        self.prove_repository(spare, notice.name)
                    outcome = self.settle(claim, spare)
            except (DeploymentBusy, TritonPluginError) as error:
                yield notice.name, False, error.message
            else:
                yield notice.name, True, outcome or "Another operation has settled it."
        for path in self._repository.collect():
            yield "", True, f"Removed {path}, which an operation that died had left."

    def _answers(self) -> bool:
        try:
            self._control.server()
        except ServerUnavailable:
            return False
        return True

    def _finish(self, name: str, change: Change) -> bool:
        """Finish an interrupted change if disk and server allow it; the load may have been under way all the time.

        Raises:
            ServerTimeout: The load is still under way, or hangs; the files stay as they are.
        """
        try:
            if change.new is None:
                if self._repository.exists(name):
                    return False
                self._control.unload(name)
                return True
            if not self._has(name, change.new):
                return False
            self.serve(name)
            return self.serving_id(name) == change.new and self._control.is_ready(name)
        except ServerTimeout as error:
            raise ServerTimeout(
                f"The interrupted {change.by} of {name!r} could be neither finished nor undone yet: {error.message}"
            ) from None
        except (ServerUnavailable, LoadFailed):
            return False

    def _wait_for_loads(self, name: str, timeout: float | None) -> None:
        """Wait until a load that may be under way has ended: Triton takes the loads of one model in turn."""
        try:
            self.serve(name, timeout=timeout)
        except LoadFailed as error:
            log.debug("The load of %r that is being undone has failed: %s", name, error.message)

    def _has(self, name: str, identity: str | None) -> bool:
        """Say whether the repository has the deployment of this id under a name."""
        try:
            record = self._repository.record(name)
        except RepositoryError:
            return False
        return record is not None and identity is not None and record.deployment_id == identity

    def _versions(self, name: str) -> tuple[int, ...]:
        record = self._repository.record(name)
        return () if record is None else record.versions

    def _make_ready_again(self, name: str, versions: tuple[int, ...], change: Change) -> None:
        """Undo what a failed load does to a server with strict readiness: it stays unready for good."""
        if not change.server_was_ready or self._control.is_server_ready():
            return
        for version in versions:
            any(
                load_trial(self._control, backend, name, version=version, timeout=UNDO_TIMEOUT) is None
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

    def _serve_again(self, name: str, change: Change, *, sure: bool, timeout: float | None) -> None:
        """Bring the server to what the repository has, or to nothing if it served nothing before.

        Triton takes the loads of one model in turn: after one that is under way, this one is the last.
        """
        if not (change.was_ready and self._repository.exists(name)):
            self._control.unload(name, timeout=timeout)
        elif not (sure and self._has(name, self.serving_id(name)) and self._control.is_ready(name)):
            self.serve(name, timeout=timeout)


def _override(config: model_config.ModelConfig, deployment_id: str | None) -> str:
    """Return the configuration to load with: the model's own, and the deployment's id."""
    if deployment_id is not None:
        config = model_config.with_parameter(config, DEPLOYMENT_ID, deployment_id)
    return model_config.to_json(config)


def _attempt(step: Callable[[], None]) -> Exception | None:
    try:
        step()
    except (TritonPluginError, OSError) as error:
        return error
    return None


def unfinished(problem: Exception) -> bool:
    """Say whether a step that failed is worth another try: not if the server has answered no."""
    return isinstance(problem, (OSError, ServerUnavailable))


def told(problem: BaseException) -> str:
    """Return an error as a sentence."""
    if isinstance(problem, OSError):
        return f"{problem.strerror or problem} ({problem.filename})."
    return str(problem)
