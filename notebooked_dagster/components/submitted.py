"""Training that nobody waits for: a run submits the job and ends, and a sensor makes the model when the job has ended.

What is open is in the tags of the runs that submitted, so that one query finds all of it, from any process that reaches the
instance; what a job was made from is in the observation its run left (``submission``). A tag is closed only when the event it
stands for is seen in the event log: a daemon that dies between the two reports once more, and never forgets.
"""

import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent import futures
from datetime import UTC, datetime
from functools import partial
from typing import Any

import dagster as dg
from dagster._core.definitions.asset_checks.asset_check_evaluation import (
    AssetCheckEvaluationTargetMaterializationData,
)

from notebooked_dagster.core.redaction import REDACTOR
from notebooked_dagster.errors import JobNotFoundError, NotebookedError
from notebooked_dagster.providers.base import BaseProvider, JobStatus, TrainingJob
from notebooked_dagster.resources import PROVIDER, TRACKING, ProviderResource, TrackingResource

from .gate import GATE, champion_metrics, gate_result
from .model_asset import model_metadata
from .pipes import log_of, silent, told_by
from .reporting import metadata_value
from .spec import ExperimentSpec
from .submission import CLOCKS, Submission, close, made_from, model_record, reported, submissions, superseded

FAILED = "failed job"
SUPERSEDED = "superseded job"
# Dagster gives a sensor 60 s; what is not finished in one look is finished in the next.
_LONGEST_LOOK = 40.0
_LOOKED_BACK = 200


def training_jobs_sensor(
    experiments: Sequence[ExperimentSpec], interval: int, default_status: dg.DefaultSensorStatus
) -> dg.SensorDefinition:
    """Makes the models of the jobs that runs submitted without waiting.

    Args:
        experiments: Whose jobs.
        interval: Seconds between two looks, at the least.
        default_status: Whether it is on without anybody switching it on.
    """
    by_name = {spec.name: spec for spec in experiments}
    answers = _Answers()

    def evaluate(context: dg.SensorEvaluationContext) -> Any:
        waiting = [item for item in submissions(context.instance) if item.experiment in by_name]
        if not waiting:
            return dg.SkipReason("No training is waited for.")
        providers: ProviderResource = getattr(context.resources, PROVIDER)
        look = _Look(context.instance, getattr(context.resources, TRACKING), answers)
        for name in sorted({item.provider for item in waiting}):
            mine = [item for item in waiting if item.provider == name]
            look.at(name, providers, mine, by_name)
        for note in look.notes:
            context.log.warning(REDACTOR.redact(note))
        return dg.SensorResult(
            asset_events=look.events,
            skip_reason=dg.SkipReason(look.told()),
        )

    return dg.SensorDefinition(
        name="training_jobs",
        evaluation_fn=evaluate,
        minimum_interval_seconds=interval,
        default_status=default_status,
        required_resource_keys={PROVIDER, TRACKING},
        description="Looks at training jobs that runs submitted without waiting (`wait: false`), and makes their models.",
    )


class _Answers:
    """What has become of jobs, asked in threads of their own: who is told that a job has ended also brings its model home.

    That may take longer than a tick: a question that is open then is not asked again, and a later tick has its answer. What
    a process had open that ended is asked anew by the next.
    """

    def __init__(self) -> None:
        self._open: dict[str, futures.Future[TrainingJob | None]] = {}

    def of(
        self, token: str, ask: Callable[[], TrainingJob | None], patience: float
    ) -> futures.Future[TrainingJob | None] | None:
        """The answer; None while there is none. A question that was open before is not waited for."""
        future = self._open.get(token)
        if future is None:
            future = self._open[token] = futures.Future()
            threading.Thread(target=_answer, args=(future, ask), daemon=True).start()
            futures.wait([future], timeout=patience)
        return self._open.pop(token) if future.done() else None


