"""The recovery journal of RTP-MIDI, and what has to be played where packets were lost (RFC 6295, appendix A).

A journal tells what the packets from its checkpoint on did: which notes sound and which do not, controllers, program, pitch wheel
(chapters N, C, P and W; the others are skipped). Compared with what was heard, it gives the messages that are missing. Where
there is none, or it does not reach back far enough, notes that might hang are ended. No sockets here.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

import mido

_SYSTEM, _CHANNELS = 0x40, 0x20
_PROGRAM, _CONTROL, _PARAMETER, _WHEEL, _NOTE = 0x80, 0x40, 0x20, 0x10, 0x08
_MIDDLE = 8192
_BANK = (0, 32)
# All sound off, all notes off, and the changes of mode, which end notes as well.
_SILENCING = frozenset({120, 123, 124, 125, 126, 127})
_RESET = 121


@dataclass(frozen=True, slots=True)
class Controller:
    """What a journal says of one controller: its ``value``, or how often it was switched (``toggles``) or sent (``count``)."""

    number: int
    tool: str
    value: int


@dataclass(frozen=True, slots=True)
class Chapters:
    """What a journal says of one channel.

    Attributes:
        program: And the bank, where it was chosen; None where nothing is said.
        controllers: In the order in which they were last sent.
        wheel: The pitch wheel.
        started: Notes that sound: number, velocity, and whether it is not too late to play them.
        ended: Notes that do not.
    """

    program: tuple[int, tuple[int, int] | None] | None = None
    controllers: tuple[Controller, ...] = ()
    wheel: int | None = None
    started: tuple[tuple[int, int, bool], ...] = ()
    ended: frozenset[int] = frozenset()


@dataclass(frozen=True, slots=True)
class Journal:
    """A journal.

    Attributes:
        checkpoint: The number of the first packet that it tells of.
        channels: What it says, by channel.
    """

    checkpoint: int
    channels: Mapping[int, Chapters]


def read(data: bytes) -> Journal:
    """The journal behind a packet's commands. Raises ValueError where it is none."""
    try:
        flags, checkpoint = data[0], data[1] << 8 | data[2]
        at = 3
        if flags & _SYSTEM:
            at += _length(data, at)
        found = {}
        for _ in range((flags & 0x0F) + 1 if flags & _CHANNELS else 0):
            length = _length(data, at)
            if length < 3 or at + length > len(data):
                raise ValueError("a channel's journal is cut off")
            found[data[at] >> 3 & 0x0F] = _chapters(data[at + 2], data[at + 3 : at + length])
            at += length
    except IndexError:
        raise ValueError("a journal is cut off") from None
    return Journal(checkpoint, found)


def _length(data: bytes, at: int) -> int:
    return (data[at] & 0x03) << 8 | data[at + 1]


def _chapters(contents: int, data: bytes) -> Chapters:
    at, program, wheel = 0, None, None
    controllers: tuple[Controller, ...] = ()
    if contents & _PROGRAM:
        bank = (data[1] & 0x7F, data[2] & 0x7F) if data[1] & 0x80 else None
        program, at = (data[0] & 0x7F, bank), 3
    if contents & _CONTROL:
        end = at + 1 + 2 * ((data[at] & 0x7F) + 1)
        controllers = tuple(_controller(data[i], data[i + 1]) for i in range(at + 1, end, 2))
        at = end
    if contents & _PARAMETER:
        at += _length(data, at)
    if contents & _WHEEL:
        wheel = ((data[at + 1] & 0x7F) << 7 | data[at] & 0x7F) - _MIDDLE
        at += 2
    started, ended = _notes(data, at) if contents & _NOTE else ((), frozenset[int]())
    return Chapters(program, controllers, wheel, started, ended)


def _controller(number: int, value: int) -> Controller:
    tool = "value" if not value & 0x80 else "count" if value & 0x40 else "toggles"
    return Controller(number & 0x7F, tool, value & (0x7F if tool == "value" else 0x3F))


def _notes(data: bytes, at: int) -> tuple[tuple[tuple[int, int, bool], ...], frozenset[int]]:
    count, low, high = data[at] & 0x7F, data[at + 1] >> 4, data[at + 1] & 0x0F
    if (count, low, high) == (127, 15, 0):
        count = 128
    start = at + 2
    end = start + 2 * count
    started = tuple(
        (data[i] & 0x7F, data[i + 1] & 0x7F, bool(data[i + 1] & 0x80)) for i in range(start, end, 2)
    )
    ended = frozenset(
        8 * (low + octet) + bit
        for octet in range(high - low + 1)
        for bit in range(8)
        if data[end + octet] & 0x80 >> bit
    )
    return started, ended


