"""Tensors of every datatype and shape, bit for bit; and the forms in which MLflow's users hold them."""

from mlflow_triton_conformance.catalogue.requirement import Chapter, Requirement
from mlflow_triton_conformance.catalogue.sources import (
    BINARY,
    CONFIGURATION,
    DEPLOYMENTS,
    NVIDIA_PLUGIN,
    OIP_GRPC,
    OIP_REST,
    ONNX_TESTS,
    SCORING,
)

CHAPTER = Chapter("datatypes", "Datatypes and shapes")
must, should, P = CHAPTER.must, CHAPTER.should, "plugin"
Z = "backend:python"
X = "backend:onnxruntime"

#: In the order of their ids; the server's and the plugin's requirements have the same numbers.
DATATYPES = (
    "BOOL",
    "UINT8",
    "UINT16",
    "UINT32",
    "UINT64",
    "INT8",
    "INT16",
    "INT32",
    "INT64",
    "FP16",
    "FP32",
    "FP64",
    "BYTES",
)


def _of_each_datatype() -> tuple[Requirement, ...]:
    server = tuple(
        must(
            f"OIP-TYPE-{number:03}",
            f"Any {datatype} tensor comes back bit for bit over HTTP, as binary data.",
            BINARY,
            Z,
        )
        for number, datatype in enumerate(DATATYPES, start=1)
    )
    json = tuple(
        must(
            f"OIP-JSON-{number:03}",
            f"Any {datatype} tensor comes back with its values over HTTP, as JSON, floats to the last digit but one.",
            OIP_REST,
            Z,
        )
        for number, datatype in enumerate(DATATYPES, start=1)
        if datatype != "FP16"  # which has no JSON form
    )
    grpc = tuple(
        must(
            f"OIP-GRPC-{number:03}",
            f"Any {datatype} tensor comes back bit for bit over gRPC.",
            OIP_GRPC,
            "grpc",
            Z,
        )
        for number, datatype in enumerate(DATATYPES, start=1)
    )
    plugin = tuple(
        must(
            f"MLF-TYPE-{number:03}",
            f"predict takes and gives {datatype} tensors bit for bit.",
            DEPLOYMENTS,
            P,
            Z,
        )
        for number, datatype in enumerate(DATATYPES, start=1)
    )
    return server + json + grpc + plugin


REQUIREMENTS = (
    *_of_each_datatype(),
    must("OIP-SHAPE-001", "A tensor with a dimension of size zero comes back with its shape.", OIP_REST, Z),
    must("OIP-SHAPE-002", "The elements of a tensor are in row-major order.", OIP_REST, Z),
    must(
        "OIP-SHAPE-003", "The first dimension of a model with max_batch_size is the batch.", CONFIGURATION, Z
    ),
    must("OIP-SHAPE-004", "A dimension of -1 takes any size.", CONFIGURATION, Z),
    must("OIP-SHAPE-005", "JSON data may be nested as the shape is, or flat.", OIP_REST, Z),
    must("MLF-FORM-001", "predict takes a dict of arrays.", DEPLOYMENTS, P, X),
    must("MLF-FORM-002", "predict takes a dict of nested lists.", DEPLOYMENTS, P, X),
    should("MLF-FORM-003", "predict takes tensors under the key inputs.", SCORING, P, X),
    must(
        "MLF-FORM-004",
        "predict takes what the command reads from the documented JSON file.",
        NVIDIA_PLUGIN,
        P,
        X,
    ),
    must("MLF-FORM-005", "predict takes a DataFrame with a column per tensor.", DEPLOYMENTS, P, X),
    should("MLF-FORM-006", "predict takes a list of records.", SCORING, P, X),
    should("MLF-FORM-007", "predict casts float64 to FP32 where nothing is lost.", DEPLOYMENTS, P, X),
    must("MLF-FORM-008", "predict takes big-endian arrays.", DEPLOYMENTS, P, X),
    must("MLF-FORM-009", "predict takes arrays in Fortran order.", DEPLOYMENTS, P, X),
    must("MLF-FORM-010", "predict takes views with negative strides.", DEPLOYMENTS, P, X),
    should("MLF-FORM-011", "predict takes Triton's own JSON document.", OIP_REST, P, X),
    should("MLF-FORM-012", "predict takes MLflow's document instances.", SCORING, P, X),
    should("MLF-FORM-013", "predict takes MLflow's document dataframe_split.", SCORING, P, X),
    should("MLF-FORM-014", "predict casts integers to FP32 where nothing is lost.", DEPLOYMENTS, P, X),
    should(
        "MLF-FORM-015",
        "A table longer than the model's largest batch is answered whole, in its order.",
        DEPLOYMENTS,
        P,
        X,
    ),
    must(
        "MLF-TENSOR-001",
        "Any float32, NaN, infinities and denormals among them, is computed as NumPy does.",
        DEPLOYMENTS,
        P,
        X,
    ),
    should("MLF-TENSOR-002", "Outputs are NumPy arrays of the model's datatype.", DEPLOYMENTS, P, X),
    must("MLF-INPUT-001", "An input that is missing is refused with an MlflowException.", DEPLOYMENTS, P, X),
    must(
        "MLF-INPUT-002",
        "An input that the model has not is refused with an MlflowException.",
        DEPLOYMENTS,
        P,
        X,
    ),
    must("MLF-INPUT-003", "An input of another shape is refused with an MlflowException.", DEPLOYMENTS, P, X),
    must(
        "MLF-INPUT-004",
        "An input without its batch dimension is refused with an MlflowException.",
        DEPLOYMENTS,
        P,
        X,
    ),
    must("MLF-INPUT-005", "A ragged input is refused with an MlflowException.", DEPLOYMENTS, P, X),
    must("MLF-INPUT-006", "Text for a number is refused with an MlflowException.", DEPLOYMENTS, P, X),
    must("MLF-INPUT-007", "A missing value is refused with an MlflowException.", DEPLOYMENTS, P, X),
    must(
        "MLF-INPUT-008",
        "A value that the datatype cannot hold is refused with an MlflowException.",
        DEPLOYMENTS,
        P,
        X,
    ),
    must(
        "MLF-INPUT-009",
        "An integer that the datatype cannot hold exactly is refused with an MlflowException.",
        DEPLOYMENTS,
        P,
        X,
    ),
    must("MLF-INPUT-010", "A masked array is refused with an MlflowException.", DEPLOYMENTS, P, X),
    must(
        "MLF-INPUT-011",
        "One array for a model of several inputs is refused with an MlflowException.",
        DEPLOYMENTS,
        P,
        X,
    ),
    must("MLF-INPUT-012", "No input is refused with an MlflowException.", DEPLOYMENTS, P, X),
    must(
        "MLF-INPUT-013",
        "A DataFrame with other columns is refused with an MlflowException.",
        DEPLOYMENTS,
        P,
        X,
    ),
    must(
        "MLF-INPUT-014",
        "A batch that the model does not take is refused with an MlflowException.",
        DEPLOYMENTS,
        P,
        X,
    ),
    should(
        "MLF-INPUT-015",
        "What is wrong with an input is told by its names, with the error code INVALID_PARAMETER_VALUE.",
        DEPLOYMENTS,
        P,
        X,
    ),
    must(
        "MLF-STANDARD-001",
        "A model of ONNX's own tests that the server can load answers, once deployed, as those tests say.",
        ONNX_TESTS,
        P,
        X,
    ),
)
