"""Ways out that take their time: each has a bounded queue and a task, so that a broker that is down delays no note."""

from __future__ import annotations

import asyncio
import logging
import uuid
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import Any, Protocol

import orjson

from notebooked_dagster.errors import NotebookedError

from .messages import Counters, Event

log = logging.getLogger("notebooked.realtime.outlets")
_LIMIT = 1000
_PAUSES = (0.2, 1.0, 3.0, 10.0)


@dataclass(frozen=True, slots=True)
class Parcel:
    """One thing on its way out.

    Attributes:
        rule: Which rule sent it.
        event: What happened.
        what: The action's settings.
        mark: Its own alone, so that a receiver can tell a second delivery from a second event.
    """

    rule: str
    event: Event
    what: Any
    mark: str = field(default_factory=lambda: uuid.uuid4().hex)


class WayOut(Protocol):
    """What takes parcels without delay."""

    kind: str

    def offer(self, parcel: Parcel) -> None:
        """Take a parcel; count it as refused where there is no room."""

    async def run(self) -> None:
        """Deliver until cancelled."""


class Outlet:
    """A queue in front of something slow.

    Args:
        kind: The kind of action.
        deliver: Delivers a parcel; an OSError is tried again, any error of ours is not.
        counters: Where deliveries and refusals are counted.
        limit: How many may wait.
    """

    def __init__(
        self, kind: str, deliver: Callable[[Parcel], Awaitable[None]], counters: Counters, limit: int = _LIMIT
    ) -> None:
        self.kind = kind
        self._deliver = deliver
        self._counters = counters
        self._queue: asyncio.Queue[Parcel] = asyncio.Queue(limit)
        self._told = ""

    def offer(self, parcel: Parcel) -> None:
        """Queue a parcel; count it as refused where there is no room."""
        try:
            self._queue.put_nowait(parcel)
        except asyncio.QueueFull:
            self._counters.refused[parcel.rule, f"{self.kind}: queue full"] += 1

    def __len__(self) -> int:
        return self._queue.qsize()

    async def run(self) -> None:
        """Deliver, one after another, until cancelled."""
        while True:
            parcel = await self._queue.get()
            reason = await self._tried(parcel)
            if reason is None:
                self._counters.actions[parcel.rule, self.kind] += 1
                self._told = ""
            else:
                self._counters.refused[parcel.rule, f"{self.kind}: failed"] += 1
                if reason != self._told:
                    log.warning("%s of rule %r: %s", self.kind, parcel.rule, reason)
                    self._told = reason

    async def _tried(self, parcel: Parcel) -> str | None:
        for pause in (*_PAUSES, None):
            try:
                await self._deliver(parcel)
            except NotebookedError as error:
                return str(error)
            except (OSError, TimeoutError) as error:
                if pause is None:
                    return f"{type(error).__name__}: {error}"
                await asyncio.sleep(pause)
            except Exception as error:  # one parcel that nobody foresaw must not end the outlet
                log.exception("%s of rule %r", self.kind, parcel.rule)
                return f"{type(error).__name__}: {error}"
            else:
                return None
        return None


def as_data(event: Event) -> dict[str, Any]:
    """An event as plain data, for JSON."""
    data: dict[str, Any] = {"source": event.source, "kind": event.kind}
    if event.message is None:
        data["value"] = event.value
    else:
        told = event.message.dict()
        data |= {name: value for name, value in told.items() if name not in ("type", "time")}
        if "channel" in data:
            data["channel"] += 1
    return data


def as_json(event: Event) -> bytes:
    """An event as JSON."""
    return orjson.dumps(as_data(event))
