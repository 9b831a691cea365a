"""MIDI clock as arithmetic: which byte is due when. No time passes here, so all of it can be tested.

Deadlines are absolute: tick *n* is due at ``anchor + n * period``, computed in whole numbers from the anchor each time. A
tick that went out late does not delay the next one, and no rounding adds up.
"""

from __future__ import annotations

from dataclasses import dataclass
from fractions import Fraction

from notebooked_dagster.errors import ConfigError

#: MIDI clocks in a quarter note, and in a sixteenth, the unit of song position.
PPQN = 24
PER_SIXTEENTH = 6
TICK, START, CONTINUE, STOP = b"\xf8", b"\xfa", b"\xfb", b"\xfc"
MIN_BPM, MAX_BPM = 10.0, 400.0
_MINUTE = 60_000_000_000
_MAX_POSITION = 0x3FFF
# A machine that slept is not to send its ticks of an hour at once. Half a quarter note can be caught up with.
_CATCH_UP = PPQN // 2


def checked_bpm(bpm: float) -> float:
    """The tempo itself. Raises ConfigError where no device would follow it."""
    if not MIN_BPM <= bpm <= MAX_BPM:
        raise ConfigError(
            f"A tempo of {bpm:g} is out of range.",
            hint=f"Write quarter notes a minute from {MIN_BPM:g} to {MAX_BPM:g}.",
        )
    return bpm


def position_bytes(sixteenths: int) -> bytes:
    """A song position pointer; the largest there is where the song is longer than it can say."""
    value = max(0, min(_MAX_POSITION, sixteenths))
    return bytes([0xF2, value & 0x7F, value >> 7])


class Timeline:
    """When each tick is due."""

    def __init__(self, at: int, bpm: float, tick: int = 0) -> None:
        self._at = at
        self._tick = tick
        self.bpm = bpm
        self._period = _period(bpm)

    def due(self, tick: int) -> int:
        """The deadline of a tick, in ns of the monotonic clock."""
        steps = (tick - self._tick) * self._period
        return self._at + steps.numerator // steps.denominator

    def nearest(self, at: int) -> int:
        """The tick whose deadline is nearest to a time."""
        return self._tick + round((at - self._at) / self._period)

    def change(self, tick: int, bpm: float) -> None:
        """From this tick on, another tempo; the tick itself is due when it was."""
        self._at, self._tick = self.due(tick), tick
        self.bpm, self._period = bpm, _period(bpm)

    def move(self, tick: int, at: int, bpm: float | None = None) -> None:
        """This tick is due at this time; the others follow."""
        self._at, self._tick = at, tick
        if bpm is not None:
            self.bpm, self._period = bpm, _period(bpm)


def _period(bpm: float) -> Fraction:
    return Fraction(_MINUTE) / (PPQN * Fraction(bpm).limit_denominator(1_000_000))


@dataclass(frozen=True, slots=True)
class Lock:
    """What a follower knows of the clock it follows: this tick is due at this time; it is one of the song's where that runs."""

    tick: int
    at: int
    bpm: float
    running: bool = True


@dataclass
class Engine:
    """The transport: what is sent when somebody presses a button, and at each deadline.

    Clocks go on while it is stopped, as the MIDI specification recommends: followers know the tempo before they start.

    Attributes:
        timeline: When ticks are due.
        tick: The next tick; counted from the start of the song while it runs, from anywhere while it does not.
        running: Whether the song runs.
        stopped: The tick of the song at which it stands while it does not run.
        skipped: Ticks never sent because the machine slept.
    """

    timeline: Timeline
    tick: int = 0
    running: bool = False
    stopped: int = 0
    skipped: int = 0

    @classmethod
    def at(cls, now: int, bpm: float) -> Engine:
        """A stopped transport whose first tick is due now."""
        return cls(Timeline(now, checked_bpm(bpm)))

    @property
    def due(self) -> int:
        """The next deadline."""
        return self.timeline.due(self.tick)

    @property
    def sixteenths(self) -> int:
        """Song position."""
        return self.position // PER_SIXTEENTH

    @property
    def position(self) -> int:
        """The song's next tick. Clocks that pass while it is stopped are none of the song's."""
        return self.tick if self.running else self.stopped

    def fire(self, now: int) -> bytes:
        """The clock that is due; the next deadline is one on. Empty where the machine slept: that is caught up with."""
        behind = now - self.timeline.due(self.tick + _CATCH_UP)
        if behind > 0:
            missed = _CATCH_UP
            while self.timeline.due(self.tick + missed) <= now:
                missed += max(1, (now - self.timeline.due(self.tick + missed)) // 100_000_000)
            self.skipped += missed
            # Position stays what followers have counted: they have seen none of these either.
            self.timeline.move(self.tick, now)
        self.tick += 1
        return TICK

    def start(self) -> bytes:
        """Play from the beginning: the next clock is the first of the song."""
        self._go(0)
        return START

    def stop(self) -> bytes:
        """Halt; the position is kept, at the sixteenth it can be said in."""
        self.stopped, self.running = self.position, False
        return STOP

    def resume(self) -> bytes:
        """Play from where it was stopped or located."""
        self._go(self.sixteenths * PER_SIXTEENTH)
        return position_bytes(self.sixteenths) + CONTINUE

    def locate(self, sixteenths: int) -> bytes:
        """Go somewhere. A running transport is stopped for it, as devices take no song position while they play."""
        wanted = max(0, min(_MAX_POSITION, sixteenths))
        if self.running:
            self._go(wanted * PER_SIXTEENTH)
            return STOP + position_bytes(wanted) + CONTINUE
        self.stopped = wanted * PER_SIXTEENTH
        return position_bytes(wanted)

    def _go(self, tick: int) -> None:
        """The next clock, due when it was, is this one of the song."""
        self.timeline.move(tick, self.due)
        self.tick, self.running = tick, True

    def tempo(self, bpm: float) -> bytes:
        """Another tempo from the next clock on; nothing is sent for it."""
        self.timeline.change(self.tick, checked_bpm(bpm))
        return b""

    def lock(self, found: Lock) -> bytes:
        """Put the ticks where the followed clock has them."""
        due = self.due
        self.timeline.move(found.tick, found.at, min(MAX_BPM, max(MIN_BPM, found.bpm)))
        if not (self.running and found.running):
            # Clocks of no song, or of our own alone, have no numbers that both could know; only when they are due is to agree.
            self.timeline.move(self.tick, self.timeline.due(self.timeline.nearest(due)))
        return b""
