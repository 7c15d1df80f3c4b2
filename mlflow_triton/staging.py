"""What a new model directory is made of: an MLflow model, or what is deployed already with other options."""

from __future__ import annotations

import logging
import os
import shutil
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any

from mlflow_triton.errors import InvalidModel, InvalidParameter
from mlflow_triton.models import onnx, triton
from mlflow_triton.models.download import LARGE, share
from mlflow_triton.models.example import input_example, logged_example
from mlflow_triton.models.resolve import Origin, resolve
from mlflow_triton.options import DeploymentOptions
from mlflow_triton.repository.config import ModelConfig, parse
from mlflow_triton.repository.layout import CONFIG_FILE, KEPT
from mlflow_triton.repository.record import RECORD_NAME, digest

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping

    from mlflow_triton.models.contents import Contents
    from mlflow_triton.models.example import Example
    from mlflow_triton.models.resolve import ResolvedModel
    from mlflow_triton.repository.record import Record

__all__ = ["Source", "deployed", "downloaded", "keep"]

log = logging.getLogger(__name__)

FLAVORS = (onnx.FLAVOR, triton.FLAVOR)
#: Fields of a configuration that change no answer of a model.
ANSWERS_STAY = ("dynamic_batching", "instance_group", "model_warmup")


@dataclass(frozen=True, slots=True)
class Source:
    """Where a new model directory's files come from.

    Attributes:
        origin: The MLflow model.
        flavor: The one that is deployed.
        contents: Its files.
        options: For the record: what makes the configuration what it is.
        name: What to call it in a message: a URI or a path.
        example: What to test it with.
        directory: Of the deployment whose files these are; ``None``: they are a download.
        digests: Path in that directory to digest, of the files that are as they were published.
    """

    origin: Origin
    flavor: str
    contents: Contents
    options: dict[str, Any]
    name: str
    example: Example | None = None
    directory: Path | None = None
    digests: Mapping[str, str] = field(default_factory=dict)

    def answers_alike(self, config: ModelConfig) -> bool:
        """Say whether the model answers with this configuration as the server has known it to answer."""
        if self.directory is None:
            return False
        then, now = ModelConfig(), ModelConfig()
        then.CopyFrom(parse(self.contents.config_text or b"", origin=self.name))
        now.CopyFrom(config)
        for name in ANSWERS_STAY:
            then.ClearField(name)
            now.ClearField(name)
        same_files = all(str(path) in self.digests for path in self.contents.files)
        return same_files and then == now

    def copy(self, file: Path, target: Path) -> None:
        """Put a file of a deployment into a new directory, without copying a large one if that is possible."""
        target.parent.mkdir(parents=True, exist_ok=True)
        large = file.stat().st_size >= LARGE
        if not (large and share(file, target, link=True)):
            if large:
                log.info("Copying %s: its filesystem lets this user neither clone nor link it.", file)
            shutil.copy(file, target)

    def digests_of(self, files: Mapping[PurePosixPath, Path], built: Path | None) -> dict[str, str]:
        """Return the digests of files by their places; what is on record is not read, of the rest several at once.

        Args:
            files: Place in the new directory to file of this source.
            built: The new directory, where they are by now; ``None``: they are where they were.
        """

        def found(place: PurePosixPath) -> str:
            file = files[place]
            known = (
                None if self.directory is None else self.digests.get(str(file.relative_to(self.directory)))
            )
            return known or digest(file if built is None else built / place)

        with ThreadPoolExecutor(os.cpu_count()) as pool:
            return dict(zip(map(str, files), pool.map(found, files), strict=True))


def downloaded(model_uri: str, flavor: str | None, options: DeploymentOptions, directory: Path) -> Source:
    """Download an MLflow model.

    Args:
        model_uri: As the caller wrote it.
        flavor: The one that is wanted; ``None``: the one that it has.
        options: What to do with it.
        directory: An empty one.

    Raises:
        TritonPluginError: It cannot be had, or it is not what can be deployed.
    """
    model = resolve(model_uri, directory)
    chosen = _flavor(model, flavor)
    if chosen == onnx.FLAVOR:
        run_files = directory / ".run"
        run_files.mkdir()
        contents = onnx.contents(model, version=options.version or 1, run_files=run_files)
    else:
        _refuse_version(options)
        contents = triton.contents(model)
    example = input_example(model) if options.smoke_test else None
    return Source(model.origin, chosen, contents, options.applied(), model_uri, example)


