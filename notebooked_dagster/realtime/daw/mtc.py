"""MIDI time code: eight quarter frames say a position in two frames' time, one full frame says it at once."""

from __future__ import annotations

import asyncio
import contextlib
import math
import time
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import dataclass
from typing import Protocol

import mido

from notebooked_dagster.realtime.clock_process import ClockStatus
from notebooked_dagster.realtime.timeline import PPQN

#: Frames a second -> code. 29.97 is drop frame: numbers 0 and 1 are left out in each minute but every tenth.
RATES: dict[float, int] = {24: 0, 25: 1, 29.97: 2, 30: 3}
_BY_CODE = {code: rate for rate, code in RATES.items()}
_DROPPED_A_MINUTE = 2
_FRAMES_IN_TEN_MINUTES = 17982
_DAY = 24


@dataclass(frozen=True, slots=True)
class Timecode:
    """A position.

    Attributes:
        hours: 0 to 23.
        minutes: 0 to 59.
        seconds: 0 to 59.
        frames: 0 to the rate less one.
        rate: Of ``RATES``.
    """

    hours: int = 0
    minutes: int = 0
    seconds: int = 0
    frames: int = 0
    rate: float = 25

    @property
    def nominal(self) -> int:
        """Frames that are numbered in a second."""
        return round(self.rate)

    @property
    def count(self) -> int:
        """Frames since zero."""
        minutes = self.hours * 60 + self.minutes
        total = (minutes * 60 + self.seconds) * self.nominal + self.frames
        if self.rate == 29.97:
            total -= _DROPPED_A_MINUTE * (minutes - minutes // 10)
        return total

    @property
    def time(self) -> float:
        """Seconds since zero."""
        return self.count * 1001 / 30000 if self.rate == 29.97 else self.count / self.rate

    @classmethod
    def of_count(cls, count: int, rate: float = 25) -> Timecode:
        """The position of a frame; after a day it starts again."""
        nominal = round(rate)
        if rate == 29.97:
            count %= _FRAMES_IN_TEN_MINUTES * 6 * _DAY
            tens, rest = divmod(count, _FRAMES_IN_TEN_MINUTES)
            # The first minute of ten drops nothing.
            dropped = _DROPPED_A_MINUTE * (max(0, rest - _DROPPED_A_MINUTE) // 1798)
            count += 18 * tens + dropped
        seconds, frames = divmod(count, nominal)
        minutes, seconds = divmod(seconds, 60)
        hours, minutes = divmod(minutes, 60)
        return cls(hours % _DAY, minutes, seconds, frames, rate)

    @classmethod
    def of_time(cls, seconds: float, rate: float = 25) -> Timecode:
        """The frame that a time is in."""
        # A frame's own time is a hair less than it in floating point, and belongs to it.
        exact = seconds * 30000 / 1001 if rate == 29.97 else seconds * rate
        return cls.of_count(int(exact + 1e-6), rate)

    def __str__(self) -> str:
        mark = ";" if self.rate == 29.97 else ":"
        return f"{self.hours:02}:{self.minutes:02}:{self.seconds:02}{mark}{self.frames:02}"


def quarter_frames(at: Timecode) -> list[mido.Message]:
    """The eight messages that say a position, in their order."""
    values = (at.frames, at.seconds, at.minutes, at.hours | RATES[at.rate] << 5)
    return [
        mido.Message(
            "quarter_frame", frame_type=index, frame_value=values[index // 2] >> (4 * (index % 2)) & 0x0F
        )
        for index in range(8)
    ]


def full_frame(at: Timecode, device: int = 0x7F) -> mido.Message:
    """The message that says a position at once; for locating."""
    first = at.hours | RATES[at.rate] << 5
    return mido.Message("sysex", data=(0x7F, device, 1, 1, first, at.minutes, at.seconds, at.frames))


def stream(start: Timecode) -> Iterator[mido.Message]:
    """Quarter frames for ever; one is due every quarter of a frame. Each eight say where they themselves began."""
    count = start.count
    while True:
        yield from quarter_frames(Timecode.of_count(count, start.rate))
        count += 2


class Transport(Protocol):
    """What is followed: ``Clock``."""

    moved: asyncio.Event

    @property
    def status(self) -> ClockStatus | None:
        """Where the song is."""


async def follow(transport: Transport, rate: float, send: Callable[[mido.Message], Awaitable[None]]) -> None:
    """Quarter frames while the transport runs, at absolute deadlines; a full frame wherever it is moved. For ever."""
    moved = transport.moved
    zero, sent = 0.0, 0
    while True:
        status = transport.status
        if status is not None and moved.is_set():
            moved.clear()
            start = status.position * 60 / (PPQN * status.bpm)
            await send(full_frame(Timecode.of_time(start, rate)))
            # Eight quarter frames say one position, and begin with a frame that is even.
            zero, sent = status.due / 1e9 - start, math.ceil(start * rate / 2) * 8
            continue
        if status is None or not status.running:
            await moved.wait()
            continue
        wait = zero + sent / (4 * rate) - time.monotonic()
        if wait > 0:
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(moved.wait(), wait)
        if moved.is_set():
            continue
        count, index = divmod(sent, 8)
        await send(quarter_frames(Timecode.of_count(count * 2, rate))[index])
        sent += 1


class Reader:
    """Puts positions together out of what comes in.

    Attributes:
        position: The last one known; it is two frames on from what eight quarter frames said, as they took that long.
        damaged: Rounds of eight of which one was lost or out of order.
    """

    def __init__(self) -> None:
        self.position: Timecode | None = None
        self.damaged = 0
        self._parts: list[int] = []

    def feed(self, message: mido.Message) -> Timecode | None:
        """The position that a message completes; None where it completes none."""
        if message.type == "sysex":
            data = message.data
            if len(data) == 8 and data[0] == 0x7F and data[2:4] == (1, 1):
                self._parts = []
                return self._found(data[4], data[5], data[6], data[7], 0)
            return None
        if message.type != "quarter_frame":
            return None
        if message.frame_type != len(self._parts):
            self.damaged += bool(self._parts)
            self._parts = []
            if message.frame_type != 0:
                return None
        self._parts.append(message.frame_value)
        if len(self._parts) < 8:
            return None
        low, high = self._parts[::2], self._parts[1::2]
        self._parts = []
        frames, seconds, minutes, first = (a | b << 4 for a, b in zip(low, high, strict=True))
        return self._found(first, minutes, seconds, frames, 2)

    def _found(self, first: int, minutes: int, seconds: int, frames: int, later: int) -> Timecode | None:
        rate = _BY_CODE[first >> 5 & 3]
        found = Timecode(first & 0x1F, minutes & 0x3F, seconds & 0x3F, frames & 0x1F, rate)
        if found.hours >= _DAY or found.minutes > 59 or found.seconds > 59 or found.frames >= found.nominal:
            self.damaged += 1
            return None
        self.position = Timecode.of_count(found.count + later, rate)
        return self.position
