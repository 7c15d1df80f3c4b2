from __future__ import annotations

import logging
import re
from pathlib import Path, PurePosixPath
from typing import Any

import pytest
from google.protobuf import text_format
from hypothesis import given
from hypothesis import strategies as st

from mlflow_triton.configure import configured, merge
from mlflow_triton.errors import InvalidModelConfig, InvalidOption
from mlflow_triton.models.contents import Contents
from mlflow_triton.options import DeploymentOptions
from mlflow_triton.repository import config as model_config

FULL = """\
backend: "onnxruntime"
max_batch_size: 8
input [ { name: "x" data_type: TYPE_FP32 dims: [ -1, 3 ] } ]
output [ { name: "y" data_type: TYPE_FP32 dims: [ 3 ] } ]
"""
UNBATCHED = FULL.replace("max_batch_size: 8", "")
GROUPS = "instance_group [ { count: 1 }, { count: 2 } ]"
ENSEMBLE = """\
platform: "ensemble"
input [ { name: "x" data_type: TYPE_FP32 dims: [ 3 ] } ]
ensemble_scheduling { step [ { model_name: "a" model_version: -1 } ] }
"""

#: The fields that each option may change.
FIELDS = {
    "version_policy": {"version_policy"},
    "max_batch_size": {"max_batch_size"},
    "instance_count": {"instance_group"},
    "instance_kind": {"instance_group"},
    "gpus": {"instance_group"},
    "dynamic_batching": {"dynamic_batching"},
    "max_queue_delay_microseconds": {"dynamic_batching"},
    "preferred_batch_size": {"dynamic_batching"},
    "parameters": {"parameters"},
    "warmup": {"model_warmup"},
}
SOME = st.fixed_dictionaries(
    {},
    optional={
        "version_policy": st.sampled_from(["all", "latest:2", "specific:1,2"]),
        "max_batch_size": st.integers(0, 16),
        "instance_count": st.integers(1, 4),
        "instance_kind": st.sampled_from(["cpu", "gpu", "auto", "model"]),
        "gpus": st.lists(st.integers(0, 3), unique=True),
        "dynamic_batching": st.booleans(),
        "max_queue_delay_microseconds": st.integers(0, 1000),
        "preferred_batch_size": st.lists(st.integers(1, 16), unique=True, min_size=1),
        "parameters": st.dictionaries(st.text("abc", min_size=1), st.text(), min_size=1),
        "warmup": st.one_of(st.booleans(), st.integers(0, 3)),
    },
)


def merged(text: str, options: dict[str, Any]) -> tuple[dict[str, Any], list[str]]:
    """Merge options into the text of a configuration; return what its fields are, and the problems."""
    config, problems = merge(model_config.parse(text, origin="it"), DeploymentOptions.parse(options))
    return {field.name: value for field, value in config.ListFields()}, problems


@given(st.sampled_from([FULL, UNBATCHED, GROUPS, ENSEMBLE, "", f"{FULL} instance_group {{ gpus: 1 }}"]), SOME)
def test_nothing_else_changes(text: str, options: dict[str, Any]) -> None:
    """A field that the options do not name stays as it is, and doing it again changes nothing more."""
    try:
        wanted = DeploymentOptions.parse(options)
    except InvalidOption:
        return
    config = model_config.parse(text, origin="it")
    before = config.SerializeToString(deterministic=True)
    changed, _ = merge(config, wanted)
    assert config.SerializeToString(deterministic=True) == before
    again, _ = merge(changed, wanted)
    assert again == changed
    for name in set().union(*(FIELDS[name] for name in options)):
        changed.ClearField(name)
        config.ClearField(name)
    assert changed == config
    assert model_config.parse(text_format.MessageToString(again, as_utf8=True), origin="it") == again


