"""Publishing: a model directory becomes a version of a registered MLflow model.

Everything that can be refused is refused before MLflow is told anything; then the directory is
logged in a run of its own and registered. When `publish` raises, no run and no version of it is left.
"""

from __future__ import annotations

import logging
import os
import posixpath
import re
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

import mlflow
from mlflow.exceptions import MlflowException
from mlflow.protos.databricks_pb2 import INVALID_PARAMETER_VALUE, RESOURCE_DOES_NOT_EXIST, ErrorCode

from mlflow_triton import flavor as triton_flavor
from mlflow_triton.errors import InvalidParameter, ServerUnavailable, TritonPluginError
from mlflow_triton.models.tracking import first_words, require_server, tracking_uri

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence

    from mlflow import MlflowClient
    from mlflow.entities import Run
    from mlflow.models.model import ModelInfo

__all__ = ["Published", "parse_tags", "publish"]

log = logging.getLogger(__name__)

_ALIAS: Final = re.compile(r"[\w-]{1,255}")
_RESERVED_ALIAS: Final = re.compile(r"latest|v\d+", re.IGNORECASE)


@dataclass(frozen=True, slots=True)
class Published:
    """A model version that has just been registered.

    Attributes:
        model_name: The registered model.
        version: Its new version.
        model_uri: What to deploy: ``models:/NAME/VERSION``.
        run_id: The run that logged it.
        model_id: The logged model; None with MLflow 2.
        source: Where the registry says that the files are.
        artifact_uri: The run's artifact folder.
    """

    model_name: str
    version: str
    model_uri: str
    run_id: str
    model_id: str | None
    source: str
    artifact_uri: str


def publish(
    model_name: str,
    model_directory: str | os.PathLike[str],
    *,
    flavor: str = triton_flavor.FLAVOR_NAME,
    aliases: Sequence[str] = (),
    tags: Mapping[str, str] | None = None,
) -> Published:
    """Log a Triton model directory and register it as a new version of a model.

    MLflow is the one that ``MLFLOW_TRACKING_URI`` names. Whether it is there is found out at once; the upload
    then follows MLflow's own settings for time limits and retries.

    Args:
        model_name: The registered model; made if there is none.
        model_directory: The directory in Triton's layout.
        flavor: ``triton``, the only one there is.
        aliases: Aliases that shall lead to the new version.
        tags: Tags of the new version.

    Returns:
        The new version.

    Raises:
        InvalidParameter: The name, the flavor, an alias or a tag cannot be used.
        InvalidModel: Triton could not load the directory.
        ServerUnavailable: MLflow cannot be reached, or did not take the model.
    """
    if flavor != triton_flavor.FLAVOR_NAME:
        raise InvalidParameter(
            f"The flavor {flavor!r} cannot be published; 'triton' can. Nothing has been published. A model of "
            "another flavor is logged by MLflow itself, such as by mlflow.onnx.log_model."
        )
    _check_model_name(model_name)
    for alias in aliases:
        _check_alias(alias)
    layout = triton_flavor.check(model_directory)
    require_server()
    with _mlflow_errors():
        client = mlflow.MlflowClient()
        old_aliases = _aliases(client, model_name)
    log.info("Publishing %d files of %s to MLflow at %s.", len(layout.files), layout.origin, tracking_uri())
    with _mlflow_errors(), ExitStack() as undo:
        run, info = _log(client, model_directory, undo)
        if old_aliases is None:
            undo.callback(_attempt, _delete_if_empty, client, model_name)
        version = mlflow.register_model(info.model_uri, model_name, tags=dict(tags or {}))
        undo.callback(_attempt, client.delete_model_version, model_name, version.version)
        for alias in aliases:
            if old := (old_aliases or {}).get(alias):
                undo.callback(_attempt, client.set_registered_model_alias, model_name, alias, old)
            client.set_registered_model_alias(model_name, alias, version.version)
        undo.pop_all()
    return Published(
        model_name,
        str(version.version),
        f"models:/{model_name}/{version.version}",
        run.info.run_id,
        getattr(info, "model_id", None),
        str(version.source),
        run.info.artifact_uri,
    )


