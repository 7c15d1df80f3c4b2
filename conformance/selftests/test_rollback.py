"""keep_previous, rollback and history: what an update has replaced comes back, by the same transaction."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from click.testing import CliRunner
from mlflow.deployments import get_deploy_client
from mlflow.exceptions import MlflowException

from mlflow_triton import cli, flavor
from mlflow_triton.errors import (
    DeploymentNotFound,
    InvalidOption,
    InvalidParameter,
    LoadFailed,
    RepositoryError,
)
from mlflow_triton.repository.claim import PREFIX
from mlflow_triton.repository.layout import KEPT
from mlflow_triton.repository.record import RECORD_NAME
from worlds import CONFIG, MODEL, World

if TYPE_CHECKING:
    from collections.abc import Iterator

pytestmark = pytest.mark.slow

KEEP = {"keep_previous": "true"}
BROKEN = """\
class TritonPythonModel:
    def initialize(self, args):
        raise ValueError("broken for good")
"""


class Stage:
    """A server with an empty repository, and models that tell by their answers which one they are."""

    def __init__(self, world: World, directory: Path) -> None:
        self.world = world
        self.root = world.repository
        self.directory = directory
        self.client: Any = get_deploy_client(world.target)

    def model(self, value: int, code: str = MODEL, weights: bytes = b"") -> str:
        """Save a model that answers a value, with a file of weights; return its path."""
        path = self.directory / f"model-{value}"
        if not path.exists():
            source = self.directory / f"source-{value}"
            (source / "1").mkdir(parents=True)
            (source / "1" / "model.py").write_text(code.replace("{value}", str(value)))
            (source / "1" / "weights").write_bytes(weights)
            (source / "config.pbtxt").write_text(CONFIG)
            flavor.save_model(source, path)
        return str(path)

    def run(self, *arguments: str) -> str:
        """Run a command; return what it prints."""
        result = CliRunner().invoke(cli.main, [arguments[0], "-t", self.world.target, *arguments[1:]])
        assert result.exit_code == 0, result.output
        return result.output

    def picture(self) -> dict[str, bytes]:
        """Every file there is in the repository, and whatever is ours beside it."""
        files = [path for path in self.root.rglob("*") if path.is_file() and "__pycache__" not in path.parts]
        beside = [path for path in self.root.parent.iterdir() if path.name.startswith(PREFIX)]
        return {str(path): path.read_bytes() for path in files} | {str(path): b"" for path in beside}


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    """A server of this module's own."""
    world = World(tmp_path_factory.mktemp("rollback"), {})
    world.start()
    yield world
    world.stop()


@pytest.fixture
def stage(world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Stage]:
    """The server with nothing in its repository, before and after."""
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path}/mlflow.db")
    stage = Stage(world, tmp_path)
    yield stage
    for path in list(stage.root.iterdir()):
        stage.client.delete_deployment(path.name)
    assert stage.picture() == {}


def test_there_and_back(stage: Stage) -> None:
    """A rollback serves the model that was replaced, although its files are older; another one, the later model."""
    uris = {value: stage.model(value, weights=bytes([value]) * 2_000_000) for value in (1, 2)}
    stage.client.create_deployment("m", uris[1], config=KEEP)
    inode = (stage.root / "m" / "1" / "weights").stat().st_ino
    written = stage.picture()
    stage.client.update_deployment("m", uris[2], config=KEEP)
    kept = stage.root / "m" / KEPT
    assert {str(Path(path)): content for path, content in stage.picture().items() if KEPT in path} == {
        path.replace("/m/", f"/m/{KEPT}/"): content for path, content in written.items()
    }
    again = (kept / "1" / "weights").stat()
    assert again.st_ino == inode or again.st_nlink == 1  # linked, or where the filesystem can, cloned
    files = stage.client.get_deployment("m")["files"]
    assert files.keys() == {"1/model.py", "1/weights", "config.pbtxt"}
    for answer in (1, 2):
        rolled = stage.client.rollback_deployment("m")
        assert stage.world.answers() == answer
        assert rolled["mlflow_model_uri"] == uris[answer]
        got = stage.client.get_deployment("m")
        assert (got["in_sync"], got["changed_files"]) == (True, [])
        assert got["deployment_id"] == rolled["deployment_id"]
        assert not (kept / KEPT).exists()
    assert got["files"] == files
    assert (stage.root / "m" / "1" / "weights").read_bytes() == bytes([2]) * 2_000_000
    history = stage.client.history("m")
    assert [(entry["operation"], entry["mlflow_model_uri"]) for entry in history] == [
        ("create", uris[1]),
        ("update", uris[2]),
        ("rollback", uris[1]),
        ("rollback", uris[2]),
    ]
    assert len({entry["deployment_id"] for entry in history}) == 4
    assert [entry["until"] for entry in history] == [*(entry["since"] for entry in history[1:]), None]
    assert [entry["kept"] for entry in history] == [False, False, True, False]


