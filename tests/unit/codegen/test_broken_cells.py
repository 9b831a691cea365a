from __future__ import annotations

from pathlib import Path

import pytest

from notebooked_dagster.codegen import GenerateOptions, generate
from notebooked_dagster.errors import CellSyntaxError, CodegenError
from notebooked_dagster.notebook.analysis import analyse
from notebooked_dagster.notebook.model import Analysis, Cell, Notebook

BROKEN = "import pandas as pd\ndf = pd.DataFrame({'a': [1, 2], 'b': [3, 4]})\ndf.x ==== 3"
TRAIN = "from sklearn.linear_model import Ridge\nmodel = Ridge()\nmodel.fit(df[['a']], df['b'])"


def notebook(*sources: str) -> Analysis:
    cells = tuple(Cell(index, "code", source) for index, source in enumerate(sources))
    return analyse(Notebook(Path("n.ipynb"), cells))


def test_training_that_needs_a_broken_cell_is_refused_with_that_cell_named() -> None:
    with pytest.raises(
        CellSyntaxError, match=r"n\.ipynb, cell 1, line 3: It does not parse .*`df`"
    ) as raised:
        generate(notebook(BROKEN, TRAIN), GenerateOptions(strict=True))
    assert raised.value.exit_code == 1


def test_converting_it_says_so_and_goes_on() -> None:
    made = generate(notebook(BROKEN, TRAIN))
    assert [(finding.rule, finding.cell) for finding in made.findings if finding.rule == "NB415"] == [
        ("NB415", 0)
    ]


def test_a_broken_cell_that_nobody_needs_is_no_reason_to_refuse() -> None:
    good = BROKEN.replace("df.x ==== 3", "")
    made = generate(notebook(good, "df.x ==== 3", TRAIN), GenerateOptions(strict=True))
    assert made.trains


def test_another_language_is_refused() -> None:
    notebook = Notebook(Path("r.ipynb"), (Cell(0, "code", "library(ggplot2)"),), language="R")
    with pytest.raises(CodegenError, match="written in R"):
        generate(analyse(notebook))


def test_a_cell_that_does_not_parse_is_told_where_nothing_needs_it() -> None:
    notebook = Notebook(Path("n.ipynb"), (Cell(0, "code", "x = ("), Cell(1, "code", "y = 1")))
    assert [(item.rule, item.cell) for item in generate(analyse(notebook)).findings][:1] == [("NB002", 0)]
