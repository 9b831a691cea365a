"""Training jobs in the terms of Azure Machine Learning: the request that starts one, and what its description means.

API: Jobs of ``Microsoft.MachineLearningServices``, version 2025-12-01, and the details of a run in the run history. The
command unpacks what we sent into the job's working folder and hands over to our launcher, which is told by its variables
where Azure put data, model and output.
"""

from __future__ import annotations

import json
import math
import re
import shlex
from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from typing import Any

from notebooked_dagster.config.azure import AzureTraining
from notebooked_dagster.providers.base import JobStatus
from notebooked_dagster.providers.cloud.package import LAUNCHER
from notebooked_dagster.providers.cloud.provider import Remote, data_file
from notebooked_dagster.providers.jobs import JobSpec

from .images import Environment
from .prices import cost

TAG = "notebooked"
_WAITING = ("NotStarted", "Starting", "Provisioning", "Preparing", "Queued")
_STATUS = {
    "Completed": JobStatus.SUCCEEDED,
    "Failed": JobStatus.FAILED,
    "Canceled": JobStatus.CANCELLED,
}
# Azure Machine Learning points MLflow of every job at the workspace, with a token of its own; ours is another server.
_PLATFORM_MLFLOW = (
    "MLFLOW_TRACKING_URI",
    "MLFLOW_TRACKING_TOKEN",
    "MLFLOW_EXPERIMENT_ID",
    "MLFLOW_EXPERIMENT_NAME",
    "MLFLOW_RUN_ID",
)
_EXIT = re.compile(r"(?i)exit(?:ed with)? (?:status )?code:? (\d+)")
_OVERDUE = re.compile(
    r"(?i)(exceed|reach)\w* .*(time|duration)|timed? ?out|max\w* (run|execution) ?(time|duration)"
)
_DURATION = re.compile(r"P(?:(\d+)D)?(?:T(?:(\d+)H)?(?:(\d+)M)?(?:([\d.]+)S)?)?")


def job_request(
    name: str,
    spec: JobSpec,
    options: AzureTraining,
    *,
    workspace: str,
    environment_id: str,
    environment: Environment,
    identity: str | None,
    source: str,
    output: str,
    data: str | None,
    variables: Mapping[str, str],
) -> dict[str, Any]:
    """The body that makes a job of a name.

    Args:
        name: The job's.
        spec: What was asked for.
        options: How.
        workspace: Its id.
        environment_id: Of the environment.
        environment: What is in it.
        identity: The user-assigned identity; None for the workspace's own way.
        source: Where the package lies.
        output: The folder that model and output go to.
        data: Where the data lies; None for none.
        variables: The job's environment.
    """
    inputs: dict[str, Any] = {"package": {"jobInputType": "uri_file", "uri": source, "mode": "Download"}}
    if data is not None:
        kind = "uri_file" if data_file(spec.data_path) else "uri_folder"
        mode = "ReadOnlyMount" if options.input_mode == "mount" else "Download"
        inputs["data"] = {"jobInputType": kind, "uri": data, "mode": mode}
    delivery = "Upload" if options.output_mode == "upload" else "ReadWriteMount"
    limit = math.ceil(spec.timeout) if spec.timeout is not None else options.max_runtime
    properties: dict[str, Any] = {
        "jobType": "Command",
        "displayName": name,
        "experimentName": spec.experiment,
        "command": _command(spec, data, environment, variables),
        "environmentId": environment_id,
        "environmentVariables": {_sent_as(key): value for key, value in variables.items()},
        "inputs": inputs,
        "outputs": {
            part: {"jobOutputType": "uri_folder", "uri": f"{output}/{part}", "mode": delivery}
            for part in ("model", "output")
        },
        "limits": {"jobLimitsType": "Command", "timeout": f"PT{limit}S"},
        "resources": {"instanceCount": spec.instance_count},
        "tags": {TAG: spec.experiment, **{key[:512]: value[:256] for key, value in options.tags.items()}},
    }
    if spec.pipes:
        # Mounted whatever the others are: messages are read while the job runs.
        properties["outputs"]["pipes"] = {
            "jobOutputType": "uri_folder",
            "uri": f"{output}/pipes",
            "mode": "ReadWriteMount",
        }
    if options.compute is not None:
        properties["computeId"] = f"{workspace}/computes/{options.compute}"
    else:
        properties["resources"]["instanceType"] = spec.instance_type or options.instance_type
        properties["queueSettings"] = {"jobTier": "Spot" if options.spot else "Standard"}
    if options.shared_memory is not None:
        properties["resources"]["shmSize"] = options.shared_memory
    if spec.instance_count > 1:
        # One process a machine, which tells each its number; without it only the first machine would run anything.
        properties["distribution"] = {"distributionType": "PyTorch", "processCountPerInstance": 1}
    if identity is not None:
        properties["identity"] = {"identityType": "Managed", "resourceId": identity}
    return {"properties": properties}


