"""Lock to an incoming MIDI clock: tempo and phase out of ticks that arrive with jitter, get lost, or change tempo.

An alpha-beta filter, which is a second-order phase-locked loop: predict the next tick, correct phase and period by a share
of what the prediction missed. The shares start as those of a least-squares line through all ticks so far, and fall to
a floor that forgets, so it is quick at first and steady later.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass

from .timeline import PER_SIXTEENTH, PPQN, Lock

_MINUTE = 60e9
# At the floor the period's own noise is about 1 % of the jitter that comes in.
_ALPHA = 0.1
_BETA = _ALPHA * _ALPHA / (2 - _ALPHA)
# Ticks in a row that miss to the same side: the tempo has changed, and waiting for the slow loop would be wrong.
_SAME_SIDE = 6
_RELOCK_AFTER_MISSED = 3
_SPIKE = 4.0
_WHOLE = 0.25
#: Ticks until an estimate is worth something.
WARM = PPQN // 2


@dataclass
class Follower:
    """What is known of an incoming clock.

    Attributes:
        ticks: Since the song's start while it runs; since anything while it does not.
        missed: Ticks that must have been there and did not arrive.
        relocks: How often the tempo jumped.
        running: Whether its song runs.
        stopped: The tick at which its song stands while it does not run.
    """

    ticks: int = 0
    missed: int = 0
    relocks: int = 0
    running: bool = False
    stopped: int = 0
    _phase: float = 0.0
    _period: float = 0.0
    _age: int = 0
    _noise: float = 0.0
    _side: int = 0
    _gaps: int = 0
    _counted: int = 0
    _last: int = 0
    _recent: tuple[int, ...] = ()

    @property
    def bpm(self) -> float:
        """The tempo; 0 where it is not known yet."""
        return _MINUTE / (PPQN * self._period) if self._period > 0 else 0.0

    @property
    def locked(self) -> bool:
        """Whether the estimate is worth following."""
        return self._age >= WARM

    @property
    def phase(self) -> float:
        """When the last tick should have been, in ns."""
        return self._phase

    def lost(self, now: int) -> bool:
        """Whether the clock has gone: nothing for a quarter note (or for 2 s at first)."""
        return self._age > 0 and now - self._last > max(PPQN * self._period, 2e8 if self._period else 2e9)

    def forget(self) -> None:
        """The clock has gone; the next tick is a first one. Position and counts stay."""
        self._age, self._period, self._side, self._gaps, self._noise = 0, 0.0, 0, 0, 0.0
        self._recent = ()

    def start(self) -> None:
        """Its song starts: the next tick is the first."""
        self.ticks, self.running = 0, True

    def stop(self) -> None:
        """Its song stops; ticks go on."""
        if self.running:
            self.stopped, self.running = self.ticks, False

    def resume(self) -> None:
        """Its song goes on from where it stood; that is said in sixteenths."""
        if not self.running:
            self.ticks, self.running = self.stopped // PER_SIXTEENTH * PER_SIXTEENTH, True

    def locate(self, sixteenths: int) -> None:
        """Its song position was set."""
        self.stopped = sixteenths * PER_SIXTEENTH
        if self.running:
            self.ticks = self.stopped

    def tick(self, at: int) -> None:
        """A clock arrived at this time."""
        self.ticks += 1
        self._recent = (*self._recent[-_SAME_SIDE:], at)
        since, self._last = at - self._last, at
        if self._age == 0:
            self._phase, self._age = float(at), 1
            return
        if self._period <= 0:
            self._period, self._phase, self._age = max(1.0, at - self._phase), float(at), 2
            return
        predicted = self._phase + self._period
        error = at - predicted
        gone = round(since / self._period) - 1
        # A lost tick leaves a hole of whole ticks; anything between is another tempo.
        whole = abs(since - (gone + 1) * self._period) < _WHOLE * self._period
        if gone >= 1 and whole and self._age > _SAME_SIDE:
            self._gaps += 1
            if self._gaps > _RELOCK_AFTER_MISSED:
                # A tick missing each time is no loss but a slower clock.
                self._relock(at)
                return
            self._counted += gone
            self.missed += gone
            self.ticks += gone
            predicted += gone * self._period
            error -= gone * self._period
        else:
            self._gaps = 0
        self._correct(at, predicted, error)

    def _correct(self, at: int, predicted: float, error: float) -> None:
        n = self._age
        alpha = max(_ALPHA, 2 * (2 * n + 1) / ((n + 1) * (n + 2)))
        beta = max(_BETA, 6 / ((n + 1) * (n + 2)))
        spike = max(_SPIKE * self._noise, 0.002 * self._period)
        side = (error > 0) - (error < 0) if abs(error) > spike / 2 else 0
        self._side = self._side + side if side * self._side >= 0 and side else side
        if not side and not self._gaps:
            self._counted = 0
        if abs(self._side) >= _SAME_SIDE and n > 2 * _SAME_SIDE:
            self._relock(at)
            return
        if n > WARM:
            # One late tick is a spike of the scheduler, not a change of tempo; its full weight would bend the line.
            error = max(-2 * spike, min(2 * spike, error))
        self._noise += (abs(error) - self._noise) * (0.05 if n > WARM else 0.3)
        self._phase = predicted + alpha * error
        self._period = max(1.0, self._period + beta * error)
        self._age = n + 1

    def _relock(self, at: int) -> None:
        """Start again from the last few ticks."""
        self.relocks += 1
        # What was taken for lost ticks was the change itself.
        self.ticks -= self._counted
        self.missed -= self._counted
        recent = self._recent
        # The median interval: the first of them may still be one of the old tempo.
        steps = sorted(second - first for first, second in itertools.pairwise(recent))
        self._period = float(max(1, steps[len(steps) // 2]))
        self._phase, self._age = float(at), 3
        self._side = self._gaps = self._counted = 0
        self._noise = 0.0

    def next(self) -> Lock:
        """Where the next tick is due, for ``Engine.lock``; only where it is locked."""
        return Lock(self.ticks, round(self._phase + self._period), self.bpm, self.running)
