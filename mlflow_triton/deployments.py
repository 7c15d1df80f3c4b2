"""MLflow's way in: ``mlflow deployments … -t triton`` and ``get_deploy_client("triton")``."""

from __future__ import annotations

import asyncio
import json
import os
import re
import shutil
import tempfile
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, fields
from functools import partial
from typing import TYPE_CHECKING, Any
from urllib.parse import urlencode

import click
from mlflow.deployments import BaseDeploymentClient

from mlflow_triton.errors import InvalidParameter, InvalidSetting
from mlflow_triton.options import DeploymentOptions, help_text
from mlflow_triton.settings import SETTINGS, Settings

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Generator, Mapping, Sequence

    import pandas as pd

    from mlflow_triton.deploy import Deployer, Deployment, Restored
    from mlflow_triton.errors import TritonPluginError
    from mlflow_triton.plan import Plan
    from mlflow_triton.serving.control import Control
    from mlflow_triton.serving.grpc_endpoint import GrpcEndpoint
    from mlflow_triton.serving.http import HttpEndpoint
    from mlflow_triton.serving.inference import Inference
    from mlflow_triton.serving.request import RequestOptions
    from mlflow_triton.tensors.decode import TritonPredictions

__all__ = ["TritonDeploymentClient", "run_local", "target_help"]

ASYNC_THREADS = 32
ROLLBACK_OPTIONS = ("load_timeout", "lock_timeout", "smoke_test", "dry_run")

#: Where the commands are that say what was done.
COMMANDS = ("mlflow.deployments.cli", "mlflow_triton.cli")

TARGET_HELP = """\
Deploys MLflow models of the flavors onnx and triton to an NVIDIA Triton Inference Server that runs with
--model-control-mode=explicit.

Target URI:
  triton                                    the server that the environment names
  triton://HOST:PORT[?NAME=VALUE&...]       this one; NAME is one of {parameters}

Environment variables (the target URI goes before them):
{settings}
  MLFLOW_TRACKING_URI
      Where models are tracked and registered, as for every mlflow command.

Options for create, update and run-local:
{options}

mlflow-triton doctor checks all of it.
"""


