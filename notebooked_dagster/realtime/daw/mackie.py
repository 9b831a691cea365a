"""A Mackie Control, emulated: a DAW sees a surface with eight channels, a master fader, buttons, a display.

Faders are pitch bend on channels 1 to 9, buttons are notes, V-Pots are controllers 16 to 23, the display is system exclusive.
Numbers are those of the Logic Control manual, which Mackie's follows.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

import mido

_HEADER = (0x00, 0x00, 0x66)
MCU, LOGIC, EXTENDER = 0x14, 0x10, 0x15
CHANNELS = 8
_LCD_WIDTH, _LCD_SIZE = 56, 112
_FADER_TOP = 8191 + 8192
BUTTONS: dict[str, int] = {
    **{f"rec_{n + 1}": n for n in range(8)},
    **{f"solo_{n + 1}": 8 + n for n in range(8)},
    **{f"mute_{n + 1}": 16 + n for n in range(8)},
    **{f"select_{n + 1}": 24 + n for n in range(8)},
    **{f"v_pot_{n + 1}": 32 + n for n in range(8)},
    "bank_left": 0x2E, "bank_right": 0x2F, "channel_left": 0x30, "channel_right": 0x31, "flip": 0x32,
    **{f"f{n + 1}": 0x36 + n for n in range(8)},
    "save": 0x50, "undo": 0x51, "marker": 0x54, "cycle": 0x56, "click": 0x59,
    "rewind": 0x5B, "fast_forward": 0x5C, "stop": 0x5D, "play": 0x5E, "record": 0x5F,
    "up": 0x60, "down": 0x61, "left": 0x62, "right": 0x63, "zoom": 0x64, "scrub": 0x65,
    **{f"touch_{n + 1}": 0x68 + n for n in range(8)}, "touch_master": 0x70,
}  # fmt: skip
_NAMES = {number: name for name, number in BUTTONS.items()}


@dataclass
class MackieControl:
    """The state of the surface, and both directions of its protocol.

    Attributes:
        model: Which device it says it is.
        serial: Seven characters.
        lit: Buttons whose light is on (or flashes).
        faders: Positions 0.0 to 1.0 of the eight channels and the master.
        rings: What the rings around the V-Pots show.
        meters: Level 0 to 14 of each channel.
        timecode: The ten digits of the display.
        online: Whether a DAW has spoken to it.
    """

    model: int = MCU
    serial: bytes = b"NBEDGE1"
    lit: set[str] = field(default_factory=set)
    faders: list[float] = field(default_factory=lambda: [0.0] * (CHANNELS + 1))
    rings: list[int] = field(default_factory=lambda: [0] * CHANNELS)
    meters: list[int] = field(default_factory=lambda: [0] * CHANNELS)
    timecode: list[str] = field(default_factory=lambda: [" "] * 10)
    online: bool = False
    _lcd: bytearray = field(default_factory=lambda: bytearray(b" " * _LCD_SIZE))
    _challenge: tuple[int, int, int, int] = (0x27, 0x13, 0x55, 0x0E)

    @property
    def lines(self) -> tuple[str, str]:
        """What the display shows."""
        text = self._lcd.decode("ascii", "replace")
        return text[:_LCD_WIDTH], text[_LCD_WIDTH:]

    def strips(self) -> list[tuple[str, str]]:
        """The display's two rows above each channel."""
        upper, lower = self.lines
        return [(upper[n * 7 : n * 7 + 7].strip(), lower[n * 7 : n * 7 + 7].strip()) for n in range(CHANNELS)]

    def press(self, button: str) -> list[mido.Message]:
        """Press and let go. Raises KeyError where there is no such button."""
        note = BUTTONS[button]
        return [
            mido.Message("note_on", note=note, velocity=127),
            mido.Message("note_on", note=note, velocity=0),
        ]

    def move(self, channel: int, position: float) -> list[mido.Message]:
        """Touch a fader (1 to 8, 9 is the master), move it, let go."""
        self.faders[channel - 1] = min(1.0, max(0.0, position))
        touch = BUTTONS["touch_1"] + channel - 1
        bend = round(self.faders[channel - 1] * _FADER_TOP) - 8192
        return [
            mido.Message("note_on", note=touch, velocity=127),
            mido.Message("pitchwheel", channel=channel - 1, pitch=bend),
            mido.Message("note_on", note=touch, velocity=0),
        ]

    def turn(self, channel: int, steps: int) -> mido.Message:
        """Turn a V-Pot: to the right, or with negative steps to the left."""
        return mido.Message("control_change", control=15 + channel, value=_turned(steps))

    def jog(self, steps: int) -> mido.Message:
        """Turn the wheel."""
        return mido.Message("control_change", control=60, value=_turned(steps))

    def hear(self, message: mido.Message) -> list[mido.Message]:
        """Take what the DAW says; returns what the surface answers."""
        if message.type == "sysex":
            return list(self._exclusive(tuple(message.data)))
        if message.type in ("note_on", "note_off") and message.note in _NAMES:
            on = message.type == "note_on" and message.velocity > 0
            (self.lit.add if on else self.lit.discard)(_NAMES[message.note])
        elif message.type == "pitchwheel" and message.channel <= CHANNELS:
            self.faders[message.channel] = (message.pitch + 8192) / _FADER_TOP
            # A motor fader says where it has gone; DAWs wait for that.
            return [message]
        elif message.type == "control_change":
            self._controller(message.control, message.value)
        elif message.type == "aftertouch":
            channel, level = message.value >> 4, message.value & 0x0F
            if channel < CHANNELS and level <= 14:
                self.meters[channel] = level
        return []

    def _controller(self, control: int, value: int) -> None:
        if 48 <= control < 48 + CHANNELS:
            self.rings[control - 48] = value
        elif 64 <= control < 74:
            code = value & 0x3F
            # Counted from the right; bit 6 is the dot.
            self.timecode[73 - control] = chr(code + 0x40 if code < 0x20 else code)

    def _exclusive(self, data: tuple[int, ...]) -> Iterator[mido.Message]:
        if data[:3] != _HEADER or len(data) < 5 or data[3] not in (MCU, LOGIC, EXTENDER):
            return
        kind, body = data[4], data[5:]
        self.online = True
        if kind == 0x00:
            # A host asks who is there; it has to prove that it knows the protocol.
            self.model = data[3]
            yield self._say(0x01, *self.serial, *self._challenge)
        elif kind == 0x02:
            right = tuple(body[:7]) == tuple(self.serial) and tuple(body[7:11]) == response(self._challenge)
            yield self._say(0x03 if right else 0x04, *self.serial)
        elif kind == 0x12 and body and body[0] < _LCD_SIZE:
            text = bytes(body[1:])[: _LCD_SIZE - body[0]]
            self._lcd[body[0] : body[0] + len(text)] = text
        elif kind == 0x13:
            yield self._say(0x14, *b"V3.0 ")
        elif kind in (0x61, 0x63):
            self.faders = [0.0] * (CHANNELS + 1)
        if kind in (0x62, 0x63):
            self.lit.clear()

    def _say(self, kind: int, *body: int) -> mido.Message:
        return mido.Message("sysex", data=(*_HEADER, self.model, kind, *body))


def response(challenge: tuple[int, int, int, int]) -> tuple[int, int, int, int]:
    """What a host has to answer to the challenge of a Logic Control."""
    one, two, three, four = challenge
    return (
        0x7F & (one + (two ^ 0x0A) - four),
        0x7F & ((three >> 4) ^ (one + four)),
        0x7F & ((four - (three << 2)) ^ (one | two)),
        0x7F & (two - three + (0xF0 ^ (four << 4))),
    )


def _turned(steps: int) -> int:
    size = min(63, abs(steps))
    return size | 0x40 if steps < 0 else size
