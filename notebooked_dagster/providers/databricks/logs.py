"""What a run printed: the pieces of its log in the volume, or what Databricks itself kept of its output."""

from __future__ import annotations

import re
from typing import Any

from .storage import Storage

_PIECE = re.compile(r"\d{8}\.txt")


def job_lines(storage: Storage, folder: str, cursor: Any) -> tuple[list[str], Any]:
    """The lines of a training job since a cursor (None for the first), and the cursor after them."""
    lines: list[str] = []
    for path in storage.names(folder):
        name = path.rpartition("/")[2]
        if not _PIECE.fullmatch(name) or (cursor is not None and name <= cursor):
            continue
        content = storage.read(path)
        if content is None:
            break
        lines.extend(split(content.decode("utf-8", "replace")))
        cursor = name
    return lines, cursor


def split(text: str) -> list[str]:
    """Text as lines; a piece of a log ends where a line ends."""
    return text.removesuffix("\n").split("\n") if text else []
