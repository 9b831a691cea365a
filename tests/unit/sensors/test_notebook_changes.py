"""The sensor as Dagster evaluates it: what it asks for, what it reports, and what it says where it asks for nothing."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import dagster as dg
import pytest

from notebooked_dagster.definitions import project_definitions
from notebooked_dagster.resources import Workplace
from tests.end_to_end.dagster_kit import SmallProject


class Sensor:
    """A project and its sensor, ticked by hand."""

    def __init__(self, project: SmallProject, instance: dg.DagsterInstance) -> None:
        self.project = project
        self.instance = instance
        self.cursor: str | None = None
        self.clock = 1_700_000_000

    def tick(self) -> dg.SensorResult:
        defs = project_definitions(Workplace.here())
        with dg.build_sensor_context(
            instance=self.instance,
            cursor=self.cursor,
            repository_def=defs.get_repository_def(),
        ) as context:
            result = defs.resolve_sensor_def("notebook_changes")(context)
        assert isinstance(result, dg.SensorResult)
        self.cursor = result.cursor
        return result

    def edit(self, old: str, new: str) -> None:
        self.project.edit(old, new)
        self.clock += 1
        os.utime(self.project.notebook, (self.clock, self.clock))

    def made(self, *parts: str, version: str) -> None:
        for part in parts:
            self.instance.report_runless_asset_event(
                dg.AssetMaterialization(["iris", part], tags={"dagster/data_version": version})
            )


@pytest.fixture
def sensor(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Sensor]:
    project = SmallProject(tmp_path / "project", "metric_gate: {metric: accuracy, min: 0.8}")
    (tmp_path / "home").mkdir()
    monkeypatch.setenv("NOTEBOOKED_PROJECT_ROOT", str(project.root))
    with dg.DagsterInstance.local_temp(str(tmp_path / "home")) as instance:
        yield Sensor(project, instance)


def asked(result: dg.SensorResult) -> list[tuple[set[str], set[str], str]]:
    """Assets, checks and reason of each run that was asked for."""
    return [
        (
            {key.path[-1] for key in request.asset_selection or ()},
            {key.name for key in request.asset_check_keys or ()},
            request.tags["notebooked/changed"],
        )
        for request in result.run_requests or ()
    ]


EVERYTHING = {"training_code", "inference_code", "model", "endpoint"}
CHECKS = {"metric_gate", "smoke_prediction", "endpoint_health"}


def test_a_new_experiment_is_asked_for_once(sensor: Sensor) -> None:
    assert asked(sensor.tick()) == [(EVERYTHING, CHECKS, "first look")]
    again = sensor.tick()
    assert asked(again) == []
    assert again.skip_reason is not None
    assert again.skip_reason.skip_message == "No notebook changed."


def test_an_edit_asks_for_what_it_means_and_reports_the_stages(sensor: Sensor) -> None:
    sensor.tick()
    sensor.edit("    return model.predict(rows)", "    return model.predict(rows).tolist()")
    result = sensor.tick()
    assert asked(result) == [
        (
            {"training_code", "inference_code", "endpoint"},
            {"smoke_prediction", "endpoint_health"},
            "inference",
        )
    ]
    (event,) = result.asset_events
    assert event.metadata["changed stages"].value == "inference"
    sensor.edit("max_iter=200", "max_iter=300")
    ((parts, checks, reason),) = asked(sensor.tick())
    assert (parts, checks) == (EVERYTHING, CHECKS)
    assert "train" in reason


def test_prose_is_observed_and_asks_for_nothing(sensor: Sensor) -> None:
    sensor.tick()
    sensor.edit("Which of three?", "Which?")
    result = sensor.tick()
    assert asked(result) == []
    assert len(result.asset_events) == 1
    assert result.skip_reason is not None
    assert result.skip_reason.skip_message == "iris: saved; the code means what it meant before."


def test_without_bootstrap_it_says_that_the_first_time_is_by_hand(
    sensor: Sensor, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("NOTEBOOKED_AUTOMATION__BOOTSTRAP", "false")
    result = sensor.tick()
    assert asked(result) == []
    assert result.skip_reason is not None
    assert "automation.bootstrap" in (result.skip_reason.skip_message or "")
    sensor.made("training_code", "inference_code", "model", "endpoint", version="by hand")
    sensor.edit("max_iter=200", "max_iter=300")
    assert [parts for parts, _, _ in asked(sensor.tick())] == [EVERYTHING]


def test_a_broken_notebook_says_so_once(sensor: Sensor) -> None:
    sensor.tick()
    good = sensor.project.notebook.read_text(encoding="utf-8")
    sensor.project.notebook.write_text("{", encoding="utf-8")
    broken = sensor.tick()
    assert asked(broken) == []
    assert broken.skip_reason is not None
    assert "iris.ipynb" in (broken.skip_reason.skip_message or "")
    assert (again := sensor.tick().skip_reason) is not None
    assert again.skip_message == "No notebook changed."
    sensor.project.notebook.write_text(good, encoding="utf-8")
    assert asked(sensor.tick()) == []


def test_the_same_edit_made_twice_is_two_requests(sensor: Sensor) -> None:
    sensor.tick()
    keys = []
    for old, new in (("=200", "=300"), ("=300", "=200"), ("=200", "=300")):
        sensor.edit(f"max_iter{old}", f"max_iter{new}")
        keys += [request.run_key for request in sensor.tick().run_requests or ()]
    assert len(set(keys)) == 3


def test_a_declaration_that_is_taken_back_asks_again(sensor: Sensor) -> None:
    sensor.tick()
    keys = []
    for value in ("1.0", "2.0", "1.0", "2.0"):
        sensor.project.declare(
            "iris", f"notebook: notebooks/iris.ipynb\ntracking: false\nhyperparameters: {{C: {value}}}"
        )
        keys += [request.run_key for request in sensor.tick().run_requests or ()]
    assert len(set(keys)) == 4


def test_allowing_what_is_not_supported_asks_for_the_code_again(sensor: Sensor) -> None:
    sensor.tick()
    sensor.project.declare("iris", "notebook: notebooks/iris.ipynb\ntracking: false\nallow_unsupported: true")
    assert [parts for parts, _, _ in asked(sensor.tick())] == [EVERYTHING]


def test_a_daemon_that_died_before_it_kept_the_cursor_asks_once(sensor: Sensor) -> None:
    sensor.tick()
    before = sensor.cursor
    sensor.edit("max_iter=200", "max_iter=300")
    first = sensor.tick().run_requests or []
    sensor.cursor = before
    second = sensor.tick().run_requests or []
    assert [request.run_key for request in first] == [request.run_key for request in second] != []


def test_of_partitions_it_asks_for_the_code_and_that_runs_without_one(sensor: Sensor) -> None:
    sensor.project.declare(
        "iris", "notebook: notebooks/iris.ipynb\ntracking: false\nparity: false\npartitions: [a, b]"
    )
    defs = project_definitions(Workplace.here())
    repository = defs.get_repository_def()
    with dg.build_sensor_context(instance=sensor.instance, repository_def=repository) as context:
        # As the daemon does: what is asked for is checked against the job.
        data = repository.get_sensor_def("notebook_changes").evaluate_tick(context)
    (request,) = data.run_requests or ()
    assert request.job_name == "iris_job"
    assert {key.path[-1] for key in request.asset_selection or ()} == {"training_code", "inference_code"}
    result = defs.resolve_job_def("iris_job").execute_in_process(
        instance=sensor.instance, asset_selection=list(request.asset_selection or ())
    )
    assert result.success
