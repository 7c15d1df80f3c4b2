"""Models that hypothesis makes up."""

from __future__ import annotations

import itertools
from typing import TYPE_CHECKING, Any

import mlflow
import pytest
from hypothesis import HealthCheck, given, seed, settings

from mlflow_triton_conformance import options, plugin
from mlflow_triton_conformance.graphs import Graph, graphs
from pytest_mlflow_triton.assertions import assert_tensors_equal

if TYPE_CHECKING:
    from mlflow_triton_conformance.protocol import Protocol

EXAMPLES = {"quick": 2, "default": 3, "soak": 500}


@pytest.mark.slow
@pytest.mark.requirement("MLF-ONNX-008")
def test_any_graph(
    onnx_backend: None,
    deployment_client: Any,
    deployment_name: str,
    protocol: Protocol,
    tmp_path: Any,
    pytestconfig: pytest.Config,
) -> None:
    """Whatever an ONNX graph has for inputs and outputs, it is deployed as it was saved, and answers to the bit."""
    numbers = itertools.count()

    @seed(pytestconfig.stash[plugin.SEED])
    @settings(
        max_examples=EXAMPLES[options.profile(pytestconfig)],
        suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
    )
    @given(graph=graphs())
    def run(graph: Graph) -> None:
        number = next(numbers)
        name, path = f"{deployment_name}-{number}", tmp_path / str(number)
        mlflow.onnx.save_model(graph.model, str(path), pip_requirements=["onnx"])
        try:
            deployment_client.create_deployment(name, str(path), flavor="onnx")
            answer = deployment_client.predict(name, dict(graph.inputs))["outputs"]
            assert_tensors_equal(
                {output: answer[output] for output in graph.outputs}, graph.outputs, inputs=graph.inputs
            )
            deployment_client.delete_deployment(name)
        finally:
            protocol.remove(name)

    run()
