"""Rewrite tracebacks of generated scripts so that they name the notebook, the cell and the line."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from notebooked_dagster.errors import CodegenError

from .model import SOURCE_MAP, Origin, SourceMap

_FRAME = re.compile(
    r'^(?P<before>.*?)File "(?P<path>[^"]*?)(?P<script>[^"/\\]+\.py)", line (?P<line>\d+)(?P<after>.*)$'
)
_WARNING = re.compile(
    r"^(?P<before>.*?)(?P<path>[^\s:\"]*[/\\])(?P<script>[\w.-]+\.py):(?P<line>\d+): (?P<after>.*)$"
)
_CARETS = re.compile(r"^.*?\s[\s~^]*[\^~]+[\s~^]*$")


@dataclass(frozen=True, slots=True)
class Place:
    """A line of a script and the notebook line it is.

    Attributes:
        cell: 1-based number of the cell.
        line: 1-based line in it.
        script: The script's name.
        script_line: The line in the script.
    """

    cell: int
    line: int
    script: str
    script_line: int


class Remapper:
    """Rewrites a log line by line, as it comes.

    Args:
        source: A source map, or the folder that holds one. Without a usable map every line passes unchanged.
    """

    def __init__(self, source: SourceMap | Path) -> None:
        self._map = source if isinstance(source, SourceMap) else _read(source)
        self._pending: tuple[Origin, str] | None = None
        self._carets = False

    def feed(self, line: str) -> list[str]:
        """One line without its newline; returns the lines to show in its place."""
        if self._carets:
            self._carets = False
            if _CARETS.match(line):
                return []
        if self._pending is not None:
            origin, before = self._pending
            self._pending = None
            shown = self._source(origin)
            if shown is not None and line.startswith(before) and line[len(before) :].startswith((" ", "\t")):
                self._carets = True
                indent = line[len(before) :]
                return [before + indent[: len(indent) - len(indent.lstrip())] + shown.strip()]
        return [self._frame(line)]

    def _frame(self, line: str) -> str:
        found = self._map and _FRAME.match(line)
        if found:
            origin = self._origin(found["script"], int(found["line"]))
            if origin is not None:
                before = found["before"]
                self._pending = (
                    origin,
                    before[: len(before) - len(before.lstrip())] if not before.strip() else before.rstrip(),
                )
                return f"{before}{self._named(origin, found['script'], found['line'], found['after'])}"
            return line
        warned = self._map and _WARNING.match(line)
        if warned:
            origin = self._origin(warned["script"], int(warned["line"]))
            if origin is not None and self._map is not None:
                place = f"{self._map.notebook}, cell {origin.cell + 1}, line {origin.line}"
                return f"{warned['before']}{place}: {warned['after']}"
        return line

    def _named(self, origin: Origin, script: str, line: str, after: str) -> str:
        assert self._map is not None
        place = f'File "{self._map.notebook}", cell {origin.cell + 1}, line {origin.line}'
        return f"{place}{after} ({script}, line {line})"

    def _origin(self, script: str, line: int) -> Origin | None:
        return self._map.scripts.get(script, {}).get(line) if self._map else None

    def _source(self, origin: Origin) -> str | None:
        lines = self._map.cells.get(origin.cell, ()) if self._map else ()
        return lines[origin.line - 1] if 0 < origin.line <= len(lines) else None


def remap(text: str, source: SourceMap | Path) -> str:
    """Rewrite every traceback in a text.

    Args:
        text: A traceback, or a whole log.
        source: A source map, or the folder that holds ``source_map.json``.

    Returns:
        The text; unchanged where there is no usable source map or nothing it knows.
    """
    remapper = Remapper(source)
    return "\n".join(shown for line in text.split("\n") for shown in remapper.feed(line))


def locate(text: str, source: SourceMap | Path) -> list[Place]:
    """The notebook places that the tracebacks in a text name, innermost last."""
    mapping = source if isinstance(source, SourceMap) else _read(source)
    return list(_places(text, mapping)) if mapping is not None else []


def _places(text: str, mapping: SourceMap) -> Iterator[Place]:
    for line in text.split("\n"):
        found = _FRAME.match(line)
        if found:
            origin = mapping.scripts.get(found["script"], {}).get(int(found["line"]))
            if origin is not None:
                yield Place(origin.cell + 1, origin.line, found["script"], int(found["line"]))


def _read(folder: Path) -> SourceMap | None:
    path = folder if folder.is_file() else folder / SOURCE_MAP
    try:
        return SourceMap.from_json(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, CodegenError):
        return None
