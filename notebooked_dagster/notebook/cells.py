"""From statements to cells: what a whole cell was taken for, how sure we are, and why."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from .classify import Classification, Verdict
from .model import CellClass, CellCode, Role, Statement

#: The work that names a cell, most telling first; of the rest the one with the most statements does.
_TELLING = (Role.TRAIN, Role.INFERENCE, Role.EVALUATE, Role.MODEL, Role.PREPROCESS)


def cell_classes(
    code: Sequence[CellCode],
    statements: Sequence[Statement],
    outcome: Classification,
    tags: Mapping[int, Sequence[str]],
) -> tuple[CellClass, ...]:
    """One entry a code cell, in order."""
    by_cell: dict[int, list[Verdict]] = {}
    for statement, verdict in zip(statements, outcome.verdicts, strict=True):
        by_cell.setdefault(statement.cell, []).append(verdict)
    return tuple(_cell_class(entry, by_cell.get(entry.cell.index, []), tags) for entry in code)


def _cell_class(entry: CellCode, verdicts: Sequence[Verdict], tags: Mapping[int, Sequence[str]]) -> CellClass:
    index = entry.cell.index
    names = tags.get(index, ())
    if names:
        roles = tuple(dict.fromkeys(Role(name) for name in names))
        return CellClass(index, roles, 1.0, f"is tagged {', '.join(names)}", explicit=True)
    if entry.tree is None:
        reason = f"does not parse: {entry.error.msg}" if entry.error is not None else "is not Python"
        return CellClass(index, (Role.EMPTY,), 1.0 if entry.error is not None else 0.9, reason)
    if not verdicts:
        if entry.requirements:
            return CellClass(index, (Role.REQUIREMENTS,), 0.95, "installs packages")
        return CellClass(index, (Role.EMPTY,), 0.95, "holds no code that runs outside a notebook")
    counts: dict[Role, int] = {}
    for verdict in verdicts:
        counts[verdict.role] = counts.get(verdict.role, 0) + 1
    telling = [role for role in _TELLING if role in counts]
    rest = sorted((role for role in counts if role not in telling), key=lambda role: -counts[role])
    roles = (*telling, *rest)
    chief = [verdict for verdict in verdicts if verdict.role is roles[0]]
    best = max(chief, key=lambda verdict: verdict.confidence)
    mixed = 0.05 * (len(roles) - 1)
    return CellClass(index, roles, round(max(0.3, best.confidence - mixed), 2), best.reason)
