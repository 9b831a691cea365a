"""Dagster Pipes on the way to a training job and back: what is sent along, and the messages that it leaves.

A job writes its messages in numbered files (``1.json``, ``2.json``, …, a message a line), which is how ``dagster_pipes`` writes
them into S3, Cloud Storage and blobs. Providers are plain Python: what the messages mean is for ``components``.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any

import orjson
from packaging.requirements import InvalidRequirement, Requirement
from packaging.utils import canonicalize_name

from . import pipes_process

# Beside the scripts.
PROCESS = "notebooked_pipes.py"
CONTEXT = "notebooked_context.json"


def files(context: Mapping[str, Any]) -> dict[str, bytes]:
    """What is sent with the scripts of a job that reports."""
    return {
        PROCESS: Path(pipes_process.__file__).read_bytes(),
        CONTEXT: orjson.dumps(dict(context), default=str),
    }


def with_requirements(text: bytes, more: tuple[str, ...] = ()) -> bytes:
    """Requirements with what reporting needs, unless they name it already."""
    named = {_name(line) for line in text.decode("utf-8", "replace").splitlines()}
    wanted = [f"dagster-pipes=={version('dagster-pipes')}", *more]
    missing = [line for line in wanted if _name(line) not in named]
    start = text if not text or text.endswith(b"\n") else text + b"\n"
    return start + "".join(f"{line}\n" for line in missing).encode()


def _name(line: str) -> str:
    try:
        return canonicalize_name(Requirement(line.partition("#")[0].strip()).name)
    except InvalidRequirement:
        return ""


def read_chunks(chunk: Callable[[int], bytes | None], cursor: Any) -> tuple[list[str], int]:
    """The messages of all files after the first ``cursor`` of them, and how many there are now."""
    seen = int(cursor or 0)
    lines: list[str] = []
    while (content := chunk(seen + 1)) is not None:
        lines.extend(line for line in content.decode("utf-8", "replace").split("\n") if line.strip())
        seen += 1
    return lines, seen


def read_folder(folder: Path, number: int) -> bytes | None:
    """A file of messages in a folder; None where it is not there yet."""
    try:
        return (folder / f"{number}.json").read_bytes()
    except FileNotFoundError:
        return None
