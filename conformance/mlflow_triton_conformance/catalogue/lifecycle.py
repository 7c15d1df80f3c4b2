"""A deployment is what was asked for, or what it was before."""

from mlflow_triton_conformance.catalogue.requirement import Chapter
from mlflow_triton_conformance.catalogue.sources import DEPLOYMENTS, MANAGEMENT, NVIDIA_PLUGIN

CHAPTER = Chapter("lifecycle", "Lifecycle", ("plugin",))
must, should = CHAPTER.must, CHAPTER.should
X = "backend:onnxruntime"

REQUIREMENTS = (
    must("MLF-LIFE-001", "After an update that fails the old model serves.", MANAGEMENT, X),
    should(
        "MLF-LIFE-002",
        "After an update that fails the files and the record are the old ones.",
        DEPLOYMENTS,
        X,
    ),
    should(
        "MLF-LIFE-003",
        "After a create that fails nothing of it is in the repository or in the server.",
        DEPLOYMENTS,
        X,
    ),
    must("MLF-LIFE-004", "An update to an older model serves the older model.", DEPLOYMENTS, X),
    must(
        "MLF-LIFE-005", "After an update no file of the old model is left.", DEPLOYMENTS, X, "backend:python"
    ),
    should(
        "MLF-LIFE-006",
        "What cannot be loaded, or would harm the server, does not get into the repository.",
        DEPLOYMENTS,
    ),
    should("MLF-LIFE-007", "A deployment that was deleted can be created again.", DEPLOYMENTS, X),
    must(
        "MLF-LIFE-008",
        "A rollback brings back the model that an update has replaced.",
        DEPLOYMENTS,
        "method:rollback_deployment",
        X,
    ),
    must(
        "MLF-LIFE-009",
        "With keep_previous, an update serves the new model all the same.",
        DEPLOYMENTS,
        "option:keep_previous",
        X,
    ),
    should(
        "MLF-LIFE-010", "get_deployment tells, as in_sync, that files were changed by hand.", NVIDIA_PLUGIN, X
    ),
    should(
        "MLF-LIFE-011",
        "After any sequence of operations, failing ones among them, the verbs and the server agree.",
        DEPLOYMENTS,
        X,
    ),
    should(
        "MLF-LIFE-012",
        "A deployment that somebody unloaded is listed, with another state than READY.",
        DEPLOYMENTS,
        X,
    ),
    must(
        "MLF-LIFE-013", "A deployment that somebody unloaded can be updated, and serves then.", DEPLOYMENTS, X
    ),
    must("MLF-LIFE-014", "A deployment that somebody unloaded can be deleted.", DEPLOYMENTS, X),
    should(
        "MLF-LIFE-015",
        "After any doings of MLflow, of others and of the server, failing ones among them, each deployment is listed, "
        "on disk, ready and answered as an oracle says.",
        DEPLOYMENTS,
        "backend:python",
    ),
    should(
        "MLF-LIFE-016",
        "The same holds where the server is restarted or killed in between.",
        DEPLOYMENTS,
        "backend:python",
        "restart",
    ),
)
