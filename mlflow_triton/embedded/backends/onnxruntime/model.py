"""Triton's ``onnxruntime`` backend, written for its Python backend.

Triton finds this file as ``<backend directory>/onnxruntime/model.py`` and runs it in one process per model
instance. A configuration means here what it means to NVIDIA's C++ backend of the same name
(https://github.com/triton-inference-server/onnxruntime_backend, ``src/onnxruntime.cc``), whose rules and
messages are followed: a model that loads here loads there. Where this backend cannot do what that one can
(TensorRT, OpenVINO, ragged batches, implicit sequence state), the load is refused with that reason.

Only the standard library, numpy, onnxruntime and Triton's own module may be imported, and onnxruntime only
where it is needed: the import is a good part of a load's time.
"""

from __future__ import annotations

import json
import os
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import triton_python_backend_utils as pb_utils

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

    import numpy.typing as npt

    Array = npt.NDArray[Any]
    Config = dict[str, Any]

_DATATYPES = {
    "tensor(bool)": "TYPE_BOOL",
    "tensor(uint8)": "TYPE_UINT8",
    "tensor(uint16)": "TYPE_UINT16",
    "tensor(uint32)": "TYPE_UINT32",
    "tensor(uint64)": "TYPE_UINT64",
    "tensor(int8)": "TYPE_INT8",
    "tensor(int16)": "TYPE_INT16",
    "tensor(int32)": "TYPE_INT32",
    "tensor(int64)": "TYPE_INT64",
    "tensor(float16)": "TYPE_FP16",
    "tensor(float)": "TYPE_FP32",
    "tensor(double)": "TYPE_FP64",
    "tensor(string)": "TYPE_STRING",
}
_GRAPH_LEVELS = {-1: "ORT_ENABLE_BASIC", 1: "ORT_ENABLE_EXTENDED", 2: "ORT_DISABLE_ALL"}
_EXECUTION_MODES = {0: "ORT_SEQUENTIAL", 1: "ORT_PARALLEL"}
_CUDA = "CUDAExecutionProvider"


