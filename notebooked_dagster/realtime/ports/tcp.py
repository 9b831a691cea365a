"""MIDI bytes over TCP, as ``mido.sockets`` and ``mido-serve`` speak it: the plain byte stream of a cable.

TCP makes its sender wait when we do not read, so nothing needs to be dropped here.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import socket

import mido

from notebooked_dagster.errors import PortError
from notebooked_dagster.realtime.messages import REAL_TIME, Event, Inbox

from .base import Port, PortState

log = logging.getLogger("notebooked.realtime.tcp")
_RECONNECT = (0.5, 1.0, 2.0, 5.0)
# A peer that takes nothing for this long is gone; the rules must not wait for it for ever.
_LONGEST_SEND = 2.0
# A system exclusive message without an end would fill the memory; the longest real ones are samples of some 100 kB.
_LONGEST_MESSAGE = 1 << 20
# Each has a file handle, and takes need some.
_MOST_PEERS = 16


class TcpPort(Port):
    """Listens for peers, or connects to one and comes back when the connection breaks.

    Args:
        name: As the configuration calls it.
        host: The address to listen on, or the peer's.
        port: Likewise; 0 takes a free one (``address`` tells which).
        listen: Whether to listen.
    """

    kind = "tcp"

    def __init__(self, name: str, host: str, port: int, *, listen: bool) -> None:
        super().__init__(name)
        self.address = (host, port)
        self._listen = listen
        self._inbox: Inbox | None = None
        self._server: asyncio.Server | None = None
        self._writers: dict[asyncio.StreamWriter, str] = {}
        self._tasks: set[asyncio.Task[None]] = set()

    async def open(self, inbox: Inbox) -> None:
        """Listen, or start to connect."""
        self._inbox = inbox
        host, port = self.address
        if not self._listen:
            self._tasks.add(asyncio.create_task(self._stay_connected(), name=f"tcp-{self.name}"))
            return
        try:
            self._server = await asyncio.start_server(self._serve, host, port)
        except OSError as error:
            raise PortError(
                f"The port {self.name!r} cannot listen on {host}:{port}: {error.strerror or error}.",
                hint="Name another `listen` port, or stop who has this one.",
            ) from error
        self.address = self._server.sockets[0].getsockname()[:2]

    async def send(self, message: mido.Message) -> None:
        """Send to every peer."""
        if not self._writers:
            raise self.unconnected()
        data = bytes(message.bytes())
        for writer in list(self._writers):
            writer.write(data)
        for writer in list(self._writers):
            try:
                await asyncio.wait_for(writer.drain(), _LONGEST_SEND)
            except (OSError, TimeoutError) as error:
                writer.transport.abort()
                raise PortError(f"A peer of the port {self.name!r} took nothing: {error!r}.") from error

    async def close(self) -> None:
        """Hang up."""
        if self._server is not None:
            self._server.close()
        for task in self._tasks:
            task.cancel()
        for writer in list(self._writers):
            writer.transport.abort()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        self._server, self._inbox = None, None

    @property
    def state(self) -> PortState:
        """Who is connected."""
        where = f"{self.address[0]}:{self.address[1]}"
        detail = (
            ", ".join(self._writers.values()) or f"{'listening on' if self._listen else 'trying'} {where}"
        )
        return PortState(self.name, self.kind, bool(self._writers), detail)

    async def _stay_connected(self) -> None:
        failures = 0
        while True:
            try:
                reader, writer = await asyncio.open_connection(*self.address)
            except OSError as error:
                if failures == 0:
                    log.warning("%s: no peer at %s:%s yet (%s)", self.name, *self.address, error)
                await asyncio.sleep(_RECONNECT[min(failures, len(_RECONNECT) - 1)])
                failures += 1
                continue
            failures = 0
            await self._converse(reader, writer)
            await asyncio.sleep(_RECONNECT[0])

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if len(self._writers) >= _MOST_PEERS:
            log.warning("%s: one more than %d peers is not heard", self.name, _MOST_PEERS)
            writer.transport.abort()
            return
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        try:
            await self._converse(reader, writer)
        except asyncio.CancelledError:
            pass  # closed by us; asyncio would report the cancelled handler as an error
        finally:
            self._tasks.discard(task)

    async def _converse(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        inbox = self._inbox
        assert inbox is not None
        peer = writer.get_extra_info("peername") or ("?", 0)
        # Three bytes a message: Nagle would hold each back until the one before it is acknowledged.
        writer.get_extra_info("socket").setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._writers[writer] = f"{peer[0]}:{peer[1]}"
        log.info("%s: %s connected", self.name, self._writers[writer])
        parser, held = mido.Parser(), 0
        try:
            while data := await reader.read(4096):
                parser.feed(data)
                held += len(data)
                for message in parser:
                    if message.type not in REAL_TIME:
                        held = 0
                    await inbox.put(Event.of(self.name, message))
                if held > _LONGEST_MESSAGE:
                    inbox.missed(self.name, "message too long", 1)
                    parser, held = mido.Parser(), 0
        except OSError as error:
            log.info("%s: %s", self.name, error)
        finally:
            inbox.gap(self.name, "disconnected")
            log.info("%s: %s left", self.name, self._writers.pop(writer))
            with contextlib.suppress(OSError):
                writer.close()
