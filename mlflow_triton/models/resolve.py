"""A model URI to a private local copy of the MLflow model, with what it is and where it came from."""

from __future__ import annotations

import logging
import os
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

import mlflow
import yaml
from mlflow.exceptions import MlflowException
from mlflow.models import Model
from mlflow.utils.file_utils import local_file_uri_to_path

from mlflow_triton.errors import InvalidModel, ModelNotFound
from mlflow_triton.models.download import download
from mlflow_triton.models.tracking import first_words, foreign_errors, require_server
from mlflow_triton.small_file import read_small

__all__ = ["Origin", "ResolvedModel", "resolve", "run_artifacts"]

log = logging.getLogger(__name__)

#: MLflow writes it into every download of a ``models:/`` URI: the version that was really read.
REGISTERED_MODEL_META = "registered_model_meta"
#: Schemes of URIs that only MLflow's server can resolve.
SERVED = frozenset({"models", "runs", "mlflow-artifacts"})


@dataclass(frozen=True, slots=True)
class Origin:
    """Where a model came from; ``None`` where MLflow does not say.

    Attributes:
        uri: As the caller wrote it.
        model_name: In the registry.
        model_version: In the registry, whatever alias or stage the URI names.
        model_id: Of the logged model (MLflow 3).
        run_id: Of the run that logged it.
    """

    uri: str
    model_name: str | None
    model_version: str | None
    model_id: str | None
    run_id: str | None


@dataclass(frozen=True, slots=True)
class ResolvedModel:
    """An MLflow model in a directory of its own.

    Attributes:
        path: The directory that holds ``MLmodel``; its files may be moved away.
        flavors: As in ``MLmodel``.
        origin: Where it came from.
        input_names: Those of its signature; empty if it has none, or an input has no name.
    """

    path: Path
    flavors: dict[str, dict[str, Any]]
    origin: Origin
    input_names: tuple[str, ...] = ()


def resolve(uri: str, destination: Path) -> ResolvedModel:
    """Download a model and read what it says of itself.

    Args:
        uri: Any model or artifact URI that MLflow understands.
        destination: An empty directory; nothing is written elsewhere.

    Raises:
        ModelNotFound: The URI names nothing.
        InvalidModel: It names something that is not an MLflow model.
        ServerUnavailable: MLflow cannot be reached.
        RepositoryError: The destination cannot be written.
    """
    if not str(uri).strip():
        raise ModelNotFound(f"The model URI {uri!r} is empty. Write, for example, models:/NAME/1.")
    if _scheme(uri) in SERVED:
        require_server()
    _refuse_links(uri)
    with foreign_errors(uri, destination):
        path = download(uri, destination)
    # MLflow returns the URI's own path when there is nothing to copy it from.
    if not path.is_relative_to(destination):
        raise InvalidModel(
            f"MLflow put {uri} into {path} and not where it was asked to. Nothing was changed."
        )
    mlmodel = path / "MLmodel"
    if not mlmodel.is_file():
        raise InvalidModel(
            f"{uri} is not an MLflow model: it has no MLmodel file. Give the URI of a model, such as models:/NAME/1."
        )
    try:
        model = Model.load(str(mlmodel))
        flavors = {str(name): dict(values or {}) for name, values in dict(model.flavors).items()}
        names = _input_names(model)
    except Exception as error:  # noqa: BLE001 - MLflow raises whatever its parsers raise on a broken file
        raise InvalidModel(f"{uri}: its MLmodel file cannot be read: {first_words(error)}") from None
    meta = _registered_model_meta(path / REGISTERED_MODEL_META, uri)
    return ResolvedModel(
        path,
        flavors,
        Origin(
            uri,
            _text(meta.get("model_name")),
            _text(meta.get("model_version")),
            _text(getattr(model, "model_id", None)),
            _text(model.run_id),
        ),
        names,
    )


def _input_names(model: Model) -> tuple[str, ...]:
    schema = None if model.signature is None else model.signature.inputs
    names = [] if schema is None else [item.name for item in schema.inputs]
    return tuple(names) if all(isinstance(name, str) for name in names) else ()


def _refuse_links(uri: str) -> None:
    """Refuse a local directory with links that lead out of it, nowhere, or around: MLflow 2 follows and copies them."""
    root = Path(local_file_uri_to_path(uri) if _scheme(uri) == "file" else uri)
    if not root.is_dir():
        return
    inside = os.path.realpath(root)
    for parent, directories, files in os.walk(root):
        for name in [*directories, *files]:
            path = Path(parent, name)
            if not path.is_symlink():
                continue
            target = Path(os.path.realpath(path))
            where = None
            if not target.is_relative_to(inside):
                where = "leads out of the model"
            elif not path.exists():
                where = "leads nowhere"
            elif Path(os.path.realpath(parent)).is_relative_to(target):
                where = "leads back to a directory that it is in"
            if where is not None:
                raise InvalidModel(
                    f"{uri}: {path.relative_to(root)} is a symbolic link that {where}. Nothing was changed. Put the "
                    "file itself there (cp -rL copies what links lead to)."
                )


def _scheme(uri: str) -> str:
    return uri.partition(":")[0]


def _registered_model_meta(path: Path, uri: str) -> dict[str, Any]:
    if not path.is_file():
        return {}
    try:
        meta = yaml.safe_load(read_small(path))
    except (yaml.YAMLError, ValueError, RecursionError, OSError) as error:
        raise InvalidModel(f"{uri}: its file {path.name} cannot be read: {first_words(error)}") from None
    return meta if isinstance(meta, dict) else {}


def _text(value: object) -> str | None:
    """Return what YAML may have taken for a number as text; ``None`` for anything else, which may have no end."""
    return str(value) if isinstance(value, (str, int, float)) else None


def run_artifacts(model: ResolvedModel, suffixes: frozenset[str], destination: Path) -> list[Path]:
    """Fetch what was added with ``mlflow.log_artifact(file, NAME)`` beside a logged model called NAME.

    MLflow 2 kept a logged model among its run's artifacts, so that such a file became part of it. MLflow 3
    keeps the model elsewhere, and the file is not in ``models:/…`` any more.

    Args:
        model: The resolved model.
        suffixes: Of the files that are wanted, e.g. ``.txt``.
        destination: An empty directory.

    Returns:
        The fetched files; those that the model itself has are left out.
    """
    client = mlflow.MlflowClient()
    if _scheme(model.origin.uri) != "models" or not model.origin.model_id:
        return []
    try:
        logged = client.get_logged_model(model.origin.model_id)
        if not logged.source_run_id:
            return []
        # Lists the model's own files as well.
        found = client.list_artifacts(logged.source_run_id, logged.name)
    except MlflowException as error:
        if error.error_code == "RESOURCE_DOES_NOT_EXIST":
            log.info(
                "The run that logged %s is gone; nothing can have been attached there.", model.origin.uri
            )
            return []
        raise
    names = [PurePosixPath(item.path).name for item in found if not item.is_dir]
    return [
        Path(client.download_artifacts(logged.source_run_id, f"{logged.name}/{name}", str(destination)))
        for name in names
        if PurePosixPath(name).suffix in suffixes and not (model.path / name).exists()
    ]
