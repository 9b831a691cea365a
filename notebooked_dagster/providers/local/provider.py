"""LocalProvider: the provider's face. Jobs live in ``jobs`` and ``runner``, endpoints in ``serving.control``."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import sys
from collections.abc import Iterator, Mapping, Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from pydantic import BaseModel

from notebooked_dagster.config.local import LocalOptions, ServedEndpoint
from notebooked_dagster.core.redaction import REDACTOR
from notebooked_dagster.core.settings import Settings
from notebooked_dagster.errors import (
    ConfigError,
    EndpointNotFoundError,
    NotebookedError,
    ProviderError,
    StateError,
)
from notebooked_dagster.providers import circuits, jobs, pipes, spans
from notebooked_dagster.providers.arguments import checked_options
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
from notebooked_dagster.providers.failures import Failure
from notebooked_dagster.providers.inference_code import newer_code
from notebooked_dagster.providers.jobs import Handover, JobRecord, JobSpec, JobStore, TrackingState, spec_of
from notebooked_dagster.providers.logs import emit
from notebooked_dagster.providers.run_tracking import model_facts
from notebooked_dagster.serving.processes import identify

from . import environment, logs, starting, venv

if TYPE_CHECKING:
    from notebooked_dagster.serving.control import Control, DeploymentSpec, EndpointState

_UNWAITED_KEPT = timedelta(days=7)


class LocalProvider(BaseProvider):
    """Train and serve on this machine. What it starts outlives the process that asked.

    Args:
        state_dir: Where jobs and endpoints are kept; ``Settings().state`` where None.
        python: The interpreter that trains; this one where None. An experiment with its own environment has its own.
        pass_environment: Names, or patterns such as ``AWS_*``, of variables that jobs and endpoints inherit on
            top of the few that every process needs. Nothing else of this process's environment reaches them.
        tracking_uri: Where ``models:/`` and ``runs:/`` are looked up; the state folder's MLflow where None.
        tracking_required: Whether a job fails when MLflow cannot be reached; else that is a warning.
        cancel_on_interrupt: Whether a job ends when the process that waits for it is interrupted.
        memory_limit: Bytes that a training may use; None for no limit.
        stop_grace: Seconds a training has between SIGTERM and SIGKILL.
        keep_jobs: How many finished jobs of an experiment are kept; one that is deployed always is.
        serve_host: Address that endpoints bind to; loopback where None.
        health_timeout: Seconds a new version has to become healthy.
    """

    name: ClassVar[str] = "local"
    capabilities: ClassVar[frozenset[Capability]] = frozenset(
        {
            Capability.TRAIN,
            Capability.TRAIN_NO_WAIT,
            Capability.CANCEL,
            Capability.LOGS,
            Capability.ENDPOINT_LOGS,
            Capability.OWN_ENVIRONMENT,
            Capability.DEPLOY,
            Capability.ROLLBACK,
            Capability.TRAFFIC_SPLIT,
            Capability.SURVIVES_RESTART,
            Capability.GPU,
            Capability.PIPES,
        }
    )

    _options: ClassVar[type[BaseModel]] = LocalOptions

    def __init__(
        self,
        state_dir: Path | str | None = None,
        *,
        python: str | None = None,
        pass_environment: Sequence[str] = (),
        tracking_uri: str | None = None,
        tracking_required: bool = False,
        cancel_on_interrupt: bool = True,
        memory_limit: int | None = None,
        stop_grace: float = 10.0,
        keep_jobs: int = 20,
        serve_host: str | None = None,
        health_timeout: float = 120.0,
    ) -> None:
        self.state = (Path(state_dir).expanduser() if state_dir is not None else Settings().state).resolve()
        self._python = python or sys.executable
        self._pass = tuple(pass_environment)
        self._tracking_uri = tracking_uri
        self._tracking_required = tracking_required
        self._cancel_on_interrupt = cancel_on_interrupt
        self._memory_limit = memory_limit
        self._stop_grace = stop_grace
        self._keep_jobs = keep_jobs
        self._serve_host = serve_host
        self._health_timeout = health_timeout
        self._store = JobStore(self.state / "jobs", self.name)

    # Training

    def train(
        self,
        experiment: Experiment,
        wait: bool = True,
        *,
        on_log: LogSink | None = None,
        on_message: LogSink | None = None,
    ) -> TrainingJob:
        """Train in a process of its own; see the base class."""
        with spans.training(self.name, experiment.name) as span:
            job = self._train(experiment, wait, on_log, on_message)
            span.set("notebooked.job.id", job.id)
            return job

    def _train(
        self, experiment: Experiment, wait: bool, on_log: LogSink | None, on_message: LogSink | None
    ) -> TrainingJob:
        record = self._submit(experiment, wait)
        folder = self._store.folder(record.id)
        try:
            # Housekeeping is no reason to stop a training.
            with contextlib.suppress(NotebookedError, OSError):
                self.prune(experiment.name)
            if not wait:
                return starting.settle(folder).view(folder)
            self._watch(folder, on_log, on_message)
        except BaseException:
            self._end_if_waited(folder, wait)
            raise
        record = starting.settle(folder)
        if record.status is not JobStatus.SUCCEEDED:
            raise record.error(folder)
        return record.view(folder)

    def _submit(self, experiment: Experiment, wait: bool) -> JobRecord:
        """Make the job and start its runner, or find the job of the same token."""
        spec = self._spec(experiment)
        token = experiment.idempotency_token
        if token is not None and (adopted := self._adopt(spec, token)) is not None:
            return adopted
        record, new = self._store.create(spec, token=token, starter=identify(os.getpid()))
        if not new:
            return record
        folder = self._store.folder(record.id)
        record.tracking = TrackingState(uri=experiment.tracking_uri, experiment=experiment.name)
        record.waited = wait
        jobs.write(folder, record)
        told = environment.job_environment(experiment, folder, parent=os.environ, extra=self._pass)
        handover = Handover(
            environment=told,
            build_environment=environment.for_building(os.environ),
            tracking_uri=experiment.tracking_uri,
            cache=self.state / "cache",
            secrets=REDACTOR.found_in(told.values()),
        )
        if experiment.pipes is not None:
            _prepare_pipes(folder, experiment.pipes)
        spec = spec.model_copy(update={"arguments": environment.command(experiment, folder)})
        jobs.write_spec(folder, spec)
        try:
            starting.start_runner(folder, handover)
        except ProviderError as error:
            record.status = JobStatus.FAILED
            record.failure = Failure(error="ProviderError", message=error.message)
            with contextlib.suppress(OSError):
                jobs.write(folder, record)
            raise
        except BaseException:
            self._end_if_waited(folder, wait)
            raise
        return record

    def _end_if_waited(self, folder: Path, wait: bool) -> None:
        """After KeyboardInterrupt, SystemExit or Dagster's interrupt: whoever waits for a job wants it to end."""
        if wait and self._cancel_on_interrupt:
            starting.stop(folder, self._stop_grace)

    def _adopt(self, spec: JobSpec, token: str) -> JobRecord | None:
        """The job of a token; None where there is none, or nobody ever ran it."""
        record = self._store.of_token(token)
        if record is None:
            return None
        record = starting.settle(self._store.folder(record.id))
        if record.experiment != spec.experiment:
            raise ConfigError(
                f"The idempotency token belongs to a job of experiment {record.experiment!r}.",
                key="idempotency_token",
                hint="Use a token of its own for each training.",
            )
        if starting.never_began(record):
            self._store.forget_token(token)
            return None
        return record

    def _spec(self, experiment: Experiment) -> JobSpec:
        checked_options(self._options, experiment.options)
        limit = experiment.memory_limit if experiment.memory_limit is not None else self._memory_limit
        return spec_of(
            experiment,
            python=self._python,
            own_environment=experiment.own_environment,
            memory_limit=limit,
            stop_grace=self._stop_grace,
            tracking_required=self._tracking_required,
        )

    def _watch(self, folder: Path, on_log: LogSink | None, on_message: LogSink | None) -> None:
        told: Any = None

        def finished() -> bool:
            nonlocal told, on_message
            # Before the messages are looked at: what a job that has ended has sent is all there.
            ended = starting.settle(folder).status.finished
            if on_message is not None:
                messages, told = self.messages(folder.name, told)
                on_message = emit(messages, on_message)
            return ended

        for line in logs.follow_lines(folder / "log.txt", finished):
            on_log = emit([line], on_log)

    def messages(self, job_id: str, cursor: Any = None) -> tuple[list[str], Any]:
        """The messages of Dagster Pipes that a job has sent since the cursor."""
        folder = self._store.folder(job_id) / "pipes" / "messages"
        return pipes.read_chunks(lambda number: pipes.read_folder(folder, number), cursor)

    def status(self, job_id: str) -> TrainingJob:
        """A job's state now; one whose processes are gone is recognised as killed."""
        folder = self._store.folder(job_id)
        return starting.settle(folder).view(folder)

    def logs(self, job_id: str, *, follow: bool = False) -> Iterator[str]:
        """A job's output, line by line."""
        folder = self._store.folder(job_id)
        if follow:
            return logs.follow_lines(folder / "log.txt", lambda: starting.settle(folder).status.finished)
        return logs.read_lines(folder / "log.txt")

    def cancel(self, job_id: str) -> TrainingJob:
        """Stop a job and everything it started."""
        folder = self._store.folder(job_id)
        return starting.stop(folder, self._stop_grace).view(folder)

    def list_jobs(self, experiment: str | None = None) -> list[TrainingJob]:
        """All jobs, newest first; one whose state is damaged is listed as failed, with the reason."""
        found = []
        for job_id in self._store.ids():
            folder = self._store.root / job_id
            try:
                job = starting.settle(folder).view(folder)
            except StateError as error:
                name = job_id.rsplit("-", 3)[0]
                job = TrainingJob(job_id, name, self.name, JobStatus.FAILED, message=str(error))
            if experiment is None or job.experiment == experiment:
                found.append(job)
        return found

    def job_of(self, experiment: str, token: str) -> TrainingJob | None:
        """The job of a token."""
        record = self._store.of_token(token)
        return self.status(record.id) if record is not None and record.experiment == experiment else None

    def prune(self, experiment: str, *, keep: int | None = None) -> list[str]:
        """Remove an experiment's oldest finished jobs, of each partition by itself; returns their ids.

        The newest that succeeded stays, and so does whatever an endpoint serves or keeps for rollback, and for a week what
        nobody waited for: the sensor that makes models of such jobs may have been off.
        """
        limit = self._keep_jobs if keep is None else keep
        served = self._deployed_uris()
        removed = []
        for finished in self._finished(experiment).values():
            newest = next((job.id for job in finished if job.status is JobStatus.SUCCEEDED), None)
            for job in finished[limit:]:
                if job.id == newest or job.model_uri in served:
                    continue
                with contextlib.suppress(NotebookedError, OSError):
                    record = jobs.read(self._store.folder(job.id))
                    if not record.waited and _age(record) < _UNWAITED_KEPT:
                        continue
                    self._store.remove(record)
                    removed.append(job.id)
        return removed

    def _finished(self, experiment: str) -> dict[str | None, list[TrainingJob]]:
        """The finished jobs of each partition, newest first."""
        found: dict[str | None, list[TrainingJob]] = {}
        for job in self.list_jobs(experiment):
            if not job.status.finished or job.started_at is None:
                continue
            with contextlib.suppress(NotebookedError):
                partition = jobs.read_spec(self._store.folder(job.id)).tags.get("partition")
                found.setdefault(partition, []).append(job)
        return found

    # Tracking

    def sync(self, job_id: str) -> TrainingJob:
        """Send to MLflow what did not reach it when the job ran, and end its run.

        Raises:
            TrackingError: MLflow cannot be reached.
        """
        from notebooked_dagster.providers import syncing

        folder = self._store.folder(job_id)
        syncing.sync(folder, starting.settle(folder), self._tracking_uri)
        return self.status(job_id)

    def reconcile(self) -> list[str]:
        """End the MLflow runs of jobs whose processes died; returns the ids of the jobs.

        Raises:
            TrackingError: MLflow cannot be reached.
        """
        from notebooked_dagster.providers import syncing

        ended = []
        for job_id in self._store.ids():
            folder = self._store.root / job_id
            with contextlib.suppress(StateError):
                record = starting.settle(folder)
                if syncing.needs_end(record):
                    syncing.end(folder, record, self._tracking_uri)
                    ended.append(job_id)
        return ended

    # Serving

    def deploy(
        self,
        experiment: Experiment,
        model_uri: str,
        endpoint_name: str,
        *,
        weight: int = 100,
        labels: Mapping[str, str] | None = None,
    ) -> Endpoint:
        """Serve a model folder, or what ``models:/`` or ``runs:/`` names."""
        options = checked_options(LocalOptions, experiment.options).endpoint
        spec = dataclasses.replace(
            self._deployment(experiment, model_uri, endpoint_name, options, weight, labels),
            host=options.host or self._serve_host,
            python=self._serving_python(model_uri),
        )
        return self._deployed(self._control, spec, experiment.name)

    def _deployment(
        self,
        experiment: Experiment,
        model_uri: str,
        endpoint_name: str,
        options: ServedEndpoint,
        weight: int,
        labels: Mapping[str, str] | None,
    ) -> DeploymentSpec:
        """What to serve, and how; but for where."""
        from notebooked_dagster.serving.control import DeploymentSpec

        folder = self._model_folder(experiment, model_uri)
        return DeploymentSpec(
            endpoint=endpoint_name,
            model_dir=folder,
            code_dir=newer_code(experiment.scripts, folder),
            model_uri=model_uri,
            weight=weight,
            port=options.port,
            env=dict(experiment.environment),
            # The model's own, so that a later one can be compared with it, whoever deployed it.
            labels={
                "experiment": experiment.name,
                "metrics": json.dumps(model_facts(folder).get("metrics", {})),
                **(labels or {}),
            },
            health_timeout=options.health_timeout or self._health_timeout,
            predict_timeout=options.predict_timeout,
            size_limit=options.size_limit,
            memory_limit=options.memory_limit,
            keep=options.keep,
            keep_warm=options.keep_warm,
        )

    def _deployed(self, control: Control, spec: DeploymentSpec, experiment: str) -> Endpoint:
        with spans.deployment(self.name, spec.endpoint, experiment):
            live = self._endpoint(control.deploy(spec))
        circuits.forget(self.state, spec.endpoint)
        return live

    def predict(self, endpoint_name: str, data: Any) -> Any:
        """Ask an endpoint."""
        with circuits.guarded(self.state, endpoint_name):
            return self._control.predict(endpoint_name, data)

    def delete_endpoint(self, endpoint_name: str) -> list[str]:
        """Stop an endpoint and remove all but the models."""
        return self._control.delete(endpoint_name)

    def list_endpoints(self) -> list[Endpoint]:
        """All endpoints of this state folder."""
        return [self._endpoint(state) for state in self._control.list()]

    def endpoint(self, endpoint_name: str) -> Endpoint:
        """One endpoint."""
        try:
            return self._endpoint(self._control.get(endpoint_name))
        except EndpointNotFoundError:
            return super().endpoint(endpoint_name)

    def ensure(self, endpoint_name: str, *, patience: float | None = None) -> Endpoint:
        """Start an endpoint's server again where it is gone: after a kill or a reboot."""
        live = self._endpoint(self._control.ensure(endpoint_name, patience=patience))
        circuits.forget(self.state, endpoint_name)
        return live

    def endpoint_logs(self, endpoint_name: str, version: str | None = None) -> Iterator[str]:
        """What a version's server wrote, its tracebacks naming notebook cells."""
        return self._control.logs(endpoint_name, version)

    def traffic(self, endpoint_name: str, weights: Mapping[str, int]) -> Endpoint:
        """Set each version's share of the traffic."""
        live = self._endpoint(self._control.traffic(endpoint_name, weights))
        circuits.forget(self.state, endpoint_name)
        return live

    def rollback(self, endpoint_name: str) -> Endpoint:
        """Serve the previous version again."""
        live = self._endpoint(self._control.rollback(endpoint_name))
        circuits.forget(self.state, endpoint_name)
        return live

    @property
    def _control(self) -> Control:
        from notebooked_dagster.serving.control import EndpointControl

        return EndpointControl(self.state, pass_environment=self._pass)

    def _model_folder(self, experiment: Experiment, model_uri: str) -> Path:
        if not model_uri.startswith(("models:/", "runs:/")):
            return Path(model_uri.removeprefix("file://")).expanduser()
        from notebooked_dagster.tracking import Tracking, local_uri

        uri = self._tracking_uri or experiment.tracking_uri or local_uri(self.state)
        return Tracking(uri, experiment.name).resolve(model_uri, cache=self.state / "cache" / "models")

    def _serving_python(self, model_uri: str) -> str:
        """The interpreter that trained it, where the model was trained here in an environment of its own."""
        folder = Path(model_uri).parent
        if folder.parent == self._store.root:
            with contextlib.suppress(StateError):
                return jobs.read_spec(folder).python
        return self._python

    def _deployed_uris(self) -> set[str]:
        return {item.model_uri for endpoint in self.list_endpoints() for item in endpoint.deployments}

    def _endpoint(self, state: EndpointState) -> Endpoint:
        deployments = tuple(
            Deployment(
                version=item.version,
                model_uri=item.model_uri,
                weight=item.weight,
                role=item.role.value,
                status=EndpointStatus(item.status.value),
                created_at=item.created_at,
                labels=dict(item.labels),
            )
            for item in state.versions
        )
        return Endpoint(
            state.name, self.name, state.url, EndpointStatus(state.status.value), deployments, state.message
        )


def _prepare_pipes(folder: Path, context: Mapping[str, Any]) -> None:
    """Put what a job needs to report into its folder, and into the requirements of an environment of its own."""
    (folder / "pipes" / "messages").mkdir(parents=True)
    for name, content in pipes.files(context).items():
        (folder / "pipes" / name).write_bytes(content)
    if (listed := venv.requirements_file(folder / "code")) is not None:
        listed.write_bytes(pipes.with_requirements(listed.read_bytes()))


def _age(record: JobRecord) -> timedelta:
    return datetime.now(UTC) - (record.finished_at or record.created_at)
