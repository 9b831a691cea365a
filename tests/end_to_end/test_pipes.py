"""A notebook that reports by Dagster Pipes, through the whole graph: on this machine, and in a cloud."""

from __future__ import annotations

import time
from functools import cached_property
from pathlib import Path

import dagster as dg
import pytest

from tests.clouds.kit import BUCKET, ROLE, aws_server
from tests.end_to_end.dagster_kit import CELLS, SmallProject, notebook

MODEL = dg.AssetKey(["iris", "model"])
CHECK = dg.AssetCheckKey(MODEL, "enough_rows")
PIPES = "pipes: {checks: [enough_rows]}"
REPORTS = """accuracy = model.score(X_test, y_test)
from dagster_pipes import open_dagster_pipes
with open_dagster_pipes() as pipes:
    pipes.log.warning("the rows are from %s", pipes.get_extra("experiment"))
    pipes.report_asset_check("enough_rows", passed=len(X_train) > 100, metadata={"rows": len(X_train)})
    pipes.report_asset_materialization(metadata={"classes": 3})"""


class Reporting:
    """The project, and what Dagster has of it."""

    def __init__(self, root: Path, attributes: str, monkeypatch: pytest.MonkeyPatch) -> None:
        cells = [(kind, tags, REPORTS if "model.score" in source else source) for kind, tags, source in CELLS]
        self.small = SmallProject(root, f"parity: false\nendpoint: false\n{attributes}")
        self.small.notebook.write_text(notebook(cells), encoding="utf-8")
        monkeypatch.setenv("NOTEBOOKED_PROJECT_ROOT", str(root))
        self.instance = dg.DagsterInstance.ephemeral()

    def run(self, *, wait: bool = True, **config: object) -> dg.ExecuteInProcessResult:
        """The experiment's job."""
        return self.definitions.resolve_job_def("iris_train_job").execute_in_process(
            instance=self.instance,
            run_config={"ops": {"iris__model": {"config": {"wait": wait, **config}}}},
            raise_on_error=False,
        )

    @cached_property
    def definitions(self) -> dg.Definitions:
        from notebooked_dagster.definitions import project_definitions
        from notebooked_dagster.resources import Workplace

        return project_definitions(Workplace.here())

    def look(self) -> list[str]:
        """A tick of the sensor that makes the models nobody waits for."""
        definitions = self.definitions
        with dg.build_sensor_context(
            instance=self.instance, definitions=definitions, resources=definitions.resources
        ) as context:
            data = definitions.resolve_sensor_def("training_jobs").evaluate_tick(context)
        for event in data.asset_events:
            self.instance.report_runless_asset_event(event)
        return [type(event).__name__ for event in data.asset_events]

    def said(self, run_id: str) -> list[str]:
        """The log lines of a run."""
        return [entry.user_message for entry in self.instance.all_logs(run_id)]

    def models(self) -> list[dg.AssetMaterialization]:
        records = self.instance.fetch_materializations(MODEL, limit=10).records
        return [record.asset_materialization for record in records if record.asset_materialization]

    def evaluations(self) -> list[tuple[bool, object]]:
        """Each time the check was evaluated: the verdict, and the rows that it counted."""
        storage = self.instance.event_log_storage
        found = []
        for record in storage.get_asset_check_execution_history(CHECK, limit=10):
            if isinstance(record.evaluation, dg.AssetCheckEvaluation):
                found.append((record.evaluation.passed, record.evaluation.metadata["rows"].value))
        return found

    def holds(self, run_id: str, models: int) -> None:
        """What a training that reported has left, however it was waited for."""
        made = self.models()
        assert len(made) == models
        assert made[0].metadata["classes"].value == 3
        assert made[0].metadata["metric accuracy"].value > 0.5
        assert self.evaluations() == [(True, 112)] * models
        said = self.said(run_id)
        assert said.count("the rows are from iris") == 1
        assert any(line.startswith("accuracy = 0.") for line in said)


def wait_and_do_not_wait(project: Reporting) -> None:
    done = project.run()
    assert done.success
    project.holds(done.run_id, models=1)

    done = project.run(wait=False)
    assert done.success
    assert len(project.models()) == 1
    deadline = time.monotonic() + 60
    while not (seen := project.look()) and time.monotonic() < deadline:
        time.sleep(0.5)
    assert [*seen, *project.look()] == ["AssetMaterialization", "AssetCheckEvaluation"]
    assert project.look() == []
    project.holds(done.run_id, models=2)


def test_on_this_machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    wait_and_do_not_wait(Reporting(tmp_path / "project", PIPES, monkeypatch))


def test_in_the_cloud(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with aws_server(tmp_path / "aws"):
        project = Reporting(tmp_path / "project", f"provider: sagemaker\n{PIPES}", monkeypatch)
        (project.small.root / "config.yaml").write_text(
            f"aws:\n  role_arn: {ROLE}\n  bucket: {BUCKET}\n  poll: 0.1\n"
        )
        wait_and_do_not_wait(project)


def test_where_the_job_has_no_dagster_pipes_it_trains_as_before(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    without = tmp_path / "without"
    without.mkdir()
    (without / "dagster_pipes.py").write_text("raise ImportError('no dagster_pipes here')\n")
    project = Reporting(
        tmp_path / "project", f"pipes: true\nenvironment: {{PYTHONPATH: '{without}'}}", monkeypatch
    )
    project.small.notebook.write_text(notebook(), encoding="utf-8")
    done = project.run()
    assert done.success
    (made,) = project.models()
    assert made.metadata["metric accuracy"].value > 0.5
    log = Path(str(made.metadata["log"].value)).read_text()
    assert "[notebooked] Without Dagster Pipes: ImportError: no dagster_pipes here" in log