class TritonDeploymentClient(BaseDeploymentClient):
    """Deploys MLflow models to one NVIDIA Triton Inference Server.

    Making a client reads the target URI and the environment, and touches neither server nor disk.

    Args:
        target_uri: ``triton``, or ``triton://HOST:PORT[?model_repository=PATH&grpc_url=HOST:PORT]``.

    Raises:
        InvalidSetting: The target URI or an environment variable cannot be used.
    """

    def __init__(self, target_uri: str) -> None:
        super().__init__(target_uri)  # type: ignore[no-untyped-call] # MLflow's
        self._settings = Settings.parse(target_uri, os.environ)
        self._connected: tuple[HttpEndpoint, Control] | None = None
        self._inference: Inference | None = None
        self._grpc_endpoint: GrpcEndpoint | None = None
        self._pool: tuple[int, ThreadPoolExecutor] | None = None

    def create_deployment(
        self,
        name: str,
        model_uri: str,
        flavor: str | None = None,
        config: Mapping[str, Any] | None = None,
        endpoint: str | None = None,
    ) -> dict[str, Any]:
        """Deploy a model, and return once it serves.

        Args:
            name: The deployment: Triton's model name.
            model_uri: E.g. ``models:/NAME/1``, ``models:/NAME@ALIAS``, ``runs:/RUN/PATH``, a path.
            flavor: ``onnx`` or ``triton``; default: the one that the model has.
            config: See ``mlflow deployments help -t triton``.
            endpoint: Not supported: Triton has no endpoints beside its models.

        Returns:
            ``name`` and ``flavor``, and what `get_deployment` returns. With ``dry_run``, these two and what would
            change: ``model``, ``versions``, ``config``, ``options`` and ``kept`` (for a rollback) as ``[old, new]``,
            ``files`` by digest.

        Raises:
            DeploymentExists: The name is taken.
            TritonPluginError: Something else; nothing is left behind.
        """
        _no_endpoint(endpoint)
        options = DeploymentOptions.parse(config)
        if options.dry_run:
            return _shown(self._deployer().plan("create", name, _uri(model_uri), flavor, options))
        return self._details(self._deployer().create(name, _uri(model_uri), flavor, options), in_sync=True)

    def update_deployment(
        self,
        name: str,
        model_uri: str | None = None,
        flavor: str | None = None,
        config: Mapping[str, Any] | None = None,
        endpoint: str | None = None,
    ) -> dict[str, Any]:
        """Replace a deployment's model while it serves, and return once the new one does.

        Args:
            name: The deployment.
            model_uri: As for `create_deployment`. ``None``: the model stays, and only what `config` names changes.
            flavor: As for `create_deployment`; it may be another one than before.
            config: As for `create_deployment`. Options of the model that is replaced are not carried over.
            endpoint: Not supported.

        Returns:
            As `create_deployment`.

        Raises:
            DeploymentNotFound: There is none of that name.
            TritonPluginError: Something else; the old model serves on.
        """
        _no_endpoint(endpoint)
        options = DeploymentOptions.parse(config)
        uri = None if model_uri is None else _uri(model_uri)
        if options.dry_run:
            return _shown(self._deployer().plan("update", name, uri, flavor, options))
        return self._details(self._deployer().update(name, uri, flavor, options), in_sync=True)

    def rollback_deployment(self, name: str, config: Mapping[str, Any] | None = None) -> dict[str, Any]:
        """Bring back what an update with ``keep_previous`` has replaced, and return once it serves.

        It is a change like an update, with a ``deployment_id`` of its own. What is replaced is kept in turn: a second
        rollback goes back to it.

        Args:
            name: The deployment.
            config: ``load_timeout``, ``lock_timeout``, ``smoke_test`` and ``dry_run`` apply.

        Returns:
            As `create_deployment`.

        Raises:
            DeploymentNotFound: There is none of that name, or it keeps nothing.
            TritonPluginError: Something else; the present model serves on.
        """
        options = DeploymentOptions.parse(config)
        if others := [key for key in config or () if key not in ROLLBACK_OPTIONS]:
            raise InvalidParameter(
                f"A rollback takes no options (-C) but {', '.join(ROLLBACK_OPTIONS)}, and got "
                f"{', '.join(map(repr, others))}. Nothing was changed."
            )
        if options.dry_run:
            return _shown(self._deployer().plan("rollback", name, options=options))
        return self._details(self._deployer().rollback(name, options), in_sync=True)

    def history(self, name: str) -> list[dict[str, Any]]:
        """Tell what a deployment served when, the oldest first: the last 50 models, and the present one.

        Args:
            name: The deployment. A deletion ends its history.

        Returns:
            For each one ``deployment_id``, ``mlflow_model_uri``, ``model_name``, ``model_version``, ``operation`` (what
            made it: create, adopt, update, rollback), ``since`` and ``until`` (UTC; ``None`` for the present one),
            and ``kept``: whether a rollback would bring it back.

        Raises:
            DeploymentNotFound: There is none of that name.
        """
        deployer = self._deployer()
        served = deployer.history(name)
        kept = deployer.kept(name)
        last = len(served) - 2  # only what was there just before is ever kept
        return [
            {**asdict(entry), "kept": kept is not None and number == last}
            for number, entry in enumerate(served)
        ]

    def delete_deployment(
        self, name: str, config: Mapping[str, Any] | None = None, endpoint: str | None = None
    ) -> dict[str, Any] | None:
        """Unload a deployment and remove its files; without one of that name, do nothing.

        Args:
            name: The deployment.
            config: ``lock_timeout`` and ``dry_run`` apply to a deletion, nothing else.
            endpoint: Not supported.

        Returns:
            Nothing; with ``dry_run``, what would change, as `create_deployment`.

        Raises:
            DeploymentNotFound: The model of that name was not deployed by MLflow; it is untouched.
            TritonPluginError: Something else.
        """
        _no_endpoint(endpoint)
        options = DeploymentOptions.parse(config)
        if others := [key for key in config or () if key not in ("lock_timeout", "dry_run")]:
            raise InvalidParameter(
                f"A deletion takes no options (-C) but lock_timeout and dry_run, and got {', '.join(map(repr, others))}. "
                "Nothing was changed."
            )
        if options.dry_run:
            return _shown(self._deployer().plan("delete", name))
        self._deployer().delete(name, options)
        return None

    def list_deployments(self, endpoint: str | None = None) -> list[dict[str, Any]]:
        """List every deployment in the model repository, loaded or not, one entry for each.

        Args:
            endpoint: Not supported.
        """
        _no_endpoint(endpoint)
        return [_entry(deployment) for deployment in self._deployer().all()]

    def get_deployment(self, name: str, endpoint: str | None = None) -> dict[str, Any]:
        """Describe a deployment: what serves, where it came from, and where this client looked.

        Args:
            name: The deployment.
            endpoint: Not supported.

        Returns:
            ``name``; ``version`` and ``state`` as Triton says them now; ``triton_model_path``,
            ``mlflow_model_uri`` and ``flavor`` as NVIDIA's plugin has them; the provenance record; and
            ``in_sync``: whether the server runs just what the record says (``False`` also when it cannot
            be known, e.g. after a plain load by another client); ``serving_id``: the ``deployment_id`` that
            the server runs, ``None`` if it runs none or that of a plain load; ``changed_files``: what on disk
            is not as it was published. ``reason`` is Triton's, for another state than READY, and
            ``operation`` is there while one is under way, or was interrupted and is not settled yet, and
            ``previous`` while one is kept for a rollback: its entry of the `history`.

        Raises:
            DeploymentNotFound: There is none of that name.
        """
        _no_endpoint(endpoint)
        deployer = self._deployer()
        deployment = deployer.get(name)
        serving = deployer.serving_id(name)
        changed = deployer.changed_files(deployment.record)
        identity = deployment.record.deployment_id
        ready = deployment.state == "READY"
        return {
            **self._details(
                deployment, in_sync=ready and identity is not None and serving == identity and not changed
            ),
            "serving_id": serving,
            "changed_files": changed,
        }

    def restore(self, names: Sequence[str] = (), config: Mapping[str, Any] | None = None) -> list[Restored]:
        """Load deployments again, in parallel, as after a restart of Triton, which loads nothing by itself.

        Args:
            names: Of the deployments; none: all of them.
            config: ``load_timeout`` and ``lock_timeout`` apply.

        Returns:
            Name, text and whether it failed, for each one.
        """
        return self._deployer().restore(names, _done(DeploymentOptions.parse(config), "restore"))

    def predict(
        self,
        deployment_name: str | None = None,
        inputs: Any = None,
        endpoint: str | None = None,
        *,
        allow_lossy: bool | None = None,
        **request: Any,
    ) -> TritonPredictions:
        """Run inference.

        Args:
            deployment_name: The deployment, or ``NAME/VERSION`` for one of several versions that it serves. Any other
                model that the server serves is reached the same way.
            inputs: A dict from tensor name to array, nested lists or scalar; a DataFrame with a column per
                tensor, or records, of any length; a request of the Open Inference Protocol, whose
                ``id``, ``parameters`` and ``outputs`` count where no argument says otherwise, or of MLflow's scoring
                server; an array, for a model with one input.
            endpoint: Instead of `deployment_name`, for code that was written for other targets.
            allow_lossy: Whether a cast to the model's datatype may drop digits: a fraction is cut off, an
                integer becomes the nearest float. Default: the setting ``lossy_casts``, which is false
                by default. A value that is out of range is refused in any case.
            request: What else the request asks for: ``outputs``, ``classification``, ``version``, ``priority``,
                ``timeout``, ``request_id``, ``sequence_id``, ``sequence_start``, ``sequence_end``, ``parameters``,
                ``headers``, ``compression``; see `mlflow_triton.serving.request.RequestOptions`.

        Returns:
            ``response["outputs"][NAME]`` is a NumPy array.

        Raises:
            InvalidParameter: There is no such thing to ask for.
            InvalidInput: The inputs do not fit the model.
            DeploymentNotFound: The server does not serve the model.
            InferenceFailed: The model failed.
        """
        from mlflow_triton.input_file import as_written  # noqa: PLC0415 - same as the next one
        from mlflow_triton.predict import predict  # noqa: PLC0415 - pandas, which the other verbs do not need
        from mlflow_triton.serving.document import own_options  # noqa: PLC0415 - same

        name, options = _target(deployment_name, endpoint, request)
        inputs, options = own_options(as_written(inputs), options)
        return predict(*self._predictions(), name, inputs, lossy=self._lossy(allow_lossy), options=options)

    async def predict_async(
        self,
        deployment_name: str | None = None,
        inputs: Any = None,
        endpoint: str | None = None,
        **request: Any,
    ) -> TritonPredictions:
        """Like `predict`, for asyncio: the event loop goes on meanwhile.

        A client has 32 threads for such predictions, and further ones wait for their turn. Cancelling one
        that waits takes it back; of one that is under way, the answer is dropped.
        """
        call = partial(self.predict, deployment_name, inputs, endpoint, **request)
        return await asyncio.get_running_loop().run_in_executor(self._threads(), call)

    def predict_many(
        self,
        deployment_name: str,
        items: Any,
        *,
        in_flight: int = 8,
        allow_lossy: bool | None = None,
        **request: Any,
    ) -> Generator[TritonPredictions | TritonPluginError, None, None]:
        """Run inference for each item, several at once, and yield what comes of it in the items' order.

        An item is drawn when there is room for its request, so that neither items nor answers pile up.
        Closing the iterator draws no more, and returns when the requests that are under way have ended.

        Args:
            deployment_name: As for `predict`.
            items: An iterable of what `predict` takes; or a DataFrame of any length, which is sent in slices of as
                many rows as the model's batch may have (``max_batch_size``; 0: in one piece).
            in_flight: How many requests are under way, or answered and not yet taken, at once.
            allow_lossy: As for `predict`.
            request: As for `predict`, for each of the requests; but none of a sequence, as they are sent in no order.

        Returns:
            For each item, or slice, in order, the prediction; or, where that failed, the error as an object: it is
            not raised, and the other items are none the worse. What `items` itself raises comes after
            the answers to what it gave before.

        Raises:
            InvalidParameter: `items` are a single input, `in_flight` is less than 1, or as for `predict`.
            DeploymentNotFound: The server does not serve the model.
        """
        from mlflow_triton.batch import predict_many  # noqa: PLC0415 - as for predict

        name, options = _target(deployment_name, None, request)
        return predict_many(
            *self._predictions(),
            name,
            items,
            in_flight=in_flight,
            lossy=self._lossy(allow_lossy),
            options=options,
        )

    async def predict_many_async(
        self, deployment_name: str, items: Any, **request: Any
    ) -> AsyncGenerator[TritonPredictions | TritonPluginError, None]:
        """Like `predict_many`, for asyncio; a thread of its own draws the items."""
        driver = ThreadPoolExecutor(1, "mlflow-triton-predict-many")
        run = partial(asyncio.get_running_loop().run_in_executor, driver)
        try:
            answers = await run(partial(self.predict_many, deployment_name, items, **request))
            try:
                while (answer := await run(next, answers, None)) is not None:
                    yield answer
            finally:
                # After what it may be at, for which the event loop does not wait.
                driver.submit(answers.close)
        finally:
            driver.shutdown(wait=False)

    def predict_stream(
        self,
        deployment_name: str | None = None,
        inputs: Any = None,
        endpoint: str | None = None,
        *,
        allow_lossy: bool | None = None,
        **request: Any,
    ) -> Generator[TritonPredictions, None, None]:
        """Run inference over a gRPC stream, and yield every answer as it comes: none, one or many for a request.

        Nothing is sent before the first answer is asked for. Closing the generator cancels what is under way,
        which a model can see (``request.is_cancelled()``).

        Args:
            deployment_name: As for `predict`.
            inputs: What `predict` takes. Or an iterator of such (a generator, ``iter([…])``): the requests go over one
                stream, each once the one before is answered in full. To a model that takes sequences they are
                one, for whose last request the iterator is asked for one item ahead.
            endpoint: As for `predict`.
            allow_lossy: As for `predict`.
            request: As for `predict`, for each of the requests; but ``sequence_start`` is for the first one alone, and
                ``sequence_end`` for the last one.

        Returns:
            A generator, which raises what `predict` raises in the place of the answer that is missing. The
            ``timeout``, or the setting ``request_timeout``, is for each answer.

        Raises:
            InvalidParameter: As for `predict`.
            InvalidSetting: No gRPC URL is known.
        """
        from mlflow_triton.stream import predict_stream  # noqa: PLC0415 - as for predict

        name, options = _target(deployment_name, endpoint, request)
        return predict_stream(
            *self._predictions(),
            self._grpc(),
            name,
            inputs,
            lossy=self._lossy(allow_lossy),
            options=options,
        )

    def explain(
        self,
        deployment_name: str | None = None,  # noqa: ARG002 - MLflow's signature
        df: pd.DataFrame | None = None,  # noqa: ARG002 - same
        endpoint: str | None = None,  # noqa: ARG002 - same
    ) -> Any:
        """Not offered: Triton has no explanations.

        Raises:
            InvalidParameter: Always.
        """
        raise InvalidParameter(
            "Triton has no explanations. Deploy the explainer as a model of its own, and use predict."
        )

    def _lossy(self, allow_lossy: bool | None) -> bool:
        return self._settings.lossy_casts.value if allow_lossy is None else bool(allow_lossy)

    def _predictions(self) -> tuple[Inference, Control]:
        from mlflow_triton.serving.inference import Inference  # noqa: PLC0415 - as for _server

        http, control = self._server()
        if self._inference is None:
            self._inference = Inference(
                http,
                self._grpc() if self._settings.transport.value == "grpc" else None,
                share=self._settings.shared_memory.value != "off",
            )
        return self._inference, control

    def _grpc(self) -> GrpcEndpoint:
        from mlflow_triton.serving.grpc_endpoint import GrpcEndpoint  # noqa: PLC0415 - as for _server

        if self._grpc_endpoint is None:
            self._grpc_endpoint = GrpcEndpoint(self._settings)
        return self._grpc_endpoint

    def _threads(self) -> ThreadPoolExecutor:
        if self._pool is None or self._pool[0] != os.getpid():  # a forked process has none of them
            self._pool = os.getpid(), ThreadPoolExecutor(ASYNC_THREADS, "mlflow-triton-predict-async")
        return self._pool[1]

    def _server(self) -> tuple[HttpEndpoint, Control]:
        from mlflow_triton.serving.control import Control  # noqa: PLC0415 - keeps MLflow's other targets fast
        from mlflow_triton.serving.http import HttpEndpoint  # noqa: PLC0415 - same

        if self._connected is None:
            http = HttpEndpoint(self._settings)
            self._connected = http, Control(http, self._settings)
        return self._connected

    def _deployer(self) -> Deployer:
        from mlflow_triton.deploy import Deployer  # noqa: PLC0415 - same
        from mlflow_triton.repository.local import LocalRepository  # noqa: PLC0415 - same

        path = self._settings.model_repository
        if path.value is None:
            raise InvalidSetting(
                "No model repository is set. Set TRITON_MODEL_REPO to the directory of the server's --model-repository, "
                "as mounted on this machine, or use the target URI triton://HOST:PORT?model_repository=PATH."
            )
        if "://" in path.value:
            raise InvalidSetting(
                f"The model repository {path} is a URL: this plugin works with repositories that are mounted "
                "as a directory on this machine."
            )
        _, control = self._server()
        return Deployer(LocalRepository(path.value, path.source), control)

    def _details(self, deployment: Deployment, *, in_sync: bool) -> dict[str, Any]:
        from mlflow_triton.models.tracking import sourced_tracking_uri  # noqa: PLC0415 - as the others

        record = deployment.record
        return {
            **_entry(deployment),
            "in_sync": in_sync,
            "deployment_id": record.deployment_id,
            "model_name": record.model_name,
            "model_version": record.model_version,
            "model_id": record.model_id,
            "run_id": record.run_id,
            "versions": list(record.versions),
            "files": record.files,
            "plugin_version": record.plugin_version,
            "created_at": record.created_at,
            "options": record.options,
            "triton_url": str(self._settings.http_url),
            "triton_grpc_url": str(self._settings.grpc_url),
            "model_repository": str(self._settings.model_repository),
            "mlflow_tracking_uri": sourced_tracking_uri(),
        }

    def __getstate__(self) -> dict[str, Any]:
        # Connections stay here; a copy makes its own.
        mine = ("_connected", "_inference", "_grpc_endpoint", "_pool")
        return {**self.__dict__, **dict.fromkeys(mine)}


