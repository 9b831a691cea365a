"""The process that sends MIDI clock. It imports little, holds no lock that others want, and sleeps to deadlines.

A busy thread in the same interpreter costs a clock 20 ms at the 99th percentile, so it has an interpreter of its own. With
permission (``LimitRTPRIO=`` of the unit, or root) it runs under SCHED_FIFO; without, as an ordinary process, and says so.
"""

from __future__ import annotations

import contextlib
import ctypes
import gc
import os
import socket
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from multiprocessing.connection import Connection
from typing import Any

from .timeline import Engine, Lock

# Sleeping ends some 50 µs late (timer slack, wake-up); the rest is waited for awake.
_AWAKE = 60_000
_STATUS_EVERY = 500_000_000
_KEPT = 2048
_MOVES = frozenset({"start", "stop", "resume", "locate"})
_MCL_CURRENT_AND_FUTURE = 3
_PR_SET_TIMERSLACK = 29


@dataclass(frozen=True, slots=True)
class Target:
    """Where clocks go.

    Attributes:
        kind: ``pipe`` (the daemon sends them on), ``tcp``, ``udp`` or ``system`` (a device of the system's).
        host: Of tcp and udp.
        port: Likewise.
        match: Part of the device's name.
        api: The API of RtMidi, where not its own choice.
    """

    kind: str
    host: str = ""
    port: int = 0
    match: str = ""
    api: str | None = None


@dataclass(frozen=True, slots=True)
class ClockStatus:
    """What the process tells twice a second, and at once when the transport was moved.

    Attributes:
        bpm: The tempo.
        running: Whether the song runs.
        sixteenths: Song position.
        position: The song's next tick.
        due: When that is due (``time.monotonic_ns()``); where the song stands still, when the next clock is.
        moves: How often the transport was started, stopped, or put somewhere else.
        sent: Clocks sent.
        skipped: Clocks left out because the machine slept.
        late: How late the last clocks were, in µs: median, 99th percentile, largest.
        scheduling: ``fifo`` or ``other``.
        failures: Sends that a target refused.
    """

    bpm: float
    running: bool
    sixteenths: int
    position: int
    due: int
    moves: int
    sent: int
    skipped: int
    late: tuple[float, float, float]
    scheduling: str
    failures: int


def run(
    connection: Connection, stream: Connection, targets: Sequence[Target], bpm: float, priority: int
) -> None:
    """Send clocks until told to quit, or until who started us is gone."""
    scheduling = prefer(priority)
    # Nothing here makes garbage; a collection would be a pause.
    gc.disable()
    senders = [_sender(target, stream) for target in targets]
    engine = Engine.at(time.monotonic_ns() + 1_000_000, bpm)
    late: list[int] = []
    sent = failures = moves = 0
    told = 0
    lateness = percentiles(late)

    def send(data: bytes) -> None:
        nonlocal failures
        for sender in senders:
            try:
                sender(data)
            except Exception:  # whatever a driver raises, the other targets go on
                failures += 1

    def tell() -> None:
        status = ClockStatus(
            engine.timeline.bpm, engine.running, engine.sixteenths, engine.position, engine.due, moves, sent,
            engine.skipped, lateness, scheduling, failures,
        )  # fmt: skip
        with contextlib.suppress(BrokenPipeError, BlockingIOError):
            connection.send(status)

    while True:
        now = time.monotonic_ns()
        if now - told > _STATUS_EVERY:
            told, lateness = now, percentiles(late)
            tell()
            del late[:-_KEPT]
        # poll() counts whole milliseconds and rounds up, so it gets what is surely left.
        spare = (engine.due - now) // 1_000_000 - 1
        try:
            if connection.poll(max(0, spare) / 1000):
                command, argument = connection.recv()
                if command == "quit":
                    connection.send(late)
                    return
                send(obey(engine, command, argument))
                if command in _MOVES:
                    moves += 1
                    tell()
                continue
        except (EOFError, ConnectionError):
            return
        due = engine.due
        wait_until(due)
        now = time.monotonic_ns()
        send(engine.fire(now))
        sent += 1
        late.append(time.monotonic_ns() - due)


def obey(engine: Engine, command: str, argument: Any) -> bytes:
    """What is to be sent for a command."""
    if command == "lock":
        assert isinstance(argument, Lock)
        return engine.lock(argument)
    if command == "tempo":
        return engine.tempo(float(argument))
    if command == "locate":
        return engine.locate(int(argument))
    return {"start": engine.start, "stop": engine.stop, "resume": engine.resume}[command]()


def wait_until(due: int) -> None:
    """Sleep until a time of the monotonic clock, the last instant awake."""
    left = due - time.monotonic_ns() - _AWAKE
    if left > 0:
        time.sleep(left / 1e9)
    while time.monotonic_ns() < due:
        pass


def prefer(priority: int) -> str:
    """Ask the kernel to run us at once when we are due; ``fifo`` where it agrees, else ``other``."""
    with contextlib.suppress(OSError, AttributeError):
        library = ctypes.CDLL(None, use_errno=True)
        library.prctl(_PR_SET_TIMERSLACK, 1, 0, 0, 0)
        # A page of ours on the SD card would be a pause of 10 ms.
        library.mlockall(_MCL_CURRENT_AND_FUTURE)
    try:
        os.sched_setscheduler(0, os.SCHED_FIFO, os.sched_param(priority))
    except (OSError, AttributeError):
        return "other"
    return "fifo"


def percentiles(late: Sequence[int]) -> tuple[float, float, float]:
    """Median, 99th percentile and largest, in µs; zeros where there is nothing yet."""
    if not late:
        return 0.0, 0.0, 0.0
    ordered = sorted(late)
    return (
        ordered[len(ordered) // 2] / 1e3,
        ordered[min(len(ordered) - 1, int(len(ordered) * 0.99))] / 1e3,
        ordered[-1] / 1e3,
    )


def _sender(target: Target, stream: Connection) -> Callable[[bytes], Any]:
    if target.kind == "pipe":
        # A daemon that does not read must not stop the clock.
        os.set_blocking(stream.fileno(), False)
        return stream.send_bytes
    if target.kind in ("tcp", "udp"):
        kind = socket.SOCK_STREAM if target.kind == "tcp" else socket.SOCK_DGRAM
        peer = socket.socket(socket.AF_INET, kind)
        peer.connect((target.host, target.port))
        if target.kind == "tcp":
            peer.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        peer.setblocking(False)
        return peer.send
    import rtmidi

    api = getattr(rtmidi, f"API_{target.api}") if target.api else rtmidi.API_UNSPECIFIED
    out = rtmidi.MidiOut(rtapi=api)
    names = [str(name) for name in out.get_ports()]
    found = next((i for i, name in enumerate(names) if target.match.lower() in name.lower()), None)
    if found is None:
        out.open_virtual_port(target.match)
    else:
        out.open_port(found)

    def write(data: bytes) -> None:
        for message in split(data):
            out.send_message(message)

    return write


def split(data: bytes) -> list[bytes]:
    """The messages of a few bytes of transport: song position has three, all others one."""
    found, at = [], 0
    while at < len(data):
        size = 3 if data[at] == 0xF2 else 1
        found.append(data[at : at + size])
        at += size
    return found
