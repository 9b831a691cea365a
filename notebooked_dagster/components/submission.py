"""What a run leaves behind of a training: the job that a later attempt goes on with, and the one that nobody waits for.

Of the latter, the run writes down what it is about to submit *before* it does so: an observation with all that the model
will be made from, and a tag by which the sensor ``training_jobs`` finds it. A process that dies in between has submitted a
job whose idempotency token is written down, or none.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterator, Mapping
from typing import Any

import dagster as dg

from notebooked_dagster.errors import CapabilityError
from notebooked_dagster.providers.base import BaseProvider, Capability, Experiment, JobStatus

from .reporting import metadata_value
from .spec import ExperimentSpec

# Tags of a run whose jobs nobody waits for: whether there are any, and each by its experiment and partition.
OPEN = "notebooked/open_jobs"
OPEN_JOB = "notebooked/job/"
# Metadata of the observation.
TOKEN = "submission"
INPUTS = "input tags"
FINGERPRINT = "training fingerprint"
# By these a run is told that a daemon started, not a person.
_AUTOMATIC = (
    "dagster/from_automation_condition",
    "dagster/asset_evaluation_id",
    "dagster/sensor_name",
    "dagster/schedule_name",
)
_GENERATIONS = 10
# Seconds by which the clocks of machines, and of a cloud, may differ.
CLOCKS = 600.0


@dataclasses.dataclass(frozen=True, slots=True)
class Submission:
    """A training that was submitted, or was about to be, and is not reported yet.

    Attributes:
        run_id: The run that did.
        tag: The run's tag that says so.
        experiment: Its experiment, as Dagster takes the name.
        partition: Of the model.
        provider: Where it runs.
        token: The job's idempotency token.
        job_id: Its id at the provider; None where the run had no time to write it down.
        began_at: When the run began, in seconds since 1970.
        told: The tag's value.
    """

    run_id: str
    tag: str
    experiment: str
    partition: str | None
    provider: str
    token: str
    job_id: str | None
    began_at: float
    told: str = ""


def submit(
    spec: ExperimentSpec,
    context: dg.AssetExecutionContext,
    provider: BaseProvider,
    experiment: Experiment,
    partition: str | None,
    facts: Mapping[str, Any],
) -> None:
    """Start a training that the sensor ``training_jobs`` finishes.

    Args:
        spec: The experiment.
        context: Of the step.
        provider: Where it trains.
        experiment: What the provider is handed.
        partition: Of the model.
        facts: Metadata that the model will have: where it came from.

    Raises:
        CapabilityError: The provider trains only while somebody waits.
    """
    if Capability.TRAIN_NO_WAIT not in provider.capabilities:
        raise CapabilityError(
            f"Provider {provider.name!r} cannot train without somebody waiting.",
            key="wait",
            hint="Set `wait: true`.",
        )
    run_id, token = context.run.run_id, str(experiment.idempotency_token)
    going_on = _going_on(spec, context, partition, str(facts[FINGERPRINT]))
    if going_on is not None:
        context.log.info(
            "Run %s has submitted this very training already (job %s); it is not submitted twice.",
            going_on.run_id,
            going_on.job_id or going_on.token,
        )
        return
    context.log_event(
        dg.AssetObservation(
            spec.key("model"),
            description="Training is submitted; nobody waits for it.",
            partition=partition,
            metadata={
                **facts,
                TOKEN: token,
                INPUTS: dg.MetadataValue.json(_input_tags(spec, context.instance)),
                "provider": provider.name,
                "run": run_id,
            },
        )
    )
    tag = _tag(spec.name, partition)
    told = {"provider": provider.name, "token": token}
    context.instance.add_run_tags(run_id, {OPEN: "true", tag: json.dumps(told)})
    job = provider.train(experiment, wait=False)
    # Once more that there are any: a sensor that looked just before may have said that there are none.
    context.instance.add_run_tags(run_id, {OPEN: "true", tag: json.dumps({**told, "job": job.id})})
    context.log.info("Submitted %s; the sensor training_jobs makes the model when it has ended.", job.id)


def submissions(instance: dg.DagsterInstance) -> Iterator[Submission]:
    """What was submitted and is not reported yet, oldest first; one that several runs speak of is told once, of the first.

    A run that repeats another inherits its tags.
    """
    found: dict[tuple[str, str], Submission] = {}
    for record in reversed(instance.get_run_records(filters=dg.RunsFilter(tags={OPEN: "true"}))):
        run = record.dagster_run
        tags = [tag for tag in run.tags if tag.startswith(OPEN_JOB) and run.tags[tag]]
        if not tags:
            # A run that submits at this moment says so again once it has.
            instance.add_run_tags(run.run_id, {OPEN: "false"})
        for tag in tags:
            item = _item(instance, record, tag)
            if item is None:
                close(instance, run.run_id, tag, run.tags[tag])
                continue
            first = found.setdefault((item.provider, item.token), item)
            if first is not item:
                if first.job_id is None and item.job_id is not None:
                    found[item.provider, item.token] = dataclasses.replace(first, job_id=item.job_id)
                # One run speaks for it; the copy is not looked at again.
                close(instance, item.run_id, item.tag, run.tags[tag])
    yield from found.values()


def submission_of(
    instance: dg.DagsterInstance, run_id: str, experiment: str, partition: str | None
) -> Submission | None:
    """What a run has submitted of an experiment and left for the sensor; None where it waited, or it is reported."""
    record = instance.get_run_record_by_id(run_id)
    tag = _tag(experiment, partition)
    return _item(instance, record, tag) if record is not None and tag in record.dagster_run.tags else None


def _tag(experiment: str, partition: str | None) -> str:
    return f"{OPEN_JOB}{experiment}" + (f"/{partition}" if partition is not None else "")


def _item(instance: dg.DagsterInstance, record: dg.RunRecord, tag: str) -> Submission | None:
    told = _told(record.dagster_run.tags[tag])
    if told is None:
        return None
    name, _, partition = tag.removeprefix(OPEN_JOB).partition("/")
    return Submission(
        record.dagster_run.run_id,
        tag,
        name,
        partition or None,
        told["provider"],
        told["token"],
        told.get("job"),
        _began(instance, told["token"], record),
        record.dagster_run.tags[tag],
    )


def _began(instance: dg.DagsterInstance, token: str, record: dg.RunRecord) -> float:
    """When the run began that the token was made for; a run that repeats another may carry that one's."""
    first = token.partition("/")[0]
    found = instance.get_run_record_by_id(first) if first != record.dagster_run.run_id else record
    return _start(found or record)


