"""``notebooked jobs``, ``logs`` and ``cancel``: training jobs, asked of the provider directly.

A job outlives the process that asked for it, so there has to be a way to it that needs no Dagster run.
"""

from __future__ import annotations

from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

import click

from notebooked_dagster.core.redaction import REDACTOR
from notebooked_dagster.errors import JobNotFoundError

from .options import session, shared_options
from .project import Project
from .text import metrics_text

if TYPE_CHECKING:
    from notebooked_dagster.providers.base import BaseProvider, TrainingJob

_PROVIDER = click.option(
    "--provider", help="Whose jobs; those of all providers the project uses where not given."
)


@click.command("jobs")
@click.argument("experiment", required=False)
@click.option("--running", is_flag=True, help="Only those that have not ended.")
@_PROVIDER
@shared_options
def jobs_command(experiment: str | None, running: bool, provider: str | None) -> None:
    """List training jobs, newest first."""
    project = Project(session())
    name = project.experiment(experiment).config.name if experiment is not None else None
    found = [
        job
        for source in project.providers(provider)
        for job in source.list_jobs(name)
        if not (running and job.status.finished)
    ]
    found.sort(key=lambda job: job.started_at or datetime.now(UTC), reverse=True)
    session().emit([as_data(job) for job in found], lambda: _table(found))


@click.command("logs")
@click.argument("name", metavar="JOB|EXPERIMENT|ENDPOINT")
@click.option("--follow", "-f", is_flag=True, help="Go on until the job has ended.")
@click.option("--endpoint", is_flag=True, help="What the server of an endpoint printed.")
@click.option("--version", help="Of the endpoint; the one that answers where not given.")
@_PROVIDER
@shared_options
def logs_command(name: str, follow: bool, endpoint: bool, version: str | None, provider: str | None) -> None:
    """Print what a training job printed, an experiment's newest one, or with --endpoint what a server did."""
    project = Project(session())
    if endpoint or version is not None:
        if follow:
            raise click.UsageError("--follow is for training jobs.")
        lines = project.provider_of_endpoint(name, provider).endpoint_logs(name, version)
        told = {"endpoint": name}
    else:
        source, job = _job(project, name, provider)
        lines = source.logs(job, follow=follow)
        told = {"job": job}
    # Of a job that runs they are as it printed them.
    masked = map(REDACTOR.redact, lines)
    if session().json:
        session().emit({**told, "lines": list(masked)}, lambda: None)
        return
    for line in masked:
        click.echo(line)


def _job(project: Project, name: str, provider: str | None) -> tuple[BaseProvider, str]:
    """The provider and the id of a job, or of the newest of an experiment."""
    spec = next((spec for spec in project.experiments() if name in (spec.name, spec.config.name)), None)
    if spec is None:
        return project.provider_of_job(name, provider), name
    newest = [
        (job.started_at or datetime.now(UTC), source, job.id)
        for source in project.providers(provider)
        for job in source.list_jobs(spec.config.name)[:1]
    ]
    if not newest:
        raise JobNotFoundError(
            f"Experiment {name!r} has no training job yet.",
            hint=f"`notebooked train {name}` starts one; `notebooked logs {name} --endpoint` shows its endpoint's log.",
        )
    _, found, job_id = max(newest, key=lambda item: item[0])
    return found, job_id


@click.command("cancel")
@click.argument("jobs", nargs=-1, required=True, metavar="JOB...")
@_PROVIDER
@shared_options
def cancel_command(jobs: tuple[str, ...], provider: str | None) -> None:
    """Stop training jobs and everything they started. One that has ended is left as it is."""
    project = Project(session())
    found = [project.provider_of_job(job, provider).cancel(job) for job in jobs]
    session().emit(
        [as_data(job) for job in found], lambda: "\n".join(f"{job.id}: {job.status.value}" for job in found)
    )


def as_data(job: TrainingJob) -> dict[str, Any]:
    """A training job as plain data."""
    return {
        "id": job.id,
        "experiment": job.experiment,
        "provider": job.provider,
        "status": job.status.value,
        "model_uri": job.model_uri,
        "metrics": dict(job.metrics),
        "mlflow_run_id": job.mlflow_run_id,
        "model_version": job.model_version,
        "exit_code": job.exit_code,
        "message": job.message,
        "started_at": job.started_at.isoformat() if job.started_at else None,
        "finished_at": job.finished_at.isoformat() if job.finished_at else None,
        "log": job.log,
    }


def _table(found: list[TrainingJob]) -> str | None:
    if not found:
        return "There is none. `notebooked train EXPERIMENT` starts one."
    from rich.table import Table

    table = Table("job", "status", "started", "metrics", "message")
    for job in found:
        started = job.started_at.astimezone().isoformat(" ", "seconds")[:19] if job.started_at else "-"
        table.add_row(job.id, job.status.value, started, metrics_text(job.metrics), job.message)
    session().console().print(table)
    return None
