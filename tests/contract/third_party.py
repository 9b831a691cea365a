"""A provider as somebody else would write one: it trains at once, in the calling process, and serves nothing."""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, ClassVar

from notebooked_dagster.errors import EndpointNotFoundError, JobNotFoundError
from notebooked_dagster.providers import jobs
from notebooked_dagster.providers.arguments import check_experiment_name
from notebooked_dagster.providers.base import (
    BaseProvider,
    Capability,
    Endpoint,
    Experiment,
    JobStatus,
    LogSink,
    TrainingJob,
)
from notebooked_dagster.providers.local import environment, outcome
from notebooked_dagster.providers.local.process import Ending


class InlineProvider(BaseProvider):
    name: ClassVar[str] = "inline"
    capabilities: ClassVar[frozenset[Capability]] = frozenset({Capability.TRAIN})

    def __init__(self, folder: str | None = None) -> None:
        self.root = Path(folder or tempfile.mkdtemp())
        self.jobs: dict[str, tuple[TrainingJob, Path]] = {}

    def train(
        self, experiment: Experiment, wait: bool = True, *, on_log: LogSink | None = None
    ) -> TrainingJob:
        if not wait:
            raise self._cannot(Capability.TRAIN_NO_WAIT)
        spec = self._spec(experiment)
        job_id = f"inline-{len(self.jobs)}"
        folder = self.root / job_id
        arguments = environment.command(experiment, folder)
        for name in ("code", "model", "output"):
            (folder / name).mkdir(parents=True)
        began = datetime.now(UTC)
        with (folder / "log.txt").open("wb") as log:
            try:
                code = subprocess.run(
                    [sys.executable, str(experiment.scripts / "train.py"), *arguments],
                    stdout=log, stderr=subprocess.STDOUT, timeout=experiment.timeout, cwd=folder,
                ).returncode  # fmt: skip
                ending = Ending(code)
            except subprocess.TimeoutExpired:
                ending = Ending(-9, "timeout")
        result = outcome.judge(ending, spec, folder)
        record = jobs.JobRecord(
            id=job_id, experiment=experiment.name, status=result.status, failure=result.failure
        )
        failure = result.failure
        done = result.status is JobStatus.SUCCEEDED
        metrics = folder / "output" / "metrics.json"
        job = TrainingJob(
            id=job_id, experiment=experiment.name, provider=self.name, status=result.status,
            model_uri=str(folder / "model") if done else None,
            metrics=json.loads(metrics.read_text()) if done else {},
            exit_code=ending.exit_code, message=failure.message if failure else "",
            traceback=failure.traceback if failure else "", started_at=began, finished_at=datetime.now(UTC),
        )  # fmt: skip
        self.jobs[job_id] = (job, folder)
        if not done:
            raise record.error(folder)
        return job

    def _spec(self, experiment: Experiment) -> jobs.JobSpec:
        from notebooked_dagster.errors import ConfigError

        check_experiment_name(experiment.name)
        if experiment.timeout is not None and experiment.timeout <= 0:
            raise ConfigError("timeout has to be more than 0.", key="timeout")
        if not (experiment.scripts / "train.py").exists():
            raise ConfigError("There is no train.py.", path=experiment.scripts)
        environment.command(experiment, self.root)
        return jobs.JobSpec(
            experiment=experiment.name, scripts=experiment.scripts, python="", timeout=experiment.timeout
        )

    def _known(self, job_id: str) -> tuple[TrainingJob, Path]:
        if job_id not in self.jobs:
            raise JobNotFoundError(f"There is no training job {job_id!r}.")
        return self.jobs[job_id]

    def status(self, job_id: str) -> TrainingJob:
        return self._known(job_id)[0]

    def logs(self, job_id: str, *, follow: bool = False) -> Iterator[str]:
        return iter((self._known(job_id)[1] / "log.txt").read_text().splitlines())

    def cancel(self, job_id: str) -> TrainingJob:
        return self.status(job_id)

    def list_jobs(self, experiment: str | None = None) -> list[TrainingJob]:
        found = [job for job, _ in self.jobs.values() if experiment in (None, job.experiment)]
        return found[::-1]

    def deploy(self, experiment: Experiment, model_uri: str, endpoint_name: str, *, weight: int = 100,
               labels: Mapping[str, str] | None = None) -> Endpoint:  # fmt: skip
        raise self._cannot(Capability.DEPLOY)

    def predict(self, endpoint_name: str, data: Any) -> Any:
        raise EndpointNotFoundError(f"There is no endpoint {endpoint_name!r}.")

    def delete_endpoint(self, endpoint_name: str) -> list[str]:
        raise EndpointNotFoundError(f"There is no endpoint {endpoint_name!r}.")

    def list_endpoints(self) -> list[Endpoint]:
        return []
