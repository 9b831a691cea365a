"""``MidiHandler``: all ports of a device behind one inbox."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Sequence
from types import TracebackType

import mido

from notebooked_dagster.errors import ConfigError

from .messages import Counters, Event, Inbox
from .ports import Port, PortState


class MidiHandler:
    """Opens ports, hands on what comes in by them, sends, and counts.

    ::

        async with MidiHandler([TcpPort("net", "127.0.0.1", 9000, listen=True)]) as midi:
            async for event in midi:
                await midi.send("net", event.message)
    """

    def __init__(self, ports: Sequence[Port], *, counters: Counters | None = None, limit: int = 4096) -> None:
        self.counters = counters or Counters()
        self.inbox = Inbox(self.counters, limit)
        self._ports = {port.name: port for port in ports}
        self._opened: list[Port] = []

    async def __aenter__(self) -> MidiHandler:
        try:
            for port in self._ports.values():
                await port.open(self.inbox)
                self._opened.append(port)
        except BaseException:
            await self.close()
            raise
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    async def close(self) -> None:
        """Close every port that was opened."""
        opened, self._opened = self._opened, []
        await asyncio.gather(*(port.close() for port in opened), return_exceptions=True)

    def __aiter__(self) -> MidiHandler:
        return self

    async def __anext__(self) -> Event:
        return await self.inbox.get()

    async def send(self, port: str, message: mido.Message) -> None:
        """Send a message by a port.

        Raises:
            ConfigError: There is no such port.
            PortError: Nothing is connected to it.
        """
        await self.port(port).send(message)
        self.counters.sent[port] += 1

    def port(self, name: str) -> Port:
        """A port by its name. Raises ConfigError where there is none."""
        try:
            return self._ports[name]
        except KeyError:
            raise ConfigError(
                f"There is no port {name!r}.", hint=f"There are: {', '.join(self._ports) or 'none'}."
            ) from None

    def states(self) -> list[PortState]:
        """What each port is connected to."""
        return [port.state for port in self._ports.values()]

    def names(self) -> Iterable[str]:
        """The ports' names."""
        return self._ports.keys()
