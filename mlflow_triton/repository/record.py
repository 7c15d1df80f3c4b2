"""The provenance record of a deployment: ``mlflow-meta.json`` in the model's directory.

The first four keys are those of NVIDIA's plugin, so that each plugin lists, updates and deletes what
the other one deployed; the rest answers "what exactly is serving". Triton ignores the file.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, dataclass, field, fields
from pathlib import PurePosixPath
from typing import TYPE_CHECKING, Any

from mlflow_triton.errors import RepositoryError

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

__all__ = ["RECORD_NAME", "Record", "Served", "digest", "text_digest"]

RECORD_NAME = "mlflow-meta.json"
_CHUNK = 1 << 20
#: Predecessors that a record tells of.
LONGEST_HISTORY = 50


@dataclass(frozen=True, slots=True)
class Served:
    """What a deployment was before; ``None`` where it is not known, as of what NVIDIA's plugin deployed.

    Attributes:
        deployment_id: As in its record, like the next ones.
        mlflow_model_uri: Same.
        model_name: Same.
        model_version: Same.
        operation: What made it: ``create``, ``adopt``, ``update`` or ``rollback``.
        since: When; UTC, ISO 8601.
        until: When something else took its place.
    """

    deployment_id: str | None
    mlflow_model_uri: str
    model_name: str | None
    model_version: str | None
    operation: str | None
    since: str | None
    until: str | None


@dataclass(frozen=True, slots=True)
class Record:
    """One deployment.

    Attributes:
        name: The deployment, which is the model's directory.
        triton_model_path: That directory's path, as the deploying machine saw it.
        mlflow_model_uri: As the caller wrote it.
        flavor: ``onnx`` or ``triton``.
        deployment_id: Given to the server with the load, and read back from it. ``None`` in a record
            that NVIDIA's plugin wrote, like everything that follows.
        model_name: Registered model.
        model_version: Registered version that the URI meant at that time.
        model_id: Logged model (MLflow 3).
        run_id: Run that logged the model.
        versions: Triton's version directories.
        files: Path in the directory to ``sha256:…`` of every published file.
        plugin_version: Of this package.
        created_at: UTC, ISO 8601.
        options: Deployment options that made the configuration what it is, by name, as JSON.
        times: Modification time, in nanoseconds, of files that were linked; the others have the record's own.
        operation: What made it: ``create``, ``adopt``, ``update`` or ``rollback``.
        history: What it was before, the oldest first, the last `LONGEST_HISTORY` of them.
    """

    name: str
    triton_model_path: str
    mlflow_model_uri: str
    flavor: str
    deployment_id: str | None = None
    model_name: str | None = None
    model_version: str | None = None
    model_id: str | None = None
    run_id: str | None = None
    versions: tuple[int, ...] = ()
    files: dict[str, str] = field(default_factory=dict)
    plugin_version: str | None = None
    created_at: str | None = None
    options: dict[str, Any] = field(default_factory=dict)
    times: dict[str, int] = field(default_factory=dict)
    operation: str | None = None
    history: tuple[Served, ...] = ()

    def served(self, until: str | None) -> Served:
        """Return this deployment as its successors remember it."""
        return Served(
            self.deployment_id,
            self.mlflow_model_uri,
            self.model_name,
            self.model_version,
            self.operation,
            self.created_at,
            until,
        )

    def history_for(self, until: str | None) -> tuple[Served, ...]:
        """Return the history of the deployment that takes the place of this one."""
        return (*self.history, self.served(until))[-LONGEST_HISTORY:]

    def to_json(self) -> str:
        """Return the text of ``mlflow-meta.json``."""
        return json.dumps(asdict(self), indent=4) + "\n"

    @classmethod
    def from_json(cls, text: str | bytes, *, name: str, path: str) -> Record:
        """Read a record, ours or NVIDIA's; keys of later versions are ignored.

        Raises:
            RepositoryError: It is corrupt, or not the record of the deployment `name`.
        """
        remedy = (
            f"The model and the other deployments are untouched. Restore {path} from a backup; or replace the model: "
            f"mlflow deployments create -t triton --name {name} -m URI -C adopt=true; or remove the record if the model "
            "is not to be managed by MLflow."
        )
        try:
            document = json.loads(text)
        except (ValueError, RecursionError) as error:
            raise RepositoryError(f"The record of {name!r} is corrupt: {path}: {error}. {remedy}") from None
        problem = _problem(document, name)
        if problem:
            raise RepositoryError(f"The record of {name!r} is not usable: {path}: {problem}. {remedy}")
        known = {key: document[key] for key in (item.name for item in fields(cls)) if key in document}
        # Whoever may write a record is not to write on the terminal of who reads it.
        known |= {key: printable(value) for key, value in known.items() if isinstance(value, str)}
        known["versions"] = tuple(known.get("versions", ()))
        known["history"] = tuple(
            Served(**{item.name: printable(entry.get(item.name)) for item in fields(Served)})
            for entry in known.get("history", ())
        )
        return cls(**known)


def printable(text: Any) -> Any:
    """Return a text with what cannot be printed written as an escape; anything else as it is."""
    if not isinstance(text, str) or text.isprintable():
        return text
    return "".join(char if char.isprintable() else ascii(char)[1:-1] for char in text)


def digest(path: Path) -> str:
    """Return the digest of a file as a record has it."""
    found = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(_CHUNK):
            found.update(chunk)
    return f"sha256:{found.hexdigest()}"


def text_digest(text: bytes) -> str:
    """Return the digest of what a file is to hold."""
    return f"sha256:{hashlib.sha256(text).hexdigest()}"


def _text(value: Any) -> bool:
    return isinstance(value, str)


def _text_or_none(value: Any) -> bool:
    return value is None or isinstance(value, str)


def _versions(value: Any) -> bool:
    return isinstance(value, list) and all(type(number) is int for number in value)


def _digests(value: Any) -> bool:
    return isinstance(value, dict) and all(
        isinstance(digest, str) and _inside(name) and name.isprintable() for name, digest in value.items()
    )


def _inside(name: str) -> bool:
    """Say whether a path leads to a place in the model's directory."""
    path = PurePosixPath(name)
    return not path.is_absolute() and ".." not in path.parts and bool(path.parts) and "\0" not in name


def _history(value: Any) -> bool:
    return isinstance(value, list) and all(
        isinstance(entry, dict)
        and all(
            (_text if item.name == "mlflow_model_uri" else _text_or_none)(entry.get(item.name))
            for item in fields(Served)
        )
        for entry in value
    )


_VALID: dict[str, Callable[[Any], bool]] = {
    **dict.fromkeys(("name", "triton_model_path", "mlflow_model_uri", "flavor"), _text),
    **dict.fromkeys(("deployment_id", "model_name", "model_version", "model_id", "run_id"), _text_or_none),
    **dict.fromkeys(("plugin_version", "created_at", "operation"), _text_or_none),
    "versions": _versions,
    "files": _digests,
    "options": lambda value: isinstance(value, dict),
    "times": lambda value: isinstance(value, dict) and all(type(time) is int for time in value.values()),
    "history": _history,
}


def _problem(document: Any, name: str) -> str | None:
    if not isinstance(document, dict):
        return "it is not a JSON object"
    for key, valid in _VALID.items():
        if key not in document and valid is not _text:
            continue
        if not valid(document.get(key)):
            return f"{key!r} is missing or not what it should be"
    return None if document["name"] == name else f"it is the record of {document['name']!r}"
