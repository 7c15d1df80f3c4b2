"""A model repository in a local (or mounted) directory.

A model's directory appears, changes and disappears by one rename each. What is being made, and what
was taken away, lies in a *workspace* on the same filesystem, until the operation has ended; that of a
process which died tells what it had done, and is removed by the next operation.
"""

from __future__ import annotations

import ctypes
import errno
import hashlib
import logging
import os
import re
import shutil
import stat
import uuid
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING

from mlflow_triton.errors import DeploymentBusy, RepositoryError
from mlflow_triton.repository.claim import PREFIX, Change, Claim, Notice, claim, notices, sync_directory
from mlflow_triton.repository.layout import CONFIG_FILE, KEPT
from mlflow_triton.repository.record import RECORD_NAME, Record, digest
from mlflow_triton.small_file import read_small

if TYPE_CHECKING:
    from collections.abc import Iterator
    from contextlib import AbstractContextManager

__all__ = ["LocalRepository", "Workspace"]

log = logging.getLogger(__name__)

#: What this plugin puts beside or into a repository, but for the claims: repository, operation, what it is.
_OURS = re.compile(rf"{re.escape(PREFIX)}([0-9a-f]{{8}})-([0-9a-f]{{32}})(-.*)?")
PARALLEL_SYNCS = 16
RENAME_NOREPLACE, RENAME_EXCHANGE = 1, 2
AT_FDCWD = -100
#: Ends the name of what one that lacks them has moved aside.
ASIDE = "-aside"
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
        return _record(name, self.path / name)

    def kept(self, name: str) -> Record | None:
        """Return the record of the deployment that a deployment keeps; ``None``: it keeps none.

        Raises:
            RepositoryError: There is a record, and it is corrupt.
        """
        directory = self.path / name / KEPT
        if directory.is_symlink():
            return None
        try:
            return _record(name, directory)
        except RepositoryError as error:
            raise RepositoryError(
                f"{error.message.partition(' The model and')[0]} It is what {name!r} keeps for a rollback; {name!r} itself "
                "is untouched. An update with -C keep_previous=true keeps the present model in its place."
            ) from None

    def config_text(self, name: str) -> bytes:
        """Return a model's config.pbtxt; empty where it has none.

        Raises:
            RepositoryError: There is one, and it cannot be read.
        """
        path = self.path / name / CONFIG_FILE
        try:
            return read_small(path)
        except FileNotFoundError:
            return b""
        except OSError as error:
            raise RepositoryError(f"{path} cannot be read: {error.strerror}. Correct that first.") from None

    def config_texts(self) -> Iterator[tuple[str, bytes]]:
        """Yield name and config.pbtxt of every model, whoever put it there; what cannot be read is left out."""
        for name in sorted(entry.name for entry in self.path.iterdir() if not entry.name.startswith(PREFIX)):
            with suppress(OSError):
                yield name, read_small(self.path / name / CONFIG_FILE)

    def names(self) -> list[str]:
        """List every deployment, also one whose record is corrupt."""
        found = []
        for name in sorted(entry.name for entry in self.path.iterdir() if not entry.name.startswith(PREFIX)):
            try:
                deployed = self.record(name) is not None
            except RepositoryError:
                deployed = True
            if deployed:
                found.append(name)
        return found

    def records(self) -> Iterator[Record]:
        """Yield the record of every deployment, by name; a corrupt one is logged and left out."""
        for name in self.names():
            try:
                record = self.record(name)
            except RepositoryError as error:
                log.warning("%s", error.message)
                continue
            if record is not None:
                yield record

    def claim(self, name: str, operation: str, *, timeout: float) -> AbstractContextManager[Claim]:
        """Hold a deployment's name; see `mlflow_triton.repository.claim`.

        Raises:
            DeploymentBusy: It was still held by another operation when the time was over.
            RepositoryError: The repository cannot be written, or cannot lock files.
        """
        return claim(self.path, name, operation, timeout=timeout)

    def notices(self) -> list[Notice]:
        """Tell which names are held, and which changes died in their middle."""
        return notices(self.path)

    @contextmanager
    def workspace(self, claim: Claim) -> Iterator[Workspace]:
        """Make a private directory from which renames into the repository work; remove it at the end.

        It lies beside the repository if that is possible: inside, what a killed process leaves behind
        would be a model to Triton, and ``--load-model=*`` would refuse to start over it. While a change
        is interrupted, the workspace stays for the next operation.
        """
        try:
            directory = self._beside(claim.token) or self._inside(claim.token)
        except OSError as error:
            raise RepositoryError(
                f"The model repository {self.path} (from {self._source}) cannot be written: {error.strerror}. "
                "Nothing was changed."
            ) from None
        try:
            workspace = Workspace(directory, self.path)
            workspace.prepare()
            yield workspace
        finally:
            if not claim.in_doubt:
                _remove(directory)

    def sync(self, record: Record) -> None:
        """Bring a deployment's files to the disk, so that it outlives the machine's end as well."""
        root = self.path / record.name
        files = [root / RECORD_NAME, *(root / file for file in record.files)]
        files += (path for path in (root / KEPT).rglob("*") if path.is_file())
        # A filesystem writes its journal once for all that ask at the same time (400 files: 0.1 s; in turn: 1 s).
        with ThreadPoolExecutor(PARALLEL_SYNCS) as pool:
            list(pool.map(_sync_file, files))
        for directory in {parent for file in files for parent in file.parents if parent.is_relative_to(root)}:
            sync_directory(directory)

    def changed_files(self, record: Record, *, kept: bool = False) -> list[str]:
        """List what in a deployment's directory is not as published: changed, missing, or a new version.

        Everything was published with one modification time, but for linked files, whose own is on record; only
        files with another one are read.

        Args:
            record: Of the deployment.
            kept: Whether it is the one that the present one keeps.
        """
        root = self.path / record.name / (KEPT if kept else "")
        try:
            published = (root / RECORD_NAME).stat().st_mtime_ns
            present = {entry.name for entry in root.iterdir()}
        except FileNotFoundError:
            return sorted(record.files)
        changed = []
        for name, recorded in record.files.items():
            path = root / name
            try:
                time = record.times.get(name, published)
                status = path.stat()
                plain = stat.S_ISREG(status.st_mode)  # anything else may keep its reader waiting
                if not plain or (status.st_mtime_ns != time and digest(path) != recorded):
                    changed.append(name)
            except (FileNotFoundError, NotADirectoryError):
                changed.append(name)
        versions = {name for name in present if name.isascii() and name.isdigit()}
        return sorted(changed) + sorted(versions - set(map(str, record.versions)) if record.files else ())

    def is_aside(self, token: str) -> bool:
        """Say whether an operation died in the middle of an exchange, on a filesystem that does not do it at once."""
        return _aside(self.path, token) is not None

    def drop_aside(self, token: str) -> None:
        """Remove what such an operation had moved aside, and has replaced."""
        if aside := _aside(self.path, token):
            _remove(aside)

    def interrupted_workspace(self, token: str) -> Workspace | None:
        """Find what an operation that died has left; ``None``: it is gone, or out of this machine's sight."""
        name = self._workspace_name(token)
        for directory in (self._parent / name, *self.path.glob(f"{PREFIX}????????-{token}")):
            if directory.is_dir() and not directory.is_symlink():
                return Workspace(directory, self.path)
        return None

    def leftovers(self) -> list[Path]:
        """List what operations that died have left, and nobody needs any more.

        What belongs to an operation that lives, wherever it runs, is not among it, nor what an
        interrupted change needs.
        """
        # In this order: what was there before the claims are read was claimed before.
        found = [*self._ours(self._parent, self._tag), *self._ours(self.path, None)]
        needed = set()
        for notice in self.notices():
            if notice.held and notice.holder is None:
                return []  # it has not said yet what is its own
            if notice.held and notice.holder is not None:
                needed.add(notice.holder.token)
            if notice.change is not None:
                needed.add(notice.change.token)
        return [path for path, token in found if token not in needed]

    def collect(self) -> list[Path]:
        """Remove the leftovers, and the claims of processes that died before they changed anything."""
        removed = self.leftovers()
        for path in removed:
            log.info("Removing %s, which an operation that died has left.", path)
            _remove(path)
        for notice in self.notices():
            if not notice.held and notice.change is None:
                with suppress(DeploymentBusy), self.claim(notice.name, "collect", timeout=0):
                    log.info("Removing the claim on %r of an operation that died.", notice.name)
        return removed

    @property
    def _parent(self) -> Path:
        return self.path.resolve().parent

    @property
    def _tag(self) -> str:
        """Tells this repository's workspaces from those of another one in the same directory."""
        return hashlib.sha256(os.fsencode(self.path.resolve().name)).hexdigest()[:8]

    def _workspace_name(self, token: str) -> str:
        return f"{PREFIX}{self._tag}-{token}"

    def _ours(self, directory: Path, tag: str | None) -> Iterator[tuple[Path, str]]:
        try:
            names = [path.name for path in directory.iterdir()]
        except PermissionError:  # of the directory above: nothing of ours was put there
            return
        for name in names:
            match = _OURS.fullmatch(name)
            if match and tag in (None, match[1]):
                yield directory / name, match[2]

    def _inside(self, token: str) -> Path:
        directory = self.path / self._workspace_name(token)
        directory.mkdir(mode=0o700)
        return directory

    def _beside(self, token: str) -> Path | None:
        directory = self._parent / self._workspace_name(token)
        try:
            directory.mkdir(mode=0o700)
        except OSError:
            return None
        # A plain file, as Triton would take a directory for a model.
        made = directory / "crossing"
        crossed = self.path / f"{directory.name}-crossing"
        try:
            made.touch()
            made.rename(crossed)
            crossed.unlink()
        except OSError as error:
            shutil.rmtree(directory)
            # Another filesystem, or another mount of the same one: a rename cannot cross it.
            if error.errno == errno.EXDEV:
                return None
            raise
        return directory


