"""What a caller may ask of a request: checked before anything is sent."""

from __future__ import annotations

import math
from typing import Any

import pytest

from mlflow_triton.errors import InvalidParameter
from mlflow_triton.serving.request import PLAIN, RequestOptions


def test_nothing_asked_for_is_nothing_sent() -> None:
    """A request without options has no parameters, and is equal to another one."""
    assert PLAIN.wire_parameters() == {}
    assert RequestOptions() == PLAIN
    assert RequestOptions(priority=1) != PLAIN


def test_parameters_have_tritons_names_and_units() -> None:
    """Sequence, priority and timeout become Triton's parameters, the timeout in microseconds, beside custom ones."""
    options = RequestOptions(
        sequence_id="s", sequence_end=True, priority=2, timeout=1.5, parameters={"language": "en"}
    )

    assert options.wire_parameters() == {
        "language": "en",
        "sequence_id": "s",
        "sequence_start": False,
        "sequence_end": True,
        "priority": 2,
        "timeout": 1_500_000,
    }
    assert RequestOptions(timeout=1e-9).timeout_us == 1


def test_what_the_caller_holds_may_change_afterwards() -> None:
    """Options keep copies: a list or dict that the caller goes on using changes nothing."""
    outputs, parameters = ["a"], {"b": 1}
    options = RequestOptions(outputs=outputs, parameters=parameters)
    outputs.append("c")
    parameters["d"] = 2

    assert options == RequestOptions(outputs=("a",), parameters={"b": 1})


@pytest.mark.parametrize(
    ("given", "problem"),
    [
        ({"version": -1}, "version -1 is not an integer from 0"),
        ({"version": "2"}, "version '2' is not an integer"),
        ({"classification": 0}, "classification 0 is not an integer from 1"),
        ({"priority": True}, "priority True is not an integer"),
        ({"priority": 2**64}, "priority 18446744073709551616"),
        ({"outputs": "a"}, "outputs 'a' is not a list of output names"),
        ({"outputs": []}, r"outputs \(\) is not a list"),
        ({"outputs": ["a", "a"]}, "names an output twice"),
        ({"timeout": 0}, "timeout 0 is not a positive number of seconds"),
        ({"timeout": math.nan}, "timeout nan"),
        ({"timeout": math.inf}, "timeout inf"),
        ({"timeout": "1"}, "timeout '1'"),
        ({"request_id": "\ud800"}, "request_id"),
        ({"sequence_id": 0}, "sequence_id 0 is neither"),
        ({"sequence_id": "x" * 129}, "at most 128 characters"),
        ({"sequence_start": True}, "sequence_start needs a sequence_id"),
        ({"sequence_id": 1, "sequence_end": 1}, "sequence_end 1 is neither True nor False"),
        ({"parameters": [1]}, "parameters list is not a dict"),
        ({"parameters": {"": 1}}, "has no text as its name"),
        ({"parameters": {"priority": 1}}, "'priority' is reserved by Triton: use priority="),
        ({"parameters": {"binary_data_output": True}}, "reserved by Triton"),
        ({"parameters": {"triton_new": 1}}, "reserved by Triton"),
        ({"parameters": {"a": [1]}}, "'a' is a list"),
        ({"parameters": {"a": None}}, "'a' is a NoneType"),
        ({"parameters": {"a": math.inf}}, "JSON cannot express"),
        ({"parameters": {"a": 2**63}}, "64 bits cannot hold"),
        ({"headers": {"Content-Length": "1"}}, "'Content-Length' is set by the client itself"),
        ({"headers": {"a": "b\r\nc: d"}}, "'a' cannot be sent"),
        ({"headers": {"a b": "c"}}, "'a b' cannot be sent"),
        ({"headers": {"a": 1}}, "'a' is not a text"),
        ({"headers": "a: b"}, "headers str is not a dict"),
        ({"compression": "br"}, "compression 'br' is neither"),
    ],
)
def test_what_cannot_be_asked_for_is_refused(given: dict[str, Any], problem: str) -> None:
    """A value that Triton would refuse, misread or take for something else is named before anything is sent."""
    with pytest.raises(InvalidParameter, match=f"Nothing was sent: .*{problem}"):
        RequestOptions(**given)


def test_all_problems_are_told_at_once() -> None:
    """Two mistakes are one error; a header's value, which may be a secret, is not shown."""
    with pytest.raises(InvalidParameter, match=r"priority 0.*'x' cannot be sent") as caught:
        RequestOptions(priority=0, headers={"x": "secret\n"})
    assert "secret" not in caught.value.message
