"""What can be seen of deployments and models."""

from mlflow_triton_conformance.catalogue.requirement import Chapter
from mlflow_triton_conformance.catalogue.sources import (
    DEPLOYMENTS,
    LOGGING,
    METRICS,
    NVIDIA_PLUGIN,
    STATISTICS,
    TRACE,
)

CHAPTER = Chapter("observability", "Observability")
must, should, P = CHAPTER.must, CHAPTER.should, "plugin"
Z = "backend:python"

REQUIREMENTS = (
    must(
        "TRT-STAT-001",
        "The statistics of a model count its successful requests.",
        STATISTICS,
        "extension:statistics",
        Z,
    ),
    must(
        "TRT-STAT-002",
        "The statistics of a model count its failed requests.",
        STATISTICS,
        "extension:statistics",
        Z,
    ),
    must(
        "TRT-STAT-003",
        "The statistics of a model count inferences by their batch size.",
        STATISTICS,
        "extension:statistics",
        Z,
    ),
    must("TRT-STAT-004", "gRPC gives the same statistics.", STATISTICS, "extension:statistics", "grpc", Z),
    must("TRT-STAT-005", "Statistics of an unknown model are an error.", STATISTICS, "extension:statistics"),
    must("TRT-METRIC-001", "Metrics are text in Prometheus' format.", METRICS, "metrics"),
    must(
        "TRT-METRIC-002",
        "nv_inference_request_success counts a model's successful requests.",
        METRICS,
        "metrics",
        Z,
    ),
    must(
        "TRT-METRIC-003",
        "nv_inference_request_failure counts a model's failed requests.",
        METRICS,
        "metrics",
        Z,
    ),
    must("TRT-LOG-001", "The log settings can be read and set.", LOGGING, "extension:logging"),
    must("TRT-TRACE-001", "The trace settings can be read.", TRACE, "extension:trace"),
    should(
        "MLF-OBS-001",
        "get_deployment tells, as in_sync, whether the server runs just what the record says.",
        NVIDIA_PLUGIN,
        P,
    ),
    should(
        "MLF-OBS-002", "The commands write data to stdout, and everything else elsewhere.", DEPLOYMENTS, P
    ),
)
