"""Takes on disk: an append-only log while one is recorded, a standard MIDI file and a JSON sidecar afterwards.

::

    spool/.recording/<take>.log     lines, each with its checksum; flushed and synced every half second
    spool/<take>/take.mid           appears together with
    spool/<take>/take.json          in one rename: there is a whole take or none

The log is what a power cut leaves. Its whole lines are made into a take at the next start; what follows the first damaged
line was never promised.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import io
import os
import re
import shutil
import zlib
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, BinaryIO

import mido
import orjson

from notebooked_dagster.errors import DataError

from .messages import REAL_TIME, decoded

RECORDING = ".recording"
MIDI_FILE, SIDECAR = "take.mid", "take.json"
FORMAT = 1
#: At 120 BPM a tick is 0.52 ms; one byte on a DIN cable takes 0.32 ms.
PPQ = 960
_NAME = re.compile(r"[^A-Za-z0-9._-]+")
# Neither belongs into a file: meta events are the file's own, real time is what the file's own ticks stand for.
_LEFT_OUT = REAL_TIME | {"quarter_frame", "song_select", "songpos", "tune_request"}


@dataclass
class Log:
    """What a log holds.

    Attributes:
        header: Take, device, ports, clock, when it started.
        messages: Time (ns, monotonic), port and bytes of each.
        tempi: Time and BPM of each change.
        gaps: As they are told in the sidecar.
        end: The last time of all lines.
        closed: Whether the recorder ended it.
        damaged: Bytes after the last whole line.
    """

    header: dict[str, Any]
    messages: list[tuple[int, str, bytes]] = field(default_factory=list)
    tempi: list[tuple[int, float]] = field(default_factory=list)
    gaps: list[dict[str, Any]] = field(default_factory=list)
    end: int = 0
    closed: bool = False
    damaged: int = 0


@dataclass(frozen=True, slots=True)
class Take:
    """A finished take.

    Attributes:
        folder: Where it is.
        sidecar: What ``take.json`` says.
    """

    folder: Path
    sidecar: Mapping[str, Any]

    @property
    def name(self) -> str:
        """Of the take."""
        return self.folder.name

    @property
    def midi(self) -> Path:
        """The MIDI file."""
        return self.folder / MIDI_FILE


def take_name(device: str, started: datetime) -> str:
    """A name that sorts by time and is one everywhere: ``2026-11-21T14-03-22.518-studio``."""
    stamp = started.astimezone(UTC).strftime("%Y-%m-%dT%H-%M-%S.%f")[:-3]
    return f"{stamp}-{_NAME.sub('-', device)[:40]}"


def line(kind: str, *values: Any) -> bytes:
    """One line of a log: checksum, then JSON."""
    text = orjson.dumps([kind, *values])
    return b"%08x %s\n" % (zlib.crc32(text), text)


def read_log(path: Path) -> Log:
    """Every whole line of a log.

    Raises:
        DataError: Not even the first line is whole.
    """
    data = path.read_bytes()
    found: Log | None = None
    good = 0
    for record, end in _records(data):
        if found is None:
            if record[0] != "take" or len(record) != 2 or not isinstance(record[1], dict):
                break
            found = Log(record[1], end=int(record[1].get("at", 0)))
        else:
            _add(found, record)
        good = end
    if found is None:
        raise DataError(
            "The log of a recording has no readable beginning.",
            path=path,
            hint="Nothing had reached the disk yet; remove it.",
        )
    found.damaged = len(data) - good
    return found


def _records(data: bytes) -> Iterator[tuple[list[Any], int]]:
    start = 0
    while (end := data.find(b"\n", start)) >= 0:
        text = data[start + 9 : end]
        try:
            if int(data[start : start + 8], 16) != zlib.crc32(text):
                return
            record = orjson.loads(text)
        except ValueError:
            return
        yield record, end + 1
        start = end + 1


def _add(log: Log, record: list[Any]) -> None:
    kind, at = record[0], int(record[1])
    log.end = max(log.end, at)
    if kind == "midi":
        log.messages.append((at, record[2], bytes.fromhex(record[3])))
    elif kind == "tempo":
        log.tempi.append((at, float(record[2])))
    elif kind == "gap":
        log.gaps.append({"at": at, "port": record[2], "reason": record[3], "count": record[4]})
    elif kind == "end":
        log.closed = True


def finish(spool: Path, log_path: Path) -> Take:
    """Make a log into a take, and remove it. Done twice, it is done once.

    Raises:
        DataError: The log is not readable.
        OSError: The disk is full; the log stays.
    """
    log = read_log(log_path)
    target = spool / log_path.stem
    if not target.exists():
        midi, told = rendered(log)
        temporary = spool / RECORDING / f"{log_path.stem}.new"
        shutil.rmtree(temporary, ignore_errors=True)
        temporary.mkdir(parents=True)
        _write(temporary / MIDI_FILE, midi)
        _write(temporary / SIDECAR, orjson.dumps(told, option=orjson.OPT_INDENT_2))
        sync_folder(temporary)
        temporary.rename(target)
        sync_folder(spool)
    log_path.unlink(missing_ok=True)
    return read_take(target)


def recover(spool: Path) -> tuple[list[Take], list[tuple[Path, str]]]:
    """Finish what a power cut interrupted. A log that somebody is writing is left alone.

    Returns:
        The takes; and which logs did not become one, and why. One of which nothing could be read is renamed to
        ``*.unreadable``, one that the disk did not let become a take is left for the next start.
    """
    takes: list[Take] = []
    problems: list[tuple[Path, str]] = []
    for path in sorted((spool / RECORDING).glob("*.log")):
        try:
            take = _recovered(spool, path)
        except DataError as error:
            with contextlib.suppress(OSError):
                path = path.rename(path.with_suffix(".unreadable"))
            problems.append((path, error.message))
        except OSError as error:
            problems.append((path, error.strerror or str(error)))
        else:
            takes += [take] if take is not None else []
    return takes, problems


def _recovered(spool: Path, path: Path) -> Take | None:
    """The take of a log; None where somebody writes it, or a cut came before its first line."""
    with path.open("rb") as stream:
        if not claim(stream):
            return None
        if path.stat().st_size == 0:
            path.unlink()
            return None
        return finish(spool, path)


def claim(stream: BinaryIO) -> bool:
    """Lock an open log for as long as it is open; False where another process has it."""
    try:
        fcntl.flock(stream.fileno(), fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        return False
    return True


def finished(spool: Path) -> Iterator[Path]:
    """The folders of finished takes, oldest first."""
    if not spool.is_dir():
        return
    for folder in sorted(spool.iterdir()):
        if not folder.name.startswith(".") and (folder / SIDECAR).is_file():
            yield folder


def read_take(folder: Path) -> Take:
    """A finished take, after a look at whether it is whole.

    Raises:
        DataError: A file is missing, is not what it should be, or is not the one the sidecar was written for.
    """
    try:
        told = orjson.loads((folder / SIDECAR).read_bytes())
        content = (folder / MIDI_FILE).read_bytes()
    except FileNotFoundError as error:
        raise DataError("The take lacks a file.", path=error.filename, hint="Fetch it again.") from None
    except ValueError as error:
        raise DataError(f"The sidecar is not JSON: {error}.", path=folder / SIDECAR) from None
    if not isinstance(told, dict) or told.get("format") != FORMAT:
        raise DataError("The sidecar is not one of a take.", path=folder / SIDECAR)
    digest = hashlib.sha256(content).hexdigest()
    if told.get("sha256") != digest:
        raise DataError(
            "The MIDI file is not the one that was recorded: its hash is another than the sidecar says.",
            path=folder / MIDI_FILE,
            hint="Fetch it again.",
        )
    return Take(folder, told)


def rendered(log: Log) -> tuple[bytes, dict[str, Any]]:
    """The MIDI file and the sidecar of a log: one track for the tempo, one for each port."""
    start = int(log.header["at"])
    tempi = _TempoMap(start, float(log.header.get("bpm") or 120.0), log.tempi)
    midi = mido.MidiFile(type=1, ticks_per_beat=PPQ)
    midi.tracks.append(tempi.track(str(log.header["take"])))
    ports = list(log.header.get("ports", ()))
    ports += sorted({port for _, port, _ in log.messages} - set(ports))
    left_out: Counter[str] = Counter()
    hanging: list[dict[str, Any]] = []
    counts: dict[str, int] = {}
    for port in ports:
        track = _Track(port)
        for at, source, data in log.messages:
            if source == port:
                track.add(tempi.ticks(at), data, left_out)
        hanging += [{"port": port, "channel": c + 1, "note": n} for c, n in sorted(track.sounding)]
        midi.tracks.append(track.ended(tempi.ticks(log.end)))
        counts[port] = track.count
    buffer = io.BytesIO()
    midi.save(file=buffer)
    content = buffer.getvalue()
    return content, {
        "format": FORMAT,
        **{name: value for name, value in log.header.items() if name != "at"},
        "sha256": hashlib.sha256(content).hexdigest(),
        "seconds": round((log.end - start) / 1e9, 6),
        "messages": sum(counts.values()),
        "by_port": counts,
        "left_out": dict(sorted(left_out.items())),
        "tempi": [{"seconds": round((at - start) / 1e9, 6), "bpm": bpm} for at, bpm in log.tempi],
        "gaps": [_gap(gap, start) for gap in log.gaps],
        "complete": log.closed,
        "damaged_bytes": log.damaged,
        "closed_notes": hanging,
    }


def _gap(gap: Mapping[str, Any], start: int) -> dict[str, Any]:
    told = {name: value for name, value in gap.items() if name != "at"}
    return {"seconds": round((gap["at"] - start) / 1e9, 6), **told}


class _TempoMap:
    """Time to ticks, with the tempo as it was."""

    def __init__(self, start: int, bpm: float, changes: Iterable[tuple[int, float]]) -> None:
        # A file says a tempo in whole microseconds a quarter note; ticks are counted by what the file will say.
        self._parts = [(start, 0.0, mido.bpm2tempo(bpm))]
        for at, changed in changes:
            begin, ticks, tempo = self._parts[-1]
            self._parts.append(
                (at, ticks + (at - begin) / 1e3 / tempo * PPQ, mido.bpm2tempo(max(changed, 4.0)))
            )

    def ticks(self, at: int) -> int:
        """The tick of a time."""
        begin, ticks, tempo = next((part for part in reversed(self._parts) if part[0] <= at), self._parts[0])
        found: int = round(ticks + (at - begin) / 1e3 / tempo * PPQ)
        return max(0, found)

    def track(self, name: str) -> mido.MidiTrack:
        """The track that says it all."""
        track = mido.MidiTrack([mido.MetaMessage("track_name", name=name)])
        last = 0
        for _, ticks, tempo in self._parts:
            at = max(last, round(ticks))
            track.append(mido.MetaMessage("set_tempo", tempo=tempo, time=at - last))
            last = at
        return track


class _Track:
    """One port's messages with the time between them."""

    def __init__(self, port: str) -> None:
        self.sounding: set[tuple[int, int]] = set()
        self.count = 0
        self._track = mido.MidiTrack([mido.MetaMessage("track_name", name=port)])
        self._last = 0

    def add(self, at: int, data: bytes, left_out: Counter[str]) -> None:
        message = decoded(data)
        if message is None or message.type in _LEFT_OUT:
            left_out[message.type if message is not None else "not MIDI"] += 1
            return
        if message.type in ("note_on", "note_off"):
            key = (message.channel, message.note)
            if message.type == "note_on" and message.velocity:
                self.sounding.add(key)
            else:
                self.sounding.discard(key)
        self.count += 1
        self._append(message, at)

    def ended(self, at: int) -> mido.MidiTrack:
        # A note the cut left sounding would sound for ever in whatever plays the file.
        for channel, note in sorted(self.sounding):
            self._append(mido.Message("note_off", channel=channel, note=note), at)
        self._track.append(mido.MetaMessage("end_of_track", time=max(0, at - self._last)))
        return self._track

    def _append(self, message: mido.Message, at: int) -> None:
        at = max(at, self._last)
        self._track.append(message.copy(time=at - self._last))
        self._last = at


def _write(path: Path, data: bytes) -> None:
    with path.open("wb") as stream:
        stream.write(data)
        stream.flush()
        os.fsync(stream.fileno())


def sync_folder(folder: Path) -> None:
    """Make what was created or renamed in a folder last through a power cut."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
