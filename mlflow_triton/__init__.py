"""Deploy MLflow models to NVIDIA Triton Inference Server.

MLflow finds this plugin through its entry point (``mlflow.deployments: triton``); users call
``mlflow.deployments.get_deploy_client("triton")`` or ``mlflow deployments … -t triton``.
"""

import os

__version__ = "0.1.0"

# Read when gRPC is imported. Without it, most of its releases wait for ever in a process forked after a first request.
os.environ.setdefault("GRPC_ENABLE_FORK_SUPPORT", "1")
