"""KubernetesProvider: the provider's face. Training jobs are told in ``training`` and ``jobs``, endpoints in ``hosting``."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from datetime import datetime
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar

from notebooked_dagster.config.kubernetes import (
    KubernetesEndpoint,
    KubernetesOptions,
    KubernetesStorage,
    KubernetesTraining,
)
from notebooked_dagster.errors import DataError
from notebooked_dagster.providers.arguments import checked_options, is_elsewhere, is_url
from notebooked_dagster.providers.base import ALL_CAPABILITIES, Experiment, Plan
from notebooked_dagster.providers.cloud.provider import CloudProvider, Remote
from notebooked_dagster.providers.jobs import JobSpec

from .hosting import Hosting
from .jobs import Jobs
from .logs import pod_lines
from .pods import default_image
from .session import KubeSession, translated
from .storage import ObjectStore
from .training import index_of, training_job


class KubernetesProvider(CloudProvider):
    """Train and serve on a Kubernetes cluster, which is found as kubectl finds it.

    Args:
        state_dir: Where copies of jobs are kept; ``Settings().state`` where None.
        context: A context of the kubeconfig; its current one where None.
        kubeconfig: The file; where kubectl looks, then the pod's own service account, where None.
        namespace: Where everything goes; the context's where None.
        service_account: That pods run under; the namespace's default where None.
        image: The container that trains and serves; the official image of our Python where None.
        image_pull_from: Secrets of the namespace that images are pulled with.
        storage: ``KubernetesStorage``, or its fields: the object store.
        training: ``KubernetesTraining``, or its fields.
        endpoint: ``KubernetesEndpoint``, or its fields.
        poll: Seconds between two looks at a job or an endpoint.
        patience: Seconds that the API server may be out of reach while a job is waited for.
        log_grace: Seconds that the last lines of a log may take to arrive.
        tracking_uri: The MLflow server, for jobs that somebody else submitted.
        tracking_required: Whether a job fails when MLflow cannot be reached.
        cancel_on_interrupt: Whether a job is stopped when the process that waits for it is interrupted.
    """

    name: ClassVar[str] = "kubernetes"
    capabilities = ALL_CAPABILITIES

    def __init__(
        self,
        state_dir: Path | str | None = None,
        *,
        context: str | None = None,
        kubeconfig: str | None = None,
        namespace: str | None = None,
        service_account: str | None = None,
        image: str | None = None,
        image_pull_from: Sequence[str] = (),
        storage: KubernetesStorage | Mapping[str, Any] | None = None,
        training: KubernetesTraining | Mapping[str, Any] | None = None,
        endpoint: KubernetesEndpoint | Mapping[str, Any] | None = None,
        poll: float = 5.0,
        patience: float = 900.0,
        log_grace: float = 5.0,
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
        )
        self.session = KubeSession(context, kubeconfig, namespace, pause=min(poll, 0.5))
        self.service_account = service_account
        self.image = image or default_image()
        self.pull_from = tuple(image_pull_from)
        self._storage_options = (
            storage
            if isinstance(storage, KubernetesStorage)
            else KubernetesStorage.model_validate(dict(storage or {}))
        )

    @cached_property
    def storage(self) -> ObjectStore:
        """Our folder in the object store."""
        return ObjectStore(self._storage_options)

    @cached_property
    def _jobs(self) -> Jobs:
        return Jobs(self.session, self.storage)

    def options(self, given: Mapping[str, Any]) -> KubernetesOptions:
        """An experiment's options on top of the section's. Raises ConfigError."""
        return checked_options(KubernetesOptions, given, self._sections)

    # Training

    def _check(self, experiment: Experiment) -> None:
        self.options(experiment.options)
        _ = self.storage
        if is_elsewhere(experiment.data_path, "s3://"):
            raise DataError(
                "Pods read data from the object store (s3://…) or from what this machine sends there, not from "
                f"{experiment.data_path!r}.",
                key="data_path",
            )

    def plan(self, experiment: Experiment, endpoint_name: str | None = None) -> Plan:
        """What training would send and need; asks only what changes nothing."""
        from .plan import plan

        return plan(self, experiment, endpoint_name)

    def request(
        self, job_id: str, spec: JobSpec, environment: Mapping[str, str], data: str | None
    ) -> dict[str, Any]:
        """The Job that would be made. Nothing is sent."""
        return training_job(
            job_id,
            spec,
            self.options(spec.options).training,
            image=self.image,
            store=self.storage,
            data=data,
            environment=environment,
            service_account=self.service_account,
            pull_from=self.pull_from,
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
        self._jobs.submit(request)

    def _pipes_place(self, job_id: str) -> dict[str, str]:
        return self.storage.place("jobs", job_id, "pipes")

    def _look(self, job_id: str) -> Remote | None:
        return self._jobs.find(job_id)

    def _summaries(self, since: datetime | None = None) -> dict[str, Remote]:
        # A cluster keeps Jobs for a while only, and tells them all in one call.
        return self._jobs.all()

    def _stop(self, job_id: str) -> None:
        self._jobs.cancel(job_id)

    def _lines(self, job_id: str, cursor: Any) -> tuple[list[str], Any]:
        seen: dict[str, Any] = dict(cursor or {"pods": {}, "count": 0})
        lines: list[str] = []
        with translated(f"The log of training job {job_id!r} cannot be read"):
            pods = self._jobs.pods(job_id)
            for pod in pods:
                name = pod["metadata"]["name"]
                index = index_of(pod)
                new, seen["pods"][name] = pod_lines(self.session, pod, seen["pods"].get(name))
                prefix = f"[{index}] " if index else ""
                lines.extend(prefix + line for line in new)
        if not lines and not pods and (kept := self._jobs.log(job_id)) is not None:
            # Its pod is gone; what was shown of its log was the beginning of what it left.
            lines = kept.splitlines()[seen["count"] :]
        seen["count"] += len(lines)
        return lines, seen

    def _fetch_code(self, job_id: str, target: Path) -> None:
        self.storage.fetch_archive(self._source(job_id), target)

    def _fetch_output(self, job_id: str, remote: Remote, target: Path) -> None:
        self.storage.fetch_archive(self.storage.uri("jobs", job_id, "output.tar.gz"), target)

    def _fetch_model(self, job_id: str, remote: Remote, target: Path) -> None:
        self.storage.fetch_archive(self._jobs.model(job_id), target)

    def _has_model(self, job_id: str, remote: Remote) -> bool:
        return self.storage.holds_a_file(self._jobs.model(job_id))

    # Serving

    @cached_property
    def _hosting(self) -> Hosting:
        return Hosting(
            self.session,
            self.storage,
            self.state,
            poll=self._poll,
            image=self.image,
            service_account=self.service_account,
            pull_from=self.pull_from,
        )

    def endpoint_logs(self, endpoint_name: str, version: str | None = None) -> Iterator[str]:
        """What the pods of a version printed; of the champion where None."""
        return self._hosting.logs(endpoint_name, version)
