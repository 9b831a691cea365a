from __future__ import annotations

import asyncio
import itertools
import shutil
import time
from pathlib import Path
from typing import Any

import mido
import pytest
from hypothesis import given
from hypothesis import strategies as st

from notebooked_dagster.errors import PortError
from notebooked_dagster.realtime.clock_process import ClockStatus
from notebooked_dagster.realtime.daw import exchange as exchange_module
from notebooked_dagster.realtime.daw import mackie, mmc, mtc
from notebooked_dagster.realtime.daw.exchange import Exchange
from notebooked_dagster.realtime.daw.mackie import MackieControl
from notebooked_dagster.realtime.daw.mtc import Reader, Timecode
from notebooked_dagster.realtime.daw.osc import OscServer
from notebooked_dagster.realtime.messages import Counters, Inbox
from notebooked_dagster.realtime.network import Osc
from notebooked_dagster.realtime.takes import Take
from tests.unit.realtime.kit import eventually

RATES = st.sampled_from(list(mtc.RATES))
OSC_BUNDLE = b"#bundle\0" + bytes(8)
DAY = {24: 2073600, 25: 2160000, 29.97: 2589408, 30: 2592000}


@given(RATES, st.integers(0, 10**7))
def test_positions_and_frame_counts_are_one(rate: float, count: int) -> None:
    at = Timecode.of_count(count, rate)
    assert at.count == count % DAY[rate]
    assert Timecode.of_time(at.time, rate) == at
    assert 0 <= at.frames < at.nominal
    # Drop frame: these numbers do not exist.
    assert not (rate == 29.97 and at.minutes % 10 and at.seconds == 0 and at.frames < 2)


def test_drop_frame_keeps_the_clock_on_the_wall() -> None:
    assert str(Timecode.of_count(1799, 29.97)) == "00:00:59;29"
    assert str(Timecode.of_count(1800, 29.97)) == "00:01:00;02"
    assert str(Timecode.of_count(17982, 29.97)) == "00:10:00;00"
    assert str(Timecode.of_time(3600, 29.97)) in ("00:59:59;29", "01:00:00;00")


@given(RATES, st.integers(0, 10**6))
def test_quarter_frames_say_what_a_reader_reads(rate: float, count: int) -> None:
    reader, at = Reader(), Timecode.of_count(count, rate)
    found = [reader.feed(message) for message in mtc.quarter_frames(at)]
    assert found[:7] == [None] * 7
    # Saying it took two frames.
    assert found[7] == Timecode.of_count(at.count + 2, rate)
    assert Reader().feed(mtc.full_frame(at)) == at
    assert mtc.full_frame(at).bytes()[:5] == [0xF0, 0x7F, 0x7F, 1, 1]


def test_a_stream_goes_on_and_a_lost_quarter_frame_costs_one_round() -> None:
    messages = list(itertools.islice(mtc.stream(Timecode(rate=25)), 32))
    reader = Reader()
    found = [at for index, message in enumerate(messages) if index != 11 and (at := reader.feed(message))]
    assert [at.count for at in found] == [2, 6, 8]
    assert reader.damaged == 1
    assert reader.feed(mido.Message("sysex", data=(0x7F, 0x7F, 1, 1, 0x3F, 99, 0, 0))) is None
    assert reader.feed(mido.Message("clock")) is None


@given(RATES, st.integers(0, 10**6), st.integers(0, 127))
def test_machine_control_is_read_as_it_was_written(rate: float, count: int, device: int) -> None:
    locate = mmc.Mmc("locate", device, Timecode.of_count(count, rate))
    assert mmc.parse(locate.message()) == (locate,)
    for name in mmc.COMMANDS:
        assert mmc.parse(mmc.Mmc(name, device).message()) == (mmc.Mmc(name, device),)


@given(st.lists(st.integers(0, 127), max_size=30))
def test_no_message_breaks_machine_control_or_the_surface(data: list[int]) -> None:
    mmc.parse(mido.Message("sysex", data=[0x7F, 0x7F, 6, *data]))
    MackieControl().hear(mido.Message("sysex", data=[0, 0, 0x66, 0x14, *data]))
    MackieControl().hear(mido.Message("sysex", data=data))


def test_several_commands_in_one_message() -> None:
    # Write (unknown here) is stepped over by its length.
    message = mido.Message("sysex", data=(0x7F, 1, 6, 0x40, 2, 9, 9, 2, 1))
    assert [command.name for command in mmc.parse(message)] == ["play", "stop"]


def test_a_logic_control_proves_itself_to_its_host() -> None:
    surface = MackieControl(serial=b"1234567")
    (query,) = surface.hear(mido.Message("sysex", data=(0, 0, 0x66, 0x10, 0x00)))
    assert query.data[:5] == (0, 0, 0x66, 0x10, 0x01)
    serial, challenge = query.data[5:12], query.data[12:16]
    answer = mackie.response((challenge[0], challenge[1], challenge[2], challenge[3]))
    (confirmed,) = surface.hear(mido.Message("sysex", data=(0, 0, 0x66, 0x10, 0x02, *serial, *answer)))
    assert confirmed.data[4] == 0x03
    (refused,) = surface.hear(mido.Message("sysex", data=(0, 0, 0x66, 0x10, 0x02, *serial, 0, 0, 0, 0)))
    assert refused.data[4] == 0x04
    (version,) = surface.hear(mido.Message("sysex", data=(0, 0, 0x66, 0x10, 0x13, 0)))
    assert bytes(version.data[5:]) == b"V3.0 "


