"""An experiment on Vertex AI through the whole graph, as a user has it: the real ``dagster`` and ``notebooked`` commands."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path

import dagster as dg
import pytest

from tests.clouds.gcp import GcpServer
from tests.clouds.gcp_kit import BUCKET, gcp_server, settings
from tests.end_to_end.dagster_kit import SmallProject

pytestmark = pytest.mark.slow
JOB = ("dagster", "job", "execute", "-m", "notebooked_dagster.definitions", "-j", "iris_job")
MODEL = dg.AssetKey(["iris", "model"])


@pytest.fixture
def gcp(tmp_path: Path) -> Iterator[GcpServer]:
    with gcp_server(tmp_path / "gcp") as server:
        yield server


@pytest.fixture
def project(tmp_path: Path, gcp: GcpServer) -> SmallProject:
    made = SmallProject(tmp_path / "project", "provider: gcp\nmetric_gate: {metric: accuracy, min: 0.5}")
    made.environment.update({name: value for name, value in os.environ.items() if name.startswith("GOOGLE_")})
    asked = settings(gcp)
    section = {key: asked[key] for key in ("project", "region", "bucket", "service_account", "endpoint_url")}
    (made.root / "config.yaml").write_text(json.dumps({"gcp": {**section, "poll": 0.1}}))
    return made


def test_one_word_changed_trains_and_serves_at_googles(
    project: SmallProject, gcp: GcpServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    done = project.run(*JOB)
    assert done.returncode == 0, done.stderr[-3000:]
    assert "accuracy" in done.stdout  # the cloud's log is in the run's

    planned = project.run("notebooked", "plan", "iris")
    assert planned.returncode == 0, planned.stderr
    assert "would get a new version" in planned.stdout
    policies = json.loads(project.run("notebooked", "plan", "iris", "--policy").stdout)
    assert policies["caller"]["on the project"]["role"]["includedPermissions"]

    for name, value in project.environment.items():
        monkeypatch.setenv(name, value)
    monkeypatch.chdir(project.root)
    with dg.DagsterInstance.get() as instance:
        event = instance.get_latest_materialization_event(MODEL)
        assert event is not None
        assert event.asset_materialization is not None
        metadata = event.asset_materialization.metadata
        checks = instance.event_log_storage.get_asset_check_execution_history(
            dg.AssetCheckKey(dg.AssetKey(["iris", "endpoint"]), "smoke_prediction"), limit=1
        )
    assert metadata["model_uri"].value.startswith(f"gs://{BUCKET}/")
    assert metadata["cost (USD, estimated)"].value > 0
    assert checks[0].status.value == "SUCCEEDED"

    asked = project.run("notebooked", "predict", "iris")  # the declaration says where
    assert len(json.loads(asked.stdout)["predictions"]) == 3
    listed = json.loads(project.run("notebooked", "--json", "jobs").stdout)
    assert [job["provider"] for job in listed] == ["vertex"]
    assert "accuracy" in project.run("notebooked", "logs", listed[0]["id"]).stdout
    assert "iris" in project.run("notebooked", "endpoints").stdout
    removed = project.run("notebooked", "delete-endpoint", "iris", "--yes")
    assert removed.returncode == 0, removed.stderr
    assert "is kept" in removed.stdout
    assert not gcp.vertex.endpoints
    assert not gcp.vertex.models
