"""An experiment as Dagster definitions: its assets, checks, job and schedule."""

from __future__ import annotations

from typing import Any

import dagster as dg
from dagster._check import CheckError
from dagster_shared.error import DagsterError

from notebooked_dagster.errors import ConfigError
from notebooked_dagster.resources import PROVIDER, TRACKING, ProviderResource, TrackingResource

from .code_assets import notebook_asset, scripts_asset
from .endpoint_asset import endpoint_asset, endpoint_checks
from .model_asset import model_asset
from .parity_check import parity_check
from .spec import ExperimentSpec

# One object each: definitions that are merged may share a resource only where it is the same one.
RESOURCES: dict[str, Any] = {PROVIDER: ProviderResource(), TRACKING: TrackingResource()}


def experiment_definitions(spec: ExperimentSpec) -> dg.Definitions:
    """Everything one experiment adds to a code location.

    Raises:
        ConfigError: Dagster does not take something of the declaration: a tag, a partition's name, a cron expression.
    """
    try:
        return _definitions(spec)
    except (DagsterError, CheckError, ValueError, TypeError) as problem:
        reason = " ".join(str(problem).split())
        raise ConfigError(
            f"Dagster does not take the declaration of {spec.config.name}: {reason}",
            path=spec.declared_in,
            hint="Correct the value it speaks of.",
        ) from problem


def _definitions(spec: ExperimentSpec) -> dg.Definitions:
    config = spec.config
    assets: list[Any] = [notebook_asset(spec), scripts_asset(spec), model_asset(spec)]
    checks: list[Any] = []
    job = experiment_job(spec)
    jobs = [job, training_job(spec)]
    if config.endpoint.enabled:
        assets.append(endpoint_asset(spec))
        checks.append(endpoint_checks(spec))
    if config.parity.enabled:
        checks.append(parity_check(spec))
        jobs.append(parity_job(spec))
    return dg.Definitions(
        assets=assets,
        asset_checks=checks,
        jobs=jobs,
        schedules=[experiment_schedule(spec, job)] if config.schedule is not None else [],
        resources=RESOURCES,
    )


def job_selection(spec: ExperimentSpec) -> dg.AssetSelection:
    """What the experiment's job runs: all of it but what is only done when asked for."""
    config = spec.config
    parts = ["notebook", "training_code", "inference_code", "model"]
    if config.endpoint.enabled and config.endpoint.auto_deploy:
        parts.append("endpoint")
    chosen: dg.AssetSelection = dg.AssetSelection.assets(*(spec.key(part) for part in parts))
    if config.parity.enabled and not config.parity.with_job:
        chosen = chosen - dg.AssetSelection.checks(dg.AssetCheckKey(spec.key("model"), "parity"))
    return chosen


def experiment_job(spec: ExperimentSpec) -> Any:
    """``<name>_job``."""
    return dg.define_asset_job(
        f"{spec.name}_job",
        selection=job_selection(spec),
        description=f"Notebook, scripts, model and endpoint of {spec.config.name}.",
        tags=spec.tags,
        executor_def=dg.in_process_executor
        if spec.config.executor == "in_process"
        else dg.multiprocess_executor,
    )


def training_job(spec: ExperimentSpec) -> Any:
    """``<name>_train_job``: up to the model, and nothing is deployed."""
    parts = ("notebook", "training_code", "inference_code", "model")
    chosen: dg.AssetSelection = dg.AssetSelection.assets(*(spec.key(part) for part in parts))
    if spec.config.parity.enabled:
        chosen = chosen - dg.AssetSelection.checks(dg.AssetCheckKey(spec.key("model"), "parity"))
    return dg.define_asset_job(
        f"{spec.name}_train_job",
        selection=chosen,
        description=f"Notebook, scripts and model of {spec.config.name}; deploys nothing.",
        tags=spec.tags,
        executor_def=dg.in_process_executor,
    )


def parity_job(spec: ExperimentSpec) -> Any:
    """``<name>_parity_job``: the one check that is slow, by itself."""
    return dg.define_asset_job(
        f"{spec.name}_parity_job",
        selection=dg.AssetSelection.checks(dg.AssetCheckKey(spec.key("model"), "parity")),
        description=f"Trains {spec.config.name} as the notebook does and as the script does, and compares.",
        tags=spec.tags,
        executor_def=dg.in_process_executor,
    )


def experiment_schedule(spec: ExperimentSpec, job: Any) -> Any:
    """The schedule of the declaration; of daily data, the day that has just ended."""
    asked = spec.config.schedule
    assert asked is not None
    status = dg.DefaultScheduleStatus.RUNNING if asked.running else dg.DefaultScheduleStatus.STOPPED
    name = f"{spec.name}_schedule"
    partitions = spec.partitions
    if partitions is None:
        return dg.ScheduleDefinition(
            name=name,
            job=job,
            cron_schedule=asked.cron,
            execution_timezone=asked.timezone,
            default_status=status,
        )

    @dg.schedule(
        name=name,
        job=job,
        cron_schedule=asked.cron,
        execution_timezone=asked.timezone,
        default_status=status,
    )
    def scheduled(context: dg.ScheduleEvaluationContext) -> Any:
        moment = context.scheduled_execution_time
        daily = isinstance(partitions, dg.TimeWindowPartitionsDefinition)
        keys = partitions.get_partition_keys(current_time=moment)
        if not keys:
            return dg.SkipReason("There is no partition yet.")
        return [
            dg.RunRequest(run_key=f"{moment.isoformat()}/{key}", partition_key=key)
            for key in (keys[-1:] if daily else keys)
        ]

    return scheduled
