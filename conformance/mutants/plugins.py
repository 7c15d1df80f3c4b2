"""Plugins with one defect each: this project's own, of which a part is replaced while a test runs."""

from __future__ import annotations

import itertools
import json
import os
import shutil
import time
import urllib.request
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from functools import partial, wraps
from pathlib import Path
from typing import TYPE_CHECKING, Any
from unittest import mock

import numpy as np
import pandas as pd
from mlflow.deployments import BaseDeploymentClient
from mlflow.exceptions import MlflowException

from mlflow_triton import deployments
from mlflow_triton.deployments import TritonDeploymentClient
from mlflow_triton.errors import DeploymentExists, DeploymentNotFound, InvalidParameter
from mlflow_triton.plan import Plan
from mlflow_triton.settings import Settings
from mlflow_triton.tensors.decode import TritonPredictions
from mlflow_triton_conformance import models
from mlflow_triton_conformance.catalogue.datatypes import DATATYPES
from mutants.mutant import Mutant

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping
    from contextlib import AbstractContextManager

__all__ = ["PLUGINS"]


# -- what defects are made of


def around(method: str, wrapper: Callable[..., Any]) -> Callable[[], AbstractContextManager[Any]]:
    """Replace a method of the client by a function that gets the right one first, as a bound method."""
    original = getattr(TritonDeploymentClient, method)

    @wraps(original)
    def replaced(self: Any, *arguments: Any, **named: Any) -> Any:
        return wrapper(partial(original, self), *arguments, **named)

    return lambda: mock.patch.object(TritonDeploymentClient, method, replaced)


def result(method: str, change: Callable[[Any], Any]) -> Callable[[], AbstractContextManager[Any]]:
    """Change what a method returns: in place, or by what the function returns."""

    def changed(right: Any, *arguments: Any, **named: Any) -> Any:
        returned = right(*arguments, **named)
        found = change(returned)
        return returned if found is None else found

    return around(method, changed)


def together(
    *patches: Callable[[], AbstractContextManager[Any]],
) -> Callable[[], AbstractContextManager[Any]]:
    """Make one defect of several patches."""

    @contextmanager
    def entered() -> Iterator[None]:
        if not patches:
            yield
            return
        with patches[0](), together(*patches[1:])():
            yield

    return entered


def raising(method: str) -> Callable[[], AbstractContextManager[Any]]:
    """Raise what is no MlflowException."""

    def raised(right: Any, *arguments: Any, **named: Any) -> Any:
        try:
            return right(*arguments, **named)
        except MlflowException as error:
            raise ValueError(str(error)) from None

    return around(method, raised)


def swallowing(method: str, returns: Callable[..., Any]) -> Callable[[], AbstractContextManager[Any]]:
    """Return in place of raising."""

    def swallowed(right: Any, *arguments: Any, **named: Any) -> Any:
        try:
            return right(*arguments, **named)
        except MlflowException:
            return returns(*arguments)

    return around(method, swallowed)


def told(method: str, change: Callable[[str], str]) -> Callable[[], AbstractContextManager[Any]]:
    """Raise with another message."""

    def raised(right: Any, *arguments: Any, **named: Any) -> Any:
        try:
            return right(*arguments, **named)
        except MlflowException as error:
            raise InvalidParameter(change(str(error))) from None

    return around(method, raised)


def refusing(method: str, when: Callable[..., bool]) -> Callable[[], AbstractContextManager[Any]]:
    """Refuse what is right."""

    def refused(right: Any, *arguments: Any, **named: Any) -> Any:
        if when(*arguments, **named):
            raise InvalidParameter("no")
        return right(*arguments, **named)

    return around(method, refused)


def root() -> Path:
    """Return the model repository."""
    return Path(os.environ["TRITON_MODEL_REPO"])


def unload(name: str) -> None:
    """Unload a model, and wait until it has gone."""
    url = os.environ["TRITON_URL"]
    asked = urllib.request.Request(f"{url}/v2/repository/models/{name}/unload", b"{}")  # noqa: S310 - of the suite
    with urllib.request.urlopen(asked, timeout=10):  # noqa: S310 - same
        time.sleep(0.2)


def serves(name: str) -> bool:
    """Ask whether a model is ready."""
    try:
        with urllib.request.urlopen(f"{os.environ['TRITON_URL']}/v2/models/{name}/ready", timeout=10):  # noqa: S310 - same
            return True
    except OSError:
        return False


