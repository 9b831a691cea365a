"""The protocol every provider follows, and the values it speaks in.

A provider trains an experiment somewhere and serves the result somewhere. It is plain Python: it knows nothing of
Dagster. Whatever it starts outlives the process that asked for it, and is found again by its id or name.
"""

from __future__ import annotations

import json
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from datetime import datetime
from enum import StrEnum
from pathlib import Path
from typing import Any, ClassVar, Final, Literal

from notebooked_dagster.errors import CapabilityError, EndpointNotFoundError


class Capability(StrEnum):
    """What a provider may or may not be able to do. The contract suite tests exactly what is declared."""

    TRAIN = "train"
    TRAIN_NO_WAIT = "train_no_wait"
    CANCEL = "cancel"
    LOGS = "logs"
    ENDPOINT_LOGS = "endpoint_logs"
    OWN_ENVIRONMENT = "own_environment"
    DEPLOY = "deploy"
    ROLLBACK = "rollback"
    TRAFFIC_SPLIT = "traffic_split"
    SURVIVES_RESTART = "survives_restart"
    GPU = "gpu"
    MULTIPLE_INSTANCES = "multiple_instances"
    PLAN = "plan"
    PIPES = "pipes"


#: What a provider declares that can do everything.
ALL_CAPABILITIES: Final = frozenset(Capability)


class JobStatus(StrEnum):
    """Where a training job stands."""

    PENDING = "pending"
    RUNNING = "running"
    SUCCEEDED = "succeeded"
    FAILED = "failed"
    CANCELLED = "cancelled"
    TIMED_OUT = "timed_out"
    KILLED = "killed"

    @property
    def finished(self) -> bool:
        """Whether it will not change any more."""
        return self not in (JobStatus.PENDING, JobStatus.RUNNING)


class EndpointStatus(StrEnum):
    """Where an endpoint stands."""

    CREATING = "creating"
    HEALTHY = "healthy"
    DEGRADED = "degraded"
    STOPPED = "stopped"
    FAILED = "failed"


@dataclass(frozen=True, slots=True)
class Experiment:
    """What a provider needs to train: scripts and settings, no notebook.

    Attributes:
        name: The experiment's name: lower-case letters, digits, ``_`` and ``-``.
        scripts: Folder with ``train.py``, ``inference.py``, ``preprocess.py``, ``requirements.txt``, source map.
        hyperparameters: By name; passed as ``--name value``, JSON-encoded where not a string.
        data_path: File or folder with the data; passed on as the script documents. None where the script needs none.
        notebook: Only for lineage and for resolving relative data paths; may not exist where training runs.
        instance_type: The provider's own word for the machine; ignored by ``local``.
        instance_count: How many of them.
        options: Further settings of the provider, for this experiment alone; the provider checks them.
        environment: Extra environment variables of the job.
        tracking_credentials: Variables with the tracking server's credentials; only for a training on this machine, never for
            a job elsewhere or a server.
        own_environment: Train in a fresh virtual environment made from the requirements.
        timeout: Seconds; None for no limit.
        tags: Lineage: commit, stage hashes, data hash, Dagster run id. Written to MLflow.
        tracking_uri: MLflow server; None trains without tracking.
        registered_model: Name to register the model under; None does not register.
        idempotency_token: Two ``train`` calls with the same token are one job.
        autolog: Ask ``train.py`` to use MLflow's autologging on top of what it logs itself; ``auto`` where that adds a curve.
        memory_limit: Bytes that training may use; None for the provider's own limit.
        pipes: The context that Dagster Pipes has in the job, where the job is to report; None where it is not.
    """

    name: str
    scripts: Path
    hyperparameters: Mapping[str, Any] = field(default_factory=dict)
    data_path: str | None = None
    notebook: Path | None = None
    instance_type: str | None = None
    instance_count: int = 1
    options: Mapping[str, Any] = field(default_factory=dict)
    environment: Mapping[str, str] = field(default_factory=dict)
    tracking_credentials: Mapping[str, str] = field(default_factory=dict)
    own_environment: bool = False
    timeout: float | None = None
    tags: Mapping[str, str] = field(default_factory=dict)
    tracking_uri: str | None = None
    registered_model: str | None = None
    idempotency_token: str | None = None
    autolog: bool | Literal["auto"] = False
    memory_limit: int | None = None
    pipes: Mapping[str, Any] | None = None


