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
from pathlib import Path
from typing import Any

import click
import pandas as pd

from mlflow_triton.errors import InvalidInput
from mlflow_triton.serving.document import is_request

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
        InvalidInput: The file has a number that is beyond all floats, or columns with different keys.
    """
    command = getattr(sys.modules.get("mlflow.deployments.cli"), "predict", None)
    context = click.get_current_context(silent=True)
    if context is None or context.command is not command or not isinstance(inputs, pd.DataFrame):
        return inputs
    path = Path(str(context.params.get("input_path")))
    try:
        # Reading a pipe once more would wait for ever.
        text = path.read_text("utf-8") if path.is_file() else ""
        document = json.loads(text, parse_float=_float)
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


def _float(text: str) -> float:
    number = float(text)
    if math.isinf(number):
        raise InvalidInput(f"The number {text[:40]} is beyond all floats. Nothing was sent.")
    return number
