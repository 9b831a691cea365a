"""Which takes of a spool folder are new, which are broken. Plain Python; the sensor around it is in ``components/takes.py``.

A take is known by the hash of its MIDI file: fetched twice, under whatever name, it is one. What a look found is kept in a
file, so that the next reads only what changed; where that file is lost, nothing is doubled, only hashed again.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import orjson

from notebooked_dagster.core.files import write_atomic
from notebooked_dagster.errors import DataError

from .takes import MIDI_FILE, SIDECAR, finished, read_take

_DIGITS = 12
Stamp = list[int]


@dataclass(frozen=True, slots=True)
class Arrival:
    """A whole take.

    Attributes:
        key: Its partition: name and hash.
        folder: Where it is.
    """

    key: str
    folder: Path


@dataclass(frozen=True, slots=True)
class Look:
    """What a look found.

    Attributes:
        takes: All that are whole, one for each content.
        broken: Folder and reason of those that are not, and were not told before.
    """

    takes: tuple[Arrival, ...]
    broken: tuple[tuple[Path, str], ...]


def look(spool: Path, memory: Path, known: Iterable[str] = ()) -> Look:
    """Look through a spool folder.

    Args:
        spool: The folder; takes reach it whole, by a rename.
        memory: The file in which the look is kept.
        known: The partitions there are; a take that came before under another name keeps that one.
    """
    before = _read(memory)
    now: dict[str, list[object]] = {}
    by_hash = {key.rpartition("-")[2]: key for key in known}
    takes: dict[str, Arrival] = {}
    broken: list[tuple[Path, str]] = []
    for folder in finished(spool):
        stamp = _stamp(folder)
        seen = before.get(folder.name)
        if seen is not None and seen[0] == stamp:
            digest, problem = str(seen[1]), str(seen[2])
        else:
            digest, problem = _judged(folder)
            if problem:
                broken.append((folder, problem))
        now[folder.name] = [stamp, digest, problem]
        if digest:
            takes.setdefault(digest, Arrival(by_hash.get(digest, f"{folder.name}-{digest}"), folder))
    if now != before:
        write_atomic(memory, orjson.dumps(now))
    return Look(tuple(takes.values()), tuple(broken))


def folder_of(spool: Path, key: str) -> Path:
    """Where the take of a partition is.

    Raises:
        DataError: It is not there any more.
    """
    name, _, digest = key.rpartition("-")
    # By its name first: that costs one file instead of all.
    for folder in (spool / name, *finished(spool)):
        if (folder / SIDECAR).is_file() and _judged(folder)[0] == digest:
            return folder
    raise DataError(
        f"The take {key!r} is not in the spool folder.",
        path=spool,
        hint="Fetch it again, or delete the partition.",
    )


def _judged(folder: Path) -> tuple[str, str]:
    try:
        return str(read_take(folder).sidecar["sha256"])[:_DIGITS], ""
    except DataError as error:
        return "", str(error)
    except OSError as error:
        return "", f"{folder}: {error.strerror or error}"


def _stamp(folder: Path) -> Stamp:
    stamp: Stamp = []
    for name in (SIDECAR, MIDI_FILE):
        try:
            facts = (folder / name).stat()
            stamp += [facts.st_mtime_ns, facts.st_size]
        except OSError:
            stamp += [0, -1]
    return stamp


def _read(memory: Path) -> dict[str, list[object]]:
    try:
        found = orjson.loads(memory.read_bytes())
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}
