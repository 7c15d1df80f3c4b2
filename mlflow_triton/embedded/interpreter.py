"""Which Python runs the models of the embedded server.

Triton's Python backend starts one *stub* process per model instance. The stub is linked to
``libpython3.X.so.1.0`` and was built for NumPy 1 (with NumPy 2, outputs arrive empty and without an error).
NumPy 1 has wheels up to Python 3.12. So the server needs a CPython 3.10, 3.11 or 3.12 that has a shared
libpython; it need not be the Python that runs MLflow.
"""

# ruff: noqa: S603 - programs are started from lists of arguments, without a shell

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from mlflow_triton import lazy_errors as errors

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = ["PYTHON_VARIABLE", "Interpreter", "find_interpreter"]

PYTHON_VARIABLE = "MLFLOW_TRITON_PYTHON"

_VERSIONS = ("3.12", "3.11", "3.10")

_DESCRIBE = """
import json, sys, sysconfig
print(json.dumps({
    "implementation": sys.implementation.name,
    "version": "%d.%d" % sys.version_info[:2],
    "prefix": sys.base_prefix,
    "libraries": sysconfig.get_config_var("LIBDIR"),
}))
"""


@dataclass(frozen=True, slots=True)
class Interpreter:
    """A Python installation that can run Triton's Python backend.

    Attributes:
        executable: The installation's own executable, never that of a virtual environment.
        version: Its minor version, such as ``3.11``.
        library: Its ``libpython3.X.so.1.0``.
    """

    executable: Path
    version: str
    library: Path


def find_interpreter(versions: tuple[str, ...] | None = None) -> Interpreter:
    """Find a Python for the embedded server, the one that runs this code if it will do.

    The environment variable ``MLFLOW_TRITON_PYTHON`` (a path or a command) decides alone when it is set.

    Args:
        versions: The minor versions that will do, the best one first; by default all that there is NumPy 1 for.

    Raises:
        EmbeddedServerError: No Python on this machine will do; the message names each one that was tried.
    """
    versions = versions or _VERSIONS
    chosen = os.environ.get(PYTHON_VARIABLE)
    if chosen:
        found = _examine(shutil.which(chosen) or chosen, versions)
        if isinstance(found, Interpreter):
            return found
        raise errors.EmbeddedServerError(
            f"{PYTHON_VARIABLE}={chosen} cannot run the embedded Triton server: it {found}. Set it to a "
            f"CPython {_named(versions)} that has a shared libpython, or unset it to let one be looked for."
        )
    refused = []
    for candidate in _candidates(versions):
        found = _examine(candidate, versions)
        if isinstance(found, Interpreter):
            return found
        refused.append(f"{candidate} {found}")
    raise errors.EmbeddedServerError(
        f"The embedded Triton server needs a CPython {_named(versions)} that has a shared libpython, beside the "
        f"Python that runs this command, and none was found: {'; '.join(refused) or 'there is no other Python'}. "
        "Install one (`uv python install 3.12`, `conda create -n triton python=3.12`, or libpython3.X with "
        f"your system's package manager), or name one with {PYTHON_VARIABLE}."
    )


def _named(versions: tuple[str, ...]) -> str:
    return f"{', '.join(versions[:-1])} or {versions[-1]}"


def _candidates(versions: tuple[str, ...]) -> Iterator[str]:
    """Name each Python worth a look once, the most natural choice first."""
    pyenv = Path(os.environ.get("PYENV_ROOT") or Path.home() / ".pyenv")
    data = Path(os.environ.get("XDG_DATA_HOME") or Path.home() / ".local" / "share")
    managed = Path(os.environ.get("UV_PYTHON_INSTALL_DIR") or data / "uv" / "python")
    places: list[str] = [sys.executable]
    for version in versions:
        places.append(shutil.which(f"python{version}") or "")
        places += [str(found) for found in sorted(pyenv.glob(f"versions/{version}*/bin/python{version}"))]
        places += [str(found) for found in sorted(managed.glob(f"cpython-{version}*/bin/python{version}"))]
        places += [f"{folder}/python{version}" for folder in ("/usr/local/bin", "/usr/bin")]
    seen = set()
    for place in places:
        if place and Path(place).exists() and (real := os.path.realpath(place)) not in seen:
            seen.add(real)
            yield place


def _examine(executable: str, versions: tuple[str, ...]) -> Interpreter | str:
    """Return the installation behind an executable, or why it will not do."""
    try:
        answer = subprocess.run(
            [executable, "-I", "-S", "-c", _DESCRIBE], capture_output=True, check=True, text=True, timeout=30
        )
        about = json.loads(answer.stdout)
    except (OSError, subprocess.SubprocessError, ValueError):
        return "does not start"  # a pyenv shim of a version that is not selected, for one
    version = str(about["version"])
    if about["implementation"] != "cpython":
        return f"is {about['implementation']}"
    if version not in versions:
        return f"is Python {version}"
    prefix = Path(about["prefix"])
    installed = prefix / "bin" / f"python{version}"
    if not installed.exists():
        return f"has no {installed}"
    name = f"libpython{version}.so.1.0"
    for folder in (about["libraries"], prefix / "lib"):
        library = Path(folder or prefix) / name
        if library.exists():
            return Interpreter(executable=installed, version=version, library=library)
    return f"has no shared library {name}"