class Workspace:
    """A private directory on the repository's filesystem, for one operation.

    Args:
        path: The directory.
        repository: The repository.

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

    def prepare(self) -> None:
        """Make the directories."""
        self.download.mkdir()
        self.model.mkdir()

    @contextmanager
    def probe(self) -> Iterator[str]:
        """Put an empty directory with an unguessable name into the repository, for as long as the block runs.

        A server whose index lists that name reads this very repository.
        """
        name = f"{self._path.name}-{uuid.uuid4().hex}"
        made = self._path / "probe"
        made.mkdir()
        try:
            made.rename(self._repository / name)
        except OSError:
            made.rmdir()
            raise
        try:
            yield name
        finally:
            (self._repository / name).rmdir()

    def publish(self, name: str) -> None:
        """Move the built model into the repository, where nothing of that name may be.

        Raises:
            FileExistsError: Something is there now.
        """
        _move_in(self.model, self._repository / name)

    def swap(self, name: str) -> None:
        """Exchange the built model and the one in the repository; doing it again undoes it."""
        target = self._repository / name
        if not _renameat2(self.model, target, RENAME_EXCHANGE):
            _exchange(self.model, target, aside=self._aside)

    def remove(self, name: str) -> None:
        """Move a model out of the repository; the workspace's end deletes it."""
        (self._repository / name).rename(self._removed)

    def discard(self) -> None:
        """Remove it, with what was taken out of the repository; what cannot be removed is a warning."""
        _remove(self._path)

    def put_back(self, change: Change, name: str, *, new_is_there: bool) -> None:
        """Undo on disk whatever part of a change has been done; doing it again changes nothing.

        Args:
            change: What was to be done.
            name: The deployment's.
            new_is_there: Whether the repository has the change's new model under that name.
        """
        if change.operation == "create":
            if new_is_there:
                self.remove(name)
        elif change.operation == "delete":
            if self._removed.exists() and not os.path.lexists(self._repository / name):
                _move_in(self._removed, self._repository / name)
        elif old := self._replaced(change, name):
            self._bring_back(old, name, new_is_there=new_is_there)

    def _replaced(self, change: Change, name: str) -> Path | None:
        """Find the model that a change has replaced, or was about to; ``None``: it is where it belongs."""
        places = [_aside(self._repository, change.token)]
        if self._path.name.endswith(change.token):  # and is not the workspace of whoever undoes it
            places.append(self.model)
        for path in places:
            if path is not None and os.path.lexists(path) and _identity(name, path) != change.new:
                return path
        return None

    def _bring_back(self, old: Path, name: str, *, new_is_there: bool) -> None:
        target = self._repository / name
        if new_is_there:
            if _renameat2(old, target, RENAME_EXCHANGE):
                return
            if old == self.model:
                old = old.rename(self._aside)
            target.rename(self._removed)
        if not os.path.lexists(target):
            _move_in(old, target)

    @property
    def _aside(self) -> Path:
        """Where an exchange by several renames puts a model: where another machine finds it if this one dies then."""
        return self._repository / f"{self._path.name}{ASIDE}"


