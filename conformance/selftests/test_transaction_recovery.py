"""What is said of operations that died, restoring after a restart, the response cache, and the truth of get."""

from __future__ import annotations

import fcntl
import os
import signal
import subprocess
import sys
import time
from typing import TYPE_CHECKING, Any
from urllib.parse import urlencode

import mlflow
import numpy as np
import pytest
from click.testing import CliRunner
from mlflow.deployments import get_deploy_client

from mlflow_triton import cli, flavor
from mlflow_triton.doctor import diagnose
from mlflow_triton.embedded import EmbeddedTriton
from mlflow_triton.errors import DeploymentBusy, DeploymentNotFound, InvalidModel, ServerTimeout
from mlflow_triton.models.download import FICLONE
from mlflow_triton.repository.claim import PREFIX
from mlflow_triton.settings import Settings
from mlflow_triton_conformance import models

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

pytestmark = pytest.mark.slow

MLFLOW_3 = int(mlflow.__version__.partition(".")[0]) >= 3
NAMED = {"name" if MLFLOW_3 else "artifact_path": "model"}

#: Another process that does one thing to the deployment m, and is killed when the server loads it.
CLIENT = """\
import sys
from mlflow.deployments import get_deploy_client
getattr(get_deploy_client(sys.argv[1]), sys.argv[2])(*sys.argv[3:])
"""
HANGING = """\
import time
class TritonPythonModel:
    def initialize(self, args):
        time.sleep({seconds})
        {then}
    def execute(self, requests):
        return []
"""


class Place:
    """A server of the test's own, that can be restarted, and its clients."""

    def __init__(self, directory: Path, arguments: tuple[str, ...]) -> None:
        self.directory = directory
        self.repository = directory / "repository"
        self.repository.mkdir()
        self.arguments = arguments
        self.start()

    def start(self) -> None:
        """Start the server, or another one."""
        self.server = EmbeddedTriton(self.repository, arguments=self.arguments)
        self.server.start()
        query = urlencode({"model_repository": self.repository, "grpc_url": self.server.grpc_url})
        self.target = f"{self.server.http_url.replace('http://', 'triton://')}?{query}"
        self.client: Any = get_deploy_client(self.target)

    def model(self, value: float, config: str = "") -> str:
        """Save an ONNX model that adds a value; return its path."""
        path = self.directory / f"model-{time.monotonic_ns()}"
        mlflow.onnx.save_model(models.constant(value), str(path), pip_requirements=["onnx"])
        if config:
            (path / "config.pbtxt").write_text(config)
        return str(path)

    def slow_model(self, seconds: float, then: str = "pass") -> str:
        """Save a model that takes its time to load, and may then fail; return its path."""
        source = models.write_python(self.directory / f"slow-{time.monotonic_ns()}", {1: 1})
        (source / "1" / "model.py").write_text(HANGING.format(seconds=seconds, then=then))
        path = self.directory / f"model-{time.monotonic_ns()}"
        flavor.save_model(source, path)
        return str(path)

    def other_process(self, verb: str, *arguments: str) -> subprocess.Popen[bytes]:
        """Begin something in another process; return when the server has been told to load m."""
        seen = self.server.log().count("loading: m:")
        process = subprocess.Popen([sys.executable, "-c", CLIENT, self.target, verb, *arguments])
        deadline = time.monotonic() + 60
        while self.server.log().count("loading: m:") == seen:
            assert time.monotonic() < deadline
            assert process.poll() is None
            time.sleep(0.02)
        return process

    def killed(self, verb: str, *arguments: str) -> None:
        """Let another process be killed in the middle of a load of m."""
        process = self.other_process(verb, *arguments)
        process.kill()
        process.wait()

    def answer(self, value: float = 1.0) -> float:
        """Ask the deployment m."""
        return float(self.client.predict("m", {"x": [[value]]})["outputs"]["y"][0, 0])

    def leftovers(self) -> list[str]:
        """What is ours in the repository and beside it."""
        found = [*self.repository.iterdir(), *self.directory.iterdir()]
        return [path.name for path in found if path.name.startswith(PREFIX)]

    def doctor(self, *arguments: str) -> tuple[str, str]:
        """Run the doctor; return level and text of the line about operations."""
        result = CliRunner().invoke(cli.main, ["doctor", "-t", self.target, *arguments])
        (line,) = [line for line in result.output.splitlines() if " operations: " in line]
        level, _, text = line.partition(" operations: ")
        return level.strip(), text


