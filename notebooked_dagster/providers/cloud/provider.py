"""CloudProvider: the life of a training job that runs elsewhere, whatever cloud that is.

A job's id is the name it has in the cloud. Where the caller gives an idempotency token the name is made from it, so
that a process that dies between submitting and writing anything down has submitted that one job and no other: the
next call with the token finds it by its name. Everything else on disk is a copy that can be fetched again.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import logging
import re
import secrets
import tempfile
import time
from abc import abstractmethod
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, ClassVar, TypeVar
from urllib.parse import urlsplit

import filelock
from pydantic import BaseModel

from notebooked_dagster.core import tracing
from notebooked_dagster.core.environment import has_login
from notebooked_dagster.core.redaction import REDACTOR
from notebooked_dagster.core.retrying import budget_of
from notebooked_dagster.core.settings import Settings
from notebooked_dagster.errors import (
    ConfigError,
    CredentialsError,
    DataError,
    JobNotFoundError,
    NotebookedError,
    ProviderError,
    StateError,
)
from notebooked_dagster.providers import jobs, pipes, spans
from notebooked_dagster.providers.arguments import data_location, hyperparameter_arguments
from notebooked_dagster.providers.base import Capability, Experiment, JobStatus, LogSink, TrainingJob
from notebooked_dagster.providers.failures import Failure, Outcome, explain, read_metrics
from notebooked_dagster.providers.jobs import JobRecord, JobSpec, JobStore, TrackingState, spec_of
from notebooked_dagster.providers.logs import emit
from notebooked_dagster.providers.run_tracking import RunTracking

from . import launch
from .endpoints import CloudEndpoints, said
from .package import JOB, LAUNCHER, requirements, write_archive
from .storage import CloudStorage
from .waiting import OutOfReachError, until

log = logging.getLogger("notebooked.providers.cloud")
T = TypeVar("T")
_END = re.compile(re.escape(launch.END) + r" (-?\d+)\.")
_LOG_END = 16_000
#: Of a job's environment: what another machine has to know that finishes it.
SAID = ("NOTEBOOKED_EXPERIMENT", "NOTEBOOKED_MLFLOW_RUN", "NOTEBOOKED_REGISTERED_MODEL")
# Seconds that one who wants to change a job waits for another who sends it or brings it home.
_LONGEST_WORK = 600.0
_JOB_PREFIX = "nbd"
_JOB_NAME = re.compile(rf"{_JOB_PREFIX}-(?P<slug>.+)-(?:[0-9a-f]{{20}}|\d{{8}}-\d{{6}}-[0-9a-f]{{6}})")


@dataclass(frozen=True, slots=True)
class Remote:
    """A job as its cloud sees it now.

    Attributes:
        status: Where it stands.
        started_at: When the machine began.
        finished_at: When it ended.
        reason: What the cloud says of a failure.
        error: The class in ``errors`` of a failure that is not the script's; empty where the log has to say.
        hint: What to do about that.
        model_uri: Where the model lies.
        facts: As in ``TrainingJob.facts``.
        environment: Of the job: what is ours tells its experiment and MLflow run.
    """

    status: JobStatus
    started_at: datetime | None = None
    finished_at: datetime | None = None
    reason: str = ""
    error: str = ""
    hint: str = ""
    model_uri: str | None = None
    facts: Mapping[str, str | float] = field(default_factory=dict)
    environment: Mapping[str, str] = field(default_factory=dict)


class CloudProvider(CloudEndpoints):
    """Submit, follow, finish. A cloud's provider says how each of these steps is done there.

    Args:
        state_dir: Where copies of jobs are kept; ``Settings().state`` where None.
        tracking_uri: The MLflow server, for jobs that somebody else submitted.
        tracking_required: Whether a job fails when MLflow cannot be reached; else that is a warning.
        poll: Seconds between two looks at a job.
        patience: Seconds that the cloud may be out of reach while a job is waited for.
        log_grace: Seconds that the last lines of a job's log may take to arrive.
        cancel_on_interrupt: Whether a job is stopped when the process that waits for it is interrupted.
        training: What an experiment's ``options.training`` are on top of: a section of config.yaml, or its fields.
        endpoint: Likewise, of ``options.endpoint``.
        prices: USD an hour by machine, where they differ from the table that is shipped.
    """

    #: What a job needs installed to send messages of Dagster Pipes, beside ``dagster-pipes``.
    pipes_requirements: ClassVar[tuple[str, ...]] = ()

    def __init__(
        self,
        state_dir: Path | str | None = None,
        *,
        tracking_uri: str | None = None,
        tracking_required: bool = False,
        poll: float = 10.0,
        patience: float = 900.0,
        log_grace: float = 15.0,
        cancel_on_interrupt: bool = True,
        training: Mapping[str, Any] | BaseModel | None = None,
        endpoint: Mapping[str, Any] | BaseModel | None = None,
        prices: Mapping[str, float] | None = None,
    ) -> None:
        state = (Path(state_dir).expanduser() if state_dir is not None else Settings().state).resolve()
        self.state = state / self.name
        self._tracking_uri = tracking_uri
        self._tracking_required = tracking_required
        self._poll = poll
        self._patience = patience
        self._log_grace = log_grace
        self._cancel_on_interrupt = cancel_on_interrupt
        self._store = JobStore(self.state / "jobs", self.name)
        self._sections = {"training": said(training), "endpoint": said(endpoint)}
        self.prices = dict(prices or {})

    # What a cloud has to say

    @property
    @abstractmethod
    def storage(self) -> CloudStorage:
        """Where scripts, data and models go."""

    @abstractmethod
    def _check(self, experiment: Experiment) -> None:
        """Refuse what can be refused before anything is made: options, settings, names. Raises ConfigError."""

    @abstractmethod
    def _submit(self, job_id: str, spec: JobSpec, package: Path, environment: Mapping[str, str]) -> None:
        """Send the package and the data and start the job; a job of that name that is there already is left alone."""

    @abstractmethod
    def _look(self, job_id: str) -> Remote | None:
        """The job now; None where the cloud knows none of that name."""

    @abstractmethod
    def _summaries(self, since: datetime | None = None) -> dict[str, Remote]:
        """All jobs of ours, newest first, in as few calls as can be; only status and times need be right.

        Of those made before ``since`` it tells what costs nothing more.
        """

    @abstractmethod
    def _stop(self, job_id: str) -> None:
        """Ask a job to end."""

    @abstractmethod
    def _lines(self, job_id: str, cursor: Any) -> tuple[list[str], Any]:
        """The lines of a job's log since ``cursor`` (None for the first), and the cursor after them."""

    @abstractmethod
    def _fetch_code(self, job_id: str, target: Path) -> None:
        """Fetch the scripts that were sent. Raises DataError where they are gone."""

    @abstractmethod
    def _fetch_output(self, job_id: str, remote: Remote, target: Path) -> None:
        """Fetch what the script wrote to its output folder. Raises DataError where there is none or it is damaged."""

    @abstractmethod
    def _fetch_model(self, job_id: str, remote: Remote, target: Path) -> None:
        """Fetch the model folder. Raises DataError where there is none or it is damaged."""

    @abstractmethod
    def _has_model(self, job_id: str, remote: Remote) -> bool:
        """Whether the script saved anything, without fetching it. Raises DataError where it is damaged."""

    def _pipes_place(self, job_id: str) -> dict[str, str]:
        """Where a job writes its messages of Dagster Pipes; empty for the folder that its container names."""
        return {}

    def _messages(self, job_id: str, number: int) -> bytes | None:
        """A file of a job's messages, the first being 1; None where it is not there yet."""
        return self.storage.read(self.storage.path("jobs", job_id, "pipes", f"{number}.json"))

    # Training

    def train(
        self,
        experiment: Experiment,
        wait: bool = True,
        *,
        on_log: LogSink | None = None,
        on_message: LogSink | None = None,
    ) -> TrainingJob:
        """Train in the cloud; see the base class."""
        with spans.training(self.name, experiment.name) as span:
            job = self._train(experiment, wait, on_log, on_message)
            span.set("notebooked.job.id", job.id)
            return job

    def _train(
        self, experiment: Experiment, wait: bool, on_log: LogSink | None, on_message: LogSink | None
    ) -> TrainingJob:
        record = self._begin(experiment)
        if not wait:
            return record.view(self._store.folder(record.id))
        try:
            record = self._wait(record.id, on_log, on_message)
        except Exception:
            # No trouble of ours is a reason to stop what runs there; the next call with the token finds it.
            raise
        except BaseException:
            if self._cancel_on_interrupt:
                with contextlib.suppress(Exception):
                    self._stop(record.id)
            raise
        folder = self._store.folder(record.id)
        if record.status is not JobStatus.SUCCEEDED:
            raise record.error(folder)
        return record.view(folder)

    def package(self, experiment: Experiment, target: Path, job_id: str = "") -> str:
        """Write what would be sent for a training; returns its SHA-256. Nothing leaves this machine."""
        data = data_location(experiment)
        # The script's own requirements, under the name that the clouds' containers install.
        wanted = self.requirements(experiment)
        more: dict[str, bytes] = {}
        job: dict[str, Any] = {
            "arguments": hyperparameter_arguments(experiment),
            "data": data_file(data),
            "experiment": experiment.name,
        }
        if experiment.pipes is not None:
            more = pipes.files(experiment.pipes)
            job["pipes"] = self._pipes_place(job_id)
        return write_archive(
            target,
            {"": experiment.scripts},
            {
                LAUNCHER: Path(launch.__file__).read_bytes(),
                JOB: json.dumps(job, indent=1).encode(),
                "requirements.txt": wanted,
                **more,
            },
        )

    def requirements(self, wanted: Experiment | JobSpec) -> bytes:
        """What a training needs installed."""
        text = requirements("train", wanted.scripts)
        if wanted.pipes in (None, False):
            return text
        return pipes.with_requirements(text, self.pipes_requirements)

    def _begin(self, experiment: Experiment) -> JobRecord:
        REDACTOR.add_environment(experiment.environment)
        spec = self.checked_spec(experiment)
        token = experiment.idempotency_token
        record, new = self._store.create(spec, token=token, job_id=job_name(experiment.name, token))
        folder = self._store.folder(record.id)
        with self._at_work(folder):
            if not new:
                record = jobs.read(folder)
                record.token = token
            if record.status.finished and record.started_at is not None:
                return record
            if (found := self._look(record.id)) is not None:
                tracking = self._tracking_of(experiment.name, found)
                if record.tracking.run_id is None and tracking.run_id is not None:
                    # Another machine submitted it; its MLflow run is to be ended by whoever sees the job end.
                    record.tracking = tracking
                    jobs.write(folder, record)
                return self._seen(folder, record, found)
            if record.status.finished:
                # It was given up as never begun; with the same token it is begun now.
                record.status, record.failure, record.finished_at = JobStatus.PENDING, None, None
            try:
                self._launch(record, spec, experiment, folder)
            except BaseException as error:
                # Where the cloud has it all the same (the reply was lost), the name will find it.
                with contextlib.suppress(Exception):
                    if self._look(record.id) is None:
                        self._abandon(record, spec, folder, experiment.tracking_uri)
                    elif self._cancel_on_interrupt and not isinstance(error, Exception):
                        self._stop(record.id)
                raise
        return jobs.read(folder)

    @contextlib.contextmanager
    def _at_work(self, folder: Path) -> Iterator[None]:
        try:
            held = _lock(folder).acquire(timeout=_LONGEST_WORK)
        except filelock.Timeout as error:
            raise StateError(
                f"Another process has been at work on training job {folder.name!r} for {_LONGEST_WORK:.0f} s.",
                path=folder / ".lock",
                hint="It sends the data or brings the model home; try again when it is done.",
            ) from error
        with held:
            yield

    def _launch(self, record: JobRecord, spec: JobSpec, experiment: Experiment, folder: Path) -> None:
        uri = experiment.tracking_uri
        begun = record.tracking.run_id
        record.tracking = TrackingState(uri=uri, experiment=experiment.name)
        tracking = RunTracking(record, spec, folder, uri, say=log.warning)
        joined: dict[str, str] = {}
        if begun is not None:
            # A process that died before it could submit left a run open; it is this job's.
            with contextlib.suppress(NotebookedError):
                joined = tracking.attach(begun)
        joined = joined or tracking.start()
        jobs.write(folder, record)
        environment = {
            **tracing.environment(),
            **experiment.environment,
            "NOTEBOOKED_EXPERIMENT": experiment.name,
            **({"NOTEBOOKED_MLFLOW_RUN": record.tracking.run_id} if record.tracking.run_id else {}),
            **({"NOTEBOOKED_REGISTERED_MODEL": spec.registered_model} if spec.registered_model else {}),
        }
        if uri is not None and reachable_from_elsewhere(uri):
            environment.update({k: v for k, v in joined.items() if not has_login(v)})
            if experiment.autolog:
                environment["NOTEBOOKED_MLFLOW_AUTOLOG"] = "auto" if experiment.autolog == "auto" else "1"
        package = folder / "package.tar.gz"
        self.package(experiment, package, record.id)
        self._submit(record.id, spec, package, environment)
        package.unlink(missing_ok=True)

    def _abandon(self, record: JobRecord, spec: JobSpec, folder: Path, uri: str | None) -> None:
        """Nothing was started: no job is left in the list, and no run open in MLflow."""
        if record.tracking.run_id is not None and uri is not None:
            with contextlib.suppress(NotebookedError):
                tracking = RunTracking(record, spec, folder, uri, say=log.warning)
                tracking.attach(record.tracking.run_id)
                tracking.finish(JobStatus.FAILED)
        self._store.remove(record)

    def checked_spec(self, experiment: Experiment) -> JobSpec:
        """What would be asked for, checked as far as can be without asking the cloud."""
        spec = spec_of(
            experiment,
            options=dict(experiment.options),
            instance_type=experiment.instance_type,
            instance_count=experiment.instance_count,
            tracking_required=self._tracking_required,
        )
        if experiment.instance_count < 1:
            raise ConfigError("instance_count has to be at least 1.", key="instance_count")
        self._check(experiment)
        return spec

    def _check_data(self, path: str) -> None:
        """The job would find out only when it runs; who submits may not be allowed to look, and need not be."""
        try:
            there = self.storage.holds(path)
        except CredentialsError:
            return
        if not there:
            raise DataError(
                f"There is nothing at {path}.",
                key="data_path",
                hint="Put the data there, or correct data_path.",
            )

    def messages(self, job_id: str, cursor: Any = None) -> tuple[list[str], Any]:
        """The messages of Dagster Pipes that a job has sent since the cursor."""
        if Capability.PIPES not in self.capabilities:
            raise self._cannot(Capability.PIPES)
        return pipes.read_chunks(lambda number: self._messages(job_id, number), cursor)

    def _wait(self, job_id: str, on_log: LogSink | None, on_message: LogSink | None) -> JobRecord:
        cursor: Any = None
        told: Any = None
        shown: Counter[str] = Counter()

        def look() -> JobRecord:
            nonlocal cursor, told, on_log, on_message
            lines, cursor = self._masked(job_id, cursor)
            on_log = emit(lines, on_log)
            shown.update(lines)
            record = self._refresh(job_id)
            if on_message is not None:
                # Looked at after the job's state: what a job that has ended has sent is all there.
                messages, told = self.messages(job_id, told)
                on_message = emit(messages, on_message)
            return record

        try:
            record = self._patiently(look, lambda seen: seen.status.finished)
        except OutOfReachError as error:
            raise ProviderError(
                f"{error.message} For {self._patience:.0f} s there was no way to training job {job_id!r}.",
                hint="The job goes on there; the same run, tried again, finds it.",
                details={"job": job_id},
            ) from error
        # What arrived after the last look; the whole log is on disk by now. Where several machines print, their lines
        # come there in another order than they were shown in.
        whole = (self._store.folder(job_id) / "log.txt").read_text(encoding="utf-8").splitlines()
        emit(_unseen(whole, shown), on_log)
        return record

    def _patiently(
        self,
        look: Callable[[], T],
        done: Callable[[T], bool],
        *,
        poll: float | None = None,
        timeout: float | None = None,
    ) -> T:
        return until(
            look,
            done,
            budget=budget_of(self.name),
            poll=self._poll if poll is None else poll,
            timeout=timeout,
            patience=self._patience,
            say=log.warning,
        )

    def _refresh(self, job_id: str, patience: float = 0) -> JobRecord:
        """A job's record, up to date; one that has ended in the cloud is finished here.

        Args:
            job_id: The job's.
            patience: Seconds that whoever is at work on the job is waited for.
        """
        folder = self._folder(job_id)
        record = jobs.read(folder)
        if record.status.finished:
            return record
        remote = self._look(job_id)
        if remote is not None and not remote.status.finished and remote.status is record.status:
            return record  # nothing to write down; most looks at most jobs end here
        try:
            held = _lock(folder).acquire(timeout=patience)
        except filelock.Timeout:
            # Somebody is sending the job, or brings its model home: who only looks does not wait for that.
            return record
        with held:
            record = jobs.read(folder)
            if record.status.finished:
                return record
            # While we waited for the lock, whoever held it may have submitted the job.
            remote = self._look(job_id)
            if remote is None:
                return self._never_began(folder, record)
            if not remote.status.finished:
                return self._seen(folder, record, remote)
            return self._finish(folder, record, remote)

    def _folder(self, job_id: str) -> Path:
        """A job's folder; made from what the cloud knows where another machine submitted the job."""
        try:
            return self._store.folder(job_id)
        except JobNotFoundError:
            remote = self._look(job_id) if is_job_name(job_id) else None
            if remote is None:
                raise
        experiment = remote.environment.get("NOTEBOOKED_EXPERIMENT") or job_id.split("-")[1]
        with tempfile.TemporaryDirectory() as temporary:
            scripts = Path(temporary) / "code"
            with contextlib.suppress(DataError):
                self._fetch_code(job_id, scripts)
            scripts.mkdir(exist_ok=True)
            self._store.create(
                JobSpec(
                    experiment=experiment,
                    scripts=scripts,
                    registered_model=remote.environment.get("NOTEBOOKED_REGISTERED_MODEL"),
                ),
                token=None,
                job_id=job_id,
                tracking=self._tracking_of(experiment, remote),
            )
        return self._store.folder(job_id)

    def _tracking_of(self, experiment: str, remote: Remote) -> TrackingState:
        """The MLflow run of a job that another machine submitted."""
        run_id = remote.environment.get("NOTEBOOKED_MLFLOW_RUN")
        return TrackingState(uri=self._tracking_uri, experiment=experiment, run_id=run_id)

    def _seen(self, folder: Path, record: JobRecord, remote: Remote) -> JobRecord:
        if remote.status.finished:
            return record  # finishing is for whoever asks next
        started = remote.started_at or record.started_at
        if (record.status, record.started_at) != (remote.status, started):
            record.status, record.started_at = remote.status, started
            jobs.write(folder, record)
        return record

    def _never_began(self, folder: Path, record: JobRecord) -> JobRecord:
        """A record without a job: its process died before it submitted anything, or the cloud has forgotten it."""
        if (datetime.now(UTC) - record.created_at).total_seconds() < 60:
            return record
        record.status, record.finished_at = JobStatus.FAILED, datetime.now(UTC)
        record.failure = Failure(
            error="ProviderError",
            message=f"The training job is not known at provider {self.name!r}.",
            hint="It was never submitted, or was removed there; train again.",
        )
        self._end_tracking(folder, record)
        jobs.write(folder, record)
        return record

    def _finish(self, folder: Path, record: JobRecord, remote: Remote) -> JobRecord:
        """Bring a job's log, output and model home, say how it ended, and tell MLflow."""
        record.started_at, record.finished_at = remote.started_at, remote.finished_at
        record.facts = dict(remote.facts)
        self._save_log(record.id, folder)
        result = self._judge(folder, record, remote)
        with contextlib.suppress(DataError):
            self._fetch_output(record.id, remote, folder / "output")
        record.metrics, complaint = read_metrics(folder)
        if complaint:
            log.warning("Job %s: %s", record.id, complaint)
        if result.status is JobStatus.SUCCEEDED:
            record.model_uri = remote.model_uri
            record.exit_code = 0
        record.status, record.failure = result.status, result.failure
        try:
            self._end_tracking(folder, record)
        except NotebookedError as error:
            # Only where tracking is required: the model is kept, but the job has not done all it was asked.
            if record.status is JobStatus.SUCCEEDED:
                record.status, record.failure = JobStatus.FAILED, failure_of(error)
        jobs.write(folder, record)
        return record

    def _judge(self, folder: Path, record: JobRecord, remote: Remote) -> Outcome:
        name, status = record.experiment, remote.status
        text = _tail(folder / "log.txt")
        codes = _END.findall(text)
        if status is JobStatus.SUCCEEDED:
            return self._judge_model(folder, record, remote)
        if status is JobStatus.CANCELLED:
            failure = Failure(error="TrainingCancelledError", message=f"Training of {name!r} was cancelled.")
            return Outcome(status, failure)
        if status is JobStatus.TIMED_OUT:
            return Outcome(
                status,
                Failure(
                    error="TrainingTimeoutError",
                    message=f"Training of {name!r} ran longer than its time limit and was stopped. {remote.reason}".strip(),
                    hint="Raise `timeout`, or train on less; the log shows how far it got.",
                ),
            )
        # A job that failed although its script did not (its model could not be written) is the cloud's to explain.
        if codes and (int(codes[-1]) != 0 or not remote.error):
            record.exit_code = int(codes[-1])
            if record.exit_code < 0 or record.exit_code == 137:
                return Outcome(JobStatus.KILLED, killed(name, record.exit_code))
            own = text[: text.rfind(launch.END)].rstrip()
            return explain(name, record.exit_code, own, folder / "code", own_environment=True)
        if remote.error:
            failure = Failure(
                error=remote.error, message=f"Training of {name!r}: {remote.reason}", hint=remote.hint
            )
            return Outcome(status, failure)
        found = explain(name, 1, text, folder / "code", own_environment=True)
        if found.failure is not None and not found.failure.traceback and remote.reason:
            found.failure.message = f"Training of {name!r} failed: {remote.reason}"
        return found

    def _judge_model(self, folder: Path, record: JobRecord, remote: Remote) -> Outcome:
        try:
            if record.tracking.run_id is not None:
                self._fetch_model(record.id, remote, folder / "model")
                there = any((folder / "model").iterdir())
            else:
                there = self._has_model(record.id, remote)
        except DataError as error:
            return Outcome(
                JobStatus.FAILED,
                Failure(
                    error="ProviderError",
                    message=f"Training of {record.experiment!r} ended well, but its model cannot be read: {error.message}",
                    hint="Train again; the log says what was saved.",
                ),
            )
        if there:
            return Outcome(JobStatus.SUCCEEDED)
        record.exit_code = 0
        return Outcome(
            JobStatus.FAILED,
            Failure(
                error="TrainingFailedError",
                message=f"train.py of {record.experiment!r} ended well but saved no model.",
                hint="It has to write into --model-dir (SM_MODEL_DIR); see whether the notebook binds a model.",
            ),
        )

    def _end_tracking(self, folder: Path, record: JobRecord) -> None:
        run_id = record.tracking.run_id
        uri = self._tracking_uri or record.tracking.uri
        if run_id is None or uri is None:
            return
        tracking = RunTracking(record, jobs.read_spec(folder), folder, uri, say=log.warning)
        tracking.attach(run_id)
        tracking.finish(record.status)

    def _masked(self, job_id: str, cursor: Any) -> tuple[list[str], Any]:
        """As ``_lines``, without the secrets that this process knows of, and each really one line: bars have ``\\r``."""
        lines, cursor = self._lines(job_id, cursor)
        return [part for line in lines for part in REDACTOR.redact(line).splitlines() or [""]], cursor

    def _save_log(self, job_id: str, folder: Path) -> None:
        """The whole log; its end may come a little after the job's."""
        deadline = time.monotonic() + self._log_grace
        cursor: Any = None
        with (folder / "log.txt").open("w", encoding="utf-8") as stream:
            while True:
                lines, cursor = self._masked(job_id, cursor)
                stream.writelines(f"{line}\n" for line in lines)
                stream.flush()
                if any(launch.END in line for line in lines) or time.monotonic() >= deadline:
                    return
                time.sleep(min(self._poll, 1.0))

    # Asking

    def status(self, job_id: str) -> TrainingJob:
        """A job's state now; one that has ended in the cloud is finished here first."""
        folder = self._folder(job_id)
        return self._refresh(job_id).view(folder)

    def job_of(self, experiment: str, token: str) -> TrainingJob | None:
        """The job of a token, whoever submitted it and wherever."""
        try:
            return self.status(job_name(experiment, token))
        except JobNotFoundError:
            return None

    def logs(self, job_id: str, *, follow: bool = False) -> Iterator[str]:
        """A job's output, line by line."""
        folder = self._folder(job_id)
        if not jobs.read(folder).status.finished:
            return self._live(job_id, follow)
        return iter((folder / "log.txt").read_text(encoding="utf-8").splitlines())

    def _live(self, job_id: str, follow: bool) -> Iterator[str]:
        cursor: Any = None
        if not follow:
            yield from self._masked(job_id, cursor)[0]
            return

        def look() -> tuple[bool, list[str], Any]:
            ended = self._refresh(job_id).status.finished
            return ended, *self._masked(job_id, cursor)

        while True:
            ended, lines, cursor = self._patiently(look, lambda _: True)
            yield from lines
            if ended:
                return
            time.sleep(self._poll)

    def cancel(self, job_id: str) -> TrainingJob:
        """Stop a job; returns when the cloud says that it has ended. Raises ProviderError where it never does."""
        folder = self._folder(job_id)
        record = self._refresh(job_id, patience=_LONGEST_WORK)
        if not record.status.finished:
            self._stop(job_id)
            record = self._patiently(
                lambda: self._refresh(job_id),
                lambda seen: seen.status.finished,
                poll=min(self._poll, 2.0),
                timeout=self._patience,
            )
        if not record.status.finished:
            raise ProviderError(
                f"Training job {job_id!r} was asked to stop and has not ended in {self._patience:.0f} s.",
                hint="Look at it in the cloud's console; until it has ended it costs money.",
                details={"job": job_id},
            )
        return record.view(folder)

    def states(self, since: datetime) -> dict[str, JobStatus]:
        """Where the jobs stand, as the cloud's own list has it."""
        return {job_id: remote.status for job_id, remote in self._summaries(since).items()}

    def list_jobs(self, experiment: str | None = None) -> list[TrainingJob]:
        """All jobs of ours in the cloud, and those on disk that it has forgotten; newest first.

        Listing fetches nothing: a job that has ended and that nobody has asked for since, or that another machine
        submitted, is told as the cloud's own list has it, with status and times; ``status`` knows the rest.
        """
        remotes, ours = self._summaries(), set(self._store.ids())
        found = []
        for job_id in dict.fromkeys([*remotes, *ours]):
            remote = remotes.get(job_id)
            if job_id not in ours and remote is not None:
                seen = _listed(job_id, self.name, remote)
                if experiment is None or _slug(experiment) == seen.experiment:
                    found.append((seen.started_at or datetime.now(UTC), seen))
                continue
            try:
                folder = self._store.folder(job_id)
                record = jobs.read(folder)
                if remote is None:
                    record = self._refresh(job_id)
                view = record.view(folder)
            except NotebookedError as error:
                log.warning("Job %s: %s", job_id, error)
                continue
            if remote is not None and not view.status.finished:
                view = replace(
                    view, status=remote.status, started_at=remote.started_at, finished_at=remote.finished_at
                )
            if experiment in (None, record.experiment):
                found.append((record.created_at, view))
        return [job for _, job in sorted(found, key=lambda item: item[0], reverse=True)]


