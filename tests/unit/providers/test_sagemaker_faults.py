"""What goes wrong in a cloud, and that nothing is lost, doubled or left behind."""

from __future__ import annotations

import dataclasses
import json
import os
import signal
import subprocess
import sys
import tarfile
import time
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from notebooked_dagster.errors import (
    ConfigError,
    CredentialsError,
    DataError,
    DeploymentError,
    ProviderError,
    QuotaError,
)
from notebooked_dagster.providers.base import EndpointStatus, Experiment, JobStatus
from notebooked_dagster.providers.cloud.waiting import OutOfReachError
from notebooked_dagster.providers.sagemaker import SageMakerProvider
from notebooked_dagster.providers.sagemaker.session import translated
from tests.clouds.aws import AwsServer
from tests.clouds.kit import BUCKET, ROLE, sagemaker_provider
from tests.contract.scripts import write_scripts
from tests.unit.providers.faults import Kit, StopFaults, acting, deployed_at_once

ROWS = {"dataframe_records": [{"x": 1.0}]}


@pytest.fixture
def experiment(tmp_path: Path) -> Experiment:
    return Experiment("sample", write_scripts(tmp_path / "scripts"), idempotency_token="run-1")


@pytest.fixture
def kit(aws: AwsServer, monkeypatch: pytest.MonkeyPatch) -> Kit:
    # What is short for the SDK is long for a test.
    monkeypatch.setenv("AWS_MAX_ATTEMPTS", "1")

    def put(key: str, content: bytes | None) -> None:
        if content is None:
            aws.s3().delete_object(Bucket=BUCKET, Key=key)
        else:
            aws.s3().put_object(Bucket=BUCKET, Key=key, Body=content)

    return Kit(
        machine=sagemaker_provider,
        emulator=aws.sagemaker,
        jobs=lambda: list(aws.sagemaker.jobs),
        ended=lambda job: aws.sagemaker.jobs[job].status in ("Completed", "Stopped"),
        put=put,
        submit="CreateTrainingJob",
        refusals={"quota": "service limit", "denied": "CreateTrainingJob", "expired": "renew"},
        listing=frozenset({"ListTrainingJobs"}),
        model="output/model.tar.gz",
        facts="output/model.tar.gz",
        output="output/output.tar.gz",
        stop=lambda job: aws.sagemaker.stop_training_job({"TrainingJobName": job}),
    )


class TestJobs(StopFaults):
    """The faults of every cloud."""


# Submitting


def test_a_process_killed_after_submitting_leaves_one_job_which_the_next_finds(
    aws: AwsServer, experiment: Experiment, tmp_path: Path
) -> None:
    program = f"""
import os, signal
from pathlib import Path
from notebooked_dagster.providers.base import Experiment
from notebooked_dagster.providers.registry import get_provider
provider = get_provider("sagemaker", state_dir={str(tmp_path / "state")!r}, role_arn={ROLE!r}, bucket={BUCKET!r}, poll=0.05)
submit = provider._submit
provider._submit = lambda *given: (submit(*given), os.kill(os.getpid(), signal.SIGKILL))
provider.train(Experiment("sample", Path({str(experiment.scripts)!r}), hyperparameters={{"act": "slow"}}, idempotency_token="run-1"))
"""
    died = subprocess.run([sys.executable, "-c", program], env=os.environ, check=False)
    assert died.returncode == -signal.SIGKILL
    job = sagemaker_provider(tmp_path / "state").train(acting(experiment, "slow"))
    assert job.status is JobStatus.SUCCEEDED
    assert list(aws.sagemaker.jobs) == [job.id]


