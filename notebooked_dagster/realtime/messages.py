"""What happens at an edge device, as values: a MIDI message or a sensor's reading, where it came in and when.

Everything that comes in is counted, and so is everything that becomes of it: ``received`` is always the sum of
``handled``, ``dropped`` and what still waits.
"""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from dataclasses import dataclass, field

import mido

#: System real-time messages have one byte, may stand between the bytes of others, and belong in no file.
REAL_TIME = frozenset({"clock", "start", "continue", "stop", "active_sensing", "reset"})
#: Four seconds of a saturated DIN cable.
_LIMIT = 4096
# Nobody may be there who takes them: without a recorder, or while only rubbish comes in.
_MOST_GAPS = 1000


@dataclass(frozen=True, slots=True)
class Event:
    """One thing that happened.

    Attributes:
        source: The port or sensor.
        at: ``time.monotonic_ns()`` at its arrival.
        message: The MIDI message; None for a sensor.
        value: The sensor's reading; None for MIDI.
    """

    source: str
    at: int
    message: mido.Message | None = None
    value: float | None = None

    @classmethod
    def of(cls, source: str, message: mido.Message) -> Event:
        """A MIDI message that has arrived just now."""
        return cls(source, time.monotonic_ns(), message)

    @property
    def kind(self) -> str:
        """``note_on``, ``control_change``, …; ``sensor`` for a reading. A note with velocity 0 is its end."""
        if self.message is None:
            return "sensor"
        if self.message.type == "note_on" and self.message.velocity == 0:
            return "note_off"
        return str(self.message.type)

    def __str__(self) -> str:
        return f"{self.source}: {self.message if self.message is not None else self.value}"


@dataclass(frozen=True, slots=True)
class Gap:
    """Something that was lost on the way in, so that a take can say so.

    Attributes:
        source: The port.
        at: ``time.monotonic_ns()`` when it was noticed.
        reason: In words.
        count: How many messages, where that is known.
    """

    source: str
    at: int
    reason: str
    count: int | None = None


@dataclass
class Counters:
    """What came in and what became of it; only ever touched on the event loop.

    Attributes:
        received: By source.
        handled: By source: went through the dispatcher, whether a rule wanted it or not.
        dropped: By source and reason: never reached the dispatcher.
        actions: By rule and kind of action: carried out.
        refused: By rule and reason: an action that could not be carried out.
        sent: By port.
    """

    received: Counter[str] = field(default_factory=Counter)
    handled: Counter[str] = field(default_factory=Counter)
    dropped: Counter[tuple[str, str]] = field(default_factory=Counter)
    actions: Counter[tuple[str, str]] = field(default_factory=Counter)
    refused: Counter[tuple[str, str]] = field(default_factory=Counter)
    sent: Counter[str] = field(default_factory=Counter)

    def waiting(self) -> int:
        """How many are on the way; what is neither handled nor dropped."""
        return self.received.total() - self.handled.total() - self.dropped.total()


class Inbox:
    """The one bounded queue that everything comes in by.

    Who can wait (a TCP connection) waits, which slows its sender down; who cannot (a UDP packet, a driver's callback)
    offers, and what does not fit is counted as dropped.
    """

    def __init__(self, counters: Counters, limit: int = _LIMIT) -> None:
        self.counters = counters
        self.gaps: list[Gap] = []
        self._queue: asyncio.Queue[Event] = asyncio.Queue(limit)

    async def put(self, event: Event) -> None:
        """Add an event; waits while the queue is full."""
        self.counters.received[event.source] += 1
        try:
            await self._queue.put(event)
        except asyncio.CancelledError:
            self.counters.dropped[event.source, "closed while waiting"] += 1
            raise

    def offer(self, event: Event) -> bool:
        """Add an event where there is room; count it as dropped, and note the gap, where there is none."""
        self.counters.received[event.source] += 1
        try:
            self._queue.put_nowait(event)
        except asyncio.QueueFull:
            self.lost(event.source, "queue full")
            return False
        return True

    def lost(self, source: str, reason: str, count: int = 1) -> None:
        """Note that events were received and dropped."""
        self.counters.dropped[source, reason] += count
        self.gap(source, reason, count)

    def missed(self, source: str, reason: str, count: int) -> None:
        """Note that events were lost before they reached us: a driver's or the network's loss."""
        self.counters.received[source] += count
        self.lost(source, reason, count)

    def gap(self, source: str, reason: str, count: int | None = None) -> None:
        """Note a gap; one that goes on is one gap."""
        last = self.gaps[-1] if self.gaps else None
        if last is not None and (last.source, last.reason) == (source, reason) and count is not None:
            self.gaps[-1] = Gap(source, last.at, reason, (last.count or 0) + count)
        elif len(self.gaps) < _MOST_GAPS:
            self.gaps.append(Gap(source, time.monotonic_ns(), reason, count))

    def take_gaps(self) -> list[Gap]:
        """The gaps since the last call."""
        found, self.gaps = self.gaps, []
        return found

    async def get(self) -> Event:
        """The next event; waits for one."""
        return await self._queue.get()

    def get_nowait(self) -> Event | None:
        """The next event, or None where there is none."""
        try:
            return self._queue.get_nowait()
        except asyncio.QueueEmpty:
            return None

    def __len__(self) -> int:
        return self._queue.qsize()


def decoded(data: bytes) -> mido.Message | None:
    """One whole message of its bytes; None where they are none."""
    try:
        return mido.Message.from_bytes(data)
    except ValueError:
        return None
