"""Statements into lines of a script: indented, edited where they must be, each line knowing where it comes from."""

from __future__ import annotations

import ast
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from notebooked_dagster.notebook.model import Statement

from .model import Origin


@dataclass(frozen=True, slots=True)
class Line:
    """One line of a script."""

    text: str
    origin: Origin | None = None


@dataclass(frozen=True, slots=True)
class Edit:
    """Replace a span of a statement's source.

    Attributes:
        start: Line in the cell (1-based) and column in UTF-8 bytes (0-based), as ``ast`` counts.
        end: The same, exclusive.
        text: What stands there instead; has no newline.
    """

    start: tuple[int, int]
    end: tuple[int, int]
    text: str


def emit(statement: Statement, indent: int, edits: Iterable[Edit] = ()) -> list[Line]:
    """A statement's own lines, comments included, at an indentation.

    Args:
        statement: From the analysis.
        indent: Columns.
        edits: Spans to replace; they do not overlap (an insertion is an empty span).
    """
    texts = statement.text.split("\n")
    ordered = sorted(edits, key=lambda edit: (edit.start, edit.end), reverse=True)
    first = statement.first_line
    # A statement that shares its line with another was cut out of it: its text starts at the node's column.
    shift = statement.node.col_offset if statement.node.col_offset and first == statement.node.lineno else 0
    for edit in ordered:
        _apply(texts, edit, first, shift)
    kept = _inside_strings(statement.node, first)
    pad = " " * indent
    lines = []
    for number, text in enumerate(texts):
        shown = text if number in kept or not text.strip() else pad + text
        lines.append(Line(shown.rstrip("\r"), Origin(statement.cell, first + number)))
    return lines


def _apply(texts: list[str], edit: Edit, first: int, shift: int) -> None:
    start, end = edit.start[0] - first, edit.end[0] - first
    if not (0 <= start < len(texts) and 0 <= end < len(texts)):
        return
    begin = edit.start[1] - (shift if start == 0 else 0)
    stop = edit.end[1] - (shift if end == 0 else 0)
    head = texts[start].encode()[:begin].decode()
    tail = texts[end].encode()[stop:].decode()
    # Lines between are emptied, not removed: line numbers stay those of the cell.
    texts[start] = head + edit.text + (tail if start == end else "")
    for between in range(start + 1, end):
        texts[between] = ""
    if end != start:
        texts[end] = (
            " " * (len(texts[end]) - len(texts[end].lstrip())) + tail.lstrip() if tail.strip() else ""
        )


def _inside_strings(node: ast.AST, first: int) -> frozenset[int]:
    """0-based line numbers that begin inside a string that spans lines: their indentation is content."""
    found: set[int] = set()
    for inner in ast.walk(node):
        if isinstance(inner, ast.JoinedStr) or (
            isinstance(inner, ast.Constant) and isinstance(inner.value, str | bytes)
        ):
            last = inner.end_lineno or inner.lineno
            if last > inner.lineno:
                found.update(range(inner.lineno + 1 - first, last + 1 - first))
    return frozenset(found)


def module_text(lines: Sequence[Line]) -> tuple[str, dict[int, Origin]]:
    """The script's text and its part of the source map."""
    text = "\n".join(line.text for line in lines).rstrip("\n") + "\n"
    return text, {number: line.origin for number, line in enumerate(lines, 1) if line.origin is not None}
