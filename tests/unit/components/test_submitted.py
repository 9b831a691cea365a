"""Training that nobody waits for: each job is one model, whoever asks twice, dies in between or comes too late."""

from __future__ import annotations

import json
import logging
import threading
import time
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import dagster as dg
import pytest
from dagster._core.storage.runs.schema import RunsTable
from sqlalchemy import select

from notebooked_dagster.components import submitted
from notebooked_dagster.components.submission import taken_up
from notebooked_dagster.core.redaction import REDACTOR
from notebooked_dagster.providers.base import Experiment, JobStatus, TrainingJob
from tests.unit.components.kit import MODEL, HandProject, HandProvider, hand_project

AUTOMATIC = {"dagster/from_automation_condition": "true"}


@pytest.fixture
def instance(tmp_path: Path) -> Iterator[dg.DagsterInstance]:
    (tmp_path / "home").mkdir()
    with dg.DagsterInstance.local_temp(str(tmp_path / "home")) as made:
        yield made


@pytest.fixture
def project(tmp_path: Path, instance: dg.DagsterInstance, monkeypatch: pytest.MonkeyPatch) -> HandProject:
    made = hand_project(
        tmp_path / "project",
        instance,
        monkeypatch,
        "wait: false\nmetric_gate: {metric: accuracy, min: 0.5}",
    )
    assert made.run("notebook", "training_code", "inference_code").success
    return made


def kinds(events: list[object]) -> list[str]:
    return [type(event).__name__ for event in events]


def test_a_model_is_made_when_its_job_has_ended_and_only_then(project: HandProject) -> None:
    assert project.run("model").success
    # A PostgreSQL whose time zone is east of UTC stamps its runs so.
    made = RunsTable.c.create_timestamp
    with project.instance.run_storage.connect() as connection:
        for stamp, run_id in connection.execute(select(made, RunsTable.c.run_id)).all():
            later = {"create_timestamp": stamp + timedelta(hours=2)}
            connection.execute(RunsTable.update().where(RunsTable.c.run_id == run_id).values(later))
    assert project.models() == []
    assert project.look() == []
    assert project.note == "1 training jobs run."
    project.provider.end("job-1")
    assert kinds(project.look()) == ["AssetMaterialization"]
    # It names the model's event, so it comes when that is there.
    assert kinds(project.look()) == ["AssetCheckEvaluation"]
    assert project.look() == []
    assert project.look() == []
    assert project.note == "No training is waited for."
    assert [model.metadata["job"].value for model in project.models()] == ["job-1"]


