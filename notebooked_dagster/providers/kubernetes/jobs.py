"""Which Job of the cluster a name of ours is, and what is left of it when it is gone.

A Job's name is ours, and the API server takes it once: submitting is idempotent. A Job does not stay, though: it is deleted
to be cancelled, removed some time after it ended, and whoever may can delete it. What is to outlive it lies in the object
store: how the script ended (written by the pod as its last act), and the verdict on a Job that was deleted on purpose.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from datetime import UTC, datetime
from functools import cached_property
from typing import Any, TypeVar

from notebooked_dagster.errors import ConfigError
from notebooked_dagster.providers.base import JobStatus
from notebooked_dagster.providers.cloud.provider import SAID, Remote

from .pods import OURS, Trouble, condition, moment, oldest_first, refused, trouble
from .session import KubeError, KubeSession, translated
from .storage import ObjectStore
from .training import JOB, START_TIMEOUT, environment_of, meeting_point, remote_of, succeeded, templates

T = TypeVar("T")
_DELETED = "its Job was deleted while it ran."


class Jobs:
    """The training jobs of one namespace.

    Args:
        session: The cluster.
        store: Our folder of the object store.
    """

    def __init__(self, session: KubeSession, store: ObjectStore) -> None:
        self._session = session
        self._store = store

    # Asking

    def find(self, name: str) -> Remote | None:
        """A job as it is now; None where there is none. One whose pod cannot start for too long is given up."""
        with translated(f"Training job {name!r} cannot be looked at"):
            job = self._job(name)
            if job is None:
                return self._gone(name)
            pods = self.pods(name)
            remote = remote_of(job, pods, self.model(name))
            if remote.status is not JobStatus.PENDING or job["metadata"].get("deletionTimestamp"):
                return _not_yet(remote) if job["metadata"].get("deletionTimestamp") else remote
            stuck, since = self._stuck(job, pods)
            if stuck is None:
                return remote
            waited = (datetime.now(UTC) - since).total_seconds()
            # The experiment's patience, which whoever looks need not know otherwise.
            if waited >= float(job["metadata"].get("annotations", {}).get(START_TIMEOUT, "inf")):
                self._give_up(name, job, stuck, waited)
                return remote
            return replace(remote, facts={**remote.facts, "waiting": stuck.text})

    def all(self) -> dict[str, Remote]:
        """All jobs of ours, newest first; as many calls for a thousand as for one."""
        with translated("Training jobs cannot be listed"):
            jobs = self._session.list("jobs", f"{OURS},{JOB}")
            if self._has_kubeflow:
                jobs += self._kubeflow(lambda: self._session.list("pytorchjobs", f"{OURS},{JOB}")) or []
            # Of those that ended well the Job says all there is to say.
            several = any(not succeeded(job) for job in jobs)
            pods = self._session.list("pods", f"{OURS},{JOB}") if several else []
        mine: dict[str, list[Any]] = {}
        for pod in pods:
            mine.setdefault(pod["metadata"]["labels"][JOB], []).append(pod)
        jobs.sort(key=lambda job: job["metadata"].get("creationTimestamp") or "", reverse=True)
        found = {}
        for job in jobs:
            name = job["metadata"]["name"]
            remote = remote_of(job, mine.get(name, []), self.model(name))
            found[name] = _not_yet(remote) if job["metadata"].get("deletionTimestamp") else remote
        return found

    def _job(self, name: str) -> dict[str, Any] | None:
        """A Job, or a PyTorchJob: whoever looks need not know which was asked for."""
        found = self._session.get("jobs", name)
        if found is None and self._has_kubeflow:
            return self._kubeflow(lambda: self._session.get("pytorchjobs", name))
        return found

    @cached_property
    def _has_kubeflow(self) -> bool:
        return bool(self._kubeflow(lambda: self._session.serves("pytorchjobs")))

    @staticmethod
    def _kubeflow(call: Callable[[], T]) -> T | None:
        """What Kubeflow has; nothing where the Role was made for experiments that do not use it."""
        try:
            return call()
        except KubeError as error:
            if error.code == 403:
                return None
            raise

    def pods(self, name: str) -> list[Mapping[str, Any]]:
        """The pods of a job, the oldest first."""
        return oldest_first(self._session.list("pods", f"{JOB}={name}"))

    def _stuck(
        self, job: Mapping[str, Any], pods: Sequence[Mapping[str, Any]]
    ) -> tuple[Trouble | None, datetime]:
        """What keeps a job from running, and since when."""
        pod = pods[-1] if pods else None
        since = moment((pod or job)["metadata"].get("creationTimestamp")) or datetime.now(UTC)
        if pod is not None:
            return trouble(pod), since
        fields = f"involvedObject.kind={job['kind']},involvedObject.name={job['metadata']['name']}"
        try:
            return refused(self._session.list("events", fields=fields)), since
        except KubeError as error:
            # Who may not read events is told a little less.
            if error.code == 403:
                return None, since
            raise

    # Submitting and ending

    def submit(self, manifest: Mapping[str, Any]) -> None:
        """Make a Job; one of its name that is there already is left alone. Raises ConfigError."""
        with translated("The training job cannot be started"):
            kind = _kind(manifest)
            if kind == "pytorchjobs" and not self._session.serves(kind):
                raise no_kubeflow()
            # A look before Kubeflow was there is none any more.
            self.__dict__.pop("_has_kubeflow", None)
            made = self._session.create(kind, manifest)
            if "subdomain" in templates(manifest)[0]["spec"]:
                made = made or self._session.get("jobs", manifest["metadata"]["name"])
                if made is not None:
                    self._session.create("services", meeting_point(made))

    def cancel(self, name: str) -> None:
        """Delete a job that has not ended; that it was cancelled is written down first."""
        with translated(f"Training job {name!r} cannot be stopped"):
            job = self._job(name)
            if job is None or succeeded(job) or condition(job, "Failed"):
                return
            self._delete(name, job, {"status": JobStatus.CANCELLED.value})

    def _give_up(self, name: str, job: Mapping[str, Any], stuck: Trouble, waited: float) -> None:
        self._delete(
            name,
            job,
            {
                "status": JobStatus.FAILED.value,
                "error": stuck.error,
                "reason": f"for {waited:.0f} s its pod could not start: {stuck.text.rstrip('.')}.",
                "hint": stuck.hint,
            },
        )

    def _delete(self, name: str, job: Mapping[str, Any], verdict: Mapping[str, Any]) -> None:
        started = remote_of(job, self.pods(name), None).started_at
        document = {
            **verdict,
            "started": started.isoformat() if started else None,
            "finished": datetime.now(UTC).isoformat(),
            "environment": {key: value for key, value in environment_of(job).items() if key in SAID},
        }
        self._store.write(self._place(name, "verdict.json"), json.dumps(document).encode())
        # The Job stays until its pods are gone: a job that is not there any more does not run any more.
        self._session.delete(_kind(job), name, propagation="Foreground", uid=job["metadata"]["uid"])

    # What is left

    def model(self, name: str) -> str:
        """Where a job puts its model."""
        return self._place(name, "model.tar.gz")

    def log(self, name: str) -> str | None:
        """The log that the pod put into the object store; None where it could not."""
        found = self._store.read(self._place(name, "log.txt"))
        return found.decode("utf-8", "replace") if found is not None else None

    def _place(self, name: str, file: str) -> str:
        return self._store.uri("jobs", name, file)

    def _gone(self, name: str) -> Remote | None:
        ended = self._store.document(self._place(name, "ended.json"))
        verdict = self._store.document(self._place(name, "verdict.json"))
        if ended is not None and (ended.get("code") == 0 or (verdict is None and not ended.get("told"))):
            status = JobStatus.SUCCEEDED if ended.get("code") == 0 else JobStatus.FAILED
            return self._left(name, ended, status)
        if verdict is not None:
            return self._left(name, verdict, JobStatus(verdict.get("status", "failed")))
        if ended is None:
            return None
        more = {"error": "ProviderError", "reason": _DELETED, "hint": "Train again."}
        return self._left(name, {**ended, **more}, JobStatus.FAILED)

    def _left(self, name: str, document: Mapping[str, Any], status: JobStatus) -> Remote:
        return Remote(
            status,
            started_at=moment(document.get("started")),
            finished_at=moment(document.get("finished")),
            reason=str(document.get("reason", "")),
            error=str(document.get("error", "")),
            hint=str(document.get("hint", "")),
            model_uri=self.model(name),
            environment=document.get("environment") or {},
        )


def no_kubeflow() -> ConfigError:
    """That the cluster does not know PyTorchJobs."""
    return ConfigError(
        "Kubeflow's training operator is not installed in this cluster: no kubeflow.org/v1 PyTorchJob.",
        key="options.training.operator",
        hint="Leave options.training.operator out: a Job needs no operator. Kubeflow Trainer 2 alone does not have PyTorchJobs.",
    )


def _kind(job: Mapping[str, Any]) -> str:
    return "pytorchjobs" if job["kind"] == "PyTorchJob" else "jobs"


def _not_yet(remote: Remote) -> Remote:
    """A job that is being deleted: how it ended is known when it is gone."""
    if not remote.status.finished:
        return remote
    return replace(remote, status=JobStatus.RUNNING, finished_at=None, reason="", error="", hint="")