def job_name(experiment: str, token: str | None) -> str:
    """A name that every cloud takes: letters, digits and hyphens, at most 63 of them, unique for ever."""
    slug = _slug(experiment)
    if token is None:
        return f"{_JOB_PREFIX}-{slug}-{datetime.now(UTC):%Y%m%d-%H%M%S}-{secrets.token_hex(3)}"
    return f"{_JOB_PREFIX}-{slug}-{hashlib.sha256(f'{experiment}/{token}'.encode()).hexdigest()[:20]}"


def _slug(experiment: str) -> str:
    return re.sub(r"[^a-z0-9]+", "-", experiment.lower()).strip("-")[:32].strip("-")


def _listed(job_id: str, provider: str, remote: Remote) -> TrainingJob:
    match = _JOB_NAME.fullmatch(job_id)
    return TrainingJob(
        job_id,
        match["slug"] if match is not None else job_id,
        provider,
        remote.status,
        started_at=remote.started_at,
        finished_at=remote.finished_at,
        facts=dict(remote.facts),
    )


def is_job_name(text: str) -> bool:
    """Whether this could be the name of a job of ours."""
    return re.fullmatch(rf"{_JOB_PREFIX}(-[a-z0-9]+)+", text) is not None and len(text) <= 63


def _lock(folder: Path) -> filelock.BaseFileLock:
    return filelock.FileLock(folder / ".lock")


