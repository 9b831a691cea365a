"""RTP-MIDI: a session with macOS, iOS, rtpMIDI for Windows or another Pi. We listen to invitations, or invite.

A lost packet is counted, and a take says where. What it did to notes, controllers, program and pitch wheel is taken from the
recovery journal of the next one; where that has none, as ours have not, notes that might hang are ended.
"""

from __future__ import annotations

import asyncio
import logging
import secrets
import time
from collections.abc import Callable
from dataclasses import dataclass, field

import mido

from notebooked_dagster.errors import PortError
from notebooked_dagster.realtime.addresses import Address, Addresses
from notebooked_dagster.realtime.messages import Event, Inbox, decoded

from .applemidi import Assembler, Clock, Command, Feedback, PacketError, missing, packed, parse, segments
from .applemidi import Midi as MidiPacket
from .base import Port, PortState
from .mdns import Neighbours
from .recovery import Journal, Recovery, read

log = logging.getLogger("notebooked.realtime.rtp")
_INVITE_EVERY = 1.0
_SYNC_EVERY = 10.0
# Apple's implementation gives up after a minute without a sync; half of it is enough to notice a dead initiator.
_SILENT = 60.0
_MOST_PEERS = 8


@dataclass
class Peer:
    """The other end of one session.

    Attributes:
        ssrc: Its number.
        name: As it calls itself.
        data: Its data address, once it has asked there.
        control: Its control address.
        token: Of its invitation.
        last: Its last sequence number.
        seen: When it was last heard (monotonic).
        offset: Its clock minus ours, in 0.1 ms.
        delay: Half of the fastest round trip seen, in 0.1 ms.
    """

    ssrc: int
    name: str
    token: int
    control: Address
    data: Address | None = None
    last: int | None = None
    seen: float = field(default_factory=time.monotonic)
    offset: float = 0.0
    delay: float | None = None
    assembler: Assembler = field(default_factory=Assembler)
    recovery: Recovery = field(default_factory=Recovery)


