"""A real Triton server on this machine without Docker: provisioning, lifecycle, and an ONNX Runtime backend."""

from mlflow_triton.embedded.process import EmbeddedTriton
from mlflow_triton.embedded.runtime import Runtime, provision

__all__ = ["EmbeddedTriton", "Runtime", "provision"]