def afterwards(method: str, change: Callable[[str], Any]) -> Callable[[], AbstractContextManager[Any]]:
    """Do something with a deployment once it stands."""

    def changed(right: Any, name: str, *arguments: Any, **named: Any) -> Any:
        returned = right(name, *arguments, **named)
        change(name)
        return returned

    return around(method, changed)


def edited(file: str, change: Callable[[bytes], bytes]) -> Callable[[str], None]:
    """Change a file of a deployment, wherever in it the file is."""

    def edit(name: str) -> None:
        for path in (root() / name).rglob(file):
            path.write_bytes(change(path.read_bytes()))

    return edit


def removed(file: str) -> Callable[[str], None]:
    """Remove a file of a deployment, or a folder of it."""

    def remove(name: str) -> None:
        for path in list((root() / name).rglob(file)):
            shutil.rmtree(path) if path.is_dir() else path.unlink()

    return remove


def reloaded(change: Callable[[dict[str, Any]], Any]) -> Callable[[str], None]:
    """Load a deployment once more, with another configuration."""

    def reload(name: str) -> None:
        url = f"{os.environ['TRITON_URL']}/v2"
        with urllib.request.urlopen(f"{url}/models/{name}/config", timeout=10) as told:  # noqa: S310 - of the suite
            config = json.load(told)
        change(config)
        body = json.dumps({"parameters": {"config": json.dumps(config)}}).encode()
        asked = urllib.request.Request(f"{url}/repository/models/{name}/load", body)  # noqa: S310 - same
        urllib.request.urlopen(asked, timeout=60).close()  # noqa: S310 - same

    return reload


def lacking_field(key: str) -> Callable[[dict[str, Any]], Any]:
    """Leave a key out."""
    return lambda config: config.pop(key, None)


def without(*keys: str) -> Callable[[], AbstractContextManager[Any]]:
    """Ignore options."""

    def ignored(right: Any, *arguments: Any, config: Mapping[str, Any] | None = None, **named: Any) -> Any:
        config = {key: value for key, value in (config or {}).items() if key not in keys}
        return right(*arguments, config=config, **named)

    return around("create_deployment", ignored)


# -- the deployments API and its commands


def nothing(*_: Any, **__: Any) -> Any:
    """Return what says nothing."""
    return {"name": "none", "flavor": "onnx"}


def no_answer(*_: Any, **__: Any) -> Any:
    """Return a prediction without outputs."""
    return TritonPredictions({"outputs": {}})


def update_instead(right: Any, name: str, model_uri: str, *arguments: Any, **named: Any) -> Any:
    """Update what exists."""
    try:
        return right(name, model_uri, *arguments, **named)
    except DeploymentExists:
        return right.args[0].update_deployment(name, model_uri, *arguments, **named)


def create_instead(right: Any, name: str, *arguments: Any, **named: Any) -> Any:
    """Create what does not exist."""
    try:
        return right(name, *arguments, **named)
    except DeploymentNotFound:
        return right.args[0].create_deployment(name, *arguments, **named)


def idle(right: Any, name: str, *_: Any, **__: Any) -> Any:
    """Change nothing."""
    return right.args[0].get_deployment(name)


def without_files(right: Any, name: str, *_: Any, **__: Any) -> None:
    """Remove the files, and let the server serve on."""
    del right
    shutil.rmtree(root() / name, ignore_errors=True)


def without_record(right: Any, name: str, *_: Any, **__: Any) -> None:
    """Unload the model and forget it, and leave its files."""
    del right
    unload(name)
    (root() / name / "mlflow-meta.json").unlink(missing_ok=True)


def strict_delete(right: Any, name: str, *arguments: Any, **named: Any) -> Any:
    """Refuse to delete what is not there."""
    if not (root() / name).exists():
        raise DeploymentNotFound(f"There is no deployment {name!r}.")
    return right(name, *arguments, **named)


def any_directory(entries: list[dict[str, Any]]) -> Any:
    """List what MLflow did not deploy."""
    names = {it["name"] for it in entries}
    others = [path.name for path in root().iterdir() if path.is_dir() and path.name not in names]
    return entries + [{"name": name, "state": "READY"} for name in others]


def without_name(found: dict[str, Any]) -> None:
    """Leave the name out."""
    found.pop("name")


def flavor_lost(found: dict[str, Any]) -> None:
    """Tell another flavor."""
    found["flavor"] = "model"


def says_so(right: Any, *arguments: Any, **named: Any) -> Any:
    """Print what is no data."""
    print("predicting")
    return right(*arguments, **named)


def short_json(right: Any, self: Any, path: str | None = None) -> Any:
    """Leave the last output out of the JSON."""
    text = json.loads(right(self))
    text["outputs"].popitem()
    if path is None:
        return json.dumps(text)
    Path(path).write_text(json.dumps(text), "utf-8")
    return None


