"""Deploy MLflow models to NVIDIA Triton Inference Server.

MLflow finds this plugin through its entry point (``mlflow.deployments: triton``); users call
``mlflow.deployments.get_deploy_client("triton")`` or ``mlflow deployments … -t triton``.
"""

__version__ = "0.1.0"
