"""What a cell's code does that does not travel: waiting for people, unsupported cells, too much logic."""

from __future__ import annotations

import ast
from collections.abc import Iterator

from notebooked_dagster.notebook.model import Analysis, CellCode, Finding, Role

from . import catalogue
from .config import LintConfig

_INTERACTIVE = {
    "input": "waits for somebody to type",
    "raw_input": "waits for somebody to type",
    "getpass": "waits for somebody to type",
    "getpass.getpass": "waits for somebody to type",
    "breakpoint": "starts the debugger",
    "pdb.set_trace": "starts the debugger",
    "exit": "ends the process",
    "quit": "ends the process",
    "sys.exit": "ends the process",
    "os._exit": "ends the process",
}
_PLAIN = (ast.Import, ast.ImportFrom, ast.Expr, ast.Pass)


def check(analysis: Analysis, config: LintConfig) -> Iterator[Finding]:
    """NB004, NB005, NB206, NB401."""
    for entry in analysis.code:
        for removal in entry.unsupported:
            yield catalogue.UNSUPPORTED_CELL.at(removal.reason, removal.cell, removal.line)
        for removal in entry.removals:
            yield catalogue.LEFT_OUT.at(removal.reason, removal.cell, removal.line)
        if entry.tree is not None:
            yield from _interactive(entry)
    yield from _logic(analysis, config)


def _interactive(entry: CellCode) -> Iterator[Finding]:
    assert entry.tree is not None
    for node in ast.walk(entry.tree):
        if not isinstance(node, ast.Call):
            continue
        name = ast.unparse(node.func) if isinstance(node.func, ast.Attribute | ast.Name) else ""
        if name in _INTERACTIVE:
            yield catalogue.INTERACTIVE.at(f"{name}() {_INTERACTIVE[name]}.", entry.cell.index, node.lineno)


def _logic(analysis: Analysis, config: LintConfig) -> Iterator[Finding]:
    """Count lines that decide or compute: no imports, prose, plots, bare calls or assignments of constants."""
    lines: dict[int, set[int]] = {}
    for statement in analysis.statements:
        if statement.role in (Role.PLOT, Role.EXPLORE, Role.SKIP, Role.REQUIREMENTS, Role.PARAMETERS):
            continue
        if not _is_plain(statement.node):
            lines.setdefault(statement.cell, set()).update(_code_lines(statement.node))
    for cell, found in lines.items():
        if len(found) > config.max_logic_lines:
            yield catalogue.LOGIC_IN_NOTEBOOK.at(
                f"The cell holds {len(found)} lines of logic; {config.max_logic_lines} are the limit.", cell
            )


def _is_plain(node: ast.stmt) -> bool:
    if isinstance(node, ast.Assign | ast.AnnAssign):
        return isinstance(node.value, ast.Constant | None)
    return isinstance(node, _PLAIN)


def _code_lines(node: ast.stmt) -> set[int]:
    """Lines on which something of the statement begins, docstrings left out: blank lines and comments do not count."""
    docstrings = {
        id(owner.body[0].value)
        for owner in ast.walk(node)
        if isinstance(owner, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef)
        and isinstance(owner.body[0], ast.Expr)
        and isinstance(owner.body[0].value, ast.Constant)
    }
    return {
        inner.lineno
        for inner in ast.walk(node)
        if isinstance(inner, ast.stmt | ast.expr)
        and id(inner) not in docstrings
        and not (isinstance(inner, ast.Expr) and id(inner.value) in docstrings)
    }
