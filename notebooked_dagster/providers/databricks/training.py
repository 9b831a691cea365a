"""Training runs in Databricks' terms: the request that submits one, and what the run it gives back means.

API: Jobs 2.2, ``runs/submit`` with one Python script task. The script is ``container.py`` in the volume, which runs our launcher.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any

from notebooked_dagster.config.databricks import DatabricksTraining
from notebooked_dagster.errors import ConfigError
from notebooked_dagster.providers.base import JobStatus
from notebooked_dagster.providers.cloud.provider import SAID, Remote
from notebooked_dagster.providers.jobs import JobSpec

from . import container
from .runtimes import Runtime, choose

TASK = "train"
_ENVIRONMENT = "default"
_NODE_TYPE = re.compile(r"[A-Za-z][A-Za-z0-9_.-]{1,80}")
_SECRET = re.compile(r"\{\{secrets/[^/{}]+/[^/{}]+\}\}")
_STATUS = {
    "QUEUED": JobStatus.PENDING,
    "PENDING": JobStatus.PENDING,
    "WAITING": JobStatus.PENDING,
    "BLOCKED": JobStatus.PENDING,
    "RUNNING": JobStatus.RUNNING,
    "TERMINATING": JobStatus.RUNNING,
}
_EXIT = re.compile(r"SystemExit:? *\(?(\d+)")
_NO_ROOM = re.compile(
    r"(?i)insufficient|stock.?out|capacity|out of (resources|capacity)|quota|_LIMIT_EXCEEDED|SPOT_(REQUEST|INSTANCE)"
)


def runtime(options: DatabricksTraining) -> Runtime:
    """What an experiment trains on."""
    own = options.environment_version if options.serverless else options.spark_version
    return choose(own, serverless=options.serverless)


def node_type(spec_type: str | None, options: DatabricksTraining) -> str | None:
    """The machine's type; None where the policy or serverless compute decides. Raises ConfigError where there has to be one."""
    wanted = spec_type or options.node_type_id
    if options.serverless:
        if spec_type:
            raise ConfigError(
                f"Serverless compute has no machine to choose, and {spec_type!r} is named.",
                key="instance_type",
                hint="Leave instance_type out, or set options.training.serverless: false.",
            )
        return None
    if wanted is None and options.policy_id is None:
        raise ConfigError(
            "No machine is named to train on.",
            key="instance_type",
            hint="Set instance_type, or databricks.training.node_type_id (`databricks clusters list-node-types` has "
            "them), or databricks.training.serverless: true.",
        )
    if wanted is not None and not _NODE_TYPE.fullmatch(wanted):
        raise ConfigError(
            f"{wanted!r} is no type of a machine.",
            key="instance_type",
            hint="They are called as the cloud calls them: i3.xlarge, Standard_D4ds_v5, n2-standard-4.",
        )
    return wanted


def split_environment(
    environment: Mapping[str, str], *, serverless: bool
) -> tuple[dict[str, str], dict[str, str]]:
    """The variables that go along in a file, and those that Databricks has to fill in from its secrets."""
    secrets = {name: value for name, value in environment.items() if _SECRET.search(value)}
    if secrets and serverless:
        raise ConfigError(
            f"The variable {min(secrets)} refers to a secret of Databricks', which only a cluster fills in.",
            key="environment",
            hint="Train on a cluster, or read the secret in the notebook with dbutils.secrets.",
        )
    return {name: value for name, value in environment.items() if name not in secrets}, secrets


