"""Rules in YAML: when this happens, then do that.

.. code-block:: yaml

    rules:
      - name: pads to the synth
        when: {type: [note_on, note_off], port: pads, channel: 10, note: 36..51}
        then:
          - forward: {to: synth, channel: 1}
      - name: foot switch records
        when: {type: control_change, control: 64, value: 64..127}
        then: [{record: toggle}]
      - name: door
        when: {sensor: door, above: 0.5}
        at_most_every: 10
        then:
          - mqtt: {topic: studio/door}
          - run: {job: door_job}
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, field_validator, model_validator

from notebooked_dagster.config.experiment import Strict, Text

from .messages import Event

_RANGE = re.compile(r"\s*(\d+)\s*\.\.\s*(\d+)\s*")
_ADDRESS = re.compile(r"(?P<host>[^\s:]+|\[[0-9a-fA-F:]+\]):(?P<port>\d{1,5})")
KINDS = (
    "note_on", "note_off", "polytouch", "control_change", "program_change", "aftertouch", "pitchwheel", "sysex",
    "quarter_frame", "songpos", "song_select", "tune_request", "clock", "start", "continue", "stop", "active_sensing",
    "reset", "sensor",
)  # fmt: skip


def _span(value: Any) -> Any:
    """``36``, ``"36..51"`` or ``[36, 40, 43]`` as a set of numbers."""
    if isinstance(value, bool):
        raise ValueError("a truth value is no number")
    if isinstance(value, int):
        return frozenset({value})
    if isinstance(value, str) and (found := _RANGE.fullmatch(value)):
        first, last = int(found[1]), int(found[2])
        if first > last:
            raise ValueError(f"the range {value} is empty; write {last}..{first}")
        if last > 16383:
            raise ValueError(f"no value of MIDI is larger than 16383, and {value} goes further")
        return frozenset(range(first, last + 1))
    if isinstance(value, list | tuple | set | frozenset):
        return frozenset(number for part in value for number in _span(part))
    raise ValueError(f"write a number, a range such as 36..51, or a list of them, not {value!r}")


def _listed(value: Any) -> Any:
    return (value,) if isinstance(value, str) else value


Span = Annotated[frozenset[int], BeforeValidator(_span, json_schema_input_type=int | str | list[Any])]
Names = Annotated[tuple[Text, ...], BeforeValidator(_listed, json_schema_input_type=str | list[str])]
Channel = Annotated[int, Field(ge=1, le=16)]


class When(Strict):
    """What an event has to be; everything that is said has to fit.

    Attributes:
        type: Kinds of MIDI messages: ``note_on``, ``control_change``, …; all where left out.
        port: The ports it may come in by; all where left out.
        channel: 1 to 16: a number, a range ``1..4``, or a list.
        note: Likewise, 0 to 127.
        control: The controller's number, likewise.
        value: Velocity, controller value, program, pressure or song position, likewise; of the pitch wheel 0 to 16383.
        sensor: The sensors whose readings fit.
        above: The reading has to be larger.
        below: The reading has to be smaller.
    """

    type: Names | None = None
    port: Names | None = None
    channel: Span | None = None
    note: Span | None = None
    control: Span | None = None
    value: Span | None = None
    sensor: Names | None = None
    above: float | None = None
    below: float | None = None

    @field_validator("type")
    @classmethod
    def _known(cls, value: tuple[str, ...] | None) -> tuple[str, ...] | None:
        for kind in value or ():
            if kind not in KINDS:
                raise ValueError(f"{kind!r} is no kind of message; there are {', '.join(KINDS)}")
        return value

    @field_validator("channel")
    @classmethod
    def _channels(cls, value: frozenset[int] | None) -> frozenset[int] | None:
        if value is not None and not value <= frozenset(range(1, 17)):
            raise ValueError("channels are counted from 1 to 16")
        return value

    @field_validator("note", "control")
    @classmethod
    def _seven_bits(cls, value: frozenset[int] | None) -> frozenset[int] | None:
        if value is not None and not value <= frozenset(range(128)):
            raise ValueError("notes and controllers are counted from 0 to 127")
        return value

    @model_validator(mode="after")
    def _one_sort(self) -> When:
        midi = [
            name
            for name in ("type", "port", "channel", "note", "control", "value")
            if getattr(self, name) is not None and not (name == "type" and self.type == ("sensor",))
        ]
        if self.sensor is None and (self.above is not None or self.below is not None):
            raise ValueError("`above` and `below` are about a sensor; name it with `sensor`")
        if self.sensor is not None and midi:
            raise ValueError(f"no event is a sensor's and has `{midi[0]}`; make two rules of it")
        return self


class Forward(Strict):
    """Send the message on.

    Attributes:
        to: The ports.
        channel: Another channel.
        transpose: Semitones; a note that leaves 0 to 127 is not sent, and counted.
    """

    to: Names
    channel: Channel | None = None
    transpose: int = Field(default=0, ge=-127, le=127)


class Play(Strict):
    """Play a standard MIDI file.

    Attributes:
        file: Relative to the configuration's folder.
        to: The port.
    """

    file: str
    to: Text


class Pin(Strict):
    """Set a pin.

    Attributes:
        number: BCM number.
        value: ``on``, ``off``, ``toggle``, or ``event``: on while a note sounds, a controller is 64 or more, a sensor is 1.
        seconds: Back to the other value after this long.
    """

    number: int = Field(ge=0, le=53)
    value: Literal["on", "off", "toggle", "event"] = "on"
    seconds: float | None = Field(default=None, gt=0, le=3600)

    @field_validator("value", mode="before")
    @classmethod
    def _yaml(cls, value: Any) -> Any:
        # YAML reads on and off as truth values.
        return {True: "on", False: "off"}.get(value, value) if isinstance(value, bool) else value


class WebSocketMessage(Strict):
    """Send the event as JSON.

    Attributes:
        url: ``ws://`` or ``wss://``.
    """

    url: str = Field(pattern=r"^wss?://")


class MqttMessage(Strict):
    """Publish the event as JSON to the broker of the section ``mqtt``.

    Attributes:
        topic: Where.
        qos: 0, 1 or 2.
        retain: Whether the broker keeps it for later subscribers.
    """

    topic: str = Field(min_length=1, pattern=r"^[^+#]*$")
    qos: int = Field(default=0, ge=0, le=2)
    retain: bool = False


class OscMessage(Strict):
    """Send it by Open Sound Control over UDP; the arguments are the message's numbers, or the sensor's reading.

    Attributes:
        to: ``host:port``.
        address: ``/studio/pads``; ``{note}``, ``{control}``, ``{channel}``, ``{source}`` are replaced.
    """

    to: str
    address: str = Field(pattern=r"^/")

    @field_validator("to")
    @classmethod
    def _host_and_port(cls, value: str) -> str:
        found = _ADDRESS.fullmatch(value)
        if found is None or not 0 < int(found["port"]) < 65536:
            raise ValueError(f"{value!r} is no address; write host:port, such as 192.168.1.20:9000")
        return value

    @property
    def peer(self) -> tuple[str, int]:
        """Host and port."""
        found = _ADDRESS.fullmatch(self.to)
        assert found is not None
        return found["host"].strip("[]"), int(found["port"])


class RunRequest(Strict):
    """Ask Dagster for a run, through the webserver of the section ``dagster``.

    Attributes:
        job: The job's name.
        tags: Tags of the run.
        config: Its run config.
    """

    job: Text
    tags: dict[str, Text] = Field(default_factory=dict)
    config: dict[str, Any] = Field(default_factory=dict)


class Action(Strict):
    """One thing to do; exactly one of the keys.

    Attributes:
        forward: Send the message on.
        record: ``start``, ``stop`` or ``toggle`` a take.
        play: Play a file.
        pin: Set a pin.
        transport: ``start``, ``stop`` or ``resume`` our clock.
        websocket: Send the event over WebSocket.
        mqtt: Publish the event.
        osc: Send the event by OSC.
        run: Ask Dagster for a run.
    """

    forward: Forward | None = None
    record: Literal["start", "stop", "toggle"] | None = None
    play: Play | None = None
    pin: Pin | None = None
    transport: Literal["start", "stop", "resume"] | None = None
    websocket: WebSocketMessage | None = None
    mqtt: MqttMessage | None = None
    osc: OscMessage | None = None
    run: RunRequest | None = None

    @model_validator(mode="after")
    def _exactly_one(self) -> Action:
        told = [name for name in type(self).model_fields if getattr(self, name) is not None]
        if len(told) != 1:
            raise ValueError(
                f"each entry of `then` does one thing, and here {' and '.join(f'`{n}`' for n in told) or 'nothing'}"
                " is named; start a new entry with `-` for each"
            )
        return self

    @property
    def kind(self) -> str:
        """Which one it is."""
        return next(name for name in type(self).model_fields if getattr(self, name) is not None)

    @property
    def what(self) -> Any:
        """Its settings."""
        return getattr(self, self.kind)


class Rule(Strict):
    """When something happens, then do something.

    Attributes:
        name: What counters and logs call it.
        when: What the event has to be.
        then: What is done, in this order.
        at_most_every: Seconds that have to pass before it acts again; what comes sooner is counted.
    """

    name: Text = Field(min_length=1)
    when: When
    then: tuple[Action, ...] = Field(min_length=1)
    at_most_every: float = Field(default=0.0, ge=0)


def matcher(when: When) -> Callable[[Event], bool]:
    """A function that says whether an event fits; what was left out is not looked at."""
    sensors = frozenset(when.sensor) if when.sensor is not None else None
    if sensors is not None or when.type == ("sensor",):
        above = when.above if when.above is not None else float("-inf")
        below = when.below if when.below is not None else float("inf")
        return lambda event: (
            event.value is not None
            and (sensors is None or event.source in sensors)
            and above < event.value < below
        )
    kinds = frozenset(when.type) if when.type is not None else None
    ports = frozenset(when.port) if when.port is not None else None
    numbers = [
        (function, wanted)
        for function, wanted in (
            (channel_of, when.channel), (note_of, when.note), (control_of, when.control), (value_of, when.value),
        )
        if wanted is not None
    ]  # fmt: skip

    def matches(event: Event) -> bool:
        if event.message is None or (kinds is not None and event.kind not in kinds):
            return False
        if ports is not None and event.source not in ports:
            return False
        return all(function(event) in wanted for function, wanted in numbers)

    return matches


def channel_of(event: Event) -> int | None:
    """1 to 16; None where the message has none."""
    found = getattr(event.message, "channel", None)
    return None if found is None else int(found) + 1


def note_of(event: Event) -> int | None:
    """The note's number."""
    return getattr(event.message, "note", None)


def control_of(event: Event) -> int | None:
    """The controller's number."""
    return getattr(event.message, "control", None)


def value_of(event: Event) -> int | None:
    """The number that a message is about."""
    message = event.message
    if message is None:
        return None
    if message.type == "pitchwheel":
        return int(message.pitch) + 8192
    for name in ("value", "velocity", "program", "pos", "song"):
        found = getattr(message, name, None)
        if found is not None:
            return int(found)
    return None
