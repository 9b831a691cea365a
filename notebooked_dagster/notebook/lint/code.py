"""What a cell's code does that does not travel: waiting for people, unsupported cells, too much logic; unknown tags."""

from __future__ import annotations

import ast
import difflib
from collections.abc import Iterator

from notebooked_dagster.notebook.model import Analysis, CellCode, Finding, Notebook, Role, Tag

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
#: Tags that Jupyter, Jupyter Book, papermill, nbconvert, nbgrader, nbdev and Colab give a meaning to.
_OTHER_TOOLS = frozenset(
    [
        "injected-parameters",
        "raises-exception",
        "hide-input",
        "hide-output",
        "hide-cell",
        "hide_input",
        "hide_output",
        "hide_cell",
        "remove-input",
        "remove-output",
        "remove-cell",
        "remove_input",
        "remove_output",
        "remove_cell",
        "remove-stdout",
        "remove-stderr",
        "scroll-output",
        "full-width",
        "popout",
        "margin",
        "skip-execution",
        "nbval-skip",
        "nbval-ignore-output",
        "nbval-raises-exception",
        "nbval-check-output",
        "solution",
        "exercise",
        "todo",
        "export",
        "exporti",
        "hide",
        "default",
        "active-ipynb",
        "active-py",
        "active-py-ipynb",
        "active-rmd-ipynb",
        "keep_output",
        "test",
        "slide",
        "subslide",
        "fragment",
        "notes",
        "no_execute",
        "outputprepend",
    ]
)
_PLAIN = (ast.Import, ast.ImportFrom, ast.Expr, ast.Pass)


def check(analysis: Analysis, config: LintConfig) -> Iterator[Finding]:
    """NB003, NB004, NB005, NB206, NB401."""
    yield from _tags(analysis.notebook, config)
    for entry in analysis.code:
        for removal in entry.unsupported:
            yield catalogue.UNSUPPORTED_CELL.at(removal.reason, removal.cell, removal.line)
        for removal in entry.removals:
            yield catalogue.LEFT_OUT.at(removal.reason, removal.cell, removal.line)
        if entry.tree is not None:
            yield from _interactive(entry)
    yield from _logic(analysis, config)


def _tags(notebook: Notebook, config: LintConfig) -> Iterator[Finding]:
    ours = [tag.value for tag in Tag]
    known = {*ours, *_OTHER_TOOLS, *config.extra_tags}
    for cell in notebook.cells:
        for tag in cell.tags:
            prefixed = bool(config.tag_prefix) and tag.startswith(config.tag_prefix)
            name = tag.removeprefix(config.tag_prefix) if prefixed else tag
            if (name in ours) or (not prefixed and (name in known or name.lower().startswith("nb-ignore-"))):
                continue
            near = difflib.get_close_matches(name.lower(), [*ours, *config.extra_tags], n=1, cutoff=0.6)
            fix = f"Did you mean {config.tag_prefix if prefixed else ''}{near[0]}?" if near else None
            yield catalogue.UNKNOWN_TAG.at(f"The tag {tag!r} has no meaning here.", cell.index, fix=fix)


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
