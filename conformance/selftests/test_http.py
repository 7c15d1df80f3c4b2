# Every server here plays a fault that no real server plays on demand.
from __future__ import annotations

import json
import logging
import socket
import struct
import threading
import time
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from listening import answer, listener, raw, silent
from mlflow_triton.errors import (
    DeploymentNotFound,
    InferenceFailed,
    LoadFailed,
    ServerRefused,
    ServerTimeout,
    ServerUnavailable,
)
from mlflow_triton.serving.control import Control, IndexEntry, ServerInfo
from mlflow_triton.serving.http import HttpEndpoint, Response, one_line, segment
from mlflow_triton.serving.inference import HEADER_LENGTH, Inference, infer, metadata
from mlflow_triton.serving.shared_memory import LARGE, LARGE_OUTPUT
from mlflow_triton.settings import Settings

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator


def routes(**bodies: Any) -> Callable[[socket.socket, str], None]:
    """Answer by the last part of the path: bytes as they are, anything else as JSON."""

    def behave(connection: socket.socket, head: str) -> None:
        last = head.split(" ")[1].rpartition("/")[2]
        body = bodies.get(last, [])
        connection.sendall(body if isinstance(body, bytes) else answer(json.dumps(body).encode()))
        connection.close()

    return behave


def settings(address: str, **environment: str) -> Settings:
    """Make settings for a server on a port that has no gRPC beside it."""
    values = {"TRITON_URL": address, "TRITON_REQUEST_TIMEOUT": "0.4", "TRITON_LOAD_TIMEOUT": "0.4"}
    return Settings.parse("triton", values | environment)


@contextmanager
def endpoint(behaviour: Callable[[socket.socket, str], None]) -> Iterator[HttpEndpoint]:
    """Make an endpoint of a server that behaves in a certain way."""
    with listener(behaviour) as address:
        yield HttpEndpoint(settings(address))


@contextmanager
def control(behaviour: Callable[[socket.socket, str], None]) -> Iterator[Control]:
    """Make a control of a server that behaves in a certain way."""
    with listener(behaviour) as address:
        made = settings(address)
        yield Control(HttpEndpoint(made), made)


def test_nobody_listens() -> None:
    """A refused connection names the address, its source and the reason, and says what to set."""
    with listener(silent) as address:
        pass
    with pytest.raises(ServerUnavailable) as caught:
        HttpEndpoint(settings(address)).request("GET", "/v2")
    assert not isinstance(caught.value, ServerTimeout)
    assert f"Triton at http://{address} (from environment variable TRITON_URL)" in caught.value.message
    assert "Connection refused" in caught.value.message
    assert "TRITON_URL" in caught.value.message


def test_a_host_that_does_not_exist() -> None:
    """A host name that nothing resolves, or could, is ServerUnavailable."""
    for host in ("no-such-host.invalid", f"{'x' * 64}.invalid"):
        with pytest.raises(ServerUnavailable) as caught:
            HttpEndpoint(settings(f"{host}:1")).request("GET", "/v2")
        assert f"http://{host}:1" in caught.value.message
        assert caught.value.message.isprintable()


def test_a_server_that_never_answers() -> None:
    """A server that accepts and is silent is given up after the timeout, whose setting is named."""
    with endpoint(silent) as http:
        calls: list[Callable[[], object]] = [
            lambda: http.request("GET", "/v2"),
            lambda: http.request("GET", "/v2", timeout=0.2),
        ]
        for call in calls:
            started = time.monotonic()
            with pytest.raises(
                ServerTimeout, match=r"accepted GET /v2 but did not answer within 0.[24] s"
            ) as caught:
                call()
            assert time.monotonic() - started < 2
            assert "TRITON_REQUEST_TIMEOUT" in caught.value.message


