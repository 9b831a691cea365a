"""The tags by which the central instance knows a run on a device; they are all a relay needs to take it up."""

from __future__ import annotations

import uuid
from collections.abc import Iterable
from pathlib import Path

from dagster import DagsterInstance, DagsterRun, DagsterRunStatus, RunsFilter

#: ``open`` until everything of the run is home, then ``closed``.
RELAY = "notebooked/edge-relay"
OPEN, CLOSED = "open", "closed"
#: The run's own id: a run that repeats another comes with that one's tags.
RUN = "notebooked/edge-run"
#: The device that has it; empty while it waits for one.
CHOSEN = "notebooked/edge-device"
RELEASE = "notebooked/edge-release"
#: The host that launched it: it alone has the release, and chooses.
HOST = "notebooked/edge-host"
#: Set once the device has said that it started: from then on it is never started again.
STARTED = "notebooked/edge-started"
#: When it was launched, in seconds since 1970: nobody has waited for its device before.
LAUNCHED = "notebooked/edge-launched"
OUTPUTS = "notebooked/edge-outputs"
#: Seconds for which a run may be out of sight, where it is to differ from the launcher's.
DEADLINE = "notebooked/device-deadline"
#: Since when its device is silent; empty when it is back.
SILENT = "notebooked/device-unreachable-since"


def is_ours(run: DagsterRun) -> bool:
    """Whether a run was given to a device."""
    return run.tags.get(RUN) == run.run_id


def open_runs(instance: DagsterInstance, device: str | None = None) -> list[DagsterRun]:
    """The runs that are not home yet, oldest first; all, or a device's."""
    tags = {RELAY: OPEN} if device is None else {RELAY: OPEN, CHOSEN: device}
    return [run for run in reversed(instance.get_runs(RunsFilter(tags=tags))) if is_ours(run)]


def load(runs: Iterable[DagsterRun]) -> dict[str, int]:
    """How many runs each device has under way."""
    found: dict[str, int] = {}
    for run in runs:
        name = run.tags.get(CHOSEN)
        if name and not run.is_finished:
            found[name] = found.get(name, 0) + 1
    return found


def canceling(run: DagsterRun) -> bool:
    """Whether somebody wants a run to stop, or Dagster has given it up."""
    return run.is_finished or run.status is DagsterRunStatus.CANCELING


def host_id(state: Path) -> str:
    """This host, as far as runs on devices go: one state folder."""
    path = state / "host"
    if not path.exists():
        state.mkdir(parents=True, exist_ok=True)
        part = state / f".host.{uuid.uuid4().hex}"
        part.write_text(uuid.uuid4().hex[:12])
        try:
            path.hardlink_to(part)
        except FileExistsError:
            pass
        finally:
            part.unlink()
    return path.read_text().strip()
