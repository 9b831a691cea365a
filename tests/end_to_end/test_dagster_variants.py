"""What a declaration may ask of Dagster beside the plain case: days, executors, another provider, another model."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import dagster as dg
import httpx
import pytest

from notebooked_dagster.definitions import project_definitions
from notebooked_dagster.providers.local import LocalProvider
from notebooked_dagster.resources import Workplace
from tests.contract.test_third_party import install
from tests.end_to_end.dagster_kit import Events, SmallProject

pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[SmallProject]:
    made = SmallProject(tmp_path / "project", "parity: false")
    monkeypatch.setenv("NOTEBOOKED_PROJECT_ROOT", str(made.root))
    yield made
    made.delete_endpoint()


@pytest.fixture
def instance() -> Iterator[dg.DagsterInstance]:
    with dg.DagsterInstance.ephemeral() as made:
        yield made


def execute(instance: dg.DagsterInstance, job: str = "iris_job", **asked: Any) -> dg.ExecuteInProcessResult:
    return (
        project_definitions(Workplace.here())
        .resolve_job_def(job)
        .execute_in_process(instance=instance, raise_on_error=False, **asked)
    )


def metadata(instance: dg.DagsterInstance, part: str) -> dict[str, Any]:
    event = instance.get_latest_materialization_event(dg.AssetKey(["iris", part]))
    assert event is not None
    assert event.asset_materialization is not None
    return {name: found.value for name, found in event.asset_materialization.metadata.items()}


def test_a_model_a_day_and_one_endpoint_with_the_newest(
    project: SmallProject, instance: dg.DagsterInstance
) -> None:
    project.declare(
        "iris",
        "notebook: notebooks/iris.ipynb\ntracking: false\nparity: false\npartitions: {daily: 2026-01-01}\n"
        'data_path: data/{partition}\nschedule: "0 3 * * *"',
    )
    uris = {}
    for day in ("2026-01-02", "2026-01-01"):
        (project.root / "data" / day).mkdir(parents=True)
        result = execute(instance, partition_key=day)
        assert result.success
        uris[day] = metadata(instance, "model")["model_uri"]
        assert metadata(instance, "model")["data"].endswith(f"data/{day}")
    assert instance.get_materialized_partitions(dg.AssetKey(["iris", "model"])) == set(uris)
    # An older day that is made later is not what is served.
    assert metadata(instance, "endpoint")["model_uri"] == uris["2026-01-02"]


def test_the_schedule_of_daily_data_asks_for_the_day_that_ended(project: SmallProject) -> None:
    project.declare(
        "iris",
        "notebook: notebooks/iris.ipynb\ntracking: false\nparity: false\npartitions: {daily: 2026-01-01}\n"
        'data_path: data/{partition}\nschedule: "0 3 * * *"',
    )
    repository = project_definitions(Workplace.here()).get_repository_def()
    from datetime import UTC, datetime

    context = dg.build_schedule_context(
        scheduled_execution_time=datetime(2026, 2, 3, 3, tzinfo=UTC), repository_def=repository
    )
    data = repository.get_schedule_def("iris_schedule").evaluate_tick(context)
    assert [request.partition_key for request in data.run_requests or ()] == ["2026-02-02"]


def test_steps_in_processes_of_their_own(project: SmallProject) -> None:
    project.declare(
        "iris", "notebook: notebooks/iris.ipynb\ntracking: false\nparity: false\nexecutor: multiprocess"
    )
    done = project.run("dagster", "job", "execute", "-m", "notebooked_dagster.definitions", "-j", "iris_job")
    assert done.returncode == 0, done.stderr[-3000:]
    assert "Launching subprocess" in done.stderr
    with dg.DagsterInstance.from_config(str(project.root)) as instance:
        assert Events(instance).counts() == {
            "training_code": 1, "inference_code": 1, "model": 1, "endpoint": 1,
        }  # fmt: skip


def test_another_provider_for_one_run(
    project: SmallProject, instance: dg.DagsterInstance, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    site = tmp_path / "site"
    site.mkdir()
    monkeypatch.syspath_prepend(str(site))
    install(site, "inline-provider", inline="tests.contract.third_party:InlineProvider")
    config = {"ops": {"iris__model": {"config": {"provider": "inline"}}}}
    assert execute(instance, "iris_train_job", run_config=config).success
    assert metadata(instance, "model")["provider"] == "inline"
    assert not (project.root / ".notebooked" / "jobs").exists()


def test_a_provider_that_nobody_has_is_told_with_those_there_are(
    project: SmallProject, instance: dg.DagsterInstance
) -> None:
    config = {"ops": {"iris__model": {"config": {"provider": "loacl"}}}}
    result = execute(instance, "iris_train_job", run_config=config)
    (failed,) = [event for event in result.all_events if event.is_step_failure]
    failure = failed.step_failure_data.user_failure_data
    assert failure is not None
    assert "loacl" in (failure.description or "")
    assert "local" in (failure.description or "").replace("loacl", "")


def test_an_older_model_is_deployed_by_its_name_in_the_registry(
    project: SmallProject, instance: dg.DagsterInstance
) -> None:
    pytest.importorskip("mlflow")
    project.declare("iris", "notebook: notebooks/iris.ipynb\nparity: false")
    assert execute(instance).success
    assert execute(
        instance,
        "iris_train_job",
        run_config={"ops": {"iris__model": {"config": {"hyperparameters": {"C": 0.001}}}}},
    ).success
    result = execute(
        instance,
        asset_selection=[dg.AssetKey(["iris", "endpoint"])],
        run_config={"ops": {"iris__endpoint": {"config": {"model_uri": "models:/iris/1"}}}},
    )
    assert result.success
    found = metadata(instance, "endpoint")
    assert found["model_uri"] == "models:/iris/1"
    live = LocalProvider(project.root / ".notebooked").endpoint("iris").deployments
    (served,) = [item for item in live if item.weight == 100]
    assert served.model_uri == "models:/iris/1"
    # Its own metrics, not those of the newest model: the next champion gate compares with them.
    assert json.loads(served.labels["metrics"])["accuracy"] > 0.9
    answer = httpx.post(f"{found['URL']}/invocations", json={"inputs": [[5.1, 3.5, 1.4, 0.2]]})
    assert answer.json()["predictions"] == [0]
