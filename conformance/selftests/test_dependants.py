"""Models that others are made of: ensembles keep serving, and what would break one is refused first."""

from __future__ import annotations

import shutil
import time
from typing import TYPE_CHECKING, Any
from urllib.parse import urlencode

import mlflow
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from mlflow.deployments import get_deploy_client
from onnx import TensorProto, helper

from mlflow_triton import flavor
from mlflow_triton.embedded import EmbeddedTriton
from mlflow_triton.errors import InvalidModel, LoadFailed
from mlflow_triton.models.onnx_file import Tensor, tensors
from mlflow_triton.repository.claim import PREFIX
from mlflow_triton_conformance import models

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

pytestmark = pytest.mark.slow

MEMBER = """\
backend: "onnxruntime"
max_batch_size: 0
input [ {{ name: "x" data_type: TYPE_FP32 dims: {dims} }} ]
output [ {{ name: "y" data_type: TYPE_FP32 dims: {dims} }} ]
"""
ENSEMBLE = """\
platform: "ensemble"
input [ {{ name: "x" data_type: TYPE_FP32 dims: [ -1, 1 ] }} ]
output [ {{ name: "y" data_type: TYPE_FP32 dims: [ -1, 1 ] }} ]
ensemble_scheduling {{ step [ {{
  model_name: "{member}" model_version: {version}
  input_map {{ key: "x" value: "x" }} output_map {{ key: "y" value: "y" }}
}} ] }}
{more}
"""


