"""The sessions that contributors and CI run: ``nox --list``. Versions and groups come from pyproject.toml."""

from __future__ import annotations

import json
import os
import re
import shutil
import sys
import tempfile
from pathlib import Path

import nox

nox.needs_version = ">=2025.2.9"
nox.options.sessions = ["lint", "conformance"]
nox.options.reuse_venv = "yes"
nox.options.error_on_external_run = True

ROOT = Path(__file__).parent
PROJECT = nox.project.load_toml("pyproject.toml")
FOLDERS = ("mlflow_triton", "fixtures", "conformance", "examples", "noxfile.py")
PYTEST = ("pytest", "--timeout=300")
#: The tests mostly wait for servers, of which each worker has its own: on two cores, two workers leave half of the time unused.
#: In the order of collection, which has the longest files first: pytest-xdist's own goes by the number of a file's tests.
WORKERS = ("--numprocesses=4", "--dist=loadfile", "--no-loadscope-reorder")
PARALLEL = (*PYTEST, *WORKERS)
#: NVIDIA's plugin, under another name.
NVIDIA = """\
[project]
name = "mlflow-triton-nvidia"
version = "%s"
dependencies = ["mlflow", "tritonclient[all]", "boto3"]
entry-points."mlflow.deployments".nvidia = "nvidia_mlflow_triton.deployments"
"""
BUILD_IMAGES = ("python", "fixtures/images/build.py")


def group(name: str) -> tuple[str, ...]:
    """Return a dependency group without the project itself, which each session installs in its own way."""
    requirements = nox.project.dependency_groups(PROJECT, name)
    return tuple(item for item in requirements if not item.startswith(PROJECT["project"]["name"]))


@nox.session
def quickstart(session: nox.Session) -> None:
    """Publish, deploy, predict: the example, on a real MLflow server and a real Triton."""
    session.install("-e", ".")
    session.run("python", "examples/quickstart.py", *session.posargs)


@nox.session
def conformance(session: nox.Session) -> None:
    """Run every test, four files at once; arguments go to pytest: ``-- --numprocesses=0`` for one at a time."""
    session.install("-e", ".[conformance]", *group("test"))
    session.run(*PARALLEL, *session.posargs)


@nox.session
def versions(session: nox.Session) -> None:
    """Run the suite's quick part on every embedded Triton, or on those named: ``-- 2.36.0 2.51.0``; compare their reports.

    Each one is a download of 50 MB, once. The reports go to reports/versions.
    """
    session.install("-e", ".[conformance]", *group("test"))
    listed = ("python", "-c", "from mlflow_triton.embedded.wheels import SERVERS; print(*SERVERS)")
    chosen = session.posargs or str(session.run(*listed, silent=True)).split()
    reports = ROOT / "reports" / "versions"
    suite = (
        "--pyargs",
        "mlflow_triton_conformance",
        "--conformance-profile=quick",
        "--mlflow-launcher=embedded",
    )
    # Not below this directory, where pytest would find the project's own settings.
    with tempfile.TemporaryDirectory() as empty, session.chdir(empty):
        for version in chosen:
            known = ROOT / "conformance" / "known" / f"triton-{version}.txt"
            arguments = [f"--conformance-expectations={known}"] if known.exists() else []
            arguments += [f"--conformance-report={reports / version}", f"--triton-version={version}"]
            session.run(*PARALLEL, *suite, "--triton-launcher=embedded", *arguments, success_codes=[0, 1])
    files = [str(reports / version / "report.json") for version in chosen]
    if len(files) > 1:
        session.run(
            "mlflow-triton-conformance", "compare", *files, "--output", str(reports / "comparison.html")
        )
    verdicts = {
        version: json.loads(Path(file).read_text("utf-8"))["verdict"]
        for version, file in zip(chosen, files, strict=True)
    }
    session.log(", ".join(f"{version}: {verdict}" for version, verdict in verdicts.items()))
    if "failed" in verdicts.values():
        session.error("a version failed")


@nox.session
def nvidia(session: nox.Session) -> None:
    """Run the suite's quick part against NVIDIA's plugin: ``-- DIRECTORY``, a checkout's deploy/mlflow-triton-plugin.

    That plugin has this one's package name and target, so a copy of it is installed under others; and it needs MLflow 2. The
    report goes to reports/nvidia. The session fails only if the suite did not get to its end.
    """
    if len(session.posargs) != 1:
        session.error(
            "name the directory deploy/mlflow-triton-plugin of a checkout of triton-inference-server/server"
        )
    version = re.findall(r'version="(.+?)"', Path(session.posargs[0], "setup.py").read_text("utf-8"))[0]
    copy = Path(session.create_tmp()).resolve() / "plugin"
    shutil.rmtree(copy, ignore_errors=True)
    shutil.copytree(Path(session.posargs[0], "mlflow_triton"), copy / "nvidia_mlflow_triton")
    for file in copy.rglob("*.py"):
        file.write_text(file.read_text("utf-8").replace("mlflow_triton", "nvidia_mlflow_triton"), "utf-8")
    (copy / "pyproject.toml").write_text(NVIDIA % version, "utf-8")
    session.install("-e", ".[conformance]", *group("test"), str(copy), "mlflow<3", "sqlalchemy<2.1")
    report = ROOT / "reports" / "nvidia"
    suite = (
        "--pyargs",
        "mlflow_triton_conformance",
        "--deployments-target=nvidia",
        "--conformance-profile=quick",
    )
    servers = ("--triton-launcher=embedded", "--mlflow-launcher=embedded")
    # Not below this directory, where pytest would find the project's own settings.
    with tempfile.TemporaryDirectory() as empty, session.chdir(empty):
        session.run(*PARALLEL, *suite, *servers, f"--conformance-report={report}", success_codes=[0, 1])