def no_file(right: Any, self: Any, path: str | None = None) -> Any:
    """Write nothing to a file."""
    if path is None:
        return right(self)
    Path(path).write_text("", "utf-8")
    return None


def of_predictions(method: str, wrapper: Callable[..., Any]) -> Callable[[], AbstractContextManager[Any]]:
    """Replace a method of predictions."""
    original = getattr(TritonPredictions, method)

    def replaced(self: Any, *arguments: Any, **named: Any) -> Any:
        return wrapper(original, self, *arguments, **named)

    return lambda: mock.patch.object(TritonPredictions, method, replaced)


def other_help() -> AbstractContextManager[Any]:
    """Help with another text each time."""
    number = itertools.count()
    original = deployments.target_help

    def helped() -> str:
        return f"{original()}\n{next(number)}"

    return mock.patch.object(deployments, "target_help", helped)


def done_at_once(right: Any, *arguments: Any, config: Mapping[str, Any] | None = None, **named: Any) -> Any:
    """Take a dry run for an operation."""
    config = {key: value for key, value in (config or {}).items() if key != "dry_run"}
    return right(*arguments, config=config, **named)


def plan_without(key: str) -> Callable[[], AbstractContextManager[Any]]:
    """Leave the files that come out of a plan."""
    original = Plan.to_dict

    def short(self: Plan) -> dict[str, Any]:
        found = original(self)
        found["files"] = {**found["files"], key: {}}
        return found

    return lambda: mock.patch.object(Plan, "to_dict", short)


def short_method(
    self: Any, name: str = "", model_uri: str = "", flavor: str = "", config: Any = None
) -> None:
    """Take no endpoint."""


def short_function(name: str, model_uri: str, config: Any = None) -> None:
    """Take no flavor."""


VERBS = (
    "create_deployment",
    "update_deployment",
    "delete_deployment",
    "list_deployments",
    "get_deployment",
    "predict",
)

