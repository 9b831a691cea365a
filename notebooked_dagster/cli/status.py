"""``notebooked status``."""

from __future__ import annotations

import contextlib
import json
from datetime import datetime
from typing import TYPE_CHECKING, Any

import click

from notebooked_dagster.errors import EndpointNotFoundError, NotebookedError

from .options import session, shared_options
from .project import Project, stale_code
from .text import metrics_text

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
    import dagster as dg

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
        # When it was trained; a model that was kept has a later event.
        trained = metadata.get("trained")
        moment = trained.value if isinstance(trained, dg.TimestampMetadataValue) else model.timestamp
        found["model"]["at"] = datetime.fromtimestamp(moment).astimezone().isoformat(timespec="seconds")
        found["model"]["run_id"] = model.run_id
        found["model"]["partition"] = model.asset_materialization.partition
    if spec.config.endpoint.enabled:
        found["endpoints"] = [_endpoint(project, spec, instance, name) for name in spec.config.endpoint_names]
    return found


def _endpoint(
    project: Project, spec: ExperimentSpec, instance: dg.DagsterInstance, name: str
) -> dict[str, Any]:
    """An endpoint, and what of ours it serves."""
    from notebooked_dagster.components.endpoint_asset import newest_model
    from notebooked_dagster.components.reporting import metadata_value
    from notebooked_dagster.sensors.endpoints import served_by

    found: dict[str, Any] = {"name": name}
    partition = spec.config.partition_of(name)
    newest = newest_model(spec, instance, partition)
    try:
        live = project.provider(served_by(instance, spec.config, name)).endpoint(name)
    except EndpointNotFoundError as error:
        return {**found, "status": "none", "message": error.message}
    except NotebookedError as error:
        return {**found, "status": "unknown", "message": error.message}
    found |= {"status": live.status.value, "url": live.url, "version": None, "message": live.message}
    champion = next((item for item in live.deployments if item.role == "champion"), None)
    if champion is not None:
        found["version"] = champion.version
        found["model_uri"] = champion.model_uri
        with contextlib.suppress(ValueError):
            found["metrics"] = json.loads(champion.labels.get("metrics", "{}"))
        found["newest"] = champion.model_uri == metadata_value(newest, "model_uri") or (
            "job" in champion.labels and champion.labels["job"] == metadata_value(newest, "job")
        )
    return found


def _table(found: list[dict[str, Any]]) -> str | None:
    if not found:
        return (
            "Nothing is declared. `notebooked init` writes assets/<name>/defs.yaml for notebooks that train."
        )
    from rich.table import Table

    table = Table("experiment", "code", "newest model", "metrics", "endpoint", "serves")
    for item in found:
        model = item.get("model", {})
        code = ", ".join(item["stale"]) + " stale" if item["stale"] else "fresh"
        # Without the zone, which is this machine's.
        made = model["at"][:19] if model else "never trained"
        if model.get("partition"):
            made = f"{model['partition']}, {made}"
        first = (item["experiment"], code, made, metrics_text(model.get("metrics")))
        for number, endpoint in enumerate(item.get("endpoints") or [{}]):
            shown = f"{endpoint.get('status', '-')} {endpoint.get('url', '')}".strip()
            if len(item.get("endpoints", ())) > 1:
                shown = f"{endpoint['name']} {shown}"
            table.add_row(*(first if number == 0 else ("",) * len(first)), shown, _serves(endpoint))
    session().console().print(table)
    return None


def _serves(endpoint: dict[str, Any]) -> str:
    if endpoint.get("version") is None:
        return ""
    if endpoint.get("newest"):
        return f"version {endpoint['version']}"
    metrics = metrics_text(endpoint.get("metrics"))
    return f"version {endpoint['version']}, an older model" + (f" ({metrics})" if metrics else "")
