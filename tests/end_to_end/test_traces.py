"""One trace from a Dagster run through training and deployment to a prediction on the endpoint."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from notebooked_dagster.core import tracing
from notebooked_dagster.errors import InvalidInputError
from notebooked_dagster.providers.local import LocalProvider
from tests.end_to_end.dagster_kit import SmallProject
from tests.otlp import Collector, collector

pytestmark = pytest.mark.slow


@pytest.fixture
def seen(monkeypatch: pytest.MonkeyPatch) -> Iterator[Collector]:
    for name in list(os.environ):
        if name.startswith("OTEL_") or name == tracing.VARIABLE:
            monkeypatch.delenv(name)
    tracing.forget()
    with collector() as found:
        for name, value in found.environment().items():
            monkeypatch.setenv(name, value)
        yield found
        tracing.forget()


def test_one_trace_from_a_run_to_a_prediction(tmp_path: Path, seen: Collector) -> None:
    project = SmallProject(tmp_path / "project")
    project.edit("print(accuracy)", "print(accuracy)\nimport os\nprint('trace', os.environ['TRACEPARENT'])")
    try:
        done = project.run(
            "dagster", "job", "execute", "-m", "notebooked_dagster.definitions", "-j", "iris_job",
            environment=seen.environment(),
        )  # fmt: skip
        assert done.returncode == 0, done.stderr[-3000:]
        server = next(span for span in seen.wait("POST /invocations", 2) if span.kind == "server")
        client = next(span for span in seen.wait("POST /invocations", 2) if span.kind == "client")
        steps = {name: seen.wait(f"iris/{name}")[0] for name in ("model", "endpoint", "endpoint checks")}
        train, deploy = seen.wait("train iris")[0], seen.wait("deploy iris")[0]
        assert {span.trace for span in seen.spans} == {server.trace}
        # Each inside the one that asked for it, and every step of the run at the top.
        assert server.parent == client.id
        assert client.parent == steps["endpoint checks"].id
        assert deploy.parent == steps["endpoint"].id
        assert train.parent == steps["model"].id
        assert {span.parent for span in steps.values()} == {""}
        assert not any(span.failed for span in seen.spans)
        log = next((project.root / ".notebooked" / "jobs").glob("*/log.txt")).read_text()
        assert f"trace 00-{train.trace}-{train.id}-" in log
        assert steps["endpoint"].attributes["cicd.pipeline.name"] == "iris_job"
        assert steps["endpoint"].attributes["cicd.pipeline.task.type"] == "deploy"
        assert steps["endpoint"].attributes["cicd.pipeline.task.run.result"] == "success"
        assert deploy.attributes["deployment.status"] == "succeeded"
        assert train.attributes["notebooked.provider"] == "local"
        assert client.attributes["http.response.status_code"] == 200
        assert server.attributes["http.response.status_code"] == 200
        assert (server.service, client.service) == ("iris", "notebooked-dagster")

        _predictions_have_spans(LocalProvider(project.root / ".notebooked"), seen)
    finally:
        project.delete_endpoint()


def _predictions_have_spans(provider: LocalProvider, seen: Collector) -> None:
    """Whoever asks the endpoint later has a trace of its own, and what is refused is no error of the server's."""
    before = len(seen.spans)
    with tracing.span("caller"):
        provider.predict("iris", {"inputs": [[5.1, 3.5, 1.4, 0.2]]})
    with pytest.raises(InvalidInputError):
        provider.predict("iris", {"inputs": [["a", "b"]]})
    tracing.forget()
    deadline = time.monotonic() + 10
    while len(seen.spans) < before + 5 and time.monotonic() < deadline:
        time.sleep(0.05)
    later = seen.spans[before:]
    caller = next(span for span in later if span.name == "caller")
    assert [span.trace for span in later].count(caller.trace) == 3
    refused = [span for span in later if span.attributes.get("http.response.status_code") == 400]
    assert {(span.kind, span.failed) for span in refused} == {("client", True), ("server", False)}
    assert len({span.trace for span in refused}) == 1