API = (
    Mutant(
        "the module has two client classes",
        ("MLF-CLIENT-001",),
        plugin=lambda: mock.patch.object(
            deployments, "Other", type("Other", (BaseDeploymentClient,), {}), create=True
        ),
    ),
    *(
        Mutant(
            f"{verb} has no argument endpoint",
            ("MLF-CLIENT-002",),
            plugin=partial(mock.patch.object, TritonDeploymentClient, verb, short_method),
        )
        for verb in VERBS
    ),
    Mutant(
        "run_local has no flavor",
        ("MLF-CLIENT-003",),
        plugin=lambda: mock.patch.object(deployments, "run_local", short_function),
    ),
    Mutant(
        "target_help says nothing",
        ("MLF-CLIENT-004",),
        plugin=lambda: mock.patch.object(deployments, "target_help", return_value=""),
    ),
    Mutant(
        "create returns another name",
        ("MLF-CREATE-001",),
        plugin=result("create_deployment", lambda it: it.update(name="other")),
    ),
    Mutant("create does not load", ("MLF-CREATE-002",), plugin=afterwards("create_deployment", unload)),
    Mutant(
        "create updates what exists", ("MLF-CREATE-003",), plugin=around("create_deployment", update_instead)
    ),
    *(
        Mutant(
            f"{verb} needs a flavor",
            (requirement,),
            plugin=refusing(f"{verb}_deployment", lambda *_, flavor=None, **__: flavor is None),
        )
        for verb, requirement in (("create", "MLF-CREATE-004"), ("update", "MLF-UPDATE-002"))
    ),
    Mutant(
        "update changes nothing", ("MLF-UPDATE-001", "MLF-CLI-006"), plugin=around("update_deployment", idle)
    ),
    Mutant(
        "update creates what does not exist",
        ("MLF-UPDATE-003",),
        plugin=around("update_deployment", create_instead),
    ),
    Mutant(
        "update needs a model",
        ("MLF-UPDATE-004",),
        plugin=refusing("update_deployment", lambda _, model_uri=None, **__: model_uri is None),
    ),
    Mutant(
        "update returns in place of an error",
        ("MLF-UPDATE-003", "MLF-UPDATE-005"),
        plugin=swallowing("update_deployment", nothing),
    ),
    Mutant(
        "delete does nothing",
        ("MLF-DELETE-001", "MLF-CLI-007"),
        plugin=around("delete_deployment", lambda *_, **__: None),
    ),
    Mutant(
        "delete removes the files alone",
        ("MLF-DELETE-003",),
        plugin=around("delete_deployment", without_files),
    ),
    Mutant(
        "delete leaves the files", ("MLF-DELETE-004",), plugin=around("delete_deployment", without_record)
    ),
    Mutant(
        "delete refuses what is not deployed",
        ("MLF-DELETE-002",),
        plugin=around("delete_deployment", strict_delete),
    ),
    Mutant(
        "list has each deployment twice",
        ("MLF-LIST-001", "MLF-CLI-002"),
        plugin=result("list_deployments", lambda it: it + it),
    ),
    Mutant(
        "list forgets the last one",
        ("MLF-LIST-001", "MLF-CLI-002"),
        plugin=result("list_deployments", lambda it: it[:-1]),
    ),
    Mutant(
        "list has what MLflow did not deploy",
        ("MLF-LIST-003",),
        plugin=result("list_deployments", any_directory),
    ),
    Mutant("get has no name", ("MLF-GET-001", "MLF-CLI-003"), plugin=result("get_deployment", without_name)),
    Mutant(
        "get returns what is not deployed", ("MLF-GET-002",), plugin=swallowing("get_deployment", nothing)
    ),
    Mutant("predict returns a dict", ("MLF-PREDICT-001",), plugin=result("predict", dict)),
    Mutant(
        "predict answers for what is not deployed",
        ("MLF-PREDICT-002",),
        plugin=swallowing("predict", no_answer),
    ),
    Mutant(
        "JSON lacks an output",
        ("MLF-PREDICT-003", "MLF-CLI-004"),
        plugin=of_predictions("to_json", short_json),
    ),
    Mutant(
        "the frame of predictions lacks an output",
        ("MLF-PREDICT-004",),
        plugin=of_predictions("get_predictions", lambda right, self, *rest: right(self, *rest).iloc[:, 1:]),
    ),
    Mutant("create tells another flavor", ("MLF-CLI-001",), plugin=result("create_deployment", flavor_lost)),
    Mutant("predict prints what is no data", ("MLF-CLI-004",), plugin=around("predict", says_so)),
    Mutant("no JSON is written to a file", ("MLF-CLI-005",), plugin=of_predictions("to_json", no_file)),
    Mutant("update tells another flavor", ("MLF-CLI-006",), plugin=result("update_deployment", flavor_lost)),
    Mutant("help has another text each time", ("MLF-CLI-008",), plugin=other_help),
    *(
        Mutant(
            f"a dry run of {verb} is none",
            ("MLF-DRYRUN-001",),
            plugin=around(f"{verb}_deployment", done_at_once),
        )
        for verb in ("create", "update", "delete")
    ),
    *(
        Mutant(f"a dry run does not tell what is {key}", ("MLF-DRYRUN-002",), plugin=plan_without(key))
        for key in ("added", "changed", "removed")
    ),
    Mutant(
        "a dry run on the command line is said to be done",
        ("MLF-DRYRUN-003",),
        plugin=lambda: mock.patch.object(deployments, "_shown", lambda plan: plan.to_dict()),
    ),
)

# -- settings, options, flavors


def parsing(
    change: Callable[[str, dict[str, str]], tuple[str, dict[str, str]]],
) -> Callable[[], AbstractContextManager[Any]]:
    """Read settings in another way."""
    original = Settings.parse

    def parse(target: str, environment: Mapping[str, str]) -> Settings:
        return original(*change(target, dict(environment)))

    return lambda: mock.patch.object(Settings, "parse", parse)


def lacking(variable: str) -> Callable[[], AbstractContextManager[Any]]:
    """Ignore an environment variable."""
    return parsing(lambda target, found: (target, {k: v for k, v in found.items() if k != variable}))


def lowest_version(right: Any, *arguments: Any, config: Mapping[str, Any] | None = None, **named: Any) -> Any:
    """Let the lowest version serve."""
    return right(*arguments, config={**(config or {}), "version_policy": "specific:1"}, **named)


def truncated(name: str) -> None:
    """Cut external data short."""
    for path in (root() / name / "1").iterdir():
        if path.name != "model.onnx":
            path.write_bytes(path.read_bytes()[:-4])


def without_key(data: bytes) -> bytes:
    """Leave a key out of a record."""
    document = json.loads(data)
    del document["flavor"]
    return json.dumps(document).encode()


def with_identity_only(entries: list[dict[str, Any]]) -> Any:
    """Leave out what NVIDIA's plugin has deployed."""
    return [
        it
        for it in entries
        if "deployment_id" in json.loads((root() / it["name"] / "mlflow-meta.json").read_text())
    ]