def test_a_job_that_takes_longer_than_a_look_to_bring_home_is_asked_once(
    project: HandProject, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert project.run("model").success
    project.provider.end("job-1")
    asked: list[str] = []
    home = threading.Event()
    status = project.provider.status

    def slowly(job_id: str) -> TrainingJob:
        asked.append(job_id)
        assert home.wait(60)
        return status(job_id)

    monkeypatch.setattr(project.provider, "status", slowly)
    monkeypatch.setattr(submitted, "_LONGEST_LOOK", 0.2)
    for _ in range(2):
        assert project.look() == []
        assert project.note == "1 training jobs run."
    home.set()
    deadline = time.monotonic() + 60
    while not (events := project.look()) and time.monotonic() < deadline:
        pass
    assert kinds(events) == ["AssetMaterialization"]
    assert asked == ["job-1"]


def test_dagster_knows_its_inputs_as_of_a_training_that_was_waited_for(project: HandProject) -> None:
    assert project.run("model", wait=True).success
    assert project.run("model").success
    project.provider.end("job-2")
    project.look()
    late, waited = (model.tags or {} for model in project.models())
    ours = {name: value for name, value in late.items() if name.startswith("dagster/")}
    theirs = {name: value for name, value in waited.items() if name.startswith("dagster/input")}
    assert theirs
    assert {name: value for name, value in ours.items() if name.startswith("dagster/input")} == theirs
    assert ours["dagster/data_version_is_user_provided"] == waited["dagster/data_version_is_user_provided"]
    assert {"stage hashes", "training fingerprint", "scripts"} <= project.models()[0].metadata.keys()


def test_a_daemon_that_asks_again_submits_nothing_twice(project: HandProject) -> None:
    assert project.run("model").success
    assert project.run("model", tags=AUTOMATIC).success
    assert project.run("model", tags={"dagster/sensor_name": "notebook_changes"}).success
    assert len(project.provider.jobs) == 1
    # It is another training where something of it is another.
    assert project.run("model", tags=AUTOMATIC, model={"hyperparameters": {"C": 3.0}}).success
    assert len(project.provider.jobs) == 2
    # A person who asks again wants it again.
    assert project.run("model").success
    assert len(project.provider.jobs) == 3


def test_a_run_that_repeats_another_inherits_its_tags_and_the_model_is_made_once(
    project: HandProject,
) -> None:
    first = project.run("model")
    run = project.instance.get_run_by_id(first.run_id)
    assert run is not None
    project.run("notebook", tags=run.tags)
    project.provider.end("job-1")
    assert kinds(project.look()) == ["AssetMaterialization"]
    assert kinds(project.look()) == ["AssetCheckEvaluation"]
    # As where the daemon had died before it closed the tags of the first.
    project.run("notebook", tags=run.tags)
    assert project.look() == []
    assert project.look() == []
    assert len(project.models()) == 1


def test_a_process_that_died_after_it_submitted_has_lost_nothing(project: HandProject) -> None:
    project.provider.after = RuntimeError("killed")
    assert not project.run("model").success
    assert project.look() == []
    project.provider.end("job-1")
    assert "AssetMaterialization" in kinds(project.look())
    assert project.models()[0].metadata["job"].value == "job-1"


def test_a_process_that_died_before_it_submitted_is_told_once(project: HandProject) -> None:
    project.provider.before = RuntimeError("killed")
    assert not project.run("model").success
    (event,) = project.look()
    assert isinstance(event, dg.AssetObservation)
    assert "before it had submitted" in str(event.description)
    assert project.look() == []
    assert project.look() == []


def test_what_a_run_submits_while_the_sensor_looks_is_not_lost(project: HandProject) -> None:
    first = project.run("model")
    run = project.instance.get_run_by_id(first.run_id)
    assert run is not None
    project.provider.end("job-1")
    inherited = {name: value for name, value in run.tags.items() if name.startswith("notebooked/")}

    listed = project.provider.list_jobs

    def list_jobs(experiment: str | None = None) -> list[TrainingJob]:
        project.provider.list_jobs = listed  # type: ignore[method-assign]
        found = listed(experiment)
        assert project.run("model", tags=inherited).success
        return found

    project.provider.list_jobs = list_jobs  # type: ignore[method-assign]
    for _ in range(3):
        project.look()
    project.provider.end("job-2")
    for _ in range(3):
        project.look()
    assert {model.metadata["job"].value for model in project.models()} == {"job-1", "job-2"}


def test_a_schedule_submits_nothing_that_still_runs(project: HandProject) -> None:
    for _ in range(3):
        assert project.run("model", tags={"dagster/schedule_name": "iris_schedule"}).success
    assert len(project.provider.jobs) == 1


def test_a_failure_is_an_observation_with_its_reason_and_without_secrets(
    project: HandProject, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(REDACTOR, "_values", set())
    monkeypatch.setattr(REDACTOR, "_pattern", None)
    REDACTOR.add("hunter2-hunter2")
    assert project.run("model").success
    project.provider.end(
        "job-1", JobStatus.FAILED, message="No hunter2-hunter2.", traceback="cell 5, hunter2-hunter2"
    )
    (event,) = project.look()
    assert isinstance(event, dg.AssetObservation)
    assert event.description == "No ***.\ncell 5, ***"
    assert "is failed: No ***." in project.note
    assert project.look() == []


def test_a_training_that_took_longer_does_not_replace_a_later_one(project: HandProject) -> None:
    assert project.run("model").success
    assert project.run("model", model={"hyperparameters": {"C": 3.0}}).success
    project.provider.end("job-2")
    project.look()
    project.look()
    project.provider.end("job-1")
    (event,) = project.look()
    assert isinstance(event, dg.AssetObservation)
    assert "asked for later" in str(event.description)
    assert project.look() == []
    assert [model.metadata["job"].value for model in project.models()] == ["job-2"]


def test_one_that_was_asked_for_earlier_and_ends_first_keeps_its_place(project: HandProject) -> None:
    assert project.run("model").success
    assert project.run("model", model={"hyperparameters": {"C": 3.0}}).success
    for job in ("job-1", "job-2"):
        project.provider.end(job)
        assert "AssetMaterialization" in kinds(project.look())
        project.look()
    assert [model.metadata["job"].value for model in project.models()] == ["job-2", "job-1"]


@pytest.mark.parametrize("problem", [OSError("disk"), ConnectionError("away")])
def test_a_provider_out_of_reach_is_asked_again(project: HandProject, problem: Exception) -> None:
    assert project.run("model").success
    project.provider.end("job-1")
    project.provider.away = problem
    assert project.look() == []
    assert str(problem) in project.note
    project.provider.away = None
    assert "AssetMaterialization" in kinds(project.look())


def test_a_job_that_the_provider_has_forgotten_is_told_once(project: HandProject) -> None:
    assert project.run("model").success
    project.provider.jobs.clear()
    project.provider.tokens.clear()
    (event,) = project.look()
    assert "There is no job job-1" in str(event.description)
    assert project.look() == []


def test_a_tag_that_is_none_of_ours_is_put_away(project: HandProject) -> None:
    project.run("notebook", tags={"notebooked/open_jobs": "true", "notebooked/job/iris": "nonsense"})
    project.run("notebook", tags={"notebooked/open_jobs": "true", "notebooked/job/iris": json.dumps([1])})
    assert project.look() == []
    assert project.note == "No training is waited for."


def test_each_partition_has_a_model_and_a_verdict_of_its_own(
    tmp_path: Path, instance: dg.DagsterInstance, monkeypatch: pytest.MonkeyPatch
) -> None:
    project = hand_project(
        tmp_path / "project",
        instance,
        monkeypatch,
        "wait: false\npartitions: {datasets: [a, b]}\nmetric_gate: {metric: accuracy, min: 0.5}",
    )
    assert project.run("notebook", "training_code", "inference_code").success
    for partition, accuracy in (("a", 0.9), ("b", 0.1)):
        assert project.run("model", partition=partition).success
        project.provider.metrics = {"accuracy": accuracy}
        project.provider.end(f"job-{len(project.provider.jobs)}")
    events = [*project.look(), *project.look()]
    verdicts = {
        event.partition: event.passed for event in events if isinstance(event, dg.AssetCheckEvaluation)
    }
    assert verdicts == {"a": True, "b": False}
    # So that Dagster's own conditions see it.
    partitions = instance.event_log_storage.get_asset_check_partition_info(
        [dg.AssetCheckKey(MODEL, "metric_gate")]
    )
    assert {info.partition_key: info.is_current for info in partitions} == {"a": True, "b": True}
    # Only the model that passed may be deployed.
    assert project.run("endpoint", partition="a").success
    assert not project.run("endpoint", partition="b").success


@pytest.mark.parametrize("generations", [1, 2])
@pytest.mark.parametrize("attempt", [0, 2])
def test_a_run_that_is_repeated_takes_up_the_job_that_runs(
    instance: dg.DagsterInstance, generations: int, attempt: int
) -> None:
    run = first = instance.add_run(dg.DagsterRun("iris_job", run_id="first"))
    for number in range(generations):
        run = instance.add_run(
            dg.DagsterRun(
                "iris_job", run_id=f"again-{number}", root_run_id=first.run_id, parent_run_id=run.run_id
            )
        )
    provider = HandProvider()
    provider.tokens = {f"first/iris//{attempt}": "job-1"}
    provider.jobs = {"job-1": TrainingJob("job-1", "iris", "local", JobStatus.RUNNING)}
    context: Any = SimpleNamespace(run=run, instance=instance, retry_number=0, log=logging.getLogger())
    asked = Experiment("iris", Path(), idempotency_token=f"{run.run_id}/iris//0")
    assert taken_up(context, provider, asked, attempts=3).idempotency_token == f"first/iris//{attempt}"
    # Who repeats a run that has ended wants to train again.
    provider.end("job-1")
    assert taken_up(context, provider, asked, attempts=3) == asked
