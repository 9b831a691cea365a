"""Open Sound Control coming in over UDP: each message is an event whose source is its address.

Packets are read here: anybody can send one, and python-osc's reader never comes back from a bundle with a negative size.
"""

from __future__ import annotations

import asyncio
import struct
import time
from collections.abc import Collection, Iterator

from notebooked_dagster.errors import PortError
from notebooked_dagster.realtime.messages import Event, Inbox

_BUNDLE = b"#bundle\0"
_DEEPEST = 8
_LONGEST = 255
# Each address that was heard has a counter of its own.
_MOST_ADDRESSES = 1000
_NUMBERS = {"i": ">i", "h": ">q", "f": ">f", "d": ">d"}
#: Bytes of what is no number.
_OTHERS = {"r": 4, "m": 4, "c": 4, "t": 8, "N": 0, "I": 0, "[": 0, "]": 0}


class OscServer(asyncio.DatagramProtocol):
    """Listens until closed.

    Args:
        address: Where.
        named: Addresses that rules name: these are heard however many others there were.
    """

    def __init__(self, address: tuple[str, int], named: Collection[str] = ()) -> None:
        self.address = address
        self._named = frozenset(named)
        self._heard: set[str] = set()
        self._inbox: Inbox | None = None
        self._transport: asyncio.DatagramTransport | None = None

    async def open(self, inbox: Inbox) -> None:
        """Listen. Raises PortError where the address is taken."""
        self._inbox = inbox
        loop = asyncio.get_running_loop()
        try:
            self._transport, _ = await loop.create_datagram_endpoint(lambda: self, local_addr=self.address)
        except OSError as error:
            raise PortError(
                f"OSC cannot listen on {self.address[0]}:{self.address[1]}: {error.strerror}."
            ) from error
        self.address = self._transport.get_extra_info("sockname")[:2]

    async def close(self) -> None:
        """Stop."""
        if self._transport is not None:
            self._transport.close()

    def datagram_received(self, data: bytes, addr: tuple[str, int]) -> None:
        """A packet: one message, or a bundle of them."""
        inbox, at = self._inbox, time.monotonic_ns()
        assert inbox is not None
        try:
            messages = list(_messages(data))
        except (ValueError, KeyError, struct.error):
            inbox.missed("osc", "damaged packet", 1)
            return
        for address, number in messages:
            if address not in self._named and address not in self._heard:
                if len(self._heard) >= _MOST_ADDRESSES:
                    inbox.missed("osc", "too many addresses", 1)
                    continue
                self._heard.add(address)
            inbox.offer(Event(address, at, value=number))


def _messages(data: bytes, depth: int = 0) -> Iterator[tuple[str, float]]:
    """Address and first number of each message of a packet; an error of reading where it is none."""
    if not data.startswith(_BUNDLE):
        yield _message(data)
        return
    if depth == _DEEPEST:
        raise ValueError("bundles in bundles without an end")
    at = len(_BUNDLE) + 8  # the time at which it should happen: at once
    while at < len(data):
        size = int(struct.unpack_from(">I", data, at)[0])
        part = data[at + 4 : at + 4 + size]
        if not part or len(part) < size:
            raise ValueError("a part of a bundle is cut off")
        yield from _messages(part, depth + 1)
        at += 4 + size


def _message(data: bytes) -> tuple[str, float]:
    address, at = _text(data, 0)
    if not address.startswith("/") or len(address) > _LONGEST:
        raise ValueError("no address")
    if at >= len(data):
        return address, 1.0
    tags, at = _text(data, at)
    if not tags.startswith(","):
        raise ValueError("no type tags")
    for tag in tags[1:]:
        if tag in "TF":
            return address, float(tag == "T")
        if tag in _NUMBERS:
            return address, float(struct.unpack_from(_NUMBERS[tag], data, at)[0])
        if tag in "sS":
            _, at = _text(data, at)
        elif tag == "b":
            size = int(struct.unpack_from(">I", data, at)[0])
            at += 4 + (size + 3) // 4 * 4
        else:
            at += _OTHERS[tag]
    return address, 1.0


def _text(data: bytes, at: int) -> tuple[str, int]:
    """A text and the offset behind it: it ends with a zero, and fills four bytes or a multiple of them."""
    end = data.index(b"\0", at)
    return data[at:end].decode(), (end | 3) + 1
