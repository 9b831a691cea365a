"""``SensorLoop`` and ``Pins``: gpiozero with lgpio on a Pi, with its mock factory anywhere else.

gpiozero calls back in threads. A contact bounces for some milliseconds; a reading counts when it has stood still.
"""

from __future__ import annotations

import asyncio
import logging
import threading
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

from pydantic import Field

from notebooked_dagster.config.experiment import Strict, Text
from notebooked_dagster.errors import PortError

from .messages import Event, Inbox
from .packages import needed

log = logging.getLogger("notebooked.realtime.gpio")


class SensorConfig(Strict):
    """A switch, a button, a light barrier: something at a pin that is on or off.

    Attributes:
        name: What rules and counters call it.
        pin: BCM number.
        pull: The resistor: ``up`` (active when connected to ground), ``down`` (active at 3.3 V) or ``none``.
        debounce: Seconds it has to stand still before it counts.
    """

    name: Text
    pin: int = Field(ge=0, le=53)
    pull: Literal["up", "down", "none"] = "up"
    debounce: float = Field(default=0.01, ge=0, le=10)


def pin_factory(kind: str) -> Any:
    """A pin factory of gpiozero's: ``lgpio`` or ``mock``.

    Raises:
        MissingPackageError: gpiozero or lgpio is not installed.
        PortError: There are no pins here.
    """
    if kind == "mock":
        return needed("gpiozero.pins.mock", "gpiozero", "A pin").MockFactory()
    factory = needed("gpiozero.pins.lgpio", "gpiozero and lgpio", "A pin").LGPIOFactory
    try:
        return factory()
    except Exception as error:  # lgpio has an error class of its own for everything
        raise PortError(
            f"There are no pins to use: {error}.",
            hint="On a Raspberry Pi: is /dev/gpiochip0 there, is the user in the group gpio? Elsewhere: `gpio: mock`.",
        ) from error


@dataclass
class _Watched:
    config: SensorConfig
    device: Any
    reported: float
    seen: float
    edges: int = 0
    timer: asyncio.TimerHandle | None = None


class SensorLoop:
    """Brings what sensors say to the inbox.

    Attributes:
        edges: Changes of level, by sensor.
        bounces: Of these, how many did not stand still.
    """

    def __init__(self, sensors: Sequence[SensorConfig], factory: Any) -> None:
        self._configs = sensors
        self._factory = factory
        self._watched: dict[str, _Watched] = {}
        self._inbox: Inbox | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._lock = threading.Lock()
        self.edges: Counter[str] = Counter()
        self.bounces: Counter[str] = Counter()

    async def open(self, inbox: Inbox) -> None:
        """Take the pins. Raises PortError where one is taken already."""
        self._inbox, self._loop = inbox, asyncio.get_running_loop()
        gpiozero = needed("gpiozero", "gpiozero", "A sensor")
        for config in self._configs:
            pulls: dict[str, dict[str, Any]] = {
                "up": {"pull_up": True},
                "down": {"pull_up": False},
                "none": {"pull_up": None, "active_state": True},
            }
            try:
                device = gpiozero.DigitalInputDevice(
                    config.pin, pin_factory=self._factory, **pulls[config.pull]
                )
            except Exception as error:  # gpiozero's errors and lgpio's have no common class
                await self.close()
                raise PortError(
                    f"The pin {config.pin} of the sensor {config.name!r} cannot be used: {error}."
                ) from error
            value = float(device.value)
            self._watched[config.name] = watched = _Watched(config, device, value, value)
            device.when_activated = lambda w=watched: self._edge(w, 1.0)
            device.when_deactivated = lambda w=watched: self._edge(w, 0.0)

    async def close(self) -> None:
        """Give the pins back."""
        for watched in self._watched.values():
            if watched.timer is not None:
                watched.timer.cancel()
            await asyncio.to_thread(watched.device.close)
        self._watched.clear()

    def values(self) -> dict[str, float]:
        """The reading of each sensor."""
        return {name: watched.reported for name, watched in self._watched.items()}

    def _edge(self, watched: _Watched, value: float) -> None:
        # In gpiozero's thread.
        at = time.monotonic_ns()
        if self._loop is not None and not self._loop.is_closed():
            self._loop.call_soon_threadsafe(self._seen, watched, value, at)

    def _seen(self, watched: _Watched, value: float, at: int) -> None:
        name = watched.config.name
        self.edges[name] += 1
        watched.seen = value
        watched.edges += 1
        if watched.timer is not None:
            watched.timer.cancel()
        assert self._loop is not None
        watched.timer = self._loop.call_later(watched.config.debounce, self._settled, watched, at)

    def _settled(self, watched: _Watched, at: int) -> None:
        watched.timer = None
        edges, watched.edges = watched.edges, 0
        changed = watched.seen != watched.reported
        self.bounces[watched.config.name] += edges - int(changed)
        if changed and self._inbox is not None:
            watched.reported = watched.seen
            # The time is that of the contact, not of the end of the wait.
            self._inbox.offer(Event(watched.config.name, at, value=watched.seen))


class Pins:
    """Pins that rules set."""

    def __init__(self, factory: Any) -> None:
        self._factory = factory
        self._devices: dict[int, Any] = {}
        self._timers: dict[int, asyncio.TimerHandle] = {}

    def set(self, number: int, value: str, seconds: float | None = None) -> None:
        """``on``, ``off`` or ``toggle`` a pin, for some seconds or for good. Raises PortError where it cannot be used."""
        device = self._device(number)
        if number in self._timers:
            self._timers.pop(number).cancel()
        {"on": device.on, "off": device.off, "toggle": device.toggle}[value]()
        if seconds is not None:
            loop = asyncio.get_running_loop()
            self._timers[number] = loop.call_later(seconds, device.toggle)

    def values(self) -> dict[int, int]:
        """The pins that were set, and to what."""
        return {number: int(device.value) for number, device in self._devices.items()}

    async def close(self) -> None:
        """Switch everything off and give the pins back."""
        for timer in self._timers.values():
            timer.cancel()
        for device in self._devices.values():
            device.off()
            device.close()
        self._devices.clear()
        self._timers.clear()

    def _device(self, number: int) -> Any:
        if number not in self._devices:
            gpiozero = needed("gpiozero", "gpiozero", "A pin")
            try:
                self._devices[number] = gpiozero.DigitalOutputDevice(number, pin_factory=self._factory)
            except Exception as error:  # gpiozero's errors and lgpio's have no common class
                raise PortError(f"The pin {number} cannot be used: {error}.") from error
        return self._devices[number]
