"""Whatever packets of RTP-MIDI are lost, the next one that comes brings the receiver to where the sender is."""

from __future__ import annotations

import contextlib

import mido
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from notebooked_dagster.realtime.ports.recovery import Chapters, Controller, Journal, Recovery, read

CHANNELS = st.integers(0, 2)
VALUES = st.integers(0, 127)
# Few, so that they meet; no bank, whose parts are controllers and part of a program as well.
NOTES = st.integers(58, 66)
MESSAGES = st.one_of(
    st.builds(lambda c, n, v: mido.Message("note_on", channel=c, note=n, velocity=v), CHANNELS, NOTES, VALUES),
    st.builds(lambda c, n: mido.Message("note_off", channel=c, note=n), CHANNELS, NOTES),
    st.builds(
        lambda c, n, v: mido.Message("control_change", channel=c, control=n, value=v),
        CHANNELS, st.sampled_from([1, 7, 64]), VALUES,
    ),
    st.builds(lambda c, p: mido.Message("program_change", channel=c, program=p), CHANNELS, VALUES),
    st.builds(lambda c, p: mido.Message("pitchwheel", channel=c, pitch=p), CHANNELS, st.integers(-8192, 8191)),
)  # fmt: skip


class Player:
    """What is in force at one end, and what it was told; its journal begins with its first packet."""

    def __init__(self) -> None:
        self.notes: dict[tuple[int, int], int] = {}
        self.set: dict[tuple[int, str], int] = {}
        self.ever: set[tuple[int, int]] = set()

    def play(self, message: mido.Message) -> None:
        if message.type in ("note_on", "note_off"):
            key = (message.channel, message.note)
            self.ever.add(key)
            self.notes.pop(key, None)
            if message.type == "note_on" and message.velocity:
                self.notes[key] = message.velocity
        elif message.type == "control_change":
            self.set[message.channel, f"control {message.control}"] = message.value
        elif message.type == "program_change":
            self.set[message.channel, "program"] = message.program
        else:
            self.set[message.channel, "wheel"] = message.pitch

    def journal(self, checkpoint: int) -> bytes:
        """As RFC 6295 has it, by another hand than that of the reader."""
        body, count = b"", 0
        for channel in range(16):
            contents, chapters = self._chapters(channel)
            if contents:
                count += 1
                length = len(chapters) + 3
                body += bytes([channel << 3 | length >> 8, length & 0xFF, contents]) + chapters
        flags = 0x20 | count - 1 if count else 0
        return bytes([flags, *checkpoint.to_bytes(2, "big")]) + body

    def _chapters(self, channel: int) -> tuple[int, bytes]:
        contents, found = 0, b""
        if (program := self.set.get((channel, "program"))) is not None:
            contents, found = 0x80, bytes([program, 0, 0])
        logs = b"".join(
            bytes([int(what.removeprefix("control ")), value])
            for (of, what), value in self.set.items()
            if of == channel and what.startswith("control")
        )
        if logs:
            contents, found = contents | 0x40, found + bytes([len(logs) // 2 - 1]) + logs
        if (wheel := self.set.get((channel, "wheel"))) is not None:
            contents, found = contents | 0x10, found + bytes([wheel + 8192 & 0x7F, wheel + 8192 >> 7])
        ever = [note for of, note in self.ever if of == channel]
        if ever:
            on = {note: self.notes[channel, note] for note in ever if (channel, note) in self.notes}
            bits = [0] * 16
            for note in set(ever) - set(on):
                bits[note // 8] |= 0x80 >> note % 8
            used = [octet for octet, value in enumerate(bits) if value] or [15, 1]
            low, high = (used[0], used[-1]) if any(bits) else (15, 1)
            found += bytes([0x80 | len(on), low << 4 | high])
            found += b"".join(bytes([note, 0x80 | velocity]) for note, velocity in on.items())
            contents, found = contents | 0x08, found + bytes(bits[low : high + 1])
        return contents, found


@settings(max_examples=50)
@given(st.lists(st.tuples(st.booleans(), st.lists(MESSAGES, max_size=4)), min_size=2, max_size=12))
def test_after_a_loss_both_ends_are_the_same(packets: list[tuple[bool, list[mido.Message]]]) -> None:
    sender, receiver, recovery = Player(), Player(), Recovery()
    last = -1
    # The first one comes: a receiver does not know of what it never heard of.
    for number, (lost, messages) in enumerate([(False, []), *packets]):
        journal = sender.journal(0)
        for message in messages:
            sender.play(message)
        if lost:
            continue
        if number != last + 1:
            for message in recovery.recovered(read(journal), last):
                receiver.play(message)
        last = number
        for message in messages:
            recovery.hear(message)
            receiver.play(message)
        assert receiver.notes == sender.notes
        assert receiver.set == sender.set


@given(st.lists(MESSAGES, max_size=20), st.booleans())
def test_without_a_journal_that_reaches_back_no_note_hangs(messages: list[mido.Message], short: bool) -> None:
    sender, receiver, recovery = Player(), Player(), Recovery()
    for message in messages:
        recovery.hear(message)
        receiver.play(message)
        if short:
            sender.play(message)
    # The sender ends all of it, and two packets are lost: of the first one no journal tells any more.
    journal = Journal(12, {}) if short else None
    for message in recovery.recovered(journal, 10):
        receiver.play(message)
    assert receiver.notes == {}
    assert list(recovery.silence()) == []


@given(st.binary(max_size=60))
def test_no_journal_breaks_the_reader(data: bytes) -> None:
    with contextlib.suppress(ValueError):
        read(data)


def played(recovery: Recovery, chapters: Chapters) -> list[str]:
    return [str(message) for message in recovery.recovered(Journal(0, {0: chapters}), 5)]


def test_what_it_is_too_late_for_is_not_begun() -> None:
    recovery = Recovery()
    recovery.hear(mido.Message("note_on", note=60, velocity=1))
    chapters = Chapters(started=((60, 9, True), (61, 9, False), (62, 9, True)))
    assert played(recovery, chapters) == [
        "note_off channel=0 note=60 velocity=64 time=0",
        "note_on channel=0 note=60 velocity=9 time=0",
        "note_on channel=0 note=62 velocity=9 time=0",
    ]
    assert played(recovery, chapters) == []


def test_pedals_are_counted_and_all_notes_off_is_not_missed() -> None:
    recovery = Recovery()
    recovery.hear(mido.Message("note_on", note=60, velocity=1))
    told = Chapters(
        controllers=(Controller(64, "toggles", 3), Controller(123, "count", 1), Controller(96, "count", 2))
    )
    assert played(recovery, told) == [
        "control_change channel=0 control=64 value=127 time=0",
        "control_change channel=0 control=123 value=0 time=0",
    ]
    assert played(recovery, told) == []
    assert list(recovery.silence()) == []


def test_what_was_sent_several_times_is_made_up_for_once() -> None:
    recovery = Recovery()
    told = Chapters(controllers=(Controller(123, "count", 2),), started=((60, 1, True),))
    assert [line.split()[0] for line in played(recovery, told)] == ["control_change", "note_on"]
    # The next loss is of something else: what sounds goes on.
    assert played(recovery, told) == []


def test_what_a_reset_of_the_controllers_has_undone_is_set_again() -> None:
    recovery = Recovery()
    for message in (
        mido.Message("control_change", control=1, value=64),
        mido.Message("control_change", control=64, value=127),
        mido.Message("pitchwheel", pitch=99),
        mido.Message("control_change", control=121, value=0),
    ):
        recovery.hear(message)
    told = Chapters(controllers=(Controller(1, "value", 64), Controller(64, "toggles", 2)), wheel=99)
    assert [line.split(" time")[0] for line in played(recovery, told)] == [
        "control_change channel=0 control=1 value=64",
        "pitchwheel channel=0 pitch=99",
    ]
    reset = Chapters(controllers=(Controller(121, "count", 2),))
    assert played(recovery, reset) == ["control_change channel=0 control=121 value=0 time=0"]


def test_a_program_comes_with_its_bank() -> None:
    recovery = Recovery()
    told = Chapters(program=(5, (1, 2)), wheel=-3)
    assert [line.split(" time")[0] for line in played(recovery, told)] == [
        "control_change channel=0 control=0 value=1",
        "control_change channel=0 control=32 value=2",
        "program_change channel=0 program=5",
        "pitchwheel channel=0 pitch=-3",
    ]
    assert played(recovery, told) == []


def test_what_is_not_used_of_a_journal_is_skipped() -> None:
    """A system journal before the channels, and chapter M (parameters) between C and W; as a published layout has them."""
    system = bytes([0x00, 0x05, 1, 2, 3])
    chapters = (
        bytes([0x00, 7, 100])
        + bytes([0x00, 0x04, 9, 9])
        + bytes([0x00, 0x40])
        + bytes([0x81, 0xF1, 60, 0xC0])
    )
    channel = bytes([0x09 << 3, len(chapters) + 3, 0x40 | 0x20 | 0x10 | 0x08]) + chapters
    found = read(bytes([0x60, 0x12, 0x34]) + system + channel)
    assert found == Journal(
        0x1234, {9: Chapters(None, (Controller(7, "value", 100),), 0, ((60, 64, True),), frozenset())}
    )
    with pytest.raises(ValueError, match="cut off"):
        read(bytes([0x20, 0, 0, 0, 9, 0x08]))
