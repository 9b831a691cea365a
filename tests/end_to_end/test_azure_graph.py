"""An experiment on Azure Machine Learning through the whole graph, as a user has it: the real ``dagster`` and ``notebooked``."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import dagster as dg
import pytest

from tests.clouds.azure import GROUP, WORKSPACE, AzureServer
from tests.clouds.azure_kit import azure_server
from tests.end_to_end.dagster_kit import SmallProject

pytestmark = pytest.mark.slow
JOB = ("dagster", "job", "execute", "-m", "notebooked_dagster.definitions", "-j", "iris_job")


@pytest.fixture
def azure(tmp_path: Path) -> Iterator[AzureServer]:
    with azure_server(tmp_path / "azure") as server:
        yield server


@pytest.fixture
def project(tmp_path: Path, azure: AzureServer) -> SmallProject:
    made = SmallProject(tmp_path / "project", "provider: azure")
    made.declare(
        "iris", "notebook: notebooks/iris.ipynb\nprovider: azure\nmetric_gate: {metric: accuracy, min: 0.5}"
    )
    made.environment.update(azure.environment())
    (made.root / "config.yaml").write_text(
        f"azure:\n  resource_group: {GROUP}\n  workspace: {WORKSPACE}\n  endpoint_url: {azure.url}\n  poll: 0.1\n"
    )
    return made


def test_one_word_changed_trains_and_serves_in_the_cloud(
    project: SmallProject, azure: AzureServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    done = project.run(*JOB)
    assert done.returncode == 0, done.stderr[-3000:]
    assert "accuracy" in done.stdout  # the cloud's log is in the run's

    planned = project.run("notebooked", "plan", "iris")
    assert planned.returncode == 0, planned.stderr
    assert "would get a new version" in planned.stdout
    policies = json.loads(project.run("notebooked", "plan", "iris", "--policy").stdout)
    assert policies["caller"]["Actions"]

    for name, value in project.environment.items():
        monkeypatch.setenv(name, value)
    with dg.DagsterInstance.get() as instance:
        event = instance.get_latest_materialization_event(dg.AssetKey(["iris", "model"]))
        checks = instance.event_log_storage.get_asset_check_execution_history(
            dg.AssetCheckKey(dg.AssetKey(["iris", "endpoint"]), "smoke_prediction"), limit=1
        )
    assert event is not None
    assert event.asset_materialization is not None
    metadata = event.asset_materialization.metadata
    assert str(metadata["model_uri"].value).startswith(
        "azureml://datastores/workspaceblobstore/paths/notebooked/"
    )
    assert metadata["cost (USD, estimated)"].value > 0
    assert str(metadata["console"].value).startswith("https://ml.azure.com/")
    assert metadata["model_version"].value == "1"
    assert checks[0].status.value == "SUCCEEDED"

    asked = project.run("notebooked", "predict", "iris")
    assert len(json.loads(asked.stdout)["predictions"]) == 3
    listed = json.loads(project.run("notebooked", "--json", "jobs").stdout)
    assert [job["provider"] for job in listed] == ["azure"]
    assert "accuracy" in project.run("notebooked", "logs", listed[0]["id"]).stdout
    removed = project.run("notebooked", "delete-endpoint", "iris", "--yes")
    assert removed.returncode == 0, removed.stderr
    assert "is kept" in removed.stdout
    assert not azure.ml.endpoints
