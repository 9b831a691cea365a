"""What cells do to a table before the model's input is taken from it: a request has to bring it done (NB302)."""

from __future__ import annotations

import ast
from collections.abc import Iterator

from . import calls as known
from .classify import Classification
from .flow import Flow, Node
from .model import Finding, Severity

_MOST_NAMED = 6
_SPLIT = "train_test_split"
#: Calls that give another table, or another column, than the one they are asked of.
_CHANGES = frozenset(
    {
        "fillna", "replace", "interpolate", "ffill", "bfill", "clip", "apply", "applymap", "map", "assign", "get_dummies",
        "cut", "qcut", "factorize", "to_datetime", "to_numeric", "lower", "upper", "strip", "log", "log1p", "where", "mask",
        "pivot", "pivot_table", "melt", "merge", "join", "groupby", "resample", "rolling", "shift", "diff", "rank", "rename",
    }
)  # fmt: skip

#: What calls and subscripts of these names give is no table.
_NO_TABLES = frozenset({"", "os", "re", "json", "sys", "Path", "plt", "warnings", "mpl", "matplotlib", "sns"})


def unprepared(flow: Flow, outcome: Classification) -> list[Finding]:
    """One finding that names the cells and the columns; none where the notebook itself prepares what it predicts."""
    own = [flow.nodes[index] for index in outcome.inference]
    if any(_prepares(node) for node in own):
        return []
    training = {index for index in outcome.training if outcome.looks[index].trains}
    found: dict[int, list[str]] = {}
    for index in sorted(training):
        path = outcome.closure(_sources(flow, flow.nodes[index], 0)) - training - set(outcome.inference)
        targets, labels = _target(flow, [flow.nodes[index], *(flow.nodes[step] for step in path)])
        for step in sorted(path - targets):
            node = flow.nodes[step]
            changed = [name for name in _changed(node) if name not in labels]
            if changed:
                found.setdefault(node.cell, []).extend(changed)
    if not found:
        return []
    names = list(dict.fromkeys(name for changed in found.values() for name in changed))
    shown = ", ".join(names[:_MOST_NAMED]) + (
        f" and {len(names) - _MOST_NAMED} more" if len(names) > _MOST_NAMED else ""
    )
    cells = [str(cell + 1) for cell in sorted(found)]
    where = f"Cell {cells[0]} changes" if len(cells) == 1 else f"Cells {', '.join(cells)} change"
    return [
        Finding(
            "NB302", "changed-before-the-model", Severity.INFO,
            f"{where} the table before the model's input is taken from it ({shown}); a request has to bring it changed.",
            "Put it into a function or a Pipeline that the model's input goes through, and it is done to requests too.",
            min(found),
        )
    ]  # fmt: skip


def _prepares(node: Node) -> bool:
    """Whether a statement of inference changes a table itself, or hands it to a function that may."""
    if not isinstance(node.stmt, ast.FunctionDef | ast.AsyncFunctionDef):
        return any(_changed(node))
    for part in ast.walk(node.stmt):
        if isinstance(part, ast.Assign | ast.AugAssign):
            targets = part.targets if isinstance(part, ast.Assign) else [part.target]
            if any(isinstance(target, ast.Subscript) for target in targets):
                return True
        if isinstance(part, ast.Call):
            name = part.func.attr if isinstance(part.func, ast.Attribute) else ""
            if name in _CHANGES or (
                isinstance(part.func, ast.Name) and part.func.id not in known.BUILTIN_NAMES
            ):
                return True
    return False


def _sources(flow: Flow, node: Node, position: int) -> set[int]:
    """Where an argument of a statement's fit, or of its split into training and test, comes from."""
    return {
        source
        for argument in _arguments(node, position)
        for part in ast.walk(argument)
        if isinstance(part, ast.Name)
        for source in node.deps.get(part.id, ())
        if source < node.index
    }


