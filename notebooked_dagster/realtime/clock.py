"""``Clock``: the daemon's handle on the process that sends MIDI clock, and on the one clock it may follow."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import multiprocessing
import time
from collections.abc import Awaitable, Callable, Sequence
from multiprocessing.connection import Connection
from typing import Any

import mido

from .clock_process import ClockStatus, Target, run, split
from .follower import Follower
from .messages import Event
from .timeline import PPQN, checked_bpm

log = logging.getLogger("notebooked.realtime.clock")
_PRIORITY = 70
_FAREWELL = 3.0
Send = Callable[[mido.Message], Awaitable[None]]


class Clock:
    """MIDI clock, 24 to a quarter note, out of a process of its own.

    Attributes:
        status: What the process told last.
        moved: Set as soon as the transport was started, stopped or put somewhere else, and the status says so.
        follower: What is known of the clock that is followed.
        overflow: How many clocks the daemon was too busy to pass on.

    Args:
        targets: Where clocks go without passing through here.
        bpm: The tempo to begin with.
        send: Where clocks go that pass through here (ports that belong to the daemon, such as RTP-MIDI).
        follow: The port whose clock is followed; the clock's own tempo is only its first guess then.
        priority: Under SCHED_FIFO, where that is permitted.
    """

    def __init__(
        self,
        targets: Sequence[Target] = (),
        *,
        bpm: float = 120.0,
        send: Send | None = None,
        follow: str | None = None,
        priority: int = _PRIORITY,
    ) -> None:
        self._targets = [*targets, *([Target("pipe")] if send is not None else [])]
        self._bpm = checked_bpm(bpm)
        self._send = send
        self._follow = follow
        self._priority = priority
        self._process: multiprocessing.process.BaseProcess | None = None
        self._commands: Connection | None = None
        self._stream: Connection | None = None
        self._bytes: asyncio.Queue[bytes] = asyncio.Queue(1024)
        self._pump: asyncio.Task[None] | None = None
        self._late: asyncio.Future[list[int]] | None = None
        self.status: ClockStatus | None = None
        self.moved = asyncio.Event()
        self.follower = Follower()
        self.overflow = 0

    async def open(self) -> None:
        """Start the process; returns when it ticks."""
        context = multiprocessing.get_context("spawn")
        self._commands, theirs = context.Pipe()
        self._stream, their_stream = context.Pipe(duplex=False)
        self._process = context.Process(
            target=run,
            args=(theirs, their_stream, self._targets, self._bpm, self._priority),
            name="notebooked-clock",
            daemon=True,
        )
        await asyncio.to_thread(self._process.start)
        theirs.close()
        their_stream.close()
        loop = asyncio.get_running_loop()
        ready: asyncio.Future[None] = loop.create_future()
        loop.add_reader(self._commands.fileno(), self._on_status, ready)
        loop.add_reader(self._stream.fileno(), self._on_stream)
        if self._send is not None:
            self._pump = asyncio.create_task(self._forward(), name="clock-forward")
        await asyncio.wait_for(ready, 20)

    async def close(self) -> list[int]:
        """End the process. Returns how late its last clocks were, in ns."""
        late: list[int] = []
        if self._commands is not None and self.alive:
            self._late = asyncio.get_running_loop().create_future()
            self._tell("quit")
            with contextlib.suppress(TimeoutError):
                late = await asyncio.wait_for(self._late, _FAREWELL)
        loop = asyncio.get_running_loop()
        for connection in (self._commands, self._stream):
            if connection is not None:
                loop.remove_reader(connection.fileno())
                connection.close()
        if self._pump is not None:
            self._pump.cancel()
        if self._process is not None:
            await asyncio.to_thread(self._process.join, _FAREWELL)
            if self._process.is_alive():
                self._process.kill()
        self._commands = self._stream = self._process = self._pump = None
        return late

    @property
    def alive(self) -> bool:
        """Whether the process is there."""
        return self._process is not None and self._process.is_alive()

    @property
    def bpm(self) -> float:
        """The tempo now: of the followed clock where there is one."""
        if self._follow is not None and self.follower.locked:
            return self.follower.bpm
        return self.status.bpm if self.status is not None else self._bpm

    def start(self) -> None:
        """Play from the beginning."""
        self._tell("start")

    def stop(self) -> None:
        """Halt."""
        self._tell("stop")

    def resume(self) -> None:
        """Play on."""
        self._tell("resume")

    def locate(self, sixteenths: int) -> None:
        """Go to a song position."""
        self._tell("locate", sixteenths)

    def tempo(self, bpm: float) -> None:
        """Another tempo. Raises ConfigError where it is out of range."""
        self._tell("tempo", checked_bpm(bpm))

    def hear(self, event: Event) -> None:
        """An event of the followed port; of any other port, nothing happens."""
        message = event.message
        if event.source != self._follow or message is None:
            return
        follower = self.follower
        if message.type == "clock":
            if follower.lost(event.at):
                follower.forget()
            follower.tick(event.at)
            # Once a quarter note is enough: the process keeps the tempo by itself in between.
            if follower.locked and follower.ticks % PPQN == 0:
                self._tell("lock", follower.next())
        elif message.type == "start":
            follower.start()
            self._tell("start")
        elif message.type == "continue":
            follower.resume()
            self._tell("resume")
        elif message.type == "stop":
            follower.stop()
            self._tell("stop")
        elif message.type == "songpos":
            follower.locate(message.pos)
            self._tell("locate", message.pos)

    def described(self) -> dict[str, Any]:
        """The state as plain data, for the page and a take's sidecar."""
        status = self.status
        return {
            "bpm": round(self.bpm, 3),
            "running": bool(status and status.running),
            "position": status.sixteenths if status else 0,
            "follows": self._follow,
            "locked": self.follower.locked and not self.follower.lost(time.monotonic_ns()),
            "late_us": list(status.late) if status else [0.0, 0.0, 0.0],
            "scheduling": status.scheduling if status else "none",
            "skipped": status.skipped if status else 0,
        }

    def _tell(self, command: str, argument: Any = None) -> None:
        if self._commands is None:
            return
        try:
            self._commands.send((command, argument))
        except OSError as error:
            log.error("the clock's process is gone: %s", error)

    def _on_status(self, ready: asyncio.Future[None]) -> None:
        assert self._commands is not None
        try:
            found = self._commands.recv()
        except (EOFError, OSError):
            asyncio.get_running_loop().remove_reader(self._commands.fileno())
            return
        if isinstance(found, ClockStatus):
            if self.status is not None and found.moves != self.status.moves:
                self.moved.set()
            self.status = found
            if not ready.done():
                ready.set_result(None)
        elif self._late is not None and not self._late.done():
            self._late.set_result(found)

    def _on_stream(self) -> None:
        assert self._stream is not None
        try:
            data = self._stream.recv_bytes()
        except (EOFError, OSError):
            asyncio.get_running_loop().remove_reader(self._stream.fileno())
            return
        try:
            self._bytes.put_nowait(data)
        except asyncio.QueueFull:
            self.overflow += 1

    async def _forward(self) -> None:
        assert self._send is not None
        while True:
            for message in split(await self._bytes.get()):
                await self._send(mido.Message.from_bytes(message))
