"""AzureProvider: the provider's face. Training jobs are told in ``training``, endpoints in ``hosting``."""

from __future__ import annotations

import json
from collections.abc import Mapping
from datetime import datetime
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar

from notebooked_dagster.config.azure import AzureEndpoint, AzureOptions, AzureTraining
from notebooked_dagster.errors import ConfigError, DataError, NotebookedError
from notebooked_dagster.providers.arguments import checked_options, is_url
from notebooked_dagster.providers.base import ALL_CAPABILITIES, Capability, Experiment, Plan
from notebooked_dagster.providers.cloud.endpoints import said
from notebooked_dagster.providers.cloud.provider import CloudProvider, Remote
from notebooked_dagster.providers.jobs import JobSpec

from . import images
from .hosting import Hosting
from .session import AzureSession
from .storage import Storage, is_address
from .training import TAG, is_waiting, job_request, remote_of

_LOG = "user_logs/std_log"


class AzureProvider(CloudProvider):
    """Train and serve on Azure Machine Learning. Credentials are found as the Azure SDK finds them.

    Args:
        state_dir: Where copies of jobs are kept; ``Settings().state`` where None.
        subscription_id: The subscription; ``AZURE_SUBSCRIPTION_ID`` where None.
        resource_group: The resource group.
        workspace: The workspace; it has to exist.
        compute: The cluster that trains; serverless compute where None.
        datastore: Where scripts, data and models go: a blob datastore of the workspace.
        prefix: The folder in the datastore.
        identity: A user-assigned identity that training and serving run under.
        endpoint_url: Another address of Azure Resource Manager, for another cloud or an emulator.
        training: ``AzureTraining``, or its fields.
        endpoint: ``AzureEndpoint``, or its fields.
        prices: USD an hour by instance type, where they differ from the table that is shipped.
        poll: Seconds between two looks at a job or an endpoint.
        patience: Seconds that Azure may be out of reach while a job is waited for.
        log_grace: Seconds that the last lines of a log may take to arrive.
        tracking_uri: The MLflow server, for jobs that somebody else submitted.
        tracking_required: Whether a job fails when MLflow cannot be reached.
        cancel_on_interrupt: Whether a job is stopped when the process that waits for it is interrupted.
    """

    name: ClassVar[str] = "azure"
    request_span: ClassVar[tuple[str, Mapping[str, str]]] = ("POST /score", {"http.request.method": "POST"})
    capabilities = ALL_CAPABILITIES - {Capability.ENDPOINT_LOGS}

    def __init__(
        self,
        state_dir: Path | str | None = None,
        *,
        subscription_id: str | None = None,
        resource_group: str | None = None,
        workspace: str | None = None,
        compute: str | None = None,
        datastore: str = "workspaceblobstore",
        prefix: str = "notebooked",
        identity: str | None = None,
        endpoint_url: str | None = None,
        training: AzureTraining | Mapping[str, Any] | None = None,
        endpoint: AzureEndpoint | Mapping[str, Any] | None = None,
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
            training={**({"compute": compute} if compute else {}), **said(training)},
            endpoint=endpoint,
            prices=prices,
        )
        self.session = AzureSession(subscription_id, resource_group, workspace, endpoint_url)
        self._place = (datastore, prefix)
        self.identity = identity

    @cached_property
    def storage(self) -> Storage:
        """Our folder in the datastore."""
        return Storage(self.session, *self._place)

    def options(self, given: Mapping[str, Any]) -> AzureOptions:
        """An experiment's options on top of the section's. Raises ConfigError."""
        return checked_options(AzureOptions, given, self._sections)

    # Training

    def _check(self, experiment: Experiment) -> None:
        options = self.options(experiment.options)
        _ = self.session.workspace_id
        kind = experiment.instance_type
        if kind is not None and options.training.compute is not None:
            raise ConfigError(
                f"The cluster {options.training.compute!r} has machines of its own, and {kind!r} is asked for.",
                key="instance_type",
                hint="Remove instance_type, or say `options.training.compute: null` for serverless compute.",
            )
        if kind is not None and not kind.lower().startswith("standard_"):
            raise ConfigError(
                f"{kind!r} is no machine of Azure's.",
                key="instance_type",
                hint="Its names start with `Standard_`, for instance Standard_DS3_v2.",
            )
        data = experiment.data_path
        if data is not None and is_url(data) and not is_address(data):
            raise DataError(
                f"Azure Machine Learning reads data from its datastores, from Azure Storage or from this machine, not from {data!r}.",
                key="data_path",
            )

    def training_environment(self, wanted: Experiment | JobSpec) -> images.Environment:
        """The environment that an experiment trains in."""
        options = self.options(wanted.options).training
        return images.choose(
            "training",
            self.session.workspace_id,
            None if options.compute is not None else wanted.instance_type or options.instance_type,
            self.requirements(wanted).decode("utf-8", "replace"),
            options.image,
            options.environment,
        )

    def plan(self, experiment: Experiment, endpoint_name: str | None = None) -> Plan:
        """What training would send, cost and need; asks only what changes nothing."""
        from .plan import plan

        return plan(self, experiment, endpoint_name)

    def request(
        self, job_id: str, spec: JobSpec, environment: Mapping[str, str], data: str | None
    ) -> dict[str, Any]:
        """The request that starts a job. Nothing is sent."""
        options = self.options(spec.options).training
        chosen = self.training_environment(spec)
        return job_request(
            job_id,
            spec,
            options,
            workspace=self.session.workspace_id,
            environment_id=chosen.id(self.session.workspace_id),
            environment=chosen,
            identity=self.identity,
            source=self._source(job_id),
            output=self.storage.uri("jobs", job_id),
            data=data,
            variables=environment,
        )

    def _source(self, job_id: str) -> str:
        return self.storage.uri("jobs", job_id, "source.tar.gz")

    def _submit(self, job_id: str, spec: JobSpec, package: Path, environment: Mapping[str, str]) -> None:
        data = spec.data_path
        if data is not None and not is_url(data):
            data = self.storage.put_data(Path(data))
        request = self.request(job_id, spec, environment, data)
        self.storage.upload(package, self._source(job_id))
        images.ensure(self.session, self.training_environment(spec))
        what = f"Training of {spec.experiment!r} cannot be started"
        try:
            self.session.call("PUT", f"/jobs/{job_id}", request, what=what)
        except NotebookedError as error:
            # The reply to an earlier try was lost and the job is there: a PUT of its name is refused where anything
            # differs, and be it the MLflow run that this try began.
            if error.details.get("status") not in (400, 409) or self._look(job_id) is None:
                raise

    def _look(self, job_id: str) -> Remote | None:
        what = f"Training job {job_id!r} cannot be looked at"
        job = self.session.call("GET", f"/jobs/{job_id}", what=what, missing=True)
        if job is None:
            return None
        details = {} if is_waiting(job) else self.session.run_details(job_id) or {}
        return remote_of(job, details, self.prices)

    def _summaries(self, since: datetime | None = None) -> dict[str, Remote]:
        # The list knows no filter by time, and in which order it comes is documented nowhere.
        found = {}
        query = {"tag": TAG, "jobType": "Command", "listViewType": "ActiveOnly"}
        for job in self.session.pages("/jobs", what="Training jobs cannot be listed", query=query):
            if job["name"].startswith("nbd-"):
                found[job["name"]] = remote_of(job, None, self.prices)
        return found

    def _stop(self, job_id: str) -> None:
        what = f"Training job {job_id!r} cannot be stopped"
        try:
            self.session.call("POST", f"/jobs/{job_id}/cancel", what=what, missing=True)
        except ConfigError:
            # It has ended by itself.
            remote = self._look(job_id)
            if remote is None or not remote.status.finished:
                raise

    def _lines(self, job_id: str, cursor: Any) -> tuple[list[str], Any]:
        places: dict[str, tuple[int, int]] = dict(cursor or {})
        lines: list[str] = []
        details = self.session.run_details(job_id) or {}
        logs = {name: url for name, url in (details.get("logFiles") or {}).items() if name.startswith(_LOG)}
        for number, name in sorted((_process(name), name) for name in logs):
            prefix = f"[{number}] " if number else ""
            offset, seen = places.get(name, (0, -1))
            new = self.storage.tail(logs[name], offset)
            # A last line without an end is one when nothing followed it between two looks.
            whole = len(new) if offset + len(new) == seen else new.rfind(b"\n") + 1
            lines.extend(prefix + line for line in new[:whole].decode("utf-8", "replace").splitlines())
            places[name] = (offset + whole, offset + len(new))
        return lines, places

    def _fetch_code(self, job_id: str, target: Path) -> None:
        self.storage.fetch_archive(self._source(job_id), target)

    def _fetch_output(self, job_id: str, remote: Remote, target: Path) -> None:
        self.storage.fetch_folder(self.storage.uri("jobs", job_id, "output"), target)

    def _fetch_model(self, job_id: str, remote: Remote, target: Path) -> None:
        self.storage.fetch_folder(self._model(job_id, remote), target)

    def _has_model(self, job_id: str, remote: Remote) -> bool:
        uri = self._model(job_id, remote)
        if not any(True for _ in self.storage.names(uri)):
            return False
        facts = self.storage.read(f"{uri}/model.json")
        if facts is not None:
            try:
                json.loads(facts)
            except ValueError as error:
                raise DataError(f"{uri}/model.json is damaged: {error}.") from error
        return True

    def _model(self, job_id: str, remote: Remote) -> str:
        return remote.model_uri or self.storage.uri("jobs", job_id, "model")

    # Serving

    @cached_property
    def _hosting(self) -> Hosting:
        return Hosting(self.session, self.storage, self.identity, self.state, poll=self._poll)


def _process(log_name: str) -> int:
    """Which of a job's processes wrote a log; the first where there is one."""
    digits = "".join(letter for letter in log_name.removeprefix(_LOG) if letter.isdigit())
    return int(digits or 0)