def _arguments(node: Node, position: int) -> Iterator[ast.expr]:
    for seen in node.calls:
        fits = seen.method in known.FIT_METHODS and seen.kind != "transformer"
        arguments = seen.call.node.args
        if (fits or known.last(seen.dotted) == _SPLIT) and len(arguments) > position:
            yield arguments[position]


def _target(flow: Flow, nodes: list[Node]) -> tuple[set[int], set[str]]:
    """The statements that only take the target out of the table, and the columns that it is."""
    targets: set[int] = set()
    labels: set[str] = set()
    for node in nodes:
        for argument in _arguments(node, 1):
            labels.update(_columns_read(argument))
        targets |= {
            source
            for source in _sources(flow, node, 1) - _sources(flow, node, 0)
            if isinstance(flow.nodes[source].stmt, ast.Assign)
        }
    for index in targets:
        value = getattr(flow.nodes[index].stmt, "value", None)
        if value is not None:
            labels.update(_columns_read(value))
    return targets, labels


def _columns_read(value: ast.expr) -> Iterator[str]:
    """The columns that an expression takes out of a table."""
    for part in ast.walk(value):
        if isinstance(part, ast.Subscript):
            yield from _strings(part.slice)
        elif isinstance(part, ast.Attribute) and isinstance(part.value, ast.Name):
            yield part.attr
        elif isinstance(part, ast.Call) and isinstance(part.func, ast.Attribute) and part.func.attr == "pop":
            yield from _strings(part)


def _strings(node: ast.AST) -> Iterator[str]:
    for part in ast.walk(node):
        if isinstance(part, ast.Constant) and isinstance(part.value, str):
            yield part.value


def _changed(node: Node) -> Iterator[str]:
    """The columns that a statement makes or changes; the call where it does so to a whole table."""
    statement = node.stmt
    if isinstance(statement, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
        return
    for part in ast.walk(statement):
        targets: list[ast.expr] = []
        if isinstance(part, ast.Assign):
            targets = part.targets
        elif isinstance(part, ast.AugAssign):
            targets = [part.target]
        for target in targets:
            if isinstance(target, ast.Subscript) and _is_table(target):
                named = list(_strings(target.slice))
                yield from named or [f"{ast.unparse(target.value)}[…]"]
    if isinstance(statement, ast.Assign) and isinstance(statement.targets[0], ast.Name):
        for part in _values(statement.value):
            if (
                isinstance(part, ast.Call)
                and isinstance(part.func, ast.Attribute)
                and part.func.attr in _CHANGES
                and _root(part.func) not in _NO_TABLES
            ):
                yield f"{part.func.attr}()"
    elif isinstance(statement, ast.Expr) and isinstance(statement.value, ast.Call):
        call = statement.value
        in_place = any(keyword.arg == "inplace" for keyword in call.keywords)
        if in_place and isinstance(call.func, ast.Attribute) and call.func.attr in _CHANGES:
            inner = call.func.value
            named = list(_strings(inner.slice)) if isinstance(inner, ast.Subscript) else []
            yield from named or [f"{call.func.attr}()"]


def _values(value: ast.expr) -> Iterator[ast.AST]:
    """An expression's parts, without those that only choose rows (``df[df.kind.str.lower() == "a"]``)."""
    waiting: list[ast.AST] = [value]
    while waiting:
        part = waiting.pop()
        yield part
        if isinstance(part, ast.Subscript):
            waiting.append(part.value)
        else:
            waiting.extend(ast.iter_child_nodes(part))


def _root(node: ast.expr) -> str:
    """The name that an attribute or call begins with; empty for a literal and the like, which is no table."""
    while isinstance(node, ast.Attribute | ast.Call | ast.Subscript):
        node = node.func if isinstance(node, ast.Call) else node.value
    return node.id if isinstance(node, ast.Name) else ""


def _is_table(target: ast.Subscript) -> bool:
    """Whether what is assigned to may be a column: no place in a list, no variable of the environment."""
    place = target.slice
    return _root(target.value) not in _NO_TABLES and not (
        isinstance(place, ast.Constant) and isinstance(place.value, int)
    )