def test_the_commands(stage: Stage) -> None:
    """`mlflow-triton rollback` and `history` say what serves, and what served when."""
    stage.client.create_deployment("m", stage.model(1))
    stage.client.update_deployment("m", stage.model(2), config=KEEP)
    assert "model-1 again" in stage.run("rollback", "m", "-C", "smoke_test=true")
    assert stage.world.answers() == 1
    lines = stage.run("history", "m").splitlines()
    assert [line.split()[2] for line in lines] == ["create", "update", "rollback"]
    assert [line.endswith(" *") for line in lines] == [False, True, False]
    assert json.loads(stage.run("history", "m", "--json")) == stage.client.history("m")


def test_a_dry_run(stage: Stage) -> None:
    """A dry run says what a rollback would bring back, what an update would drop, and changes nothing; get and list agree."""
    stage.client.create_deployment("m", stage.model(1))
    assert "previous" not in stage.client.get_deployment("m")
    stage.client.update_deployment("m", stage.model(2), config=KEEP)
    before = stage.picture()
    first, second = stage.model(1), stage.model(2)
    plan = stage.client.rollback_deployment("m", {"dry_run": True})
    assert (plan["model"], plan["kept"]) == ([second, first], [first, second])
    assert plan["files"]["changed"].keys() == {"1/model.py", RECORD_NAME}
    head, *lines = stage.run("rollback", "m", "-C", "dry_run=true").splitlines()
    assert head == "Dry run: nothing was changed. Rollback of 'm' would mean:"
    assert f"  model: {second} -> {first}" in lines
    assert f"  kept for a rollback: {first} -> {second}" in lines
    for options, kept in (({}, None), (KEEP, second)):
        plan = stage.client.update_deployment("m", first, config={"dry_run": True, **options})
        assert plan["kept"] == [first, kept]
    assert stage.client.delete_deployment("m", {"dry_run": True})["kept"] == [first, None]
    assert stage.picture() == before
    (listed,) = stage.client.list_deployments()
    assert listed["previous"] == stage.client.get_deployment("m")["previous"]
    (was,) = (entry for entry in stage.client.history("m") if entry.pop("kept"))
    assert listed["previous"] == was
    assert f"kept for a rollback: {first}" in " ".join(stage.run("status", "m").split())


def test_a_rollback_that_fails(stage: Stage) -> None:
    """A kept model that Triton does not load any more changes nothing: the present one serves, and is on disk."""
    stage.client.create_deployment("m", stage.model(1))
    stage.client.update_deployment("m", stage.model(2), config=KEEP)
    (stage.root / "m" / KEPT / "1" / "model.py").write_text(BROKEN)
    before = stage.picture()
    with pytest.raises(LoadFailed, match=r"broken for good.*'m' still serves .*model-2, which is also still"):
        stage.client.rollback_deployment("m")
    assert stage.picture() == before
    assert stage.world.answers() == 2
    assert stage.client.get_deployment("m")["in_sync"] is True


def test_an_update_that_fails_keeps_what_was_kept(stage: Stage) -> None:
    """An update with keep_previous that is undone leaves the deployment that was kept before it."""
    stage.client.create_deployment("m", stage.model(1))
    stage.client.update_deployment("m", stage.model(2), config=KEEP)
    before = stage.picture()
    with pytest.raises(LoadFailed, match="broken for good"):
        stage.client.update_deployment("m", stage.model(3, BROKEN), config=KEEP)
    assert stage.picture() == before
    stage.client.rollback_deployment("m")
    assert stage.world.answers() == 1


