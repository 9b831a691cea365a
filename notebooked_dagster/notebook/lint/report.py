"""Findings as text for people, JSON, SARIF 2.1.0, and GitHub annotations."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import orjson

from notebooked_dagster import __version__
from notebooked_dagster.notebook.model import Finding, Notebook, Severity

from .catalogue import RULES
from .locate import FileLines

FORMATS = ("text", "json", "sarif", "github")
Results = Sequence[tuple[Notebook, Sequence[Finding]]]

_COLOURS = {Severity.ERROR: "31", Severity.WARNING: "33", Severity.INFO: "36"}
_SARIF_LEVELS = {Severity.ERROR: "error", Severity.WARNING: "warning", Severity.INFO: "note"}
_GITHUB_LEVELS = {Severity.ERROR: "error", Severity.WARNING: "warning", Severity.INFO: "notice"}
_SCHEMA = "https://json.schemastore.org/sarif-2.1.0.json"


def render(
    findings: Sequence[Finding], notebook: Notebook, format: str = "text", *, colour: bool = False
) -> str:
    """The findings of one notebook.

    Args:
        findings: In the order in which they are shown.
        notebook: Theirs; ``sarif`` and ``github`` read its file again to find lines.
        format: One of :data:`FORMATS`.
        colour: Whether ``text`` may hold ANSI colours.
    """
    return render_all([(notebook, findings)], format, colour=colour)


def render_all(results: Results, format: str = "text", *, colour: bool = False) -> str:
    """The findings of several notebooks as one document. Raises ValueError for an unknown format."""
    if format == "text":
        return _text(results, colour)
    if format == "json":
        return _dump(as_data(results))
    if format == "sarif":
        return _dump(_sarif(results))
    if format == "github":
        return "\n".join(_annotation(n, f, lines) for n, found, lines in _located(results) for f in found)
    raise ValueError(f"unknown format {format!r}; there are {', '.join(FORMATS)}")


def as_data(results: Results) -> dict[str, Any]:
    """The findings as plain data; cells are numbered from 1."""
    return {
        "notebooks": [
            {
                "path": str(notebook.path),
                "findings": [
                    {
                        "rule": finding.rule,
                        "name": finding.name,
                        "severity": finding.severity.value,
                        "cell": None if finding.cell is None else finding.cell + 1,
                        "cell_id": _cell_id(notebook, finding),
                        "line": finding.line,
                        "message": finding.message,
                        "fix": finding.fix,
                    }
                    for finding in found
                ],
            }
            for notebook, found in results
        ],
        "counts": _counts(results),
    }


def _counts(results: Results) -> dict[str, int]:
    counted = Counter(finding.severity for _, found in results for finding in found)
    return {severity.value: counted[severity] for severity in Severity}


def _text(results: Results, colour: bool) -> str:
    def paint(text: str, code: str) -> str:
        return f"\x1b[{code}m{text}\x1b[0m" if colour else text

    lines = []
    for notebook, found in results:
        for finding in found:
            place = str(notebook.path)
            if finding.cell is not None:
                place += f", cell {finding.cell + 1}"
            if finding.line is not None:
                place += f", line {finding.line}"
            severity = paint(finding.severity.value, _COLOURS[finding.severity])
            lines.append(f"{paint(place, '1')}: {severity} {finding.rule} {finding.name}: {finding.message}")
            lines.append(f"    {finding.fix}")
    counts = _counts(results)
    total = sum(counts.values())
    files = f"{len(results)} notebook{'' if len(results) == 1 else 's'}"
    if not total:
        lines.append(f"{files}: nothing to report.")
    else:
        parts = [f"{n} {name}{'s' if n != 1 and name != 'info' else ''}" for name, n in counts.items() if n]
        lines.append(f"{files}: {', '.join(parts)}.")
    return "\n".join(lines)


def _located(results: Results) -> list[tuple[Notebook, Sequence[Finding], FileLines]]:
    return [(notebook, found, FileLines(notebook.path)) for notebook, found in results]


def _annotation(notebook: Notebook, finding: Finding, lines: FileLines) -> str:
    def escape(text: str, *, is_property: bool = False) -> str:
        text = text.replace("%", "%25").replace("\r", "%0D").replace("\n", "%0A")
        return text.replace(":", "%3A").replace(",", "%2C") if is_property else text

    place = f"file={escape(notebook.path.as_posix(), is_property=True)},line={lines.line(finding.cell, finding.line)}"
    where = "" if finding.cell is None else f" (cell {finding.cell + 1})"
    title = escape(f"{finding.rule} {finding.name}{where}", is_property=True)
    return f"::{_GITHUB_LEVELS[finding.severity]} {place},title={title}::{escape(f'{finding.message} {finding.fix}')}"


def _sarif(results: Results) -> dict[str, Any]:
    used = dict.fromkeys(finding.rule for _, found in results for finding in found)
    index = {rule: position for position, rule in enumerate(sorted(used))}
    names = {finding.rule: finding for _, found in results for finding in found}
    return {
        "$schema": _SCHEMA,
        "version": "2.1.0",
        "runs": [
            {
                "tool": {
                    "driver": {
                        "name": "notebooked",
                        "version": __version__,
                        "rules": [_sarif_rule(rule, names[rule]) for rule in index],
                    }
                },
                "columnKind": "unicodeCodePoints",
                "results": [
                    _sarif_result(notebook, finding, lines, index)
                    for notebook, found, lines in _located(results)
                    for finding in found
                ],
            }
        ],
    }


def _sarif_rule(identifier: str, finding: Finding) -> dict[str, Any]:
    rule = RULES.get(identifier)
    described: dict[str, Any] = {"id": identifier, "name": finding.name}
    if rule is not None:
        described["shortDescription"] = {"text": rule.summary}
        described["fullDescription"] = {"text": f"{rule.summary} {rule.why}"}
        described["help"] = {"text": rule.fix}
        described["defaultConfiguration"] = {"level": _SARIF_LEVELS[rule.severity]}
    return described


def _sarif_result(
    notebook: Notebook, finding: Finding, lines: FileLines, index: dict[str, int]
) -> dict[str, Any]:
    location: dict[str, Any] = {
        "physicalLocation": {
            "artifactLocation": {"uri": _uri(notebook.path)},
            "region": {"startLine": lines.line(finding.cell, finding.line)},
        }
    }
    if finding.cell is not None:
        location["logicalLocations"] = [{"name": f"cell {finding.cell + 1}", "kind": "module"}]
    return {
        "ruleId": finding.rule,
        "ruleIndex": index[finding.rule],
        "level": _SARIF_LEVELS[finding.severity],
        "message": {"text": f"{finding.message} {finding.fix}"},
        "locations": [location],
        "partialFingerprints": {"notebookedCell/v1": _fingerprint(notebook, finding)},
    }


def _uri(path: Path) -> str:
    from urllib.parse import quote

    return path.as_uri() if path.is_absolute() else quote(path.as_posix())


def _fingerprint(notebook: Notebook, finding: Finding) -> str:
    """The same for the same finding when cells above it come or go."""
    parts = [finding.rule, finding.message]
    if finding.cell is not None:
        cell = notebook.cells[finding.cell]
        source = cell.source.split("\n")
        inside = finding.line is not None and finding.line <= len(source)
        parts += [cell.id or "", source[finding.line - 1].strip() if inside and finding.line else ""]
    return hashlib.sha256("\0".join(parts).encode("utf-8", "replace")).hexdigest()[:32]


def _cell_id(notebook: Notebook, finding: Finding) -> str | None:
    return None if finding.cell is None else notebook.cells[finding.cell].id


def _dump(data: dict[str, Any]) -> str:
    return orjson.dumps(data, option=orjson.OPT_INDENT_2).decode()
