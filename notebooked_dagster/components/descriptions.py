"""Descriptions of notebooks for a code location that has to load fast: one small index instead of the notebooks."""

from __future__ import annotations

import atexit
import contextlib
from functools import lru_cache
from pathlib import Path

import orjson

from notebooked_dagster.core.files import write_atomic
from notebooked_dagster.errors import NotebookReadError

_LONGEST = 2000
_LARGEST_FILE = 5_000_000


class Descriptions:
    """The first Markdown cell of each notebook, by path, with the stamp of the file it was read from."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._known: dict[str, list[object]] = {}
        self._changed = False
        with contextlib.suppress(OSError, ValueError):
            found = orjson.loads(path.read_bytes())
            self._known = found if isinstance(found, dict) else {}

    @classmethod
    def of(cls, state: Path) -> Descriptions:
        """The index of a state folder, read once in a process."""
        return _index(state / "cache" / "descriptions.json")

    def get(self, notebook: Path) -> str:
        """The description; empty where there is none, or the notebook cannot be read (observing it says why)."""
        try:
            facts = notebook.stat()
        except OSError:
            return ""
        stamp = [facts.st_mtime_ns, facts.st_size]
        known = self._known.get(str(notebook))
        if known is not None and known[:2] == stamp:
            return str(known[2])
        text = _read(notebook) if facts.st_size <= _LARGEST_FILE else ""
        self._known[str(notebook)] = [*stamp, text]
        self._changed = True
        return text

    def save(self) -> None:
        """Keep what was read."""
        if self._changed:
            self._changed = False
            # A state folder that cannot be written costs time, not the code location.
            with contextlib.suppress(OSError):
                write_atomic(self._path, orjson.dumps(self._known))


def _read(notebook: Path) -> str:
    from notebooked_dagster.notebook.reader import read_notebook

    try:
        return read_notebook(notebook).description[:_LONGEST]
    except NotebookReadError:
        return ""


@lru_cache(maxsize=4)
def _index(path: Path) -> Descriptions:
    index = Descriptions(path)
    atexit.register(index.save)
    return index