@dataclass(frozen=True, slots=True)
class TrainingJob:
    """A training job as its provider sees it now.

    Attributes:
        id: The provider's id; unique for ever.
        experiment: Its experiment's name.
        provider: The provider's name.
        status: Where it stands.
        model_uri: Where the model lies: a path or URI that ``deploy`` takes; None until it succeeded.
        metrics: Final metrics by name.
        mlflow_run_id: None where tracking is off.
        model_version: Version in the MLflow registry; None where not registered.
        exit_code: The process's; negative for a signal; None while it runs.
        message: Why it failed, in one sentence; empty otherwise.
        traceback: The remapped traceback of a failure; empty otherwise.
        started_at: When it started.
        finished_at: When it ended.
        log: Where its whole output lies.
        facts: What else the provider knows and people want to see: ``cost (USD)``, ``instance``, a ``console`` URL.
    """

    id: str
    experiment: str
    provider: str
    status: JobStatus
    model_uri: str | None = None
    metrics: Mapping[str, float] = field(default_factory=dict)
    mlflow_run_id: str | None = None
    model_version: str | None = None
    exit_code: int | None = None
    message: str = ""
    traceback: str = ""
    started_at: datetime | None = None
    finished_at: datetime | None = None
    log: str | None = None
    facts: Mapping[str, str | float] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Deployment:
    """One model version behind an endpoint.

    Attributes:
        version: The endpoint's own counter, ``"1"``, ``"2"``, …; never reused.
        model_uri: What it serves.
        weight: Share of the traffic, 0 to 100.
        role: ``champion``, ``challenger`` or ``previous`` (kept for rollback).
        status: Where it stands.
        created_at: When it was deployed.
        labels: Lineage: model version, MLflow run, experiment.
    """

    version: str
    model_uri: str
    weight: int
    role: str
    status: EndpointStatus
    created_at: datetime | None = None
    labels: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Endpoint:
    """An endpoint as its provider sees it now. ``url`` takes ``POST /invocations`` and ``GET /ping``."""

    name: str
    provider: str
    url: str
    status: EndpointStatus
    deployments: tuple[Deployment, ...] = ()
    message: str = ""


@dataclass(frozen=True, slots=True)
class PlanItem:
    """One thing that was looked at for a plan.

    Attributes:
        state: ``exists``; ``new``, where it would be made; ``missing``; ``unknown``, where it could not be looked at.
        text: A sentence.
        hint: What to do about it.
    """

    state: Literal["exists", "new", "missing", "unknown"]
    text: str
    hint: str = ""


@dataclass(frozen=True, slots=True)
class Plan:
    """What training an experiment would send, cost and need.

    Attributes:
        provider: Where.
        experiment: What.
        request: What the provider would be asked, without secrets.
        files: What would be sent: sizes in bytes by name.
        facts: Where it would run and what that costs.
        items: What was looked at.
        policies: The least that has to be allowed, by who needs it, in the provider's own form.
    """

    provider: str
    experiment: str
    request: Mapping[str, Any] = field(default_factory=dict)
    files: Mapping[str, int] = field(default_factory=dict)
    facts: Mapping[str, str | float] = field(default_factory=dict)
    items: tuple[PlanItem, ...] = ()
    policies: Mapping[str, Any] = field(default_factory=dict)


LogSink = Callable[[str], None]


