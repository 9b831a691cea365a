"""The relay of one device: starts what waits for it, brings home what it wrote, passes on cancellations, tells of silence."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any, Protocol

from dagster import DagsterEvent, DagsterEventType, DagsterInstance, DagsterRun, DagsterRunStatus

from notebooked_dagster.core.files import write_atomic
from notebooked_dagster.errors import DeviceError, DeviceUnreachableError, NotebookedError

from . import marks
from .devices import Device
from .homecoming import Homecoming
from .journal import JournalError, clock
from .luggage import Luggage
from .ssh import Link

log = logging.getLogger("notebooked.edge")
_TTL = 30.0
# Of the lease: the device renews it only when a fifth of it is gone, and something lies between looking at the clock and
# the end of a transaction.
_MARGIN = 10.0
_LOGS_EVERY = 2.0


class Deliver(Protocol):
    """Starts a run on a device; ``launcher`` has it."""

    def __call__(self, run: DagsterRun, device: Device, link: Link) -> None:
        """Start it. Raises DeviceError, with ``details["refused"] == "full"`` where there is no place for it."""


@dataclass(frozen=True, slots=True)
class Patience:
    """How long what may last.

    Attributes:
        deadline: Seconds out of sight after which a run is given up; 0 is never.
        wait: Seconds for which the device waits for news before it answers.
        retry: Seconds between two attempts to reach a silent device, at most.
    """

    deadline: float = 86400.0
    wait: float = 2.0
    retry: float = 15.0


@dataclass
class _Tended:
    """What the relay knows of one run."""

    home: Homecoming
    luggage: Luggage
    cancelled: bool = False
    told: float = 0.0
    logs_at: float = 0.0
    problems: set[str] = field(default_factory=set)


class DeviceRelay:
    """Args:
    instance: The central instance.
    device: The device.
    state: The folder of everything of this host's.
    owner: This relay, for the lease on the device.
    deliver: Starts a run.
    patience: How long what may last.
    """

    def __init__(
        self,
        instance: DagsterInstance,
        device: Device,
        state: Path,
        owner: str,
        deliver: Deliver,
        patience: Patience,
    ) -> None:
        self.device = device
        self.link = Link(device, state)
        self._instance = instance
        self._state = state
        self._owner = owner
        self._deliver = deliver
        self._patience = patience
        self._tended: dict[str, _Tended] = {}
        self._failures = 0

    def step(self) -> float:
        """One round over the device's runs; returns how many seconds to wait before the next."""
        runs = {run.run_id: run for run in marks.open_runs(self._instance, self.device.name)}
        self._tended = {run_id: item for run_id, item in self._tended.items() if run_id in runs}
        if not runs:
            return 1.0
        try:
            self._round(runs)
        except DeviceError as error:
            self._silent(list(runs.values()), error)
            self._failures += 1
            return min(self._patience.retry, 0.5 * 2.0 ** min(self._failures, 10))
        self._failures = 0
        self._heard(list(runs.values()))
        return 0.05

    def _round(self, runs: Mapping[str, DagsterRun]) -> None:
        for run_id in runs:
            if run_id not in self._tended:
                folder = self._state / "runs" / run_id
                self._tended[run_id] = _Tended(
                    Homecoming(self._instance, run_id, folder), Luggage(self._instance, run_id, folder)
                )
        waiting = any(not run.tags.get(marks.STARTED) for run in runs.values())
        asked = clock()
        request = {
            "runs": {run_id: item.home.offset for run_id, item in self._tended.items()},
            "owner": self._owner,
            "ttl": _TTL,
            "wait": 0 if waiting else self._patience.wait,
        }
        answer = self.link.ask("read", request, timeout=self._patience.wait + 30)
        at = 0
        for run_id, state in answer.header["runs"].items():
            piece = answer.body[at : at + state.get("length", 0)]
            at += len(piece)
            try:
                self._tend(runs[run_id], state, piece, lambda: clock() < asked + _TTL - _MARGIN)
            except DeviceUnreachableError:
                raise
            except (NotebookedError, JournalError, OSError) as error:
                # One run's trouble is not the others'; the next round tries again.
                self._complain(runs[run_id], error)

    def _tend(
        self, run: DagsterRun, state: Mapping[str, Any], piece: bytes, ours: Callable[[], bool]
    ) -> None:
        item = self._tended[run.run_id]
        if state["state"] == "absent":
            self._start(run, item)
            return
        if not run.tags.get(marks.STARTED):
            self._instance.add_run_tags(run.run_id, {marks.STARTED: "yes"})
        if not state["granted"]:
            # Another host brings it home.
            return
        if state["before"] not in ("", self._owner):
            item.home.recover()
        item.home.receive(piece)
        item.home.apply(ours)
        if not item.home.settled:
            return
        item.home.mend()
        self._luggage(item, state)
        fresh = self._instance.get_run_by_id(run.run_id) or run
        if state["state"] == "running":
            if marks.canceling(fresh) and not item.home.ended_by_itself and not item.cancelled:
                self.link.ask("cancel", {"run": run.run_id})
                item.cancelled = True
            self._hold(fresh, item, f"The run's process is alive on {self.device.name}.")
        elif item.home.exit is not None and item.home.offset >= state["size"]:
            self._end(fresh, item, state)

    def _start(self, run: DagsterRun, item: _Tended) -> None:
        if run.tags.get(marks.STARTED) or item.home.offset:
            self._fail(
                run, f"{self.device.name} knows nothing of this run any more: its working folder was removed."
            )
            self._close(run)
        elif marks.canceling(run):
            if not run.is_finished:
                self._instance.report_run_canceled(run, "Canceled before it had started on a device.")
            self._close(run)
        else:
            try:
                self._deliver(run, self.device, self.link)
            except DeviceUnreachableError:
                raise
            except NotebookedError as error:
                if error.details.get("refused") == "full":
                    self._hold(run, item, f"Waiting for a free place on {self.device.name}.")
                    return
                self._fail(run, str(error))
                self._close(run)

    def _luggage(self, item: _Tended, state: Mapping[str, Any]) -> None:
        if time.monotonic() - item.logs_at >= _LOGS_EVERY and state["state"] == "running":
            item.luggage.fetch_logs(self.link, state["files"])
            item.logs_at = time.monotonic()

    def _end(self, run: DagsterRun, item: _Tended, state: Mapping[str, Any]) -> None:
        """The run has ended over there, and all its events are here."""
        told = item.home.exit or {}
        if not run.is_finished:
            if run.status is DagsterRunStatus.CANCELING or told["why"] == "canceled":
                self._instance.report_run_canceled(run, f"The run's process on {self.device.name} was ended.")
            else:
                self._fail(run, _death(told, self.device.name))
        item.luggage.fetch_logs(self.link, state["files"], last=True)
        tags = {marks.RELAY: marks.CLOSED}
        if item.luggage.fetch_outputs(self.link, state["files"]):
            tags[marks.OUTPUTS] = str(item.luggage.outputs)
        self.link.ask("deliver", {"run": run.run_id})
        self._instance.add_run_tags(run.run_id, tags)

    # -- silence

    def _silent(self, runs: list[DagsterRun], error: DeviceError) -> None:
        now = time.time()
        since = silent_since(self._state, self.device.name)
        if since is None:
            since = now
            write_atomic(_silence(self._state, self.device.name), f"{now}\n{error.message}\n")
            log.warning("%s", error)
        for run in runs:
            self._tell_silence(run, since, error)
            deadline = _deadline(run, self._patience.deadline)
            if deadline and now - since > deadline and not run.is_finished:
                self._fail(
                    run,
                    f"Device {self.device.name} has been unreachable since {_clock(since)}, longer than the deadline of "
                    f"{deadline:.0f} s. What the run still does there is stopped when the device is back.",
                )

    def _tell_silence(self, run: DagsterRun, since: float, error: DeviceError) -> None:
        started = run.tags.get(marks.STARTED)
        what = "The run goes on there." if started else "The run starts when it is back."
        text = f"Device {self.device.name} is unreachable since {_clock(since)}. {what} ({error.message})"
        if (not run.is_finished and marks.SILENT not in run.tags) or (
            not run.is_finished and not run.tags[marks.SILENT]
        ):
            self._instance.add_run_tags(run.run_id, {marks.SILENT: _clock(since)})
            self._instance.report_engine_event(text, run, cls=type(self))
        item = self._tended.get(run.run_id)
        if item is not None:
            self._hold(run, item, text)

    def _heard(self, runs: list[DagsterRun]) -> None:
        since = silent_since(self._state, self.device.name)
        for run in runs:
            if run.tags.get(marks.SILENT):
                self._instance.add_run_tags(run.run_id, {marks.SILENT: ""})
                self._instance.report_engine_event(
                    f"Device {self.device.name} is reachable again; it was not since {run.tags[marks.SILENT]}.",
                    run,
                    cls=type(self),
                )
        if since is not None:
            _silence(self._state, self.device.name).unlink(missing_ok=True)
            log.info("%s is reachable again after %.0f s.", self.device.name, time.time() - since)

    def _hold(self, run: DagsterRun, item: _Tended, text: str) -> None:
        """Say again that a run starts, or is being stopped.

        Dagster's run monitoring gives up a run that has been starting, or stopping, for longer than a time that is meant for
        machines that answer; it counts from the last event that says so.
        """
        kind, limit = {
            DagsterRunStatus.STARTING: (
                DagsterEventType.PIPELINE_STARTING,
                self._instance.run_monitoring_start_timeout_seconds,
            ),
            DagsterRunStatus.CANCELING: (
                DagsterEventType.PIPELINE_CANCELING,
                self._instance.run_monitoring_cancel_timeout_seconds,
            ),
        }.get(run.status, (None, 0))
        if kind is None or not limit or not self._instance.run_monitoring_enabled:
            return
        if not item.told:
            item.told = time.monotonic()
        if time.monotonic() - item.told > limit / 3:
            item.told = time.monotonic()
            self._instance.report_dagster_event(
                DagsterEvent(kind.value, run.job_name, message=text), run_id=run.run_id
            )

    # -- words

    def _fail(self, run: DagsterRun, text: str) -> None:
        fresh = self._instance.get_run_by_id(run.run_id)
        if fresh is not None and not fresh.is_finished:
            self._instance.report_run_failed(fresh, text)

    def _close(self, run: DagsterRun) -> None:
        self._instance.add_run_tags(run.run_id, {marks.RELAY: marks.CLOSED})

    def _complain(self, run: DagsterRun, error: Exception) -> None:
        problems, text = self._tended[run.run_id].problems, str(error)
        log.warning("Run %s on %s: %s", run.run_id, self.device.name, text)
        if text not in problems:
            problems.add(text)
            self._instance.report_engine_event(f"Relay of {self.device.name}: {text}", run, cls=type(self))


