from __future__ import annotations

import os
import platform
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from mlflow_triton.embedded import interpreter, provision, runtime, wheels
from mlflow_triton.embedded.interpreter import PYTHON_VARIABLE, find_interpreter
from mlflow_triton.embedded.runtime import CACHE_VARIABLE
from mlflow_triton.errors import EmbeddedServerError

pytestmark = pytest.mark.slow

PROVISION = """
import logging
logging.basicConfig(level=logging.INFO)
from mlflow_triton.embedded import provision
print(provision().tritonserver)
"""


def start_provisioning(cache: Path) -> subprocess.Popen[str]:
    """Provision into a cache in another process."""
    return subprocess.Popen(
        [sys.executable, "-c", PROVISION],
        env={**os.environ, CACHE_VARIABLE: str(cache)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


@pytest.mark.slow
@pytest.mark.parametrize("moment", ["downloads/requirements.txt", ".partial-*/pytriton"])
def test_provisioning_resumes_and_is_shared(moment: str, tmp_path: Path) -> None:
    """After a kill in the middle, two processes at once end with one complete runtime and no leftovers."""
    cache = tmp_path / "cache"
    with start_provisioning(cache) as killed:
        deadline = time.monotonic() + 120
        while not list(cache.glob(moment)):
            assert killed.poll() is None, killed.communicate()
            assert time.monotonic() < deadline
            time.sleep(0.001)
        killed.kill()
        killed.communicate()
    assert killed.returncode == -signal.SIGKILL
    assert not list(cache.glob("triton-*"))

    with start_provisioning(cache) as first, start_provisioning(cache) as second:
        outputs = [process.communicate(timeout=240) for process in (first, second)]
    assert [first.returncode, second.returncode] == [0, 0], outputs
    (out, _), (other_out, _) = outputs
    assert out == other_out
    assert Path(out.strip()).is_relative_to(cache)
    assert sum(err.count("Preparing Triton") for _, err in outputs) == 1
    assert sorted(path.name.partition("-")[0] for path in cache.iterdir()) == ["lock", "triton"]
    assert not list(cache.glob("triton-*/.partial-*"))


def test_a_provisioned_runtime_is_found_again(monkeypatch: pytest.MonkeyPatch) -> None:
    """A second call downloads nothing, and works on a cache that nobody can write to any more."""
    first = provision()
    monkeypatch.setattr(runtime, "_locked", None)  # any attempt to write would begin with it
    assert provision() == first
    first.verify()


@pytest.mark.parametrize(
    ("gpu", "sizes"), [(False, "100 MB to download, 500 MB"), (True, "2 GB to download, 6 GB")]
)
def test_the_size_is_said_before_the_download(
    gpu: bool,
    sizes: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    """Whoever waits for the download, or pays for it, learns its size before it begins."""
    monkeypatch.setenv(CACHE_VARIABLE, str(tmp_path))
    monkeypatch.setattr(runtime, "_pip", lambda _: ["false"])
    with pytest.raises(EmbeddedServerError, match="pip could not download"):
        provision(gpu=gpu, progress=True)
    assert f"(once; about {sizes} of disk)" in capfd.readouterr().err


@pytest.mark.parametrize("version", ["3.10", "3.11", "3.12"])
def test_the_variants(version: str) -> None:
    """Every Python has both variants, each wheel of them pinned by hash, and only one brings CUDA."""
    plain, gpu = (wheels.variant_for(version, gpu=gpu) for gpu in (False, True))
    servers = [it for it in wheels.SERVERS.values() if version in it.pythons]
    assert wheels.SERVER in [it.wheel for it in servers]
    for wheel in (*(it.wheel for it in servers), *plain.packages, *gpu.packages):
        assert re.fullmatch(r"[a-z0-9-]+==[0-9.]+ --hash=sha256:[0-9a-f]{64}", wheel.requirement)
    names = [wheel.distribution for wheel in gpu.packages]
    assert names[:2] == ["numpy", "onnxruntime-gpu"]
    assert all(name.startswith("nvidia-") for name in names[2:])
    assert [wheel.distribution for wheel in plain.packages] == ["numpy", "onnxruntime"]
    assert plain.name != gpu.name


@pytest.mark.parametrize("name", ["with space", "é"])
def test_a_cache_that_hangs_triton_is_refused(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A cache directory from which Triton's Python backend cannot start is refused before the download."""
    monkeypatch.setenv(CACHE_VARIABLE, str(tmp_path / name))
    with pytest.raises(EmbeddedServerError, match=CACHE_VARIABLE):
        provision()
    assert not (tmp_path / name).exists()


def test_an_unusable_cache_is_told_with_the_remedy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A cache directory that cannot be made leads to one line that names the variable."""
    (tmp_path / "file").touch()
    monkeypatch.setenv(CACHE_VARIABLE, str(tmp_path / "file" / "cache"))
    with pytest.raises(EmbeddedServerError, match=CACHE_VARIABLE):
        provision()


def test_another_platform_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where NVIDIA's wheel cannot run, the error says so and names the alternative."""
    monkeypatch.setattr(platform, "machine", lambda: "aarch64")
    with pytest.raises(EmbeddedServerError, match=r"Linux aarch64.*container"):
        provision()


@pytest.mark.parametrize("libc", ["glibc 2.31", ""])
def test_an_old_or_foreign_libc_is_refused(libc: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A C library that Triton's libraries cannot be loaded with is refused before the download."""
    monkeypatch.setattr(os, "confstr", lambda _: libc)
    with pytest.raises(EmbeddedServerError, match=r"glibc 2\.35"):
        provision()


def test_no_suitable_python_leads_to_the_remedy(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without a Python that can run the models, the error says which ones were looked at, and what to do."""
    monkeypatch.delenv(PYTHON_VARIABLE, raising=False)
    monkeypatch.setattr(interpreter, "_VERSIONS", ("3.98", "3.99"))
    version = f"{sys.version_info.major}.{sys.version_info.minor}"
    with pytest.raises(
        EmbeddedServerError, match=f"is Python {version}.*uv python install.*{PYTHON_VARIABLE}"
    ):
        find_interpreter()


def test_a_named_python_is_the_only_candidate(monkeypatch: pytest.MonkeyPatch) -> None:
    """MLFLOW_TRITON_PYTHON is taken or refused; nothing else is looked for."""
    monkeypatch.setenv(PYTHON_VARIABLE, "false")
    with pytest.raises(EmbeddedServerError, match=f"{PYTHON_VARIABLE}=false .*does not start"):
        find_interpreter()


def test_a_newer_python_makes_room_for_an_older_one(monkeypatch: pytest.MonkeyPatch) -> None:
    """Under Python 3.13, for which there is no NumPy 1, another Python of this machine runs the models."""
    newer = _newer_python()
    monkeypatch.setenv(PYTHON_VARIABLE, newer)
    with pytest.raises(EmbeddedServerError, match=r"is Python 3\.13"):
        find_interpreter()
    monkeypatch.delenv(PYTHON_VARIABLE)
    monkeypatch.setattr(sys, "executable", newer)
    found = find_interpreter()
    assert found.version in {"3.10", "3.11", "3.12"}
    assert found.library.exists()


def _newer_python() -> str:
    pyenv = Path(os.environ.get("PYENV_ROOT") or Path.home() / ".pyenv")
    for candidate in (shutil.which("python3.13"), *pyenv.glob("versions/3.13*/bin/python3.13")):
        if (
            candidate
            and subprocess.run([candidate, "--version"], capture_output=True, check=False).returncode == 0
        ):
            return str(candidate)
    pytest.skip("no Python 3.13 on this machine")