def _start(record: dg.RunRecord) -> float:
    """When a run began. Not when it was made: that PostgreSQL writes down by the clock of its own time zone, as if it were UTC."""
    return record.start_time or record.create_timestamp.timestamp()


def _since(item: Submission) -> float:
    """After this is all that the event log has of a submission, whose machine's clock ever wrote it."""
    return item.began_at - CLOCKS


def close(instance: dg.DagsterInstance, run_id: str, tag: str, told: str) -> None:
    """Forget a submission, unless the run has submitted another since: a run that repeats one inherits that one's tag."""
    run = instance.get_run_by_id(run_id)
    before, now = _told(told), _told(run.tags.get(tag, "")) if run is not None else None
    if run is None or (now is not None and (before is None or now["token"] != before["token"])):
        return
    instance.add_run_tags(run_id, {tag: ""})


def _told(value: str) -> dict[str, str] | None:
    try:
        told = json.loads(value)
        return told if isinstance(told["provider"], str) and isinstance(told["token"], str) else None
    except (ValueError, TypeError, KeyError):
        return None


def made_from(
    instance: dg.DagsterInstance, spec: ExperimentSpec, item: Submission
) -> tuple[dict[str, Any], dict[str, str]]:
    """What the run that submitted wrote down: the model's metadata, and the tags by which Dagster knows its inputs."""
    records = instance.fetch_observations(
        dg.AssetRecordsFilter(asset_key=spec.key("model"), after_timestamp=_since(item)), limit=1000
    ).records
    for record in records:
        seen = record.event_log_entry.asset_observation
        if seen is not None and TOKEN in seen.metadata and seen.metadata[TOKEN].value == item.token:
            kept = {name: value for name, value in seen.metadata.items() if name not in (INPUTS, "run")}
            inputs = seen.metadata.get(INPUTS)
            return kept, dict(inputs.value) if isinstance(inputs, dg.JsonMetadataValue) else {}  # type: ignore[arg-type]
    return {}, {}


def _going_on(
    spec: ExperimentSpec, context: dg.AssetExecutionContext, partition: str | None, fingerprint: str
) -> Submission | None:
    """The open submission of the same training, where this run was asked for by a daemon.

    To Dagster a training that was submitted is neither under way nor done, so a condition or a sensor may ask again. A
    person who asks again wants it again.
    """
    run = context.run
    if not any(tag in run.tags for tag in _AUTOMATIC):
        return None
    for item in submissions(context.instance):
        if (item.experiment, item.partition) != (spec.name, partition) or item.run_id == run.run_id:
            continue
        facts, _ = made_from(context.instance, spec, item)
        if FINGERPRINT in facts and facts[FINGERPRINT].value == fingerprint:
            return item
    return None