@pytest.fixture
def place(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Place]:
    """A server of the test's own; arguments for it come with an indirect parameter."""
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path}/mlflow.db")
    monkeypatch.chdir(tmp_path)  # where MLflow keeps the artifacts of such a store
    it = Place(tmp_path, getattr(request, "param", ()))
    yield it
    it.server.stop()


def test_an_update_under_way_is_shown_and_keeps_others_out(place: Place) -> None:
    """While a process updates a deployment, get says so, and another one is told who has it and changes nothing."""
    place.client.create_deployment("m", place.model(1.0))
    process = place.other_process("update_deployment", "m", place.slow_model(30))
    try:
        entry = place.client.get_deployment("m")
        assert f"update by process {process.pid}" in entry["operation"]
        assert "which is under way" in entry["operation"]
        for verb, arguments in (
            ("update_deployment", ("m", place.model(2.0))),
            ("delete_deployment", ("m",)),
        ):
            with pytest.raises(DeploymentBusy, match=f"update by process {process.pid}"):
                getattr(place.client, verb)(*arguments, config={"lock_timeout": "0.3"})
        assert place.doctor("--repair") == ("ok", "none was interrupted, nothing was left behind")
        assert place.answer() == 2.0
    finally:
        process.kill()
        process.wait()


def test_an_interrupted_update_is_told_and_repaired(place: Place) -> None:
    """An update whose client was killed is shown by list, get and the doctor, whose --repair undoes it and says so."""
    place.client.create_deployment("m", old := place.model(1.0))
    place.killed("update_deployment", "m", place.slow_model(5, "raise SystemError"))
    entry = place.client.get_deployment("m")
    assert "which was interrupted" in entry["operation"]
    assert entry["in_sync"] is False
    (listed,) = place.client.list_deployments()
    assert listed["operation"] == entry["operation"]
    level, text = place.doctor()
    assert level == "warning"
    assert "of 'm' was interrupted" in text
    level, text = place.doctor("--repair")
    assert (level, "has been undone" in text) == ("ok", True)
    assert place.leftovers() == []
    entry = place.client.get_deployment("m")
    assert (entry["mlflow_model_uri"], entry["in_sync"], "operation" in entry) == (old, True, False)
    assert place.answer() == 2.0


def test_an_update_that_ended_well_without_its_client_is_finished(place: Place) -> None:
    """An update whose client was killed, and which the server completed, is finished: what serves is not taken away."""
    place.client.create_deployment("m", place.model(1.0))
    process = place.other_process("update_deployment", "m", new := place.model(2.0))
    os.kill(process.pid, signal.SIGSTOP)
    deadline = time.monotonic() + 60
    while place.answer() != 3.0:
        assert time.monotonic() < deadline
    process.kill()
    process.wait()
    level, text = place.doctor("--repair")
    assert (level, "has been finished" in text) == ("ok", True)
    assert place.answer() == 3.0
    assert place.client.get_deployment("m")["mlflow_model_uri"] == new
    assert place.client.get_deployment("m")["in_sync"] is True
    assert place.leftovers() == []


@pytest.mark.parametrize("place", [("--load-model=*",)], indirect=True)
def test_the_disk_is_repaired_without_the_server(place: Place) -> None:
    """With client and server dead in the middle of a create, the doctor clears the disk, and the server starts."""
    place.client.create_deployment("other", place.model(1.0))
    place.killed("create_deployment", "m", place.slow_model(60))
    os.kill(place.server.pid, signal.SIGKILL)
    place.server.stop()
    level, text = place.doctor("--repair")
    assert level == "failed"
    assert "could not be undone yet" in text
    assert [path.name for path in place.repository.iterdir() if path.is_dir()] == ["other"]
    place.start()
    with pytest.raises(DeploymentNotFound, match="interrupted"):
        place.client.get_deployment("m")
    place.client.create_deployment("m", place.model(1.0))
    assert place.answer() == 2.0
    assert place.leftovers() == []