def deployed(
    record: Record,
    directory: Path,
    changed: Collection[str],
    options: DeploymentOptions,
    download: Path | None = None,
) -> Source:
    """Take what is deployed, as it is on disk.

    Args:
        record: Of the deployment.
        directory: Its directory in the model repository.
        changed: What in it is not as it was published.
        options: What to change.
        download: An empty directory, for what is fetched of the model to test it with.

    Raises:
        TritonPluginError: The directory is not what can be deployed, or the options do not go with it.
    """
    if changed:
        log.warning(
            "Not as published, and kept as it is now: %s of %r.", ", ".join(sorted(changed)), record.name
        )
    contents = _of_its_own(triton.scan(directory, origin=str(directory)))
    if record.flavor != onnx.FLAVOR:
        _refuse_version(options)
    elif options.version is not None:
        contents = _renumbered(contents, options.version)
    origin = Origin(
        record.mlflow_model_uri, record.model_name, record.model_version, record.model_id, record.run_id
    )
    return Source(
        origin,
        record.flavor,
        contents,
        options.added_to(record.options),
        str(directory),
        logged_example(origin, download) if options.smoke_test and download is not None else None,
        directory=directory,
        digests={name: value for name, value in record.files.items() if name not in changed},
    )


def keep(record: Record, directory: Path, changed: Collection[str], target: Path) -> None:
    """Put a deployment, as it is on disk, into the directory of the one that takes its place.

    Args:
        record: Of the deployment.
        directory: Its directory in the model repository.
        changed: What in it is not as it was published.
        target: Where to; made here.

    Raises:
        InvalidModel: There is something in the directory that is no plain file.
    """
    source = deployed(record, directory, changed, DeploymentOptions())
    if source.contents.unusual:
        found = "; ".join(f"{path} is {kind}" for path, kind in sorted(source.contents.unusual.items()))
        raise InvalidModel(
            f"{record.name!r} cannot be kept: {found}. Nothing was changed. Put plain files there, or update without "
            "-C keep_previous=true."
        )
    target.mkdir()
    for path in source.contents.directories:
        (target / path).mkdir(parents=True)
    for path, file in source.contents.files.items():
        source.copy(file, target / path)
    if source.contents.config_text is not None:
        (target / CONFIG_FILE).write_bytes(source.contents.config_text)
    shutil.copyfile(directory / RECORD_NAME, target / RECORD_NAME)


def _of_its_own(contents: Contents) -> Contents:
    """Leave out what the plugin has put beside a model's own files."""

    def own(path: PurePosixPath) -> bool:
        return path != PurePosixPath(RECORD_NAME) and path.parts[0] != KEPT

    return replace(
        contents,
        files={path: file for path, file in contents.files.items() if own(path)},
        directories=frozenset(filter(own, contents.directories)),
        unusual={path: kind for path, kind in contents.unusual.items() if own(path)},
    )


def _renumbered(contents: Contents, version: int) -> Contents:
    """Put the files of the one version that an onnx model has under another number."""
    files = {}
    for path, file in contents.files.items():
        moved = len(path.parts) > 1 and path.parts[0].isdigit()
        files[PurePosixPath(str(version), *path.parts[1:]) if moved else path] = file
    return replace(contents, files=files)


def _refuse_version(options: DeploymentOptions) -> None:
    if options.version is not None:
        raise InvalidParameter(
            f"Nothing was changed: -C version={options.version} does not go with the flavor {triton.FLAVOR}, "
            "whose directory brings its own version numbers."
        )


def _flavor(model: ResolvedModel, wanted: str | None) -> str:
    has = ", ".join(model.flavors) or "none"
    if wanted is not None and wanted not in FLAVORS:
        raise InvalidParameter(
            f"The flavor {wanted!r} cannot be deployed to Triton; {' and '.join(FLAVORS)} can. Nothing was changed. "
            f"The flavors of {model.origin.uri} are: {has}."
        )
    if wanted is not None and wanted not in model.flavors:
        raise InvalidModel(
            f"{model.origin.uri} has no flavor {wanted!r}. Nothing was changed. Its flavors are: {has}. "
            "Leave the flavor out, or log the model with the one that you want."
        )
    chosen = wanted or next(
        (flavor for flavor in (triton.FLAVOR, onnx.FLAVOR) if flavor in model.flavors), None
    )
    if chosen is None:
        raise InvalidModel(
            f"{model.origin.uri} has no flavor that can be deployed to Triton ({', '.join(FLAVORS)}). Nothing was changed. "
            f"Its flavors are: {has}. Publish it as a Triton model directory: mlflow-triton publish."
        )
    return chosen
