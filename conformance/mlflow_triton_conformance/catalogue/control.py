"""Loading and unloading models in a server in explicit model control mode."""

from mlflow_triton_conformance.catalogue.requirement import Chapter
from mlflow_triton_conformance.catalogue.sources import ENSEMBLES, MANAGEMENT, REPOSITORY_EXTENSION

CHAPTER = Chapter("control", "Model control", ("extension:model_repository",))
must, should = CHAPTER.must, CHAPTER.should
Z = "backend:python"

REQUIREMENTS = (
    must(
        "TRT-INDEX-001",
        "The index names a model in the repository that has not been loaded.",
        REPOSITORY_EXTENSION,
    ),
    must(
        "TRT-INDEX-002",
        "The index tells version and state READY of a model that serves.",
        REPOSITORY_EXTENSION,
        Z,
    ),
    must(
        "TRT-INDEX-003", "The index of ready models leaves out what is not loaded.", REPOSITORY_EXTENSION, Z
    ),
    must(
        "TRT-INDEX-004", "The index tells the reason of a model whose load failed.", REPOSITORY_EXTENSION, Z
    ),
    must("TRT-INDEX-005", "The index over gRPC is the one over HTTP.", REPOSITORY_EXTENSION, "grpc"),
    must("TRT-LOAD-001", "When a load over HTTP returns 200, the model is ready.", REPOSITORY_EXTENSION, Z),
    must(
        "TRT-LOAD-002",
        "When a load over gRPC returns OK, the model is ready.",
        REPOSITORY_EXTENSION,
        "grpc",
        Z,
    ),
    must(
        "TRT-LOAD-003",
        "A load of what is not in the repository is an error with a message.",
        REPOSITORY_EXTENSION,
    ),
    must(
        "TRT-LOAD-004",
        "A load of a model that fails is an error, with the model's reason.",
        REPOSITORY_EXTENSION,
        Z,
    ),
    must("TRT-LOAD-005", "A model in the repository is not loaded unless it is asked for.", MANAGEMENT, Z),
    must(
        "TRT-LOAD-006", "A load of a model whose files have changed serves what they are now.", MANAGEMENT, Z
    ),
    must("TRT-LOAD-007", "A reload that fails leaves the loaded model as it is.", MANAGEMENT, Z),
    must(
        "TRT-LOAD-008", "A load of a model that serves and has not changed succeeds.", REPOSITORY_EXTENSION, Z
    ),
    must(
        "TRT-LOAD-009",
        "A configuration given with a load is used in place of the one in the repository.",
        REPOSITORY_EXTENSION,
        Z,
    ),
    should(
        "TRT-LOAD-010",
        "A file given with a load, and a configuration, make a model that is not in the repository.",
        REPOSITORY_EXTENSION,
        Z,
    ),
    must("TRT-UNLOAD-001", "A model that was unloaded answers no requests.", REPOSITORY_EXTENSION, Z),
    must("TRT-UNLOAD-002", "A model that was unloaded can be loaded again.", MANAGEMENT, Z),
    must("TRT-UNLOAD-003", "A model can be unloaded over gRPC.", REPOSITORY_EXTENSION, "grpc", Z),
    should("TRT-UNLOAD-004", "Unloading what is not loaded succeeds.", REPOSITORY_EXTENSION),
    should(
        "TRT-UNLOAD-005",
        "A request that is being answered when its model is unloaded is answered.",
        MANAGEMENT,
        Z,
    ),
    must("TRT-ENSEMBLE-001", "Loading an ensemble loads the models that it is made of.", ENSEMBLES, Z),
    must("TRT-ENSEMBLE-002", "An ensemble answers what its models answer one after the other.", ENSEMBLES, Z),
    must(
        "TRT-ENSEMBLE-003",
        "unload_dependents unloads with an ensemble the models that came with it.",
        REPOSITORY_EXTENSION,
        "extension:model_repository(unload_dependents)",
        Z,
    ),
)
