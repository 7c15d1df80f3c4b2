from __future__ import annotations

import importlib
import inspect
import json
import pkgutil
import subprocess
import sys
import textwrap
from importlib import metadata
from pathlib import Path
from typing import Any

import mlflow.deployments
import pytest
from mlflow.deployments import BaseDeploymentClient, get_deploy_client
from mlflow.deployments import cli as mlflow_cli
from mlflow.deployments.plugin_manager import DeploymentPlugins

import mlflow_triton
from mlflow_triton import deployments
from mlflow_triton.deployments import TritonDeploymentClient, target_help
from mlflow_triton.errors import InvalidParameter, InvalidSetting
from mlflow_triton.options import OPTIONS
from mlflow_triton.settings import SETTINGS

MODULES = sorted(
    info.name
    for info in pkgutil.walk_packages(mlflow_triton.__path__, "mlflow_triton.")
    if not info.name.startswith("mlflow_triton.embedded.backends")
)

#: What users may import. Everything else is this project's own business.
PUBLIC = {
    "mlflow_triton.deployments": {"TritonDeploymentClient", "run_local", "target_help"},
    "mlflow_triton.flavor": {"FLAVOR_NAME", "check", "load_model", "log_model", "save_model"},
    "mlflow_triton.publish": {"Published", "parse_tags", "publish"},
    "mlflow_triton.errors": {
        "DeploymentBusy", "DeploymentExists", "DeploymentNotFound", "EmbeddedServerError", "InferenceFailed", "InvalidInput",
        "InvalidModel", "InvalidModelConfig", "InvalidName", "InvalidOption", "InvalidParameter", "InvalidSetting",
        "LoadFailed", "ModelNotFound", "RepositoryError", "RepositoryMismatch", "ServerRefused", "ServerTimeout",
        "ServerUnavailable", "SmokeTestFailed", "TritonPluginError",
    },
}  # fmt: skip


def run(script: str, *arguments: str) -> Any:
    """Run a script in a Python of its own; return the JSON that it prints."""
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", textwrap.dedent(script), *arguments],
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


@pytest.mark.parametrize("given", [None, "0"])
def test_grpc_is_asked_for_its_support_of_forks(given: str | None, monkeypatch: pytest.MonkeyPatch) -> None:
    """Before gRPC is imported, which reads that once, and unless the environment says otherwise."""
    monkeypatch.delenv("GRPC_ENABLE_FORK_SUPPORT", raising=False)
    if given:
        monkeypatch.setenv("GRPC_ENABLE_FORK_SUPPORT", given)
    code = (
        "import mlflow_triton, os, sys; print(os.environ['GRPC_ENABLE_FORK_SUPPORT'], 'grpc' in sys.modules)"
    )
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout.split() == [given or "1", "False"]


@pytest.mark.parametrize("name", PUBLIC)
def test_what_is_public(name: str) -> None:
    """The public names of each public module are these, no more and no fewer."""
    assert set(importlib.import_module(name).__all__) == PUBLIC[name]


@pytest.mark.parametrize("name", MODULES)
def test_all_names_are_there(name: str) -> None:
    """Every name in a module's `__all__` exists, once."""
    names = list(getattr(importlib.import_module(name), "__all__", ()))
    assert len(names) == len(set(names))
    assert all(hasattr(sys.modules[name], item) for item in names)


def test_the_entry_point() -> None:
    """MLflow finds the module as the only one for the target triton."""
    (point,) = (item for item in metadata.entry_points(group="mlflow.deployments") if item.name == "triton")
    assert point.value == "mlflow_triton.deployments"
    assert point.dist is not None
    assert point.dist.name == "mlflow-triton-plugin"
    assert point.dist.version == mlflow_triton.__version__


def test_mlflows_plugin_manager_takes_it() -> None:
    """MLflow's own validation finds the interface whole, with exactly one client class."""
    assert DeploymentPlugins()["triton"] is deployments
    clients = [
        name
        for name, value in inspect.getmembers(deployments, inspect.isclass)
        if issubclass(value, BaseDeploymentClient) and value is not BaseDeploymentClient
    ]
    assert clients == ["TritonDeploymentClient"]
    assert type(get_deploy_client("triton")) is TritonDeploymentClient
    assert type(get_deploy_client("triton://host:8000?model_repository=/x")) is TritonDeploymentClient


