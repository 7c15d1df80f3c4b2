"""The ``mlflow-triton`` command."""

from __future__ import annotations

import json
import os
import sys
from contextlib import redirect_stdout
from dataclasses import asdict
from functools import partial
from pathlib import Path

import click

from mlflow_triton import __version__

__all__ = ["main"]

TARGET = click.option(
    "-t", "--target", default="triton", show_default=True, help="The target URI, as for mlflow deployments."
)


CONFIG = partial(click.option, "-C", "--config", "config", multiple=True, metavar="NAME=VALUE")


def _options(config: tuple[str, ...]) -> dict[str, str]:
    """Read -C options as ``mlflow deployments`` does."""
    options: dict[str, str] = {}
    for item in config:
        name, equals, value = item.partition("=")
        if not equals or name in options:
            problem = "is there twice" if equals else "is not NAME=VALUE"
            raise click.UsageError(f"-C {item} {problem}. Nothing was changed.")
        options[name] = value
    return options


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="mlflow-triton")
def main() -> None:
    """Work with NVIDIA Triton Inference Server from MLflow."""


@main.command()
@click.option(
    "--model-repository",
    type=click.Path(path_type=Path),
    required=True,
    metavar="DIR",
    help="The existing directory that Triton serves models from.",
)
@click.option("--http-port", type=click.IntRange(0, 65535), default=0, show_default="a free one")
@click.option("--grpc-port", type=click.IntRange(0, 65535), default=0, show_default="a free one")
@click.option("--metrics-port", type=click.IntRange(0, 65535), default=0, show_default="a free one")
@click.option("--host", default="127.0.0.1", show_default=True, help="The address to bind.")
@click.option(
    "--gpu", is_flag=True, help="Let Triton use the GPUs of this machine.  [2 GB more to download, once]"
)
@click.option(
    "--ready-file",
    type=click.Path(path_type=Path, dir_okay=False),
    metavar="FILE",
    help="A file to appear, with the line of JSON, when Triton is ready; it is removed when Triton ends.",
)
@click.argument("triton_arguments", metavar="[-- TRITON_ARGUMENTS]", nargs=-1, type=click.UNPROCESSED)
def serve(  # noqa: PLR0913 - one parameter for each option
    *,
    model_repository: Path,
    http_port: int,
    grpc_port: int,
    metrics_port: int,
    host: str,
    gpu: bool,
    ready_file: Path | None,
    triton_arguments: tuple[str, ...],
) -> None:
    """Run a real Triton server on this machine, without Docker, until Ctrl-C.

    Once it is ready, one line of JSON with its URLs goes to stdout, and the variables to export for
    `mlflow deployments` go to stderr, as does Triton's log. What follows -- is passed on to Triton. The first
    run downloads the server (about 100 MB) into the user's cache directory; MLFLOW_TRITON_CACHE names another.
    """
    from mlflow_triton.embedded import EmbeddedTriton  # noqa: PLC0415 - the other commands need none of it
    from mlflow_triton.embedded.foreground import serve as serve_in_foreground  # noqa: PLC0415 - same

    server = EmbeddedTriton(
        model_repository,
        host=host,
        http_port=http_port,
        grpc_port=grpc_port,
        metrics_port=metrics_port,
        gpu=gpu,
        arguments=triton_arguments,
    )
    serve_in_foreground(server, ready_file=ready_file)


@main.command()
@TARGET
@click.option(
    "--repair",
    is_flag=True,
    help="Finish or undo the operations that were interrupted, and remove what they left.",
)
def doctor(*, target: str, repair: bool) -> None:
    """Check whether a deployment would work, one line per check, with what to do where it would not.

    The exit code is 0 only if a deployment would work.
    """
    from mlflow_triton.doctor import diagnose  # noqa: PLC0415 - the other commands need none of it
    from mlflow_triton.settings import Settings  # noqa: PLC0415 - same

    failed = False
    for finding in diagnose(Settings.parse(target, os.environ), repair=repair):
        failed |= finding.level == "failed"
        click.echo(f"{finding.level:<8} {finding.check}: {finding.text}")
    if failed:
        raise SystemExit(1)


@main.command()
@click.argument("names", metavar="[NAME]...", nargs=-1)
@TARGET
@CONFIG(help="lock_timeout, load_timeout.  [repeatable]")
def restore(*, names: tuple[str, ...], target: str, config: tuple[str, ...]) -> None:
    """Load deployments again, all or those of these names, as after a restart of Triton.

    In explicit mode, a restarted Triton loads nothing by itself. The loads run in parallel; one line for each
    says how it went. The exit code is 0 only if all of them serve.
    """
    from mlflow_triton.deployments import TritonDeploymentClient  # noqa: PLC0415 - the other commands need none of it

    failed = False
    for restored in TritonDeploymentClient(target).restore(names, _options(config)):
        failed |= restored.failed
        click.echo(f"{'failed' if restored.failed else 'ok':<8} {restored.name}: {restored.text}")
    if failed:
        raise SystemExit(1)


