from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mlflow_triton.errors import RepositoryError
from mlflow_triton.repository.record import LONGEST_HISTORY, RECORD_NAME, Record, Served, printable

NVIDIA: dict[str, Any] = {
    "name": "m",
    "triton_model_path": "/r/m",
    "mlflow_model_uri": "models:/m/1",
    "flavor": "onnx",
}
OPTIONAL = (
    "deployment_id",
    "model_name",
    "model_version",
    "model_id",
    "run_id",
    "plugin_version",
    "created_at",
)
WRONG_TEXTS: list[Any] = [1, [], {}]
WRONG_VERSIONS: list[Any] = [None, 1, "1", ["1"], [1.0], [True]]
WRONG_HISTORIES: list[Any] = [
    None,
    {},
    "x",
    [1],
    [[]],
    [{}],
    [{"mlflow_model_uri": 1}],
    [{"mlflow_model_uri": "a", "since": 1}],
]
WRONG_FILES: list[Any] = [
    *(None, [], {"a": 1}, {"a": None}),
    *({path: "sha256:0"} for path in ("../x", "/dev/zero", "a/../../x", "", ".", "a\0")),
]


def read(document: Any) -> Record:
    """Read a record of the deployment m."""
    text = document if isinstance(document, (str, bytes)) else json.dumps(document)
    return Record.from_json(text, name="m", path="/r/m/mlflow-meta.json")


def refusal(document: Any) -> str:
    """Return the message with which a record is refused."""
    with pytest.raises(RepositoryError) as caught:
        read(document)
    message: str = caught.value.message
    assert "'m'" in message
    assert "/r/m/mlflow-meta.json" in message
    assert "the other deployments are untouched" in message
    return message


TEXT = st.text().map(printable)
PATHS = TEXT.map(lambda text: f"1/x{text}".translate({0: "_"}).replace("/.", "_"))
TEXT_OR_NONE = st.none() | TEXT
RECORDS = st.builds(
    Record,
    *[TEXT] * 4,
    *[TEXT_OR_NONE] * 5,
    st.lists(st.integers()).map(tuple),
    st.dictionaries(PATHS, TEXT),
    TEXT_OR_NONE,
    TEXT_OR_NONE,
    operation=TEXT_OR_NONE,
    history=st.lists(st.builds(Served, TEXT_OR_NONE, TEXT, *[TEXT_OR_NONE] * 5), max_size=3).map(tuple),
)


@given(RECORDS)
def test_a_record_comes_back(record: Record) -> None:
    """What `to_json` writes, `from_json` reads: the same record."""
    assert Record.from_json(record.to_json(), name=record.name, path="p") == record
    assert Record.from_json(record.to_json().encode(), name=record.name, path="p") == record


def test_a_history_is_bounded() -> None:
    """A record tells of its last predecessors; of one that NVIDIA's plugin wrote, what there is to tell."""
    record = read(NVIDIA)
    for turn in range(LONGEST_HISTORY + 2):
        record = replace(record, deployment_id=str(turn), history=record.history_for(f"then {turn}"))
    assert len(record.history) == LONGEST_HISTORY
    assert [record.history[0].deployment_id, record.history[-1].until] == ["1", f"then {LONGEST_HISTORY + 1}"]
    assert read(NVIDIA).history_for("then") == (Served(None, "models:/m/1", None, None, None, None, "then"),)


def test_the_keys_of_nvidias_plugin_come_first() -> None:
    """A record has the four keys of NVIDIA's plugin, in its order, under its file name."""
    assert RECORD_NAME == "mlflow-meta.json"
    assert list(json.loads(Record("m", "/r/m", "models:/m/1", "onnx").to_json()))[:4] == list(NVIDIA)


def test_a_record_of_nvidias_plugin_is_read() -> None:
    """A record that NVIDIA's plugin wrote has its four values, and none of ours."""
    assert read(NVIDIA) == Record("m", "/r/m", "models:/m/1", "onnx")


def test_keys_of_later_versions_are_ignored() -> None:
    """A record of a later version, with more keys, is read."""
    assert read({**NVIDIA, "color": "red", "versions": [3]}) == Record(**NVIDIA, versions=(3,))


@pytest.mark.parametrize(
    "text",
    ["", "{", "nul", '{"name": "m"', b"\xff\xfe", b"\x00", "[" * 100_000],
    ids=lambda text: repr(text[:9]),
)
def test_a_corrupt_record(text: str | bytes) -> None:
    """A file that is no JSON is corrupt, and the error says what to do with it."""
    assert "is corrupt" in refusal(text)


@pytest.mark.parametrize("document", [[], 1, None, "text"])
def test_a_record_that_is_no_object(document: Any) -> None:
    """JSON that is no object is no record."""
    assert "it is not a JSON object" in refusal(json.dumps(document))


@pytest.mark.parametrize("key", NVIDIA)
@pytest.mark.parametrize("value", [None, 1, ["x"], "missing"])
def test_a_record_needs_its_four_keys(key: str, value: Any) -> None:
    """Each of the four keys must be there, as text."""
    document: dict[str, Any] = {**NVIDIA, key: value}
    if value == "missing":
        del document[key]
    assert f"{key!r} is missing or not what it should be" in refusal(document)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        *((key, value) for key in OPTIONAL for value in WRONG_TEXTS),
        *(("versions", value) for value in WRONG_VERSIONS),
        *(("files", value) for value in WRONG_FILES),
        *(("history", value) for value in WRONG_HISTORIES),
    ],
)
def test_a_record_with_a_wrong_value(key: str, value: Any) -> None:
    """A value of a type that this plugin never writes makes a record unusable, and is named."""
    assert f"{key!r} is missing or not what it should be" in refusal({**NVIDIA, key: value})


def test_a_record_of_another_deployment() -> None:
    """A record that was copied with its directory is not taken for the copy's own."""
    assert "it is the record of 'other'" in refusal({**NVIDIA, "name": "other"})


@given(st.binary() | st.text())
def test_only_repository_errors_leave(text: str | bytes) -> None:
    """Whatever a file holds, reading it is a record or a RepositoryError."""
    with pytest.raises(RepositoryError):
        read(text)


def test_what_a_record_writes_on_a_terminal() -> None:
    """What cannot be printed, such as a terminal's commands, is an escape when a record has been read."""
    hostile = "models:/a\x1b[2J\nb/1"
    shown = r"models:/a\x1b[2J\nb/1"
    document = {**NVIDIA, "mlflow_model_uri": hostile, "history": [{"mlflow_model_uri": hostile}]}
    record = read(json.dumps(document))
    assert (record.mlflow_model_uri, record.history[0].mlflow_model_uri) == (shown, shown)
    assert "'files' is missing or not what it should be" in refusal({**NVIDIA, "files": {"\x1b": "sha256:0"}})
