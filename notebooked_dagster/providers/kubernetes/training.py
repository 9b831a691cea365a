"""Training jobs in Kubernetes' terms: the Job that is made, and what the one that is there means.

API: batch/v1 Job, or kubeflow.org/v1 PyTorchJob where Kubeflow's training operator is to run it. Its pod runs
``container.py``, which runs our launcher from the package in the object store.
"""

from __future__ import annotations

import copy
import math
import re
from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any

from notebooked_dagster.config.kubernetes import KubernetesTraining
from notebooked_dagster.errors import ConfigError
from notebooked_dagster.providers.base import JobStatus
from notebooked_dagster.providers.cloud.provider import Remote
from notebooked_dagster.providers.jobs import JobSpec

from . import container
from .pods import (
    CONTAINER,
    MANAGED,
    PYTORCH,
    condition,
    moment,
    oldest_first,
    pod_spec,
    status_of,
    terminated,
    variables,
)
from .storage import ObjectStore

JOB = "notebooked/job"
START_TIMEOUT = "notebooked/start-timeout"
_REPLICA = "training.kubeflow.org/replica"
_INDEX = "batch.kubernetes.io/job-completion-index"
_LONGEST = 63
_INSTANCE_TYPE = "node.kubernetes.io/instance-type"
_MORE_MEMORY = "Raise options.training.memory, or train on less data or in smaller batches."
_LOST = ("NodeLost", "Shutdown", "NodeShutdown", "Terminated", "Preempting", "UnexpectedAdmissionError")


def training_job(
    name: str,
    spec: JobSpec,
    options: KubernetesTraining,
    *,
    image: str,
    store: ObjectStore,
    data: str | None,
    environment: Mapping[str, str],
    service_account: str | None,
    pull_from: Sequence[str],
) -> dict[str, Any]:
    """The Job, or the PyTorchJob, to make.

    Args:
        name: The job's.
        spec: What was asked for.
        options: How.
        image: The container, where the options name none.
        store: Where package, model and output lie.
        data: Where the data lies; None for none.
        environment: Of the job.
        service_account: That it runs under.
        pull_from: Secrets that images are pulled with.

    Raises:
        ConfigError: Kubernetes would refuse it.
    """
    runtime = math.ceil(spec.timeout) if spec.timeout is not None else options.max_runtime
    labels = {**options.labels, **MANAGED, JOB: name, "notebooked/experiment": label(spec.experiment)}
    own = {
        "NOTEBOOKED_JOB": name,
        "NOTEBOOKED_STORE": store.uri("jobs", name),
        "NOTEBOOKED_PODS": str(spec.instance_count),
        "NOTEBOOKED_GRACE": str(options.grace / 2),
        **({"NOTEBOOKED_DATA": data} if data is not None else {}),
        **({"NOTEBOOKED_OPERATOR": options.operator} if options.operator is not None else {}),
    }
    several = spec.instance_count > 1
    # With the Service of the job's name, every pod has an address that the others know beforehand.
    chosen: dict[str, Any] = {"subdomain": name} if several and options.operator is None else {}
    if options.operator is None:
        # A PyTorchJob says it of each kind of pod.
        chosen["restartPolicy"] = "Never"
    if spec.instance_type:
        chosen["nodeSelector"] = {_INSTANCE_TYPE: spec.instance_type}
    pod = pod_spec(
        options,
        "train",
        image=image,
        environment=[*variables({**environment, **own}), *store.variables()],
        access_from=store.options.access_from,
        service_account=service_account,
        pull_from=pull_from,
        more={"name": PYTORCH} if options.operator is not None else None,
        # Of the pod, not of the Job: the time in which it waits for a node is not the script's.
        activeDeadlineSeconds=runtime,
        terminationGracePeriodSeconds=options.grace,
        **chosen,
    )
    annotations = {**options.annotations}
    template = {
        "metadata": {"labels": labels, **({"annotations": annotations} if annotations else {})},
        "spec": pod,
    }
    meta = {
        "name": name,
        "labels": labels,
        # As it was given; a label takes less.
        "annotations": {"notebooked/experiment": spec.experiment, START_TIMEOUT: str(options.start_timeout)},
    }
    # What nobody looks at ends as well.
    limits: dict[str, Any] = {
        "activeDeadlineSeconds": options.start_timeout
        + (options.backoff + 1) * (runtime + options.grace)
        + 600
    }
    if options.ttl is not None:
        limits["ttlSecondsAfterFinished"] = options.ttl
    if options.operator is not None:
        return _pytorch_job(meta, template, limits, spec.instance_count)
    job: dict[str, Any] = {
        **limits,
        "backoffLimit": options.backoff,
        "podFailurePolicy": {
            "rules": [
                {"action": "Count", "onPodConditions": [{"type": "DisruptionTarget", "status": "True"}]},
                {
                    "action": "FailJob",
                    "onExitCodes": {"containerName": CONTAINER, "operator": "NotIn", "values": [0]},
                },
            ]
        },
        "template": template,
    }
    if several:
        job |= {
            "completionMode": "Indexed",
            "completions": spec.instance_count,
            "parallelism": spec.instance_count,
        }
    return {"apiVersion": "batch/v1", "kind": "Job", "metadata": meta, "spec": job}


