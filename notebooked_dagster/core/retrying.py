"""Trying again without making an outage worse: back-off with full jitter, a deadline, and a budget for a whole process.

The waits are tenacity's. It has no budget, which is what keeps a hundred waiting jobs from asking a cloud that is down a
hundred times as often as one. What an SDK tries again by itself is its own business and is not counted here.
"""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Callable
from functools import lru_cache
from typing import Final, TypeVar

T = TypeVar("T")
# Seconds that something may be out of reach before whoever waits for it is told.
PATIENCE: Final = 900.0
_LONGEST_WAIT = 60.0


class RetryBudget:
    """A bucket of tokens, one for each retry, that fills up with time. Safe in several threads.

    In any ``t`` seconds at most ``capacity + refill * t`` retries are made.

    Args:
        capacity: How many may be made at once.
        refill: How many come back each second.
        clock: Seconds that only grow.
    """

    def __init__(
        self, capacity: float = 20.0, refill: float = 1.0, *, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._capacity = capacity
        self._refill = refill
        self._clock = clock
        self._tokens = capacity
        self._at = clock()
        self._lock = threading.Lock()

    def take(self) -> bool:
        """Take a token for a retry now; False where there is none, and the failure is final."""
        with self._lock:
            self._fill()
            if self._tokens < 1:
                return False
            self._tokens -= 1
            return True

    def reserve(self) -> float:
        """Take the next token there will be, for one who cannot give up; returns in how many seconds it is there."""
        with self._lock:
            self._fill()
            self._tokens -= 1
            return max(0.0, -self._tokens / self._refill)

    def _fill(self) -> None:
        now = self._clock()
        self._tokens = min(self._capacity, self._tokens + (now - self._at) * self._refill)
        self._at = now


@lru_cache(maxsize=32)
def budget_of(provider: str) -> RetryBudget:
    """The budget that all of this process's calls to a provider share."""
    return RetryBudget()


def again(
    call: Callable[[], T],
    *,
    when: Callable[[BaseException], bool],
    budget: RetryBudget,
    attempts: int,
    base: float,
) -> T:
    """Make a call that may be made twice, until it works, has been tried often enough, or the budget is spent.

    Args:
        call: The call.
        when: Whether a failure is one that may be gone in a moment.
        budget: Of the provider.
        attempts: How often it is tried at most.
        base: The longest wait before the second try, in seconds; it doubles with each.

    Raises:
        BaseException: The last failure.
    """
    from tenacity import Retrying, retry_if_exception, wait_random_exponential

    retrying = Retrying(
        retry=retry_if_exception(when),
        # In this order: what is not tried again takes no token.
        stop=lambda state: state.attempt_number >= attempts or not budget.take(),
        wait=wait_random_exponential(multiplier=base, max=_LONGEST_WAIT),
        reraise=True,
    )
    return retrying(call)


def wait(attempt: int, base: float) -> float:
    """Seconds before the next try, with full jitter, where a loop cannot be a call of ``again``. ``attempt`` counts from 1."""
    longest = min(base * 2.0 ** min(attempt - 1, 32), _LONGEST_WAIT)
    return random.uniform(0.0, longest)


class Outage:
    """Trouble that a loop which polls waits out, with longer and longer waits, up to a deadline.

    ::

        outage = Outage(budget, base=10.0)
        while True:
            try:
                found = look()
            except OutOfReachError:
                if not outage.goes_on():
                    raise
                continue
            outage.over()

    Args:
        budget: Of the provider.
        base: The longest first wait, in seconds.
        patience: Seconds after which it is too long.
    """

    def __init__(self, budget: RetryBudget, *, base: float, patience: float = PATIENCE) -> None:
        self._budget = budget
        self._base = base
        self._patience = patience
        self._since: float | None = None
        self.failures = 0

    def goes_on(self) -> bool:
        """Wait before the next try; False, at once, where it has lasted too long."""
        now = time.monotonic()
        self._since = self._since if self._since is not None else now
        self.failures += 1
        if now - self._since >= self._patience:
            return False
        time.sleep(max(wait(self.failures, self._base), self._budget.reserve()))
        return True

    def over(self) -> None:
        """It works again."""
        self._since, self.failures = None, 0
