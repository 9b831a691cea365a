"""What every port can do."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass

import mido

from notebooked_dagster.errors import PortError
from notebooked_dagster.realtime.messages import Inbox


@dataclass(frozen=True, slots=True)
class PortState:
    """What a port says of itself.

    Attributes:
        name: As the configuration calls it.
        kind: ``system``, ``tcp``, ``rtp`` or ``loopback``.
        connected: Whether anything is at the other end.
        detail: Of the other end, in words.
    """

    name: str
    kind: str
    connected: bool
    detail: str = ""


class Port(ABC):
    """One way in and out.

    What comes in goes to the inbox given to ``open``; a port never keeps events of its own.
    """

    kind = ""

    def __init__(self, name: str) -> None:
        self.name = name

    @abstractmethod
    async def open(self, inbox: Inbox) -> None:
        """Start to listen. A device or peer that is not there yet is waited for in the background.

        Raises:
            PortError: It can never work: an address that is taken, a driver that is not there.
        """

    @abstractmethod
    async def send(self, message: mido.Message) -> None:
        """Send a message; waits while the other end takes nothing.

        Raises:
            PortError: Nothing is connected, or the connection broke.
        """

    @abstractmethod
    async def close(self) -> None:
        """Stop, and give back what was taken; a second call does nothing."""

    @property
    @abstractmethod
    def state(self) -> PortState:
        """What it is connected to."""

    def unconnected(self) -> PortError:
        """The error for sending to nobody."""
        return PortError(f"Nothing is connected to the port {self.name!r}.")
