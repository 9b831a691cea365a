"""The relay of one device: starts what waits for it, brings home what it wrote, passes on cancellations, tells of silence."""

from __future__ import annotations

import contextlib
import functools
import logging
import os
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any, Protocol, TypeVar

from dagster import DagsterInstance, DagsterRun, DagsterRunStatus

from notebooked_dagster.core.files import write_atomic
from notebooked_dagster.errors import DeviceError, DeviceUnreachableError, NotebookedError

from . import marks
from .devices import Device
from .holding import Holding
from .homecoming import Homecoming
from .journal import JournalError, clock
from .luggage import Luggage
from .ssh import Link

log = logging.getLogger("notebooked.edge")
_TTL = 30.0
# Of the lease: something lies between looking at the clock and the end of a transaction.
_MARGIN = 10.0
_LOGS_EVERY = 2.0
# Between two looks at a run that nothing can be done for at once: it waits for a place, for its code, for its files.
_REST = 1.0
# Of a device that nobody has tried to reach for so long, nobody knows whether it is silent.
_STALE = 300.0
_T = TypeVar("_T")


class Courier(Protocol):
    """Gets runs and code to devices; ``tending`` has it."""

    def deliver(self, run: DagsterRun, device: Device, link: Link) -> bool:
        """Start a run; False where another host has its code.

        Raises DeviceError, with ``details["refused"]``: ``full`` where there is no place for it, ``no-release`` or
        ``no-environment`` where its code has to be brought first.
        """

    def bring(self, run: DagsterRun, device: Device, link: Link) -> None:
        """Bring a run's code, which may take an hour. Raises DeviceError."""


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
    logs_at: float = 0.0
    rest_until: float = 0.0
    failures: int = 0
    fetched_anew: bool = False
    problems: set[str] = field(default_factory=set)
    code: Future[None] | None = None
    outputs: Future[int] | None = None

    def rest(self, seconds: float = _REST) -> None:
        """Leave the run alone for a while."""
        self.rest_until = time.monotonic() + seconds


