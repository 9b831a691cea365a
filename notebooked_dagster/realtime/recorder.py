"""``Recorder``: what comes in by some ports becomes a take; a power cut costs at most its last second.

Noting an event costs an append to a list, and so do starting and ending a take: the disk is a task's business, one for each
take. Twice a second it writes what has gathered, in a thread, and has it on the disk before the next half second is over.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import time
from collections.abc import Awaitable, Callable, Collection, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, BinaryIO

from notebooked_dagster.errors import DataError

from .messages import REAL_TIME, Event, Gap
from .takes import RECORDING, Take, claim, finish, line, recover, sync_folder, take_name

log = logging.getLogger("notebooked.realtime.recorder")
_FLUSH = 0.5
# Where the disk takes nothing (full, failing) this much is kept in memory, some minutes of dense playing.
_KEPT = 200_000


@dataclass
class _Recording:
    """A take under way. Nothing in it is shared with the take after it, which may start before this one is on the disk.

    Attributes:
        path: Its log.
        lines: What is not written yet.
        bpm: The tempo that was noted last.
        last: When the last event came.
        stream: The log, once the disk took it.
        lost: How many events memory could not hold since the last gap that tells of them.
        ended: Whether nothing more comes.
    """

    path: Path
    lines: list[bytes]
    bpm: float
    last: int
    stream: BinaryIO | None = None
    lost: int = 0
    ended: asyncio.Event = field(default_factory=asyncio.Event)


class Recorder:
    """Records takes into a spool folder.

    Args:
        spool: The folder.
        device: Which device this is.
        ports: Whose events are recorded; those of all where empty.
        facts: What the sidecar is to say of ports and clock, asked when a take starts.
        idle: A take ends by itself after this many seconds without a message; never where None.
        finished: What is done with each finished take, however it ended: by hand, by itself, or by a power cut.
    """

    def __init__(
        self,
        spool: Path,
        device: str,
        *,
        ports: Collection[str] = (),
        facts: Callable[[], Mapping[str, Any]] = dict,
        idle: float | None = None,
        finished: Callable[[Take], Awaitable[None]] | None = None,
    ) -> None:
        self._spool = spool
        self._device = device
        self._ports = frozenset(ports)
        self._facts = facts
        self._idle = idle
        self._finished = finished
        self._current: _Recording | None = None
        self._writing: asyncio.Task[Take | None] | None = None
        self._tasks: set[asyncio.Task[Take | None]] = set()
        self._name = ""
        self.recorded = 0
        self.lost = 0
        self.failed = ""
        self.takes: list[str] = []

    async def open(self) -> tuple[list[Take], list[tuple[Path, str]]]:
        """Finish what an earlier run could not. See ``takes.recover`` for what comes back."""
        takes, problems = await asyncio.to_thread(recover, self._spool)
        for path, reason in problems:
            log.error("no take could be made of %s: %s", path, reason)
        for take in takes:
            log.warning("recovered the take %s: %.1f s", take.name, take.sidecar["seconds"])
            await self._hand_on(take)
        return takes, problems

    async def close(self) -> None:
        """End the take, and wait until all there were are on the disk."""
        self.end()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    @property
    def recording(self) -> str | None:
        """The name of the take that is being recorded."""
        return self._current.path.stem if self._current is not None else None

    def start(self) -> str:
        """Start a take at once; where one runs already, that is the one. Returns its name."""
        if self._current is not None:
            return self._current.path.stem
        started, at = datetime.now(UTC), time.monotonic_ns()
        if take_name(self._device, started) == self._name:
            started += timedelta(milliseconds=1)
        self._name = name = take_name(self._device, started)
        facts = dict(self._facts())
        bpm = float(facts.get("clock", {}).get("bpm") or 120.0)
        header = {
            "take": name,
            "device": self._device,
            "started": started.isoformat(),
            "at": at,
            "bpm": bpm,
            "ports": sorted(self._ports) or [port["name"] for port in facts.get("ports", ())],
            "facts": facts,
        }
        take = _Recording(self._spool / RECORDING / f"{name}.log", [line("take", header)], bpm, at)
        self._current = take
        self._writing = asyncio.create_task(self._write(take), name=f"take-{name}")
        self._tasks.add(self._writing)
        self._writing.add_done_callback(self._written)
        log.info("recording %s", name)
        return name

    def note(self, event: Event) -> None:
        """Record an event, where a take runs and the event's port belongs to it."""
        message, take = event.message, self._current
        if take is None or message is None or (self._ports and event.source not in self._ports):
            return
        # Clocks would be nearly all of a file; the tempo they mean is recorded instead.
        if message.type in REAL_TIME:
            return
        take.last = event.at
        self._append(take, line("midi", event.at, event.source, message.hex("")))
        self.recorded += 1

    def tempo(self, bpm: float) -> None:
        """Record a change of tempo; one too small to hear is none."""
        take = self._current
        if take is not None and abs(bpm - take.bpm) > 0.05:
            take.bpm = bpm
            self._append(take, line("tempo", time.monotonic_ns(), round(bpm, 3)))

    def gap(self, gap: Gap) -> None:
        """Record that something was lost."""
        if self._current is not None and (not self._ports or gap.source in self._ports):
            self._append(self._current, line("gap", gap.at, gap.source, gap.reason, gap.count))

    def end(self) -> None:
        """End the take at once; it becomes files by itself, and the next may start."""
        take, self._current = self._current, None
        if take is not None:
            # However full memory is: without these two the take would look whole, or cut off.
            take.lines += [*self._told_lost(take), line("end", time.monotonic_ns())]
            take.ended.set()

    async def stop(self) -> Take | None:
        """End the take, and wait for its files. Where the disk is full it stays a log, and becomes a take at the next start."""
        if self._current is None:
            return None
        writing = self._writing
        self.end()
        assert writing is not None
        return await writing

    async def _write(self, take: _Recording) -> Take | None:
        """All that touches the disk for one take, one after another, from the log's creation to the finished files."""
        while not take.ended.is_set():
            await self._flush(take)
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(take.ended.wait(), _FLUSH)
            idle = self._idle is not None and time.monotonic_ns() - take.last > self._idle * 1e9
            if idle and not take.ended.is_set():
                self.end()
        try:
            await self._flush(take)
            if take.lines:
                # What is in memory only would be missing from the take for ever.
                raise OSError(self.failed)
            finished = await asyncio.to_thread(finish, self._spool, take.path)
        except (OSError, DataError) as error:
            self.lost += sum(b'["midi"' in text for text in take.lines)
            self.failed = _reason(error)
            log.error(
                "%s was not finished: %s; its log becomes a take at the next start",
                take.path.stem,
                self.failed,
            )
            return None
        finally:
            if take.stream is not None:
                with contextlib.suppress(OSError):
                    take.stream.close()
        told = finished.sidecar
        log.info("recorded %s: %d messages, %.1f s", finished.name, told["messages"], told["seconds"])
        await self._hand_on(finished)
        return finished

    def _written(self, task: asyncio.Task[Take | None]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            log.error("%s ended by itself", task.get_name(), exc_info=error)

    async def _hand_on(self, take: Take) -> None:
        if self._finished is not None:
            try:
                await self._finished(take)
            except OSError as error:
                log.warning("the take %s is finished, and could not be handed on: %s", take.name, error)
        self.takes.append(take.name)

    async def _flush(self, take: _Recording) -> None:
        """Have on the disk what was noted so far. A disk that takes nothing is told of, and tried again."""
        if len(take.lines) < _KEPT:
            take.lines += self._told_lost(take)
        if not take.lines:
            return
        count = len(take.lines)
        try:
            if take.stream is None:
                take.stream = await asyncio.to_thread(_create, take.path)
            await asyncio.to_thread(_append, take.stream, b"".join(take.lines[:count]))
        except OSError as error:
            if not self.failed:
                log.error("the take cannot be written: %s; kept in memory and tried again", error)
            self.failed = _reason(error)
        else:
            del take.lines[:count]
            self.failed = ""

    @staticmethod
    def _told_lost(take: _Recording) -> list[bytes]:
        lost, take.lost = take.lost, 0
        return [line("gap", time.monotonic_ns(), "", "disk full", lost)] if lost else []

    def _append(self, take: _Recording, text: bytes) -> None:
        if len(take.lines) >= _KEPT:
            take.lost += 1
            self.lost += 1
            return
        take.lines.append(text)


def _reason(error: OSError | DataError) -> str:
    return error.message if isinstance(error, DataError) else error.strerror or str(error)


def _create(path: Path) -> BinaryIO:
    path.parent.mkdir(parents=True, exist_ok=True)
    stream = path.open("xb", buffering=0)
    try:
        # While this is held, no recovery takes the log for one that a power cut left.
        claim(stream)
        sync_folder(path.parent)
    except OSError:
        stream.close()
        path.unlink(missing_ok=True)
        raise
    return stream


def _append(stream: BinaryIO, data: bytes) -> None:
    start = stream.tell()
    try:
        view = memoryview(data)
        while view:
            view = view[stream.write(view) :]
        os.fsync(stream.fileno())
    except OSError:
        # Half a line in the middle would end the log for whoever reads it.
        with contextlib.suppress(OSError):
            stream.truncate(start)
        with contextlib.suppress(OSError):
            stream.seek(start)
        raise
