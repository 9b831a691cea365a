"""Training jobs on disk, of any provider: ``<state>/jobs/<id>/`` of the local one, ``<state>/<provider>/<id>/`` else.

::

    job.json    where the job stands (this module); replaced as a whole, never edited in place
    spec.json   what was asked for, without any value of an environment variable
    log.txt     everything the job printed
    code/       a copy of the scripts, so that editing them does not change a job that runs
    work/       the working folder
    model/      what ``train.py`` saved
    output/     ``metrics.json`` and other output
    heartbeat   touched by the runner while it lives
    runner.log  what the runner itself had to say; empty unless something went wrong
"""

from __future__ import annotations

import contextlib
import hashlib
import re
import secrets
import shutil
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal

import filelock
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator

from notebooked_dagster.core.files import write_atomic
from notebooked_dagster.errors import ConfigError, JobNotFoundError, NotebookedError, StateError
from notebooked_dagster.providers.arguments import (
    check_experiment_name,
    copy_scripts,
    data_location,
    hyperparameter_arguments,
)
from notebooked_dagster.providers.base import Experiment, JobStatus, TrainingJob
from notebooked_dagster.providers.failures import Failure
from notebooked_dagster.serving.state import ProcessIdentity
from notebooked_dagster.tracking.access import shown

FORMAT = 1
_JOB_ID = re.compile(r"[a-z0-9][a-z0-9_-]{0,160}")
# Given back to a full disk so that the last word on a job can always be written.
_RESERVE = 64 * 1024


class TrackingState(BaseModel):
    """What became of a job's MLflow run.

    Attributes:
        uri: The tracking server, without credentials; None where tracking is off.
        experiment: The MLflow experiment.
        run_id: The run; None where it could not be started.
        model_version: The registered version; None where not registered.
        complete: Whether everything reached the server. ``LocalProvider.sync`` sends what did not.
        warnings: What went wrong, in sentences.
    """

    uri: str | None = None
    experiment: str | None = None
    run_id: str | None = None
    model_version: str | None = None
    complete: bool = False
    warnings: list[str] = Field(default_factory=list)

    @field_validator("uri")
    @classmethod
    def _without_credentials(cls, uri: str | None) -> str | None:
        return shown(uri) if uri is not None else None


class JobSpec(BaseModel):
    """``spec.json``: what was asked for. Environment variables by name only: their values may be secrets."""

    experiment: str
    scripts: Path
    hyperparameters: dict[str, Any] = Field(default_factory=dict)
    options: dict[str, Any] = Field(default_factory=dict)
    instance_type: str | None = None
    instance_count: int = 1
    arguments: list[str] = Field(default_factory=list)
    python: str = ""
    data_path: str | None = None
    notebook: Path | None = None
    environment_names: list[str] = Field(default_factory=list)
    own_environment: bool = False
    timeout: float | None = None
    memory_limit: int | None = None
    stop_grace: float = 10.0
    tags: dict[str, str] = Field(default_factory=dict)
    registered_model: str | None = None
    tracking_required: bool = False
    autolog: bool | Literal["auto"] = False
    #: Whether it reports by Dagster Pipes.
    pipes: bool = False


def spec_of(experiment: Experiment, **own: Any) -> JobSpec:
    """What an experiment asks of any provider, with the fields that are a provider's own.

    Raises:
        ConfigError: A name, a hyperparameter or a limit cannot be, or there is no ``train.py``.
        DataError: The data is not there.
    """
    check_experiment_name(experiment.name)
    if not (experiment.scripts / "train.py").is_file():
        raise ConfigError(
            f"There is no train.py for experiment {experiment.name!r}.",
            path=experiment.scripts,
            hint="Generate the scripts first: `notebooked convert`.",
        )
    for name in ("timeout", "memory_limit"):
        value = getattr(experiment, name)
        if value is not None and value <= 0:
            raise ConfigError(f"{name} has to be more than 0, not {value}.", key=name)
    hyperparameter_arguments(experiment)
    return JobSpec(
        experiment=experiment.name,
        scripts=experiment.scripts.resolve(),
        hyperparameters=dict(experiment.hyperparameters),
        data_path=data_location(experiment),
        notebook=experiment.notebook.expanduser().resolve() if experiment.notebook is not None else None,
        environment_names=sorted(experiment.environment),
        timeout=experiment.timeout,
        tags=dict(experiment.tags),
        registered_model=experiment.registered_model,
        autolog=experiment.autolog,
        pipes=experiment.pipes is not None,
        **own,
    )


class Handover(BaseModel):
    """What a starter tells the runner and what never touches the disk.

    Attributes:
        environment: The training process's environment.
        build_environment: The environment in which packages are installed.
        tracking_uri: The MLflow server, credentials included; None for no tracking.
        cache: ``<state>/cache``.
        secrets: What of the environment was fetched as a secret, whatever its variable is called.
    """

    environment: dict[str, str]
    build_environment: dict[str, str]
    tracking_uri: str | None
    cache: Path
    secrets: set[str] = set()


