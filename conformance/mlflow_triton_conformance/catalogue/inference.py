"""The Open Inference Protocol and Triton's extensions of it, over HTTP, gRPC and shared memory."""

from mlflow_triton_conformance.catalogue.requirement import Chapter
from mlflow_triton_conformance.catalogue.sources import (
    BINARY,
    CLASSIFICATION,
    GENERATE,
    OIP_GRPC,
    OIP_REST,
    PARAMETERS,
    SEQUENCE,
    SERVER_PROTOCOLS,
    SHARED_MEMORY,
)

CHAPTER = Chapter("inference", "Inference over HTTP, gRPC and shared memory")
must, should = CHAPTER.must, CHAPTER.should
Z = "backend:python"
SHM = ("extension:system_shared_memory", "shared memory", Z)

REQUIREMENTS = (
    must("OIP-HEALTH-001", "GET v2/health/live answers 200.", OIP_REST),
    must("OIP-HEALTH-002", "GET v2/health/ready answers 200 when every model is ready.", OIP_REST, Z),
    must("OIP-HEALTH-003", "GET v2/models/NAME/ready answers 200 for a model that is ready.", OIP_REST, Z),
    must(
        "OIP-HEALTH-004",
        "GET v2/models/NAME/ready answers an HTTP error status for a model that is not.",
        OIP_REST,
    ),
    must(
        "OIP-HEALTH-005", "GET v2/models/NAME/versions/VERSION/ready answers for that version.", OIP_REST, Z
    ),
    must("OIP-HEALTH-006", "ServerLive and ServerReady answer true over gRPC.", OIP_GRPC, "grpc", Z),
    must(
        "OIP-HEALTH-007",
        "ModelReady answers true over gRPC for a model that is ready, and false for one that is not.",
        OIP_GRPC,
        "grpc",
        Z,
    ),
    must("OIP-META-001", "GET v2 tells the server's name, version and extensions.", OIP_REST),
    must(
        "OIP-META-002", "GET v2/models/NAME tells name, versions, platform, inputs and outputs.", OIP_REST, Z
    ),
    must("OIP-META-003", "GET v2/models/NAME/versions/VERSION tells the same of that version.", OIP_REST, Z),
    must(
        "OIP-META-004",
        "The metadata of an unknown model is an HTTP error status and a JSON object with error.",
        OIP_REST,
    ),
    must("OIP-META-005", "ServerMetadata over gRPC tells what GET v2 tells.", OIP_GRPC, "grpc"),
    must("OIP-META-006", "ModelMetadata over gRPC tells what GET v2/models/NAME tells.", OIP_GRPC, "grpc", Z),
    must(
        "OIP-META-007",
        "The shape of a tensor has -1 for each variable dimension, the batch among them.",
        OIP_REST,
        Z,
    ),
    must(
        "OIP-INFER-001",
        "A JSON request is answered with the outputs' names, datatypes, shapes and data.",
        OIP_REST,
        Z,
    ),
    must("OIP-INFER-002", "The answer has the id of the request.", OIP_REST, Z),
    must("OIP-INFER-003", "The answer names the model and the version that answered.", OIP_REST, Z),
    must("OIP-INFER-004", "Only the outputs that are asked for are in the answer.", OIP_REST, Z),
    must("OIP-INFER-005", "Without any asked for, all outputs are in the answer.", OIP_REST, Z),
    must(
        "OIP-INFER-006", "Parameters of the request reach the model.", PARAMETERS, "extension:parameters", Z
    ),
    must("OIP-INFER-007", "The answer to a JSON request is JSON by its content type.", OIP_REST, Z),
    must(
        "OIP-BINARY-001",
        "Binary input data follow the JSON part, whose length is in a header.",
        BINARY,
        "extension:binary_tensor_data",
        Z,
    ),
    must(
        "OIP-BINARY-002",
        "An output asked for as binary data follows the JSON part, with its size in it.",
        BINARY,
        "extension:binary_tensor_data",
        Z,
    ),
    must(
        "OIP-BINARY-003",
        "binary_data_output of the request asks for all outputs as binary data.",
        BINARY,
        "extension:binary_tensor_data",
        Z,
    ),
    must(
        "OIP-BINARY-004",
        "One request may have JSON data and binary data for different inputs.",
        BINARY,
        "extension:binary_tensor_data",
        Z,
    ),
    must(
        "OIP-BINARY-005",
        "Elements of BYTES are preceded by their length in four bytes, little-endian.",
        BINARY,
        "extension:binary_tensor_data",
        Z,
    ),
    must("OIP-RPC-001", "ModelInfer takes and gives raw tensor contents.", OIP_GRPC, "grpc", Z),
    must("OIP-RPC-002", "ModelInfer takes typed tensor contents.", OIP_GRPC, "grpc", Z),
    must(
        "OIP-RPC-003",
        "The answer over gRPC has the id of the request, the model's name and version.",
        OIP_GRPC,
        "grpc",
        Z,
    ),
    must(
        "OIP-RPC-004", "Only the outputs that are asked for are in the answer over gRPC.", OIP_GRPC, "grpc", Z
    ),
    must(
        "OIP-STREAM-001",
        "A decoupled model answers one request of a stream as often as it likes.",
        SERVER_PROTOCOLS,
        "grpc",
        Z,
    ),
    must(
        "OIP-CLASS-001",
        "A classification is the highest values with their places.",
        CLASSIFICATION,
        "extension:classification",
        Z,
    ),
    must(
        "OIP-CLASS-002",
        "A classification has the labels of the output's label file.",
        CLASSIFICATION,
        "extension:classification",
        Z,
    ),
    must("OIP-SHM-001", "An input is read from a region of system shared memory.", SHARED_MEMORY, *SHM),
    must("OIP-SHM-002", "An output is written to a region of system shared memory.", SHARED_MEMORY, *SHM),
    must(
        "OIP-SHM-003",
        "The status names the regions that are registered, with key, offset and size.",
        SHARED_MEMORY,
        *SHM,
    ),
    must("OIP-SHM-004", "A region can be used over gRPC as over HTTP.", SHARED_MEMORY, "grpc", *SHM),
    must("OIP-SHM-005", "A region that was unregistered is not used any more.", SHARED_MEMORY, *SHM),
    must(
        "OIP-SHM-006",
        "A region of a key that does not exist cannot be registered.",
        SHARED_MEMORY,
        "extension:system_shared_memory",
    ),
    must(
        "OIP-SEQ-001",
        "Requests of one sequence reach one state of the model.",
        SEQUENCE,
        "extension:sequence",
        Z,
    ),
    must("OIP-SEQ-002", "Two sequences do not share a state.", SEQUENCE, "extension:sequence", Z),
    must(
        "OIP-SEQ-003",
        "A request of a sequence that did not start is refused.",
        SEQUENCE,
        "extension:sequence",
        Z,
    ),
    should(
        "OIP-GEN-001",
        "The generate endpoint takes inputs as JSON fields, and answers outputs as such.",
        GENERATE,
        Z,
    ),
    should(
        "OIP-GEN-002",
        "The generate_stream endpoint answers each response as an event.",
        GENERATE,
        Z,
    ),
)
