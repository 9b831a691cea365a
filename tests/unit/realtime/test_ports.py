from __future__ import annotations

import asyncio
import contextlib
import errno
import shutil
import socket
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import mido
import mido.sockets
import pytest
from hypothesis import given
from hypothesis import strategies as st

from notebooked_dagster.errors import ConfigError, MissingPackageError, PortError
from notebooked_dagster.realtime.device import PortConfig
from notebooked_dagster.realtime.handler import MidiHandler
from notebooked_dagster.realtime.messages import Counters, Event, Inbox
from notebooked_dagster.realtime.packages import needed
from notebooked_dagster.realtime.ports import LoopbackPort, RtpPort, SystemPort, TcpPort, mdns
from notebooked_dagster.realtime.ports import applemidi as apple
from notebooked_dagster.realtime.ports import tcp as tcp_module
from tests.unit.realtime.kit import eventually

NOTE = mido.Message("note_on", note=60, velocity=64)
SYSEX = mido.Message("sysex", data=tuple(n % 128 for n in range(3000)))
BYTES = st.binary(max_size=200)
VOICE = st.one_of(
    st.builds(lambda n, v: bytes([0x90, n, v]), st.integers(0, 127), st.integers(0, 127)),
    st.builds(lambda n: bytes([0xC3, n]), st.integers(0, 127)),
    st.just(b"\xf8"),
    st.builds(lambda a, b: bytes([0xF2, a, b]), st.integers(0, 127), st.integers(0, 127)),
    st.builds(lambda d: b"\xf0" + bytes(d) + b"\xf7", st.lists(st.integers(0, 127), max_size=20)),
)


async def some(midi: MidiHandler, count: int) -> list[Event]:
    return [await asyncio.wait_for(anext(midi), 5) for _ in range(count)]


async def test_what_is_sent_to_a_loopback_is_heard_and_what_is_played_comes_in() -> None:
    async with MidiHandler([LoopbackPort("a"), LoopbackPort("b", echo=True)]) as midi:
        await midi.send("a", NOTE)
        await midi.send("b", NOTE)
        (event,) = await some(midi, 1)
        assert (event.source, event.message, event.kind) == ("b", NOTE, "note_on")
        port = midi.port("a")
        assert isinstance(port, LoopbackPort)
        assert port.heard == [NOTE]
        with pytest.raises(ConfigError, match="There is no port 'c'"):
            midi.port("c")
        assert [state.connected for state in midi.states()] == [True, True]
    with pytest.raises(PortError):
        await midi.send("a", NOTE)


async def test_full_queues_make_who_can_wait_wait_and_count_what_is_lost() -> None:
    counters = Counters()
    inbox = Inbox(counters, limit=3)
    for _ in range(5):
        inbox.offer(Event.of("udp", NOTE))
    waiting = asyncio.create_task(inbox.put(Event.of("tcp", NOTE)))
    await asyncio.sleep(0)
    assert not waiting.done()
    assert counters.dropped == {("udp", "queue full"): 2}
    assert counters.received.total() == 6
    await inbox.get()
    await waiting
    assert len(inbox) == 3
    (gap,) = inbox.take_gaps()
    assert (gap.reason, gap.count) == ("queue full", 2)
    blocked = asyncio.create_task(inbox.put(Event.of("tcp", NOTE)))
    await asyncio.sleep(0)
    blocked.cancel()
    await asyncio.gather(blocked, return_exceptions=True)
    assert counters.dropped["tcp", "closed while waiting"] == 1
    # One was taken out and is not yet handled.
    assert counters.waiting() == len(inbox) + 1


