"""Models that depend on others: ensembles, whose steps name the models that they are made of.

What Triton 2.51 does (measured): a load of a member loads its ensembles again, which keep the configuration
that they were loaded with, and serve on, with the new member, when the load returns; one that no longer fits
ends, and the load of the member succeeds all the same. An unload of a member ends its ensembles. A load of an
ensemble loads its members again where their directories have changed, as that of a Python model has by its
``__pycache__``: they lose the id that a deployment was loaded with.
"""

from __future__ import annotations

import logging
from contextlib import contextmanager
from dataclasses import dataclass
from graphlib import CycleError, TopologicalSorter
from typing import TYPE_CHECKING, Any

from mlflow_triton.errors import (
    DeploymentBusy,
    InvalidModel,
    InvalidModelConfig,
    LoadFailed,
    TritonPluginError,
)
from mlflow_triton.models import onnx_file
from mlflow_triton.repository import config as model_config

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
    from pathlib import Path

    from mlflow_triton.repository.layout import Layout
    from mlflow_triton.repository.local import LocalRepository
    from mlflow_triton.serving.control import Control, IndexEntry

__all__ = ["Dependants"]

log = logging.getLogger(__name__)


SIDES = ("input", "output")


@dataclass(frozen=True, slots=True)
class _Tensor:
    """An input or an output of a model.

    Attributes:
        datatype: As in a model configuration; ``None``: not known.
        dims: Its dims, without the batch's; several where it is not known whether there is one, none where nothing is.
        full: The same with the batch's.
        optional: Whether a request may leave it out.
    """

    datatype: str | None
    dims: tuple[tuple[int, ...], ...]
    full: tuple[int, ...] | None
    optional: bool

    def fits(self, other: _Tensor) -> bool:
        """Say whether Triton may take the one for the other in an ensemble: it compares with and without the batch's."""
        if self.full is None or other.full is None or _fit(self.full, other.full):
            return True
        return any(_fit(left, right) for left in self.dims for right in other.dims)


