"""Models, configurations, versions and names that hypothesis makes up, through the plugin."""

from __future__ import annotations

import itertools
import shutil
import uuid
from typing import TYPE_CHECKING, Any

import mlflow
import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from mlflow.exceptions import MlflowException

from mlflow_triton_conformance import configs, models
from mlflow_triton_conformance import names as spelled
from mlflow_triton_conformance.drawing import costly
from mlflow_triton_conformance.graphs import Graph, graphs
from mlflow_triton_conformance.zoo import CONFIG, python_model
from pytest_mlflow_triton.assertions import assert_tensors_equal

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from pathlib import Path

    from mlflow_triton_conformance.protocol import Protocol

requirement = pytest.mark.requirement
Configured = tuple[set[int], configs.Policy]
GRAPHS = {"quick": 2, "default": 8, "soak": 500}
EXAMPLES = {"quick": 1, "default": 4, "soak": 500}
COMPLETED = ("dynamic_batching", "input", "output", "runtime")
"""What a server completes of an ONNX model."""
HOSTILE = {"quick": 10, "default": 30, "soak": 2000}


def answer(client: Any, name: str, *, batch: bool = False) -> int:
    """Ask a deployment of `zoo.python_model` for its number."""
    inputs = {"x": np.zeros((1, 1) if batch else 1, np.int32)}
    return int(client.predict(name, inputs)["outputs"]["y"].flat[0])


@pytest.mark.slow
@requirement("MLF-ONNX-008")
def test_any_graph(
    onnx_backend: None,
    deployment_client: Any,
    deployment_name: str,
    protocol: Protocol,
    tmp_path: Path,
    pytestconfig: pytest.Config,
) -> None:
    """Whatever an ONNX graph has for inputs and outputs, it is deployed as it was saved, and answers to the bit."""
    numbers = itertools.count()

    @costly(pytestconfig, GRAPHS)
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


@pytest.mark.slow
@requirement("MLF-TRITON-005")
def test_any_configuration(
    deployment_client: Any,
    deployment_name: str,
    directory_model: Callable[[Mapping[str, str]], str],
    protocol: Protocol,
    pytestconfig: pytest.Config,
) -> None:
    """What a config.pbtxt that nobody wrote asks for, the server says of the deployment, which answers."""
    numbers = itertools.count()

    @costly(pytestconfig, EXAMPLES)
    @given(drawn=configs.python_configs())
    @example(drawn=configs.FULL_PYTHON)
    def run(drawn: configs.Written) -> None:
        name = f"{deployment_name}-{next(numbers)}"
        written = drawn.named(name)
        path = directory_model({"config.pbtxt": written.text, "1/model.py": python_model(7)})
        try:
            deployment_client.create_deployment(name, path, flavor="triton")
            told = protocol.get(f"/models/{name}/config").json
            assert configs.differences(written.config, told) == [], written.text
            assert answer(deployment_client, name, batch=written.config.max_batch_size > 0) == 7
            deployment_client.delete_deployment(name)
        finally:
            protocol.remove(name)

    run()


@pytest.mark.slow
@requirement("MLF-ONNX-009")
def test_any_configuration_of_onnx(
    onnx_backend: None,
    deployment_client: Any,
    deployment_name: str,
    protocol: Protocol,
    tmp_path: Path,
    pytestconfig: pytest.Config,
) -> None:
    """What a config.pbtxt with an ONNX model asks for, the server says of the deployment, which answers."""
    numbers = itertools.count()

    @costly(pytestconfig, EXAMPLES)
    @given(drawn=configs.onnx_configs())
    @example(drawn=configs.FULL_ONNX)
    def run(drawn: configs.Written) -> None:
        number = next(numbers)
        name, path = f"{deployment_name}-{number}", tmp_path / str(number)
        written = drawn.named(name)
        mlflow.onnx.save_model(models.constant(2.0), str(path), pip_requirements=["onnx"])
        (path / "config.pbtxt").write_text(written.text, "utf-8")
        try:
            deployment_client.create_deployment(name, str(path), flavor="onnx")
            told = protocol.get(f"/models/{name}/config").json
            found = configs.differences(written.config, told, *COMPLETED)
            assert found == [], written.text
            outputs = deployment_client.predict(name, {"x": np.ones((1, 1), np.float32)})["outputs"]
            assert outputs["y"].tolist() == [[3.0]]
            deployment_client.delete_deployment(name)
        finally:
            protocol.remove(name)

    run()


