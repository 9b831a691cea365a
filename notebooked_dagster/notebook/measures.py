"""Numbers that measure a model without a metric function: worked out by hand, or left in a fitted object.

``np.mean(pred == y)`` is an accuracy, ``((y - pred) ** 2).mean()`` a mean squared error, ``search.best_score_`` a score.
"""

from __future__ import annotations

import ast

#: Attributes of fitted objects of scikit-learn, statsmodels, LightGBM and XGBoost that are one number each.
FITTED_NUMBERS = {
    "best_score_": "best_score",
    "best_score": "best_score",
    "oob_score_": "oob_score",
    "inertia_": "inertia",
    "aic": "aic",
    "bic": "bic",
    "rsquared": "rsquared",
    "rsquared_adj": "rsquared_adj",
    "prsquared": "prsquared",
}
#: Those that tell of a fit without being one number.
FITTED_REPORTS = frozenset({"best_params_", "cv_results_", "loss_curve_"})
#: Methods and functions without which nothing is worked out by hand: a cheap look before a closer one.
AVERAGES = frozenset({"mean", "average", "reduce_mean", "sum", "reduce_sum", "count_nonzero"})

_MEANS = frozenset({"mean", "average", "reduce_mean"})
_SUMS = frozenset({"sum", "reduce_sum", "count_nonzero"})
_ROOTS = frozenset({"sqrt"})
_SQUARES = frozenset({"square"})
_ABSOLUTE = frozenset({"abs", "absolute", "fabs"})
_WRAPPERS = frozenset(
    {"float", "double", "int", "array", "asarray", "astype", "cast", "to_numpy", "cpu", "long"}
)


def by_hand(node: ast.AST) -> str | None:
    """What an expression works out, by its shape.

    Returns:
        ``accuracy``, ``error_rate``, ``mse``, ``rmse``, ``mae`` or ``mape``; None where it is nothing of the kind. The
        shape alone does not tell a prediction from any other array: that is for the flow of data to say.
    """
    if isinstance(node, ast.BinOp) and isinstance(node.op, ast.Pow) and _is_number(node.right, 0.5):
        return "rmse" if by_hand(node.left) == "mse" else None
    if isinstance(node, ast.Call) and _function(node) in _ROOTS and node.args:
        return "rmse" if by_hand(node.args[0]) == "mse" else None
    averaged = _averaged(node)
    return _compared(averaged) if averaged is not None else None


def _averaged(node: ast.AST) -> ast.expr | None:
    """What a mean is taken of: ``np.mean(x)``, ``x.mean()``, ``np.sum(x) / n``."""
    if isinstance(node, ast.BinOp) and isinstance(node.op, ast.Div):
        return _reduced(_bare(node.left), _SUMS)
    return _reduced(node, _MEANS)


def _reduced(node: ast.AST, names: frozenset[str]) -> ast.expr | None:
    if not isinstance(node, ast.Call) or _function(node) not in names:
        return None
    if node.args:
        first = node.args[0]
        return None if isinstance(first, ast.Starred | ast.Constant) else first
    return node.func.value if isinstance(node.func, ast.Attribute) else None


def _compared(node: ast.expr) -> str | None:
    """What the mean of an expression that holds predictions against truth is called."""
    node = _bare(node)
    if isinstance(node, ast.Compare) and len(node.ops) == 1:
        if _known(node.left) or _known(node.comparators[0]):
            return None
        return {ast.Eq: "accuracy", ast.NotEq: "error_rate"}.get(type(node.ops[0]))
    if (
        isinstance(node, ast.Call)
        and _function(node) in ("eq", "equal")
        and isinstance(node.func, ast.Attribute)
    ):
        return None if any(_known(argument) for argument in node.args) else "accuracy"
    if isinstance(node, ast.BinOp) and isinstance(node.op, ast.Pow) and _is_number(node.right, 2):
        return "mse" if _difference(node.left) else None
    if isinstance(node, ast.Call) and _function(node) in _SQUARES and node.args:
        return "mse" if _difference(node.args[0]) else None
    if isinstance(node, ast.BinOp) and isinstance(node.op, ast.Div):
        # |y - p| / y
        return "mape" if _compared(node.left) == "mae" else None
    if isinstance(node, ast.Call) and _function(node) in _ABSOLUTE:
        inner = (
            node.args[0] if node.args else node.func.value if isinstance(node.func, ast.Attribute) else None
        )
        if inner is None:
            return None
        inner = _bare(inner)
        if isinstance(inner, ast.BinOp) and isinstance(inner.op, ast.Div) and _difference(inner.left):
            return "mape"
        return "mae" if _difference(inner) else None
    return None


def _difference(node: ast.expr) -> bool:
    node = _bare(node)
    return (
        isinstance(node, ast.BinOp)
        and isinstance(node.op, ast.Sub)
        and not _known(node.left)
        and not _known(node.right)
    )


def _known(node: ast.expr) -> bool:
    """Whether an operand is a constant or a mean: then it is a look at data, a share or a variance."""
    node = _bare(node)
    return isinstance(node, ast.Constant | ast.UnaryOp) or _reduced(node, _MEANS) is not None


def _bare(node: ast.expr) -> ast.expr:
    """Without what only changes the type: ``float(x)``, ``x.astype(int)``."""
    while isinstance(node, ast.Call) and _function(node) in _WRAPPERS:
        if isinstance(node.func, ast.Attribute) and (not node.args or node.func.attr == "astype"):
            node = node.func.value
        elif node.args:
            node = node.args[0]
        else:
            break
    return node


def _function(call: ast.Call) -> str:
    if isinstance(call.func, ast.Attribute):
        return call.func.attr
    return call.func.id if isinstance(call.func, ast.Name) else ""


def _is_number(node: ast.AST, value: float) -> bool:
    return isinstance(node, ast.Constant) and node.value == value and not isinstance(node.value, bool)
