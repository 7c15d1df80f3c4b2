"""Many predictions: several requests at once, their answers in order; a table in slices of the model's batch."""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

import pandas as pd

from mlflow_triton.errors import InferenceFailed, InvalidInput, InvalidParameter, TritonPluginError
from mlflow_triton.predict import answer, batch_limit, encode, predict, slices, views
from mlflow_triton.serving.document import own_options
from mlflow_triton.serving.request import PLAIN

if TYPE_CHECKING:
    from collections.abc import Callable, Generator, Iterable, Iterator
    from concurrent.futures import Future

    from mlflow_triton.serving.control import Control
    from mlflow_triton.serving.inference import Inference, ModelMetadata, Tensors
    from mlflow_triton.serving.request import RequestOptions
    from mlflow_triton.tensors.decode import TritonPredictions

    Job = Callable[[], TritonPredictions]

__all__ = ["predict_many"]

log = logging.getLogger(__name__)

#: How many slices of a table are encoded together.
SLICES = 32


def predict_many(  # noqa: PLR0913 - what a request is made of
    server: Inference,
    control: Control,
    name: str,
    items: Any,
    *,
    in_flight: object,
    lossy: bool = False,
    options: RequestOptions = PLAIN,
) -> Generator[TritonPredictions | TritonPluginError, None, None]:
    """Predict each item, at most `in_flight` of them at once, and yield the answers in the items' order.

    An item is drawn when there is room for its request: neither the items nor the answers pile up. Closing
    the iterator draws no more, and returns when the requests that are under way have ended.

    Args:
        server: See `mlflow_triton.predict.predict`.
        control: Same.
        name: Same.
        items: What `predict` takes, each; or a DataFrame, which is sent in slices of as many rows as the model takes
            (``max_batch_size``).
        in_flight: At least 1.
        lossy: See `predict`.
        options: Same, for each request; none of a sequence, since they are sent in no order.

    Returns:
        For each item the prediction, or the error that it ended with.

    Raises:
        InvalidParameter: `items` are a single input, or something cannot be asked for.
        DeploymentNotFound: The server does not serve the model.
        ServerUnavailable: No usable answer to the question for it.
    """
    if isinstance(items, (Mapping, str, bytes)) or not hasattr(items, "__iter__"):
        raise InvalidParameter(
            f"predict_many takes inputs one after the other (a list, a generator), or a DataFrame, and got one "
            f"{type(items).__name__}. Nothing was sent. For a single one, use predict."
        )
    if not isinstance(in_flight, int) or in_flight < 1:
        raise InvalidParameter(
            f"in_flight={in_flight!r} lets no request through: it is a whole number of at least 1. Nothing was sent."
        )
    _require_no_sequence(options)
    server.metadata(name, options.version)
    if isinstance(items, pd.DataFrame):
        jobs = _Table(server, control, name, items, lossy, options).jobs()
    else:
        jobs = (partial(_one, server, control, name, item, lossy=lossy, options=options) for item in items)
    return _in_order(jobs, in_flight)


def _in_order(
    jobs: Iterable[Job], in_flight: int
) -> Generator[TritonPredictions | TritonPluginError, None, None]:
    drawn = iter(jobs)
    waiting: deque[Future[TritonPredictions]] = deque()
    failed: Exception | None = None
    pool = ThreadPoolExecutor(in_flight, "mlflow-triton-predict")
    try:
        more = True
        while more or waiting:
            while more and len(waiting) < in_flight:
                try:
                    waiting.append(pool.submit(next(drawn)))
                except StopIteration:  # noqa: PERF203 - a few at a time
                    more = False
                except Exception as error:  # noqa: BLE001 - the caller's own; the answers before it come first
                    more, failed = False, error
            if waiting:
                yield _result(waiting.popleft())
    finally:
        pool.shutdown(cancel_futures=True)
    if failed is not None:
        raise failed


def _one(  # noqa: PLR0913 - what a request is made of
    server: Inference, control: Control, name: str, item: Any, *, lossy: bool, options: RequestOptions
) -> TritonPredictions:
    inputs, own = own_options(item, options)
    _require_no_sequence(own)
    return predict(server, control, name, inputs, lossy=lossy, options=own)


def _require_no_sequence(options: RequestOptions) -> None:
    if options.sequence_id is not None:
        raise InvalidParameter(
            "predict_many sends its requests in no order, and a sequence has one. Nothing was sent. Use predict_stream, or "
            "predict for each."
        )


def _result(future: Future[TritonPredictions]) -> TritonPredictions | TritonPluginError:
    try:
        return future.result()
    except TritonPluginError as error:
        return error


@dataclass(frozen=True, slots=True)
class _Table:
    """A table that is sent in slices; fields as in `predict_many`."""

    server: Inference
    control: Control
    name: str
    rows: pd.DataFrame
    lossy: bool
    options: RequestOptions

    def jobs(self) -> Iterator[Job]:
        """Cut it into requests; many are encoded at once, and are views of what that makes."""
        limit = batch_limit(self.server.config(self.name, self.options.version))
        if limit and not len(self.rows):
            return
        if not 0 < limit < len(self.rows):
            yield partial(self._whole, self.rows)
            return
        for start in range(0, len(self.rows), SLICES * limit):
            piece = self.rows.iloc[start : start + SLICES * limit]
            model, tensors, is_table = self._encoded(piece)
            if not is_table:  # it names tensors in its index
                yield partial(self._whole, self.rows)
                return
            for first, stop in slices(len(piece), limit):
                yield partial(self._slice, start + first, start + stop, model, views(tensors, first, stop))

    def _encoded(self, piece: pd.DataFrame) -> tuple[ModelMetadata | None, Tensors, bool]:
        try:
            return encode(self.server, self.name, piece, lossy=self.lossy, options=self.options)
        except TritonPluginError as error:
            log.debug("These rows are encoded slice by slice: %s", error)
            return None, {}, True

    def _whole(self, rows: pd.DataFrame) -> TritonPredictions:
        return predict(self.server, self.control, self.name, rows, lossy=self.lossy, options=self.options)

    def _slice(
        self, start: int, stop: int, model: ModelMetadata | None, tensors: Tensors
    ) -> TritonPredictions:
        """Predict some rows, of which `tensors` have been made for `model`; ``None``: they could not be made."""
        try:
            if model is not None:
                try:
                    return answer(model, self.server.infer(self.name, tensors, self.options))
                except (InvalidInput, InferenceFailed):
                    if self.server.renewed(self.name, self.options.version) == model:
                        raise
            return self._whole(self.rows.iloc[start:stop])
        except TritonPluginError as error:
            raise type(error)(f"Rows {start} to {stop - 1}: {error.message}") from None
