"""The generated GitHub workflow of a project on this machine, executed step by step as a runner would."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.end_to_end.dagster_kit import BIN, SmallProject

pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]


class Runner:
    """Runs the steps of jobs; actions, and the installation of packages, are what this machine already has."""

    def __init__(self, project: SmallProject, folder: Path) -> None:
        self.project = project
        self.workflow: dict[str, Any] = yaml.safe_load(
            (project.root / ".github/workflows/notebooks.yml").read_text()
        )
        self.artifacts = folder / "artifacts"
        self.artifacts.mkdir()
        tools = folder / "tools"
        tools.mkdir()
        # What `gh` does here: hand on what a job uploaded, keep the comment.
        (tools / "gh").write_text(
            '#!/bin/sh\nwhile [ $# -gt 1 ]; do case "$1 $2" in\n'
            '"run download") id=$3 ;;\n"run list") echo 7 ;;\n"pr comment") cp comment.md "$ARTIFACTS/" ;;\n'
            '"--dir "*) mkdir -p "$2" && cp -r "$ARTIFACTS/$id/." "$2" ;;\nesac; shift; done\n'
        )
        (tools / "gh").chmod(0o755)
        self.path = f"{tools}:{BIN}:{os.environ['PATH']}"

    def job(self, name: str, run_id: str, **variables: str) -> list[subprocess.CompletedProcess[str]]:
        """The steps of a job up to the first that fails."""
        done = []
        for step in self.workflow["jobs"][name]["steps"]:
            if "upload-artifact" in step.get("uses", ""):
                shutil.copytree(
                    self.project.root / step["with"]["path"], self.artifacts / run_id, dirs_exist_ok=True
                )
            if "run" not in step or step.get("name") == "Install":
                continue
            assert "${{" not in step["run"], "a value of GitHub's in a shell's text"
            result = subprocess.run(
                ["bash", "-eo", "pipefail", "-c", step["run"]],
                cwd=self.project.root,
                env={
                    **self.project.environment,
                    "PATH": self.path,
                    "ARTIFACTS": str(self.artifacts),
                    "GITHUB_RUN_ID": run_id,
                    "GITHUB_STEP_SUMMARY": str(self.artifacts / "summary.md"),
                    "NUMBER": "1",
                    **variables,
                },
                capture_output=True,
                text=True,
                check=False,
            )
            done.append(result)
            if result.returncode != 0:
                break
        return done


@pytest.fixture
def project(tmp_path: Path) -> Iterator[SmallProject]:
    made = SmallProject(tmp_path / "project", "parity: false\nmetric_gate: {metric: accuracy, min: 0.8}")
    assert made.run("notebooked", "generate-workflow").returncode == 0
    yield made
    made.delete_endpoint()


def passed(results: list[subprocess.CompletedProcess[str]]) -> bool:
    assert results
    return all(result.returncode == 0 for result in results)


def test_a_pull_request_and_its_merge(project: SmallProject, tmp_path: Path) -> None:
    runner = Runner(project, tmp_path)
    assert passed(runner.job("check", "7"))
    deployed = runner.job("deploy", "7", EXPERIMENT="iris")
    assert passed(deployed), deployed[-1].stderr[-3000:]
    assert "iris.json" in {path.name for path in (runner.artifacts / "7").iterdir()}

    shutil.rmtree(project.root / "scripts")  # the next runner has a fresh clone
    project.edit("C = 1.0", "C = 0.02")
    assert passed(runner.job("check", "8"))
    trained = runner.job("train", "8", EXPERIMENT="iris")
    assert passed(trained), trained[-1].stderr[-3000:]
    compared = runner.job("compare", "8")
    assert passed(compared), compared[-1].stderr
    comment = (runner.artifacts / "comment.md").read_text()
    assert "| iris | accuracy | 0.921053 |" in comment
    assert "| **worse** |" in comment


def test_a_model_that_does_not_pass_its_gate_stops_the_job(project: SmallProject, tmp_path: Path) -> None:
    project.edit("C=C, max_iter=200", "C=1e-9, max_iter=200")
    results = Runner(project, tmp_path).job("train", "7", EXPERIMENT="iris")
    assert not passed(results)


def test_outputs_and_edited_scripts_stop_the_check(project: SmallProject, tmp_path: Path) -> None:
    runner = Runner(project, tmp_path)
    assert project.run("notebooked", "convert", "iris").returncode == 0
    assert passed(runner.job("check", "7"))
    script = project.root / "scripts" / "iris" / "train.py"
    script.write_text(script.read_text() + "# by hand\n")
    assert not passed(runner.job("check", "7"))
    assert project.run("notebooked", "convert", "iris", "--force").returncode == 0
    text = project.notebook.read_text()
    project.notebook.write_text(
        text.replace(
            '"outputs": []', '"outputs": [{"output_type": "stream", "name": "stdout", "text": "x"}]', 1
        )
    )
    assert not passed(runner.job("check", "7"))


def test_the_file_is_not_overwritten_and_can_be_checked(project: SmallProject) -> None:
    path = project.root / ".github/workflows/notebooks.yml"
    assert project.run("notebooked", "generate-workflow", "--check").returncode == 0
    path.write_text(path.read_text() + "# mine\n")
    done = project.run("notebooked", "generate-workflow")
    assert done.returncode == 1
    assert "nothing was overwritten" in done.stderr
    assert project.run("notebooked", "generate-workflow", "--check").returncode == 1
    assert project.run("notebooked", "generate-workflow", "--force").returncode == 0
    assert "# mine" not in path.read_text()
