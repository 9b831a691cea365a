"""Dagster sensors: notebook changes, endpoint health, orphans."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import dagster as dg

from notebooked_dagster.resources import Workplace

from .endpoints import endpoint_health_sensor, orphan_sensor
from .notebook_changes import notebook_changes_sensor
from .watch import Watched

__all__ = ["Watched", "project_sensors"]


def project_sensors(place: Workplace, experiments: Sequence[Watched], jobs: Mapping[str, Any]) -> list[Any]:
    """All sensors of a project; ``jobs`` are those of its experiments, by name.

    They are off until somebody switches them on, in the UI or with ``automation.sensors: running``: training may cost
    money, and nobody wants six of them for opening the UI. Only the look at the endpoints is on: it starts nothing
    that was not deployed on purpose.
    """
    if not experiments:
        return []
    running, stopped = dg.DefaultSensorStatus.RUNNING, dg.DefaultSensorStatus.STOPPED
    status = running if place.project.automation.sensors == "running" else stopped
    found: list[Any] = [
        endpoint_health_sensor(place, experiments, running),
        orphan_sensor(place, experiments, status),
    ]
    automatic = [item for item in experiments if item.config.automation]
    if automatic:
        found.append(notebook_changes_sensor(place, automatic, jobs, status))
        found.append(
            dg.AutomationConditionSensorDefinition(
                "experiment_automation",
                target=dg.AssetSelection.groups(*(item.name for item in automatic)),
                minimum_interval_seconds=place.project.automation.interval,
                default_status=status,
                description="Asks for what is made from something that means something else than before.",
            )
        )
    return found
