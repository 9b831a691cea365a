"""A person with an empty folder: a project, a model, an endpoint, and what goes wrong on the way."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.warm import COMMANDS

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]
BIN = Path(sys.executable).parent
Command = Callable[..., "subprocess.CompletedProcess[str]"]


@pytest.fixture(scope="module")
def notebooked(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Command]:
    """The command in a project that ``init`` made; what it deployed is gone at the end."""
    folder = tmp_path_factory.mktemp("person")
    environment = {
        name: value
        for name, value in os.environ.items()
        if not name.startswith(("NOTEBOOKED_", "DAGSTER_", "MLFLOW_", "SM_"))
    }

    seen: set[str] = set()

    def run(*words: str) -> subprocess.CompletedProcess[str]:
        name = next(word for word in words if not word.startswith("-"))
        if name in seen:
            return COMMANDS.run(["notebooked", *words], cwd=folder, env=environment)
        # Each command once as a person starts it.
        seen.add(name)
        return subprocess.run(
            [str(BIN / "notebooked"), *words],
            cwd=folder,
            env=environment,
            capture_output=True,
            text=True,
            timeout=240,
            check=False,
        )

    made = run("init", ".")
    assert made.returncode == 0, made.stderr
    run.folder = folder  # type: ignore[attr-defined]
    yield run
    run("delete-endpoint", "--all", "--yes")


def champion(notebooked: Command) -> str:
    """The version that the registry calls champion."""
    from notebooked_dagster.tracking import Tracking, local_uri

    found = Tracking(local_uri(notebooked.folder / ".notebooked"), "sample").models.find("sample", "champion")  # type: ignore[attr-defined]
    assert found is not None
    return found.version


def test_from_an_empty_folder_to_a_prediction_and_back(notebooked: Command) -> None:
    trained = notebooked("--json", "train", "sample")
    assert trained.returncode == 0, trained.stderr
    facts = json.loads(trained.stdout)
    assert facts["metrics"]["accuracy"] > 0.8
    assert Path(facts["model_uri"]).is_dir()

    deployed = notebooked("deploy", "sample")
    assert deployed.returncode == 0, deployed.stderr
    answer = notebooked("predict", "sample")
    assert set(json.loads(answer.stdout)) == {"predictions"}

    again = notebooked("--json", "train", "sample", "--only-if-changed")
    assert json.loads(again.stdout)["job"] == facts["job"]

    # MLflow's aliases follow what is served: forth with a deployment, back with a rollback.
    assert notebooked("train", "sample", "--set", "C=2.5").returncode == 0
    assert champion(notebooked) == "1"
    assert notebooked("deploy", "sample").returncode == 0
    assert champion(notebooked) == "2"
    back = notebooked("--json", "rollback", "sample")
    roles = {item["role"]: item["version"] for item in json.loads(back.stdout)["deployments"]}
    assert roles["champion"] == "1" == champion(notebooked)

    status = json.loads(notebooked("--json", "status", "sample").stdout)[0]
    assert status["stale"] == []
    assert status["endpoints"][0]["status"] == "healthy"


def test_a_training_that_raises_names_the_cell_and_keeps_what_is_served(notebooked: Command) -> None:
    path = notebooked.folder / "notebooks" / "sample.ipynb"  # type: ignore[attr-defined]
    original = path.read_text(encoding="utf-8")
    document = json.loads(original)
    number, cell = next(
        (number, cell)
        for number, cell in enumerate(document["cells"], 1)
        if cell["cell_type"] == "code" and ".fit(" in "".join(cell["source"])
    )
    source = "".join(cell["source"]).replace(".fit(", ".fit(1 / 0, ", 1)
    line = next(index for index, text in enumerate(source.split("\n"), 1) if "1 / 0" in text)
    cell["source"] = source
    path.write_text(json.dumps(document), encoding="utf-8")
    try:
        failed = notebooked("train", "sample")
    finally:
        path.write_text(original, encoding="utf-8")
    assert failed.returncode == 1
    assert f"cell {number}, line {line}" in failed.stderr
    assert "ZeroDivisionError" in failed.stderr
    assert "dagster._core" not in failed.stderr
    assert notebooked("predict", "sample").returncode == 0


def test_a_job_is_listed_read_and_cancelled_without_a_run_of_dagster(notebooked: Command) -> None:
    listed = json.loads(notebooked("--json", "jobs", "sample").stdout)
    assert listed
    assert {job["experiment"] for job in listed} == {"sample"}
    done = next(job for job in listed if job["status"] == "succeeded")
    assert done["id"] in notebooked("jobs").stdout
    assert "accuracy" in notebooked("logs", done["id"]).stdout
    cancelled = json.loads(notebooked("--json", "cancel", done["id"]).stdout)
    assert cancelled == [done]
    assert json.loads(notebooked("--json", "jobs", "--running").stdout) == []


def test_deploying_takes_up_newer_inference_code_and_says_where_training_is_newer(
    notebooked: Command,
) -> None:
    path = Path(notebooked.folder) / "notebooks" / "sample.ipynb"  # type: ignore[attr-defined]
    path.write_text(
        path.read_text().replace("model.predict(X_test.head(3))", "model.predict(X_test.head(3)) + 100")
    )
    assert notebooked("deploy", "sample").returncode == 0
    assert min(json.loads(notebooked("predict", "sample").stdout)["predictions"]) >= 100
    path.write_text(path.read_text().replace("C=C, max_iter", "C=C, tol=0.01, max_iter"))
    done = notebooked("deploy", "sample")
    assert done.returncode == 0
    assert "notebooked train sample" in done.stderr
