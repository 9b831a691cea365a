"""VertexProvider: the provider's face. Training jobs are told in ``training`` and ``jobs``, endpoints in ``hosting``."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator, Mapping
from datetime import datetime
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar

from notebooked_dagster.config.vertex import VertexEndpoint, VertexOptions, VertexTraining
from notebooked_dagster.errors import ConfigError, DataError
from notebooked_dagster.providers import jobs
from notebooked_dagster.providers.arguments import checked_options, is_elsewhere, is_url
from notebooked_dagster.providers.base import ALL_CAPABILITIES, Experiment, Plan
from notebooked_dagster.providers.cloud.provider import CloudProvider, Remote
from notebooked_dagster.providers.jobs import JobSpec

from . import images
from .hosting import Hosting
from .jobs import Jobs
from .logs import job_lines
from .session import GcpSession
from .storage import Storage
from .training import check_machine, remote_of, training_request

# A project may read logs sixty times a minute, all its jobs together: they are looked at less often than states.
_LOG_POLLS = 3


class VertexProvider(CloudProvider):
    """Train and serve on Google Vertex AI. Credentials are found as google.auth finds them.

    Args:
        state_dir: Where copies of jobs are kept; ``Settings().state`` where None.
        project: The project; the credentials' own where None.
        region: Google Cloud region.
        bucket: Where scripts, data and models go; it has to exist.
        prefix: The folder in the bucket.
        service_account: That training and serving run under; the project's default where None.
        network: A VPC that training is peered with.
        kms_key: Encrypts jobs, models and endpoints.
        endpoint_url: Another address of the APIs, for an emulator.
        training: ``VertexTraining``, or its fields.
        endpoint: ``VertexEndpoint``, or its fields.
        prices: USD an hour by machine or GPU, where they differ from the table that is shipped.
        poll: Seconds between two looks at a job or an endpoint.
        patience: Seconds that Google may be out of reach while a job is waited for.
        log_grace: Seconds that the last lines of a log may take to arrive.
        claim: Seconds after which a submission that was never finished is taken over by whoever asks with its token.
        tracking_uri: The MLflow server, for jobs that somebody else submitted.
        tracking_required: Whether a job fails when MLflow cannot be reached.
        cancel_on_interrupt: Whether a job is stopped when the process that waits for it is interrupted.
    """

    name: ClassVar[str] = "vertex"
    request_span: ClassVar[tuple[str, Mapping[str, str]]] = (
        "POST rawPredict",
        {"http.request.method": "POST"},
    )
    capabilities = ALL_CAPABILITIES

    def __init__(
        self,
        state_dir: Path | str | None = None,
        *,
        project: str | None = None,
        region: str | None = None,
        bucket: str | None = None,
        prefix: str = "notebooked",
        service_account: str | None = None,
        network: str | None = None,
        kms_key: str | None = None,
        endpoint_url: str | None = None,
        training: VertexTraining | Mapping[str, Any] | None = None,
        endpoint: VertexEndpoint | Mapping[str, Any] | None = None,
        prices: Mapping[str, float] | None = None,
        poll: float = 10.0,
        patience: float = 900.0,
        log_grace: float = 15.0,
        claim: float = 120.0,
        tracking_uri: str | None = None,
        tracking_required: bool = False,
        cancel_on_interrupt: bool = True,
    ) -> None:
        super().__init__(
            state_dir,
            tracking_uri=tracking_uri,
            tracking_required=tracking_required,
            poll=poll,
            patience=patience,
            log_grace=log_grace,
            cancel_on_interrupt=cancel_on_interrupt,
            training=training,
            endpoint=endpoint,
            prices=prices,
        )
        self.session = GcpSession(project, region, endpoint_url, pause=min(poll, 1.0))
        self.service_account = service_account
        self._network = network
        self._kms_key = kms_key
        self._bucket = bucket
        self._prefix = prefix
        self._claim = claim

    @cached_property
    def storage(self) -> Storage:
        """Our folder in the bucket."""
        if not self._bucket:
            raise ConfigError(
                "No Cloud Storage bucket is named.",
                key="gcp.bucket",
                hint="Set gcp.bucket in config.yaml to a bucket in the same region.",
            )
        return Storage(self.session, self._bucket, self._prefix)

    @cached_property
    def _jobs(self) -> Jobs:
        return Jobs(self.session, self.storage, claim=self._claim, poll=self._poll)

    def options(self, given: Mapping[str, Any]) -> VertexOptions:
        """An experiment's options on top of the section's. Raises ConfigError."""
        return checked_options(VertexOptions, given, self._sections)

    # Training

    def _check(self, experiment: Experiment) -> None:
        options = self.options(experiment.options)
        _ = self.session.region, self.storage
        check_machine(experiment.instance_type or options.training.machine_type)
        if is_elsewhere(experiment.data_path, "gs://"):
            raise DataError(
                f"Vertex AI reads data from Cloud Storage or from this machine, not from {experiment.data_path!r}.",
                key="data_path",
            )

    def training_image(self, wanted: Experiment | JobSpec) -> images.Image:
        """The container that an experiment trains in."""
        training = self.options(wanted.options).training
        return images.choose(self.session.region, training.accelerator, training.image)

    def plan(self, experiment: Experiment, endpoint_name: str | None = None) -> Plan:
        """What training would send, cost and need; asks only what changes nothing."""
        from .plan import plan

        return plan(self, experiment, endpoint_name)

    def request(
        self, job_id: str, spec: JobSpec, environment: Mapping[str, str], data: str | None
    ) -> dict[str, Any]:
        """The CustomJob that would be created. Nothing is sent."""
        return training_request(
            job_id,
            spec,
            self.options(spec.options).training,
            image=self.training_image(spec).uri,
            package=self._source(job_id),
            folder=self.storage.uri("jobs", job_id),
            data=data,
            environment=environment,
            service_account=self.service_account,
            network=self._network,
            kms_key=self._kms_key,
        )

    def _source(self, job_id: str) -> str:
        return self.storage.uri("jobs", job_id, "source", "package.tar.gz")

    def _submit(self, job_id: str, spec: JobSpec, package: Path, environment: Mapping[str, str]) -> None:
        data = spec.data_path
        if data is not None and is_url(data):
            self._check_data(data)
        elif data is not None:
            data = self.storage.put_data(Path(data))
        request = self.request(job_id, spec, environment, data)
        self.storage.upload(package, self._source(job_id))
        self._jobs.submit(job_id, request)

    def _look(self, job_id: str) -> Remote | None:
        found = self._jobs.find(job_id)
        return None if found is None else remote_of(found, self.prices, self._model(job_id))

    def _summaries(self, since: datetime | None = None) -> dict[str, Remote]:
        return {
            name: remote_of(job, self.prices, self._model(name))
            for name, job in self._jobs.all(since).items()
            if name.startswith("nbd-")
        }

    def _stop(self, job_id: str) -> None:
        self._jobs.cancel(job_id)

    def _lines(self, job_id: str, cursor: Any) -> tuple[list[str], Any]:
        last, read_at = cursor or (None, -math.inf)
        ended = self._jobs.has_ended(job_id) or jobs.read(self._store.folder(job_id)).status.finished
        if not ended and time.monotonic() - read_at < _LOG_POLLS * self._poll:
            return [], cursor
        resource, since = self._jobs.resource(job_id), self._jobs.created(job_id)
        if resource is None or since is None:
            return [], cursor
        lines, last = job_lines(self.session, resource, since, last, whole=ended)
        return lines, (last, time.monotonic())

    def _fetch_code(self, job_id: str, target: Path) -> None:
        self.storage.fetch_archive(self._source(job_id), target)

    def _fetch_output(self, job_id: str, remote: Remote, target: Path) -> None:
        self.storage.fetch_archive(self.storage.uri("jobs", job_id, "output.tar.gz"), target)

    def _fetch_model(self, job_id: str, remote: Remote, target: Path) -> None:
        self.storage.fetch_archive(self._model(job_id), target)

    def _has_model(self, job_id: str, remote: Remote) -> bool:
        return self.storage.holds_a_file(self._model(job_id))

    def _model(self, job_id: str) -> str:
        # AIP_MODEL_DIR is the folder `model` of the job's output.
        return self.storage.uri("jobs", job_id, "model", "model.tar.gz")

    # Serving

    @cached_property
    def _hosting(self) -> Hosting:
        return Hosting(
            self.session,
            self.storage,
            self.state,
            poll=self._poll,
            service_account=self.service_account,
            kms_key=self._kms_key,
        )

    def endpoint_logs(self, endpoint_name: str, version: str | None = None) -> Iterator[str]:
        """What a version's container printed."""
        return self._hosting.logs(endpoint_name, version)
