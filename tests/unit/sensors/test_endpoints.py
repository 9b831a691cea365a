"""Endpoints that nobody declares, and where; and whose turn it is to be looked at."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from types import SimpleNamespace

import dagster as dg
import pytest

from notebooked_dagster.config import ExperimentConfig
from notebooked_dagster.providers.base import Deployment, Endpoint, EndpointStatus
from notebooked_dagster.resources import PROVIDER, ProviderResource, Workplace
from notebooked_dagster.sensors import Watched, endpoints
from notebooked_dagster.sensors.endpoints import endpoint_health_sensor, orphans


def serving(*names: str) -> SimpleNamespace:
    """A provider ``local`` that serves what a run of the project ``ours`` deployed."""
    labels = {"dagster_run": "1", "project": "ours"}
    made = (Deployment("1", "m", 100, "champion", EndpointStatus.HEALTHY, labels=labels),)
    found = [Endpoint(name, "local", "", EndpointStatus.HEALTHY, made) for name in names]
    return SimpleNamespace(name="local", list_endpoints=lambda: found, reconcile=list)


def experiment(provider: str) -> Watched:
    return Watched(
        ExperimentConfig(name="iris", notebook="iris.ipynb", provider=provider), Path("iris.ipynb")
    )


@pytest.mark.parametrize(
    ("declared", "served", "left"),
    [
        ("local", None, False),
        # It has moved, and what served before still does.
        ("sagemaker", "sagemaker", True),
        # It is to move, and nothing serves there yet.
        ("sagemaker", "local", False),
    ],
)
def test_an_endpoint_is_declared_where_it_is_and_where_it_is_to_be(
    declared: str, served: str | None, left: bool
) -> None:
    told = {"iris": served} if served is not None else {}
    notes = orphans(serving("iris"), [experiment(declared)], False, "ours", told)  # type: ignore[arg-type]
    assert bool(notes) is left


def test_each_endpoint_has_its_turn_where_a_tick_has_no_time_for_all(monkeypatch: pytest.MonkeyPatch) -> None:
    looked: list[str] = []

    class Round:
        def __init__(self, *_: object) -> None:
            self.notes: list[str] = []
            self.left = 2

        def look_after(self, item: Watched, name: str) -> str | None:
            self.left -= 1
            if self.left < 0:
                return endpoints._NO_TIME
            looked.append(name)
            return None if name == "new" else "healthy"

    monkeypatch.setattr(endpoints, "_Round", Round)
    names = ("a", "b", "new", "c", "d")
    watched = [Watched(ExperimentConfig(name=name, notebook="n.ipynb"), Path("n.ipynb")) for name in names]
    sensor = endpoint_health_sensor(Workplace.here(), watched, dg.DefaultSensorStatus.RUNNING)
    told: list[str] = []
    cursor = None
    with dg.DagsterInstance.ephemeral() as instance:
        for _ in range(5):
            context = dg.build_sensor_context(
                instance, cursor=cursor, resources={PROVIDER: ProviderResource()}
            )
            data = sensor.evaluate_tick(context)
            cursor = data.cursor
            told += [event.asset_key.path[0] for event in data.asset_events]
    assert Counter(looked) == dict.fromkeys(names, 2)
    assert sorted(told) == ["a", "b", "c", "d"]
