"""The life of a job that runs elsewhere, in a cloud that is a dictionary."""

from __future__ import annotations

import dataclasses
import threading
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, ClassVar

import filelock
import pytest

from notebooked_dagster.errors import DataError, ProviderError
from notebooked_dagster.providers.base import Capability, Experiment, JobStatus
from notebooked_dagster.providers.cloud import launch
from notebooked_dagster.providers.cloud.provider import CloudProvider, Remote, job_name
from notebooked_dagster.providers.cloud.waiting import OutOfReachError
from notebooked_dagster.providers.jobs import JobSpec
from tests.contract.scripts import write_scripts

NOW = datetime.now(UTC)
RUNNING = Remote(JobStatus.RUNNING, started_at=NOW)
DONE = Remote(JobStatus.SUCCEEDED, started_at=NOW, finished_at=NOW, model_uri="dict://model")


class Sky:
    """What all machines see: jobs, their logs and who asked for what."""

    def __init__(self) -> None:
        self.jobs: dict[str, Remote] = {}
        self.lines: dict[str, list[list[str]]] = {}
        self.stopped: list[str] = []
        self.trouble: list[BaseException] = []


class DictCloud(CloudProvider):
    """Its jobs are done when it has looked often enough."""

    name: ClassVar[str] = "dict"
    capabilities: ClassVar[frozenset[Capability]] = frozenset({Capability.TRAIN, Capability.TRAIN_NO_WAIT})
    _hosting: Any = None
    storage: Any = None

    def __init__(self, sky: Sky, state: Path, **more: Any) -> None:
        super().__init__(state, poll=0.0, log_grace=0.0, **more)
        self.sky = sky
        self.looks, self.enough = 0, 5
        self.while_sending: Callable[[], None] = lambda: None

    def options(self, given: Mapping[str, Any]) -> Any:
        return None

    def _check(self, experiment: Experiment) -> None:
        pass

    def _submit(self, job_id: str, spec: JobSpec, package: Path, environment: Mapping[str, str]) -> None:
        self.while_sending()
        self.sky.jobs[job_id] = dataclasses.replace(RUNNING, environment=dict(environment))

    def _look(self, job_id: str) -> Remote | None:
        if self.sky.trouble:
            raise self.sky.trouble.pop(0)
        self.looks += 1
        found = self.sky.jobs.get(job_id)
        if found is not None and self.looks >= self.enough and not found.status.finished:
            found = dataclasses.replace(DONE, environment=found.environment)
        return found

    def _summaries(self, since: datetime | None = None) -> dict[str, Remote]:
        return dict(self.sky.jobs)

    def _stop(self, job_id: str) -> None:
        self.sky.stopped.append(job_id)

    def _lines(self, job_id: str, cursor: Any) -> tuple[list[str], Any]:
        """Each look finds another part; one who asks for the whole gets the parts of each machine together."""
        parts = self.sky.lines.get(job_id, [])
        if cursor is None and self.looks >= self.enough:
            return sorted(line for part in parts for line in part), len(parts)
        start = cursor or 0
        return (parts[start] if start < len(parts) else []), start + 1

    def _fetch_code(self, job_id: str, target: Path) -> None:
        raise DataError("It is gone.")

    def _fetch_output(self, job_id: str, remote: Remote, target: Path) -> None:
        raise DataError("There is none.")

    def _fetch_model(self, job_id: str, remote: Remote, target: Path) -> None:
        pass

    def _has_model(self, job_id: str, remote: Remote) -> bool:
        return True


@pytest.fixture
def sky() -> Sky:
    return Sky()


@pytest.fixture
def cloud(sky: Sky, tmp_path: Path) -> DictCloud:
    return DictCloud(sky, tmp_path / "state")


@pytest.fixture
def experiment(tmp_path: Path) -> Experiment:
    return Experiment("sample", write_scripts(tmp_path / "scripts"), idempotency_token="run-1")


def spec_of(cloud: DictCloud, job_id: str) -> JobSpec:
    return JobSpec.model_validate_json((cloud.state / "jobs" / job_id / "spec.json").read_bytes())