class Dependants:
    """The ensembles of one repository and its server, and what they are made of.

    Args:
        repository: Where the models' directories are.
        control: The server that reads them.
        is_proven: Says of a deployment's name whether the server runs it with its id.
        serve: Loads what the repository has under a deployment's name, with its id.
    """

    def __init__(
        self,
        repository: LocalRepository,
        control: Control,
        *,
        is_proven: Callable[[str], bool],
        serve: Callable[[str], None],
    ) -> None:
        self._repository = repository
        self._control = control
        self._is_proven = is_proven
        self._serve = serve

    def refuse_missing(self, name: str, layout: Layout) -> None:
        """Refuse an ensemble one of whose models the server does not have.

        Raises:
            InvalidModel: It names them.
        """
        if not (members := model_config.members(layout.config)):
            return
        there = {entry.name for entry in self._control.index()} - {name}
        if missing := sorted(members - there):
            raise InvalidModel(
                f"{layout.origin} is an ensemble of {_listed(members)}, but Triton has no other model "
                f"{_listed(missing)}. Nothing was changed. Deploy what is missing first, or correct ensemble_scheduling."
            )

    def refuse_delete(self, name: str) -> None:
        """Refuse to delete a model that an ensemble is made of, loaded or not.

        Raises:
            InvalidModel: It names the ensembles.
        """
        ensembles = self._ensembles(self._control.index())
        if users := sorted(
            user for user, config in ensembles.items() if name in model_config.members(config)
        ):
            raise InvalidModel(
                f"{name!r} is a part of {_called(users)}, which would stop serving. Nothing was changed. Delete "
                f"{_listed(users)} first."
            )

    def refuse_update(self, name: str, layout: Layout, built: Path | None) -> tuple[str, ...]:
        """Refuse a new model which is known not to fit the ensembles that its deployment is a part of.

        Args:
            name: The deployment.
            layout: Of the new model.
            built: The new model's directory; ``None``: it is not made yet.

        Returns:
            The ensembles that serve now, and must do so afterwards: see `refuse_broken`.

        Raises:
            InvalidModel: An ensemble would end, or could answer from the present model's cache.
        """
        index = self._control.index()
        ensembles = self._ensembles(index)
        users = _closure(name, ensembles)
        known = {entry.name for entry in index if entry.version is not None}
        if cached := sorted(user for user in users & known if ensembles[user].response_cache.enable):
            raise InvalidModel(
                f"{name!r} is a part of {_called(cached)} with response_cache enabled: Triton may hold answers that "
                "were made with the present model, and would give them with the new one. Nothing was changed. Update "
                f"{_listed(cached)} to a configuration without response_cache first; or delete it, and deploy it again "
                "afterwards, under an unused version number."
            )
        ready = {entry.name for entry in index if entry.state == "READY"}
        present = _parsed(self._control.config(name))
        tensors = _tensors(layout, built)
        problems = [
            f"the ensemble {user!r} {problem}"
            for user in sorted(users & ready)
            for problem in _misfits(name, ensembles[user], layout, tensors, present)
        ]
        if problems:
            raise InvalidModel(
                f"{layout.origin} does not fit what is made of {name!r}: {'; '.join(problems)}. Nothing was changed. "
                "Deploy it under another name, with an ensemble of its own; or delete the ensemble first."
            )
        return tuple(sorted(users & ready))

    def refuse_broken(self, name: str, ensembles: Collection[str], otherwise: str) -> None:
        """Refuse a model that has been loaded if ensembles that served before do not any more.

        Args:
            name: The deployment.
            ensembles: What `refuse_update` has returned.
            otherwise: What a failure leaves.

        Raises:
            LoadFailed: It gives Triton's reason.
        """
        if not ensembles:
            return
        index = self._control.index()
        serving = {entry.name for entry in index if entry.state == "READY"}
        if broken := sorted(set(ensembles) - serving):
            reasons = {entry.reason for entry in index if entry.name in broken and entry.reason} - {
                "unloaded."
            }
            raise LoadFailed(
                f"Triton loaded the new {name!r}, but {_called(broken)} no longer fits it, and stopped serving. "
                f"{' '.join(sorted(reasons)) or 'Its log says why.'} Give it the tensors, datatypes, shapes and "
                f"versions that the ensemble uses. {otherwise}"
            )

    @contextmanager
    def members_proven(self, config: model_config.ModelConfig) -> Iterator[None]:
        """Load the deployments that an ensemble is made of with their ids again, once the block has loaded it."""
        try:
            yield
        finally:
            self.prove_members(config)

    def prove_members(self, config: model_config.ModelConfig) -> None:
        """Load the deployments that an ensemble is made of with their ids again, where they have lost them.

        One that another operation is at is that operation's to load. What fails is a warning: they serve.
        """
        ensembles = self._on_disk()
        for name in _below(config, ensembles):
            try:
                if self._repository.record(name) is None or self._is_proven(name):
                    continue
                if not self._control.is_ready(name):
                    continue
                with self._repository.claim(name, "restore", timeout=0) as claim:
                    if claim.interrupted is None:
                        self._serve(name)
            except DeploymentBusy:
                log.info("%r is loaded again by the operation that is at it.", name)
            except TritonPluginError as error:
                log.warning(
                    "%r serves, but without its id, as an ensemble has loaded it: %s mlflow-triton restore %s loads "
                    "it again.",
                    name,
                    error.message,
                    name,
                )

    def load_order(self, names: Sequence[str]) -> list[list[str]]:
        """Order deployments for loading: what is in one list can be loaded in parallel.

        Ensembles come before what they are made of, which their load brings along, without ids.
        """
        ensembles = self._on_disk()
        tops = [name for name in _from_the_top(ensembles, ensembles) if name in names]
        return [*([name] for name in tops), [name for name in names if name not in ensembles]]

    def _on_disk(self) -> dict[str, model_config.ModelConfig]:
        """Return the configuration of every ensemble in the repository; what cannot be read is none to Triton either."""
        found = {}
        for name, text in self._repository.config_texts():
            if b"ensemble" not in text:
                continue
            try:
                config = model_config.parse(text, origin=name)
            except InvalidModelConfig:
                continue
            if model_config.is_ensemble(config):
                found[name] = config
        return found

    def _ensembles(self, index: Sequence[IndexEntry]) -> dict[str, model_config.ModelConfig]:
        """Return the configuration of every ensemble: the server's, where it serves; else what is on disk."""
        found = self._on_disk()
        for name in {entry.name for entry in index if entry.state == "READY"}:
            if name in found or not self._repository.exists(name):
                config = _parsed(self._control.config(name))
                if config is not None and model_config.is_ensemble(config):
                    found[name] = config
        return found


def _parsed(answer: dict[str, Any] | None) -> model_config.ModelConfig | None:
    return None if answer is None else model_config.from_json(answer)


def _closure(name: str, ensembles: dict[str, model_config.ModelConfig]) -> set[str]:
    """Return the ensembles that are made of a model, directly or through other ones."""
    found: set[str] = set()
    pending = {name}
    while pending:
        pending = {
            user
            for user, config in ensembles.items()
            if user not in found and user != name and pending & model_config.members(config)
        }
        found |= pending
    return found


def _below(config: model_config.ModelConfig, ensembles: dict[str, model_config.ModelConfig]) -> list[str]:
    """Return what an ensemble is made of, ensembles before their own members."""
    found: set[str] = set()
    pending = model_config.members(config)
    while pending:
        found |= pending
        pending = {
            member
            for name in pending
            if name in ensembles
            for member in model_config.members(ensembles[name]) - found
        }
    return _from_the_top(found, ensembles)


