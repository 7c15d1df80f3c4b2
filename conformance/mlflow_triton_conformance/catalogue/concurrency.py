"""Several at once."""

from mlflow_triton_conformance.catalogue.requirement import Chapter
from mlflow_triton_conformance.catalogue.sources import DEPLOYMENTS, MANAGEMENT, OIP_REST

CHAPTER = Chapter("concurrency", "Concurrency")
must, should, P = CHAPTER.must, CHAPTER.should, "plugin"
X = "backend:onnxruntime"

REQUIREMENTS = (
    must(
        "MLF-CONC-001",
        "Of two that create one deployment at once, one succeeds, and the other one is told.",
        DEPLOYMENTS,
        P,
        X,
    ),
    should(
        "MLF-CONC-002",
        "What serves after two creates at once is the model that the record names.",
        DEPLOYMENTS,
        P,
        X,
    ),
    should("MLF-CONC-003", "Deployments of different names can be created at once.", DEPLOYMENTS, P, X),
    must("MLF-CONC-004", "During an update no request fails.", MANAGEMENT, P, X),
    must(
        "MLF-CONC-005",
        "A request that begins after an update has returned is answered by the new model.",
        DEPLOYMENTS,
        P,
        X,
    ),
    should("MLF-CONC-006", "Threads that share a client get each its own answer.", DEPLOYMENTS, P, X),
    must(
        "TRT-CONC-001", "Requests at once are answered each with its own outputs.", OIP_REST, "backend:python"
    ),
    must(
        "TRT-CONC-002",
        "Models that are loaded at once are all ready when their loads return.",
        MANAGEMENT,
        "backend:python",
    ),
    must(
        "TRT-CONC-003", "While a model is loaded, other models answer.", MANAGEMENT, "backend:python", "grpc"
    ),
    must(
        "TRT-CONC-004",
        "A reload of a model that serves loses no request.",
        MANAGEMENT,
        "backend:python",
        "grpc",
    ),
)
