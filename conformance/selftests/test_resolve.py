from __future__ import annotations

import time
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import mlflow
import pytest

from listening import answer, listener, raw, silent
from mlflow_triton.errors import InvalidModel, ModelNotFound, ServerUnavailable, TritonPluginError
from mlflow_triton.models import onnx, tracking, triton
from mlflow_triton.models.resolve import Origin, resolve

if TYPE_CHECKING:
    from pathlib import Path

# MLflow and SQLAlchemy use what one another deprecate.
pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")

MLMODEL = "flavors:\n  onnx: {data: model.onnx}\n  python_function: {}\nrun_id: r1\n"


@pytest.fixture(autouse=True)
def _tracking(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let MLflow work with a database of this test's own, and never for minutes."""
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path}/mlflow.db")
    monkeypatch.delenv("MLFLOW_REGISTRY_URI", raising=False)
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    monkeypatch.setenv("no_proxy", "127.0.0.1")


@pytest.fixture
def source(tmp_path: Path) -> Path:
    """An MLflow model in a directory."""
    path = tmp_path / "source"
    path.mkdir()
    (path / "MLmodel").write_text(MLMODEL)
    (path / "model.onnx").write_bytes(b"onnx")
    return path


@pytest.fixture
def destination(tmp_path: Path) -> Path:
    """An empty directory to download to."""
    path = tmp_path / "destination"
    path.mkdir()
    return path


# --- MLflow is not there, or not itself ---


