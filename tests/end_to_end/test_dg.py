"""The `dg` command, on this project and on a new one."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

from tests.end_to_end.dagster_kit import BIN
from tests.warm import Warm

ROOT = Path(__file__).parents[2]
TYPE = "notebooked_dagster.NotebookExperiment"
DG = Warm("dagster_dg_cli.cli", "notebooked_dagster.definitions")


@pytest.fixture
def project(tmp_path: Path) -> Path:
    folder = tmp_path / "new"
    subprocess.run([str(BIN / "notebooked"), "init", str(folder)], check=True, capture_output=True)
    return folder


def dg(folder: Path, *arguments: str, started: bool = False) -> tuple[int, str]:
    """Run `dg` in a project's folder, in an interpreter of its own where ``started``; exit code and everything it said."""
    kept = {
        name: value for name, value in os.environ.items() if not name.startswith(("NOTEBOOKED_", "DAGSTER_"))
    }
    environment = {**kept, "DAGSTER_HOME": str(folder), "COLUMNS": "200"}
    if started:
        done = subprocess.run(
            [str(BIN / "dg"), *arguments],
            cwd=folder,
            env=environment,
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
        )
    else:
        done = DG.run(["dg", *arguments], cwd=folder, env=environment, timeout=120)
    return done.returncode, done.stdout + done.stderr


def test_this_project_passes_its_checks() -> None:
    code, text = dg(ROOT, "check", "defs", started=True)
    assert code == 0, text
    assert "All component YAML validated" in text
    assert "All definitions loaded" in text


def test_a_new_project_passes_them_and_takes_a_scaffolded_experiment(project: Path) -> None:
    code, text = dg(project, "scaffold", "defs", TYPE, "second", "--notebook", "notebooks/sample.ipynb")
    assert code == 0, text
    assert "notebook: notebooks/sample.ipynb" in (project / "assets/second/defs.yaml").read_text()
    code, text = dg(project, "check", "defs")
    assert code == 0, text
    code, text = dg(project, "list", "defs", "--json")
    assert code == 0, text
    assert "second/model" in text


@pytest.mark.parametrize(
    ("written", "said"),
    [
        ("metric_gate: {metric: accuracy, min: high}", "metric_gate"),
        ("metrik_gate: {metric: accuracy, min: 0.5}", "metrik_gate"),
        ("schedule: [1, 2]", "schedule"),
    ],
)
def test_a_wrong_declaration_is_found_with_its_place(project: Path, written: str, said: str) -> None:
    path = project / "assets/sample/defs.yaml"
    path.write_text(path.read_text() + f"  {written}\n")
    code, text = dg(project, "check", "yaml")
    assert code == 1
    assert "defs.yaml:" in text
    assert said in text


def test_the_short_forms_are_no_mistakes(project: Path) -> None:
    path = project / "assets/sample/defs.yaml"
    short = (
        'schedule: "0 3 * * *"',
        "metric_gate: {metric: accuracy, min: 0.5}",
        "endpoint: false",
        "parity: false",
        "lint: false",
        "partitions: [a, b]",
        "memory_limit: 4G",
        "environment: {WORKERS: 2}",
    )
    path.write_text(path.read_text() + "".join(f"  {line}\n" for line in short))
    code, text = dg(project, "check", "yaml")
    assert code == 0, text