class RtpPort(Port):
    """An AppleMIDI session.

    Args:
        name: What the session is called at the other end, too.
        host: The address to listen on; the peer's where ``invite``; that of the network to look in where ``session``.
        port: The control port; data goes over the next one. 0 takes two free ones.
        invite: Whether to invite the peer instead of waiting for one.
        session: The name of a session to find by mDNS, and to invite.
        announce: Whether others may find this one by mDNS.
    """

    kind = "rtp"

    def __init__(
        self,
        name: str,
        host: str = "0.0.0.0",
        port: int = 0,
        *,
        invite: bool = False,
        session: str | None = None,
        announce: bool = False,
    ) -> None:
        super().__init__(name)
        self.address: Address = (host, port)
        self.peers: dict[int, Peer] = {}
        self._invite = invite or session is not None
        self._session = session
        self._neighbours = Neighbours(host)
        self._announce = announce
        self._ssrc = secrets.randbits(32)
        self._sequence = secrets.randbits(16)
        self._inbox: Inbox | None = None
        self._control: asyncio.DatagramTransport | None = None
        self._data: asyncio.DatagramTransport | None = None
        self._task: asyncio.Task[None] | None = None
        self._token = secrets.randbits(32)
        self._addresses = Addresses()

    async def open(self, inbox: Inbox) -> None:
        """Bind both ports, and start to invite or to wait."""
        self._inbox = inbox
        host, port = ("0.0.0.0", 0) if self._invite else self.address
        try:
            self._control, self._data = await _pair(host, port, self._on_control, self._on_data)
        except OSError as error:
            raise PortError(
                f"The port {self.name!r} cannot listen on {host}:{port} and {port + 1}: {error.strerror or error}.",
                hint="Name another `listen` port, or stop who has this one.",
            ) from error
        if not self._invite:
            self.address = self._control.get_extra_info("sockname")[:2]
            self._neighbours = Neighbours(self.address[0])
        self._task = asyncio.create_task(self._look_after(), name=f"rtp-{self.name}")

    async def send(self, message: mido.Message) -> None:
        """Send to every peer; a long system exclusive message in several packets."""
        peers = [peer for peer in self.peers.values() if peer.data is not None]
        if not peers or self._data is None:
            raise self.unconnected()
        data = bytes(message.bytes())
        for part in segments(data) if data[0] == 0xF0 else (data,):
            self._sequence = (self._sequence + 1) & 0xFFFF
            packet = packed([part], self._sequence, _now(), self._ssrc).to_bytes()
            for peer in peers:
                self._data.sendto(packet, peer.data)

    async def close(self) -> None:
        """Say goodbye."""
        if self._task is not None:
            self._task.cancel()
        self._addresses.close()
        for peer in self.peers.values():
            if self._control is not None:
                self._control.sendto(Command("BY", peer.token, self._ssrc).to_bytes(), peer.control)
        for transport in (self._control, self._data):
            if transport is not None:
                transport.close()
        self.peers.clear()
        self._control = self._data = self._task = None
        # The last, as it takes a moment.
        await self._neighbours.close()

    @property
    def state(self) -> PortState:
        """Who takes part, and how far away they are."""
        found = [
            f"{peer.name} ({peer.delay / 10:.1f} ms)" if peer.delay is not None else peer.name
            for peer in self.peers.values()
            if peer.data is not None
        ]
        waiting = f"{'inviting' if self._invite else 'waiting on'} {self._session or f'{self.address[0]}:{self.address[1]}'}"
        return PortState(self.name, self.kind, bool(found), ", ".join(found) or waiting)

    async def _look_after(self) -> None:
        synced = 0.0
        while True:
            now = time.monotonic()
            for peer in list(self.peers.values()):
                if now - peer.seen > _SILENT:
                    self._leave(peer, "silent")
                elif peer.last is not None and self._control is not None:
                    self._control.sendto(Feedback(self._ssrc, peer.last).to_bytes(), peer.control)
            if self._announce:
                self._neighbours.announce(self.name, self.address[1])
            if self._invite and not self.peers and self._control is not None:
                if (number := self._host()) is not None:
                    invitation = Command("IN", self._token, self._ssrc, self.name)
                    self._control.sendto(invitation.to_bytes(), number)
            elif self._invite and now - synced > _SYNC_EVERY:
                synced = now
                self._sync()
            await asyncio.sleep(_INVITE_EVERY)

    def _host(self) -> Address | None:
        """Whom to invite; None while that is not known."""
        if self._session is not None:
            return self._neighbours.find(self._session)
        return self._addresses.get(self.address)

    def _sync(self) -> None:
        for peer in self.peers.values():
            if peer.data is not None and self._data is not None:
                self._data.sendto(Clock(self._ssrc, 0, (_now(), 0, 0)).to_bytes(), peer.data)

    def _on_control(self, data: bytes, sender: Address) -> None:
        self._on_packet(data, sender, self._control, on_data=False)

    def _on_data(self, data: bytes, sender: Address) -> None:
        self._on_packet(data, sender, self._data, on_data=True)

    def _on_packet(
        self, data: bytes, sender: Address, transport: asyncio.DatagramTransport | None, *, on_data: bool
    ) -> None:
        at = time.monotonic_ns()
        inbox = self._inbox
        assert inbox is not None
        if transport is None:
            return
        try:
            packet = parse(data)
        except PacketError as error:
            inbox.missed(self.name, "damaged packet", 1)
            log.debug("%s: %s: %s", self.name, sender, error)
            return
        if isinstance(packet, Command):
            self._on_command(packet, sender, transport, on_data=on_data)
            return
        peer = self.peers.get(packet.ssrc)
        # Only who was invited may speak, and only from where it was: anybody can send a datagram.
        if peer is None or sender[0] != peer.control[0]:
            inbox.missed(self.name, "packet of a stranger", 1)
            return
        peer.seen = time.monotonic()
        if isinstance(packet, Clock):
            self._on_clock(packet, peer, sender, transport)
        elif isinstance(packet, MidiPacket):
            self._on_midi(packet, peer, inbox, at)

    def _on_command(
        self, packet: Command, sender: Address, transport: asyncio.DatagramTransport, *, on_data: bool
    ) -> None:
        peer = self.peers.get(packet.ssrc)
        if packet.name == "BY":
            peer = peer or next((one for one in self.peers.values() if one.control == sender), None)
            if peer is not None and sender[0] == peer.control[0]:
                self._leave(peer, "left")
        elif packet.name == "IN":
            self._on_invitation(packet, peer, sender, transport, on_data=on_data)
        elif not self._invite or packet.token != self._token:
            return
        elif packet.name == "NO":
            log.warning("%s: %s refuses the session", self.name, sender[0])
        elif not on_data:
            # The other end has agreed on the control port; now the same on the data port.
            self.peers[packet.ssrc] = Peer(packet.ssrc, packet.peer or sender[0], packet.token, sender)
            if self._data is not None:
                invitation = Command("IN", self._token, self._ssrc, self.name)
                self._data.sendto(invitation.to_bytes(), (sender[0], sender[1] + 1))
        else:
            # Some implementations have another number on the data port than on the control port.
            peer = peer or next((one for one in self.peers.values() if one.token == packet.token), None)
            if peer is None:
                return
            self.peers.pop(peer.ssrc, None)
            peer.data, peer.ssrc = sender, packet.ssrc
            self.peers[peer.ssrc] = peer
            log.info("%s: session with %s", self.name, peer.name)
            self._sync()

    def _on_invitation(
        self,
        packet: Command,
        peer: Peer | None,
        sender: Address,
        transport: asyncio.DatagramTransport,
        *,
        on_data: bool,
    ) -> None:
        known = peer is not None and sender[0] == peer.control[0]
        if self._invite or (on_data and not known) or (not known and len(self.peers) >= _MOST_PEERS):
            transport.sendto(Command("NO", packet.token, self._ssrc).to_bytes(), sender)
            return
        if on_data and peer is not None:
            peer.data = sender
            log.info("%s: session with %s", self.name, peer.name)
        else:
            if peer is not None:
                # It lost the network and comes back: what it played until then has ended without a word.
                self._silence(peer)
            self.peers[packet.ssrc] = Peer(packet.ssrc, packet.peer or sender[0], packet.token, sender)
        transport.sendto(Command("OK", packet.token, self._ssrc, self.name).to_bytes(), sender)

    def _on_clock(
        self, packet: Clock, peer: Peer, sender: Address, transport: asyncio.DatagramTransport
    ) -> None:
        one, two, three = packet.stamps
        now = _now()
        if packet.count == 0:
            transport.sendto(Clock(self._ssrc, 1, (one, now, 0)).to_bytes(), sender)
        elif packet.count == 1:
            transport.sendto(Clock(self._ssrc, 2, (one, two, now)).to_bytes(), sender)
            _measured(peer, (now - one) / 2, two - (now + one) / 2)
        else:
            _measured(peer, (three - one) / 2, (three + one) / 2 - two)

    def _on_midi(self, packet: MidiPacket, peer: Peer, inbox: Inbox, at: int) -> None:
        lost = missing(peer.last, packet.sequence)
        if lost < 0:
            # A packet that was overtaken: its notes would come too late and in the wrong order.
            for _ in packet.commands:
                inbox.missed(self.name, "packet out of order", 1)
            return
        if lost and peer.last is not None:
            inbox.missed(self.name, "packet lost", lost)
            peer.assembler.forget()
            for message in peer.recovery.recovered(self._journal(packet), peer.last):
                inbox.offer(Event(self.name, at, message))
        peer.last = packet.sequence
        for _, data in packet.commands:
            whole = peer.assembler.feed(data)
            if whole is None:
                continue
            message = decoded(whole)
            if message is None:
                inbox.missed(self.name, "not MIDI", 1)
            else:
                peer.recovery.hear(message)
                inbox.offer(Event(self.name, at, message))

    def _journal(self, packet: MidiPacket) -> Journal | None:
        if not packet.journal:
            return None
        try:
            return read(packet.journal)
        except ValueError as error:
            log.debug("%s: %s", self.name, error)
            return None

    def _leave(self, peer: Peer, why: str) -> None:
        self.peers.pop(peer.ssrc, None)
        assert self._inbox is not None
        self._inbox.gap(self.name, f"{peer.name} {why}")
        self._silence(peer)
        log.info("%s: %s %s", self.name, peer.name, why)

    def _silence(self, peer: Peer) -> None:
        assert self._inbox is not None
        for message in peer.recovery.silence():
            self._inbox.offer(Event.of(self.name, message))


