"""The clock as the process that it is; figures are in benchmarks/bench_realtime.py, here is only what must hold."""

from __future__ import annotations

import asyncio
import multiprocessing
import os
import signal
import socket
import threading
import time

import mido
import pytest

from notebooked_dagster.errors import ConfigError
from notebooked_dagster.realtime import clock_process
from notebooked_dagster.realtime.clock import Clock
from notebooked_dagster.realtime.clock_process import ClockStatus, Target
from notebooked_dagster.realtime.messages import Event
from tests.unit.realtime.kit import eventually


async def test_the_clock_counts_time_keeps_its_position_and_says_so() -> None:
    heard: list[tuple[int, mido.Message]] = []

    async def send(message: mido.Message) -> None:
        heard.append((time.monotonic_ns(), message))

    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as box:
        box.bind(("127.0.0.1", 0))
        box.setblocking(False)
        clock = Clock([Target("udp", "127.0.0.1", box.getsockname()[1])], bpm=240, send=send)
        await clock.open()
        try:
            begin = len(heard)
            await asyncio.sleep(1)
            count = len(heard) - begin
            # 96 clocks a second; the machine may be busy, but it may not lose any.
            assert 80 <= count <= 112
            clock.start()
            await asyncio.sleep(0.3)
            clock.tempo(60)
            clock.stop()
            clock.locate(16)
            clock.resume()
            with pytest.raises(ConfigError):
                clock.tempo(1000)
            await eventually(
                lambda: clock.status is not None and clock.status.sixteenths >= 16 and clock.bpm == 60
            )
            kinds = [message.type for _, message in heard if message.type != "clock"]
            assert kinds == ["start", "stop", "songpos", "songpos", "continue"]
            assert [m.pos for _, m in heard if m.type == "songpos"] == [16, 16]
            told = clock.described()
            assert (told["running"], told["bpm"], told["follows"], told["skipped"]) == (True, 60, None, 0)
            assert told["scheduling"] in ("fifo", "other")
            assert clock.alive
        finally:
            late = await clock.close()
        direct = []
        while True:
            try:
                direct.append(box.recv(16))
            except BlockingIOError:
                break
    assert not clock.alive
    assert len(late) > 50
    assert (
        abs(
            len([data for data in direct if data == b"\xf8"])
            - len([m for _, m in heard if m.type == "clock"])
        )
        < 5
    )
    assert sorted(late)[len(late) // 2] < 5_000_000


async def test_a_followed_clock_sets_tempo_phase_and_transport() -> None:
    clock = Clock(bpm=60, follow="drums")
    await clock.open()
    try:
        period = 60e9 / 24 / 150
        begin = time.monotonic_ns() - round(period * 96)
        clock.hear(Event("other", begin, mido.Message("start")))
        clock.hear(Event("drums", begin, mido.Message("start")))
        for tick in range(96):
            clock.hear(Event("drums", round(begin + tick * period), mido.Message("clock")))
        assert clock.bpm == pytest.approx(150, rel=1e-3)
        await eventually(lambda: clock.status is not None and abs(clock.status.bpm - 150) < 0.1)
        await eventually(
            lambda: clock.status is not None and clock.status.running and clock.status.sixteenths >= 16
        )
        clock.hear(Event("drums", time.monotonic_ns(), mido.Message("stop")))
        clock.hear(Event("drums", time.monotonic_ns(), mido.Message("songpos", pos=8)))
        clock.hear(Event("drums", time.monotonic_ns(), mido.Message("continue")))
        await eventually(lambda: clock.status is not None and clock.status.sixteenths in range(8, 16))
        await eventually(lambda: not clock.described()["locked"])
    finally:
        await clock.close()


async def test_a_clock_that_is_killed_is_seen_and_closing_goes_on() -> None:
    clock = Clock(bpm=120)
    await clock.open()
    assert clock._process is not None
    assert clock._process.pid is not None
    os.kill(clock._process.pid, signal.SIGKILL)
    await eventually(lambda: not clock.alive)
    clock.start()
    assert await clock.close() == []


def test_the_process_tells_of_the_transport_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    # Never twice a second, so that what is told is told because of the command.
    monkeypatch.setattr(clock_process, "_STATUS_EVERY", 1 << 62)
    monkeypatch.setattr(clock_process, "prefer", lambda priority: "other")
    monkeypatch.setattr(clock_process.gc, "disable", lambda: None)
    ours, theirs = multiprocessing.Pipe()
    out, stream = multiprocessing.Pipe(duplex=False)
    thread = threading.Thread(target=clock_process.run, args=(theirs, stream, [], 120.0, 1))
    thread.start()
    told: list[ClockStatus] = []
    for command in (("start", None), ("tempo", 90.0), ("stop", None), ("locate", 32), ("resume", None)):
        ours.send(command)
        if command[0] != "tempo":
            assert ours.poll(30)
            told.append(ours.recv())
    now = time.monotonic_ns()
    ours.send(("quit", None))
    thread.join(30)
    assert [status.running for status in told] == [True, False, False, True]
    assert [status.moves for status in told] == [1, 2, 3, 4]
    assert (told[0].position, told[2].position, told[3].position) == (0, 192, 192)
    assert abs(told[3].due - now) < 60_000_000_000 / 24 / 90 + 5_000_000_000
    for end in (ours, theirs, out, stream):
        end.close()
