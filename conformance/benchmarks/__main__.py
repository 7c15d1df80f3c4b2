"""The command line: ``python -m benchmarks [NAME…] [--quick] [--json FILE] [--plots DIRECTORY]``."""

from __future__ import annotations

import argparse
import json
import logging
import os
import platform
import signal
import sys
import tempfile
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from benchmarks.bench import Bench
    from benchmarks.figures import Result

#: In the order in which they run: module -> what it shows.
BENCHMARKS = {
    "updates_under_load": "requests during updates: failures, old answers, latency",
    "space": "bytes written, disk and memory of create and update of 512 MB, beside a link and a download",
    "duration": "create and update, beside files placed by hand and Triton's own load",
    "predict": "predictions of all sizes, beside the raw clients, a bare socket and a copy; one and eight threads",
    "parallel": "eight deployments at once, beside the same in turn",
}


def main() -> int:
    """Run the benchmarks that the command line names and print their tables.

    Returns:
        1 if a request failed or an answer was wrong, else 0.
    """
    parser = argparse.ArgumentParser(
        prog="nox -s benchmark --",
        description="Measure what the plugin costs, beside the least that it could cost, in one interleaved run.",
        epilog="\n".join(f"{name}: {shows}" for name, shows in BENCHMARKS.items()),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"of {', '.join(BENCHMARKS)}; default: all")
    parser.add_argument("--quick", action="store_true", help="small sizes and few turns: see that it works")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write every sample to this file as well")
    parser.add_argument(
        "--plots", type=Path, metavar="DIRECTORY", help="write plots (SVG) into this directory"
    )
    arguments = parser.parse_args()
    if unknown := [name for name in arguments.names if name not in BENCHMARKS]:
        parser.error(f"there is no benchmark {unknown[0]!r}; there are {', '.join(BENCHMARKS)}")
    _clear_environment()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))  # unwinds, so that servers end
    from benchmarks.bench import Bench  # noqa: PLC0415 - imports MLflow, which reads the environment
    from mlflow_triton.embedded.runtime import safe_temporary_directory  # noqa: PLC0415 - same

    for name in ("mlflow", "mlflow_triton"):  # which warns of loads over HTTP, as it should
        logging.getLogger(name).setLevel(logging.ERROR)
    with tempfile.TemporaryDirectory(
        prefix="mlflow-triton-benchmark-", dir=safe_temporary_directory()
    ) as directory:
        bench = Bench(Path(directory), quick=arguments.quick)
        results = {name: _run(name, bench) for name in arguments.names or BENCHMARKS}
    if arguments.json:
        arguments.json.write_text(json.dumps({"machine": _machine(), **_document(results)}, indent=1) + "\n")
    if arguments.plots:
        arguments.plots.mkdir(parents=True, exist_ok=True)
        for plot in (plot for result in results.values() for plot in result.plots):
            (arguments.plots / plot.file).write_text(str(plot), encoding="utf-8")
    problems = [problem for result in results.values() for problem in result.problems]
    for problem in problems:
        print(f"WRONG: {problem}", file=sys.stderr)
    return 1 if problems else 0


def _run(name: str, bench: Bench) -> Result:
    module = __import__(f"benchmarks.{name}", fromlist=["run"])
    result: Result = module.run(bench)
    for table in result.tables:
        print(f"\n{table}", flush=True)
    return result


def _document(results: dict[str, Result]) -> dict[str, Any]:
    return {
        name: {
            "tables": [table.to_json() for table in result.tables],
            "problems": list(result.problems),
        }
        for name, result in results.items()
    }


def _machine() -> dict[str, Any]:
    return {
        "processors": os.cpu_count(),
        "python": platform.python_version(),
        "kernel": platform.release(),
        **{name: metadata.version(name) for name in ("mlflow", "tritonclient", "mlflow-triton-plugin")},
    }


def _clear_environment() -> None:
    """Drop what the user's shell says of other servers, but not where the embedded one is."""
    for name in list(os.environ):
        if name.startswith(("TRITON_", "MLFLOW_")) and not name.startswith("MLFLOW_TRITON_"):
            del os.environ[name]


if __name__ == "__main__":
    try:
        sys.exit(main())
    except KeyboardInterrupt:
        print("Interrupted; the run's servers have ended and its files are removed.", file=sys.stderr)
        sys.exit(128 + signal.SIGINT)