def uri_refused(what: Callable[[str], bool]) -> Callable[[], AbstractContextManager[Any]]:
    """Refuse model URIs."""
    return refusing("create_deployment", lambda _, model_uri, *__, **___: what(model_uri))


def naming(change: Callable[[str], str]) -> Callable[[], AbstractContextManager[Any]]:
    """Have each verb take another name than it was given."""

    def verb(right: Any, name: str, *arguments: Any, **named: Any) -> Any:
        return right(change(name), *arguments, **named)

    return together(*(around(f"{it}_deployment", verb) for it in ("create", "update", "delete", "get")))


def _before_separators(name: str) -> str:
    """Return a name up to its first separator that does not lead it."""
    return name.partition("/")[0] or name


def _printable(name: str) -> str:
    """Return a name without what cannot be printed."""
    return "".join(it for it in name if it.isprintable())


OPTIONS = {
    "MLF-OPTION-004": ("version",),
    "MLF-OPTION-005": ("max_batch_size",),
    "MLF-OPTION-006": ("instance_count", "instance_kind"),
    "MLF-OPTION-007": ("max_queue_delay_microseconds", "preferred_batch_size"),
    "MLF-OPTION-008": ("parameters",),
    "MLF-OPTION-009": ("version_policy",),
    "MLF-OPTION-010": ("warmup",),
}
SETTINGS = (
    Mutant("TRITON_URL is ignored", ("MLF-SETTING-001",), plugin=lacking("TRITON_URL")),
    Mutant("TRITON_MODEL_REPO is ignored", ("MLF-SETTING-002",), plugin=lacking("TRITON_MODEL_REPO")),
    Mutant(
        "the target URI is ignored",
        ("MLF-SETTING-003",),
        plugin=parsing(lambda target, found: (target.partition(":")[0], found)),
    ),
    *(
        Mutant(f"{' and '.join(keys)} is ignored", (requirement,), plugin=without(*keys))
        for requirement, keys in OPTIONS.items()
    ),
    *(
        Mutant(
            f"models of the flavor {flavor} are refused",
            (requirement,),
            plugin=refusing(
                "create_deployment", lambda *_, flavor=None, wanted=flavor, **__: flavor == wanted
            ),
        )
        for flavor, requirement in (("onnx", "MLF-FLAVOR-001"), ("triton", "MLF-FLAVOR-002"))
    ),
    Mutant(
        "another ONNX file is deployed",
        ("MLF-ONNX-001",),
        plugin=afterwards(
            "create_deployment", edited("model.onnx", lambda _: models.constant(8.0).SerializeToString())
        ),
    ),
    Mutant(
        "external data are cut short", ("MLF-ONNX-002",), plugin=afterwards("create_deployment", truncated)
    ),
    Mutant(
        "config.pbtxt is written anew",
        ("MLF-ONNX-004", "MLF-ONNX-005", "MLF-TRITON-002"),
        plugin=afterwards("create_deployment", edited("config.pbtxt", lambda it: it + b"# written anew\n")),
    ),
    Mutant(
        "label files are left out",
        ("MLF-ONNX-005",),
        plugin=afterwards("create_deployment", removed("names.txt")),
    ),
    Mutant(
        "no configuration is made",
        ("MLF-ONNX-006",),
        plugin=afterwards("create_deployment", edited("config.pbtxt", lambda _: b"")),
    ),
    *(
        Mutant(
            f"a configuration is loaded without its {key}",
            ("MLF-TRITON-005", "MLF-ONNX-009"),
            plugin=afterwards("create_deployment", reloaded(lacking_field(key))),
        )
        for key in ("dynamic_batching", "metric_tags")
    ),
    Mutant(
        "every version serves, whatever the policy says",
        ("MLF-TRITON-006",),
        plugin=afterwards("create_deployment", reloaded(lambda it: it.update(version_policy={"all": {}}))),
    ),
    Mutant("names are taken in small letters", ("MLF-NAME-001",), plugin=naming(str.lower)),
    Mutant("a name ends at its first separator", ("MLF-SEC-010",), plugin=naming(_before_separators)),
    Mutant("control characters are dropped from names", ("MLF-SEC-010",), plugin=naming(_printable)),
    Mutant("dots before a name are dropped", ("MLF-SEC-010",), plugin=naming(lambda it: it.lstrip("./"))),
    Mutant(
        "nested folders are left out",
        ("MLF-TRITON-001",),
        plugin=afterwards("create_deployment", removed("assets")),
    ),
    Mutant(
        "the lowest version serves", ("MLF-TRITON-003",), plugin=around("create_deployment", lowest_version)
    ),
    Mutant(
        "models:/NAME/VERSION is refused",
        ("MLF-URI-001",),
        plugin=uri_refused(lambda uri: uri.startswith("models:/") and uri.rpartition("/")[2].isdecimal()),
    ),
    Mutant("models:/NAME@ALIAS is refused", ("MLF-URI-002",), plugin=uri_refused(lambda uri: "@" in uri)),
    Mutant(
        "models:/NAME/latest is refused",
        ("MLF-URI-003",),
        plugin=uri_refused(lambda uri: uri.endswith("/latest")),
    ),
    Mutant("a path is refused", ("MLF-URI-004",), plugin=uri_refused(lambda uri: uri.startswith("/"))),
    Mutant(
        "the record has no flavor",
        ("MLF-RECORD-001",),
        plugin=afterwards("create_deployment", edited("mlflow-meta.json", without_key)),
    ),
    Mutant(
        "what NVIDIA's plugin has deployed is not listed",
        ("MLF-RECORD-004",),
        plugin=result("list_deployments", with_identity_only),
    ),
)

