"""The file that MLflow's CLI read, as it is written.

``mlflow deployments predict`` reads ``--input-path`` with ``pandas.read_json``, which keeps 15 digits of a
float, makes 0 of -0.0 and 123 of "00123", NaN of null, rounds integers beside fractions, and hands the
frame to the plugin. While that command runs, the file is read once more, without any of that.
"""

from __future__ import annotations

import json
import logging
import math
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import click
import pandas as pd

from mlflow_triton.errors import InvalidInput
from mlflow_triton.serving.document import is_request
from mlflow_triton.tensors.declared import shown

__all__ = ["as_written"]

logger = logging.getLogger(__name__)


def as_written(inputs: Any) -> Any:
    """Return what ``mlflow deployments predict`` was given, if that is what called, else `inputs`.

    A file that cannot be read again, such as a pipe or one that is compressed, leaves `inputs` as they
    are, with a warning.

    Args:
        inputs: What the plugin was passed.

    Returns:
        A frame of the rows and columns that pandas' own reader makes, of objects as JSON has them; or what is no
        table in the file: a list of records, a request of the Open Inference Protocol.

    Raises:
        InvalidInput: The file has a number that is beyond all floats, columns with different keys, or a key twice.
    """
    command = getattr(sys.modules.get("mlflow.deployments.cli"), "predict", None)
    context = click.get_current_context(silent=True)
    if context is None or context.command is not command or not isinstance(inputs, pd.DataFrame):
        return inputs
    path = Path(str(context.params.get("input_path")))
    try:
        # Reading a pipe once more would wait for ever.
        text = path.read_text("utf-8") if path.is_file() else ""
        document = json.loads(text, parse_float=_float, object_pairs_hook=_object)
        if is_request(document):
            return document
        _refuse_gaps(document)
        # Rows, which pandas makes columns of.
        if isinstance(document, list):
            return (
                document
                if document and isinstance(document[0], dict)
                else pd.DataFrame({"inputs": document}, dtype=object)
            )
        frame = pd.DataFrame(document, dtype=object)
    except (OSError, ValueError, TypeError, AttributeError, RecursionError) as error:
        logger.warning(
            "%s is not read again (%s): it is taken as pandas read it, which keeps 15 digits of a float and "
            "makes numbers of text in a column of plain values. A plain JSON file is read exactly.",
            path,
            error,
        )
        return inputs
    return frame if frame.shape == inputs.shape else inputs


def _refuse_gaps(document: Any) -> None:
    """Refuse columns by row whose rows differ, which pandas fills with NaN."""
    columns = (
        [value for value in document.values() if isinstance(value, dict)]
        if isinstance(document, dict)
        else []
    )
    for column in columns:
        if column.keys() != columns[0].keys():
            raise InvalidInput(
                f"The file has columns with different rows: {', '.join(map(repr, columns[0]))[:200]} and "
                f"{', '.join(map(repr, column))[:200]}. Nothing was sent."
            )


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """Refuse a key that is there twice, of which JSON's readers take the last one."""
    document = dict(pairs)
    if len(document) < len(pairs):
        twice = next(key for key, number in Counter(key for key, _ in pairs).items() if number > 1)
        raise InvalidInput(f"The file has the key {shown(twice)} twice in one object. Nothing was sent.")
    return document


def _float(text: str) -> float:
    number = float(text)
    if math.isinf(number):
        raise InvalidInput(f"The number {text[:40]} is beyond all floats. Nothing was sent.")
    return number
