"""Files that a notebook names: found again where they are read, left alone where a name is only part of a path."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

from notebooked_dagster.codegen import generate
from notebooked_dagster.notebook.analysis import analyse
from notebooked_dagster.notebook.model import Cell, Notebook

FIT = "from sklearn.linear_model import Ridge\nmodel = Ridge().fit(df[['a']], df['b'])\nprint(model.score(df[['a']], df['b']))"


@pytest.mark.parametrize(
    ("source", "written"),
    [
        ("df = pd.read_csv('data/x.csv')", "pd.read_csv(_support.data_file('data/x.csv'))"),
        ("path = 'x.csv'\n\ndf = pd.read_csv(path)", "path = _support.data_file('x.csv')"),
        (
            "name = 'x.csv'\n\ndf = pd.read_csv(os.path.join(os.path.dirname(pd.__file__), name))",
            "name = _support.data_file('x.csv', required=False)",
        ),
        (
            "out = 'x.csv'\n\ndf = pd.DataFrame({'a': [1.0, 2.0], 'b': [1.0, 2.0]})\ndf.to_csv(out)\ndf = pd.read_csv('https://host/y.csv')",
            "pd.read_csv('https://host/y.csv')",
        ),
        ("df = pd.read_csv('https://host/x.csv')", "pd.read_csv('https://host/x.csv')"),
    ],
)
def test_a_path(source: str, written: str) -> None:
    cells = tuple(
        Cell(index, "code", text)
        for index, text in enumerate(("import os\nimport pandas as pd", source, FIT))
    )
    code = generate(analyse(Notebook(Path("n.ipynb"), cells))).files["preprocess.py"]
    ast.parse(code)
    assert written in code
