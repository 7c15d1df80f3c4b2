from __future__ import annotations

from contextlib import suppress
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mlflow_triton.errors import InvalidSetting
from mlflow_triton.settings import SETTINGS, Setting, Settings


def refusal(target_uri: str = "triton", **environment: str) -> str:
    """Return the message with which settings are refused."""
    with pytest.raises(InvalidSetting) as caught:
        Settings.parse(target_uri, environment)
    message: str = caught.value.message
    assert message.isprintable()
    return message


def test_defaults() -> None:
    """With nothing set, Triton is at its default ports on this machine, and no repository is known."""
    settings = Settings.parse("triton", {})
    assert settings == Settings(
        http_url=Setting("http://localhost:8000", "default"),
        grpc_url=Setting("localhost:8001", "default beside http://localhost:8000"),
        model_repository=Setting(None, "default"),
        request_timeout=Setting(60.0, "default"),
        load_timeout=Setting(300.0, "default"),
        lossy_casts=Setting(False, "default"),
        transport=Setting("auto", "default"),
        shared_memory=Setting("auto", "default"),
        headers=Setting({}, "default"),
    )


ENVIRONMENT = {
    "TRITON_URL": "https://env:8443/",
    "TRITON_GRPC_URL": "grpcs://env:8444",
    "TRITON_MODEL_REPO": "/env",
    "TRITON_REQUEST_TIMEOUT": "1.5",
    "TRITON_LOAD_TIMEOUT": " 7 ",
    "TRITON_LOSSY_CASTS": "True",
    "TRITON_TRANSPORT": "gRPC",
    "TRITON_SHARED_MEMORY": "Off",
    "TRITON_HEADERS": '{"Authorization": "Bearer hush"}',
}


def test_the_environment_goes_before_the_defaults() -> None:
    """Every setting is read from its environment variable, which is its source."""
    settings = Settings.parse("triton", ENVIRONMENT)
    for definition in SETTINGS:
        assert getattr(settings, definition.name).source == f"environment variable {definition.environment}"
    assert settings.http_url.value == "https://env:8443"
    assert settings.grpc_url.value == "grpcs://env:8444"
    assert settings.model_repository.value == "/env"
    assert (settings.request_timeout.value, settings.load_timeout.value) == (1.5, 7.0)
    assert settings.lossy_casts.value is True
    assert settings.transport.value == "grpc"
    assert settings.shared_memory.value == "off"
    assert settings.headers.value == {"Authorization": "Bearer hush"}


def test_the_target_goes_before_the_environment() -> None:
    """What the target URI says wins, and the gRPC URL of another server is not kept beside it."""
    uri = "triton://uri:9000?model_repository=/a%20b+c&load_timeout=5"
    settings = Settings.parse(uri, ENVIRONMENT)
    assert settings.http_url == Setting("http://uri:9000", f"target URI {uri}")
    assert settings.grpc_url == Setting(None, "default")
    assert settings.model_repository == Setting("/a b+c", f"target URI {uri}")
    assert settings.load_timeout == Setting(5.0, f"target URI {uri}")
    assert settings.request_timeout.source == "environment variable TRITON_REQUEST_TIMEOUT"
    assert Settings.parse("triton://uri:9000?grpc_url=other", ENVIRONMENT).grpc_url.value == "other:8001"
    assert Settings.parse("triton?grpc_url=other:1", ENVIRONMENT).http_url.value == "https://env:8443"


@pytest.mark.parametrize("uri", ["triton", "triton:", "triton://", "triton:///", "TRITON://"])
def test_targets_that_name_no_server(uri: str) -> None:
    """Every way of writing the bare target leaves the server to the environment."""
    assert Settings.parse(uri, {"TRITON_URL": "h:1"}).http_url.value == "http://h:1"


