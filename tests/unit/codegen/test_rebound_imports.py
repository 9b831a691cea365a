"""A name that means one thing and later another: imports that may not move to the top."""

from __future__ import annotations

import json
from pathlib import Path

from notebooked_dagster.codegen import GenerateOptions, generate, write_scripts
from notebooked_dagster.notebook.analysis import analyse
from notebooked_dagster.notebook.model import Cell, Notebook
from tests.warm import SCRIPTS


def trained(folder: Path, *cells: str) -> dict[str, float]:
    made = tuple(Cell(index, "code", cell) for index, cell in enumerate(cells))
    write_scripts(
        generate(analyse(Notebook(Path("n.ipynb"), made)), GenerateOptions(experiment="n")), folder / "s"
    )
    command = ["train.py", "--output-dir", str(folder / "o"), "--model-dir", str(folder / "m")]
    done = SCRIPTS.run(command, cwd=folder / "s")
    assert done.returncode == 0, done.stderr
    metrics: dict[str, float] = json.loads((folder / "o" / "metrics.json").read_text())
    return metrics


DATA = "import numpy as np\nX = np.arange(12.0).reshape(-1, 1)\ny = X[:, 0] * 2"
OWN = (
    "class LinearRegression:\n    def fit(self, X, y, rate=0.5):\n        self.mean = y.mean() * rate\n        return self\n"
    "    def predict(self, X):\n        return np.full(len(X), self.mean)"
)


def test_a_class_of_the_notebook_gives_way_to_an_import(tmp_path: Path) -> None:
    metrics = trained(
        tmp_path,
        DATA,
        OWN,
        "mine = LinearRegression()\nmine.fit(X, y, rate=1.0)\nerror_mine = float(np.mean((mine.predict(X) - y) ** 2))\nprint(error_mine)",
        "from sklearn.linear_model import LinearRegression\nmodel = LinearRegression(fit_intercept=True)\nmodel.fit(X, y)\nscore = model.score(X, y)\nprint(score)",
    )
    assert metrics["score"] > 0.999


def test_an_import_gives_way_to_a_class_of_the_notebook(tmp_path: Path) -> None:
    metrics = trained(
        tmp_path,
        DATA,
        "from sklearn.linear_model import LinearRegression\nreference = LinearRegression(fit_intercept=True)\nreference.fit(X, y)\nscore = reference.score(X, y)\nprint(score)",
        OWN,
        "model = LinearRegression()\nmodel.fit(X, y, rate=1.0)\nfrom sklearn.metrics import mean_squared_error\nerror = mean_squared_error(y, model.predict(X))\nprint(error)",
    )
    assert metrics["error"] > 1
