"""Training jobs in SageMaker's terms: the request that starts one, and what its description means.

API: CreateTrainingJob and DescribeTrainingJob of the SageMaker service, version 2017-07-24. The containers run our launcher
as the SageMaker training toolkit's entry point (hyperparameters ``sagemaker_program``, ``sagemaker_submit_directory``).
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping
from typing import Any

from notebooked_dagster.config.sagemaker import SageMakerTraining
from notebooked_dagster.errors import ConfigError
from notebooked_dagster.providers.base import JobStatus
from notebooked_dagster.providers.cloud.package import LAUNCHER
from notebooked_dagster.providers.cloud.provider import Remote
from notebooked_dagster.providers.jobs import JobSpec

from .prices import cost

LOG_GROUP = "/aws/sagemaker/TrainingJobs"
_LONGEST_HYPERPARAMETER = 2500
_LONGEST_VARIABLE = 512
_MOST = 100
_STATUS = {
    "Completed": JobStatus.SUCCEEDED,
    "Failed": JobStatus.FAILED,
    "Stopped": JobStatus.CANCELLED,
    "Stopping": JobStatus.RUNNING,
}
_WAITING = ("Starting", "Pending", "LaunchingMLInstances", "PreparingTrainingStack", "Restarting")
_OVERDUE = {
    "MaxRuntimeExceeded": "",
    "MaxWaitTimeExceeded": "It waited for spot capacity longer than `max_wait`.",
}
_EXIT = re.compile(r"exit code: (\d+)")


def training_request(
    name: str,
    spec: JobSpec,
    options: SageMakerTraining,
    *,
    role: str,
    image: str,
    source: str,
    output: str,
    data: str | None,
    environment: Mapping[str, str],
    region: str,
) -> dict[str, Any]:
    """The parameters of CreateTrainingJob.

    Args:
        name: The job's.
        spec: What was asked for.
        options: How.
        role: ARN of the execution role.
        image: The container.
        source: Where the package lies.
        output: Where model and output go: a folder of this name is made in it.
        data: Where the data lies; None for none.
        environment: Of the job.
        region: For the training toolkit.

    Raises:
        ConfigError: SageMaker would refuse it.
    """
    runtime = math.ceil(spec.timeout) if spec.timeout is not None else options.max_runtime
    request: dict[str, Any] = {
        "TrainingJobName": name,
        "RoleArn": role,
        "AlgorithmSpecification": {"TrainingImage": image, "TrainingInputMode": "File"},
        "HyperParameters": {
            **_shown(spec.hyperparameters),
            "sagemaker_program": json.dumps(LAUNCHER),
            "sagemaker_submit_directory": json.dumps(source),
            "sagemaker_region": json.dumps(region),
            "sagemaker_job_name": json.dumps(name),
            "sagemaker_container_log_level": "20",
        },
        "OutputDataConfig": {
            "S3OutputPath": output,
            **({"KmsKeyId": options.kms_key} if options.kms_key else {}),
        },
        "ResourceConfig": {
            "InstanceType": spec.instance_type or options.instance_type,
            "InstanceCount": spec.instance_count,
            "VolumeSizeInGB": options.volume_size,
            **({"VolumeKmsKeyId": options.kms_key} if options.kms_key else {}),
            **({"KeepAlivePeriodInSeconds": options.keep_alive} if options.keep_alive else {}),
        },
        "StoppingCondition": {"MaxRuntimeInSeconds": runtime},
        "EnableNetworkIsolation": options.network_isolation,
        "EnableInterContainerTrafficEncryption": options.encrypt_traffic,
        "Environment": _checked(environment),
        "Tags": tags({"notebooked/experiment": spec.experiment, **options.tags}),
    }
    channels = [_channel("training", data)] if data is not None else []
    if options.network_isolation:
        # The container reaches no S3: SageMaker itself brings the package in.
        channels.append(_channel("code", source))
        brought = f"/opt/ml/input/data/code/{source.rpartition('/')[2]}"
        request["HyperParameters"]["sagemaker_submit_directory"] = json.dumps(brought)
    if channels:
        request["InputDataConfig"] = channels
    if options.subnets:
        request["VpcConfig"] = {
            "Subnets": list(options.subnets),
            "SecurityGroupIds": list(options.security_groups),
        }
    if options.spot:
        request["EnableManagedSpotTraining"] = True
        request["StoppingCondition"]["MaxWaitTimeInSeconds"] = max(options.max_wait or 2 * runtime, runtime)
    if options.checkpoint:
        # By job: spot capacity that comes back goes on with the same job, and no other training is to begin from it.
        folder = f"{output.rsplit('/', 1)[0]}/checkpoints/{name}"
        request["CheckpointConfig"] = {"S3Uri": folder}
    return request


def _channel(name: str, uri: str) -> dict[str, Any]:
    place = {"S3DataType": "S3Prefix", "S3Uri": uri, "S3DataDistributionType": "FullyReplicated"}
    return {"ChannelName": name, "DataSource": {"S3DataSource": place}}


def tags(wanted: Mapping[str, str]) -> list[dict[str, str]]:
    """Tags as AWS takes them; what it does not take in a value becomes ``-``."""
    return [
        {"Key": key[:128], "Value": re.sub(r"[^\w\s.:/=+\-@]", "-", value)[:256]}
        for key, value in wanted.items()
    ]


def remote_of(description: Mapping[str, Any], region: str, prices: Mapping[str, float]) -> Remote:
    """A job's description, or an item of the list of jobs, in our terms."""
    status = description["TrainingJobStatus"]
    secondary = description.get("SecondaryStatus", "")
    reason = str(description.get("FailureReason", ""))
    found = _STATUS.get(status, JobStatus.PENDING if secondary in _WAITING else JobStatus.RUNNING)
    if found is JobStatus.CANCELLED and secondary in _OVERDUE:
        found, reason = JobStatus.TIMED_OUT, _OVERDUE[secondary]
    error, hint = _blamed(reason) if found is JobStatus.FAILED else ("", "")
    if found is JobStatus.FAILED and (match := _EXIT.search(reason)) and int(match[1]) == 137:
        found, error = JobStatus.KILLED, "TrainingKilledError"
        reason = "it was killed by signal 9, most often out of memory."
        hint = "Choose an instance type with more memory, or train on less data or in smaller batches."
    return Remote(
        found,
        # The list of jobs knows only when a job was made.
        started_at=description.get("TrainingStartTime")
        or (
            None
            if "CreationTime" not in description or "ResourceConfig" in description
            else description["CreationTime"]
        ),
        finished_at=description.get("TrainingEndTime")
        or (description.get("LastModifiedTime") if found.finished else None),
        reason=reason,
        error=error,
        hint=hint,
        model_uri=description.get("ModelArtifacts", {}).get("S3ModelArtifacts"),
        facts=_facts(description, region, prices),
        environment=description.get("Environment", {}),
    )


