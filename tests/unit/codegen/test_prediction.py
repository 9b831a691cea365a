"""What a request is expected to hold: the raw rows, however the notebook wrote its last prediction."""

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
from sklearn.linear_model import LogisticRegression
from sklearn.preprocessing import StandardScaler

def add_features(rows):
    rows = np.asarray(rows, dtype=float)
    return np.column_stack([rows, rows[:, 2] * rows[:, 3]])

raw, y = load_iris(return_X_y=True)
scaler = StandardScaler()
X = scaler.fit_transform(add_features(raw))

model = LogisticRegression(max_iter=500).fit(X, y)
print(model.score(X, y))

"""
ASK = """\
import json, sys
import inference
model = inference.model_fn("model")
print(json.dumps(inference.predict_fn(inference.input_fn(sys.stdin.read(), "application/json"), model).tolist()))
"""


@pytest.mark.parametrize(
    "prediction",
    [
        "model.predict(scaler.transform(add_features(raw[:2])))",
        "new = add_features(raw[:2])\nmodel.predict(scaler.transform(new))",
        "new = scaler.transform(add_features(raw[:2]))\nprint(model.predict(new))",
        "new = scaler.transform(add_features([[5.1, 3.5, 1.4, 0.2], [4.9, 3.0, 1.4, 0.2]]))\nanswer = model.predict(new)\nanswer",
        "def predict(rows):\n    return model.predict(scaler.transform(add_features(rows)))",
    ],
)
def test_raw_rows_are_what_it_takes(prediction: str, tmp_path: Path) -> None:
    cells = tuple(Cell(index, "code", part) for index, part in enumerate((START + prediction).split("\n\n")))
    write_scripts(generate(analyse(Notebook(Path("n.ipynb"), cells))), tmp_path)

    def run(*arguments: str, given: str = "") -> str:
        done = SCRIPTS.run(arguments, cwd=tmp_path, given=given)
        assert done.returncode == 0, done.stderr
        return done.stdout

    run("train.py")
    (tmp_path / "ask.py").write_text(ASK)
    rows = [[5.1, 3.5, 1.4, 0.2], [6.3, 3.3, 6.0, 2.5]]
    assert json.loads(run("ask.py", given=json.dumps({"inputs": rows})).splitlines()[-1]) == [0, 2]


@pytest.mark.parametrize(
    ("written", "made"),
    [
        ("model.predict(X_test.head(3)) + 100", "return model.predict(data) + 100"),
        ("names[model.predict(X_test.iloc[:3])]", "return names[model.predict(data)]"),
        ("model.predict_proba(X_test.sample(5))[:, 1]", "return model.predict_proba(data)[:, 1]"),
    ],
)
def test_what_is_made_of_a_prediction_of_some_rows_is_kept(written: str, made: str) -> None:
    parts = (
        "from sklearn.datasets import load_iris\nfrom sklearn.linear_model import LogisticRegression",
        "import numpy as np\nX, y = load_iris(return_X_y=True, as_frame=True)\nX_test = X[100:]\nnames = np.array(['a', 'b', 'c'])",
        "model = LogisticRegression(max_iter=500).fit(X, y)\nprint(model.score(X, y))",
        written,
    )
    cells = tuple(Cell(index, "code", part) for index, part in enumerate(parts))
    assert made in generate(analyse(Notebook(Path("n.ipynb"), cells))).files["inference.py"]
