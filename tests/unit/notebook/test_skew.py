"""Training and inference that treat their input differently."""

from __future__ import annotations

from pathlib import Path

import pytest

from notebooked_dagster.notebook.analysis import analyse
from notebooked_dagster.notebook.model import Cell, Notebook

IMPORTS = """\
from sklearn.datasets import load_iris
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import train_test_split
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import LabelEncoder, StandardScaler
X, y = load_iris(return_X_y=True)
X_train, X_test, y_train, y_test = train_test_split(X, y, random_state=0)"""
SCALED = (
    "scaler = StandardScaler()\nX_train = scaler.fit_transform(X_train)\nX_test = scaler.transform(X_test)"
)
FIT = "model = LogisticRegression().fit(X_train, y_train)\nprint(model.score(X_test, y_test))"


def skew(*cells: str) -> list[str]:
    notebook = Notebook(
        Path("n.ipynb"), tuple(Cell(index, "code", text) for index, text in enumerate((IMPORTS, *cells)))
    )
    return [finding.message for finding in analyse(notebook).findings if finding.rule == "NB301"]


@pytest.mark.parametrize(
    "prediction",
    [
        "model.predict([[5.1, 3.5, 1.4, 0.2]])",
        "def predict(rows):\n    return model.predict(rows)",
        "sample = X[:1]\nanswer = model.predict(sample)",
    ],
)
def test_a_forgotten_scaler(prediction: str) -> None:
    (message,) = skew(SCALED, FIT, prediction)
    assert "scaler" in message
    assert "cell 2" in message


@pytest.mark.parametrize(
    "prediction",
    [
        "model.predict(scaler.transform([[5.1, 3.5, 1.4, 0.2]]))",
        "def predict(rows):\n    return model.predict(scaler.transform(rows))",
        "def prepared(rows):\n    return scaler.transform(rows)\n\ndef predict(rows):\n    return model.predict(prepared(rows))",
        "sample = scaler.transform(X[:1])\nanswer = model.predict(sample)",
        "model.predict(X_test[:3])",
    ],
)
def test_a_scaler_that_is_applied(prediction: str) -> None:
    assert skew(SCALED, FIT, prediction) == []


def test_a_pipeline_forgets_nothing() -> None:
    fit = "model = make_pipeline(StandardScaler(), LogisticRegression())\nmodel.fit(X_train, y_train)"
    assert skew(fit, "model.predict([[5.1, 3.5, 1.4, 0.2]])") == []


def test_what_encodes_the_target_is_not_applied_to_requests() -> None:
    encoded = "encoder = LabelEncoder()\ny_train = encoder.fit_transform(y_train)"
    assert skew(encoded, FIT, "model.predict([[5.1, 3.5, 1.4, 0.2]])") == []
