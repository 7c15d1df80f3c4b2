"""What every benchmark is given: a directory of its own, servers that end with it, and models that say which they are."""

from __future__ import annotations

import itertools
import os
import shutil
import sys
import time
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any
from urllib.parse import urlencode

import mlflow
from mlflow.deployments import get_deploy_client

from benchmarks.figures import Quantity
from benchmarks.requester import over_http
from mlflow_triton import flavor
from mlflow_triton.embedded import EmbeddedTriton
from pytest_mlflow_triton.servers import embedded
from pytest_mlflow_triton.servers.specs import MlflowSpec, Place

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping
    from pathlib import Path

__all__ = ["Bench", "Logged", "Triton", "interleaved", "seconds"]

#: Complete, so that Triton need not find anything out. One instance, as each is a process.
CONFIG = """\
backend: "python"
max_batch_size: 0
instance_group [ { count: 1 kind: KIND_CPU } ]
input [ { name: "x" data_type: TYPE_INT32 dims: [ 1 ] } ]
output [ { name: "y" data_type: TYPE_INT32 dims: [ 1 ] } ]
"""
MODEL = """\
import time

import numpy as np
import triton_python_backend_utils as pb_utils


class TritonPythonModel:
    def initialize(self, args):
        time.sleep(%(load_seconds)s)

    def execute(self, requests):
        answer = np.array([%(number)s], np.int32)
        return [pb_utils.InferenceResponse([pb_utils.Tensor("y", answer)]) for _ in requests]
"""
#: The large file beside a model; Triton never reads it.
WEIGHTS = "weights.bin"
_BLOCK = 1 << 20


@dataclass(frozen=True, slots=True)
class Logged:
    """A model in MLflow.

    Attributes:
        uri: Its URI.
        number: What it answers.
        files: Path in the model's directory to where the file is: a path or a URL.
    """

    uri: str
    number: int
    files: Mapping[str, str]


class Triton(EmbeddedTriton):
    """An embedded Triton, and the plugin's clients for it."""

    def target(self, *, grpc: bool = True) -> str:
        """Return the target URI; without `grpc`, models are controlled over HTTP."""
        query = {"model_repository": str(self.model_repository)}
        if grpc:
            query["grpc_url"] = self.grpc_url
        return f"{self.http_url.replace('http://', 'triton://')}?{urlencode(query)}"

    def client(self, *, grpc: bool = True) -> Any:
        """Return MLflow's deployment client for that target."""
        return get_deploy_client(self.target(grpc=grpc))

    def wrong(self, name: str, number: int) -> list[str]:
        """Ask a model which one it is; return what is wrong with the answer."""
        answer = over_http(self.http_url.removeprefix("http://"), name)()
        return (
            [] if answer == number else [f"{name!r} is to be model {number}, and answers as model {answer}"]
        )


class Bench:
    """One run.

    Args:
        directory: Where everything of the run lies; on one filesystem, and removed by the caller.
        quick: Take small sizes and few turns: enough to see that everything works.
    """

    def __init__(self, directory: Path, *, quick: bool) -> None:
        self.directory = directory
        self.quick = quick
        self._numbers = itertools.count(1)

    @contextmanager
    def triton(self, *arguments: str) -> Iterator[Triton]:
        """Run a Triton server with an empty repository of its own.

        Args:
            arguments: More arguments for tritonserver.
        """
        repository = self._new("repository")
        repository.mkdir()
        with Triton(repository, arguments=arguments) as server:
            yield server

    @contextmanager
    def mlflow_server(self) -> Iterator[None]:
        """Run ``mlflow server``, which hands out its artifacts itself, and have MLflow's client use it."""
        directory = self._new("mlflow-server")
        directory.mkdir()
        place = Place(directory, directory / "log", {}, self.say)
        with embedded.mlflow(MlflowSpec("embedded"), place) as server, _tracking(server.tracking_uri):
            mlflow.set_experiment("benchmark")
            yield

    @contextmanager
    def mlflow_files(self) -> Iterator[None]:
        """Have MLflow's client keep models as files on this filesystem, without a server."""
        directory = self.directory / "mlflow-files"
        with _tracking(f"sqlite:///{directory}/mlflow.db"):
            if not directory.exists():
                directory.mkdir()
                mlflow.create_experiment("benchmark", artifact_location=str(directory / "artifacts"))
            mlflow.set_experiment("benchmark")
            yield

    def save(self, number: int, *, load_seconds: float = 0, size: int = 0) -> Path:
        """Write a model as a directory in Triton's layout.

        Args:
            number: What it answers (``y``, INT32) to any ``x``.
            load_seconds: How long it takes to load, beyond the start of its process.
            size: Bytes of the file that lies beside it.
        """
        directory = self._new("model")
        version = directory / "1"
        version.mkdir(parents=True)
        (directory / "config.pbtxt").write_text(CONFIG)
        (version / "model.py").write_text(MODEL % {"number": number, "load_seconds": load_seconds})
        if size:
            block = os.urandom(_BLOCK)
            with (version / WEIGHTS).open("wb") as file:
                for start in range(0, size, _BLOCK):
                    file.write(block[: size - start])
        return directory

    def log(self, number: int, *, size: int = 0) -> Logged:
        """Log such a model to MLflow, wherever that is at present."""
        directory = self.save(number, size=size)
        info = flavor.log_model(directory, name="model", registered_model_name=directory.name)
        shutil.rmtree(directory)
        location = mlflow.MlflowClient().get_logged_model(info.model_id).artifact_location
        base = f"{location}/{directory.name}"
        if base.startswith("mlflow-artifacts:/"):
            path = base.removeprefix("mlflow-artifacts:/").lstrip("/")
            base = f"{mlflow.get_tracking_uri()}/api/2.0/mlflow-artifacts/artifacts/{path}"
        files = ["config.pbtxt", "1/model.py", *([f"1/{WEIGHTS}"] if size else [])]
        return Logged(f"models:/{directory.name}/1", number, {file: f"{base}/{file}" for file in files})

    def save_for_mlflow(self, number: int, *, load_seconds: float = 0) -> str:
        """Write the same as a model of MLflow's and return its path, which is a model URI."""
        path = self._new("saved")
        flavor.save_model(self.save(number, load_seconds=load_seconds), path)
        return str(path)

    def say(self, text: str) -> None:
        """Tell the user what is going on, aside from the results."""
        print(text, file=sys.stderr, flush=True)

    def _new(self, kind: str) -> Path:
        return self.directory / f"{kind}-{next(self._numbers)}"


@contextmanager
def _tracking(uri: str) -> Iterator[None]:
    before = os.environ.get("MLFLOW_TRACKING_URI")
    os.environ["MLFLOW_TRACKING_URI"] = uri  # the processes that measure are to see it
    mlflow.set_tracking_uri(uri)
    try:
        yield
    finally:
        os.environ.pop("MLFLOW_TRACKING_URI")
        if before is not None:
            os.environ["MLFLOW_TRACKING_URI"] = before
        mlflow.set_tracking_uri("")


def seconds(function: Callable[[], object]) -> float:
    """Call a function and return how many seconds it took."""
    start = time.perf_counter()
    function()
    return time.perf_counter() - start


def interleaved(turns: int, ways: dict[str, Callable[[], float]]) -> dict[str, Quantity]:
    """Measure several ways in turns, so that what else the machine does meets all of them alike.

    Args:
        turns: How often each one is measured.
        ways: Name to function, which does one turn and returns the seconds that count.
    """
    samples: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(turns):
        for name, way in ways.items():
            samples[name].append(way())
    return {name: Quantity(tuple(values), "s") for name, values in samples.items()}
