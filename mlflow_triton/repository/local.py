"""A model repository in a local (or mounted) directory.

A model's directory appears, changes and disappears by one rename each. What is being made, and what
was taken away, lies in a *workspace* on the same filesystem.
"""

from __future__ import annotations

import ctypes
import errno
import logging
import os
import shutil
import tempfile
import uuid
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING

from mlflow_triton.errors import RepositoryError
from mlflow_triton.repository.layout import CONFIG_FILE
from mlflow_triton.repository.record import RECORD_NAME, Record

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = ["LocalRepository", "Workspace"]

log = logging.getLogger(__name__)

#: Begins the name of everything this plugin puts into or beside a repository for a while. A deployment's
#: name cannot begin with a dot.
PREFIX = ".mlflow-triton-"
RENAME_NOREPLACE, RENAME_EXCHANGE = 1, 2
AT_FDCWD = -100
#: What a kernel or filesystem without these flags answers.
UNSUPPORTED = (errno.ENOSYS, errno.EINVAL, errno.ENOTSUP)


class LocalRepository:
    """The directory that Triton's ``--model-repository`` names, as this machine sees it.

    Args:
        path: The directory.
        source: Where the path comes from, for errors.
    """

    def __init__(self, path: str, source: str) -> None:
        self.path = Path(path).absolute()
        self._source = source

    def check(self) -> None:
        """Refuse a path that is no directory in which models can be placed.

        Raises:
            RepositoryError: It says what is wrong with the path.
        """
        what = f"The model repository {self.path} (from {self._source})"
        if not self.path.is_dir():
            kind = "is not a directory" if self.path.exists() else "does not exist on this machine"
            raise RepositoryError(
                f"{what} {kind}. Nothing was changed. Set TRITON_MODEL_REPO to the directory that Triton's "
                "--model-repository names, as mounted here."
            )
        if not os.access(self.path, os.W_OK | os.X_OK | os.R_OK):
            raise RepositoryError(
                f"{what} is not writable for this user. Nothing was changed. Ask for write permission, "
                "or mount the directory read-write."
            )

    def exists(self, name: str) -> bool:
        """Say whether anything lies under a model's name."""
        return os.path.lexists(self.path / name)

    def record(self, name: str) -> Record | None:
        """Return a deployment's record; ``None`` for a model that MLflow did not deploy, or none at all.

        Raises:
            RepositoryError: There is a record, and it is corrupt.
        """
        path = self.path / name / RECORD_NAME
        try:
            text = path.read_bytes()
        except (FileNotFoundError, NotADirectoryError):
            return None
        except OSError as error:
            raise RepositoryError(f"The record {path} cannot be read: {error.strerror}.") from None
        return Record.from_json(text, name=name, path=str(path))

    def config_text(self, name: str) -> bytes:
        """Return a model's config.pbtxt; empty where it has none."""
        try:
            return (self.path / name / CONFIG_FILE).read_bytes()
        except FileNotFoundError:
            return b""

    def records(self) -> Iterator[Record]:
        """Yield the record of every deployment, by name; a corrupt one is logged and left out."""
        for name in sorted(entry.name for entry in self.path.iterdir()):
            try:
                record = self.record(name)
            except RepositoryError as error:
                log.warning("%s", error.message)
                continue
            if record is not None:
                yield record

    @contextmanager
    def workspace(self) -> Iterator[Workspace]:
        """Make a private directory from which renames into the repository work; remove it at the end.

        It lies beside the repository if that is possible: inside, what a killed process leaves behind
        would be a model to Triton, and ``--load-model=*`` would refuse to start over it.
        """
        directory = self._workspace_directory()
        try:
            yield Workspace(directory, self.path)
        finally:
            _remove(directory)

    def _workspace_directory(self) -> Path:
        try:
            return self._beside() or Path(tempfile.mkdtemp(prefix=PREFIX, dir=self.path))
        except OSError as error:
            raise RepositoryError(
                f"The model repository {self.path} (from {self._source}) cannot be written: {error.strerror}. "
                "Nothing was changed."
            ) from None

    def _beside(self) -> Path | None:
        try:
            directory = Path(tempfile.mkdtemp(prefix=PREFIX, dir=self.path.resolve().parent))
        except OSError:
            return None
        try:
            with _probe(directory, self.path):
                return directory
        except OSError as error:
            directory.rmdir()
            # Another filesystem, or another mount of the same one: a rename cannot cross it.
            if error.errno == errno.EXDEV:
                return None
            raise


class Workspace:
    """A private directory on the repository's filesystem, for one operation.

    Attributes:
        download: Where MLflow downloads to; exists and is empty.
        model: Where the new model's directory is built; exists and is empty.
    """

    def __init__(self, path: Path, repository: Path) -> None:
        self._path = path
        self._repository = repository
        self._removed = path / "removed"
        self.download = path / "download"
        self.model = path / "model"
        self.download.mkdir()
        self.model.mkdir()

    @contextmanager
    def probe(self) -> Iterator[str]:
        """Put an empty directory with an unguessable name into the repository, for as long as the block runs.

        A server whose index lists that name reads this very repository.
        """
        with _probe(self._path, self._repository) as name:
            yield name

    def publish(self, name: str) -> None:
        """Move the built model into the repository, where nothing of that name may be.

        Raises:
            FileExistsError: Something is there now.
        """
        _rename(self.model, self._repository / name, RENAME_NOREPLACE)

    def swap(self, name: str) -> None:
        """Exchange the built model and the one in the repository; doing it again undoes it."""
        _rename(self.model, self._repository / name, RENAME_EXCHANGE)

    def remove(self, name: str) -> None:
        """Move a model out of the repository; the workspace's end deletes it."""
        (self._repository / name).rename(self._removed)


@contextmanager
def _probe(workspace: Path, repository: Path) -> Iterator[str]:
    name = f"{PREFIX}{uuid.uuid4().hex}"
    made = workspace / "probe"
    made.mkdir()
    try:
        made.rename(repository / name)
    except OSError:
        made.rmdir()
        raise
    try:
        yield name
    finally:
        (repository / name).rmdir()


def _remove(directory: Path) -> None:
    try:
        shutil.rmtree(directory)
    except OSError as error:
        log.warning("The directory %s could not be removed (%s): remove it by hand.", directory, error)


def _rename(source: Path, target: Path, flag: int) -> None:
    """Call renameat2(2), which Python lacks; on a filesystem without its flags, the nearest thing."""
    libc = ctypes.CDLL(None, use_errno=True)
    with suppress(AttributeError):
        if libc.renameat2(AT_FDCWD, os.fsencode(source), AT_FDCWD, os.fsencode(target), flag) == 0:
            return
        number = ctypes.get_errno()
        if number not in UNSUPPORTED:
            raise OSError(number, os.strerror(number), str(source), None, str(target))
    if flag == RENAME_NOREPLACE:
        if os.path.lexists(target):
            raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), str(target))
        source.rename(target)
        return
    aside = source.with_name(f"{source.name}-aside")
    target.rename(aside)
    try:
        source.rename(target)
    except OSError:
        aside.rename(target)
        raise
    try:
        aside.rename(source)
    except OSError:
        target.rename(source)
        aside.rename(target)
        raise
