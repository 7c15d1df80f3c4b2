from __future__ import annotations

import time
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any

import onnx
import pytest
from google.protobuf.message import DecodeError, Message
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper
from onnx.external_data_helper import _get_all_tensors, uses_external_data

from mlflow_triton.errors import InvalidModel
from mlflow_triton.models.onnx_file import MESSAGES, external_data

if TYPE_CHECKING:
    from collections.abc import Iterator

#: The messages of onnx.proto by the names of `MESSAGES`.
PROTOS: dict[str, Any] = {
    "Model": onnx.ModelProto,
    "TrainingInfo": onnx.TrainingInfoProto,
    "Function": onnx.FunctionProto,
    "Graph": onnx.GraphProto,
    "Node": onnx.NodeProto,
    "Attribute": onnx.AttributeProto,
    "SparseTensor": onnx.SparseTensorProto,
    "Tensor": onnx.TensorProto,
    "Entry": onnx.StringStringEntryProto,
}
NAMES = {proto.DESCRIPTOR.full_name: name for name, proto in PROTOS.items()}


def walk(message: Message) -> Iterator[onnx.TensorProto]:
    """Find every tensor anywhere in a message, by what protobuf itself says of the fields."""
    if isinstance(message, onnx.TensorProto):
        yield message
    for field, value in message.ListFields():
        if field.message_type is not None:
            for item in [value] if isinstance(value, Message) else value:
                yield from walk(item)


def named(model: onnx.ModelProto) -> list[str]:
    """Return the locations that a model's tensors name, by walking the parsed message."""
    return [
        entry.value for tensor in walk(model) for entry in tensor.external_data if entry.key == "location"
    ]


def read(model: onnx.ModelProto | bytes, directory: Path) -> list[str]:
    """Return what `external_data` finds in a file."""
    path = directory / "model.onnx"
    path.write_bytes(model if isinstance(model, bytes) else model.SerializeToString())
    return [str(location) for location in external_data(path)]


def external(tensor: onnx.TensorProto, location: str) -> onnx.TensorProto:
    """Let a tensor have its data in a file."""
    tensor.data_location = TensorProto.EXTERNAL
    for key, value in (("offset", "0"), ("location", location), ("length", "4"), ("checksum", "location")):
        entry = tensor.external_data.add()
        entry.key, entry.value = key, value
    return tensor


def tensor(location: str) -> onnx.TensorProto:
    """Make a tensor of one float that lies in a file."""
    made = onnx.TensorProto(name="t", dims=[1], data_type=TensorProto.FLOAT)
    return external(made, location)


def graph(*nodes: onnx.NodeProto, **parts: Any) -> onnx.GraphProto:
    """Make a graph."""
    made = helper.make_graph(list(nodes), "g", [], [])
    for name, values in parts.items():
        getattr(made, name).extend(values)
    return made


def sparse(values: str, indices: str) -> onnx.SparseTensorProto:
    """Make a sparse tensor both of whose parts lie in files."""
    return onnx.SparseTensorProto(values=tensor(values), indices=tensor(indices), dims=[4])


def constant(location: str) -> onnx.NodeProto:
    """Make a Constant node whose value lies in a file."""
    return helper.make_node("Constant", [], ["c"], value=tensor(location))


