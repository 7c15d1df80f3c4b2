"""Models that load wherever their backend does, sent to the server and not to its repository.

They answer two questions that Triton has no call for: is a backend there, and can a server be made
ready again after a failed load.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

from mlflow_triton.errors import LoadFailed

if TYPE_CHECKING:
    from mlflow_triton.serving.control import Control

__all__ = ["BACKENDS", "load_trial"]

#: An ONNX model that hands one float through (IR version 8, opset 13).
IDENTITY = bytes.fromhex(
    "08083a370a100a017812017922084964656e746974791201675a0f0a0178120a0a08080112040a020801"
    "620f0a0179120a0a08080112040a02080142040a00100d"
)
SILENT = b"class TritonPythonModel:\n    def execute(self, requests):\n        return []\n"
BACKENDS = {"onnxruntime": ("model.onnx", IDENTITY), "python": ("model.py", SILENT)}


def load_trial(control: Control, backend: str, name: str, *, version: int, timeout: float) -> str | None:
    """Load the trial model of a backend under a name that nothing serves, and unload it.

    Args:
        control: The server.
        backend: A key of `BACKENDS`.
        name: The model's name.
        version: Its version.
        timeout: Seconds for the load, and for the unload.

    Returns:
        ``None`` if it loaded, else Triton's reason. A load that failed has made a server with strict
        readiness unready, until another trial of this name and version succeeds.
    """
    file, content = BACKENDS[backend]
    config = {
        "name": name,
        "backend": backend,
        "max_batch_size": 0,
        "input": [{"name": "x", "data_type": "TYPE_FP32", "dims": [1]}],
        "output": [{"name": "y", "data_type": "TYPE_FP32", "dims": [1]}],
        "instance_group": [{"kind": "KIND_CPU", "count": 1}],
        "version_policy": {"specific": {"versions": [version]}},
    }
    try:
        control.load(
            name, config_json=json.dumps(config), files={f"{version}/{file}": content}, timeout=timeout
        )
    except LoadFailed as error:
        return error.message
    control.unload(name, timeout=timeout)
    return None
