"""The worker of a run on a device: executes it against the device's own instance, every event into the journal.

``python -m notebooked_edge.recording``, started by the agent's keeper, in the release and its environment. Needs Dagster.
"""

from __future__ import annotations

import contextlib
import json
import os
import threading
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from dagster import DagsterEvent, DagsterEventType, DagsterInstance, DagsterRun, StringSource
from dagster._core.events.log import EventLogEntry
from dagster._core.snap import ExecutionPlanSnapshot, JobSnap
from dagster._core.storage.event_log import SqliteEventLogStorage
from dagster._serdes import ConfigurableClassData, deserialize_value, serialize_value

from .agent import CANCEL, REQUEST, lock
from .journal import Journal

RUN = "NOTEBOOKED_EDGE_RUN"
_LOOK = 0.5


class RecordingEventLogStorage(SqliteEventLogStorage):
    """Dagster's event log on the device, which writes each event to its run's journal first.

    Every process of a run (its steps may have their own) comes through here, for what Dagster does and for what is logged.
    """

    def __init__(self, base_dir: str, runs_dir: str, inst_data: ConfigurableClassData | None = None) -> None:
        super().__init__(base_dir, inst_data)
        self._runs = Path(runs_dir)
        self._journals: dict[str, Journal] = {}

    @classmethod
    def config_type(cls) -> Any:
        """Its configuration in ``dagster.yaml``."""
        return {"base_dir": StringSource, "runs_dir": StringSource}

    @classmethod
    def from_config_value(
        cls, inst_data: ConfigurableClassData | None, config_value: Mapping[str, Any]
    ) -> RecordingEventLogStorage:
        """The storage."""
        return cls(inst_data=inst_data, **config_value)

    def store_event(self, event: EventLogEntry) -> None:
        """Into the journal, then into SQLite."""
        if event.run_id not in self._journals and (self._runs / event.run_id).is_dir():
            self._journals[event.run_id] = Journal(self._runs / event.run_id)
        journal = self._journals.get(event.run_id)
        if journal is not None:
            journal.append({"kind": "event", "event": serialize_value(event)})
        super().store_event(event)


def main() -> None:
    """Execute the run whose folder the environment names."""
    folder = Path(os.environ.pop(RUN))
    request = json.loads((folder / REQUEST).read_text())
    home = instance_folder(folder.parents[1])
    os.environ["DAGSTER_HOME"] = str(home)
    from dagster._cli.api import execute_run_command
    from dagster._grpc.types import ExecuteRunArgs

    with opened(home) as instance:
        run = _registered(instance, request)
        origin = run.job_code_origin
        assert origin is not None
        arguments = serialize_value(ExecuteRunArgs(origin, run.run_id, instance.get_ref(), True))
        done = threading.Event()
        watch = threading.Thread(target=_heed_cancellation, args=(folder, instance, run, done), daemon=True)
        watch.start()
        try:
            execute_run_command.main([arguments], standalone_mode=False)
        finally:
            done.set()


def opened(home: Path) -> DagsterInstance:
    """The device's instance. Dagster makes its tables where there are none: of the first two runs, one has to wait."""
    with lock(home / "opening.lock"):
        return DagsterInstance.from_config(str(home))


def instance_folder(root: Path) -> Path:
    """The device's instance: SQLite and files, one for all runs, so that a run finds what an earlier one stored."""
    home = root / "instance"
    home.mkdir(exist_ok=True)
    here = __package__ or "notebooked_edge"
    base = {"base_dir": str(home / "history")}
    config = {
        "run_storage": _class("dagster._core.storage.runs", "SqliteRunStorage", base),
        "event_log_storage": _class(
            f"{here}.recording", RecordingEventLogStorage.__name__,
            {"base_dir": str(home / "history/runs"), "runs_dir": str(root / "runs")},
        ),
        "schedule_storage": _class("dagster._core.storage.schedules", "SqliteScheduleStorage", base),
        "compute_logs": _class(
            "dagster._core.storage.local_compute_log_manager", "LocalComputeLogManager", {"base_dir": str(root / "runs")}
        ),
        "local_artifact_storage": _class(
            "dagster._core.storage.root", "LocalArtifactStorage", {"base_dir": str(home)}
        ),
        "telemetry": {"enabled": False},
        "nux": {"enabled": False},
    }  # fmt: skip
    # JSON is YAML; another run may be reading the file.
    temporary = home / f".dagster.yaml.{os.getpid()}"
    temporary.write_text(json.dumps(config))
    temporary.replace(home / "dagster.yaml")
    return home


def _class(module: str, name: str, config: Mapping[str, str]) -> dict[str, Any]:
    return {"module": module, "class": name, "config": dict(config)}


def _registered(instance: DagsterInstance, request: Mapping[str, Any]) -> DagsterRun:
    """The run and what its execution looks up, in the device's instance."""
    for text in request["snapshots"]["jobs"]:
        instance.run_storage.add_job_snapshot(deserialize_value(text, JobSnap))
    for text in request["snapshots"]["plans"]:
        instance.run_storage.add_execution_plan_snapshot(deserialize_value(text, ExecutionPlanSnapshot))
    run = deserialize_value(request["dagster_run"], DagsterRun)
    if not instance.has_run(run.run_id):
        instance.run_storage.add_run(run)
    return run


def _heed_cancellation(
    folder: Path, instance: DagsterInstance, run: DagsterRun, done: threading.Event
) -> None:
    """Interrupt the run once the agent has left word.

    Dagster tells a cancellation from a crash by the run's status. The host's log has the event of the request already, so
    only the status is set here.
    """
    from dagster._utils import send_interrupt

    while not done.wait(_LOOK):
        if not (folder / CANCEL).exists():
            continue
        canceling = DagsterEvent(DagsterEventType.PIPELINE_CANCELING.value, run.job_name)
        instance.run_storage.handle_run_event(run.run_id, canceling)
        while not done.wait(_LOOK):
            with contextlib.suppress(OSError):
                send_interrupt()
            # One is enough for most; user code may have swallowed it.
            time.sleep(10)
        return


if __name__ == "__main__":
    # Under its own name: the storage is loaded by it, and must be the class that it is here.
    from importlib import import_module

    import_module(f"{__package__}.recording").main()
