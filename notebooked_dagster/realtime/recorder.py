"""``Recorder``: what comes in by some ports becomes a take; a power cut costs at most its last second.

Noting an event costs an append to a list. Twice a second a thread writes what has gathered and has it on the disk
before the next half second is over.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import time
from collections.abc import Callable, Collection, Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, BinaryIO

from .messages import REAL_TIME, Event, Gap
from .takes import RECORDING, Take, claim, finish, line, recover, sync_folder, take_name

log = logging.getLogger("notebooked.realtime.recorder")
_FLUSH = 0.5
# Where the disk takes nothing (full, failing) this much is kept in memory, some minutes of dense playing.
_KEPT = 200_000


class Recorder:
    """Records takes into a spool folder.

    Args:
        spool: The folder.
        device: Which device this is.
        ports: Whose events are recorded; those of all where empty.
        facts: What the sidecar is to say of ports and clock, asked when a take starts.
        idle: A take ends by itself after this many seconds without a message; never where None.
    """

    def __init__(
        self,
        spool: Path,
        device: str,
        *,
        ports: Collection[str] = (),
        facts: Callable[[], Mapping[str, Any]] = dict,
        idle: float | None = None,
    ) -> None:
        self._spool = spool
        self._device = device
        self._ports = frozenset(ports)
        self._facts = facts
        self._idle = idle
        self._lines: list[bytes] = []
        self._stream: BinaryIO | None = None
        self._path: Path | None = None
        self._task: asyncio.Task[None] | None = None
        self._writing = asyncio.Lock()
        self._bpm = 0.0
        self._last = 0
        self.recorded = 0
        self.lost = 0
        self.failed = ""
        self.takes: list[str] = []

    async def open(self) -> tuple[list[Take], list[Path]]:
        """Make the spool, and finish what an earlier run could not. See ``takes.recover`` for what comes back."""
        (self._spool / RECORDING).mkdir(parents=True, exist_ok=True)
        takes, unreadable = await asyncio.to_thread(recover, self._spool)
        for take in takes:
            log.warning("recovered the take %s: %.1f s", take.name, take.sidecar["seconds"])
        for path in unreadable:
            log.error("nothing of %s could be read", path)
        self.takes += [take.name for take in takes]
        return takes, unreadable

    @property
    def recording(self) -> str | None:
        """The name of the take that is being recorded."""
        return self._path.stem if self._path is not None else None

    async def start(self) -> str:
        """Start a take; where one runs already, that is the one. Returns its name."""
        if self._path is not None:
            return self._path.stem
        started, at = datetime.now(UTC), time.monotonic_ns()
        name = take_name(self._device, started)
        path = self._spool / RECORDING / f"{name}.log"
        facts = dict(self._facts())
        self._bpm = float(facts.get("clock", {}).get("bpm") or 120.0)
        header = {
            "take": name,
            "device": self._device,
            "started": started.isoformat(),
            "at": at,
            "bpm": self._bpm,
            "ports": sorted(self._ports) or [port["name"] for port in facts.get("ports", ())],
            "facts": facts,
        }
        self._stream = await asyncio.to_thread(_create, path)
        self._path, self._last = path, at
        self._lines = [line("take", header)]
        self.failed = ""
        await self.flush()
        self._task = asyncio.create_task(self._keep_flushing(), name="recorder")
        log.info("recording %s", name)
        return name

    def note(self, event: Event) -> None:
        """Record an event, where a take runs and the event's port belongs to it."""
        message = event.message
        if self._path is None or message is None or (self._ports and event.source not in self._ports):
            return
        # Clocks would be nearly all of a file; the tempo they mean is recorded instead.
        if message.type in REAL_TIME:
            return
        self._last = event.at
        self._append(line("midi", event.at, event.source, message.hex("")))
        self.recorded += 1

    def tempo(self, bpm: float) -> None:
        """Record a change of tempo; one too small to hear is none."""
        if self._path is not None and abs(bpm - self._bpm) > 0.05:
            self._bpm = bpm
            self._append(line("tempo", time.monotonic_ns(), round(bpm, 3)))

    def gap(self, gap: Gap) -> None:
        """Record that something was lost."""
        if self._path is not None and (not self._ports or gap.source in self._ports):
            self._append(line("gap", gap.at, gap.source, gap.reason, gap.count))

    async def stop(self) -> Take | None:
        """End the take. Where the disk is full it stays a log, and becomes a take at the next start."""
        if self._path is None:
            return None
        path, stream = self._path, self._stream
        assert stream is not None
        self._append(line("end", time.monotonic_ns()))
        self._path = None
        if self._task is not None and self._task is not asyncio.current_task():
            self._task.cancel()
        self._task = None
        await self.flush()
        try:
            if self.failed:
                # What is in memory only would be missing from the take for ever.
                raise OSError(self.failed)
            take = await asyncio.to_thread(finish, self._spool, path)
        except OSError as error:
            self.lost, self._lines = self.lost + len(self._lines), []
            self._fail(error)
            return None
        finally:
            with contextlib.suppress(OSError):
                stream.close()
            self._stream = None
        self.takes.append(take.name)
        log.info(
            "recorded %s: %d messages, %.1f s", take.name, take.sidecar["messages"], take.sidecar["seconds"]
        )
        return take

    async def flush(self) -> None:
        """Have on the disk what was noted so far. A disk that takes nothing is told of, and tried again."""
        async with self._writing:
            lines, self._lines = self._lines, []
            if self._stream is None or not lines:
                return
            try:
                await asyncio.to_thread(_write, self._stream, b"".join(lines))
            except OSError as error:
                self._lines = lines + self._lines
                self._fail(error)
            else:
                self.failed = ""

    def _append(self, text: bytes) -> None:
        if len(self._lines) >= _KEPT:
            self.lost += 1
            return
        self._lines.append(text)

    def _fail(self, error: OSError) -> None:
        if not self.failed:
            log.error("the take cannot be written: %s; kept in memory and tried again", error)
        self.failed = error.strerror or str(error)

    async def _keep_flushing(self) -> None:
        while True:
            await asyncio.sleep(_FLUSH)
            if self.lost and len(self._lines) < _KEPT:
                lost, self.lost = self.lost, 0
                self._append(line("gap", time.monotonic_ns(), "", "disk full", lost))
            await self.flush()
            if self._idle is not None and time.monotonic_ns() - self._last > self._idle * 1e9:
                await self.stop()
                return


def _create(path: Path) -> BinaryIO:
    stream = path.open("xb", buffering=0)
    # While this is held, no recovery takes the log for one that a power cut left.
    claim(stream)
    sync_folder(path.parent)
    return stream


def _write(stream: BinaryIO, data: bytes) -> None:
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
