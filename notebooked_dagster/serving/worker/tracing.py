"""A span for each prediction, which goes on with the trace that the client is in.

By the variables of OpenTelemetry, and only where its package is installed in the Python that serves.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from opentelemetry.sdk.trace import TracerProvider

log = logging.getLogger("notebooked.worker")
_ENDPOINTS = ("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "OTEL_EXPORTER_OTLP_ENDPOINT")
# Whatever else a client sends is one value: names of spans are few.
_METHODS = ("GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS", "TRACE", "CONNECT")
_PROTOCOLS = ("OTEL_EXPORTER_OTLP_TRACES_PROTOCOL", "OTEL_EXPORTER_OTLP_PROTOCOL")


class Tracing:
    """Spans of one worker. Made by ``tracing_of``: a worker without traces has none.

    Args:
        provider: Sends them.
        endpoint: The endpoint's name.
    """

    def __init__(self, provider: TracerProvider, endpoint: str) -> None:
        from opentelemetry import trace
        from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

        self._provider = provider
        self._tracer = provider.get_tracer("notebooked_worker")
        self._propagator = TraceContextTextMapPropagator()
        self._trace = trace
        self._endpoint = endpoint

    def begin(self, method: str, headers: Mapping[bytes, bytes]) -> Any:
        """A span for a request to ``/invocations``; to be ended with ``end``."""
        carrier = {
            name: headers[name.encode()].decode("latin-1")
            for name in ("traceparent", "tracestate")
            if name.encode() in headers
        }
        known = method in _METHODS
        return self._tracer.start_span(
            f"{method if known else 'HTTP'} /invocations",
            self._propagator.extract(carrier),
            self._trace.SpanKind.SERVER,
            {
                "http.request.method": method if known else "_OTHER",
                "http.route": "/invocations",
                "url.path": "/invocations",
                "url.scheme": "http",
                "notebooked.endpoint": self._endpoint,
            },
        )

    def end(self, span: Any, status: int | None, version: str) -> None:
        """End a span; ``status`` is None where the client went away, ``version`` that of the model which answered."""
        span.set_attribute("notebooked.version", version)
        if status is not None:
            span.set_attribute("http.response.status_code", status)
            # What a client does wrong is no error of the server's.
            if status >= 500:
                span.set_attribute("error.type", str(status))
                span.set_status(self._trace.StatusCode.ERROR)
        span.end()

    def close(self) -> None:
        """Send what is waiting."""
        self._provider.shutdown()


def tracing_of(endpoint: str, version: str) -> Tracing | None:
    """The spans of a worker; None where nobody collects them, or the package is missing."""
    found = os.environ
    if (
        not any(found.get(name) for name in _ENDPOINTS)
        or found.get("OTEL_SDK_DISABLED", "").strip().lower() == "true"
        or found.get("OTEL_TRACES_EXPORTER", "otlp").strip().lower() != "otlp"
        or next((found[name] for name in _PROTOCOLS if found.get(name)), "http/protobuf") != "http/protobuf"
    ):
        return None
    try:
        from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
        from opentelemetry.sdk.resources import Resource
        from opentelemetry.sdk.trace import TracerProvider
        from opentelemetry.sdk.trace.export import BatchSpanProcessor
    except ImportError as error:
        log.warning("Requests are not traced: the Python that serves has no package %r.", error.name)
        return None
    # The service is the endpoint, not what deployed it, whose name OTEL_SERVICE_NAME may hold.
    resource = Resource.create({"service.name": endpoint, "service.version": version})
    provider = TracerProvider(resource=resource)
    provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter()))
    return Tracing(provider, endpoint)
