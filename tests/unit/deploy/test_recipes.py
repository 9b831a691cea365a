"""The recipes in deploy/, judged by the tools that know their formats."""

from __future__ import annotations

import ast
import json
import os
import re
import shutil
import subprocess
import sys
import tomllib
from fnmatch import fnmatch
from pathlib import Path

import pytest
import yaml

from tests.clouds.aws_models import operation, problems

ROOT = Path(__file__).parents[3]
DEPLOY = ROOT / "deploy"
BIN = Path(sys.executable).parent


def judged(*command: str, cwd: Path = ROOT) -> str:
    """What a tool says; fails where it complains."""
    done = subprocess.run(command, cwd=cwd, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout + done.stderr


def test_the_dockerfiles_are_clean() -> None:
    if not (BIN / "hadolint").exists():
        pytest.skip("hadolint has no wheel for this platform")
    assert judged(str(BIN / "hadolint"), "deploy/docker/Dockerfile", "deploy/aws/Dockerfile") == ""


def test_the_image_is_made_from_files_that_are_there_and_sent() -> None:
    text = (DEPLOY / "docker/Dockerfile").read_text()
    allowed = {
        line[1:]
        for line in (DEPLOY / "docker/Dockerfile.dockerignore").read_text().splitlines()
        if line.startswith("!")
    }
    copied = [
        name
        for line in re.findall(r"^COPY (?!--from)(.+)$", text, re.MULTILINE)
        for name in [word for word in line.split() if not word.startswith("--")][:-1]
    ]
    assert copied
    for name in copied:
        assert (ROOT / name).exists(), name
        assert name.split("/")[0] in allowed, name


@pytest.mark.parametrize(
    ("lock", "has", "has_not"),
    [
        ("server", {"dagster", "dagster-webserver", "dagster-postgres", "psycopg2-binary", "mlflow", "papermill"}, set()),
        # A Pi with 1 GB: what a run there needs, without the UI, the MLflow server and the samples.
        ("edge", {"dagster", "mido", "gpiozero", "lgpio"}, {"dagster-webserver", "mlflow", "pandas", "scikit-learn", "papermill"}),
    ],
)  # fmt: skip
def test_a_lock_has_what_is_started_with_it(lock: str, has: set[str], has_not: set[str]) -> None:
    def pinned(name: str) -> dict[str, str]:
        text = (ROOT / f"requirements/{name}.lock").read_text()
        return dict(re.findall(r"^([a-z0-9-]+)==(\S+)", text, re.MULTILINE))

    ours, every = pinned(lock), pinned("dev")
    assert has <= set(ours)
    assert not has_not & set(ours)
    assert {name: version for name, version in ours.items() if every.get(name, version) != version} == {}


def test_the_compose_file_is_one_and_keeps_no_password() -> None:
    path = "deploy/docker/compose.yaml"
    judged(str(BIN / "check-jsonschema"), "--builtin-schema", "vendor.compose-spec", path)
    document = yaml.safe_load((ROOT / path).read_text())
    assert {"postgres", "code", "webserver", "daemon", "mlflow", "minio", "sqlserver", "ollama"} <= set(
        document["services"]
    )
    for name, service in document["services"].items():
        for key, value in (service.get("environment") or {}).items():
            if "PASSWORD" in key:
                assert str(value).startswith("${"), (name, key)
        assert all(str(port).startswith("127.0.0.1:") for port in service.get("ports", ())), name


def test_what_is_mounted_into_the_image_is_its_users() -> None:
    services = yaml.safe_load((DEPLOY / "docker/compose.yaml").read_text())["services"]
    mounted = {
        volume.split(":")[1]
        for service in services.values()
        if service["image"] == "notebooked"
        for volume in service["volumes"]
        if not volume.startswith(".")
    }
    made = re.search(
        r"install -d -o notebooked -g notebooked (.+)$",
        (DEPLOY / "docker/Dockerfile").read_text(),
        re.MULTILINE,
    )
    assert made is not None
    assert mounted <= set(made[1].split())


def test_mlflow_in_containers_has_a_database_and_answers_by_its_name() -> None:
    document = yaml.safe_load((DEPLOY / "docker/compose.yaml").read_text())
    mlflow = document["services"]["mlflow"]
    allowed = mlflow["environment"]["MLFLOW_SERVER_ALLOWED_HOSTS"].split(",")
    # By these MLflow matches the header Host; by itself it knows no name but localhost.
    for host in ("mlflow:5000", "localhost:5000", "127.0.0.1:5000"):
        assert any(fnmatch(host, pattern) for pattern in allowed)
    assert "PASSWORD" not in str([service.get("command") for service in document["services"].values()])
    database = mlflow["environment"]["MLFLOW_BACKEND_STORE_URI"].rpartition("/")[2]
    assert document["configs"]["mlflow-database"]["content"] == f"CREATE DATABASE {database};"
    assert document["services"]["postgres"]["configs"][0]["source"] == "mlflow-database"


def test_the_kubernetes_manifests_are_valid() -> None:
    said = judged(str(BIN / "kubernetes-validate"), "--strict", "deploy/kubernetes/endpoint.yaml")
    assert said.count("passed") == 3


def test_the_command_of_the_kubernetes_endpoint_is_one_that_inference_understands() -> None:
    deployment = next(yaml.safe_load_all((DEPLOY / "kubernetes/endpoint.yaml").read_text()))
    command = deployment["spec"]["template"]["spec"]["containers"][0]["command"]
    support = ast.parse((ROOT / "notebooked_dagster/codegen/templates/script_support.py").read_text())
    serve = next(node for node in support.body if isinstance(node, ast.FunctionDef) and node.name == "serve")
    known = {
        node.value
        for node in ast.walk(serve)
        if isinstance(node, ast.Constant) and str(node.value).startswith("--")
    }
    assert {word for word in command if word.startswith("--")} <= known


def test_the_helm_values_name_the_location_and_the_limits_of_ours() -> None:
    values = yaml.safe_load((DEPLOY / "kubernetes/values.yaml").read_text())
    (deployment,) = values["dagster-user-deployments"]["deployments"]
    assert "notebooked_dagster.definitions" in deployment["dagsterApiGrpcArgs"]
    ours = yaml.safe_load((ROOT / "dagster.yaml").read_text())["concurrency"]["runs"][
        "tag_concurrency_limits"
    ]
    queued = values["dagsterDaemon"]["runCoordinator"]["config"]["queuedRunCoordinator"]
    assert queued["tagConcurrencyLimits"] == ours
    # Nobody but us makes it: the database has to be told as well as Dagster, and its own chart makes dagster-postgresql.
    assert values["generatePostgresqlPasswordSecret"] is False
    assert values["global"]["postgresqlSecretName"] == values["postgresql"]["existingSecret"]
    assert values["postgresql"]["existingSecret"] != "dagster-postgresql"


def test_the_task_of_ecs_is_what_ecs_takes() -> None:
    task = json.loads((DEPLOY / "aws/task-definition.json").read_text())
    assert problems(operation("ecs", "RegisterTaskDefinition").input_shape, task) == []


def test_the_containers_of_ecs_have_what_their_dagster_yaml_asks_for() -> None:
    text = (DEPLOY / "aws/dagster.yaml").read_text()
    task = json.loads((DEPLOY / "aws/task-definition.json").read_text())
    containers = {item["name"]: item for item in task["containerDefinitions"]}
    assert set(containers) == {"code", "webserver", "daemon"}
    asked = {*re.findall(r"env: (\w+)", text), "NOTEBOOKED_RUN_LAUNCHER"}
    assert "NOTEBOOKED_LOG_BUCKET" in asked
    for name, item in containers.items():
        assert asked <= {variable["name"] for variable in item["environment"]}, name
    location = yaml.safe_load((DEPLOY / "aws/workspace.yaml").read_text())["load_from"][0]["grpc_server"]
    assert str(location["port"]) in containers["code"]["command"]
    # Both are in the image, in the place of the project's.
    assert (
        "COPY --chown=notebooked:notebooked dagster.yaml workspace.yaml"
        in (DEPLOY / "aws/Dockerfile").read_text()
    )
    ours, theirs = (
        yaml.safe_load(path.read_text()) for path in (ROOT / "dagster.yaml", DEPLOY / "aws/dagster.yaml")
    )
    limits = [item["concurrency"]["runs"]["tag_concurrency_limits"] for item in (ours, theirs)]
    assert limits[0] == limits[1]


def test_cloud_run_is_rendered_without_a_cloud() -> None:
    script = str(DEPLOY / "cloudrun/deploy.sh")
    judged("bash", "-n", script)
    environment = {**os.environ, "PROJECT": "my-project", "REGION": "europe-west1", "SQL_INSTANCE": "main"}
    done = subprocess.run([script, "--dry-run"], env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    commands, _, rendered = done.stdout.partition("--- service.yaml\n")
    assert commands.count("+ gcloud") == 3
    assert "${" not in rendered
    service = yaml.safe_load(rendered.partition("--- job.yaml")[0])
    containers = {item["name"]: item for item in service["spec"]["template"]["spec"]["containers"]}
    assert set(containers) == {"webserver", "daemon", "code"}
    assert containers["code"]["image"].startswith("europe-west1-docker.pkg.dev/my-project/")
    job = yaml.safe_load(rendered.partition("--- job.yaml\n")[2].partition("--- workspace.yaml")[0])
    for template in (service["spec"]["template"], job["spec"]["template"]):
        database = template["metadata"]["annotations"]["run.googleapis.com/cloudsql-instances"]
        assert database == "my-project:europe-west1:main"
    assert (
        "all_experiments_job" in job["spec"]["template"]["spec"]["template"]["spec"]["containers"][0]["args"]
    )

    del environment["REGION"]
    refused = subprocess.run(
        [script, "--dry-run"], env=environment, capture_output=True, text=True, check=False
    )
    assert (refused.returncode, refused.stderr) == (1, "deploy.sh: set REGION.\n")


def test_prometheus_takes_the_rules_and_they_fire_when_they_should() -> None:
    if shutil.which("promtool") is None:
        pytest.skip("no promtool on the path (Debian: prometheus)")
    judged("promtool", "check", "config", "prometheus.yml", cwd=DEPLOY / "monitoring")
    judged("promtool", "test", "rules", "alerts_test.yml", cwd=DEPLOY / "monitoring")


def test_only_what_has_figures_is_asked_for_them(tmp_path: Path) -> None:
    found = [
        {"provider": "local", "url": "http://127.0.0.1:9000"},
        {"provider": "sagemaker", "url": "https://runtime.sagemaker.eu-central-1.amazonaws.com/endpoints/x"},
    ]
    command = tmp_path / "notebooked"
    command.write_text(f"#!/bin/sh\ncat <<'END'\n{json.dumps(found)}\nEND\n")
    command.chmod(0o755)
    done = subprocess.run(
        [sys.executable, "-S", str(DEPLOY / "monitoring/targets.py")],
        env={"PATH": f"{tmp_path}:{os.environ['PATH']}"},
        capture_output=True,
        check=True,
    )
    assert json.loads(done.stdout) == [{"targets": ["127.0.0.1:9000"], "labels": {"provider": "local"}}]


def test_rules_and_dashboard_ask_for_figures_that_there_are() -> None:
    source = (ROOT / "notebooked_dagster/serving/worker/metrics.py").read_text()
    there = set(re.findall(r'"(notebooked_[a-z_]+)"', source))
    texts = [(DEPLOY / "monitoring" / name).read_text() for name in ("alerts.yml", "dashboard.json")]
    asked = set(re.findall(r"\b(notebooked_[a-z_]+)\b", "\n".join(texts)))
    bare = {re.sub(r"_(total|bucket|sum|count)$", "", name) for name in asked}
    assert bare <= there
    board = json.loads(texts[1])
    assert len({panel["id"] for panel in board["panels"]}) == len(board["panels"]) == 6


def test_every_dagster_yaml_is_what_dagster_reads(tmp_path: Path) -> None:
    for path in (ROOT / "dagster.yaml", DEPLOY / "aws/dagster.yaml"):
        document = yaml.safe_load(path.read_text())
        assert document["storage"]["custom"]["class"] == "ProjectStorage"
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    assert any(name.startswith("dagster-aws") for name in extras["aws"])
