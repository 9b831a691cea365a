"""What Azure says of a job, in our terms."""

from __future__ import annotations

from typing import Any

import pytest

from notebooked_dagster.providers.azure.training import duration, remote_of
from notebooked_dagster.providers.base import JobStatus
from tests.clouds.azure_models import ARM, problems

START, END = "2026-11-21T10:00:00.1234567Z", "2026-11-21T10:01:40.1234567Z"


def ended(status: str, error: dict[str, Any] | None = None, **properties: Any) -> Any:
    job = {
        "properties": {"jobType": "Command", "status": status, "limits": {"timeout": "PT1H"}, **properties}
    }
    details = {"startTimeUtc": START, "endTimeUtc": END, **({"error": {"error": error}} if error else {})}
    return remote_of(job, details, {})


@pytest.mark.parametrize(
    ("code", "message", "status", "error"),
    [
        ("UserError", "Quota exceeded for standardDSv2Family", JobStatus.FAILED, "QuotaError"),
        ("UserError", "AllocationFailed: no capacity", JobStatus.FAILED, "QuotaError"),
        ("ImageBuildFailure", "Image build failed: no such package", JobStatus.FAILED, "MissingPackageError"),
        ("UserError", "data-capability: the path was not found", JobStatus.FAILED, "DataError"),
        (
            "UserError",
            "StreamAccess: authentication failed for the input",
            JobStatus.FAILED,
            "CredentialsError",
        ),
        (
            "UserError",
            "The identity is not authorized to pull the image",
            JobStatus.FAILED,
            "CredentialsError",
        ),
        ("SystemError", "something went wrong", JobStatus.FAILED, "ProviderError"),
        ("UserError", "The job exceeded its maximum run duration", JobStatus.TIMED_OUT, ""),
        ("UserError", "User process exited with status code 137.", JobStatus.KILLED, "TrainingKilledError"),
        # What the script said last is quoted in Azure's words, and is not Azure's.
        ("UserError", "exited with status code 1. Error: Disk quota exceeded", JobStatus.FAILED, ""),
        ("UserError", "exited with status code 1. Error: recursion exceeded in time", JobStatus.FAILED, ""),
    ],
)
def test_whose_fault_a_failure_is(code: str, message: str, status: JobStatus, error: str) -> None:
    found = ended("Failed", {"code": code, "message": message})
    assert (found.status, found.error) == (status, error)


def test_a_job_that_was_stopped_at_its_limit_is_overdue_and_one_before_it_is_cancelled() -> None:
    assert ended("Canceled", limits={"timeout": "PT1M"}).status is JobStatus.TIMED_OUT
    assert ended("Canceled", limits={"timeout": "PT1H"}).status is JobStatus.CANCELLED


@pytest.mark.parametrize(
    "status", ["Running", "Finalizing", "CancelRequested", "NotResponding", "Paused", "Unknown"]
)
def test_what_has_a_machine_runs(status: str) -> None:
    assert ended(status).status is JobStatus.RUNNING


def test_times_and_cost() -> None:
    resources = {"instanceCount": 2, "instanceType": "Standard_DS3_v2"}
    found = ended("Completed", resources=resources)
    assert (found.finished_at - found.started_at).total_seconds() == 100
    assert found.facts["cost (USD, estimated)"] == pytest.approx(2 * 0.293 * 100 / 3600, abs=1e-4)
    cluster = ended("Completed", resources={"instanceCount": 1}, computeId="/x/computes/cpu-cluster")
    assert cluster.facts == {"instance": "1 of cpu-cluster", "ran (s)": 100.0}


def test_the_job_s_own_variables_tell_who_takes_it_up_whose_it_is() -> None:
    ours = {"NOTEBOOKED_EXPERIMENT": "two_words", "NOTEBOOKED_MLFLOW_RUN": "abc"}
    assert ended("Completed", environmentVariables=ours).environment == ours


def test_an_item_of_the_list_knows_when_it_was_made() -> None:
    job = {"properties": {"status": "Failed"}, "systemData": {"createdAt": START, "lastModifiedAt": END}}
    found = remote_of(job, None, {})
    assert (found.finished_at - found.started_at).total_seconds() == 100


@pytest.mark.parametrize(
    ("text", "seconds"), [("PT90S", 90), ("PT1H30M", 5400), ("P1DT1S", 86401), ("", None), ("P", None)]
)
def test_durations(text: str, seconds: int | None) -> None:
    found = duration(text)
    assert (found.total_seconds() if found is not None else None) == seconds


def test_the_models_that_the_tests_azure_is_held_against_are_strict() -> None:
    properties: dict[str, Any] = {"jobType": "Command", "command": "true", "environmentId": "/x"}
    assert problems(ARM, "JobBase", {"properties": properties}, sent=True) == []
    for wrong, said in (
        ({"commandd": "x"}, "unknown field"),
        ({"status": "Running"}, "not for a request"),
        ({"command": None}, "is required"),
        ({"queueSettings": {"jobTier": "Cheap"}}, "is none of"),
        ({"limits": {"jobLimitsType": "Command", "timeout": "5 minutes"}}, "no duration"),
        ({"inputs": {"a": {"jobInputType": "uri_file"}}}, "'uri' is required"),
        ({"environmentVariables": {"A": 1}}, "no str"),
    ):
        found = problems(ARM, "JobBase", {"properties": {**properties, **wrong}}, sent=True)
        assert said in "; ".join(found)
