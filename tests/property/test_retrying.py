"""A budget of retries is never overdrawn, and a circuit breaker is always in the state that its calls led to."""

from __future__ import annotations

import hypothesis.strategies as st
import pytest
from hypothesis import given, settings
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from notebooked_dagster.core import retrying
from notebooked_dagster.core.breaker import CircuitBreaker, State
from notebooked_dagster.core.retrying import RetryBudget


class Clock:
    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


@settings(max_examples=200)
@given(
    capacity=st.integers(1, 8),
    refill=st.sampled_from([0.25, 1.0, 4.0]),
    asked=st.lists(st.tuples(st.sampled_from([0.0, 0.125, 1.0, 7.5]), st.booleans()), max_size=60),
)
def test_no_window_of_time_has_more_retries_than_the_budget(
    capacity: int, refill: float, asked: list[tuple[float, bool]]
) -> None:
    clock = Clock()
    budget = RetryBudget(capacity, refill, clock=clock)
    made: list[float] = []
    for passed, patient in asked:
        clock.now += passed
        if patient:
            made.append(clock.now + budget.reserve())
        elif budget.take():
            made.append(clock.now)
    made.sort()
    for first, start in enumerate(made):
        for last in range(first, len(made)):
            assert last - first + 1 <= capacity + refill * (made[last] - start) + 1e-6


@settings(max_examples=100)
@given(spent=st.integers(0, 40), passed=st.floats(0, 100))
def test_a_budget_fills_up_and_no_further(spent: int, passed: float) -> None:
    clock = Clock()
    budget = RetryBudget(10, 2.0, clock=clock)
    for _ in range(spent):
        budget.take()
    clock.now += passed
    left = min(10.0, max(0, 10 - spent) + 2.0 * passed)
    taken = 0
    while budget.take():
        taken += 1
    assert abs(taken - left) < 1.001
    assert taken <= left + 1e-6


@given(attempt=st.integers(1, 2000), base=st.floats(0.001, 100))
def test_a_wait_has_full_jitter_below_its_bound(attempt: int, base: float) -> None:
    assert 0 <= retrying.wait(attempt, base) <= min(60.0, base * 2.0 ** min(attempt - 1, 32))


@pytest.mark.parametrize(("attempts", "tokens", "calls"), [(4, 20, 4), (4, 2, 3), (4, 0, 1), (1, 20, 1)])
def test_a_call_is_made_again_while_there_are_attempts_and_tokens(
    attempts: int, tokens: int, calls: int
) -> None:
    budget = RetryBudget(20, 1e-9)
    for _ in range(20 - tokens):
        budget.take()
    made: list[int] = []

    def call() -> None:
        made.append(1)
        raise ConnectionError("away")

    with pytest.raises(ConnectionError):
        retrying.again(
            call,
            when=lambda error: isinstance(error, ConnectionError),
            budget=budget,
            attempts=attempts,
            base=0.0001,
        )
    assert len(made) == calls


def test_what_another_try_would_not_mend_is_not_tried_again() -> None:
    budget = RetryBudget(1, 1e-9)
    with pytest.raises(KeyError):
        retrying.again(
            lambda: {}["x"],
            when=lambda error: isinstance(error, OSError),
            budget=budget,
            attempts=9,
            base=1.0,
        )
    assert budget.take()


def test_a_hundred_who_wait_do_not_ask_a_hundred_times_as_often(monkeypatch: pytest.MonkeyPatch) -> None:
    slept: list[float] = []
    monkeypatch.setattr(retrying.time, "sleep", slept.append)
    budget = RetryBudget(20, 1.0, clock=Clock())
    for _ in range(100):
        assert retrying.Outage(budget, base=0.001).goes_on()
    # The first 20 at once, each of the others a second after the one before.
    assert max(slept[:20]) < 0.01
    assert slept[20:] == [float(number) for number in range(1, 81)]


def test_an_outage_ends_with_patience_or_with_a_success(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = Clock()
    monkeypatch.setattr(retrying.time, "monotonic", clock)
    monkeypatch.setattr(retrying.time, "sleep", lambda seconds: None)
    outage = retrying.Outage(RetryBudget(), base=1.0, patience=10.0)
    assert outage.goes_on()
    clock.now += 9
    assert outage.goes_on()
    outage.over()
    clock.now += 9
    assert outage.goes_on()
    clock.now += 10
    assert not outage.goes_on()


class BreakerMachine(RuleBasedStateMachine):
    """Calls that overlap, beside what a breaker with one call at a time would say."""

    @initialize(limit=st.integers(1, 4))
    def make(self, limit: int) -> None:
        self.clock = Clock()
        self.limit = limit
        self.breaker = CircuitBreaker(limit, rest=8.0, longest_rest=32.0, clock=self.clock)
        self.row = 0
        self.rest = 8.0
        self.until: float | None = None
        self.current: list[int] = []
        self.stale: list[int] = []

    def _turn(self, until: float | None) -> None:
        self.until = until
        self.stale += self.current
        self.current = []

    @rule(seconds=st.sampled_from([0.5, 4.0, 8.0, 32.0]))
    def pass_time(self, seconds: float) -> None:
        self.clock.now += seconds

    @rule()
    def begin(self) -> None:
        ticket = self.breaker.admit()
        rests = self.until is not None and self.clock.now < self.until
        if rests or (self.until is not None and self.current):
            assert ticket is None
        else:
            assert ticket is not None
            self.current.append(ticket)

    @precondition(lambda self: self.current)
    @rule()
    def succeed(self) -> None:
        self.breaker.succeeded(self.current.pop())
        self.row, self.rest = 0, 8.0
        if self.until is not None:
            self._turn(None)

    @precondition(lambda self: self.current)
    @rule()
    def fail(self) -> None:
        self.breaker.failed(self.current.pop())
        self.row += 1
        if self.until is not None:
            self.rest = min(2 * self.rest, 32.0)
            self._turn(self.clock.now + self.rest)
        elif self.row >= self.limit:
            self._turn(self.clock.now + self.rest)

    @precondition(lambda self: self.current)
    @rule()
    def say_nothing(self) -> None:
        self.breaker.untold(self.current.pop())

    @precondition(lambda self: self.stale)
    @rule(how=st.sampled_from(["succeeded", "failed", "untold"]))
    def end_late(self, how: str) -> None:
        getattr(self.breaker, how)(self.stale.pop())

    @invariant()
    def it_is_in_the_right_state(self) -> None:
        if self.until is None:
            assert self.breaker.state is State.CLOSED
            assert self.row < self.limit
        else:
            open_still = self.clock.now < self.until
            assert self.breaker.state is (State.OPEN if open_still else State.HALF_OPEN)
            assert self.breaker.wait() == max(0.0, self.until - self.clock.now)
        assert self.breaker.failures == self.row


BreakerMachine.TestCase.settings = settings(max_examples=100, stateful_step_count=40)
TestBreaker = BreakerMachine.TestCase
