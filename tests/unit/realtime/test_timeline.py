from __future__ import annotations

import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from notebooked_dagster.errors import ConfigError
from notebooked_dagster.realtime.clock_process import percentiles, split
from notebooked_dagster.realtime.follower import WARM, Follower
from notebooked_dagster.realtime.timeline import (
    CONTINUE,
    START,
    STOP,
    TICK,
    Engine,
    Lock,
    Timeline,
    position_bytes,
)

TEMPI = st.floats(30, 300).map(lambda bpm: round(bpm, 3))
HOUR_AT_120 = 120 * 60 * 24


@given(TEMPI)
def test_an_hour_of_ticks_ends_when_an_hour_has_passed(bpm: float) -> None:
    line = Timeline(7, bpm)
    ticks = round(bpm * 60 * 24)
    assert abs(line.due(ticks) - 7 - ticks * 60e9 / (24 * bpm)) < 1e-6 * 3600e9 / 1e3 + 2


@given(TEMPI, TEMPI, st.integers(0, 10_000))
def test_a_change_of_tempo_moves_no_tick_before_it(first: float, second: float, tick: int) -> None:
    line = Timeline(0, first)
    before = line.due(tick)
    line.change(tick, second)
    assert line.due(tick) == before
    assert abs(line.due(tick + 24) - before - 60e9 / second) < 2


