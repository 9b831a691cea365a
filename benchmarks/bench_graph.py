"""What the graph costs on top of the training itself: ``python benchmarks/bench_graph.py [experiment]``.

The same sample notebook is run with papermill, as ``python train.py``, and as the Dagster job with and without MLflow, each as a
whole process. The median of the runs counts.
"""

from __future__ import annotations

import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from rich.console import Console
from rich.table import Table

from notebooked_dagster.codegen import generate, write_scripts
from notebooked_dagster.notebook.analysis import analyse_path

ROOT = Path(__file__).parents[1]
BIN = Path(sys.executable).parent


def seconds(command: list[str], folder: Path, environment: dict[str, str], runs: int = 3) -> float:
    """Median seconds of a whole process."""
    times = []
    for _ in range(runs):
        start = time.perf_counter()
        subprocess.run(command, cwd=folder, env=environment, check=True, capture_output=True)
        times.append(time.perf_counter() - start)
    return statistics.median(times)


def main() -> None:
    """Print the table."""
    name = sys.argv[1] if len(sys.argv) > 1 else "digits_classifier"
    notebook = ROOT / "notebooks" / "experiments" / f"{name}.ipynb"
    table = Table("how the notebook is trained", "seconds", "to papermill", title=name)
    with tempfile.TemporaryDirectory() as temporary:
        state = Path(temporary)
        environment = {
            **os.environ,
            "DAGSTER_HOME": str(ROOT),
            "NOTEBOOKED_STATE_DIR": str(state / "state"),
            "NOTEBOOKED_SCRIPTS_DIR": str(state / "scripts"),
            "MPLBACKEND": "Agg",
        }
        scripts = state / "plain"
        write_scripts(generate(analyse_path(notebook)), scripts)
        papermill = seconds(
            [str(BIN / "papermill"), str(notebook), str(state / "out.ipynb")], notebook.parent, environment
        )
        plain = seconds([sys.executable, "train.py"], scripts, environment)
        job = ["job", "execute", "-m", "notebooked_dagster.definitions", "-j", f"{name}_train_job"]
        graph = seconds([str(BIN / "dagster"), *job], ROOT, environment)
        for what, value in (
            ("papermill NOTEBOOK", papermill),
            ("python train.py", plain),
            (f"dagster job execute -j {name}_train_job (with MLflow)", graph),
        ):
            table.add_row(what, f"{value:.2f}", f"{value / papermill:.2f}")
    Console(width=110).print(table)


if __name__ == "__main__":
    main()
