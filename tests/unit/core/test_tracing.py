"""Spans: off by default, sent to a real collector's address, without secrets, and never in the way."""

from __future__ import annotations

import io
import logging
import os
import subprocess
import sys
from collections.abc import Iterator

import pytest

from notebooked_dagster.core import tracing
from notebooked_dagster.core.environment import inherited
from notebooked_dagster.core.redaction import REDACTOR
from notebooked_dagster.errors import ProviderError
from tests.otlp import Collector, collector


@pytest.fixture(autouse=True)
def _alone(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    for name in list(os.environ):
        if name.startswith("OTEL_") or name == tracing.VARIABLE:
            monkeypatch.delenv(name)
    tracing.forget()
    yield
    tracing.forget()


@pytest.fixture
def seen(monkeypatch: pytest.MonkeyPatch) -> Iterator[Collector]:
    with collector() as found:
        for name, value in found.environment().items():
            monkeypatch.setenv(name, value)
        yield found
        tracing.forget()


def test_without_a_collector_nothing_is_loaded_and_nothing_happens() -> None:
    program = """
import sys
from notebooked_dagster.core import tracing
with tracing.span("x", {"a": 1}, client=True, run_id="r") as span:
    span.set("b", 2)
    span.failed("c")
assert span.trace_id is None and tracing.headers() == {} == tracing.environment() and tracing.problem() is None
print([name for name in sys.modules if name.startswith("opentelemetry")])
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


@pytest.mark.parametrize(
    "setting",
    [{"OTEL_SDK_DISABLED": "true"}, {"OTEL_TRACES_EXPORTER": "none"}],
    ids=lambda item: next(iter(item)),
)
def test_the_standard_variables_turn_it_off(
    seen: Collector, monkeypatch: pytest.MonkeyPatch, setting: dict[str, str]
) -> None:
    for name, value in setting.items():
        monkeypatch.setenv(name, value)
    with tracing.span("x") as span:
        assert span.trace_id is None


def test_spans_nest_and_requests_name_them(seen: Collector) -> None:
    with tracing.span("outer", {"a": 1, "b": None}) as outer, tracing.span("inner", client=True):
        sent = tracing.headers()
        handed = tracing.environment()
    tracing.forget()
    inner, above = seen.wait("inner")[0], seen.wait("outer")[0]
    assert (inner.kind, above.kind) == ("client", "internal")
    assert inner.parent == above.id
    assert inner.trace == above.trace == outer.trace_id
    assert set(sent) == {"traceparent"}
    assert sent["traceparent"].startswith(f"00-{inner.trace}-{inner.id}-")
    assert handed == {"TRACEPARENT": sent["traceparent"]}
    assert above.attributes == {"a": 1}
    assert above.service == "notebooked-dagster"


def test_a_run_is_one_trace_and_is_sent_as_soon_as_its_step_ends(seen: Collector) -> None:
    for name in ("first", "second"):
        with tracing.span(name, run_id="8f6e"):
            pass
        assert [span.name for span in seen.spans][-1] == name
    with tracing.span("third", run_id="another"):
        pass
    first, second, third = seen.spans
    assert first.trace == second.trace != third.trace
    assert first.parent == ""


def test_a_process_goes_on_with_the_trace_it_was_handed(
    seen: Collector, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TRACEPARENT", f"00-{'a' * 32}-{'b' * 16}-01")
    with tracing.span("step", run_id="x"):
        pass
    assert (seen.spans[0].trace, seen.spans[0].parent) == ("a" * 32, "b" * 16)
    monkeypatch.setenv("TRACEPARENT", "nonsense")
    with tracing.span("step", run_id="x"):
        pass
    assert seen.spans[1].parent == ""


def test_no_secret_gets_into_a_span(seen: Collector, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_HEADERS", "authorization=Bearer%20collect0r-t0ken")
    REDACTOR.add("hunter2hunter2")
    with (
        pytest.raises(ProviderError),
        tracing.span("deploy hunter2hunter2", {"url.full": "http://x/?k=hunter2hunter2"}, run_id="r"),
    ):
        raise ProviderError("The password hunter2hunter2 is wrong, collect0r-t0ken too.")
    span = seen.spans[0]
    assert span.failed
    assert span.attributes["error.type"] == "ProviderError"
    assert "The password *** is wrong" in span.text
    assert "hunter2" not in span.text
    assert "t0ken" not in span.text
    assert seen.headers[0]["authorization"] == "Bearer collect0r-t0ken"


def test_a_collector_that_is_away_costs_a_run_nothing_but_seconds(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", "http://127.0.0.1:9")
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_TIMEOUT", "1")
    with caplog.at_level(logging.CRITICAL), tracing.span("x", run_id="r") as span:
        assert span.trace_id


def test_what_stands_in_the_way_is_told_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", "http://127.0.0.1:4317")
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_PROTOCOL", "grpc")
    # A stream of its own: what is captured from the root logger depends on who else set that up in this process.
    told = io.StringIO()
    logger = logging.getLogger("notebooked.tracing")
    handler = logging.StreamHandler(told)
    logger.addHandler(handler)
    try:
        for _ in range(2):
            with tracing.span("x") as span:
                assert span.trace_id is None
    finally:
        logger.removeHandler(handler)
    assert len(told.getvalue().splitlines()) == 1
    assert "http/protobuf" in told.getvalue()


def test_a_missing_package_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", "http://127.0.0.1:4318")
    monkeypatch.setitem(sys.modules, "opentelemetry.exporter.otlp.proto.http.trace_exporter", None)
    assert "notebooked-dagster[otel]" in str(tracing.problem())
    with tracing.span("x") as span:
        assert span.trace_id is None


def test_servers_are_told_where_traces_go_and_no_token() -> None:
    parent = {
        "OTEL_EXPORTER_OTLP_ENDPOINT": "http://collector:4318",
        "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT": "http://me:secret@collector:4318/v1/traces",
        "OTEL_EXPORTER_OTLP_HEADERS": "authorization=Bearer abc",
        "OTEL_RESOURCE_ATTRIBUTES": "deployment.environment.name=test",
    }
    found = inherited(parent)
    assert set(found) == {"OTEL_EXPORTER_OTLP_ENDPOINT", "OTEL_RESOURCE_ATTRIBUTES"}
    assert "OTEL_EXPORTER_OTLP_HEADERS" in inherited(parent, ["OTEL_*_HEADERS"])
