"""Answer one prediction request in this process: decode, check, predict, count."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import secrets
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import orjson

from .metrics import Metrics
from .model import Model
from .request import JSON, RequestError, Table, decode

log = logging.getLogger("notebooked.worker")

# A prediction that is quicker than this is done on the event loop: handing it to a thread costs more than it takes.
_INLINE_SECONDS = 0.005
_INLINE_BYTES = 64 * 1024
_SLOW_SECONDS = 0.5
_MEMORY = 0.2


@dataclass(frozen=True, slots=True)
class Reply:
    """What goes back to the client."""

    status: int
    body: bytes
    content_type: str = JSON


class Engine:
    """A loaded model behind a check of its input.

    Predictions run one at a time, as they do in a notebook: on the event loop while they are quick, in one thread
    of their own once they have turned out slow or the body is large, so that pings are answered meanwhile. One that
    takes longer than ``time_limit`` seconds is answered 504.
    """

    def __init__(self, model: Model, metrics: Metrics, *, time_limit: float = 60.0) -> None:
        self.model = model
        self.metrics = metrics
        self._names = model.signature.names
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="predict")
        self._usual_seconds = _INLINE_SECONDS
        self._time_limit = time_limit
        self._running_since: float | None = None
        # How many requests wait for the thread or are in it: one of them and one on the event loop would be two at once.
        self._threaded = 0
        # Why no prediction can be expected any more; a thread cannot be ended, so the process must be.
        self.stuck: str | None = None

    async def answer(self, body: bytes, content_type: str, accept: str) -> Reply:
        """The reply to a request; never raises for what the request or the model does wrong."""
        metrics = self.metrics
        metrics.in_flight.inc()
        started = time.perf_counter()
        try:
            reply = await self._answer(body, content_type, accept)
        finally:
            metrics.in_flight.dec()
        metrics.answered(reply.status, time.perf_counter() - started)
        return reply

    async def _answer(self, body: bytes, content_type: str, accept: str) -> Reply:
        quick = self._usual_seconds < _INLINE_SECONDS and len(body) <= _INLINE_BYTES
        inline = quick and self._threaded == 0
        try:
            if inline:
                output, output_type = self._predict(body, content_type, accept)
            else:
                output, output_type = await self._in_thread(body, content_type, accept)
        except RequestError as error:
            self.metrics.failed("input" if error.status < 500 else "timeout")
            if error.__cause__ is not None:
                log.warning("The model refused a request: %s", error.message, exc_info=error.__cause__)
            return Reply(error.status, error.body())
        except Exception:
            self.metrics.failed("prediction")
            error_id = secrets.token_hex(6)
            log.exception("Prediction failed, error id %s", error_id)
            message = (
                f"The model failed to predict. The server's log has the reason under error id {error_id}."
            )
            return Reply(
                500,
                orjson.dumps({"error_code": "INTERNAL_ERROR", "message": message, "error_id": error_id}),
            )
        return Reply(200, output, output_type)

    async def _in_thread(self, body: bytes, content_type: str, accept: str) -> tuple[bytes, str]:
        loop = asyncio.get_running_loop()
        self._threaded += 1
        job = self._thread.submit(self._predict, body, content_type, accept)
        # When it has really ended, which may be after its client has had a 504.
        job.add_done_callback(lambda _: self._tell(loop))
        waiting = asyncio.wrap_future(job)
        try:
            await asyncio.wait({waiting}, timeout=self._time_limit)
            if not waiting.done() and job.running():
                # The limit is the prediction's own, from when the thread took it up.
                begun = self._running_since or time.perf_counter()
                await asyncio.wait({waiting}, timeout=begun + self._time_limit - time.perf_counter())
            if waiting.done():
                return waiting.result()
            begun = self._running_since or time.perf_counter()
            if job.running() or time.perf_counter() - begun >= self._time_limit:
                self.stuck = f"A prediction has run for more than {self._time_limit:g} s."
                raise RequestError(504, self.stuck)
            raise RequestError(
                503, f"The server is busy: the request waited {self._time_limit:g} s for others to end."
            )
        finally:
            # Takes it out of the queue, also where the client has gone; what runs cannot be stopped.
            waiting.cancel()

    def _tell(self, loop: asyncio.AbstractEventLoop) -> None:
        # A prediction that hung may outlive the loop.
        with contextlib.suppress(RuntimeError):
            loop.call_soon_threadsafe(self._left_thread)

    def _left_thread(self) -> None:
        self._threaded -= 1

    def _predict(self, body: bytes, content_type: str, accept: str) -> tuple[bytes, str]:
        started = self._running_since = time.perf_counter()
        try:
            answer = self._checked(body, content_type, accept)
        finally:
            self._running_since = None
        self._usual_seconds += _MEMORY * (time.perf_counter() - started - self._usual_seconds)
        return answer

    def _checked(self, body: bytes, content_type: str, accept: str) -> tuple[bytes, str]:
        table = decode(body, content_type, self._names)
        self.model.signature.check(table)
        try:
            return self.model.predict(table, accept)
        except ValueError as error:
            gap = _first_gap(table)
            if gap is None:
                raise
            raise RequestError(
                400, f"{gap[0]} is missing (null), and the model does not take missing values.", **gap[1]
            ) from error

    def smoke(self) -> str | None:
        """Predict the input example; what went wrong, in full, or None. Also warms the model and its timing."""
        example = self.model.input_example
        if example is None:
            return None
        try:
            # The first call pays for lazy imports; a few more tell how long a prediction takes, where that is short.
            for _ in range(5):
                started = time.perf_counter()
                self._predict(example, JSON, JSON)
                self._usual_seconds = time.perf_counter() - started
                if self._usual_seconds > _SLOW_SECONDS:
                    break
        except RequestError as error:
            log.error(
                "The model's own input example was refused: %s", error.message, exc_info=error.__cause__
            )
            return f"The model's own input example was refused: {error.message}"
        except Exception as error:
            log.exception("Predicting the input example failed")
            return f"Predicting the input example failed: {type(error).__name__}: {error}"
        return None


def _first_gap(table: Table) -> tuple[str, dict[str, Any]] | None:
    """The first missing value of a request, in words and as fields."""
    if table.by_column is not None:
        for name, values in table.by_column.items():
            for row, value in enumerate(values if isinstance(values, list) else [values]):
                if value is None:
                    return f"Column {name!r}, row {row}", {"column": name, "row": row}
        return None
    for row, record in enumerate(table.rows if table.rows is not None else table.array or []):
        if isinstance(record, dict):
            cells: Any = record.items()
        elif isinstance(record, list):
            names = table.columns
            cells = zip(names, record, strict=False) if names else enumerate(record)
        else:
            cells = ((0, record),)
        for column, value in cells:
            if value is None or (table.text and value == ""):
                return f"Column {column!r}, row {row}", {"column": column, "row": row}
    return None
