"""The scripts of the sample notebooks, as files a reviewer reads: ``python -m tests.golden.regenerate`` writes them anew."""

from __future__ import annotations

import shutil
from pathlib import Path

from notebooked_dagster.codegen import generate
from notebooked_dagster.notebook.analysis import analyse_path

ROOT = Path(__file__).parents[2]
FILES = Path(__file__).with_name("files")
SCRIPTS = ("preprocess.py", "train.py", "inference.py")


def notebooks() -> list[Path]:
    """The sample notebooks."""
    return sorted((ROOT / "notebooks" / "experiments").glob("*.ipynb"))


def scripts_of(notebook: Path) -> dict[str, str]:
    """What is held golden of a notebook's scripts: not the versions that happen to be installed."""
    files = generate(analyse_path(notebook)).files
    return {name: files[name] for name in SCRIPTS}


def main() -> None:
    """Write all files."""
    shutil.rmtree(FILES, ignore_errors=True)
    for notebook in notebooks():
        folder = FILES / notebook.stem
        folder.mkdir(parents=True)
        for name, text in scripts_of(notebook).items():
            # The ending keeps linters and test collectors away: these are data.
            (folder / f"{name}.txt").write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
