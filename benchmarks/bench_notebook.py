"""Reading, understanding and converting notebooks, beside nbformat, nbconvert and jupytext: ``python benchmarks/bench_notebook.py``.

The notebook is the sample `breast_cancer_lightgbm`, its code cells repeated under new names until there are 50 or 500 cells.
Every figure is the median of several runs in one process, warm, but for those called cold: the first in a fresh process that
has imported what it needs. The commands at the end are whole processes.
"""

from __future__ import annotations

import copy
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import nbformat
from rich.console import Console
from rich.table import Table

from notebooked_dagster.codegen import generate
from notebooked_dagster.notebook.analysis import analyse, analyse_path
from notebooked_dagster.notebook.reader import read_notebook
from notebooked_dagster.resources.code_state import code_state

ROOT = Path(__file__).parents[1]
SAMPLE = ROOT / "notebooks" / "experiments" / "breast_cancer_lightgbm.ipynb"


def notebook_of(cells: int, folder: Path) -> Path:
    """A notebook with that many cells."""
    document = nbformat.read(SAMPLE, as_version=4)
    original = document.cells
    made: list[nbformat.NotebookNode] = []
    number = 0
    while len(made) < cells:
        for cell in original:
            new = copy.deepcopy(cell)
            new.id = f"c{len(made)}"
            if number and new.cell_type == "code":
                # Other names, so that the copies are not one long chain of redefinitions.
                new.source = new.source.replace("X_", f"X{number}_").replace("model", f"model{number}")
            made.append(new)
        number += 1
    document.cells = made[:cells]
    path = folder / f"{cells}.ipynb"
    nbformat.write(document, path)
    return path


def median(work: Callable[[], object], runs: int) -> float:
    """Milliseconds."""
    work()
    times = []
    for _ in range(runs):
        start = time.perf_counter()
        work()
        times.append((time.perf_counter() - start) * 1000)
    return statistics.median(times)


def whole(command: list[str], runs: int = 5) -> float:
    """Milliseconds of a whole process."""
    return median(lambda: subprocess.run(command, check=True, capture_output=True), runs)


_OURS = """
from pathlib import Path
from notebooked_dagster.notebook.analysis import analyse_path
def work(path): analyse_path(Path(path))
"""
_THEIRS = """
from nbconvert import PythonExporter
exporter = PythonExporter()
def work(path): exporter.from_filename(path)
"""
_TIMED = """
import sys, time
start = time.perf_counter()
work(sys.argv[1])
print((time.perf_counter() - start) * 1000)
"""


def cold(setup: str, path: Path, runs: int = 5) -> float:
    """Milliseconds of the first call in a fresh process."""
    command = [sys.executable, "-W", "ignore", "-c", setup + _TIMED, str(path)]
    return statistics.median(
        float(subprocess.run(command, check=True, capture_output=True, text=True).stdout.split()[-1])
        for _ in range(runs)
    )


def main() -> None:
    """Print the table."""
    import jupytext
    from nbconvert import PythonExporter

    from notebooked_dagster.config import ExperimentConfig

    table = Table("what", "cells", "ours ms", "peer", "peer ms", "peer / ours", title="Notebooks")

    def row(what: str, cells: int, ours: float, peer: str, theirs: float | None) -> None:
        ratio = f"{theirs / ours:.1f}" if theirs else ""
        table.add_row(what, str(cells), f"{ours:.2f}", peer, f"{theirs:.2f}" if theirs else "", ratio)

    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for cells, runs in ((50, 20), (500, 5)):
            path = notebook_of(cells, folder)
            reading = median(lambda p=path: read_notebook(p), runs)
            row("read", cells, reading, "nbformat", median(lambda p=path: nbformat.read(p, 4), runs))
            ours = median(lambda p=path: analyse_path(p), runs)
            exporter = PythonExporter()
            row(
                "read + analyse + hash",
                cells,
                ours,
                "nbconvert",
                median(lambda p=path, e=exporter: e.from_filename(str(p)), runs),
            )
            row(
                "",
                cells,
                ours,
                "jupytext",
                median(lambda p=path: jupytext.writes(jupytext.read(p), fmt="py:percent"), runs),
            )
            row("read + analyse + hash, cold", cells, cold(_OURS, path), "nbconvert", cold(_THEIRS, path))
            config = ExperimentConfig(name="x", notebook=path)
            state = folder / "state"
            row(
                "unchanged file",
                cells,
                median(lambda p=path, c=config, s=state: code_state(p, c, s), runs),
                "",
                None,
            )
            analysis = analyse(read_notebook(path))
            row("generate all scripts", cells, median(lambda a=analysis: generate(a), runs), "", None)
        path = folder / "50.ipynb"
        binary = Path(sys.executable).parent
        ours = whole([str(binary / "notebooked"), "convert", str(path), "-o", str(folder / "out")])
        peer = whole(
            [
                str(binary / "jupyter"),
                "nbconvert",
                "--to",
                "script",
                "--output-dir",
                str(folder / "nb"),
                str(path),
            ]
        )
        row("whole command: convert", 50, ours, "jupyter nbconvert", peer)
    Console(width=120).print(table)


if __name__ == "__main__":
    main()