def _measured(peer: Peer, delay: float, offset: float) -> None:
    # The fastest round trip is the one that waited least, so its offset is the best there is.
    if peer.delay is None or delay <= peer.delay * 1.5:
        peer.offset = offset
    peer.delay = delay if peer.delay is None else min(delay, peer.delay)


def _now() -> int:
    return time.monotonic_ns() // 100_000


class _Datagrams(asyncio.DatagramProtocol):
    def __init__(self, received: Callable[[bytes, Address], None]) -> None:
        self._received = received

    def datagram_received(self, data: bytes, addr: tuple[str, int]) -> None:
        self._received(data, addr[:2])


async def _pair(
    host: str, port: int, control: Callable[[bytes, Address], None], data: Callable[[bytes, Address], None]
) -> tuple[asyncio.DatagramTransport, asyncio.DatagramTransport]:
    """Two neighbouring ports; for port 0 any two that are free."""
    loop = asyncio.get_running_loop()
    for attempt in range(20):
        first, _ = await loop.create_datagram_endpoint(lambda: _Datagrams(control), local_addr=(host, port))
        number = first.get_extra_info("sockname")[1]
        try:
            second, _ = await loop.create_datagram_endpoint(
                lambda: _Datagrams(data), local_addr=(host, number + 1)
            )
        except (OSError, OverflowError):
            first.close()
            if port or attempt == 19:
                raise
            continue
        return first, second
    raise AssertionError("unreachable")