def everywhere() -> onnx.ModelProto:
    """Make a model with a tensor in a file at every place where onnx.proto allows one."""
    inner = graph(constant("deep/loop.bin"), initializer=[tensor("deep/inner.bin")])
    lists = helper.make_node("X", [], [])
    attribute = lists.attribute.add(name="tensors", type=onnx.AttributeProto.TENSORS)
    attribute.tensors.extend([tensor("list0.bin"), tensor("list1.bin")])
    attribute = lists.attribute.add(name="graphs", type=onnx.AttributeProto.GRAPHS)
    attribute.graphs.extend([graph(constant("graphs.bin"))])
    attribute = lists.attribute.add(name="sparse", type=onnx.AttributeProto.SPARSE_TENSOR)
    attribute.sparse_tensor.CopyFrom(sparse("sa.bin", "sb.bin"))
    attribute = lists.attribute.add(name="sparses", type=onnx.AttributeProto.SPARSE_TENSORS)
    attribute.sparse_tensors.extend([sparse("sc.bin", "sd.bin")])
    model = helper.make_model(
        graph(
            constant("constant.bin"),
            helper.make_node("If", ["c"], ["y"], then_branch=graph(helper.make_node("Loop", [], [], body=inner)), else_branch=graph(constant("else.bin"))),
            lists,
            initializer=[tensor("weights.bin"), tensor("weights.bin"), tensor("sub/more.bin")],
            sparse_initializer=[sparse("sv.bin", "si.bin")],
        )
    )  # fmt: skip
    function = helper.make_function(
        "d", "F", [], [], [constant("function.bin")], [helper.make_opsetid("", 18)]
    )
    default = function.attribute_proto.add(name="value", type=onnx.AttributeProto.TENSOR)
    default.t.CopyFrom(tensor("default.bin"))
    model.functions.append(function)
    training = model.training_info.add()
    training.initialization.CopyFrom(graph(constant("initialization.bin")))
    training.algorithm.CopyFrom(graph(initializer=[tensor("algorithm.bin")]))
    return model


def test_every_place_is_found(tmp_path: Path) -> None:
    """A file named by any tensor of a model is found, once, in the order in which they first come."""
    model = everywhere()
    found = read(model, tmp_path)
    assert len(found) == 19
    assert sorted(found) == sorted(set(named(model)))
    known_to_onnx = {
        entry.value
        for item in _get_all_tensors(model)
        if uses_external_data(item)
        for entry in item.external_data
        if entry.key == "location"
    }
    assert known_to_onnx <= set(found)
    assert found[0] == "constant.bin"


def test_what_onnx_saves_is_found(tmp_path: Path) -> None:
    """The files that the package onnx itself writes beside a model are those that are found."""
    data = helper.make_tensor("w", TensorProto.FLOAT, [1024], [1.0] * 1024)
    other = helper.make_tensor("v", TensorProto.FLOAT, [1024], b"\0" * 4096, raw=True)
    data = onnx.numpy_helper.from_array(onnx.numpy_helper.to_array(data), "w")
    model = helper.make_model(graph(initializer=[data, other]))
    onnx.save_model(model, tmp_path / "one.onnx", save_as_external_data=True, location="all.bin")
    assert external_data(tmp_path / "one.onnx") == (PurePosixPath("all.bin"),)
    again = onnx.load(tmp_path / "one.onnx")
    onnx.save_model(again, tmp_path / "none.onnx")
    assert external_data(tmp_path / "none.onnx") == ()
    (tmp_path / "many").mkdir()
    onnx.save_model(
        again, tmp_path / "many" / "m.onnx", save_as_external_data=True, all_tensors_to_one_file=False
    )
    found = {str(path) for path in external_data(tmp_path / "many" / "m.onnx")}
    assert found == {path.name for path in (tmp_path / "many").iterdir()} - {"m.onnx"}
    assert len(found) == 2


def test_the_table_is_onnxs() -> None:
    """The table has just the fields through which, by onnx's own descriptors, a model leads to a tensor."""

    def leads(descriptor: Any, seen: frozenset[str]) -> bool:
        if descriptor.full_name == onnx.TensorProto.DESCRIPTOR.full_name:
            return True
        return descriptor.full_name not in seen and any(
            field.message_type is not None and leads(field.message_type, seen | {descriptor.full_name})
            for field in descriptor.fields
        )

    table: dict[str, dict[int, str]] = {"Tensor": {onnx.TensorProto.EXTERNAL_DATA_FIELD_NUMBER: "Entry"}}
    todo: list[Any] = [onnx.ModelProto.DESCRIPTOR]
    while todo:
        descriptor = todo.pop()
        if NAMES[descriptor.full_name] in table:
            continue
        fields: list[Any] = [
            f for f in descriptor.fields if f.message_type and leads(f.message_type, frozenset())
        ]
        table[NAMES[descriptor.full_name]] = {f.number: NAMES[f.message_type.full_name] for f in fields}
        todo += [field.message_type for field in fields]
    assert table == MESSAGES
    entry = onnx.StringStringEntryProto.DESCRIPTOR.fields_by_name
    assert (entry["key"].number, entry["value"].number) == (1, 2)