def test_a_load_that_outlasts_everything_is_not_forgotten(place: Place) -> None:
    """A model whose load and unload outlast their time is said to be pending, get shows it, the next operation ends it."""
    place.client.create_deployment("m", place.model(1.0))
    process = place.other_process("update_deployment", "m", place.slow_model(6))
    process.kill()
    process.wait()
    with pytest.raises(
        ServerTimeout, match=r"neither finished nor undone yet: .*did not load 'm' within 1 s"
    ):
        get_deploy_client(f"{place.target}&load_timeout=1").update_deployment("m", place.model(2.0))
    assert "which was interrupted" in place.client.get_deployment("m")["operation"]
    place.client.update_deployment("m", place.model(3.0))
    assert place.answer() == 4.0
    assert place.leftovers() == []


def test_restore(place: Place) -> None:
    """After a restart all deployments are loaded again with their ids; one that cannot be is named, with the reason."""
    for number, name in enumerate(("m", "a", "b", "broken", "lost")):
        place.client.create_deployment(name, place.model(float(number)))
    place.server.stop()
    (place.repository / "broken" / "1" / "model.onnx").write_bytes(b"garbage")
    place.start()
    assert {entry["state"] for entry in place.client.list_deployments()} == {"NOT_LOADED"}
    result = CliRunner().invoke(cli.main, ["restore", "-t", place.target, "m"])
    assert (result.exit_code, result.output[:24]) == (
        0,
        "ok       m: loaded in 0."[:24],
    ) or result.exit_code == 0
    assert place.client.get_deployment("a")["state"] == "NOT_LOADED"
    result = CliRunner().invoke(cli.main, ["restore", "-t", place.target])
    assert result.exit_code == 1
    lines = {line.split()[1].rstrip(":"): line for line in result.output.splitlines()}
    assert lines["m"] == "ok       m: serves already"
    assert all(lines[name].startswith(f"ok       {name}: loaded in ") for name in ("a", "b"))
    assert lines["broken"].startswith("failed   broken: ")
    assert "could not load 'broken'" in lines["broken"]
    (place.repository / "lost" / "mlflow-meta.json").write_text("{", encoding="utf-8")
    words = "The record of 'lost' is corrupt"
    result = CliRunner().invoke(cli.main, ["restore", "-t", place.target])
    assert (result.exit_code, f"failed   lost: {words}" in result.output) == (1, True)
    (finding,) = (
        one for one in diagnose(Settings.parse(place.target, {})) if one.check == "model repository"
    )
    assert (finding.level, words in finding.text) == ("warning", True)
    for name in ("m", "a", "b"):
        assert place.client.get_deployment(name)["in_sync"] is True
    broken = place.client.get_deployment("broken")
    assert (broken["state"], broken["in_sync"]) == ("UNAVAILABLE", False)
    assert broken["reason"]
    assert broken["changed_files"] == ["1/model.onnx"]
    result = CliRunner().invoke(cli.main, ["restore", "-t", place.target, "nowhere"])
    assert (result.exit_code, "There is no deployment 'nowhere'" in result.output) == (1, True)


def test_get_tells_what_is_on_disk(place: Place) -> None:
    """A file that was edited, went missing or came back as it was, and a version put beside, are told apart."""
    place.client.create_deployment("m", place.model(1.0))
    directory = place.repository / "m"
    entry = place.client.get_deployment("m")
    assert (entry["in_sync"], entry["changed_files"]) == (True, [])
    assert entry["serving_id"] == entry["deployment_id"] is not None
    config = (directory / "config.pbtxt").read_bytes()
    (directory / "config.pbtxt").write_bytes(config + b"# edited\n")
    entry = place.client.get_deployment("m")
    assert (entry["in_sync"], entry["changed_files"]) == (False, ["config.pbtxt"])
    (directory / "config.pbtxt").write_bytes(config)
    assert place.client.get_deployment("m")["in_sync"] is True
    (directory / "2").mkdir()
    assert place.client.get_deployment("m")["changed_files"] == ["2"]
    (directory / "2").rmdir()
    (directory / "1" / "model.onnx").unlink()
    assert place.client.get_deployment("m")["changed_files"] == ["1/model.onnx"]


CACHED = 'backend: "onnxruntime"\nresponse_cache { enable: true }\n'