async def test_tcp_speaks_what_mido_speaks(monkeypatch: pytest.MonkeyPatch) -> None:
    port = TcpPort("net", "127.0.0.1", 0, listen=True)
    async with MidiHandler([port]) as midi:
        with pytest.raises(PortError):
            await midi.send("net", NOTE)
        other = await asyncio.to_thread(mido.sockets.connect, *port.address)
        other.send(NOTE)
        other.send(SYSEX)
        assert [event.message for event in await some(midi, 2)] == [NOTE, SYSEX]
        await midi.send("net", NOTE)
        assert await asyncio.to_thread(other.receive) == NOTE
        assert "127.0.0.1" in port.state.detail
        # A message without an end, with clocks between its bytes: not all of it is kept.
        monkeypatch.setattr(tcp_module, "_LONGEST_MESSAGE", 10_000)
        other._socket.sendall(b"\xf0" + b"\1" * 9_000 + b"\xf8" + b"\1" * 9_000 + b"\xf7")
        other.send(NOTE)
        assert [event.kind for event in await some(midi, 2)] == ["clock", "note_on"]
        assert midi.counters.dropped == {("net", "message too long"): 1}
        monkeypatch.setattr(tcp_module, "_MOST_PEERS", 1)
        one_more = await asyncio.to_thread(socket.create_connection, port.address, 5)
        with one_more, contextlib.suppress(ConnectionResetError):
            assert await asyncio.to_thread(one_more.recv, 1) == b""
        other._socket.shutdown(socket.SHUT_RDWR)
        await eventually(lambda: not port.state.connected)
        assert midi.inbox.take_gaps()[-1].reason == "disconnected"


async def test_a_tcp_client_comes_back_and_a_slow_reader_slows_its_sender() -> None:
    port = TcpPort("net", "127.0.0.1", 0, listen=True)
    async with MidiHandler([port], limit=10) as server:
        client = TcpPort("out", *port.address, listen=False)
        async with MidiHandler([client]) as midi:
            await eventually(lambda: client.state.connected)
            for number in range(500):
                await midi.send("out", NOTE.copy(note=number % 128))
            # Nobody reads, so nothing more is taken in than fits; and nothing is dropped.
            await asyncio.sleep(0.1)
            assert server.counters.received["net"] <= 12
            events = await some(server, 500)
            assert [event.message.note for event in events if event.message] == [n % 128 for n in range(500)]
            assert server.counters.dropped.total() == 0
            for writer in list(port._writers):
                writer.transport.abort()
            await eventually(lambda: not client.state.connected)
            await eventually(lambda: client.state.connected)


async def test_an_address_that_is_taken_is_told() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        with pytest.raises(PortError, match="cannot listen"):
            async with MidiHandler([TcpPort("net", "127.0.0.1", taken.getsockname()[1], listen=True)]):
                pass


# The example of RFC 6295, figures 3 and 4: running status, delta times, a phantom status.
def test_a_packet_with_running_status_and_delta_times() -> None:
    body = bytes.fromhex("90 3c 40 8364 3e 41 00 f8 05 3c 00".replace(" ", ""))
    head = bytes([0x80, 0xE1, 0x12, 0x34, 0, 0, 0, 9, 0xAA, 0xBB, 0xCC, 0xDD])
    packet = apple.parse(head + bytes([len(body)]) + body)
    assert isinstance(packet, apple.Midi)
    assert packet.commands == (
        (0, b"\x90\x3c\x40"),
        (0x1E4, b"\x90\x3e\x41"),
        (0, b"\xf8"),
        (5, b"\x90\x3c\x00"),
    )
    assert (packet.sequence, packet.ssrc) == (0x1234, 0xAABBCCDD)
    # With a journal behind it (J) and a delta time in front (Z), a long length (B).
    journal = bytes([0xE0, len(body) + 1]) + b"\x07" + body + b"\x20\x12\x34journal"
    packet = apple.parse(head + journal)
    assert isinstance(packet, apple.Midi)
    assert packet.journal == b"\x20\x12\x34journal"
    assert packet.commands[0] == (7, b"\x90\x3c\x40")


@given(st.lists(st.tuples(st.integers(0, 2**28 - 1), VOICE), max_size=12), st.integers(0, 2**16 - 1))
def test_packets_come_out_as_they_went_in(commands: list[tuple[int, bytes]], sequence: int) -> None:
    commands = [(0 if index == 0 else delta, data) for index, (delta, data) in enumerate(commands)]
    packet = apple.Midi(sequence, 5, 7, tuple(commands))
    assert apple.parse(packet.to_bytes()) == packet