def silent_since(state: Path, name: str) -> float | None:
    """Since when a device is silent; None where it answers, or nobody has asked."""
    try:
        return float(_silence(state, name).read_text().splitlines()[0])
    except (OSError, ValueError, IndexError):
        return None


def _silence(state: Path, name: str) -> Path:
    return state / "silent" / name


def _deadline(run: DagsterRun, default: float) -> float:
    try:
        return float(run.tags[marks.DEADLINE])
    except (KeyError, ValueError):
        return default


def _clock(at: float) -> str:
    return datetime.fromtimestamp(at).astimezone().isoformat(" ", "seconds")


def _death(told: Mapping[str, Any], name: str) -> str:
    code = told.get("code")
    said = f"\n{told['message']}" if told.get("message") else ""
    if told["why"] == "rebooted":
        return f"Device {name} restarted while the run was under way.{said}"
    if told["why"] == "vanished":
        return f"The run's processes on {name} disappeared without a word; out of memory, perhaps.{said}"
    if told["why"] == "start":
        return f"The run's process could not be started on {name}: {told.get('message')}."
    if isinstance(code, int) and code < 0:
        return f"The run's process on {name} was ended by signal {-code}.{said}"
    return (
        f"The run's process on {name} ended with exit code {code}, and without saying how the run went.{said}"
    )
