"""The process that relays: one a host, started when there is something to bring home, gone when there is nothing more.

It is no part of Dagster's daemon, so that neither a restart of that one nor a crash of this one costs more than time; what
it has to know is in the central instance and in the state folder. Who starts it: a launch, a cancellation, the daemon's
run monitoring, the sensor ``edge_devices``.
"""

from __future__ import annotations

import contextlib
import fcntl
import logging
import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from dagster import DagsterInstance, DagsterRun
from dagster._core.instance import InstanceRef
from dagster._serdes import deserialize_value, serialize_value

from notebooked_dagster.errors import DeviceError, NotebookedError

from . import marks
from .choice import DEVICE
from .devices import Device, Fleet
from .holding import Holding
from .relay import DeviceRelay
from .ssh import Link

if TYPE_CHECKING:
    from .launcher import PiRunLauncher

log = logging.getLogger("notebooked.edge")
_LOCK = "relay.lock"
_LOOK = 0.5
_IDLE = 60.0
_GONE = 60.0
_INSTANCE = "NOTEBOOKED_EDGE_INSTANCE"
_HANDED = "NOTEBOOKED_EDGE_LOCK"


def ensure(instance: DagsterInstance, state: Path) -> None:
    """Start the relay where none runs."""
    state.mkdir(parents=True, exist_ok=True)
    with _only(state) as lock:
        if lock is None:
            return
        environment = {
            **os.environ,
            _INSTANCE: serialize_value(instance.get_ref()),
            # The lock is handed over, so that nobody starts a second one while the first still loads.
            _HANDED: str(lock),
        }
        with (state / "relay.log").open("ab") as stream:
            # Of its own session: a Ctrl-C, and the end of who started it, are not its business.
            started = subprocess.Popen(
                [sys.executable, "-m", "notebooked_dagster.edge.tending"], env=environment, pass_fds=(lock,),
                stdin=subprocess.DEVNULL, stdout=stream, stderr=stream, start_new_session=True,
            )  # fmt: skip
        (state / "relay.pid").write_text(str(started.pid))
    # Whoever started it may live longer than it does, and has to take note of its end.
    threading.Thread(target=started.wait, daemon=True).start()


def main() -> int:
    """Relay until there is nothing to relay."""
    from .launcher import PiRunLauncher

    os.set_inheritable(int(os.environ.pop(_HANDED)), False)
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(message)s")
    logging.getLogger("alembic").setLevel(logging.WARNING)
    ref = deserialize_value(os.environ.pop(_INSTANCE), InstanceRef)
    with DagsterInstance.from_ref(ref) as instance:
        launcher = instance.run_launcher
        assert isinstance(launcher, PiRunLauncher)
        Tending(instance, launcher).run()
    return 0


@contextlib.contextmanager
def _only(state: Path) -> Iterator[int | None]:
    """Hold the lock of the one relay; None where another has it."""
    handle = os.open(state / _LOCK, os.O_RDWR | os.O_CREAT, 0o600)
    try:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            yield None
            return
        yield handle
    finally:
        os.close(handle)


