"""Where Triton and its model repository are: target URI and environment to frozen settings.

Each value comes from the first of: the target URI, the environment, the default. It keeps its
source, which errors and ``get_deployment`` name.
"""

from __future__ import annotations

import json
import math
import re
from dataclasses import dataclass, field, fields
from typing import TYPE_CHECKING, Generic, TypeVar
from urllib.parse import SplitResult, parse_qsl, urlsplit

from mlflow_triton.errors import InvalidSetting

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

__all__ = ["SETTINGS", "Setting", "SettingDefinition", "Settings", "header_problem"]

T = TypeVar("T")
#: Seconds; sockets and gRPC cannot count much longer ones.
LONGEST_TIMEOUT = 1e7


@dataclass(frozen=True, slots=True)
class Setting(Generic[T]):
    """A value together with where it came from, e.g. ``environment variable TRITON_URL``."""

    value: T
    source: str

    def __str__(self) -> str:
        return f"{'not set' if self.value is None else self.value} (from {self.source})"


@dataclass(frozen=True, slots=True)
class SettingDefinition:
    """How one setting is written, and what it means.

    Attributes:
        name: The field of `Settings`, and the key in the target URI's query if `in_target`.
        environment: The environment variable.
        default: The default as text; ``None`` where there is none.
        help: One sentence for users.
        in_target: Whether ``triton://…?name=value`` may carry it.
    """

    name: str
    environment: str
    default: str | None
    help: str
    in_target: bool = True


SETTINGS = (
    SettingDefinition(
        "http_url",
        "TRITON_URL",
        "http://localhost:8000",
        "Triton's HTTP endpoint: HOST:PORT, http://HOST:PORT or https://HOST:PORT. "
        "In the target URI it is the authority: triton://HOST:PORT.",
        in_target=False,
    ),
    SettingDefinition(
        "grpc_url",
        "TRITON_GRPC_URL",
        None,
        "Triton's gRPC endpoint: HOST:PORT, grpc://HOST:PORT or grpcs://HOST:PORT, used to load and unload "
        "models. Without it, port 8001 of the HTTP endpoint's host when that one is on port 8000; "
        "otherwise models are loaded over HTTP, which stalls inference requests during a load.",
    ),
    SettingDefinition(
        "model_repository",
        "TRITON_MODEL_REPO",
        None,
        "The path, on this machine, of the model repository that Triton reads. "
        "Everything but predict needs it.",
    ),
    SettingDefinition(
        "request_timeout",
        "TRITON_REQUEST_TIMEOUT",
        "60",
        "Seconds that Triton has to answer a request other than a load.",
    ),
    SettingDefinition(
        "load_timeout",
        "TRITON_LOAD_TIMEOUT",
        "300",
        "Seconds that Triton has to load or unload a model.",
    ),
    SettingDefinition(
        "lossy_casts",
        "TRITON_LOSSY_CASTS",
        "false",
        "Whether predict may drop digits to fit an input to the model's datatype: true or false.",
    ),
    SettingDefinition(
        "transport",
        "TRITON_TRANSPORT",
        "auto",
        "What carries predictions: http, grpc, or auto, which is http: it is the faster one. "
        "predict_stream always goes over gRPC.",
    ),
    SettingDefinition(
        "shared_memory",
        "TRITON_SHARED_MEMORY",
        "auto",
        "Whether large tensors go through the memory of this machine (/dev/shm) where the server shares it: auto or off.",
    ),
    SettingDefinition(
        "headers",
        "TRITON_HEADERS",
        None,
        "Headers sent with every request to Triton, as a JSON object of strings, "
        'e.g. {"Authorization": "Bearer …"}.',
        in_target=False,
    ),
)
_BY_NAME = {definition.name: definition for definition in SETTINGS}


