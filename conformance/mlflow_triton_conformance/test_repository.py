"""What Triton makes of a directory in its model repository, without any plugin."""

from __future__ import annotations

import itertools
import json
import shutil
import uuid
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from mlflow_triton_conformance import configs, models
from mlflow_triton_conformance.cases import cases
from mlflow_triton_conformance.drawing import costly
from mlflow_triton_conformance.wire import request, tensor
from mlflow_triton_conformance.zoo import CONFIG, placed, python_model

if TYPE_CHECKING:
    from mlflow_triton_conformance.protocol import Protocol

requirement = pytest.mark.requirement
EXAMPLES = {"quick": 1, "default": 6, "soak": 500}
ASK = request(tensor("x", "INT32", [1], [0]))


def versions(*numbers: str, config: str = "") -> dict[str, str]:
    """A model with these version directories, each of which answers its number."""
    files = {f"{number}/model.py": python_model(int(number)) for number in numbers}
    return {"config.pbtxt": CONFIG + config, **files}


def answers(protocol: Protocol, name: str, version: str = "") -> Any:
    """Ask a version of a model; its answer, or the server's message."""
    answer = protocol.infer(name, ASK, version)
    return answer.json["outputs"][0]["data"][0] if answer.status == 200 else answer.error


@pytest.fixture
def name() -> str:
    """A name that nobody has."""
    return f"repository-{uuid.uuid4().hex[:8]}"


@requirement(
    "TRT-REPO-001",
    "TRT-REPO-002",
    "TRT-VERSION-001",
    "TRT-VERSION-005",
    "TRT-VERSION-006",
    "TRT-VERSION-007",
    "TRT-VERSION-008",
)
def test_the_highest_version_serves(protocol: Protocol, name: str) -> None:
    """Of 2, 10, 011 and v12 version 10 serves, until 20 comes, and again when that has gone."""
    files = versions("2", "10") | {"011/model.py": python_model(11), "v12/model.py": python_model(12)}
    with placed(protocol, name, files) as directory:
        assert protocol.load(name).status == 200
        assert protocol.get(f"/models/{name}").json["versions"] == ["10"]
        assert (answers(protocol, name), answers(protocol, name, "10")) == (10, 10)
        assert "2" in answers(protocol, name, "2")
        (directory / "20").mkdir()
        (directory / "20" / "model.py").write_text(python_model(20))
        assert protocol.load(name).status == 200
        assert answers(protocol, name) == 20
        shutil.rmtree(directory / "20")
        assert protocol.load(name).status == 200
        assert answers(protocol, name) == 10


# What version policies serve of the versions 1, 3 and 10, each of which answers its number.
POLICIES = {
    "latest": ("version_policy { latest { num_versions: 2 } }\n", ["3", "10"]),
    "all": ("version_policy { all { } }\n", ["1", "3", "10"]),
    "specific": ("version_policy { specific { versions: [ 1, 3 ] } }\n", ["1", "3"]),
}


@pytest.mark.parametrize(
    "policy",
    cases({"latest": "TRT-VERSION-002", "all": "TRT-VERSION-003", "specific": "TRT-VERSION-004"}),
)
def test_policies(protocol: Protocol, name: str, policy: str) -> None:
    """The versions that a policy names serve, each as itself, and the highest of them where none is named."""
    config, expected = POLICIES[policy]
    with placed(protocol, name, versions("1", "3", "10", config=config)):
        assert protocol.load(name).status == 200
        assert sorted(protocol.get(f"/models/{name}").json["versions"], key=int) == expected
        assert [answers(protocol, name, it) for it in expected] == [int(it) for it in expected]
        assert answers(protocol, name) == int(expected[-1])
        assert [it["version"] for it in protocol.index(name, ready=True)] == expected


@requirement("TRT-VERSION-009")
def test_any_versions(protocol: Protocol, name: str, pytestconfig: pytest.Config) -> None:
    """Whatever versions there are, and whatever a policy says of them, an oracle of a few lines knows which serve."""
    numbers = itertools.count()

    @costly(pytestconfig, EXAMPLES)
    @given(
        drawn=configs.version_sets().flatmap(lambda it: st.tuples(st.just(it), configs.policies(sorted(it))))
    )
    @example(drawn=({2, 9, 10}, configs.Policy("latest", count=2)))
    def run(drawn: tuple[set[int], configs.Policy]) -> None:
        there, policy = drawn
        model = f"{name}-{next(numbers)}"
        answered = dict(zip(sorted(there), itertools.count(1), strict=False))
        files = {f"{version}/model.py": python_model(value) for version, value in answered.items()}
        expected = configs.served(policy, there)
        with placed(protocol, model, {"config.pbtxt": CONFIG + policy.text, **files}):
            loaded = protocol.load(model)
            assert loaded.status == 200, loaded
            assert sorted(map(int, protocol.get(f"/models/{model}").json["versions"])) == expected
            assert [it for it in sorted(there) if protocol.is_ready(model, str(it))] == expected
            assert [answers(protocol, model, str(it)) for it in expected] == [answered[it] for it in expected]
            assert answers(protocol, model) == answered[expected[-1]]

    run()


@requirement("TRT-CONFIG-007")
def test_any_configuration(protocol: Protocol, name: str, pytestconfig: pytest.Config) -> None:
    """The server tells each field of a configuration that nobody wrote, no other one of weight, and the model answers."""
    numbers = itertools.count()

    @costly(pytestconfig, EXAMPLES)
    @given(drawn=configs.python_configs())
    @example(drawn=configs.FULL_PYTHON)
    def run(drawn: configs.Written) -> None:
        model = f"{name}-{next(numbers)}"
        written = drawn.named(model)
        with placed(protocol, model, {"config.pbtxt": written.text, "1/model.py": python_model(7)}):
            loaded = protocol.load(model)
            assert loaded.status == 200, (loaded, written.text)
            told = protocol.get(f"/models/{model}/config").json
            assert configs.differences(written.config, told) == [], written.text
            shape = [1, 1] if written.config.max_batch_size else [1]
            answer = protocol.infer(model, request(tensor("x", "INT32", shape, [0])))
            assert answer.json["outputs"][0]["data"] == [7]

    run()


