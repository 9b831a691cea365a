"""The sensors that look after what is running: endpoints that are not healthy, and what nobody declares any more."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from typing import Any

import dagster as dg
import orjson

from notebooked_dagster.config import ExperimentConfig
from notebooked_dagster.core.redaction import REDACTOR
from notebooked_dagster.errors import CapabilityError, EndpointNotFoundError, NotebookedError
from notebooked_dagster.providers.base import BaseProvider, EndpointStatus
from notebooked_dagster.providers.registry import same_provider
from notebooked_dagster.resources import PROVIDER, ProviderResource, Workplace

from .watch import Watched

_WELL = (EndpointStatus.HEALTHY, EndpointStatus.CREATING)
# Dagster gives a sensor 60 s; who is not looked at in one tick is in the next.
# A look that begins in time may take as long again as a provider takes to answer.
_LONGEST_LOOK = 20.0
_LONGEST_MENDING = 10.0
_NO_TIME = "no time left"


def endpoint_health_sensor(
    place: Workplace, experiments: Sequence[Watched], default_status: dg.DefaultSensorStatus
) -> dg.SensorDefinition:
    """Endpoints that are down are brought back; each change of health is an evaluation of the check."""
    served = [item for item in experiments if item.config.endpoint.enabled]

    def evaluate(context: dg.SensorEvaluationContext) -> Any:
        # In the order of the last looks; None where nothing was deployed.
        before: dict[str, str | None] = orjson.loads(context.cursor) if context.cursor else {}
        places = {name: place for place, name in enumerate(before)}
        asked = [(item, name) for item in served for name in item.config.endpoint_names]
        # Who was left out for want of time comes first, before those whose last look was longer ago than others'.
        asked.sort(key=lambda pair: places.get(pair[1], -1))
        left: dict[str, str | None] = {}
        now: dict[str, str | None] = {}
        round_ = _Round(context.instance, getattr(context.resources, PROVIDER))
        for item, name in asked:
            seen = round_.look_after(item, name)
            if seen is _NO_TIME:
                left[name] = before.get(name)
            else:
                # Neither well nor ill yet: as it was.
                starts = (seen or "").startswith(EndpointStatus.CREATING.value)
                now[name] = before.get(name) if starts else seen
        now = left | now
        events: list[dg.AssetCheckEvaluation] = []
        for item in served:
            status = _worst(now, item)
            if status is not None and status != _worst(before, item):
                events.append(_evaluation(item, status))
        for note in round_.notes:
            context.log.warning(note)
        deployed = sum(status is not None for status in now.values())
        return dg.SensorResult(
            asset_events=events,
            skip_reason=dg.SkipReason(" ".join(round_.notes) or f"{deployed} endpoints, nothing changed."),
            cursor=orjson.dumps(now).decode(),
        )

    return dg.SensorDefinition(
        name="endpoint_health",
        evaluation_fn=evaluate,
        minimum_interval_seconds=place.project.automation.health_interval,
        default_status=default_status,
        required_resource_keys={PROVIDER},
        description="Asks every declared endpoint whether it is healthy, and brings it back where it is not.",
    )


class _Round:
    """One look at all endpoints, within the time that a sensor has."""

    def __init__(self, instance: dg.DagsterInstance, providers: ProviderResource) -> None:
        self.notes: list[str] = []
        self._instance = instance
        self._providers = providers
        self._deadline = time.monotonic() + _LONGEST_LOOK

    def look_after(self, item: Watched, name: str) -> str | None:
        """The status of an endpoint after trying to mend it; None where there is none yet, or no time is left."""
        left = self._deadline - time.monotonic()
        if left <= 0:
            self.notes.append(f"{name} is looked at in the next round.")
            return _NO_TIME
        try:
            provider = self._providers.get(served_by(self._instance, item.config, name))
            live = provider.endpoint(name)
            if live.status not in _WELL:
                self.notes.append(
                    f"{name} is {live.status.value} ({live.message or 'no reason given'}); bringing it back."
                )
                live = provider.ensure(name, patience=min(left, _LONGEST_MENDING))
            return f"{live.status.value} {live.message}".strip()
        except EndpointNotFoundError:
            return None
        except CapabilityError as error:
            return f"unknown: {error.message}"
        except (NotebookedError, OSError) as error:
            # One broken endpoint must not keep the others from being looked at.
            self.notes.append(REDACTOR.redact(f"{name}: {error}"))
            return REDACTOR.redact(f"failed: {getattr(error, 'message', error)}")


def served_by(instance: dg.DagsterInstance, config: ExperimentConfig, name: str) -> str:
    """The provider that an endpoint was last deployed to, which may be another than the declared one."""
    partition = config.partition_of(name)
    asked = dg.AssetRecordsFilter(
        asset_key=dg.AssetKey([config.key, "endpoint"]),
        asset_partitions=[partition] if partition is not None else None,
    )
    records = instance.fetch_materializations(asked, limit=1).records
    made = records[0].asset_materialization if records else None
    told = made.metadata.get("provider") if made is not None else None
    return str(told.value) if told is not None else config.provider


def _worst(seen: Mapping[str, str | None], item: Watched) -> str | None:
    """The status of an experiment's endpoints: of the first that is not healthy, where there is one."""
    statuses = [text for name in item.config.endpoint_names if (text := seen.get(name)) is not None]
    return next((text for text in statuses if not text.startswith("healthy")), next(iter(statuses), None))


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
        providers: ProviderResource = getattr(context.resources, PROVIDER)
        serving = {
            name: served_by(context.instance, item.config, name)
            for item in experiments
            for name in item.config.endpoint_names
        }
        asked = {item.config.provider for item in experiments} | {"local", *serving.values()}
        for name in [providers.only] if providers.only else sorted(asked):
            try:
                found = orphans(providers.get(name), experiments, remove, place.project_id, serving)
                notes.extend(found)
            except CapabilityError:
                continue
            except (NotebookedError, OSError) as error:
                notes.append(REDACTOR.redact(f"{name}: {error}"))
        for note in notes:
            context.log.warning(note)
        return dg.SkipReason(" ".join(notes) or "Nothing is left over.")

    return dg.SensorDefinition(
        name="orphans",
        evaluation_fn=evaluate,
        minimum_interval_seconds=3600,
        default_status=default_status,
        required_resource_keys={PROVIDER},
        description=(
            "Looks for endpoints of experiments that are no longer declared and for MLflow runs whose training died. "
            + (
                "Removes the endpoints."
                if remove
                else "Names the endpoints; `automation.delete_orphans` removes them."
            )
        ),
    )


def orphans(
    provider: BaseProvider,
    experiments: Sequence[Watched],
    remove: bool,
    project: str,
    serving: Mapping[str, str] | None = None,
) -> list[str]:
    """Sentences on what was left over, and on what was done about it.

    An endpoint is declared at the provider that its declaration names, and at the one that serves it until it has moved
    there (``serving``: provider by endpoint).

    An endpoint is ours to remove only where every deployment says that a Dagster run of this very project made it: an
    account of a cloud has room for more than one.
    """
    declared = {
        name
        for item in experiments
        for name in item.config.endpoint_names
        if provider.name == (serving or {}).get(name) or same_provider(provider.name, item.config.provider)
    }
    notes = []
    for endpoint in provider.list_endpoints():
        ours = endpoint.deployments and all(
            "dagster_run" in item.labels and item.labels.get("project") == project
            for item in endpoint.deployments
        )
        if endpoint.name in declared or not ours:
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
