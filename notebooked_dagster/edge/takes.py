"""Bring finished takes from a device's spool to a folder of this host: each exactly once, whatever is cut off when.

A take comes into ``<spool>/.incoming/<device>/``, is put on the disk, and is then claimed at the device by its hashes; only what
the device gives to this folder is renamed to its place. Whoever dies in between finds what came, and asks again.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import os
import shutil
import time
import uuid
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from notebooked_dagster.errors import DataError, DeviceError, DeviceUnreachableError
from notebooked_dagster.realtime.takes import SIDECAR, read_take, sync_folder

from .ssh import Answer, Link

INCOMING = ".incoming"
_RECEIVER = ".receiver"
_PIECE = 256 << 10
_PATIENCE = 20.0


@dataclass(frozen=True, slots=True)
class Fetched:
    """What a visit brought.

    Attributes:
        takes: The folders of those that came.
        left: How many are still there, for want of time or because of a problem.
        problems: What was wrong with single takes, or with the way there.
    """

    takes: tuple[Path, ...] = ()
    left: int = 0
    problems: tuple[str, ...] = ()


def fetch(link: Link, source: str, spool: Path, *, seconds: float = 20.0) -> Fetched:
    """Bring what is finished. Any number of hosts and processes may do so at a time.

    Args:
        link: To the device.
        source: The spool folder there.
        spool: The folder here.
        seconds: Nothing new is begun after these.
    """
    incoming = spool / INCOMING / link.device.name
    incoming.mkdir(parents=True, exist_ok=True)
    with _alone(incoming) as alone:
        if not alone:
            return Fetched(problems=("Another process is fetching takes of this device.",))
        return _Visit(link, source, spool, incoming, time.monotonic() + seconds).made()


class _Visit:
    def __init__(self, link: Link, source: str, spool: Path, incoming: Path, until: float) -> None:
        self._link = link
        self._source = source
        self._spool = spool
        self._incoming = incoming
        self._until = until
        self._receiver = _receiver(spool)

    def made(self) -> Fetched:
        takes: list[Path] = []
        problems: list[str] = []
        waiting: dict[str, Mapping[str, int]] = {}
        try:
            waiting = dict(self._ask("takes").header["takes"])
            for name in [name for name, files in waiting.items() if not all(map(_plain, (name, *files)))]:
                problems.append(f"{name!r} is no take: its names would lead out of the folder.")
                del waiting[name]
            # What lies here and is offered no more was claimed by a visit that ended there, or by another host.
            left_behind = sorted(
                {path.name for path in self._incoming.iterdir() if path.is_dir()} - waiting.keys()
            )
            for name in (*left_behind, *list(waiting)):
                if time.monotonic() > self._until:
                    break
                try:
                    if name in waiting and not self._brought(name, waiting[name]):
                        break
                    place = self._claimed(name)
                except DeviceUnreachableError:
                    raise
                except (DeviceError, OSError) as error:
                    problems.append(f"{name}: {error}")
                    continue
                waiting.pop(name, None)
                takes += [place] if place is not None else []
        except DeviceError as error:
            problems.append(str(error))
        return Fetched(tuple(takes), len(waiting), tuple(problems))

    def _brought(self, name: str, files: Mapping[str, int]) -> bool:
        """Whether a take is whole on our disk; what came before a cut is not brought again."""
        folder = self._incoming / name
        folder.mkdir(exist_ok=True)
        for file, size in files.items():
            path = folder / file
            with path.open("ab") as stream:
                if stream.tell() > size:
                    stream.truncate(0)
                while (have := stream.tell()) < size:
                    if time.monotonic() > self._until:
                        return False
                    piece = self._ask("take-read", name=name, file=file, offset=have, limit=_PIECE).body
                    if not piece:
                        raise DeviceError(f"{file} has become shorter on {self._link.device.name}.")
                    stream.write(piece)
                    stream.flush()
                os.fsync(stream.fileno())
        sync_folder(folder)
        sync_folder(self._incoming)
        return True

    def _claimed(self, name: str) -> Path | None:
        """The take in its place; None where another host has it."""
        folder = self._incoming / name
        digests = {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in folder.iterdir()}
        state = self._ask("take-done", name=name, receiver=self._receiver, files=digests).header["state"]
        if state == "yours" or (state == "unknown" and _whole(folder)):
            return self._placed(folder)
        shutil.rmtree(folder)
        if state == "differs":
            raise DeviceError("It came damaged, and is brought again.")
        return None

    def _placed(self, folder: Path) -> Path:
        place = self._spool / folder.name
        if place.exists():
            content = (folder / SIDECAR).read_bytes()
            if (place / SIDECAR).is_file() and (place / SIDECAR).read_bytes() == content:
                shutil.rmtree(folder)
                return place
            # Two devices that call themselves the same began to record in the same millisecond.
            place = place.with_name(f"{folder.name}-{hashlib.sha256(content).hexdigest()[:8]}")
        folder.rename(place)
        sync_folder(self._spool)
        return place

    def _ask(self, command: str, **request: object) -> Answer:
        return self._link.ask(command, {"spool": self._source, **request}, timeout=_PATIENCE)


def _plain(name: str) -> bool:
    """Whether a name is one; a device that was broken into says anything."""
    return bool(name) and "/" not in name and "\0" not in name and not name.startswith(".")


def _whole(folder: Path) -> bool:
    try:
        read_take(folder)
    except DataError:
        return False
    return True


def _receiver(spool: Path) -> str:
    """This folder's own name to devices: whoever fetches into it is one receiver."""
    path = spool / _RECEIVER
    if not path.exists():
        temporary = path.with_name(f"{_RECEIVER}.{uuid.uuid4().hex}")
        with temporary.open("w") as stream:
            stream.write(uuid.uuid4().hex)
            stream.flush()
            os.fsync(stream.fileno())
        with contextlib.suppress(FileExistsError):
            os.link(temporary, path)
        temporary.unlink()
        sync_folder(spool)
    return path.read_text()


@contextlib.contextmanager
def _alone(folder: Path) -> Iterator[bool]:
    handle = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        yield False
    else:
        yield True
    finally:
        os.close(handle)
