"""DatabricksProvider: the provider's face. Training is told in ``training`` and ``jobs``, endpoints in ``hosting``."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from datetime import UTC, datetime
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar

from notebooked_dagster.config.databricks import DatabricksEndpoint, DatabricksOptions, DatabricksTraining
from notebooked_dagster.errors import ConfigError, DataError
from notebooked_dagster.providers.arguments import checked_options, is_elsewhere, is_url
from notebooked_dagster.providers.base import ALL_CAPABILITIES, Experiment, JobStatus, Plan
from notebooked_dagster.providers.cloud.provider import CloudProvider, Remote
from notebooked_dagster.providers.jobs import JobSpec

from . import container
from .hosting import Hosting
from .jobs import Jobs
from .logs import job_lines, split
from .session import DatabricksSession
from .storage import Storage, volume_path
from .training import code_and_words, node_type, remote_of, split_environment, training_request


class DatabricksProvider(CloudProvider):
    """Train and serve on Databricks. Credentials are found as the Databricks SDK finds them.

    Args:
        state_dir: Where copies of jobs are kept; ``Settings().state`` where None.
        host: The workspace; that of the environment or the profile where None.
        profile: A profile of ``.databrickscfg``.
        catalog: The catalog that has the schema.
        schema_name: The schema that has the volume, and that models are registered in.
        volume: The volume scripts, data and models go to; it has to exist.
        prefix: The folder in the volume.
        training: ``DatabricksTraining``, or its fields.
        endpoint: ``DatabricksEndpoint``, or its fields.
        prices: USD an hour by machine.
        poll: Seconds between two looks at a job or an endpoint.
        patience: Seconds that Databricks may be out of reach while a job is waited for.
        log_grace: Seconds that the last lines of a log may take to arrive.
        tracking_uri: The MLflow server, for jobs that somebody else submitted.
        tracking_required: Whether a job fails when MLflow cannot be reached.
        cancel_on_interrupt: Whether a job is stopped when the process that waits for it is interrupted.
    """

    name: ClassVar[str] = "databricks"
    request_span: ClassVar[tuple[str, Mapping[str, str]]] = (
        "POST serving-endpoints/invocations",
        {"http.request.method": "POST"},
    )
    capabilities = ALL_CAPABILITIES

    def __init__(
        self,
        state_dir: Path | str | None = None,
        *,
        host: str | None = None,
        profile: str | None = None,
        catalog: str | None = None,
        schema_name: str | None = None,
        volume: str | None = None,
        prefix: str = "notebooked",
        training: DatabricksTraining | Mapping[str, Any] | None = None,
        endpoint: DatabricksEndpoint | Mapping[str, Any] | None = None,
        prices: Mapping[str, float] | None = None,
        poll: float = 10.0,
        patience: float = 900.0,
        log_grace: float = 15.0,
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
        self.session = DatabricksSession(host, profile, pause=min(poll, 1.0))
        self._place = {"catalog": catalog, "schema_name": schema_name, "volume": volume}
        self._prefix = prefix
        self._jobs = Jobs(self.session, lambda: self.storage)

    @cached_property
    def storage(self) -> Storage:
        """Our folder in the volume."""
        for key, value in self._place.items():
            if not value:
                raise ConfigError(
                    f"No {key.partition('_')[0]} of Unity Catalog is named.",
                    key=f"databricks.{key}",
                    hint="Set databricks.catalog, databricks.schema_name and databricks.volume in config.yaml.",
                )
        catalog, schema, volume = (str(value) for value in self._place.values())
        return Storage(self.session, catalog, schema, volume, self._prefix)

    def options(self, given: Mapping[str, Any]) -> DatabricksOptions:
        """An experiment's options on top of the section's. Raises ConfigError."""
        return checked_options(DatabricksOptions, given, self._sections)

    # Training

    def _check(self, experiment: Experiment) -> None:
        options = self.options(experiment.options)
        _ = self.storage
        node_type(experiment.instance_type, options.training)
        split_environment(experiment.environment, serverless=options.training.serverless)
        if is_elsewhere(experiment.data_path, "dbfs:///Volumes/"):
            raise DataError(
                f"Databricks reads data from a volume or from this machine, not from {experiment.data_path!r}.",
                key="data_path",
                hint="Name a file of a volume: dbfs:///Volumes/catalog/schema/volume/file.",
            )

    def plan(self, experiment: Experiment, endpoint_name: str | None = None) -> Plan:
        """What training would send, cost and need; asks only what changes nothing."""
        from .plan import plan

        return plan(self, experiment, endpoint_name)

    def request(
        self, job_id: str, spec: JobSpec, environment: Mapping[str, str], cloud: str
    ) -> dict[str, Any]:
        """What would be submitted. Nothing is sent."""
        return training_request(
            job_id,
            spec,
            self.options(spec.options).training,
            cloud=cloud,
            program=self._source(job_id, "notebooked_run.py"),
            home=self.storage.path("jobs", job_id),
            environment=environment,
            token=job_id,
        )

    def _source(self, job_id: str, name: str) -> str:
        return self.storage.path("jobs", job_id, "source", name)

    def _submit(self, job_id: str, spec: JobSpec, package: Path, environment: Mapping[str, str]) -> None:
        data = spec.data_path
        if data is not None and is_url(data):
            data = volume_path(data)
            self._check_data(data)
        elif data is not None:
            data = self.storage.put_data(Path(data))
        serverless = self.options(spec.options).training.serverless
        plain, _ = split_environment(environment, serverless=serverless)
        request = self.request(job_id, spec, environment, self.session.cloud)
        job = {"environment": plain, **({"data": data} if data is not None else {})}
        self.storage.write(self._source(job_id, "job.json"), json.dumps(job).encode())
        self.storage.write(self._source(job_id, "notebooked_run.py"), Path(container.__file__).read_bytes())
        self.storage.upload(package, self._source(job_id, "package.tar.gz"))
        self._jobs.submit(job_id, request)

    def _look(self, job_id: str) -> Remote | None:
        found = self._jobs.find(job_id)
        if found is None:
            return None
        remote = remote_of(found, self.prices, self._model(job_id))
        if remote.status is JobStatus.FAILED and code_and_words(found)[0] in ("RUN_EXECUTION_ERROR", ""):
            output = self._jobs.output(found)
            said_by_run = str(output.error or "") if output is not None else ""
            remote = remote_of(found, self.prices, self._model(job_id), said_by_run)
        return remote

    def _summaries(self, since: datetime | None = None) -> dict[str, Remote]:
        found = self._jobs.all(datetime.now(UTC), since)
        return {name: remote_of(run, self.prices, self._model(name)) for name, run in found.items()}

    def _stop(self, job_id: str) -> None:
        self._jobs.cancel(job_id)

    def _lines(self, job_id: str, cursor: Any) -> tuple[list[str], Any]:
        folder = self.storage.path("jobs", job_id, "log")
        lines, cursor = job_lines(self.storage, folder, cursor)
        if cursor is None and (run := self._jobs.find(job_id)) is not None and run.end_time:
            # Our program never wrote to the volume; what it printed is what Databricks has of it.
            output = self._jobs.output(run)
            return split(str(output.logs or "") if output is not None else ""), "the run's own output"
        return lines, cursor

    def _fetch_code(self, job_id: str, target: Path) -> None:
        self.storage.fetch_archive(self._source(job_id, "package.tar.gz"), target)

    def _fetch_output(self, job_id: str, remote: Remote, target: Path) -> None:
        self.storage.fetch_archive(self.storage.path("jobs", job_id, "output.tar.gz"), target)

    def _fetch_model(self, job_id: str, remote: Remote, target: Path) -> None:
        self.storage.fetch_archive(volume_path(self._model(job_id)), target)

    def _has_model(self, job_id: str, remote: Remote) -> bool:
        return self.storage.holds_a_file(volume_path(self._model(job_id)))

    def _model(self, job_id: str) -> str:
        return self.storage.uri("jobs", job_id, "model", "model.tar.gz")

    # Serving

    @cached_property
    def _hosting(self) -> Hosting:
        return Hosting(self.session, self.storage, self.state, poll=self._poll)

    def endpoint_logs(self, endpoint_name: str, version: str | None = None) -> Iterator[str]:
        """What a version's build and its container printed."""
        return self._hosting.logs(endpoint_name, version)
