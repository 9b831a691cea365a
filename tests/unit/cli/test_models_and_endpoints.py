"""What the commands say of models, jobs and endpoints: the right one, and all that a person has to know of it."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator
from datetime import datetime
from pathlib import Path

import dagster as dg
import pytest
from click.testing import CliRunner, Result

from notebooked_dagster.cli import main
from notebooked_dagster.cli.text import number
from notebooked_dagster.errors import ProviderError
from tests.unit.components.kit import HandProject, hand_project

Command = Callable[..., Result]


@pytest.fixture
def make(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[str], HandProject]]:
    """Makes a project, of which the commands run in this process."""
    opened = []
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(os, "environ", os.environ)

    def made(attributes: str = "") -> HandProject:
        root = tmp_path / "project"
        (root / "home").mkdir(parents=True)
        monkeypatch.setenv("DAGSTER_HOME", str(root / "home"))
        instance = dg.DagsterInstance.get()
        opened.append(instance)
        return hand_project(root, instance, monkeypatch, attributes)

    yield made
    for instance in opened:
        instance.dispose()


def run(*words: str, code: int = 0) -> str:
    """What a command says, on both streams."""
    result = CliRunner().invoke(main, list(words), catch_exceptions=False)
    assert result.exit_code == code, result.output
    return result.output


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0.9333333333, "0.93333"),
        (12345.678, "12346"),
        (1234567.0, "1234567"),
        (0.00012345678, "0.00012346"),
        (1.23e-9, "1.23e-09"),
        (0.0, "0"),
        (-0.5, "-0.5"),
        (1e20, "1e+20"),
        (float("nan"), "nan"),
    ],
)
def test_numbers_are_written_out_where_that_is_readable(value: float, text: str) -> None:
    assert number(value) == text


def test_a_run_that_does_not_wait_names_the_job_and_no_old_metrics(
    make: Callable[[str], HandProject],
) -> None:
    project = make("wait: false")
    assert project.run("notebook", "training_code", "inference_code", "model", wait=True).success
    said = run("train", "iris")
    assert "submitted to local" in said
    assert "job-2" in said
    assert "accuracy" not in said
    told = json.loads(CliRunner().invoke(main, ["--json", "train", "iris"]).stdout)
    assert (told["job"], told["submitted"]) == ("job-3", True)


def test_a_worse_model_is_told_and_gone_back_from_and_to(make: Callable[[str], HandProject]) -> None:
    project = make("")
    run("train", "iris")
    assert "worse" not in run("deploy", "iris")
    project.provider.metrics = {"accuracy": 0.5, "rows": 3.0}
    run("train", "iris")
    (before,) = json.loads(run("--json", "status"))
    # Whoever reads it may be in another time zone.
    assert datetime.fromisoformat(before["model"]["at"]).utcoffset() is not None
    assert (before["endpoints"][0]["newest"], before["endpoints"][0]["metrics"]) == (False, {"accuracy": 0.9})
    assert "worse  accuracy 0.5, before 0.9" in run("deploy", "iris")
    assert "serves version 1" in (back := run("rollback", "iris"))
    assert "--to 2" in back
    assert "an older model (accuracy 0.9)" in run("status")
    assert "serves version 2" in run("rollback", "iris", "--to", "2")
    assert "older" not in run("status")
    assert "It keeps 1, 2." in run("rollback", "iris", "--to", "7", code=1)


def test_experiments_made_by_partition(make: Callable[[str], HandProject]) -> None:
    project = make("partitions: [eu, us]")
    assert "Name one with --partition: eu, us." in run("train", "iris", code=1)
    assert "has no partition 'xx'" in run("train", "iris", "--partition", "xx", code=1)
    run("train", "iris", "--partition", "us")
    assert [model.metadata["job"].value for model in project.models("us")] == ["job-1"]
    assert "no model of iris for eu yet" in run("deploy", "iris", "--partition", "eu", code=1)
    assert "iris-us serves" in run("deploy", "iris", "--partition", "us")
    assert list(project.provider.endpoints) == ["iris-us"]
    (status,) = json.loads(run("--json", "status"))
    assert [(item["name"], item["status"]) for item in status["endpoints"]] == [
        ("iris-eu", "none"),
        ("iris-us", "healthy"),
    ]
    assert "predictions" in run("predict", "iris-us", "--data", "{}")


def test_a_partition_where_there_are_none(make: Callable[[str], HandProject]) -> None:
    make("")
    assert "has no partitions" in run("train", "iris", "--partition", "eu", code=1)


def test_logs_by_experiment_by_job_and_of_endpoints(
    make: Callable[[str], HandProject], monkeypatch: pytest.MonkeyPatch
) -> None:
    project = make("")
    assert "has no training job yet" in run("logs", "iris", code=2)
    run("train", "iris")
    run("deploy", "iris")
    assert "log of job-1" in run("logs", "iris")
    assert "log of job-1" in run("logs", "job-1")
    assert "iris champion" in run("logs", "iris", "--endpoint")
    assert "iris 1" in run("logs", "iris", "--version", "1")
    assert "--follow is for" in run("logs", "iris", "--endpoint", "-f", code=1)
    # Of a job that runs they are as it printed them.
    monkeypatch.setenv("SOURCE_TOKEN", "hunter2-hunter2")
    monkeypatch.setattr(project.provider, "logs", lambda job, follow: iter(["asked with hunter2-hunter2"]))
    assert run("logs", "job-1") == "asked with ***\n"


def test_deleting_where_nobody_can_be_asked(make: Callable[[str], HandProject]) -> None:
    make("")
    run("train", "iris")
    run("deploy", "iris")
    assert "add --yes" in run("delete-endpoint", "iris", code=1)
    unknown = run("delete-endpoint", "other", "--yes", code=2)
    assert unknown.count("There ") == 1
    assert "iris is deleted." in run("delete-endpoint", "iris", "--yes")


def test_endpoints_are_looked_after_while_the_database_is_away(
    make: Callable[[str], HandProject], monkeypatch: pytest.MonkeyPatch
) -> None:
    make("")

    def away() -> dg.DagsterInstance:
        raise ProviderError("The database is away.")

    monkeypatch.setattr(dg.DagsterInstance, "get", away)
    assert "The database is away. What is declared is taken." in run("endpoints")
    # What needs the database says so.
    assert "The database is away." in run("status", code=2)