# Other machines and other processes


def test_a_job_that_was_only_looked_at_is_taken_up_with_all_that_was_asked_for(
    sky: Sky, cloud: DictCloud, experiment: Experiment, tmp_path: Path
) -> None:
    asked = dataclasses.replace(experiment, registered_model="churn")
    first = cloud.train(asked, wait=False)
    other = DictCloud(sky, tmp_path / "another-machine")
    seen = other.job_of("sample", "run-1")
    assert seen is not None
    assert (seen.id, seen.status) == (first.id, JobStatus.RUNNING)
    # Who only looks, and sees it end, has to register its model, too.
    assert spec_of(other, first.id).registered_model == "churn"
    assert other.train(dataclasses.replace(asked, tags={"team": "ml"})).status is JobStatus.SUCCEEDED
    assert spec_of(other, first.id).tags == {"team": "ml"}
    assert list(sky.jobs) == [first.id]


def test_the_mlflow_run_of_a_job_that_was_only_looked_at_is_known(
    sky: Sky, cloud: DictCloud, experiment: Experiment
) -> None:
    job_id = job_name("sample", "run-1")
    sky.jobs[job_id] = RUNNING
    assert cloud.status(job_id).mlflow_run_id is None
    sky.jobs[job_id] = dataclasses.replace(RUNNING, environment={"NOTEBOOKED_MLFLOW_RUN": "abc"})
    assert cloud.train(experiment, wait=False).mlflow_run_id == "abc"


def test_two_processes_may_look_up_a_job_at_once(
    sky: Sky, cloud: DictCloud, monkeypatch: pytest.MonkeyPatch
) -> None:
    job_id = job_name("sample", "run-1")
    sky.jobs[job_id] = RUNNING
    other = DictCloud(sky, cloud.state.parent)
    # The other one is through while the first fetches the code.
    monkeypatch.setattr(cloud, "_fetch_code", lambda *given: other.status(job_id))
    assert cloud.status(job_id).id == job_id


def test_a_folder_that_nobody_finished_making_is_made_again(cloud: DictCloud, experiment: Experiment) -> None:
    half = cloud.state / "jobs" / job_name("sample", "run-1") / "code"
    half.mkdir(parents=True)
    assert cloud.train(experiment).status is JobStatus.SUCCEEDED


# Trouble


