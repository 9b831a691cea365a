"""The packets of an AppleMIDI session and of RTP-MIDI (RFC 6295), as values. No sockets here.

A session has two UDP ports: control (say 5004) and, one above, data. The initiator invites on both; clocks are compared
by CK packets; MIDI travels as RTP with payload type 97. Time stamps count 0.1 ms.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

SIGNATURE = 0xFFFF
VERSION = 2
PAYLOAD_TYPE = 97
_COMMAND = struct.Struct(">H2sIII")
_CLOCK = struct.Struct(">H2sIB3xQQQ")
_FEEDBACK = struct.Struct(">H2sIHxx")
_RTP = struct.Struct(">BBHII")
_LONG = 0x80
_JOURNAL = 0x40
_FIRST_DELTA = 0x20
_MAX_SHORT = 15
_MAX_LONG = 4095
_LONGEST_NAME = 64
#: Data bytes after each status byte of a system common message; system exclusive is apart.
_COMMON = {0xF1: 1, 0xF2: 2, 0xF3: 1, 0xF6: 0}


class PacketError(ValueError):
    """Bytes that are no packet of these protocols."""


@dataclass(frozen=True, slots=True)
class Command:
    """An invitation (``IN``), its answer (``OK``, ``NO``), or a goodbye (``BY``)."""

    name: str
    token: int
    ssrc: int
    peer: str = ""

    def to_bytes(self) -> bytes:
        """The packet."""
        head = _COMMAND.pack(SIGNATURE, self.name.encode(), VERSION, self.token, self.ssrc)
        return head + self.peer.encode() + b"\0" if self.name in ("IN", "OK") else head


@dataclass(frozen=True, slots=True)
class Clock:
    """One of the three packets (``count`` 0, 1, 2) in which two ends compare their clocks."""

    ssrc: int
    count: int
    stamps: tuple[int, int, int]

    def to_bytes(self) -> bytes:
        """The packet."""
        return _CLOCK.pack(SIGNATURE, b"CK", self.ssrc, self.count, *self.stamps)


@dataclass(frozen=True, slots=True)
class Feedback:
    """``RS``: up to which sequence number everything has arrived; lets the sender shorten its journal."""

    ssrc: int
    sequence: int

    def to_bytes(self) -> bytes:
        """The packet."""
        return _FEEDBACK.pack(SIGNATURE, b"RS", self.ssrc, self.sequence)


@dataclass(frozen=True, slots=True)
class Midi:
    """An RTP packet of MIDI.

    Attributes:
        sequence: Counts packets, modulo 2**16.
        timestamp: Of the first command, in 0.1 ms, modulo 2**32.
        ssrc: The sender.
        commands: Delta time in 0.1 ms and bytes of each; system exclusive in segments as it was sent.
        journal: The recovery journal behind them, as it came; see ``recovery``.
    """

    sequence: int
    timestamp: int
    ssrc: int
    commands: tuple[tuple[int, bytes], ...]
    journal: bytes = b""

    def to_bytes(self) -> bytes:
        """The packet, without a journal. Raises PacketError where it would be too long for one."""
        body = bytearray()
        for index, (delta, data) in enumerate(self.commands):
            if index:
                body += _delta(delta)
            body += data
        if len(body) > _MAX_LONG:
            raise PacketError(f"{len(body)} bytes are too many for one packet")
        head = (
            bytes([len(body)])
            if len(body) <= _MAX_SHORT
            else bytes([_LONG | len(body) >> 8, len(body) & 0xFF])
        )
        rtp = _RTP.pack(
            0x80, 0x80 | PAYLOAD_TYPE, self.sequence & 0xFFFF, self.timestamp & 0xFFFFFFFF, self.ssrc
        )
        return rtp + head + bytes(body)


Packet = Command | Clock | Feedback | Midi


def parse(data: bytes) -> Packet:
    """The packet in a datagram.

    Raises:
        PacketError: There is none.
    """
    try:
        if data[:2] == b"\xff\xff":
            return _session(data)
        return _midi(data)
    except (struct.error, IndexError, UnicodeDecodeError) as error:
        raise PacketError(f"a packet of {len(data)} bytes is cut off or damaged: {error}") from None


def _session(data: bytes) -> Packet:
    name = data[2:4]
    if name in (b"IN", b"OK", b"NO", b"BY"):
        _, _, version, token, ssrc = _COMMAND.unpack_from(data)
        if version != VERSION:
            raise PacketError(f"protocol version {version}")
        peer = data[_COMMAND.size :].split(b"\0", 1)[0].decode("utf-8", "replace")
        # It is shown on the page, and written into the log.
        return Command(name.decode(), token, ssrc, "".join(filter(str.isprintable, peer))[:_LONGEST_NAME])
    if name == b"CK":
        _, _, ssrc, count, *stamps = _CLOCK.unpack_from(data)
        return Clock(ssrc, count, (stamps[0], stamps[1], stamps[2]))
    if name == b"RS":
        _, _, ssrc, sequence = _FEEDBACK.unpack_from(data)
        return Feedback(ssrc, sequence)
    raise PacketError(f"unknown command {name!r}")


def _midi(data: bytes) -> Midi:
    first, kind, sequence, timestamp, ssrc = _RTP.unpack_from(data)
    if first >> 6 != 2 or kind & 0x7F != PAYLOAD_TYPE:
        raise PacketError(f"no RTP-MIDI: version {first >> 6}, payload type {kind & 0x7F}")
    at = _RTP.size + 4 * (first & 0x0F)
    flags = data[at]
    length = flags & 0x0F
    at += 1
    if flags & _LONG:
        length = length << 8 | data[at]
        at += 1
    body = data[at : at + length]
    if len(body) < length:
        raise PacketError(f"{length} bytes announced, {len(body)} there")
    commands = tuple(_commands(body, bool(flags & _FIRST_DELTA)))
    journal = data[at + length :] if flags & _JOURNAL else b""
    return Midi(sequence, timestamp, ssrc, commands, journal)


def _commands(body: bytes, first_delta: bool) -> Iterator[tuple[int, bytes]]:
    at, status, delta, first = 0, 0, 0, True
    while at < len(body):
        if not first or first_delta:
            delta, at = _read_delta(body, at)
        first = False
        if at >= len(body):
            return  # RFC 6295 lets the last delta time stand without a command
        if body[at] & 0x80:
            head = body[at]
            at += 1
        elif status:
            head = status
        else:
            raise PacketError("running status without a status")
        if head in (0xF0, 0xF7):
            end = at
            while body[end] < 0x80:
                end += 1
            yield delta, body[at - 1 : end + 1]
            at, status = end + 1, 0
            continue
        if head >= 0xF8:
            size = 0  # real time leaves the running status as it is
        elif head >= 0xF0:
            size, status = _COMMON.get(head, 0), 0
        else:
            size, status = (1 if head >> 4 in (0xC, 0xD) else 2), head
        values = body[at : at + size]
        if len(values) < size or any(value & 0x80 for value in values):
            raise PacketError("a command is cut off")
        yield delta, bytes([head]) + values
        at += size


def _read_delta(body: bytes, at: int) -> tuple[int, int]:
    value = 0
    for _ in range(4):
        octet = body[at]
        at += 1
        value = value << 7 | octet & 0x7F
        if not octet & 0x80:
            break
    return value, at


def _delta(value: int) -> bytes:
    octets = [value & 0x7F]
    while value := value >> 7:
        octets.append(value & 0x7F | 0x80)
    return bytes(reversed(octets))


def segments(data: bytes, size: int = 1024) -> Iterator[bytes]:
    """A system exclusive message in parts that fit packets: ``F0 … F0``, ``F7 … F0``, ``F7 … F7``."""
    inner = data[1:-1]
    parts = [inner[start : start + size] for start in range(0, len(inner), size)] or [b""]
    for index, part in enumerate(parts):
        yield (
            (b"\xf0" if index == 0 else b"\xf7") + part + (b"\xf7" if index == len(parts) - 1 else b"\xf0")
        )


@dataclass
class Assembler:
    """Puts the segments of system exclusive messages together again."""

    _parts: bytearray = field(default_factory=bytearray)
    limit: int = 1 << 20

    def feed(self, data: bytes) -> bytes | None:
        """The whole message that ``data`` is or completes; None while parts are missing."""
        if data[0] not in (0xF0, 0xF7):
            return data
        if data[0] == 0xF0:
            self._parts = bytearray(data[:-1])
        elif not self._parts:
            return None  # the start was lost
        else:
            self._parts += data[1:-1]
        if data[-1] == 0xF7 and len(self._parts) < self.limit:
            whole, self._parts = bytes(self._parts) + b"\xf7", bytearray()
            return whole
        if data[-1] != 0xF0 or len(self._parts) >= self.limit:
            self._parts = bytearray()  # cancelled (F4), or longer than anything real
        return None

    def forget(self) -> int:
        """A packet was lost: what was begun cannot be completed. Returns how many messages that is."""
        begun, self._parts = bool(self._parts), bytearray()
        return int(begun)


def missing(last: int | None, sequence: int) -> int:
    """How many packets lie between the last sequence number and this one; -1 for one that is old or double."""
    if last is None:
        return 0
    step = (sequence - last) & 0xFFFF
    return step - 1 if 0 < step < 0x8000 else -1


def packed(messages: Sequence[bytes], sequence: int, timestamp: int, ssrc: int) -> Midi:
    """A packet of messages that are to sound now."""
    return Midi(sequence, timestamp, ssrc, tuple((0, data) for data in messages))
