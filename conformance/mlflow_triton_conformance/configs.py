"""Model configurations that nobody wrote, and any of the ways in which a config.pbtxt can say them.

A configuration here asks for one thing or another of the schema's fields that change how a model is served, and for no files
beside it. What a server tells of it has more: it completes what is left out.
"""

from __future__ import annotations

from collections.abc import Mapping, MutableSequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from google.protobuf import json_format, text_format
from google.protobuf.message_factory import GetMessageClass
from hypothesis import strategies as st
from tritonclient.grpc import model_config_pb2

if TYPE_CHECKING:
    from collections.abc import Collection

    from google.protobuf.message import Message

__all__ = [
    "Policy",
    "Written",
    "differences",
    "onnx_configs",
    "policies",
    "python_configs",
    "served",
    "version_sets",
    "written",
]

Config: Any = model_config_pb2.ModelConfig
Group: Any = model_config_pb2.ModelInstanceGroup
Queue: Any = model_config_pb2.ModelQueuePolicy
CPU = Group.KIND_CPU

LARGEST = 2**63 - 1
"""The highest version number."""
#: Numbers whose order is another one as text, and those about which integers of 32 bits end.
NUMBERS = (1, 2, 3, 9, 10, 11, 99, 100, 2**31 - 1, 2**31, 2**32 + 1, LARGEST)

#: What a server may fill in where nothing is asked for.
COMPLETED = frozenset(
    {
        "backend",
        "default_model_filename",
        "instance_group",
        "name",
        "optimization",
        "platform",
        "version_policy",
    }
)
#: As a label, and as what a Python model reads: no control characters.
TEXT = st.text(st.characters(exclude_categories=("Cc", "Cs")), max_size=8)
KEYS = TEXT.filter(bool).map("key {}".format)
SPACE = (" ", "\n", "\t", "  ", "\n# a comment: { } [ ] \" ' \xe9\n", ' # backend: "none"\n')


# -- versions


@dataclass(frozen=True, slots=True)
class Policy:
    """A version policy.

    Attributes:
        kind: ``latest``, ``all`` or ``specific``; empty for none.
        count: How many versions ``latest`` is to serve.
        versions: Which ones ``specific`` is to serve.
    """

    kind: str
    count: int = 0
    versions: tuple[int, ...] = ()

    @property
    def text(self) -> str:
        """The policy as config.pbtxt has it."""
        inner = {
            "latest": f"num_versions: {self.count}",
            "specific": f"versions: [ {', '.join(map(str, self.versions))} ]",
        }.get(self.kind, "")
        return f"version_policy {{ {self.kind} {{ {inner} }} }}\n" if self.kind else ""


def version_sets() -> st.SearchStrategy[set[int]]:
    """Draw one to four version numbers."""
    return st.sets(st.one_of(st.sampled_from(NUMBERS), st.integers(1, LARGEST)), min_size=1, max_size=4)


@st.composite
def policies(draw: st.DrawFn, versions: Collection[int]) -> Policy:
    """Draw a version policy that serves one of these versions, and maybe asks for one that is not there."""
    kind = draw(st.sampled_from(["latest", "all", "specific", ""]))
    if kind == "latest":
        return Policy(kind, count=draw(st.integers(1, len(versions) + 1)))
    if kind == "specific":
        some = draw(st.lists(st.sampled_from(sorted(versions)), min_size=1, unique=True))
        absent = draw(st.lists(st.sampled_from(NUMBERS), max_size=1, unique=True))
        return Policy(kind, versions=tuple(dict.fromkeys(draw(st.permutations([*some, *absent])))))
    return Policy(kind)


def served(policy: Policy, versions: Collection[int]) -> list[int]:
    """Say which versions serve, in their order."""
    if policy.kind == "all":
        return sorted(versions)
    if policy.kind == "specific":
        return sorted(set(versions) & set(policy.versions))
    return sorted(versions)[-(policy.count or 1) :]


# -- configurations


@dataclass(frozen=True, slots=True)
class Written:
    """A configuration and a text of it.

    Attributes:
        text: A config.pbtxt.
        config: What it says, a ``ModelConfig``.
    """

    text: str
    config: Any

    @classmethod
    def of(cls, text: str) -> Written:
        """Read a text."""
        return cls(text, text_format.Parse(text, Config()))

    def named(self, name: str) -> Written:
        """Return it with another name of the model in place of ``MODEL``, if it has one."""
        return Written.of(self.text.replace(MODEL, name))