@pytest.mark.parametrize(
    ("text", "url", "grpc"),
    [
        ("h", "http://h:8000", "h:8001"),
        ("h:8000", "http://h:8000", "h:8001"),
        ("http://h", "http://h:8000", "h:8001"),
        ("HTTP://H:8000/", "http://h:8000", "h:8001"),
        ("h:9000", "http://h:9000", None),
        ("https://h", "https://h:443", None),
        ("https://h:8000", "https://h:8000", None),
        ("[::1]", "http://[::1]:8000", "[::1]:8001"),
        ("http://[2001:DB8::2]:8000", "http://[2001:db8::2]:8000", "[2001:db8::2]:8001"),
    ],
)
def test_forms_of_the_http_url(text: str, url: str, grpc: str | None) -> None:
    """Host, port and scheme are completed; a gRPC port is guessed only beside Triton's own HTTP port."""
    settings = Settings.parse("triton", {"TRITON_URL": text})
    assert settings.http_url.value == url
    assert settings.grpc_url.value == grpc


@pytest.mark.parametrize(
    ("text", "url"),
    [("h", "h:8001"), ("grpc://h:5", "h:5"), ("GRPCS://h", "grpcs://h:8001"), ("[::1]:5", "[::1]:5")],
)
def test_forms_of_the_grpc_url(text: str, url: str) -> None:
    """The gRPC URL has its port completed, and keeps TLS as a prefix."""
    assert Settings.parse("triton", {"TRITON_GRPC_URL": text}).grpc_url.value == url


@pytest.mark.parametrize("text", ["", "  "])
@pytest.mark.parametrize("definition", SETTINGS, ids=lambda definition: definition.environment)
def test_an_empty_variable_is_unset(definition: Any, text: str) -> None:
    """An environment variable that is empty or blank counts as one that is not set."""
    assert Settings.parse("triton", {definition.environment: text}) == Settings.parse("triton", {})


@pytest.mark.parametrize(
    "text",
    ["http://", ":8000", "h:0", "h:65536", "h:eighty", "h:-1", "h/v2", "h?x=1", "h#x", "ftp://h", "[::1", "a b", "h\tx:1", "h:1\n2"],
)  # fmt: skip
@pytest.mark.parametrize("variable", ["TRITON_URL", "TRITON_GRPC_URL"])
def test_urls_that_are_refused(variable: str, text: str) -> None:
    """A URL that cannot be used is shown with its source and the form that it should have."""
    message = refusal(**{variable: text})
    assert f"from environment variable {variable}" in message
    assert ascii(text)[1:-1] in message
    assert "HOST:PORT" in message or "cannot be parsed" in message


def test_urls_in_each_others_place() -> None:
    """A gRPC URL given as the HTTP URL, and the other way round, is told where it belongs."""
    assert "A gRPC endpoint goes into TRITON_GRPC_URL" in refusal(TRITON_URL="grpc://h:1")
    assert "starts with http://: write HOST:PORT" in refusal(TRITON_GRPC_URL="http://h:1")


@pytest.mark.parametrize(
    ("uri", "words"),
    [
        ("http://h:1", "is not one of this plugin's"),
        ("", "is not one of this plugin's"),
        ("tritonx", "is not one of this plugin's"),
        ("triton:8000", "has a part that is not understood"),
        ("triton://h:1/v2", "has a part that is not understood"),
        ("triton://h:1#x", "has a part that is not understood"),
        ("triton://[::1", "cannot be parsed: Invalid IPv6 URL"),
        ("triton://h:x", "cannot be parsed"),
        ("triton://h?nope=1", "unknown parameter 'nope'. Known: grpc_url, model_repository,"),
        ("triton://h?headers={}", "unknown parameter 'headers'"),
        ("triton://h?http_url=x", "unknown parameter 'http_url'"),
        ("triton://h?model_repository=", "parameter 'model_repository' has no value"),
        ("triton://h?model_repository=%20", "parameter 'model_repository' has no value"),
        ("triton://h?load_timeout=1&load_timeout=2", "parameter 'load_timeout' is given twice"),
        ("triton://h?lossy_casts=perhaps", "lossy_casts perhaps (from target URI"),
        ("triton://h?transport=pigeon", "transport pigeon (from target URI"),
        ("triton://h?shared_memory=on", "shared_memory on (from target URI"),
        ("triton://h?load_timeout=soon", "load_timeout soon (from target URI triton://h?load_timeout=soon)"),
        ("triton?grpc_url=http://g", "from target URI triton?grpc_url=http://g"),
    ],
)
def test_targets_that_are_refused(uri: str, words: str) -> None:
    """A target URI that cannot be used is refused with the part that is wrong."""
    assert words in refusal(uri)