def test_the_surface_shows_what_the_daw_says() -> None:
    surface = MackieControl()

    def lcd(offset: int, text: str) -> None:
        assert (
            surface.hear(mido.Message("sysex", data=(0, 0, 0x66, 0x14, 0x12, offset, *text.encode()))) == []
        )

    lcd(0, "Drums  Bass   ")
    lcd(56, " -3.2 ")
    lcd(108, "too long for it")
    assert surface.strips()[:2] == [("Drums", "-3.2"), ("Bass", "")]
    assert [len(line) for line in surface.lines] == [56, 56]
    assert surface.lines[1].endswith("too ")
    surface.hear(mido.Message("note_on", note=0x5E, velocity=127))
    assert surface.lit == {"play"}
    surface.hear(mido.Message("note_on", note=0x5E, velocity=0))
    assert surface.lit == set()
    echoed = mido.Message("pitchwheel", channel=8, pitch=8191)
    assert surface.hear(echoed) == [echoed]
    assert surface.faders[8] == 1.0
    surface.hear(mido.Message("control_change", control=50, value=0x16))
    assert surface.rings[2] == 0x16
    surface.hear(mido.Message("aftertouch", value=0x3C))
    assert surface.meters[3] == 12
    for control, digit in ((64, 0x31), (65, 0x32), (73, 0x01)):
        surface.hear(mido.Message("control_change", control=control, value=digit))
    assert "".join(surface.timecode) == "A       21"
    surface.hear(mido.Message("sysex", data=(0, 0, 0x66, 0x14, 0x63)))
    assert surface.faders == [0.0] * 9


@given(st.integers(1, 9), st.floats(0, 1))
def test_a_fader_arrives_where_it_was_moved(channel: int, position: float) -> None:
    surface, daw = MackieControl(), MackieControl()
    touch, bend, release = surface.move(channel, position)
    daw.hear(bend)
    assert daw.faders[channel - 1] == pytest.approx(position, abs=1e-4)
    assert (touch.note, release.velocity) == (0x67 + channel, 0)


def test_buttons_wheels_and_pots() -> None:
    surface = MackieControl()
    assert [(m.note, m.velocity) for m in surface.press("record")] == [(0x5F, 127), (0x5F, 0)]
    assert len(set(mackie.BUTTONS.values())) == len(mackie.BUTTONS)
    assert (surface.turn(1, 2).control, surface.turn(1, 2).value) == (16, 2)
    assert surface.turn(8, -3).value == 0x43
    assert surface.jog(-100).value == 0x7F


async def test_osc_comes_in_as_readings() -> None:
    counters = Counters()
    inbox = Inbox(counters)
    server = OscServer(("127.0.0.1", 0))
    await server.open(inbox)
    with pytest.raises(PortError, match="OSC cannot listen"):
        await OscServer(server.address).open(inbox)
    client = Osc()
    client.send_raw(server.address, "/logic/volume", [0.5])
    client.send_raw(server.address, "/logic/play", [])
    client.send_raw(server.address, "/logic/name", ["drums", 3])
    found = [await asyncio.wait_for(inbox.get(), 2) for _ in range(3)]
    assert [(event.source, event.value) for event in found] == [
        ("/logic/volume", 0.5),
        ("/logic/play", 1.0),
        ("/logic/name", 3.0),
    ]
    for rubbish in (
        b"rubbish",
        # Sizes that are negative, none, too large; a text without an end; type tags that nobody knows.
        OSC_BUNDLE + b"\xff\xff\xff\xfc" * 10,
        OSC_BUNDLE + b"\0\0\0\0",
        OSC_BUNDLE + b"\0\0\xff\xff/a\0\0",
        b"/" * 2000,
        b"/a\0\0,xxx\0\0\0\0",
        b"/a\0\0,i\0\0\1",
        b"/" + b"a" * 999 + b"\0",
        (OSC_BUNDLE + b"\0\0\0\x14") * 100 + b"/a\0\0",
    ):
        before = counters.dropped["osc", "damaged packet"]
        server.datagram_received(rubbish, server.address)
        assert counters.dropped["osc", "damaged packet"] == before + 1, rubbish
    blob = b"/b\0\0,bd\0\0\0\0\1x\0\0\0\x3f\xe0" + bytes(6)
    server.datagram_received(OSC_BUNDLE + b"\0\0\0\4/a\0\0\0\0\0" + bytes([len(blob)]) + blob, server.address)
    assert [str(inbox.get_nowait()) for _ in range(2)] == ["/a: 1.0", "/b: 0.5"]
    await client.close()
    await server.close()