@pytest.mark.parametrize(
    "trouble", [OSError(28, "No space left on device"), filelock.Timeout("x"), RuntimeError("an SDK's own")]
)
def test_trouble_of_ours_does_not_stop_the_job(
    sky: Sky, cloud: DictCloud, experiment: Experiment, trouble: Exception, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(job_id: str, cursor: Any) -> Any:
        raise trouble

    with monkeypatch.context() as broken:
        broken.setattr(cloud, "_lines", fail)
        with pytest.raises(type(trouble)):
            cloud.train(experiment)
    assert sky.stopped == []
    assert cloud.train(experiment).status is JobStatus.SUCCEEDED


def test_an_interrupt_stops_the_job(sky: Sky, cloud: DictCloud, experiment: Experiment) -> None:
    job = cloud.train(experiment, wait=False)

    def interrupt(line: str) -> None:
        raise KeyboardInterrupt

    sky.lines[job.id] = [["begun"]]
    with pytest.raises(KeyboardInterrupt):
        cloud.train(experiment, on_log=interrupt)
    assert sky.stopped == [job.id]


@pytest.mark.parametrize(("error", "stopped"), [(KeyboardInterrupt(), True), (OSError(), False)])
def test_an_interrupt_while_a_job_is_submitted_stops_it(
    sky: Sky, cloud: DictCloud, experiment: Experiment, error: BaseException, stopped: bool
) -> None:
    def send() -> None:
        sky.jobs[job_name("sample", "run-1")] = RUNNING
        raise error

    cloud.while_sending = send
    with pytest.raises(type(error)):
        cloud.train(experiment)
    assert sky.stopped == (list(sky.jobs) if stopped else [])


def test_a_job_that_is_being_sent_is_looked_at_without_waiting(
    sky: Sky, cloud: DictCloud, experiment: Experiment
) -> None:
    sending, looked = threading.Event(), threading.Event()

    def send() -> None:
        sending.set()
        assert looked.wait(60)

    cloud.while_sending = send
    thread = threading.Thread(target=cloud.train, args=(experiment, False))
    thread.start()
    try:
        assert sending.wait(60)
        other = DictCloud(sky, cloud.state.parent)
        assert [job.status for job in other.list_jobs()] == [JobStatus.PENDING]
        assert other.status(job_name("sample", "run-1")).status is JobStatus.PENDING
    finally:
        looked.set()
        thread.join(60)


def test_a_cloud_that_is_away_for_a_moment_ends_neither_following_nor_cancelling(
    sky: Sky, cloud: DictCloud, experiment: Experiment
) -> None:
    job = cloud.train(experiment, wait=False)
    sky.lines[job.id] = [["one"], ["two"]]
    following = cloud.logs(job.id, follow=True)
    assert next(following) == "one"
    sky.trouble.append(OutOfReachError("503"))
    cloud.enough = cloud.looks
    assert list(following) == ["two"]
    assert sky.trouble == []
    other = cloud.train(dataclasses.replace(experiment, idempotency_token="run-2"), wait=False)
    cloud.enough = cloud.looks + 5

    def stop(job_id: str) -> None:
        sky.trouble.append(OutOfReachError("503"))

    cloud._stop = stop  # type: ignore[method-assign]
    assert cloud.cancel(other.id).status.finished


def test_a_job_that_does_not_stop_is_not_told_as_stopped(
    sky: Sky, experiment: Experiment, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cloud = DictCloud(sky, tmp_path / "state", patience=0.0)
    job = cloud.train(experiment, wait=False)
    monkeypatch.setattr(cloud, "_look", lambda job_id: RUNNING)
    with pytest.raises(ProviderError, match="has not ended"):
        cloud.cancel(job.id)


# What is shown and sent


def test_every_line_is_shown_once_whatever_order_the_whole_log_has(
    sky: Sky, cloud: DictCloud, experiment: Experiment
) -> None:
    job = cloud.train(experiment, wait=False)
    sky.lines[job.id] = [["[b] 1", "a 10%\ra 20%"], ["a end", "[b] 1"], ["late"]]
    seen: list[str] = []
    cloud.train(experiment, on_log=seen.append)
    assert sorted(seen) == ["[b] 1", "[b] 1", "a 10%", "a 20%", "a end", "late"]
    assert sorted(cloud.logs(job.id)) == sorted(seen)


@pytest.mark.parametrize(
    ("uri", "sent"),
    [("https://mlflow.example.com", True), ("https://token@mlflow.example.com", False), ("https://u:p@mlflow.example.com", False)],
)  # fmt: skip
def test_no_login_reaches_the_jobs_environment(
    sky: Sky, cloud: DictCloud, experiment: Experiment, monkeypatch: pytest.MonkeyPatch, uri: str, sent: bool
) -> None:
    joined = {"MLFLOW_TRACKING_URI": uri, "MLFLOW_RUN_ID": "abc"}
    monkeypatch.setattr("notebooked_dagster.providers.run_tracking.RunTracking.start", lambda self: joined)
    job = cloud.train(dataclasses.replace(experiment, tracking_uri=uri), wait=False)
    environment = sky.jobs[job.id].environment
    assert environment["MLFLOW_RUN_ID"] == "abc"
    assert ("MLFLOW_TRACKING_URI" in environment) is sent


def test_an_address_that_looks_like_a_file_may_be_a_folder(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit, match="did not arrive"):
        launch.data_argument(str(tmp_path), "v1.2")
    (tmp_path / "part.csv").touch()
    assert launch.data_argument(str(tmp_path), "v1.2") == [f"--data-path={tmp_path}"]
    assert "no file 'v1.2'" in capsys.readouterr().out
    assert launch.data_argument(str(tmp_path), "part.csv") == [f"--data-path={tmp_path}/part.csv"]