def training_request(
    name: str,
    spec: JobSpec,
    options: DatabricksTraining,
    *,
    cloud: str,
    program: str,
    home: str,
    environment: Mapping[str, str],
    token: str,
) -> dict[str, Any]:
    """The body of ``runs/submit``.

    Args:
        name: The job's.
        spec: What was asked for.
        options: How.
        cloud: Whose machines: ``aws``, ``azure``, ``gcp``.
        program: Where ``container.py`` lies.
        home: The job's folder in the volume.
        environment: Of the job.
        token: Databricks starts one run for it, however often it is asked.

    Raises:
        ConfigError: Databricks would refuse it.
    """
    # Beside the job's folder, so that another machine finds it without any file.
    said = {key: environment[key] for key in SAID if key in environment}
    task: dict[str, Any] = {
        "task_key": TASK,
        "spark_python_task": {"python_file": program, "parameters": [home, json.dumps(said)]},
    }
    limit = math.ceil(spec.timeout) if spec.timeout is not None else options.max_runtime
    request: dict[str, Any] = {
        "run_name": name,
        "idempotency_token": token,
        "timeout_seconds": limit,
        # A workspace that has as many runs as it may have lets this one wait, and does not refuse it.
        "queue": {"enabled": True},
        "tasks": [task],
    }
    machine = node_type(spec.instance_type, options)
    _, secrets = split_environment(environment, serverless=options.serverless)
    if options.serverless:
        if spec.instance_count > 1:
            raise ConfigError(
                "Serverless compute has no machines to count.",
                key="instance_count",
                hint="Leave instance_count at 1, or train on a cluster.",
            )
        task["environment_key"] = _ENVIRONMENT
        request["environments"] = [
            {
                "environment_key": _ENVIRONMENT,
                "spec": {"environment_version": runtime(options).version},
            }
        ]
        return request
    task["new_cluster"] = _cluster(spec, options, machine, cloud, secrets)
    return request


def _cluster(
    spec: JobSpec, options: DatabricksTraining, machine: str | None, cloud: str, secrets: Mapping[str, str]
) -> dict[str, Any]:
    workers = spec.instance_count - 1
    alone: dict[str, Any] = {}
    if not workers:
        alone["spark_conf"] = {"spark.databricks.cluster.profile": "singleNode", "spark.master": "local[*]"}
    return {
        "spark_version": runtime(options).version,
        "num_workers": workers,
        # Volumes are mounted on a cluster that is one identity's.
        "data_security_mode": "SINGLE_USER",
        "custom_tags": {
            **options.tags,
            **({} if workers else {"ResourceClass": "SingleNode"}),
            "notebooked_experiment": spec.experiment,
        },
        **alone,
        **({"node_type_id": machine} if machine else {}),
        **(
            {"policy_id": options.policy_id, "apply_policy_default_values": True} if options.policy_id else {}
        ),
        **({"spark_env_vars": dict(secrets)} if secrets else {}),
        **(_spot(cloud, workers) if options.spot else {}),
    }


def _spot(cloud: str, workers: int) -> dict[str, Any]:
    # The driver runs the script: where there are workers beside it, it is not put at risk.
    first = 1 if workers else 0
    if cloud == "azure":
        return {"azure_attributes": {"availability": "SPOT_WITH_FALLBACK_AZURE", "first_on_demand": first}}
    if cloud == "gcp":
        return {"gcp_attributes": {"availability": "PREEMPTIBLE_WITH_FALLBACK_GCP", "first_on_demand": first}}
    return {"aws_attributes": {"availability": "SPOT_WITH_FALLBACK", "first_on_demand": first}}


def remote_of(run: Any, prices: Mapping[str, float], model_uri: str | None, error: str = "") -> Remote:
    """A run in our terms.

    Args:
        run: As the API gives it.
        prices: USD an hour by machine.
        model_uri: Where it was to put its model.
        error: What its output says of a failure.
    """
    state = _value(run.status.state) if run.status else _value(run.state and run.state.life_cycle_state)
    status = _STATUS.get(state, JobStatus.RUNNING)
    reason, kind, hint = "", "", ""
    if state in ("TERMINATED", "SKIPPED", "INTERNAL_ERROR"):
        status, kind, reason, hint = _ended(run, error)
    began = run.start_time if status is JobStatus.RUNNING or status.finished else None
    return Remote(
        status,
        started_at=_time(began),
        finished_at=_time(run.end_time or run.start_time) if status.finished else None,
        reason=reason,
        error=kind,
        hint=hint,
        model_uri=model_uri,
        facts=_facts(run, prices),
        environment=_environment(run),
    )


def code_and_words(run: Any) -> tuple[str, str]:
    """Why a run ended: Databricks' code and its words."""
    details = run.status.termination_details if run.status else None
    words = (details.message if details else None) or (run.state.state_message if run.state else None) or ""
    return _value(details.code) if details else "", str(words)


