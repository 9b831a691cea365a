"""The run launcher: a run with the tag ``notebooked/device`` or ``notebooked/device-label`` goes to a Pi, others as before.

In ``dagster.yaml``::

    run_launcher:
      module: notebooked_dagster.edge.launcher
      class: PiRunLauncher
      config:
        devices_file: edge.yaml            # or `devices:` and the list itself
        deadline_seconds: 86400            # how long a device may be silent before its runs are given up; 0 is for ever
        inner:                             # who launches all other runs; Dagster's default where it is not given
          module: dagster_k8s
          class: K8sRunLauncher
          config: {...}
"""

from __future__ import annotations

import os
import time
from collections.abc import Mapping
from functools import cached_property
from pathlib import Path
from typing import Any, cast

import yaml
from dagster import Array, DagsterRun, Field, Noneable, StringSource
from dagster._config import UserConfigSchema
from dagster._core.launcher import (
    CheckRunHealthResult,
    DefaultRunLauncher,
    LaunchRunContext,
    ResumeRunContext,
    RunLauncher,
    WorkerStatus,
)
from dagster._serdes import ConfigurableClass, ConfigurableClassData

from notebooked_dagster.core.root import find_project_root
from notebooked_dagster.errors import DeviceError

from . import marks, tending
from .choice import choose, wanted
from .devices import FILE, Device, Fleet, fleet_of, load_fleet
from .packing import check_packable, packed
from .relay import Patience, silent_since
from .releases import Release, bring, kept_release, make_release
from .ssh import Link

CONFIG: UserConfigSchema = {
    "devices_file": Field(StringSource, is_required=False, description="The file that lists the devices."),
    "devices": Field(Array(dict), is_required=False, description="The devices themselves."),
    "project": Field(Noneable(StringSource), default_value=None, description="The folder that goes to devices."),
    "state_dir": Field(StringSource, default_value=".notebooked/edge", description="Where this host keeps what it needs."),
    "deadline_seconds": Field(float, default_value=86400.0, description="How long a device may be silent."),
    "wait_seconds": Field(float, default_value=2.0, description="How long a device waits for news before it answers."),
    "retry_seconds": Field(float, default_value=15.0, description="Between two attempts at a silent device, at most."),
    "relay": Field(bool, default_value=True, description="Whether the relay is started when it is needed."),
    "inner": Field(
        Noneable({"module": str, "class": str, "config": Field(dict, default_value={})}),
        default_value=None,
        description="The launcher of all other runs.",
    ),
}  # fmt: skip