def _command(spec: JobSpec, data: str | None, environment: Environment, variables: Mapping[str, str]) -> str:
    """What the job's shell runs; ``${{…}}`` is filled in by Azure."""
    steps = ["set -e", f"unset {' '.join(_PLATFORM_MLFLOW)}"]
    # By reference: what a variable holds does not stand in a command that the studio shows.
    steps += [f'export {key}="${_sent_as(key)}"' for key in variables if _sent_as(key) != key]
    steps.append('export SM_MODEL_DIR="${{outputs.model}}" SM_OUTPUT_DATA_DIR="${{outputs.output}}"')
    if spec.pipes:
        steps.append('export NOTEBOOKED_PIPES_FOLDER="${{outputs.pipes}}"')
    if data is not None:
        # The launcher looks for a file by its name in the folder that it is in.
        place = '"$(dirname "${{inputs.data}}")"' if data_file(spec.data_path) else '"${{inputs.data}}"'
        steps.append(f"export SM_CHANNEL_TRAINING={place}")
    if spec.instance_count > 1:
        hosts = json.dumps([str(number) for number in range(spec.instance_count)])
        steps.append(f'export SM_HOSTS={shlex.quote(hosts)} SM_CURRENT_HOST="${{NODE_RANK:-0}}"')
    steps.append('tar -xzf "${{inputs.package}}" -C .')
    if not environment.installs:
        steps.append("if [ -s requirements.txt ]; then python -m pip install -q -r requirements.txt; fi")
    steps.append(f"exec python -u {LAUNCHER}")
    return "; ".join(steps)


def _sent_as(name: str) -> str:
    """MLflow's variables travel under another name: those of this name are the platform's."""
    return f"NOTEBOOKED_OWN_{name}" if name.startswith("MLFLOW_") else name


def remote_of(
    job: Mapping[str, Any], details: Mapping[str, Any] | None, prices: Mapping[str, float]
) -> Remote:
    """A job's description and its run's details (None for an item of the list of jobs) in our terms."""
    properties = job["properties"]
    status = str(properties.get("status", ""))
    found = _STATUS.get(status, JobStatus.PENDING if status in _WAITING else JobStatus.RUNNING)
    known, system = details or {}, job.get("systemData", {})
    own = properties.get("properties") or {}
    # The list of jobs knows when a job was made, and not always when it ended.
    started = _time(known.get("startTimeUtc") or own.get("StartTimeUtc"))
    if started is None and details is None:
        started = _time(system.get("createdAt"))
    ended = _time(
        known.get("endTimeUtc")
        or own.get("EndTimeUtc")
        or (system.get("lastModifiedAt") if found.finished else None)
    )
    reason, code = _said(known)
    # Azure quotes the script's last words in its own; what they sound like is nothing Azure says.
    exited = _EXIT.search(reason)
    error, hint = _blamed(code, reason) if found is JobStatus.FAILED and not exited else ("", "")
    limit = duration(str((properties.get("limits") or {}).get("timeout") or ""))
    if found in (JobStatus.CANCELLED, JobStatus.FAILED) and (
        (started and ended and limit and ended - started >= limit)
        or (not exited and _OVERDUE.search(f"{code} {reason}"))
    ):
        found, error, hint, reason = JobStatus.TIMED_OUT, "", "", ""
    if found is JobStatus.FAILED and exited and int(exited[1]) == 137:
        found, error = JobStatus.KILLED, "TrainingKilledError"
        reason = "it was killed by signal 9, most often out of memory."
        hint = "Choose an instance type with more memory, or train on less data or in smaller batches."
    return Remote(
        found,
        started_at=started,
        finished_at=ended if found.finished else None,
        reason=reason,
        error=error,
        hint=hint,
        model_uri=((properties.get("outputs") or {}).get("model") or {}).get("uri"),
        facts=_facts(properties, started, ended if found.finished else None, prices),
        environment=properties.get("environmentVariables") or {},
    )


