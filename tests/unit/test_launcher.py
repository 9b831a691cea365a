"""Where runs are executed is one environment variable."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import dagster as dg
import pytest
import yaml
from dagster._core.launcher import DefaultRunLauncher
from dagster._core.launcher.base import LaunchRunContext
from dagster._serdes import ConfigurableClassData

from notebooked_dagster.edge.launcher import PiRunLauncher
from notebooked_dagster.errors import ConfigError, MissingPackageError
from notebooked_dagster.resources.launcher import VARIABLE, ProjectRunLauncher
from tests.end_to_end.dagster_kit import SmallProject

ROOT = Path(__file__).parents[2]
# What stands for Dagster's package: the same names, and it writes down what it was asked.
FAKE = """
import json, os, pathlib
from dagster import Field, StringSource
from dagster._core.launcher.base import CheckRunHealthResult, RunLauncher, WorkerStatus
from dagster._serdes import ConfigurableClass

class DockerRunLauncher(RunLauncher, ConfigurableClass):
    def __init__(self, inst_data, network):
        self._inst_data, self.network = inst_data, network
        super().__init__()
    inst_data = property(lambda self: self._inst_data)
    config_type = classmethod(lambda cls: {"network": Field(StringSource)})
    from_config_value = classmethod(lambda cls, inst_data, config_value: cls(inst_data, **config_value))
    supports_check_run_worker_health = True
    supports_resume_run = True
    def launch_run(self, context):
        told = {"run": context.dagster_run.run_id, "job": context.dagster_run.job_name, "network": self.network}
        pathlib.Path(os.environ["FAKE_LOG"]).write_text(json.dumps(told))
    def terminate(self, run_id):
        return True
    def check_run_worker_health(self, run):
        return CheckRunHealthResult(WorkerStatus.RUNNING, run_worker_id="container")
"""
SECTION = (
    "run_launcher:\n  module: notebooked_dagster.resources.launcher\n  class: ProjectRunLauncher\n"
    "  config:\n    docker: {network: {env: FAKE_NETWORK}}\n    kubernetes: {nonsense: 1}\n"
)


@pytest.fixture
def home(tmp_path: Path) -> str:
    (tmp_path / "dagster.yaml").write_text(SECTION)
    return str(tmp_path)


@pytest.fixture
def fake(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, str]:
    (tmp_path / "packages").mkdir()
    (tmp_path / "packages" / "dagster_docker.py").write_text(FAKE)
    monkeypatch.syspath_prepend(str(tmp_path / "packages"))
    found = {VARIABLE: "docker", "FAKE_NETWORK": "inner", "FAKE_LOG": str(tmp_path / "launched.json")}
    for name, value in found.items():
        monkeypatch.setenv(name, value)
    return {**found, "PYTHONPATH": str(tmp_path / "packages")}


@pytest.mark.parametrize("value", [None, " Default "])
def test_without_it_runs_are_executed_here(
    home: str, monkeypatch: pytest.MonkeyPatch, value: str | None
) -> None:
    if value is not None:
        monkeypatch.setenv(VARIABLE, value)
    with dg.DagsterInstance.from_config(home) as instance:
        assert type(instance.run_launcher) is DefaultRunLauncher


def test_the_chosen_launcher_is_there_with_all_that_it_can_do(home: str, fake: dict[str, str]) -> None:
    with dg.DagsterInstance.from_config(home) as instance:
        for found in (instance, dg.DagsterInstance.from_ref(instance.get_ref())):
            launcher = found.run_launcher
            assert type(launcher).__name__ == "DockerRunLauncher"
            assert launcher.supports_check_run_worker_health
            assert launcher.supports_resume_run
        run = dg.DagsterRun(job_name="iris_job")
        instance.run_launcher.launch_run(LaunchRunContext(run, None))
        assert json.loads(Path(fake["FAKE_LOG"]).read_text())["network"] == "inner"
        assert instance.run_launcher.terminate(run.run_id)
        assert instance.run_launcher.check_run_worker_health(run).run_worker_id == "container"


def chosen() -> object:
    data = ConfigurableClassData("notebooked_dagster.resources.launcher", "ProjectRunLauncher", "{}")
    return data.rehydrate()


def test_devices_get_their_runs_and_all_others_stay_here(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(VARIABLE, "pi")
    monkeypatch.chdir(tmp_path)
    launcher = chosen()
    assert isinstance(launcher, PiRunLauncher)
    assert type(launcher.inner) is DefaultRunLauncher
    assert launcher.state == tmp_path / ".notebooked/edge"


def test_a_project_with_devices_needs_no_variable(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(VARIABLE, raising=False)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "edge.yaml").write_text("devices: []\n")
    assert isinstance(chosen(), PiRunLauncher)
    monkeypatch.setenv(VARIABLE, "default")
    assert type(chosen()) is DefaultRunLauncher


def test_a_name_that_is_none_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(VARIABLE, "nomad")
    with pytest.raises(ConfigError, match="nomad") as caught:
        chosen()
    assert "default, kubernetes, ecs, docker" in (caught.value.hint or "")


@pytest.mark.parametrize(
    ("name", "extra"), [("kubernetes", "kubernetes"), ("ecs", "aws"), ("docker", "docker")]
)
def test_a_missing_package_is_named(monkeypatch: pytest.MonkeyPatch, name: str, extra: str) -> None:
    for module in ("dagster_k8s", "dagster_aws", "dagster_aws.ecs", "dagster_docker"):
        monkeypatch.setitem(sys.modules, module, None)
    monkeypatch.setenv(VARIABLE, name)
    with pytest.raises(MissingPackageError) as caught:
        chosen()
    assert f"notebooked-dagster[{extra}]" in (caught.value.hint or "")


def test_a_run_that_is_launched_goes_where_the_variable_says(tmp_path: Path, fake: dict[str, str]) -> None:
    project = SmallProject(tmp_path / "project")
    # At once, and not when a daemon takes it from the queue.
    coordinator = "run_coordinator: {module: dagster._core.run_coordinator, class: DefaultRunCoordinator}\n"
    (project.root / "dagster.yaml").write_text(f"telemetry: {{enabled: false}}\n{coordinator}{SECTION}")
    done = project.run(
        "dagster", "job", "launch", "-m", "notebooked_dagster.definitions", "-j", "iris_job", environment=fake
    )
    assert done.returncode == 0, done.stderr[-3000:]
    told = json.loads(Path(fake["FAKE_LOG"]).read_text())
    assert (told["job"], told["network"]) == ("iris_job", "inner")


@pytest.mark.parametrize("path", ["dagster.yaml", "deploy/aws/dagster.yaml"])
def test_the_projects_own_files_leave_the_choice_to_it(path: str) -> None:
    section = yaml.safe_load((ROOT / path).read_text())["run_launcher"]
    assert section["class"] == "ProjectRunLauncher"
    assert set(section.get("config", {})) <= set(ProjectRunLauncher.config_type())
