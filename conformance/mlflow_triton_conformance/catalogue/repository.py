"""What Triton makes of a directory in its model repository."""

from mlflow_triton_conformance.catalogue.requirement import Chapter
from mlflow_triton_conformance.catalogue.sources import (
    CONFIGURATION,
    CONFIGURATION_EXTENSION,
    REPOSITORY,
)

CHAPTER = Chapter("repository", "Model repository and versions", ("backend:python",))
must, should = CHAPTER.must, CHAPTER.should

REQUIREMENTS = (
    must("TRT-REPO-001", "Directories of a model that are not named by a number are ignored.", REPOSITORY),
    must("TRT-REPO-002", "Directories of a model whose number begins with a zero are ignored.", REPOSITORY),
    must("TRT-REPO-003", "A model without a version cannot be loaded.", REPOSITORY),
    must("TRT-REPO-004", "A model whose config.pbtxt has another name cannot be loaded.", CONFIGURATION),
    must("TRT-REPO-005", "A model whose config.pbtxt has an unknown field cannot be loaded.", CONFIGURATION),
    must(
        "TRT-REPO-006",
        "An ONNX model without config.pbtxt gets its configuration from its file.",
        CONFIGURATION,
        "backend:onnxruntime",
    ),
    must("TRT-REPO-007", "default_model_filename names the model's file.", CONFIGURATION),
    must("TRT-VERSION-001", "Without a version policy the highest version alone serves.", CONFIGURATION),
    must(
        "TRT-VERSION-002",
        "The policy latest serves as many of the highest versions as it says.",
        CONFIGURATION,
    ),
    must("TRT-VERSION-003", "The policy all serves every version.", CONFIGURATION),
    must("TRT-VERSION-004", "The policy specific serves the versions that it names.", CONFIGURATION),
    must("TRT-VERSION-005", "A request that names a version is answered by that version.", REPOSITORY),
    should(
        "TRT-VERSION-006",
        "A request that names no version is answered by the highest one, as a number.",
        CONFIGURATION,
    ),
    must("TRT-VERSION-007", "A new version directory serves after the next load.", REPOSITORY),
    must(
        "TRT-VERSION-008",
        "After the highest version's directory has gone, the next load serves the one before.",
        REPOSITORY,
    ),
    must(
        "TRT-VERSION-009",
        "Of any version directories those serve that the policy says, and each answers as itself.",
        CONFIGURATION,
    ),
    must(
        "TRT-CONFIG-001",
        "The server tells a model's configuration.",
        CONFIGURATION_EXTENSION,
        "extension:model_configuration",
    ),
    must(
        "TRT-CONFIG-002",
        "gRPC tells the same configuration.",
        CONFIGURATION_EXTENSION,
        "extension:model_configuration",
        "grpc",
    ),
    must(
        "TRT-CONFIG-003",
        "The configuration of an unknown model is an error.",
        CONFIGURATION_EXTENSION,
        "extension:model_configuration",
    ),
    must("TRT-CONFIG-004", "Parameters of the configuration reach the model.", CONFIGURATION),
    must("TRT-CONFIG-005", "An optional input may be left out.", CONFIGURATION),
    must("TRT-CONFIG-006", "An input that is reshaped reaches the model in its other shape.", CONFIGURATION),
    must(
        "TRT-CONFIG-007",
        "Whatever a config.pbtxt says, in any order and layout, the server tells it, field for field.",
        CONFIGURATION_EXTENSION,
        "extension:model_configuration",
    ),
)
