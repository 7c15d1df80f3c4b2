"""A model's artifacts to a private directory, without copying large files where that is safe.

Where MLflow's artifacts lie on the filesystem of the destination, a large file is cloned (reflink), which
shares its blocks until one side is written; else, where MLflow never writes to it again, it is linked.
That is so for the artifacts of a logged model (MLflow 3): each has a directory of its own, which is filled
once. The artifacts of a run are not: logging under the same name again writes into the very files.
"""

from __future__ import annotations

import errno
import fcntl
import logging
import os
import re
import shutil
from pathlib import Path
from typing import Any

import mlflow
from mlflow.store.artifact.artifact_repository_registry import get_artifact_repository
from mlflow.store.artifact.local_artifact_repo import LocalArtifactRepository
from mlflow.store.artifact.models_artifact_repo import ModelsArtifactRepository

__all__ = ["LARGE", "download", "share"]

log = logging.getLogger(__name__)

#: Smaller files are copied: they take no space, and MLflow itself writes to some of them after a download.
LARGE = 1 << 20
#: linux/fs.h
FICLONE = 0x40049409
_WRITTEN_ONCE = re.compile(r"/models/m-[0-9a-f]+/artifacts/?")


def download(uri: str, destination: Path) -> Path:
    """Fetch an artifact URI into an empty directory; return where the artifacts are in it.

    Raises:
        Exception: Whatever MLflow and its stores raise.
    """
    if uri.startswith("models:"):
        repository: Any = get_artifact_repository(uri)
        inner = getattr(repository, "repo", None)
        kinds = (type(repository), type(inner))
        # Only where MLflow would do nothing but copy files; its own way for everything else.
        if kinds == (ModelsArtifactRepository, LocalArtifactRepository):
            repository.repo = _SparingRepository(repository.repo.artifact_uri)
            return Path(repository.download_artifacts("", str(destination)))
    return Path(mlflow.artifacts.download_artifacts(artifact_uri=uri, dst_path=str(destination)))


class _SparingRepository(LocalArtifactRepository):
    """Artifacts in a local directory, of which large files are not copied if need not be."""

    def _download_file(self, remote_file_path: str, local_path: str) -> None:
        root = Path(self.artifact_dir)
        source = root / remote_file_path
        plain = source.is_file() and not source.is_symlink()
        if plain and source.resolve().is_relative_to(root.resolve()) and source.stat().st_size >= LARGE:
            once = _WRITTEN_ONCE.search(f"{root}/") is not None
            if share(source, Path(local_path), link=once):
                return
            log.info(
                "Copying %s: its filesystem cannot clone files into %s, and %s.",
                source,
                Path(local_path).parent,
                "it cannot be linked there"
                if once
                else "MLflow may write to it again, so that it is not linked",
            )
        super()._download_file(remote_file_path, local_path)  # type: ignore[no-untyped-call] # MLflow's


def share(source: Path, target: Path, *, link: bool) -> bool:
    """Clone a file, or link it if that is allowed; say whether it is there now."""
    try:
        with source.open("rb") as reading, target.open("wb") as writing:
            fcntl.ioctl(writing.fileno(), FICLONE, reading.fileno())
        shutil.copymode(source, target)
        return True
    except OSError as error:
        target.unlink(missing_ok=True)
        if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EIO):
            raise
    if not link:
        return False
    try:
        os.link(source, target)
    except OSError:
        return False
    return True