REFUSED: dict[str, tuple[dict[str, str], str]] = {
    "no version": ({"config.pbtxt": CONFIG}, "version"),
    "another name": ({"config.pbtxt": f'name: "another"\n{CONFIG}', "1/model.py": python_model(1)}, ""),
    "unknown field": ({"config.pbtxt": f"{CONFIG}max_batch_sise: 8\n", "1/model.py": python_model(1)}, ""),
}


@pytest.mark.parametrize(
    "case",
    cases({"no version": "TRT-REPO-003", "another name": "TRT-REPO-004", "unknown field": "TRT-REPO-005"}),
)
def test_refused(protocol: Protocol, name: str, case: str) -> None:
    """A directory that is no model is not loaded, and the load says so."""
    files, words = REFUSED[case]
    with placed(protocol, name, files):
        assert words in protocol.load(name).error
        assert not protocol.is_ready(name)


@requirement("TRT-REPO-006", "TRT-CONFIG-003")
def test_completed_configuration(onnx_backend: None, protocol: Protocol, name: str) -> None:
    """An ONNX model alone gets inputs, outputs and backend from its file; an unknown model has no configuration."""
    assert protocol.get(f"/models/{name}/config").error
    model = models.with_weights(np.arange(3, dtype=np.float32))
    files: dict[str, str | bytes] = {
        "config.pbtxt": 'backend: "onnxruntime"\n',
        "1/model.onnx": model.SerializeToString(),
    }
    with placed(protocol, name, files):
        assert protocol.load(name).status == 200
        told = protocol.get(f"/models/{name}/config").json
        (found,) = told["input"]
        assert (found["name"], found["data_type"], told["backend"]) == ("x", "TYPE_FP32", "onnxruntime")
        asked = request(tensor("x", "FP32", [1, 3], [0.5, 0.5, 0.5]))
        assert protocol.infer(name, asked).json["outputs"][0]["data"] == [0.5, 1.5, 2.5]


@requirement("TRT-REPO-007", "TRT-CONFIG-006")
def test_file_name_and_reshape(protocol: Protocol, name: str) -> None:
    """The model is in the file that its configuration names, and gets its input in the shape that it wants."""
    code = """\
import numpy as np
import triton_python_backend_utils as pb_utils


class TritonPythonModel:
    def execute(self, requests):
        shapes = [pb_utils.get_input_tensor_by_name(it, "x").as_numpy().shape for it in requests]
        return [pb_utils.InferenceResponse([pb_utils.Tensor("y", np.array(it, np.int32))]) for it in shapes]
"""
    config = """\
backend: "python"
max_batch_size: 0
default_model_filename: "other.py"
instance_group [ { count: 1 kind: KIND_CPU } ]
input [ { name: "x" data_type: TYPE_INT32 dims: [ 6 ] reshape { shape: [ 2, 3 ] } } ]
output [ { name: "y" data_type: TYPE_INT32 dims: [ 2 ] } ]
"""
    with placed(protocol, name, {"config.pbtxt": config, "1/other.py": code}):
        loaded = protocol.load(name)
        assert loaded.status == 200, loaded
        asked = request(tensor("x", "INT32", [6], [0] * 6))
        assert protocol.infer(name, asked).json["outputs"][0]["data"] == [2, 3]


@requirement("TRT-VERSION-005")
def test_unknown_version(protocol: Protocol, zoo: dict[str, str]) -> None:
    """A version that is not there has no metadata and answers nothing."""
    assert protocol.get(f"/models/{zoo['add']}/versions/9").error
    assert protocol.infer(zoo["add"], request(tensor("x", "FP32", [1, 1], [0.0])), "9").error


@requirement("TRT-CONFIG-001", "TRT-CONFIG-002")
def test_configuration(protocol: Protocol, grpc: Any, zoo: dict[str, str]) -> None:
    """The configuration is told as it was written, over HTTP and over gRPC."""
    told = protocol.get(f"/models/{zoo['add']}/config").json
    assert (told["name"], told["max_batch_size"], told["backend"]) == (zoo["add"], 4, "python")
    assert told["parameters"]["step"] == {"string_value": "0.5"}
    assert [it["dims"] for it in told["input"]] == [[-1], [1]]
    over_grpc = grpc.get_model_config(zoo["add"]).config
    assert (over_grpc.name, over_grpc.max_batch_size) == (zoo["add"], 4)
    assert over_grpc.parameters["step"].string_value == "0.5"
    assert [list(it.dims) for it in over_grpc.input] == [[-1], [1]]


@requirement("TRT-CONFIG-004", "TRT-CONFIG-005")
def test_parameters_and_optional_inputs(protocol: Protocol, zoo: dict[str, str]) -> None:
    """The step of the model's configuration is added; the input that is optional is seen only where it is given."""
    given = [tensor("x", "FP32", [1, 1], [1.0]), tensor("extra", "FP32", [1, 1], [0.0])]
    for inputs, extra in ((given[:1], False), (given, True)):
        outputs = {
            it["name"]: it["data"] for it in protocol.infer(zoo["add"], request(*inputs)).json["outputs"]
        }
        assert outputs["y"] == [1.5]
        assert json.loads(outputs["z"][0])["extra"] is extra