def _input_tags(spec: ExperimentSpec, instance: dg.DagsterInstance) -> dict[str, str]:
    """As Dagster itself tags a materialization that a step makes: the version and the event of each input."""
    key = spec.key("training_code")
    record = instance.get_latest_data_version_record(key)
    if record is None:
        return {}
    name = key.to_user_string()
    tags = {f"dagster/input_event_pointer/{name}": str(record.storage_id)}
    event = record.asset_materialization
    version = (event.tags or {}).get("dagster/data_version") if event is not None else None
    return {**tags, f"dagster/input_data_version/{name}": version} if version is not None else tags


def taken_up(
    context: dg.AssetExecutionContext, provider: BaseProvider, experiment: Experiment, *, attempts: int
) -> Experiment:
    """Where an earlier attempt of this step left a job that runs (its process died, the network went), go on with that one.

    A job of an earlier attempt that succeeded is taken as it is, too; of the runs that this one repeats only one that runs:
    who repeats a run that has ended wants to train again.

    Args:
        context: Of the step.
        provider: Where it trains.
        experiment: What would be trained, with the token of this attempt.
        attempts: How many a step has.

    Returns:
        The experiment with the token of that job, or as it was.
    """
    run, rest = context.run, str(experiment.idempotency_token).partition("/")[2].rpartition("/")[0]
    earlier = [(run.run_id, number) for number in range(context.retry_number - 1, -1, -1)]
    for ancestor in _ancestors(context):
        earlier.extend((ancestor, number) for number in range(attempts - 1, -1, -1))
    for run_id, number in earlier:
        token = f"{run_id}/{rest}/{number}"
        job = provider.job_of(experiment.name, token)
        if job is None or (
            job.status.finished and (run_id != run.run_id or job.status is not JobStatus.SUCCEEDED)
        ):
            continue
        context.log.info("Job %s of an earlier attempt is %s; it is taken up.", job.id, job.status.value)
        return dataclasses.replace(experiment, idempotency_token=token)
    return experiment


def _ancestors(context: dg.AssetExecutionContext) -> Iterator[str]:
    """The runs that this one repeats, latest first."""
    run: dg.DagsterRun | None = context.run
    for _ in range(_GENERATIONS):
        if run is None or run.parent_run_id is None:
            return
        yield run.parent_run_id
        run = context.instance.get_run_by_id(run.parent_run_id)


def superseded(instance: dg.DagsterInstance, spec: ExperimentSpec, item: Submission) -> bool:
    """Whether a model of a later training is there already: one that took longer must not take its place."""
    records = instance.fetch_materializations(
        dg.AssetRecordsFilter(
            asset_key=spec.key("model"),
            asset_partitions=[item.partition] if item.partition is not None else None,
            after_timestamp=_since(item),
        ),
        limit=1000,
    ).records
    return any(_begun(instance, record) > item.began_at for record in records)


def model_record(
    instance: dg.DagsterInstance, spec: ExperimentSpec, item: Submission
) -> dg.EventLogRecord | None:
    """The model of this training in the event log; None where it is not there."""
    asked = dg.AssetRecordsFilter(asset_key=spec.key("model"), after_timestamp=_since(item))
    made = instance.fetch_materializations(asked, limit=1000).records
    return next((r for r in made if metadata_value(r.asset_materialization, TOKEN) == item.token), None)


def reported(
    instance: dg.DagsterInstance, spec: ExperimentSpec, item: Submission, names: tuple[str, ...]
) -> bool:
    """Whether an observation of this training, under one of the names, is in the event log."""
    asked = dg.AssetRecordsFilter(asset_key=spec.key("model"), after_timestamp=_since(item))
    for record in instance.fetch_observations(asked, limit=1000).records:
        seen = record.event_log_entry.asset_observation
        if seen is not None and any(
            name in seen.metadata and seen.metadata[name].value == item.token for name in names
        ):
            return True
    return False


def _begun(instance: dg.DagsterInstance, record: dg.EventLogRecord) -> float:
    """When the training behind a model was asked for."""
    submitted = metadata_value(record.asset_materialization, "submitted")
    if submitted is not None:
        return float(submitted)
    run = instance.get_run_record_by_id(record.run_id) if record.run_id else None
    return _start(run) if run is not None else 0.0
