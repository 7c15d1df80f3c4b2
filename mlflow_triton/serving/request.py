"""What a caller may ask of one inference request, beside its inputs."""

from __future__ import annotations

import math
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from typing import TYPE_CHECKING, Any, Literal, TypeAlias

from mlflow_triton.errors import InvalidParameter
from mlflow_triton.options import HIGHEST_VERSION
from mlflow_triton.settings import header_problem
from mlflow_triton.tensors.declared import shown

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = ["PLAIN", "ParameterValue", "RequestOptions", "compressed"]

ParameterValue: TypeAlias = bool | int | float | str

#: Parameters that have a meaning of their own in Triton; it also reserves every name that starts with "triton_".
RESERVED_PARAMETERS = (
    "sequence_id",
    "sequence_start",
    "sequence_end",
    "priority",
    "timeout",
    "binary_data_output",
)
#: Headers that say how a request is written, which the transport does.
RESERVED_HEADERS = (
    "accept-encoding",
    "connection",
    "content-encoding",
    "content-length",
    "content-type",
    "host",
    "inference-header-content-length",
    "transfer-encoding",
)
#: Triton refuses a longer text as the id of a sequence.
LONGEST_SEQUENCE_ID = 128
#: Seconds: Triton's parameter counts microseconds in 64 bits, and Python's sockets no more than this.
LONGEST_TIMEOUT = 10.0**8
#: Seconds that a client waits beyond the request's timeout, so that the server's own word for it is heard.
GRACE = 1.0


@dataclass(frozen=True, slots=True, kw_only=True)
class RequestOptions:
    """What a caller asks of one inference request; every problem is in one error.

    Attributes:
        version: The version that is to answer; ``None``: the highest one that is ready.
        outputs: The outputs to answer with; ``None``: all of them.
        classification: Answer each output as its `classification` highest values, each one the text
            ``VALUE:INDEX`` or ``VALUE:INDEX:LABEL``.
        priority: 1 is the highest; ``None``: the model's default. The model's configuration has the levels.
        timeout: Seconds. Triton drops the request if it has waited for longer in a queue whose policy allows a
            request to say so (``default_timeout_microseconds`` and ``allow_timeout_override``). This client waits for
            one second longer, whatever the setting ``request_timeout`` says.
        request_id: An id that the server's log and answer have.
        sequence_id: The sequence that the request belongs to: a positive integer, or a text.
        sequence_start: It is the first of its sequence.
        sequence_end: It is the last one.
        parameters: Custom ones, which reach the model.
        headers: Of this request, in place of the client's own ones of the same name.
        compression: How the request is compressed, and its answer may be: ``gzip`` or ``deflate``.

    Raises:
        InvalidParameter: Something cannot be asked for; nothing was sent.
    """

    version: int | None = None
    outputs: Sequence[str] | None = None
    classification: int | None = None
    priority: int | None = None
    timeout: float | None = None
    request_id: str | None = None
    sequence_id: int | str | None = None
    sequence_start: bool = False
    sequence_end: bool = False
    parameters: Mapping[str, ParameterValue] = field(default_factory=dict)
    headers: Mapping[str, str] = field(default_factory=dict, repr=False)
    compression: Literal["gzip", "deflate"] | None = None

    def __post_init__(self) -> None:
        """Check everything, and freeze what a caller could still change."""
        if isinstance(self.outputs, Sequence) and not isinstance(self.outputs, str):
            object.__setattr__(self, "outputs", tuple(self.outputs))
        if problems := list(_problems(self)):
            raise InvalidParameter(f"Nothing was sent: {'; '.join(problems)}.")
        object.__setattr__(self, "parameters", dict(self.parameters))
        object.__setattr__(self, "headers", dict(self.headers))

    @property
    def timeout_us(self) -> int | None:
        """The timeout in microseconds, which Triton counts in."""
        return None if self.timeout is None else max(1, math.ceil(self.timeout * 1e6))

    @property
    def patience(self) -> float | None:
        """Seconds to wait for the answer; ``None``: as the settings say."""
        return None if self.timeout is None else self.timeout + GRACE

    def wire_parameters(self) -> dict[str, ParameterValue]:
        """Return the parameters of the request, as the Open Inference Protocol and Triton's extensions name them."""
        result: dict[str, ParameterValue] = dict(self.parameters)
        if self.sequence_id is not None:
            result["sequence_id"] = self.sequence_id
            result["sequence_start"] = self.sequence_start
            result["sequence_end"] = self.sequence_end
        if self.priority is not None:
            result["priority"] = self.priority
        if self.timeout_us is not None:
            result["timeout"] = self.timeout_us
        return result