async def test_strangers_who_send_whatever_they_like_fill_no_memory() -> None:
    inbox = Inbox(Counters(), 10_000)
    server = OscServer(("127.0.0.1", 0), named=["/wanted"])
    await server.open(inbox)
    for number in range(3000):
        server.datagram_received(b"/%07d\0\0\0\0" % number, server.address)
        server.datagram_received(b"rubbish", server.address)
    server.datagram_received(b"/wanted\0", server.address)
    await server.close()
    counters = inbox.counters
    assert len(counters.received) < 1100
    assert len(inbox.gaps) <= 1000
    assert counters.received["/wanted"] == 1
    assert counters.waiting() == len(inbox) == 1001
    assert counters.received.total() == 6001


async def test_files_of_the_exchange_folder_are_taken_once_when_they_are_whole(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(exchange_module, "_LOOK", 0.05)
    arrived: list[str] = []

    async def take(path: Path) -> None:
        arrived.append(path.name)

    def refused(path: Path, target: Path) -> None:
        raise PermissionError(13, "Permission denied")

    exchange = Exchange(tmp_path, take)
    task = asyncio.create_task(exchange.run())
    await eventually((tmp_path / "in").is_dir)
    whole = tmp_path / "song.mid"
    midi = mido.MidiFile()
    midi.tracks.append(mido.MidiTrack([mido.Message("note_on", note=n % 128, time=10) for n in range(400)]))
    midi.save(whole)
    # Copied slowly, as over Wi-Fi: half a file is not taken.
    data = whole.read_bytes()
    with (tmp_path / "in" / "slow.mid").open("wb", buffering=0) as stream:
        for start in range(0, len(data), 100):
            stream.write(data[start : start + 100])
            await asyncio.sleep(0.01)
    (tmp_path / "in" / "broken.mid").write_bytes(b"MThd no")
    (tmp_path / "in" / "notes.txt").write_text("not for us")
    (tmp_path / "in" / "folder.mid").mkdir()
    (tmp_path / "in" / "gone.mid").symlink_to("nowhere")
    await eventually(lambda: exchange.taken and exchange.refused)
    shutil.copy(whole, tmp_path / "in" / "slow.mid")
    await eventually(lambda: len(exchange.taken) == 2)
    # One that cannot be moved away is not taken up once a second.
    monkeypatch.setattr(Path, "rename", refused)
    for name in ("stuck.mid", "another.mid"):
        shutil.copy(whole, tmp_path / "in" / name)
        await eventually(lambda name=name: name in arrived)
    monkeypatch.undo()
    task.cancel()
    assert arrived == ["slow.mid", "slow.mid", "stuck.mid", "another.mid"]
    assert exchange.refused == ["broken.mid"]
    assert sorted(path.name for path in (tmp_path / "done").iterdir()) == ["slow-1.mid", "slow.mid"]
    assert {path.name for path in (tmp_path / "in").iterdir()} == {
        "notes.txt", "folder.mid", "gone.mid", "stuck.mid", "another.mid",
    }  # fmt: skip
    folder = tmp_path / "take-1"
    folder.mkdir()
    shutil.copy(whole, folder / "take.mid")
    told: dict[str, Any] = {}
    assert exchange.export(Take(folder, told)).read_bytes() == data


def a_status(position: int, *, moves: int, running: bool = True) -> ClockStatus:
    now = time.monotonic_ns()
    return ClockStatus(120.0, running, position // 6, position, now, moves, 0, 0, (0.0, 0.0, 0.0), "other", 0)


class Moved:
    """A transport as the clock's process would tell of it."""

    def __init__(self) -> None:
        self.moved = asyncio.Event()
        self.status: ClockStatus | None = None

    def move(self, position: int, *, running: bool = True) -> None:
        self.status = a_status(position, moves=1, running=running)
        self.moved.set()


async def test_time_code_is_where_the_transport_is_at_once_wherever_it_is_put() -> None:
    transport, reader = Moved(), Reader()
    heard: list[tuple[float, mido.Message]] = []

    async def send(message: mido.Message) -> None:
        heard.append((time.monotonic(), message))

    task = asyncio.create_task(mtc.follow(transport, 25, send))
    # Two quarter notes at 120 are a second; then far away while it runs; then it stands there.
    for quarters, running in ((2, True), (200, True), (20, False)):
        heard.clear()
        transport.move(quarters * 24, running=running)
        status = transport.status
        assert status is not None
        await eventually(lambda: heard)
        assert reader.feed(heard[0][1]) == Timecode.of_time(quarters / 2, 25)
        if not running:
            break
        await eventually(lambda: len(heard) > 17)
        for at, message in heard[1:]:
            if (found := reader.feed(message)) is not None:
                # Two frames on from what was said, and never ahead of the song.
                assert found.time - 2 / 25 <= quarters / 2 + at - status.due / 1e9
                assert found.time >= quarters / 2
    assert len(heard) == 1
    task.cancel()