def is_waiting(job: Mapping[str, Any]) -> bool:
    """Whether a job has no machine yet, so that the run history has nothing to say of it."""
    return str(job["properties"].get("status", "")) in _WAITING


def duration(text: str) -> timedelta | None:
    """An ISO 8601 duration; None where it is none."""
    match = _DURATION.fullmatch(text)
    if match is None or not any(match.groups()):
        return None
    days, hours, minutes, seconds = (float(part or 0) for part in match.groups())
    return timedelta(days=days, hours=hours, minutes=minutes, seconds=seconds)


def _said(details: Mapping[str, Any]) -> tuple[str, str]:
    """What the run history says of a failure: its words, and its most exact code."""
    error: Any = (details.get("error") or {}).get("error") or {}
    message, code = " ".join(str(error.get("message") or "").split()), str(error.get("code") or "")
    inner: Any = error.get("innerError")
    while inner:
        code, inner = f"{code}.{inner.get('code') or ''}".strip("."), inner.get("innerError")
    return message, code


def _blamed(code: str, reason: str) -> tuple[str, str]:
    """Whose fault a failure is where it is not the script's: the class of our error, and what to do."""
    said = f"{code} {reason}"
    if re.search(r"(?i)quota", said):
        return "QuotaError", "Ask Azure for more (Quotas in the portal), or choose another instance_type."
    if re.search(r"(?i)capacity|AllocationFailed|SkuNotAvailable", said):
        return (
            "QuotaError",
            "Azure has no such machine free in the region: try again, or choose another instance_type.",
        )
    if re.search(r"(?i)ImageBuild|image build|EnvironmentBuild", said):
        return (
            "MissingPackageError",
            "The environment could not be built: its build log in the studio says which package; correct the requirements.",
        )
    if re.search(r"(?i)StreamAccess|data-capability|(input|dataset|path).*(not found|does not exist)", said):
        if re.search(r"(?i)auth|denied|forbidden|permission", said):
            return "CredentialsError", "The job's identity may not read the data: `notebooked plan --policy`."
        return "DataError", "Put the data there, or correct data_path."
    if re.search(r"(?i)authori[sz]|access ?denied|forbidden", said):
        return "CredentialsError", "The job's identity lacks a role: `notebooked plan --policy` prints it."
    if re.search(r"(?i)^(System|Service|Internal)\w*Error", code):
        return "ProviderError", "A fault of Azure Machine Learning's: train again."
    return "", ""


def _facts(
    properties: Mapping[str, Any],
    started: datetime | None,
    ended: datetime | None,
    prices: Mapping[str, float],
) -> dict[str, str | float]:
    facts: dict[str, str | float] = {}
    studio = ((properties.get("services") or {}).get("Studio") or {}).get("endpoint")
    if studio:
        facts["console"] = str(studio)
    resources = properties.get("resources") or {}
    count = int(resources.get("instanceCount") or 1)
    kind = str(resources.get("instanceType") or "")
    cluster = str(properties.get("computeId") or "").rpartition("/")[2]
    facts["instance"] = f"{count} x {kind}" if kind else f"{count} of {cluster}"
    if started is None or ended is None:
        return facts
    seconds = max(math.ceil((ended - started).total_seconds()), 1)
    facts["ran (s)"] = float(seconds)
    price = cost(kind, seconds * count, prices)
    spot = (properties.get("queueSettings") or {}).get("jobTier") == "Spot"
    if price is not None:
        # What a machine of low priority costs changes by the hour; the price on demand is the most it can be.
        facts["cost (USD, at most)" if spot else "cost (USD, estimated)"] = round(price, 4)
    return facts


def _time(text: Any) -> datetime | None:
    if not text:
        return None
    try:
        # Azure writes seven digits of a second, Python reads six.
        found = datetime.fromisoformat(re.sub(r"(\.\d{6})\d+", r"\1", str(text).replace("Z", "+00:00")))
    except ValueError:
        return None
    return found if found.tzinfo is not None else found.replace(tzinfo=UTC)