def _from_the_top(names: Collection[str], ensembles: dict[str, model_config.ModelConfig]) -> list[str]:
    """Order models so that ensembles come before their members; a circle, which Triton loads nothing of, by name."""
    graph = {
        name: model_config.members(ensembles[name]) if name in ensembles else set() for name in sorted(names)
    }
    try:
        return [name for name in reversed([*TopologicalSorter(graph).static_order()]) if name in graph]
    except CycleError:
        return sorted(names)


def _of_config(config: model_config.ModelConfig, side: str) -> dict[str, _Tensor]:
    """Return the inputs or the outputs that a configuration lists."""
    batch = (-1,) if config.max_batch_size > 0 else ()
    return {
        tensor.name: _Tensor(
            model_config.datatype(tensor.data_type),
            (tuple(tensor.dims),),
            (*batch, *tensor.dims),
            getattr(tensor, "optional", False),
        )
        for tensor in getattr(config, side)
    }


def _of_header(tensors: Mapping[str, onnx_file.Tensor]) -> dict[str, _Tensor]:
    """Return the inputs or the outputs of an ONNX file, with which its backend completes a configuration."""
    found = {}
    for name, tensor in tensors.items():
        shape = tensor.shape
        # The backend finds out by itself whether the first size is the batch's, and no dimension of the model's.
        dims = () if shape is None else (shape, shape[1:]) if shape[:1] == (-1,) else (shape,)
        found[name] = _Tensor(tensor.datatype, dims, shape, optional=False)
    return found


def _tensors(layout: Layout, built: Path | None) -> dict[str, dict[str, _Tensor]]:
    """Return the inputs and the outputs of a new model; a side that only the server knows is not there."""
    config = layout.config
    found = {side: tensors for side in SIDES if (tensors := _of_config(config, side))}
    versions = model_config.served(config, layout.versions)
    files = [
        path
        for path in layout.files
        if path.suffix == ".onnx" and path.parts[0] == str(max(versions, default=""))
    ]
    if len(found) < len(SIDES) and len(files) == 1:
        header = onnx_file.tensors(layout.files[files[0]] if built is None else built / files[0])
        if header is not None:
            found = {side: _of_header(tensors) for side, tensors in zip(SIDES, header, strict=True)} | found
    return found


def _misfits(
    name: str,
    ensemble: model_config.ModelConfig,
    layout: Layout,
    tensors: Mapping[str, Mapping[str, _Tensor]],
    present: model_config.ModelConfig | None,
) -> Iterator[str]:
    """Yield why an ensemble that serves would not do so with a new model: only what is known for sure."""
    for step in ensemble.ensemble_scheduling.step:
        if step.model_name != name:
            continue
        if step.model_version > 0 and step.model_version not in model_config.served(
            layout.config, layout.versions
        ):
            yield f"uses version {step.model_version}, which would not be there"
        for side in SIDES:
            if side in tensors:
                yield from _misnamed(step, side, tensors[side])
                if present is not None:
                    yield from _misshapen(step, side, tensors[side], ensemble, present)


def _misnamed(step: Any, side: str, new: Mapping[str, _Tensor]) -> Iterator[str]:
    used = set(getattr(step, f"{side}_map"))
    if gone := sorted(used - new.keys()):
        yield f"uses its {side} {_listed(gone)}, which it does not have"
    required = {tensor for tensor, has in new.items() if side == "input" and not has.optional}
    if more := sorted(required - used):
        yield f"has nothing for its input {_listed(more)}"


def _misshapen(
    step: Any,
    side: str,
    new: Mapping[str, _Tensor],
    ensemble: model_config.ModelConfig,
    present: model_config.ModelConfig,
) -> Iterator[str]:
    mapping, ends = getattr(step, f"{side}_map"), _of_config(ensemble, side)
    for tensor, old in _of_config(present, side).items():
        if tensor not in new or tensor not in mapping:
            continue
        used, now, end = f"uses its {side} {tensor!r}", new[tensor], ends.get(mapping[tensor])
        if now.datatype is not None and now.datatype != old.datatype:
            yield f"{used} as {old.datatype}, which would be {now.datatype}"
        if end is not None and end.fits(old) and not end.fits(now):
            yield f"{used} with dims {list(end.dims[0])}, which would be {list(now.dims[0])}"


def _fit(left: Sequence[int], right: Sequence[int]) -> bool:
    return len(left) == len(right) and all(a == b or -1 in (a, b) for a, b in zip(left, right, strict=True))


def _listed(names: Collection[str]) -> str:
    return ", ".join(repr(name) for name in sorted(names))


def _called(names: Collection[str]) -> str:
    return f"the ensemble{'s' if len(names) > 1 else ''} {_listed(names)}"
