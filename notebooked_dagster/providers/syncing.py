"""Bring MLflow up to date with jobs that ended while it was away, or that were killed with their runner."""

from __future__ import annotations

from pathlib import Path

from notebooked_dagster.errors import ConfigError, ProviderError

from . import jobs
from .jobs import JobRecord
from .run_tracking import RunTracking, run_status


def needs_end(record: JobRecord) -> bool:
    """Whether a finished job's run may still be open on the server."""
    run_id = record.tracking.run_id
    return run_id is not None and record.status.finished and not record.tracking.complete


def end(folder: Path, record: JobRecord, uri: str | None) -> None:
    """End the run of a job that is over."""
    from notebooked_dagster.tracking import Tracking

    tracking = Tracking(_uri(record, uri), record.experiment)
    assert record.tracking.run_id is not None
    tracking.end_run(record.tracking.run_id, run_status(record.status), end_time=record.finished_at)
    record.tracking.complete = True
    jobs.write(folder, record)


def sync(folder: Path, record: JobRecord, uri: str | None) -> None:
    """Send everything of a finished job: params, metrics, scripts, model; make the run where there is none."""
    if not record.status.finished:
        raise ProviderError(f"Training job {record.id!r} has not finished.", hint="Sync it when it has.")
    if record.tracking.complete:
        return
    spec = jobs.read_spec(folder).model_copy(update={"tracking_required": True})
    record.tracking.warnings.clear()
    job = RunTracking(record, spec, folder, _uri(record, uri), say=lambda text: None)
    job.attach(record.tracking.run_id)
    job.finish(record.status)
    jobs.write(folder, record)


def _uri(record: JobRecord, uri: str | None) -> str:
    chosen = uri or record.tracking.uri
    if chosen is None:
        raise ConfigError(
            f"Training job {record.id!r} ran without tracking.",
            key="tracking_uri",
            hint="Give the provider a tracking_uri to send it to.",
        )
    return chosen