class PiRunLauncher(RunLauncher, ConfigurableClass):
    """Launches runs on devices over SSH, and all others with an inner launcher."""

    def __init__(
        self,
        devices_file: str | None = None,
        devices: list[Mapping[str, Any]] | None = None,
        project: str | None = None,
        state_dir: str = ".notebooked/edge",
        deadline_seconds: float = 86400.0,
        wait_seconds: float = 2.0,
        retry_seconds: float = 15.0,
        relay: bool = True,
        inner: Mapping[str, Any] | None = None,
        inst_data: ConfigurableClassData | None = None,
    ) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        # As Dagster's own relative paths: from the folder that a command is started in.
        self.project = Path(project).resolve() if project else find_project_root(Path.cwd())
        self.state = Path(state_dir).resolve()
        self.patience = Patience(deadline_seconds, wait_seconds, retry_seconds)
        self._file = Path(devices_file or FILE).resolve()
        self._listed = devices
        self._relay = relay
        self._inner_config = inner
        self._inst_data = inst_data

    @property
    def inst_data(self) -> ConfigurableClassData | None:
        """What Dagster made it from."""
        return self._inst_data

    @classmethod
    def config_type(cls) -> UserConfigSchema:
        """Its configuration in ``dagster.yaml``."""
        return CONFIG

    @classmethod
    def from_config_value(
        cls, inst_data: ConfigurableClassData | None, config_value: Mapping[str, Any]
    ) -> PiRunLauncher:
        """The launcher."""
        return cls(inst_data=inst_data, **config_value)

    @cached_property
    def inner(self) -> RunLauncher[Any]:
        """Who launches what is not for a device."""
        if self._inner_config is None:
            launcher: RunLauncher[Any] = DefaultRunLauncher()
        else:
            data = ConfigurableClassData(
                self._inner_config["module"],
                self._inner_config["class"],
                yaml.dump(self._inner_config.get("config") or {}),
            )
            launcher = cast("RunLauncher[Any]", data.rehydrate())
        if self.has_instance:
            launcher.register_instance(self._instance)
        return launcher

    def fleet(self) -> Fleet:
        """The devices, as they are declared now. Raises ConfigError."""
        if self._listed is not None:
            return fleet_of(self._listed, self._file.parent)
        return load_fleet(self._file)

    @property
    def declares(self) -> bool:
        """Whether there is anything that declares devices."""
        return self._listed is not None or self._file.exists()

    # -- what Dagster calls

    def launch_run(self, context: LaunchRunContext) -> None:
        """Give a run to a device: the relay brings it there, for the daemon's other runs wait until this is done.

        Raises:
            ConfigError: No device fits, or the run's code cannot go to a device.
        """
        run = context.dagster_run
        if not wanted(run.tags):
            self.inner.launch_run(context)
            return
        device = self.chosen(run)
        waiting = {other.tags.get(marks.RELEASE, "") for other in marks.open_runs(self._instance)}
        release = make_release(self.project, self.state, spared=waiting)
        if device is not None:
            check_packable(run, release, device, self.project)
        tags = {
            marks.RELAY: marks.OPEN,
            marks.CHOSEN: device.name if device is not None else "",
            marks.RELEASE: release.name,
            marks.HOST: marks.host_id(self.state),
            marks.RUN: run.run_id,
            marks.LAUNCHED: str(time.time()),
            marks.STARTED: "",
            marks.OUTPUTS: "",
            marks.SILENT: "",
        }
        self._instance.add_run_tags(run.run_id, tags)
        if device is None:
            self._instance.report_engine_event(
                "Every device that fits has all the runs it may have; the run waits for a place.",
                run.with_tags({**run.tags, **tags}),
                cls=type(self),
            )
        self.ensure_relay()

    def chosen(self, run: DagsterRun) -> Device | None:
        """The device for a run; None where every one that fits is full. Raises ConfigError."""
        fleet = self.fleet()
        silent = frozenset(
            device.name for device in fleet.devices if silent_since(self.state, device.name) is not None
        )
        return choose(fleet, run.tags, marks.load(marks.open_runs(self._instance)), silent)

    def deliver(self, run: DagsterRun, device: Device, link: Link) -> bool:
        """Start a run on its device; asked again, it is not started again.

        Returns:
            Whether it is started; False where another host has its code, and starts it.

        Raises:
            DeviceUnreachableError: Whether it was started is not known.
            DeviceError: The device refuses.
        """
        release = self._release(run)
        if release is None:
            return False
        request = packed(self._instance, run, release, device, self.project, os.environ)
        answer = link.ask("start", request).header
        self._instance.add_run_tags(run.run_id, {marks.STARTED: "yes"})
        if not answer["again"]:
            self._instance.report_engine_event(
                f"Started on device {device.name} ({answer['how']}).", run, cls=type(self)
            )
        return True

    def bring(self, run: DagsterRun, device: Device, link: Link) -> None:
        """Bring a run's code to its device. Raises DeviceError."""
        release = self._release(run)
        if release is not None:
            how = bring(release, device, link)
            self._instance.report_engine_event(
                f"Release {release.name} of the code is on {device.name} ({how}).", run, cls=type(self)
            )

    def _release(self, run: DagsterRun) -> Release | None:
        """A run's code; None where another host launched it. Raises DeviceError."""
        release = kept_release(run.tags[marks.RELEASE], self.state)
        if release is None and run.tags.get(marks.HOST) == marks.host_id(self.state):
            raise DeviceError(
                "The code that the run was launched with is kept no more.", hint="Launch the run again."
            )
        return release

    def terminate(self, run_id: str) -> bool:
        """Ask a run to stop; one on a silent device is asked when the device is back."""
        run = self._instance.get_run_by_id(run_id)
        if run is None or not marks.is_ours(run):
            return self.inner.terminate(run_id)
        if run.is_finished:
            return False
        self._instance.report_run_canceling(run)
        self.ensure_relay()
        return True

    @property
    def supports_check_run_worker_health(self) -> bool:
        """Always: it is also how Dagster's daemon keeps the relay alive."""
        return True

    def check_run_worker_health(self, run: DagsterRun) -> CheckRunHealthResult:
        """Always RUNNING for a run on a device: Dagster fails a run on any other word, and silence is none.

        The relay reports the end of a run, or that it is given up; that needs no second judge.
        """
        if not marks.is_ours(run):
            if self.inner.supports_check_run_worker_health:
                return self.inner.check_run_worker_health(run)
            return CheckRunHealthResult(WorkerStatus.RUNNING, "Its launcher cannot tell.")
        self.ensure_relay()
        name = run.tags.get(marks.CHOSEN) or "no device yet"
        since = silent_since(self.state, name)
        return CheckRunHealthResult(WorkerStatus.RUNNING, f"{name} is silent." if since else name)

    def get_run_worker_debug_info(
        self, run: DagsterRun, include_container_logs: bool | None = True
    ) -> str | None:
        """What to say with a run that is given up."""
        if not marks.is_ours(run):
            return self.inner.get_run_worker_debug_info(run, include_container_logs)
        return f"It was on device {run.tags.get(marks.CHOSEN) or '(none)'}; `notebooked edge doctor` looks at it."

    @property
    def supports_resume_run(self) -> bool:
        """As the inner launcher; a run on a device is never given a new process while it may have the old one."""
        return self.inner.supports_resume_run

    def resume_run(self, context: ResumeRunContext) -> None:
        """Only of runs that are not on a device."""
        if not marks.is_ours(context.dagster_run):
            self.inner.resume_run(context)

    def join(self, timeout: int = 30) -> None:
        """Wait for the inner launcher's runs."""
        self.inner.join(timeout)

    def dispose(self) -> None:
        """Let go of the inner launcher. The relay goes on."""
        self.inner.dispose()

    def ensure_relay(self) -> None:
        """See to it that the relay runs on this host."""
        if self._relay:
            tending.ensure(self._instance, self.state)

    def ensure_open_relay(self) -> None:
        """See to it that the relay runs, where there is anything to bring home."""
        if marks.open_runs(self._instance):
            self.ensure_relay()
