"""What server and plugin have, found out by asking and trying; what does not apply for want of it is skipped.

A capability is a name:

``plugin``
    A plugin is under test, and not a server alone.
``grpc``, ``metrics``
    The endpoint is known and answers.
``backend:NAME``
    The server has this backend: a trial model of it loads, or fails with another reason than that there is none.
``extension:NAME``
    The server names the extension in its metadata.
``shared memory``
    The server takes part in the system shared memory of this machine.
``gpu``
    The server sees a GPU.
``host files``
    The server sees this machine's files as they are, also beside its model repository.
``restart``
    The launcher can start a server like this one, end it or kill it, and start it again.
``option:NAME``, ``setting:NAME``
    The plugin's ``target_help`` names the option or environment variable.
``target uri``
    The plugin's ``target_help`` shows a target URI with a host.
``method:NAME``
    The plugin's client has a method beyond those of MLflow.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import urllib.error
import urllib.request
import uuid
from dataclasses import dataclass
from multiprocessing import shared_memory
from typing import TYPE_CHECKING, Any

from mlflow_triton.errors import TritonPluginError
from mlflow_triton.serving.control import Control
from mlflow_triton.serving.http import HttpEndpoint
from mlflow_triton.serving.trial import BACKENDS, load_trial
from mlflow_triton.settings import Settings
from mlflow_triton_conformance.report import CapabilityFound, ServerUnderTest
from mlflow_triton_conformance.results import Facts

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from pytest_mlflow_triton.handles import TritonServer

__all__ = ["Capabilities", "of_plugin", "of_server"]

_TIMEOUT = 60.0  # seconds for a trial model
_NO_BACKEND = re.compile(r"unable to find .*(backend|libtriton)", re.IGNORECASE)


@dataclass(frozen=True, slots=True)
class Capabilities:
    """What is there.

    Attributes:
        found: By name; a name that is not there is one of nothing that server and plugin have told of.
        lacks: Why a feature is said to be missing, by name.
    """

    found: Mapping[str, CapabilityFound]
    lacks: Mapping[str, str]

    def missing(self, needs: Iterable[str]) -> str:
        """Say which of these capabilities is missing, and why; nothing if none is."""
        for name in needs:
            if name in self.lacks:
                return f"{name}: the subject is said to lack it: {self.lacks[name]}"
            found = self.found.get(name)
            if found is None:
                return f"{name}: {_UNTOLD.get(name.partition(':')[0], 'not found')}"
            if not found["present"]:
                return f"{name}: {found['detail']}"
        return ""


_UNTOLD = {
    "extension": "not among the extensions that the server names",
    "option": "not among the options that target_help names",
    "setting": "not among the settings that target_help names",
    "method": "not among the methods of the plugin's client",
}


def of_server(server: TritonServer, *, gpu: bool) -> Facts:
    """Ask a server what it is, and try what it does not tell.

    Args:
        server: The server.
        gpu: Whether it may have a GPU, so that it is worth to ask.
    """
    with urllib.request.urlopen(f"{server.http_url}/v2", timeout=10) as answer:
        told = json.load(answer)
    extensions = [str(name) for name in told.get("extensions", [])]
    found = {
        f"extension:{name}": CapabilityFound(present=True, detail="named in the server's metadata")
        for name in extensions
    }
    found |= _backends(server) if "model_repository" in extensions else _untried()
    found["grpc"] = CapabilityFound(
        present=bool(server.grpc_url), detail=server.grpc_url or "no --triton-grpc-url"
    )
    found["metrics"] = _metrics(server)
    found["shared memory"] = _shared_memory(server, extensions)
    if gpu:
        found["gpu"] = _gpu(server, python=found["backend:python"]["present"])
    else:
        found["gpu"] = CapabilityFound(present=False, detail="the server was given none (--triton-gpu)")
    embedded = CapabilityFound(
        present=server.launcher == "embedded", detail=f"a server of the launcher {server.launcher}"
    )
    found["host files"] = found["restart"] = embedded
    described = ServerUnderTest(
        name=str(told.get("name", "")),
        version=str(told.get("version", "")),
        extensions=extensions,
        launcher=server.launcher,
        url=server.http_url,
    )
    return Facts(server=described, capabilities=found)


def of_plugin(help_text: str, client: object) -> dict[str, CapabilityFound]:
    """Read what a plugin has from its help and its client.

    Args:
        help_text: What ``target_help`` returns.
        client: The deployment client.
    """
    in_help = "named by target_help"
    settings = re.findall(r"\b(?:TRITON|MLFLOW)_[A-Z_]+\b", help_text)
    named = {f"setting:{name}" for name in settings} | {
        f"option:{name}" for name in re.findall(r"(?:-C \"?|^\s*- )([a-z_]+)\b", help_text, re.MULTILINE)
    }
    found = {name: CapabilityFound(present=True, detail=in_help) for name in sorted(named)}
    shown = re.search(r"\w+://\S+", help_text)
    found["target uri"] = CapabilityFound(
        present=shown is not None, detail=shown[0] if shown else "target_help shows no target URI"
    )
    methods = [name for name in ("rollback_deployment", "restore", "history") if hasattr(client, name)]
    found |= {f"method:{name}": CapabilityFound(present=True, detail="the client has it") for name in methods}
    return found


def _backends(server: TritonServer) -> dict[str, CapabilityFound]:
    environment = os.environ | {"TRITON_URL": server.http_url, "TRITON_GRPC_URL": server.grpc_url or ""}
    settings = Settings.parse("triton", environment)
    control = Control(HttpEndpoint(settings), settings)
    names = {backend: f"trial-{uuid.uuid4().hex[:8]}" for backend in BACKENDS}
    # One after another: two first loads of the Python backend at once end Triton 2.41.
    reasons = {backend: _trial(control, backend, name) for backend, name in names.items()}
    works = [backend for backend, reason in reasons.items() if reason is None]
    for backend, reason in reasons.items():
        if (
            reason is not None and works
        ):  # a failed load makes the server unready until one of that name succeeds
            _trial(control, works[0], names[backend])
    return {
        f"backend:{backend}": CapabilityFound(
            present=reason is None or not _NO_BACKEND.search(reason), detail=reason or "loads a trial model"
        )
        for backend, reason in reasons.items()
    }


def _untried() -> dict[str, CapabilityFound]:
    detail = "no model can be loaded: the server has no extension model_repository"
    return {f"backend:{backend}": CapabilityFound(present=False, detail=detail) for backend in BACKENDS}


def _trial(control: Control, backend: str, name: str) -> str | None:
    try:
        return load_trial(control, backend, name, version=1, timeout=_TIMEOUT)
    except TritonPluginError as error:
        return error.message


def _metrics(server: TritonServer) -> CapabilityFound:
    if server.metrics_url is None:
        return CapabilityFound(present=False, detail="no --triton-metrics-url")
    try:
        with urllib.request.urlopen(server.metrics_url, timeout=10):
            return CapabilityFound(present=True, detail=server.metrics_url)
    except (urllib.error.URLError, OSError) as error:
        return CapabilityFound(present=False, detail=f"{server.metrics_url}: {error}")


def _shared_memory(server: TritonServer, extensions: Iterable[str]) -> CapabilityFound:
    if "system_shared_memory" not in extensions:
        return CapabilityFound(present=False, detail="the server has no extension system_shared_memory")
    region = shared_memory.SharedMemory(create=True, size=64)
    url = f"{server.http_url}/v2/systemsharedmemory/region/{region.name}"
    try:
        _post(f"{url}/register", {"key": f"/{region.name}", "offset": 0, "byte_size": 64})
        _post(f"{url}/unregister", {})
    except urllib.error.HTTPError as error:
        return CapabilityFound(present=False, detail=error.read().decode(errors="replace"))
    finally:
        region.close()
        region.unlink()
    return CapabilityFound(present=True, detail="the server has registered a region of this machine")


def _post(url: str, document: Any) -> None:
    """Send JSON.

    Raises:
        urllib.error.HTTPError: It is refused.
    """
    request = urllib.request.Request(url, json.dumps(document).encode(), method="POST")
    with contextlib.closing(urllib.request.urlopen(request, timeout=10)):
        pass


def _gpu(server: TritonServer, *, python: bool) -> CapabilityFound:
    if not python:
        return CapabilityFound(present=False, detail="cannot be asked for without the Python backend")
    gpus = server.gpus
    return CapabilityFound(
        present=bool(gpus), detail=", ".join(gpu.name for gpu in gpus) or "the server sees none"
    )
