from __future__ import annotations

import inspect
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import mlflow
import pytest
import yaml
from mlflow.models import Model

from mlflow_triton import flavor
from mlflow_triton.errors import InvalidModel, InvalidModelConfig, InvalidParameter, ModelNotFound
from mlflow_triton.models import triton
from mlflow_triton.models.resolve import resolve

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from typing import TypeAlias

    Tree: TypeAlias = Callable[..., Path]

# MLflow and SQLAlchemy use what one another deprecate.
pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")

PYTHON = {"config.pbtxt": 'backend: "python"\n', "1/model.py": "pass\n"}


@pytest.fixture
def tree(tmp_path: Path) -> Tree:
    """Make a directory with these files; a name that ends in a slash is an empty directory."""

    def make(files: Mapping[str, str], name: str = "net") -> Path:
        root = tmp_path / name
        root.mkdir()
        for file, text in files.items():
            if file.endswith("/"):
                (root / file).mkdir(parents=True)
            else:
                (root / file).parent.mkdir(parents=True, exist_ok=True)
                (root / file).write_text(text)
        return root

    return make


@pytest.fixture(scope="module")
def database(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A real MLflow store: a database file that is made on first use."""
    return f"sqlite:///{tmp_path_factory.mktemp('mlflow')}/mlflow.db"


@pytest.fixture
def tracking(database: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> mlflow.MlflowClient:
    """Let MLflow work in an experiment of this test's own."""
    monkeypatch.setenv("MLFLOW_TRACKING_URI", database)
    client = mlflow.MlflowClient()
    artifacts = tmp_path / "artifacts"
    monkeypatch.setenv("MLFLOW_EXPERIMENT_ID", client.create_experiment(str(tmp_path), artifacts.as_uri()))
    return client


def content(root: str | Path) -> dict[str, bytes]:
    """Return the files under a directory."""
    return {
        str(path.relative_to(root)): path.read_bytes() for path in Path(root).rglob("*") if path.is_file()
    }


def test_save_model_keeps_the_directory_as_it_is(tree: Tree, tmp_path: Path) -> None:
    """Every version, label file and nested or hidden file is saved byte for byte, under the directory's name."""
    files = {
        **PYTHON,
        "2/model.py": "x",
        "2/weights/.hidden": "h",
        "labels of mine.txt": "a\nb",
        "1/big.bin": "\0" * 100_000,
    }
    source = tree(files)
    flavor.save_model(source, tmp_path / "saved")
    assert {name: text.encode() for name, text in files.items()} == content(tmp_path / "saved" / "net")
    mlmodel = yaml.safe_load((tmp_path / "saved" / "MLmodel").read_text())
    assert mlmodel["flavors"] == {"triton": {"data": "net"}}


def test_save_model_leaves_droppings_out(tree: Tree, tmp_path: Path) -> None:
    """Caches of interpreters and files of file managers are no part of a model."""
    source = tree(
        {**PYTHON, "1/__pycache__/model.cpython-311.pyc": "x", ".DS_Store": "x", "1/.DS_Store": "x"}
    )
    flavor.save_model(source, tmp_path / "saved")
    assert set(PYTHON) == set(content(tmp_path / "saved" / "net"))


def test_save_model_adds_to_the_model_that_it_gets(tree: Tree, tmp_path: Path) -> None:
    """A given MLflow model keeps what it has and gains the flavor."""
    model = Model(metadata={"team": "vision"})
    flavor.save_model(tree(PYTHON), tmp_path / "saved", mlflow_model=model)
    loaded = Model.load(str(tmp_path / "saved"))
    assert loaded.metadata == {"team": "vision"}
    assert "triton" in loaded.flavors


@pytest.mark.parametrize("name", ["MLmodel", "registered_model_meta"])
def test_save_model_avoids_names_that_mlflow_writes(tree: Tree, tmp_path: Path, name: str) -> None:
    """A directory with the name of one of MLflow's files is saved under another name."""
    flavor.save_model(tree(PYTHON, name), tmp_path / "saved")
    assert set(PYTHON) == set(content(tmp_path / "saved" / "triton"))


def test_save_model_takes_a_relative_path(
    tree: Tree, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A path such as "." is saved under the name of the directory that it means."""
    monkeypatch.chdir(tree(PYTHON))
    flavor.save_model(".", tmp_path / "saved")
    assert set(PYTHON) == set(content(tmp_path / "saved" / "net"))


def test_save_model_overwrites_nothing(tree: Tree, tmp_path: Path) -> None:
    """A target that holds something is refused and stays as it is."""
    target = tmp_path / "saved"
    target.mkdir()
    (target / "precious").write_text("x")
    with pytest.raises(InvalidParameter, match="exists already and is untouched"):
        flavor.save_model(tree(PYTHON), target)
    assert content(target) == {"precious": b"x"}


def test_save_model_leaves_nothing_when_it_cannot_write(tree: Tree, tmp_path: Path) -> None:
    """A target that cannot be made is an error of this package, and nothing is left there."""
    (tmp_path / "file").write_text("x")
    with pytest.raises(InvalidParameter, match=r"could not be saved .* Nothing is left"):
        flavor.save_model(tree(PYTHON), tmp_path / "file" / "saved")
    assert (tmp_path / "file").read_text() == "x"


@pytest.mark.parametrize(
    ("files", "error", "words"),
    [
        ({}, InvalidModel, "no version directory"),
        ({"net/1/model.onnx": "x"}, InvalidModel, "give the directory of one model, such as 'net'"),
        ({**PYTHON, "config.pbtxt": "backnd: 'python'"}, InvalidModelConfig, 'did you mean "backend"'),
        ({**PYTHON, "2.bak/model.py": ""}, InvalidModel, "'2.bak'"),
        ({"config.pbtxt": 'backend: "python"', "1/__pycache__/x.pyc": ""}, InvalidModel, "no model.py"),
    ],
)
def test_a_directory_that_triton_could_not_load_is_never_logged(
    tree: Tree,
    tracking: mlflow.MlflowClient,
    files: Mapping[str, str],
    error: type[InvalidModel],
    words: str,
) -> None:
    """A refused directory leaves no run and no files in MLflow."""
    with pytest.raises(error, match=words):
        flavor.log_model(tree(files), registered_model_name="refused")
    assert mlflow.active_run() is None
    assert tracking.search_runs([os.environ["MLFLOW_EXPERIMENT_ID"]]) == []
    assert tracking.search_registered_models("name = 'refused'") == []


def test_links_are_refused(tree: Tree) -> None:
    """Symbolic links, also dangling ones and to directories, and pipes are refused with their remedy."""
    source = tree(PYTHON)
    (source / "1" / "weights").symlink_to("/etc/passwd")
    (source / "2").symlink_to(source / "1")
    (source / "dangling").symlink_to("nowhere")
    os.mkfifo(source / "pipe")
    with pytest.raises(InvalidModel) as caught:
        flavor.check(source)
    for words in (
        "1/weights is a symbolic link",
        "2 is a symbolic link",
        "dangling is",
        "pipe is a special file",
    ):
        assert words in caught.value.message
    assert "cp -rL" in caught.value.message


@pytest.mark.parametrize("name", ["absent", "file"])
def test_a_path_that_is_no_directory(tmp_path: Path, name: str) -> None:
    """A path without a directory is refused with what is there instead."""
    (tmp_path / "file").write_text("x")
    with pytest.raises(InvalidModel, match=r"There is no model directory .*(does not exist|it is a file)"):
        flavor.check(tmp_path / name)


@pytest.mark.parametrize("arguments", [{}, {"name": "net"}, {"artifact_path": "net"}])
def test_log_model_and_load_model(
    tree: Tree, tracking: mlflow.MlflowClient, tmp_path: Path, arguments: dict[str, Any]
) -> None:
    """What log_model registers comes back from load_model byte for byte, under every way to name it."""
    source = tree(PYTHON)
    registered = f"net{len(str(arguments))}"
    with mlflow.start_run() as run:
        info = flavor.log_model(source, registered_model_name=registered, **arguments)
    assert tracking.get_run(run.info.run_id).info.status == "FINISHED"
    assert str(info.registered_model_version) == "1"
    for number, uri in enumerate((info.model_uri, f"models:/{registered}/1")):
        path = flavor.load_model(uri, tmp_path / f"loaded{number}")
        assert content(source) == content(path)
        assert Path(path).is_relative_to(tmp_path)


def test_log_model_as_nvidias(tree: Tree, tracking: mlflow.MlflowClient) -> None:
    """The second positional argument is the artifact path and the third the registered model, as in NVIDIA's module."""
    with mlflow.start_run():
        flavor.log_model(tree(PYTHON), "triton", "positional")
    assert tracking.get_model_version("positional", "1").status == "READY"


def test_log_model_refuses_two_names(tree: Tree) -> None:
    """Two names for one thing are refused."""
    with pytest.raises(InvalidParameter, match="not both"):
        flavor.log_model(tree(PYTHON), "a", name="b")


def test_empty_directories_survive(tree: Tree, tmp_path: Path) -> None:
    """The empty version directory of an ensemble reaches a store that keeps files only, and is found again."""
    config = 'platform: "ensemble" ensemble_scheduling {}'
    flavor.save_model(tree({"config.pbtxt": config, "3/": ""}), tmp_path / "saved")
    files = content(tmp_path / "saved")
    assert "net/3/.keep" in files
    copy = tmp_path / "copy"
    for name, data in files.items():
        (copy / name).parent.mkdir(parents=True, exist_ok=True)
        (copy / name).write_bytes(data)
    assert flavor.check(copy / "net").versions == (3,)


def test_load_model_makes_a_directory_of_its_own(
    tree: Tree, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without a destination the copy is private, and a failed load leaves no temporary directory."""
    temporary = tmp_path / "tmp"
    temporary.mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(temporary))
    flavor.save_model(tree(PYTHON), tmp_path / "saved")
    path = Path(flavor.load_model(str(tmp_path / "saved")))
    assert path.is_relative_to(temporary)
    assert not (tmp_path / "saved" / "registered_model_meta").exists()
    before = set(temporary.iterdir())
    with pytest.raises(ModelNotFound):
        flavor.load_model(str(tmp_path / "absent"))
    assert before == set(temporary.iterdir())


@pytest.mark.parametrize(
    ("flavors", "words"),
    [
        ({"onnx": {"data": "model.onnx"}}, "its flavors are: onnx"),
        ({"triton": {}}, "in None .* not a directory inside"),
        ({"triton": {"data": 7}}, "in 7 .* not a directory inside"),
        ({"triton": {"data": "."}}, "not a directory inside"),
        ({"triton": {"data": ".."}}, "not a directory inside"),
        ({"triton": {"data": "../outside"}}, "not a directory inside"),
        ({"triton": {"data": "/etc"}}, "not a directory inside"),
        ({"triton": {"data": "link"}}, "not a directory inside"),
        ({"triton": {"data": "link/sub"}}, "not a directory inside"),
        ({"triton": {"data": "a\0b"}}, "not a directory inside"),
        ({"triton": {"data": "absent"}}, "which is not there"),
        ({"triton": {"data": "MLmodel"}}, "which is not there"),
    ],
)
def test_an_mlmodel_that_names_no_directory_inside(
    tmp_path: Path, flavors: dict[str, object], words: str
) -> None:
    """A model whose MLmodel leads elsewhere is refused, whatever it names."""
    saved = tmp_path / "saved"
    saved.mkdir()
    (tmp_path / "outside" / "sub").mkdir(parents=True)
    model = Model()
    for name, values in flavors.items():
        model.flavors[name] = values
    model.save(str(saved / "MLmodel"))
    # A download follows links, so that one inside an artifact can only be there after it.
    destination = tmp_path / "loaded"
    destination.mkdir()
    resolved = resolve(str(saved), destination)
    (resolved.path / "link").symlink_to(tmp_path / "outside")
    if "triton" in flavors:
        with pytest.raises(InvalidModel, match=words):
            triton.contents(resolved)
    else:
        with pytest.raises(InvalidModel, match=words):
            flavor.load_model(str(saved), tmp_path / "again")


def test_a_tree_deeper_than_the_interpreters_stack(tree: Tree) -> None:
    """A directory nested deeper than Python may recurse is listed, not a crash."""
    source = tree(PYTHON)
    deep = "/".join("d" * 400)
    (source / deep).mkdir(parents=True)
    limit = sys.getrecursionlimit()
    sys.setrecursionlimit(len(inspect.stack()) + 100)
    try:
        layout = flavor.check(source)
    finally:
        sys.setrecursionlimit(limit)
    assert deep in {str(path) for path in layout.directories}
