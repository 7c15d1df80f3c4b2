"""What an operation would change, for ``-C dry_run=true``."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from google.protobuf import json_format

from mlflow_triton.errors import InvalidModelConfig
from mlflow_triton.repository import config as model_config
from mlflow_triton.repository.layout import CONFIG_FILE

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from mlflow_triton.repository.record import Record

__all__ = ["Plan", "Side", "model_text"]


@dataclass(frozen=True, slots=True)
class Side:
    """A deployment before or after an operation.

    Attributes:
        model: The URI of the MLflow model, and the registered version that it means.
        flavor: Of the model.
        versions: Triton's version directories.
        files: Path in the directory to digest; ``None``: it cannot be known before (the record).
        config: Fields of the model configuration, as JSON.
        options: As on record.
        previous: The model that is kept for a rollback.
    """

    model: str | None = None
    flavor: str | None = None
    versions: tuple[int, ...] = ()
    files: Mapping[str, str | None] = field(default_factory=dict)
    config: Mapping[str, Any] = field(default_factory=dict)
    options: Mapping[str, Any] = field(default_factory=dict)
    previous: str | None = None

    @classmethod
    def of(cls, record: Record | None, config_text: bytes, files: Mapping[str, str | None]) -> Side:
        """Describe a deployment, or without a record a model; a config.pbtxt that cannot be read has no fields."""
        try:
            config = model_config.parse(config_text, origin=CONFIG_FILE)
        except InvalidModelConfig:
            config = model_config.ModelConfig()
        fields = json_format.MessageToDict(config, preserving_proto_field_name=True)
        if record is None:
            return cls("not deployed by MLflow", files=files, config=fields)
        return cls(model_text(record), record.flavor, record.versions, files, fields, record.options)


@dataclass(frozen=True, slots=True)
class Plan:
    """What an operation would change.

    Attributes:
        operation: ``create``, ``update``, ``rollback`` or ``delete``.
        name: The deployment.
        old: As it is; empty for a creation.
        new: As it would be; empty for a deletion.
    """

    operation: str
    name: str
    old: Side
    new: Side

    def to_dict(self) -> dict[str, Any]:
        """Return it for Python callers: what changes as ``[old, new]``, files as path to digest."""
        old, new = self.old.files, self.new.files
        return {
            "name": self.name,
            "flavor": self.new.flavor or self.old.flavor,
            "dry_run": True,
            "operation": self.operation,
            "model": [self.old.model, self.new.model],
            "versions": [list(self.old.versions), list(self.new.versions)],
            "files": {
                "added": {name: new[name] for name in sorted(new.keys() - old.keys())},
                "changed": {
                    name: [old[name], new[name]]
                    for name in sorted(new.keys() & old.keys())
                    if new[name] is None or new[name] != old[name]
                },
                "removed": {name: old[name] for name in sorted(old.keys() - new.keys())},
            },
            "config": _changes(self.old.config, self.new.config),
            "options": _changes(self.old.options, self.new.options),
            "kept": [self.old.previous, self.new.previous],
        }

    def __str__(self) -> str:
        return "\n".join(self._lines())

    def _lines(self) -> Iterator[str]:
        if self.old == self.new:
            yield f"Dry run: nothing was changed. There is no deployment {self.name!r} to {self.operation}."
            return
        plan = self.to_dict()
        yield f"Dry run: nothing was changed. {self.operation.capitalize()} of {self.name!r} would mean:"
        yield f"  model: {_arrow(*plan['model'])}"
        yield f"  versions: {_arrow(*(', '.join(map(str, numbers)) or None for numbers in plan['versions']))}"
        files = plan["files"]
        yield from (
            f"  file added: {name} {value or '(the record)'}" for name, value in files["added"].items()
        )
        for name, (old, new) in files["changed"].items():
            yield f"  file changed: {name} {_arrow(old, new) if new else '(the record)'}"
        yield from (f"  file removed: {name}" for name in files["removed"])
        for kind in ("config", "options"):
            for name, (old, new) in plan[kind].items():
                yield f"  {kind} {name}: {_arrow(*(None if it is None else json.dumps(it) for it in (old, new)))}"
        if any(plan["kept"]):
            yield f"  kept for a rollback: {_arrow(*plan['kept'])}"
        if self.operation != "delete":
            yield "  not tried: whether the server reads this model repository, and loads the model"


def model_text(record: Record) -> str:
    """Return the URI of a deployment's model, and the registered version that it meant."""
    version = "" if record.model_version is None else f" (version {record.model_version})"
    return f"{record.mlflow_model_uri}{version}"


def _changes(old: Mapping[str, Any], new: Mapping[str, Any]) -> dict[str, list[Any]]:
    names = dict.fromkeys([*old, *new])
    return {name: [old.get(name), new.get(name)] for name in names if old.get(name) != new.get(name)}


def _arrow(old: str | None, new: str | None) -> str:
    return f"{old}" if old == new else f"{old or 'none'} -> {new or 'none'}"