def _ended(run: Any, error: str) -> tuple[JobStatus, str, str, str]:
    """Status, the class of our error (empty where the log has to say), the words, what to do."""
    code, words = code_and_words(run)
    result = _value(run.state.result_state) if run.state else ""
    if result in ("SUCCESS", "SUCCESS_WITH_FAILURES") or (not result and code.startswith("SUCCESS")):
        return JobStatus.SUCCEEDED, "", "", ""
    if result == "TIMEDOUT" or (code == "CANCELED" and re.search(r"(?i)time.?d?.?out|duration", words)):
        return JobStatus.TIMED_OUT, "", "", ""
    if result == "CANCELED" or code in ("USER_CANCELED", "CANCELED"):
        return JobStatus.CANCELLED, "", words, ""
    exited = _EXIT.search(error)
    if exited:
        return _exited(int(exited[1]), error)
    if _NO_ROOM.search(words) or code in ("WORKSPACE_RUN_LIMIT_EXCEEDED", "CLUSTER_REQUEST_LIMIT_EXCEEDED"):
        return (
            JobStatus.FAILED,
            "QuotaError",
            words or code,
            "There is no such machine free, or no more for this workspace: try again, or choose another instance_type.",
        )
    if code in ("UNAUTHORIZED_ERROR", "STORAGE_ACCESS_ERROR"):
        return (
            JobStatus.FAILED,
            "CredentialsError",
            words or code,
            "The identity that runs lacks a grant; `notebooked plan --policy` prints all.",
        )
    if code in (
        "INVALID_CLUSTER_REQUEST",
        "INVALID_RUN_CONFIGURATION",
        "FEATURE_DISABLED",
        "RESOURCE_NOT_FOUND",
    ):
        return JobStatus.FAILED, "ConfigError", words or code, "Correct options.training."
    if code in ("INTERNAL_ERROR", "CLUSTER_ERROR", "CLOUD_FAILURE", "DRIVER_ERROR"):
        return (
            JobStatus.FAILED,
            "ProviderError",
            words or code,
            "A machine or Databricks itself failed: train again.",
        )
    return JobStatus.FAILED, "", error or words or code, ""


def _exited(code: int, error: str) -> tuple[JobStatus, str, str, str]:
    ours = {
        container.NO_UPLOAD: (
            "ProviderError",
            "its model could not be written to the volume.",
            "The identity that runs needs WRITE VOLUME on it, and the machine room on its disk.",
        ),
        container.NO_PACKAGE: (
            "CredentialsError",
            "its package could not be read from the volume.",
            "The identity that runs needs READ VOLUME on it; `notebooked plan --policy` prints all.",
        ),
        container.NO_REQUIREMENTS: (
            "ConfigError",
            "the requirements cannot be installed on this compute; the log says which.",
            "Pin what exists for the runtime's Python, or name another: options.training.spark_version.",
        ),
    }
    kind, words, hint = ours.get(code, ("", error, ""))
    return JobStatus.FAILED, kind, words, hint


def _value(enumerated: Any) -> str:
    return str(getattr(enumerated, "value", enumerated or ""))


def _time(milliseconds: int | None) -> datetime | None:
    return datetime.fromtimestamp(milliseconds / 1000, UTC) if milliseconds else None


def _task(run: Any) -> Any:
    return run.tasks[0] if run.tasks else None


def _environment(run: Any) -> dict[str, str]:
    task = _task(run)
    parameters = (task.spark_python_task.parameters or []) if task and task.spark_python_task else []
    try:
        found = json.loads(parameters[1])
    except (IndexError, ValueError):
        return {}
    return dict(found) if isinstance(found, dict) else {}


def _facts(run: Any, prices: Mapping[str, float]) -> dict[str, str | float]:
    facts: dict[str, str | float] = {"run": str(run.run_id)}
    if run.run_page_url:
        facts["console"] = run.run_page_url
    task = _task(run)
    if task is None:
        return facts
    cluster = task.new_cluster
    spent = sum(getattr(task, f"{part}_duration") or 0 for part in ("setup", "execution", "cleanup"))
    if cluster is None:
        facts["instance"] = "serverless"
    else:
        facts["instance"] = (
            f"{(cluster.num_workers or 0) + 1} x {cluster.node_type_id or 'what the policy says'}"
        )
    if spent:
        facts["machine time (s)"] = float(math.ceil(spent / 1000))
        price = prices.get(cluster.node_type_id) if cluster is not None else None
        spot = cluster is not None and (
            cluster.aws_attributes or cluster.azure_attributes or cluster.gcp_attributes
        )
        # What a spot machine costs moves with the day.
        if price is not None and not spot:
            facts["cost (USD, estimated)"] = round(
                price * ((cluster.num_workers or 0) + 1) * math.ceil(spent / 1000) / 3600, 4
            )
    return facts
