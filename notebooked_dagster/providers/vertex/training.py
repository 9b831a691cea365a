"""Training jobs in Vertex AI's terms: the request that starts one, and what the job it gives back means.

API: CustomJob of Vertex AI v1, ``projects.locations.customJobs``. The container runs ``container.py``, which runs our
launcher from the package in the bucket.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from notebooked_dagster.config.vertex import VertexTraining
from notebooked_dagster.errors import ConfigError
from notebooked_dagster.providers.base import JobStatus
from notebooked_dagster.providers.cloud.provider import Remote
from notebooked_dagster.providers.jobs import JobSpec

from . import container
from .prices import hourly

LABEL = "notebooked_job"
_MOST_VARIABLES = 100
_MACHINE = re.compile(r"[a-z][a-z0-9]*-[a-z0-9-]+")
_STATUS = {
    "JOB_STATE_QUEUED": JobStatus.PENDING,
    "JOB_STATE_PENDING": JobStatus.PENDING,
    "JOB_STATE_PAUSED": JobStatus.PENDING,
    "JOB_STATE_UNSPECIFIED": JobStatus.PENDING,
    "JOB_STATE_RUNNING": JobStatus.RUNNING,
    "JOB_STATE_UPDATING": JobStatus.RUNNING,
    "JOB_STATE_CANCELLING": JobStatus.RUNNING,
    "JOB_STATE_SUCCEEDED": JobStatus.SUCCEEDED,
    "JOB_STATE_PARTIALLY_SUCCEEDED": JobStatus.SUCCEEDED,
    "JOB_STATE_FAILED": JobStatus.FAILED,
    "JOB_STATE_CANCELLED": JobStatus.CANCELLED,
    "JOB_STATE_EXPIRED": JobStatus.TIMED_OUT,
}
_EXIT = re.compile(r"non-zero status of (\d+)")
_OUT_OF_MEMORY = re.compile(r"(?i)out.of.memory")


def command(mode: str) -> list[str]:
    """What a container runs: ``train`` or ``serve``."""
    return ["python3", "-u", "-c", Path(container.__file__).read_text(encoding="utf-8"), mode]


def check_machine(machine: str, key: str = "instance_type") -> None:
    """Raise ConfigError where this cannot be a machine of Google's."""
    if not _MACHINE.fullmatch(machine):
        raise ConfigError(
            f"{machine!r} is no machine of Google's.",
            key=key,
            hint="Its names are like n1-standard-4 or g2-standard-8.",
        )


def training_request(
    name: str,
    spec: JobSpec,
    options: VertexTraining,
    *,
    image: str,
    package: str,
    folder: str,
    data: str | None,
    environment: Mapping[str, str],
    service_account: str | None,
    network: str | None,
    kms_key: str | None,
) -> dict[str, Any]:
    """The CustomJob to create.

    Args:
        name: The job's.
        spec: What was asked for.
        options: How.
        image: The container.
        package: Where the package lies.
        folder: Where model and output go.
        data: Where the data lies; None for none.
        environment: Of the job.
        service_account: That it runs under; the project's default where None.
        network: That it is peered with.
        kms_key: That encrypts its disks.

    Raises:
        ConfigError: Vertex AI would refuse it.
    """
    variables = {
        **environment,
        "NOTEBOOKED_PACKAGE": package,
        "NOTEBOOKED_OUTPUT": f"{folder}/output.tar.gz",
        **({"NOTEBOOKED_DATA": data} if data is not None else {}),
    }
    if len(variables) > _MOST_VARIABLES:
        raise ConfigError(
            f"Vertex AI takes {_MOST_VARIABLES} environment variables; with our own there are {len(variables)}.",
            key="environment",
        )
    runtime = math.ceil(spec.timeout) if spec.timeout is not None else options.max_runtime
    worker: dict[str, Any] = {
        "machine_spec": machine_spec(
            spec.instance_type or options.machine_type, options.accelerator, options.accelerator_count
        ),
        "replica_count": 1,
        "disk_spec": {
            "boot_disk_size_gb": options.disk_size,
            **({"boot_disk_type": options.disk_type} if options.disk_type else {}),
        },
        "container_spec": {
            "image_uri": image,
            "command": command("train"),
            "env": [{"name": key, "value": value} for key, value in variables.items()],
        },
    }
    pools = [worker]
    if spec.instance_count > 1:
        # The first pool is the chief, of which there is one.
        pools.append({**worker, "replica_count": spec.instance_count - 1})
    job_spec: dict[str, Any] = {
        "worker_pool_specs": pools,
        "scheduling": {"timeout": {"seconds": runtime}, **({"strategy": "SPOT"} if options.spot else {})},
        "base_output_directory": {"output_uri_prefix": folder},
        **({"service_account": service_account} if service_account else {}),
        **({"network": network} if network else {}),
    }
    return {
        "display_name": name,
        "job_spec": job_spec,
        "labels": {
            **options.labels,
            LABEL: name,
            "notebooked_experiment": label(spec.experiment),
        },
        **({"encryption_spec": {"kms_key_name": kms_key}} if kms_key else {}),
    }


def machine_spec(machine: str, accelerator: str | None, count: int) -> dict[str, Any]:
    """A machine with its GPUs."""
    gpus = {"accelerator_type": accelerator, "accelerator_count": count} if accelerator else {}
    return {"machine_type": machine, **gpus}