def test_a_peers_name_forges_no_line_of_the_log_and_fills_no_page() -> None:
    told = apple.parse(apple.Command("IN", 1, 2, "a\nERROR " + "x" * 60_000).to_bytes())
    assert isinstance(told, apple.Command)
    assert told.peer == "aERROR " + "x" * 57


@given(
    BYTES,
    st.sampled_from(
        [b"", b"\xff\xffIN", b"\xff\xffCK", b"\x80\x61" + bytes(10), b"\x80\x61" + bytes(10) + b"\x8f"]
    ),
)
def test_no_datagram_breaks_the_parser(data: bytes, start: bytes) -> None:
    with contextlib.suppress(apple.PacketError):
        apple.parse(start + data)


@given(st.lists(st.integers(0, 127), max_size=5000))
def test_long_messages_are_put_together_again(data: list[int]) -> None:
    whole = b"\xf0" + bytes(data) + b"\xf7"
    assembler = apple.Assembler()
    found = [assembler.feed(part) for part in apple.segments(whole)]
    assert found[-1] == whole
    assert found[:-1] == [None] * (len(found) - 1)


def test_a_cancelled_or_headless_message_is_none() -> None:
    assembler = apple.Assembler()
    assert assembler.feed(b"\xf7\x01\xf7") is None
    assert assembler.feed(b"\xf0\x01\xf0") is None
    assert assembler.feed(b"\xf7\x02\xf4") is None
    assert assembler.feed(b"\xf0\x01\xf7") == b"\xf0\x01\xf7"
    assert assembler.feed(b"\x90\x01\x02") == b"\x90\x01\x02"
    assert [apple.missing(None, 5), apple.missing(65535, 0), apple.missing(3, 6), apple.missing(6, 3)] == [
        0,
        0,
        2,
        -1,
    ]


async def test_a_session_of_rtp_midi_between_two_of_ours() -> None:
    host = RtpPort("pi", "127.0.0.1", 0)
    async with MidiHandler([host]) as there:
        guest = RtpPort("laptop", *host.address, invite=True)
        async with MidiHandler([guest]) as here:
            await eventually(lambda: guest.state.connected and host.state.connected)
            await here.send("laptop", NOTE)
            await here.send("laptop", SYSEX)
            assert [event.message for event in await some(there, 2)] == [NOTE, SYSEX]
            await there.send("pi", NOTE)
            assert (await some(here, 1))[0].message == NOTE
            await eventually(lambda: next(iter(host.peers.values())).delay is not None)
            # Both have the same clock here, so the offset that was measured is that of the measurement.
            assert abs(next(iter(host.peers.values())).offset) < 50
            assert host.state.detail.startswith("laptop (")
            # The end of that note was lost, for all we know; ours send no journal.
            guest._sequence += 3
            await here.send("laptop", NOTE)
            assert [event.kind for event in await some(there, 2)] == ["note_off", "note_on"]
            assert there.counters.dropped == {("pi", "packet lost"): 3}
            # What a journal says of the loss is played before what came with it.
            last = guest._sequence
            packet = bytearray(apple.packed([b"\xb0\x07\x01"], last + 2, 0, guest._ssrc).to_bytes())
            packet[12] |= 0x40
            packet += bytes([0x20, *last.to_bytes(2, "big"), 0, 6, 0x40, 0, 64, 127])
            assert guest._data is not None
            guest._data.sendto(packet, next(iter(guest.peers.values())).data)
            assert [event.message.control for event in await some(there, 2) if event.message] == [64, 7]
        await eventually(lambda: not host.state.connected)
        # Nor is anybody there now who would end it.
        assert [event.kind for event in await some(there, 1)] == ["note_off"]
        assert [gap.reason for gap in there.inbox.take_gaps()] == ["packet lost", "laptop left"]


def refused(*_: Any, **__: Any) -> None:
    raise OSError(errno.EAFNOSUPPORT, "Address family not supported by protocol")


@pytest.mark.parametrize(
    ("listen", "announced"), [("0.0.0.0:5004", True), ("5004", False), ("localhost:5004", False)]
)
def test_what_others_can_reach_is_announced(listen: str, announced: bool) -> None:
    port = PortConfig(name="laptop", kind="rtp", listen=listen).make()
    assert isinstance(port, RtpPort)
    assert port._announce is announced


