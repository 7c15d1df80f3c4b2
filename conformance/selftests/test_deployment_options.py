from __future__ import annotations

import dataclasses
import re
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mlflow_triton.errors import InvalidOption
from mlflow_triton.options import HIGHEST_VERSION, OPTIONS, DeploymentOptions, help_text
from mlflow_triton.repository import layout


@pytest.mark.parametrize("config", [None, {}])
def test_no_options(config: dict[str, str] | None) -> None:
    """Without options every one has its default."""
    assert DeploymentOptions.parse(config) == DeploymentOptions(version=None, load_timeout=None)


@pytest.mark.parametrize(
    ("config", "expected"),
    [
        ({"version": "1"}, DeploymentOptions(version=1)),
        ({"version": 7}, DeploymentOptions(version=7)),
        ({"version": " 9223372036854775807 "}, DeploymentOptions(version=2**63 - 1)),
        ({"version": "007"}, DeploymentOptions(version=7)),
        ({"load_timeout": "0.5", "version": "2"}, DeploymentOptions(version=2, load_timeout=0.5)),
        ({"load_timeout": 30}, DeploymentOptions(load_timeout=30.0)),
        ({"smoke_test": "True"}, DeploymentOptions(smoke_test=True)),
        ({"smoke_test": False}, DeploymentOptions(smoke_test=False)),
    ],
)
def test_options(config: dict[str, Any], expected: DeploymentOptions) -> None:
    """Strings, as MLflow's CLI passes them, and Python numbers are both understood."""
    assert DeploymentOptions.parse(config) == expected


@pytest.mark.parametrize(
    ("config", "words"),
    [
        ({"version": ""}, "version='' is not a whole number from 1 to 9223372036854775807"),
        ({"version": "0"}, "version='0' is not a whole number"),
        ({"version": "-1"}, "version='-1' is not"),
        ({"version": "1.0"}, "version='1.0' is not"),
        ({"version": "9223372036854775808"}, "version='9223372036854775808' is not"),
        ({"version": "٣"}, "version='٣' is not"),
        ({"version": True}, "version=True is not"),
        ({"version": None}, "version=None is not"),
        ({"load_timeout": "0"}, "load_timeout='0' is not a positive number of seconds"),
        ({"load_timeout": "inf"}, "load_timeout='inf' is not"),
        ({"load_timeout": "nan"}, "load_timeout='nan' is not"),
        ({"load_timeout": "1m"}, "load_timeout='1m' is not"),
        ({"Version": "1"}, "'Version' is not an option (known: version, load_timeout, "),
        ({"smoke_test": "yes"}, "smoke_test='yes' is not true or false"),
    ],
)
def test_options_that_are_refused(config: dict[str, Any], words: str) -> None:
    """A wrong option is named with its value and what it should be; nothing was changed."""
    with pytest.raises(InvalidOption) as caught:
        DeploymentOptions.parse(config)
    assert words in caught.value.message
    assert caught.value.message.startswith("Nothing was changed.")


def test_every_problem_is_in_one_message() -> None:
    """All wrong options are reported at once."""
    with pytest.raises(InvalidOption) as caught:
        DeploymentOptions.parse({"a": 1, "version": "x", "load_timeout": "y", "b": 2})
    assert re.findall(r"'a' is|version='x'|load_timeout='y'|'b' is", caught.value.message) == [
        "'a' is",
        "version='x'",
        "load_timeout='y'",
        "'b' is",
    ]


@given(st.dictionaries(st.one_of(st.sampled_from([o.name for o in OPTIONS]), st.text()), st.text()))
def test_only_invalid_option_leaves(config: dict[str, str]) -> None:
    """Whatever strings the options have, the result is options or an InvalidOption."""
    try:
        options = DeploymentOptions.parse(config)
    except InvalidOption:
        return
    assert set(config) <= {option.name for option in OPTIONS}
    assert options.version is None or 1 <= options.version <= HIGHEST_VERSION


def test_the_help_shows_every_option() -> None:
    """The help text has a line to copy for each field of the options, and no other."""
    names = re.findall(r"^  -C (\w+)=[A-Z]+$", help_text(), re.MULTILINE)
    assert names == [field.name for field in dataclasses.fields(DeploymentOptions)]


def test_the_highest_version_is_the_layouts() -> None:
    """Options and the check of a model's directory agree on the highest version."""
    assert HIGHEST_VERSION == layout.HIGHEST_VERSION
