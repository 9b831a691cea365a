from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from notebooked_dagster.codegen import generate, write_scripts
from notebooked_dagster.notebook.analysis import analyse
from notebooked_dagster.notebook.model import Cell, Notebook

SOURCE = """\
import numpy as np
import pandas as pd
import statsmodels.formula.api as smf

def doubled(x):
    return 2 * x

df = pd.DataFrame({"x": np.arange(20.0), "y": 3 * np.arange(20.0) + 1})
formula = "y ~ doubled(x)"
model = smf.ols(formula, data=df).fit()
print(model.rsquared)"""


def test_a_function_that_only_a_formula_names_is_there_when_it_is_evaluated(tmp_path: Path) -> None:
    cells = tuple(Cell(index, "code", part) for index, part in enumerate(SOURCE.split("\n\n")))
    write_scripts(generate(analyse(Notebook(Path("n.ipynb"), cells))), tmp_path)
    done = subprocess.run(
        [sys.executable, "train.py"], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
