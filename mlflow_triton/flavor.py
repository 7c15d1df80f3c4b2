"""The MLflow flavor ``triton``: a model directory in Triton's own layout, logged as it is.

Use it like MLflow's own flavors; the artifacts and the keys in MLmodel are those of NVIDIA's
``triton_flavor`` module, so that each reads what the other one has logged::

    with mlflow.start_run():
        mlflow_triton.flavor.log_model("models/resnet", registered_model_name="resnet")
"""

from __future__ import annotations

import inspect
import os
import shutil
import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mlflow.models import Model

from mlflow_triton.errors import InvalidModel, InvalidParameter
from mlflow_triton.models import triton
from mlflow_triton.models.resolve import resolve
from mlflow_triton.repository.layout import CONFIG_FILE, Layout, lay_out

if TYPE_CHECKING:
    from mlflow.models.model import ModelInfo

__all__ = ["FLAVOR_NAME", "check", "load_model", "log_model", "save_model"]

FLAVOR_NAME = triton.FLAVOR
DEFAULT_NAME = "triton"
#: Seconds that MLflow waits for a new model version to be READY, its own default.
AWAIT_REGISTRATION = 300
#: Files beside the Triton directory that MLflow writes; a directory cannot have one of these names.
TAKEN = frozenset({"MLmodel", "registered_model_meta"})
#: Put into empty directories, which MLflow's remote artifact stores would drop; Triton ignores it.
PLACEHOLDER = ".keep"


def check(triton_model_path: str | os.PathLike[str]) -> Layout:
    """Refuse a directory that Triton could not load, and write nothing.

    Args:
        triton_model_path: A model directory: config.pbtxt (if the model needs one), version directories,
            label files.

    Returns:
        What Triton would find there.

    Raises:
        InvalidModel: There is no such directory, or Triton could not load it; every problem is listed.
        InvalidModelConfig: Its config.pbtxt does not follow Triton's schema.
    """
    path = Path(triton_model_path)
    if not path.is_dir():
        found = "it is a file" if path.exists() else "it does not exist"
        raise InvalidModel(
            f"There is no model directory {str(path)!r}: {found}. Nothing has been published. Give the path of a "
            "directory that holds config.pbtxt and version directories such as 1."
        )
    contents = triton.scan(path, origin=str(path))
    layout = lay_out(
        contents.files,
        origin=str(path),
        config_text=contents.config_text,
        directories=contents.directories,
        unusual=contents.unusual,
    )
    layout.check(None)
    return layout


def save_model(
    triton_model_path: str | os.PathLike[str],
    path: str | os.PathLike[str],
    mlflow_model: Model | None = None,
) -> None:
    """Save a Triton model directory as an MLflow model on this machine.

    What interpreters and file managers leave in a directory (``__pycache__``, ``.DS_Store``) is left
    out; an empty directory gets a placeholder, without which it would not reach a remote store.

    Args:
        triton_model_path: The model directory.
        path: The directory to be made; it may exist if it is empty.
        mlflow_model: The MLflow model to add the flavor to; default: a new one.

    Raises:
        InvalidModel: Triton could not load the model; nothing has been written.
        InvalidParameter: Something is at `path`, or it cannot be written.
    """
    layout = check(triton_model_path)
    target = Path(path)
    if target.exists() and (not target.is_dir() or any(target.iterdir())):
        raise InvalidParameter(
            f"{str(target)!r} exists already and is untouched. Give a path where nothing is."
        )
    name = Path(triton_model_path).resolve().name
    data = name if name and name not in TAKEN else DEFAULT_NAME
    try:
        _write(layout, target / data)
        model = mlflow_model if mlflow_model is not None else Model()
        model.add_flavor(FLAVOR_NAME, data=data)
        model.save(str(target / "MLmodel"))
    except OSError as error:
        shutil.rmtree(target, ignore_errors=True)
        raise InvalidParameter(
            f"{str(triton_model_path)!r} could not be saved to {str(target)!r}: {error.strerror or error} "
            f"({error.filename}). Nothing is left there."
        ) from None


def log_model(
    triton_model_path: str | os.PathLike[str],
    artifact_path: str | None = None,
    registered_model_name: str | None = None,
    await_registration_for: int | None = AWAIT_REGISTRATION,
    *,
    name: str | None = None,
) -> ModelInfo:
    """Log a Triton model directory to MLflow, in the active run (or a new one).

    Args:
        triton_model_path: The model directory.
        artifact_path: MLflow 2's word for `name`, and the second argument of NVIDIA's ``log_model``.
        registered_model_name: The registered model to make a version of; default: none.
        await_registration_for: Seconds to wait for that version to be READY; None or 0: do not wait.
        name: The logged model's name; default: ``triton``.

    Returns:
        MLflow's description of the logged model.

    Raises:
        InvalidModel: Triton could not load the model; nothing has been logged, no run has been started.
        InvalidParameter: Both `name` and `artifact_path` are given.
        MlflowException: MLflow refused or could not be reached.
    """
    if name is not None and artifact_path is not None:
        raise InvalidParameter(
            "Give name or artifact_path, which mean the same, and not both. Nothing has been logged."
        )
    check(triton_model_path)
    chosen = name or artifact_path or DEFAULT_NAME
    arguments: dict[str, Any] = {"artifact_path": chosen}
    if "name" in inspect.signature(Model.log).parameters:  # MLflow 3
        arguments = {"artifact_path": None, "name": chosen}
    info: ModelInfo = Model.log(
        **arguments,
        flavor=sys.modules[__name__],
        registered_model_name=registered_model_name,
        await_registration_for=await_registration_for,
        triton_model_path=os.fspath(triton_model_path),
    )
    return info


def load_model(model_uri: str, dst_path: str | os.PathLike[str] | None = None) -> str:
    """Download a model of this flavor.

    Args:
        model_uri: Any model URI that MLflow understands, such as ``models:/resnet/1``.
        dst_path: An empty directory, made if need be; default: a new temporary one, which is the caller's
            to remove.

    Returns:
        The path of the Triton model directory, which holds config.pbtxt and the version directories.

    Raises:
        ModelNotFound: The URI names nothing.
        InvalidModel: It names no model of this flavor.
        ServerUnavailable: MLflow cannot be reached.
    """
    destination = Path(
        dst_path if dst_path is not None else tempfile.mkdtemp(prefix="mlflow-triton-")
    ).absolute()
    try:
        return str(_fetch(model_uri, destination))
    except BaseException:
        if dst_path is None:
            shutil.rmtree(destination, ignore_errors=True)
        raise


def _fetch(model_uri: str, destination: Path) -> Path:
    destination.mkdir(parents=True, exist_ok=True)
    model = resolve(model_uri, destination)
    if FLAVOR_NAME not in model.flavors:
        raise InvalidModel(
            f"{model_uri} has no flavor {FLAVOR_NAME!r}; its flavors are: {', '.join(model.flavors) or 'none'}. "
            "Give the URI of a model published with mlflow-triton publish."
        )
    return triton.directory(model)


def _write(layout: Layout, directory: Path) -> None:
    directory.mkdir(parents=True)
    for target, source in layout.files.items():
        (directory / target).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(source, directory / target)
    for empty in layout.directories:
        (directory / empty).mkdir(parents=True)
        (directory / empty / PLACEHOLDER).touch()
    if layout.config_text is not None:
        (directory / CONFIG_FILE).write_bytes(layout.config_text)
