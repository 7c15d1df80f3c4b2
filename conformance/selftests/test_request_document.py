"""A request of the Open Inference Protocol asks for more than its inputs, in Python and in the CLI's input file."""

from __future__ import annotations

from typing import Any

import pytest

from mlflow_triton.errors import InvalidParameter
from mlflow_triton.serving.document import own_options
from mlflow_triton.serving.request import PLAIN, RequestOptions

INPUTS = [{"name": "x", "shape": [1], "datatype": "FP32", "data": [1.0]}]


def test_everything_in_a_request_counts() -> None:
    """Id, parameters and outputs become options, in this plugin's units; the inputs stay."""
    document = {
        "id": "7",
        "parameters": {
            "priority": 2,
            "timeout": 1_500_000,
            "sequence_id": "s",
            "sequence_start": True,
            "binary_data_output": False,
            "language": "en",
        },
        "inputs": INPUTS,
        "outputs": [
            {"name": "a", "parameters": {"classification": 3, "binary_data": False}},
            {"name": "b", "parameters": {"classification": 3}},
        ],
    }
    expected = RequestOptions(
        request_id="7",
        priority=2,
        timeout=1.5,
        sequence_id="s",
        sequence_start=True,
        parameters={"language": "en"},
        outputs=("a", "b"),
        classification=3,
    )

    assert own_options(document, PLAIN) == ({"inputs": INPUTS}, expected)
    assert own_options([document], PLAIN) == ({"inputs": INPUTS}, expected)


def test_an_argument_goes_before_the_request() -> None:
    """What the caller asks for in Python stands; the rest of the request counts still."""
    document = {"id": "file", "inputs": INPUTS, "parameters": {"priority": 2}}

    _, found = own_options(document, RequestOptions(request_id="argument", version=3))

    assert found == RequestOptions(request_id="argument", version=3, priority=2)


def test_tritons_words_for_nothing_ask_for_nothing() -> None:
    """A zero priority, timeout and sequence, null and empty lists are what Triton's own clients write for none."""
    document = {
        "id": None,
        "inputs": INPUTS,
        "outputs": [],
        "parameters": {"priority": 0, "timeout": 0, "sequence_id": 0, "sequence_start": False},
    }
    assert own_options(document, PLAIN)[1] == PLAIN


@pytest.mark.parametrize("inputs", [None, [1], [], {"x": [1]}, {"inputs": {"x": [1]}}, [{"x": 1}], "text"])
def test_other_inputs_ask_for_nothing(inputs: Any) -> None:
    """What is no such request is left as it is."""
    assert own_options(inputs, PLAIN) == (inputs, PLAIN)


@pytest.mark.parametrize(
    ("beside", "words"),
    [
        ({"parameters": [1]}, "parameters are no JSON object"),
        ({"parameters": {"timeout": 0.5}}, "timeout 0.5 is no integer"),
        ({"parameters": {"priority": -1}}, "priority -1"),
        ({"parameters": {"triton_x": 1}}, "'triton_x' is reserved"),
        ({"parameters": {"deep": {}}}, "'deep' is a dict"),
        ({"parameters": {"sequence_start": True}}, "sequence_start needs a sequence_id"),
        ({"id": 5}, "request_id 5"),
        ({"outputs": "y"}, "outputs are no list"),
        ({"outputs": ["y"]}, "outputs are no list"),
        ({"outputs": [{"parameters": {}}]}, "is not a list of output names"),
        ({"outputs": [{"name": "y"}, {"name": "y"}]}, "names an output twice"),
        ({"outputs": [{"name": "y", "parameters": {"shared_memory_region": "r"}}]}, "shared_memory_region"),
        ({"outputs": [{"name": "y", "parameters": {"classification": [1]}}]}, "classification"),
        (
            {"outputs": [{"name": "y", "parameters": {"classification": 1}}, {"name": "z"}]},
            "differ in classification",
        ),
    ],
)
def test_what_a_request_cannot_ask_for(beside: dict[str, Any], words: str) -> None:
    """A mistake beside the inputs is named, and nothing is sent."""
    with pytest.raises(InvalidParameter, match=f"Nothing was sent: .*{words}"):
        own_options({"inputs": INPUTS, **beside}, PLAIN)
