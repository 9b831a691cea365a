"""A run as a device gets it: what its execution looks up in an instance, and where its code is over there."""

from __future__ import annotations

import time
from collections.abc import Mapping
from pathlib import Path, PurePosixPath
from typing import Any

from dagster import DagsterInstance, DagsterRun
from dagster._core.code_pointer import CodePointer, FileCodePointer, ModuleCodePointer, PackageCodePointer
from dagster._core.origin import JobPythonOrigin, RepositoryPythonOrigin
from dagster._core.storage.dagster_run import DagsterRunStatus
from dagster._serdes import serialize_value

from notebooked_dagster.errors import ConfigError

from .devices import Device
from .releases import Release


def packed(
    instance: DagsterInstance,
    run: DagsterRun,
    release: Release,
    device: Device,
    project: Path,
    environment: Mapping[str, str],
) -> dict[str, Any]:
    """The request that starts a run.

    Args:
        instance: The central instance, for the snapshots.
        run: The run.
        release: What it runs.
        device: Where.
        project: The project's folder, which the release is a copy of.
        environment: Of this process; only what the device is to see of it gets there.

    Raises:
        ConfigError: The run's code is not in the project.
    """
    storage = instance.run_storage
    jobs, plans = [], []
    if run.job_snapshot_id is not None and storage.has_job_snapshot(run.job_snapshot_id):
        snapshot = storage.get_job_snapshot(run.job_snapshot_id)
        if snapshot.lineage_snapshot is not None:
            parent = snapshot.lineage_snapshot.parent_snapshot_id
            if storage.has_job_snapshot(parent):
                jobs.append(serialize_value(storage.get_job_snapshot(parent)))
        jobs.append(serialize_value(snapshot))
    if run.execution_plan_snapshot_id is not None:
        plans.append(serialize_value(storage.get_execution_plan_snapshot(run.execution_plan_snapshot_id)))
    there = run._replace(
        job_code_origin=_origin(run, device, project),
        # Names sockets and folders of this host, and nothing on the device asks for it.
        remote_job_origin=None,
        status=DagsterRunStatus.STARTING,
    )
    return {
        "run": run.run_id,
        "release": release.name,
        "environment": release.environment(device),
        "python": device.python,
        "capacity": device.capacity,
        "host_time": time.time(),
        "env": {name: environment[name] for name in device.environment if name in environment},
        "dagster_run": serialize_value(there),
        "snapshots": {"jobs": jobs, "plans": plans},
    }


def check_packable(run: DagsterRun, release: Release, device: Device, project: Path) -> None:
    """Raise ConfigError where a run cannot be packed, before anything is done for it."""
    _origin(run, device, project)
    release.environment(device)


def _origin(run: DagsterRun, device: Device, project: Path) -> JobPythonOrigin:
    origin = run.job_code_origin
    if origin is None:
        raise ConfigError(
            f"Run {run.run_id} does not say where its code is.",
            hint="Launch it from a code location of a workspace, not from a job in memory.",
        )
    # The worker's working folder is the release, so that paths relative to it are right wherever it lies.
    python = device.python or "python"
    return JobPythonOrigin(
        origin.job_name,
        RepositoryPythonOrigin(
            python,
            _pointer(origin.repository_origin.code_pointer, project),
            entry_point=[python, "-m", "dagster"],
        ),
    )


def _pointer(pointer: CodePointer, project: Path) -> CodePointer:
    if isinstance(pointer, FileCodePointer):
        return pointer._replace(python_file=_moved(pointer.python_file, project), working_directory=".")
    if isinstance(pointer, ModuleCodePointer | PackageCodePointer):
        return pointer._replace(working_directory=".")
    raise ConfigError(
        f"Code that is found by a {type(pointer).__name__} cannot be run on a device.",
        hint="Load the code location from a module, a package or a file.",
    )


def _moved(path: str, project: Path) -> str:
    full = (project / path).resolve()
    if not full.is_relative_to(project.resolve()):
        raise ConfigError(
            "The run's code is not in the project's folder, which is what goes to a device.",
            path=full,
            hint=f"Move it below {project}, or set `project` of the run launcher.",
        )
    return str(PurePosixPath(full.relative_to(project.resolve())))
