from __future__ import annotations

import json
from typing import Any

import pytest
from google.protobuf import json_format, text_format
from hypothesis import given
from hypothesis import strategies as st

from mlflow_triton.errors import InvalidModelConfig
from mlflow_triton.repository import config as model_config
from mlflow_triton.repository.config import ModelConfig, check, is_ensemble, parameter, parse, served, to_json
from mlflow_triton.repository.config import with_parameter as with_parameter_

FULL = """
name: "full"  # a comment
backend: "python"
max_batch_size: 4
input [
  { name: "i", data_type: TYPE_FP32, dims: [ -1, 9007199254740993 ], optional: true },
  { name: "r" data_type: TYPE_STRING dims: [ 2, 3 ] reshape { shape: [ 6 ] } }
]
output { name: "o" data_type: TYPE_INT64 dims: 16 label_filename: "labels.txt" }
version_policy { all {} }
dynamic_batching { max_queue_delay_microseconds: 18446744073709551615 priority_queue_policy { key: 3 value {} } }
parameters { key: "a" value { string_value: "" } }
parameters { key: "\\303\\251\\n\\001" value { string_value: "\\"{}\\\\ 😀" } }
optimization { input_pinned_memory { enable: false } graph { level: -1 } }
response_cache { enable: false }
"""


def problem(text: str | bytes) -> str:
    """Return the message with which a text is refused, without its origin."""
    with pytest.raises(InvalidModelConfig) as caught:
        parse(text, origin="models:/m/1/config.pbtxt")
    message: str = caught.value.message
    assert message.isprintable()
    assert message.startswith("models:/m/1/config.pbtxt:")
    return message.removeprefix("models:/m/1/config.pbtxt:")


@pytest.mark.parametrize(
    ("text", "place", "words"),
    [
        ('name: "x"\ninput { dimz: 1 }', "2:9", 'ModelInput has no field "dimz"; did you mean "dims"?'),
        ("quux: 1", "1:1", 'ModelConfig has no field "quux"; it has name, platform, backend'),
        (
            "input { data_type: TYPE_FLOAT32 }",
            "1:20",
            'has no value "TYPE_FLOAT32"; it has TYPE_INVALID, TYPE_BOOL',
        ),
        ("input { data_type: 'TYPE_FP32' }", "1:20", "DataType TYPE_FP32 stands in quotes"),
        ("max_batch_size: 99999999999", "1:17", "Value out of range: 99999999999"),
        ("max_batch_size: many", "1:17", "Couldn't parse integer: many"),
        ('backend: "a"\nbackend: "b"', "2:10", 'should not have multiple "backend" fields'),
        ("version_policy { latest {} all {} }", "1:28", 'Field "all" is specified along with field "latest"'),
        ('{"name": "json"}', "1:1", "Expected identifier or number, got {"),
        ("\ufeffname: 'x'", "1:1", "byte order mark"),
        (b"\xef\xbb\xbfname: 'x'", "1:1", "byte order mark"),
        (b'name: "caf\xe9"', "1:7", "not UTF-8"),
        ("\x00", "1:1", "got \\x00"),
        ("input { ", "1:7", 'Expected "}"'),
    ],
)
def test_parse_names_place_and_problem(text: str | bytes, place: str, words: str) -> None:
    """A config.pbtxt that breaks Triton's schema is refused with its line, its column and the problem."""
    message = problem(text)
    assert message.startswith(f"{place}: ")
    assert words in message
    assert "Nothing has been changed" in message


@pytest.mark.parametrize(
    "text", ["x" * 1_000_000 + ": 1", 'name: "' + "x" * 1_000_000, "input " + "{ " * 100_000]
)
def test_parse_keeps_the_message_of_a_huge_text_short(text: str) -> None:
    """A text of a megabyte ends in a message that still fits a screen."""
    assert len(problem(text)) < 1000


def test_parse_takes_what_triton_takes_of_other_encodings() -> None:
    """Bytes that are not UTF-8 are no error in a comment, as for Triton."""
    assert parse(b"# caf\xe9\r\nname: 'x'", origin="o").name == "x"


@given(st.one_of(st.text(), st.binary()))
def test_parse_refuses_in_one_way_only(text: str | bytes) -> None:
    """Whatever the bytes, they are read or refused as InvalidModelConfig with one printable line."""
    try:
        parse(text, origin="o")
    except InvalidModelConfig as error:
        assert error.message.isprintable()  # noqa: PT017 - either outcome is right


def test_to_json_loses_nothing() -> None:
    """The JSON holds every field, also default values in groups, 64-bit integers and odd characters."""
    config = parse(FULL, origin="o")
    assert json_format.Parse(to_json(config), ModelConfig()) == config
    document = json.loads(to_json(config))
    assert document["response_cache"] == {}
    assert document["max_batch_size"] == 4
    assert document["input"][0]["dims"] == ["-1", "9007199254740993"]
    assert document["parameters"]["é\n\x01"] == {"string_value": '"{}\\ 😀'}


