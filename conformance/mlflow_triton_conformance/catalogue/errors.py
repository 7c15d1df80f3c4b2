"""What goes wrong is said: by the plugin in MLflow's way, by the server in the protocol's."""

from mlflow_triton_conformance.catalogue.requirement import Chapter
from mlflow_triton_conformance.catalogue.sources import (
    BINARY,
    CONFIGURATION,
    DEPLOYMENTS,
    MODEL_FORMAT,
    NVIDIA_PLUGIN,
    OIP_GRPC,
    OIP_REST,
    ONNX_FLAVOR,
    REPOSITORY,
    SHARED_MEMORY,
)

CHAPTER = Chapter("errors", "Errors")
must, should, P = CHAPTER.must, CHAPTER.should, "plugin"
Z = "backend:python"

REQUIREMENTS = (
    must("MLF-ERROR-001", "An ONNX file that is none is refused with an MlflowException.", ONNX_FLAVOR, P),
    must("MLF-ERROR-002", "An empty ONNX file is refused with an MlflowException.", ONNX_FLAVOR, P),
    must(
        "MLF-ERROR-003",
        "An MLflow model without its ONNX file is refused with an MlflowException.",
        ONNX_FLAVOR,
        P,
    ),
    must("MLF-ERROR-004", "A directory without MLmodel is refused with an MlflowException.", MODEL_FORMAT, P),
    must("MLF-ERROR-005", "A broken MLmodel is refused with an MlflowException.", MODEL_FORMAT, P),
    must(
        "MLF-ERROR-006",
        "A model that the server cannot load is refused with an MlflowException and the server's reason.",
        DEPLOYMENTS,
        P,
        "backend:onnxruntime",
    ),
    must(
        "MLF-ERROR-007",
        "A config.pbtxt with an unknown field is refused with an MlflowException.",
        CONFIGURATION,
        P,
    ),
    must(
        "MLF-ERROR-008",
        "A config.pbtxt with a syntax error is refused with an MlflowException.",
        CONFIGURATION,
        P,
    ),
    must(
        "MLF-ERROR-009",
        "A config.pbtxt of another model's name is refused with an MlflowException.",
        CONFIGURATION,
        P,
    ),
    must(
        "MLF-ERROR-010",
        "A config.pbtxt that does not fit the model is refused with an MlflowException.",
        CONFIGURATION,
        P,
        "backend:onnxruntime",
    ),
    must(
        "MLF-ERROR-011",
        "A model directory without a version is refused with an MlflowException.",
        REPOSITORY,
        P,
    ),
    must(
        "MLF-ERROR-012",
        "A version number that the server cannot read is refused, and never reaches it.",
        REPOSITORY,
        P,
    ),
    must(
        "MLF-ERROR-013",
        "A version directory with a leading zero is refused with an MlflowException.",
        REPOSITORY,
        P,
    ),
    must(
        "MLF-ERROR-014", "A version without its model file is refused with an MlflowException.", REPOSITORY, P
    ),
    must(
        "MLF-ERROR-015",
        "A config.pbtxt that names a label file that is not there is refused with an MlflowException.",
        CONFIGURATION,
        P,
    ),
    should(
        "MLF-ERROR-016", "A model directory that brings a record of its own is refused.", NVIDIA_PLUGIN, P
    ),
    must(
        "MLF-ERROR-017", "A model URI that names nothing is refused with an MlflowException.", DEPLOYMENTS, P
    ),
    must("MLF-ERROR-018", "Arguments of a wrong type are refused with an MlflowException.", DEPLOYMENTS, P),
    should(
        "MLF-ERROR-019", "What is not deployed has the error code RESOURCE_DOES_NOT_EXIST.", DEPLOYMENTS, P
    ),
    should("MLF-ERROR-020", "A message is one line, which names what it is about.", DEPLOYMENTS, P),
    should(
        "MLF-ERROR-021",
        "The error code is INVALID_PARAMETER_VALUE for what was given wrong, INVALID_STATE for what the server refuses, "
        "RESOURCE_DOES_NOT_EXIST for what is not there, and TEMPORARILY_UNAVAILABLE for a server that does not answer.",
        DEPLOYMENTS,
        P,
    ),
    must(
        "OIP-ERROR-001",
        "A request to an unknown model has an HTTP error status and a JSON object with error.",
        OIP_REST,
    ),
    must("OIP-ERROR-002", "A request without a required input is refused.", OIP_REST, Z),
    must("OIP-ERROR-003", "A request with an unknown input is refused by its name.", OIP_REST, Z),
    must("OIP-ERROR-004", "A request with an input of another datatype is refused.", OIP_REST, Z),
    must("OIP-ERROR-005", "A request with an input of another shape is refused.", OIP_REST, Z),
    must(
        "OIP-ERROR-006",
        "A request whose data has not as many elements as its shape says is refused.",
        OIP_REST,
        Z,
    ),
    must("OIP-ERROR-007", "A request for an unknown output is refused.", OIP_REST, Z),
    must("OIP-ERROR-008", "A body that is no JSON is refused.", OIP_REST, Z),
    must("OIP-ERROR-009", "A request to an unknown version is refused.", OIP_REST, Z),
    must(
        "OIP-ERROR-010",
        "An exception in a model, and an error that it answers, is an error of that request with its text.",
        OIP_REST,
        Z,
    ),
    must("OIP-ERROR-011", "A batch larger than max_batch_size is refused.", CONFIGURATION, Z),
    must(
        "OIP-ERROR-012", "Binary data of another size than its shape and datatype mean is refused.", BINARY, Z
    ),
    must("OIP-ERROR-013", "A gRPC request to an unknown model has another status than OK.", OIP_GRPC, "grpc"),
    must(
        "OIP-ERROR-014",
        "A gRPC request with an input of another shape has another status than OK.",
        OIP_GRPC,
        "grpc",
        Z,
    ),
    must(
        "OIP-ERROR-015",
        "A request that names an unknown shared-memory region is refused.",
        SHARED_MEMORY,
        "extension:system_shared_memory",
        Z,
    ),
    must(
        "OIP-ERROR-016",
        "A request that reaches beyond the end of a shared-memory region is refused.",
        SHARED_MEMORY,
        "shared memory",
        Z,
    ),
)