async def test_a_session_is_found_by_its_name(monkeypatch: pytest.MonkeyPatch) -> None:
    """Also where the interfaces may not be listed, as in the unit, which has no netlink."""
    monkeypatch.setattr("ifaddr.get_adapters", refused)
    name = f"pi {time.monotonic_ns()}"
    host = RtpPort(name, "127.0.0.1", announce=True)
    async with MidiHandler([host]) as there:
        guest = RtpPort("laptop", "127.0.0.1", session=name)
        assert name in guest.state.detail
        async with MidiHandler([guest]) as here:
            await eventually(lambda: guest.state.connected and host.state.connected, 60)
            await here.send("laptop", NOTE)
            assert (await some(there, 1))[0].message == NOTE


async def test_a_device_that_got_another_address_is_announced_there_and_nowhere_else(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Whatever name it had to take beside another of its own."""
    networks: list[Any] = []

    class Network:
        def __init__(self, interfaces: list[str], **_: Any) -> None:
            self.interfaces, self.told, self.closed = interfaces, [], False
            networks.append(self)

        async def async_register_service(self, info: Any, **_: Any) -> Any:
            self.told.append((info.name, info.parsed_addresses()))
            return asyncio.sleep(0)

        async def async_close(self) -> None:
            self.closed = True

    monkeypatch.setattr("zeroconf.asyncio.AsyncZeroconf", Network)
    monkeypatch.setattr(mdns, "_EVERY", 0.0)
    neighbours = mdns.Neighbours("0.0.0.0")
    for address in ("192.0.2.1", "192.0.2.1", "192.0.2.2"):
        monkeypatch.setattr(mdns, "_own_address", lambda _, found=address: found)
        neighbours.announce("pi", 5004)
        await eventually(lambda: neighbours._task is not None and neighbours._task.done())
    name = "pi._apple-midi._udp.local."
    assert [(network.interfaces, network.told, network.closed) for network in networks] == [
        (["192.0.2.1"], [(name, ["192.0.2.1"])], True),
        (["192.0.2.2"], [(name, ["192.0.2.2"])], False),
    ]
    await neighbours.close()
    assert networks[-1].closed


async def test_strangers_and_damaged_packets_are_counted_and_do_nothing() -> None:
    host = RtpPort("pi", "127.0.0.1", 0)
    async with MidiHandler([host]) as there:
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as stranger:
            stranger.sendto(
                apple.packed([b"\x90\x3c\x40"], 1, 2, 99).to_bytes(), (host.address[0], host.address[1] + 1)
            )
            stranger.sendto(b"rubbish", host.address)
            stranger.settimeout(20)
            stranger.sendto(apple.Command("IN", 1, 2, "x").to_bytes(), (host.address[0], host.address[1] + 1))
            answer = await asyncio.to_thread(stranger.recv, 100)
        assert apple.parse(answer) == apple.Command("NO", 1, host._ssrc)
        await eventually(lambda: there.counters.dropped.total() == 2)
        assert set(there.counters.dropped) == {("pi", "packet of a stranger"), ("pi", "damaged packet")}
        assert there.counters.waiting() == 0


async def test_who_comes_back_without_a_goodbye_leaves_no_note_hanging() -> None:
    host = RtpPort("pi", "127.0.0.1", 0)
    async with MidiHandler([host]) as there:
        data = (host.address[0], host.address[1] + 1)
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as mac:
            mac.settimeout(20)
            for address in (host.address, data):
                mac.sendto(apple.Command("IN", 1, 2, "mac").to_bytes(), address)
                await asyncio.to_thread(mac.recv, 100)
            mac.sendto(apple.packed([b"\x90\x3c\x40"], 1, 2, 2).to_bytes(), data)
            assert [event.message.type for event in await some(there, 1)] == ["note_on"]
            mac.sendto(apple.Command("IN", 3, 2, "mac").to_bytes(), host.address)
            assert [(event.message.type, event.message.note) for event in await some(there, 1)] == [
                ("note_off", 60)
            ]


def test_another_implementation_of_rtp_midi_understands_ours() -> None:
    """pymidi, which is somebody else's, is the host of a session that we are invited into nothing by: we invite it."""
    server_module = pytest.importorskip("pymidi.server")
    heard: list[Any] = []

    class Handler(server_module.Handler):  # type: ignore[misc, name-defined]
        def on_midi_commands(self, peer: Any, commands: Any) -> None:
            heard.extend((command.command, int(command.params.key.__int__())) for command in commands)

    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        probe.bind(("127.0.0.1", 0))
        number = probe.getsockname()[1]
    server = server_module.Server([("127.0.0.1", number)])
    server.add_handler(Handler())
    import threading

    threading.Thread(target=server.serve_forever, daemon=True).start()

    async def play() -> None:
        guest = RtpPort("ours", "127.0.0.1", number, invite=True)
        async with MidiHandler([guest]) as midi:
            await eventually(lambda: guest.state.connected)
            await midi.send("ours", NOTE)
            await midi.send("ours", mido.Message("note_off", note=60))
            await eventually(lambda: len(heard) == 2)

    asyncio.run(play())
    assert heard == [("note_on", 60), ("note_off", 60)]


@pytest.fixture
def jack(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A JACK server with its dummy driver: the only MIDI system that needs no kernel module."""
    if shutil.which("jackd") is None:
        pytest.skip("no jackd on the path (Debian: jackd2)")
    monkeypatch.setenv("JACK_NO_AUDIO_RESERVATION", "1")
    monkeypatch.setenv("JACK_NO_START_SERVER", "1")
    server = subprocess.Popen(
        ["jackd", "-r", "-m", "-d", "dummy"], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    deadline = time.monotonic() + 10
    rtmidi = pytest.importorskip("rtmidi")
    while True:
        try:
            rtmidi.MidiOut(rtapi=rtmidi.API_UNIX_JACK).delete()
            break
        except rtmidi.SystemError:
            assert time.monotonic() < deadline
            time.sleep(0.2)
    yield
    server.kill()
    server.wait(10)


async def test_ports_of_the_system_are_found_and_taken_up_again(
    jack: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    from notebooked_dagster.realtime.ports import system

    monkeypatch.setattr(system, "_LOOK", 0.1)
    device = SystemPort("device", "Big Synth", virtual=True, api="UNIX_JACK")
    user = SystemPort("synth", "big synth", api="UNIX_JACK")
    async with MidiHandler([user]) as midi:
        assert user.state.detail == "no device called 'big synth'"
        with pytest.raises(PortError):
            await midi.send("synth", NOTE)
        async with MidiHandler([device]) as there:
            await eventually(lambda: user.state.connected)
            await midi.send("synth", NOTE)
            assert (await some(there, 1))[0].message == NOTE
            await there.send("device", SYSEX.copy(data=(1, 2, 3)))
            await there.send("device", mido.Message("clock"))
            assert [event.kind for event in await some(midi, 2)] == ["sysex", "clock"]
        await eventually(lambda: not user.state.connected)
        assert midi.inbox.take_gaps()[-1].reason == "device unplugged"


async def test_more_than_the_driver_buffer_holds_is_counted() -> None:
    port = SystemPort("keys", "Keys")
    counters = Counters()
    port._inbox, port._loop = Inbox(counters, 100), asyncio.get_running_loop()
    for _ in range(3000):
        port._called(([0x90, 60, 64], 0.0))
    port._called(([0x90], 0.0))
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    assert counters.received["keys"] == 3001
    assert counters.dropped["keys", "driver buffer full"] == 3001 - 2048
    assert counters.waiting() == 100


def test_a_missing_library_of_the_system_is_not_told_as_a_missing_package(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As python-rtmidi's wheel is on a Debian without ALSA's library."""
    missing = "libasound.so.2: cannot open shared object file"
    (tmp_path / "half_there.py").write_text(f"raise ImportError({missing!r})\n")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(MissingPackageError, match=missing) as caught:
        needed("half_there", "python-rtmidi", "A MIDI device of the system")
    assert caught.value.hint is not None
    assert "apt install alsa-utils" in caught.value.hint
    assert "pip install" not in caught.value.hint
