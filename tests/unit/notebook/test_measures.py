"""Measures that no metric function names."""

from __future__ import annotations

import ast

import pytest

from notebooked_dagster.notebook.measures import by_hand


@pytest.mark.parametrize(
    ("expression", "kind"),
    [
        ("np.mean(pred == y)", "accuracy"),
        ("(pred == y).mean()", "accuracy"),
        ("np.sum(pred == y) / float(len(y))", "accuracy"),
        ("sum(pred == y) / len(y)", "accuracy"),
        ("(pred == y).sum() / len(y)", "accuracy"),
        ("float((pred == y).sum()) / y.shape[0]", "accuracy"),
        ("pred.eq(y).float().mean()", "accuracy"),
        ("(pred == y).astype(float).mean()", "accuracy"),
        ("tf.reduce_mean(tf.cast(pred == y, tf.float32))", "accuracy"),
        ("np.mean(pred != y)", "error_rate"),
        ("np.mean((y - pred) ** 2)", "mse"),
        ("((y - pred) ** 2).mean()", "mse"),
        ("np.square(y - pred).mean()", "mse"),
        ("np.sqrt(np.mean((y - pred) ** 2))", "rmse"),
        ("np.mean((y - pred) ** 2) ** 0.5", "rmse"),
        ("np.mean(np.abs(y - pred))", "mae"),
        ("abs(y - pred).mean()", "mae"),
        ("np.mean(np.abs((y - pred) / y))", "mape"),
        ("np.mean(np.abs(y - pred) / y)", "mape"),
        # Looking at data, not measuring a model.
        ("np.mean(y == 1)", None),
        ("(df['a'] > df['b']).mean()", None),
        ("np.mean((x - x.mean()) ** 2)", None),
        ("np.mean(x)", None),
        ("x.mean()", None),
        ("np.sum(x) / len(x)", None),
        ("np.sqrt(x)", None),
    ],
)
def test_the_shape_tells(expression: str, kind: str | None) -> None:
    assert by_hand(ast.parse(expression, mode="eval").body) == kind
