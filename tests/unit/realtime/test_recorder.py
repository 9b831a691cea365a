from __future__ import annotations

import asyncio
import json
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import mido
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from notebooked_dagster.errors import DataError
from notebooked_dagster.realtime import recorder as module
from notebooked_dagster.realtime import takes
from notebooked_dagster.realtime.messages import Event, Gap
from notebooked_dagster.realtime.recorder import Recorder
from notebooked_dagster.realtime.takes import (
    RECORDING,
    finished,
    line,
    read_log,
    read_take,
    recover,
    rendered,
)
from tests.unit.realtime.kit import eventually

SECOND = 1_000_000_000
FACTS = {"clock": {"bpm": 120.0}, "ports": [{"name": "keys", "kind": "loopback"}]}


def note(at: int, number: int = 60, velocity: int = 64, source: str = "keys") -> Event:
    return Event(source, at, mido.Message("note_on", note=number, velocity=velocity))


def absolute(path: Path) -> list[tuple[float, mido.Message]]:
    """Every message of a file but the meta events, with its time in seconds."""
    now, found = 0.0, []
    for message in mido.MidiFile(path):
        now += message.time
        if not message.is_meta:
            found.append((now, message))
    return found


async def test_a_take_has_what_was_played_when_it_was_played(tmp_path: Path) -> None:
    recorder = Recorder(tmp_path, "studio pi", facts=lambda: FACTS, ports=["keys"])
    await recorder.open()
    name = recorder.start()
    assert recorder.start() == name
    start = time.monotonic_ns()
    recorder.note(note(start + SECOND))
    recorder.note(Event("keys", start + SECOND, mido.Message("clock")))
    recorder.note(note(start + SECOND, source="other port"))
    recorder.note(note(start + 2 * SECOND, velocity=0))
    recorder.note(Event("keys", start + 3 * SECOND, mido.Message("sysex", data=(1, 2, 3))))
    recorder.gap(Gap("keys", start + 4 * SECOND, "packet lost", 3))
    take = await recorder.stop()
    assert take is not None
    assert recorder.takes == [name] == [take.name]
    assert name.endswith("-studio-pi")
    assert sorted(path.name for path in take.folder.iterdir()) == ["take.json", "take.mid"]
    assert list((tmp_path / RECORDING).iterdir()) == []
    played = absolute(take.midi)
    assert [message.type for _, message in played] == ["note_on", "note_on", "sysex"]
    first = played[0][0]
    assert [round(at - first, 2) for at, _ in played] == [0.0, 1.0, 2.0]
    told = take.sidecar
    assert (told["device"], told["messages"], told["complete"]) == ("studio pi", 3, True)
    assert told["facts"]["ports"] == FACTS["ports"]
    assert told["gaps"][0] | {"seconds": 4} == {
        "port": "keys",
        "reason": "packet lost",
        "count": 3,
        "seconds": 4,
    }
    assert read_take(take.folder) == take


async def test_changes_of_tempo_are_in_the_file_and_times_stay_right(tmp_path: Path) -> None:
    recorder = Recorder(tmp_path, "pi", facts=lambda: FACTS)
    await recorder.open()
    recorder.start()
    begin = time.monotonic_ns()
    recorder.tempo(120.01)
    await asyncio.sleep(0.05)
    recorder.tempo(90.0)
    recorder.note(note(begin + SECOND))
    recorder.note(note(begin + 5 * SECOND, velocity=0))
    take = await recorder.stop()
    assert take is not None
    assert [round(entry["bpm"]) for entry in take.sidecar["tempi"]] == [90]
    times = [at for at, _ in absolute(take.midi)]
    assert times[1] - times[0] == pytest.approx(4, abs=0.002)
    assert take.sidecar["closed_notes"] == []


async def test_a_take_ends_by_itself_when_nobody_plays(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "_FLUSH", 0.02)
    recorder = Recorder(tmp_path, "pi", facts=lambda: FACTS, idle=0.1)
    await recorder.open()
    recorder.start()
    deadline = time.monotonic() + 5
    while not recorder.takes:
        assert time.monotonic() < deadline
        await asyncio.sleep(0.02)
    assert recorder.recording is None


