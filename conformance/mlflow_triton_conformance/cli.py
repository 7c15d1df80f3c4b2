"""The command ``mlflow-triton-conformance``: what is done with reports when the tests are over."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, cast

import click

from mlflow_triton_conformance import page
from mlflow_triton_conformance.report import SCHEMA, Report, write

__all__ = ["main"]

FILE = click.Path(exists=True, dir_okay=False, path_type=Path)


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="mlflow-triton-plugin")
def main() -> None:
    """Work with the reports of the conformance suite (pytest --pyargs mlflow_triton_conformance --conformance-report DIR)."""


@main.command()
@click.argument("reports", metavar="A.json B.json...", nargs=-1, required=True, type=FILE)
@click.option(
    "-o",
    "--output",
    type=click.Path(dir_okay=False, path_type=Path),
    default=Path("comparison.html"),
    show_default=True,
    help="The file to write.",
)
def compare(reports: tuple[Path, ...], output: Path) -> None:
    """Make one page of several report.json: plugin against plugin, release against release."""
    if len(reports) < 2:
        raise click.UsageError("A comparison needs two reports at least. Nothing was written.")
    text = page.compare([_read(path) for path in reports])
    try:
        write(output, text)
    except OSError as error:
        raise click.ClickException(f"{output} cannot be written: {error.strerror}.") from None
    click.echo(output)


def _read(path: Path) -> Report:
    try:
        found: Any = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise click.ClickException(f"{path} cannot be read as JSON: {error}. Nothing was written.") from None
    schema = found.get("schema") if isinstance(found, dict) else None
    if schema != SCHEMA:
        raise click.ClickException(
            f"{path} is no report that this release reads: its schema is {schema!r}, not {SCHEMA}. Nothing was written. "
            "Take a report.json that --conformance-report wrote, and the release of the suite that wrote it."
        )
    if missing := sorted(Report.__annotations__.keys() - found.keys()):
        raise click.ClickException(
            f"{path} is not a whole report: it has no {', '.join(missing)}. Nothing was written."
        )
    try:
        page.compare([found])
    except (AttributeError, LookupError, TypeError, ValueError, ArithmeticError) as error:
        raise click.ClickException(
            f"{path} is damaged: what it holds is not in the form of a report ({type(error).__name__}: {error}). Nothing was "
            "written. Take the report.json that --conformance-report wrote."
        ) from None
    return cast("Report", found)
