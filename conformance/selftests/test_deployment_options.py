from __future__ import annotations

import dataclasses
import json
import re
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mlflow_triton.errors import InvalidOption
from mlflow_triton.options import HIGHEST_VERSION, OPTIONS, DeploymentOptions, VersionPolicy, help_text
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
        ({"config_file": Path("a.pbtxt")}, DeploymentOptions(config_file="a.pbtxt")),
        ({"version_policy": "latest"}, DeploymentOptions(version_policy=VersionPolicy("latest", (1,)))),
        ({"version_policy": {"latest": 2}}, DeploymentOptions(version_policy=VersionPolicy("latest", (2,)))),
        (
            {"version_policy": "specific:3, 1"},
            DeploymentOptions(version_policy=VersionPolicy("specific", (1, 3))),
        ),
        (
            {"version_policy": {"specific": [3, 1]}},
            DeploymentOptions(version_policy=VersionPolicy("specific", (1, 3))),
        ),
        ({"version_policy": "all"}, DeploymentOptions(version_policy=VersionPolicy("all"))),
        ({"max_batch_size": 0}, DeploymentOptions(max_batch_size=0)),
        (
            {"instance_count": "2", "instance_kind": "cpu"},
            DeploymentOptions(instance_count=2, instance_kind="KIND_CPU"),
        ),
        ({"gpus": "0,2"}, DeploymentOptions(gpus=(0, 2))),
        ({"gpus": [0, 2]}, DeploymentOptions(gpus=(0, 2))),
        ({"gpus": 1}, DeploymentOptions(gpus=(1,))),
        ({"gpus": "none"}, DeploymentOptions(gpus=())),
        ({"gpus": []}, DeploymentOptions(gpus=())),
        ({"dynamic_batching": "false"}, DeploymentOptions(dynamic_batching=False)),
        ({"preferred_batch_size": (4, 8)}, DeploymentOptions(preferred_batch_size=(4, 8))),
        ({"max_queue_delay_microseconds": 100}, DeploymentOptions(max_queue_delay_microseconds=100)),
        ({"parameters": "a:1,b:c:d"}, DeploymentOptions(parameters={"a": "1", "b": "c:d"})),
        ({"parameters": '{"a": "x,y"}'}, DeploymentOptions(parameters={"a": "x,y"})),
        (
            {"parameters": {"a": 1, "b": True, "c": " x"}},
            DeploymentOptions(parameters={"a": "1", "b": "true", "c": " x"}),
        ),
        ({"warmup": True}, DeploymentOptions(warmup=1)),
        ({"warmup": "3"}, DeploymentOptions(warmup=3)),
        ({"warmup": False}, DeploymentOptions(warmup=0)),
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
        ({"load_timeout": "1e20"}, "load_timeout='1e20' is not a positive number of seconds, at most 1e"),
        ({"load_timeout": "nan"}, "load_timeout='nan' is not"),
        ({"load_timeout": "1m"}, "load_timeout='1m' is not"),
        ({"Version": "1"}, "'Version' is not an option (known: version, load_timeout, "),
        ({"smoke_test": "yes"}, "smoke_test='yes' is not true or false"),
        ({"config_file": None}, "config_file=None is not the path of a file"),
        (
            {"version_policy": "newest"},
            "version_policy='newest' is not all, latest, latest:NUMBER or specific:VERSION",
        ),
        ({"version_policy": "latest:0"}, "'0' is not a whole number from 1"),
        ({"version_policy": "specific:"}, "'' is not versions, each a whole number from 0"),
        ({"version_policy": {"latest": 1, "all": 1}}, "is not all, latest"),
        ({"max_batch_size": "2147483648"}, "is not a whole number from 0 to 2147483647"),
        ({"instance_count": 0}, "instance_count=0 is not a whole number from 1"),
        ({"instance_kind": "tpu"}, "is not one of KIND_AUTO, KIND_CPU, KIND_GPU, KIND_MODEL"),
        ({"gpus": "0,0"}, "each once"),
        ({"gpus": ""}, "is not none, or numbers of GPUs with commas"),
        (
            {"preferred_batch_size": "4,0"},
            "is not batch sizes with commas between them, each a whole number from 1",
        ),
        ({"parameters": "a"}, "parameters='a' is not KEY:VALUE with commas between them"),
        ({"parameters": "a:1,a:2"}, "each KEY once"),
        ({"parameters": {"a": None}}, "is not KEY:VALUE"),
        ({"parameters": {"a": {"b": 1}}}, "is not KEY:VALUE"),
        ({"parameters": {"mlflow.deployment_id": "x"}}, "the plugin itself keeps mlflow.deployment_id"),
        ({"warmup": "often"}, "warmup='often' is not true, false or a whole number"),
        ({"gpus": "0,1", "instance_kind": "KIND_CPU"}, "gpus=0,1 does not go with instance_kind=KIND_CPU"),
        (
            {"dynamic_batching": "false", "preferred_batch_size": "4"},
            "preferred_batch_size does not go with dynamic_batching=false",
        ),
        (
            {"max_batch_size": 0, "max_queue_delay_microseconds": 1},
            "dynamic batching does not go with max_batch_size=0",
        ),
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
        DeploymentOptions.parse({"a": 1, "version": "x", "gpus": 0, "instance_kind": "cpu", "b": 2})
    assert re.findall(r"'a' is|version='x'|gpus=0 does not|'b' is", caught.value.message) == [
        "'a' is",
        "version='x'",
        "'b' is",
        "gpus=0 does not",
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


@given(
    st.dictionaries(
        st.sampled_from([o.name for o in OPTIONS]),
        st.recursive(
            st.one_of(st.none(), st.booleans(), st.integers(), st.floats(), st.text(), st.binary()),
            lambda inner: st.one_of(st.lists(inner), st.dictionaries(st.text(), inner)),
        ),
    )
)
def test_whatever_python_callers_give(config: dict[str, Any]) -> None:
    """Whatever objects the options are, the result is an InvalidOption, or options that can be written down as JSON."""
    try:
        options = DeploymentOptions.parse(config)
    except InvalidOption:
        return
    assert set(json.loads(json.dumps(options.applied()))) <= set(config)


def test_the_help_shows_every_option() -> None:
    """The help text has a line to copy for each field of the options, and no other."""
    names = re.findall(r"^  -C (\w+)=[A-Z]+$", help_text(), re.MULTILINE)
    assert names == [field.name for field in dataclasses.fields(DeploymentOptions)]


def test_the_highest_version_is_the_layouts() -> None:
    """Options and the check of a model's directory agree on the highest version."""
    assert HIGHEST_VERSION == layout.HIGHEST_VERSION