class TritonPythonModel:
    """One instance of one model: Triton's interface to this backend."""

    @staticmethod
    def auto_complete_config(auto_complete_model_config: Any) -> Any:
        """Complete a model configuration that lacks its inputs or its outputs.

        As in NVIDIA's backend, one that names at least one of each is left alone, its ``max_batch_size``
        included. Triton takes nothing else from here: the instance groups are settled before.

        Args:
            auto_complete_model_config: Triton's ``ModelConfig``, changed in place.

        Returns:
            The same object.

        Raises:
            TritonModelException: The model cannot be opened, or cannot have a configuration.
        """
        config: Config = auto_complete_model_config.as_dict()
        if config["input"] and config["output"]:
            return auto_complete_model_config
        on_gpu = any(group["kind"] == "KIND_GPU" for group in config["instance_group"])
        signature = _signature(config, _open_session(config, "GPU" if on_gpu else "CPU", 0))
        _complete_batching(config, signature)
        for key, specs in (("input", signature.inputs), ("output", signature.outputs)):
            if not config[key]:
                batched = config["max_batch_size"] > 0
                config[key] = [_describe(spec, batched=batched) for spec in specs.values()]
        return auto_complete_model_config

    def initialize(self, args: dict[str, str]) -> None:
        """Open the model and hold its configuration against it.

        Args:
            args: Triton's description of this instance: ``model_config`` (JSON), ``model_instance_kind``,
                ``model_instance_device_id`` and others.

        Raises:
            TritonModelException: The model cannot be opened, or its configuration does not fit it.
        """
        config: Config = json.loads(args["model_config"])
        device = int(args["model_instance_device_id"])
        self._session = _open_session(config, args["model_instance_kind"], device)
        signature = _signature(config, self._session)
        if problems := [*_misfits(config, signature)]:
            raise _refusal(config, "; ".join([*problems, f"the model has {signature}"]))
        self._specs = {**signature.initializers, **signature.inputs}
        self._output_dims = {output["name"]: _dims(output) for output in config["output"]}
        self._batched = config["max_batch_size"] > 0

    def execute(self, requests: Sequence[Any]) -> list[Any]:
        """Answer the requests, in one run of the model where they can share one.

        Args:
            requests: Triton's ``InferenceRequest`` objects.

        Returns:
            An ``InferenceResponse`` for each. A request that fails carries ONNX Runtime's reason, and does
            not touch the others.
        """
        if self._batched and len(requests) > 1:
            try:
                return self._answer_together(requests)
            except Exception as error:  # noqa: BLE001 - any of the requests may be at fault: one by one tells which
                pb_utils.Logger.log_verbose(
                    f"{len(requests)} requests cannot share a run, running each: {_reason(error)}"
                )
        return [self._answer(request) for request in requests]

    def finalize(self) -> None:
        """Free the model's memory when Triton unloads it."""
        del self._session

    def _answer_together(self, requests: Sequence[Any]) -> list[Any]:
        feeds = [self._feed(request) for request in requests]
        if any(feed.keys() != feeds[0].keys() for feed in feeds):
            raise ValueError("the requests have different inputs")
        wanted = [request.requested_output_names() for request in requests]
        outputs = self._run(
            set().union(*wanted),
            {name: np.concatenate([feed[name] for feed in feeds]) for name in feeds[0]},
        )
        sizes = [len(next(iter(feed.values()))) for feed in feeds]
        for name, array in outputs.items():
            if array.shape[:1] != (sum(sizes),):
                raise ValueError(
                    f"output '{name}' is not a batch: {sum(sizes)} rows in, shape {array.shape} out"
                )
        split = {name: np.split(array, np.cumsum(sizes)[:-1]) for name, array in outputs.items()}
        return [
            self._response({name: split[name][index] for name in names}) for index, names in enumerate(wanted)
        ]

    def _answer(self, request: Any) -> Any:
        try:
            return self._response(self._run(request.requested_output_names(), self._feed(request)))
        except Exception as error:  # noqa: BLE001 - onnxruntime's errors have no common base; the client gets the reason
            return pb_utils.InferenceResponse(error=pb_utils.TritonError(_reason(error)))

    def _feed(self, request: Any) -> dict[str, Array]:
        return {tensor.name(): self._as_array(tensor) for tensor in request.inputs()}

    def _as_array(self, tensor: Any) -> Array:
        array: Array = tensor.as_numpy()
        return array if self._specs[tensor.name()].shape else array.reshape(())

    def _run(self, names: Iterable[str], feed: dict[str, Array]) -> dict[str, Array]:
        wanted = list(names)
        ready = {
            name: _strings(array) if array.dtype == np.object_ else array for name, array in feed.items()
        }
        return dict(zip(wanted, self._session.run(wanted, ready), strict=True))

    def _response(self, outputs: dict[str, Array]) -> Any:
        return pb_utils.InferenceResponse(
            [
                pb_utils.Tensor(name, array if array.ndim else array.reshape(self._output_dims[name]))
                for name, array in outputs.items()
            ]
        )


class _Spec(NamedTuple):
    """One input or output of the model; a dimension of any size is -1."""

    name: str
    datatype: str
    shape: tuple[int, ...]

    def __str__(self) -> str:
        return f"{self.name} {self.datatype} {list(self.shape)}"


class _Signature(NamedTuple):
    """What the model takes and gives, by name."""

    inputs: dict[str, _Spec]
    initializers: dict[str, _Spec]  # inputs with a default value
    outputs: dict[str, _Spec]

    def __str__(self) -> str:
        kinds = zip(("inputs", "optional inputs", "outputs"), self, strict=True)
        return "; ".join(f"{kind} {', '.join(map(str, specs.values()))}" for kind, specs in kinds if specs)


def _ort() -> Any:
    import onnxruntime  # noqa: PLC0415 - see the module's docstring

    return onnxruntime


def _refusal(config: Config, reason: str) -> Exception:
    error: Exception = pb_utils.TritonModelException(f"unable to load model '{config['name']}': {reason}")
    return error


def _reason(error: Exception) -> str:
    if isinstance(error, UnicodeDecodeError):
        return "a string in an output is not UTF-8, which ONNX Runtime's Python interface cannot return"
    return re.sub(r"^\[ONNXRuntimeError\] : (\d+) : \w+ : ", r"onnx runtime error \1: ", str(error))


