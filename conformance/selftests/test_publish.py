from __future__ import annotations

import json
import os
import shutil
import socket
import sqlite3
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import mlflow
import pytest
from mlflow.entities import ViewType

from mlflow_triton import flavor
from mlflow_triton.errors import InvalidModel, InvalidParameter, ServerUnavailable, TritonPluginError
from mlflow_triton.models import tracking as mlflow_server
from mlflow_triton.publish import parse_tags, publish

EXAMPLES = Path(__file__).parents[2] / "examples"
# MLflow and SQLAlchemy use what one another deprecate.
pytestmark = [
    pytest.mark.slow,
    pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning"),
]

COMMAND = [sys.executable, "-c", "from mlflow_triton.cli import main; main(prog_name='mlflow-triton')"]


@pytest.fixture
def model(tmp_path: Path) -> Path:
    """A directory that Triton could load."""
    root = tmp_path / "net"
    (root / "1").mkdir(parents=True)
    (root / "config.pbtxt").write_text('backend: "python"')
    (root / "1" / "model.py").write_text("pass")
    return root


@pytest.fixture(scope="module")
def database(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A real MLflow store: a database file that is made on first use."""
    return tmp_path_factory.mktemp("mlflow") / "mlflow.db"


@pytest.fixture
def tracking(database: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> mlflow.MlflowClient:
    """Let MLflow work in an experiment of this test's own."""
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{database}")
    client = mlflow.MlflowClient()
    artifacts = tmp_path / "artifacts"
    monkeypatch.setenv("MLFLOW_EXPERIMENT_ID", client.create_experiment(str(tmp_path), artifacts.as_uri()))
    return client


def traces(client: mlflow.MlflowClient) -> list[object]:
    """Return what this test's experiment holds: runs that are not deleted, and logged models (MLflow 3)."""
    experiments = [os.environ["MLFLOW_EXPERIMENT_ID"]]
    found: list[object] = list(client.search_runs(experiments, run_view_type=ViewType.ACTIVE_ONLY))
    if hasattr(client, "search_logged_models"):
        found += client.search_logged_models(experiments)
    return found


def test_publish_registers_a_version(model: Path, tracking: mlflow.MlflowClient, tmp_path: Path) -> None:
    """A published directory is a READY version with its aliases and tags, and comes back byte for byte."""
    first = publish("net", model)
    second = publish("net", model, aliases=["champion", "Best-1"], tags={"stage": "prod", "empty": ""})
    assert (first.version, second.version, second.model_uri) == ("1", "2", "models:/net/2")
    version = tracking.get_model_version("net", "2")
    assert version.status == "READY"
    assert version.tags == {"stage": "prod", "empty": ""}
    assert version.source == second.source
    assert tracking.get_registered_model("net").aliases == {"champion": 2, "Best-1": 2}
    run = tracking.get_run(second.run_id)
    assert (run.info.status, run.info.artifact_uri) == ("FINISHED", second.artifact_uri)
    assert (second.model_id is not None) == (mlflow.__version__ >= "3")
    loaded = Path(flavor.load_model("models:/net@champion", tmp_path / "loaded"))
    assert {path.name: path.read_bytes() for path in loaded.rglob("*.*")} == {
        path.name: path.read_bytes() for path in model.rglob("*.*")
    }


def test_publish_uses_the_callers_run(model: Path, tracking: mlflow.MlflowClient) -> None:
    """In an active run the model is logged there, and the run stays active."""
    with mlflow.start_run() as run:
        published = publish("in_a_run", model)
        active = mlflow.active_run()
        assert active is not None
        assert active.info.run_id == run.info.run_id
    assert published.run_id == run.info.run_id
    assert tracking.get_run(run.info.run_id).info.status == "FINISHED"


@pytest.mark.parametrize("name", ["", " ", "a/b", "a:b", ".", "..", "../x"])
def test_names_that_mlflow_refuses(name: str, model: Path, tracking: mlflow.MlflowClient) -> None:
    """A name that no registered model can have is refused before anything happens."""
    with pytest.raises(InvalidParameter, match="cannot be the name of a registered model"):
        publish(name, model)
    assert traces(tracking) == []


@pytest.mark.parametrize("alias", ["", "a b", "a.b", "latest", "Latest", "v1", "V22", "x" * 256, "a\n"])
def test_aliases_that_mlflow_refuses(alias: str, model: Path, tracking: mlflow.MlflowClient) -> None:
    """An alias that MLflow would refuse in the end is refused before anything happens."""
    with pytest.raises(InvalidParameter, match="cannot be an alias"):
        publish("aliases", model, aliases=["good", alias])
    assert traces(tracking) == []


def test_other_flavors_are_refused(model: Path, tracking: mlflow.MlflowClient) -> None:
    """A flavor other than triton is refused with the way that there is for it."""
    with pytest.raises(InvalidParameter, match=r"'onnx' cannot be published.*mlflow\.onnx\.log_model"):
        publish("flavors", model, flavor="onnx")
    assert traces(tracking) == []


def test_a_refused_directory_leaves_nothing(model: Path, tracking: mlflow.MlflowClient) -> None:
    """A directory that Triton could not load leaves neither run nor registered model."""
    (model / "1" / "model.py").unlink()
    with pytest.raises(InvalidModel, match=r"version 1 has no model.py"):
        publish("refused", model)
    assert traces(tracking) == []
    assert tracking.search_registered_models("name = 'refused'") == []


def test_what_mlflow_refuses_in_the_end_leaves_nothing(model: Path, tracking: mlflow.MlflowClient) -> None:
    """When MLflow refuses the version, the run, the logged model and the registered model are taken back."""
    with pytest.raises(
        InvalidParameter, match=r"MLflow at sqlite:.* refuses this: .*Nothing has been published"
    ):
        publish("tagged", model, tags={"not?a!name": "x"})
    assert traces(tracking) == []
    assert tracking.search_registered_models("name = 'tagged'") == []


def test_a_store_that_fails_in_the_middle(model: Path, tracking: mlflow.MlflowClient, database: Path) -> None:
    """When the store fails at the last alias, an alias moved before leads where it led, and the version is gone."""
    publish("moved", model, aliases=["champion"])
    before = len(traces(tracking))
    with sqlite3.connect(database) as connection:
        connection.execute(
            "CREATE TRIGGER fault BEFORE INSERT ON registered_model_aliases WHEN NEW.alias = 'boom' "
            "BEGIN SELECT RAISE(ABORT, 'disk on fire'); END"
        )
    connection.close()
    with pytest.raises(ServerUnavailable, match=r"disk on fire.*Nothing has been published"):
        publish("moved", model, aliases=["champion", "boom"])
    assert tracking.get_registered_model("moved").aliases == {"champion": 1}
    assert [str(version.version) for version in tracking.search_model_versions("name = 'moved'")] == ["1"]
    assert len(traces(tracking)) == before


def test_the_callers_run_is_never_deleted(model: Path, tracking: mlflow.MlflowClient) -> None:
    """A failure takes back what publish made, and not the run that the caller had, started or named."""
    with mlflow.start_run() as run, pytest.raises(InvalidParameter):
        publish("kept", model, tags={"not?a!name": "x"})
    assert tracking.get_run(run.info.run_id).info.lifecycle_stage == "active"
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MLFLOW_RUN_ID", run.info.run_id)
        with pytest.raises(InvalidParameter):
            publish("kept", model, tags={"not?a!name": "x"})
    assert tracking.get_run(run.info.run_id).info.lifecycle_stage == "active"


def test_no_mlflow_server(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A server that is not there is said within seconds, in one line without the password."""
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        monkeypatch.setenv("MLFLOW_TRACKING_URI", f"http://me:secret@127.0.0.1:{unused.getsockname()[1]}")
        started = time.monotonic()
        with pytest.raises(ServerUnavailable, match=r"Connection refused.*MLFLOW_TRACKING_URI") as caught:
            publish("net", model)
    assert time.monotonic() - started < 30
    assert "secret" not in caught.value.message
    assert "\n" not in caught.value.message


def test_an_mlflow_server_that_never_answers(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A server that accepts and stays silent is given up after the bound."""
    monkeypatch.setattr(mlflow_server, "TIMEOUT", 1.0)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        monkeypatch.setenv("MLFLOW_TRACKING_URI", f"http://127.0.0.1:{silent.getsockname()[1]}")
        started = time.monotonic()
        with pytest.raises(ServerUnavailable, match="did not answer within 1 s"):
            publish("net", model)
    assert time.monotonic() - started < 30


def test_an_unknown_kind_of_tracking_uri(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A tracking URI that MLflow does not know is one line, not a traceback."""
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "gopher://somewhere")
    with pytest.raises(InvalidParameter, match="unsupported URI 'gopher://somewhere'"):
        publish("net", model)


def test_tags_are_read_as_written() -> None:
    """A tag's value may be empty and hold equals signs."""
    assert parse_tags(["a=b=c", "d="]) == {"a": "b=c", "d": ""}


@pytest.mark.parametrize("texts", [["a"], ["=b"], [" =b"], [""], ["a=1", "a=2"]])
def test_tags_that_are_refused(texts: list[str]) -> None:
    """A tag without a name or an equals sign, or given twice, is refused."""
    with pytest.raises(InvalidParameter, match="Nothing has been published"):
        parse_tags(texts)


def test_the_command(model: Path, tracking: mlflow.MlflowClient) -> None:
    """The command prints one line of JSON and nothing else on stdout."""
    options = [
        "--model-name",
        "by_command",
        "--model-directory",
        str(model),
        "--alias",
        "a",
        "--alias",
        "b",
        "--tag",
        "k=v",
    ]
    done = subprocess.run([*COMMAND, "publish", *options], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("\n") == 1
    published = json.loads(done.stdout)
    assert published["model_uri"] == "models:/by_command/1"
    assert set(published) == {
        "model_name",
        "version",
        "model_uri",
        "run_id",
        "model_id",
        "source",
        "artifact_uri",
    }
    assert tracking.get_registered_model("by_command").aliases == {"a": 1, "b": 1}
    assert tracking.get_model_version("by_command", "1").tags == {"k": "v"}


def test_the_command_fails_in_one_line(tracking: mlflow.MlflowClient, tmp_path: Path) -> None:
    """A missing directory is one line on stderr, exit code 1, and nothing on stdout."""
    options = ["--model-name", "absent", "--model-directory", str(tmp_path / "absent")]
    done = subprocess.run([*COMMAND, "publish", *options], capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert done.stdout == ""
    assert done.stderr.startswith("Error: There is no model directory ")
    assert done.stderr.count("\n") == 1
    assert traces(tracking) == []


def test_the_originals_command(tracking: mlflow.MlflowClient, tmp_path: Path) -> None:
    """NVIDIA's documented command works from examples/ and prints the artifact URI of the run."""
    name = "onnx_float32_int32_int32"
    command = f"publish_model_to_mlflow.py --model_name {name} --model_directory {name} --flavor triton"
    examples = shutil.copytree(EXAMPLES, tmp_path / "examples")
    done = subprocess.run(
        [sys.executable, *command.split()], cwd=examples, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    version = tracking.get_model_version(name, "1")
    assert done.stdout == f"{tracking.get_run(str(version.run_id)).info.artifact_uri}\n"


def test_every_refusal_is_an_error_of_this_package(model: Path, tracking: mlflow.MlflowClient) -> None:
    """A caller catches TritonPluginError for whatever publish refuses."""
    refused: list[dict[str, Any]] = [{"flavor": "x"}, {"aliases": ["v1"]}, {"tags": {"?": ""}}]
    for arguments in refused:
        with pytest.raises(TritonPluginError):
            publish("errors", model, **arguments)
    assert traces(tracking) == []
