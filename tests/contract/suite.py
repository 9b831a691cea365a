"""What every provider has to do. A new provider is a subclass with two fixtures, not a new test file.

``provider`` gives a fresh provider, ``experiment`` an experiment whose ``train.py`` is ``scripts.TRAIN``. What a
provider declares is tested; what it does not declare has to be refused with CapabilityError. One that leaves training to
another provider, which passes its half, takes ``ServingContract`` alone.
"""

from __future__ import annotations

import dataclasses
import json
import time
from pathlib import Path
from typing import Any

import pytest

from notebooked_dagster.errors import (
    CapabilityError,
    ConfigError,
    DataError,
    DeploymentError,
    EndpointNotFoundError,
    InvalidInputError,
    JobNotFoundError,
    MissingPackageError,
    TrainingFailedError,
    TrainingTimeoutError,
)
from notebooked_dagster.providers.base import (
    BaseProvider,
    Capability,
    EndpointStatus,
    Experiment,
    JobStatus,
    TrainingJob,
)

SOON = 60.0
# As Dagster makes it; a job is to find it unchanged.
CONTEXT: dict[str, Any] = {
    "asset_keys": ["sample/model"],
    "code_version_by_asset_key": {"sample/model": None},
    "provenance_by_asset_key": {"sample/model": None},
    "partition_key": None,
    "partition_key_range": None,
    "partition_time_window": None,
    "run_id": "run",
    "job_name": None,
    "retry_number": 0,
    "extras": {},
}


def acting(experiment: Experiment, act: str, **changes: Any) -> Experiment:
    """The experiment, with a train.py that does something else than learn."""
    return dataclasses.replace(experiment, hyperparameters={"act": act}, **changes)


def wait_for(provider: BaseProvider, job_id: str, *, line: str | None = None) -> TrainingJob:
    """Wait until a job has ended, or has printed a line."""
    deadline = time.monotonic() + SOON
    while time.monotonic() < deadline:
        job = provider.status(job_id)
        if job.status.finished or (line is not None and line in list(provider.logs(job_id))):
            return job
        time.sleep(0.05)
    raise AssertionError(f"{job_id} neither ended nor printed {line!r}: {list(provider.logs(job_id))[-20:]}")


class Contract:
    """What holds of every provider."""

    @pytest.fixture
    def provider(self) -> BaseProvider:
        raise NotImplementedError

    @pytest.fixture
    def can(self, provider: BaseProvider) -> Any:
        def check(capability: Capability) -> None:
            if capability not in provider.capabilities:
                pytest.skip(f"{provider.name} does not declare {capability.value}")

        return check

    def test_what_is_not_declared_is_refused(self, provider, experiment):
        refused = {
            Capability.TRAIN_NO_WAIT: lambda: provider.train(experiment, wait=False),
            Capability.DEPLOY: lambda: provider.deploy(experiment, "model", "name"),
            Capability.ROLLBACK: lambda: provider.rollback("name"),
            Capability.TRAFFIC_SPLIT: lambda: provider.traffic("name", {"1": 100}),
            Capability.PIPES: lambda: provider.messages("job"),
        }
        for capability, ask in refused.items():
            if capability in provider.capabilities:
                continue
            with pytest.raises(CapabilityError) as caught:
                ask()
            assert caught.value.exit_code == 2

    def test_it_declares_a_name_and_capabilities(self, provider):
        assert isinstance(provider.name, str)
        assert provider.capabilities
        assert all(isinstance(item, Capability) for item in provider.capabilities)