def test_ticks_that_go_out_late_delay_no_other() -> None:
    engine = Engine.at(0, 120)
    for tick in range(HOUR_AT_120 // 60):
        assert engine.due == tick * 500_000_000 // 24
        assert engine.fire(engine.due + 5_000_000) == TICK
    assert engine.skipped == 0


@given(st.integers(1, 10**13))
def test_after_a_sleep_ticks_are_not_sent_all_at_once(slept: int) -> None:
    engine = Engine.at(0, 120)
    now, sent = slept, 0
    while engine.due <= now and sent < 100:
        engine.fire(now)
        sent += 1
    assert sent <= 13


def test_the_transport_says_what_followers_have_to_hear() -> None:
    engine = Engine.at(0, 120)
    for _ in range(50):
        engine.fire(engine.due)
    due = engine.due
    assert engine.start() == START
    assert (engine.due, engine.sixteenths) == (due, 0)
    for _ in range(25):
        engine.fire(engine.due)
    assert engine.sixteenths == 4
    assert engine.stop() == STOP
    engine.fire(engine.due)
    # Position is said in sixteenths, so that is where it goes on.
    assert engine.resume() == position_bytes(4) + CONTINUE == b"\xf2\x04\x00\xfb"
    assert engine.tick == 24
    assert engine.locate(1000) == STOP + b"\xf2\x68\x07" + CONTINUE
    assert engine.sixteenths == 1000
    assert split(engine.locate(3)) == [STOP, b"\xf2\x03\x00", CONTINUE]
    assert position_bytes(10**9) == b"\xf2\x7f\x7f"


@pytest.mark.parametrize("bpm", [0, -5, 9.9, 401, float("nan"), float("inf")])
def test_a_tempo_nobody_can_follow_is_refused(bpm: float) -> None:
    with pytest.raises(ConfigError, match="out of range"):
        Engine.at(0, 120).tempo(bpm)


def test_a_lock_puts_the_next_tick_where_the_other_clock_has_it() -> None:
    engine = Engine.at(0, 120)
    engine.start()
    for _ in range(24):
        engine.fire(engine.due)
    engine.lock(Lock(25, 530_000_000, 100))
    assert engine.due == 530_000_000 - 25_000_000


def test_percentiles() -> None:
    assert percentiles([]) == (0, 0, 0)
    assert percentiles(range(0, 1_000_000, 1000)) == (500, 990, 999)


def heard(bpm: float, count: int, jitter: float, seed: int, start: float = 1e9) -> list[int]:
    """Arrival times of a clock whose ticks are each up to ``jitter`` ns early or late."""
    noise = random.Random(seed)
    period = 60e9 / (24 * bpm)
    return [round(start + tick * period + noise.uniform(-jitter, jitter)) for tick in range(count)]


@given(TEMPI, st.integers(0, 2**32))
@settings(max_examples=60)
def test_a_steady_clock_with_jitter_is_found_and_held(bpm: float, seed: int) -> None:
    follower = Follower()
    period = 60e9 / (24 * bpm)
    jitter = min(2e6, period / 8)
    arrivals = heard(bpm, 24 * 24, jitter, seed)
    for count, at in enumerate(arrivals):
        follower.tick(at)
        if count >= 24 * 4:
            assert abs(follower.bpm - bpm) / bpm < 0.02
            assert abs(follower.phase - (1e9 + count * period)) < jitter
    assert (follower.missed, follower.ticks, follower.locked) == (0, len(arrivals), True)


@given(TEMPI)
def test_a_clock_without_jitter_is_found_at_once(bpm: float) -> None:
    follower = Follower()
    for at in heard(bpm, WARM + 1, 0, 0):
        follower.tick(at)
    assert follower.locked
    assert abs(follower.bpm - bpm) / bpm < 1e-6
    found = follower.next()
    assert abs(found.at - (1e9 + (WARM + 1) * 60e9 / (24 * bpm))) < 100
    assert found.tick == WARM + 1


@given(TEMPI, TEMPI, st.integers(0, 2**32))
@settings(max_examples=60)
def test_a_jump_of_tempo_is_followed_within_two_quarter_notes(first: float, second: float, seed: int) -> None:
    follower = Follower()
    jitter = 0.2e6
    arrivals = heard(first, 24 * 6, jitter, seed)
    for at in arrivals:
        follower.tick(at)
    for at in heard(second, 48, jitter, seed, arrivals[-1] + 60e9 / (24 * second)):
        follower.tick(at)
    assert abs(follower.bpm - second) / second < 0.02
    # No tick was really lost, so the position is right.
    assert follower.ticks == 24 * 6 + 48


@given(TEMPI, st.sets(st.integers(100, 400), max_size=12), st.integers(0, 2**32))
@settings(max_examples=60)
def test_lost_ticks_are_counted_and_move_nothing(bpm: float, lost: set[int], seed: int) -> None:
    # One at a time: several in a row are what a slower clock looks like.
    lost = {tick for tick in lost if not lost & {tick - 1, tick - 2, tick - 3}}
    follower = Follower()
    for tick, at in enumerate(heard(bpm, 500, 0.2e6, seed)):
        if tick not in lost:
            follower.tick(at)
    assert follower.missed == len(lost)
    assert follower.ticks == 500
    assert abs(follower.bpm - bpm) / bpm < 0.01


def test_one_late_tick_bends_nothing() -> None:
    follower = Follower()
    arrivals = heard(120, 300, 50_000, 1)
    for count, at in enumerate(arrivals):
        follower.tick(at + (8_000_000 if count == 200 else 0))
        if count > 100:
            assert abs(follower.bpm - 120) < 0.6


@given(st.lists(st.integers(1, 10**12), min_size=1, max_size=300))
def test_nothing_that_arrives_breaks_it(steps: list[int]) -> None:
    follower, at = Follower(), 0
    for step in steps:
        at += step
        follower.tick(at)
        assert follower.bpm >= 0
        assert follower.ticks > 0
    assert follower.lost(at + 10**14)
    follower.forget()
    assert not follower.locked


def test_a_song_that_stands_still_stays_where_it_is_however_long_clocks_go_on() -> None:
    engine, follower = Engine.at(0, 120), Follower()
    engine.start()
    follower.start()
    for _ in range(48):
        engine.fire(engine.due)
        follower.tick(engine.due)
    for stopped in (engine, follower):
        stopped.stop()
    for _ in range(1000):
        engine.fire(engine.due)
        follower.tick(engine.due)
    assert engine.sixteenths == 8
    due = engine.due
    assert engine.resume() == position_bytes(8) + CONTINUE
    follower.resume()
    assert (engine.tick, engine.due, follower.ticks) == (48, due, 48)
    engine.stop()
    assert engine.locate(100) == position_bytes(100)
    follower.stop()
    follower.locate(100)
    for _ in range(77):
        engine.fire(engine.due)
        follower.tick(engine.due)
    assert engine.resume() == position_bytes(100) + CONTINUE
    follower.resume()
    assert engine.tick == follower.ticks == 600


@pytest.mark.parametrize("ours", [True, False])
def test_clocks_of_no_common_song_are_locked_whatever_their_numbers(ours: bool) -> None:
    engine = Engine.at(0, 120)
    if ours:
        engine.start()
    for _ in range(500):
        engine.fire(engine.due)
    later = engine.due + 60_000_000_000 // (24 * 120) // 4
    engine.lock(Lock(3, later, 120, running=False))
    assert abs(engine.due - later) < 2
    assert engine.position == (500 if ours else 0)
