from __future__ import annotations

from pathlib import Path

import pytest

from tests.golden.regenerate import FILES, notebooks, scripts_of


@pytest.mark.parametrize("notebook", notebooks(), ids=lambda path: path.stem)
def test_the_scripts_are_what_was_reviewed(notebook: Path) -> None:
    for name, text in scripts_of(notebook).items():
        golden = FILES / notebook.stem / f"{name}.txt"
        assert text == golden.read_text(encoding="utf-8"), f"{golden.name}: look at it, then `make golden`"


def test_the_same_notebook_gives_the_same_bytes() -> None:
    for notebook in notebooks():
        assert scripts_of(notebook) == scripts_of(notebook)
