"""The ``mlflow-triton`` command."""

from __future__ import annotations

from pathlib import Path

import click

from mlflow_triton import __version__

__all__ = ["main"]


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
@click.option("--gpu", is_flag=True, help="Let Triton use the GPUs of this machine.")
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