class JobRecord(BaseModel):
    """``job.json``: where a job stands. Written by the runner while it lives, and by whoever finds it dead."""

    model_config = ConfigDict(ser_json_inf_nan="constants")

    format: int = FORMAT
    id: str
    experiment: str
    provider: str = "local"
    status: JobStatus = JobStatus.PENDING
    created_at: datetime = Field(default_factory=lambda: datetime.now(UTC))
    started_at: datetime | None = None
    finished_at: datetime | None = None
    token: str | None = None
    model_uri: str | None = None
    metrics: dict[str, float] = Field(default_factory=dict)
    exit_code: int | None = None
    failure: Failure | None = None
    tracking: TrackingState = Field(default_factory=TrackingState)
    #: Whether somebody waits for it; a job that nobody waited for is kept until it has surely been looked at.
    waited: bool = True
    facts: dict[str, str | float] = Field(default_factory=dict)
    starter: ProcessIdentity | None = None
    runner: ProcessIdentity | None = None
    trainer: ProcessIdentity | None = None

    def view(self, folder: Path) -> TrainingJob:
        """The record as every provider gives it."""
        return TrainingJob(
            id=self.id,
            experiment=self.experiment,
            provider=self.provider,
            status=self.status,
            model_uri=self.model_uri,
            metrics=dict(self.metrics),
            mlflow_run_id=self.tracking.run_id,
            model_version=self.tracking.model_version,
            exit_code=self.exit_code,
            message=self.failure.message if self.failure else " ".join(self.tracking.warnings),
            traceback=self.failure.traceback if self.failure else "",
            started_at=self.started_at,
            finished_at=self.finished_at,
            log=str(folder / "log.txt"),
            facts=dict(self.facts),
        )

    def error(self, folder: Path) -> NotebookedError:
        """What to raise for a job that did not succeed."""
        failure = self.failure or Failure(error="TrainingFailedError", message="Training failed.")
        return failure.as_error(job=self.id, exit_code=self.exit_code, log=str(folder / "log.txt"))


class JobStore:
    """All jobs of a state folder.

    Args:
        root: Made when the first job is.
        provider: Whose jobs.
    """

    def __init__(self, root: Path, provider: str = "local") -> None:
        self.root = root
        self.provider = provider

    def folder(self, job_id: str) -> Path:
        """A job's folder.

        Raises:
            JobNotFoundError: There is none of that id.
        """
        path = self.root / job_id
        if not _JOB_ID.fullmatch(job_id) or not path.is_dir():
            raise JobNotFoundError(
                f"There is no training job {job_id!r} at provider {self.provider!r}.",
                hint="`notebooked jobs` lists the jobs there are; old ones are pruned.",
            )
        return path

    def create(
        self,
        spec: JobSpec,
        *,
        token: str | None,
        starter: ProcessIdentity | None = None,
        job_id: str | None = None,
        tracking: TrackingState | None = None,
    ) -> tuple[JobRecord, bool]:
        """Make a job's folder, or find the job that was made with this token or under this id.

        Args:
            spec: What was asked for.
            token: Two calls with the same token are one job; None for always a new one.
            starter: The process that asks.
            job_id: The job's id; one of its experiment and the time where None. A job that has it already is that job:
                somebody looked it up before anybody here had its token.
            tracking: The MLflow run that a new job has already.

        Returns:
            The record, and whether it is a new one.

        Raises:
            ConfigError: The experiment's name cannot be a folder's.
            StateError: The disk is full or the state folder is not writable.
        """
        check_experiment_name(spec.experiment)
        try:
            self.root.mkdir(parents=True, exist_ok=True)
            with self._lock():
                if token is not None and (known := self.of_token(token)) is not None:
                    return known, False
                if job_id is not None and (self.root / job_id / "job.json").exists():
                    return self._adopted(spec, token, job_id), False
                return self._make(spec, token, starter, job_id, tracking), True
        except OSError as error:
            raise StateError(
                f"The training job cannot be written: {error.strerror or error}.",
                path=self.root,
                hint="Make room on the disk or make the folder writable, then train again.",
            ) from error

    def _make(
        self,
        spec: JobSpec,
        token: str | None,
        starter: ProcessIdentity | None,
        job_id: str | None,
        tracking: TrackingState | None,
    ) -> JobRecord:
        now = datetime.now(UTC)
        job_id = job_id or f"{spec.experiment}-{now:%Y%m%d-%H%M%S}-{secrets.token_hex(3)}"
        record = JobRecord(
            id=job_id,
            experiment=spec.experiment,
            provider=self.provider,
            created_at=now,
            token=token,
            starter=starter,
            tracking=tracking or TrackingState(),
        )
        folder = self.root / job_id
        # What lies there without a record is of a process that died while it made the folder.
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir()
        try:
            copy_scripts(spec.scripts, folder / "code")
            for name in ("work", "model", "output"):
                (folder / name).mkdir()
            (folder / "log.txt").touch()
            (folder / "reserve").write_bytes(b"\0" * _RESERVE)
            write_spec(folder, spec)
            write(folder, record)
            if token is not None:
                write_atomic(self._token_file(token), job_id)
        except BaseException:
            shutil.rmtree(folder, ignore_errors=True)
            raise
        return record

    def _adopted(self, spec: JobSpec, token: str | None, job_id: str) -> JobRecord:
        """The job of this id; with a token it gets that, and what was asked for, which a mere look does not know."""
        folder = self.root / job_id
        if token is not None:
            write_spec(folder, spec)
            write_atomic(self._token_file(token), job_id)
        return read(folder)

    def of_token(self, token: str) -> JobRecord | None:
        """The job that was made with a token; None where there is none."""
        try:
            job_id = self._token_file(token).read_text(encoding="utf-8").strip()
            return read(self.folder(job_id))
        except (FileNotFoundError, JobNotFoundError):
            return None

    def _token_file(self, token: str) -> Path:
        return self.root / ".tokens" / hashlib.sha256(token.encode()).hexdigest()

    def forget_token(self, token: str) -> None:
        """Let the next job with this token be a new one."""
        self._token_file(token).unlink(missing_ok=True)

    def ids(self) -> list[str]:
        """The ids of all jobs, newest first."""
        if not self.root.is_dir():
            return []
        found = [
            path
            for path in self.root.iterdir()
            if _JOB_ID.fullmatch(path.name)
            and ((path / "job.json").exists() or (path / "spec.json").exists())
        ]
        return [path.name for path in sorted(found, key=_creation_key, reverse=True)]

    def remove(self, record: JobRecord) -> None:
        """Delete a job's folder and its token."""
        if record.token is not None:
            self.forget_token(record.token)
        # Renamed first: half a folder is never taken for a job.
        doomed = self.root / f".removed-{record.id}"
        (self.root / record.id).rename(doomed)
        shutil.rmtree(doomed, ignore_errors=True)

    @contextlib.contextmanager
    def _lock(self) -> Iterator[None]:
        try:
            with filelock.FileLock(self.root / ".lock", timeout=60):
                yield
        except filelock.Timeout as error:
            raise StateError(
                "Another process has held the list of jobs for a minute.",
                path=self.root / ".lock",
                hint="See what runs there, then try again.",
            ) from error


