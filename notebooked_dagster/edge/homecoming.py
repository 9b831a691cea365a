"""The journal of one run, on its way into the central instance: each event exactly once, in order.

What has come of the journal lies in a file here, whose length is the offset to go on from. What of it the central instance
has is asked of the instance itself, by the events' content: a file beside it could not be changed in one transaction with
it. That is asked when a relay starts, and when it takes a run over from another.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from dagster import DagsterEventType, DagsterInstance, DagsterRun, DagsterRunStatus
from dagster._core.events import EVENT_TYPE_TO_PIPELINE_RUN_STATUS
from dagster._core.events.log import EventLogEntry
from dagster._core.storage.dagster_run import FINISHED_STATUSES
from dagster._serdes import deserialize_value, serialize_value

from .journal import NAME, Record, decode, read

# A device's clock is believed this far: beyond it, an event's time is worked out from the host's clock and from how long
# the device has been up. A Pi has no clock of its own, and may think it is last Tuesday until the network is there.
_SKEW = 2.0
_BEFORE_START = (DagsterRunStatus.STARTING, DagsterRunStatus.NOT_STARTED, DagsterRunStatus.QUEUED)


class Homecoming:
    """One run's.

    Args:
        instance: The central instance.
        run_id: The run.
        folder: Where what has come of it is kept.
    """

    def __init__(self, instance: DagsterInstance, run_id: str, folder: Path) -> None:
        self.run_id = run_id
        self.folder = folder
        self.exit: Mapping[str, Any] | None = None
        self.ended_by_itself = False
        self._instance = instance
        self._mirror = folder / NAME
        self._began: Mapping[str, Any] | None = None
        self._known: Counter[bytes] = Counter()
        self._last_known: EventLogEntry | None = None
        self._applied = 0
        folder.mkdir(parents=True, exist_ok=True)
        self.offset = self._whole()
        self.recover()

    def recover(self) -> None:
        """Look at what the central instance has; the journal is gone through again from its beginning."""
        self.exit, self._began, self._applied, self._last_known = None, None, 0, None
        self._known = Counter(_digest(entry) for entry in self._instance.all_logs(self.run_id))

    @property
    def settled(self) -> bool:
        """Whether everything that has come is stored."""
        return self._applied == self.offset

    def receive(self, piece: bytes) -> None:
        """Keep what has come; half a record comes again."""
        end = self.offset
        for record in decode(piece, self.offset):
            end = record.end
        if end > self.offset:
            with self._mirror.open("ab") as stream:
                stream.write(piece[: end - self.offset])
            self.offset = end

    def apply(self, ours: Callable[[], bool]) -> int:
        """Store what has come and is not stored.

        Args:
            ours: Whether the journal is still this relay's; asked before each event.

        Returns:
            How many events were stored.
        """
        stored = 0
        if self.settled:
            return 0
        for record in read(self._mirror, self._applied):
            if not ours():
                return stored
            stored += self._take(record)
            self._applied = record.end
        return stored

    def _take(self, record: Record) -> int:
        data = record.data
        if data["kind"] == "began":
            self._began = data
        elif data["kind"] == "exit":
            self.exit = data
        elif data["kind"] == "event":
            entry = self._in_our_time(deserialize_value(data["event"], EventLogEntry), data["m"])
            self.ended_by_itself = self.ended_by_itself or _status(entry) in FINISHED_STATUSES
            digest = _digest(entry)
            if self._known[digest] > 0:
                self._known[digest] -= 1
                self._last_known = entry
                return 0
            self._mend()
            return self._store(entry)
        return 0

    def _store(self, entry: EventLogEntry) -> int:
        status = _status(entry)
        run = self._run() if status is not None else None
        if run is not None and run.is_finished:
            # Given up here (cancelled by force, past its deadline), and it stays so: a run has one end.
            return 0
        if run is not None and run.status is DagsterRunStatus.CANCELING and status not in FINISHED_STATUSES:
            # It started after somebody had asked it to stop; it must not look as if nobody had.
            self._instance.event_log_storage.store_event(entry)
            return 1
        self._instance.handle_new_event(entry)
        return 1

    def mend(self) -> None:
        """Finish the last event of a relay that died, where all that has come was stored already."""
        if self.settled:
            self._mend()

    def _mend(self) -> None:
        """The relay before may have died between an event and the status that follows from it."""
        entry, self._last_known = self._last_known, None
        status = _status(entry) if entry is not None else None
        if entry is None or status is None:
            return
        run = self._run()
        if run is None or run.is_finished:
            return
        if status in FINISHED_STATUSES or run.status in _BEFORE_START:
            event = entry.get_dagster_event()
            self._instance.run_storage.handle_run_event(
                self.run_id, event, datetime.fromtimestamp(entry.timestamp, UTC)
            )

    def _run(self) -> DagsterRun | None:
        return self._instance.get_run_by_id(self.run_id)

    def _in_our_time(self, entry: EventLogEntry, up: float) -> EventLogEntry:
        """The same whenever it is asked: by its content an event is known."""
        if self._began is None:
            return entry
        ours = self._began["host"] + (up - self._began["m"])
        return entry if abs(entry.timestamp - ours) <= _SKEW else entry._replace(timestamp=round(ours, 6))

    def _whole(self) -> int:
        """The length of what has come; what a crash left of a record goes."""
        if not self._mirror.exists():
            return 0
        end = 0
        for record in read(self._mirror):
            end = record.end
        if end < self._mirror.stat().st_size:
            with self._mirror.open("r+b") as stream:
                stream.truncate(end)
        return end


def _status(entry: EventLogEntry) -> DagsterRunStatus | None:
    """The status that a run has from an event on."""
    if not entry.is_dagster_event:
        return None
    return EVENT_TYPE_TO_PIPELINE_RUN_STATUS.get(DagsterEventType(entry.get_dagster_event().event_type_value))


def _digest(entry: EventLogEntry) -> bytes:
    return hashlib.blake2b(serialize_value(entry).encode(), digest_size=16).digest()