@pytest.mark.parametrize(
    ("text", "options", "expected"),
    [
        ("", {"version_policy": "specific:1,3"}, "version_policy { specific { versions: [1, 3] } }"),
        (
            "version_policy { latest { num_versions: 2 } }",
            {"version_policy": "all"},
            "version_policy { all { } }",
        ),
        ("", {"version_policy": "latest:3"}, "version_policy { latest { num_versions: 3 } }"),
        (
            'instance_group { name: "g" count: 1 rate_limiter { priority: 2 } }',
            {"instance_count": 3, "instance_kind": "gpu", "gpus": [0, 1]},
            'instance_group { name: "g" count: 3 kind: KIND_GPU gpus: [0, 1] rate_limiter { priority: 2 } }',
        ),
        ("", {"instance_count": 1}, "instance_group { count: 1 }"),
        (
            "instance_group { gpus: 1 }",
            {"gpus": "none", "instance_kind": "cpu"},
            "instance_group { kind: KIND_CPU }",
        ),
        (
            "max_batch_size: 8 dynamic_batching { preserve_ordering: true preferred_batch_size: [2] }",
            {"preferred_batch_size": "4,8", "max_queue_delay_microseconds": 5},
            (
                "max_batch_size: 8 dynamic_batching { preserve_ordering: true preferred_batch_size: [4, 8] "
                "max_queue_delay_microseconds: 5 }"
            ),
        ),
        ("", {"max_batch_size": 4, "dynamic_batching": True}, "max_batch_size: 4 dynamic_batching { }"),
        (f"{FULL} dynamic_batching {{ }}", {"dynamic_batching": "false"}, FULL),
        (
            'parameters { key: "a" value { string_value: "1" } } parameters { key: "b" value { string_value: "2" } }',
            {"parameters": {"b": 3}},
            'parameters { key: "a" value { string_value: "1" } } parameters { key: "b" value { string_value: "3" } }',
        ),
        (
            f'{FULL} model_warmup {{ name: "mine" batch_size: 1 }}',
            {"warmup": 2},
            (
                f'{FULL} model_warmup [ {{ name: "mine" batch_size: 1 }}, {{ name: "mlflow" batch_size: 1 count: 2 inputs '
                '{ key: "x" value { data_type: TYPE_FP32 dims: [1, 3] zero_data: true } } } ]'
            ),
        ),
        (f'{FULL} model_warmup {{ name: "mine" batch_size: 1 }}', {"warmup": False}, FULL),
    ],
)
def test_merge(text: str, options: dict[str, Any], expected: str) -> None:
    """An option sets its field, in what is there of it already."""
    config, problems = merge(model_config.parse(text, origin="it"), DeploymentOptions.parse(options))
    assert problems == []
    assert config == model_config.parse(expected, origin="it")


@pytest.mark.parametrize(
    ("text", "options", "problem"),
    [
        (UNBATCHED, {"max_batch_size": 4}, r"changes what its dims mean.*x \[-1, 3\], y \[3\]"),
        (FULL, {"max_batch_size": 0}, "changes what its dims mean"),
        (
            'backend: "python" input { name: "x" } max_batch_size: 1',
            {"max_batch_size": 0},
            "changes what its dims mean",
        ),
        (
            'backend: "onnxruntime" max_batch_size: 8',
            {"max_batch_size": 0},
            "max_batch_size=0 would not last",
        ),
        ("", {"dynamic_batching": False}, "dynamic_batching=false would not last"),
        (UNBATCHED, {"dynamic_batching": True}, "does nothing with the configuration's max_batch_size 0"),
        (
            f"{FULL} sequence_batching {{ }}",
            {"dynamic_batching": True},
            "does not go with .*sequence_batching",
        ),
        (FULL, {"preferred_batch_size": "4,9"}, "preferred_batch_size 9 is more than max_batch_size 8"),
        (
            f"{FULL} dynamic_batching {{ preferred_batch_size: 8 }}",
            {"max_batch_size": 4},
            "preferred_batch_size 8 is more than max_batch_size 4",
        ),
        (
            GROUPS,
            {"instance_count": 1, "gpus": 1},
            "has 2 instance groups, and instance_count, gpus would be for one",
        ),
        ("instance_group { gpus: 1 }", {"instance_kind": "cpu"}, r"GPUs that .* names \(1\): add gpus=none"),
        (
            "instance_group { kind: KIND_CPU }",
            {"gpus": "0"},
            "gpus=0 does not go with .*: add instance_kind=KIND_GPU",
        ),
        (ENSEMBLE, {"instance_count": 1}, "an ensemble has no instances, which instance_count would be for"),
        (ENSEMBLE, {"warmup": 1}, "an ensemble has no instances to warm up"),
        ("", {"warmup": 1}, "warmup needs to know the model's inputs"),
    ],
)
def test_what_does_not_fit_the_model(text: str, options: dict[str, Any], problem: str) -> None:
    """An option that the model's configuration contradicts is one problem, which says what to do."""
    _, problems = merged(text, options)
    assert len(problems) == 1
    assert re.search(problem, problems[0])


