"""The journal of a run: what happened on a device, in order, until a host has it. Standard library only.

A record is a line: its length and its CRC-32 in hexadecimal, then JSON. What a power cut left of a record at the end of
the file is no record: a reader stops before it, and the next writer removes it.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import json
import os
import re
import threading
import time
import zlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

NAME = "journal"
_RESERVE = "reserve"
# What is left free for the last words of a run on a full disk: a failure's events, and the exit record in a part that no event gets.
_RESERVED = 256 * 1024
_FOR_EXIT = 16 * 1024
_HEADER = 18
_HEADER_FORM = re.compile(rb"[0-9a-f]{8} [0-9a-f]{8} ")
# No record has a line's end in it.
_NEXT = re.compile(rb"\n" + _HEADER_FORM.pattern)
_CHUNK = 1 << 20


class JournalError(Exception):
    """The journal is damaged before its end, where no power cut can have damaged it."""


@dataclass(frozen=True, slots=True)
class Record:
    """One record.

    Attributes:
        data: What was written, with ``n``, its number from 0, and ``m``, seconds of a clock that nobody sets.
        end: The offset behind it.
    """

    data: Mapping[str, Any]
    end: int


def encode(data: Mapping[str, Any]) -> bytes:
    """A record's bytes."""
    payload = json.dumps(data, separators=(",", ":")).encode()
    return b"%08x %08x %b\n" % (len(payload), zlib.crc32(payload), payload)


def decode(data: bytes, start: int = 0) -> Iterator[Record]:
    """The whole records of a piece of a journal.

    Args:
        data: The piece; it begins where a record begins and may end within one.
        start: The offset of the piece.

    Raises:
        JournalError: A record that is followed by another is damaged.
    """
    at = 0
    while True:
        header = data[at : at + _HEADER]
        if len(header) < _HEADER:
            return
        if not _HEADER_FORM.fullmatch(header):
            if _more(data, at):
                raise JournalError(f"The journal is damaged at byte {start + at}.")
            return
        end = at + _HEADER + int(header[:8], 16) + 1
        if end > len(data):
            if _more(data, at):
                raise JournalError(f"The journal is damaged at byte {start + at}.")
            return
        payload = data[at + _HEADER : end - 1]
        if zlib.crc32(payload) != int(header[9:17], 16) or data[end - 1 : end] != b"\n":
            if end < len(data) and data[end:].strip(b"\0"):
                raise JournalError(f"The journal is damaged at byte {start + at}.")
            return
        at = end
        yield Record(json.loads(payload), start + at)


def _more(data: bytes, at: int) -> bool:
    """Whether a record follows what is none. A file system may leave zeros where data had not reached the disk."""
    return _NEXT.search(data, at) is not None


def clock() -> float:
    """Seconds since the device started, sleep included: nobody sets this clock."""
    return time.clock_gettime(getattr(time, "CLOCK_BOOTTIME", time.CLOCK_MONOTONIC))


class Journal:
    """Writes a journal. Several processes may, each with an object of its own: a lock orders them."""

    def __init__(self, folder: Path) -> None:
        self.path = folder / NAME
        self._reserve = folder / _RESERVE
        self._end = 0
        self._next = 0
        self._lock = threading.Lock()

    def append(self, data: Mapping[str, Any]) -> int:
        """Write a record and return its number. Raises OSError where the disk is full; nothing is written then."""
        with self._lock, self._locked() as handle:
            self._catch_up(handle)
            record = encode({"n": self._next, "m": round(clock(), 6), **data})
            try:
                self._write(handle, record)
            except OSError as problem:
                if problem.errno not in (errno.ENOSPC, errno.EDQUOT) or not self._make_room():
                    raise
                self._write(handle, record)
            self._next += 1
            return self._next - 1

    def reserve(self) -> None:
        """Keep some of the disk for the run's last words."""
        with contextlib.suppress(OSError):
            self._reserve.write_bytes(os.urandom(_RESERVED))

    def release(self) -> None:
        """Give back what was kept."""
        self._reserve.unlink(missing_ok=True)

    def _make_room(self) -> bool:
        """Give back what was kept for events; False where that is gone already."""
        if not self._reserve.exists() or self._reserve.stat().st_size <= _FOR_EXIT:
            return False
        os.truncate(self._reserve, _FOR_EXIT)
        return True

    @contextlib.contextmanager
    def _locked(self) -> Iterator[int]:
        handle = os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(handle, fcntl.LOCK_EX)
            yield handle
        finally:
            os.close(handle)

    def _catch_up(self, handle: int) -> None:
        """What others wrote since; what a power cut left of a record goes."""
        size = os.fstat(handle).st_size
        if size == self._end:
            return
        if size < self._end:
            self._end = self._next = 0
        for record in read(self.path, self._end):
            self._end, self._next = record.end, record.data["n"] + 1
        if self._end < size:
            os.ftruncate(handle, self._end)

    def _write(self, handle: int, record: bytes) -> None:
        try:
            written = 0
            while written < len(record):
                written += os.write(handle, record[written:])
        except OSError:
            os.ftruncate(handle, self._end)
            raise
        self._end += len(record)


def read(path: Path, offset: int = 0) -> Iterator[Record]:
    """The whole records from an offset on, a piece of the file at a time. Raises JournalError as ``decode`` does."""
    with path.open("rb") as stream:
        stream.seek(offset)
        rest = b""
        while piece := stream.read(_CHUNK):
            rest += piece
            used = 0
            for record in decode(rest, offset):
                used = record.end - offset
                yield record
            rest, offset = rest[used:], offset + used
