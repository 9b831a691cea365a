"""Where a notebook measures its model: the calls, expressions and names whose numbers become metrics."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator, Sequence

from notebooked_dagster.notebook.measures import FITTED_NUMBERS, by_hand
from notebooked_dagster.notebook.model import Role, Statement

from .emit import Edit

_CALLS = re.compile(
    r"^(?:\w+_score|score|log_loss|\w*(?:squared|absolute|percentage|deviance|hinge|hamming|zero_one|pinball)\w*(?:error|loss)|"
    r"mean_\w+_error|max_error|\w+_deviance|matthews_corrcoef|cross_val_score|brier_score_loss|rmse|mape|smape|auc)$"
)
_NAMES = re.compile(
    r"(?i)^(?:(?:test|val|valid|train|best|final|mean|avg|cv|model)_?)?(?:acc|accuracy|balanced_accuracy|precision|recall|f1|f1_score|"
    r"auc|roc_auc|mse|rmse|mae|mape|smape|r2|r_squared|r2_score|loss|score|scores|error|log_?loss|silhouette|perplexity|aic|bic)"
    r"(?:_(?:test|val|valid|train|score|scores|mean|loss|error))?$"
)
_NESTED = (ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda, ast.ClassDef)


class MetricNames:
    """Gives each measured place in a script a name of its own.

    The last place that measures a thing has its plain name (``accuracy``): notebooks measure the model they keep last.
    Earlier ones are numbered (``accuracy_1``), or named after the other model they belong to (``tree_score``).
    """

    def __init__(self, statements: Sequence[Statement], model_name: str | None) -> None:
        self._names: dict[tuple[tuple[int, int], int, int], str] = {}
        places: dict[str, list[tuple[tuple[int, int], int, int]]] = {}
        for statement in statements:
            for call, target in _measured(statement):
                name = target or _named_after_model(call, model_name) or _derived(call)
                places.setdefault(name, []).append((statement.key, call.lineno, call.col_offset))
        for name, found in places.items():
            for number, place in enumerate(found, 1):
                self._names[place] = name if number == len(found) else f"{name}_{number}"

    def edits(self, statement: Statement) -> list[Edit]:
        """Insertions that record what the measures in a statement come to."""
        found: list[Edit] = []
        for call, _ in _measured(statement):
            quote = _quote_for(statement, call)
            name = self._names.get((statement.key, call.lineno, call.col_offset))
            if quote is None or name is None or call.end_lineno is None or call.end_col_offset is None:
                continue
            start, end = (call.lineno, call.col_offset), (call.end_lineno, call.end_col_offset)
            found.append(Edit(start, start, f"_support.metric({quote}{name}{quote}, "))
            found.append(Edit(end, end, ")"))
        return found


def _measured(statement: Statement) -> list[tuple[ast.expr, str | None]]:
    roles = (Role.EVALUATE, Role.TRAIN, Role.INFERENCE)
    if statement.role not in roles or isinstance(statement.node, _NESTED):
        return []
    return list(_measures(statement.node))


def _named_after_model(measure: ast.expr, model_name: str | None) -> str | None:
    """``tree_score`` for ``tree.score(…)`` where the model is another, ``grid_best_score`` for ``grid.best_score_``."""
    if isinstance(measure, ast.Attribute):
        holder, kind = measure.value, FITTED_NUMBERS[measure.attr]
    elif (
        isinstance(measure, ast.Call)
        and isinstance(measure.func, ast.Attribute)
        and measure.func.attr == "score"
    ):
        holder, kind = measure.func.value, "score"
    else:
        return None
    return f"{holder.id}_{kind}" if isinstance(holder, ast.Name) and holder.id != model_name else None


def measured_names(statements: Sequence[Statement]) -> list[str]:
    """Names like ``accuracy`` or ``rmse`` that statements bind outside any function."""
    names: dict[str, None] = {}
    for statement in statements:
        if isinstance(statement.node, _NESTED) or statement.role not in (Role.EVALUATE, Role.TRAIN):
            continue
        node = statement.node
        if isinstance(node, ast.Assign) and _is_measure(node.value):
            continue  # the expression itself is recorded
        targets = node.targets if isinstance(node, ast.Assign) else []
        for target in targets:
            for inner in target.elts if isinstance(target, ast.Tuple | ast.List) else [target]:
                if isinstance(inner, ast.Name) and _NAMES.match(inner.id):
                    names[inner.id] = None
        if isinstance(node, ast.For | ast.While):
            for inner_node in ast.walk(node):
                if (
                    isinstance(inner_node, ast.Name)
                    and isinstance(inner_node.ctx, ast.Store)
                    and (_NAMES.match(inner_node.id) and inner_node.id in statement.defines)
                ):
                    names[inner_node.id] = None
    return list(names)


def _measures(node: ast.AST, target: str | None = None) -> Iterator[tuple[ast.expr, str | None]]:
    if isinstance(node, (*_NESTED, ast.ListComp, ast.GeneratorExp, ast.DictComp, ast.SetComp)):
        return
    if isinstance(node, ast.Assign):
        only = node.targets[0] if len(node.targets) == 1 else None
        yield from _measures(node.value, only.id if isinstance(only, ast.Name) else None)
        return
    if isinstance(node, ast.expr) and _is_measure(node):
        yield node, target
        return
    for child in ast.iter_child_nodes(node):
        # `mse = mean_squared_error(…) ** 0.5` measures something, but not `mse`.
        yield from _measures(child, None)


def _is_measure(node: ast.expr) -> bool:
    if isinstance(node, ast.Call) and _CALLS.match(_last_name(node)) and (node.args or node.keywords):
        return True
    if isinstance(node, ast.Attribute) and node.attr in FITTED_NUMBERS and isinstance(node.ctx, ast.Load):
        return True
    return by_hand(node) is not None


def _last_name(call: ast.Call) -> str:
    if isinstance(call.func, ast.Attribute):
        return call.func.attr
    return call.func.id if isinstance(call.func, ast.Name) else ""


def _derived(measure: ast.expr) -> str:
    if isinstance(measure, ast.Attribute):
        return FITTED_NUMBERS[measure.attr]
    name = by_hand(measure) or (_last_name(measure) if isinstance(measure, ast.Call) else "")
    for suffix in ("_score",):
        if name.endswith(suffix) and name not in ("cross_val_score", "r2_score"):
            name = name[: -len(suffix)]
    return {"r2_score": "r2", "cross_val_score": "cv_score"}.get(name, name)


def _quote_for(statement: Statement, call: ast.expr) -> str | None:
    """The quote to name a metric with; None where the call's place in the source cannot be trusted.

    Inside an f-string Python 3.11 does not always know where an expression stands: only where the text found there
    parses to the same call is it edited, and with a quote that does not end the string.
    """
    inside = next(
        (
            node
            for node in ast.walk(statement.node)
            if isinstance(node, ast.JoinedStr) and any(inner is call for inner in ast.walk(node))
        ),
        None,
    )
    if inside is None:
        return '"'
    lines = statement.text.split("\n")
    index = call.lineno - statement.first_line
    if call.end_lineno != call.lineno or not 0 <= index < len(lines) or inside.lineno != inside.end_lineno:
        return None
    shift = (
        statement.node.col_offset if statement.node.col_offset and call.lineno == statement.node.lineno else 0
    )
    line = lines[index].encode()
    text = line[call.col_offset - shift : (call.end_col_offset or 0) - shift].decode(errors="replace")
    try:
        same = ast.dump(ast.parse(text, mode="eval").body) == ast.dump(call)
    except (SyntaxError, ValueError):
        return None
    if not same:
        return None
    opening = line[inside.col_offset - shift :].decode(errors="replace").lstrip("fFrRbB")
    return "'" if opening.startswith('"') else '"'
