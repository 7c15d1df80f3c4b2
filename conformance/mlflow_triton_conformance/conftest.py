"""What every chapter of the suite needs."""

from __future__ import annotations

import hashlib
import json
import urllib.request
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import HealthCheck, settings
from mlflow.deployments import get_deploy_client

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from pytest_mlflow_triton.fixtures.servers import Isolation
    from pytest_mlflow_triton.handles import MlflowServer, TritonServer

# One server answers every example of a property, and it is not the examples' time that is tested.
settings.register_profile(
    "conformance", deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=50
)
settings.load_profile("conformance")


def pytest_configure(config: pytest.Config) -> None:
    """Declare the suite's marker, also where no pyproject.toml does."""
    config.addinivalue_line("markers", "slow: left out of the suite's quick part (-m 'not slow')")


@pytest.fixture(scope="session")
def triton_isolation() -> Isolation:
    """Under pytest-xdist, each worker has servers of its own: tests look at all that a server has."""
    return "worker"


@pytest.fixture(scope="module")
def module_client(triton_server: TritonServer, mlflow_server: MlflowServer) -> Iterator[Any]:
    """A deployment client for what a module deploys once, for all of its tests."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MLFLOW_TRACKING_URI", mlflow_server.tracking_uri)
        patch.setenv("TRITON_URL", triton_server.http_url)
        patch.setenv("TRITON_GRPC_URL", triton_server.grpc_url or "")
        patch.setenv("TRITON_MODEL_REPO", str(triton_server.model_repository))
        yield get_deploy_client("triton")


@pytest.fixture
def world(triton_server: TritonServer) -> Callable[[], object]:
    """Take a picture of all that a failed operation must not change: the server's index and every file."""

    def picture() -> object:
        request = urllib.request.Request(
            f"{triton_server.http_url}/v2/repository/index", data=b"{}", method="POST"
        )
        with urllib.request.urlopen(request, timeout=10) as answer:
            index = json.load(answer)
        root = triton_server.model_repository
        beside = [path.name for path in root.parent.iterdir() if path.name.startswith(".mlflow-triton-")]
        # A model that another test unloaded may still be leaving.
        return sorted(map(str, (e for e in index if e.get("state") != "UNLOADING"))), _files(root), beside

    return picture


def _files(root: Path) -> dict[str, str]:
    # Triton's Python backend writes __pycache__ while it loads a model.
    return {
        str(path.relative_to(root)): hashlib.sha256(path.read_bytes()).hexdigest() if path.is_file() else ""
        for path in sorted(root.rglob("*"))
        if "__pycache__" not in path.parts
    }