def _unseen(lines: Iterable[str], shown: Counter[str]) -> Iterator[str]:
    left = shown.copy()
    for line in lines:
        left[line] -= 1
        if left[line] < 0:
            yield line


def data_file(data: str | None) -> str:
    """The file's name, where the data is one file; empty for a folder or none."""
    if data is None:
        return ""
    if "://" in data:
        last = urlsplit(data).path.rpartition("/")[2]
        return last if "." in last else ""
    return Path(data).name if Path(data).is_file() else ""


def reachable_from_elsewhere(uri: str) -> bool:
    """Whether a tracking server may be reached by a job that does not run on this machine."""
    parts = urlsplit(uri)
    return parts.scheme in ("http", "https") and parts.hostname not in ("localhost", "127.0.0.1", "::1", None)


def failure_of(error: NotebookedError) -> Failure:
    """An error, as a record keeps it."""
    return Failure(error=type(error).__name__, message=error.message, hint=error.hint or "")


def killed(experiment: str, code: int) -> Failure:
    """The failure of a process that a signal ended; ``code`` is negative, or 128 and the signal."""
    number = -code if code < 0 else code - 128
    what = ", most often out of memory" if number == 9 else ""
    return Failure(
        error="TrainingKilledError",
        message=f"Training of {experiment!r} was killed by signal {number}{what}.",
        hint="Choose an instance type with more memory, or train on less data or in smaller batches.",
    )


def _tail(path: Path) -> str:
    with path.open("rb") as stream:
        stream.seek(0, 2)
        stream.seek(max(0, stream.tell() - _LOG_END))
        return stream.read().decode("utf-8", "replace")