@pytest.mark.parametrize(
    "method",
    ["create_deployment", "update_deployment", "delete_deployment", "list_deployments", "get_deployment", "predict", "explain"],
)  # fmt: skip
def test_signatures_are_mlflows(method: str) -> None:
    """Each verb has MLflow's parameters, in its order and with its defaults; others by keyword only, and optional.

    What predict takes by any other name, it checks itself.
    """
    ours = inspect.signature(getattr(TritonDeploymentClient, method)).parameters
    theirs = inspect.signature(getattr(BaseDeploymentClient, method)).parameters
    assert [(item.name, item.default, item.kind) for item in ours.values()][: len(theirs)] == [
        (item.name, item.default, item.kind) for item in theirs.values()
    ]
    for item in list(ours.values())[len(theirs) :]:
        if item.kind is not inspect.Parameter.VAR_KEYWORD:
            assert item.kind is inspect.Parameter.KEYWORD_ONLY
            assert item.default is not inspect.Parameter.empty
    assert "endpoint" in ours


def test_run_local_has_the_signature_that_mlflow_calls() -> None:
    """MLflow calls run_local with name, model URI, flavor and config by position, without the target."""
    assert list(inspect.signature(deployments.run_local).parameters) == [
        "name",
        "model_uri",
        "flavor",
        "config",
    ]
    inspect.signature(deployments.run_local).bind("n", "u", None, None)
    assert "run_local(name, model_uri, flavor, config)" in inspect.getsource(mlflow.deployments.run_local)


def test_mlflows_cli_passes_endpoints_on() -> None:
    """Every command of MLflow's CLI that looks at a client's signature finds `endpoint` there."""
    source = inspect.getsource(mlflow_cli)
    for method in (
        "create_deployment",
        "update_deployment",
        "delete_deployment",
        "list_deployments",
        "get_deployment",
        "predict",
    ):
        assert f"signature(client.{method})" in source
        parameter = inspect.signature(getattr(TritonDeploymentClient("triton"), method)).parameters[
            "endpoint"
        ]
        assert parameter.kind is inspect.Parameter.POSITIONAL_OR_KEYWORD
    assert "config" in inspect.signature(TritonDeploymentClient("triton").delete_deployment).parameters


def test_making_a_client_touches_nothing() -> None:
    """A client is made without opening a file, a socket or a process, whatever its settings name."""
    events = run(
        """
        import json, os, sys
        from mlflow_triton.deployments import TritonDeploymentClient
        os.environ.update(TRITON_URL="http://192.0.2.1:8000", TRITON_MODEL_REPO="/nowhere")
        events = []
        sys.addaudithook(lambda name, arguments: events.append(name))
        TritonDeploymentClient("triton")
        TritonDeploymentClient("triton://192.0.2.1?grpc_url=192.0.2.1&model_repository=/nowhere")
        found = list(events)
        print(json.dumps(found))
        """
    )
    assert [
        name for name in events if name.startswith(("open", "os.", "socket.", "subprocess.", "shutil."))
    ] == []


def test_importing_the_entry_point_loads_nothing_heavy() -> None:
    """MLflow's other targets pay nothing for this plugin: importing it loads none of its heavy libraries."""
    loaded = run(
        """
        import json, sys
        import mlflow.deployments
        before = set(sys.modules)
        import mlflow_triton.deployments
        mlflow_triton.deployments.TritonDeploymentClient("triton")
        mlflow_triton.deployments.target_help()
        print(json.dumps(sorted(set(sys.modules) - before)))
        """
    )
    roots = {name.partition(".")[0] for name in loaded}
    assert roots.isdisjoint(
        {
            "tritonclient",
            "gevent",
            "grpc",
            "pandas",
            "numpy",
            "onnx",
            "urllib3",
            "httptools",
            "pytest",
            "platformdirs",
        }
    )
    assert [name for name in loaded if name.startswith("mlflow_triton")] == [
        "mlflow_triton",
        "mlflow_triton.deployments",
        "mlflow_triton.errors",
        "mlflow_triton.options",
        "mlflow_triton.settings",
    ]