def _blamed(reason: str) -> tuple[str, str]:
    """Whose fault a failure is where it is not the script's: the class of our error, and what to do."""
    kind = reason.partition(":")[0].strip()
    if kind in ("CapacityError", "InsufficientCapacityError"):
        return (
            "QuotaError",
            "AWS has no such machine free in the region: try again, or choose another instance_type.",
        )
    if kind in ("InternalServerError", "InternalError"):
        return "ProviderError", "A fault of SageMaker's: train again."
    if kind == "ClientError" and re.search(r"(?i)data download|S3DataSource|no s3 objects|NoSuchKey", reason):
        return "DataError", "Put the data there, or correct data_path; the role needs s3:GetObject on it."
    if kind == "ClientError" and re.search(r"(?i)access ?denied|not authorized|permission", reason):
        return (
            "CredentialsError",
            "The execution role lacks a permission; `notebooked plan` prints its policy.",
        )
    if kind == "ClientError" and re.search(r"(?i)artifact|upload", reason):
        return (
            "ProviderError",
            "The role needs s3:PutObject on the bucket, and the machine room for the model.",
        )
    return "", ""


def _facts(
    description: Mapping[str, Any], region: str, prices: Mapping[str, float]
) -> dict[str, str | float]:
    resources = description.get("ResourceConfig", {})
    name = description["TrainingJobName"]
    facts: dict[str, str | float] = {
        "console": f"https://{region}.console.aws.amazon.com/sagemaker/home?region={region}#/jobs/{name}",
    }
    if not resources:
        return facts
    count, kind = resources.get("InstanceCount", 1), resources.get("InstanceType", "")
    facts["instance"] = f"{count} x {kind}"
    billed = description.get("BillableTimeInSeconds")
    if billed is not None:
        facts["billed (s)"] = float(billed)
        price = cost(kind, billed * count, prices)
        if price is not None:
            facts["cost (USD, estimated)"] = round(price, 4)
    saved = description.get("TrainingTimeInSeconds")
    if saved and billed is not None and description.get("EnableManagedSpotTraining"):
        facts["saved by spot (%)"] = round(100 * (1 - billed / saved), 1)
    return facts


def _shown(hyperparameters: Mapping[str, Any]) -> dict[str, str]:
    """Hyperparameters for the console; the launcher passes the exact ones."""
    texts = {name: json.dumps(value) for name, value in hyperparameters.items()}
    short = {name: text for name, text in texts.items() if len(text) <= _LONGEST_HYPERPARAMETER}
    return dict(list(short.items())[: _MOST - 5])


def _checked(environment: Mapping[str, str]) -> dict[str, str]:
    if len(environment) > _MOST:
        raise ConfigError(
            f"SageMaker takes {_MOST} environment variables; there are {len(environment)}.",
            key="environment",
        )
    for name, value in environment.items():
        if len(value) > _LONGEST_VARIABLE:
            raise ConfigError(
                f"The environment variable {name} is {len(value)} characters long; SageMaker takes {_LONGEST_VARIABLE}.",
                key=f"environment.{name}",
                hint="Put it into a file of the data.",
            )
    return dict(environment)