#: Stands for the model's name, which is not known while a configuration is drawn.
MODEL = "the_name_of_this_model"
#: As much as there is to lose, for a model with ``x`` and ``y``, except what a backend needs.
_FULL = """\
max_batch_size: 8
instance_group [ { kind: KIND_CPU count: 1 }, { name: "second" kind: KIND_CPU count: 1 } ]
dynamic_batching <
  preferred_batch_size: [ 2, 4 ] max_queue_delay_microseconds: 100
  priority_levels: 3 default_priority_level: 2
  default_queue_policy { timeout_action: DELAY, default_timeout_microseconds: 60000000; max_queue_size: 100 }
>
parameters: { key: 'key "quoted"' value: { string_value: "\\303\\274" ' and \\\\' } }  # a comment
metric_tags { key: "team" value: "ü" }
optimization { priority: PRIORITY_MAX eager_batching: true }
"""
TENSORS = """\
input [ { name: "x" data_type: %(datatype)s dims: [ 1 ] } ]
output [ { name: "y" data_type: %(datatype)s dims: [ 1 ] } ]
"""


@st.composite
def _settings(draw: st.DrawFn) -> Any:
    """Draw what a model of any backend may have: instances, batching, queues, priorities, parameters, tags."""
    config = Config(max_batch_size=draw(st.integers(0, 8)))
    if draw(st.booleans()):
        config.name = MODEL
    for number in range(draw(st.integers(0, 2))):
        group = config.instance_group.add(kind=CPU, count=draw(st.integers(1, 2)))
        if draw(st.booleans()):
            group.name = f"group-{number}"
    if config.max_batch_size and draw(st.booleans()):
        config.dynamic_batching.CopyFrom(draw(_batching(config.max_batch_size)))
    for key, value in draw(st.dictionaries(KEYS, TEXT, max_size=3)).items():
        config.parameters[key].string_value = value
    config.metric_tags.update(draw(st.dictionaries(st.sampled_from(["team", "stage_2"]), TEXT)))
    if draw(st.booleans()):
        config.optimization.priority = draw(st.sampled_from([0, 1, 2]))
        config.optimization.input_pinned_memory.enable = draw(st.booleans())
        config.optimization.eager_batching = draw(st.booleans())
        config.optimization.gather_kernel_buffer_threshold = draw(st.integers(0, 2**32 - 1))
    if draw(st.booleans()):
        config.model_transaction_policy.decoupled = False
    if draw(st.booleans()):
        config.response_cache.enable = False
    return config


@st.composite
def _batching(draw: st.DrawFn, largest: int) -> Any:
    batching: Any = model_config_pb2.ModelDynamicBatching()
    batching.preferred_batch_size.extend(draw(st.lists(st.integers(1, largest), max_size=3, unique=True)))
    batching.max_queue_delay_microseconds = draw(st.sampled_from([0, 1, 100, 2000]))
    batching.preserve_ordering = draw(st.booleans())  # with it Triton refuses priorities and delays
    if not batching.preserve_ordering and draw(st.booleans()):
        batching.priority_levels = draw(st.integers(1, 5))
        batching.default_priority_level = draw(st.integers(1, batching.priority_levels))
        if draw(st.booleans()):
            level = draw(st.integers(1, batching.priority_levels))
            batching.priority_queue_policy[level].CopyFrom(draw(_queues(ordered=batching.preserve_ordering)))
    if draw(st.booleans()):
        batching.default_queue_policy.CopyFrom(draw(_queues(ordered=batching.preserve_ordering)))
    return batching


def _queues(*, ordered: bool) -> st.SearchStrategy[Any]:
    return st.builds(
        Queue,
        timeout_action=st.just(Queue.REJECT) if ordered else st.sampled_from([Queue.REJECT, Queue.DELAY]),
        default_timeout_microseconds=st.sampled_from([0, 60_000_000]),
        allow_timeout_override=st.booleans(),
        max_queue_size=st.sampled_from([0, 1, 1000]),
    )


@st.composite
def python_configs(draw: st.DrawFn) -> Written:
    """Draw the configuration of a model of the Python backend, whose ``x`` and ``y`` are of INT32."""
    config = draw(_settings())
    config.backend = "python"
    if not config.instance_group:  # or the server would look for a GPU
        config.instance_group.add(kind=CPU, count=1)
    text_format.Merge(TENSORS % {"datatype": "TYPE_INT32"}, config)
    return draw(written(config))


@st.composite
def onnx_configs(draw: st.DrawFn) -> Written:
    """Draw the configuration of `mlflow_triton_conformance.models.constant`, maybe without its inputs and outputs."""
    config = draw(_settings())
    config.backend = "onnxruntime"
    config.max_batch_size = max(1, config.max_batch_size)
    if draw(st.booleans()):
        text_format.Merge(TENSORS % {"datatype": "TYPE_FP32"}, config)
    return draw(written(config))


FULL_PYTHON = Written.of(f'backend: "python"\n{_FULL}' + TENSORS % {"datatype": "TYPE_INT32"})
FULL_ONNX = Written.of(f'backend: "onnxruntime"\n{_FULL}' + TENSORS % {"datatype": "TYPE_FP32"})


# -- text


@st.composite
def written(draw: st.DrawFn, config: Any) -> Written:
    """Draw a text of a configuration: fields in any order, lists in one or apart, both kinds of braces, comments anywhere."""
    return Written("".join(_fields(draw, config)), config)


