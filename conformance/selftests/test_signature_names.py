"""The names of a model's MLflow signature, where Triton knows only one tensor."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any
from urllib.parse import urlencode

import mlflow
import numpy as np
import pandas as pd
import pytest
from mlflow.deployments import get_deploy_client
from mlflow.models import ModelSignature, infer_signature
from mlflow.types import Schema, TensorSpec

from encoding import Spec
from mlflow_triton.embedded import EmbeddedTriton
from mlflow_triton.errors import InvalidInput
from mlflow_triton.models.resolve import resolve
from mlflow_triton.tensors.forms import name_values
from mlflow_triton_conformance import models

if TYPE_CHECKING:
    from pathlib import Path

DECLARED = {"x": Spec("FP32", (-1, 3))}
NAMES = ("a", "b", "c")
WANTED = [[1.0, 2.0, 3.0], [4.0, 5.0, 6.0]]
SHUFFLED = {"c": [3.0, 6.0], "a": [1.0, 4.0], "b": [2.0, 5.0]}
RECORDS = [dict(zip("cab", row, strict=True)) for row in ([3.0, 1.0, 2.0], [6.0, 4.0, 5.0])]
FORMS = {
    "frame": pd.DataFrame(SHUFFLED),
    "objects": pd.DataFrame(SHUFFLED, dtype=object),
    "columns": SHUFFLED,
    "records": RECORDS,
    "instances": {"instances": RECORDS},
    "dataframe_records": {"dataframe_records": RECORDS},
    "dataframe_split": {"dataframe_split": {"columns": ["c", "a", "b"], "data": [[3.0, 1.0, 2.0], [6.0, 4.0, 5.0]]}},
    "no names": pd.DataFrame(WANTED),
}  # fmt: skip


@pytest.mark.parametrize("form", FORMS)
def test_columns_take_the_signatures_order(form: str) -> None:
    """The columns of one tensor are told by their names; without names, by their places."""
    named = name_values(FORMS[form], DECLARED, lambda: NAMES)
    assert named.rows
    assert np.asarray(named.by_input["x"], float).tolist() == WANTED


@pytest.mark.parametrize("inputs", [FORMS["frame"], FORMS["dataframe_split"]])
def test_other_columns_are_refused(inputs: Any) -> None:
    """A column that the signature lacks, or the other way round, is no column of the model's."""
    with pytest.raises(
        InvalidInput, match=r"has the columns 'c', 'a', 'b', but the model's signature has 'a', 'b'\."
    ):
        name_values(inputs, DECLARED, lambda: ("a", "b"))


def test_one_name_for_one_tensor() -> None:
    """The one input of a signature is the one tensor of the model, whatever both are called."""
    assert name_values({"given": [1]}, DECLARED, lambda: ("given",)).by_input == {"x": [1]}
    with pytest.raises(InvalidInput, match="no input 'other'"):
        name_values({"other": [1]}, DECLARED, lambda: ("given",))


def test_names_of_the_model_need_no_signature() -> None:
    """A signature is asked for only where the names are none of Triton's."""

    def never() -> tuple[str, ...]:
        raise AssertionError

    two = {**DECLARED, "y": Spec("FP32", (-1, 3))}
    assert name_values({"x": WANTED}, DECLARED, never).by_input == {"x": WANTED}
    assert set(name_values(pd.DataFrame({"x": WANTED}), DECLARED, never).by_input) == {"x"}
    with pytest.raises(InvalidInput, match="no input 'a'"):
        name_values({"a": [1], "b": [2]}, two, never)


def save(path: Path, signature: ModelSignature | None) -> str:
    """Save a model that adds nothing to three numbers a row."""
    mlflow.onnx.save_model(models.with_weights(np.zeros(3, np.float32)), str(path), signature=signature)
    return str(path)


@pytest.mark.slow
def test_a_deployment_knows_its_signature(tmp_path: Path) -> None:
    """What was logged with names is asked by these names, in any order, and what was not, by place."""
    names = ["größe", 'a "b" \\', "c"]
    named = infer_signature(pd.DataFrame([[1.0, 2.0, 3.0]], columns=names))
    repository = tmp_path / "repository"
    repository.mkdir()
    with EmbeddedTriton(repository) as server:
        query = urlencode({"model_repository": repository, "grpc_url": server.grpc_url})
        client: Any = get_deploy_client(f"{server.http_url.replace('http://', 'triton://')}?{query}")
        client.create_deployment("m", save(tmp_path / "named", named))
        table = pd.DataFrame([[3.0, 1.0, 2.0]], columns=[names[2], names[0], names[1]])
        assert client.predict("m", table)["outputs"]["y"].tolist() == [[1.0, 2.0, 3.0]]
        with pytest.raises(InvalidInput, match="but the model's signature has 'größe'"):
            client.predict("m", table.rename(columns={"c": "d"}))
        client.update_deployment("m", save(tmp_path / "plain", None))
        assert client.predict("m", table)["outputs"]["y"].tolist() == [[3.0, 1.0, 2.0]]


@pytest.mark.parametrize(
    ("signature", "names"),
    [
        (None, ()),
        (infer_signature(pd.DataFrame({"a": [1.0], "b": [2.0]})), ("a", "b")),
        (infer_signature(np.zeros((1, 3), np.float32)), ()),
        (ModelSignature(Schema([TensorSpec(np.dtype(np.float32), (-1, 3), "t")])), ("t",)),
        (ModelSignature(outputs=Schema([TensorSpec(np.dtype(np.float32), (-1, 3), "t")])), ()),
    ],
)
def test_a_models_input_names(
    tmp_path: Path, signature: ModelSignature | None, names: tuple[str, ...]
) -> None:
    """They are those of the signature's inputs, if each one has a name."""
    (tmp_path / "copy").mkdir()
    assert resolve(save(tmp_path / "model", signature), tmp_path / "copy").input_names == names