def _uri(model_uri: object) -> str:
    if isinstance(model_uri, os.PathLike):
        model_uri = os.fspath(model_uri)
    if not isinstance(model_uri, str):
        raise InvalidParameter(
            f"The model URI {model_uri!r} is not text. Nothing was changed. Write, for example, models:/NAME/1."
        )
    return model_uri


def _shown(plan: Plan) -> dict[str, Any]:
    """Return what would change; in a command, print it and end, before the command says that it was done."""
    context = click.get_current_context(silent=True)
    callback = None if context is None else context.command.callback
    if context is not None and getattr(callback, "__module__", None) in COMMANDS:
        click.echo(str(plan))
        context.exit(0)
    return plan.to_dict()


def _done(options: DeploymentOptions, operation: str) -> DeploymentOptions:
    """Refuse a dry run of an operation that has none."""
    if options.dry_run:
        raise InvalidParameter(
            f"{operation} has no dry run (-C dry_run): create, update, rollback and delete have. Nothing was changed."
        )
    return options


def _target(
    deployment_name: str | None, endpoint: str | None, request: dict[str, Any]
) -> tuple[str, RequestOptions]:
    """Tell which model is meant, and what is asked of it."""
    from mlflow_triton.serving.request import PLAIN, RequestOptions  # noqa: PLC0415 - as for _server

    if deployment_name and endpoint and deployment_name != endpoint:
        raise InvalidParameter(
            f"Which one, the deployment {deployment_name!r} or the endpoint {endpoint!r}? Triton has no endpoints beside its "
            "models: give one of the two. Nothing was sent."
        )
    target = deployment_name or endpoint
    if not isinstance(target, str) or not target:
        raise InvalidParameter("Which deployment? Give its name (--name, deployment_name=).")
    if any("\ud800" <= character <= "\udfff" for character in target):
        raise InvalidParameter(
            f"{target!r} is no name of a deployment: UTF-8 cannot encode it. Nothing was sent."
        )
    name, slash, version = target.partition("/")
    if slash:
        if not re.fullmatch(r"[0-9]{1,19}", version) or request.get("version", int(version)) != int(version):
            raise InvalidParameter(
                f"{target!r} is neither the name of a deployment nor NAME/VERSION with one number for a version. "
                "Nothing was sent."
            )
        request = {**request, "version": int(version)}
    if not request:
        return name, PLAIN
    known = [field.name for field in fields(RequestOptions)]
    if unknown := [key for key in request if key not in known]:
        raise InvalidParameter(
            f"predict does not know {', '.join(map(repr, unknown))}. Nothing was sent. It knows allow_lossy, {', '.join(known)}."
        )
    return name, RequestOptions(**request)