class Shop:
    """A server with a response cache, a client, and models for them."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.repository = directory / "repository"
        self.repository.mkdir()
        self.start()

    def start(self) -> None:
        """Start the server, or another one, which has loaded nothing."""
        self.server = EmbeddedTriton(self.repository, arguments=("--cache-config=local,size=1048576",))
        self.server.start()
        query = urlencode({"model_repository": self.repository, "grpc_url": self.server.grpc_url})
        self.client: Any = get_deploy_client(
            f"{self.server.http_url.replace('http://', 'triton://')}?{query}"
        )

    def adder(
        self,
        value: float,
        *,
        config: str = MEMBER.format(dims="[ -1, 1 ]"),
        renamed: str = "",
        kind: int = TensorProto.FLOAT,
        width: int = 1,
    ) -> str:
        """Save a model that adds a value; return its path."""
        model = models.with_weights(np.full(width, value, helper.tensor_dtype_to_np_dtype(kind)))
        for tensor in (*model.graph.input, *model.graph.output):
            tensor.type.tensor_type.elem_type = kind
        if renamed:
            model.graph.output[0].name = model.graph.node[0].output[0] = renamed
        path = self.directory / f"model-{time.monotonic_ns()}"
        mlflow.onnx.save_model(model, str(path), pip_requirements=["onnx"])
        if config:
            (path / "config.pbtxt").write_text(config)
        return str(path)

    def ensemble(self, member: str, *, version: int = -1, more: str = "") -> str:
        """Save an ensemble of one model; return its path."""
        source = self.directory / f"ensemble-{time.monotonic_ns()}"
        (source / "1").mkdir(parents=True)
        (source / "config.pbtxt").write_text(ENSEMBLE.format(member=member, version=version, more=more))
        path = self.directory / f"model-{time.monotonic_ns()}"
        flavor.save_model(source, path)
        return str(path)

    def ask(self, name: str, value: float = 1.0) -> float:
        """Ask a deployment."""
        return float(self.client.predict(name, {"x": [[value]]})["outputs"]["y"][0, 0])

    def proven(self) -> dict[str, bool]:
        """Tell of each deployment whether it serves as recorded."""
        names = [entry["name"] for entry in self.client.list_deployments()]
        return {name: self.client.get_deployment(name)["in_sync"] for name in names}

    def leftovers(self) -> list[str]:
        """What is ours in the repository and beside it."""
        found = [*self.repository.iterdir(), *self.directory.iterdir()]
        return [path.name for path in found if path.name.startswith(PREFIX)]


@pytest.fixture(scope="module")
def shop(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Shop]:
    """One server for all."""
    directory = tmp_path_factory.mktemp("dependants")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{directory}/mlflow.db")
        shop = Shop(directory)
        yield shop
        shop.server.stop()


@pytest.fixture
def pair(shop: Shop) -> Iterator[Shop]:
    """A deployment `part`, and an ensemble `whole` of it; both go, and nothing of ours is left."""
    shop.client.create_deployment("part", shop.adder(1.0))
    shop.client.create_deployment("whole", shop.ensemble("part"))
    yield shop
    shop.client.delete_deployment("whole")
    shop.client.delete_deployment("part")
    assert shop.leftovers() == []
    assert list(shop.repository.iterdir()) == []


def test_an_ensemble_follows_its_members(pair: Shop) -> None:
    """After an update of a member, of the ensemble, or a restart of Triton, both serve as they are recorded."""
    assert pair.proven() == {"part": True, "whole": True}
    pair.client.update_deployment("part", pair.adder(2.0))
    assert (pair.ask("part"), pair.ask("whole"), pair.proven()) == (3.0, 3.0, {"part": True, "whole": True})
    # As the process of a Python model does: Triton loads a member that has changed along with its ensemble.
    (pair.repository / "part" / "1" / "__pycache__").mkdir()
    pair.client.update_deployment("whole", pair.ensemble("part", version=1))
    assert (pair.ask("whole"), pair.proven()) == (3.0, {"part": True, "whole": True})
    pair.server.stop()
    pair.start()
    assert [outcome.failed for outcome in pair.client.restore()] == [False, False]
    assert (pair.ask("whole"), pair.proven()) == (3.0, {"part": True, "whole": True})


def test_what_would_break_an_ensemble_is_refused_first(pair: Shop) -> None:
    """Neither a deletion nor an update that an ensemble would not survive begins; the message names the ensemble."""
    with pytest.raises(InvalidModel, match=r"'part' is a part of the ensemble 'whole'.*Delete 'whole' first"):
        pair.client.delete_deployment("part")
    wrong = {
        "uses its output 'y', which it does not have": pair.adder(2.0, config="", renamed="z"),
        r"'y' as TYPE_FP32, which would be TYPE_FP64": pair.adder(
            2.0, config=MEMBER.format(dims="[ -1, 1 ]").replace("TYPE_FP32", "TYPE_FP64")
        ),
        r"'x' as TYPE_FP32, which would be TYPE_FP64.*'y' as": pair.adder(
            2.0, config="", kind=TensorProto.DOUBLE
        ),
        r"'x' with dims \[-1, 1\], which would be \[-1, 2\]": pair.adder(2.0, config="", width=2),
        r"'x' with dims \[-1, 1\], which would be \[-1, 1, 1\]": pair.adder(
            2.0, config=MEMBER.format(dims="[ -1, 1, 1 ]")
        ),
    }
    for words, uri in wrong.items():
        with pytest.raises(InvalidModel, match=rf"the ensemble 'whole' .*{words}.*Nothing was changed"):
            pair.client.update_deployment("part", uri)
    with pytest.raises(
        InvalidModel, match=r"Triton has no other model 'nobody'.*Deploy what is missing first"
    ):
        pair.client.update_deployment("whole", pair.ensemble("nobody"))
    with pytest.raises(InvalidModel, match=r"'itself'.*has no other model 'itself'"):
        pair.client.create_deployment("itself", pair.ensemble("itself"))
    pair.client.update_deployment("whole", pair.ensemble("part", version=1))
    with pytest.raises(InvalidModel, match="uses version 1, which would not be there"):
        pair.client.update_deployment("part", pair.adder(2.0), config={"version": 2})
    assert (pair.ask("whole"), pair.proven()) == (2.0, {"part": True, "whole": True})


def test_what_breaks_an_ensemble_is_undone(pair: Shop, monkeypatch: pytest.MonkeyPatch) -> None:
    """An update that turns out to break an ensemble when it has been loaded is undone, and the ensemble serves again."""
    monkeypatch.setattr("mlflow_triton.dependants._misfits", lambda *_: [])
    with pytest.raises(LoadFailed, match=r"the ensemble 'whole' no longer fits it.*'part' still serves"):
        pair.client.update_deployment("part", pair.adder(2.0, config="", renamed="z"))
    assert (pair.ask("whole"), pair.proven()) == (2.0, {"part": True, "whole": True})


def test_an_ensembles_cache(pair: Shop) -> None:
    """A member of an ensemble with a response cache is not updated: the ensemble would answer for the old one."""
    pair.client.update_deployment("whole", pair.ensemble("part"))
    pair.client.create_deployment("cached", pair.ensemble("whole", more="response_cache { enable: true }"))
    try:
        with pytest.raises(InvalidModel, match=r"part of the ensemble 'cached' with response_cache enabled"):
            pair.client.update_deployment("part", pair.adder(2.0))
        pair.client.update_deployment("cached", pair.ensemble("whole"))
        pair.client.update_deployment("part", pair.adder(2.0))
        assert pair.ask("cached") == 3.0
    finally:
        pair.client.delete_deployment("cached")


def test_a_foreign_ensemble(pair: Shop) -> None:
    """An ensemble that MLflow did not deploy, and one that cannot be read, are looked at as well."""
    foreign = pair.repository / "foreign"
    foreign.mkdir()
    broken = pair.repository / "broken"
    broken.mkdir()
    try:
        (foreign / "config.pbtxt").write_text(ENSEMBLE.format(member="part", version=-1, more=""))
        (broken / "config.pbtxt").write_text('platform: "ensemble" {{{')
        with pytest.raises(InvalidModel, match="the ensembles 'foreign', 'whole'"):
            pair.client.delete_deployment("part")
    finally:
        shutil.rmtree(foreign)
        shutil.rmtree(broken)


def test_the_tensors_of_an_onnx_file(tmp_path: Path) -> None:
    """Inputs and outputs are those of a runtime, with datatype and shape: an initializer is no input."""
    model = models.constant(1.0)
    model.graph.input.add().CopyFrom(model.graph.input[0])
    model.graph.input[1].name = "w"
    model.graph.output.append(helper.make_tensor_value_info("text", TensorProto.STRING, None))
    model.graph.output.append(helper.make_tensor_value_info("small", TensorProto.FLOAT8E5M2, [2, 0]))
    path = tmp_path / "model.onnx"
    path.write_bytes(model.SerializeToString())
    x = Tensor("TYPE_FP32", (-1, 1))
    outputs = {"y": x, "text": Tensor("TYPE_STRING", None), "small": Tensor(None, (2, -1))}
    assert tensors(path) == ({"x": x}, outputs)


@given(st.data())
def test_any_file_for_an_onnx_file(tmp_path_factory: pytest.TempPathFactory, data: st.DataObject) -> None:
    """Whatever a file holds, its tensors are found or it is no ONNX file; nothing else happens."""
    content = bytearray(models.constant(1.0).SerializeToString())
    for _ in range(data.draw(st.integers(0, 3))):
        content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    path = tmp_path_factory.mktemp("any") / "model.onnx"
    path.write_bytes(content[: data.draw(st.integers(0, len(content)))])
    found = tensors(path)
    assert found is None or all(isinstance(side, dict) for side in found)