@dataclass(frozen=True, slots=True)
class Settings:
    """What a deployment client works with.

    Attributes:
        http_url: ``http://host:port`` or ``https://host:port``, without a trailing slash.
        grpc_url: ``host:port``, with ``grpcs://`` before it for TLS; ``None``: use HTTP only.
        model_repository: A path; ``None``: not set.
        request_timeout: Seconds.
        load_timeout: Seconds.
        lossy_casts: Whether a cast may drop digits.
        transport: ``http``, ``grpc`` or ``auto``.
        shared_memory: ``auto`` or ``off``.
        headers: Sent with every request.
    """

    http_url: Setting[str]
    grpc_url: Setting[str | None]
    model_repository: Setting[str | None]
    request_timeout: Setting[float]
    load_timeout: Setting[float]
    lossy_casts: Setting[bool]
    transport: Setting[str]
    shared_memory: Setting[str]
    headers: Setting[Mapping[str, str]] = field(repr=False)

    @classmethod
    def parse(cls, target_uri: str, environment: Mapping[str, str]) -> Settings:
        """Resolve every setting, touching nothing.

        Args:
            target_uri: ``triton``, ``triton://host:port`` or ``triton://host:port?name=value&…``.
            environment: Usually ``os.environ``.

        Raises:
            InvalidSetting: A value cannot be used; the message names its source.
        """
        target = _split_target(target_uri)
        query = _query(target_uri, target)

        def value(name: str) -> Setting[str | None]:
            definition = _BY_NAME[name]
            if name in query:
                return Setting(query[name], f"target URI {target_uri}")
            # An empty variable is an unset one, as in MLflow.
            if text := environment.get(definition.environment, "").strip():
                return Setting(text, f"environment variable {definition.environment}")
            return Setting(definition.default, "default")

        grpc_url = value("grpc_url")
        if target.netloc:
            http_url = _http_url(Setting(target.netloc, f"target URI {target_uri}"))
            if "grpc_url" not in query:
                # TRITON_GRPC_URL belongs to TRITON_URL's server, which is not the one named here.
                grpc_url = Setting(None, "default")
        else:
            http_url = _http_url(value("http_url"))
        return cls(
            http_url=http_url,
            grpc_url=_grpc_url(grpc_url, http_url),
            model_repository=value("model_repository"),
            request_timeout=_seconds(value("request_timeout"), "request_timeout"),
            load_timeout=_seconds(value("load_timeout"), "load_timeout"),
            lossy_casts=_boolean(value("lossy_casts"), "lossy_casts"),
            transport=_choice(value("transport"), "transport", ("auto", "http", "grpc")),
            shared_memory=_choice(value("shared_memory"), "shared_memory", ("auto", "off")),
            headers=_headers(value("headers")),
        )


def _split_target(target_uri: str) -> SplitResult:
    shown = f"Target URI {_without_credentials(target_uri)!r}"
    target = _parse(target_uri, urlsplit, shown)
    plain = not target.scheme and target.path.lower() == "triton"
    if not plain and target.scheme != "triton":
        raise InvalidSetting(f"{shown} is not one of this plugin's: write triton, or triton://HOST:PORT.")
    if (target.path not in ("", "/") and not plain) or target.fragment or "@" in target.netloc:
        raise InvalidSetting(
            f"{shown} has a part that is not understood. Write triton://HOST:PORT, "
            "followed if need be by ?model_repository=PATH&grpc_url=HOST:PORT; "
            "credentials go into the environment variable TRITON_HEADERS."
        )
    return target


def _query(target_uri: str, target: SplitResult) -> dict[str, str]:
    # A path may have a plus, which parse_qsl takes for a space.
    pairs = parse_qsl(target.query.replace("+", "%2B"), keep_blank_values=True)
    known = [definition.name for definition in SETTINGS if definition.in_target]
    for key, text in pairs:
        if key not in known:
            raise InvalidSetting(
                f"Target URI {target_uri!r}: unknown parameter {key!r}. Known: {', '.join(known)}."
            )
        if not text.strip():
            raise InvalidSetting(f"Target URI {target_uri!r}: parameter {key!r} has no value.")
    names = [key for key, _ in pairs]
    if repeated := sorted({name for name in names if names.count(name) > 1}):
        raise InvalidSetting(f"Target URI {target_uri!r}: parameter {repeated[0]!r} is given twice.")
    return dict(pairs)


def _parse(text: str, function: Callable[[str], T], what: str) -> T:
    try:
        return function(text)
    except ValueError as error:
        raise InvalidSetting(f"{what} cannot be parsed: {error}.") from None


def _without_credentials(text: str) -> str:
    shown = re.sub(r"^(\w+://)?.*@", r"\1***@", text, flags=re.DOTALL)
    return shown if shown.isprintable() else repr(shown)


def _authority(text: str, what: str, example: str) -> tuple[str, int | None]:
    """Return host (with brackets if IPv6) and port of ``HOST[:PORT]``."""
    if any(character.isspace() or not character.isprintable() for character in text):
        raise InvalidSetting(f"{what} has a space or a control character in it: write {example}.")
    split = _parse(f"//{text}", urlsplit, what)
    port = _parse(text, lambda _: split.port, what)
    if "@" in split.netloc:
        raise InvalidSetting(
            f"{what} has credentials in it: write {example}, and set TRITON_HEADERS to the header that Triton expects."
        )
    if not split.hostname or port == 0 or split.path.strip("/") or split.query or split.fragment:
        raise InvalidSetting(f"{what} is not understood: write {example}.")
    host = f"[{split.hostname}]" if ":" in split.hostname else split.hostname
    return host, port


