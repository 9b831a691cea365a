"""The sensors that look after what is running: endpoints that are not healthy, and what nobody declares any more."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import dagster as dg
import orjson

from notebooked_dagster.errors import CapabilityError, EndpointNotFoundError, NotebookedError
from notebooked_dagster.providers.base import BaseProvider, EndpointStatus
from notebooked_dagster.resources import Workplace

from .watch import Watched

_WELL = (EndpointStatus.HEALTHY, EndpointStatus.CREATING)


def endpoint_health_sensor(
    place: Workplace, experiments: Sequence[Watched], default_status: dg.DefaultSensorStatus
) -> dg.SensorDefinition:
    """Endpoints that are down are brought back; each change of health is an evaluation of the check."""
    served = [item for item in experiments if item.config.endpoint.enabled]

    def evaluate(context: dg.SensorEvaluationContext) -> Any:
        before: dict[str, str] = orjson.loads(context.cursor) if context.cursor else {}
        now: dict[str, str] = {}
        events: list[dg.AssetCheckEvaluation] = []
        notes: list[str] = []
        for item in served:
            if item.config.partitions is not None and item.config.partitions.datasets:
                names = [f"{item.config.endpoint_name}-{name}" for name in item.config.partitions.datasets]
            else:
                names = [item.config.endpoint_name]
            found = [text for name in names if (text := _looked_after(place, item, name, notes)) is not None]
            if not found:
                continue
            status = next((text for text in found if not text.startswith("healthy")), found[0])
            now[item.name] = status
            if before.get(item.name) != status:
                events.append(_evaluation(item, status))
        for note in notes:
            context.log.warning(note)
        return dg.SensorResult(
            asset_events=events,
            skip_reason=dg.SkipReason(" ".join(notes) or f"{len(now)} endpoints, nothing changed."),
            cursor=orjson.dumps(now).decode(),
        )

    return dg.SensorDefinition(
        name="endpoint_health",
        evaluation_fn=evaluate,
        minimum_interval_seconds=place.project.automation.health_interval,
        default_status=default_status,
        description="Asks every declared endpoint whether it is healthy, and brings it back where it is not.",
    )


def _looked_after(place: Workplace, item: Watched, name: str, notes: list[str]) -> str | None:
    """The status of an endpoint after trying to mend it; None where there is none yet."""
    try:
        provider = place.provider(item.config.provider)
        live = provider.endpoint(name)
        if live.status not in _WELL:
            notes.append(
                f"{name} is {live.status.value} ({live.message or 'no reason given'}); bringing it back."
            )
            live = provider.ensure(name)
        return f"{live.status.value} {live.message}".strip()
    except EndpointNotFoundError:
        return None
    except CapabilityError as error:
        return f"unknown: {error.message}"
    except (NotebookedError, OSError) as error:
        # One broken endpoint must not keep the others from being looked at.
        notes.append(f"{name}: {error}")
        return f"failed: {getattr(error, 'message', error)}"


def _evaluation(item: Watched, status: str) -> dg.AssetCheckEvaluation:
    return dg.AssetCheckEvaluation(
        asset_key=dg.AssetKey([item.name, "endpoint"]),
        check_name="endpoint_health",
        passed=status.startswith("healthy"),
        description=status,
        metadata={"seen by": "sensor endpoint_health"},
    )


def orphan_sensor(
    place: Workplace, experiments: Sequence[Watched], default_status: dg.DefaultSensorStatus
) -> dg.SensorDefinition:
    """What runs and nobody declares is named, and removed where the project says so; stale MLflow runs are ended."""
    remove = place.project.automation.delete_orphans

    def evaluate(context: dg.SensorEvaluationContext) -> Any:
        notes: list[str] = []
        for name in sorted({item.config.provider for item in experiments} | {"local"}):
            try:
                notes.extend(orphans(place.provider(name), experiments, remove))
            except CapabilityError:
                continue
            except (NotebookedError, OSError) as error:
                notes.append(f"{name}: {error}")
        for note in notes:
            context.log.warning(note)
        return dg.SkipReason(" ".join(notes) or "Nothing is left over.")

    return dg.SensorDefinition(
        name="orphans",
        evaluation_fn=evaluate,
        minimum_interval_seconds=3600,
        default_status=default_status,
        description=(
            "Looks for endpoints of experiments that are no longer declared and for MLflow runs whose training died. "
            + (
                "Removes the endpoints."
                if remove
                else "Names the endpoints; `automation.delete_orphans` removes them."
            )
        ),
    )


def orphans(provider: BaseProvider, experiments: Sequence[Watched], remove: bool) -> list[str]:
    """Sentences on what was left over, and on what was done about it.

    An endpoint is ours to remove only where every deployment says that a Dagster run made it.
    """
    declared = set()
    for item in experiments:
        declared.add(item.config.endpoint_name)
        if item.config.partitions is not None:
            declared.update(f"{item.config.endpoint_name}-{name}" for name in item.config.partitions.datasets)
    notes = []
    for endpoint in provider.list_endpoints():
        by_us = endpoint.deployments and all("dagster_run" in item.labels for item in endpoint.deployments)
        if endpoint.name in declared or not by_us:
            continue
        if remove:
            notes.append(f"Endpoint {endpoint.name} is declared nowhere; removed.")
            notes.extend(provider.delete_endpoint(endpoint.name))
        else:
            notes.append(
                f"Endpoint {endpoint.name} is declared nowhere; `notebooked delete-endpoint {endpoint.name}`."
            )
    reconcile = getattr(provider, "reconcile", None)
    if reconcile is not None:
        notes.extend(f"The MLflow run of the dead job {job} was ended." for job in reconcile())
    return notes
