"""The clock against naive asyncio and mido's own playback, dispatch latency against a DIN cable, the recorder under load.

::

    python benchmarks/bench_realtime.py [--seconds 10] [--record 60] [--rounds 1000]

Clock: lateness of each tick against its own ideal time (p50, p99, largest) and how far the last tick is from where it should
be (drift), at 120 and 240 BPM: idle, with a thread that holds the GIL in the measuring process, with both cores busy. Each
clock has the same sink, a loopback datagram. Dispatch: a note in by TCP to the note out by TCP, through inbox and rules, measured
at the client. Recorder: 1,000 messages a second, read back from the finished take.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import multiprocessing
import os
import socket
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import mido

from notebooked_dagster.realtime.clock import Clock
from notebooked_dagster.realtime.clock_process import Target
from notebooked_dagster.realtime.dispatcher import Dispatcher
from notebooked_dagster.realtime.handler import MidiHandler
from notebooked_dagster.realtime.messages import Event
from notebooked_dagster.realtime.ports import TcpPort
from notebooked_dagster.realtime.recorder import Recorder
from notebooked_dagster.realtime.rules import Rule

DIN_MS = 0.96  # three bytes of ten bits at 31,250 baud


def spin() -> None:
    while True:
        pass


@contextlib.contextmanager
def idle() -> Iterator[None]:
    yield


@contextlib.contextmanager
def gil_thread() -> Iterator[None]:
    """A thread of this very process that computes without pause."""
    going = True

    def work() -> None:
        number = 0
        while going:
            number += 1

    thread = threading.Thread(target=work, daemon=True)
    thread.start()
    yield
    going = False
    thread.join()


@contextlib.contextmanager
def busy_cpu() -> Iterator[None]:
    """A computing process for each core."""
    context = multiprocessing.get_context("spawn")
    workers = [context.Process(target=spin, daemon=True) for _ in range(os.cpu_count() or 1)]
    for worker in workers:
        worker.start()
    time.sleep(1)
    yield
    for worker in workers:
        worker.kill()
        worker.join()


def sink() -> socket.socket:
    box = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    box.bind(("127.0.0.1", 0))
    box.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1 << 22)
    return box


async def ours(bpm: float, seconds: float, address: tuple[str, int]) -> tuple[list[int], str]:
    clock = Clock([Target("udp", *address)], bpm=bpm)
    await clock.open()
    await asyncio.sleep(0.5)
    await asyncio.sleep(seconds)
    scheduling = clock.status.scheduling if clock.status else "?"
    late = await clock.close()
    return late[-int(seconds * bpm * 24 / 60) :], scheduling


async def naive(bpm: float, seconds: float, address: tuple[str, int]) -> list[int]:
    period = 60 / bpm / 24
    box = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    box.connect(address)
    begin, late = time.monotonic_ns(), []
    for tick in range(int(seconds / period)):
        box.send(b"\xf8")
        late.append(time.monotonic_ns() - begin - round(tick * period * 1e9))
        await asyncio.sleep(period)
    return late


def by_mido(bpm: float, seconds: float, address: tuple[str, int]) -> list[int]:
    """``MidiFile.play()`` over a file of ticks: mido sleeps until each message's own time."""
    box = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    box.connect(address)
    file = mido.MidiFile(ticks_per_beat=24)
    count = int(seconds * bpm * 24 / 60)
    tempo = mido.MetaMessage("set_tempo", tempo=mido.bpm2tempo(bpm))
    file.tracks.append(
        mido.MidiTrack([tempo, *(mido.Message("note_on", note=1, time=int(n > 0)) for n in range(count))])
    )
    period = 60e9 / bpm / 24
    late: list[int] = []
    # It reads the file after it has looked at the clock, so its first message is late and the next are not.
    begin = time.monotonic_ns()
    for message in file.play():
        box.send(bytes(message.bytes()))
        late.append(time.monotonic_ns() - begin - round(len(late) * period))
    return late


