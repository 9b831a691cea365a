"""Names and the order in which cells were run: execution counts, values that came from below, failed cells."""

from __future__ import annotations

import ast
from collections import Counter, defaultdict
from collections.abc import Iterator
from dataclasses import replace

from notebooked_dagster.notebook.model import Analysis, Cell, Finding

from . import catalogue
from .config import LintConfig

_SHOWN = 8


def check(analysis: Analysis, config: LintConfig) -> Iterator[Finding]:
    """NB103 to NB107."""
    cells = [cell for cell in analysis.notebook.code_cells if cell.source.strip()]
    yield from _counts(cells)
    yield from _read_from_below(analysis)
    for cell in cells:
        if cell.has_error_output and "raises-exception" not in cell.tags:
            yield catalogue.FAILED_CELL.at("The cell failed when it was last run.", cell.index)
    for statement in analysis.statements:
        for module in statement.star_imports:
            line = statement.node.lineno
            yield catalogue.STAR_IMPORT.at(f"from {module} import * hides names.", statement.cell, line)


def explain(findings: list[Finding], analysis: Analysis) -> list[Finding]:
    """Say more about undefined names than the code alone can: the cell did run, so the definition was deleted."""
    cells = analysis.notebook.cells
    missing = missing_counts([cell for cell in analysis.notebook.code_cells if cell.source.strip()])
    explained = []
    for finding in findings:
        if finding.rule == catalogue.UNDEFINED_NAME.id and finding.cell is not None:
            cell = cells[finding.cell]
            if cell.execution_count and not cell.has_error_output:
                lost = [number for number in missing if number < cell.execution_count]
                counts = f" (In {_listed(lost)} is gone)" if lost else ""
                finding = replace(
                    finding,
                    message=f"{finding.message} The cell did run, as In [{cell.execution_count}]: "
                    f"the definition was in a cell that has been deleted or changed{counts}.",
                )
        explained.append(finding)
    return explained


def missing_counts(cells: list[Cell]) -> list[int]:
    """Execution counts below the highest that no cell has."""
    present = {cell.execution_count for cell in cells if cell.execution_count}
    # A kernel that ran for days has a count in the thousands: nothing is learnt from listing them.
    return [n for n in range(1, min(max(present), 10_000)) if n not in present] if present else []


def _counts(cells: list[Cell]) -> Iterator[Finding]:
    counted = [cell for cell in cells if cell.execution_count]
    highest = 0
    owner: Cell | None = None
    repeated = {n for n, times in Counter(cell.execution_count for cell in counted).items() if times > 1}
    for cell in counted:
        count = cell.execution_count or 0
        if owner is not None and count in repeated and count <= highest:
            yield catalogue.OUT_OF_ORDER.at(
                f"In [{count}] occurs more than once: the cells were run in different sessions.", cell.index
            )
        elif owner is not None and count < highest:
            yield catalogue.OUT_OF_ORDER.at(
                f"The cell was run as In [{count}], before cell {owner.number}, which stands above it "
                f"(In [{highest}]).",
                cell.index,
            )
        if count > highest:
            highest, owner = count, cell
    missing = missing_counts(counted)
    if missing:
        yield catalogue.EXECUTION_GAP.at(
            f"{len(missing)} execution counts are missing ({_listed(missing)}): cells were run again or deleted."
        )


def _read_from_below(analysis: Analysis) -> Iterator[Finding]:
    counts = {c.index: c.execution_count for c in analysis.notebook.code_cells if c.execution_count}
    makers = _makers(analysis)
    bound: set[str] = set()
    current = -1
    told: set[tuple[int, str]] = set()
    for statement in analysis.statements:
        if statement.cell != current:
            current, bound = statement.cell, set()
        count = counts.get(current)
        for name in sorted(statement.uses - bound) if count else ():
            made = makers.get(name, {})
            above = [cell for cell in made if cell < current]
            ran = [
                cell for cell in made if cell != current and cell in counts and counts[cell] < (count or 0)
            ]
            if not above or not ran or (current, name) in told:
                continue
            last = max(ran, key=counts.__getitem__)
            # The same import, repeated further down, gives the same value.
            if last > current and made[last] != made[above[-1]]:
                told.add((current, name))
                yield catalogue.ORDER_DEPENDENT.at(
                    f"When it was run, as In [{count}], {name} had the value from cell {last + 1} "
                    f"(In [{counts[last]}]) below; in order it has the one from cell {above[-1] + 1}.",
                    current,
                    statement.node.lineno,
                )
        bound |= statement.defines


def _makers(analysis: Analysis) -> dict[str, dict[int, str]]:
    """For each name the cells that bind it, in order, with a text that is equal where the value surely is."""
    makers: dict[str, dict[int, str]] = defaultdict(dict)
    for statement in analysis.statements:
        same = isinstance(statement.node, ast.Import | ast.ImportFrom | ast.FunctionDef | ast.ClassDef)
        for name in statement.defines:
            imported = _imported(statement.node, name)
            text = imported or (ast.dump(statement.node) if same else f"{statement.key}")
            makers[name][statement.cell] = text
    return makers


def _imported(node: ast.stmt, name: str) -> str:
    """What an import binds ``name`` to; empty for another statement."""
    if isinstance(node, ast.Import | ast.ImportFrom):
        module = node.module or "" if isinstance(node, ast.ImportFrom) else "import"
        for alias in node.names:
            if (alias.asname or alias.name.partition(".")[0]) == name:
                return f"{module}:{alias.name if alias.asname or module != 'import' else name}"
    return ""


def _listed(numbers: list[int]) -> str:
    text = ", ".join(str(number) for number in numbers[:_SHOWN])
    return f"{text}, …" if len(numbers) > _SHOWN else text