def _sync_file(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _remove(path: Path) -> None:
    try:
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path, onerror=_unless_gone)
        else:
            path.unlink(missing_ok=True)
    except OSError as error:
        log.warning("%s could not be removed (%s): remove it by hand.", path, error)


def _unless_gone(_: object, __: str, error: tuple[type[BaseException], BaseException, object]) -> None:
    """Let another operation remove the same leftovers at the same time."""
    if not isinstance(error[1], FileNotFoundError):
        raise error[1]


def _record(name: str, directory: Path) -> Record | None:
    path = directory / RECORD_NAME
    try:
        text = read_small(path)
    except (FileNotFoundError, NotADirectoryError):
        return None
    except OSError as error:
        raise RepositoryError(
            f"The record of {name!r} cannot be read: {path}: {error.strerror}. The model is untouched. Correct that, or "
            f"replace the model: mlflow deployments create -t triton --name {name} -m URI -C adopt=true"
        ) from None
    return Record.from_json(text, name=name, path=str(path))


def _identity(name: str, directory: Path) -> str | None:
    """Return the id of the deployment that lies there; ``None``: what lies there is none."""
    try:
        record = _record(name, directory)
    except RepositoryError:
        return None
    return None if record is None else record.deployment_id


def _aside(repository: Path, token: str) -> Path | None:
    """Find what an operation had moved aside when it died in the middle of an exchange."""
    return next(repository.glob(f"{PREFIX}????????-{token}{ASIDE}"), None)


def _renameat2(source: Path, target: Path, flag: int) -> bool:
    """Call renameat2(2), which Python lacks; say whether there is one, on this system and filesystem."""
    libc = ctypes.CDLL(None, use_errno=True)
    with suppress(AttributeError):
        if libc.renameat2(AT_FDCWD, os.fsencode(source), AT_FDCWD, os.fsencode(target), flag) == 0:
            return True
        number = ctypes.get_errno()
        if number not in UNSUPPORTED:
            raise OSError(number, os.strerror(number), str(source), None, str(target))
    return False


def _move_in(source: Path, target: Path) -> None:
    """Rename a directory to where nothing may be."""
    if not _renameat2(source, target, RENAME_NOREPLACE):
        if os.path.lexists(target):
            raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), str(target))
        source.rename(target)


def _exchange(source: Path, target: Path, *, aside: Path) -> None:
    """Exchange two directories by three renames."""
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
