"""Waiting for something in a cloud that may be out of reach for a while."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from notebooked_dagster.core.retrying import RetryBudget
from notebooked_dagster.providers.cloud.waiting import OutOfReachError, until

AWAY = OutOfReachError("The cloud is away.")


def waited(
    *answers: int | Exception, patience: float = 60.0, timeout: float | None = None
) -> tuple[int, list[str]]:
    """What ``until`` returns of these answers, the last of which stays, and what it said; 3 is the end."""
    given: Iterator[int | Exception] = iter(answers)
    said: list[str] = []

    def look() -> int:
        answer = next(given, answers[-1])
        if isinstance(answer, Exception):
            raise answer
        return answer

    settings = {"budget": RetryBudget(), "poll": 0.0, "timeout": timeout, "patience": patience}
    return until(look, lambda seen: seen == 3, say=said.append, **settings), said


def test_an_outage_is_waited_out_and_told_once() -> None:
    told = "The cloud is away. It is asked again."
    assert waited(1, AWAY, AWAY, 2, AWAY, 3) == (3, [told, told])


def test_an_outage_longer_than_the_patience_is_raised() -> None:
    with pytest.raises(OutOfReachError):
        waited(1, AWAY, patience=0.0)


def test_other_trouble_is_nothing_to_wait_for() -> None:
    with pytest.raises(LookupError):
        waited(1, LookupError(), 3)


def test_after_its_time_it_returns_what_it_saw_last() -> None:
    assert waited(1, 2, timeout=0.0) == (1, [])
