"""An experiment on SageMaker through the whole graph, as a user has it: the real ``dagster`` and ``notebooked`` commands."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import dagster as dg
import pytest

from tests.clouds.aws import AwsServer
from tests.clouds.kit import BUCKET, ROLE, aws_server
from tests.end_to_end.dagster_kit import BIN, SmallProject

pytestmark = pytest.mark.slow
JOB = ("dagster", "job", "execute", "-m", "notebooked_dagster.definitions", "-j", "iris_job")
MODEL = dg.AssetKey(["iris", "model"])


@pytest.fixture
def aws(tmp_path: Path) -> Iterator[AwsServer]:
    with aws_server(tmp_path / "aws") as server:
        yield server


@pytest.fixture
def project(tmp_path: Path, aws: AwsServer) -> SmallProject:
    made = SmallProject(
        tmp_path / "project", "provider: sagemaker\nmetric_gate: {metric: accuracy, min: 0.5}\nretries: 1"
    )
    made.environment.update({name: value for name, value in os.environ.items() if name.startswith("AWS_")})
    (made.root / "config.yaml").write_text(f"aws:\n  role_arn: {ROLE}\n  bucket: {BUCKET}\n  poll: 0.1\n")
    return made


@pytest.fixture
def instance(project: SmallProject, monkeypatch: pytest.MonkeyPatch) -> Iterator[dg.DagsterInstance]:
    """The project's instance, and this process in the project."""
    for name, value in project.environment.items():
        monkeypatch.setenv(name, value)
    monkeypatch.chdir(project.root)
    with dg.DagsterInstance.get() as found:
        yield found


def model(instance: dg.DagsterInstance) -> dg.AssetMaterialization:
    event = instance.get_latest_materialization_event(MODEL)
    assert event is not None
    assert event.asset_materialization is not None
    return event.asset_materialization


def test_one_word_changed_trains_and_serves_in_the_cloud(
    project: SmallProject, aws: AwsServer, instance: dg.DagsterInstance
) -> None:
    project.declare(
        "iris",
        "notebook: notebooks/iris.ipynb\nprovider: sagemaker\nmetric_gate: {metric: accuracy, min: 0.5}",
    )
    done = project.run(*JOB)
    assert done.returncode == 0, done.stderr[-3000:]
    assert "accuracy" in done.stdout  # the cloud's log is in the run's

    planned = project.run("notebooked", "plan", "iris")
    assert planned.returncode == 0, planned.stderr
    assert "train.py" in planned.stdout
    assert "would get a new version" in planned.stdout
    policies = json.loads(project.run("notebooked", "plan", "iris", "--policy").stdout)
    assert policies["caller"]["Statement"]

    metadata = model(instance).metadata
    assert metadata["model_uri"].value.startswith(f"s3://{BUCKET}/")
    assert metadata["cost (USD, estimated)"].value > 0
    assert str(metadata["console"].value).startswith("https://eu-central-1.console.aws.amazon.com/")
    # The job could not reach MLflow from where it ran; its run is filled in and ended from here.
    from notebooked_dagster.tracking import Tracking, local_uri

    run = Tracking(local_uri(project.root / ".notebooked"), "iris").client.get_run(
        metadata["mlflow_run_id"].value
    )
    assert run.info.status == "FINISHED"
    assert run.data.metrics["accuracy"] == metadata["metric accuracy"].value
    assert run.data.tags["notebooked/provider"] == "sagemaker"
    assert metadata["model_version"].value == "1"

    checks = instance.event_log_storage.get_asset_check_execution_history(
        dg.AssetCheckKey(dg.AssetKey(["iris", "endpoint"]), "smoke_prediction"), limit=1
    )
    assert checks[0].status.value == "SUCCEEDED"
    asked = project.run("notebooked", "predict", "iris")  # the declaration says where
    assert len(json.loads(asked.stdout)["predictions"]) == 3
    listed = json.loads(project.run("notebooked", "--json", "jobs").stdout)
    assert [job["provider"] for job in listed] == ["sagemaker"]
    assert "accuracy" in project.run("notebooked", "logs", listed[0]["id"]).stdout
    assert "iris" in project.run("notebooked", "endpoints").stdout
    removed = project.run("notebooked", "delete-endpoint", "iris", "--yes")
    assert removed.returncode == 0
    assert "is kept" in removed.stdout
    assert not aws.sagemaker.endpoints


