"""Traces from a Dagster run to a prediction, as OpenTelemetry has them; off unless its own variables name a collector.

::

    with tracing.span("deploy digits", {"deployment.name": "digits"}) as found:
        found.set("deployment.status", "succeeded")

Nothing of OpenTelemetry is imported before the first span that is wanted. Everything here goes on where the package is
missing or the collector is away: a trace is never worth a run.
"""

from __future__ import annotations

import contextlib
import contextvars
import hashlib
import logging
import os
import threading
from collections.abc import Iterator, Mapping
from importlib import import_module
from typing import TYPE_CHECKING, Any, Final
from urllib.parse import unquote

from .redaction import REDACTOR

if TYPE_CHECKING:
    from opentelemetry.sdk.trace import TracerProvider

# Handed to processes that cannot be sent a header, as the W3C has it.
VARIABLE: Final = "TRACEPARENT"
_ENDPOINTS = ("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "OTEL_EXPORTER_OTLP_ENDPOINT")
_PROTOCOLS = ("OTEL_EXPORTER_OTLP_TRACES_PROTOCOL", "OTEL_EXPORTER_OTLP_PROTOCOL")
_HEADERS = ("OTEL_EXPORTER_OTLP_TRACES_HEADERS", "OTEL_EXPORTER_OTLP_HEADERS")
_SERVICE = "notebooked-dagster"
# A collector that is away may not keep a run's process from its end.
_FLUSH_MILLISECONDS = 5_000
log = logging.getLogger("notebooked.tracing")
_wanted: contextvars.ContextVar[int | None] = contextvars.ContextVar("notebooked_trace_id", default=None)


class Span:
    """What happens between two moments. This one is nothing: there is no trace."""

    trace_id: str | None = None

    def set(self, name: str, value: str | int | float | bool | None) -> None:
        """Add an attribute, without the secrets that this process knows of; None adds nothing."""

    def failed(self, kind: str, message: str = "") -> None:
        """Say that it did not do what it was to do. ``kind`` is of few values: a class, or a status."""


class _Recorded(Span):
    def __init__(self, span: Any) -> None:
        self._span = span
        self.trace_id = f"{span.get_span_context().trace_id:032x}"
        self.has_failed = False

    def set(self, name: str, value: str | int | float | bool | None) -> None:
        if value is not None:
            self._span.set_attribute(name, REDACTOR.redact(value) if isinstance(value, str) else value)

    def failed(self, kind: str, message: str = "") -> None:
        from opentelemetry.trace import Status, StatusCode

        self.has_failed = True
        self._span.set_attribute("error.type", kind)
        self._span.set_status(Status(StatusCode.ERROR, REDACTOR.redact(message) or None))


@contextlib.contextmanager
def span(
    name: str,
    attributes: Mapping[str, str | int | float | bool | None] | None = None,
    *,
    client: bool = False,
    run_id: str | None = None,
) -> Iterator[Span]:
    """A span around the work, inside the one that is open in this thread, or the one that ``TRACEPARENT`` names.

    Args:
        name: Of few values: neither ids nor addresses.
        attributes: By OpenTelemetry's semantic conventions where they have a name for it, else ``notebooked.*``.
        client: Whether it is a request to another process.
        run_id: Of the Dagster run. Where nothing is open, all spans of a run share a trace, whatever process they are in,
            and are sent when this one ends: a run's process may end without a word.
    """
    provider = _provider()
    if provider is None:
        yield Span()
        return
    from opentelemetry import context as contexts
    from opentelemetry import trace

    current = contexts.get_current()
    if not trace.get_current_span(current).get_span_context().is_valid:
        current = _propagator().extract(_carrier(os.environ.get(VARIABLE)), current)
    token = _wanted.set(_trace_id(run_id)) if run_id is not None else None
    try:
        opened = provider.get_tracer("notebooked_dagster").start_span(
            REDACTOR.redact(name), current, trace.SpanKind.CLIENT if client else trace.SpanKind.INTERNAL
        )
    finally:
        if token is not None:
            _wanted.reset(token)
    found = _Recorded(opened)
    for key, value in (attributes or {}).items():
        found.set(key, value)
    try:
        # What our own errors say is redacted first, so the package does not write them down itself.
        with trace.use_span(opened, record_exception=False, set_status_on_exception=False):
            yield found
    except BaseException as error:
        if not found.has_failed and not isinstance(error, GeneratorExit):
            kind = type(error).__qualname__
            found.failed(kind, str(error))
            opened.add_event(
                "exception",
                {"exception.type": kind, "exception.message": REDACTOR.redact(str(error))},
            )
        raise
    finally:
        opened.end()
        if run_id is not None:
            provider.force_flush(_FLUSH_MILLISECONDS)


def headers() -> dict[str, str]:
    """``traceparent`` of the span that is open here, for a request; empty where there is no trace."""
    if not wanted():
        return {}
    found: dict[str, str] = {}
    if _provider() is not None:
        _propagator().inject(found)
    return {name: value for name, value in found.items() if name == "traceparent"}


def environment() -> dict[str, str]:
    """The same as ``TRACEPARENT``, for a process."""
    traceparent = headers().get("traceparent")
    return {VARIABLE: traceparent} if traceparent is not None else {}


def wanted() -> bool:
    """Whether the variables of OpenTelemetry name a collector. It may still be that nothing can speak to it."""
    found = os.environ
    return (
        any(found.get(name) for name in _ENDPOINTS)
        and found.get("OTEL_SDK_DISABLED", "").strip().lower() != "true"
        and found.get("OTEL_TRACES_EXPORTER", "otlp").strip().lower() == "otlp"
    )


def problem() -> str | None:
    """Why nothing is traced although it is wanted, as a sentence; None where all is well, or nothing wanted."""
    if not wanted():
        return None
    protocol = next((os.environ[name] for name in _PROTOCOLS if os.environ.get(name)), "http/protobuf")
    if protocol != "http/protobuf":
        return f"The collector is to be spoken to by {protocol!r}; here only http/protobuf is spoken, port 4318 by custom."
    try:
        for name in ("opentelemetry.sdk.trace", "opentelemetry.exporter.otlp.proto.http.trace_exporter"):
            import_module(name)
    except ImportError as error:
        return f"Traces need the package {error.name!r}: `pip install 'notebooked-dagster[otel]'`."
    return None


class _State:
    """The one provider of this process; not OpenTelemetry's global one, which belongs to whoever embeds us."""

    lock = threading.Lock()
    provider: TracerProvider | None = None
    hopeless = False


def _provider() -> TracerProvider | None:
    if not wanted() or _State.hopeless:
        return None
    if _State.provider is None:
        with _State.lock:
            if _State.provider is None and not _State.hopeless:
                if (why := problem()) is not None:
                    _State.hopeless = True
                    log.warning("Nothing is traced. %s", why)
                    return None
                _State.provider = _made()
    return _State.provider


def _made() -> TracerProvider:
    from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
    from opentelemetry.sdk.resources import Resource
    from opentelemetry.sdk.trace import TracerProvider
    from opentelemetry.sdk.trace.export import BatchSpanProcessor
    from opentelemetry.sdk.trace.id_generator import RandomIdGenerator

    from notebooked_dagster import __version__

    class RunIds(RandomIdGenerator):
        def generate_trace_id(self) -> int:
            return _wanted.get() or super().generate_trace_id()

    for name in _HEADERS:
        # A collector's token is a secret whatever its header is called.
        for item in os.environ.get(name, "").split(","):
            value = unquote(item.partition("=")[2].strip())
            for part in {value, value.rpartition(" ")[2]}:
                REDACTOR.add(part)
    own = {"service.version": __version__}
    if not os.environ.get("OTEL_SERVICE_NAME") and "service.name=" not in os.environ.get(
        "OTEL_RESOURCE_ATTRIBUTES", ""
    ):
        own["service.name"] = _SERVICE
    provider = TracerProvider(resource=Resource.create(own), id_generator=RunIds())
    provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter()))
    return provider


def forget() -> None:
    """Send what is waiting and begin anew with the environment as it is then; for tests."""
    with _State.lock:
        if _State.provider is not None:
            _State.provider.shutdown()
        _State.provider, _State.hopeless = None, False


def _propagator() -> Any:
    from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

    return TraceContextTextMapPropagator()


def _carrier(traceparent: str | None) -> dict[str, str]:
    return {"traceparent": traceparent} if traceparent else {}


def _trace_id(run_id: str) -> int:
    # Not the run's id itself: a sampler goes by the last bits, of which a UUID has some that are always the same.
    return int.from_bytes(hashlib.sha256(run_id.encode()).digest()[:16])
