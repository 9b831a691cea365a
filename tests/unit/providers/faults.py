"""What can go wrong with a training job in every cloud: one suite, as ``tests/contract`` is; a cloud is a kit.

A cloud's own file holds the faults that only that cloud has.
"""

from __future__ import annotations

import dataclasses
import threading
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest

from notebooked_dagster.errors import (
    CredentialsError,
    NotebookedError,
    ProviderError,
    QuotaError,
    TrainingCancelledError,
    TrainingKilledError,
)
from notebooked_dagster.providers.base import Endpoint, Experiment, JobStatus
from notebooked_dagster.providers.cloud.provider import CloudProvider
from tests.contract.scripts import write_scripts


def deployed_at_once(
    machine: Callable[[int], CloudProvider], experiment: Experiment, model: str, *, machines: int = 2
) -> list[Endpoint | NotebookedError]:
    """What became of several deployments of the endpoint ``live`` at once, each from a machine of its own."""
    outcomes: list[Endpoint | NotebookedError] = []

    def deploy(number: int) -> None:
        try:
            outcomes.append(machine(number).deploy(experiment, model, "live"))
        except NotebookedError as error:
            outcomes.append(error)

    threads = [threading.Thread(target=deploy, args=(number,)) for number in range(machines)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert len(outcomes) == machines
    return outcomes


@dataclasses.dataclass(frozen=True)
class Kit:
    """A cloud, to the suite.

    Attributes:
        machine: A provider with its own state folder, and settings: another machine.
        emulator: What has ``fail`` and ``faults``.
        jobs: The names of the jobs that the cloud has.
        ended: Whether one of them has ended.
        put: Writes a file of our folder, or removes all that starts so where its content is None.
        model: All of the model, below the job's folder.
        facts: The file of it that is read first.
        output: Where the script's output lies.
        submit: The call that starts a job.
        refusals: What is said where that is refused: by fault.
        listing: The calls that list jobs.
        stop: Stops a job as somebody does at the cloud's console.
        no_model: What is said where nothing is left of a model.
    """

    machine: Callable[..., CloudProvider]
    emulator: Any
    jobs: Callable[[], list[str]]
    ended: Callable[[str], object]
    put: Callable[[str, bytes | None], object]
    submit: str
    refusals: Mapping[str, str]
    listing: frozenset[str]
    model: str = "model/model.tar.gz"
    facts: str = "model/model.tar.gz"
    output: str = "output.tar.gz"
    stop: Callable[[str], object] = lambda job: None
    no_model: str = "model cannot be read"


def acting(experiment: Experiment, act: str) -> Experiment:
    return dataclasses.replace(experiment, hyperparameters={"act": act})


def on_line(wanted: str, act: Callable[[], object]) -> Callable[[str], None]:
    """A sink that does something once, when a line comes by."""
    done: list[str] = []

    def sink(line: str) -> None:
        if line == wanted and not done:
            done.append(line)
            act()

    return sink


def until(true: Callable[[], object]) -> None:
    deadline = time.monotonic() + 30
    while not true():
        assert time.monotonic() < deadline
        time.sleep(0.02)


class JobFaults:
    """The faults of every cloud. A subclass is in a module with the fixtures ``provider`` and ``kit``."""

    @pytest.fixture
    def experiment(self, tmp_path: Path) -> Experiment:
        scripts = write_scripts(tmp_path / "scripts")
        # Slow enough to be cut off in between.
        train = scripts / "train.py"
        train.write_text(train.read_text().replace("range(40)", "range(12)"))
        return Experiment("sample", scripts, idempotency_token="run-1")

    def test_another_machine_finds_the_job_by_its_token_alone(
        self, kit: Kit, provider: CloudProvider, experiment: Experiment, tmp_path: Path
    ) -> None:
        first = provider.train(experiment)
        other = kit.machine(tmp_path / "another-machine")
        # As a run looks that is tried again, and then trains.
        assert other.job_of("sample", "run-1") is not None
        assert other.train(experiment).id == first.id
        third = kit.machine(tmp_path / "a-third-machine").status(first.id)
        assert (third.status, third.metrics, third.experiment) == (
            JobStatus.SUCCEEDED,
            first.metrics,
            "sample",
        )
        assert kit.jobs() == [first.id]

    def test_listing_fetches_nothing_of_jobs_that_others_submitted(
        self, kit: Kit, provider: CloudProvider, experiment: Experiment, tmp_path: Path
    ) -> None:
        first = provider.train(dataclasses.replace(experiment, name="two_words"))
        other = kit.machine(tmp_path / "another-machine")
        kit.emulator.calls.clear()
        (seen,) = other.list_jobs("two_words")
        assert (seen.id, seen.status, seen.experiment) == (first.id, JobStatus.SUCCEEDED, "two-words")
        assert other.list_jobs("else") == []
        assert set(kit.emulator.calls) == kit.listing
        assert not list((tmp_path / "another-machine").rglob("job.json"))
        assert other.status(first.id).experiment == "two_words"

    @pytest.mark.parametrize(
        ("fault", "error"),
        [("quota", QuotaError), ("denied", CredentialsError), ("expired", CredentialsError)],
    )
    def test_a_refused_submission_leaves_nothing(
        self,
        kit: Kit,
        provider: CloudProvider,
        experiment: Experiment,
        fault: str,
        error: type[ProviderError],
    ) -> None:
        # Credentials that have expired are renewed once by themselves, by some SDKs.
        kit.emulator.fail(kit.submit, fault, times=3 if fault == "expired" else 1)
        with pytest.raises(error) as caught:
            provider.train(experiment)
        assert kit.refusals[fault] in str(caught.value)
        assert caught.value.exit_code == 2
        assert provider.list_jobs() == []
        kit.emulator.faults.clear()
        # The same run, tried again when that is mended, is a new try and not the old failure.
        assert provider.train(experiment).status is JobStatus.SUCCEEDED

    def test_the_network_may_be_away_while_a_job_is_waited_for(
        self, kit: Kit, experiment: Experiment, tmp_path: Path
    ) -> None:
        provider = kit.machine(tmp_path / "state", patience=60.0)
        cut = on_line("step 1", lambda: kit.emulator.fail("*", "drop", times=10))
        job = provider.train(acting(experiment, "slow"), on_log=cut)
        assert job.status is JobStatus.SUCCEEDED
        assert all(item.times == 0 for item in kit.emulator.faults)
        lines = [line for line in provider.logs(job.id) if line.startswith("step")]
        assert lines == [f"step {number}" for number in range(12)]

    def test_a_network_that_stays_away_ends_the_waiting_and_not_the_job(
        self, kit: Kit, experiment: Experiment, tmp_path: Path
    ) -> None:
        provider = kit.machine(tmp_path / "state", patience=0.2)
        cut = on_line("step 1", lambda: kit.emulator.fail("*", "drop", times=1000))
        with pytest.raises(ProviderError, match="no way to training job") as caught:
            provider.train(acting(experiment, "slow"), on_log=cut)
        assert "goes on" in (caught.value.hint or "")
        kit.emulator.faults.clear()
        job = kit.machine(tmp_path / "state").train(experiment)
        assert (job.status, job.id) == (JobStatus.SUCCEEDED, caught.value.details["job"])
        assert kit.jobs() == [job.id]

    def test_credentials_that_expire_end_the_waiting_and_not_the_job(
        self, kit: Kit, provider: CloudProvider, experiment: Experiment
    ) -> None:
        job = provider.train(acting(experiment, "slow"), wait=False)
        kit.emulator.fail("*", "expired", times=3)
        with pytest.raises(CredentialsError):
            provider.train(experiment)
        kit.emulator.faults.clear()
        done = provider.train(experiment)
        assert (done.status, done.id) == (JobStatus.SUCCEEDED, job.id)

    def test_a_killed_script_is_told_as_killed(self, provider: CloudProvider, experiment: Experiment) -> None:
        with pytest.raises(TrainingKilledError, match="signal 9"):
            provider.train(acting(experiment, "kill"))

    @pytest.mark.parametrize("damage", ["missing", "corrupt"])
    def test_a_model_that_is_missing_or_corrupt_is_no_success(
        self, kit: Kit, provider: CloudProvider, experiment: Experiment, damage: str
    ) -> None:
        job = provider.train(experiment, wait=False)
        until(lambda: kit.ended(job.id))
        said = "model cannot be read"
        if damage == "missing":
            kit.put(f"notebooked/jobs/{job.id}/{kit.model}", None)
            said = kit.no_model
        else:
            kit.put(f"notebooked/jobs/{job.id}/{kit.facts}", b"{half of it")
        with pytest.raises(NotebookedError, match=said):
            provider.train(experiment)

    def test_a_missing_output_costs_the_metrics_and_not_the_model(
        self, kit: Kit, provider: CloudProvider, experiment: Experiment
    ) -> None:
        job = provider.train(experiment, wait=False)
        until(lambda: kit.ended(job.id))
        kit.put(f"notebooked/jobs/{job.id}/{kit.output}", None)
        done = provider.train(experiment)
        assert (done.status, done.metrics) == (JobStatus.SUCCEEDED, {})


class StopFaults(JobFaults):
    """And those of a cloud that keeps a job that was stopped."""

    def test_a_job_stopped_from_the_console_is_cancelled(
        self, kit: Kit, provider: CloudProvider, experiment: Experiment
    ) -> None:
        def stop() -> None:
            (job,) = kit.jobs()
            kit.stop(job)

        with pytest.raises(TrainingCancelledError):
            provider.train(acting(experiment, "hang"), on_log=on_line("hanging", stop))
        (job,) = provider.list_jobs()
        assert job.status is JobStatus.CANCELLED

    def test_interrupting_who_waits_stops_the_job(
        self, kit: Kit, provider: CloudProvider, experiment: Experiment
    ) -> None:
        def interrupt() -> None:
            raise KeyboardInterrupt

        with pytest.raises(KeyboardInterrupt):
            provider.train(acting(experiment, "hang"), on_log=on_line("hanging", interrupt))
        (job,) = kit.jobs()
        until(lambda: kit.ended(job))
        assert provider.status(job).status is JobStatus.CANCELLED
