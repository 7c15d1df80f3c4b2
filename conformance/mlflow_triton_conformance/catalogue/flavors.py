"""What a model of MLflow becomes in Triton's repository."""

from mlflow_triton_conformance.catalogue.requirement import Chapter
from mlflow_triton_conformance.catalogue.sources import (
    DEPLOYMENTS,
    MODEL_FORMAT,
    NVIDIA_PLUGIN,
    ONNX_FLAVOR,
    REGISTRY,
    REPOSITORY,
)

CHAPTER = Chapter("flavors", "Flavors and publishing", ("plugin",))
must, should = CHAPTER.must, CHAPTER.should

REQUIREMENTS = (
    must(
        "MLF-FLAVOR-001", "A model of the flavor onnx can be deployed.", NVIDIA_PLUGIN, "backend:onnxruntime"
    ),
    must("MLF-FLAVOR-002", "A model of the flavor triton can be deployed.", NVIDIA_PLUGIN),
    should(
        "MLF-FLAVOR-003", "A flavor that the model has not is refused with those that it has.", DEPLOYMENTS
    ),
    should("MLF-FLAVOR-004", "A flavor that the target cannot deploy is refused.", DEPLOYMENTS),
    must(
        "MLF-ONNX-001",
        "The deployed ONNX file is the one that was published.",
        ONNX_FLAVOR,
        "backend:onnxruntime",
    ),
    must("MLF-ONNX-002", "External data is deployed with the model.", ONNX_FLAVOR, "backend:onnxruntime"),
    should(
        "MLF-ONNX-003",
        "A model whose external data is missing is refused by the name of the file.",
        ONNX_FLAVOR,
    ),
    must(
        "MLF-ONNX-004",
        "A config.pbtxt attached with mlflow.log_artifact arrives byte for byte.",
        NVIDIA_PLUGIN,
        "backend:onnxruntime",
    ),
    must(
        "MLF-ONNX-005",
        "A config.pbtxt inside of the logged model, and the label files it names, arrive.",
        NVIDIA_PLUGIN,
        "backend:onnxruntime",
    ),
    must(
        "MLF-ONNX-006",
        "A model without a config.pbtxt is deployed with one that the server completes.",
        NVIDIA_PLUGIN,
        "backend:onnxruntime",
    ),
    should(
        "MLF-ONNX-007",
        "Files that are MLflow's own do not get into the model repository.",
        MODEL_FORMAT,
        "backend:onnxruntime",
    ),
    should(
        "MLF-ONNX-008",
        "A graph of any datatypes, ranks, dimensions, inputs and outputs is deployed, and answers to the bit.",
        ONNX_FLAVOR,
        "backend:onnxruntime",
    ),
    must(
        "MLF-ONNX-009",
        "Whatever a config.pbtxt with the model says, the server tells of the deployment, field for field.",
        NVIDIA_PLUGIN,
        "backend:onnxruntime",
        "extension:model_configuration",
    ),
    must(
        "MLF-TRITON-001",
        "A model directory arrives with every version, label file and nested folder.",
        NVIDIA_PLUGIN,
        "backend:python",
    ),
    must("MLF-TRITON-002", "config.pbtxt of a model directory arrives byte for byte.", NVIDIA_PLUGIN),
    must(
        "MLF-TRITON-003",
        "The highest version of a model directory answers, and list and get tell that one.",
        REPOSITORY,
        "backend:python",
    ),
    should(
        "MLF-TRITON-004",
        "The directory that MLmodel names is deployed, and not another one beside it.",
        MODEL_FORMAT,
        "backend:python",
    ),
    must(
        "MLF-TRITON-005",
        "Whatever the config.pbtxt of a model directory says, the server tells of the deployment, field for field.",
        NVIDIA_PLUGIN,
        "backend:python",
        "extension:model_configuration",
    ),
    must(
        "MLF-TRITON-006",
        "Of any version directories those serve that the policy says; the highest of them answers.",
        REPOSITORY,
        "backend:python",
    ),
    must("MLF-URI-001", "models:/NAME/VERSION names a model.", REGISTRY),
    must("MLF-URI-002", "models:/NAME@ALIAS names a model.", REGISTRY, "backend:onnxruntime"),
    must("MLF-URI-003", "models:/NAME/latest names a model.", REGISTRY, "backend:onnxruntime"),
    must("MLF-URI-004", "A path names a model.", DEPLOYMENTS, "backend:onnxruntime"),
    should(
        "MLF-URI-005",
        "Deploying leaves the model's own directory as it is.",
        DEPLOYMENTS,
        "backend:onnxruntime",
    ),
    must("MLF-RECORD-001", "mlflow-meta.json records name, path, model URI and flavor.", NVIDIA_PLUGIN),
    should("MLF-RECORD-002", "The record has the model version that an alias meant.", REGISTRY),
    should("MLF-RECORD-003", "The record has the digest of each file.", MODEL_FORMAT),
    must("MLF-RECORD-004", "What NVIDIA's plugin has deployed is listed and can be updated.", NVIDIA_PLUGIN),
)
