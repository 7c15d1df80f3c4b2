"""Publish a model to MLflow, deploy it to Triton, predict, update, delete: real servers, real commands.

Every command is printed before it runs, to be copied. Both servers run on free ports of this machine
and are ended afterwards. Needs only mlflow-triton-plugin in the environment: no Docker, no GPU.
"""

from __future__ import annotations

import json
import os
import shlex
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from contextlib import contextmanager, suppress
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING

from mlflow_triton.embedded.runtime import provision

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

MODEL = "onnx_float32_int32_int32"
PUBLISH = f"python publish_model_to_mlflow.py --model_name {MODEL} --model_directory {MODEL} --flavor triton"
EXPECTED_OUTPUT = "expected_output.json"


def main() -> None:
    """Go the whole way once."""
    os.chdir(Path(__file__).resolve().parent)
    with TemporaryDirectory(prefix="mlflow-triton-quickstart-") as name, servers(Path(name)):
        output = Path(name, "output.json")

        run(PUBLISH)
        run(f"mlflow deployments create -t triton --name {MODEL} -m models:/{MODEL}/1 --flavor triton")
        run("mlflow deployments list -t triton")
        run(f"mlflow deployments get -t triton --name {MODEL}")
        predict(output)

        run(PUBLISH)  # version 2, which takes the place of version 1
        run(f"mlflow deployments update -t triton --name {MODEL} -m models:/{MODEL}/2 --flavor triton")
        predict(output)

        run(f"mlflow deployments delete -t triton --name {MODEL}")
    print(f"\nDone. The predictions of both versions equal {EXPECTED_OUTPUT}.")


def predict(output: Path) -> None:
    """Predict with what is deployed, and compare the answer with the expected one."""
    run(f"mlflow deployments predict -t triton --name {MODEL} --input-path input.json --output-path {output}")
    actual, expected = (json.loads(Path(path).read_text()) for path in (output, EXPECTED_OUTPUT))
    if actual != expected:
        sys.exit(
            f"\nWrong: the prediction differs from {EXPECTED_OUTPUT}.\nexpected {expected}\nfound    {actual}"
        )
    print(f"The prediction equals {EXPECTED_OUTPUT}: {json.dumps(actual)}")


def run(command: str) -> None:
    """Print a command and run it; end here if it fails."""
    print(f"\n$ {command}", flush=True)
    if code := subprocess.run(shlex.split(command), check=False).returncode:
        sys.exit(f"\nFailed: the command above ended with exit code {code}.")


@contextmanager
def servers(directory: Path) -> Iterator[None]:
    """Run both servers, and set the variables by which MLflow and the plugin find them."""
    repository, ready_file = directory / "model_repository", directory / "triton.json"
    repository.mkdir()
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    mlflow_uri = f"http://127.0.0.1:{port}"
    os.environ["MLFLOW_SERVER_ENABLE_JOB_EXECUTION"] = "false"  # not needed here, and slow to start

    def mlflow_ready() -> bool:
        with suppress(OSError), urllib.request.urlopen(f"{mlflow_uri}/health", timeout=5) as answer:
            return bool(answer.status == 200)
        return False

    triton = f"mlflow-triton serve --model-repository {repository} --ready-file {ready_file}"
    mlflow = (
        f"mlflow server --host 127.0.0.1 --port {port} --workers 1"
        f" --backend-store-uri sqlite:///{directory}/mlflow.db --artifacts-destination {directory}/artifacts"
    )
    provision()  # the first time ever, this downloads the Triton server
    with (
        server(triton, directory / "triton.log") as wait_for_triton,
        server(mlflow, directory / "mlflow.log") as wait_for_mlflow,
    ):
        wait_for_triton(ready_file.exists, timeout=120)
        wait_for_mlflow(mlflow_ready, timeout=180)
        urls = json.loads(ready_file.read_text())
        variables = {
            "MLFLOW_TRACKING_URI": mlflow_uri,
            "TRITON_URL": urls["http_url"],
            "TRITON_GRPC_URL": urls["grpc_url"],
            "TRITON_MODEL_REPO": str(repository),
        }
        os.environ.update(variables)
        print("\nBoth servers are ready:")
        for variable in variables.items():
            print("export {}={}".format(*variable))
        yield


@contextmanager
def server(command: str, log: Path) -> Iterator[Callable[..., None]]:
    """Run a server until the block ends; yield a function that waits until it is ready."""
    print(f"$ {command} &", flush=True)
    with log.open("wb") as file:
        process = subprocess.Popen(
            shlex.split(command), stdout=file, stderr=subprocess.STDOUT, start_new_session=True
        )

    def wait_until(ready: Callable[[], bool], timeout: float) -> None:
        deadline = time.monotonic() + timeout
        while not ready():
            if process.poll() is not None:
                sys.exit(f"\nFailed: '{command}' ended with exit code {process.returncode}.")
            if time.monotonic() > deadline:
                sys.exit(f"\nFailed: '{command}' was not ready after {timeout:g} seconds.")
            time.sleep(0.1)

    try:
        yield wait_until
    except (Exception, SystemExit):
        print(f"\nThe end of {log.name}:", *log.read_text(errors="replace").splitlines()[-20:], sep="\n  ")
        raise
    finally:
        for number, patience in (signal.SIGTERM, 20), (signal.SIGKILL, None):
            with suppress(ProcessLookupError, subprocess.TimeoutExpired):
                os.killpg(process.pid, number)
                process.wait(patience)


if __name__ == "__main__":
    # Servers that this shell is set up for have no part in this.
    for variable in [name for name in os.environ if name.startswith(("MLFLOW_", "TRITON_"))]:
        if not variable.startswith("MLFLOW_TRITON_"):
            del os.environ[variable]
    # The commands are those of this environment, also when it is not activated ...
    os.environ["PATH"] = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    # ... and reach the servers on this machine directly, also when downloads go through a proxy.
    os.environ["no_proxy"] = f"127.0.0.1,{os.environ.get('no_proxy', os.environ.get('NO_PROXY', ''))}"
    signal.signal(signal.SIGTERM, lambda *_: sys.exit("\nTerminated."))
    try:
        main()
    except KeyboardInterrupt:
        sys.exit("\nInterrupted.")
