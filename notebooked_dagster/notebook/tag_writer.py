"""Put tags into a notebook file and change nothing else in it, byte for byte.

Writing a notebook through a JSON or notebook library rewrites the whole file: indentation, escapes, the order of keys. A
diff of that is of no use to a reviewer. So the file's text is scanned for the place of each cell's tags, and edited there.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from notebooked_dagster.core.files import write_atomic
from notebooked_dagster.errors import InternalError, NotebookError, UserError

from .reader import read_notebook_bytes

_SPACE = re.compile(r"[ \t\n\r]*")
_DECODER = json.JSONDecoder(strict=False)


@dataclass(frozen=True, slots=True)
class _Member:
    """A member of a JSON object: its key, where that starts, and the span of its value."""

    key: str
    at: int
    start: int
    end: int


def write_tags(path: Path, tags: Mapping[int, Sequence[str]]) -> bool:
    """Give cells new tag lists.

    Args:
        path: A notebook of nbformat 4.
        tags: By 0-based cell index, the cell's whole new list; an empty one removes all its tags.

    Returns:
        Whether the file was changed.

    Raises:
        NotebookReadError: The file is no notebook.
        NotebookError: It is older than nbformat 4, which had no tags.
        UserError: There is no such cell, or a tag is not a word.
    """
    for name in sorted({tag for new in tags.values() for tag in new}):
        if (
            not name.strip()
            or any("\ud800" <= letter <= "\udfff" for letter in name)
            or "," in name
            or name != name.strip()
        ):
            raise UserError(f"{name!r} is no tag.", hint="A tag is text without commas or outer spaces.")
    data = path.read_bytes() if path.is_file() else b""
    notebook = read_notebook_bytes(data, path) if data else None
    if notebook is None:
        raise UserError("There is no such notebook, or it is empty.", path=path)
    if notebook.nbformat[0] < 4:
        raise NotebookError(
            f"nbformat {notebook.nbformat[0]} has no tags.",
            path=path,
            hint="Convert it: jupyter nbconvert --to notebook --nbformat 4 --inplace.",
        )
    wrong = [index for index in tags if not 0 <= index < len(notebook.cells)]
    if wrong:
        raise UserError(
            f"There is no cell {wrong[0] + 1}.", path=path, hint=f"It has {len(notebook.cells)} cells."
        )
    wanted = {
        index: list(new) for index, new in tags.items() if list(notebook.cells[index].tags) != list(new)
    }
    if not wanted:
        return False
    text = data.decode("utf-8")
    try:
        edited = _edited(text, wanted)
        _check(text, edited, wanted, path)
    except RecursionError:
        raise NotebookError("The JSON in it is nested too deep to be edited.", path=path) from None
    write_atomic(path, edited.encode("utf-8"))
    return True


def _edited(text: str, wanted: Mapping[int, list[str]]) -> str:
    start = _SPACE.match(text, 1 if text.startswith("\ufeff") else 0)
    assert start is not None
    cells = next(member for member in _last(_members(text, start.end())) if member.key == "cells")
    style = _Style.of(text)
    edits = [
        _edit(text, span, wanted[index], style)
        for index, span in enumerate(_elements(text, cells.start))
        if index in wanted
    ]
    for begin, end, new in reversed(edits):
        text = text[:begin] + new + text[end:]
    return text


@dataclass(frozen=True, slots=True)
class _Style:
    """How the file is laid out: its line ends, one step of indentation, and whether it has lines at all."""

    newline: str
    step: str
    flat: bool

    @classmethod
    def of(cls, text: str) -> _Style:
        found = re.search(r"\{(\r?\n)([ \t]+)\"", text)
        if found is None:
            return cls("\n", "", True)
        return cls(found[1], found[2], False)

    def array(self, items: Sequence[str], indent: str) -> str:
        words = [json.dumps(item, ensure_ascii=False) for item in items]
        if not words:
            return "[]"
        if self.flat:
            return f"[{', '.join(words)}]"
        inner = f",{self.newline}".join(f"{indent}{self.step}{word}" for word in words)
        return f"[{self.newline}{inner}{self.newline}{indent}]"


_FLAT = _Style("\n", "", True)


def _edit(text: str, cell: tuple[int, int], tags: list[str], style: _Style) -> tuple[int, int, str]:
    """The one replacement that gives a cell its tags."""
    members = _last(_members(text, cell[0]))
    metadata = next((member for member in members if member.key == "metadata"), None)
    if metadata is None and not members:
        return cell[0], cell[1], f'{{"metadata": {_object(tags, "", _FLAT)}}}'
    if metadata is None:
        first = members[0]
        indent = _indent(text, first.at)
        inner = _object(tags, indent, style)
        gap = " " if style.flat else f"{style.newline}{indent}"
        return first.at, first.at, f'"metadata": {inner},{gap}'
    indent = _indent(text, metadata.at)
    inside = _last(_members(text, metadata.start))
    present = next((member for member in inside if member.key == "tags"), None)
    if present is not None:
        return present.start, present.end, style.array(tags, _indent(text, present.at))
    if not inside:
        return metadata.start, metadata.end, _object(tags, indent, style)
    last = inside[-1]
    deeper = _indent(text, last.at)
    one_line = style.flat or "\n" not in text[metadata.start : metadata.end]
    gap = " " if one_line else f"{style.newline}{deeper}"
    array = _FLAT.array(tags, "") if one_line else style.array(tags, deeper)
    return last.end, last.end, f',{gap}"tags": {array}'


def _object(tags: list[str], indent: str, style: _Style) -> str:
    if style.flat:
        return f'{{"tags": {style.array(tags, "")}}}'
    deeper = indent + style.step
    return f'{{{style.newline}{deeper}"tags": {style.array(tags, deeper)}{style.newline}{indent}}}'


def _indent(text: str, at: int) -> str:
    """The white space that a line starts with."""
    begin = text.rfind("\n", 0, at) + 1
    found = re.compile(r"[ \t]*").match(text, begin)
    return found[0] if found else ""


def _members(text: str, at: int) -> Iterator[_Member]:
    """The members of the object that starts at ``at``, in order."""
    if text[at] != "{":
        return
    position = _skip(text, at + 1)
    while text[position] != "}":
        begin = position
        key, position = json.decoder.scanstring(text, position + 1, False)  # type: ignore[attr-defined]
        start = _skip(text, _skip(text, position) + 1)
        _, end = _DECODER.raw_decode(text, start)
        yield _Member(key, begin, start, end)
        position = _skip(text, end)
        if text[position] == ",":
            position = _skip(text, position + 1)


def _last(members: Iterator[_Member]) -> list[_Member]:
    """Of a key that is there twice the last one counts, as it does for every reader."""
    found = list(members)
    return [
        member
        for number, member in enumerate(found)
        if member.key not in {later.key for later in found[number + 1 :]}
    ]


def _elements(text: str, at: int) -> Iterator[tuple[int, int]]:
    """The spans of the elements of the array that starts at ``at``."""
    position = _skip(text, at + 1)
    while text[position] != "]":
        _, end = _DECODER.raw_decode(text, position)
        yield position, end
        position = _skip(text, end)
        if text[position] == ",":
            position = _skip(text, position + 1)


def _skip(text: str, position: int) -> int:
    found = _SPACE.match(text, position)
    return found.end() if found else position


def _check(before: str, after: str, wanted: Mapping[int, list[str]], path: Path) -> None:
    """Read both again: the notebooks must differ in the tags and in nothing else."""
    old, new = _loaded(before), _loaded(after)
    for index, tags in wanted.items():
        cell = old["cells"][index]
        metadata = cell.get("metadata")
        cell["metadata"] = {**(metadata if isinstance(metadata, dict) else {}), "tags": tags}
    if old != new:
        raise InternalError("The edit would have changed more than tags; nothing was written.", path=path)


def _loaded(text: str) -> Any:
    # NaN is not equal to itself; as text it is.
    return json.loads(text.removeprefix("\ufeff"), strict=False, parse_constant=str)
