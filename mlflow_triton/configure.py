"""Deployment options to a model's configuration: merged as protobuf, what they do not name stays as it is."""

from __future__ import annotations

import errno
import logging
import re
from pathlib import Path
from typing import TYPE_CHECKING, Final

from google.protobuf import text_format
from tritonclient.grpc.model_config_pb2 import ModelInstanceGroup

from mlflow_triton.errors import InvalidOption
from mlflow_triton.repository import config as model_config
from mlflow_triton.repository.layout import CONFIG_FILE, lay_out
from mlflow_triton.small_file import LARGEST

if TYPE_CHECKING:
    from collections.abc import Iterator

    from mlflow_triton.models.contents import Contents
    from mlflow_triton.options import DeploymentOptions
    from mlflow_triton.repository.config import ModelConfig
    from mlflow_triton.repository.layout import Layout

__all__ = ["configured", "merge"]

log = logging.getLogger(__name__)

#: Backends whose models have fixed inputs and outputs, by which they complete a configuration and refuse one
#: that does not fit. A model without a backend is found to be one of theirs by its file.
GRAPH_BACKENDS: Final = frozenset({"", "onnxruntime", "openvino", "tensorflow", "tensorrt"})
WARMUP: Final = "mlflow"
_STRINGS: Final = re.compile(rb'"(?:\\.|[^"\\\n])*"|\'(?:\\.|[^\'\\\n])*\'')


def configured(contents: Contents, options: DeploymentOptions, *, name: str, origin: str) -> Layout:
    """Lay out a model with the configuration that the options ask for.

    Without options that say something else than the model does, its config.pbtxt stays byte for byte as it is.

    Args:
        contents: The model's files.
        options: They are merged into `config_file`, if there is one, else into the model's config.pbtxt, else
            into an empty one, which leaves the rest to Triton.
        name: The deployment's.
        origin: The model, for messages.

    Raises:
        InvalidOption: The options do not fit the model, or `config_file` cannot be read.
        InvalidModelConfig: A config.pbtxt does not follow Triton's schema.
    """
    text = contents.config_text if options.config_file is None else _read(options.config_file)
    layout = lay_out(
        contents.files,
        origin=origin,
        config_text=text,
        directories=contents.directories,
        unusual=contents.unusual,
    )
    merged, problems = merge(layout.config, options)
    before = model_config.check(layout.config, name=name, versions=layout.versions or None)
    after = model_config.check(merged, name=name, versions=layout.versions or None)
    if problems := [*problems, *(problem for problem in after if problem not in before)]:
        raise InvalidOption(
            f"Nothing was changed. The deployment options (-C) do not fit {origin}: {'; '.join(problems)}."
        )
    if merged == layout.config:
        return layout
    if b"#" in _STRINGS.sub(b"", text or b""):
        log.warning(
            "The comments of %s are not in the %s of %r: the options are merged into its fields.",
            options.config_file or f"{origin}/{CONFIG_FILE}",
            CONFIG_FILE,
            name,
        )
    return lay_out(
        contents.files,
        origin=origin,
        config_text=text_format.MessageToString(merged, as_utf8=True).encode(),
        directories=layout.directories,
        unusual=contents.unusual,
    )


def merge(config: ModelConfig, options: DeploymentOptions) -> tuple[ModelConfig, list[str]]:
    """Merge options into a configuration.

    Args:
        config: The configuration; it stays as it is.
        options: The options.

    Returns:
        The merged configuration, and what in it cannot be, one phrase for each problem.
    """
    merged = model_config.ModelConfig()
    merged.CopyFrom(config)
    _version_policy(merged, options)
    for key, value in (options.parameters or {}).items():
        merged.parameters[key].string_value = value
    problems = [
        *_max_batch_size(merged, options),
        *_instances(merged, options),
        *_dynamic_batching(merged, options),
        *_warmup(merged, options),
    ]
    return merged, problems


def _version_policy(config: ModelConfig, options: DeploymentOptions) -> None:
    policy = options.version_policy
    if policy is None:
        return
    config.ClearField("version_policy")
    if policy.kind == "all":
        config.version_policy.all.SetInParent()
    elif policy.kind == "latest":
        config.version_policy.latest.num_versions = policy.numbers[0]
    else:
        config.version_policy.specific.versions.extend(policy.numbers)


def _max_batch_size(config: ModelConfig, options: DeploymentOptions) -> Iterator[str]:
    size, before = options.max_batch_size, config.max_batch_size
    if size is None or size == before:
        return
    config.max_batch_size = size
    tensors = [*config.input, *config.output]
    if bool(size) == bool(before) or model_config.is_ensemble(config):
        return
    if not size and _is_completed(config):
        yield (
            "max_batch_size=0 would not last: the configuration lists no inputs and outputs, and a backend that "
            "completes it takes 0 for a size that was not given (use 1, or list them in config_file)"
        )
    elif tensors and (_backend(config) in GRAPH_BACKENDS or any(not tensor.dims for tensor in tensors)):
        shapes = ", ".join(f"{tensor.name} {list(tensor.dims)}" for tensor in tensors[:5])
        with_batch = "begin with" if before == 0 else "do not have"
        yield (
            f"max_batch_size={size}, where the configuration has {before}, changes what its dims mean: with batching "
            f"they leave the batch dimension out, and they {with_batch} it now ({shapes}); write both in config_file"
        )