def _no_endpoint(endpoint: str | None) -> None:
    if endpoint is not None:
        raise InvalidParameter(
            f"Triton has no endpoints, but got endpoint {endpoint!r}. Use the deployment's name (--name) instead."
        )


def _entry(deployment: Deployment) -> dict[str, Any]:
    record = deployment.record
    entry: dict[str, Any] = {"name": record.name, "version": deployment.version, "state": deployment.state}
    if deployment.reason:
        entry["reason"] = deployment.reason
    if deployment.operation:
        entry["operation"] = deployment.operation
    if (previous := deployment.previous) is not None:
        entry["previous"] = asdict(previous.served(record.created_at))
    return {
        **entry,
        "triton_model_path": record.triton_model_path,
        "mlflow_model_uri": record.mlflow_model_uri,
        "flavor": record.flavor,
    }


def run_local(
    name: str, model_uri: str, flavor: str | None = None, config: Mapping[str, Any] | None = None
) -> None:
    """Deploy a model to an embedded Triton server with a repository of its own, until Ctrl-C.

    Prints a command that sends a first request.

    Args:
        name: The deployment.
        model_uri: As for `TritonDeploymentClient.create_deployment`.
        flavor: Same.
        config: Same.

    Raises:
        EmbeddedServerError: The server cannot be started, or ended by itself.
        TritonPluginError: The model cannot be deployed.
    """
    _done(DeploymentOptions.parse(config), "run-local")
    from mlflow_triton.embedded import EmbeddedTriton  # noqa: PLC0415 - keeps MLflow's other targets fast
    from mlflow_triton.embedded.foreground import serve  # noqa: PLC0415 - same
    from mlflow_triton.embedded.runtime import safe_temporary_directory  # noqa: PLC0415 - same
    from mlflow_triton.predict import example_input  # noqa: PLC0415 - same

    def deploy(server: EmbeddedTriton) -> str:
        target = server.http_url.replace("http://", "triton://")
        query = urlencode({"model_repository": server.model_repository, "grpc_url": server.grpc_url})
        client = TritonDeploymentClient(f"{target}?{query}")
        client.create_deployment(name, model_uri, flavor, config)
        request = server.model_repository / ".input.json"
        request.write_text(json.dumps(example_input(client._server()[0], name)))  # noqa: SLF001 - of this module
        return (
            f"{name!r} is served until Ctrl-C. In another terminal:\n\n"
            f"mlflow deployments predict -t {target} --name {name} --input-path {request}\n\n"
        )

    repository = tempfile.mkdtemp(prefix="mlflow-triton-run-local-", dir=safe_temporary_directory())
    try:
        serve(EmbeddedTriton(repository, discard_repository=True), deploy)
    finally:
        shutil.rmtree(repository, ignore_errors=True)  # where no server was started that would do it


def target_help() -> str:
    """Return the text of ``mlflow deployments help -t triton``."""
    return TARGET_HELP.format(
        settings="\n".join(
            f"  {definition.environment} (default: {definition.default or 'none'})\n      {definition.help}"
            for definition in SETTINGS
        ),
        parameters=", ".join(definition.name for definition in SETTINGS if definition.in_target),
        options=help_text(),
    )