@main.command()
@click.argument("name")
@TARGET
@CONFIG(help="lock_timeout, load_timeout, smoke_test, dry_run.  [repeatable]")
def rollback(*, name: str, target: str, config: tuple[str, ...]) -> None:
    """Bring back what an update with -C keep_previous=true has replaced.

    It is one transaction, as an update is: if it fails, the present model serves on. What it replaces is kept in
    turn, so that a second rollback goes back to it.
    """
    from mlflow_triton.deployments import TritonDeploymentClient  # noqa: PLC0415 - the other commands need none of it

    deployment = TritonDeploymentClient(target).rollback_deployment(name, _options(config))
    click.echo(f"{name} serves {deployment['mlflow_model_uri']} again, as {deployment['deployment_id']}.")


@main.command()
@click.argument("name")
@TARGET
@click.option("--json", "as_json", is_flag=True, help="A list of JSON objects.")
def history(*, name: str, target: str, as_json: bool) -> None:
    """Tell what a deployment served when: one line each, the oldest first.

    The times are those at which each model was built, in UTC, and * marks what a rollback would bring back.
    """
    from mlflow_triton.deployments import TritonDeploymentClient  # noqa: PLC0415 - the other commands need none of it

    entries = TritonDeploymentClient(target).history(name)
    if as_json:
        click.echo(json.dumps(entries, indent=2))
        return
    for entry in entries:
        since, until = (entry["since"] or "unknown"), (entry["until"] or "now")
        known = f"{entry['model_name']}/{entry['model_version']}" if entry["model_version"] else ""
        cells = (
            f"{since:<25} {until:<25} {entry['operation'] or 'unknown':<8}",
            entry["mlflow_model_uri"],
            known,
        )
        click.echo(" ".join(filter(None, cells)) + (" *" if entry["kept"] else ""))


@main.command()
@click.argument("names", metavar="[NAME]...", nargs=-1)
@TARGET
@click.option("--json", "as_json", is_flag=True, help="One JSON object with all of it.")
def status(*, names: tuple[str, ...], target: str, as_json: bool) -> None:
    """Show deployments, all or those of these names: states, digests, drift, inference counts and latency.

    The exit code is 0 if all of them are READY and as recorded, on disk and on the server, and 1 otherwise: also for
    what NVIDIA's plugin deployed, whose record has no digests and no id to compare. That an alias in the registry means
    another version by now is shown, and does not count; nor does it if MLflow does not answer.
    """
    from mlflow_triton.settings import Settings  # noqa: PLC0415 - the other commands need none of it
    from mlflow_triton.status import report, table  # noqa: PLC0415 - same

    with redirect_stdout(sys.stderr):  # where MLflow's own messages belong
        found = report(Settings.parse(target, os.environ), names)
    for line in [found.to_json()] if as_json else table(found):
        click.echo(line)
    if not found.ok:
        raise SystemExit(1)


@main.command()
@click.option(
    "--model-name", required=True, metavar="NAME", help="The registered model; made if there is none."
)
@click.option(
    "--model-directory",
    type=click.Path(path_type=Path),
    required=True,
    metavar="DIR",
    help="A model directory in Triton's layout: config.pbtxt, version directories, label files.",
)
@click.option("--flavor", default="triton", show_default=True, help="triton, the only flavor that there is.")
@click.option(
    "--alias", "aliases", multiple=True, metavar="ALIAS", help="An alias for the new version.  [repeatable]"
)
@click.option(
    "--tag", "tags", multiple=True, metavar="NAME=VALUE", help="A tag of the new version.  [repeatable]"
)
def publish(
    *, model_name: str, model_directory: Path, flavor: str, aliases: tuple[str, ...], tags: tuple[str, ...]
) -> None:
    """Publish a model directory to MLflow, as a new version of a registered model.

    MLflow is the one that MLFLOW_TRACKING_URI names. A directory that Triton could not load is refused before
    MLflow is told anything. One line of JSON goes to stdout: model_name, version, model_uri (to deploy with -m),
    run_id, model_id, source, artifact_uri.
    """
    from mlflow_triton.publish import parse_tags  # noqa: PLC0415 - the other commands need none of it
    from mlflow_triton.publish import publish as publish_directory  # noqa: PLC0415 - same

    with redirect_stdout(sys.stderr):  # where MLflow's own messages belong
        published = publish_directory(
            model_name, model_directory, flavor=flavor, aliases=aliases, tags=parse_tags(tags)
        )
    click.echo(json.dumps(asdict(published)))
