"""Which line of the ``.ipynb`` file holds a line of a cell: for annotations in places that show the file."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import orjson

_TOKEN = re.compile(r'"[^"\\]*(?:\\.[^"\\]*)*"|[{}\[\],:]|[^\s{}\[\],:"]+', re.DOTALL)


class FileLines:
    """Places in one file; line 1 for everything where the file cannot be read or is not as the notebook was."""

    def __init__(self, path: Path) -> None:
        try:
            text = path.read_text(encoding="utf-8-sig")
            self._cells = list(_cells(text))
        except (OSError, UnicodeDecodeError, StopIteration, ValueError):
            self._cells = []

    def line(self, cell: int | None, line: int | None) -> int:
        """The 1-based line in the file.

        Args:
            cell: 0-based cell index; None for the whole notebook.
            line: 1-based line in the cell; None for its beginning.
        """
        if cell is None or cell >= len(self._cells):
            return 1
        start, lines = self._cells[cell]
        if line is None or not lines:
            return lines[0] if lines else start
        return lines[min(line, len(lines)) - 1]


def _cells(text: str) -> Iterator[tuple[int, list[int]]]:
    """For each cell: the file line it starts on, and the file line of each line of its source."""
    position = line = 0
    depth = 0
    keys: list[str] = []  # the key under which each open container stands; "" in arrays
    kinds: list[str] = []
    key = ""
    last_string = ""
    start = 0
    sources: list[int] = []
    for match in _TOKEN.finditer(text):
        line += text.count("\n", position, match.start())
        position = match.start()
        token = match[0]
        if token in "{[":
            kinds.append(token)
            keys.append(key)
            key = ""
            depth += 1
            if token == "{" and _is_cell(keys, kinds):
                start, sources = line + 1, []
        elif token in "}]":
            if token == "}" and _is_cell(keys, kinds):
                yield start, sources
            kinds.pop()
            keys.pop()
            key = ""
            depth -= 1
        elif token == ":":
            key = last_string
        elif token == ",":
            key = ""
        elif token[0] == '"':
            in_source = key in ("source", "input") and _is_cell(keys, kinds)
            in_list = (
                kinds[-1:] == ["["] and keys[-1] in ("source", "input") and _is_cell(keys[:-1], kinds[:-1])
            )
            if in_source or in_list:
                value = orjson.loads(token)
                sources += [line + 1] * (
                    value.count("\n") + (not value.endswith("\n")) if in_list else value.count("\n") + 1
                )
            elif kinds[-1:] == ["{"] and not key:
                last_string = token[1:-1]


def _is_cell(keys: list[str], kinds: list[str]) -> bool:
    """Whether the innermost open container is an object in the list ``cells`` (nbformat 3: in ``worksheets``)."""
    if kinds == ["{", "[", "{"]:
        return keys[1] == "cells"
    return kinds == ["{", "[", "{", "[", "{"] and keys[1] == "worksheets" and keys[3] == "cells"
