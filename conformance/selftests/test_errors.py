from __future__ import annotations

import copy
import io
import pickle
import re

import click
import pytest
from click.testing import CliRunner
from mlflow.exceptions import MlflowException
from mlflow.protos import databricks_pb2 as codes

from mlflow_triton import errors
from mlflow_triton.errors import TritonPluginError

CLASSES: list[type[TritonPluginError]] = [getattr(errors, name) for name in errors.__all__]
every_error = pytest.mark.parametrize("error", CLASSES, ids=lambda error: error.__name__)


def drawn() -> dict[str, tuple[str | None, str | None]]:
    """Read the tree in the module's docstring: name to parent and error code."""
    tree: dict[str, tuple[str | None, str | None]] = {}
    path: list[str] = []
    for line in (errors.__doc__ or "").splitlines():
        if match := re.match(r"^    ((?:[│ ] {3})*)(?:[├└]── )?([A-Z]\w+)(?: +([A-Z_]{5,}))?", line):
            indent, name, code = match.groups()
            depth = len(indent) // 4 + ("── " in line)
            path[depth:] = [name]
            tree[name] = (path[depth - 1] if depth else None, code)
    return tree


def test_the_tree_is_as_drawn() -> None:
    """The docstring shows every class under its parent, with the code that it has or inherits."""
    tree = drawn()
    assert sorted(tree) == sorted(errors.__all__)
    for name, (parent, code) in tree.items():
        error = getattr(errors, name)
        if parent is None:
            assert error is TritonPluginError
            continue
        assert error.__bases__ == (getattr(errors, parent),)
        if code is None:
            assert error.code == error.__base__.code, name
        else:
            assert error("m").error_code == code, name


def test_every_error_is_public() -> None:
    """`__all__` has every error class of the module."""
    here = {
        name
        for name, value in vars(errors).items()
        if isinstance(value, type) and issubclass(value, Exception)
    }
    assert here - {"MlflowException"} == set(errors.__all__)


@every_error
def test_an_error_is_mlflows_and_clicks(error: type[TritonPluginError]) -> None:
    """Python callers catch MLflow's exception with its code; click prints one line and exits with 1."""
    raised = error("What was found.")
    assert isinstance(raised, MlflowException)
    assert isinstance(raised, click.ClickException)
    assert raised.message == str(raised) == raised.format_message() == "What was found."
    assert getattr(codes, raised.error_code) == error.code

    @click.command()
    def command() -> None:
        raise raised

    result = CliRunner().invoke(command)
    assert (result.exit_code, result.output) == (1, "Error: What was found.\n")


@every_error
def test_an_error_can_be_copied(error: type[TritonPluginError]) -> None:
    """An error comes through pickle, as between processes, with its class, message and code."""
    raised = error("m")
    for twin in (pickle.loads(pickle.dumps(raised)), copy.copy(raised)):  # noqa: S301 - our own bytes
        assert type(twin) is error
        assert (twin.message, twin.error_code) == ("m", raised.error_code)


def test_an_error_shows_itself() -> None:
    """`show` prints the line to the file that click gives it."""
    file = io.StringIO()
    TritonPluginError("m").show(file)
    assert file.getvalue() == "Error: m\n"


@every_error
def test_an_error_says_what_it_is(error: type[TritonPluginError]) -> None:
    """Every error class has a docstring of its own."""
    assert error.__doc__
    assert error.__doc__ != error.__base__.__doc__
