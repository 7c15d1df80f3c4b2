"""The documents that the requirements follow from."""

from mlflow_triton_conformance.catalogue.requirement import Source

_MLFLOW = "https://mlflow.org/docs/latest"
_TRITON = "https://github.com/triton-inference-server/server/blob/main"
_OIP = "https://github.com/kserve/open-inference-protocol/blob/main/specification/protocol"

DEPLOYMENTS = Source(
    "MLflow: Python API, mlflow.deployments",
    f"{_MLFLOW}/api_reference/python_api/mlflow.deployments.html",
)
DEPLOYMENTS_CLI = Source(
    "MLflow: command line, mlflow deployments",
    f"{_MLFLOW}/api_reference/cli.html#mlflow-deployments",
)
PLUGINS = Source("MLflow: plugins", f"{_MLFLOW}/ml/plugins/")
MODEL_FORMAT = Source("MLflow: models", f"{_MLFLOW}/ml/model/")
ONNX_FLAVOR = Source(
    "MLflow: Python API, mlflow.onnx",
    f"{_MLFLOW}/api_reference/python_api/mlflow.onnx.html",
)
REGISTRY = Source("MLflow: model registry", f"{_MLFLOW}/ml/model-registry/")
SCORING = Source(
    "MLflow: local model serving, input formats", f"{_MLFLOW}/ml/deployment/deploy-model-locally/"
)
NVIDIA_PLUGIN = Source("NVIDIA: MLflow Triton plugin", f"{_TRITON}/deploy/mlflow-triton-plugin/README.md")

REPOSITORY = Source("Triton: model repository", f"{_TRITON}/docs/user_guide/model_repository.md")
MANAGEMENT = Source("Triton: model management", f"{_TRITON}/docs/user_guide/model_management.md")
CONFIGURATION = Source("Triton: model configuration", f"{_TRITON}/docs/user_guide/model_configuration.md")
ENSEMBLES = Source("Triton: ensemble models", f"{_TRITON}/docs/user_guide/ensemble_models.md")
BATCHING = Source("Triton: batchers", f"{_TRITON}/docs/user_guide/batcher.md")
METRICS = Source("Triton: metrics", f"{_TRITON}/docs/user_guide/metrics.md")
RESPONSE_CACHE = Source("Triton: response cache", f"{_TRITON}/docs/user_guide/response_cache.md")
SERVER_PROTOCOLS = Source(
    "Triton: inference protocols and APIs", f"{_TRITON}/docs/customization_guide/inference_protocols.md"
)
SECURE = Source("Triton: secure deployment considerations", f"{_TRITON}/docs/customization_guide/deploy.md")
REPOSITORY_EXTENSION = Source(
    "Triton: model repository extension", f"{_TRITON}/docs/protocol/extension_model_repository.md"
)
CONFIGURATION_EXTENSION = Source(
    "Triton: model configuration extension", f"{_TRITON}/docs/protocol/extension_model_configuration.md"
)
BINARY = Source("Triton: binary tensor data extension", f"{_TRITON}/docs/protocol/extension_binary_data.md")
CLASSIFICATION = Source(
    "Triton: classification extension", f"{_TRITON}/docs/protocol/extension_classification.md"
)
SHARED_MEMORY = Source(
    "Triton: shared-memory extension", f"{_TRITON}/docs/protocol/extension_shared_memory.md"
)
SEQUENCE = Source("Triton: sequence extension", f"{_TRITON}/docs/protocol/extension_sequence.md")
STATISTICS = Source("Triton: statistics extension", f"{_TRITON}/docs/protocol/extension_statistics.md")
PARAMETERS = Source("Triton: parameters extension", f"{_TRITON}/docs/protocol/extension_parameters.md")
GENERATE = Source("Triton: generate extension", f"{_TRITON}/docs/protocol/extension_generate.md")
LOGGING = Source("Triton: logging extension", f"{_TRITON}/docs/protocol/extension_logging.md")
TRACE = Source("Triton: trace extension", f"{_TRITON}/docs/protocol/extension_trace.md")
SCHEDULE = Source(
    "Triton: schedule policy extension", f"{_TRITON}/docs/protocol/extension_schedule_policy.md"
)

OIP_REST = Source("Open Inference Protocol: HTTP/REST", f"{_OIP}/inference_rest.md")
OIP_GRPC = Source("Open Inference Protocol: gRPC", f"{_OIP}/inference_grpc.md")

ONNX_TESTS = Source("ONNX: backend tests", "https://github.com/onnx/onnx/blob/main/docs/OnnxBackendTest.md")