@dataclass
class _Heard:
    """What is known of one channel of a peer's."""

    sounding: dict[int, int] = field(default_factory=dict)
    controllers: dict[int, int] = field(default_factory=dict)
    sent: dict[int, int] = field(default_factory=dict)
    program: tuple[int, tuple[int, int] | None] | None = None
    wheel: int | None = None


class Recovery:
    """What a peer has played, and what is missing of it after a loss."""

    def __init__(self) -> None:
        self._channels: dict[int, _Heard] = {}

    def hear(self, message: mido.Message) -> None:
        """Take note of a message that was played."""
        if not hasattr(message, "channel"):
            return
        heard = self._channels.setdefault(message.channel, _Heard())
        if message.type == "note_on" and message.velocity:
            heard.sounding[message.note] = message.velocity
        elif message.type in ("note_on", "note_off"):
            heard.sounding.pop(message.note, None)
        elif message.type == "control_change":
            heard.controllers[message.control] = message.value
            heard.sent[message.control] = heard.sent.get(message.control, 0) + 1
            if message.control in _SILENCING:
                heard.sounding.clear()
            elif message.control == _RESET:
                # What it leaves as it was is not told apart: to be set once more does no harm.
                heard.controllers = {n: value for n, value in heard.controllers.items() if n in _BANK}
                heard.wheel = None
        elif message.type == "program_change":
            heard.program = (message.program, self._bank(heard))
        elif message.type == "pitchwheel":
            heard.wheel = message.pitch

    def recovered(self, journal: Journal | None, last: int) -> Iterator[mido.Message]:
        """The messages that bring the channels to where the journal says they are.

        Args:
            journal: That of the packet after the loss; None where there is none.
            last: The number of the packet before the loss.
        """
        told = journal.channels if journal is not None else {}
        for channel, chapters in told.items():
            heard = self._channels.setdefault(channel, _Heard())
            for message in _differences(channel, heard, chapters):
                self.hear(message)
                yield message
            # However often it was sent, it was made up for.
            heard.sent.update(
                {told.number: told.value for told in chapters.controllers if told.tool == "count"}
            )
        # What was lost before the checkpoint is in no journal: a note whose end that was would sound for ever.
        if journal is None or 1 < (journal.checkpoint - last) & 0xFFFF < 0x8000:
            yield from self.silence({
                (channel, note) for channel, chapters in told.items() for note, *_ in chapters.started
            })  # fmt: skip

    def silence(
        self, spared: set[tuple[int, int]] | frozenset[tuple[int, int]] = frozenset()
    ) -> Iterator[mido.Message]:
        """The ends of all notes that sound, but for those that are known to."""
        for channel, heard in self._channels.items():
            for note in list(heard.sounding):
                if (channel, note) not in spared:
                    del heard.sounding[note]
                    yield mido.Message("note_off", channel=channel, note=note)

    @staticmethod
    def _bank(heard: _Heard) -> tuple[int, int] | None:
        if not any(number in heard.controllers for number in _BANK):
            return None
        return heard.controllers.get(0, 0), heard.controllers.get(32, 0)


def _differences(channel: int, heard: _Heard, chapters: Chapters) -> Iterator[mido.Message]:
    if chapters.program is not None and chapters.program != heard.program:
        program, bank = chapters.program
        for number, value in zip(_BANK, bank or (), strict=False):
            yield mido.Message("control_change", channel=channel, control=number, value=value)
        yield mido.Message("program_change", channel=channel, program=program)
    for told in chapters.controllers:
        if (missed := _missed(told, heard)) is not None:
            yield mido.Message("control_change", channel=channel, control=told.number, value=missed)
    if chapters.wheel is not None and chapters.wheel != heard.wheel:
        yield mido.Message("pitchwheel", channel=channel, pitch=chapters.wheel)
    for note in sorted(chapters.ended & heard.sounding.keys()):
        yield mido.Message("note_off", channel=channel, note=note)
    for note, velocity, play in chapters.started:
        sounding = heard.sounding.get(note)
        if sounding == velocity:
            continue
        if sounding is not None:
            yield mido.Message("note_off", channel=channel, note=note)
        if play:
            yield mido.Message("note_on", channel=channel, note=note, velocity=velocity)


def _missed(told: Controller, heard: _Heard) -> int | None:
    """The value that a controller has to be set to; None where it is that already."""
    now = heard.controllers.get(told.number)
    if told.tool == "value":
        return told.value if told.value != now else None
    if told.tool == "toggles":
        # A pedal begins as off, and each toggle is one of on and off.
        on = bool(told.value & 1)
        return (127 if on else 0) if on != ((now or 0) >= 64) else None
    if told.number in {*_SILENCING, _RESET} and told.value != heard.sent.get(told.number, 0) & 0x3F:
        return 0
    return None
