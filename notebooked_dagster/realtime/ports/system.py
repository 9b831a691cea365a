"""Ports of the system's MIDI (ALSA, JACK, Core MIDI) by python-rtmidi; virtual ones where the system has them.

RtMidi calls back in a thread of its own. What it brings is handed to the event loop through a bounded buffer.
"""

from __future__ import annotations

import asyncio
import logging
import threading
import time
from collections import deque
from typing import Any

import mido

from notebooked_dagster.errors import PortError
from notebooked_dagster.realtime.messages import Event, Inbox, decoded
from notebooked_dagster.realtime.packages import needed

from .base import Port, PortState

log = logging.getLogger("notebooked.realtime.system")
_LOOK = 2.0
_LIMIT = 2048


class SystemPort(Port):
    """A device by a part of its name, waited for and taken up again when it is plugged in again; or a virtual port.

    Args:
        name: As the configuration calls it.
        match: Part of the device's name, upper or lower case; the whole name of a virtual port.
        virtual: Whether to make a port that other programs connect to.
        api: An API of RtMidi (``LINUX_ALSA``, ``UNIX_JACK``, …); RtMidi's own choice where None.
    """

    kind = "system"

    def __init__(self, name: str, match: str, *, virtual: bool = False, api: str | None = None) -> None:
        super().__init__(name)
        self._match = match
        self._virtual = virtual
        self._api = api
        self._inbox: Inbox | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._in: Any = None
        self._out: Any = None
        self._found = ""
        self._watch: asyncio.Task[None] | None = None
        self._buffer: deque[tuple[int, bytes]] = deque()
        self._overflow = 0
        self._lock = threading.Lock()

    async def open(self, inbox: Inbox) -> None:
        """Open the device where it is there; look for it every two seconds where it is not."""
        self._inbox, self._loop = inbox, asyncio.get_running_loop()
        rtmidi = needed("rtmidi", "python-rtmidi", "A MIDI device of the system")
        api = getattr(rtmidi, f"API_{self._api}", None) if self._api else rtmidi.API_UNSPECIFIED
        if api is None or (self._api and api not in rtmidi.get_compiled_api()):
            raise PortError(
                f"RtMidi has no API {self._api!r} here.",
                hint="It has "
                + ", ".join(rtmidi.get_api_name(found) for found in rtmidi.get_compiled_api())
                + ".",
            )
        try:
            self._in, self._out = rtmidi.MidiIn(rtapi=api), rtmidi.MidiOut(rtapi=api)
        except (rtmidi.SystemError, rtmidi.RtMidiError) as error:
            raise PortError(
                f"The system's MIDI cannot be opened for the port {self.name!r}: {error}.",
                hint="On a Raspberry Pi: is /dev/snd/seq there (`modprobe snd-seq`), is the user in the group audio?",
            ) from error
        # System exclusive, time code and clock are left out by RtMidi unless asked for.
        self._in.ignore_types(sysex=False, timing=False, active_sense=True)
        self._in.set_callback(self._called)
        if self._virtual:
            self._in.open_virtual_port(self._match)
            self._out.open_virtual_port(self._match)
            self._found = f"virtual port {self._match}"
            return
        await self._look()
        self._watch = asyncio.create_task(self._keep_looking(), name=f"midi-{self.name}")

    async def send(self, message: mido.Message) -> None:
        """Hand a message to the driver, which takes it at once."""
        if not self._found:
            raise self.unconnected()
        try:
            self._out.send_message(message.bytes())
        except Exception as error:  # rtmidi's own class, which may not be there to be named
            raise PortError(f"The device of the port {self.name!r} took nothing: {error}.") from error

    async def close(self) -> None:
        """Give the device back."""
        if self._watch is not None:
            self._watch.cancel()
        for end in (self._in, self._out):
            if end is not None:
                end.close_port()
                end.delete()
        self._in = self._out = self._watch = None
        self._found = ""

    @property
    def state(self) -> PortState:
        """The device."""
        return PortState(
            self.name, self.kind, bool(self._found), self._found or f"no device called {self._match!r}"
        )

    async def _keep_looking(self) -> None:
        while True:
            await asyncio.sleep(_LOOK)
            await self._look()

    async def _look(self) -> None:
        names = [list(map(str, end.get_ports())) for end in (self._in, self._out)]
        places = [
            next((i for i, name in enumerate(found) if self._match.lower() in name.lower()), None)
            for found in names
        ]
        there = next((names[i][place] for i, place in enumerate(places) if place is not None), "")
        if there == self._found:
            return
        if self._found:
            log.warning("%s: %s is gone", self.name, self._found)
            assert self._inbox is not None
            self._inbox.gap(self.name, "device unplugged")
            self._in.close_port()
            self._out.close_port()
        self._found = there
        if there:
            log.info("%s: %s", self.name, there)
            for end, place in zip((self._in, self._out), places, strict=True):
                if place is not None:
                    end.open_port(place)

    def _called(self, event: tuple[list[int], float], _data: Any = None) -> None:
        # In RtMidi's thread: as little as possible, and never wait.
        at = time.monotonic_ns()
        with self._lock:
            first = not self._buffer and not self._overflow
            if len(self._buffer) < _LIMIT:
                self._buffer.append((at, bytes(event[0])))
            else:
                self._overflow += 1
        if first and self._loop is not None and not self._loop.is_closed():
            self._loop.call_soon_threadsafe(self._drain)

    def _drain(self) -> None:
        with self._lock:
            found, self._buffer = self._buffer, deque()
            lost, self._overflow = self._overflow, 0
        inbox = self._inbox
        assert inbox is not None
        for at, data in found:
            message = decoded(data)
            if message is None:
                inbox.missed(self.name, "not MIDI", 1)
            else:
                inbox.offer(Event(self.name, at, message))
        if lost:
            inbox.missed(self.name, "driver buffer full", lost)