def _creation_key(folder: Path) -> tuple[str, float]:
    try:
        born = (folder / "spec.json").stat().st_mtime
    except OSError:
        born = 0.0
    match = re.search(r"-(\d{8}-\d{6})-[0-9a-f]{6}$", folder.name)
    return (match.group(1) if match else "", born)


def write(folder: Path, record: JobRecord) -> None:
    """Replace ``job.json``; on a full disk the folder's reserve makes the room.

    Raises:
        OSError: It cannot be written even so.
    """
    data = record.model_dump_json(indent=2)
    try:
        write_atomic(folder / "job.json", data, mode=0o600)
    except OSError:
        (folder / "reserve").unlink(missing_ok=True)
        write_atomic(folder / "job.json", data, mode=0o600)


def read(folder: Path) -> JobRecord:
    """Read ``job.json``.

    Raises:
        StateError: It is missing or damaged, or of a newer format.
    """
    path = folder / "job.json"
    hint = f"What the job printed and made is still in {folder}; remove that folder to be rid of the message."
    try:
        record = JobRecord.model_validate_json(path.read_bytes())
    except FileNotFoundError as error:
        raise StateError("The training job has lost its state file.", path=path, hint=hint) from error
    except OSError as error:
        raise StateError(f"The job's state cannot be read: {error.strerror or error}.", path=path) from error
    except ValidationError as error:
        reason = "; ".join(
            f"{'.'.join(map(str, item['loc']))} {item['msg']}".strip() for item in error.errors()[:3]
        )
        raise StateError(f"The training job's state is damaged: {reason}.", path=path, hint=hint) from error
    if record.format != FORMAT:
        raise StateError(
            f"The job's state has format {record.format}; this release reads {FORMAT}.", path=path
        )
    if record.id != folder.name:
        raise StateError(
            f"The job's state belongs to {record.id!r}, not to this folder.", path=path, hint=hint
        )
    return record


def write_spec(folder: Path, spec: JobSpec) -> None:
    """Replace ``spec.json``."""
    write_atomic(folder / "spec.json", spec.model_dump_json(indent=2), mode=0o600)


def read_spec(folder: Path) -> JobSpec:
    """Read ``spec.json``.

    Raises:
        StateError: It is missing or damaged.
    """
    path = folder / "spec.json"
    try:
        return JobSpec.model_validate_json(path.read_bytes())
    except (OSError, ValidationError) as error:
        raise StateError(f"What the job was asked to do cannot be read: {error}", path=path) from error