@nox.session
def benchmark(session: nox.Session) -> None:
    """Measure the plugin beside floors: ``-- [names] [--quick] [--json FILE]``; ``-- --help`` lists the names."""
    session.install("-e", ".[conformance]")
    session.run("python", "-m", "benchmarks", *session.posargs)


@nox.session
def mutants(session: nox.Session) -> None:
    """Try the suite on subjects with one defect each: ``-- [words] [--table FILE]``; it fails if one survives."""
    session.install("-e", ".[conformance]", *group("test"))
    session.run("python", "-m", "mutants", *session.posargs)


@nox.session
def images(session: nox.Session) -> None:
    """Build the container images, or those named: ``-- triton mlflow``; ``-- --help`` lists them."""
    session.install("-e", ".")
    session.run(*BUILD_IMAGES, *session.posargs)


@nox.session
def containers(session: nox.Session) -> None:
    """Run the tests that need a container engine, and the suite's quick part, on the images of this project.

    Nothing is skipped for want of an engine. Where PYTEST_TRITON_IMAGE or PYTEST_MLFLOW_IMAGE is set, that image is used.
    """
    session.install("-e", ".[conformance]", *group("test"))
    built = session.run(*BUILD_IMAGES, silent=True, stderr=sys.stderr)
    references = {reference.partition(":")[0]: reference for reference in str(built).split()}
    environment = {
        "REQUIRE_ENGINE": "1",
        "PYTEST_TRITON_IMAGE": references["mlflow-triton/tritonserver"],
        "PYTEST_MLFLOW_IMAGE": references["mlflow-triton/mlflow"],
    }
    environment |= {name: os.environ[name] for name in environment if os.environ.get(name)}
    session.run(*PYTEST, "-m", "engine", "fixtures/selftests", *session.posargs, env=environment)
    session.run(
        *PARALLEL,
        "conformance/mlflow_triton_conformance",
        "-m",
        "not slow",
        "--triton-launcher=container",
        "--mlflow-launcher=container",
        *session.posargs,
        env=environment,
    )


@nox.session
def lint(session: nox.Session) -> None:
    """Check format, style, types and the import law; ``-- --fix`` mends what can be mended."""
    session.install("-e", ".[conformance]", *group("lint"), *group("test"))
    fix = "--fix" in session.posargs
    session.run("ruff", "check", *(["--fix"] if fix else []), ".")
    session.run("ruff", "format", *([] if fix else ["--check"]), ".")
    session.run("mypy", *FOLDERS)
    session.run("lint-imports")


@nox.session
def package(session: nox.Session) -> None:
    """Build the wheel, check it, and run from it, in an empty directory, the suite's quick part and the example of a suite."""
    session.install(*group("package"))
    dist = ROOT / "dist"
    shutil.rmtree(dist, ignore_errors=True)
    session.run("python", "-m", "build", "--outdir", str(dist))
    session.run("twine", "check", "--strict", *map(str, sorted(dist.iterdir())))
    wheel = next(dist.glob("*.whl"))
    session.install("--force-reinstall", "--no-deps", str(wheel))
    session.install(
        f"{wheel}[conformance]", *(item for item in group("test") if item.startswith("pytest-xdist"))
    )
    # Not on whatever containers this machine has.
    session.env.update(PYTEST_TRITON_LAUNCHER="embedded", PYTEST_MLFLOW_LAUNCHER="embedded")
    # Not below this directory, where pytest would find the project's own settings.
    with tempfile.TemporaryDirectory() as empty, session.chdir(empty):
        suite = ("--pyargs", "mlflow_triton_conformance", "--conformance-profile=quick")
        session.run("pytest", *suite, *WORKERS, *session.posargs)
        shutil.copytree(
            ROOT / "examples" / "own_suite", "own_suite", ignore=shutil.ignore_patterns("__pycache__")
        )
        session.run("pytest", "own_suite")


@nox.session
def minimums(session: nox.Session) -> None:
    """Run the suite with the lowest versions that pyproject.toml allows, MLflow 2.22 among them."""
    session.install("uv")
    session.run(
        "uv",
        "pip",
        "install",
        "--resolution",
        "lowest-direct",
        "-e",
        ".[conformance]",
        *group("test"),
        # MLflow 2.22 breaks with SQLAlchemy 2.1, which its metadata does not say.
        "sqlalchemy>=2.0,<2.1",
    )
    session.run(*PARALLEL, "-m", "not slow and not engine", *session.posargs)