def label(text: str) -> str:
    """A text as the value of a label; what Google does not take in one becomes ``-``."""
    return re.sub(r"[^a-z0-9_-]", "-", text.lower())[:63]


def remote_of(job: Any, prices: Mapping[str, float], model_uri: str | None) -> Remote:
    """A CustomJob in our terms.

    Args:
        job: As the API gives it.
        prices: USD an hour that win over the table.
        model_uri: Where it was to put its model.
    """
    status = _STATUS.get(job.state.name, JobStatus.RUNNING)
    started, finished = _time(job.start_time), _time(job.end_time)
    reason = str(job.error.message) if job.error else ""
    limit = job.job_spec.scheduling.timeout.total_seconds() if job.job_spec.scheduling.timeout else 0.0
    ran = (finished - started).total_seconds() if started and finished else 0.0
    if status is JobStatus.CANCELLED and limit and ran >= limit:
        # A job that reaches its limit is cancelled by Vertex AI, without another word.
        status, reason = JobStatus.TIMED_OUT, ""
    error, hint = "", ""
    if status is JobStatus.FAILED:
        status, error, reason, hint = _blamed(int(job.error.code), reason)
    return Remote(
        status,
        started_at=started,
        finished_at=finished or (_time(job.update_time) if status.finished else None),
        reason=reason,
        error=error,
        hint=hint,
        model_uri=model_uri,
        facts=_facts(job, ran, prices),
        environment=_environment(job),
    )


def _blamed(code: int, reason: str) -> tuple[JobStatus, str, str, str]:
    """Whose fault a failure is: status, the class of our error (empty where the log has to say), the words, what to do."""
    exited = _EXIT.search(reason)
    ended = int(exited[1]) if exited else None
    if ended == 137 or _OUT_OF_MEMORY.search(reason):
        return (
            JobStatus.KILLED,
            "TrainingKilledError",
            "it was killed by signal 9, most often out of memory.",
            "Choose a machine with more memory, or train on less data or in smaller batches.",
        )
    ours = {
        container.NO_UPLOAD: (
            "ProviderError",
            "its model could not be written to the bucket.",
            "The service account needs roles/storage.objectUser on it, and the machine room on its disk.",
        ),
        container.NO_PACKAGE: (
            "CredentialsError",
            "its package could not be read from the bucket.",
            "The service account needs roles/storage.objectUser on it; `notebooked plan --policy` prints all.",
        ),
        container.NO_REQUIREMENTS: (
            "ConfigError",
            "the requirements cannot be installed in the container; the log says which.",
            "Pin what exists for the container's Python, or name a container that has them: options.training.image.",
        ),
    }
    if ended in ours:
        kind, words, hint = ours[ended]
        return JobStatus.FAILED, kind, words, hint
    if ended is not None:
        return JobStatus.FAILED, "", reason, ""
    if code == 8 or re.search(r"(?i)insufficient|stockout|quota", reason):
        return (
            JobStatus.FAILED,
            "QuotaError",
            reason,
            "Google has no such machine free in the region, or not for this project: try again, or choose another instance_type.",
        )
    if code == 7 or re.search(r"(?i)permission|access denied|forbidden", reason):
        return (
            JobStatus.FAILED,
            "CredentialsError",
            reason,
            "The service account lacks a permission; `notebooked plan --policy` prints its roles.",
        )
    if re.search(r"(?i)image", reason):
        return (
            JobStatus.FAILED,
            "ConfigError",
            reason,
            "Name a container that is there: options.training.image.",
        )
    if code in (13, 14):
        return JobStatus.FAILED, "ProviderError", reason, "A fault of Vertex AI's: train again."
    return JobStatus.FAILED, "", reason, ""


def _time(value: Any) -> datetime | None:
    return value.astimezone(UTC).replace(tzinfo=UTC) if value else None


def _environment(job: Any) -> dict[str, str]:
    pools = job.job_spec.worker_pool_specs
    return {item.name: item.value for item in pools[0].container_spec.env} if pools else {}


def _facts(job: Any, ran: float, prices: Mapping[str, float]) -> dict[str, str | float]:
    parts = job.name.split("/")
    facts: dict[str, str | float] = {
        "console": f"https://console.cloud.google.com/vertex-ai/locations/{parts[3]}/training/{parts[5]}?project={parts[1]}",
    }
    pools = job.job_spec.worker_pool_specs
    if not pools:
        return facts
    count = sum(pool.replica_count for pool in pools)
    machine = pools[0].machine_spec
    gpu = machine.accelerator_type.name if machine.accelerator_type else None
    with_gpu = f" with {machine.accelerator_count} x {gpu}" if gpu else ""
    facts["instance"] = f"{count} x {machine.machine_type}{with_gpu}"
    if ran:
        facts["billed (s)"] = float(math.ceil(ran))
        price = hourly(machine.machine_type, gpu, machine.accelerator_count, prices)
        # What a spot machine costs moves with the day; the table has none of that.
        if price is not None and job.job_spec.scheduling.strategy.name != "SPOT":
            facts["cost (USD, estimated)"] = round(price * count * math.ceil(ran) / 3600, 4)
    return facts