def _open_session(config: Config, kind: str, device: int) -> Any:
    path = Path(pb_utils.get_model_dir(), config["default_model_filename"])
    if path.is_dir():
        path /= "model.onnx"
    options = _session_options(config)
    providers = _providers(config, kind, device)
    try:
        session = _ort().InferenceSession(path, options, providers=providers)
    except Exception as error:  # noqa: BLE001 - onnxruntime's errors have no common base
        raise _refusal(config, _reason(error)) from None
    session.disable_fallback()
    if len(providers) > len(session.get_providers()):
        raise _refusal(config, f"{_CUDA} did not start on GPU {device}; the server's log has its reason")
    return session


def _session_options(config: Config) -> Any:
    ort = _ort()
    options = ort.SessionOptions()
    level = int(config["optimization"].get("graph", {}).get("level", 0))
    options.graph_optimization_level = getattr(
        ort.GraphOptimizationLevel, _GRAPH_LEVELS.get(level, "ORT_ENABLE_ALL")
    )
    mode = _parameter(config, "execution_mode")
    if mode not in _EXECUTION_MODES:
        raise _refusal(config, f"parameter 'execution_mode' is 0 (sequential) or 1 (parallel), not {mode}")
    options.execution_mode = getattr(ort.ExecutionMode, _EXECUTION_MODES[mode])
    options.intra_op_num_threads = max(0, _parameter(config, "intra_op_thread_count"))
    options.inter_op_num_threads = max(0, _parameter(config, "inter_op_thread_count"))
    return options


def _parameter(config: Config, key: str) -> int:
    text = config["parameters"].get(key, {}).get("string_value", "0")
    try:
        return int(text)
    except ValueError:
        raise _refusal(config, f"parameter '{key}' is a whole number, not '{text}'") from None


def _providers(config: Config, kind: str, device: int) -> list[Any]:
    accelerators = config["optimization"].get("execution_accelerators", {})
    asked = [accelerator["name"] for accelerator in accelerators.get("cpu_execution_accelerator", [])]
    providers: list[Any] = ["CPUExecutionProvider"]
    if kind == "GPU":
        if _CUDA not in _ort().get_available_providers():
            raise _refusal(
                config,
                f"its instance group is KIND_GPU, and this server's ONNX Runtime {_ort().__version__} has no {_CUDA}: "
                "install onnxruntime-gpu into the server's environment, or write instance_group [{ kind: KIND_CPU }]",
            )
        _ort().preload_dlls()
        cuda = {"device_id": str(device)}
        for accelerator in accelerators.get("gpu_execution_accelerator", []):
            if accelerator["name"] == "cuda":
                cuda = {**accelerator.get("parameters", {}), **cuda}
            else:
                asked.append(accelerator["name"])
        providers.insert(0, (_CUDA, cuda))
    if asked:
        raise _refusal(config, f"this backend has no execution accelerator '{asked[0]}'; leave it out")
    return providers


def _signature(config: Config, session: Any) -> _Signature:
    def specs(arguments: Iterable[Any]) -> dict[str, _Spec]:
        found = {}
        for argument in arguments:
            if argument.type not in _DATATYPES:
                raise _refusal(
                    config,
                    f"'{argument.name}' is a {argument.type} in the model, which this backend cannot serve: export "
                    f"the model with inputs and outputs that are each one of {', '.join(_DATATYPES)}",
                )
            shape = tuple(size if isinstance(size, int) else -1 for size in argument.shape)
            found[argument.name] = _Spec(argument.name, _DATATYPES[argument.type], shape)
        return found

    return _Signature(
        specs(session.get_inputs()),
        specs(session.get_overridable_initializers()),
        specs(session.get_outputs()),
    )


def _complete_batching(config: Config, signature: _Signature) -> None:
    specs = [*signature.inputs.values(), *signature.outputs.values()]
    if all(spec.shape[:1] == (-1,) for spec in specs):
        config["max_batch_size"] = config["max_batch_size"] or _default_max_batch_size()
        if config["max_batch_size"] > 1 and not {"dynamic_batching", "sequence_batching"} & config.keys():
            config["dynamic_batching"] = {}
    elif config["max_batch_size"]:
        raise _refusal(
            config,
            f"model does not support batching while max_batch_size {config['max_batch_size']} is specified "
            f"(batching needs a variable first dimension everywhere); the model has {signature}",
        )


