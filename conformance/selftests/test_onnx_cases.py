"""The suite's chapter of ONNX's standard tests: what is taken, what is left out for which reason, what fails."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from mlflow_triton.repository import config as model_config
from mlflow_triton_conformance import onnx_standard
from mlflow_triton_conformance.onnx_standard import StandardCase

if TYPE_CHECKING:
    from collections.abc import Callable


def case(
    elem_type: int = TensorProto.FLOAT, shape: list[int | str] | None = None, *, value: Any = None
) -> StandardCase:
    """A test of one node: the output is the input."""
    tensor = [helper.make_tensor_value_info(name, elem_type, shape) for name in ("x", "y")]
    graph = helper.make_graph([helper.make_node("Identity", ["x"], ["y"])], "case", tensor[:1], tensor[1:])
    array = np.ones((2, 3), np.float32) if value is None else value
    return StandardCase("case", helper.make_model(graph), [([array], [array])], rtol=1e-3, atol=1e-7)


def test_sample() -> None:
    """The sample is a hundred different tests, which any release of the package onnx has most of."""
    sample = onnx_standard.sample()
    assert len(sample) == 100
    made = [make() for make in sample.values()]
    assert [it.name for it in made if it] == [name for name, it in zip(sample, made, strict=True) if it]
    assert sum(it is not None for it in made) > 60
    assert [bool(it and it.obstacle) for it in made[:10]].count(True) == 1
    assert made[:10].count(None) <= 1


@pytest.mark.slow
def test_every() -> None:
    """All tests of the package onnx are more than 1,500; each has a configuration that is valid, or an obstacle."""
    every = onnx_standard.every()
    assert len(every) > 1500
    assert {name for name, make in onnx_standard.sample().items() if make()} <= every.keys()
    for make in every.values():
        it = make()
        assert it is not None
        if not it.obstacle:
            config = model_config.parse(it.config.encode(), origin=it.name)
            assert model_config.check(config, name=it.name, versions=[1]) == [], it.name
            assert len(list(it.requests())) == len(it.data) > 0


@pytest.mark.parametrize(
    ("made", "obstacle"),
    [
        (lambda: case(shape=[2, 3]), ""),
        (lambda: case(shape=["N", 3]), ""),
        (lambda: case(shape=[], value=np.float32(1)), ""),
        (lambda: case(TensorProto.FLOAT8E5M2, [2]), "Triton has no datatype FLOAT8E5M2"),
        (lambda: case(TensorProto.INT4, [2]), "Triton has no datatype INT4"),
        (lambda: case(shape=[0, 3]), "Triton has no dimension of the fixed size 0"),
    ],
)
def test_obstacle(made: Callable[[], StandardCase], obstacle: str) -> None:
    """What Triton has no words for is said, and nothing else is left out."""
    assert made().obstacle == obstacle


@pytest.mark.parametrize(
    ("shape", "value", "dims"),
    [
        ([2, 3], None, "[2, 3]"),
        (["N", 3], None, "[-1, 3]"),
        ([], np.float32(1), "[1]"),
        (None, None, "[-1, -1]"),
    ],
)
def test_config(shape: list[int | str] | None, value: Any, dims: str) -> None:
    """A dimension of any size is -1, a scalar one element, a shape that is not declared has the data's rank."""
    assert case(shape=shape, value=value).config.count(f"data_type: TYPE_FP32 dims: {dims} ") == 2


def answers(change: Callable[[np.ndarray], np.ndarray]) -> Callable[[dict[str, Any]], dict[str, Any]]:
    """Answer a request with its input, changed."""
    return lambda inputs: {"y": change(inputs["x"])}


def test_check() -> None:
    """An answer within ONNX's tolerance passes, a scalar as one element too; any other value, shape or datatype fails."""
    it = case()
    assert it.check(answers(lambda x: x * np.float32(1 + 9e-4))) == ""
    assert case(shape=[], value=np.float32(1)).check(answers(lambda x: x.reshape(1))) == ""
    wrong: list[Callable[[np.ndarray], np.ndarray]] = [
        lambda x: x * np.float32(1.01),
        lambda x: x[:1],
        lambda x: x.reshape(1, 2, 3),
        lambda x: x.astype(np.float64),
        lambda x: x * np.float32(np.nan),
    ]
    for change in wrong:
        with pytest.raises(AssertionError):
            it.check(answers(change))
    with pytest.raises(AssertionError):
        it.check(lambda _: {})


def test_arbiter() -> None:
    """An answer that is not the standard's is excused only if ONNX Runtime gives it itself, and so is a refusal."""
    it = case()
    differing = replace(it, data=[([np.ones((2, 3), np.float32)], [np.zeros((2, 3), np.float32)])])
    assert "ONNX Runtime itself" in differing.check(answers(lambda x: x))
    with pytest.raises(AssertionError, match=r"expected 0\.0, actual 2\.0"):
        differing.check(answers(lambda x: 2 * x))
    assert it.refused() == ""
    unknown = onnx.ModelProto()
    unknown.CopyFrom(it.model)
    unknown.graph.node[0].op_type = "NoSuchOperator"
    assert "refuses" in replace(it, model=unknown).refused()


def test_limitation() -> None:
    """What ONNX Runtime is incapable of is known by its words; a refusal for any other reason is none."""
    said = "could not load 'm': onnx runtime error 9: Could not find an implementation for Add(14) node with name ''."
    assert onnx_standard.limitation(said) == "the server's ONNX Runtime has no kernel: Add"
    said = "onnx runtime error 1: Opset 28 is under development and support for this is limited."
    assert "operator set" in onnx_standard.limitation(said)
    assert onnx_standard.limitation("could not load 'm': failed to poll from model repository") == ""
