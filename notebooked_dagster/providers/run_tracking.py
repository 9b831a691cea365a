"""A job's MLflow run, by the policy that what was trained is never lost to a tracking server.

Unless tracking is *required*, whatever goes wrong here is said in the log and in the job's state, and training goes
on; ``LocalProvider.sync`` sends it later.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from notebooked_dagster.errors import MissingPackageError, TrackingError
from notebooked_dagster.providers.base import JobStatus

from .jobs import JobRecord, JobSpec

_RUN_STATUS = {
    JobStatus.SUCCEEDED: "FINISHED",
    JobStatus.FAILED: "FAILED",
    JobStatus.TIMED_OUT: "KILLED",
    JobStatus.KILLED: "KILLED",
    JobStatus.CANCELLED: "KILLED",
}


def run_status(status: JobStatus) -> str:
    """MLflow's word for how a job ended."""
    return _RUN_STATUS[status]


class RunTracking:
    """Starts, fills and ends the MLflow run of one job; notes what came of it in the job's record."""

    def __init__(
        self, record: JobRecord, spec: JobSpec, folder: Path, uri: str | None, *, say: Callable[[str], None]
    ) -> None:
        self.record = record
        self.spec = spec
        self.folder = folder
        self.uri = uri
        self._say = say
        self._tracking: Any = None

    def start(self) -> dict[str, str]:
        """Start the run; returns what ``train.py`` needs in its environment to join it, empty without one."""
        if self.uri is None:
            return {}
        joined: dict[str, str] = {}
        with self._tolerated("The MLflow run could not be started"):
            joined.update(self.attach(None))
        return joined

    def attach(self, run_id: str | None) -> dict[str, str]:
        """Take up a run, or start one where None.

        Raises:
            TrackingError: The server cannot be reached.
        """
        from notebooked_dagster.tracking import Tracking

        assert self.uri is not None
        tracking = Tracking(self.uri, self.spec.experiment)
        if run_id is None:
            run_id = tracking.start_run(
                name=self.record.id, tags=self.tags(), start_time=self.record.started_at
            )
        self.record.tracking.run_id = run_id
        self._tracking = tracking
        return dict(tracking.environment(run_id))

    def finish(self, status: JobStatus) -> None:
        """Send what is missing, register the model, and end the run.

        Raises:
            TrackingError: Only where tracking is required.
        """
        run_id = self.record.tracking.run_id
        if self._tracking is None or run_id is None:
            return
        before = len(self.record.tracking.warnings)
        try:
            with self._tolerated("Not everything reached MLflow"):
                self._fill(run_id, status)
        finally:
            with self._tolerated("The MLflow run could not be ended"):
                self._tracking.end_run(run_id, run_status(status), end_time=self.record.finished_at)
        self.record.tracking.complete = len(self.record.tracking.warnings) == before

    def _fill(self, run_id: str, status: JobStatus) -> None:
        tracking, model = self._tracking, model_facts(self.folder / "model")
        tracking.fill_in(
            run_id,
            params={**model.get("hyperparameters", {}), **self.spec.hyperparameters},
            metrics=self.record.metrics,
            tags=stage_tags(model),
        )
        tracking.log_scripts(run_id, self.folder / "code")
        tracking.log_text(run_id, self.folder / "log.txt")
        if status is not JobStatus.SUCCEEDED:
            return
        tracking.log_model_folder(run_id, self.folder / "model")
        if self.spec.registered_model is not None:
            self.record.tracking.model_version = tracking.register(
                self.spec.registered_model, run_id, tags={"notebooked/job": self.record.id}
            )

    def tags(self) -> dict[str, str]:
        """The run's lineage."""
        from notebooked_dagster.tracking.lineage import git_tags, prefixed

        where = self.spec.notebook.parent if self.spec.notebook is not None else self.spec.scripts
        own = {"experiment": self.spec.experiment, "job": self.record.id, "provider": self.record.provider}
        if self.spec.notebook is not None:
            own["notebook"] = str(self.spec.notebook)
        if self.spec.data_path is not None:
            own["data_path"] = self.spec.data_path
        return {**git_tags(where), **prefixed(own), **prefixed(self.spec.tags)}

    @contextmanager
    def _tolerated(self, what: str) -> Iterator[None]:
        try:
            yield
        except (TrackingError, MissingPackageError) as error:
            if self.spec.tracking_required:
                raise
            text = f"{what}: {error.message}"
            self.record.tracking.warnings.append(text)
            self._say(f"WARNING: {text} Training is not affected; its result is kept in {self.folder}.")


def model_facts(folder: Path) -> dict[str, Any]:
    """``model.json``; empty where there is none to read."""
    try:
        data = json.loads((folder / "model.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return data if isinstance(data, dict) else {}


def stage_tags(model: dict[str, Any]) -> dict[str, str]:
    """The stage hashes of a model, as tags."""
    hashes = model.get("stage_hashes")
    return (
        {f"notebooked/hash/{stage}": str(value) for stage, value in hashes.items()}
        if isinstance(hashes, dict)
        else {}
    )
