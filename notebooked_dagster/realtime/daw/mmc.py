"""MIDI Machine Control: play, stop, record and locate, as system exclusive messages."""

from __future__ import annotations

from dataclasses import dataclass

import mido

from .mtc import RATES, Timecode

COMMANDS = {
    "stop": 0x01, "play": 0x02, "deferred_play": 0x03, "fast_forward": 0x04, "rewind": 0x05, "record_strobe": 0x06,
    "record_exit": 0x07, "record_pause": 0x08, "pause": 0x09, "eject": 0x0A, "chase": 0x0B, "reset": 0x0D,
}  # fmt: skip
_NAMES = {code: name for name, code in COMMANDS.items()}
_LOCATE = 0x44
_ALL = 0x7F


@dataclass(frozen=True, slots=True)
class Mmc:
    """One command.

    Attributes:
        name: Of ``COMMANDS``, or ``locate``.
        device: Whom it is for; 127 is everybody.
        at: Where ``locate`` goes.
    """

    name: str
    device: int = _ALL
    at: Timecode | None = None

    def message(self) -> mido.Message:
        """The message."""
        if self.at is None:
            return mido.Message("sysex", data=(0x7F, self.device, 6, COMMANDS[self.name]))
        first = self.at.hours | RATES[self.at.rate] << 5
        place = (first, self.at.minutes, self.at.seconds, self.at.frames, 0)
        return mido.Message("sysex", data=(0x7F, self.device, 6, _LOCATE, 6, 1, *place))


def parse(message: mido.Message) -> tuple[Mmc, ...]:
    """The commands of a message, which may hold several; empty where it is none of these."""
    if message.type != "sysex":
        return ()
    data = tuple(message.data)
    if len(data) < 4 or data[0] != 0x7F or data[2] != 6:
        return ()
    found, at = [], 3
    while at < len(data):
        code = data[at]
        at += 1
        if code in _NAMES:
            found.append(Mmc(_NAMES[code], data[1]))
        elif code >= 0x40 and at < len(data):
            # These say how long they are, so those that nobody here knows can be stepped over.
            body = data[at + 1 : at + 1 + data[at]]
            if code == _LOCATE and len(body) >= 5 and body[0] == 1:
                rate = next(rate for rate, number in RATES.items() if number == body[1] >> 5 & 3)
                place = Timecode(body[1] & 0x1F, body[2], body[3], body[4] & 0x1F, rate)
                found.append(Mmc("locate", data[1], place))
            at += 1 + data[at]
        else:
            break
    return tuple(found)
