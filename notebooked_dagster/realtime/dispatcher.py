"""``Dispatcher``: each event past each rule, in the order of the file.

What is quick (forwarding, a pin, a datagram) is done at once; what may take its time goes to an outlet. Whatever happens, the
event is counted as handled, and each action as carried out or refused with a reason.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import mido

from notebooked_dagster.errors import NotebookedError, PortError

from .clock import Clock
from .gpio import Pins
from .handler import MidiHandler
from .messages import Counters, Event
from .network import Osc
from .outlets import Parcel, WayOut
from .rules import Action, Forward, Rule, matcher, value_of

log = logging.getLogger("notebooked.realtime.dispatcher")
_SLOW = ("record", "play", "websocket", "mqtt", "run")


class Dispatcher:
    """Carries out rules.

    Args:
        rules: In the order in which they act.
        midi: Where messages are forwarded to.
        outlets: Of the kinds of action that take their time; a rule that needs one that is not there is refused.
        clock: For ``transport``.
        pins: For ``pin``.
        osc: For ``osc``.
    """

    def __init__(
        self,
        rules: Sequence[Rule],
        midi: MidiHandler,
        outlets: Mapping[str, WayOut] | None = None,
        *,
        clock: Clock | None = None,
        pins: Pins | None = None,
        osc: Osc | None = None,
    ) -> None:
        self._midi = midi
        self._outlets = dict(outlets or {})
        self._clock, self._pins, self._osc = clock, pins, osc
        self._rules: list[tuple[Rule, Callable[[Event], bool]]] = [
            (rule, matcher(rule.when)) for rule in rules
        ]
        self._acted: dict[str, int] = {}
        self._told: set[tuple[str, str]] = set()

    @property
    def counters(self) -> Counters:
        """Where everything is counted."""
        return self._midi.counters

    async def handle(self, event: Event) -> None:
        """Do what the rules say about an event."""
        for rule, matches in self._rules:
            if matches(event) and self._due(rule, event):
                for action in rule.then:
                    await self._carry_out(rule.name, action, event)
        self.counters.handled[event.source] += 1

    def _due(self, rule: Rule, event: Event) -> bool:
        if rule.at_most_every <= 0:
            return True
        last = self._acted.get(rule.name)
        if last is not None and event.at - last < rule.at_most_every * 1e9:
            self.counters.refused[rule.name, "too soon"] += 1
            return False
        self._acted[rule.name] = event.at
        return True

    async def _carry_out(self, rule: str, action: Action, event: Event) -> None:
        kind, what = action.kind, action.what
        try:
            if kind in _SLOW:
                self._outlet(kind).offer(Parcel(rule, event, what))
                return  # counted by the outlet, when it is done
            if kind == "forward":
                await self._forward(rule, what, event)
                return  # counted for each port
            if kind == "pin":
                self._set_pin(what, event)
            elif kind == "osc":
                if self._osc is None:
                    raise PortError("OSC is not open.")
                self._osc.send(Parcel(rule, event, what))
            elif kind == "transport":
                self._transport(what)
        except (NotebookedError, OSError) as error:
            self._refuse(rule, kind, error)
        else:
            self.counters.actions[rule, kind] += 1

    async def _forward(self, rule: str, what: Forward, event: Event) -> None:
        message = event.message
        if message is None:
            self._refuse(rule, "forward", PortError("A sensor's reading is no MIDI message."))
            return
        changed = changed_message(message, what)
        if changed is None:
            self.counters.refused[rule, "forward: note out of range"] += 1
            return
        for port in what.to:
            try:
                await self._midi.send(port, changed)
            except (NotebookedError, OSError) as error:
                self._refuse(rule, "forward", error)
            else:
                self.counters.actions[rule, "forward"] += 1

    def _set_pin(self, what: Any, event: Event) -> None:
        if self._pins is None:
            raise PortError("The pins are not open.", hint="Write `gpio: lgpio` into the configuration.")
        value = what.value
        if value == "event":
            value = "on" if is_on(event) else "off"
        self._pins.set(what.number, value, what.seconds)

    def _transport(self, what: str) -> None:
        if self._clock is None:
            raise PortError("There is no clock.", hint="Add a section `clock`.")
        {"start": self._clock.start, "stop": self._clock.stop, "resume": self._clock.resume}[what]()

    def _outlet(self, kind: str) -> WayOut:
        if kind not in self._outlets:
            raise PortError(f"Nothing is set up for `{kind}`.")
        return self._outlets[kind]

    def _refuse(self, rule: str, kind: str, error: Exception) -> None:
        reason = f"{kind}: {type(error).__name__}"
        self.counters.refused[rule, reason] += 1
        # Once is news; a keyboard without its synth would fill the journal with the rest.
        if (rule, reason) not in self._told:
            self._told.add((rule, reason))
            log.warning("rule %r: %s", rule, error)


def is_on(event: Event) -> bool:
    """Whether an event switches something on: a note that starts, a controller of 64 or more, a reading above 0."""
    if event.message is None:
        return bool(event.value)
    if event.kind in ("note_on", "note_off"):
        return event.kind == "note_on"
    value = value_of(event)
    return value is None or value >= 64


def changed_message(message: mido.Message, what: Forward) -> mido.Message | None:
    """The message on its new channel and pitch; None where it would leave the range of notes."""
    changes: dict[str, int] = {}
    if what.channel is not None and hasattr(message, "channel"):
        changes["channel"] = what.channel - 1
    if what.transpose and hasattr(message, "note"):
        changes["note"] = message.note + what.transpose
        if not 0 <= changes["note"] <= 127:
            return None
    return message.copy(**changes) if changes else message