def test_nothing_to_roll_back_to(stage: Stage) -> None:
    """Without a kept deployment, a rollback says so, and what to do; an update that keeps nothing drops what was kept."""
    with pytest.raises(DeploymentNotFound, match="There is no deployment 'm'"):
        stage.client.rollback_deployment("m")
    stage.client.create_deployment("m", stage.model(1), config=KEEP)
    before = stage.picture()
    with pytest.raises(DeploymentNotFound, match=r"'m' keeps no previous .*unchanged.*keep_previous=true"):
        stage.client.rollback_deployment("m")
    with pytest.raises(InvalidParameter, match=r"takes no options.*but load_timeout.*'version'"):
        stage.client.rollback_deployment("m", {"version": 2})
    with pytest.raises(InvalidOption, match="keep_previous does not go with adopt"):
        stage.client.create_deployment("m", stage.model(1), config=KEEP | {"adopt": "true"})
    assert stage.picture() == before
    stage.client.update_deployment("m", stage.model(2), config=KEEP)
    stage.client.update_deployment("m", None, config={"instance_count": 1})
    with pytest.raises(DeploymentNotFound, match="keeps no previous"):
        stage.client.rollback_deployment("m")


@pytest.mark.parametrize(
    ("config", "words"),
    [(["dry_run"], "-C dry_run is not NAME=VALUE"), (["dry_run=true", "dry_run=false"], "is there twice")],
)
def test_options_of_the_command(config: list[str], words: str) -> None:
    """An option without a value, or with two, is refused before anything is asked."""
    options = [part for item in config for part in ("-C", item)]
    for command in (["rollback", "m"], ["restore"]):
        result = CliRunner().invoke(cli.main, [*command, *options])
        assert result.exit_code == 2
        assert words in result.output


def test_options_alone(stage: Stage) -> None:
    """What an update with options alone replaces is kept as well, with its options; a rollback takes them back."""
    stage.client.create_deployment("m", stage.model(1), config={"instance_count": 2})
    stage.client.update_deployment("m", None, config=KEEP | {"warmup": 1})
    assert stage.client.get_deployment("m")["options"] == {"instance_count": 2, "warmup": 1}
    assert stage.client.rollback_deployment("m")["options"] == {"instance_count": 2}
    assert stage.world.answers() == 1


def test_a_deletion_takes_what_is_kept(stage: Stage) -> None:
    """What a deployment keeps goes with it; what another one of a similar name keeps stays."""
    for name in ("bigne", "bigne2"):
        stage.client.create_deployment(name, stage.model(1))
        stage.client.update_deployment(name, stage.model(2), config=KEEP)
    stage.client.delete_deployment("bigne")
    assert [path.name for path in stage.root.iterdir()] == ["bigne2"]
    assert [entry["name"] for entry in stage.client.list_deployments()] == ["bigne2"]
    stage.client.rollback_deployment("bigne2")
    assert stage.world.answers("bigne2") == 1


def test_a_kept_record_that_is_corrupt(stage: Stage) -> None:
    """A kept record that cannot be read stops a rollback, which says so, and nothing else."""
    stage.client.create_deployment("m", stage.model(1))
    stage.client.update_deployment("m", stage.model(2), config=KEEP)
    record = stage.root / "m" / KEPT / RECORD_NAME
    record.write_text("{")
    with pytest.raises(RepositoryError, match=rf"corrupt: .*{KEPT}.*'m' itself is untouched"):
        stage.client.rollback_deployment("m")
    assert stage.client.update_deployment("m", stage.model(1), config={"dry_run": True})["kept"] == [
        None,
        None,
    ]
    assert stage.client.get_deployment("m")["in_sync"] is True


def test_something_else_in_the_directory(stage: Stage) -> None:
    """A symbolic link in a deployment's directory cannot be kept: the update says so beforehand."""
    stage.client.create_deployment("m", stage.model(1))
    (stage.root / "m" / "link").symlink_to("/")
    with pytest.raises(
        MlflowException, match=r"cannot be kept: link is a symbolic link.*Nothing was changed"
    ):
        stage.client.update_deployment("m", stage.model(2), config=KEEP)
    assert stage.world.answers() == 1
