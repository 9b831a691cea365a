"""What is not used is not imported: loading a code location costs nothing of any cloud's SDK."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.end_to_end.dagster_kit import SmallProject

HEAVY = (
    "boto3", "botocore", "google.auth", "google.cloud.aiplatform", "google.cloud.aiplatform_v1", "google.cloud.storage",
    "google.api_core", "azure.core", "azure.identity", "azure.storage.blob", "azure.ai.ml", "msal", "kubernetes", "databricks",
    "dagster_aws", "dagster_azure", "dagster_gcp", "mlflow", "papermill", "sklearn", "pandas", "dagster_postgres", "moto", "opentelemetry",
)  # fmt: skip


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


@pytest.mark.parametrize(
    ("attributes", "config"),
    [
        (
            "provider: sagemaker\noptions: {training: {spot: true}, endpoint: {serverless: true}}",
            "aws: {bucket: b-ucket, role_arn: 'arn:aws:iam::1:role/r'}\n",
        ),
        (
            "provider: vertex\noptions: {training: {spot: true}, endpoint: {canary: [10]}}",
            "gcp: {project: p, region: europe-west4, bucket: b-ucket}\n",
        ),
        (
            "provider: azure\noptions: {training: {spot: true}, endpoint: {strategy: canary}}",
            "azure: {resource_group: g, workspace: w}\n",
        ),
        (
            "provider: kubernetes\noptions: {training: {gpu: 1}, endpoint: {replicas: 2}}",
            "kubernetes: {namespace: ml, storage: {url: 's3://b-ucket/ml'}}\n",
        ),
        (
            "provider: databricks\noptions: {training: {spot: true}, endpoint: {canary: [10]}}",
            "databricks: {catalog: main, schema_name: ml, volume: files}\n",
        ),
    ],
    ids=["sagemaker", "vertex", "azure", "kubernetes", "databricks"],
)
def test_a_code_location_with_a_cloud_in_it_loads_no_sdk(
    tmp_path: Path, attributes: str, config: str
) -> None:
    project = SmallProject(tmp_path / "project", attributes)
    (project.root / "config.yaml").write_text(config)
    program = "from notebooked_dagster.definitions import defs\nfrom dagster import Definitions\n\
from notebooked_dagster.resources import Workplace\nfrom notebooked_dagster.definitions import project_definitions\n\
project_definitions(Workplace.here()).get_repository_def()"
    assert loaded(program, project.root, project.environment) == []


def test_looking_at_all_providers_loads_no_sdk(tmp_path: Path) -> None:
    program = (
        "from notebooked_dagster.providers.registry import available\n"
        "assert all(available()[name].usable for name in ('sagemaker', 'azure', 'vertex', 'kubernetes', 'databricks', 'pi'))"
    )
    assert loaded(program, tmp_path, {}) == []


@pytest.mark.parametrize("name", ["sagemaker", "azure", "vertex", "kubernetes", "databricks", "pi"])
def test_a_provider_is_made_without_its_sdk(tmp_path: Path, name: str) -> None:
    program = f"from notebooked_dagster.providers.registry import get_provider\nget_provider({name!r}, state_dir='.')"
    assert loaded(program, tmp_path, {}) == []