async def test_a_full_disk_is_told_and_loses_nothing_that_fits_into_memory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "_FLUSH", 0.01)
    recorder = Recorder(tmp_path, "pi", facts=lambda: FACTS)
    await recorder.open()
    name = recorder.start()
    log = tmp_path / RECORDING / f"{name}.log"
    await eventually(lambda: log.exists() and log.stat().st_size)
    real = os.fsync

    def full(handle: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(module.os, "fsync", full)
    for number in range(10):
        recorder.note(note(time.monotonic_ns(), number))
        await asyncio.sleep(0)
    await eventually(lambda: recorder.failed)
    assert recorder.failed == "No space left on device"
    monkeypatch.setattr(module.os, "fsync", real)
    take = await recorder.stop()
    assert take is not None
    assert take.sidecar["messages"] == 10
    assert [m.note for _, m in absolute(take.midi) if m.type == "note_on"] == list(range(10))


async def test_what_even_memory_cannot_hold_is_counted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "_KEPT", 5)
    monkeypatch.setattr(module, "_FLUSH", 0.02)
    recorder = Recorder(tmp_path, "pi", facts=lambda: FACTS)
    await recorder.open()
    recorder.start()
    for number in range(12):
        recorder.note(note(time.monotonic_ns(), number))
    # The log's first line is the fifth of those that memory holds.
    assert recorder.lost == 8
    take = await recorder.stop()
    assert take is not None
    assert (take.sidecar["gaps"][0]["reason"], take.sidecar["gaps"][0]["count"]) == ("disk full", 8)


WRITER = """
import asyncio, sys, time
from pathlib import Path
import mido
from notebooked_dagster.realtime.messages import Event
from notebooked_dagster.realtime.recorder import Recorder

async def main():
    recorder = Recorder(Path(sys.argv[1]), "pi")
    await recorder.open()
    recorder.start()
    start, n = time.monotonic(), 0
    while True:
        while n < (time.monotonic() - start) * 1000:
            recorder.note(Event("keys", time.monotonic_ns(), mido.Message("pitchwheel", pitch=n % 8192)))
            n += 1
        print(time.monotonic_ns(), n, flush=True)
        await asyncio.sleep(0.005)

asyncio.run(main())
"""


