"""Endpoints that nobody declares, and where."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import pytest

from notebooked_dagster.config import ExperimentConfig
from notebooked_dagster.providers.base import Deployment, Endpoint, EndpointStatus
from notebooked_dagster.sensors import Watched
from notebooked_dagster.sensors.endpoints import orphans


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
