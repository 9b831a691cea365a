"""Roles, slices, hashes and findings of whole notebooks, through :func:`analyse`."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

from notebooked_dagster.notebook.analysis import AnalysisOptions, analyse
from notebooked_dagster.notebook.model import Analysis, Cell, Notebook, Role, Stage


def notebook(*cells: str | Cell) -> Notebook:
    made = [cell if isinstance(cell, Cell) else Cell(index, "code", cell) for index, cell in enumerate(cells)]
    return Notebook(Path("n.ipynb"), tuple(made))


def tagged(index: int, source: str, *tags: str) -> Cell:
    return Cell(index, "code", source, tags=tags)


def code_of(analysis: Analysis, stage: Stage) -> str:
    return "\n".join(statement.text for statement in analysis.slices[stage].statements)


PLAIN = (
    "import pandas as pd\nimport numpy as np\nimport matplotlib.pyplot as plt\nfrom sklearn.linear_model import LogisticRegression\n"
    "from sklearn.model_selection import train_test_split\nfrom sklearn.metrics import accuracy_score\nfrom sklearn.preprocessing import StandardScaler",
    "np.random.seed(1)",
    "df = pd.read_csv('d.csv')\ndf.head()",
    "df['a'] = df['a'].fillna(0)\ndf.hist()\nplt.show()",
    "df.describe()",
    "X = df.drop('y', axis=1)\ny = df['y']\nX_train, X_test, y_train, y_test = train_test_split(X, y)",
    "scaler = StandardScaler()\nX_train = scaler.fit_transform(X_train)\nX_test = scaler.transform(X_test)",
    "C = 0.5\nclf = LogisticRegression(C=C)\nclf.fit(X_train, y_train)",
    "pred = clf.predict(X_test)\nacc = accuracy_score(y_test, pred)\nprint('accuracy', acc)",
    "plt.plot(pred)",
    "new = [[1.0, 2.0]]\nclf.predict(scaler.transform(new))",
)


def test_an_untagged_notebook() -> None:
    analysis = analyse(notebook(*PLAIN))
    first = {entry.cell: entry.roles[0] for entry in analysis.classes}
    assert first == {
        0: Role.IMPORTS, 1: Role.PREPROCESS, 2: Role.PREPROCESS, 3: Role.PREPROCESS, 4: Role.EXPLORE, 5: Role.PREPROCESS,
        6: Role.PREPROCESS, 7: Role.TRAIN, 8: Role.EVALUATE, 9: Role.PLOT, 10: Role.INFERENCE,
    }  # fmt: skip
    assert analysis.model_names[0] == "clf"
    train = code_of(analysis, Stage.TRAIN)
    for wanted in (
        "np.random.seed(1)",
        "df['a'] =",
        "clf.fit",
        "accuracy_score(",
        "print('accuracy', acc)",
        "C = 0.5",
    ):
        assert wanted in train
    for unwanted in ("plt", "hist", "head", "describe", "new ="):
        assert unwanted not in train
    inference = analysis.slices[Stage.INFERENCE]
    assert "clf" in inference.inputs
    assert "clf.fit" not in code_of(analysis, Stage.INFERENCE)
    assert all(entry.reason and 0 < entry.confidence <= 1 for entry in analysis.classes)


def test_tags_win() -> None:
    analysis = analyse(
        notebook(
            tagged(0, "x = load()", "preprocess"),
            tagged(1, "import a\nthing = a.make(x)", "train"),
            tagged(2, "thing.fit(x)", "skip"),
        )
    )
    assert [entry.roles for entry in analysis.classes] == [(Role.PREPROCESS,), (Role.TRAIN,), (Role.SKIP,)]
    assert all(entry.explicit and entry.confidence == 1.0 for entry in analysis.classes)
    assert "thing.fit" not in code_of(analysis, Stage.TRAIN)


@pytest.mark.parametrize(
    ("cells", "model"),
    [
        (["from sklearn.svm import SVC", "m = SVC().fit(X, y)", "print(m.score(X, y))"], "m"),
        (["import statsmodels.api as sm", "res = sm.OLS(y, X).fit()", "print(res.summary())"], "res"),
        (["import lightgbm as lgb", "b = lgb.train({}, d)", "b.predict(q)"], "b"),
        (
            [
                "from keras.models import Sequential",
                "net = Sequential()",
                "net.compile('adam')",
                "h = net.fit(X, y)",
            ],
            "net",
        ),
        (
            [
                "import torch\nfrom torch import nn",
                "net = nn.Linear(3, 1)\nopt = torch.optim.SGD(net.parameters(), lr=0.1)",
                "for x, y in data:\n  opt.zero_grad()\n  l = f(net(x), y)\n  l.backward()\n  opt.step()",
            ],
            "net",
        ),
        (
            [
                "from sklearn.svm import SVC\nfrom sklearn.model_selection import GridSearchCV",
                "g = GridSearchCV(SVC(), {})\ng.fit(X, y)",
                "best = g.best_estimator_",
                "best.predict(X)",
            ],
            "best",
        ),
        (
            [
                "def train_model(model, data):\n  for d in data:\n    model.fit(d)\n  return model",
                "from sklearn.svm import SVC\nclf = SVC()",
                "train_model(clf, batches)",
            ],
            "clf",
        ),
    ],
)
def test_the_model_is_found(cells: list[str], model: str) -> None:
    analysis = analyse(notebook(*cells))
    assert Stage.TRAIN in analysis.slices
    assert analysis.model_names[0] == model


def test_a_named_model_comes_first() -> None:
    cells = ("from sklearn.svm import SVC", "a = SVC().fit(X, y)", "b = SVC().fit(X, y)", "b.predict(Z)")
    assert analyse(notebook(*cells)).model_names[0] == "b"
    assert analyse(notebook(*cells), AnalysisOptions(model_name="a")).model_names[0] == "a"


def test_the_optimizer_steps_the_model() -> None:
    analysis = analyse(
        notebook(
            "import torch\nfrom torch import nn\nnet = nn.Linear(3, 1)",
            "opt = torch.optim.SGD(net.parameters(), lr=0.1)",
            "def step(x):\n  opt.zero_grad()\n  (net(x) ** 2).mean().backward()\n  opt.step()",
            "for i in range(3):\n  step(torch.ones(3))",
            "print('loss', net(torch.zeros(3)))",
        )
    )
    assert "net" in analysis.statements[-2].mutates
    assert "step(" in code_of(analysis, Stage.TRAIN)


def test_aliases_carry_changes() -> None:
    analysis = analyse(
        notebook(
            "import pandas as pd\nfrom sklearn.svm import SVC",
            "a = pd.read_csv('a.csv')\nb = pd.read_csv('b.csv')\nboth = [a, b]",
            "for d in both:\n    d['n'] = 1",
            "m = SVC().fit(a, a['n'])",
        )
    )
    assert "for d in both" in code_of(analysis, Stage.TRAIN)


def test_functions_bring_what_they_read() -> None:
    analysis = analyse(
        notebook(
            "from sklearn.svm import SVC\nimport pandas as pd",
            "k = 3",
            "def inner(v):\n  return v * k",
            "def prepare(v):\n  return inner(v)",
            "X = prepare(pd.read_csv('x.csv'))",
            "m = SVC().fit(X, X)",
        )
    )
    assert "k = 3" in code_of(analysis, Stage.TRAIN)
    assert "def inner" in code_of(analysis, Stage.TRAIN)


def test_a_redefinition_between_uses_keeps_its_place() -> None:
    analysis = analyse(
        notebook(
            "from sklearn.svm import SVC\nX = load()",
            "m = SVC()\nm.fit(X, y)\nprint('acc', m.score(X, y))",
            "X = X * 2",
            "m.fit(X, y)\nprint('acc', m.score(X, y))",
        )
    )
    roles = {statement.text: statement.role for statement in analysis.statements}
    assert roles["X = X * 2"] is Role.TRAIN
    assert [s.role for s in analysis.statements if "score" in s.text] == [Role.TRAIN, Role.EVALUATE]


def test_used_before_definition_falls_back_and_is_reported() -> None:
    analysis = analyse(notebook("from sklearn.svm import SVC\nm = SVC().fit(X, y)", "X = 1\ny = 2"))
    assert "X = 1" in code_of(analysis, Stage.TRAIN)
    assert {finding.name for finding in analysis.findings} == {"used-before-definition"}


def test_undefined_names_are_reported_once_each() -> None:
    analysis = analyse(notebook("print(nowhere)", "def f():\n  return also_nowhere"))
    assert [finding.rule for finding in analysis.findings] == ["NB102", "NB102"]


def test_a_notebook_without_training_has_no_train_slice() -> None:
    analysis = analyse(notebook("import math", "math.sqrt(2)", "x = [1, 2]\nx"))
    assert Stage.TRAIN not in analysis.slices
    assert analysis.model_names == ()


@pytest.mark.parametrize(
    "source",
    [
        "x = " + "+".join(["1"] * 3000),
        "x = a" + ".b" * 3000,
        "if a:\n  pass\n" + "".join(f"elif a == {n}:\n  b = {n}\n" for n in range(400)),
        "x = 'a\x00b'",
        "x = '\ud800'",
        "def f(:\n",
        "return 5",
        "nonlocal q",
        "class A(A): pass\nA().fit(1)",
        "class A(B): pass\nclass B(A): pass\nA().fit(1)",
        "def f(): return g()\ndef g(): return f()\nf()",
        "a=1; import os; del a; plt.plot(a)",
        "",
        "# only a comment",
    ],
)
def test_no_content_breaks_analysis(source: str) -> None:
    analysis = analyse(notebook("import sklearn", source, "from sklearn.svm import SVC\nm = SVC().fit(X, y)"))
    assert Stage.TRAIN in analysis.slices


def test_statements_on_one_line_are_apart() -> None:
    analysis = analyse(notebook("a = 1; b = 'é'; c = b"))
    assert [statement.text for statement in analysis.statements] == ["a = 1", "b = 'é'", "c = b"]


def test_every_slice_compiles() -> None:
    analysis = analyse(notebook(*PLAIN))
    for part in analysis.slices.values():
        ast.parse("\n".join(statement.text for statement in part.statements))


def test_another_language_is_said_and_not_analysed() -> None:
    other = Notebook(Path("n.ipynb"), (Cell(0, "code", "x = fit(y)"),), language="R")
    analysis = analyse(other)
    assert analysis.statements == ()
    assert [finding.rule for finding in analysis.findings] == ["NB001"]


def test_seeds_paths_and_effect_imports_stay_with_training() -> None:
    analysis = analyse(
        notebook(
            "import random, sys, os\nimport matplotlib.pyplot as plt",
            "sys.path.append('lib')",
            "from sklearn.experimental import enable_iterative_imputer",
            "from sklearn.svm import SVC\nimport lib_of_mine",
            "def set_all(seed):\n  random.seed(seed)",
            "set_all(7)",
            "plt.rcParams['figure.dpi'] = 90",
            "m = SVC().fit(lib_of_mine.X, lib_of_mine.y)",
        )
    )
    train = code_of(analysis, Stage.TRAIN)
    for wanted in ("sys.path.append", "enable_iterative_imputer", "set_all(7)"):
        assert wanted in train
    assert "rcParams" not in train


def test_inference_reads_what_only_training_makes() -> None:
    analysis = analyse(
        notebook(
            "from sklearn.svm import SVC\nimport pandas as pd",
            "df = pd.read_csv('d.csv')",
            tagged(2, "mean = df.mean()\nm = SVC()\nm.fit(df - mean, df)", "train"),
            tagged(3, "m.predict(new - mean)", "inference"),
        )
    )
    skew = [finding for finding in analysis.findings if finding.name == "train-inference-skew"]
    assert len(skew) == 1
    assert "mean" in skew[0].message
    assert skew[0].cell == 3


def test_what_a_lambda_reads_is_needed_however_the_slice_is_walked() -> None:
    analysis = analyse(
        notebook(
            "import math\nimport numpy as np\nfrom sklearn.linear_model import Ridge",
            "X = np.arange(10.0).reshape(-1, 1)\ny = X[:, 0]\nscale = lambda x: x / math.sqrt(2.0)",
            "model = Ridge()\nmodel.fit(scale(X), scale(y))\nprint(model.score(scale(X), scale(y)))",
        )
    )
    assert "import math" in code_of(analysis, Stage.TRAIN)
    assert "import math" in code_of(analysis, Stage.PREPROCESS)


def test_names_in_formulas_and_queries_are_read() -> None:
    analysis = analyse(
        notebook(
            "import statsmodels.formula.api as smf\nimport pandas as pd\nimport numpy as np",
            "def double_it(x):\n    return 2 * x",
            "limit = 3\nunused = 4",
            "df = pd.read_csv('d.csv').query('a > @limit')",
            "formula = 'y ~ double_it(a) + np.log(b)'\nresults = smf.ols(formula, data=df).fit()\nprint(results.rsquared)",
        )
    )
    train = code_of(analysis, Stage.TRAIN)
    for wanted in ("def double_it", "limit = 3", "import numpy as np"):
        assert wanted in train
    assert "unused" not in train


def test_a_training_function_of_another_module_trains_the_model_it_is_given() -> None:
    analysis = analyse(
        notebook(
            "import torch\nfrom torch import nn\nfrom going_modular import engine, data_setup",
            "model = nn.Linear(2, 1)\nloader = data_setup.create('d')",
            "results = engine.train(model=model, loader=loader, epochs=2)",
            "parts = data_setup.train_test(model)",
        )
    )
    assert analysis.model_names[0] == "model"
    assert "engine.train(" in code_of(analysis, Stage.TRAIN)


def test_a_training_function_of_another_module_names_its_model() -> None:
    analysis = analyse(
        notebook(
            "from going_modular import engine",
            "def make():\n    return object(), 3",
            "net, size = make()\nresults = engine.train(model=net, epochs=2)",
        )
    )
    assert analysis.model_names[0] == "net"
