"""What a script writes into metrics.json where the notebook calls no metric function."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from notebooked_dagster.codegen import generate, write_scripts
from notebooked_dagster.notebook.analysis import analyse
from notebooked_dagster.notebook.model import Cell, Notebook
from tests.warm import SCRIPTS

START = """\
import numpy as np
from sklearn.datasets import load_iris
from sklearn.model_selection import GridSearchCV
from sklearn.neighbors import KNeighborsClassifier

X, y = load_iris(return_X_y=True)
share = np.mean(y == y[0])

model = GridSearchCV(KNeighborsClassifier(), {"n_neighbors": [1, 5]}, cv=3)
model.fit(X[::2], y[::2])

"""


@pytest.mark.parametrize(
    ("measured", "names"),
    [
        ("pred = model.predict(X[1::2])\nprint(np.sum(pred == y[1::2]) / float(len(pred)))", {"accuracy"}),
        ("pred = model.predict(X[1::2])\n\nwrong = (pred != y[1::2]).mean()\nwrong", {"wrong"}),
        ("print(model.best_score_, model.best_params_)", {"best_score"}),
        ("model.best_score_", {"best_score"}),
        ("print(f'{(model.predict(X) == y).mean():.3f}')", {"accuracy"}),
    ],
)
def test_it_is_recorded(measured: str, names: set[str], tmp_path: Path) -> None:
    cells = tuple(Cell(index, "code", part) for index, part in enumerate((START + measured).split("\n\n")))
    write_scripts(generate(analyse(Notebook(Path("n.ipynb"), cells))), tmp_path)
    done = SCRIPTS.run(["train.py", "--model-dir", "out"], cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    (path,) = tmp_path.rglob("metrics.json")
    found = json.loads(path.read_text())
    assert set(found) == names
    assert all(0 <= value <= 1 for value in found.values())


@pytest.mark.parametrize(
    "insists", ["assert acc > 2, 'too low'", "if acc < 2:\n    raise ValueError('too low')"]
)
def test_what_a_notebook_insists_on_a_script_insists_on(insists: str) -> None:
    parts = (START + f"acc = (model.predict(X) == y).mean()\n\n{insists}\n\nmodel.predict(X[:3])").split(
        "\n\n"
    )
    cells = tuple(Cell(index, "code", part) for index, part in enumerate(parts))
    scripts = generate(analyse(Notebook(Path("n.ipynb"), cells)))
    text = next(content for name, content in scripts.files.items() if name == "train.py")
    assert "too low" in text.partition("def evaluate(")[2].partition("\ndef ")[0]
    # One request is not refused because a model was.
    assert "too low" not in scripts.files["inference.py"]
