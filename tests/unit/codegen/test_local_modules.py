"""Modules beside the notebook travel with the scripts, unless nothing could import them."""

from __future__ import annotations

from pathlib import Path

import pytest

from notebooked_dagster.codegen import GeneratedScripts, GenerateOptions, generate
from notebooked_dagster.notebook.analysis import analyse
from notebooked_dagster.notebook.model import Cell, Notebook


def scripts(folder: Path) -> GeneratedScripts:
    source = "import mine\nfrom sklearn.linear_model import Ridge\nmodel = Ridge().fit(mine.X, mine.y)\nprint(model.score(mine.X, mine.y))"
    return generate(
        analyse(Notebook(folder / "n.ipynb", (Cell(0, "code", source),))), GenerateOptions(experiment="n")
    )


def test_a_module_is_copied_in_whatever_encoding_it_declares(tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_bytes(
        "# coding: latin-1\nX = [[1]]\ny = [1]  # f\u00fcr\n".encode("latin-1")
    )
    assert scripts(tmp_path).files["mine.py"] == "# coding: utf-8\nX = [[1]]\ny = [1]  # für\n"


@pytest.mark.parametrize("content", [b"def f(:\n", b"x = '\xff'\n", b"X = 1\0"])
def test_a_module_that_cannot_be_imported_is_named(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "mine.py").write_bytes(content)
    made = scripts(tmp_path)
    assert "mine.py" not in made.files
    assert [one.name for one in made.findings if "mine.py" in one.message] == ["broken-module"]
