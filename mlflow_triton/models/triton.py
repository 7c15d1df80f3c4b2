"""The flavor ``triton``: a directory in Triton's own layout, carried by MLflow as it is."""

from __future__ import annotations

import os
import stat
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING

from mlflow_triton.errors import InvalidModel
from mlflow_triton.models.contents import Contents
from mlflow_triton.small_file import read_small

if TYPE_CHECKING:
    from mlflow_triton.models.resolve import ResolvedModel

__all__ = ["FLAVOR", "contents", "directory", "scan"]

FLAVOR = "triton"
#: Left by interpreters and file managers in any directory that they open; never a part of a model.
#: (A stale ``__pycache__`` would even run in place of the model.py beside it.)
DROPPINGS = frozenset({"__pycache__", ".DS_Store", "Thumbs.db", "desktop.ini"})
CONFIG = "config.pbtxt"


def contents(model: ResolvedModel) -> Contents:
    """Take the directory that MLmodel names, with all its version directories and other files.

    Args:
        model: The resolved model.

    Raises:
        InvalidModel: MLmodel does not name a directory inside the model, or it cannot be read.
    """
    return scan(directory(model), origin=model.origin.uri)


def directory(model: ResolvedModel) -> Path:
    """Return the directory in Triton's layout: the one that MLmodel names (``flavors.triton.data``).

    Args:
        model: The resolved model, which has this flavor.

    Raises:
        InvalidModel: MLmodel does not name a directory inside the model.
    """
    data = model.flavors[FLAVOR].get("data")
    plain = data is None or isinstance(data, (str, int, float))  # what else YAML makes may have no end
    named = repr(data) if plain else f"a {type(data).__name__}"
    path = model.path / data if isinstance(data, str) and "\0" not in data else model.path
    if (
        path == model.path
        or path.is_symlink()
        or not Path(os.path.realpath(path)).is_relative_to(os.path.realpath(model.path))
    ):
        problem = "which is not a directory inside of the model"
    elif not path.is_dir():
        problem = "which is not there"
    else:
        return path
    raise InvalidModel(
        f"{model.origin.uri}: MLmodel says that the Triton model is in {named} (flavors.triton.data), {problem}. "
        "Nothing was changed. Publish it again: mlflow-triton publish."
    )


def scan(directory: Path, *, origin: str) -> Contents:
    """List what a Triton model directory holds, without what interpreters and file managers leave there.

    Hidden files belong to the model like any others. Links are listed, not followed.

    Args:
        directory: The model directory.
        origin: What to call it in a message: a URI or a path.

    Raises:
        InvalidModel: It cannot be read.
    """
    files: dict[PurePosixPath, Path] = {}
    directories: set[PurePosixPath] = set()
    unusual: dict[PurePosixPath, str] = {}

    pending = [(directory, PurePosixPath())]
    try:
        while pending:
            folder, inside = pending.pop()
            entries = [entry for entry in folder.iterdir() if entry.name not in DROPPINGS]
            if not entries and inside.parts:
                directories.add(inside)
            for entry in entries:
                target = inside / entry.name
                mode = entry.lstat().st_mode
                if stat.S_ISDIR(mode):
                    pending.append((entry, target))
                elif stat.S_ISREG(mode):
                    files[target] = entry
                else:
                    unusual[target] = "a symbolic link" if stat.S_ISLNK(mode) else "a special file"
        config = files.pop(PurePosixPath(CONFIG), None)
        text = read_small(config) if config is not None else None
    except OSError as error:
        raise InvalidModel(
            f"{origin}: {error.filename} cannot be read: {error.strerror}. Nothing was changed."
        ) from None
    return Contents(dict(sorted(files.items())), text, frozenset(directories), unusual)
