"""The files of one model, as they will lie in a Triton model repository.

Everything here is pure: a layout names source files, it does not open them. `Layout.check` refuses
beforehand what Triton refuses without a reason, ignores in silence, or does not survive: some model
directories hang a load for ever or end the server process. The rules were measured on
tritonserver 2.51; each is stated where it is checked.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any, Final

from mlflow_triton.errors import InvalidModel, InvalidName
from mlflow_triton.options import HIGHEST_VERSION
from mlflow_triton.repository import config as model_config
from mlflow_triton.repository.record import RECORD_NAME

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from mlflow_triton.repository.config import ModelConfig

__all__ = ["CONFIG_FILE", "HIGHEST_VERSION", "KEPT", "Layout", "check_name", "lay_out"]

CONFIG_FILE: Final = "config.pbtxt"
#: Where a deployment keeps the one before it, in its own directory. Triton ignores it there as it is no version
#: number; it comes last in ASCII order, as Triton looks into the first directory for what kind of model this is.
KEPT: Final = "~previous"

_NAME: Final = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,199}")
_VERSION: Final = re.compile(r"0|[1-9][0-9]{0,18}")
# C's integer parser, which Triton uses on every directory that does not begin with 0: it takes
# "2.bak" for version 2, and aborts the server on a number out of range.
_LIKE_A_VERSION: Final = re.compile(r"[ \t\n\v\f\r]*[+-]?[0-9]")
# The stub process of a Python(-based) model is started through a command line.
_SAFE_FILENAME: Final = re.compile(r"[A-Za-z0-9_./-]+")
_MOST_PROBLEMS: Final = 10

# What a backend opens in a version directory when default_model_filename does not say.
_MODEL_FILES: Final[Mapping[str, tuple[str, ...]]] = {
    "onnxruntime": ("model.onnx",),
    "python": ("model.py",),
    "pytorch": ("model.pt", "model.pt2", "model.py"),
    "tensorrt": ("model.plan",),
}
_PLATFORM_MODEL_FILES: Final[Mapping[str, tuple[str, ...]]] = {
    "onnxruntime_onnx": ("model.onnx",),
    "pytorch_libtorch": ("model.pt",),
    "tensorflow_graphdef": ("model.graphdef",),
    "tensorflow_savedmodel": ("model.savedmodel",),
    "tensorrt_plan": ("model.plan",),
}
# The files by which Triton completes a configuration that names no backend.
_RECOGNISED: Final = (
    "model.onnx",
    "model.py",
    "model.plan",
    "model.pt",
    "model.savedmodel",
    "model.graphdef",
    "model.xml",
)


def check_name(name: Any) -> None:
    """Refuse a deployment name that Triton could not serve, or that leaves the model repository.

    The name is the model's directory and a part of Triton's URLs. Triton matches URLs without
    decoding them, follows ``../`` over gRPC, and ends on a space in some calls; so a name holds 1 to
    200 ASCII letters, digits, ``_``, ``.`` and ``-``, and begins with a letter, a digit or ``_``.

    Args:
        name: The name, as the caller wrote it.

    Raises:
        InvalidName: The name breaks the rule; the message says where.
    """
    if isinstance(name, str) and _NAME.fullmatch(name):
        return
    rule = (
        "Triton serves a deployment under its name as a directory and a part of a URL: use 1 to 200 ASCII "
        "letters, digits, '_', '.' and '-', beginning with a letter, a digit or '_'. Nothing has been changed."
    )
    if not isinstance(name, str):
        raise InvalidName(f"A deployment name must be text, not {type(name).__name__}. {rule}")
    if not name:
        raise InvalidName(f"The deployment name is empty. {rule}")
    shown = ascii(name) if len(name) <= 80 else f"{name[:80]!a}…"
    wrong = next((c for c in name if not re.fullmatch(r"[A-Za-z0-9_.-]", c)), None)
    if wrong is not None:
        problem = f"holds {'a space' if wrong == ' ' else ascii(wrong)}"
    elif len(name) > 200:
        problem = f"is {len(name)} characters long"
    else:
        problem = f"begins with {name[0]!r}"
    raise InvalidName(f"The deployment name {shown} {problem}. {rule}")


@dataclass(frozen=True, slots=True)
class Layout:
    """The content of one model directory; made by `lay_out`.

    Attributes:
        origin: Where the model comes from, for messages: a URI or a path.
        files: Path inside the model directory -> file on this machine; with neither config.pbtxt nor
            the record.
        directories: Directories without files that belong to the model, such as a version of an ensemble.
        config_text: The bytes of the config.pbtxt to be written; None for none, which leaves the whole
            configuration to Triton's auto-completion.
        config: `config_text`, parsed; empty where there is none.
        unusual: Entries that are no plain files or directories -> what they are.
    """

    origin: str
    files: Mapping[PurePosixPath, Path]
    directories: frozenset[PurePosixPath]
    config_text: bytes | None
    config: ModelConfig
    unusual: Mapping[PurePosixPath, str]

    @property
    def versions(self) -> tuple[int, ...]:
        """The version numbers that have a directory, ascending."""
        return tuple(sorted(int(name) for name in self._top_directories() if _is_version(name)))

    def renumbered(self, old: int, new: int) -> Layout:
        """Return the same layout with another number for one of the versions."""

        def place(path: PurePosixPath) -> PurePosixPath:
            return PurePosixPath(str(new), *path.parts[1:]) if path.parts[:1] == (str(old),) else path

        files = {place(path): source for path, source in self.files.items()}
        return replace(self, files=files, directories=frozenset(map(place, self.directories)))

    def check(self, name: str | None) -> None:
        """Refuse what Triton could not serve, every problem at once, before anything is touched.

        Args:
            name: The deployment's name; None where it is not known yet (when publishing), which leaves
                out only the rule that the configuration's name equals it.

        Raises:
            InvalidModel: The model cannot be served; the message lists the problems, ten at most.
        """
        problems = [
            *self._entries(),
            *self._version_directories(),
            *model_config.check(self.config, name=name, versions=self.versions or None),
            *self._model_files(name),
            *self._named_files(),
        ]
        if not problems:
            return
        more = len(problems) - _MOST_PROBLEMS
        listed = "; ".join(problems[:_MOST_PROBLEMS]) + (f"; and {more} more" if more > 0 else "")
        raise InvalidModel(
            f"Triton could not serve {_printable(self.origin)}: {_printable(listed)}. "
            "Nothing has been changed; correct the model and publish it again."
        )

    def _entries(self) -> Iterator[str]:
        for path, kind in sorted(self.unusual.items()):
            yield f"{path} is {kind}: put a plain file or directory there (cp -rL copies what links lead to)"
        for path in sorted({*self.files, *self.directories}):
            if path.is_absolute() or ".." in path.parts:
                yield f"{path} leads out of the model directory: remove it"
            elif not str(path).isprintable():
                yield f"the name {str(path)!a} has characters that cannot be written down: rename it"
        if PurePosixPath(RECORD_NAME) in self.files:
            yield f"it holds {RECORD_NAME}, where the plugin keeps the record of a deployment: remove it"
        if CONFIG_FILE in self._top_directories():
            yield f"{CONFIG_FILE} is a directory: put the file there"
        if any(path.parts[:1] == (KEPT,) for path in (*self.files, *self.directories, *self.unusual)):
            yield f"it holds {KEPT}, where the plugin keeps a deployment's previous model: remove it"

    def _version_directories(self) -> Iterator[str]:
        odd = sorted(n for n in self._top_directories() if _LIKE_A_VERSION.match(n) and not _is_version(n))
        for name in odd:
            yield (
                f"the directory {name!r} is read by Triton as a version or dropped in silence, and can end "
                f"the server: name a version directory with a plain number of 0 to {HIGHEST_VERSION} without "
                "leading zeros, and others beginning with a letter"
            )
        if self.versions or odd:
            return
        others = sorted(self._top_directories())
        found = f"the directories it has are {', '.join(others[:5])}" if others else "it has no directories"
        inner = {
            p.parts[0]
            for p in self.files
            if len(p.parts) > 1 and (p.parts[1] == CONFIG_FILE or _is_version(p.parts[1]))
        }
        remedy = (
            f"give the directory of one model, such as {min(inner)!r} in it"
            if inner
            else "put the model's files in a directory named 1"
        )
        yield f"there is no version directory ({found}): {remedy}"

    def _model_files(self, name: str | None) -> Iterator[str]:
        config = self.config
        if model_config.is_ensemble(config):
            return
        if not config.backend and not config.platform:
            yield from self._recognised(name)
            return
        backend, default = config.backend, config.default_model_filename
        maybe_python = backend == "python" or _model_files(config) == ("model.onnx",)
        if default and maybe_python and not _SAFE_FILENAME.fullmatch(default):
            yield (
                f"default_model_filename {default!r} holds characters on which the load of a Python-based model "
                "hangs for ever: use ASCII letters, digits, '_', '-', '.' and '/'"
            )
        expected = (default,) if default else _model_files(config)
        if not expected or (config.cc_model_filenames and backend != "python"):
            return
        present = self._present()
        for version in model_config.served(config, self.versions):
            if not any(PurePosixPath(str(version), file) in present for file in expected):
                yield (
                    f"version {version} has no {' or '.join(expected)}, which the "
                    f"{backend or config.platform} {'backend' if backend else 'platform'} opens: "
                    "add the file, or name it in default_model_filename"
                )

    def _recognised(self, name: str | None) -> Iterator[str]:
        """Follow Triton's search for a backend, which the configuration does not name.

        It goes by default_model_filename; else by the files in one directory, the first in ASCII order
        whatever its name; else by the model's name, in the form NAME.BACKEND.
        """
        if not self.versions:
            return
        remedy = f'write backend: "…" in {CONFIG_FILE}'
        first, present = min(self._top_directories()), self._present()
        default = self.config.default_model_filename
        if default and default not in _RECOGNISED:
            yield f"{CONFIG_FILE} names no backend, and Triton finds none by the file {default!r}: {remedy}"
            return
        known = [default] if default else [f for f in _RECOGNISED if PurePosixPath(first, f) in present]
        for version in model_config.served(self.config, self.versions) if known else ():
            if not any(PurePosixPath(str(version), file) in present for file in known):
                yield f"version {version} has no {' or '.join(known)}: add the file"
        # A name that is not known yet may have that form.
        if not known and name is not None and "." not in name:
            yield (
                f"{CONFIG_FILE} names no backend, and the directory {first!r}, the first, holds none of the files "
                f"by which Triton finds one ({', '.join(_RECOGNISED)}): {remedy}"
            )

    def _named_files(self) -> Iterator[str]:
        """Files that the configuration names relative to the model directory, or to a version of it."""
        config = self.config
        for field, file in [
            ("default_model_filename", config.default_model_filename),
            *((f"cc_model_filenames {key!r}", file) for key, file in config.cc_model_filenames.items()),
        ]:
            if PurePosixPath(file).is_absolute() or ".." in PurePosixPath(file).parts:
                yield f"{field} names {file!r}, outside the version's directory: move it inside"
        named = [("output", tensor.name, "", tensor.label_filename) for tensor in config.output]
        for warmup in config.model_warmup:
            named += [
                ("model_warmup input", key, "warmup", tensor.input_data_file)
                for key, tensor in warmup.inputs.items()
            ]
        for state in config.sequence_batching.state:
            named += [
                ("initial_state", initial.name, "initial_state", initial.data_file)
                for initial in state.initial_state
            ]
        for kind, key, folder, file in named:
            path = PurePosixPath(folder, file)
            if not file:
                continue
            if path.is_absolute() or ".." in path.parts:
                yield f"{kind} {key!r} names the file {file!r}, outside the model directory: move it inside"
            elif path not in self.files:
                yield f"{kind} {key!r} names the file {str(path)!r}, which is not there: add it"

    def _top_directories(self) -> set[str]:
        return {path.parts[0] for path in self.files if len(path.parts) > 1} | {
            path.parts[0] for path in self.directories if path.parts
        }

    def _present(self) -> set[PurePosixPath]:
        """Return the files and the directories that hold any: some models are directories."""
        return {path for file in self.files for path in (file, *file.parents)}


def lay_out(
    files: Mapping[PurePosixPath, Path],
    *,
    origin: str,
    config_text: bytes | None = None,
    directories: frozenset[PurePosixPath] = frozenset(),
    unusual: Mapping[PurePosixPath, str] | None = None,
) -> Layout:
    """Make the layout of one model from the places of its files.

    An ensemble without a version directory gets version 1: the directory is empty by nature, and
    MLflow's remote artifact stores keep no empty directories.

    Args:
        files: Path inside the model directory -> file on this machine; without config.pbtxt.
        origin: Where the model comes from, for messages: a URI or a path.
        config_text: The content of config.pbtxt, or None for none.
        directories: Directories without files that belong to the model.
        unusual: Symbolic links and special files, with what they are; `Layout.check` refuses them.

    Returns:
        The layout; not yet checked.

    Raises:
        InvalidModelConfig: `config_text` does not follow Triton's schema.
    """
    config = model_config.parse(config_text or b"", origin=f"{origin}/{CONFIG_FILE}")
    layout = Layout(origin, dict(files), directories, config_text, config, dict(unusual or {}))
    if model_config.is_ensemble(config) and not layout.versions:
        return replace(layout, directories=directories | {PurePosixPath("1")})
    return layout


def _is_version(name: str) -> bool:
    return bool(_VERSION.fullmatch(name)) and int(name) <= HIGHEST_VERSION


def _model_files(config: ModelConfig) -> tuple[str, ...]:
    if config.backend in ("", "tensorflow"):
        return _PLATFORM_MODEL_FILES.get(config.platform, ())
    return _MODEL_FILES.get(config.backend, ())


def _printable(text: str) -> str:
    return "".join(c if c.isprintable() else ascii(c)[1:-1] for c in text)
