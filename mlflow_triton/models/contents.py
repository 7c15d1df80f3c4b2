"""What an MLflow model contributes to a Triton model directory."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path, PurePosixPath

__all__ = ["INPUT_NAMES", "Contents"]

#: The parameter of a configuration that has the input names of the model's MLflow signature, as a JSON list: predict
#: tells by it which columns of a table are meant.
INPUT_NAMES = "mlflow.input_names"


@dataclass(frozen=True, slots=True)
class Contents:
    """The files of a model, and where each of them goes. Nothing is checked yet.

    Attributes:
        files: Path inside the Triton model directory to the file on disk; without config.pbtxt.
        config_text: The bytes of config.pbtxt; ``None`` leaves the configuration to the server.
        directories: Directories without files that belong to the model.
        unusual: Entries that are no plain files or directories, with what they are.
    """

    files: Mapping[PurePosixPath, Path]
    config_text: bytes | None
    directories: frozenset[PurePosixPath] = frozenset()
    unusual: Mapping[PurePosixPath, str] = field(default_factory=dict)