def test_a_run_that_does_not_wait_ends_and_the_sensor_makes_the_model_once(
    project: SmallProject, aws: AwsServer, instance: dg.DagsterInstance
) -> None:
    from notebooked_dagster.definitions import project_definitions
    from notebooked_dagster.resources import Workplace

    config = project.root / "run.yaml"
    config.write_text(
        json.dumps({"ops": {"iris__model": {"config": {"wait": False, "hyperparameters": {"C": 2.0}}}}})
    )
    done = project.run(*JOB, "-c", str(config))
    assert done.returncode == 0, done.stderr[-3000:]
    assert instance.get_latest_materialization_event(MODEL) is None
    (name,) = aws.sagemaker.jobs
    while aws.sagemaker.jobs[name].status == "InProgress":
        time.sleep(0.1)

    definitions = project_definitions(Workplace.here())
    sensor = definitions.resolve_sensor_def("training_jobs")
    reported = []
    for _ in range(3):
        tick = sensor.evaluate_tick(
            dg.build_sensor_context(
                instance=instance, definitions=definitions, resources=definitions.resources
            )
        )
        reported.append([type(event).__name__ for event in tick.asset_events])
        for event in tick.asset_events:
            instance.report_runless_asset_event(event)
    assert reported == [["AssetMaterialization"], ["AssetCheckEvaluation"], []]
    made = model(instance)
    assert made.metadata["job"].value == name
    assert made.tags is not None
    assert made.tags["dagster/data_version"] == name
    assert "training fingerprint" in made.metadata

    # What it made is as good as what a run makes: it can be deployed.
    assert project.run("notebooked", "deploy", "iris").returncode == 0


def test_a_failure_that_nobody_waited_for_is_told_with_its_cell(
    project: SmallProject, aws: AwsServer, instance: dg.DagsterInstance
) -> None:
    from notebooked_dagster.definitions import project_definitions
    from notebooked_dagster.resources import Workplace

    project.edit("model.fit(X_train, y_train)", "model.fit(X_train, 1 / 0)")
    project.declare(
        "iris", "notebook: notebooks/iris.ipynb\ntracking: false\nprovider: sagemaker\nwait: false"
    )
    assert project.run(*JOB).returncode == 0
    (name,) = aws.sagemaker.jobs
    while aws.sagemaker.jobs[name].status == "InProgress":
        time.sleep(0.1)
    definitions = project_definitions(Workplace.here())
    sensor = definitions.resolve_sensor_def("training_jobs")
    tick = sensor.evaluate_tick(
        dg.build_sensor_context(instance=instance, definitions=definitions, resources=definitions.resources)
    )
    (event,) = tick.asset_events
    assert isinstance(event, dg.AssetObservation)
    assert "ZeroDivisionError" in str(event.description)
    assert "cell 5, line 2" in str(event.description)


def test_a_run_repeated_after_its_process_was_killed_takes_up_the_job_that_runs(
    project: SmallProject, aws: AwsServer, instance: dg.DagsterInstance
) -> None:
    project.edit("model.fit(X_train, y_train)", "import time; time.sleep(12)\nmodel.fit(X_train, y_train)")
    killed = subprocess.Popen(
        [str(BIN / JOB[0]), *JOB[1:]],
        cwd=project.root,
        env=project.environment,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    while not any(job.secondary == "Training" for job in aws.sagemaker.jobs.values()):
        time.sleep(0.05)
        assert killed.poll() is None
    killed.send_signal(signal.SIGKILL)
    killed.wait()
    (run,) = instance.get_runs()
    instance.report_run_failed(run)

    from dagster._core.definitions.reconstruct import ReconstructableRepository

    repository = ReconstructableRepository.for_module("notebooked_dagster.definitions", "defs")
    options = dg.ReexecutionOptions(parent_run_id=run.run_id)
    with dg.execute_job(
        repository.get_reconstructable_job("iris_job"), instance=instance, reexecution_options=options
    ) as again:
        assert again.success
    assert len(aws.sagemaker.jobs) == 1
    assert model(instance).metadata["job"].value == next(iter(aws.sagemaker.jobs))
