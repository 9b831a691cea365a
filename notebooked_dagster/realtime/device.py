"""``DeviceConfig``: the file ``device.yaml``, which says what an edge device does.

.. code-block:: yaml

    name: studio
    ports:
      - {name: keys, kind: system, match: Keystation}
      - {name: laptop, kind: rtp, listen: "0.0.0.0:5004"}
    clock: {bpm: 120, to: [laptop]}
    record: {spool: takes, ports: [keys], idle: 30}
    rules:
      - {name: thru, when: {port: keys}, then: [{forward: {to: laptop}}]}
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any, Literal

from pydantic import Field, SecretStr, field_validator, model_validator

from notebooked_dagster.config import load_file
from notebooked_dagster.config.experiment import Strict, Text

from .clock_process import Target
from .gpio import SensorConfig
from .ports import LoopbackPort, Port, RtpPort, SystemPort, TcpPort
from .rules import Names, Rule
from .timeline import MAX_BPM, MIN_BPM

_ADDRESS = re.compile(r"(?:(?P<host>[^\s:]+):)?(?P<port>\d{1,5})")


def _address(value: Any) -> tuple[str, int] | Any:
    found = _ADDRESS.fullmatch(str(value))
    if found is None or int(found["port"]) > 65535:
        raise ValueError(f"{value!r} is no address; write host:port, or a port to stay on this machine")
    return found["host"] or "127.0.0.1", int(found["port"])


class PortConfig(Strict):
    """A way in and out.

    Attributes:
        name: What rules call it.
        kind: ``system`` (a device of ALSA, JACK or Core MIDI), ``virtual`` (one that other programs connect to), ``tcp``,
            ``rtp`` (RTP-MIDI, AppleMIDI) or ``loopback`` (what is sent to it comes in by it).
        match: Of a system port: a part of the device's name; of a virtual one: its name. The port's name where left out.
        listen: Of tcp and rtp: ``host:port`` to wait on, or a port of this machine alone.
        connect: Of tcp and rtp: ``host:port`` of the peer.
        session: Of rtp: the name of a session in the network, which is found by mDNS, in the place of an address.
        announce: Of rtp that listens: whether others find the session by mDNS; one of this machine alone never is.
        api: Of system and virtual: RtMidi's ``LINUX_ALSA``, ``UNIX_JACK``, …
    """

    name: Text
    kind: Literal["system", "virtual", "tcp", "rtp", "loopback"] = "system"
    match: str | None = None
    listen: str | int | None = None
    connect: str | None = None
    session: Text | None = None
    announce: bool = True
    api: str | None = None

    @field_validator("listen", "connect")
    @classmethod
    def _checked(cls, value: Any) -> Any:
        if value is not None:
            _address(value)
        return value

    @model_validator(mode="after")
    def _one_end(self) -> PortConfig:
        network = self.kind in ("tcp", "rtp")
        if self.session is not None and self.kind != "rtp":
            raise ValueError(f"`session` is of rtp; a port of kind {self.kind} has none")
        ends = [end for end in (self.listen, self.connect, self.session) if end is not None]
        end = self.listen if self.listen is not None else self.connect
        if self.kind == "rtp" and end is not None and _address(end)[1] == 65535:
            raise ValueError("RTP-MIDI takes the next port, too, and there is none behind 65535")
        if network and len(ends) != 1:
            raise ValueError(
                f"a port of kind {self.kind} has either `listen` or `connect`{', or `session`' if self.kind == 'rtp' else ''}"
            )
        if not network and (self.listen is not None or self.connect is not None):
            raise ValueError(
                f"`listen` and `connect` are of tcp and rtp; a port of kind {self.kind} has neither"
            )
        return self

    def make(self) -> Port:
        """The port, not yet open."""
        if self.kind == "loopback":
            return LoopbackPort(self.name, echo=True)
        if self.kind in ("system", "virtual"):
            return SystemPort(
                self.name, self.match or self.name, virtual=self.kind == "virtual", api=self.api
            )
        if self.session is not None:
            return RtpPort(self.name, session=self.session)
        host, port = _address(self.listen if self.listen is not None else self.connect)
        if self.kind == "tcp":
            return TcpPort(self.name, host, port, listen=self.listen is not None)
        if self.connect is not None:
            return RtpPort(self.name, host, port, invite=True)
        return RtpPort(
            self.name, host, port, announce=self.announce and not host.startswith(("127.", "localhost"))
        )


class ClockConfig(Strict):
    """Our MIDI clock.

    Attributes:
        bpm: The tempo to begin with.
        to: The ports that get it.
        direct: Devices that the clock's own process opens, by a part of their names: no other work can delay them.
        follow: The port whose clock is followed instead of keeping our own tempo.
        priority: Under SCHED_FIFO, where that is permitted.
        mtc: MIDI time code at this many frames a second, to the same ports, while it runs.
    """

    bpm: float = Field(default=120.0, ge=MIN_BPM, le=MAX_BPM)
    to: Names = ()
    direct: Names = ()
    follow: Text | None = None
    priority: int = Field(default=70, ge=1, le=95)
    mtc: Literal[24, 25, 30] | None = None

    def targets(self) -> list[Target]:
        """What the process opens itself."""
        return [Target("system", match=name) for name in self.direct]


class RecordConfig(Strict):
    """Takes.

    Attributes:
        spool: Where they wait to be fetched; relative to this file.
        ports: Whose events are recorded; all where left out.
        idle: Seconds without a message after which a take ends.
        always: Whether a take starts with the first message, without any rule.
    """

    spool: str = "takes"
    ports: Names = ()
    idle: float | None = Field(default=None, gt=0)
    always: bool = False


class MqttConfig(Strict):
    """The MQTT broker.

    Attributes:
        host: Its address.
        port: Its port.
        username: Where it asks for one.
        password: Only by reference: ``${MQTT_PASSWORD}``.
    """

    host: str
    port: int = Field(default=1883, ge=1, le=65535)
    username: str | None = None
    password: SecretStr | None = None


class DagsterConfig(Strict):
    """The Dagster that is asked for runs.

    Attributes:
        url: Of the webserver.
        location: The code location.
        repository: In it.
        token: Sent as ``Authorization: Bearer``; only by reference.
        spool: Where requests wait while it is away; relative to this file.
    """

    url: str = Field(pattern=r"^https?://")
    location: str = "notebooked_dagster"
    repository: str = "__repository__"
    token: SecretStr | None = None
    spool: str = "requests"


class WebConfig(Strict):
    """The page with the live view, and the metrics.

    Attributes:
        host: The address it binds to. It has no login: leave it on this machine, and reach it by ``ssh -L``.
        port: Its port; 0 takes a free one.
        enabled: Whether there is one.
    """

    host: str = "127.0.0.1"
    port: int = Field(default=8321, ge=0, le=65535)
    enabled: bool = True


class DawConfig(Strict):
    """What a DAW speaks.

    Attributes:
        mmc: The port on which MIDI Machine Control moves our transport and recorder.
        mackie: The port on which we are a Mackie Control.
        osc: ``host:port`` on which OSC comes in; each message is an event ``sensor`` with the address as its source.
        exchange: A folder, relative to this file, in which standard MIDI files are exchanged: takes go out, what is put into ``in`` is played.
        play_to: The port that files of the exchange folder are played to.
    """

    mmc: Text | None = None
    mackie: Text | None = None
    osc: str | int | None = None
    exchange: str | None = None
    play_to: Text | None = None

    @field_validator("osc")
    @classmethod
    def _checked(cls, value: Any) -> Any:
        if value is not None:
            _address(value)
        return value

    @property
    def osc_address(self) -> tuple[str, int] | None:
        """Host and port."""
        return _address(self.osc) if self.osc is not None else None


class DeviceConfig(Strict):
    """What an edge device does.

    Attributes:
        name: Its name; takes carry it.
        ports: MIDI.
        clock: Our clock; none where left out.
        record: Takes; none where left out.
        sensors: What is at its pins.
        gpio: ``lgpio``, ``mock`` (pins in memory), or ``none``.
        rules: What happens when.
        mqtt: The broker for rules.
        dagster: The Dagster for rules.
        web: The page.
        daw: What a DAW speaks.
        queue: How many events may wait.
    """

    name: Text = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,62}$")
    ports: tuple[PortConfig, ...] = ()
    clock: ClockConfig | None = None
    record: RecordConfig | None = None
    sensors: tuple[SensorConfig, ...] = ()
    gpio: Literal["lgpio", "mock", "none"] = "none"
    rules: tuple[Rule, ...] = ()
    mqtt: MqttConfig | None = None
    dagster: DagsterConfig | None = None
    web: WebConfig = WebConfig()
    daw: DawConfig = DawConfig()
    queue: int = Field(default=4096, ge=16, le=1_000_000)

    @model_validator(mode="after")
    def _consistent(self) -> DeviceConfig:
        ports = [port.name for port in self.ports]
        names = ports + [sensor.name for sensor in self.sensors]
        double = next((name for name in names if names.count(name) > 1), None)
        if double is not None:
            raise ValueError(f"two ports or sensors are called {double!r}")
        if self.sensors and self.gpio == "none":
            raise ValueError("sensors need pins; write `gpio: lgpio`")
        for where, name in self._mentioned():
            if name not in names:
                raise ValueError(
                    f"{where} names {name!r}, and there is no such port; there are {', '.join(ports) or 'none'}"
                )
        for rule in self.rules:
            for action in rule.then:
                section = {"mqtt": "mqtt", "run": "dagster", "transport": "clock", "record": "record"}.get(
                    action.kind
                )
                if section is not None and getattr(self, section) is None:
                    raise ValueError(f"the rule {rule.name!r} needs a section `{section}`")
                if action.kind == "pin" and self.gpio == "none":
                    raise ValueError(f"the rule {rule.name!r} sets a pin; write `gpio: lgpio`")
        return self

    def _mentioned(self) -> list[tuple[str, str]]:
        """Every port that something refers to, with where that stands."""
        found: list[tuple[str, str]] = []
        if self.clock is not None:
            found += [("clock.to", name) for name in self.clock.to]
            found += [("clock.follow", self.clock.follow)] if self.clock.follow is not None else []
        if self.record is not None:
            found += [("record.ports", name) for name in self.record.ports]
        for key in ("mmc", "mackie", "play_to"):
            if (name := getattr(self.daw, key)) is not None:
                found.append((f"daw.{key}", name))
        for rule in self.rules:
            found += [(f"the rule {rule.name!r}", name) for name in rule.when.port or ()]
            for action in rule.then:
                to = (action.forward.to if action.forward else ()) + (
                    (action.play.to,) if action.play else ()
                )
                found += [(f"the rule {rule.name!r}", name) for name in to]
        return found


def load_device(path: Path) -> DeviceConfig:
    """Read ``device.yaml``. Raises ConfigError with file, line and key."""
    return load_file(path, DeviceConfig)