@pytest.mark.parametrize("seconds", [0.3, 1.7])
async def test_kill_9_costs_at_most_the_last_second(tmp_path: Path, seconds: float) -> None:
    process = subprocess.Popen(
        [sys.executable, "-c", WRITER, str(tmp_path)], stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    process.stdout.readline()
    time.sleep(seconds)
    # A live recorder's log is its own.
    assert recover(tmp_path) == ([], [])
    process.send_signal(signal.SIGKILL)
    last_line = process.stdout.read().strip().splitlines()[-1]
    process.wait()
    _at, sent = map(int, last_line.split())
    recorder = Recorder(tmp_path, "pi")
    (take,), unreadable = await recorder.open()
    assert unreadable == []
    assert take.sidecar["complete"] is False
    pitches = [message.pitch for _, message in absolute(take.midi)]
    # Not one is missing before the end, none is doubled.
    assert pitches == [n % 8192 for n in range(len(pitches))]
    log_end = take.sidecar["seconds"]
    assert sent - len(pitches) <= 1000
    assert log_end >= seconds - 1.0
    assert await recorder.open() == ([], [])
    assert [folder.name for folder in finished(tmp_path)] == [take.name]


async def test_a_power_cut_leaves_what_was_synced_and_that_is_a_second_old_at_most(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """kill -9 leaves the page cache alone, a power cut does not: only what was synced counts, rubbish may follow."""
    synced: dict[int, tuple[int, float]] = {}
    real = os.fsync

    def noted(handle: int) -> None:
        real(handle)
        facts = os.fstat(handle)
        synced[facts.st_ino] = (facts.st_size, time.monotonic())

    monkeypatch.setattr(os, "fsync", noted)
    recorder = Recorder(tmp_path, "pi", facts=lambda: FACTS)
    await recorder.open()
    name = recorder.start()
    path = tmp_path / RECORDING / f"{name}.log"
    begin, sent = time.monotonic(), 0
    while time.monotonic() - begin < 1.8:
        recorder.note(note(time.monotonic_ns(), sent % 128))
        sent += 1
        await asyncio.sleep(0.01)
    cut = time.monotonic()
    size, when = synced[path.stat().st_ino]
    assert cut - when < 1.0
    data = path.read_bytes()[:size]
    other = tmp_path / "after"
    (other / RECORDING).mkdir(parents=True)
    (other / RECORDING / path.name).write_bytes(data + b"\0" * 512 + b'00000000 ["midi"')
    (take,), _ = recover(other)
    kept = take.sidecar["messages"]
    assert kept >= sent - (cut - when) * 100 - 5
    assert take.sidecar["damaged_bytes"] == 528
    await recorder.stop()


def a_log(count: int) -> bytes:
    header = {"take": "t", "device": "pi", "at": 0, "bpm": 120, "ports": ["keys"]}
    return line("take", header) + b"".join(
        line("midi", n * 1_000_000, "keys", mido.Message("note_on", note=n % 128).hex(""))
        for n in range(count)
    )


@given(st.integers(0, 50), st.data())
@settings(max_examples=60)
def test_a_log_cut_anywhere_gives_every_whole_line(count: int, data: Any) -> None:
    import tempfile

    whole = a_log(count)
    cut = data.draw(st.integers(0, len(whole)))
    rubbish = data.draw(st.binary(max_size=40).filter(lambda text: b"\n" not in text))
    lines = whole[:cut].count(b"\n")
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "t.log"
        path.write_bytes(whole[:cut] + rubbish)
        if lines == 0:
            with pytest.raises(DataError):
                read_log(path)
            return
        found = read_log(path)
    assert len(found.messages) == lines - 1
    content, told = rendered(found)
    assert told["messages"] == lines - 1
    assert content.startswith(b"MThd")


async def test_a_cut_while_the_take_is_finished_makes_one_take(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / RECORDING
    folder.mkdir()
    log = folder / "2026-t.log"
    log.write_bytes(a_log(5))
    # Between rename and removal of the log.
    with monkeypatch.context() as patch:
        patch.setattr(Path, "unlink", lambda *_, **__: None)
        takes.finish(tmp_path, log)
    assert log.exists()
    # Between the files and the rename.
    half = folder / "2026-u.new"
    half.mkdir()
    (half / "take.mid").write_bytes(b"half")
    (folder / "2026-u.log").write_bytes(a_log(3))
    found, _ = recover(tmp_path)
    assert [(take.name, take.sidecar["messages"]) for take in found] == [("2026-t", 5), ("2026-u", 3)]
    assert list(folder.iterdir()) == []
    assert len(list(finished(tmp_path))) == 2


def test_a_log_without_a_beginning_is_kept_and_named(tmp_path: Path) -> None:
    (tmp_path / RECORDING).mkdir()
    (tmp_path / RECORDING / "x.log").write_bytes(b"\0" * 100)
    (tmp_path / RECORDING / "y.log").write_bytes(b"")
    found, unreadable = recover(tmp_path)
    assert found == []
    assert [path.name for path, _ in unreadable] == ["x.unreadable"]
    assert recover(tmp_path) == ([], [])


def test_a_take_that_was_changed_is_told(tmp_path: Path) -> None:
    (tmp_path / RECORDING).mkdir()
    (tmp_path / RECORDING / "t.log").write_bytes(a_log(5))
    (take,), _ = recover(tmp_path)
    assert [entry["note"] for entry in take.sidecar["closed_notes"]] == [0, 1, 2, 3, 4]
    take.midi.write_bytes(take.midi.read_bytes()[:-1])
    with pytest.raises(DataError, match="hash"):
        read_take(take.folder)
    take.midi.unlink()
    with pytest.raises(DataError, match="lacks"):
        read_take(take.folder)
    (take.folder / "take.json").write_text(json.dumps([]))
    with pytest.raises(DataError):
        read_take(take.folder)


async def test_music_that_goes_on_while_a_take_is_finished_is_in_the_next(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    disk = threading.Event()

    def slow(spool: Path, log: Path) -> takes.Take:
        disk.wait(30)
        return takes.finish(spool, log)

    monkeypatch.setattr(module, "finish", slow)
    recorder = Recorder(tmp_path, "pi", facts=lambda: FACTS)
    first = recorder.start()
    recorder.note(note(time.monotonic_ns(), 1))
    stopping = asyncio.create_task(recorder.stop())
    await eventually(lambda: recorder.recording is None)
    second = recorder.start()
    for number in range(50):
        recorder.note(note(time.monotonic_ns(), number))
    disk.set()
    ended = [await stopping, await recorder.stop()]
    assert [(take.name, take.sidecar["messages"]) for take in ended if take] == [(first, 1), (second, 50)]
    assert (recorder.recorded, recorder.lost) == (51, 0)


async def test_however_a_take_ends_it_is_handed_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_FLUSH", 0.01)
    (tmp_path / RECORDING).mkdir()
    (tmp_path / RECORDING / "cut.log").write_bytes(a_log(5))
    handed: list[str] = []

    async def finished(take: takes.Take) -> None:
        handed.append(take.name)
        raise OSError(28, "No space left on device")

    recorder = Recorder(tmp_path, "pi", facts=lambda: FACTS, finished=finished)
    await recorder.open()
    names = ["cut", recorder.start()]
    await recorder.stop()
    recorder._idle = 0.01
    names.append(recorder.start())
    await eventually(lambda: len(handed) == 3)
    recorder._idle = None
    names.append(recorder.start())
    await recorder.close()
    assert handed == recorder.takes == names
    assert len(set(names)) == 4


def test_one_log_that_the_disk_refuses_keeps_no_other_from_being_recovered(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / RECORDING).mkdir()
    for name in ("a", "b"):
        (tmp_path / RECORDING / f"{name}.log").write_bytes(a_log(5))
    real = takes.finish

    def failing(spool: Path, log: Path) -> takes.Take:
        if log.stem == "a":
            raise OSError(28, "No space left on device")
        return real(spool, log)

    with monkeypatch.context() as patch:
        patch.setattr(takes, "finish", failing)
        found, problems = recover(tmp_path)
    assert [take.name for take in found] == ["b"]
    assert problems == [(tmp_path / RECORDING / "a.log", "No space left on device")]
    assert [take.name for take in recover(tmp_path)[0]] == ["a"]
