"""The errors that this package raises.

Each one is an ``MlflowException`` (with MLflow's error code, for Python callers) and a
``click.ClickException`` (so that MLflow's CLI prints one line instead of a traceback)::

    TritonPluginError
    ├── InvalidParameter             INVALID_PARAMETER_VALUE   what the caller wrote
    │   ├── InvalidSetting                                     target URI, environment variable
    │   ├── InvalidName                                        a deployment name Triton cannot serve
    │   ├── InvalidOption                                      a ``-C key=value``
    │   └── InvalidInput                                       a tensor given to predict
    ├── InvalidModel                 INVALID_PARAMETER_VALUE   what the MLflow model holds
    │   └── InvalidModelConfig                                 its config.pbtxt
    ├── ModelNotFound                RESOURCE_DOES_NOT_EXIST   the model URI names nothing
    ├── DeploymentNotFound           RESOURCE_DOES_NOT_EXIST
    ├── DeploymentExists             RESOURCE_ALREADY_EXISTS
    ├── DeploymentBusy               RESOURCE_CONFLICT         another operation has the name
    ├── RepositoryError              INVALID_STATE             the model repository cannot be used
    │   └── RepositoryMismatch                                 ... and is not the one the server reads
    ├── ServerUnavailable            TEMPORARILY_UNAVAILABLE   no usable answer from Triton or MLflow
    │   └── ServerTimeout            DEADLINE_EXCEEDED
    ├── ServerRefused                INVALID_STATE             Triton answered: no
    │   ├── LoadFailed                                         to a load or unload
    │   ├── SmokeTestFailed                                    to the first request, before the deployment stood
    │   └── InferenceFailed          BAD_REQUEST               to an inference request
    └── EmbeddedServerError          INTERNAL_ERROR            the embedded server cannot be had or run
"""

from __future__ import annotations

from typing import IO, Any, ClassVar

import click
from mlflow.exceptions import MlflowException
from mlflow.protos import databricks_pb2 as codes

__all__ = [
    "DeploymentBusy",
    "DeploymentExists",
    "DeploymentNotFound",
    "EmbeddedServerError",
    "InferenceFailed",
    "InvalidInput",
    "InvalidModel",
    "InvalidModelConfig",
    "InvalidName",
    "InvalidOption",
    "InvalidParameter",
    "InvalidSetting",
    "LoadFailed",
    "ModelNotFound",
    "RepositoryError",
    "RepositoryMismatch",
    "ServerRefused",
    "ServerTimeout",
    "ServerUnavailable",
    "SmokeTestFailed",
    "TritonPluginError",
]


class TritonPluginError(MlflowException, click.ClickException):  # type: ignore[misc] # both say `message`
    """Base of every error that this package raises on purpose.

    Args:
        message: What was found, what is untouched, and what to do next.
    """

    code: ClassVar[int] = codes.INTERNAL_ERROR

    def __init__(self, message: str) -> None:
        super().__init__(message, error_code=self.code)

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self.message,)

    def show(self, file: IO[Any] | None = None) -> None:
        """Print ``Error: <message>``, as the ``mlflow`` command does for click's own errors."""
        click.ClickException.show(self, file)


class InvalidParameter(TritonPluginError):
    """A value that the caller passed cannot be used."""

    code = codes.INVALID_PARAMETER_VALUE


class InvalidSetting(InvalidParameter):
    """A target URI or an environment variable cannot be used."""


class InvalidName(InvalidParameter):
    """A deployment name that Triton could not serve over HTTP, or that leaves the repository."""


class InvalidOption(InvalidParameter):
    """A deployment option (``-C key=value``) is unknown or has a wrong value."""


class InvalidInput(InvalidParameter):
    """An input tensor does not fit the model."""


class InvalidModel(TritonPluginError):
    """The MLflow model cannot become a Triton model."""

    code = codes.INVALID_PARAMETER_VALUE


class InvalidModelConfig(InvalidModel):
    """A config.pbtxt does not follow Triton's schema."""


class ModelNotFound(TritonPluginError):
    """A model URI names nothing that MLflow has."""

    code = codes.RESOURCE_DOES_NOT_EXIST


class DeploymentNotFound(TritonPluginError):
    """No deployment has this name."""

    code = codes.RESOURCE_DOES_NOT_EXIST


class DeploymentExists(TritonPluginError):
    """The name is taken, by a deployment or by a model that MLflow did not deploy."""

    code = codes.RESOURCE_ALREADY_EXISTS


class DeploymentBusy(TritonPluginError):
    """Another operation, of this machine or another one, was at the deployment all the time."""

    code = codes.RESOURCE_CONFLICT


class RepositoryError(TritonPluginError):
    """The model repository is missing, not writable, or holds something unexpected."""

    code = codes.INVALID_STATE


class RepositoryMismatch(RepositoryError):
    """The model repository given here is not the one that the Triton server reads."""


class ServerUnavailable(TritonPluginError):
    """A server gives no usable answer: refused, cut off, or not speaking the protocol."""

    code = codes.TEMPORARILY_UNAVAILABLE


class ServerTimeout(ServerUnavailable):
    """A server did not answer before the deadline."""

    code = codes.DEADLINE_EXCEEDED


class ServerRefused(TritonPluginError):
    """Triton answered a request with an error."""

    code = codes.INVALID_STATE


class LoadFailed(ServerRefused):
    """Triton could not load or unload the model."""


class SmokeTestFailed(ServerRefused):
    """A model that had just been loaded did not answer the request that was to test it."""


class InferenceFailed(ServerRefused):
    """Triton could not execute the inference request."""

    code = codes.BAD_REQUEST


class EmbeddedServerError(TritonPluginError):
    """The embedded Triton server cannot be provisioned, started or kept running."""
