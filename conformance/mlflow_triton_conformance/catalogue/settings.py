"""Where a plugin finds its servers, and what may be set for a deployment."""

from mlflow_triton_conformance.catalogue.requirement import Chapter
from mlflow_triton_conformance.catalogue.sources import (
    BATCHING,
    CONFIGURATION,
    DEPLOYMENTS,
    NVIDIA_PLUGIN,
)

CHAPTER = Chapter("settings", "Settings and deployment options", ("plugin",))
must, should = CHAPTER.must, CHAPTER.should

REQUIREMENTS = (
    must("MLF-SETTING-001", "TRITON_URL names the server.", NVIDIA_PLUGIN),
    must("MLF-SETTING-002", "TRITON_MODEL_REPO names the model repository.", NVIDIA_PLUGIN),
    must(
        "MLF-SETTING-003",
        "A target URI that names a server goes before the environment.",
        DEPLOYMENTS,
        "target uri",
    ),
    should(
        "MLF-SETTING-004",
        "get_deployment tells, as triton_url and model_repository, what it used, and where that was set.",
        DEPLOYMENTS,
    ),
    should(
        "MLF-SETTING-005",
        "Without a model repository predict works, and the other verbs say what is missing.",
        NVIDIA_PLUGIN,
    ),
    should(
        "MLF-SETTING-006",
        "A repository that is not the server's is refused before anything is changed.",
        NVIDIA_PLUGIN,
        "target uri",
    ),
    should(
        "MLF-SETTING-007",
        "A repository that cannot be used is refused by its path and where that was set.",
        NVIDIA_PLUGIN,
        "target uri",
    ),
    should(
        "MLF-SETTING-008",
        "A target URI that is malformed is refused with an MlflowException.",
        DEPLOYMENTS,
        "target uri",
    ),
    should("MLF-OPTION-001", "All that is wrong with the options is told at once.", DEPLOYMENTS),
    should(
        "MLF-OPTION-002",
        "Options that contradict the model are refused before anything is changed.",
        DEPLOYMENTS,
        "option:version_policy",
        "option:gpus",
    ),
    should(
        "MLF-OPTION-003",
        "Options that the server refuses leave the deployment as it was.",
        DEPLOYMENTS,
        "option:parameters",
    ),
    must(
        "MLF-OPTION-004",
        "The option version is the version under which an ONNX model serves.",
        NVIDIA_PLUGIN,
        "option:version",
    ),
    must(
        "MLF-OPTION-005",
        "The option max_batch_size reaches the server's configuration.",
        CONFIGURATION,
        "option:max_batch_size",
    ),
    must(
        "MLF-OPTION-006",
        "The options of instances reach the server's configuration.",
        CONFIGURATION,
        "option:instance_count",
    ),
    must(
        "MLF-OPTION-007",
        "The options of dynamic batching reach the server's configuration.",
        BATCHING,
        "option:max_queue_delay_microseconds",
    ),
    must(
        "MLF-OPTION-008",
        "The option parameters reaches the server's configuration.",
        CONFIGURATION,
        "option:parameters",
    ),
    must(
        "MLF-OPTION-009",
        "The option version_policy chooses the versions that serve.",
        CONFIGURATION,
        "option:version_policy",
    ),
    must(
        "MLF-OPTION-010",
        "The option warmup has the model answer requests before it serves.",
        CONFIGURATION,
        "option:warmup",
    ),
    should(
        "MLF-OPTION-011",
        "What a model's configuration says and the options do not name is kept.",
        CONFIGURATION,
        "option:version_policy",
    ),
    should(
        "MLF-OPTION-012", "get_deployment tells the options in force.", DEPLOYMENTS, "option:max_batch_size"
    ),
    should(
        "MLF-OPTION-013",
        "An update with options alone keeps and tells what was changed by hand in the repository.",
        DEPLOYMENTS,
        "option:instance_count",
    ),
    should(
        "MLF-OPTION-014",
        "An update with options alone does not need MLflow's server.",
        DEPLOYMENTS,
        "option:max_batch_size",
    ),
)
