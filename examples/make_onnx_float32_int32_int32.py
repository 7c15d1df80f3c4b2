"""Make the example: the model directory, its input and its expected output, always the same bytes.

The graph is put together with `onnx.helper` in `pytest_mlflow_triton/example.py`, because the
conformance suite, which also runs without this checkout, tests with the very same model.

Usage: python make_onnx_float32_int32_int32.py [DIRECTORY], by default the directory of this file.
"""

import sys
from pathlib import Path

from pytest_mlflow_triton import example


def main(directory: Path) -> None:
    """Write the example's files into a directory."""
    example.write(directory)
    (directory / "input.json").write_text(example.to_json(example.INPUT))
    (directory / "expected_output.json").write_text(example.to_json(example.EXPECTED_OUTPUT))


if __name__ == "__main__":
    main(Path(sys.argv[1]) if len(sys.argv) > 1 else Path(__file__).parent)
