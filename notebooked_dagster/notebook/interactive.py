"""Take calls of IPython's own functions out of a cell that parses: ``display(x)``, ``get_ipython().system(…)``.

A statement that only calls IPython becomes ``pass``. Where the value of ``get_ipython()`` is asked for, it is None, as it is
in every process that no notebook runs in, unless the cell itself is ready for its absence.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator
from typing import NamedTuple, Protocol

from .installs import installed

_DISPLAYS = frozenset({"display", "display.display", "IPython.display.display"})
# What these return cannot be had without a notebook.
_RUNNERS = frozenset({"getoutput", "run_cell_magic", "run_line_magic", "system", "magic", "ev", "run_cell"})


class Report(Protocol):
    """Where removals are noted."""

    requirements: list[str]

    def remove(self, line: int, text: str, reason: str, rule: str) -> None:
        """Something was taken out."""

    def refuse(self, line: int, text: str, reason: str, rule: str) -> None:
        """Something was taken out that production cannot promise."""


class _Edit(NamedTuple):
    """Text in the place of a node; positions are lines from 1 and bytes from 0."""

    line: int
    start: int
    last_line: int
    end: int
    text: str


def without_ipython(report: Report, source: str, tree: ast.Module) -> str:
    """The source without calls of IPython, with as many lines as before.

    Args:
        report: Told of every removal.
        source: What ``tree`` was parsed from.
        tree: Its AST.
    """
    lines = [line.encode() for line in source.split("\n")]
    finder = _Finder(report, lines, tree)
    edits = sorted(set(finder.edits()), reverse=True)
    for edit in edits:
        rest = lines[edit.last_line - 1][edit.end :]
        lines[edit.line - 1] = lines[edit.line - 1][: edit.start] + edit.text.encode() + rest
        for number in range(edit.line, edit.last_line):
            lines[number] = b""
    return b"\n".join(lines).decode()


class _Finder:
    def __init__(self, report: Report, lines: list[bytes], tree: ast.Module) -> None:
        self.report, self.lines, self.tree = report, lines, tree
        nodes = list(ast.walk(tree))
        self.displays = not any(_defines(node, "display") for node in nodes)
        self.imported = any(_imports(node, "get_ipython") for node in nodes)
        self.shells = {
            target.id
            for node in nodes
            if isinstance(node, ast.Assign) and _is_shell(node.value)
            for target in node.targets
            if isinstance(target, ast.Name)
        }

    def edits(self) -> Iterator[_Edit]:
        waiting: list[tuple[ast.AST, bool]] = [(self.tree, False)]
        while waiting:
            node, guarded = waiting.pop()
            if isinstance(node, ast.Try) and any(_catches_name_error(handler) for handler in node.handlers):
                waiting += [(child, True) for child in node.body]
                waiting += [(child, guarded) for child in [*node.handlers, *node.orelse, *node.finalbody]]
                continue
            edit = self._edit(node, guarded)
            if edit is not None:
                yield edit
            else:
                waiting += [(child, guarded) for child in ast.iter_child_nodes(node)]

    def _edit(self, node: ast.AST, guarded: bool) -> _Edit | None:
        """The edit that takes a node out.

        Args:
            node: Any.
            guarded: Whether the cell is ready for the name's absence: that it is missing is then the answer.
        """
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Call):
            return self._statement(node, node.value, guarded)
        plain = not guarded and not self.imported
        if isinstance(node, ast.Call) and plain and self._starts_with(node, b"get_ipython"):
            return self._value(node)
        return None

    def _statement(self, node: ast.Expr, call: ast.Call, guarded: bool) -> _Edit | None:
        name = _dotted(call)
        root = name.partition(".")[0]
        text = self.lines[node.lineno - 1].decode()
        if self.displays and name in _DISPLAYS:
            rule = "display-dropped"
        elif not guarded and (root == "get_ipython" or root in self.shells):
            rule = "magic-dropped"
            wanted = installed(_command(call))
            if wanted is not None:
                self.report.requirements += wanted
                self.report.remove(
                    node.lineno,
                    text,
                    "Packages are installed from the requirements.",
                    "install-to-requirements",
                )
                return _edit_of(node, "pass")
        else:
            return None
        self.report.remove(node.lineno, text, f"`{name}` only works in a notebook.", rule)
        return _edit_of(node, "pass")

    def _value(self, call: ast.Call) -> _Edit | None:
        name = _dotted(call)
        method = name.rpartition(".")[2]
        text = self.lines[call.lineno - 1].decode()
        if method in _RUNNERS:
            reason = "The output of a command or magic is kept in a variable."
            self.report.refuse(call.lineno, text, reason, "shell-assigned")
            return _edit_of(call, "[]" if method == "getoutput" else "None")
        if name == "get_ipython":
            reason = "Outside a notebook `get_ipython()` is None."
            self.report.remove(call.lineno, text, reason, "magic-replaced")
            return _edit_of(call, "None")
        return None

    def _starts_with(self, node: ast.expr, word: bytes) -> bool:
        # Python 3.11 has wrong positions for what stands inside an f-string.
        return self.lines[node.lineno - 1][node.col_offset :].startswith(word)


def _edit_of(node: ast.expr | ast.stmt, text: str) -> _Edit:
    last_line, end = node.end_lineno, node.end_col_offset
    assert last_line is not None
    assert end is not None
    return _Edit(node.lineno, node.col_offset, last_line, end, text)


def _is_shell(node: ast.expr) -> bool:
    return isinstance(node, ast.Call) and _dotted(node) in ("get_ipython", "IPython.get_ipython")


def _defines(node: ast.AST, name: str) -> bool:
    if isinstance(node, ast.FunctionDef | ast.ClassDef):
        return node.name == name
    return isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store) and node.id == name


def _imports(node: ast.AST, name: str) -> bool:
    return isinstance(node, ast.ImportFrom) and any(alias.name == name for alias in node.names)


def _catches_name_error(handler: ast.ExceptHandler) -> bool:
    caught = handler.type.elts if isinstance(handler.type, ast.Tuple) else [handler.type]
    return any(isinstance(kind, ast.Name) and kind.id == "NameError" for kind in caught)


def _command(call: ast.Call) -> str:
    """The command line a call of IPython runs: ``system("pip install x")``, ``run_line_magic("pip", "install x")``."""
    words = [
        item.value for item in call.args if isinstance(item, ast.Constant) and isinstance(item.value, str)
    ]
    return " ".join(words).strip().lstrip("%!")


def _dotted(call: ast.Call) -> str:
    """What is called, calls in between left out: ``get_ipython.system``."""
    parts: list[str] = []
    node: ast.AST = call.func
    while True:
        if isinstance(node, ast.Attribute):
            parts.append(node.attr)
            node = node.value
        elif isinstance(node, ast.Call):
            node = node.func
        else:
            if isinstance(node, ast.Name):
                parts.append(node.id)
            return ".".join(reversed(parts))