def _http_url(setting: Setting[str | None]) -> Setting[str]:
    text = setting.value or ""
    what = f"Triton's HTTP URL {Setting(_without_credentials(text), setting.source)}"
    scheme, separator, rest = text.partition("://")
    if not separator:
        scheme, rest = "http", text
    if scheme.lower() not in ("http", "https"):
        raise InvalidSetting(
            f"{what} starts with {scheme}://: write http://HOST:PORT or https://HOST:PORT. "
            "A gRPC endpoint goes into TRITON_GRPC_URL."
        )
    host, port = _authority(rest, what, "http://HOST:PORT")
    port = port or (443 if scheme.lower() == "https" else 8000)
    return Setting(f"{scheme.lower()}://{host}:{port}", setting.source)


def _grpc_url(setting: Setting[str | None], http_url: Setting[str]) -> Setting[str | None]:
    if setting.value is None:
        http = urlsplit(http_url.value)
        # Only Triton's own default ports go together: beside any other port, 8001 may be someone else's server.
        if http.scheme == "http" and http.port == 8000:
            host = http_url.value.removeprefix("http://").rpartition(":")[0]
            return Setting(f"{host}:8001", f"default beside {http_url.value}")
        return Setting(None, "default")
    what = f"Triton's gRPC URL {Setting(_without_credentials(setting.value), setting.source)}"
    scheme, separator, rest = setting.value.partition("://")
    if not separator:
        scheme, rest = "grpc", setting.value
    if scheme.lower() not in ("grpc", "grpcs"):
        raise InvalidSetting(
            f"{what} starts with {scheme}://: write HOST:PORT, or grpcs://HOST:PORT for TLS."
        )
    host, port = _authority(rest, what, "HOST:PORT")
    prefix = "grpcs://" if scheme.lower() == "grpcs" else ""
    return Setting(f"{prefix}{host}:{port or 8001}", setting.source)


def _seconds(setting: Setting[str | None], name: str) -> Setting[float]:
    try:
        seconds = float(setting.value or "")
    except ValueError:
        seconds = math.nan
    if not (0 < seconds <= LONGEST_TIMEOUT):
        raise InvalidSetting(
            f"{name} {setting} is not a positive number of seconds, at most {LONGEST_TIMEOUT:g}."
        )
    return Setting(seconds, setting.source)


def _boolean(setting: Setting[str | None], name: str) -> Setting[bool]:
    text = (setting.value or "").lower()
    if text not in ("true", "false"):
        raise InvalidSetting(f"{name} {setting} is neither true nor false.")
    return Setting(text == "true", setting.source)


def _choice(setting: Setting[str | None], name: str, known: tuple[str, ...]) -> Setting[str]:
    text = (setting.value or "").lower()
    if text not in known:
        raise InvalidSetting(f"{name} {setting} is none of {', '.join(known)}.")
    return Setting(text, setting.source)


def _headers(setting: Setting[str | None]) -> Setting[Mapping[str, str]]:
    if setting.value is None:
        return Setting({}, setting.source)
    try:
        headers = json.loads(setting.value)
    except (ValueError, RecursionError):
        headers = None
    if not isinstance(headers, dict) or not all(isinstance(value, str) for value in headers.values()):
        # The value itself may be a secret and is not shown.
        raise InvalidSetting(
            f"The headers from {setting.source} are not a JSON object of strings, "
            'such as {"Authorization": "Bearer TOKEN"}.'
        )
    for name, value in headers.items():
        if (problem := header_problem(name, value)) is not None:
            raise InvalidSetting(f"From {setting.source}: {problem}.")
    return Setting(headers, setting.source)


def header_problem(name: object, value: object) -> str | None:
    """Say why a header cannot be sent, without its value, which may be a secret; ``None``: it can."""
    if not isinstance(name, str) or not isinstance(value, str):
        return f"the header {name!r} is not a text with a text"
    if not re.fullmatch(r"[\w!#$%&'*+.^`|~-]+", name, re.ASCII) or not re.fullmatch(r"[\t -~]*", value):
        return (
            f"the header {name!r} cannot be sent: a name is letters, digits and dashes, and a value printable ASCII "
            "on one line"
        )
    return None


assert tuple(_BY_NAME) == tuple(field.name for field in fields(Settings))  # noqa: S101 - a table that must match
