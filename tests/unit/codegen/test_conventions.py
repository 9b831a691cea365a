"""Names that notebooks take for granted."""

from __future__ import annotations

from pathlib import Path

import pytest

from notebooked_dagster.codegen import GeneratedScripts, GenerateOptions, generate
from notebooked_dagster.codegen.conventions import CONVENTIONS
from notebooked_dagster.notebook.analysis import analyse
from notebooked_dagster.notebook.model import Cell, Notebook


def scripts(*cells: str) -> GeneratedScripts:
    made = tuple(Cell(index, "code", cell) for index, cell in enumerate(cells))
    return generate(analyse(Notebook(Path("n.ipynb"), made)), GenerateOptions(experiment="n"))


def test_a_name_everybody_knows_is_imported_and_reported() -> None:
    made = scripts(
        "from sklearn.linear_model import Ridge",
        "df = pd.read_csv('d.csv')\nX = df[['a']]\ny = np.log(df['b'])",
        "model = Ridge().fit(X, y)\nprint(model.score(X, y))",
    )
    text = made.files["preprocess.py"]
    assert "import numpy as np" in text
    assert "import pandas as pd" in text
    assert "Undefined" not in text
    assert "pandas==" in made.files["requirements.txt"]
    assert {(one.name, one.cell) for one in made.findings} == {("import-supplied", 1)}
    assert text.index("import pandas as pd") < text.index("pd.read_csv")


def test_a_name_the_notebook_binds_is_its_own() -> None:
    made = scripts(
        "import numpy as np\nfrom sklearn.linear_model import Ridge\nstats = {'a': 1}",
        "X = np.ones((4, 1)) * stats['a']",
        "model = Ridge().fit(X, X)\nprint(model.score(X, X))",
    )
    assert "scipy" not in made.files["preprocess.py"]
    assert not made.findings


def test_python_2_names_have_their_heirs() -> None:
    made = scripts(
        "from sklearn.linear_model import Ridge",
        "X = [[i] for i in xrange(5)]",
        "model = Ridge().fit(X, X)\nprint(model.score(X, X))",
    )
    assert "from builtins import range as xrange" in made.files["preprocess.py"]


@pytest.mark.parametrize("name", sorted(CONVENTIONS))
def test_every_convention_binds_its_name(name: str) -> None:
    analysis = analyse(Notebook(Path("n.ipynb"), (Cell(0, "code", CONVENTIONS[name]),)))
    assert analysis.statements[0].defines == {name}
