"""A job's output as lines: live, whatever bytes it is made of."""

from __future__ import annotations

import codecs
import time
from collections.abc import Callable, Iterator
from pathlib import Path

LONGEST_LINE = 64 * 1024
_CHUNK = 1024 * 1024
_POLL = 0.1
_PROGRESS_EVERY = 2.0


class LineDecoder:
    """Bytes in, lines out, as a terminal would show them.

    Bytes that are not UTF-8 become U+FFFD. Of a line that was overwritten with carriage returns (a progress bar)
    the last state counts. A line longer than ``LONGEST_LINE`` characters comes in pieces.
    """

    def __init__(self) -> None:
        self._decode = codecs.getincrementaldecoder("utf-8")("replace").decode
        self._rest = ""
        self._shown = ""

    def feed(self, data: bytes, *, final: bool = False) -> list[str]:
        """The lines that ``data`` completes; with ``final`` also the one that was never ended."""
        lines: list[str] = []
        pieces = (self._rest + self._decode(data, final)).split("\n")
        self._rest = pieces.pop()
        for piece in pieces:
            self._emit(piece, lines)
        if final and self._rest:
            self._emit(self._rest, lines)
            self._rest = ""
        elif len(self._rest) > LONGEST_LINE:
            self._shorten(lines)
        return lines

    def progress(self) -> str | None:
        """What an unfinished progress bar shows now; None where there is none or it has not moved."""
        if "\r" not in self._rest:
            return None
        text = _visible(self._rest)
        if not text or text == self._shown:
            return None
        self._shown = text
        return text

    def _emit(self, line: str, lines: list[str]) -> None:
        text, shown, self._shown = _visible(line), self._shown, ""
        if shown and text == shown:
            return
        lines.extend(text[at : at + LONGEST_LINE] for at in range(0, len(text), LONGEST_LINE))
        if not text:
            lines.append("")

    def _shorten(self, lines: list[str]) -> None:
        if "\r" in self._rest:
            self._rest = self._rest[self._rest.rstrip("\r").rfind("\r") + 1 :]
        while len(self._rest) > LONGEST_LINE:
            lines.append(self._rest[:LONGEST_LINE])
            self._rest = self._rest[LONGEST_LINE:]


def _visible(line: str) -> str:
    if "\r" not in line:
        return line
    return next((part for part in reversed(line.split("\r")) if part), "")


def read_lines(path: Path) -> Iterator[str]:
    """The lines of a log as it is now."""
    decoder = LineDecoder()
    try:
        with path.open("rb") as stream:
            while data := stream.read(_CHUNK):
                yield from decoder.feed(data)
    except FileNotFoundError:
        return
    yield from decoder.feed(b"", final=True)


def follow_lines(path: Path, finished: Callable[[], bool]) -> Iterator[str]:
    """The lines of a log, as they come, until ``finished`` says that no more will.

    Args:
        path: The log; it may not exist yet.
        finished: Asked whenever the log's end has been reached.
    """
    decoder = LineDecoder()
    offset, last_progress, done = 0, time.monotonic(), False
    while True:
        data = _read_from(path, offset)
        offset += len(data)
        yield from decoder.feed(data)
        if data:
            if (
                time.monotonic() - last_progress >= _PROGRESS_EVERY
                and (text := decoder.progress()) is not None
            ):
                last_progress = time.monotonic()
                yield text
            continue
        if done:
            break
        # Looked at before the last read: what was written until then is still delivered.
        done = finished()
        if not done:
            time.sleep(_POLL)
    yield from decoder.feed(b"", final=True)


def _read_from(path: Path, offset: int) -> bytes:
    try:
        with path.open("rb") as stream:
            stream.seek(offset)
            return stream.read(_CHUNK)
    except FileNotFoundError:
        return b""


def tail(path: Path, size: int = 256 * 1024) -> str:
    """The last ``size`` bytes of a log, as lines joined by newlines."""
    try:
        with path.open("rb") as stream:
            stream.seek(max(0, path.stat().st_size - size))
            data = stream.read(size)
    except FileNotFoundError:
        return ""
    return "\n".join(LineDecoder().feed(data, final=True))
