from __future__ import annotations

from pathlib import Path

import pytest

from notebooked_dagster.codegen import GeneratedScripts, generate, report, write_scripts
from notebooked_dagster.errors import DriftError
from notebooked_dagster.notebook.analysis import analyse
from notebooked_dagster.notebook.model import Cell, Notebook

TRAINING = """\
from sklearn.datasets import load_iris
from sklearn.linear_model import LogisticRegression
X, y = load_iris(return_X_y=True)
model = LogisticRegression(C=1.0, max_iter=500)
model.fit(X, y)
print(model.score(X, y))"""


def scripts(source: str = TRAINING) -> GeneratedScripts:
    return generate(analyse(Notebook(Path("n.ipynb"), (Cell(0, "code", source),))))


def test_the_second_time_nothing_is_written(tmp_path: Path) -> None:
    assert "train.py" in write_scripts(scripts(), tmp_path).written
    again = write_scripts(scripts(), tmp_path)
    assert again.written == ()
    assert "train.py" in again.unchanged


def test_what_the_notebook_changed_is_written(tmp_path: Path) -> None:
    write_scripts(scripts(), tmp_path)
    assert write_scripts(scripts(TRAINING.replace("C=1.0", "C=2.0")), tmp_path).written
    assert "C=2.0" in (tmp_path / "train.py").read_text()


def test_a_hand_edited_script_is_refused_and_nothing_else_is_touched(tmp_path: Path) -> None:
    write_scripts(scripts(), tmp_path)
    train, other = tmp_path / "train.py", (tmp_path / "preprocess.py").read_bytes()
    train.write_text(train.read_text() + "# mine\n")
    with pytest.raises(DriftError, match=r"train\.py was edited by hand; nothing was overwritten") as raised:
        write_scripts(scripts(TRAINING.replace("load_iris", "load_wine")), tmp_path)
    assert "+# mine" in raised.value.details["diff"]
    assert train.read_text().endswith("# mine\n")
    assert (tmp_path / "preprocess.py").read_bytes() == other


def test_force_replaces_and_keeps_the_edited_file(tmp_path: Path) -> None:
    write_scripts(scripts(), tmp_path)
    train = tmp_path / "train.py"
    train.write_text(train.read_text() + "# mine\n")
    done = write_scripts(scripts(), tmp_path, force=True)
    assert not train.read_text().endswith("# mine\n")
    assert [path.read_text().endswith("# mine\n") for path in done.kept] == [True]


def test_a_file_that_was_never_ours_is_not_overwritten(tmp_path: Path) -> None:
    (tmp_path / "train.py").write_text("print('mine')\n")
    with pytest.raises(DriftError, match="is not one of ours"):
        write_scripts(scripts(), tmp_path)
    assert not (tmp_path / "preprocess.py").exists()


def test_three_ways_are_told_apart(tmp_path: Path) -> None:
    write_scripts(scripts(), tmp_path)
    train = tmp_path / "train.py"
    train.write_text(train.read_text().replace("max_iter=500", "max_iter=900"))
    changed = scripts(TRAINING.replace("C=1.0", "C=3.0"))
    state = {file.name: file for file in report(tmp_path, changed).files}
    assert state["train.py"].state.value == "edited-and-regenerated"
    assert "+" in state["train.py"].edits()
    assert "C=3.0" in state["train.py"].changes()
    assert state["preprocess.py"].state.value == "unchanged"


def test_an_edit_of_the_notebooks_own_line_becomes_a_patch_of_its_cell(tmp_path: Path) -> None:
    made = scripts()
    write_scripts(made, tmp_path)
    train = tmp_path / "train.py"
    train.write_text(train.read_text().replace("C=1.0", "C=9.0").replace("import sys", "import sys  # frame"))
    patch = report(tmp_path, made).cell_patch(made.source_map)
    assert "n.ipynb cell 1" in patch
    assert "-model = LogisticRegression(C=1.0, max_iter=500)" in patch
    assert "+model = LogisticRegression(C=9.0, max_iter=500)" in patch
    assert "not in a cell: train.py" in patch


def test_a_damaged_manifest_makes_changed_files_somebodys(tmp_path: Path) -> None:
    write_scripts(scripts(), tmp_path)
    (tmp_path / ".notebooked" / "manifest.json").write_text("{")
    assert write_scripts(scripts(), tmp_path).written == ()
    (tmp_path / ".notebooked" / "manifest.json").write_text("{")
    with pytest.raises(DriftError):
        write_scripts(scripts(TRAINING.replace("C=1.0", "C=2.0")), tmp_path)
