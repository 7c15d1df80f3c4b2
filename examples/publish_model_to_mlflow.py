"""Publish a Triton model directory to MLflow: the command of NVIDIA's plugin, with its options.

Prints the artifact URI of the run that logged the model. `mlflow-triton publish` does the same, with
aliases and tags, and prints the model version as JSON.
"""

from __future__ import annotations

import sys
from contextlib import redirect_stdout
from pathlib import Path

import click

from mlflow_triton.publish import publish


@click.command()
@click.option("--model_name", required=True, help="The registered model to make a version of.")
@click.option(
    "--model_directory",
    required=True,
    type=click.Path(path_type=Path),
    help="A directory in Triton's layout.",
)
@click.option("--flavor", required=True, help="triton, the only flavor that there is.")
def publish_to_mlflow(model_name: str, model_directory: Path, flavor: str) -> None:
    """Publish a model directory to the MLflow server that MLFLOW_TRACKING_URI names."""
    with redirect_stdout(sys.stderr):  # where MLflow's own messages belong
        published = publish(model_name, model_directory, flavor=flavor)
    print(published.artifact_uri)


if __name__ == "__main__":
    publish_to_mlflow()