def test_a_server_that_stops_in_the_middle() -> None:
    """A server that sends the head and then nothing is given up after the timeout as well."""

    def stall(connection: socket.socket, _: str) -> None:
        connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\n[")

    with endpoint(stall) as http:
        started = time.monotonic()
        with pytest.raises(ServerTimeout, match=r"did not answer within 0.4 s"):
            http.request("GET", "/v2")
        assert time.monotonic() - started < 2


OK = b"HTTP/1.1 200 OK\r\n"
BROKEN = {
    "closes": (b"", "the connection was closed"),
    "garbage": (b"\0garbage\r\n\r\n", "is no HTTP"),
    "ssh": (b"SSH-2.0-OpenSSH_9.6\r\n", "is no HTTP (Expected HTTP/"),
    "half a status": (b"HTTP/1.1 20", "the connection was closed"),
    "half a head": (OK + b"Content-Le", "the connection was closed"),
    "truncated": (OK + b"Content-Length: 99\r\n\r\n[]", "was cut off 97 bytes before its end"),
    "longer than it says": (OK + b"Content-Length: 2\r\n\r\n[]HTTP/1.1 garbage", "is no HTTP"),
    "no length": (OK + b"Content-Length: two\r\n\r\n[]", "is no HTTP (Invalid character in Content-Length)"),
    "negative": (OK + b"Content-Length: -2\r\n\r\n[]", "is no HTTP"),
    "overflow": (
        OK + b"Content-Length: 99999999999999999999\r\n\r\n[]",
        "is no HTTP (Content-Length overflow)",
    ),
    "two lengths": (OK + b"Content-Length: 2\r\nContent-Length: 3\r\n\r\n[]", "is no HTTP"),
    "length and chunks": (
        OK + b"Content-Length: 2\r\nTransfer-Encoding: chunked\r\n\r\n2\r\n[]\r\n0\r\n\r\n",
        "is no HTTP",
    ),
    "chunk size": (OK + b"Transfer-Encoding: chunked\r\n\r\nzz\r\n", "is no HTTP"),
    "cut chunk": (OK + b"Transfer-Encoding: chunked\r\n\r\n5\r\nab", "the answer was cut off"),
    "no last chunk": (OK + b"Transfer-Encoding: chunked\r\n\r\n2\r\n[]\r\n", "the answer was cut off"),
    "gzip": (OK + b"Content-Encoding: gzip\r\nContent-Length: 2\r\n\r\n[]", "encoded as gzip"),
    "headers": (OK + b"A: b\r\n" * 50_000 + b"\r\n", "more than 65536 bytes"),
    "line": (OK + b"A: " + b"b" * 70_000, "more than 65536 bytes"),
    "header without a name": (OK + b": b\r\n\r\n", "is no HTTP"),
    "folded header": (OK + b"A: b\r\n c\0\r\n\r\n", "is no HTTP"),
    "status": (b"HTTP/1.1 999999 OK\r\n\r\n", "is no HTTP"),
    "version": (b"HTTP/3.7 200 OK\r\nContent-Length: 2\r\n\r\n[]", "is no HTTP"),
    "upgrade": (b"HTTP/1.1 101 X\r\nConnection: upgrade\r\nUpgrade: x\r\n\r\n", ""),
}


@pytest.mark.parametrize(("content", "reason"), BROKEN.values(), ids=BROKEN)
def test_an_answer_that_is_broken(content: bytes, reason: str) -> None:
    """Whatever a server sends instead of HTTP is ServerUnavailable, in one line that has the reason."""
    with endpoint(raw(content)) as http, pytest.raises(ServerUnavailable) as caught:
        http.json("GET", "/v2")
    assert not isinstance(caught.value, ServerTimeout)
    message = caught.value.message
    assert f"{http.url} (from environment variable TRITON_URL) broke off GET /v2: " in message
    assert reason in message
    assert "look at the server's log" in message
    assert message.isprintable()
    assert len(message) < 400


@pytest.mark.parametrize(
    "content",
    [
        OK + b"Content-Length: 8\r\n\r\n",
        OK + b"Transfer-Encoding: chunked\r\n\r\n",
        OK,
        b"",
    ],
    ids=["body", "chunks", "head", "nothing"],
)
def test_a_connection_that_is_reset(content: bytes) -> None:
    """A connection that is reset instead of closed, at any point of the answer, is ServerUnavailable, too."""

    def reset(connection: socket.socket, _: str) -> None:
        connection.sendall(content)
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        connection.close()

    with (
        endpoint(reset) as http,
        pytest.raises(ServerUnavailable, match=r"broke off GET /v2: .*(reset|closed|cut off)"),
    ):
        http.json("GET", "/v2")


@pytest.mark.parametrize(
    ("content", "body"),
    [
        (OK + b"Content-Length: 2\r\n\r\n[]", []),
        (OK + b"content-length:2\r\nConnection: close\r\n\r\n{}", {}),
        (OK + b"\r\n[1]", [1]),
        (b"HTTP/1.0 200 OK\r\nContent-Length: 2\r\n\r\n[]", []),
        (OK + b"Transfer-Encoding: chunked\r\n\r\n1\r\n[\r\n2;a=b\r\n7]\r\n0\r\nX: y\r\n\r\n", [7]),
        (b"HTTP/1.1 100 Continue\r\n\r\n" + OK + b"Content-Length: 2\r\n\r\n[]", []),
        (
            b"HTTP/1.1 103 Early\r\nContent-Length: 9\r\nLink: x\r\n\r\n"
            + OK
            + b"Content-Length: 2\r\n\r\n[]",
            [],
        ),
        (OK + b"A: b\r\n" * 200 + b"Content-Length: 2\r\n\r\n[]", []),
    ],
    ids=["length", "close", "until the end", "1.0", "chunked", "continue", "early", "many headers"],
)
@pytest.mark.parametrize("pause", [0.0, 0.001])
def test_an_answer_in_any_form(content: bytes, body: Any, pause: float) -> None:
    """Every form in which HTTP/1.1 sends a body is understood, in one piece and byte by byte."""

    def send(connection: socket.socket, _: str) -> None:
        for start in range(0, len(content), 1 if pause else len(content)):
            connection.sendall(content[start : start + (1 if pause else len(content))])
            time.sleep(pause)
        connection.close()

    with listener(send) as address:
        http = HttpEndpoint(settings(address, TRITON_REQUEST_TIMEOUT="10"))
        assert http.json("GET", "/v2") == body


@pytest.mark.parametrize("body", [b"<html>", b"\xff", b"nul", b"[" * 100_000, b'{"a":'])
def test_a_body_that_is_no_json(body: bytes) -> None:
    """A 200 whose body is not JSON asks whether this is a Triton server."""
    with endpoint(raw(answer(body))) as http, pytest.raises(ServerUnavailable, match="is it a Triton server"):
        http.json("GET", "/v2")


def test_an_empty_body() -> None:
    """A 200 without a body is None, as Triton answers a load."""
    with endpoint(raw(answer(b""))) as http:
        assert http.json("POST", "/v2/repository/models/m/load", {}) is None


@pytest.mark.parametrize(
    ("body", "error"),
    [
        (b'{"error": "why not"}', "why not."),
        (b'{"error": "one;\\n  two.\\n\\nAt:\\n  file.py(3): f\\n"}', "one; two."),
        (b'{"error": ""}', ""),
        (b'{"error": 3}', "HTTP 418 '{\"error\": 3}'."),
        (b"<html>" + b"x" * 300, f"HTTP 418 '<html>{'x' * 194}'."),
        (b"\xff", "HTTP 418 '�'."),
        (b"", "HTTP 418 ''."),
        (b"[" * 100_000, f"HTTP 418 '{'[' * 200}'."),
    ],
)
def test_the_text_of_an_error(body: bytes, error: str) -> None:
    """An error's text is Triton's, in one sentence, or the beginning of whatever there is."""
    with endpoint(raw(answer(body, 418))) as http:
        response = http.json("GET", "/v2")
    assert isinstance(response, Response)
    assert (response.status, response.error) == (418, error)


def test_one_line() -> None:
    """A reason of many lines becomes one sentence that ends in one full stop."""
    assert one_line("a\n b ;") == "a b."
    assert one_line("") == ""
    assert one_line("x.\n\nAt:\n  y") == "x."


def test_a_redirect_is_not_followed() -> None:
    """A redirect is an answer, so that headers with credentials go to no other server."""
    with endpoint(raw(answer(b"", 302, Location="http://127.0.0.1:1/"))) as http:
        assert http.request("GET", "/v2").status == 302


def test_what_is_sent() -> None:
    """A request has the settings' headers and its own, and asks for no compression."""
    heads: list[str] = []

    def record(connection: socket.socket, head: str) -> None:
        heads.append(head.lower())
        raw(answer(b"{}"))(connection, head)

    with listener(record) as address:
        http = HttpEndpoint(settings(address, TRITON_HEADERS='{"Authorization": "Bearer t"}'))
        http.request("POST", f"/v2/models/{segment('a b/ü')}", body=b"x", headers={"X-Mine": "1"})
    assert heads[0].startswith("post /v2/models/a%20b%2f%c3%bc http/1.1\r\n")
    for line in ("authorization: bearer t", "x-mine: 1", "accept-encoding: identity", "content-length: 1"):
        assert f"\r\n{line}\r\n" in heads[0]


# --- control ---


@pytest.mark.parametrize(
    "index",
    [{}, None, "text", 1, ["m"], [None], [{}], [{"name": 1}], [{"name": "m", "version": 1}], [{"name": "m", "state": {}}], [{"name": "m", "reason": 5}]],
    ids=repr,
)  # fmt: skip
def test_an_index_of_another_form(index: Any) -> None:
    """An index that Triton never sends is ServerUnavailable, not a guess."""
    with control(routes(index=index)) as subject:
        for call in (subject.index, lambda: subject.lists("m")):
            with pytest.raises(
                ServerUnavailable, match="/v2/repository/index in a form that Triton never uses"
            ):
                call()


def test_the_index() -> None:
    """An index is read with and without versions, and its reasons are single lines."""
    entries = [{"name": "a"}, {"name": "b", "version": "1", "state": "UNAVAILABLE", "reason": "x\n y"}]
    with control(routes(index=entries)) as subject:
        assert subject.index() == [
            IndexEntry("a", None, None, ""),
            IndexEntry("b", "1", "UNAVAILABLE", "x y."),
        ]
        assert subject.lists("a")
        assert not subject.lists("c")


@pytest.mark.parametrize(
    "document", [[], {}, {"name": "triton"}, {"name": 1, "version": "2"}, "x", None], ids=repr
)
def test_a_server_of_another_kind(document: Any) -> None:
    """A JSON answer that does not introduce itself as Triton does is not taken for a server."""
    with (
        control(routes(v2=document)) as subject,
        pytest.raises(ServerUnavailable, match="answered /v2 in a form that Triton never uses"),
    ):
        subject.server()


def test_the_server() -> None:
    """A server's name, version and extensions are read; extensions may be missing."""
    with control(routes(v2={"name": "triton", "version": "2.51.0", "extensions": ["a"]})) as subject:
        assert subject.server() == ServerInfo("triton", "2.51.0", ("a",))
    with control(routes(v2={"name": "triton", "version": "2.51.0", "extensions": None})) as subject:
        assert subject.server().extensions == ()


@pytest.mark.parametrize(
    ("status", "text", "hint"),
    [
        (403, "restricted", "Set TRITON_HEADERS"),
        (500, "failed to stat file /r/x", "A broken symbolic link"),
        (500, "whatever", "whatever."),
    ],
)
def test_a_refusal_has_a_hint(status: int, text: str, hint: str) -> None:
    """A server that answers no is ServerRefused with its reason and what may help."""
    with (
        control(raw(answer(json.dumps({"error": text}).encode(), status))) as subject,
        pytest.raises(ServerRefused, match="refused /v2/repository/index") as caught,
    ):
        subject.index()
    assert text in caught.value.message
    assert hint in caught.value.message


@pytest.mark.parametrize(("status", "expected"), [(200, True), (400, False), (404, False), (500, False)])
def test_readiness(status: int, expected: bool) -> None:
    """A model and a server are ready when Triton says 200."""
    with control(raw(answer(b"", status))) as subject:
        assert subject.is_ready("m") is expected
        assert subject.is_ready("m", 3) is expected
        assert subject.is_server_ready() is expected


@pytest.mark.parametrize("status", [400, 404])
def test_no_config(status: int) -> None:
    """A model that is not served has no configuration."""
    with control(raw(answer(b'{"error": "no"}', status))) as subject:
        assert subject.config("m") is None


def test_a_config_of_another_form() -> None:
    """A configuration that is no object is ServerUnavailable."""
    with (
        control(routes(config=[])) as subject,
        pytest.raises(ServerUnavailable, match="/v2/models/m/config in a form"),
    ):
        subject.config("m")


def test_a_load_that_takes_too_long() -> None:
    """A load over HTTP is given up after its own timeout."""
    with control(silent) as subject:
        calls: list[Callable[[], None]] = [
            lambda: subject.load("m", config_json="{}", timeout=0.2),
            lambda: subject.unload("m", timeout=0.2),
        ]
        for call in calls:
            started = time.monotonic()
            with pytest.raises(ServerTimeout, match=r"did not answer within 0.2 s"):
                call()
            assert time.monotonic() - started < 2


@pytest.mark.parametrize(
    ("text", "hint"),
    [
        (
            "explicit model load / unload is not allowed if polling is enabled",
            "--model-control-mode=explicit",
        ),
        ("failed to load 'm', failed to poll from model repository", "Poll failed for model directory"),
        ("version 1 is at UNAVAILABLE state", "Correct the model and log it again"),
    ],
)
def test_a_load_that_is_refused(text: str, hint: str) -> None:
    """A refused load is LoadFailed with Triton's reason and what to do."""
    with (
        control(raw(answer(json.dumps({"error": text}).encode(), 400))) as subject,
        pytest.raises(LoadFailed, match="could not load 'm'") as caught,
    ):
        subject.load("m", config_json="{}")
    assert text in caught.value.message
    assert hint in caught.value.message


def test_an_unload_that_never_ends() -> None:
    """A model that the server goes on calling UNLOADING is waited for as long as the timeout, not longer."""
    entries = [{"name": "m", "version": "1", "state": "UNLOADING"}]
    with control(routes(index=entries, unload=answer(b""))) as subject:
        started = time.monotonic()
        with pytest.raises(ServerTimeout, match=r"still unloading 'm' after 0.3 s: requests in flight"):
            subject.unload("m", timeout=0.3)
        assert 0.3 < time.monotonic() - started < 2


@pytest.mark.parametrize(
    "behaviour", [silent, raw(b""), raw(answer(b"{}"))], ids=["silent", "closes", "http"]
)
def test_a_grpc_endpoint_that_is_none(
    behaviour: Callable[[socket.socket, str], None], caplog: pytest.LogCaptureFixture
) -> None:
    """Where the gRPC URL leads to no gRPC server, models are loaded over HTTP, with one warning."""
    with listener(behaviour) as grpc, listener(routes(load=answer(b""), unload=answer(b""))) as address:
        made = settings(address, TRITON_GRPC_URL=grpc)
        subject = Control(HttpEndpoint(made), made)
        started = time.monotonic()
        subject.load("m", config_json="{}", files={"1/x": b"y"})
        assert time.monotonic() - started < 5
        assert not subject.grpc_answers()
    warnings = [record.getMessage() for record in caplog.records if record.levelno == logging.WARNING]
    assert len(warnings) == 1
    assert "loaded over HTTP" in warnings[0]
    assert grpc in warnings[0]


# --- inference ---

ARRAY = np.array([1, 2], "<i4")


def output(size: Any = 8, shape: Any = (2,), datatype: Any = "INT32", **more: Any) -> dict[str, Any]:
    """Describe an output tensor."""
    return {
        "name": "y",
        "datatype": datatype,
        "shape": list(shape),
        "parameters": {"binary_data_size": size},
        **more,
    }


def inference(document: Any, data: bytes = ARRAY.tobytes(), length: Any = None) -> bytes:
    """Make an answer to an inference request."""
    head = document if isinstance(document, bytes) else json.dumps(document).encode()
    length = len(head) if length is None else length
    return answer(head + data, 200, **{HEADER_LENGTH: str(length)})


def run(content: bytes) -> dict[str, Any]:
    """Infer on a server that answers with these bytes."""
    with endpoint(raw(content)) as http:
        return infer(http, "m", {"x": ("INT32", ARRAY)})


def test_an_inference() -> None:
    """Outputs are read from the binary part, in the order in which the header names them."""
    two = {"outputs": [output(), {**output(4, (1,)), "name": "z"}]}
    outputs = run(inference(two, ARRAY.tobytes() + b"\3\0\0\0"))
    assert {name: array.tolist() for name, array in outputs.items()} == {"y": [1, 2], "z": [3]}


@pytest.mark.parametrize(
    "content",
    [
        inference({"outputs": [output()]}, b""),
        inference({"outputs": [output()]}, ARRAY.tobytes() + b"more"),
        inference({"outputs": [output(12)]}),
        inference({"outputs": [output(4)]}),
        inference({"outputs": [output(-8)]}),
        inference({"outputs": [output("eight")]}),
        inference({"outputs": [output(None)]}),
        inference({"outputs": [output(shape=(3,))]}),
        inference({"outputs": [output(shape=("a",))]}),
        inference({"outputs": [output(shape=(2**70,))]}),
        inference({"outputs": [output(datatype="INT64")]}),
        inference({"outputs": [output(datatype="BYTES")]}),
        inference({"outputs": [{"name": "y", "datatype": "INT32", "shape": [2], "data": [1, 2]}]}),
        inference({"outputs": [None]}),
        inference({"outputs": 5}),
        inference({}),
        inference([]),
        inference(b"garbage"),
        inference(b"[" * 100_000),
        inference({"outputs": [output()]}, length=3),
        inference({"outputs": [output()]}, length=10**9),
        inference({"outputs": [output()]}, length=-8),
        inference({"outputs": [output()]}, length="x"),
        answer(b""),
        answer(b"\xff\xff"),
    ],
)
def test_an_inference_that_lies(content: bytes) -> None:
    """An answer whose header and data do not fit together is ServerUnavailable, never a tensor."""
    with pytest.raises(ServerUnavailable, match="sent a broken answer for 'm'") as caught:
        run(content)
    assert caught.value.message.isprintable()


def test_an_output_of_a_datatype_of_the_future() -> None:
    """An output of a datatype that this plugin does not know is named, and not blamed on the input."""
    with pytest.raises(InferenceFailed, match="The datatype FP4 is none that this plugin knows"):
        run(inference({"outputs": [output(datatype="FP4")]}))


def test_inferences_that_are_refused() -> None:
    """A refused inference is InferenceFailed with the reason; a model that is not served is not found."""
    with pytest.raises(InferenceFailed, match=r"'m' on Triton at .* failed: too hot"):
        run(answer(b'{"error": "too hot"}', 400))
    with pytest.raises(DeploymentNotFound, match=r"serves no model 'm': no such model. See what is deployed"):
        run(answer(b'{"error": "no such model"}', 404))


@pytest.mark.parametrize(
    "document",
    [
        [],
        {},
        {"name": "m", "inputs": None, "outputs": []},
        {"name": "m", "inputs": ["x"], "outputs": []},
        {"name": "m", "inputs": [{"name": "x", "datatype": "FP32", "shape": ["a"]}], "outputs": []},
        {"name": "m", "inputs": [{"name": "x", "datatype": "FP32", "shape": 3}], "outputs": []},
    ],
    ids=repr,
)
def test_metadata_of_another_form(document: Any) -> None:
    """Metadata that Triton never sends is ServerUnavailable."""
    with (
        endpoint(routes(m=document)) as http,
        pytest.raises(ServerUnavailable, match="answered /v2/models/m in a form that Triton never uses"),
    ):
        metadata(http, "m")


LARGE_SIZE = 2 * LARGE_OUTPUT
IN_MEMORY = {"name": "y", "datatype": "INT8", "shape": [LARGE_SIZE]}


@pytest.mark.parametrize(
    ("second", "error", "reason"),
    [
        (inference({"outputs": [{**IN_MEMORY, "shape": [LARGE_SIZE + 1]}]}, b""), ServerUnavailable, "larger than the memory"),
        (inference({"outputs": [{**IN_MEMORY, "shape": [-1]}]}, b""), ServerUnavailable, "sent a broken answer"),
        (inference({"outputs": [{**IN_MEMORY, "shape": [2**62]}]}, b""), ServerUnavailable, "more than the memory"),
        (inference({"outputs": [{**IN_MEMORY, "datatype": "BYTES"}]}, b""), ServerUnavailable, "sent a broken answer"),
        (inference({"outputs": [{**IN_MEMORY, "datatype": "FP4"}]}, b""), InferenceFailed, "FP4"),
        (inference({"outputs": [{**IN_MEMORY, "name": "z"}]}, b""), ServerUnavailable, "sent a broken answer"),
        (inference({"outputs": [IN_MEMORY]}, b"more"), ServerUnavailable, "sent a broken answer"),
        (inference({"outputs": [IN_MEMORY]}, b"")[:-20], ServerUnavailable, "was cut off 20 bytes before its end"),
        (OK[:9], ServerUnavailable, "broke off POST"),
        (b"", ServerUnavailable, "broke off POST"),
        (None, ServerTimeout, "did not answer within"),
        (answer(b'{"error": "too hot"}', 400), InferenceFailed, "too hot"),
    ],
    ids=["larger", "negative", "huge", "text", "unknown", "other", "longer", "cut", "half", "closes", "silent", "fails"],
)  # fmt: skip
def test_an_answer_in_shared_memory_that_lies(
    second: bytes | None, error: type[Exception], reason: str
) -> None:
    """An answer that does not fit the memory in which it is to be is an error, never a tensor, and is not asked for again."""
    asked = 0

    def behave(connection: socket.socket, head: str) -> None:
        nonlocal asked
        if "/infer " in head:
            asked += 1
            described = output(LARGE_SIZE, (LARGE_SIZE,), "INT8")
            first = inference({"outputs": [described]}, bytes(LARGE_SIZE))
            if asked == 2 and second is None:
                return
            connection.sendall(first if asked == 1 else second or b"")
        else:
            connection.sendall(answer(b"[]" if "/status " in head else b""))
        connection.close()

    with endpoint(behave) as http:
        subject = Inference(http)
        x = {"x": ("INT8", np.zeros(LARGE, np.int8))}
        assert not subject.infer("m", x)["y"].any()
        with pytest.raises(error, match=reason):
            subject.infer("m", x)
        del subject
    assert asked == 2


@pytest.mark.parametrize("part", ["head", "header", "tensor", "text", "chunks", "data that nobody reads"])
def test_a_server_that_trickles(part: str) -> None:
    """A server that goes on, a byte at a time, is given up when the time for the whole request is over."""
    head = b'{"outputs": [{"name": "y", "datatype": "%s", "shape": [%d], "parameters": {"binary_data_size": 90000}}]}'
    head %= (b"BYTES", 1) if part == "text" else (b"INT8", 90000)
    start = {
        "head": OK,
        "header": OK + f"Content-Length: 100000\r\n{HEADER_LENGTH}: 90000\r\n\r\n".encode(),
        "chunks": OK + b"Transfer-Encoding: chunked\r\n\r\n15f90\r\n",
    }.get(
        part,
        OK + f"Content-Length: {len(head) + 90000}\r\n{HEADER_LENGTH}: {len(head)}\r\n\r\n".encode() + head,
    )

    def trickle(connection: socket.socket, _: str) -> None:
        if part == "data that nobody reads":
            for _turn in range(200):
                connection.recv(1)
                time.sleep(0.05)
        connection.sendall(start)
        for _turn in range(200):
            connection.sendall(b"x")
            time.sleep(0.05)

    size = 64 << 20 if part == "data that nobody reads" else 8
    with listener(trickle) as address:
        http = HttpEndpoint(settings(address, TRITON_REQUEST_TIMEOUT="0.5"))
        started = time.monotonic()
        with pytest.raises(ServerTimeout, match=r"did not answer within 0.5 s"):
            infer(http, "m", {"x": ("INT8", np.zeros(size, np.int8))})
        assert 0.4 < time.monotonic() - started < 2


# --- kept connections ---


class Keeper:
    """A server that answers as many requests on a connection as it is told, and counts."""

    def __init__(self, per_connection: int, *, last: bytes = b"") -> None:
        self.per_connection, self.last = per_connection, last
        self.requests = self.connections = 0

    def __call__(self, connection: socket.socket, head: str) -> None:
        """Play the server on one connection."""
        self.connections += 1
        for turn in range(self.per_connection + 1):
            if turn:
                head = connection.recv(65536).decode()
                while head and "\r\n\r\n" not in head:
                    head += connection.recv(65536).decode()
            if not head:
                break
            self.requests += 1
            if turn == self.per_connection:
                connection.sendall(self.last)
                break
            connection.sendall(OK + b"Content-Length: 2\r\n\r\n[]")
        connection.close()


def test_a_connection_is_kept() -> None:
    """Requests of one thread go over one connection, and what an error leaves of an answer does not reach the next one."""
    server = Keeper(5)
    with endpoint(server) as http:
        for _ in range(5):
            assert http.json("GET", "/v2") == []
    assert (server.connections, server.requests) == (1, 5)


@pytest.mark.parametrize("last", [b"", OK[:5]], ids=["nothing", "something"])
@pytest.mark.parametrize("method", ["GET", "POST"])
def test_a_kept_connection_that_breaks(method: str, last: bytes) -> None:
    """A request is sent again only if it may be executed twice and nothing of an answer had come."""
    server = Keeper(1, last=last)
    with endpoint(server) as http:
        assert http.json("GET", "/v2") == []
        if method == "GET" and not last:
            assert http.json(method, "/v2") == []
            assert (server.connections, server.requests) == (2, 3)
        else:
            with pytest.raises(ServerUnavailable, match=f"broke off {method} /v2"):
                http.json(method, "/v2")
            assert (server.connections, server.requests) == (1, 2)


def test_data_that_nobody_asked_for() -> None:
    """What a server sends after an answer is never taken for the answer to the next request."""
    sent = threading.Event()

    def behave(connection: socket.socket, _: str) -> None:
        connection.sendall(OK + b"Content-Length: 2\r\n\r\n[]")
        time.sleep(0.05)
        connection.sendall(OK + b"Content-Length: 7\r\n\r\n[1,2,3]")
        sent.set()

    with endpoint(behave) as http:
        for _ in range(2):
            assert http.json("GET", "/v2") == []
            assert sent.wait(5)
            sent.clear()
