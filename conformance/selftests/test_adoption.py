"""create -C adopt=true: a model that is not a deployment is replaced by one, wholly or not at all."""

from __future__ import annotations

import subprocess
import sys
import time
from typing import TYPE_CHECKING, Any
from urllib.parse import urlencode

import pytest
from mlflow.deployments import get_deploy_client
from tritonclient.grpc import InferenceServerClient

from mlflow_triton import flavor
from mlflow_triton.embedded import EmbeddedTriton
from mlflow_triton.errors import (
    DeploymentExists,
    DeploymentNotFound,
    InvalidParameter,
    LoadFailed,
    RepositoryError,
)
from mlflow_triton.repository.claim import PREFIX
from mlflow_triton_conformance import models

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

pytestmark = pytest.mark.slow

ADOPT = {"adopt": "true"}
CLIENT = """\
import sys
from mlflow.deployments import get_deploy_client
get_deploy_client(sys.argv[1]).create_deployment("m", sys.argv[2], config={"adopt": True})
"""
BROKEN = """\
import time
class TritonPythonModel:
    def initialize(self, args):
        time.sleep({seconds})
        raise ValueError("broken for good")
"""


class Hall:
    """A server, and what is in its repository under the name m."""

    def __init__(self, server: EmbeddedTriton, directory: Path) -> None:
        self.server = server
        self.directory = directory
        self.root = server.model_repository
        self.model = self.root / "m"
        query = urlencode({"model_repository": self.root, "grpc_url": server.grpc_url})
        self.target = f"{server.http_url.replace('http://', 'triton://')}?{query}"
        self.client: Any = get_deploy_client(self.target)

    def python(self, value: int, code: str = "") -> str:
        """Save a Python model that answers a value; return its path."""
        source = models.write_python(self.directory / f"source-{time.monotonic_ns()}", {1: value})
        if code:
            (source / "1" / "model.py").write_text(code)
        path = self.directory / f"model-{time.monotonic_ns()}"
        flavor.save_model(source, path)
        return str(path)

    def put_foreign(self, value: int) -> None:
        """Put a model there, and load it, as one does without MLflow."""
        models.write_python(self.model, {1: value})
        with InferenceServerClient(self.server.grpc_url) as grpc:
            grpc.load_model("m")

    def answer(self) -> int:
        """Ask the model."""
        return int(self.client.predict("m", {"x": [1]})["outputs"]["y"][0]) - 1000

    def files(self) -> dict[str, bytes]:
        """Read all that the model's directory holds, without what its own process writes."""
        return {
            str(path.relative_to(self.model)): path.read_bytes()
            for path in self.model.rglob("*")
            if path.is_file() and "__pycache__" not in path.parts
        }

    def leftovers(self) -> list[str]:
        """What is ours in the repository and beside it."""
        found = [*self.root.iterdir(), *self.root.parent.iterdir()]
        return [path.name for path in found if path.name.startswith(PREFIX)]


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[EmbeddedTriton]:
    """A server of this module's own."""
    repository = tmp_path_factory.mktemp("adoption") / "repository"
    repository.mkdir()
    with EmbeddedTriton(repository) as server:
        yield server


@pytest.fixture
def hall(server: EmbeddedTriton, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hall]:
    """The server with nothing in its repository, before and after."""
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path}/mlflow.db")
    hall = Hall(server, tmp_path)
    yield hall
    try:
        hall.client.delete_deployment("m")
    except (DeploymentNotFound, RepositoryError):
        hall.client.create_deployment("m", hall.python(0), config=ADOPT)
        hall.client.delete_deployment("m")
    assert (list(hall.root.iterdir()), hall.leftovers()) == ([], [])