def test_with_parameter_copies() -> None:
    """A parameter is set in a copy, replaces one of its name, and the original stays as it was."""
    config = parse(FULL, origin="o")
    before = text_format.MessageToString(config)
    changed = with_parameter_(config, "a", "b")
    assert text_format.MessageToString(config) == before
    assert parameter(json.loads(to_json(changed)), "a") == "b"
    assert len(changed.parameters) == len(config.parameters)


@pytest.mark.parametrize(
    "answer",
    [
        {},
        {"parameters": None},
        {"parameters": []},
        {"parameters": {"k": "v"}},
        {"parameters": {"k": {"string_value": 1}}},
        {"parameters": {"other": {"string_value": "v"}}},
    ],
)
def test_parameter_is_none_where_there_is_none(answer: dict[str, Any]) -> None:
    """A server's answer without that parameter, or with something odd in its place, gives None."""
    assert parameter(answer, "k") is None


@pytest.mark.parametrize(
    ("policy", "expected"),
    [
        ("", (10,)),
        ("version_policy { latest { num_versions: 2 } }", (9, 10)),
        ("version_policy { latest { num_versions: 9 } }", (2, 9, 10)),
        ("version_policy { latest {} }", ()),
        ("version_policy { all {} }", (2, 9, 10)),
        ("version_policy { specific { versions: [ 10, 2, 2, 77 ] } }", (2, 10)),
    ],
)
def test_served_follows_the_version_policy(policy: str, expected: tuple[int, ...]) -> None:
    """The version policy selects as Triton does: by number, and without a word about absent ones."""
    assert expected == served(parse(policy, origin="o"), [10, 9, 2])


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ('name: "other"', 'deploy under the name "other"'),
        ('backend: "../../tmp/evil"', 'backend "../../tmp/evil" is no name'),
        ('backend: "python" runtime: "/tmp/evil.so"', 'runtime "/tmp/evil.so" is no name'),
        (
            'model_repository_agents { agents { name: "../evil" } }',
            'model_repository_agents "../evil" is no name',
        ),
        ("max_batch_size: -1", "max_batch_size is -1"),
        ('input { name: "i" data_type: TYPE_FP32 dims: [ 3, 0 ] }', 'input "i" has dims [3, 0]'),
        ('output { name: "o" data_type: TYPE_FP32 dims: -2 }', 'output "o" has dims [-2]'),
        ('input { name: "i" data_type: TYPE_FP32 dims: 1 reshape { shape: 0 } }', "reshape [0]"),
        ('input { name: "i" data_type: 99 dims: 1 }', "data_type 99"),
        ('platform: "onnx"', 'no platform "onnx"'),
        ('platform: "ensemble"', "without ensemble_scheduling"),
        ("version_policy { latest {} }", "num_versions 0"),
        ("version_policy { specific {} }", "lists no versions"),
        (
            "version_policy { specific { versions: [ 1, 3, 7 ] } }",
            "lists 3, 7, which the model does not have (it has 1, 2)",
        ),
        ('model_warmup { name: "w" }', 'model_warmup "w" has batch_size 0'),
        ('instance_group { name: "a\'b" }', 'instance_group name "a\'b"'),
        ('metric_tags { key: "a b" value: "c" }', 'metric_tags key "a b" makes no label of Prometheus'),
        ('metric_tags { key: "_a" value: "c" }', 'metric_tags key "_a" makes no label'),
    ],
)
def test_check_finds(text: str, words: str) -> None:
    """What Triton refuses without a reason, or skips in silence, is one problem with a remedy."""
    problems = check(parse(text, origin="o"), name="m", versions=[1, 2])
    assert len(problems) == 1
    assert words in problems[0]


@pytest.mark.parametrize(
    "text",
    [
        "",
        'name: "m"',
        'platform: "anything" backend: "python"',
        'input { name: "partial, to be completed" }',
        'input { name: "i" data_type: TYPE_FP32 dims: [ -1, 1 ] }',
        "version_policy { specific { versions: [ 2 ] } }",
        'model_warmup { name: "w" batch_size: 1 }',
        'metric_tags { key: "1a_b" value: "any text" }',
        'instance_group { name: "group_1" count: 0 }',
        'platform: "ensemble" ensemble_scheduling {}',
    ],
)
def test_check_accepts(text: str) -> None:
    """What Triton loads, or completes, is no problem."""
    assert check(parse(text, origin="o"), name="m", versions=[1, 2]) == []


def test_check_leaves_out_what_is_not_known() -> None:
    """Without a name and without versions the rules about them do not apply."""
    config = parse('name: "other" version_policy { specific { versions: 9 } }', origin="o")
    assert check(config, name=None) == []


def test_is_ensemble() -> None:
    """An ensemble is known by its platform or by its scheduling."""
    assert is_ensemble(parse('platform: "ensemble"', origin="o"))
    assert is_ensemble(parse("ensemble_scheduling {}", origin="o"))
    assert not is_ensemble(parse('backend: "python"', origin="o"))


def test_all_is_complete() -> None:
    """Everything that the module offers is what it names in __all__."""
    assert all(hasattr(model_config, name) for name in model_config.__all__)
