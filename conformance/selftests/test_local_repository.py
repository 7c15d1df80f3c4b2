from __future__ import annotations

import ctypes
import errno
import logging
import os
import re
import shutil
import subprocess
import threading
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from mlflow_triton.errors import RepositoryError
from mlflow_triton.repository.local import LocalRepository, Workspace
from mlflow_triton.repository.record import RECORD_NAME, Record

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

SOURCE = "environment variable TRITON_MODEL_REPO"


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """A model repository with one model in it, and a parent of its own."""
    path = tmp_path / "parent" / "models"
    (path / "foreign" / "1").mkdir(parents=True)
    (path / "foreign" / "config.pbtxt").write_text("theirs")
    return path


@pytest.fixture
def repository(root: Path) -> LocalRepository:
    """The same as the plugin sees it."""
    return LocalRepository(str(root), SOURCE)


@pytest.fixture(params=["renameat2", "ENOSYS", "EINVAL", "ENOTSUP", "no renameat2"])
def kernel(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """A kernel and filesystem with renameat2's flags, and the ways of lacking them."""
    if request.param == "no renameat2":

        class Libc:
            """A C library from before 2018."""

        monkeypatch.setattr(ctypes, "CDLL", lambda *_, **__: Libc())
    elif request.param != "renameat2":
        answer_renameat2(monkeypatch, getattr(errno, request.param))
    return str(request.param)


def answer_renameat2(monkeypatch: pytest.MonkeyPatch, number: int) -> None:
    """Let renameat2 fail with an error number."""

    class Libc:
        @staticmethod
        def renameat2(*_: Any) -> int:
            ctypes.set_errno(number)
            return -1

    monkeypatch.setattr(ctypes, "CDLL", lambda *_, **__: Libc)


@contextmanager
def workspace_of(repository: LocalRepository) -> Iterator[Workspace]:
    """Give a workspace, with the claim that it needs."""
    with repository.claim("m", "test", timeout=5) as claim, repository.workspace(claim) as workspace:
        yield workspace


def names(path: Path) -> list[str]:
    """Return the names in a directory, in order, without the claim that a workspace needs."""
    return sorted(item.name for item in path.iterdir() if item.name != ".mlflow-triton-m.lock")


def build(workspace: Workspace, text: str) -> None:
    """Build a model of two files."""
    (workspace.model / "1").mkdir()
    (workspace.model / "1" / "model.py").write_text(text)
    (workspace.model / "config.pbtxt").write_text(text)


def tree(path: Path) -> dict[str, str | None]:
    """Return every path below a directory, with the text of files."""
    return {
        str(item.relative_to(path)): item.read_text() if item.is_file() else None for item in path.rglob("*")
    }


def model(text: str) -> dict[str, str | None]:
    """Return the tree of what `build` makes."""
    return {"1": None, "1/model.py": text, "config.pbtxt": text}


def test_publish_moves_the_model_in(repository: LocalRepository, root: Path, kernel: str) -> None:
    """A published model is in the repository whole, and nothing else is left anywhere."""
    before = tree(root)
    with workspace_of(repository) as workspace:
        assert (list(workspace.download.iterdir()), list(workspace.model.iterdir())) == ([], [])
        build(workspace, "new")
        workspace.publish("m")
    assert tree(root / "m") == model("new"), kernel
    assert tree(root) == {**before, "m": None, **{f"m/{path}": text for path, text in model("new").items()}}
    assert names(root.parent) == ["models"]


@pytest.mark.parametrize("taken", ["directory", "empty directory", "file", "broken link"])
def test_publish_never_replaces(repository: LocalRepository, root: Path, kernel: str, taken: str) -> None:
    """What has the name already stays as it is, whatever it is, and the error is FileExistsError."""
    if taken == "file":
        (root / "m").write_text("theirs")
    elif taken == "broken link":
        (root / "m").symlink_to("nowhere")
    else:
        (root / "m").mkdir()
    if taken == "directory":
        (root / "m" / "x").write_text("theirs")
    before = tree(root)
    with workspace_of(repository) as workspace:
        build(workspace, "new")
        with pytest.raises(FileExistsError) as caught:
            workspace.publish("m")
        assert str(root / "m") in (caught.value.filename, caught.value.filename2), kernel
        assert tree(workspace.model) == model("new")
    assert tree(root) == before
    assert names(root.parent) == ["models"]


def test_swap_exchanges_and_undoes(repository: LocalRepository, root: Path, kernel: str) -> None:
    """A swap puts the new model in place and keeps the old one; a second swap undoes it."""
    with workspace_of(repository) as workspace:
        build(workspace, "old")
        workspace.publish("m")
    with workspace_of(repository) as workspace:
        build(workspace, "new")
        workspace.swap("m")
        assert (tree(root / "m"), tree(workspace.model)) == (model("new"), model("old")), kernel
        workspace.swap("m")
        assert (tree(root / "m"), tree(workspace.model)) == (model("old"), model("new"))
        workspace.swap("m")
    assert tree(root / "m") == model("new")
    assert names(root) == ["foreign", "m"]
    assert names(root.parent) == ["models"]


def test_swap_of_what_is_gone(repository: LocalRepository, root: Path, kernel: str) -> None:
    """A swap with a model that somebody removed is an error that leaves both places as they were."""
    before = tree(root)
    with workspace_of(repository) as workspace:
        build(workspace, "new")
        with pytest.raises(FileNotFoundError):
            workspace.swap("m")
        assert tree(workspace.model) == model("new"), kernel
    assert tree(root) == before
    assert names(root.parent) == ["models"]


def test_a_fallback_swap_that_fails_half_way_is_undone(
    repository: LocalRepository, root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where two renames stand for one and the second fails, the old model is put back."""
    with workspace_of(repository) as workspace:
        build(workspace, "old")
        workspace.publish("m")
    answer_renameat2(monkeypatch, errno.EINVAL)
    rename = Path.rename

    def full(path: Path, target: Path) -> Path:
        if path.name == "model":
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return rename(path, target)

    with workspace_of(repository) as workspace:
        build(workspace, "new")
        with monkeypatch.context() as patch:
            patch.setattr(Path, "rename", full)
            with pytest.raises(OSError, match="No space left"):
                workspace.swap("m")
        assert tree(root / "m") == model("old")
        assert tree(workspace.model) == model("new")
    assert tree(root / "m") == model("old")


@pytest.mark.parametrize("number", [errno.EPERM, errno.EIO, errno.ENOSPC, errno.EROFS])
def test_other_failures_of_a_rename_are_told(
    repository: LocalRepository, root: Path, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    """A rename that fails for another reason than missing flags raises it, and nothing is tried instead."""
    before = tree(root)
    answer_renameat2(monkeypatch, number)
    with workspace_of(repository) as workspace:
        build(workspace, "new")
        for move in (workspace.publish, workspace.swap):
            with pytest.raises(OSError, match=re.escape(os.strerror(number))) as caught:
                move("foreign")
            assert caught.value.errno == number
    assert tree(root) == before


def test_a_swap_is_never_half_done(repository: LocalRepository, root: Path) -> None:
    """A reader who looks all the time finds the old model or the new one, whole, at every moment."""
    with workspace_of(repository) as workspace:
        build(workspace, "old")
        workspace.publish("m")
    found: set[str] = set()
    stop = threading.Event()

    def look() -> None:
        while not stop.is_set():
            try:
                found.add((root / "m" / "config.pbtxt").read_text())
            except OSError as error:  # noqa: PERF203 - any look may fail
                found.add(repr(error))

    reader = threading.Thread(target=look)
    with workspace_of(repository) as workspace:
        build(workspace, "new")
        reader.start()
        for turn in range(50_000):
            workspace.swap("m")
            if turn >= 500 and len(found) >= 2:
                break
        stop.set()
        reader.join()
    assert found == {"old", "new"}


def test_remove_takes_the_model_away(repository: LocalRepository, root: Path) -> None:
    """A removed model is out of the repository at once, and gone with the workspace."""
    with workspace_of(repository) as workspace:
        build(workspace, "m")
        workspace.publish("m")
        workspace.remove("m")
        assert names(root) == ["foreign"]
    assert names(root.parent) == ["models"]


def test_the_probe_is_there_for_a_moment(repository: LocalRepository, root: Path) -> None:
    """A probe is an empty directory in the repository with a new name each time, gone after the block."""
    seen = set()
    with workspace_of(repository) as workspace:
        for _ in range(2):
            with workspace.probe() as name:
                assert re.fullmatch(r"\.mlflow-triton-[0-9a-f]{8}-[0-9a-f]{32}-[0-9a-f]{32}", name)
                assert list((root / name).iterdir()) == []
                seen.add(name)
            assert names(root) == ["foreign"]
        with pytest.raises(ZeroDivisionError), workspace.probe():
            raise ZeroDivisionError
    assert len(seen) == 2
    assert names(root) == ["foreign"]


def test_the_workspace_lies_beside_the_repository(repository: LocalRepository, root: Path) -> None:
    """While an operation runs, its files are in a hidden directory beside the repository, not in it."""
    with workspace_of(repository):
        assert names(root) == ["foreign"]
        beside = [name for name in names(root.parent) if name != "models"]
        assert [name.startswith(".mlflow-triton-") for name in beside] == [True]
        assert (root.parent / beside[0]).stat().st_mode & 0o077 == 0
    assert names(root.parent) == ["models"]


def test_the_workspace_of_a_linked_repository(root: Path, tmp_path: Path) -> None:
    """The workspace of a repository that is a symbolic link lies beside the directory that it links to."""
    link = tmp_path / "link"
    link.symlink_to(root)
    with workspace_of(LocalRepository(str(link), SOURCE)) as workspace:
        assert len(names(root.parent)) == 2
        build(workspace, "new")
        workspace.publish("m")
    assert tree(root / "m") == model("new")
    assert names(root.parent) == ["models"]
    assert names(tmp_path) == ["link", "parent"]


def within(path: Path, root: Path) -> bool:
    """Say whether a path lies below a directory."""
    return root in Path(path).parents


@pytest.fixture(params=["mount", "renames that do not cross", "parent not writable"])
def cut_off(request: pytest.FixtureRequest, root: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """A repository into which no rename leads from beside it."""
    if request.param == "mount":
        done = subprocess.run(
            ["/bin/mount", "-t", "tmpfs", "tmpfs", str(root)], capture_output=True, check=False
        )
        if done.returncode:
            pytest.skip("mounting needs a privileged user")
        try:
            (root / "foreign").mkdir()
            yield request.param
        finally:
            subprocess.run(["/bin/umount", str(root)], check=True)
        return
    if request.param == "parent not writable":
        mkdir = Path.mkdir

        def refuse(path: Path, mode: int = 0o777) -> None:
            if path.parent == root.parent:
                raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))
            mkdir(path, mode)

        monkeypatch.setattr(Path, "mkdir", refuse)
    else:
        rename = Path.rename

        def cross(path: Path, target: Path) -> Path:
            if within(path, root) != within(target, root):
                raise OSError(errno.EXDEV, os.strerror(errno.EXDEV))
            return rename(path, target)

        monkeypatch.setattr(Path, "rename", cross)
    yield request.param


def test_the_workspace_lies_inside_where_it_must(
    repository: LocalRepository, root: Path, cut_off: str
) -> None:
    """Where no rename leads in from beside, the workspace is a hidden directory inside, and all works."""
    with workspace_of(repository) as workspace:
        assert names(root.parent) == ["models"], cut_off
        inside = [name for name in names(root) if name != "foreign"]
        assert [name.startswith(".mlflow-triton-") for name in inside] == [True]
        assert list(repository.records()) == []
        build(workspace, "old")
        workspace.publish("m")
    with workspace_of(repository) as workspace:
        build(workspace, "new")
        workspace.swap("m")
        assert tree(workspace.model) == model("old")
    assert tree(root / "m") == model("new")
    with workspace_of(repository) as workspace:
        with workspace.probe() as probe:
            assert (root / probe).is_dir()
        workspace.remove("m")
    assert names(root) == ["foreign"]
    assert names(root.parent) == ["models"]


def test_a_workspace_goes_when_the_work_fails(repository: LocalRepository, root: Path) -> None:
    """An exception, an interrupt included, takes the workspace and all that is in it away."""
    for error in (ValueError, KeyboardInterrupt):
        with pytest.raises(error), workspace_of(repository) as workspace:  # noqa: PT012 - the workspace, not one call
            build(workspace, "new")
            raise error
    assert names(root) == ["foreign"]
    assert names(root.parent) == ["models"]


def test_a_workspace_that_cannot_be_removed_is_named(
    repository: LocalRepository, root: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """A workspace that cannot be removed is a warning with its path; the work that was done stands."""

    def refuse(path: Path, **_: Any) -> None:
        raise OSError(errno.EBUSY, os.strerror(errno.EBUSY), str(path))

    with monkeypatch.context() as patch, workspace_of(repository) as workspace:
        build(workspace, "new")
        workspace.publish("m")
        patch.setattr(shutil, "rmtree", refuse)
        left = workspace.model.parent
    shutil.rmtree(left, ignore_errors=True)
    assert (root / "m" / "config.pbtxt").exists()
    assert [record.levelno for record in caplog.records] == [logging.WARNING]
    assert str(left) in caplog.text
    assert "remove it by hand" in caplog.text


@pytest.mark.parametrize(
    ("number", "call"), [(errno.EACCES, "mkdir"), (errno.ENOSPC, "mkdir"), (errno.EACCES, "rename")]
)
def test_a_repository_that_cannot_be_written(
    repository: LocalRepository, root: Path, monkeypatch: pytest.MonkeyPatch, number: int, call: str
) -> None:
    """Where no workspace can be made, the error has the path, its source and the reason; nothing is left."""

    def refuse(*_: Any, **__: Any) -> Any:
        raise OSError(number, os.strerror(number))

    before = tree(root)
    with monkeypatch.context() as patch:
        patch.setattr(Path, call, refuse)
        with pytest.raises(RepositoryError) as caught, workspace_of(repository):
            pytest.fail("there is no workspace")
    for words in (str(root), SOURCE, os.strerror(number), "Nothing was changed"):
        assert words in caught.value.message
    assert tree(root) == before
    assert names(root.parent) == ["models"]


def without(root: Path) -> None:
    """Take the repository away."""
    shutil.rmtree(root)


def as_file(root: Path) -> None:
    """Put a file in its place."""
    shutil.rmtree(root)
    root.write_text("")


@pytest.mark.parametrize(
    ("change", "words"), [(without, "does not exist on this machine"), (as_file, "is not a directory")]
)
def test_a_path_that_is_no_repository(
    repository: LocalRepository, root: Path, change: Callable[[Path], None], words: str
) -> None:
    """A path that is no directory is refused with its source and what to set."""
    repository.check()
    change(root)
    with pytest.raises(RepositoryError) as caught:
        repository.check()
    assert (
        f"The model repository {root} (from {SOURCE}) {words}. Nothing was changed." in caught.value.message
    )
    assert "Set TRITON_MODEL_REPO" in caught.value.message


@contextmanager
def as_nobody() -> Iterator[None]:
    """Run a block without the rights of root."""
    os.setegid(65534)
    os.seteuid(65534)
    try:
        yield
    finally:
        os.seteuid(0)
        os.setegid(0)


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become another user")
def test_a_repository_of_somebody_else(tmp_path_factory: pytest.TempPathFactory) -> None:
    """A directory that this user cannot write is refused when a workspace is asked for, and is as it was."""
    top = tmp_path_factory.mktemp("open")
    for path in (top, *top.parents):
        if path.is_relative_to("/tmp") and path != Path("/tmp"):  # noqa: S108 - only to look
            path.chmod(path.stat().st_mode | 0o011)
    root = top / "parent" / "models"
    root.mkdir(parents=True)
    repository = LocalRepository(str(root), SOURCE)
    with as_nobody(), pytest.raises(RepositoryError, match="cannot be written: Permission denied"):  # noqa: SIM117
        with workspace_of(repository):
            pytest.fail("there is no workspace")
    (root.parent).chmod(0o777)
    with as_nobody(), pytest.raises(RepositoryError, match="cannot be written: Permission denied"):  # noqa: SIM117
        with workspace_of(repository):
            pytest.fail("there is no workspace")
    assert names(root) == []
    assert names(root.parent) == ["models"]


def test_check_asks_for_the_right_to_write(
    repository: LocalRepository, root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A directory that the system calls not writable is refused, with what to ask for."""
    monkeypatch.setattr(os, "access", lambda path, mode: Path(path) != root or not mode & os.W_OK)
    with pytest.raises(RepositoryError, match=r"is not writable for this user\. Nothing was changed"):
        repository.check()


# --- records ---


def put(root: Path, name: str, text: str | None = None) -> None:
    """Put a deployment into the repository."""
    (root / name).mkdir(exist_ok=True)
    record = Record(name, str(root / name), f"models:/{name}/1", "onnx")
    (root / name / RECORD_NAME).write_text(record.to_json() if text is None else text)


def test_records_are_those_of_mlflows_deployments(
    repository: LocalRepository, root: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Records come by name; foreign models, files and broken links have none; a corrupt one is a warning."""
    for name in ("b", "a", "B"):
        put(root, name)
    put(root, "corrupt", "{")
    put(root, "moved", Record("other", "", "", "").to_json())
    (root / "directory" / RECORD_NAME).mkdir(parents=True)
    (root / "file").write_text("")
    (root / "broken").symlink_to("nowhere")
    (root / "loop").symlink_to("loop")
    put(tmp_path, "linked")
    (root / "linked").symlink_to(tmp_path / "linked")
    assert [record.name for record in repository.records()] == ["B", "a", "b", "linked"]
    assert len(caplog.records) == 4
    for name in ("corrupt", "moved", "directory", "loop"):
        assert str(root / name / RECORD_NAME) in caplog.text


def test_one_record(repository: LocalRepository, root: Path) -> None:
    """A record is read by name; without one the answer is None, and a corrupt one is an error."""
    put(root, "m")
    put(root, "corrupt", "[]")
    found = repository.record("m")
    assert found is not None
    assert found.mlflow_model_uri == "models:/m/1"
    assert repository.record("foreign") is None
    assert repository.record("nowhere") is None
    with pytest.raises(RepositoryError, match="corrupt"):
        repository.record("corrupt")


def test_a_file_without_end_is_not_read(repository: LocalRepository, root: Path) -> None:
    """A record and a configuration of any size are told, and do not fill the memory."""
    (root / "m").mkdir()
    for name in ("config.pbtxt", RECORD_NAME):
        (root / "m" / name).touch()
        os.truncate(root / "m" / name, 1 << 40)
    with pytest.raises(RepositoryError, match=rf"{RECORD_NAME}: it is larger than 16 MiB.*adopt=true"):
        repository.record("m")
    with pytest.raises(RepositoryError, match=r"config\.pbtxt cannot be read: it is larger"):
        repository.config_text("m")
    assert "m" not in dict(repository.config_texts())


def test_a_pipe_keeps_nobody_waiting(repository: LocalRepository, root: Path) -> None:
    """A pipe in place of a record, a configuration or a published file is told, and not waited for."""
    for name in ("m", "other"):
        (root / name).mkdir()
        os.mkfifo(root / name / "config.pbtxt")
    os.mkfifo(root / "other" / RECORD_NAME)
    put(root, "m", Record("m", "", "", "", files={"config.pbtxt": "sha256:0"}).to_json())
    with pytest.raises(RepositoryError, match="is not a plain file"):
        repository.record("other")
    record = repository.record("m")
    assert record is not None
    assert repository.changed_files(record) == ["config.pbtxt"]
    assert [name for name, _ in repository.config_texts()] == ["foreign"]


def test_what_has_a_name(repository: LocalRepository, root: Path) -> None:
    """A name is taken by whatever lies there, a broken link included."""
    (root / "broken").symlink_to("nowhere")
    (root / "file").write_text("")
    assert [repository.exists(name) for name in ("foreign", "broken", "file", "free")] == [True] * 3 + [False]


def test_the_config_text(repository: LocalRepository, root: Path) -> None:
    """A model's config.pbtxt is read as it is; a model without one has an empty text."""
    (root / "bare").mkdir()
    assert repository.config_text("foreign") == b"theirs"
    assert repository.config_text("bare") == b""


def test_a_relative_path_is_made_absolute(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A relative path means the directory of the moment at which the repository was named."""
    monkeypatch.chdir(root.parent)
    repository = LocalRepository("models", SOURCE)
    monkeypatch.chdir("/")
    assert repository.path == root