class TrainingContract(Contract):
    """What holds where one trains."""

    def test_training_gives_a_model_and_metrics(self, provider, experiment, tmp_path, can):
        can(Capability.TRAIN)
        data = tmp_path / "data.txt"
        data.write_text("1 2 6")
        job = provider.train(
            dataclasses.replace(experiment, hyperparameters={"shift": -0.5}, data_path=str(data))
        )
        assert job.status is JobStatus.SUCCEEDED
        assert job.metrics == {"mean": 2.5, "count": 3.0}
        assert job.model_uri
        assert (job.experiment, job.provider, job.exit_code) == (experiment.name, provider.name, 0)
        assert job.started_at is not None
        assert job.finished_at is not None
        assert job.finished_at >= job.started_at
        assert provider.status(job.id) == job

    @pytest.mark.parametrize(
        "value", ["", 'it\'s "quoted" $HOME `x`', "--shift=9", "ünïcode\n\tline two", "-1", "[1, 2]"]
    )
    def test_strings_reach_the_script_unchanged(self, provider, experiment, value, can):
        can(Capability.TRAIN)
        job = provider.train(dataclasses.replace(experiment, hyperparameters={"note": value}))
        if job.model_uri and Path(job.model_uri).is_dir():
            facts = json.loads((Path(job.model_uri) / "model.json").read_text())
            assert facts["hyperparameters"]["note"] == value

    def test_lines_reach_the_sink_as_they_are_printed(self, provider, experiment, can):
        can(Capability.LOGS)
        seen: list[str] = []
        job = provider.train(experiment, on_log=seen.append)
        assert "training begins" in seen
        assert seen == list(provider.logs(job.id))
        assert seen == list(provider.logs(job.id, follow=True))

    def test_a_failure_is_raised_with_its_traceback(self, provider, experiment, can):
        can(Capability.TRAIN)
        with pytest.raises(TrainingFailedError, match="the loss is not a number") as caught:
            provider.train(acting(experiment, "fail"))
        assert "Traceback (most recent call last)" in str(caught.value)
        assert caught.value.exit_code == 1
        job = provider.status(caught.value.details["job"])
        assert (job.status, job.exit_code) == (JobStatus.FAILED, 1)
        assert "ValueError" in job.traceback
        assert job.model_uri is None

    def test_messages_reach_whoever_waits_and_whoever_takes_the_job_up(self, provider, experiment, can):
        can(Capability.PIPES)
        asked = acting(experiment, "report", pipes=CONTEXT, idempotency_token="run/sample//0")
        seen: list[str] = []
        job = provider.train(asked, on_message=seen.append)
        methods = [json.loads(line)["method"] for line in seen]
        assert methods == ["opened", "log", "report_asset_check", "report_custom_message", "closed"]
        assert json.loads(seen[1])["params"]["message"] == "ünïcode is told"
        assert json.loads(seen[2])["params"]["asset_key"] == "sample/model"
        # It has trained as ever.
        assert job.metrics == {"mean": 2.0, "count": 3.0}
        later: list[str] = []
        assert provider.train(asked, on_message=later.append).id == job.id
        assert later == seen
        again, cursor = provider.messages(job.id)
        assert again == seen
        assert provider.messages(job.id, cursor) == ([], cursor)

    def test_without_a_context_nothing_is_told(self, provider, experiment, can):
        can(Capability.PIPES)
        seen: list[str] = []
        job = provider.train(acting(experiment, "report"), on_message=seen.append)
        assert job.status is JobStatus.SUCCEEDED
        assert seen == []
        assert provider.messages(job.id)[0] == []

    def test_an_exit_code_is_a_failure(self, provider, experiment, can):
        can(Capability.TRAIN)
        with pytest.raises(TrainingFailedError, match="exit code 3"):
            provider.train(acting(experiment, "exit"))

    def test_training_that_saves_nothing_is_a_failure(self, provider, experiment, can):
        can(Capability.TRAIN)
        with pytest.raises(TrainingFailedError, match="saved no model"):
            provider.train(acting(experiment, "nothing"))

    def test_a_missing_package_is_named(self, provider, experiment, can):
        can(Capability.TRAIN)
        with pytest.raises(MissingPackageError, match="package_that_nobody_wrote"):
            provider.train(acting(experiment, "missing"))

    def test_missing_data_is_refused_before_anything_starts(self, provider, experiment, tmp_path, can):
        can(Capability.TRAIN)
        with pytest.raises(DataError, match="data_path"):
            provider.train(dataclasses.replace(experiment, data_path=str(tmp_path / "none.csv")))
        assert provider.list_jobs() == []

    @pytest.mark.parametrize(
        "change",
        [
            {"name": "../escape"},
            {"name": ""},
            {"hyperparameters": {"data-path": "x"}},
            {"hyperparameters": {"shift": object()}},
            {"timeout": 0},
            {"scripts": Path("no-such-folder")},
        ],
    )
    def test_what_cannot_be_trained_is_refused(self, provider, experiment, change, can):
        can(Capability.TRAIN)
        with pytest.raises(ConfigError):
            provider.train(dataclasses.replace(experiment, **change))
        assert provider.list_jobs() == []

    def test_an_unknown_hyperparameter_is_the_users_error(self, provider, experiment, can):
        can(Capability.TRAIN)
        with pytest.raises(ConfigError, match="nonsense"):
            provider.train(dataclasses.replace(experiment, hyperparameters={"nonsense": 1}))

    def test_a_time_limit_ends_a_job_that_hangs(self, provider, experiment, can):
        can(Capability.TRAIN)
        with pytest.raises(TrainingTimeoutError, match="longer than") as caught:
            provider.train(acting(experiment, "stubborn", timeout=1.5))
        assert provider.status(caught.value.details["job"]).status is JobStatus.TIMED_OUT

    def test_without_waiting_the_job_goes_on_and_is_found(self, provider, experiment, can):
        can(Capability.TRAIN_NO_WAIT)
        job = provider.train(acting(experiment, "slow"), wait=False)
        assert not job.status.finished
        assert job.id in [item.id for item in provider.list_jobs(experiment.name)]
        assert "step 39" in list(provider.logs(job.id, follow=True))
        assert wait_for(provider, job.id).status is JobStatus.SUCCEEDED

    def test_cancelling_ends_a_job(self, provider, experiment, can):
        can(Capability.CANCEL)
        job = provider.train(acting(experiment, "hang"), wait=False)
        wait_for(provider, job.id, line="hanging")
        ended = provider.cancel(job.id)
        assert ended.status is JobStatus.CANCELLED
        assert provider.cancel(job.id) == ended

    def test_cancelling_a_finished_job_leaves_it(self, provider, experiment, can):
        can(Capability.CANCEL)
        job = provider.train(experiment)
        assert provider.cancel(job.id) == job

    def test_one_token_is_one_job(self, provider, experiment, can):
        can(Capability.TRAIN_NO_WAIT)
        same = acting(experiment, "slow", idempotency_token="run-1")
        first = provider.train(same, wait=False)
        second = provider.train(same)
        assert second.id == first.id
        assert second.status is JobStatus.SUCCEEDED
        assert provider.train(same).id == first.id
        other = provider.train(dataclasses.replace(experiment, idempotency_token="run-2"))
        assert other.id != first.id

    def test_a_token_of_a_failed_job_gives_its_failure_again(self, provider, experiment, can):
        can(Capability.TRAIN_NO_WAIT)
        same = acting(experiment, "fail", idempotency_token="run-1")
        jobs = set()
        for _ in range(2):
            with pytest.raises(TrainingFailedError) as caught:
                provider.train(same)
            jobs.add(caught.value.details["job"])
        assert len(jobs) == 1

    def test_jobs_are_listed_newest_first(self, provider, experiment, can):
        can(Capability.TRAIN)
        first = provider.train(experiment)
        time.sleep(1.1)
        second = provider.train(dataclasses.replace(experiment, name="other"))
        assert [job.id for job in provider.list_jobs()] == [second.id, first.id]
        assert [job.id for job in provider.list_jobs(experiment.name)] == [first.id]
        assert provider.list_jobs("never-trained") == []

    @pytest.mark.parametrize("job_id", ["nothing-20200101-000000-abcdef", "../../etc", "", ".", "a/b"])
    def test_an_unknown_job_is_said_to_be_unknown(self, provider, job_id):
        for ask in (provider.status, provider.cancel, lambda name: list(provider.logs(name))):
            with pytest.raises(JobNotFoundError) as caught:
                ask(job_id)
            assert caught.value.exit_code == 2