# -- predictions


def outputs_changed(change: Callable[[str, Any], Any]) -> Callable[[], AbstractContextManager[Any]]:
    """Change the outputs of predictions."""

    def changed(response: Any) -> None:
        outputs = response["outputs"]
        for name, array in outputs.items():
            outputs[name] = change(name, array)

    return result("predict", changed)


def last_changed(datatype: str) -> Callable[[str, Any], Any]:
    """Change the last element of a datatype's output."""

    def changed(name: str, array: Any) -> Any:
        if name != f"OUT_{datatype}" or not array.size:
            return array
        array = array.copy()
        if array.dtype == np.object_:
            array.flat[-1] = b"other" if array.flat[-1] != b"other" else b""
        else:
            array.reshape(-1).view(np.uint8)[-1] ^= 1
        return array

    return changed


def plus_one(_: str, array: Any) -> Any:
    """Answer other numbers."""
    return array + 1 if array.dtype.kind in "fiu" else array[..., :0]


def inputs_changed(change: Callable[[Any], Any]) -> Callable[[], AbstractContextManager[Any]]:
    """Change what is predicted."""

    def changed(right: Any, name: Any = None, inputs: Any = None, *arguments: Any, **named: Any) -> Any:
        return right(name, change(inputs), *arguments, **named)

    return around("predict", changed)


def arrays(change: Callable[[Any], Any]) -> Callable[[Any], Any]:
    """Change each array of a dict."""
    return lambda inputs: (
        {k: change(v) if isinstance(v, np.ndarray) else v for k, v in inputs.items()}
        if isinstance(inputs, dict)
        else inputs
    )


def refused_inputs(when: Callable[[Any], bool]) -> Callable[[], AbstractContextManager[Any]]:
    """Refuse inputs of a form."""
    return refusing("predict", lambda _=None, inputs=None, **__: when(inputs))


def values(kind: type) -> Callable[[Any], bool]:
    """Tell whether inputs are a dict with values of a kind."""
    return lambda inputs: isinstance(inputs, dict) and any(isinstance(it, kind) for it in inputs.values())


def native(array: Any) -> Any:
    """Take the bytes of a big-endian array for those of this machine."""
    return array.view(array.dtype.newbyteorder("=")) if array.dtype.byteorder == ">" else array


def in_memory(array: Any) -> Any:
    """Take the order in memory for that of the rows."""
    return array.ravel("K").reshape(array.shape) if array.ndim > 1 else array


def unreversed(array: Any) -> Any:
    """Forget that strides are negative."""
    return array[::-1] if array.strides and array.strides[0] < 0 else array