class Tending:
    """Looks which runs are not home yet; one thread a device does the rest."""

    def __init__(self, instance: DagsterInstance, launcher: PiRunLauncher, owner: str | None = None) -> None:
        self.owner = owner or marks.host_id(launcher.state)
        self.stop = threading.Event()
        self._instance = instance
        self._launcher = launcher
        self._holding = Holding(instance)
        self._gone: float | None = None
        self._threads: dict[str, tuple[threading.Thread, threading.Event, Device]] = {}

    def run(self, idle: float = _IDLE) -> None:
        """Until nothing has been open for ``idle`` seconds, or ``stop`` is set."""
        busy = time.monotonic()
        try:
            while not self.stop.wait(_LOOK):
                try:
                    if self.look():
                        busy = time.monotonic()
                except Exception:
                    # The database may be away for a while; runs go on all the same.
                    log.exception("A look at the open runs failed; the next comes.")
                    busy = time.monotonic()
                if time.monotonic() - busy > idle:
                    return
        finally:
            for _, done, _ in self._threads.values():
                done.set()
            for thread, _, _ in self._threads.values():
                thread.join(60)

    def look(self) -> int:
        """See to every run that is not home; returns how many there are."""
        runs = marks.open_runs(self._instance)
        if not runs:
            return 0
        mine = marks.host_id(self._launcher.state)
        for run in runs:
            if not run.tags.get(marks.CHOSEN):
                # First: whatever is wrong with the declaration is no reason to fail it.
                self._holding.hold(run, "Waiting for a place on any device that fits.")
        fleet = self._fleet()
        for run in runs:
            name = run.tags.get(marks.CHOSEN)
            if not name and run.tags.get(marks.HOST) == mine:
                self._choose(run)
            elif name and fleet.get(name) is None:
                self._orphan(run, name)
        for name, (_, done, _) in self._threads.items():
            if fleet.get(name) is None:
                done.set()
        for device in fleet.devices:
            if any(run.tags.get(marks.CHOSEN) == device.name for run in runs):
                self._ensure(device)
        return len(runs)

    def _fleet(self) -> Fleet:
        """The devices. An editor, or git, may be at work on the file that is gone; after a while, its devices are."""
        if self._launcher.declares:
            self._gone = None
            return self._launcher.fleet()
        now = time.monotonic()
        self._gone = now if self._gone is None else self._gone
        return Fleet(devices=()) if now - self._gone > _GONE else self._launcher.fleet()

    def _choose(self, run: DagsterRun) -> None:
        """A run that waits for any device of a label."""
        if marks.canceling(run):
            if not run.is_finished:
                self._instance.report_run_canceled(run, "Canceled before a device had a place for it.")
            self._instance.add_run_tags(run.run_id, {marks.RELAY: marks.CLOSED})
            return
        try:
            device = self._launcher.chosen(run)
        except NotebookedError as error:
            self._instance.report_run_failed(run, str(error))
            self._instance.add_run_tags(run.run_id, {marks.RELAY: marks.CLOSED})
            return
        if device is not None:
            self._instance.add_run_tags(run.run_id, {marks.CHOSEN: device.name})

    def _orphan(self, run: DagsterRun, name: str) -> None:
        if not run.is_finished:
            self._instance.report_run_failed(
                run, f"Device {name} is declared no more; what the run does there is not known."
            )
        self._instance.add_run_tags(run.run_id, {marks.RELAY: marks.CLOSED})

    def _ensure(self, device: Device) -> None:
        thread, done, declared = self._threads.get(device.name, (None, None, None))
        if thread is not None and done is not None and thread.is_alive():
            if declared != device:
                # Another look finds it gone: two relays of one device would store its events twice.
                done.set()
            return
        done = threading.Event()
        relay = DeviceRelay(
            self._instance, device, self._launcher.state, self.owner, self, self._launcher.patience
        )
        thread = threading.Thread(target=self._loop, args=(relay, done), name=device.name, daemon=True)
        self._threads[device.name] = (thread, done, device)
        thread.start()

    def _loop(self, relay: DeviceRelay, done: threading.Event) -> None:
        wait = 0.0
        while not done.wait(wait):
            try:
                wait = relay.step()
            except Exception:
                log.exception("A round over %s failed; the next comes.", relay.device.name)
                wait = 5.0

    def deliver(self, run: DagsterRun, device: Device, link: Link) -> bool:
        """Start a run; as ``relay.Courier`` says."""
        try:
            return self._launcher.deliver(run, device, link)
        except DeviceError as error:
            if error.details.get("refused") == "full" and DEVICE not in run.tags:
                # Another of its label may have a place.
                self._instance.add_run_tags(run.run_id, {marks.CHOSEN: ""})
            raise

    def bring(self, run: DagsterRun, device: Device, link: Link) -> None:
        """Bring a run's code; as ``relay.Courier`` says."""
        self._launcher.bring(run, device, link)


if __name__ == "__main__":
    from importlib import import_module

    sys.exit(import_module("notebooked_dagster.edge.tending").main())