NAME = st.text(
    st.characters(exclude_characters="\\\0/", exclude_categories=["Cs"]), min_size=1, max_size=6
).filter(lambda name: name not in {".", ".."})
NOISE = st.binary(max_size=30)


@st.composite
def messages(draw: st.DrawFn, name: str = "Model", depth: int = 0) -> Any:
    """Draw a message of onnx.proto, filled at random along the way to its tensors."""
    message = PROTOS[name]()
    if name == "Tensor":
        message.raw_data = draw(NOISE)
        message.dims.extend(draw(st.lists(st.integers(-1, 2**63 - 1), max_size=2)))
        return external(message, draw(NAME)) if draw(st.booleans()) else message
    if name == "Model":
        message.ir_version = 8
    if name == "Graph":
        message.doc_string = draw(NAME)
    if name == "Attribute":
        message.s, message.f, message.i = (
            draw(NOISE),
            draw(st.floats(width=32)),
            draw(st.integers(-(2**63), -1)),
        )
    for number, kind in MESSAGES[name].items():
        field = message.DESCRIPTOR.fields_by_number[number]
        count = draw(st.integers(0, 2 if depth < 7 else 0))
        target = getattr(message, field.name)
        if hasattr(target, "add"):
            target.extend(
                draw(messages(kind, depth + 1)) for _ in range(count if count < 2 or depth < 3 else 1)
            )
        elif count:
            target.CopyFrom(draw(messages(kind, depth + 1)))
    return message


@settings(deadline=None, max_examples=60)
@given(model=messages())
def test_any_model_is_read_as_protobuf_reads_it(
    model: onnx.ModelProto, tmp_path_factory: pytest.TempPathFactory
) -> None:
    """In models of any form, the files found are those that walking the parsed message finds."""
    directory = tmp_path_factory.getbasetemp()
    expected = dict.fromkeys(str(PurePosixPath(location)) for location in named(model))
    assert sorted(read(model, directory)) == sorted(expected)


def test_unknown_fields_are_skipped(tmp_path: Path) -> None:
    """Fields of a later version of ONNX, of every wire type, change nothing."""
    unknown = b"".join(
        [
            bytes([0xF8, 0x3E, 0xFF, 0xFF, 0x03]),  # field 1007: a number
            bytes([0xF9, 0x3E]) + b"12345678",  # a fixed 64-bit value
            bytes([0xFA, 0x3E, 0x03]) + b"\xff\xff\xff",  # bytes
            bytes([0xFD, 0x3E]) + b"1234",  # a fixed 32-bit value
        ]
    )
    model = everywhere()
    assert read(unknown + model.SerializeToString() + unknown, tmp_path) == read(model, tmp_path)


@pytest.mark.parametrize(
    "location", ["/etc/passwd", "../x", "a/../../x", "a/..", "", ".", "a\\b", "..\\x", "a\0b"]
)
def test_a_location_outside_of_the_model_is_refused(location: str, tmp_path: Path) -> None:
    """A location that leaves the model's directory, or could on some system, is refused and shown."""
    with pytest.raises(InvalidModel) as caught:
        read(helper.make_model(graph(initializer=[tensor(location)])), tmp_path)
    assert f"model.onnx names the external data file {location!r}" in caught.value.message
    assert "Nothing was changed" in caught.value.message


def test_a_location_is_normalised(tmp_path: Path) -> None:
    """Two spellings of one file are one file."""
    model = helper.make_model(graph(initializer=[tensor("./w.bin"), tensor("w.bin"), tensor(".//w.bin")]))
    assert read(model, tmp_path) == ["w.bin"]


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"\0",
        b"not a model",
        b"PK\x03\x04" + bytes(40),
        b"\x80\x04\x95",
        b"\xff" * 100,
        b"<!DOCTYPE html>\n",
    ],
)
def test_a_file_that_is_no_model(content: bytes, tmp_path: Path) -> None:
    """A file of another kind is refused as no ONNX model, by name."""
    with pytest.raises(InvalidModel, match=r"model\.onnx (is no ONNX model|is empty)"):
        read(content, tmp_path)