def _problems(options: RequestOptions) -> Iterator[str]:
    for name, highest in (
        ("version", HIGHEST_VERSION),
        ("classification", 2**31 - 1),
        ("priority", 2**64 - 1),
    ):
        value = getattr(options, name)
        lowest = 0 if name == "version" else 1
        if value is not None and not (type(value) is int and lowest <= value <= highest):
            yield f"{name} {shown(value)} is not an integer from {lowest} to {highest}"
    yield from _output_problems(options.outputs)
    seconds = options.timeout
    if seconds is not None and not (type(seconds) in (int, float) and 0 < seconds <= LONGEST_TIMEOUT):
        yield f"timeout {shown(seconds)} is not a positive number of seconds, up to {LONGEST_TIMEOUT:g}"
    if options.request_id is not None and not _is_text(options.request_id):
        yield f"request_id {shown(options.request_id)} is not a text that UTF-8 can encode"
    yield from _sequence_problems(options)
    yield from _parameter_problems(options.parameters)
    yield from _header_problems(options.headers)
    if options.compression not in (None, "gzip", "deflate"):
        yield f"compression {shown(options.compression)} is neither 'gzip' nor 'deflate'"


def _header_problems(headers: object) -> Iterator[str]:
    if not isinstance(headers, Mapping):
        yield f"headers {type(headers).__name__} is not a dict of texts"
        return
    for name, value in headers.items():
        if (problem := header_problem(name, value)) is not None:
            yield problem
        elif name.lower() in RESERVED_HEADERS:
            yield f"the header {name!r} is set by the client itself"


def _output_problems(outputs: object) -> Iterator[str]:
    if outputs is None:
        return
    if not isinstance(outputs, tuple) or not outputs or not all(map(_is_text, outputs)):
        yield f"outputs {shown(outputs)} is not a list of output names"
    elif len(set(outputs)) < len(outputs):
        yield f"outputs {shown(list(outputs))} names an output twice"


def _sequence_problems(options: RequestOptions) -> Iterator[str]:
    value = options.sequence_id
    if value is not None and not (
        (type(value) is int and 0 < value < 2**64)
        or (isinstance(value, str) and _is_text(value) and len(value) <= LONGEST_SEQUENCE_ID)
    ):
        yield (
            f"sequence_id {shown(value)} is neither an integer from 1 to 2**64 - 1 nor a text of at most "
            f"{LONGEST_SEQUENCE_ID} characters"
        )
    for name in ("sequence_start", "sequence_end"):
        flag = getattr(options, name)
        if not isinstance(flag, bool):
            yield f"{name} {shown(flag)} is neither True nor False"
        elif flag and value is None:
            yield f"{name} needs a sequence_id"


def _parameter_problems(parameters: object) -> Iterator[str]:
    if not isinstance(parameters, Mapping):
        yield f"parameters {type(parameters).__name__} is not a dict"
        return
    for name, value in parameters.items():
        if not _is_text(name):
            yield f"the parameter {shown(name)} has no text as its name"
        elif name.startswith("triton_") or name in RESERVED_PARAMETERS:
            own = f": use {name}=" if name in {one.name for one in fields(RequestOptions)} else ""
            yield f"the parameter {name!r} is reserved by Triton{own}"
        elif not isinstance(value, (bool, int, float, str)):
            yield f"the parameter {name!r} is a {type(value).__name__}, not a bool, int, float or str"
        elif isinstance(value, str) and value and not _is_text(value):
            yield f"the parameter {name!r} is not a text that UTF-8 can encode"
        elif isinstance(value, float) and not math.isfinite(value):
            yield f"the parameter {name!r} is {value}, which JSON cannot express"
        elif isinstance(value, int) and not -(2**63) <= value < 2**63:
            yield f"the parameter {name!r} is {shown(value)}, which 64 bits cannot hold"


def _is_text(value: Any) -> bool:
    if not isinstance(value, str) or not value:
        return False
    try:
        value.encode()
    except UnicodeEncodeError:
        return False
    return True


#: A request that asks for nothing in particular.
PLAIN = RequestOptions()


def compressed(pieces: Sequence[memoryview | bytes], encoding: str) -> bytes:
    """Compress a request's body as ``gzip`` or ``deflate``, fast rather than small."""
    packer = zlib.compressobj(1, wbits=zlib.MAX_WBITS | (16 if encoding == "gzip" else 0))
    return b"".join([*map(packer.compress, pieces), packer.flush()])
