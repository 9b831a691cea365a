"""The digest of what scripts do when they train."""

from __future__ import annotations

from pathlib import Path

import pytest

from notebooked_dagster.codegen.digest import training_digest


@pytest.fixture
def scripts(tmp_path: Path) -> Path:
    (tmp_path / "train.py").write_text('"""Made from a notebook."""\n\nvalue = 1  # a comment\n')
    (tmp_path / "preprocess.py").write_text("def prepare():\n    return 2\n")
    (tmp_path / "inference.py").write_text("answer = 42\n")
    (tmp_path / "requirements-train.txt").write_text("numpy==2.0\n")
    return tmp_path


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("train.py", '"""Another header."""\nvalue = (\n    1\n)\n'),
        ("inference.py", "answer = 43\n"),
        ("README.md", "Notes.\n"),
        (".notebooked/base/train.py", "value = 3\n"),
    ],
)
def test_what_training_does_not_see_does_not_count(scripts: Path, name: str, text: str) -> None:
    before = training_digest(scripts)
    (scripts / name).parent.mkdir(parents=True, exist_ok=True)
    (scripts / name).write_text(text)
    assert training_digest(scripts) == before


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("train.py", "value = 2\n"),
        ("preprocess.py", "def prepare():\n    return 3\n"),
        ("helpers.py", "x = 1\n"),
        ("requirements-train.txt", "numpy==2.1\n"),
        ("train.py", "value = (\n"),
    ],
)
def test_what_training_does_counts_whoever_changed_it(scripts: Path, name: str, text: str) -> None:
    before = training_digest(scripts)
    (scripts / name).write_text(text)
    assert training_digest(scripts) != before
