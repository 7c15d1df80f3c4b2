"""Servers that are gone, hang, or answer something else; models that die."""

from mlflow_triton_conformance.catalogue.requirement import Chapter
from mlflow_triton_conformance.catalogue.sources import DEPLOYMENTS, OIP_REST, REPOSITORY_EXTENSION

CHAPTER = Chapter("faults", "Faults")
must, should, P = CHAPTER.must, CHAPTER.should, "plugin"

REQUIREMENTS = (
    must(
        "MLF-FAULT-001",
        "Where no Triton listens, every verb raises an MlflowException.",
        DEPLOYMENTS,
        P,
        "target uri",
    ),
    should(
        "MLF-FAULT-002", "Where no Triton listens, nothing is changed on disk.", DEPLOYMENTS, P, "target uri"
    ),
    must(
        "MLF-FAULT-003",
        "Where no MLflow server listens, create and update raise an MlflowException.",
        DEPLOYMENTS,
        P,
    ),
    should(
        "MLF-FAULT-004",
        "Without gRPC, models are loaded over HTTP, with a warning.",
        REPOSITORY_EXTENSION,
        P,
        "setting:TRITON_GRPC_URL",
    ),
    should(
        "MLF-FAULT-005",
        "A Triton that accepts and never answers ends in an MlflowException in the time that is set.",
        DEPLOYMENTS,
        P,
        "setting:TRITON_REQUEST_TIMEOUT",
    ),
    must("MLF-FAULT-006", "A server that is no Triton ends in an MlflowException.", DEPLOYMENTS, P),
    must(
        "MLF-FAULT-007",
        "A connection that is cut in the midst of an answer ends in an MlflowException.",
        DEPLOYMENTS,
        P,
    ),
    must(
        "MLF-FAULT-008",
        "An exception in the model ends in an MlflowException with the server's text.",
        DEPLOYMENTS,
        P,
        "backend:python",
    ),
    must(
        "TRT-FAULT-001",
        "The server lives on when a client goes away in the midst of a request.",
        OIP_REST,
        "backend:python",
    ),
    must("TRT-FAULT-002", "The server lives on after a request that is no HTTP.", OIP_REST),
)