def row(name: str, late: list[int], note: str = "") -> None:
    ordered = sorted(abs(value) for value in late)
    p50, p99, most = ordered[len(ordered) // 2], ordered[int(len(ordered) * 0.99)], ordered[-1]
    # The median of the last second: one late tick at the end is jitter, not drift.
    tail = sorted(late[-48:])
    print(
        f"{name:34} {p50 / 1e6:9.3f} {p99 / 1e6:9.3f} {most / 1e6:9.3f} {tail[len(tail) // 2] / 1e6:10.2f}  {note}",
        flush=True,
    )


def clocks(seconds: float) -> None:
    print(f"{'clock, ms':34} {'p50':>9} {'p99':>9} {'max':>9} {'drift':>10}")
    box = sink()
    address = box.getsockname()
    loads: list[tuple[str, Callable[[], contextlib.AbstractContextManager[None]]]] = [
        ("idle", idle), ("GIL-bound thread", gil_thread), ("busy CPU", busy_cpu),
    ]  # fmt: skip
    for bpm in (120.0, 240.0):
        for name, load in loads:
            with load():
                late, scheduling = asyncio.run(ours(bpm, seconds, address))
                row(f"{bpm:.0f} BPM, {name}: ours", late, scheduling)
                row(f"{'':8}asyncio.sleep", asyncio.run(naive(bpm, seconds, address)))
                row(f"{'':8}mido play()", by_mido(bpm, seconds, address))
    box.close()


async def dispatch(rounds: int) -> None:
    rules = [
        Rule.model_validate(
            {
                "name": f"r{number}",
                "when": {"port": "in", "note": f"{number}..{number + 20}"},
                "then": [{"forward": {"to": "in"}}],
            }
        )
        for number in (100, 90, 60)
    ]
    port = TcpPort("in", "127.0.0.1", 0, listen=True)
    async with MidiHandler([port]) as midi:
        dispatcher = Dispatcher(rules, midi)

        async def handle() -> None:
            async for event in midi:
                await dispatcher.handle(event)

        task = asyncio.create_task(handle())
        taken = await asyncio.to_thread(client, port.address, rounds)
        task.cancel()
    ordered = sorted(taken)
    p50, p99, most = ordered[len(ordered) // 2], ordered[int(len(ordered) * 0.99)], ordered[-1]
    print(
        f"\n{'MIDI in to MIDI out over TCP, ms':34} {p50 * 1e3:9.3f} {p99 * 1e3:9.3f} {most * 1e3:9.3f}   of a DIN message's {DIN_MS} ms: {p50 * 1e3 / DIN_MS:.2f}x at p50"
    )


def client(address: tuple[str, int], rounds: int) -> list[float]:
    taken = []
    with socket.create_connection(address) as peer:
        peer.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        for number in range(rounds):
            data = bytes([0x90, 60 + number % 20, 64])
            begin = time.perf_counter()
            peer.sendall(data)
            got = b""
            while len(got) < 3:
                got += peer.recv(3 - len(got))
            taken.append(time.perf_counter() - begin)
            time.sleep(0.001)
    return taken


async def record(seconds: float, rate: int = 1000) -> None:
    with tempfile.TemporaryDirectory(prefix="bench-recorder-") as name:
        recorder = Recorder(Path(name), "bench")
        await recorder.open()
        recorder.start()
        begin, sent, slowest = time.monotonic(), 0, 0.0
        total = int(seconds * rate)
        while sent < total:
            due = min(total, int((time.monotonic() - begin) * rate))
            started = time.perf_counter()
            noted = due - sent
            while sent < due:
                recorder.note(
                    Event("keys", time.monotonic_ns(), mido.Message("pitchwheel", pitch=sent % 8192))
                )
                sent += 1
            if noted:
                slowest = max(slowest, (time.perf_counter() - started) / noted)
            await asyncio.sleep(0.002)
        ended = time.perf_counter()
        take = await recorder.stop()
        assert take is not None
        finishing = time.perf_counter() - ended
        got = [message.pitch for message in mido.MidiFile(take.midi) if message.type == "pitchwheel"]
        lost = (
            sum(1 for number, pitch in zip(range(sent), got, strict=False) if pitch != number % 8192)
            + sent
            - len(got)
        )
        print(
            f"\nrecorder: {sent} messages in {seconds:.0f} s, {lost} lost or changed; at most {slowest * 1e6:.0f} µs a message, "
            f"finished in {finishing:.2f} s, file {take.midi.stat().st_size / 1024:.0f} KiB"
        )
        if lost:
            raise SystemExit(1)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--seconds", type=float, default=10, help="Of each clock.")
    parser.add_argument("--record", type=float, default=60, help="Seconds of recording.")
    parser.add_argument("--rounds", type=int, default=1000, help="Notes through the dispatcher.")
    options = parser.parse_args()
    clocks(options.seconds)
    asyncio.run(dispatch(options.rounds))
    asyncio.run(record(options.record))


if __name__ == "__main__":
    main()