@pytest.mark.slow
@requirement("MLF-TRITON-006")
def test_any_versions(
    deployment_client: Any,
    deployment_name: str,
    directory_model: Callable[[Mapping[str, str]], str],
    protocol: Protocol,
    pytestconfig: pytest.Config,
) -> None:
    """Of whatever versions a model directory has, those serve that its policy says, and the highest of them answers."""
    numbers = itertools.count()

    @costly(pytestconfig, EXAMPLES)
    @given(drawn=configs.version_sets().flatmap(_with_policy))
    @example(drawn=({2, 9, 10}, configs.Policy("specific", versions=(9, 2))))
    def run(drawn: Configured) -> None:
        there, policy = drawn
        name = f"{deployment_name}-{next(numbers)}"
        answers = dict(zip(sorted(there), itertools.count(1), strict=False))
        files = {f"{version}/model.py": python_model(value) for version, value in answers.items()}
        expected = configs.served(policy, there)
        path = directory_model({"config.pbtxt": CONFIG + policy.text, **files})
        try:
            deployment_client.create_deployment(name, path, flavor="triton")
            assert [it for it in sorted(there) if protocol.is_ready(name, str(it))] == expected
            assert answer(deployment_client, name) == answers[expected[-1]]
            deployment_client.delete_deployment(name)
        finally:
            protocol.remove(name)

    run()


def _with_policy(versions: set[int]) -> st.SearchStrategy[Configured]:
    """Draw a policy for versions; a plugin may refuse one that names a version that is not there."""
    policies = configs.policies(sorted(versions)).filter(lambda it: versions.issuperset(it.versions))
    return st.tuples(st.just(versions), policies)


@pytest.mark.slow
@requirement("MLF-NAME-001")
def test_any_names(
    deployment_client: Any,
    directory_model: Callable[[Mapping[str, str]], str],
    protocol: Protocol,
    pytestconfig: pytest.Config,
) -> None:
    """Deployments whose names differ by a letter's case, or by what one has more, are deployments of their own."""
    client, root = deployment_client, protocol.server.model_repository
    paths = [directory_model({"config.pbtxt": CONFIG, "1/model.py": python_model(it)}) for it in range(3)]

    @costly(pytestconfig, EXAMPLES)
    @given(name=spelled.valid())
    def run(name: str) -> None:
        name = name.replace(spelled.UNIQUE, uuid.uuid4().hex[:8])
        alike = (name, f"{name[:199]}2", name.swapcase())
        try:
            for one, path in zip(alike, paths, strict=True):
                client.create_deployment(one, path, flavor="triton")
            assert [answer(client, it) for it in alike] == [0, 1, 2]
            listed = [it["name"] for it in client.list_deployments()]
            assert [listed.count(it) for it in alike] == [1, 1, 1]
            client.delete_deployment(name)
            assert [protocol.is_ready(it) for it in alike] == [False, True, True]
            assert [(root / it).exists() for it in alike] == [False, True, True]
            for one in alike[1:]:
                client.delete_deployment(one)
            assert not any((root / it).exists() for it in alike)
        finally:
            for one in alike:
                protocol.remove(one)
                shutil.rmtree(root / one, ignore_errors=True)

    run()


@requirement("MLF-SEC-010")
def test_any_hostile_name(
    deployment_client: Any,
    directory_model: Callable[[Mapping[str, str]], str],
    protocol: Protocol,
    world: Callable[[], object],
    pytestconfig: pytest.Config,
) -> None:
    """A name with a separator, a control character or a leading dot is refused by every verb, and nothing is changed."""
    client = deployment_client
    path = directory_model({"config.pbtxt": CONFIG, "1/model.py": python_model(1)})

    @costly(pytestconfig, HOSTILE)
    @given(name=spelled.hostile())
    @example(name=f"../{spelled.UNIQUE}")
    @example(name=f"{spelled.UNIQUE}/1")
    @example(name=f"{spelled.UNIQUE}\n")
    @example(name=f".{spelled.UNIQUE}")
    def run(name: str) -> None:
        name = name.replace(spelled.UNIQUE, uuid.uuid4().hex[:8])
        before = world()
        verbs: tuple[Callable[[], object], ...] = (
            lambda: client.create_deployment(name, path, flavor="triton"),
            lambda: client.update_deployment(name, path, flavor="triton"),
            lambda: client.get_deployment(name),
            lambda: client.predict(name, {"x": np.zeros(1, np.int32)}),
            lambda: client.delete_deployment(name),
        )
        for verb in verbs:
            with pytest.raises(MlflowException):
                verb()
            assert world() == before

    run()
