"""``notebooked status``."""

from __future__ import annotations

from datetime import datetime
from typing import TYPE_CHECKING, Any

import click

from notebooked_dagster.errors import NotebookedError

from .options import session, shared_options
from .project import Project, stale_code

if TYPE_CHECKING:
    import dagster as dg

    from notebooked_dagster.components.spec import ExperimentSpec


@click.command("status")
@click.argument("experiment", required=False)
@shared_options
def status_command(experiment: str | None) -> None:
    """Show what each experiment has: its code, its newest model, its endpoint."""
    project = Project(session())
    chosen = [project.experiment(experiment)] if experiment else project.experiments()
    with project.instance() as instance:
        found = [_status(project, spec, instance) for spec in chosen]
    session().emit(found, lambda: _table(found))


def _status(project: Project, spec: ExperimentSpec, instance: dg.DagsterInstance) -> dict[str, Any]:
    found: dict[str, Any] = {"experiment": spec.config.name, "notebook": str(spec.notebook)}
    found["stale"] = stale_code(project, spec, instance)
    model = instance.get_latest_materialization_event(spec.key("model"))
    if model is not None and model.asset_materialization is not None:
        metadata = model.asset_materialization.metadata
        found["model"] = {
            name: metadata[name].value
            for name in ("model_uri", "metrics", "model_version", "job")
            if name in metadata
        }
        found["model"]["at"] = datetime.fromtimestamp(model.timestamp).isoformat(timespec="seconds")
        found["model"]["run_id"] = model.run_id
    if spec.config.endpoint.enabled:
        found["endpoint"] = _endpoint(project, spec)
    return found


def _endpoint(project: Project, spec: ExperimentSpec) -> dict[str, Any]:
    try:
        live = project.provider(spec.config.provider).endpoint(spec.config.endpoint_name)
    except NotebookedError as error:
        return {"status": "none", "message": error.message}
    champion = next((item.version for item in live.deployments if item.role == "champion"), None)
    return {"status": live.status.value, "url": live.url, "version": champion, "message": live.message}


def _table(found: list[dict[str, Any]]) -> str | None:
    if not found:
        return (
            "Nothing is declared. `notebooked init` writes assets/<name>/defs.yaml for notebooks that train."
        )
    from rich.table import Table

    table = Table("experiment", "code", "model", "metrics", "endpoint")
    for item in found:
        model = item.get("model", {})
        metrics = ", ".join(f"{name} {value:.4g}" for name, value in (model.get("metrics") or {}).items())
        endpoint = item.get("endpoint", {})
        shown = f"{endpoint.get('status', '-')} {endpoint.get('url', '')}".strip()
        table.add_row(
            item["experiment"], ", ".join(item["stale"]) + " stale" if item["stale"] else "fresh",
            model.get("at", "never trained"), metrics, shown,
        )  # fmt: skip
    session().console().print(table)
    return None
