"""What MLflow's deployments API and its commands promise."""

from mlflow_triton_conformance.catalogue.requirement import Chapter
from mlflow_triton_conformance.catalogue.sources import (
    DEPLOYMENTS,
    DEPLOYMENTS_CLI,
    NVIDIA_PLUGIN,
    PLUGINS,
)

CHAPTER = Chapter("deployments", "Deployments API and CLI")
must, should, P = CHAPTER.must, CHAPTER.should, "plugin"

REQUIREMENTS = (
    must(
        "MLF-CLIENT-001",
        "The plugin's module has exactly one client class, a subclass of BaseDeploymentClient.",
        PLUGINS,
        P,
    ),
    must(
        "MLF-CLIENT-002",
        "Each method of the client takes the arguments of MLflow's interface by their names.",
        DEPLOYMENTS,
        P,
    ),
    must(
        "MLF-CLIENT-003",
        "The plugin's module has run_local with the arguments name, model_uri, flavor and config.",
        PLUGINS,
        P,
    ),
    must("MLF-CLIENT-004", "target_help returns text that names the target's settings.", DEPLOYMENTS, P),
    must("MLF-CREATE-001", "create_deployment returns a dict with the deployment's name.", DEPLOYMENTS, P),
    must(
        "MLF-CREATE-002", "When create_deployment returns, the deployment answers requests.", DEPLOYMENTS, P
    ),
    must(
        "MLF-CREATE-003",
        "create_deployment on the name of a deployment raises an MlflowException.",
        DEPLOYMENTS,
        P,
    ),
    must(
        "MLF-CREATE-004",
        "create_deployment without a flavor takes the one that the model has.",
        DEPLOYMENTS,
        P,
    ),
    should(
        "MLF-CREATE-005",
        "create_deployment on the name of a deployment leaves that deployment as it is.",
        DEPLOYMENTS,
        P,
    ),
    should(
        "MLF-CREATE-006",
        "create_deployment on the name of a model that MLflow did not deploy is refused.",
        DEPLOYMENTS,
        P,
    ),
    must(
        "MLF-UPDATE-001",
        "When update_deployment with another model returns, that model answers.",
        DEPLOYMENTS,
        P,
    ),
    must(
        "MLF-UPDATE-002",
        "update_deployment without a flavor takes the one that the new model has.",
        DEPLOYMENTS,
        P,
    ),
    must(
        "MLF-UPDATE-003",
        "update_deployment of what is not deployed raises an MlflowException.",
        DEPLOYMENTS,
        P,
    ),
    must(
        "MLF-UPDATE-004",
        "update_deployment with config alone changes those attributes and keeps the model.",
        DEPLOYMENTS,
        P,
        "option:max_batch_size",
    ),
    must("MLF-UPDATE-005", "update_deployment with a flavor and no model is refused.", DEPLOYMENTS, P),
    should("MLF-UPDATE-006", "update_deployment with nothing to change is refused.", DEPLOYMENTS, P),
    must("MLF-DELETE-001", "After delete_deployment the deployment is not listed.", DEPLOYMENTS, P),
    must("MLF-DELETE-002", "delete_deployment does not fail for what is not deployed.", DEPLOYMENTS, P),
    must("MLF-DELETE-003", "After delete_deployment the model answers no requests.", NVIDIA_PLUGIN, P),
    must(
        "MLF-DELETE-004", "delete_deployment removes the model from the model repository.", NVIDIA_PLUGIN, P
    ),
    must("MLF-LIST-001", "list_deployments lists each deployment once, by its name.", DEPLOYMENTS, P),
    should("MLF-LIST-002", "list_deployments tells state, model URI and flavor.", NVIDIA_PLUGIN, P),
    must("MLF-LIST-003", "list_deployments does not list what MLflow did not deploy.", DEPLOYMENTS, P),
    must("MLF-GET-001", "get_deployment returns a dict with the deployment's name.", DEPLOYMENTS, P),
    must("MLF-GET-002", "get_deployment of what is not deployed raises an MlflowException.", DEPLOYMENTS, P),
    should(
        "MLF-GET-003", "get_deployment tells the version that answers and the model URI.", NVIDIA_PLUGIN, P
    ),
    must(
        "MLF-NAME-001",
        "Names that differ in a letter's case, or of which one is the beginning of another, are of different deployments.",
        DEPLOYMENTS,
        P,
        "backend:python",
    ),
    must("MLF-PREDICT-001", "predict returns a PredictionsResponse.", DEPLOYMENTS, P),
    must("MLF-PREDICT-002", "predict for what is not deployed raises an MlflowException.", DEPLOYMENTS, P),
    must("MLF-PREDICT-003", "A PredictionsResponse writes the documented JSON.", DEPLOYMENTS, P),
    must(
        "MLF-PREDICT-004",
        "get_predictions of a PredictionsResponse is a DataFrame with a column per output.",
        DEPLOYMENTS,
        P,
    ),
    must("MLF-CLI-001", "mlflow deployments create deploys and says so.", DEPLOYMENTS_CLI, P),
    must("MLF-CLI-002", "mlflow deployments list prints each deployment.", DEPLOYMENTS_CLI, P),
    must(
        "MLF-CLI-003",
        "mlflow deployments get prints the deployment, a line for each key.",
        DEPLOYMENTS_CLI,
        P,
    ),
    must(
        "MLF-CLI-004",
        "mlflow deployments predict prints the documented JSON, and nothing else, on stdout.",
        DEPLOYMENTS_CLI,
        P,
    ),
    must(
        "MLF-CLI-005",
        "mlflow deployments predict --output-path writes the documented JSON.",
        DEPLOYMENTS_CLI,
        P,
    ),
    must("MLF-CLI-006", "mlflow deployments update puts the new model in and says so.", DEPLOYMENTS_CLI, P),
    must("MLF-CLI-007", "mlflow deployments delete deletes and says so.", DEPLOYMENTS_CLI, P),
    must("MLF-CLI-008", "mlflow deployments help prints what target_help returns.", DEPLOYMENTS_CLI, P),
    should(
        "MLF-CLI-009",
        "A command that fails prints one line that begins with Error:, and exits with 1.",
        DEPLOYMENTS_CLI,
        P,
    ),
    must(
        "MLF-DRYRUN-001",
        "A dry run changes nothing, on disk and in service.",
        DEPLOYMENTS,
        P,
        "option:dry_run",
    ),
    must(
        "MLF-DRYRUN-002",
        "A dry run says just what the operation then changes.",
        DEPLOYMENTS,
        P,
        "option:dry_run",
    ),
    must(
        "MLF-DRYRUN-003",
        "A dry run on the command line prints what would change, and does not say that it is done.",
        DEPLOYMENTS_CLI,
        P,
        "option:dry_run",
    ),
)
