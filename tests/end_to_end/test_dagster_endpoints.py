"""The sensors that look after endpoints, against a real one."""

from __future__ import annotations

import json
import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import dagster as dg
import psutil
import pytest

from notebooked_dagster.definitions import project_definitions
from notebooked_dagster.providers.base import EndpointStatus
from notebooked_dagster.providers.local import LocalProvider
from notebooked_dagster.resources import Workplace
from notebooked_dagster.sensors.endpoints import orphans
from tests.end_to_end.dagster_kit import SmallProject

pytestmark = pytest.mark.slow


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[SmallProject]:
    made = SmallProject(tmp_path / "project")
    monkeypatch.setenv("NOTEBOOKED_PROJECT_ROOT", str(made.root))
    yield made
    made.delete_endpoint()


def deploy(instance: dg.DagsterInstance) -> None:
    job = project_definitions(Workplace.here()).resolve_job_def("iris_job")
    assert job.execute_in_process(instance=instance).success


def tick(instance: dg.DagsterInstance, cursor: str | None) -> Any:
    definitions = project_definitions(Workplace.here())
    with dg.build_sensor_context(
        instance=instance, cursor=cursor, resources=definitions.resources
    ) as context:
        return definitions.resolve_sensor_def("endpoint_health").evaluate_tick(context)


def processes_of(root: Path) -> list[psutil.Process]:
    """Everything that serves an endpoint of a project."""
    found = []
    for process in psutil.process_iter(["cmdline"]):
        if any(str(root / ".notebooked" / "endpoints") in part for part in process.info["cmdline"] or ()):
            found.append(process)
    return found


def test_an_endpoint_that_was_killed_is_brought_back(project: SmallProject) -> None:
    provider = LocalProvider(project.root / ".notebooked")
    with dg.DagsterInstance.ephemeral() as instance:
        assert tick(instance, None).asset_events == []  # nothing deployed, nothing to say
        deploy(instance)
        well = tick(instance, None)
        assert [(event.check_name, event.passed) for event in well.asset_events] == [
            ("endpoint_health", True)
        ]
        assert tick(instance, well.cursor).asset_events == []  # said once

        serving = processes_of(project.root)
        assert serving
        for process in serving:
            os.kill(process.pid, signal.SIGKILL)
        psutil.wait_procs(serving, timeout=10)
        assert provider.endpoint("iris").status is not EndpointStatus.HEALTHY

        mended = tick(instance, well.cursor)
        assert "bringing it back" in (mended.skip_message or "")
        # On a slow machine it takes longer than one look lasts.
        deadline = time.monotonic() + 120
        while not json.loads(mended.cursor or "{}")["iris"].startswith("healthy"):
            assert time.monotonic() < deadline, mended.cursor
            mended = tick(instance, mended.cursor)
        assert provider.endpoint("iris").status is EndpointStatus.HEALTHY


def test_an_endpoint_nobody_declares_is_named_and_removed_only_where_asked(project: SmallProject) -> None:
    provider = LocalProvider(project.root / ".notebooked")
    with dg.DagsterInstance.ephemeral() as instance:
        deploy(instance)
    (note,) = orphans(provider, [], remove=False, project="project")
    assert "declared nowhere" in note
    assert provider.endpoint("iris").status is EndpointStatus.HEALTHY
    # What another project deployed there is none of our business.
    assert orphans(provider, [], remove=True, project="another") == []
    assert any("removed" in text for text in orphans(provider, [], remove=True, project="project"))
    assert provider.list_endpoints() == []