def parse_tags(texts: Iterable[str]) -> dict[str, str]:
    """Read tags as the command line writes them.

    Args:
        texts: ``NAME=VALUE`` each; the value may be empty and hold further equals signs.

    Raises:
        InvalidParameter: One of them has no name or no equals sign, or two have one name.
    """
    tags: dict[str, str] = {}
    for text in texts:
        name, equals, value = text.partition("=")
        if not equals or not name.strip() or name in tags:
            problem = "is given twice" if name in tags else "is not of the form NAME=VALUE"
            raise InvalidParameter(f"The tag {text!r} {problem}. Nothing has been published.")
        tags[name] = value
    return tags


def _log(
    client: MlflowClient, model_directory: str | os.PathLike[str], undo: ExitStack
) -> tuple[Run, ModelInfo]:
    """Log the directory in the caller's run, or in one of its own."""
    if (run := mlflow.active_run()) is not None:
        return run, triton_flavor.log_model(model_directory)
    resumed = "MLFLOW_RUN_ID" in os.environ  # then the run is not ours to delete
    with mlflow.start_run() as run:
        if not resumed:
            undo.callback(_attempt, client.delete_run, run.info.run_id)
        info = triton_flavor.log_model(model_directory)
    if model_id := getattr(info, "model_id", None):
        undo.callback(_attempt, client.delete_logged_model, model_id)
    return run, info


def _aliases(client: MlflowClient, model_name: str) -> dict[str, str] | None:
    """Return the registered model's aliases, or None if there is no such model yet."""
    try:
        return {
            alias: str(version) for alias, version in client.get_registered_model(model_name).aliases.items()
        }
    except MlflowException as error:
        if error.error_code == ErrorCode.Name(RESOURCE_DOES_NOT_EXIST):
            return None
        raise


def _delete_if_empty(client: MlflowClient, model_name: str) -> None:
    """Delete a registered model, unless another process has made a version of it in the meantime."""
    if not client.search_model_versions(f"name = '{model_name}'", max_results=1):
        client.delete_registered_model(model_name)


def _attempt(step: Callable[..., object], *arguments: object) -> None:
    """Undo one step; what cannot be undone is said and left."""
    try:
        step(*arguments)
    except Exception as error:  # noqa: BLE001 - each store raises what its own library raises
        log.warning("Could not be undone: %s %s: %s", step.__name__, arguments, first_words(error))


@contextmanager
def _mlflow_errors() -> Iterator[None]:
    """Turn what MLflow raises into this package's errors."""
    try:
        yield
    except TritonPluginError:
        raise
    except MlflowException as error:
        if error.error_code == ErrorCode.Name(INVALID_PARAMETER_VALUE):
            raise InvalidParameter(
                f"MLflow at {tracking_uri()} refuses this: {first_words(error)} Nothing has been published."
            ) from None
        raise _unavailable(error) from None
    except Exception as error:  # noqa: BLE001 - each store raises what its own library raises
        raise _unavailable(error) from None


def _unavailable(error: Exception) -> ServerUnavailable:
    return ServerUnavailable(
        f"MLflow at {tracking_uri()} did not take the model: {first_words(error)} Nothing has been published. "
        "Check MLFLOW_TRACKING_URI, and that the server runs."
    )


def _check_model_name(name: str) -> None:
    """Follow MLflow's rule for the name of a registered model (a server would say it too late)."""
    if not name.strip() or set(name) & set("/:") or posixpath.normpath(name) != name or name in {".", ".."}:
        raise InvalidParameter(
            f"{name!r} cannot be the name of a registered model: it is empty, a path, or holds '/' or ':'. "
            "Nothing has been published. Give another --model-name."
        )


def _check_alias(alias: str) -> None:
    """Follow MLflow's rule for an alias."""
    if not _ALIAS.fullmatch(alias) or _RESERVED_ALIAS.fullmatch(alias):
        raise InvalidParameter(
            f"{alias!r} cannot be an alias: use 1 to 255 letters, digits, '_' and '-', and neither 'latest' nor 'v' "
            "with a number, which MLflow keeps for itself. Nothing has been published."
        )
