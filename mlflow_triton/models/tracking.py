"""The MLflow server itself: whether it is there, and what its client raises."""

from __future__ import annotations

import errno
import os
import re
from contextlib import contextmanager
from typing import TYPE_CHECKING

import mlflow
import requests
from mlflow.exceptions import MlflowException

from mlflow_triton.errors import (
    InvalidModel,
    InvalidParameter,
    ModelNotFound,
    RepositoryError,
    ServerUnavailable,
    TritonPluginError,
)

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

__all__ = ["first_words", "foreign_errors", "require_server", "sourced_tracking_uri", "tracking_uri"]

#: Seconds for connecting, and for the answer.
TIMEOUT = 10.0
#: What only the filesystem that is written to answers, and what that of the artifacts may answer as well.
_WRITING = (errno.ENOSPC, errno.EDQUOT, errno.EROFS)
_EITHER = (errno.EACCES, errno.EPERM, errno.EIO)


def tracking_uri() -> str:
    """Return MLflow's tracking URI without a password that stands in it."""
    return _without_password(str(mlflow.get_tracking_uri()))


def sourced_tracking_uri() -> str:
    """Return the same with where it comes from; MLflow itself resolves it."""
    variable = "MLFLOW_TRACKING_URI"
    given = os.environ.get(variable) == mlflow.get_tracking_uri()
    return f"{tracking_uri()} (from {f'environment variable {variable}' if given else 'MLflow'})"


def _without_password(uri: str) -> str:
    # A password that should have been quoted may have a slash or an @ in it.
    return re.sub(r"(?<=://)[^/].*@", "***@", uri)


def require_server() -> str | None:
    """Find out at once whether MLflow's servers are there: its client tries for four minutes.

    Returns:
        The tracking server's version, or ``None`` where there is no server (a database or a directory), or
        where it does not say (the client may still get along with it, e.g. with credentials).

    Raises:
        ServerUnavailable: Nothing listens there, or it does not answer in time.
    """
    tracking = str(mlflow.get_tracking_uri())
    version = _version(tracking, "", "MLFLOW_TRACKING_URI")
    try:
        registry = str(mlflow.get_registry_uri())
    except ValueError as error:
        raise ServerUnavailable(f"MLFLOW_REGISTRY_URI cannot be used: {first_words(error)}") from None
    if registry != tracking:
        _version(registry, "registry", "MLFLOW_REGISTRY_URI")
    return version


def _version(uri: str, kind: str, variable: str) -> str | None:
    if not uri.startswith(("http://", "https://")):
        return None
    where = f"MLflow{kind and ' '}{kind} at {_without_password(uri)}"
    try:
        answer = requests.get(f"{uri.rstrip('/')}/version", timeout=TIMEOUT)
    except (requests.exceptions.SSLError, requests.exceptions.ProxyError):
        return None
    except (requests.exceptions.ConnectionError, requests.exceptions.Timeout) as error:
        cause = re.search(r"\[Errno -?\d+\] ([\w ]+)|(Failed to resolve '[^']*')", str(error))
        if isinstance(error, requests.exceptions.Timeout):
            how = f"did not answer within {TIMEOUT:g} s"
        else:
            how = f"cannot be reached: {cause[1] or cause[2]}" if cause else "broke off the connection"
        raise ServerUnavailable(
            f"{where} {how}. Nothing was changed. Start it (mlflow server), or set {variable} to where it is."
        ) from None
    except requests.exceptions.RequestException as error:
        raise ServerUnavailable(f"{where} cannot be used: {first_words(error)} Check {variable}.") from None
    version = answer.text.strip()
    return version if answer.status_code == 200 and re.fullmatch(r"\d[\w.+-]{0,30}", version) else None


@contextmanager
def foreign_errors(what: str, destination: Path | None = None) -> Iterator[None]:
    """Turn what MLflow and its stores raise into this package's errors, naming `what`.

    Args:
        what: That is read.
        destination: Where it is written to.
    """
    try:
        yield
    except TritonPluginError:
        raise
    except MlflowException as error:
        _refuse_destination(what, destination, error)
        reason = first_words(error)
        where = f"MLflow at {tracking_uri()}"
        if "outside the artifact directory" in reason:
            raise InvalidModel(
                f"{what} has a file that leads out of it. {where} says: {reason} Nothing was changed."
            ) from None
        if error.error_code in ("RESOURCE_DOES_NOT_EXIST", "INVALID_PARAMETER_VALUE") or "No such" in reason:
            raise ModelNotFound(
                f"{what} was not found. {where} says: {reason} Check the URI, and MLFLOW_TRACKING_URI."
            ) from None
        raise ServerUnavailable(
            f"{what} could not be read. {where} says: {reason} Nothing was changed."
        ) from None
    except (FileNotFoundError, NotADirectoryError) as error:
        raise ModelNotFound(f"{what} was not found: {error.filename or error} does not exist.") from None
    except ImportError as error:
        raise InvalidParameter(
            f"{what} cannot be read here: {first_words(error)} Nothing was changed. Install that package."
        ) from None
    except Exception as error:
        _refuse_destination(what, destination, error)
        # Of requests, the artifact store's library (boto3 and its like), or a URI that nothing can parse.
        raise ServerUnavailable(
            f"{what} could not be read with MLflow at {tracking_uri()}: {first_words(error)} "
            "Nothing was changed. Check the URI, MLFLOW_TRACKING_URI, and that the servers behind them run."
        ) from error


def _refuse_destination(what: str, destination: Path | None, error: Exception) -> None:
    """Name the disk, and not MLflow, if it could not take what was downloaded; MLflow keeps no more than the text."""
    found = re.search(r"\[Errno (\d+)\]", str(error))
    number = int(found[1]) if found else None
    if destination is None or number is None:
        return
    if number in _WRITING or (number in _EITHER and str(destination) in str(error)):
        raise RepositoryError(
            f"{what} could not be written to {destination}: {os.strerror(number)}. Nothing was changed. That is on the "
            "filesystem of the model repository."
        ) from error


def first_words(error: BaseException) -> str:
    """Return an exception's text as one sentence of bounded length."""
    lines = [line.strip().strip("#").strip() for line in str(error).splitlines()]
    text = " ".join(line for line in lines if line) or type(error).__name__
    text = re.sub(r"(?<=://)[^/@\s]*@", "***@", text.replace(str(mlflow.get_tracking_uri()), tracking_uri()))[
        :500
    ]
    return text if text.endswith((".", "!", "?")) else f"{text}."
