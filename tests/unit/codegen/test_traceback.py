from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from notebooked_dagster.codegen import generate, write_scripts
from notebooked_dagster.codegen.traceback import locate, remap
from notebooked_dagster.notebook.analysis import analyse
from notebooked_dagster.notebook.model import Cell, Notebook

CELLS = (
    Cell(0, "markdown", "# A failing one"),
    Cell(1, "code", "import numpy as np\nfrom sklearn.linear_model import Ridge"),
    Cell(2, "code", "X = np.arange(8.0).reshape(4, 2)\ny = np.arange(4.0)"),
    Cell(3, "code", "def checked(values):\n    # a comment\n    return values / int(0)\n\nmodel = Ridge()\nmodel.fit(X, checked(1))"),
)  # fmt: skip


@pytest.fixture(scope="module")
def failed(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """The folder of scripts and what their training printed when it failed."""
    folder = tmp_path_factory.mktemp("scripts")
    write_scripts(generate(analyse(Notebook(Path("failing.ipynb"), CELLS))), folder)
    done = subprocess.run(
        [sys.executable, "train.py"], cwd=folder, capture_output=True, text=True, check=False
    )
    assert done.returncode == 1
    return folder, done.stderr


def test_a_real_traceback_names_notebook_cell_and_line(failed: tuple[Path, str]) -> None:
    folder, text = failed
    shown = remap(text, folder)
    assert 'File "failing.ipynb", cell 4, line 6, in train (train.py, line' in shown
    assert 'File "failing.ipynb", cell 4, line 3, in checked' in shown
    assert "    return values / int(0)" in shown
    assert shown.rstrip().endswith("ZeroDivisionError: division by zero")


def test_a_log_with_something_in_front_of_each_line_is_rewritten_too(failed: tuple[Path, str]) -> None:
    folder, text = failed
    log = "\n".join(f"2026-01-01 00:00:00 ERROR {line}" for line in text.splitlines())
    shown = remap(log, folder)
    assert '2026-01-01 00:00:00 ERROR   File "failing.ipynb", cell 4, line 6, in train' in shown
    assert len(shown.splitlines()) <= len(log.splitlines())


def test_the_innermost_place_comes_last(failed: tuple[Path, str]) -> None:
    folder, text = failed
    assert [(place.cell, place.line) for place in locate(text, folder)] == [(4, 6), (4, 3)]


def test_other_text_and_other_scripts_pass_unchanged(failed: tuple[Path, str], tmp_path: Path) -> None:
    folder, text = failed
    foreign = 'Traceback (most recent call last):\n  File "/x/other.py", line 3, in f\n    g()\nKeyError: 1'
    assert remap(foreign, folder) == foreign
    assert remap(remap(text, folder), folder) == remap(text, folder)
    assert remap(text, tmp_path) == text
    (tmp_path / "source_map.json").write_text("{")
    assert remap(text, tmp_path) == text


def test_a_warning_names_the_cell(failed: tuple[Path, str]) -> None:
    folder, text = failed
    number = next(line.split("line ")[1].split(",")[0] for line in text.splitlines() if "in train" in line)
    warned = f"/somewhere/train.py:{number}: UserWarning: careful"
    assert remap(warned, folder) == "failing.ipynb, cell 4, line 6: UserWarning: careful"