def test_predict_loads_no_grpc() -> None:
    """What a prediction needs is loaded without gRPC and gevent, which take longer than the prediction."""
    loaded = run(
        """
        import json, sys
        import mlflow.deployments
        before = set(sys.modules)
        import mlflow_triton.predict
        print(json.dumps(sorted({name.partition(".")[0] for name in set(sys.modules) - before})))
        """
    )
    assert {"tritonclient", "gevent", "grpc", "onnx"}.isdisjoint(loaded)


def test_the_package_is_typed() -> None:
    """Type checkers are told that the package has types."""
    assert (Path(mlflow_triton.__path__[0]) / "py.typed").is_file()


def test_the_help_names_everything() -> None:
    """`mlflow deployments help` shows every variable, default, target parameter and option."""
    text = target_help()
    for setting in SETTINGS:
        assert f"  {setting.environment} (default: {setting.default or 'none'})" in text
        assert setting.help in text
    for option in OPTIONS:
        assert f"-C {option.name}={option.form}" in text
    (line,) = (line for line in text.splitlines() if "NAME is one of" in line)
    assert line.partition("NAME is one of ")[2].split(", ") == [
        item.name for item in SETTINGS if item.in_target
    ]
    assert "{" not in text.replace('{"Authorization": "Bearer …"}', "")


@pytest.mark.parametrize(
    ("method", "arguments"),
    [
        ("create_deployment", ("n", "models:/n/1")),
        ("update_deployment", ("n", "models:/n/1")),
        ("delete_deployment", ("n",)),
        ("list_deployments", ()),
        ("get_deployment", ("n",)),
    ],
)
def test_an_endpoint_is_refused(method: str, arguments: tuple[Any, ...]) -> None:
    """Triton has no endpoints: one that is given is refused before anything else, and is named."""
    client = TritonDeploymentClient("triton://192.0.2.1")
    with pytest.raises(InvalidParameter, match="Triton has no endpoints, but got endpoint 'e'"):
        getattr(client, method)(*arguments, endpoint="e")


@pytest.mark.parametrize(
    ("method", "arguments"),
    [
        ("create_deployment", ("n", "models:/n/1")),
        ("update_deployment", ("n", "models:/n/1")),
        ("delete_deployment", ("n",)),
        ("list_deployments", ()),
        ("get_deployment", ("n",)),
    ],
)
def test_a_repository_is_needed(
    method: str, arguments: tuple[Any, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without a model repository, or with a URL for one, each verb but predict says what to set."""
    monkeypatch.delenv("TRITON_MODEL_REPO", raising=False)
    with pytest.raises(InvalidSetting, match=r"No model repository is set\. Set TRITON_MODEL_REPO"):
        getattr(TritonDeploymentClient("triton://192.0.2.1"), method)(*arguments)
    monkeypatch.setenv("TRITON_MODEL_REPO", "s3://bucket/models")
    with pytest.raises(
        InvalidSetting, match=r"s3://bucket/models .from environment variable TRITON_MODEL_REPO. is a URL"
    ):
        getattr(TritonDeploymentClient("triton://192.0.2.1"), method)(*arguments)


def test_what_the_client_refuses_by_itself() -> None:
    """Options of a deletion, a prediction without a name, and explanations are refused without a server."""
    client = TritonDeploymentClient("triton://192.0.2.1")
    with pytest.raises(
        InvalidParameter,
        match=r"A deletion takes no options .-C. but lock_timeout and dry_run, and got 'version'. Nothing was changed",
    ):
        client.delete_deployment("n", config={"version": "1"})
    for name in (None, ""):
        with pytest.raises(InvalidParameter, match="Which deployment"):
            client.predict(name, {})
    with pytest.raises(InvalidParameter, match="Triton has no explanations"):
        client.explain("n")