@pytest.mark.parametrize("login", ["", "me:hush@", "me:hu%2Fsh@", "me:hu@sh@"])
def test_a_dead_server_is_told_at_once(
    login: str, destination: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where nothing listens the error comes within seconds, says what to do, and shows no password."""
    with listener(raw(b"")) as address:
        pass
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"http://{login}{address}")
    started = time.monotonic()
    with pytest.raises(ServerUnavailable) as caught:
        resolve("models:/m/1", destination)
    assert time.monotonic() - started < 5
    message = caught.value.message
    assert message == (
        f"MLflow at http://{'***@' if login else ''}{address} cannot be reached: Connection refused. Nothing was "
        "changed. Start it (mlflow server), or set MLFLOW_TRACKING_URI to where it is."
    )
    assert list(destination.iterdir()) == []


def test_a_server_that_never_answers(destination: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A server that accepts and is silent is given up after the limit, which the error names."""
    assert tracking.TIMEOUT <= 10
    monkeypatch.setattr(tracking, "TIMEOUT", 0.3)
    with listener(silent) as address:
        monkeypatch.setenv("MLFLOW_TRACKING_URI", f"http://{address}")
        started = time.monotonic()
        with pytest.raises(ServerUnavailable, match=r"did not answer within 0\.3 s"):
            resolve("models:/m/1", destination)
        assert time.monotonic() - started < 3


@pytest.mark.parametrize(
    ("sent", "words"),
    [
        (b"", "broke off the connection"),
        (b"\0\xff garbage\r\n\r\n", "broke off the connection"),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 99\r\n\r\nshort", "cannot be used"),
        (answer(b"<html>nginx</html>", 404), "models:/m/1"),
        (answer(b"who?", 401), "models:/m/1"),
        (answer(b"oops", 500), "models:/m/1"),
        (answer(b"<html>hello</html>"), "models:/m/1"),
        (answer(b"3.1.0"), "models:/m/1"),
        (answer(b"", 302, Location="/login"), "MLFLOW_TRACKING_URI"),
    ],
    ids=["closes", "garbage", "truncated", "404", "401", "500", "html", "no MLflow", "redirects for ever"],
)
def test_a_server_that_is_not_mlflow(
    sent: bytes, words: str, destination: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever answers in MLflow's place, the error is this package's, in seconds, without the password."""
    with listener(raw(sent)) as address:
        monkeypatch.setenv("MLFLOW_TRACKING_URI", f"http://me:hush@{address}")
        started = time.monotonic()
        with pytest.raises(TritonPluginError) as caught:
            resolve("models:/m/1", destination)
        assert time.monotonic() - started < 10
    assert isinstance(caught.value, (ServerUnavailable, ModelNotFound))
    assert words in caught.value.message
    assert address in caught.value.message
    assert "hush" not in caught.value.message
    assert caught.value.message.isprintable()


@pytest.mark.parametrize(
    "uri", ["http://me:hush@[bad", "http://me:hush@h:port", "http://me:hu/sh@h:port", "http://"]
)
def test_a_tracking_uri_that_cannot_be_used(
    uri: str, destination: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A tracking URI that no client understands is told as such, without its password."""
    monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
    with pytest.raises(ServerUnavailable, match="MLFLOW_TRACKING_URI") as caught:
        resolve("models:/m/1", destination)
    assert "hush" not in caught.value.message
    assert "sh@" not in caught.value.message


@pytest.mark.parametrize(
    ("uri", "shown"),
    [
        ("http://h:1", "http://h:1"),
        ("http://me:hush@h:1/x", "http://***@h:1/x"),
        ("postgresql://me:hu/s@h@db/mlflow", "postgresql://***@db/mlflow"),
        ("sqlite:////data/a@b/mlflow.db", "sqlite:////data/a@b/mlflow.db"),
        ("databricks", "databricks"),
    ],
)
def test_the_tracking_uri_is_shown_without_password(
    uri: str, shown: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Errors show the tracking URI with everything before the host hidden, also in what others say of it."""
    monkeypatch.setattr(mlflow, "get_tracking_uri", lambda: uri)
    assert tracking.tracking_uri() == shown
    assert tracking.first_words(ValueError(f"cannot open {uri}")) == f"cannot open {shown}."


@pytest.mark.parametrize("uri", ["sqlite:////x/y.db", "file:///x", "/x", "databricks"])
def test_only_a_server_is_asked(uri: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A tracking URI that is no web address has no server to wait for."""
    monkeypatch.setattr(mlflow, "get_tracking_uri", lambda: uri)
    assert tracking.require_server() is None


@pytest.mark.parametrize(
    ("body", "version"), [(b"3.1.0\n", "3.1.0"), (b"2.22.0.dev0", "2.22.0.dev0"), (b"<html>", None)]
)
def test_the_servers_version(body: bytes, version: str | None, monkeypatch: pytest.MonkeyPatch) -> None:
    """The version is what the server says, if it looks like one."""
    with listener(raw(answer(body))) as address:
        monkeypatch.setenv("MLFLOW_TRACKING_URI", f"http://{address}/")
        assert tracking.require_server() == version


def test_long_reasons_are_one_bounded_sentence() -> None:
    """A foreign exception's lines become one sentence of at most some hundred characters."""
    assert tracking.first_words(ValueError("\n### a ###\n\n  b\n")) == "a b."
    assert tracking.first_words(ValueError("why?")) == "why?"
    assert tracking.first_words(ValueError()) == "ValueError."
    assert len(tracking.first_words(ValueError("x" * 10**5))) <= 501


# --- what a URI leads to ---


@pytest.mark.parametrize("form", ["path", "file"])
def test_a_path_is_copied(form: str, source: Path, destination: Path) -> None:
    """A model in a directory is copied to the destination, and the directory stays as it was."""
    uri = source.as_uri() if form == "file" else str(source)
    model = resolve(uri, destination)
    assert model.path.is_relative_to(destination)
    assert {path.name: path.read_bytes() for path in model.path.iterdir()} == {
        "MLmodel": MLMODEL.encode(),
        "model.onnx": b"onnx",
    }
    assert model.flavors == {"onnx": {"data": "model.onnx"}, "python_function": {}}
    assert model.origin == Origin(uri, None, None, None, "r1")
    assert sorted(path.name for path in source.iterdir()) == ["MLmodel", "model.onnx"]
    (model.path / "model.onnx").unlink()
    assert (source / "model.onnx").exists()


@pytest.mark.parametrize("uri", ["", "  ", "\n"])
def test_an_empty_uri(uri: str, destination: Path) -> None:
    """An empty URI is refused with an example of what to write."""
    with pytest.raises(ModelNotFound, match=r"is empty. Write, for example, models:/NAME/1"):
        resolve(uri, destination)


@pytest.mark.parametrize(
    "uri",
    [
        "/nowhere/at/all",
        "file:///nowhere/at/all",
        "runs:/0123456789abcdef/model",
        "models:/nothing/1",
        "models:/nothing@best",
    ],
)
def test_a_uri_that_names_nothing(uri: str, destination: Path) -> None:
    """A URI of something that is not there is not found, and the error has the URI."""
    with pytest.raises(ModelNotFound) as caught:
        resolve(uri, destination)
    assert uri.removeprefix("file://") in caught.value.message


@pytest.mark.parametrize("uri", ["models:/", "models:/a/b/c/d", "nonsense://x/y", "http://[bad"])
def test_a_uri_that_makes_no_sense(uri: str, destination: Path) -> None:
    """A URI that MLflow cannot parse is this package's error, with the URI."""
    with pytest.raises(TritonPluginError) as caught:
        resolve(uri, destination)
    assert uri in caught.value.message
    assert caught.value.message.isprintable()


@pytest.mark.parametrize(
    "error", [ValueError, OSError, RuntimeError, Exception], ids=lambda error: error.__name__
)
def test_what_an_artifact_store_raises(
    error: type[Exception], destination: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever the library of an artifact store raises is told in one line, and kept as the cause."""

    def fail(**_: Any) -> str:
        raise error("NoCredentials:\nunable to locate credentials")

    monkeypatch.setattr("mlflow.artifacts.download_artifacts", fail)
    with pytest.raises(ServerUnavailable) as caught:
        resolve("s3://bucket/model", destination)
    assert "s3://bucket/model could not be read" in caught.value.message
    assert "NoCredentials: unable to locate credentials. Nothing was changed." in caught.value.message
    assert type(caught.value.__cause__) is error


def test_artifacts_that_are_no_model(source: Path, destination: Path) -> None:
    """A directory or a file without MLmodel is no model, and the error says what to give."""
    (source / "MLmodel").unlink()
    with pytest.raises(InvalidModel, match=r"it has no MLmodel file. Give the URI of a model"):
        resolve(str(source), destination)
    with pytest.raises(InvalidModel, match="it has no MLmodel file"):
        resolve(str(source / "model.onnx"), destination)
    (source / "MLmodel").mkdir()
    with pytest.raises(InvalidModel, match="it has no MLmodel file"):
        resolve(str(source), destination)


@pytest.mark.parametrize(
    "text",
    [b"", b"nonsense", b"[]", b"a: b: c", b"\xff\xfe\x00", b"flavors: 1", b"flavors: [onnx]", b"flavors: {onnx: 5}", b"{", b"unknown: 1", b"flavors: {onnx: [1]}", b"!!python/object/apply:os.getcwd []", b"[" * 5_000, b"flavors: {}\nutc: 2026-99-99"],
)  # fmt: skip
def test_a_broken_mlmodel(text: bytes, source: Path, destination: Path) -> None:
    """An MLmodel file that cannot be read is an error of one line; one that can gives its flavors."""
    (source / "MLmodel").write_bytes(text)
    if text == b"unknown: 1":
        assert resolve(str(source), destination).flavors == {}
        return
    with pytest.raises(InvalidModel) as caught:
        resolve(str(source), destination)
    assert f"{source}: its MLmodel file cannot be read:" in caught.value.message
    assert caught.value.message.isprintable()


@pytest.mark.parametrize(
    ("meta", "expected"),
    [
        ("model_name: net\nmodel_version: '3'\n", ("net", "3")),
        ("model_name: net\nmodel_version: 3\n", ("net", "3")),
        ("model_name: 007\nmodel_version: 3\n", ("7", "3")),
        ("[]", (None, None)),
        ("", (None, None)),
    ],
)
def test_the_registered_version(
    meta: str, expected: tuple[str | None, str | None], source: Path, destination: Path
) -> None:
    """Name and version of a registered model are text, as MLflow wrote them into the download."""
    (source / "registered_model_meta").write_text(meta)
    origin = resolve(str(source), destination).origin
    assert (origin.model_name, origin.model_version) == expected


def test_ids_that_yaml_takes_for_numbers(source: Path, destination: Path) -> None:
    """An id of digits alone is text in the origin, as a record needs it."""
    (source / "MLmodel").write_text("flavors: {}\nrun_id: 12345678\nmodel_id: 42\n")
    origin = resolve(str(source), destination).origin
    assert origin.run_id == "12345678"
    assert origin.model_id in {"42", None}  # MLflow 2 has no model ids


#: Nine times nine times … nine: some hundred bytes of YAML whose text would have gigabytes.
BOMB = "a0: &a0 [x]\n" + "".join(
    f"a{number}: &a{number} [{', '.join([f'*a{number - 1}'] * 9)}]\n" for number in range(1, 12)
)


def test_yaml_that_grows_without_end(source: Path, destination: Path) -> None:
    """What YAML makes of a few lines is never written out: it is no text, and so no id and no path."""
    (source / "MLmodel").write_text(
        f"{BOMB}flavors: {{onnx: {{data: *a11}}, triton: {{data: *a11}}}}\nrun_id: *a11\n"
    )
    (source / "registered_model_meta").write_text(f"{BOMB}model_name: *a11\nmodel_version: *a11\n")
    model = resolve(str(source), destination)
    assert (model.origin.model_name, model.origin.model_version, model.origin.run_id) == (None, None, None)
    with pytest.raises(InvalidModel, match="does not say which file"):
        onnx.contents(model, version=1, run_files=destination)
    with pytest.raises(InvalidModel, match="is in a list"):
        triton.contents(model)


@pytest.mark.parametrize("data", ["../outside", "/etc", "loop/x", "link", "nul\0", ".."])
def test_an_onnx_file_outside_of_the_model(data: str, source: Path, destination: Path) -> None:
    """What MLmodel names outside of the model is refused, by whatever way it leads there."""
    found = resolve(str(source), destination)
    (found.path / "loop").symlink_to("loop")
    (found.path / "link").symlink_to("/etc")
    model = replace(found, flavors={"onnx": {"data": data}})
    with pytest.raises(InvalidModel, match=r"outside of the model|not there"):
        onnx.contents(model, version=1, run_files=destination)


@pytest.mark.parametrize(
    ("target", "words"),
    [
        ("/etc/passwd", "leads out of the model"),
        ("../outside", "leads out of the model"),
        ("nowhere", "leads nowhere"),
        ("link", "leads nowhere"),
        (".", "leads back to a directory that it is in"),
        ("sub/..", "leads back to a directory that it is in"),
    ],
)
def test_links_among_the_artifacts(target: str, words: str, source: Path, destination: Path) -> None:
    """A link that leads out of a local model, nowhere, or in a circle is refused before anything is copied."""
    (source / "sub").mkdir()
    (source / "link").symlink_to(target)
    with pytest.raises(InvalidModel, match=rf"link is a symbolic link that {words}"):
        resolve(str(source), destination)
    assert list(destination.iterdir()) == []


def test_a_broken_registered_model_meta(source: Path, destination: Path) -> None:
    """A registered_model_meta that is no YAML is an error of this package."""
    for content in (b"a: b: c", b"\xff\xff", b"[" * 5_000, b"model_version: 2026-99-99"):
        (source / "registered_model_meta").write_bytes(content)
        with pytest.raises(InvalidModel, match="its file registered_model_meta cannot be read"):
            resolve(str(source), destination)


def test_a_store_that_ignores_the_destination(
    source: Path, destination: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A download that lies elsewhere is refused: its files would be moved away from where they belong."""

    def elsewhere(**_: Any) -> str:
        return str(source)

    monkeypatch.setattr("mlflow.artifacts.download_artifacts", elsewhere)
    with pytest.raises(InvalidModel, match=r"not where it was asked to. Nothing was changed"):
        resolve(str(source), destination)
    assert (source / "model.onnx").exists()