FAULTS = ("MLF-FAULT-001", "MLF-FAULT-006", "MLF-FAULT-007")
BAD_INPUTS = tuple(f"MLF-INPUT-{number:03}" for number in range(1, 15))
PREDICTIONS = (
    *(
        Mutant(
            f"the last {datatype} that predict gives is changed",
            (f"MLF-TYPE-{number:03}",),
            plugin=outputs_changed(last_changed(datatype)),
        )
        for number, datatype in enumerate(DATATYPES, start=1)
    ),
    Mutant("a dict of arrays is refused", ("MLF-FORM-001",), plugin=refused_inputs(values(np.ndarray))),
    Mutant("a dict of nested lists is refused", ("MLF-FORM-002",), plugin=refused_inputs(values(list))),
    Mutant(
        "a DataFrame is refused",
        ("MLF-FORM-004", "MLF-FORM-005"),
        plugin=refused_inputs(lambda it: isinstance(it, pd.DataFrame)),
    ),
    Mutant(
        "big-endian arrays are taken for little-endian ones",
        ("MLF-FORM-008",),
        plugin=inputs_changed(arrays(native)),
    ),
    Mutant(
        "arrays are taken as they lie in memory", ("MLF-FORM-009",), plugin=inputs_changed(arrays(in_memory))
    ),
    Mutant("negative strides are forgotten", ("MLF-FORM-010",), plugin=inputs_changed(arrays(unreversed))),
    Mutant(
        "NaN is sent as zero",
        ("MLF-TENSOR-001",),
        plugin=inputs_changed(arrays(np.nan_to_num)),
    ),
    Mutant("predict raises ValueErrors", (*BAD_INPUTS, *FAULTS), plugin=raising("predict")),
    Mutant("predict answers what does not fit", BAD_INPUTS, plugin=swallowing("predict", no_answer)),
    Mutant("predict answers other numbers", ("MLF-STANDARD-001",), plugin=outputs_changed(plus_one)),
)

# -- errors, lifecycle, concurrency, faults, security


def failing_update_unloads(right: Any, name: str, *arguments: Any, **named: Any) -> Any:
    """Unload a model whose update fails."""
    try:
        return right(name, *arguments, **named)
    except MlflowException:
        unload(name)
        raise


def never_back() -> AbstractContextManager[Any]:
    """Pass over an update to a model that was deployed before."""
    seen: set[tuple[str, str]] = set()

    def create(right: Any, name: str, model_uri: str, *arguments: Any, **named: Any) -> Any:
        seen.add((name, model_uri))
        return right(name, model_uri, *arguments, **named)

    def update(right: Any, name: str, model_uri: str, *arguments: Any, **named: Any) -> Any:
        if (name, model_uri) in seen:
            return right.args[0].get_deployment(name)
        return create(right, name, model_uri, *arguments, **named)

    return together(around("create_deployment", create), around("update_deployment", update))()


def leaves_files(right: Any, name: str, *arguments: Any, **named: Any) -> Any:
    """Leave files of the old model in the new one's directory."""
    directory = root() / name
    old = {it.relative_to(directory): it.read_bytes() for it in directory.rglob("*") if it.is_file()}
    returned = right(name, *arguments, **named)
    for path, content in old.items():
        if not (directory / path).exists():
            (directory / path).parent.mkdir(parents=True, exist_ok=True)
            (directory / path).write_bytes(content)
    return returned


def only_if_loaded(right: Any, name: str, *arguments: Any, **named: Any) -> Any:
    """Refuse what has been unloaded."""
    if not serves(name):
        raise InvalidParameter(f"{name} is not loaded")
    return right(name, *arguments, **named)


def ignores_keeping(right: Any, name: str, *arguments: Any, config: Any = None, **named: Any) -> Any:
    """Change nothing if the old model is to be kept."""
    if "keep_previous" in (config or {}):
        right.args[0]._deployer()  # noqa: SLF001 - as the right one
        return right.args[0].get_deployment(name)
    return right(name, *arguments, config=config, **named)


def busy_update() -> AbstractContextManager[Any]:
    """Refuse predictions while an update is under way."""
    running: list[str] = []

    def update(right: Any, name: str, *arguments: Any, **named: Any) -> Any:
        running.append(name)
        try:
            return right(name, *arguments, **named)
        finally:
            running.clear()

    def predict(right: Any, *arguments: Any, **named: Any) -> Any:
        if running:
            raise InvalidParameter("an update is under way")
        return right(*arguments, **named)

    return together(around("update_deployment", update), around("predict", predict))()


@contextmanager
def late_update() -> Iterator[None]:
    """Return from an update before it is done."""
    with ThreadPoolExecutor(1) as pool:

        def update(right: Any, *arguments: Any, **named: Any) -> Any:
            pool.submit(right, *arguments, **named)
            return nothing()

        with around("update_deployment", update)():
            yield


def every_prefix(right: Any, name: str, *arguments: Any, **named: Any) -> Any:
    """Delete whatever begins with the name."""
    for path in list(root().glob(f"{name}*")):
        with suppress(MlflowException):
            right(path.name, *arguments, **named)


def any_model(right: Any, name: str, *arguments: Any, **named: Any) -> Any:
    """Delete also what MLflow did not deploy."""
    try:
        return right(name, *arguments, **named)
    except DeploymentNotFound:
        shutil.rmtree(root() / name)
        return None


