"""Names, records and models as hostile input; what is somebody else's stays."""

from mlflow_triton_conformance.catalogue.requirement import Chapter
from mlflow_triton_conformance.catalogue.sources import (
    DEPLOYMENTS,
    NVIDIA_PLUGIN,
    ONNX_FLAVOR,
    REPOSITORY,
    SECURE,
)

CHAPTER = Chapter("security", "Security")
must, should, P = CHAPTER.must, CHAPTER.should, "plugin"

REQUIREMENTS = (
    must("MLF-SEC-001", "A name that leads out of the model repository is refused by every verb.", SECURE, P),
    should("MLF-SEC-002", "A name that the server cannot serve is refused by every verb.", REPOSITORY, P),
    must(
        "MLF-SEC-003",
        "A symbolic link in a model directory does not bring a file from elsewhere into the repository.",
        SECURE,
        P,
    ),
    must(
        "MLF-SEC-004",
        "External data of an ONNX model that lies outside of the model is refused.",
        ONNX_FLAVOR,
        P,
    ),
    must("MLF-SEC-005", "A model that MLflow did not deploy is neither updated nor deleted.", DEPLOYMENTS, P),
    should("MLF-SEC-006", "A corrupt record is told by its name.", NVIDIA_PLUGIN, P, "backend:onnxruntime"),
    must(
        "MLF-SEC-007",
        "A corrupt record does not keep other deployments from being listed.",
        DEPLOYMENTS,
        P,
        "backend:onnxruntime",
    ),
    must(
        "MLF-SEC-008",
        "Deleting a deployment leaves one alone whose name begins with its name.",
        DEPLOYMENTS,
        P,
    ),
    must(
        "MLF-SEC-009",
        "Headers that are sent to the server are in no message.",
        SECURE,
        P,
        "setting:TRITON_HEADERS",
    ),
    must(
        "MLF-SEC-010",
        "A name with a separator, a control character or a leading dot is refused by every verb, without any trace.",
        SECURE,
        P,
    ),
    must(
        "TRT-SEC-001",
        "A model name that leads out of the model repository loads nothing over HTTP.",
        SECURE,
        "host files",
    ),
    should(
        "TRT-SEC-002",
        "A model name that leads out of the repository is not listed by the index.",
        SECURE,
        "host files",
    ),
)
