"""A port in memory: what is sent to it comes in by it. For tests, and for rules that talk to each other."""

from __future__ import annotations

import mido

from notebooked_dagster.realtime.messages import Event, Inbox

from .base import Port, PortState


class LoopbackPort(Port):
    """A port with both ends here.

    Attributes:
        heard: What was sent, in order, where the port does not echo.
    """

    kind = "loopback"

    def __init__(self, name: str, *, echo: bool = False) -> None:
        super().__init__(name)
        self.heard: list[mido.Message] = []
        self._echo = echo
        self._inbox: Inbox | None = None

    async def open(self, inbox: Inbox) -> None:
        """Start to echo."""
        self._inbox = inbox

    async def send(self, message: mido.Message) -> None:
        """Take a message; it comes in again where the port echoes."""
        if self._inbox is None:
            raise self.unconnected()
        if self._echo:
            # Who sends here is who empties the inbox: waiting for room in it would be waiting for oneself.
            self._inbox.offer(Event.of(self.name, message))
        else:
            self.heard.append(message)

    async def play_in(self, message: mido.Message) -> None:
        """Let a message come in, as though somebody had played it."""
        if self._inbox is None:
            raise self.unconnected()
        await self._inbox.put(Event.of(self.name, message))

    async def close(self) -> None:
        """Stop."""
        self._inbox = None

    @property
    def state(self) -> PortState:
        """Open or not."""
        return PortState(self.name, self.kind, self._inbox is not None, "in memory")