def follows_links(right: Any, name: str, model_uri: str, *arguments: Any, **named: Any) -> Any:
    """Copy what a model's symbolic links lead to."""
    try:
        return right(name, model_uri, *arguments, **named)
    except MlflowException:
        for link in filter(Path.is_symlink, Path(model_uri).rglob("*")):
            (root() / name).mkdir(exist_ok=True)
            (root() / name / link.name).write_bytes(link.read_bytes())
        raise


def one_bad_record(entries: list[dict[str, Any]]) -> None:
    """List nothing if a record is corrupt."""
    try:
        for path in root().glob("*/mlflow-meta.json"):
            json.loads(path.read_bytes())["flavor"]
    except (ValueError, LookupError, TypeError):
        raise InvalidParameter(f"one of {len(entries)} records is corrupt") from None


BROKEN_MODELS = tuple(f"MLF-ERROR-{number:03}" for number in (*range(1, 16), 17, 18))
LIFE = (
    Mutant(
        "create raises ValueErrors",
        (*BROKEN_MODELS, "MLF-FAULT-001", "MLF-FAULT-003"),
        plugin=raising("create_deployment"),
    ),
    Mutant(
        "create returns in place of an error",
        (*BROKEN_MODELS, "MLF-CREATE-003", "MLF-CONC-001", "MLF-SEC-001", "MLF-SEC-004"),
        plugin=swallowing("create_deployment", nothing),
    ),
    Mutant(
        "create does not tell the server's reason",
        ("MLF-ERROR-006",),
        plugin=told("create_deployment", lambda _: "failed"),
    ),
    Mutant(
        "update raises ValueErrors", ("MLF-UPDATE-003", "MLF-FAULT-003"), plugin=raising("update_deployment")
    ),
    *(
        Mutant(
            f"{verb} raises ValueErrors",
            FAULTS,
            plugin=raising(verb),
        )
        for verb in ("list_deployments", "get_deployment")
    ),
    Mutant(
        "predict does not tell the server's text",
        ("MLF-FAULT-008",),
        plugin=told("predict", lambda _: "failed"),
    ),
    Mutant(
        "an update that fails unloads the model",
        ("MLF-LIFE-001",),
        plugin=around("update_deployment", failing_update_unloads),
    ),
    Mutant("an update to an older model is passed over", ("MLF-LIFE-004",), plugin=never_back),
    Mutant(
        "an update leaves files of the old model",
        ("MLF-LIFE-005",),
        plugin=around("update_deployment", leaves_files),
    ),
    Mutant("a rollback changes nothing", ("MLF-LIFE-008",), plugin=around("rollback_deployment", idle)),
    Mutant(
        "an update with keep_previous changes nothing",
        ("MLF-LIFE-009",),
        plugin=around("update_deployment", ignores_keeping),
    ),
    Mutant(
        "what somebody unloaded cannot be updated",
        ("MLF-LIFE-013", "MLF-LIFE-015", "MLF-LIFE-016"),
        plugin=around("update_deployment", only_if_loaded),
    ),
    Mutant(
        "what somebody unloaded cannot be deleted",
        ("MLF-LIFE-014", "MLF-LIFE-015"),
        plugin=around("delete_deployment", only_if_loaded),
    ),
    Mutant("predict fails during an update", ("MLF-CONC-004",), plugin=busy_update),
    Mutant("update returns before the new model serves", ("MLF-CONC-005",), plugin=late_update),
    *(
        Mutant(
            f"{verb} returns for a name that leads out",
            ("MLF-SEC-001",),
            plugin=swallowing(f"{verb}_deployment", nothing),
        )
        for verb in ("update", "delete", "get")
    ),
    Mutant(
        "delete removes what MLflow did not deploy",
        ("MLF-SEC-005",),
        plugin=around("delete_deployment", any_model),
    ),
    Mutant(
        "a symbolic link brings a file from elsewhere",
        ("MLF-SEC-003",),
        plugin=around("create_deployment", follows_links),
    ),
    Mutant(
        "a corrupt record keeps list from listing",
        ("MLF-SEC-007",),
        plugin=result("list_deployments", one_bad_record),
    ),
    Mutant(
        "delete takes whatever begins with the name",
        ("MLF-SEC-008", "MLF-NAME-001"),
        plugin=around("delete_deployment", every_prefix),
    ),
    *(
        Mutant(
            f"{verb} tells the headers",
            ("MLF-SEC-009",),
            plugin=told(verb, lambda text: f"{text} (headers: {os.environ.get('TRITON_HEADERS')})"),
        )
        for verb in ("list_deployments", "predict")
    ),
)

PLUGINS = (*API, *SETTINGS, *PREDICTIONS, *LIFE)