def contents(text: str | None) -> Contents:
    """Return a model of one version, with a configuration."""
    return Contents(
        {PurePosixPath("1/model.onnx"): Path("model.onnx")}, None if text is None else text.encode()
    )


def test_every_problem_at_once() -> None:
    """All options that do not fit are in one message, with those that Triton's own rules refuse."""
    options = DeploymentOptions.parse(
        {"max_batch_size": 4, "warmup": 1, "version_policy": "specific:7", "gpus": 0}
    )
    text = 'output { name: "y" dims: [ 1 ] } instance_group { kind: KIND_CPU }'
    with pytest.raises(InvalidOption, match=r"^Nothing was changed\..* do not fit models:/m/1: ") as caught:
        configured(contents(text), options, name="m", origin="models:/m/1")
    for words in ("what its dims mean", "needs to know", "specific lists 7", "gpus=0"):
        assert words in caught.value.message


def test_without_a_configuration() -> None:
    """Where the model has no config.pbtxt, one is written with just the fields that are asked for."""
    options = DeploymentOptions.parse({"max_batch_size": 4})
    layout = configured(contents(None), options, name="m", origin="it")
    assert layout.config_text == b"max_batch_size: 4\n"
    assert configured(contents(None), DeploymentOptions(), name="m", origin="it").config_text is None


def test_comments(caplog: pytest.LogCaptureFixture) -> None:
    """A configuration stays byte for byte as it is if the options say nothing new, else the loss of comments is told."""
    text = f'{FULL}parameters {{ key: "#" value {{ string_value: "1" }} }}\n'
    commented = f"{text}# why\n"
    same, other = (
        DeploymentOptions.parse({"max_batch_size": 8}),
        DeploymentOptions.parse({"max_batch_size": 4}),
    )
    with caplog.at_level(logging.WARNING):
        assert configured(contents(commented), same, name="m", origin="it").config_text == commented.encode()
        configured(contents(text), other, name="m", origin="it")
        assert caplog.messages == []
        configured(contents(commented), other, name="m", origin="it")
    (message,) = caplog.messages
    assert "comments of it/config.pbtxt" in message


def test_config_file(tmp_path: Path) -> None:
    """config_file takes the place of the model's configuration, even of a broken one; options are merged into it."""
    file = tmp_path / "my.pbtxt"
    file.write_text(f"# mine\n{FULL}")
    options = DeploymentOptions.parse({"config_file": file})
    assert configured(contents("broken"), options, name="m", origin="it").config_text == file.read_bytes()
    options = DeploymentOptions.parse({"config_file": file, "max_batch_size": 2})
    layout = configured(contents("broken"), options, name="m", origin="it")
    assert layout.config == model_config.parse(FULL.replace("8", "2"), origin="it")


def test_config_file_that_cannot_be_used(tmp_path: Path) -> None:
    """A config_file that is not there, or is broken, is named."""
    options = DeploymentOptions.parse({"config_file": tmp_path / "none"})
    with pytest.raises(InvalidOption, match=r"none' cannot be read: No such file"):
        configured(contents(None), options, name="m", origin="it")
    (tmp_path / "broken").write_text("max_batch: 1")
    options = DeploymentOptions.parse({"config_file": tmp_path / "broken"})
    with pytest.raises(InvalidModelConfig, match=r"broken:1:1.*did you mean \"max_batch_size\""):
        configured(contents(None), options, name="m", origin="it")