def _pytorch_job(
    meta: dict[str, Any], template: dict[str, Any], limits: Mapping[str, Any], count: int
) -> dict[str, Any]:
    """The same as a PyTorchJob: the chief is its master, the others are its workers."""
    # The operator makes a Service for each pod, of the pod's name.
    if len(f"{meta['name']}-worker-{count}") > _LONGEST:
        raise ConfigError(
            f"{meta['name']!r} is too long for Kubeflow, whose pods are called like their job and a little more.",
            key="options.training.operator",
            hint="Give the experiment a shorter name.",
        )
    replicas = {"Master": 1, "Worker": count - 1}
    return {
        "apiVersion": "kubeflow.org/v1",
        "kind": "PyTorchJob",
        "metadata": meta,
        "spec": {
            # Logs of pods that have ended can be read; workers do not outlive the chief.
            "runPolicy": {**limits, "cleanPodPolicy": "Running"},
            "pytorchReplicaSpecs": {
                role: {"replicas": number, "restartPolicy": "Never", "template": copy.deepcopy(template)}
                for role, number in replicas.items()
                if number
            },
        },
    }


def templates(job: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The templates of a job's pods, the chief's first."""
    if replicas := job["spec"].get("pytorchReplicaSpecs"):
        return [replicas[role]["template"] for role in ("Master", "Worker") if role in replicas]
    return [job["spec"]["template"]]


def pods_of(job: Mapping[str, Any]) -> int:
    """How many pods a job has."""
    if replicas := job["spec"].get("pytorchReplicaSpecs"):
        return sum(int(item.get("replicas", 1)) for item in replicas.values())
    return int(job["spec"].get("parallelism", 1))


def index_of(pod: Mapping[str, Any]) -> int:
    """Which of a job's pods one is; the chief is the first."""
    meta = pod["metadata"]
    labels = meta.get("labels", {})
    if labels.get(f"{_REPLICA}-type") == "worker":
        return int(labels[f"{_REPLICA}-index"]) + 1
    return int(meta.get("annotations", {}).get(_INDEX, 0))


def succeeded(job: Mapping[str, Any]) -> bool:
    """Whether a job ended well."""
    return bool(condition(job, "Complete") or condition(job, "Succeeded"))


def meeting_point(job: Mapping[str, Any]) -> dict[str, Any]:
    """The Service by which the pods of a job find each other; it goes with the Job."""
    name = job["metadata"]["name"]
    owner = {"apiVersion": "batch/v1", "kind": "Job", "name": name, "uid": job["metadata"]["uid"]}
    return {
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": {"name": name, "labels": {**MANAGED, JOB: name}, "ownerReferences": [owner]},
        "spec": {"clusterIP": "None", "selector": {JOB: name}, "publishNotReadyAddresses": True},
    }


def label(text: str) -> str:
    """A text as the value of a label; what Kubernetes does not take in one becomes ``-``."""
    return re.sub(r"[^A-Za-z0-9_.-]", "-", text)[:63].strip("-_.")


def remote_of(job: Mapping[str, Any], pods: Sequence[Mapping[str, Any]], model_uri: str | None) -> Remote:
    """A Job and its pods in our terms.

    Args:
        job: As the API gives it.
        pods: Its pods, as far as they are there.
        model_uri: Where it was to put its model.
    """
    status = job.get("status", {})
    # A pod that was taken away and begun again is not how the job ended.
    last = oldest_first(pods)[-1] if pods else {}
    ended = _ended(job)
    started = _started(pods)
    common: dict[str, Any] = {
        "started_at": started or (moment(status.get("startTime")) if not pods and ended else None),
        "model_uri": model_uri,
        "facts": _facts(job, last, started, ended),
        "environment": environment_of(job),
    }
    if succeeded(job):
        return Remote(JobStatus.SUCCEEDED, finished_at=ended, **common)
    if failed := condition(job, "Failed"):
        found, error, reason, hint = _blamed(failed, _worst(pods))
        return Remote(found, finished_at=ended, error=error, reason=reason, hint=hint, **common)
    # Without pods (a list of jobs) the Job itself says how many of them run.
    running = any(_runs(pod) for pod in pods) or (
        not pods and bool(status.get("ready") or condition(job, "Running"))
    )
    return Remote(JobStatus.RUNNING if running else JobStatus.PENDING, **common)


def environment_of(job: Mapping[str, Any]) -> dict[str, str]:
    """The variables of a job's container."""
    found = templates(job)[0]["spec"]["containers"][0].get("env") or ()
    return {item["name"]: item.get("value", "") for item in found}


def _runs(pod: Mapping[str, Any]) -> bool:
    return bool(pod.get("status", {}).get("phase") == "Running")


def _started(pods: Sequence[Mapping[str, Any]]) -> datetime | None:
    for pod in oldest_first(pods):
        state = status_of(pod).get("state", {})
        found = (state.get("running") or state.get("terminated") or {}).get("startedAt")
        if found:
            return moment(found)
    return None


def _ended(job: Mapping[str, Any]) -> datetime | None:
    done = job.get("status", {}).get("completionTime")
    failed = condition(job, "Failed")
    return moment(done or failed.get("lastTransitionTime")) if done or failed else None


def _worst(pods: Sequence[Mapping[str, Any]]) -> Mapping[str, Any]:
    """The pod that tells why a job failed: the last that failed by itself, else the last."""
    failed = [pod for pod in oldest_first(pods) if pod.get("status", {}).get("phase") == "Failed"]
    return (failed or oldest_first(pods) or [{}])[-1]


def _blamed(failed: Mapping[str, Any], pod: Mapping[str, Any]) -> tuple[JobStatus, str, str, str]:
    """Whose fault a failure is: status, the class of our error (empty where the log has to say), the words, what to do."""
    said = pod.get("status", {}) if pod else {}
    end = terminated(pod) if pod else {}
    message = str(said.get("message") or failed.get("message") or "").rstrip(".")
    late = "active longer than specified deadline" in failed.get("message", "")
    if late or "DeadlineExceeded" in (said.get("reason"), failed.get("reason")):
        return JobStatus.TIMED_OUT, "", "", ""
    if end.get("reason") == "OOMKilled":
        limit = _limit(pod)
        return (
            JobStatus.KILLED,
            "TrainingKilledError",
            f"it was killed by signal 9: out of memory{f', of which it had {limit}' if limit else ''}.",
            _MORE_MEMORY,
        )
    disrupted = condition(pod, "DisruptionTarget") if pod else {}
    if said.get("reason") == "Evicted" or said.get("reason") in _LOST or disrupted:
        why = disrupted.get("reason") or said.get("reason")
        words = message if said.get("message") else disrupted.get("message") or message
        return (
            JobStatus.FAILED,
            "ProviderError",
            f"its pod was taken away ({why}): {str(words).rstrip('.')}.",
            "Train again, or let it be begun again by itself: options.training.backoff. A pod that asks for the memory "
            "and disk it uses is evicted last.",
        )
    code = int(end["exitCode"]) if "exitCode" in end else None
    ours = {
        container.NO_UPLOAD: (
            "ProviderError",
            "its model could not be written to the object store.",
            "The service account, or the Secret of kubernetes.storage.access_from, has to be allowed to write there.",
        ),
        container.NO_PACKAGE: (
            "CredentialsError",
            "its package could not be read from the object store.",
            "See kubernetes.storage: access_from or service_account, and cluster_endpoint_url.",
        ),
        container.NO_DATA: (
            "DataError",
            "its data could not be read.",
            "Put the data there, or correct data_path; pods have to be allowed to read it.",
        ),
        container.NO_REQUIREMENTS: (
            "ConfigError",
            "the requirements cannot be installed in the container; the log says which.",
            "Pin what exists for the container's Python, or name an image that has them: options.training.image.",
        ),
    }
    if code in ours:
        kind, words, hint = ours[code]
        return JobStatus.FAILED, kind, words, hint
    if code in (137, 265):
        return (
            JobStatus.KILLED,
            "TrainingKilledError",
            "it was killed by signal 9, most often out of memory.",
            _MORE_MEMORY,
        )
    if not pod:
        return (
            JobStatus.FAILED,
            "ProviderError",
            f"its pod is gone: {message or failed.get('reason', '')}.",
            "Somebody deleted it, or its node is gone: train again.",
        )
    return JobStatus.FAILED, "", message, ""


def _limit(pod: Mapping[str, Any]) -> str:
    limits = pod["spec"]["containers"][0].get("resources", {}).get("limits") or {}
    return str(limits.get("memory", ""))


def _facts(
    job: Mapping[str, Any], pod: Mapping[str, Any], started: datetime | None, ended: datetime | None
) -> dict[str, str | float]:
    inner = templates(job)[0]["spec"]["containers"][0]
    asked = inner.get("resources", {}).get("requests") or {}
    shown = ", ".join(f"{value} {name}" for name, value in asked.items())
    facts: dict[str, str | float] = {"instance": f"{pods_of(job)} x {shown}"}
    if namespace := job["metadata"].get("namespace"):
        facts["namespace"] = namespace
    if node := (pod.get("spec", {}) if pod else {}).get("nodeName"):
        facts["node"] = node
    if started and ended:
        facts["ran (s)"] = float(math.ceil((ended - started).total_seconds()))
    return facts
