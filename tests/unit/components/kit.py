"""A provider whose jobs end when a test says so, and a project that uses it."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping
from functools import cached_property
from pathlib import Path
from typing import Any

import dagster as dg
import pytest

from notebooked_dagster.definitions import project_definitions
from notebooked_dagster.errors import EndpointNotFoundError, JobNotFoundError
from notebooked_dagster.providers.base import (
    BaseProvider,
    Capability,
    Deployment,
    Endpoint,
    EndpointStatus,
    Experiment,
    JobStatus,
    LogSink,
    TrainingJob,
)
from notebooked_dagster.providers.logs import emit
from notebooked_dagster.resources import Workplace
from tests.end_to_end.dagster_kit import SmallProject

MODEL = dg.AssetKey(["iris", "model"])


class HandProvider(BaseProvider):
    """Jobs run until ``end``; endpoints serve what they were told to."""

    name = "local"
    capabilities = frozenset(
        {Capability.TRAIN, Capability.TRAIN_NO_WAIT, Capability.DEPLOY, Capability.PIPES}
    )

    def __init__(self) -> None:
        self.jobs: dict[str, TrainingJob] = {}
        self.tokens: dict[str, str] = {}
        self.endpoints: dict[str, Endpoint] = {}
        self.metrics: dict[str, float] = {"accuracy": 0.9}
        #: Raised by the next ``train``, before or after the job is there.
        self.before: BaseException | None = None
        self.after: BaseException | None = None
        #: What every job says by Dagster Pipes, and what each was told of its run.
        self.told: list[str] = []
        self.contexts: list[Mapping[str, Any] | None] = []
        #: Raised by ``list_jobs``.
        self.away: Exception | None = None

    def train(
        self,
        experiment: Experiment,
        wait: bool = True,
        *,
        on_log: LogSink | None = None,
        on_message: LogSink | None = None,
    ) -> TrainingJob:
        if self.before is not None:
            raise self.before
        token = str(experiment.idempotency_token)
        if token not in self.tokens:
            job_id = f"job-{len(self.jobs) + 1}"
            self.tokens[token] = job_id
            self.jobs[job_id] = TrainingJob(job_id, experiment.name, self.name, JobStatus.RUNNING)
            self.contexts.append(experiment.pipes)
        if wait:
            emit(self.told, on_message)
        if self.after is not None:
            raise self.after
        if wait:
            self.end(self.tokens[token])
        return self.jobs[self.tokens[token]]

    def end(self, job_id: str, status: JobStatus = JobStatus.SUCCEEDED, **more: Any) -> None:
        """A job ends."""
        self.jobs[job_id] = dataclasses.replace(
            self.jobs[job_id],
            status=status,
            model_uri=f"s3://models/{job_id}" if status is JobStatus.SUCCEEDED else None,
            metrics=dict(self.metrics),
            **more,
        )

    def status(self, job_id: str) -> TrainingJob:
        if job_id not in self.jobs:
            raise JobNotFoundError(f"There is no job {job_id}.")
        return self.jobs[job_id]

    def job_of(self, experiment: str, token: str) -> TrainingJob | None:
        return self.jobs.get(self.tokens.get(token, ""))

    def messages(self, job_id: str, cursor: Any = None) -> tuple[list[str], Any]:
        if Capability.PIPES not in self.capabilities:
            raise self._cannot(Capability.PIPES)
        self.status(job_id)
        return self.told[cursor or 0 :], len(self.told)

    def logs(self, job_id: str, *, follow: bool = False) -> Iterator[str]:
        return iter([f"log of {job_id}"])

    def cancel(self, job_id: str) -> TrainingJob:
        return self.status(job_id)

    def list_jobs(self, experiment: str | None = None) -> list[TrainingJob]:
        if self.away is not None:
            raise self.away
        return list(self.jobs.values())

    def deploy(
        self,
        experiment: Experiment,
        model_uri: str,
        endpoint_name: str,
        *,
        weight: int = 100,
        labels: Mapping[str, str] | None = None,
    ) -> Endpoint:
        before = self.endpoints.get(endpoint_name)
        kept = (
            [dataclasses.replace(item, weight=0, role="previous") for item in before.deployments]
            if before is not None
            else []
        )
        version = str(len(kept) + 1)
        made = Deployment(version, model_uri, weight, "champion", EndpointStatus.HEALTHY, labels=labels or {})
        live = Endpoint(endpoint_name, self.name, "http://127.0.0.1:1", EndpointStatus.HEALTHY, (*kept, made))
        self.endpoints[endpoint_name] = live
        return live

    def traffic(self, endpoint_name: str, weights: Mapping[str, int]) -> Endpoint:
        live = self.endpoint(endpoint_name)
        shared = tuple(
            dataclasses.replace(
                item,
                weight=weights.get(item.version, 0),
                role="champion" if weights.get(item.version) == 100 else "previous",
            )
            for item in live.deployments
        )
        self.endpoints[endpoint_name] = dataclasses.replace(live, deployments=shared)
        return self.endpoints[endpoint_name]

    def rollback(self, endpoint_name: str) -> Endpoint:
        serving = next(item for item in self.endpoint(endpoint_name).deployments if item.weight)
        return self.traffic(endpoint_name, {str(int(serving.version) - 1): 100})

    def endpoint_logs(self, endpoint_name: str, version: str | None = None) -> Iterator[str]:
        return iter([f"{endpoint_name} {version or 'champion'}"])

    def predict(self, endpoint_name: str, data: Any) -> Any:
        return {"predictions": [0]}

    def delete_endpoint(self, endpoint_name: str) -> list[str]:
        if endpoint_name not in self.endpoints:
            raise EndpointNotFoundError(f"There is no endpoint {endpoint_name!r}.")
        del self.endpoints[endpoint_name]
        return []

    def list_endpoints(self) -> list[Endpoint]:
        return list(self.endpoints.values())


class HandProject:
    """A project on a ``HandProvider``, with an instance of Dagster's."""

    def __init__(self, root: Path, instance: dg.DagsterInstance, attributes: str) -> None:
        self.small = SmallProject(root, f"parity: false\n{attributes}")
        self.instance = instance
        self.provider = HandProvider()

    def run(
        self,
        *parts: str,
        tags: Mapping[str, str] | None = None,
        run_id: str | None = None,
        partition: str | None = None,
        wait: bool | None = None,
        **config: Any,
    ) -> dg.ExecuteInProcessResult:
        """Materialize parts of the experiment."""
        if wait is not None:
            config["model"] = {**config.get("model", {}), "wait": wait}
        job = self.definitions.resolve_implicit_global_asset_job_def()
        return job.execute_in_process(
            instance=self.instance,
            asset_selection=[dg.AssetKey(["iris", part]) for part in parts],
            run_config={"ops": {f"iris__{op}": {"config": value} for op, value in config.items()}},
            tags=dict(tags or {}),
            run_id=run_id,
            partition_key=partition,
            raise_on_error=False,
        )

    @cached_property
    def definitions(self) -> dg.Definitions:
        return project_definitions(Workplace.here())

    def look(self, sensor: str = "training_jobs") -> list[Any]:
        """A tick of a sensor, whose events are stored as the daemon stores them."""
        definitions = self.definitions
        with dg.build_sensor_context(
            instance=self.instance,
            definitions=definitions,
            resources=definitions.resources,
        ) as context:
            data = definitions.resolve_sensor_def(sensor).evaluate_tick(context)
        self.note = data.skip_message or ""
        for event in data.asset_events:
            self.instance.report_runless_asset_event(event)
        return list(data.asset_events)

    def judge(self, *checks: str) -> dg.ExecuteInProcessResult:
        """Evaluate checks of the model, and materialize nothing."""
        keys = [dg.AssetCheckKey(MODEL, name) for name in checks]
        job = dg.define_asset_job("judge", selection=dg.AssetSelection.checks(*keys))
        repository = dg.Definitions.merge(self.definitions, dg.Definitions(jobs=[job])).get_repository_def()
        return repository.get_job("judge").execute_in_process(instance=self.instance, raise_on_error=False)

    def said(self, run_id: str) -> list[str]:
        """The log lines of a run."""
        return [entry.user_message for entry in self.instance.all_logs(run_id)]

    def verdicts(self, check: str) -> list[bool]:
        """How a check of the model went, newest first."""
        history = self.instance.event_log_storage.get_asset_check_execution_history(
            dg.AssetCheckKey(MODEL, check), limit=20
        )
        return [
            record.evaluation.passed
            for record in history
            if isinstance(record.evaluation, dg.AssetCheckEvaluation)
        ]

    def models(self, partition: str | None = None) -> list[dg.AssetMaterialization]:
        """All that were made, newest first."""
        asked = dg.AssetRecordsFilter(
            asset_key=MODEL, asset_partitions=[partition] if partition is not None else None
        )
        records = self.instance.fetch_materializations(asked, limit=100).records
        return [record.asset_materialization for record in records if record.asset_materialization]


def hand_project(
    root: Path, instance: dg.DagsterInstance, monkeypatch: pytest.MonkeyPatch, attributes: str = ""
) -> HandProject:
    """A project whose every provider is one object of ours."""
    made = HandProject(root, instance, attributes)
    monkeypatch.setenv("NOTEBOOKED_PROJECT_ROOT", str(made.small.root))
    monkeypatch.setattr(Workplace, "provider", lambda place, name: made.provider)
    return made
