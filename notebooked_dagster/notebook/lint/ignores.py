"""What a notebook itself asks the audit to ignore: comments, tags, metadata."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from notebooked_dagster.notebook.model import Cell, Finding, Notebook

from .config import matches

_COMMENT = re.compile(r"#\s*notebooked:\s*ignore\b[:\s]*([\w\s,*-]*)", re.IGNORECASE)
_TAG = "nb-ignore-"


class Ignores:
    """The ignores of one notebook."""

    def __init__(self, notebook: Notebook) -> None:
        self._notebook = _listed(notebook.metadata)
        self._cells: dict[int, tuple[str, ...]] = {}
        self._lines: dict[tuple[int, int], tuple[str, ...]] = {}
        for cell in notebook.cells:
            self._read(cell)

    def covers(self, finding: Finding) -> bool:
        """Whether the notebook asks not to be told of ``finding``."""
        patterns = [*self._notebook]
        if finding.cell is not None:
            patterns += self._cells.get(finding.cell, ())
            if finding.line is not None:
                patterns += self._lines.get((finding.cell, finding.line), ())
        return matches(finding.rule, finding.name, patterns)

    def _read(self, cell: Cell) -> None:
        patterns = [*_listed(cell.metadata)]
        patterns += [tag[len(_TAG) :] for tag in cell.tags if tag.lower().startswith(_TAG)]
        if cell.kind == "code" and "notebooked" in cell.source:
            for number, line in enumerate(cell.source.split("\n"), 1):
                found = _COMMENT.search(line)
                if found is None:
                    continue
                named = tuple(found[1].replace(",", " ").split()) or ("*",)
                if line[: found.start()].strip():
                    self._lines[cell.index, number] = named
                else:
                    patterns += named
        if patterns:
            self._cells[cell.index] = tuple(patterns)


def _listed(metadata: Mapping[str, Any]) -> tuple[str, ...]:
    ours = metadata.get("notebooked")
    named = ours.get("ignore") if isinstance(ours, Mapping) else metadata.get("notebooked.ignore")
    if isinstance(named, str):
        return tuple(named.replace(",", " ").split())
    return tuple(str(item) for item in named) if isinstance(named, list) else ()
