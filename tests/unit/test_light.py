"""What is not used is not imported: loading a code location costs nothing of any cloud's SDK."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

from tests.end_to_end.dagster_kit import SmallProject

HEAVY = ("boto3", "botocore", "mlflow", "papermill", "sklearn", "pandas", "dagster_postgres", "moto")


def loaded(program: str, project: Path, environment: dict[str, str]) -> list[str]:
    """Which of the heavy packages a program has loaded at its end."""
    done = subprocess.run(
        [sys.executable, "-c", f"{program}\nimport json, sys; print(json.dumps(sorted(sys.modules)))"],
        cwd=project,
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    modules = set(json.loads(done.stdout.splitlines()[-1]))
    return [name for name in HEAVY if name in modules]


def test_a_code_location_with_a_cloud_in_it_loads_no_sdk(tmp_path: Path) -> None:
    project = SmallProject(
        tmp_path / "project",
        "provider: sagemaker\noptions: {training: {spot: true}, endpoint: {serverless: true}}",
    )
    (project.root / "config.yaml").write_text("aws: {bucket: b-ucket, role_arn: 'arn:aws:iam::1:role/r'}\n")
    program = "from notebooked_dagster.definitions import defs\nfrom dagster import Definitions\n\
from notebooked_dagster.resources import Workplace\nfrom notebooked_dagster.definitions import project_definitions\n\
project_definitions(Workplace.here()).get_repository_def()"
    assert loaded(program, project.root, project.environment) == []


def test_looking_at_all_providers_loads_no_sdk(tmp_path: Path) -> None:
    program = (
        "from notebooked_dagster.providers.registry import available\nassert available()['sagemaker'].usable"
    )
    assert loaded(program, tmp_path, {}) == []


def test_a_provider_is_made_without_its_sdk(tmp_path: Path) -> None:
    program = "from notebooked_dagster.providers.registry import get_provider\nget_provider('sagemaker', state_dir='.')"
    assert loaded(program, tmp_path, {}) == []
