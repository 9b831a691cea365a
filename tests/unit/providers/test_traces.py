"""What is handed to clouds of a trace: ``TRACEPARENT`` to jobs, ``traceparent`` to endpoints."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from notebooked_dagster.core import tracing
from notebooked_dagster.errors import DeploymentError
from notebooked_dagster.providers.azure.hosting import Hosting as AzureHosting
from notebooked_dagster.providers.base import Experiment
from notebooked_dagster.providers.sagemaker import hosting as sagemaker
from notebooked_dagster.providers.vertex.session import GcpSession
from tests.contract.scripts import write_scripts
from tests.otlp import Collector, collector


@pytest.fixture
def seen(monkeypatch: pytest.MonkeyPatch) -> Iterator[Collector]:
    tracing.forget()
    with collector() as found:
        for name, value in found.environment().items():
            monkeypatch.setenv(name, value)
        yield found
        tracing.forget()


def test_a_job_in_a_cloud_is_handed_the_trace(provider: Any, seen: Collector, tmp_path: Path) -> None:
    job = provider.train(Experiment("sample", write_scripts(tmp_path / "scripts")))
    span = seen.wait("train sample")[0]
    told = provider.session.client("sagemaker").describe_training_job(TrainingJobName=job.id)
    assert told["Environment"]["TRACEPARENT"].startswith(f"00-{span.trace}-{span.id}-")
    assert span.attributes["notebooked.job.id"] == job.id
    assert (span.attributes["notebooked.provider"], span.attributes["cloud.provider"]) == ("sagemaker", "aws")


def test_a_deployment_that_fails_is_a_failed_span(provider: Any, seen: Collector, tmp_path: Path) -> None:
    experiment = Experiment("sample", write_scripts(tmp_path / "scripts"))
    with pytest.raises(DeploymentError):
        provider.deploy(experiment, str(tmp_path / "none"), "sample")
    span = seen.wait("deploy sample")[0]
    assert span.failed
    assert span.attributes["deployment.status"] == "failed"
    assert span.attributes["error.type"] == "DeploymentError"


def test_requests_to_clouds_carry_the_trace(seen: Collector, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[dict[str, Any]] = []

    def request(*arguments: Any, **more: Any) -> SimpleNamespace:
        asked.append(more["headers"])
        return SimpleNamespace(status_code=200)

    vertex = GcpSession("p", "r", None)
    vertex.__dict__["_http"] = SimpleNamespace(request=request)
    azure = object.__new__(AzureHosting)
    azure._input = SimpleNamespace(check=lambda name, body: None)  # type: ignore[assignment]

    def score(name: str, body: bytes, headers: dict[str, str]) -> SimpleNamespace:
        asked.append(headers)
        return SimpleNamespace(status_code=200, content=b"{}")

    monkeypatch.setattr(azure, "_score", score)
    with tracing.span("caller") as span:
        vertex.send("POST", "http://x", content=b"{}")
        azure.predict("x", {})
        asked.append({"traceparent": sagemaker._trace()["CustomAttributes"].removeprefix("traceparent=")})
    assert [headers["traceparent"].split("-")[1] for headers in asked] == [span.trace_id] * 3
    vertex.send("POST", "http://x", content=b"{}")
    assert "traceparent" not in asked[-1]
    assert sagemaker._trace() == {}