def test_every_cut_is_noticed(tmp_path: Path) -> None:
    """A model that is cut off anywhere is refused, unless protobuf itself takes the rest for a model."""
    model = everywhere()
    data = model.SerializeToString()
    complete = 0
    for length in range(1, len(data)):
        try:
            found = read(data[:length], tmp_path)
        except InvalidModel:
            continue
        complete += 1
        assert sorted(found) == sorted(set(named(onnx.ModelProto.FromString(data[:length]))))
    assert complete < 12  # at the ends of the model's own fields only


DATA = everywhere().SerializeToString()


@settings(deadline=2000, max_examples=300)
@given(
    changes=st.lists(st.tuples(st.integers(0, len(DATA) - 1), st.binary(max_size=4)), min_size=1, max_size=6)
)
def test_a_damaged_model_is_read_or_refused(
    changes: list[tuple[int, bytes]], tmp_path_factory: pytest.TempPathFactory
) -> None:
    """Whatever bytes are changed, the result is a list of files or InvalidModel, at once."""
    data = bytearray(DATA)
    for position, new in changes:
        data[position : position + len(new)] = new
    try:
        found = read(bytes(data), tmp_path_factory.getbasetemp())
    except InvalidModel:
        return
    try:
        parsed = onnx.ModelProto.FromString(bytes(data))
    except (DecodeError, UnicodeDecodeError):
        return
    expected = {str(PurePosixPath(location)) for location in named(parsed)}
    assert expected <= set(found)


@settings(deadline=2000)
@given(data=st.binary(max_size=200))
def test_any_bytes_are_read_or_refused(data: bytes, tmp_path_factory: pytest.TempPathFactory) -> None:
    """Any file is a list of files or InvalidModel, at once."""
    try:
        found = read(data, tmp_path_factory.getbasetemp())
    except InvalidModel:
        return
    assert all(not PurePosixPath(location).is_absolute() for location in found)


def field(number: int, content: bytes) -> bytes:
    """Encode a length-delimited field."""
    head, length = bytearray(), len(content)
    for value in (number << 3 | 2, length):
        rest = value
        while rest > 0x7F:
            head.append(rest & 0x7F | 0x80)
            rest >>= 7
        head.append(rest)
    return bytes(head) + content


def test_a_model_nested_beyond_reason_is_refused(tmp_path: Path) -> None:
    """Subgraphs nested ten thousand deep neither exhaust the stack nor take long."""
    content = b""
    for _ in range(10_000):
        content = field(1, field(5, field(6, content)))
    started = time.monotonic()
    with pytest.raises(InvalidModel, match="no ONNX model"):
        read(field(7, content), tmp_path)
    assert time.monotonic() - started < 5


def test_a_big_model_takes_no_longer_than_its_fields(tmp_path: Path) -> None:
    """The bytes of tensors are skipped, not read: a sparse file of 8 GB takes no time."""
    path = tmp_path / "model.onnx"
    size = 8 << 30
    raw = field(9, b"")[:-1]  # raw_data, its length to follow
    length = bytes([0x80, 0x80, 0x80, 0x80, 0x20])
    assert sum((byte & 0x7F) << 7 * place for place, byte in enumerate(length)) == size

    def header(number: int, inner: int) -> bytes:
        text = bytearray()
        while inner > 0x7F:
            text.append(inner & 0x7F | 0x80)
            inner >>= 7
        return bytes([number << 3 | 2]) + bytes(text) + bytes([inner])

    after = tensor("beside.bin").SerializeToString()
    big = len(raw) + len(length) + size
    body = header(5, big)
    second = field(5, after)
    with path.open("wb") as file:
        file.write(header(7, len(body) + big + len(second)) + body + raw + length)
        file.seek(size, 1)
        file.write(second)
    started = time.monotonic()
    assert external_data(path) == (PurePosixPath("beside.bin"),)
    assert time.monotonic() - started < 1
    assert path.stat().st_blocks * 512 < 1 << 20


def test_a_million_fields_are_read_in_time(tmp_path: Path) -> None:
    """A file of nothing but tiny fields, the most work that a byte can make, takes seconds, not minutes."""
    content = field(7, field(1, b"") * 500_000 + field(5, tensor("w.bin").SerializeToString()))
    started = time.monotonic()
    assert read(content, tmp_path) == ["w.bin"]
    assert time.monotonic() - started < 20