class DeviceRelay:
    """Args:
    instance: The central instance.
    device: The device.
    state: The folder of everything of this host's.
    owner: This relay, for the lease on the device.
    courier: Gets a run and its code there.
    patience: How long what may last.
    """

    def __init__(
        self,
        instance: DagsterInstance,
        device: Device,
        state: Path,
        owner: str,
        courier: Courier,
        patience: Patience,
    ) -> None:
        self.device = device
        self.link = Link(device, state)
        # What takes long has a connection of its own: where it hangs, and is given up, the others' requests are not.
        self._freight = Link(device, state, channel="freight")
        self._instance = instance
        self._state = state
        self._owner = owner
        self._courier = courier
        self._patience = patience
        self._holding = Holding(instance)
        self._tended: dict[str, _Tended] = {}
        # The runs whose lease the last answer about them gave us; after a lost answer, another may have held it meanwhile.
        self._held: set[str] = set()
        self._failures = 0
        self._rounds = 0

    def step(self) -> float:
        """One round over the device's runs; returns how many seconds to wait before the next."""
        runs = {run.run_id: run for run in marks.open_runs(self._instance, self.device.name)}
        self._tended = {run_id: self._tended.get(run_id) or self._new(run_id) for run_id in runs}
        self._held &= runs.keys()
        now = time.monotonic()
        due = [run_id for run_id, item in self._tended.items() if item.rest_until <= now]
        if not due:
            return min([_REST, *(item.rest_until - now for item in self._tended.values())])
        # Each is the first one now and then: time and bytes may be used up before the last.
        self._rounds += 1
        first = self._rounds % len(due)
        try:
            heard = self._round({run_id: runs[run_id] for run_id in due[first:] + due[:first]})
        except DeviceError as error:
            self._silent(list(runs.values()), error)
            self._failures += 1
            return self._pause(self._failures)
        if heard:
            self._failures = 0
            self._heard(list(runs.values()))
        return 0.05

    def _new(self, run_id: str) -> _Tended:
        folder = self._state / "runs" / run_id
        return _Tended(Homecoming(self._instance, run_id, folder), Luggage(self._instance, run_id, folder))

    def _pause(self, failures: int) -> float:
        return min(self._patience.retry, 0.5 * 2.0 ** min(failures, 10))

    def _round(self, runs: Mapping[str, DagsterRun]) -> bool:
        """Ask for what is new of the runs, and see to it; False where the device was not asked."""
        offsets: dict[str, int] = {}
        for run_id, run in runs.items():
            with self._alone(run):
                offsets[run_id] = self._tended[run_id].home.offset
        if not offsets:
            return False
        unread = any(not self._tended[run_id].home.settled for run_id in offsets)
        unstarted = any(not runs[run_id].tags.get(marks.STARTED) for run_id in offsets)
        request = {
            "runs": offsets,
            "owner": self._owner,
            "ttl": _TTL,
            "wait": 0 if unread or unstarted else self._patience.wait,
        }
        held = self._held & offsets.keys()
        self._held -= held
        asked = clock()
        answer = self.link.ask("read", request, timeout=self._patience.wait + 30)
        at = 0
        for run_id in offsets:
            state = answer.header["runs"][run_id]
            piece = answer.body[at : at + state.get("length", 0)]
            at += len(piece)
            if run_id not in held or state.get("before") not in ("", self._owner):
                self._tended[run_id].home.doubt()
            if state.get("granted"):
                self._held.add(run_id)
            # A run that says much leaves time for the others.
            until = min(asked + _TTL - _MARGIN, clock() + (_TTL - _MARGIN) / len(offsets))
            with self._alone(runs[run_id]):
                self._tend(runs[run_id], state, piece, functools.partial(_before, until))
                self._tended[run_id].failures = 0
        return True

    @contextlib.contextmanager
    def _alone(self, run: DagsterRun) -> Iterator[None]:
        """One run's trouble is not the others': it is told, and tried again after a while."""
        item = self._tended[run.run_id]
        try:
            yield
        except DeviceUnreachableError:
            raise
        except JournalError as error:
            if item.fetched_anew:
                self._give_up(run, str(error))
            else:
                item.fetched_anew = True
                item.home.discard()
        except Exception as error:
            item.failures += 1
            item.rest(self._pause(item.failures))
            self._complain(run, error)
            self._holding.hold(run, str(error))

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
        if state["size"] < item.home.offset:
            raise JournalError(f"The journal has {state['size']} bytes, and had {item.home.offset}.")
        if state["state"] == "running":
            if marks.canceling(run) and not item.home.ended_by_itself and not item.cancelled:
                self.link.ask("cancel", {"run": run.run_id})
                item.cancelled = True
            self._holding.hold(run, f"The run's process is alive on {self.device.name}.")
        item.home.receive(piece)
        item.home.apply(ours)
        if not item.home.settled:
            return
        item.home.mend()
        if state["state"] == "running":
            self._logs(item, state)
        elif item.home.offset >= state["size"]:
            if state["state"] == "damaged":
                self._give_up(run, state["message"])
            elif item.home.exit is not None:
                self._end(run, item, state)

    def _start(self, run: DagsterRun, item: _Tended) -> None:
        # It may have been cancelled, or given up, since this round began.
        run = self._instance.get_run_by_id(run.run_id) or run
        if run.tags.get(marks.STARTED) or item.home.offset:
            self._fail(
                run, f"{self.device.name} knows nothing of this run any more: its working folder was removed."
            )
            self._close(run)
        elif marks.canceling(run):
            if not run.is_finished:
                self._instance.report_run_canceled(run, "Canceled before it had started on a device.")
            self._close(run)
        elif item.code is not None and not item.code.done():
            item.rest()
            self._holding.hold(run, f"The run's code is on its way to {self.device.name}.")
        else:
            self._hand_over(run, item)

    def _hand_over(self, run: DagsterRun, item: _Tended) -> None:
        code, item.code = item.code, None
        try:
            if code is not None:
                _result(code)
            if not self._courier.deliver(run, self.device, self.link):
                item.rest()
        except DeviceUnreachableError:
            raise
        except NotebookedError as error:
            refused = error.details.get("refused")
            if refused == "full":
                item.rest()
                self._holding.hold(run, f"Waiting for a free place on {self.device.name}.")
            elif refused in ("no-release", "no-environment"):
                item.rest()
                item.code = _background(lambda: self._courier.bring(run, self.device, self._freight))
            elif error.details.get("again"):
                raise
            else:
                self._fail(run, str(error))
                self._close(run)

    def _logs(self, item: _Tended, state: Mapping[str, Any]) -> None:
        if time.monotonic() - item.logs_at >= _LOGS_EVERY:
            item.luggage.fetch_logs(self.link, state["files"])
            item.logs_at = time.monotonic()

    def _end(self, run: DagsterRun, item: _Tended, state: Mapping[str, Any]) -> None:
        """The run has ended over there, and all its events are here."""
        told = item.home.exit or {}
        run = self._instance.get_run_by_id(run.run_id) or run
        if not run.is_finished:
            if run.status is DagsterRunStatus.CANCELING or told["why"] == "canceled":
                self._instance.report_run_canceled(run, f"The run's process on {self.device.name} was ended.")
            else:
                self._fail(run, _death(told, self.device.name))
        if item.outputs is None:
            item.outputs = _background(lambda: item.luggage.fetch_all(self._freight, state["files"]))
        # Small ones are here at once; the other runs do not wait for large ones.
        with contextlib.suppress(TimeoutError):
            item.outputs.exception(timeout=0.2)
        if not item.outputs.done():
            item.rest()
            return
        outputs, item.outputs = item.outputs, None
        found = _result(outputs)
        tags = {marks.RELAY: marks.CLOSED}
        if found:
            tags[marks.OUTPUTS] = str(item.luggage.outputs)
        self.link.ask("deliver", {"run": run.run_id}, timeout=600)
        self._instance.add_run_tags(run.run_id, tags)

    def _give_up(self, run: DagsterRun, problem: str) -> None:
        """No more can be known of a run than what is stored."""
        self._fail(
            run, f"What {self.device.name} wrote down of the run cannot be read any further: {problem}"
        )
        self.link.ask("cancel", {"run": run.run_id})
        self.link.ask("deliver", {"run": run.run_id}, timeout=600)
        self._close(run)

    # -- silence

    def _silent(self, runs: list[DagsterRun], error: DeviceError) -> None:
        now = time.time()
        since = silent_since(self._state, self.device.name)
        if since is None:
            since = now
            write_atomic(_silence(self._state, self.device.name), f"{now}\n{error.message}\n")
            log.warning("%s", error)
        else:
            os.utime(_silence(self._state, self.device.name))
        for run in runs:
            self._tell_silence(run, since, error)
            # A run that was launched in the middle of it has waited since then.
            since_then = max(since, _launched(run))
            deadline = _deadline(run, self._patience.deadline)
            if deadline and now - since_then > deadline and not run.is_finished:
                self._fail(
                    run,
                    f"Device {self.device.name} has been out of reach since {_clock(since_then)}, longer than the deadline of "
                    f"{deadline:.0f} s. What the run still does there is stopped when the device is back.",
                )

    def _tell_silence(self, run: DagsterRun, since: float, error: DeviceError) -> None:
        started = run.tags.get(marks.STARTED)
        what = "The run goes on there." if started else "The run starts when it is back."
        how = "is unreachable" if isinstance(error, DeviceUnreachableError) else "refuses us"
        text = f"Device {self.device.name} {how} since {_clock(since)}. {what} ({error.message})"
        if not run.is_finished and not run.tags.get(marks.SILENT):
            self._instance.add_run_tags(run.run_id, {marks.SILENT: _clock(since)})
            self._instance.report_engine_event(text, run, cls=type(self))
        self._holding.hold(run, text)

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
    """Since when a device is silent; None where it answers, or nobody has tried for a while."""
    path = _silence(state, name)
    try:
        if time.time() - path.stat().st_mtime > _STALE:
            return None
        return float(path.read_text().splitlines()[0])
    except (OSError, ValueError, IndexError):
        return None


def _silence(state: Path, name: str) -> Path:
    return state / "silent" / name


def _deadline(run: DagsterRun, default: float) -> float:
    try:
        return float(run.tags[marks.DEADLINE])
    except (KeyError, ValueError):
        return default


def _before(until: float) -> bool:
    return clock() < until


def _launched(run: DagsterRun) -> float:
    try:
        return float(run.tags[marks.LAUNCHED])
    except (KeyError, ValueError):
        return 0.0


def _background(work: Callable[[], _T]) -> Future[_T]:
    """Do it in a thread that no end of ours waits for."""
    future: Future[_T] = Future()

    def go() -> None:
        try:
            future.set_result(work())
        except BaseException as error:
            future.set_exception(error)

    threading.Thread(target=go, daemon=True).start()
    return future


def _result(future: Future[_T]) -> _T:
    """What became of it. What takes long breaks often: that is no word about the device, which answers meanwhile."""
    try:
        return future.result()
    except DeviceUnreachableError as error:
        raise DeviceError(error.message, hint=error.hint, details={**error.details, "again": True}) from error


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
