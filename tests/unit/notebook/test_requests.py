"""What cells do to a table before the model sees it, and a request has to bring done."""

from __future__ import annotations

from pathlib import Path

import pytest

from notebooked_dagster.notebook.analysis import analyse
from notebooked_dagster.notebook.model import Cell, Notebook

IMPORTS = """\
import pandas as pd
from sklearn.ensemble import RandomForestClassifier
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.model_selection import train_test_split
df = pd.read_csv("t.csv")"""
TAKEN = 'X = df.drop(columns=["Survived"])\ny = df["Survived"]'
FIT = "X_train, X_test, y_train, y_test = train_test_split(X, y)\nmodel = RandomForestClassifier().fit(X_train, y_train)"


def told(*cells: str) -> list[str]:
    notebook = Notebook(
        Path("n.ipynb"), tuple(Cell(index, "code", text) for index, text in enumerate((IMPORTS, *cells)))
    )
    return [finding.message for finding in analyse(notebook).findings if finding.rule == "NB302"]


@pytest.mark.parametrize(
    ("change", "name"),
    [
        ('df["Age"] = df["Age"].fillna(df["Age"].median())', "Age"),
        ('df["Age"].fillna(0, inplace=True)', "Age"),
        ("df.fillna(0, inplace=True)", "fillna()"),
        ('df["FamilySize"] = df["SibSp"] + df["Parch"] + 1', "FamilySize"),
        ('df.loc[df["Age"] > 60, "Old"] = 1', "Old"),
        ('df = pd.get_dummies(df, columns=["Sex"])', "get_dummies()"),
        ('for column in ["a", "b"]:\n    df[column] = df[column].astype(float)', "df[…]"),
        ('df["text"] = df["text"].str.lower()', "text"),
    ],
)
def test_a_change_is_told_with_its_cell_and_column(change: str, name: str) -> None:
    (message,) = told(change, TAKEN, FIT)
    assert "Cell 2 changes" in message
    assert name in message


def test_several_cells_are_one_finding() -> None:
    (message,) = told('df["a"] = 1', 'df["b"] = 2', TAKEN, "X = X.fillna(0)", FIT)
    assert "Cells 2, 3, 5 change" in message
    assert "a, b, fillna()" in message


def test_what_a_vectorizer_is_fitted_on_counts() -> None:
    (message,) = told(
        'df["text"] = df["text"].str.lower()',
        'vec = TfidfVectorizer()\nX = vec.fit_transform(df["text"])\ny = df["y"].map({"a": 0, "b": 1})',
        "model = RandomForestClassifier().fit(X, y)",
        'model.predict(vec.transform(["hello"]))',
    )
    assert "(text)" in message


def test_a_function_that_only_predicts_prepares_nothing() -> None:
    (message,) = told(
        'df["n"] = df["a"] + 1', TAKEN, FIT, "def predict(rows):\n    return list(model.predict(rows))"
    )
    assert "(n)" in message


@pytest.mark.parametrize(
    "cells",
    [
        (TAKEN, FIT),
        (
            'import os\nos.environ["SEED"] = "1"\npath = os.path.join("a", "b")\ndf = pd.read_csv(path)',
            TAKEN,
            FIT,
        ),
        ('columns = list(df.columns)\ncolumns[0] = "first"\ndf.columns = columns', TAKEN, FIT),
        ('df = df[df["kind"].str.lower() == "a"]', TAKEN, FIT),
        ('df = pd.read_csv("~/t.csv".replace("~", "."))', TAKEN, FIT),
        ('df["Survived"] = (df["fate"] == "alive").astype(int)', TAKEN, FIT),
        ('df = df.dropna().drop(columns=["Name"])', TAKEN, FIT),
        ('other = df.copy()\nother["x"] = 1\nother.plot()', TAKEN, FIT),
        (
            'def prepared(table):\n    table["n"] = table["a"] + 1\n    return table',
            'X = prepared(df[["a"]])\ny = df["Survived"]',
            FIT,
        ),
        (
            'df["n"] = df["a"] + 1',
            TAKEN,
            FIT,
            'def predict(rows):\n    rows["n"] = rows["a"] + 1\n    return model.predict(rows)',
        ),
        (
            'df["n"] = df["a"] + 1',
            TAKEN,
            FIT,
            'new = pd.DataFrame([{"a": 1}])\nnew["n"] = new["a"] + 1\nmodel.predict(new)',
        ),
    ],
)
def test_what_a_request_need_not_bring_is_not_told(cells: tuple[str, ...]) -> None:
    assert told(*cells) == []