def _default_max_batch_size() -> int:
    """Read what Triton hands to C++ backends and keeps from Python ones: its own command line, or 4."""
    command = Path(f"/proc/{os.getppid()}/cmdline").read_bytes().decode()
    option = r"--backend-config[=\0](onnxruntime,)?default-max-batch-size=(-?\d+)\0"
    sizes = {match[1]: int(match[2]) for match in re.finditer(option, command)}
    return max(0, sizes.get("onnxruntime,", sizes.get(None, 4)))


def _describe(spec: _Spec, *, batched: bool) -> Config:
    dims = [*(spec.shape[1:] if batched else spec.shape)]
    described: Config = {"name": spec.name, "data_type": spec.datatype, "dims": dims or [1]}
    if batched and not dims:
        described["reshape"] = {"shape": []}
    return described


def _misfits(config: Config, signature: _Signature) -> Iterator[str]:
    sequence = config.get("sequence_batching", {})
    for key, section in (("batch_input", config), ("batch_output", config), ("state", sequence)):
        if section.get(key):
            yield f"this backend does not support {key}"
    controls = [control["name"] for control in sequence.get("control_input", [])]
    for name in controls:
        if name not in signature.inputs:
            yield f"configuration specified sequence control '{name}', but model does not provide that input"
    given = {*controls, *(io["name"] for io in config["input"])}
    for spec in signature.inputs.values():
        if spec.name not in given:
            yield f"configuration lacks the input {spec}"
    for io in config["input"]:
        yield from _input_misfits(config, io, signature)
    for io in config["output"]:
        if io["name"] in signature.outputs:
            yield from _misfit(config, io, signature.outputs[io["name"]], exact=True)
        else:
            allowed = ", ".join(signature.outputs)
            yield f"unexpected inference output '{io['name']}', allowed outputs are: {allowed}"


def _input_misfits(config: Config, io: Config, signature: _Signature) -> Iterator[str]:
    name = io["name"]
    takes = {**signature.inputs, **signature.initializers}
    if name not in takes:
        yield f"unexpected inference input '{name}', allowed inputs are: {', '.join(takes)}"
        return
    yield from _misfit(config, io, takes[name], exact=False)
    has_default = name in signature.initializers
    if io["optional"] != has_default:
        yield f"input '{name}' is {'optional' if has_default else 'required'} in the model"
    if io["optional"] and config["max_batch_size"]:
        yield f"optional input '{name}' is not supported for models that support batching"
    if io["allow_ragged_batch"]:
        yield f"this backend does not support allow_ragged_batch (input '{name}')"


def _misfit(config: Config, io: Config, spec: _Spec, *, exact: bool) -> Iterator[str]:
    if io["data_type"] != spec.datatype:
        yield (
            f"configuration expects datatype {io['data_type']} for '{spec.name}', model provides {spec.datatype}"
        )
    dims = _dims(io)
    batched = config["max_batch_size"] > 0
    if batched and spec.shape[:1] != (-1,):
        yield (
            f"tensor '{spec.name}': for the model to support batching (max_batch_size > 0) the shape should have at "
            f"least 1 dimension and the first dimension must be -1; but shape expected by the model is {[*spec.shape]}"
        )
        return
    shape = [-1, *dims] if batched else dims
    if spec.shape:
        fits = len(shape) == len(spec.shape) and all(
            size == given or (size == -1 and not exact) for size, given in zip(spec.shape, shape, strict=True)
        )
    else:
        fits = all(size == 1 for size in shape)
    if not fits:
        batch = " (its first dimension is the batch, because max_batch_size > 0)" if batched else ""
        yield (
            f"tensor '{spec.name}': the model expects {len(spec.shape)} dimensions (shape {[*spec.shape]}) "
            f"but the model configuration specifies {len(shape)} dimensions (shape {shape}){batch}"
        )


def _dims(io: Config) -> list[int]:
    return [*map(int, io["reshape"]["shape"] if "reshape" in io else io["dims"])]


def _strings(array: Array) -> Array:
    """Give ONNX Runtime text, or bytes where they are not UTF-8: those it reads up to their first NUL."""
    items = array.reshape(-1).tolist()
    try:
        decoded = [item.decode() for item in items]
    except UnicodeDecodeError:
        return array.astype(
            f"S{max(map(len, items)) + 1}"
        )  # it reads on into the next item if there is no NUL
    return np.array(decoded, dtype=np.object_).reshape(array.shape)