class BaseProvider(ABC):
    """Train and serve. Subclasses declare ``name`` and ``capabilities``; what is not declared raises CapabilityError.

    Every method may raise ``ProviderError`` (exit 2) for the provider's or the network's faults.
    """

    name: ClassVar[str]
    capabilities: ClassVar[frozenset[Capability]]

    @abstractmethod
    def train(
        self,
        experiment: Experiment,
        wait: bool = True,
        *,
        on_log: LogSink | None = None,
        on_message: LogSink | None = None,
    ) -> TrainingJob:
        """Train; with ``wait`` return when it has ended.

        Args:
            experiment: What to train.
            wait: Whether to block until the job has finished.
            on_log: Called with each line the job prints, while waiting.
            on_message: Called with each message of Dagster Pipes that the job sends, while waiting; given only to
                providers that declare ``PIPES``.

        Returns:
            The job. A job that did not succeed is raised as an error, not returned, when waiting.

        Raises:
            TrainingError: One of its kinds, with the remapped traceback in the message.
            DataError: The data path does not exist.
        """

    @abstractmethod
    def status(self, job_id: str) -> TrainingJob:
        """A job's state now. Raises JobNotFoundError."""

    @abstractmethod
    def logs(self, job_id: str, *, follow: bool = False) -> Iterator[str]:
        """A job's output, line by line, without newlines; with ``follow`` until it has ended."""

    @abstractmethod
    def cancel(self, job_id: str) -> TrainingJob:
        """Stop a job and everything it started. A finished job is left as it is."""

    @abstractmethod
    def list_jobs(self, experiment: str | None = None) -> list[TrainingJob]:
        """All jobs the provider knows of, newest first."""

    def states(self, since: datetime) -> dict[str, JobStatus]:
        """Where the jobs stand by their ids, in as few questions as can be; those made before ``since`` need not be told."""
        return {job.id: job.status for job in self.list_jobs()}

    @abstractmethod
    def deploy(
        self,
        experiment: Experiment,
        model_uri: str,
        endpoint_name: str,
        *,
        weight: int = 100,
        labels: Mapping[str, str] | None = None,
    ) -> Endpoint:
        """Serve a model; traffic moves only when the new version is healthy and ready.

        Args:
            experiment: For its name, scripts and environment.
            model_uri: As in ``TrainingJob.model_uri``.
            endpoint_name: Made where it does not exist.
            weight: 100 replaces what is served; less makes it the challenger with that share of the traffic.
            labels: Lineage to keep with the deployment.

        Raises:
            DeploymentError: It never became healthy; the endpoint serves what it served before.
            DeploymentConflictError: Another deployment of this endpoint is under way.
        """

    @abstractmethod
    def predict(self, endpoint_name: str, data: Any) -> Any:
        """Send ``data`` (JSON-serialisable, as ``/invocations`` takes it) and return the parsed reply.

        Raises:
            EndpointNotFoundError: There is no such endpoint.
            InvalidInputError: The server answered 4xx.
            ProviderError: It cannot be reached or answered 5xx.
        """

    @abstractmethod
    def delete_endpoint(self, endpoint_name: str) -> list[str]:
        """Remove an endpoint and everything made for it.

        Returns:
            What was left behind on purpose (the models), as sentences.
        """

    @abstractmethod
    def list_endpoints(self) -> list[Endpoint]:
        """All endpoints of this provider, by name."""

    def endpoint(self, endpoint_name: str) -> Endpoint:
        """One endpoint. Raises EndpointNotFoundError."""
        for endpoint in self.list_endpoints():
            if endpoint.name == endpoint_name:
                return endpoint
        raise EndpointNotFoundError(
            f"There is no endpoint {endpoint_name!r} at provider {self.name!r}.",
            hint="`notebooked endpoints` lists what there is.",
        )

    def input_example(self, endpoint: Endpoint) -> Any:
        """What the model that gets most of the traffic was saved with as an example of its input; None where there is none."""
        served = max(endpoint.deployments, key=lambda item: item.weight, default=None)
        try:
            document = (
                json.loads((Path(served.model_uri) / "model.json").read_text(encoding="utf-8"))
                if served
                else {}
            )
        except (OSError, ValueError):
            return None
        return document.get("input_example") if isinstance(document, dict) else None

    def messages(self, job_id: str, cursor: Any = None) -> tuple[list[str], Any]:
        """The messages of Dagster Pipes that a job has sent, each a line of JSON.

        Args:
            job_id: Which job; it may have ended long ago.
            cursor: What an earlier call gave, for what came since; None for all.

        Returns:
            The messages, and the cursor after them.
        """
        raise self._cannot(Capability.PIPES)

    def job_of(self, experiment: str, token: str) -> TrainingJob | None:
        """The job that was submitted with an idempotency token; None where there is none, or the provider cannot tell."""
        return None

    def plan(self, experiment: Experiment, endpoint_name: str | None = None) -> Plan:
        """What training would send, cost and need; asks only what changes nothing.

        Args:
            experiment: What would be trained.
            endpoint_name: What it would be deployed to; None for nothing.
        """
        raise self._cannot(
            Capability.PLAN, "Training sends and costs nothing there; --provider names a cloud."
        )

    def ensure(self, endpoint_name: str, *, patience: float | None = None) -> Endpoint:
        """Bring an endpoint back to what it is meant to be, where the provider does not do so by itself.

        Args:
            endpoint_name: Which.
            patience: Seconds after which to come back and leave it starting; as long as it takes where None.
        """
        return self.endpoint(endpoint_name)

    def endpoint_logs(self, endpoint_name: str, version: str | None = None) -> Iterator[str]:
        """What a version of an endpoint printed, line by line; the champion where None."""
        raise self._cannot(Capability.ENDPOINT_LOGS)

    def traffic(self, endpoint_name: str, weights: Mapping[str, int]) -> Endpoint:
        """Set each deployment's share of the traffic; the shares add up to 100."""
        raise self._cannot(Capability.TRAFFIC_SPLIT)

    def rollback(self, endpoint_name: str) -> Endpoint:
        """Serve the previous version again."""
        raise self._cannot(Capability.ROLLBACK)

    def _cannot(self, capability: Capability, hint: str | None = None) -> CapabilityError:
        return CapabilityError(f"Provider {self.name!r} cannot do {capability.value!r}.", hint=hint)
