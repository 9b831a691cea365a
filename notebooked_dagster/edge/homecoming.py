"""The journal of one run, on its way into the central instance: each event exactly once, in order.

What has come of the journal lies in a file here, whose length is the offset to go on from. What of it the central instance
has is asked of the instance itself, by the events' content: a file beside it could not be changed in one transaction with
it. That is asked when a relay starts, when another one may have stored some of it, and after any failure on the way in.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from dagster import DagsterEventType, DagsterInstance, DagsterRun, DagsterRunStatus
from dagster._check import CheckError
from dagster._core.events import EVENT_TYPE_TO_PIPELINE_RUN_STATUS
from dagster._core.events.log import EventLogEntry
from dagster._core.storage.dagster_run import FINISHED_STATUSES
from dagster._serdes import deserialize_value, serialize_value
from dagster_shared.serdes.errors import DeserializationError

from .journal import NAME, JournalError, Record, decode, read

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
        self.exit: Mapping[str, Any] | None = None
        self.ended_by_itself = False
        self._instance = instance
        self._mirror = folder / NAME
        self._began: Mapping[str, Any] | None = None
        self._known: Counter[bytes] = Counter()
        self._last_known: EventLogEntry | None = None
        self._offset: int | None = None
        self._applied = 0
        self._next = 0
        self._damage: JournalError | None = None
        self._sure = False

    @property
    def offset(self) -> int:
        """Where to go on from. Raises OSError."""
        if self._offset is None:
            self._offset = self._whole()
        return self._offset

    def doubt(self) -> None:
        """Others may have stored some of it: what the central instance has is looked up before anything more is stored."""
        self._sure = False

    def discard(self) -> None:
        """Forget what has come; it comes again from its beginning."""
        self._mirror.unlink(missing_ok=True)
        self._offset = self._applied = self._next = 0
        self._damage = None
        self.doubt()

    @property
    def settled(self) -> bool:
        """Whether everything that has come is stored."""
        return self._applied == self.offset

    def receive(self, piece: bytes) -> None:
        """Keep what has come; half a record comes again. Raises OSError; nothing of it is kept then."""
        start = end = self.offset
        try:
            for record in decode(piece, start):
                end = record.end
        except JournalError as error:
            self._damage = error
        if end == start:
            return
        try:
            handle = os.open(self._mirror, os.O_WRONLY | os.O_CREAT, 0o666)
            with os.fdopen(handle, "wb") as stream:
                stream.seek(start)
                stream.write(piece[: end - start])
                stream.flush()
                os.fsync(stream.fileno())
        except OSError:
            with contextlib.suppress(OSError):
                os.truncate(self._mirror, start)
            raise
        self._offset = end

    def apply(self, ours: Callable[[], bool]) -> int:
        """Store what has come and is not stored.

        Args:
            ours: Whether the journal is still this relay's; asked before each event.

        Returns:
            How many events were stored.

        Raises:
            JournalError: The journal is damaged, or is no journal of this run; everything before that place is stored.
        """
        stored = 0
        with self._certain():
            for record in read(self._mirror, self._applied) if not self.settled else ():
                if not ours():
                    return stored
                stored += self._take(record)
                self._applied, self._next = record.end, self._next + 1
            if self._damage is not None:
                raise self._damage
        return stored

    @contextlib.contextmanager
    def _certain(self) -> Iterator[None]:
        """What an exception has left half done, an event without its status, is looked up before anything more is stored."""
        if not self._sure:
            self.exit, self._began, self._applied, self._next, self._last_known = None, None, 0, 0, None
            self._known = Counter(_digest(entry) for entry in self._instance.all_logs(self.run_id))
        self._sure = False
        yield
        self._sure = True

    def _take(self, record: Record) -> int:
        data = record.data
        if data.get("n") != self._next:
            raise JournalError(
                f"The journal's record {self._next} is missing; number {data.get('n')} ends at byte {record.end}."
            )
        if data["kind"] == "began":
            self._began = data
        elif data["kind"] == "exit":
            self.exit = data
        elif data["kind"] == "event":
            entry = self._in_our_time(self._entry(record), data["m"])
            self.ended_by_itself = self.ended_by_itself or _status(entry) in FINISHED_STATUSES
            digest = _digest(entry)
            if self._known[digest] > 0:
                self._known[digest] -= 1
                self._last_known = entry
                return 0
            self._mend()
            return self._store(entry)
        return 0

    def _entry(self, record: Record) -> EventLogEntry:
        """A record's event. A device speaks for the runs that it was given, and for no other."""
        try:
            entry = deserialize_value(record.data["event"], EventLogEntry)
        except (DeserializationError, CheckError, ValueError, TypeError) as error:
            raise JournalError(f"The record that ends at byte {record.end} is no event: {error}") from error
        if entry.run_id != self.run_id:
            raise JournalError(
                f"The record that ends at byte {record.end} is an event of run {entry.run_id}."
            )
        return entry

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
            with self._certain():
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
        """The length of what has come; what a crash left of a record goes, and a damaged copy goes whole."""
        self._mirror.parent.mkdir(parents=True, exist_ok=True)
        if not self._mirror.exists():
            return 0
        end = 0
        try:
            for record in read(self._mirror):
                end = record.end
        except JournalError:
            self._mirror.unlink()
            return 0
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