@pytest.mark.parametrize("text", ["0", "-1", "nan", "inf", "1e20", "soon", "1,5", "60s"])
@pytest.mark.parametrize("name", ["request_timeout", "load_timeout"])
def test_timeouts_that_are_refused(name: str, text: str) -> None:
    """A timeout is a positive number of seconds that everything can count."""
    variable = f"TRITON_{name.upper()}"
    wanted = f"{name} {text} (from environment variable {variable}) is not a positive number of seconds, at most 1e+07."
    assert refusal(**{variable: text}) == wanted


@pytest.mark.parametrize(
    "text",
    [
        "hush",
        "{hush",
        '["hush"]',
        '{"Authorization": ["hush"]}',
        '{"X": 1, "Y": "hush"}',
        '{"X": "hush\\r\\nY: 1"}',
        '{"X": "hush\\u0000"}',
        '{"X": "hush ☃"}',
        '{"a b": "hush"}',
        '{"": "hush"}',
        '{"X:": "hush"}',
        '{"X\\n": "hush"}',
        '{"Ü": "hush"}',
        '["hush", ' + "[" * 100_000,
    ],
    ids=lambda text: text[:40],
)
def test_headers_that_are_refused(text: str) -> None:
    """Headers that HTTP or gRPC could not carry are refused, and no value is shown."""
    message = refusal(TRITON_HEADERS=text)
    assert "environment variable TRITON_HEADERS" in message
    assert "hush" not in message


@pytest.mark.parametrize(
    ("uri", "environment"),
    [
        ("triton://me:hush@h:1", {}),
        ("triton://hush@h", {}),
        ("triton://me:hush@[::1", {}),
        ("triton:me:hush@h", {}),
        ("other://me:hush@h", {}),
        ("triton", {"TRITON_URL": "http://me:hush@h:1"}),
        ("triton", {"TRITON_URL": "me:hush@h"}),
        ("triton", {"TRITON_URL": "http://me:hu/sh@h"}),
        ("triton", {"TRITON_URL": "http://me:hush@h:x"}),
        ("triton", {"TRITON_URL": "ftp://me:hush@h"}),
        ("triton", {"TRITON_GRPC_URL": "grpcs://me:hush@h"}),
    ],
)
def test_credentials_in_a_url_are_not_shown(uri: str, environment: dict[str, str]) -> None:
    """A URL with a password in it is refused without showing the password."""
    message = refusal(uri, **environment)
    assert "hush" not in message
    assert "sh@" not in message
    assert "@" in message


def test_headers_are_not_in_the_representation() -> None:
    """The repr of settings, which logs and tracebacks show, has no header in it."""
    assert "hush" not in repr(Settings.parse("triton", ENVIRONMENT))


@given(st.text(), st.dictionaries(st.sampled_from([item.environment for item in SETTINGS]), st.text()))
def test_only_invalid_setting_leaves(target: str, environment: dict[str, str]) -> None:
    """Whatever target and environment hold, the result is settings or an InvalidSetting."""
    for uri in (target, f"triton://{target}", f"triton?{target}", "triton"):
        with suppress(InvalidSetting):
            settings = Settings.parse(uri, environment)
            assert settings.http_url.value.startswith(("http://", "https://"))
            assert all(text.isascii() for text in settings.headers.value.values())