def test_a_job_that_never_reached_the_cloud_is_given_up_and_can_be_begun_again(
    aws: AwsServer, provider: SageMakerProvider, experiment: Experiment, monkeypatch: pytest.MonkeyPatch
) -> None:
    def die(*given: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as broken:
        broken.setattr(provider, "_submit", die)
        broken.setattr(provider, "_abandon", lambda *given: None)
        with pytest.raises(KeyboardInterrupt):
            provider.train(experiment)
    (job,) = provider.list_jobs()
    assert job.status is JobStatus.PENDING
    record = tmp_record(provider, job.id)
    record.write_text(
        record.read_text()
        .replace('"created_at":"20', '"created_at":"19')
        .replace('"created_at": "20', '"created_at": "19')
    )
    given_up = provider.status(job.id)
    assert (given_up.status, given_up.id) == (JobStatus.FAILED, job.id)
    assert "not known" in given_up.message
    done = provider.train(experiment)
    assert (done.status, done.id) == (JobStatus.SUCCEEDED, job.id)


def tmp_record(provider: SageMakerProvider, job_id: str) -> Path:
    return provider.state / "jobs" / job_id / "job.json"


def test_a_lost_reply_to_the_submission_is_no_second_job(
    aws: AwsServer, provider: SageMakerProvider, experiment: Experiment
) -> None:
    aws.sagemaker.fail("CreateTrainingJob", "lost", times=2)
    assert provider.train(experiment).status is JobStatus.SUCCEEDED
    assert len(aws.sagemaker.jobs) == 1


def test_throttling_and_faults_of_the_service_are_waited_out(
    aws: AwsServer, provider: SageMakerProvider, experiment: Experiment
) -> None:
    aws.sagemaker.fail("DescribeTrainingJob", "throttle", times=3)
    aws.sagemaker.fail("CreateTrainingJob", "error", times=2)
    assert provider.train(experiment).status is JobStatus.SUCCEEDED
    assert len(aws.sagemaker.jobs) == 1


def test_a_machine_that_the_region_does_not_have_is_a_configuration_error(
    aws: AwsServer, provider: SageMakerProvider, experiment: Experiment
) -> None:
    with pytest.raises(ConfigError, match=r"ml\.abacus\.large") as caught:
        provider.train(dataclasses.replace(experiment, instance_type="ml.abacus.large"))
    assert caught.value.key == "instance_type"
    assert provider.list_jobs() == []


def test_no_machine_free_is_said_to_be_that(
    aws: AwsServer, provider: SageMakerProvider, experiment: Experiment
) -> None:
    aws.sagemaker.no_capacity.add("ml.m5.large")
    with pytest.raises(QuotaError, match="Unable to provision"):
        provider.train(experiment)


def test_data_that_is_not_in_s3_is_a_data_error(
    aws: AwsServer, provider: SageMakerProvider, experiment: Experiment
) -> None:
    with pytest.raises(DataError, match="No S3 objects"):
        provider.train(dataclasses.replace(experiment, data_path=f"s3://{BUCKET}/nothing/here.csv"))


def test_the_same_data_is_sent_once(
    aws: AwsServer, provider: SageMakerProvider, experiment: Experiment, tmp_path: Path
) -> None:
    data = tmp_path / "numbers.txt"
    data.write_text("1 2 6")
    for token in ("a", "b"):
        job = provider.train(dataclasses.replace(experiment, data_path=str(data), idempotency_token=token))
        assert job.metrics == {"mean": 3.0, "count": 3.0}
    keys = [
        item["Key"] for item in aws.s3().list_objects_v2(Bucket=BUCKET, Prefix="notebooked/data/")["Contents"]
    ]
    assert len([key for key in keys if key.endswith("numbers.txt")]) == 1


# Waiting


def test_a_hundred_waiting_jobs_are_one_call(
    aws: AwsServer, provider: SageMakerProvider, experiment: Experiment
) -> None:
    for number in range(12):
        provider.train(
            dataclasses.replace(experiment, hyperparameters={"act": "hang"}, idempotency_token=str(number)),
            wait=False,
        )
    aws.sagemaker.calls.clear()
    assert len(provider.list_jobs()) == 12
    assert aws.sagemaker.calls == ["ListTrainingJobs"]
    now = datetime.now(UTC)
    assert set(provider.states(now - timedelta(hours=1)).values()) <= {JobStatus.PENDING, JobStatus.RUNNING}
    assert len(provider.states(now - timedelta(hours=1))) == 12
    assert provider.states(now + timedelta(hours=1)) == {}


def test_what_a_job_cost_is_told(aws: AwsServer, provider: SageMakerProvider, experiment: Experiment) -> None:
    facts = provider.train(experiment).facts
    assert facts["instance"] == "1 x ml.m5.large"
    assert facts["billed (s)"] >= 1
    assert facts["cost (USD, estimated)"] == pytest.approx(0.115 * facts["billed (s)"] / 3600, abs=1e-4)
    assert str(facts["console"]).startswith("https://")


def test_the_mlflow_run_of_a_killed_submitter_is_ended_by_who_takes_the_job_up(
    aws: AwsServer, provider: SageMakerProvider, experiment: Experiment, tmp_path: Path
) -> None:
    from notebooked_dagster.tracking import Tracking, local_uri

    uri = local_uri(tmp_path / "mlflow-state")
    tracked = dataclasses.replace(acting(experiment, "slow"), tracking_uri=uri)
    first = provider.train(tracked, wait=False)
    # The machine that submitted it is gone, with all it had on disk.
    other = sagemaker_provider(tmp_path / "another-machine", tracking_uri=uri)
    done = other.train(tracked)
    assert done.id == first.id
    assert done.mlflow_run_id is not None
    client = Tracking(uri, "sample").client
    runs = client.search_runs([client.get_experiment_by_name("sample").experiment_id])
    assert [(run.info.run_id, run.info.status) for run in runs] == [(done.mlflow_run_id, "FINISHED")]
    assert runs[0].data.metrics["mean"] == done.metrics["mean"]


# What is sent


def test_what_is_sent_runs_without_us_and_holds_no_credentials(
    aws: AwsServer, provider: SageMakerProvider, experiment: Experiment, tmp_path: Path
) -> None:
    hyperparameters = {"note": "it's", "shift": 0.25}
    wanted = dataclasses.replace(experiment, hyperparameters=hyperparameters, environment={"LEVEL": "2"})
    job = provider.train(wanted)
    request = aws.sagemaker.jobs[job.id].request
    assert request["Environment"]["LEVEL"] == "2"
    assert json.loads(request["HyperParameters"]["note"]) == "it's"
    assert "testing" not in json.dumps(request)
    archive = tmp_path / "sent.tar.gz"
    aws.s3().download_file(BUCKET, f"notebooked/jobs/{job.id}/source/sourcedir.tar.gz", str(archive))
    with tarfile.open(archive) as opened:
        names = opened.getnames()
    assert {
        "train.py",
        "preprocess.py",
        "requirements.txt",
        "notebooked_launch.py",
        "notebooked_job.json",
    } <= set(names)


def test_the_same_package_is_the_same_bytes(
    provider: SageMakerProvider, experiment: Experiment, tmp_path: Path
) -> None:
    first = provider.package(experiment, tmp_path / "a.tar.gz")
    for path in experiment.scripts.iterdir():
        os.utime(path, (1, 1))
    assert provider.package(experiment, tmp_path / "b.tar.gz") == first


def test_options_reach_the_request(
    aws: AwsServer, provider: SageMakerProvider, experiment: Experiment
) -> None:
    training = {
        "spot": True, "max_wait": 7200, "checkpoint": True, "volume_size": 50, "kms_key": "key-1", "encrypt_traffic": True,
        "subnets": ["subnet-1"], "security_groups": ["sg-1"], "tags": {"team": "ml & co"}, "max_runtime": 3600,
    }  # fmt: skip
    job = provider.train(dataclasses.replace(experiment, options={"training": training}, instance_count=2))
    request = aws.sagemaker.jobs[job.id].request
    assert request["EnableManagedSpotTraining"] is True
    assert request["StoppingCondition"] == {"MaxRuntimeInSeconds": 3600, "MaxWaitTimeInSeconds": 7200}
    assert request["CheckpointConfig"] == {"S3Uri": f"s3://{BUCKET}/notebooked/checkpoints/{job.id}"}
    assert request["ResourceConfig"]["InstanceCount"] == 2
    assert request["ResourceConfig"]["VolumeKmsKeyId"] == "key-1"
    assert request["VpcConfig"] == {"Subnets": ["subnet-1"], "SecurityGroupIds": ["sg-1"]}
    assert {"Key": "team", "Value": "ml - co"} in request["Tags"]
    assert "saved by spot (%)" in job.facts


def test_without_a_network_the_package_comes_by_a_channel(
    aws: AwsServer, provider: SageMakerProvider, experiment: Experiment
) -> None:
    training = {"network_isolation": True, "image": "mine"}
    job = provider.train(dataclasses.replace(experiment, options={"training": training}))
    assert job.status is JobStatus.SUCCEEDED


def test_an_upload_that_fails_is_told_as_any_call_is(
    experiment: Experiment, provider: SageMakerProvider, tmp_path: Path
) -> None:
    (tmp_path / "file").write_text("x")
    with pytest.raises(ProviderError, match="does not exist"):
        provider.storage.upload(tmp_path / "file", "s3://nobodys-bucket/file")


def test_a_transfer_that_gave_up_may_work_later() -> None:
    from boto3.exceptions import RetriesExceededError

    with (
        pytest.raises(OutOfReachError, match="The file cannot be read"),
        translated("The file cannot be read"),
    ):
        raise RetriesExceededError(OSError("reset"))


@pytest.mark.parametrize(
    ("options", "key"),
    [
        ({"trainin": {}}, "options.trainin"),
        ({"training": {"spott": True}}, "options.training.spott"),
        ({"training": {"subnets": ["a"]}}, "options.training"),
        ({"endpoint": {"serverless": True, "autoscaling": {"max": 2}}}, "options.endpoint"),
    ],
)
def test_wrong_options_are_refused_before_anything_is_sent(
    aws: AwsServer, provider: SageMakerProvider, experiment: Experiment, options: dict[str, object], key: str
) -> None:
    with pytest.raises(ConfigError) as caught:
        provider.train(dataclasses.replace(experiment, options=options))
    assert caught.value.key == key
    assert aws.sagemaker.calls == []


@pytest.mark.parametrize("missing", ["role_arn", "bucket"])
def test_what_is_not_configured_is_named(
    aws: AwsServer, experiment: Experiment, tmp_path: Path, missing: str
) -> None:
    with pytest.raises(ConfigError) as caught:
        sagemaker_provider(tmp_path / "state", **{missing: None}).train(experiment)
    assert caught.value.key == f"aws.{missing}"


def test_without_credentials_it_says_where_they_come_from(
    aws: AwsServer, provider: SageMakerProvider, experiment: Experiment, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.delenv(name)
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", "/nonexistent")
    with pytest.raises(CredentialsError, match="aws sso login"):
        provider.train(experiment)


# Endpoints


@pytest.fixture
def served(provider: SageMakerProvider, experiment: Experiment) -> str:
    """The model that the endpoint ``live`` serves."""
    uri = provider.train(experiment).model_uri
    assert uri is not None
    provider.deploy(experiment, uri, "live")
    return uri


def test_a_model_that_does_not_load_never_gets_traffic_and_leaves_nothing(
    aws: AwsServer, provider: SageMakerProvider, experiment: Experiment, served: str, tmp_path: Path
) -> None:
    before = (set(aws.sagemaker.models), set(aws.sagemaker.configs))
    broken = tmp_path / "broken"
    broken.mkdir()
    (broken / "inference.py").write_text("def model_fn(folder):\n    raise OSError('no weights')\n")
    with pytest.raises(DeploymentError, match="no weights") as caught:
        provider.deploy(experiment, str(broken), "live")
    assert "serves what it served before" in caught.value.message
    assert provider.predict("live", ROWS) == {"predictions": [3.0]}
    assert (set(aws.sagemaker.models), set(aws.sagemaker.configs)) == before
    assert provider.endpoint("live").status is EndpointStatus.HEALTHY


def test_a_first_deployment_that_fails_leaves_no_endpoint(
    aws: AwsServer, provider: SageMakerProvider, experiment: Experiment, tmp_path: Path
) -> None:
    broken = tmp_path / "broken"
    broken.mkdir()
    (broken / "inference.py").write_text("raise OSError('no weights')\n")
    with pytest.raises(DeploymentError, match="no weights"):
        provider.deploy(experiment, str(broken), "first")
    deadline = time.monotonic() + 10
    while aws.sagemaker.endpoints and time.monotonic() < deadline:
        time.sleep(0.05)
    assert provider.list_endpoints() == []
    assert aws.sagemaker.models == aws.sagemaker.configs == {}


def test_of_two_deployments_at_once_one_is_told_to_wait(
    aws: AwsServer, provider: SageMakerProvider, experiment: Experiment, served: str, tmp_path: Path
) -> None:
    outcomes = deployed_at_once(
        lambda number: sagemaker_provider(tmp_path / f"state-{number}"), experiment, served
    )
    kinds = sorted(type(item).__name__ for item in outcomes)
    # Either one was told to wait, or they were far enough apart to follow each other.
    assert kinds in (["DeploymentConflictError", "Endpoint"], ["Endpoint", "Endpoint"])
    assert provider.predict("live", ROWS) == {"predictions": [3.0]}
    roles = {item.version for item in provider.endpoint("live").deployments}
    assert {name.rpartition("-v")[2] for name in aws.sagemaker.models} == roles


def test_deleting_removes_all_that_was_made_and_names_what_stays(
    aws: AwsServer, provider: SageMakerProvider, experiment: Experiment, served: str
) -> None:
    provider.deploy(experiment, served, "live-two")
    left = provider.delete_endpoint("live")
    assert any(served in sentence for sentence in left)
    assert list(aws.sagemaker.endpoints) == ["nbd-live-two"]
    assert list(aws.sagemaker.models) == ["nbd-live-two-v1"]
    assert len(aws.sagemaker.configs) == 1
    kept = [
        item["Key"]
        for item in aws.s3().list_objects_v2(Bucket=BUCKET, Prefix="notebooked/endpoints/")["Contents"]
    ]
    assert all(key.startswith("notebooked/endpoints/nbd-live-two/") for key in kept)
    assert provider.predict("live-two", ROWS) == {"predictions": [3.0]}


def test_what_two_deployments_leave_is_one_version_for_a_rollback(
    aws: AwsServer, provider: SageMakerProvider, experiment: Experiment, served: str
) -> None:
    for _ in range(2):
        provider.deploy(experiment, served, "live")
    assert sorted(aws.sagemaker.models) == ["nbd-live-v2", "nbd-live-v3"]
    assert len(aws.sagemaker.configs) == 1
