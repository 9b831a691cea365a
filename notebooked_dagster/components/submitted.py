"""Training that nobody waits for: a run submits the job and ends, and a sensor makes the model when the job has ended.

What is open is in the tags of the runs that submitted, so that one query finds all of it, from any process that reaches the
instance; what a job was made from is in the observation its run left. A tag is closed only when the event it stands for is
seen in the event log: a daemon that dies between the two reports once more, and never forgets.
"""

import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import dagster as dg

from notebooked_dagster.errors import JobNotFoundError, NotebookedError
from notebooked_dagster.providers.base import BaseProvider, JobStatus
from notebooked_dagster.resources import TrackingResource, Workplace

from .model_asset import OPEN, OPEN_JOB, SUBMITTED, champion_metrics, gate_result, model_metadata
from .reporting import metadata_value
from .spec import ExperimentSpec

FAILED = "failed job"
# Dagster gives a sensor 60 s; what is not finished in one look is finished in the next.
_LONGEST_LOOK = 40.0
_LOOKED_BACK = 50


@dataclass(frozen=True, slots=True)
class Open:
    """A job that was submitted and not yet reported.

    Attributes:
        run_id: The run that submitted it.
        tag: The run's tag that says so.
        spec: Its experiment.
        provider: Where it runs.
        job_id: Its id there.
        partition: Of the model.
    """

    run_id: str
    tag: str
    spec: ExperimentSpec
    provider: str
    job_id: str
    partition: str | None


def training_jobs_sensor(
    place: Workplace, experiments: Sequence[ExperimentSpec], default_status: dg.DefaultSensorStatus
) -> dg.SensorDefinition:
    """Makes the models of the jobs that runs submitted without waiting."""
    by_name = {spec.name: spec for spec in experiments}

    def evaluate(context: dg.SensorEvaluationContext) -> Any:
        waiting = list(_open(context.instance, by_name))
        if not waiting:
            return dg.SkipReason("No training is waited for.")
        events: list[Any] = []
        notes: list[str] = []
        going_on = 0
        deadline = time.monotonic() + _LONGEST_LOOK
        for name in sorted({item.provider for item in waiting}):
            mine = [item for item in waiting if item.provider == name]
            try:
                provider = place.provider(name)
                # All that run cost one question; only those that have ended are asked for one by one.
                known = {job.id: job.status.finished for job in provider.list_jobs()}
            except NotebookedError as error:
                notes.append(f"{name}: {error}")
                continue
            for item in mine:
                if _reported(context.instance, item):
                    _close(context.instance, item)
                elif not known.get(item.job_id, True):
                    going_on += 1
                elif time.monotonic() < deadline:
                    events.extend(_events(provider, item, context.instance, notes))
        for note in notes:
            context.log.warning(note)
        return dg.SensorResult(
            asset_events=events,
            skip_reason=dg.SkipReason(" ".join([*notes, f"{going_on} training jobs run."])),
        )

    return dg.SensorDefinition(
        name="training_jobs",
        evaluation_fn=evaluate,
        minimum_interval_seconds=place.project.automation.interval,
        default_status=default_status,
        description="Looks at training jobs that runs submitted without waiting (`wait: false`), and makes their models.",
    )


def _open(instance: dg.DagsterInstance, by_name: Mapping[str, ExperimentSpec]) -> Iterator[Open]:
    for run in instance.get_runs(filters=dg.RunsFilter(tags={OPEN: "true"})):
        tags = [tag for tag in run.tags if tag.startswith(OPEN_JOB) and run.tags[tag]]
        if not tags:
            instance.add_run_tags(run.run_id, {OPEN: "false"})
        for tag in tags:
            name, _, partition = tag.removeprefix(OPEN_JOB).partition("/")
            provider, _, job_id = run.tags[tag].partition("/")
            if name in by_name:
                yield Open(run.run_id, tag, by_name[name], provider, job_id, partition or None)


def _close(instance: dg.DagsterInstance, item: Open) -> None:
    instance.add_run_tags(item.run_id, {item.tag: ""})


def _reported(instance: dg.DagsterInstance, item: Open) -> bool:
    key = item.spec.key("model")
    made = instance.fetch_materializations(key, limit=_LOOKED_BACK).records
    if any(metadata_value(record.asset_materialization, "job") == item.job_id for record in made):
        return True
    return any(text == item.job_id for text in _observed(instance, item, FAILED))


def _observed(instance: dg.DagsterInstance, item: Open, name: str) -> Iterator[Any]:
    for record in instance.fetch_observations(item.spec.key("model"), limit=_LOOKED_BACK).records:
        seen = record.event_log_entry.asset_observation
        if seen is not None and name in seen.metadata:
            yield seen.metadata[name].value


def _events(
    provider: BaseProvider, item: Open, instance: dg.DagsterInstance, notes: list[str]
) -> Iterator[Any]:
    """What a job that has ended is to the asset graph: a model and its gate's verdict, or a failure."""
    key = item.spec.key("model")
    try:
        job = provider.status(item.job_id)
    except JobNotFoundError as error:
        notes.append(f"Training of {item.spec.name} ({item.job_id}): {error}")
        yield _failure(item, str(error))
        return
    except NotebookedError as error:
        # The provider is out of reach; the next look may find it.
        notes.append(f"Training of {item.spec.name} ({item.job_id}): {error}")
        return
    if not job.status.finished:
        return
    if job.status is not JobStatus.SUCCEEDED:
        notes.append(f"Training of {item.spec.name} ({job.id}) is {job.status.value}: {job.message}")
        yield _failure(item, f"{job.message}\n{job.traceback}".strip())
        return
    page = TrackingResource().run_page(job.mlflow_run_id) if job.mlflow_run_id else None
    yield dg.AssetMaterialization(
        key,
        description=f"Trained by job {job.id}, which run {item.run_id} submitted.",
        partition=item.partition,
        metadata={**_made_from(instance, item), **model_metadata(job, page)},
        tags={"dagster/data_version": job.id},
    )
    if item.spec.config.metric_gate:
        champion = champion_metrics(item.spec, provider, item.partition)
        verdict = gate_result(item.spec, job.metrics, champion)
        yield dg.AssetCheckEvaluation(
            asset_key=key,
            check_name=str(verdict.check_name),
            passed=verdict.passed,
            metadata=verdict.metadata,
            description=verdict.description,
            blocking=True,
        )


def _failure(item: Open, text: str) -> dg.AssetObservation:
    return dg.AssetObservation(
        item.spec.key("model"),
        description=text[:4000] or "Training failed.",
        partition=item.partition,
        metadata={FAILED: item.job_id, "submitted by run": dg.MetadataValue.dagster_run(item.run_id)},
    )


def _made_from(instance: dg.DagsterInstance, item: Open) -> dict[str, Any]:
    """What the run that submitted the job wrote down of it."""
    for record in instance.fetch_observations(item.spec.key("model"), limit=_LOOKED_BACK).records:
        seen = record.event_log_entry.asset_observation
        if seen is not None and SUBMITTED in seen.metadata and seen.metadata[SUBMITTED].value == item.job_id:
            return {name: value for name, value in seen.metadata.items() if name not in (SUBMITTED, "run")}
    return {}
