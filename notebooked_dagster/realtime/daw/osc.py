"""Open Sound Control coming in over UDP: each message is an event whose source is its address."""

from __future__ import annotations

import asyncio
import time
from typing import Any

from notebooked_dagster.errors import PortError
from notebooked_dagster.realtime.messages import Event, Inbox
from notebooked_dagster.realtime.packages import needed


class OscServer(asyncio.DatagramProtocol):
    """Listens on an address until closed."""

    def __init__(self, address: tuple[str, int]) -> None:
        self.address = address
        self._inbox: Inbox | None = None
        self._transport: asyncio.DatagramTransport | None = None
        self._packet: Any = None

    async def open(self, inbox: Inbox) -> None:
        """Listen. Raises PortError where the address is taken."""
        self._inbox = inbox
        self._packet = needed("pythonosc.osc_packet", "python-osc", "OSC")
        loop = asyncio.get_running_loop()
        try:
            self._transport, _ = await loop.create_datagram_endpoint(lambda: self, local_addr=self.address)
        except OSError as error:
            raise PortError(
                f"OSC cannot listen on {self.address[0]}:{self.address[1]}: {error.strerror}."
            ) from error
        self.address = self._transport.get_extra_info("sockname")[:2]

    async def close(self) -> None:
        """Stop."""
        if self._transport is not None:
            self._transport.close()

    def datagram_received(self, data: bytes, addr: tuple[str, int]) -> None:
        """A packet: one message, or a bundle of them."""
        inbox, at = self._inbox, time.monotonic_ns()
        assert inbox is not None
        try:
            messages = [timed.message for timed in self._packet.OscPacket(data).messages]
        except (self._packet.ParseError, ValueError, IndexError):
            inbox.missed("osc", "damaged packet", 1)
            return
        for message in messages:
            number = next((p for p in message.params if isinstance(p, int | float)), 1.0)
            inbox.offer(Event(str(message.address), at, value=float(number)))
