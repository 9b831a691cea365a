from __future__ import annotations

from importlib.metadata import version
from pathlib import Path

from notebooked_dagster.codegen.requirements import Requirements, requirements_for
from notebooked_dagster.notebook.analysis import analyse
from notebooked_dagster.notebook.model import Cell, Notebook


def wanted(source: str, folder: Path | None = None, pinned: tuple[str, ...] = ()) -> Requirements:
    analysis = analyse(Notebook(Path("n.ipynb"), (Cell(0, "code", source),)))
    return requirements_for(analysis.statements, pinned, (), folder)


def test_imports_are_pinned_to_what_is_installed_under_the_distributions_name() -> None:
    found = wanted("import os, json\nimport sklearn.svm\nimport yaml\nfrom numpy import array")
    assert f"scikit-learn=={version('scikit-learn')}" in found.lines
    assert f"numpy=={version('numpy')}" in found.lines
    assert any(line.lower().startswith("pyyaml==") for line in found.lines)
    assert len(found.lines) == 3


def test_an_import_inside_a_function_counts() -> None:
    found = wanted("def f():\n    import pandas as pd\n    return pd.DataFrame()\nf()")
    assert found.lines == (f"pandas=={version('pandas')}",)


def test_the_notebooks_own_pin_wins() -> None:
    assert wanted("import numpy", pinned=("numpy==1.26.4", "unrelated>=2")).lines == ("numpy==1.26.4",)


def test_what_is_not_installed_is_named_unpinned_and_said() -> None:
    found = wanted("import surely_not_installed_here\nimport cv2")
    assert found.lines == ("opencv-python", "surely_not_installed_here")
    assert {finding.rule for finding in found.findings} == {"NB410"}


def test_a_module_beside_the_notebook_is_copied_and_not_required(tmp_path: Path) -> None:
    (tmp_path / "helper_of_mine.py").write_text("x = 1\n")
    found = wanted("import helper_of_mine", tmp_path)
    assert found.lines == ()
    assert found.local_modules == (tmp_path / "helper_of_mine.py",)
