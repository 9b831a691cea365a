"""What analysis itself has to say about a notebook: names without a definition, skew, cells that do not parse."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from .calls import BUILTIN_NAMES
from .classify import Classification
from .flow import Flow
from .model import CellCode, Finding, Notebook, Role, Severity, Slice, Stage
from .requests import unprepared
from .skew import skew


def is_python(language: str) -> bool:
    """Whether a notebook of this language holds Python (``python``, ``Python 3``, ``ipython``), not R or Julia."""
    return not language or "python" in language.lower()


def observe(
    notebook: Notebook,
    code: Sequence[CellCode],
    flow: Flow,
    outcome: Classification,
    slices: Mapping[Stage, Slice],
) -> list[Finding]:
    """Findings of analysis, in notebook order."""
    findings: list[Finding] = []
    if not is_python(notebook.language):
        findings.append(
            Finding(
                "NB001", "other-language", Severity.ERROR, f"The notebook is written in {notebook.language}.",
                "Use a Python notebook: scripts can be made from nothing else.",
            )
        )  # fmt: skip
        return findings
    for entry in code:
        if entry.error is not None:
            findings.append(
                Finding(
                    "NB002", "syntax-error", Severity.ERROR, f"The cell does not parse: {entry.error.msg}.",
                    "Correct the cell, or tag it skip.", entry.cell.index, entry.error.lineno,
                )
            )  # fmt: skip
    findings.extend(_names(flow, outcome))
    findings.extend(skew(flow, outcome, slices))
    findings.extend(unprepared(flow, outcome))
    findings.sort(key=lambda finding: (finding.cell if finding.cell is not None else -1, finding.line or 0))
    return findings


def _names(flow: Flow, outcome: Classification) -> list[Finding]:
    findings = []
    for node in flow.nodes:
        if outcome.verdicts[node.index].role is Role.SKIP:
            continue
        for name in sorted(node.late):
            later = flow.nodes[node.deps[name][0]]
            findings.append(
                Finding(
                    "NB101", "used-before-definition", Severity.WARNING,
                    f"{name} is used here but only defined later, in cell {later.cell + 1}.",
                    f"Move the definition of {name} above this cell.", node.cell, node.stmt.lineno,
                )
            )  # fmt: skip
        unknown = set(node.unknown)
        if not flow.stars:
            unknown |= {name for name in node.facts.deferred if name not in flow.definers} - BUILTIN_NAMES
        for name in sorted(unknown):
            findings.append(
                Finding(
                    "NB102", "undefined-name", Severity.ERROR, f"{name} is defined nowhere in the notebook.",
                    f"Define {name}, or remove its use; its cell may have been deleted.", node.cell, node.stmt.lineno,
                )
            )  # fmt: skip
    return findings
