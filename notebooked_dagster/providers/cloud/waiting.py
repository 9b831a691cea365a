"""Waiting for something in a cloud that may be out of reach for a while."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from typing import TypeVar

from notebooked_dagster.core.retrying import PATIENCE, Outage, RetryBudget
from notebooked_dagster.errors import ProviderError

T = TypeVar("T")


class OutOfReachError(ProviderError):
    """The cloud did not answer, or asked to be left alone for a while: what was asked may well work in a minute."""


def until(
    look: Callable[[], T],
    done: Callable[[T], bool],
    *,
    budget: RetryBudget,
    poll: float,
    timeout: float | None,
    patience: float = PATIENCE,
    say: Callable[[str], None],
) -> T:
    """Look again and again until what is seen is the end of it.

    Args:
        look: Asks the cloud once; an ``OutOfReachError`` of it is waited out.
        done: Whether what was seen is the end.
        budget: Of the provider.
        poll: Seconds between two looks.
        timeout: Seconds after which what was seen last is returned although it is no end: the caller knows what that
            means. None for as long as it takes.
        patience: Seconds that the cloud may be out of reach at a stretch.
        say: Told the first failure of each outage.

    Returns:
        What was seen last.

    Raises:
        OutOfReachError: The cloud was out of reach for longer than ``patience``.
    """
    deadline = time.monotonic() + (math.inf if timeout is None else timeout)
    outage = Outage(budget, base=poll, patience=patience)
    while True:
        try:
            seen = look()
        except OutOfReachError as error:
            if outage.failures == 0:
                say(f"{error.message} It is asked again.")
            if not outage.goes_on():
                raise
            continue
        outage.over()
        if done(seen) or time.monotonic() >= deadline:
            return seen
        time.sleep(poll)