class ServingContract(Contract):
    """What holds where one serves."""

    @pytest.fixture
    def models(self, provider, experiment, can):
        """Two models that answer differently: x + 2 and x + 12."""
        can(Capability.DEPLOY)
        return [
            provider.train(dataclasses.replace(experiment, hyperparameters={"shift": shift})).model_uri
            for shift in (0.0, 10.0)
        ]

    @pytest.fixture
    def cleanup(self, provider):
        yield
        for endpoint in provider.list_endpoints():
            provider.delete_endpoint(endpoint.name)

    def test_the_life_of_an_endpoint(self, provider, experiment, models, cleanup):
        assert provider.list_endpoints() == []
        endpoint = provider.deploy(experiment, models[0], "life", labels={"model_version": "7"})
        assert endpoint.status is EndpointStatus.HEALTHY
        assert (endpoint.name, endpoint.provider) == ("life", provider.name)
        assert endpoint.url.startswith("http")
        assert [(item.role, item.weight) for item in endpoint.deployments] == [("champion", 100)]
        assert endpoint.deployments[0].labels["model_version"] == "7"
        assert provider.endpoint("life") == endpoint
        assert provider.list_endpoints() == [endpoint]
        assert provider.predict("life", _rows(1.0)) == {"predictions": [3.0]}

        updated = provider.deploy(experiment, models[1], "life")
        assert updated.url == endpoint.url
        assert provider.predict("life", _rows(1.0)) == {"predictions": [13.0]}
        assert _champion(updated) != _champion(endpoint)

        left = provider.delete_endpoint("life")
        assert all(isinstance(sentence, str) for sentence in left)
        assert provider.list_endpoints() == []

    def test_rolling_back(self, provider, experiment, models, cleanup, can):
        can(Capability.ROLLBACK)
        provider.deploy(experiment, models[0], "back")
        provider.deploy(experiment, models[1], "back")
        endpoint = provider.rollback("back")
        assert provider.predict("back", _rows(1.0)) == {"predictions": [3.0]}
        assert [item.model_uri for item in endpoint.deployments if item.weight == 100] == [models[0]]

    def test_splitting_traffic(self, provider, experiment, models, cleanup, can):
        can(Capability.TRAFFIC_SPLIT)
        provider.deploy(experiment, models[0], "split")
        endpoint = provider.deploy(experiment, models[1], "split", weight=50)
        weights = {item.version: item.weight for item in endpoint.deployments if item.weight}
        assert sorted(weights.values()) == [50, 50]
        answers: set[float] = set()
        for _ in range(60):
            answers.add(provider.predict("split", _rows(1.0))["predictions"][0])
            if len(answers) == 2:
                break
        assert answers == {3.0, 13.0}
        challenger = next(item.version for item in endpoint.deployments if item.role == "challenger")
        champion = next(item.version for item in endpoint.deployments if item.role == "champion")
        provider.traffic("split", {champion: 0, challenger: 100})
        assert {provider.predict("split", _rows(1.0))["predictions"][0] for _ in range(10)} == {13.0}

    def test_shares_that_make_no_whole_are_refused(self, provider, experiment, models, cleanup, can):
        can(Capability.TRAFFIC_SPLIT)
        endpoint = provider.deploy(experiment, models[0], "sums")
        version = endpoint.deployments[0].version
        for weights in ({version: 50}, {version: -1}, {"99": 100}, {}):
            with pytest.raises(DeploymentError):
                provider.traffic("sums", weights)
        assert provider.predict("sums", _rows(1.0)) == {"predictions": [3.0]}

    def test_a_model_that_does_not_load_leaves_the_old_one(
        self, provider, experiment, models, cleanup, tmp_path
    ):
        provider.deploy(experiment, models[0], "broken")
        with pytest.raises(DeploymentError) as caught:
            provider.deploy(experiment, str(tmp_path / "no-such-model"), "broken")
        assert caught.value.exit_code == 2
        assert provider.predict("broken", _rows(1.0)) == {"predictions": [3.0]}

    def test_bad_input_is_the_callers_error(self, provider, experiment, models, cleanup):
        provider.deploy(experiment, models[0], "input")
        for body in ({}, {"dataframe_records": [{"y": 1.0}]}, "text", None):
            with pytest.raises(InvalidInputError) as caught:
                provider.predict("input", body)
            assert caught.value.exit_code == 1
            assert 400 <= caught.value.details["status"] < 500

    def test_an_unknown_endpoint_is_said_to_be_unknown(self, provider, can):
        can(Capability.DEPLOY)
        asks = [lambda: provider.predict("none", {}), lambda: provider.delete_endpoint("none")]
        asks.append(lambda: provider.endpoint("none"))
        if Capability.ROLLBACK in provider.capabilities:
            asks.append(lambda: provider.rollback("none"))
        if Capability.TRAFFIC_SPLIT in provider.capabilities:
            asks.append(lambda: provider.traffic("none", {"1": 100}))
        for ask in asks:
            with pytest.raises(EndpointNotFoundError) as caught:
                ask()
            assert caught.value.exit_code == 2


class ProviderContract(TrainingContract, ServingContract):
    """Subclass it, name it ``Test…``, and give it the fixtures ``provider`` and ``experiment``."""


def _rows(*values: float) -> dict[str, Any]:
    return {"dataframe_records": [{"x": value} for value in values]}


def _champion(endpoint: Any) -> str:
    return next(item.version for item in endpoint.deployments if item.role == "champion")
