"""A deployment is what was asked for, or what it was before, whatever happened."""

from __future__ import annotations

import os
import shutil
from typing import TYPE_CHECKING, Any

import mlflow
import numpy as np
import pytest
from hypothesis import given, seed, settings
from hypothesis import strategies as st

from mlflow_triton_conformance import models, options, plugin

if TYPE_CHECKING:
    from collections.abc import Callable

    from mlflow_triton_conformance.protocol import Protocol

requirement = pytest.mark.requirement


@pytest.fixture(scope="module")
def unloadable(saved: Callable[[float], str], tmp_path_factory: pytest.TempPathFactory) -> str:
    """The path of a model that no server can load."""
    path = tmp_path_factory.mktemp("unloadable") / "model"
    shutil.copytree(saved(1.0), path)
    (path / "model.onnx").write_bytes(models.unloadable().SerializeToString())
    return str(path)


@pytest.fixture
def unloaded(
    deployment_client: Any, deployment_name: str, saved: Callable[[float], str], protocol: Protocol
) -> str:
    """The name of a deployment that somebody unloaded."""
    deployment_client.create_deployment(deployment_name, saved(1.0), flavor="onnx")
    protocol.remove(deployment_name)
    return deployment_name


def adds(client: Any, name: str) -> float:
    """Ask a deployment what it adds."""
    return float(client.predict(name, {"x": np.zeros((1, 1), np.float32)})["outputs"]["y"][0][0])


@requirement("MLF-LIFE-012")
def test_unloaded_is_listed(deployment_client: Any, unloaded: str) -> None:
    """A deployment that somebody unloaded is listed as such."""
    states = [it["state"] for it in deployment_client.list_deployments() if it["name"] == unloaded]
    assert len(states) == 1
    assert states[0] != "READY"


@requirement("MLF-LIFE-013")
def test_unloaded_is_updated(deployment_client: Any, unloaded: str, saved: Callable[[float], str]) -> None:
    """A deployment that somebody unloaded can be updated, and serves."""
    deployment_client.update_deployment(unloaded, saved(2.0), flavor="onnx")
    assert adds(deployment_client, unloaded) == 2.0


@requirement("MLF-LIFE-014")
def test_unloaded_is_deleted(deployment_client: Any, unloaded: str, protocol: Protocol) -> None:
    """A deployment that somebody unloaded can be deleted."""
    deployment_client.delete_deployment(unloaded)
    assert not (protocol.server.model_repository / unloaded).exists()


@requirement("MLF-LIFE-010", "MLF-OBS-001")
def test_changed_by_hand(
    deployment_client: Any, deployment_name: str, saved: Callable[[float], str], protocol: Protocol
) -> None:
    """What get_deployment says of a deployment as published changes when a file of it does."""
    client, name = deployment_client, deployment_name
    client.create_deployment(name, saved(1.0), flavor="onnx")
    before = client.get_deployment(name)
    assert before.get("in_sync") is True
    file = protocol.server.model_repository / name / "1" / "model.onnx"
    file.unlink()  # it may be a link to what was saved
    file.write_bytes(models.constant(9.0).SerializeToString())
    os.utime(file, (1, 1))
    assert client.get_deployment(name)["in_sync"] is False


#: Operations: of which of two deployments, one's name the beginning of the other's, and the value to deploy, where 0 cannot
#: be loaded.
STEPS = st.lists(
    st.one_of(
        st.tuples(
            st.sampled_from(["", "2"]),
            st.sampled_from(["create", "update"]),
            st.sampled_from([0.0, 1.0, 2.0]),
        ),
        st.tuples(st.sampled_from(["", "2"]), st.just("delete"), st.just(0.0)),
    ),
    min_size=3,
    max_size=6,
)
EXAMPLES = {"quick": 1, "default": 4, "soak": 100}


@pytest.mark.slow
@requirement("MLF-LIFE-011")
def test_any_sequence(
    deployment_client: Any,
    deployment_name: str,
    saved: Callable[[float], str],
    unloadable: str,
    protocol: Protocol,
    pytestconfig: pytest.Config,
) -> None:
    """After each of any operations, the verbs, the server and the repository say what a dict would."""
    client = deployment_client
    number = iter(range(1_000_000))

    def check(name: str, value: float | None) -> None:
        listed = [it["name"] for it in client.list_deployments()].count(name)
        there = (protocol.server.model_repository / name).exists()
        assert (listed, there, protocol.is_ready(name)) == (
            (0, False, False) if value is None else (1, True, True)
        )
        if value is not None:
            assert adds(client, name) == value

    @seed(pytestconfig.stash[plugin.SEED])
    @settings(max_examples=EXAMPLES[options.profile(pytestconfig)])
    @given(steps=STEPS)
    def run(steps: list[tuple[str, str, float]]) -> None:
        first = f"{deployment_name}-{next(number)}"
        values: dict[str, float | None] = {first: None, f"{first}2": None}
        try:
            for suffix, verb, new in steps:
                name = f"{first}{suffix}"
                value = values[name]
                fits = verb == "delete" or (new != 0 and (value is None) == (verb == "create"))
                try:
                    if verb == "delete":
                        client.delete_deployment(name)
                    else:
                        uri = saved(new) if new else unloadable
                        getattr(client, f"{verb}_deployment")(name, uri, flavor="onnx")
                    assert fits, f"{verb} of {new} on {value} was no error"
                    values[name] = None if verb == "delete" else new
                except mlflow.exceptions.MlflowException:
                    assert not fits
                for one, wanted in values.items():
                    check(one, wanted)
        finally:
            for name in values:
                protocol.remove(name)

    run()