def test_a_foreign_model(hall: Hall) -> None:
    """A model that MLflow did not deploy is replaced only when it is said so, and comes back if that fails."""
    hall.put_foreign(1)
    before = hall.files()
    with pytest.raises(DeploymentExists, match="-C adopt=true"):
        hall.client.create_deployment("m", hall.python(2))
    with pytest.raises(DeploymentNotFound, match=r"mlflow deployments create.*-C adopt=true"):
        hall.client.delete_deployment("m")
    with pytest.raises(InvalidParameter, match="goes with create, and not with update"):
        hall.client.update_deployment("m", hall.python(2), config=ADOPT)
    with pytest.raises(LoadFailed, match=r"broken for good.*What was in .*m is there as before"):
        hall.client.create_deployment("m", hall.python(2, BROKEN.format(seconds=0)), config=ADOPT)
    assert (hall.answer(), hall.files(), hall.leftovers()) == (1, before, [])
    hall.client.create_deployment("m", hall.python(2), config=ADOPT)
    assert (hall.answer(), hall.client.get_deployment("m")["in_sync"]) == (2, True)
    # Now it is a deployment, which is not there to be adopted.
    with pytest.raises(DeploymentExists, match="Use update"):
        hall.client.create_deployment("m", hall.python(3), config=ADOPT)
    assert hall.answer() == 2


def test_a_record_that_is_no_use(hall: Hall) -> None:
    """A deployment whose record is corrupt is adopted like any other model; a failure brings it back as it was."""
    hall.client.create_deployment("m", hall.python(1))
    (hall.model / "mlflow-meta.json").write_text("{")
    with pytest.raises(RepositoryError, match="-C adopt=true"):
        hall.client.create_deployment("m", hall.python(2))
    before = hall.files()
    with pytest.raises(LoadFailed, match="broken for good"):
        hall.client.create_deployment("m", hall.python(2, BROKEN.format(seconds=0)), config=ADOPT)
    assert (hall.answer(), hall.files()) == (1, before)
    hall.client.create_deployment("m", hall.python(2), config=ADOPT)
    assert (hall.answer(), hall.client.get_deployment("m")["in_sync"]) == (2, True)


def test_a_killed_adoption(hall: Hall) -> None:
    """An adoption whose client died and whose model cannot be loaded is undone: the foreign model is there and serves."""
    hall.put_foreign(1)
    before = hall.files()
    seen = hall.server.log().count("loading: m:")
    uri = hall.python(2, BROKEN.format(seconds=1))
    process = subprocess.Popen([sys.executable, "-c", CLIENT, hall.target, uri])
    deadline = time.monotonic() + 60
    while hall.server.log().count("loading: m:") == seen:
        assert time.monotonic() < deadline
        time.sleep(0.02)
    process.kill()
    process.wait()
    assert hall.files() != before
    (outcome,) = hall.client.restore(["m"])  # which settles it, as any operation does
    assert "was not deployed by MLflow" in outcome.text
    assert (hall.answer(), hall.files(), hall.leftovers()) == (1, before, [])


THINGS: dict[str, Callable[[Path, Path], object]] = {
    "a file": lambda path, _: path.write_text("mine"),
    "a link to a directory": lambda path, outside: path.symlink_to(outside),
}


@pytest.mark.parametrize("thing", THINGS)
def test_what_is_no_model(hall: Hall, thing: str) -> None:
    """Whatever has the name comes back when an adoption fails; what a link leads to is never touched."""
    outside = hall.directory / "outside"
    outside.mkdir()
    (outside / "precious").write_text("mine")
    THINGS[thing](hall.model, outside)
    before = hall.model.lstat()
    uri = hall.python(2, BROKEN.format(seconds=0))
    with pytest.raises(LoadFailed, match="broken for good"):
        hall.client.create_deployment("m", uri, config=ADOPT)
    assert (hall.model.lstat().st_ino, hall.model.lstat().st_mode) == (before.st_ino, before.st_mode)
    hall.client.create_deployment("m", hall.python(3), config=ADOPT)
    assert (hall.answer(), (outside / "precious").read_text()) == (3, "mine")