def _fields(draw: st.DrawFn, message: Message) -> list[str]:
    parts: list[str] = []
    for field, value in message.ListFields():
        if field.message_type is not None and isinstance(value, Mapping):
            for key in value:
                entry = GetMessageClass(field.message_type)(key=key, value=value[key])
                parts.append(_field(draw, field, entry))
        elif not isinstance(value, MutableSequence):
            parts.append(_field(draw, field, value))
        elif draw(st.booleans()):
            inner = f"{_space(draw)},{_space(draw)}".join(_value(draw, field, it) for it in value)
            parts.append(f"{field.name}:{_space(draw)}[{_space(draw)}{inner}{_space(draw)}]{_space(draw)}")
        else:
            parts += [_field(draw, field, it) for it in value]
    # The order of what is repeated counts.
    order = draw(st.permutations(range(len(parts))))
    names = [part.partition(":")[0].split()[0] for part in parts]
    queues = {
        name: iter([part for part, one in zip(parts, names, strict=True) if one == name]) for name in names
    }
    return [next(queues[names[place]]) for place in order]


def _field(draw: st.DrawFn, field: Any, value: Any) -> str:
    colon = " " if field.message_type is not None and draw(st.booleans()) else ": "
    end = draw(st.sampled_from(["\n", " ", ", ", ";\n"]))
    return f"{field.name}{colon}{_value(draw, field, value)}{_space(draw)}{end}"


def _value(draw: st.DrawFn, field: Any, value: Any) -> str:
    if field.message_type is not None:
        start, end = draw(st.sampled_from([("{", "}"), ("<", ">")]))
        return "".join([start, _space(draw), *_fields(draw, value), end])
    if field.enum_type is not None:
        return str(draw(st.sampled_from([field.enum_type.values_by_number[value].name, value])))
    if isinstance(value, bool):
        return draw(st.sampled_from(["true", "True", "t", "1"] if value else ["false", "False", "f", "0"]))
    if isinstance(value, int):
        return draw(st.sampled_from([str(value), hex(value)] if value >= 0 else [str(value)]))
    return _text(draw, value)


def _text(draw: st.DrawFn, value: str) -> str:
    if value == MODEL:
        return f'"{value}"'
    quote = draw(st.sampled_from("\"'"))
    cut = draw(st.integers(0, len(value)))
    parts = [value[:cut], value[cut:]] if draw(st.booleans()) else [value]
    return _space(draw).join(f"{quote}{_escaped(part, quote, draw(st.booleans()))}{quote}" for part in parts)


def _escaped(text: str, quote: str, everything: bool) -> str:
    if everything:
        return "".join(f"\\{byte:03o}" for byte in text.encode())
    return text.replace("\\", "\\\\").replace(quote, f"\\{quote}")


def _space(draw: st.DrawFn) -> str:
    return draw(st.sampled_from(SPACE))


# -- what a server tells


def differences(asked: Any, told: Mapping[str, Any], *completed: str) -> list[str]:
    """Say what a server does not tell as it was asked for, or tells although nobody asked.

    Args:
        asked: The configuration.
        told: The JSON that the server tells.
        completed: More fields that the server may fill in, beside those that any may.
    """
    found = json_format.ParseDict(dict(told), Config(), ignore_unknown_fields=True)
    extra = {field.name for field, _ in found.ListFields()} - {field.name for field, _ in asked.ListFields()}
    # A deployment may be known by a parameter of its own.
    unasked = sorted(extra - COMPLETED - {"parameters", *completed})
    return [*_different(asked, found, ""), *(f"{name}: nobody asked for it" for name in unasked)]


def _different(asked: Any, told: Any, where: str) -> list[str]:
    found: list[str] = []
    for field, value in asked.ListFields():
        other, place = getattr(told, field.name), f"{where}{field.name}"
        if field.message_type is None:
            if value != other:
                found.append(f"{place}: asked {value!r}, told {other!r}")
        elif isinstance(value, Mapping):
            found += _missing(value, other, place)
        elif isinstance(value, MutableSequence):
            if len(value) != len(other):
                found.append(f"{place}: asked {len(value)}, told {len(other)}")
            for number, (one, another) in enumerate(zip(value, other, strict=False)):
                found += _different(one, another, f"{place}[{number}].")
        elif not told.HasField(field.name):
            found.append(f"{place}: asked, and not told")
        else:
            found += _different(value, other, f"{place}.")
    return found


def _missing(asked: Any, told: Any, place: str) -> list[str]:
    """Say which entries of a map are missing, or other ones; it may have more."""
    return [
        f"{place}: of {key!r} asked {asked[key]!r}, told {told[key]!r}"
        if key in told
        else f"{place}: no {key!r}"
        for key in asked
        if key not in told or asked[key] != told[key]
    ]
