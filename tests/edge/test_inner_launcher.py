"""What is not for a device goes to the inner launcher, as if ours were not there."""

from __future__ import annotations

from pathlib import Path

import dagster as dg
import pytest
import yaml
from dagster._core.launcher import DefaultRunLauncher, LaunchRunContext, WorkerStatus
from dagster._core.test_utils import MockedRunLauncher

from notebooked_dagster.edge.launcher import PiRunLauncher
from notebooked_dagster.errors import ConfigError


@dg.job
def nothing() -> None:
    pass


def instance_with(tmp_path: Path, inner: dict[str, object] | None) -> dg.DagsterInstance:
    config = {"devices": [], "state_dir": str(tmp_path / "state"), "relay": False}
    launcher = {"module": "notebooked_dagster.edge.launcher", "class": "PiRunLauncher"}
    told = {**config, "inner": inner} if inner else config
    text = yaml.safe_dump({"telemetry": {"enabled": False}, "run_launcher": {**launcher, "config": told}})
    (tmp_path / "dagster.yaml").write_text(text)
    return dg.DagsterInstance.from_config(str(tmp_path))


def test_a_run_without_our_tags_is_the_inner_launchers(tmp_path: Path) -> None:
    inner = {"module": "dagster._core.test_utils", "class": "MockedRunLauncher", "config": {}}
    with instance_with(tmp_path, inner) as instance:
        launcher = instance.run_launcher
        assert isinstance(launcher, PiRunLauncher)
        assert isinstance(launcher.inner, MockedRunLauncher)
        run = instance.create_run_for_job(nothing)
        instance.launch_run(run.run_id, workspace=None)  # type: ignore[arg-type]
        assert [launched.run_id for launched in launcher.inner.queue()] == [run.run_id]
        assert launcher.check_run_worker_health(run).status is WorkerStatus.RUNNING


def test_a_run_with_our_tags_never_is(tmp_path: Path) -> None:
    inner = {"module": "dagster._core.test_utils", "class": "MockedRunLauncher", "config": {}}
    with instance_with(tmp_path, inner) as instance:
        launcher = instance.run_launcher
        assert isinstance(launcher, PiRunLauncher)
        run = instance.create_run_for_job(nothing, tags={"notebooked/device": "pi"})
        with pytest.raises(ConfigError, match="There is no device 'pi'; there are: none"):
            launcher.launch_run(LaunchRunContext(run, None))
        assert launcher.inner.queue() == []  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    "inner",
    [None, {"module": "notebooked_dagster.resources.launcher", "class": "ProjectRunLauncher", "config": {}}],
    ids=["nothing said", "the project's own choice"],
)
def test_dagsters_default_launches_where_nothing_else_is_said(
    tmp_path: Path, inner: dict[str, object] | None
) -> None:
    with instance_with(tmp_path, inner) as instance:
        launcher = instance.run_launcher
        assert isinstance(launcher, PiRunLauncher)
        assert isinstance(launcher.inner, DefaultRunLauncher)
