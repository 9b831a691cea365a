"""A circuit breaker: what fails again and again is left alone for a while, then tried by one call.

pybreaker holds a lock for as long as a call takes, so that the requests to an endpoint would queue; purgatory lets
everybody through once the time is up. Both go by the wall clock.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from enum import StrEnum


class State(StrEnum):
    """What becomes of the next call."""

    CLOSED = "closed"
    OPEN = "open"
    HALF_OPEN = "half open"


class CircuitBreaker:
    """Closed until ``limit`` calls in a row have failed; then open, and after a rest half open: one call decides.

    Whoever calls asks ``admit`` first and hands its ticket back with what came of it. Safe in several threads.

    Args:
        limit: Failures in a row that open it.
        rest: Seconds it stays open at first; twice as long each time the one call fails.
        longest_rest: At most.
        clock: Seconds that only grow.
    """

    def __init__(
        self,
        limit: int = 5,
        rest: float = 5.0,
        longest_rest: float = 60.0,
        *,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._limit = limit
        self._first_rest = rest
        self._longest_rest = longest_rest
        self._clock = clock
        self._lock = threading.Lock()
        # A call that began before the state last changed has nothing to say about this one.
        self._age = 0
        self._probing = False
        self._rest = rest
        self._until: float | None = None
        self.failures = 0

    @property
    def state(self) -> State:
        """The state now."""
        with self._lock:
            if self._until is None:
                return State.CLOSED
            return State.OPEN if self._clock() < self._until else State.HALF_OPEN

    def admit(self) -> int | None:
        """A ticket for a call; None where it must not be made."""
        with self._lock:
            if self._until is None:
                return self._age
            if self._probing or self._clock() < self._until:
                return None
            self._probing = True
            return self._age

    def wait(self) -> float:
        """Seconds until a call may be made again."""
        with self._lock:
            return max(0.0, self._until - self._clock()) if self._until is not None else 0.0

    def succeeded(self, ticket: int) -> None:
        """The call worked."""
        with self._lock:
            if ticket == self._age:
                self.failures, self._rest = 0, self._first_rest
                if self._until is not None:
                    self._become(None)

    def failed(self, ticket: int) -> None:
        """The call failed as calls fail where there is an outage."""
        with self._lock:
            if ticket != self._age:
                return
            self.failures += 1
            if self._until is not None:
                self._rest = min(2 * self._rest, self._longest_rest)
                self._become(self._clock() + self._rest)
            elif self.failures >= self._limit:
                self._become(self._clock() + self._rest)

    def untold(self, ticket: int) -> None:
        """The call says nothing about what was called: it was never sent, or its input was wrong."""
        with self._lock:
            if ticket == self._age:
                self._probing = False

    def _become(self, until: float | None) -> None:
        self._until, self._probing = until, False
        self._age += 1