def _instances(config: ModelConfig, options: DeploymentOptions) -> Iterator[str]:
    given = {
        "instance_count": options.instance_count,
        "instance_kind": options.instance_kind,
        "gpus": options.gpus,
    }
    names = ", ".join(name for name, value in given.items() if value is not None)
    if not names:
        return
    if model_config.is_ensemble(config):
        yield f"an ensemble has no instances, which {names} would be for: set them for the models that it consists of"
        return
    if len(config.instance_group) > 1:
        yield (
            f"the configuration has {len(config.instance_group)} instance groups, and {names} would be for one: "
            "write them in config_file"
        )
        return
    group = config.instance_group[0] if config.instance_group else config.instance_group.add()
    if options.instance_count is not None:
        group.count = options.instance_count
    if options.instance_kind is not None:
        group.kind = ModelInstanceGroup.Kind.Value(options.instance_kind)
    if options.gpus is not None:
        group.gpus[:] = options.gpus
    kind = ModelInstanceGroup.Kind.Name(group.kind)
    if not group.gpus or kind not in ("KIND_CPU", "KIND_MODEL"):
        return
    listed = ", ".join(map(str, group.gpus))
    if options.instance_kind is not None and options.gpus is None:
        yield f"instance_kind={kind} does not go with the GPUs that the configuration names ({listed}): add gpus=none"
    elif options.gpus is not None and options.instance_kind is None:
        yield f"gpus={listed} does not go with the configuration's {kind}: add instance_kind=KIND_GPU"


def _dynamic_batching(config: ModelConfig, options: DeploymentOptions) -> Iterator[str]:
    wanted, now = options.batches_dynamically, config.WhichOneof("scheduling_choice")
    if wanted and now not in (None, "dynamic_batching"):
        yield f"dynamic batching does not go with the configuration's {now}: write another one in config_file"
        return
    if wanted:
        config.dynamic_batching.SetInParent()
        if options.max_queue_delay_microseconds is not None:
            config.dynamic_batching.max_queue_delay_microseconds = options.max_queue_delay_microseconds
        if options.preferred_batch_size is not None:
            config.dynamic_batching.preferred_batch_size[:] = options.preferred_batch_size
    elif wanted is False and now == "dynamic_batching":
        config.ClearField("dynamic_batching")
    yield from _batches(config, options)


def _batches(config: ModelConfig, options: DeploymentOptions) -> Iterator[str]:
    """Find what the options want of dynamic batching, and would not get."""
    wanted, size = options.batches_dynamically, config.max_batch_size
    if wanted and not size and not _is_completed(config):
        yield "dynamic batching does nothing with the configuration's max_batch_size 0: add max_batch_size"
    if wanted is False and size != 1 and _is_completed(config) and not config.WhichOneof("scheduling_choice"):
        yield (
            "dynamic_batching=false would not last: the configuration lists no inputs and outputs, and a backend "
            "that completes it turns dynamic batching on (add max_batch_size=1, or list them in config_file)"
        )
    largest = max(config.dynamic_batching.preferred_batch_size, default=0)
    if 0 < size < largest and (wanted or options.max_batch_size is not None):
        yield f"preferred_batch_size {largest} is more than max_batch_size {size}"


def _warmup(config: ModelConfig, options: DeploymentOptions) -> Iterator[str]:
    if options.warmup is None:
        return
    if not options.warmup:
        config.ClearField("model_warmup")
        return
    if not config.input:
        yield (
            "warmup needs to know the model's inputs, and the configuration does not list them: list them in config_file"
        )
        return
    if model_config.is_ensemble(config):
        yield "an ensemble has no instances to warm up: set warmup for the models that it consists of"
        return
    others = [warmup for warmup in config.model_warmup if warmup.name != WARMUP]
    config.ClearField("model_warmup")
    config.model_warmup.extend(others)
    ours = config.model_warmup.add(name=WARMUP, batch_size=1, count=options.warmup)
    for tensor in config.input:
        given = ours.inputs[tensor.name]
        given.data_type = tensor.data_type
        given.dims.extend(1 if size == -1 else size for size in tensor.dims)
        given.zero_data = True


def _is_completed(config: ModelConfig) -> bool:
    """Say whether the backend completes the configuration from the model, batching included."""
    return _backend(config) in GRAPH_BACKENDS and not (config.input and config.output)


def _backend(config: ModelConfig) -> str:
    return str(config.backend or config.platform.partition("_")[0])


def _read(path: str) -> bytes:
    try:
        with Path(path).open("rb") as file:  # which may be a pipe of the shell's
            text = file.read(LARGEST + 1)
        if len(text) > LARGEST:
            raise OSError(errno.EFBIG, f"it is larger than {LARGEST >> 20} MiB", path)  # noqa: TRY301 - as the others
    except OSError as error:
        raise InvalidOption(
            f"Nothing was changed. config_file={path!r} cannot be read: {error.strerror}."
        ) from None
    model_config.parse(text, origin=path)  # with the right origin in the message
    return text
