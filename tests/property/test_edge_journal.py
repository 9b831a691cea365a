"""The journal under every cut and every crowd."""

from __future__ import annotations

import errno
import os
import tempfile
import threading
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from notebooked_dagster.edge.journal import Journal, JournalError, decode, encode, read

texts = st.lists(st.text(max_size=200), max_size=20)


def contents(data: bytes, start: int = 0) -> list[str]:
    return [record.data["text"] for record in decode(data, start)]


@given(texts, st.data())
def test_what_is_cut_off_at_any_byte_is_the_whole_records_before(
    found: list[str], data: st.DataObject
) -> None:
    pieces = [encode({"text": text}) for text in found]
    journal = b"".join(pieces)
    cut = data.draw(st.integers(0, len(journal)))
    whole = 0
    while whole < len(pieces) and len(b"".join(pieces[: whole + 1])) <= cut:
        whole += 1
    assert contents(journal[:cut]) == found[:whole]
    # The disk may have kept the file's new length, and not what was written.
    assert contents(journal[:cut] + bytes(300)) == found[:whole]


@given(texts.filter(bool), st.data())
def test_reading_goes_on_from_the_end_of_any_record(found: list[str], data: st.DataObject) -> None:
    journal = b"".join(encode({"text": text}) for text in found)
    ends = [record.end for record in decode(journal)]
    at = data.draw(st.integers(0, len(ends) - 1))
    assert contents(journal[ends[at] :], ends[at]) == found[at + 1 :]
    assert ends[-1] == len(journal)


@given(st.lists(st.text(max_size=50), min_size=2, max_size=8), st.data())
def test_a_changed_byte_is_never_read_as_something_else(found: list[str], data: st.DataObject) -> None:
    journal = bytearray(b"".join(encode({"text": text}) for text in found))
    at = data.draw(st.integers(0, len(journal) - 1))
    journal[at] ^= data.draw(st.integers(1, 255))
    read_back, told = [], False
    try:
        for record in decode(bytes(journal)):
            read_back.append(record.data["text"])
    except JournalError:
        told = True
    assert read_back == found[: len(read_back)]
    assert len(read_back) < len(found)
    # Only the last record may look like one that a power cut left.
    assert told or len(read_back) == len(found) - 1


def test_a_length_that_is_too_large_does_not_hide_what_follows() -> None:
    # It would be waited for for ever, and the next writer would cut all of it off.
    whole = encode({"text": "x"})
    for damaged in (b"0fffffff" + whole[8:], b"\n" + whole[1:]):
        with pytest.raises(JournalError, match=f"damaged at byte {len(whole)}"):
            contents(whole + damaged + whole)


@given(texts, texts, st.binary(min_size=1, max_size=30))
@settings(max_examples=40)
def test_a_writer_goes_on_behind_what_a_power_cut_left(
    before: list[str], after: list[str], torn: bytes
) -> None:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for text in before:
            Journal(folder).append({"text": text})
        with (folder / "journal").open("ab") as stream:
            stream.write(encode({"text": "lost"})[: len(torn)])
        journal = Journal(folder)
        for text in after:
            journal.append({"text": text})
        records = list(read(folder / "journal")) if (folder / "journal").exists() else []
        assert [record.data["text"] for record in records] == before + after
        assert [record.data["n"] for record in records] == list(range(len(before + after)))


def test_many_writers_number_their_records_without_a_gap(tmp_path: Path) -> None:
    def write(name: int) -> None:
        journal = Journal(tmp_path)
        for number in range(50):
            journal.append({"who": name, "number": number})

    threads = [threading.Thread(target=write, args=(name,)) for name in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    records = [record.data for record in read(tmp_path / "journal")]
    assert [data["n"] for data in records] == list(range(200))
    for name in range(4):
        assert [data["number"] for data in records if data["who"] == name] == list(range(50))


def test_a_journal_is_read_in_pieces_that_end_anywhere(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    journal = Journal(tmp_path)
    for number in range(100):
        journal.append({"number": number, "text": "x" * number})
    monkeypatch.setattr("notebooked_dagster.edge.journal._CHUNK", 37)
    assert [record.data["number"] for record in read(tmp_path / "journal")] == list(range(100))


def test_on_a_full_disk_the_last_words_go_where_room_was_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    journal = Journal(tmp_path)
    journal.append({"text": "before"})
    journal.reserve()
    write, kept = os.write, tmp_path / "reserve"
    room = 16 * 1024

    def full(handle: int, data: bytes) -> int:
        if kept.exists() and kept.stat().st_size > room:
            # As a full disk does: a part of it goes in.
            write(handle, data[:5])
            raise OSError(errno.ENOSPC, "No space left on device")
        return write(handle, data)

    monkeypatch.setattr("notebooked_dagster.edge.journal.os.write", full)
    journal.append({"text": "last words"})
    # A run that goes on talking does not talk the room for its end away.
    room = 0
    with pytest.raises(OSError, match="No space left"):
        journal.append({"text": "too much"})
    journal.release()
    journal.append({"text": "exit"})
    records = [record.data for record in read(tmp_path / "journal")]
    assert [(data["n"], data["text"]) for data in records] == [(0, "before"), (1, "last words"), (2, "exit")]