@pytest.mark.parametrize("place", [("--cache-config=local,size=1048576",)], indirect=True)
def test_the_response_cache_never_answers_for_another_model(place: Place) -> None:
    """With the cache on, an update takes an unused version number; where it may not, it is refused and says what to do."""
    place.client.create_deployment("m", place.model(1.0, CACHED))
    assert [place.answer(), place.answer()] == [2.0, 2.0]
    place.client.update_deployment("m", place.model(2.0, CACHED))
    assert (place.answer(), place.client.get_deployment("m")["version"]) == (3.0, "2")
    with pytest.raises(InvalidModel, match=r"response_cache enabled.*version 1 of 'm'.*-C version=3"):
        place.client.update_deployment("m", place.model(3.0, CACHED), config={"version": 1})
    assert place.answer() == 3.0
    # Without a cache of its own, a model may have any number.
    place.client.update_deployment("m", place.model(4.0), config={"version": 1})
    assert place.answer() == 5.0
    # The entries outlive the deployment.
    place.client.delete_deployment("m")
    with pytest.raises(InvalidModel, match=r"version 1 of 'm'.*-C version=3"):
        place.client.create_deployment("m", place.model(5.0, CACHED))
    assert place.leftovers() == []
    assert list(place.repository.iterdir()) == []
    place.client.create_deployment("m", place.model(5.0, CACHED), config={"version": 3})
    assert place.answer() == 6.0


@pytest.mark.parametrize("place", [("--cache-config=local,size=1048576",)], indirect=True)
def test_why_the_cache_is_looked_at(place: Place) -> None:
    """Triton itself answers from the old model's cache under an old version number: what the rule is there for."""
    place.client.create_deployment("m", place.model(1.0, CACHED))
    assert place.answer() == 2.0
    other = place.directory / "other.onnx"
    other.write_bytes(models.constant(7.0).SerializeToString())
    other.replace(place.repository / "m" / "1" / "model.onnx")
    from tritonclient.grpc import InferenceServerClient  # noqa: PLC0415 - one test needs it

    with InferenceServerClient(place.server.grpc_url) as grpc:
        grpc.load_model("m")
    assert (place.answer(5.0), place.answer()) == (12.0, 2.0)


def clones(directory: Path) -> bool:
    """Say whether the filesystem of a directory can clone files."""
    source, target = directory / "clone-source", directory / "clone-target"
    source.write_text("x")
    with source.open() as reading, target.open("w") as writing:
        try:
            fcntl.ioctl(writing, FICLONE, reading.fileno())
        except OSError:
            return False
    return True


def test_large_files_are_linked_and_rolled_back(place: Place) -> None:
    """A logged model's large file is not copied; updates to and fro serve what they should; the store stays as it was."""
    uris, stored = [], []
    for value in (1.0, 2.0):
        weights = np.full(1 << 19, value, np.float32)
        with mlflow.start_run():
            info = mlflow.onnx.log_model(
                models.with_weights(weights),
                registered_model_name="large",
                save_as_external_data=False,  # such a file is readable by its owner only, and copied therefore
                pip_requirements=["onnx"],
                **NAMED,
            )
        uris.append(f"models:/large/{info.registered_model_version}")
        found = [
            path for path in place.directory.rglob("*") if path.is_file() and path.stat().st_size > 1 << 20
        ]
        stored += [path for path in found if path not in stored]
    assert len(stored) == 2
    before = [(path.stat().st_mtime_ns, path.stat().st_mode) for path in stored]
    row = np.zeros((1, 1 << 19), np.float32)

    def answer() -> float:
        return float(place.client.predict("m", {"x": row})["outputs"]["y"][0, -1])

    place.client.create_deployment("m", uris[0])
    assert answer() == 1.0
    for turn in (1, 0, 1, 0):
        place.client.update_deployment("m", uris[turn])
        assert answer() == turn + 1.0
        (served,) = [
            path for path in (place.repository / "m" / "1").iterdir() if path.stat().st_size > 1 << 20
        ]
        if MLFLOW_3:
            assert served.samefile(stored[turn]) or clones(place.directory)
        entry = place.client.get_deployment("m")
        assert (entry["in_sync"], entry["changed_files"]) == (True, [])
    assert [(path.stat().st_mtime_ns, path.stat().st_mode) for path in stored] == before
    with stored[0].open("r+b") as written:  # what MLflow never does
        written.seek(1 << 19)
        written.write(b"x")
    if MLFLOW_3 and stored[0].stat().st_nlink > 1:
        assert place.client.get_deployment("m")["in_sync"] is False
    place.client.delete_deployment("m")
    assert all(path.exists() for path in stored)
