"""The agent's part in bringing takes home: which are finished, their bytes, and who has them. Standard library only.

A take belongs to the first host that has it on its disk and says so. That is written down before anything is moved, so it is
said to whoever asks again, and to no two hosts differently::

    spool/<take>/                  finished, and nobody has it
    spool/.fetched/<take>.json     who has it: what counts
    spool/.fetched/<take>/         kept a while, for whoever's disk breaks next
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import hashlib
import json
import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

_SIDECAR = "take.json"
_FETCHED = ".fetched"
_KEPT = 100
Answer = tuple[dict[str, Any], bytes]


def listed(request: dict[str, Any]) -> Answer:
    """Finished takes that no host has, oldest first: name -> file -> size."""
    spool = Path(request["spool"])
    found: dict[str, dict[str, int]] = {}
    for folder in sorted(spool.iterdir()):
        if folder.name.startswith(".") or not (folder / _SIDECAR).is_file():
            continue
        if not _receipt(spool, folder.name).exists():
            found[folder.name] = {path.name: path.stat().st_size for path in _files(folder)}
    return {"takes": found}, b""


def read(request: dict[str, Any]) -> Answer:
    """A piece of one of a take's files."""
    with (_take(request) / _plain(request["file"])).open("rb") as stream:
        stream.seek(request["offset"])
        piece = stream.read(request["limit"])
    return {"length": len(piece)}, piece


def taken(request: dict[str, Any]) -> Answer:
    """A host has a take on its disk, and says by its files' hashes which one.

    The answer's ``state``: ``yours``; ``theirs`` (another host was first); ``differs`` (the hashes are not the take's);
    ``unknown`` (there is no such take).
    """
    folder, spool = _take(request), Path(request["spool"])
    receipt = _receipt(spool, folder.name)
    with _locked(spool):
        if not receipt.exists():
            if not folder.is_dir():
                return {"state": "unknown"}, b""
            if {path.name: _digest(path) for path in _files(folder)} != request["files"]:
                return {"state": "differs"}, b""
            _write(receipt, {"receiver": request["receiver"], "files": request["files"]})
        if folder.is_dir():
            folder.rename(receipt.with_suffix(""))
        _prune(receipt.parent)
        told = json.loads(receipt.read_text())
    return {"state": "yours" if told["receiver"] == request["receiver"] else "theirs"}, b""


#: What the agent answers.
COMMANDS: dict[str, Callable[[dict[str, Any]], Answer]] = {
    "takes": listed,
    "take-read": read,
    "take-done": taken,
}


def _take(request: dict[str, Any]) -> Path:
    return Path(request["spool"]) / _plain(request["name"])


def _plain(name: str) -> str:
    if "/" in name or name.startswith("."):
        raise OSError(errno.EINVAL, "This is no name of a take or of its file", name)
    return name


def _receipt(spool: Path, name: str) -> Path:
    return spool / _FETCHED / f"{name}.json"


def _files(folder: Path) -> list[Path]:
    return sorted(path for path in folder.iterdir() if path.is_file() and not path.name.startswith("."))


def _digest(path: Path) -> str:
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def _prune(fetched: Path) -> None:
    """Let the oldest go. By number, for a Pi's clock says anything until it has a network."""
    for receipt in sorted(fetched.glob("*.json"))[:-_KEPT]:
        shutil.rmtree(receipt.with_suffix(""), ignore_errors=True)
        receipt.unlink(missing_ok=True)


def _write(path: Path, data: Any) -> None:
    """Whole, or not there, also after a power cut."""
    path.parent.mkdir(exist_ok=True)
    temporary = path.with_name(f".{path.name}.part")
    with temporary.open("w") as stream:
        json.dump(data, stream)
        stream.flush()
        os.fsync(stream.fileno())
    temporary.replace(path)
    handle = os.open(path.parent, os.O_RDONLY)
    os.fsync(handle)
    os.close(handle)


@contextlib.contextmanager
def _locked(folder: Path) -> Iterator[None]:
    handle = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX)
        yield
    finally:
        os.close(handle)