def _answer(future: futures.Future[TrainingJob | None], ask: Callable[[], TrainingJob | None]) -> None:
    try:
        future.set_result(ask())
    except BaseException as error:
        future.set_exception(error)


class _Look:
    """One look at everything that was submitted."""

    def __init__(self, instance: dg.DagsterInstance, tracking: TrackingResource, answers: _Answers) -> None:
        self.events: list[Any] = []
        self.notes: list[str] = []
        self.going_on = 0
        self._instance = instance
        self._tracking = tracking
        self._answers = answers
        self._deadline = time.monotonic() + _LONGEST_LOOK

    def at(
        self,
        name: str,
        providers: ProviderResource,
        items: Sequence[Submission],
        by_name: Mapping[str, ExperimentSpec],
    ) -> None:
        """Look at what one provider was asked for."""
        try:
            provider = providers.get(name)
            # All that run cost one question; only those that have ended are asked for one by one.
            since = datetime.fromtimestamp(min(item.began_at for item in items) - CLOCKS, UTC)
            known = provider.states(since)
        except (NotebookedError, OSError) as error:
            self.notes.append(f"{name}: {error}")
            return
        for item in items:
            spec = by_name[item.experiment]
            if item.job_id in known and not known[item.job_id].finished:
                # What runs has left nothing in the event log yet: most of what waits costs no query.
                self.going_on += 1
                continue
            model = model_record(self._instance, spec, item)
            if model is not None and self._unjudged(spec, model):
                self._judge(provider, spec, item, model)
            elif model is not None or reported(self._instance, spec, item, (FAILED, SUPERSEDED)):
                close(self._instance, item.run_id, item.tag, item.told)
            elif time.monotonic() < self._deadline:
                try:
                    self.events.extend(self._events(provider, spec, item))
                except (NotebookedError, OSError) as error:
                    # Out of reach, or no room on the disk; the next look may do.
                    self.notes.append(f"Training of {item.experiment} ({item.job_id or item.token}): {error}")
            else:
                self.going_on += 1

    def told(self) -> str:
        """The look in a line."""
        made = sum(isinstance(event, dg.AssetMaterialization) for event in self.events)
        models = [f"{made} model{'s' if made > 1 else ''} made."] if made else []
        return REDACTOR.redact(" ".join([*self.notes, *models, f"{self.going_on} training jobs run."]))

    def _job(self, provider: BaseProvider, spec: ExperimentSpec, item: Submission) -> TrainingJob | None:
        """The job now; None where there is none to tell yet. Raises JobNotFoundError where there will be none."""
        ask: Callable[[], TrainingJob | None] = (
            partial(provider.status, item.job_id)
            if item.job_id is not None
            else partial(provider.job_of, spec.config.name, item.token)
        )
        answer = self._answers.of(item.token, ask, self._deadline - time.monotonic())
        if answer is None:
            return None
        job = answer.result()
        run = self._instance.get_run_by_id(item.run_id)
        if job is None and (run is None or run.is_finished):
            raise JobNotFoundError(f"Run {item.run_id} ended before it had submitted the training.")
        return job

    def _events(self, provider: BaseProvider, spec: ExperimentSpec, item: Submission) -> Iterator[Any]:
        """What a job that has ended is to the asset graph: a model and its gate's verdict, or a failure."""
        try:
            job = self._job(provider, spec, item)
        except JobNotFoundError as error:
            self.notes.append(f"Training of {spec.name}: {error}")
            yield _observation(spec, item, FAILED, str(error))
            return
        if job is None or not job.status.finished:
            self.going_on += 1
            return
        told = told_by(spec, provider, job.id, log_of(self._instance, item.run_id))
        if job.status is not JobStatus.SUCCEEDED:
            if told is not None:
                told.say_checks()
            self.notes.append(f"Training of {spec.name} ({job.id}) is {job.status.value}: {job.message}")
            yield _observation(spec, item, FAILED, f"{job.message}\n{job.traceback}".strip())
            return
        if superseded(self._instance, spec, item):
            text = f"Job {job.id} has ended, but a model that was asked for later is there already."
            self.notes.append(f"Training of {spec.name}: {text}")
            yield _observation(spec, item, SUPERSEDED, text)
            return
        page = self._tracking.run_page(job.mlflow_run_id) if job.mlflow_run_id else None
        facts, inputs = made_from(self._instance, spec, item)
        yield dg.AssetMaterialization(
            spec.key("model"),
            description=f"Trained by job {job.id}, which run {item.run_id} submitted.",
            partition=item.partition,
            metadata={
                **(told.metadata if told is not None else {}),
                **facts,
                **model_metadata(job, page),
                "submitted": dg.MetadataValue.timestamp(item.began_at),
                "submitted by run": dg.MetadataValue.dagster_run(item.run_id),
            },
            tags={
                **inputs,
                "dagster/data_version": job.id,
                "dagster/data_version_is_user_provided": "true",
            },
        )

    def _unjudged(self, spec: ExperimentSpec, model: dg.EventLogRecord) -> bool:
        """Whether no check of this very model is in the log yet; checks come after it, because they name its event."""
        names = {check.name for check in spec.config.pipes.checks}
        if spec.config.metric_gate:
            names.add(GATE)
        for name in names:
            history = self._instance.event_log_storage.get_asset_check_execution_history(
                dg.AssetCheckKey(spec.key("model"), name), limit=_LOOKED_BACK
            )
            for record in history:
                found = record.evaluation
                target = (
                    found.target_materialization_data if isinstance(found, dg.AssetCheckEvaluation) else None
                )
                if target is not None and target.storage_id == model.storage_id:
                    return False
        return bool(names)

    def _judge(
        self, provider: BaseProvider, spec: ExperimentSpec, item: Submission, model: dg.EventLogRecord
    ) -> None:
        """The checks of a model that is in the log: its gate's verdict, and what the training reported itself."""
        job_id = str(metadata_value(model.asset_materialization, "job"))
        try:
            metrics = metadata_value(model.asset_materialization, "metrics") or {}
            # Its lines were said with the model.
            told = told_by(spec, provider, job_id, silent)
            verdicts = told.checks() if told is not None else []
            if spec.config.metric_gate:
                champion = champion_metrics(spec, provider, item.partition)
                verdicts.append(gate_result(spec, metrics, champion))
        except JobNotFoundError as error:
            self.notes.append(f"Training of {spec.name}: {error}")
            close(self._instance, item.run_id, item.tag, item.told)
            return
        except (NotebookedError, OSError) as error:
            self.notes.append(f"Training of {spec.name} ({job_id}): {error}")
            return
        blocking = {check.name for check in spec.config.pipes.checks if check.blocking} | {GATE}
        self.events.extend(
            dg.AssetCheckEvaluation(
                asset_key=spec.key("model"),
                check_name=str(verdict.check_name),
                passed=verdict.passed,
                metadata=verdict.metadata or {},
                severity=verdict.severity,
                description=verdict.description,
                blocking=str(verdict.check_name) in blocking,
                partition=item.partition,
                # By this Dagster knows that the model it has now is the one that was judged.
                target_materialization_data=AssetCheckEvaluationTargetMaterializationData(
                    storage_id=model.storage_id, run_id=model.run_id, timestamp=model.timestamp
                ),
            )
            for verdict in verdicts
        )
        if not verdicts:
            close(self._instance, item.run_id, item.tag, item.told)


def _observation(spec: ExperimentSpec, item: Submission, name: str, text: str) -> dg.AssetObservation:
    return dg.AssetObservation(
        spec.key("model"),
        description=REDACTOR.redact(text)[:4000] or "Training failed.",
        partition=item.partition,
        metadata={
            name: item.token,
            "job": item.job_id or "none",
            "submitted by run": dg.MetadataValue.dagster_run(item.run_id),
        },
    )
