"""Tracking: what the rest of the project knows of MLflow."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from datetime import UTC, datetime
from functools import cached_property
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from notebooked_dagster.errors import TrackingError

from .access import artifact_root, connect, http_defaults, shown, sqlite_path, translated
from .models import ModelRegistry, RegisteredVersion

MODEL_ARTIFACT = "notebooked_model"
SCRIPTS_ARTIFACT = "scripts"
LOGS_ARTIFACT = "logs"
_ENDED = ("FINISHED", "FAILED", "KILLED")
_LONGEST_PARAM = 6000
_LONGEST_TAG = 8000
_BATCH = 100


class Tracking:
    """One MLflow server, and one of its experiments. Connects when first used.

    Args:
        uri: ``sqlite:///…`` (``local_uri``), ``http(s)://…``, or whatever MLflow takes.
        experiment: The MLflow experiment's name; made where it does not exist.

    Every method raises TrackingError where the server cannot be reached or refuses, after seconds rather than
    minutes, and MissingPackageError where MLflow is not installed.
    """

    def __init__(self, uri: str, experiment: str) -> None:
        self.uri = uri
        self.experiment = experiment

    @cached_property
    def client(self) -> Any:
        """The ``MlflowClient``."""
        return connect(self.uri)

    @cached_property
    def experiment_id(self) -> str:
        """The experiment's id; it is made, or brought back from the bin, where need be."""
        client = self.client
        with translated(f"The MLflow experiment {self.experiment!r} cannot be used"):
            found = client.get_experiment_by_name(self.experiment)
            if found is None:
                found = self._make_experiment()
            if found.lifecycle_stage == "deleted":
                client.restore_experiment(found.experiment_id)
            return str(found.experiment_id)

    def _make_experiment(self) -> Any:
        root = artifact_root(self.uri)
        location = f"{root}/{self.experiment}" if root is not None else None
        try:
            self.client.create_experiment(self.experiment, artifact_location=location)
        except Exception:
            # Another process may have made it between our look and now.
            found = self.client.get_experiment_by_name(self.experiment)
            if found is None:
                raise
            return found
        return self.client.get_experiment_by_name(self.experiment)

    @cached_property
    def models(self) -> ModelRegistry:
        """The registered models of this server."""
        return ModelRegistry(self.client, self.uri)

    # Runs

    def start_run(
        self, *, name: str, tags: Mapping[str, str] | None = None, start_time: datetime | None = None
    ) -> str:
        """Start a run; whoever started it ends it. Returns its id."""
        experiment_id, client = self.experiment_id, self.client
        with translated("The run cannot be started"):
            run = client.create_run(
                experiment_id,
                run_name=name,
                tags={key: value[:_LONGEST_TAG] for key, value in (tags or {}).items()},
                start_time=_milliseconds(start_time),
            )
            return str(run.info.run_id)

    def environment(self, run_id: str) -> dict[str, str]:
        """What ``train.py`` needs in its environment to join a run and leave ending it to us."""
        return {
            **http_defaults(),
            "MLFLOW_TRACKING_URI": self.uri,
            "MLFLOW_REGISTRY_URI": self.uri,
            "MLFLOW_EXPERIMENT_NAME": self.experiment,
            "MLFLOW_RUN_ID": run_id,
        }

    def end_run(self, run_id: str, status: str = "FINISHED", *, end_time: datetime | None = None) -> None:
        """End a run as ``FINISHED``, ``FAILED`` or ``KILLED``."""
        client = self.client
        with translated(f"Run {run_id} cannot be ended"):
            client.set_terminated(
                run_id, status=status, end_time=_milliseconds(end_time or datetime.now(UTC))
            )

    def run_status(self, run_id: str) -> str:
        """``RUNNING``, ``FINISHED``, ``FAILED`` or ``KILLED``."""
        client = self.client
        with translated(f"Run {run_id} cannot be read"):
            return str(client.get_run(run_id).info.status)

    def reconcile(self, is_alive: Iterable[str]) -> list[str]:
        """End the runs of ours in this experiment that are still open though their job is dead.

        Args:
            is_alive: The jobs (tag ``notebooked/job``) that do run; every other open run is ended as KILLED.

        Returns:
            The ids of the runs that were ended.
        """
        alive, ended = set(is_alive), []
        experiment_id, client = self.experiment_id, self.client
        with translated("Open runs cannot be listed"):
            open_runs = client.search_runs([experiment_id], "attributes.status = 'RUNNING'", max_results=1000)
            for run in open_runs:
                job = run.data.tags.get("notebooked/job")
                if job is not None and job not in alive:
                    client.set_terminated(run.info.run_id, status="KILLED")
                    ended.append(str(run.info.run_id))
        return ended

    def fill_in(
        self,
        run_id: str,
        *,
        params: Mapping[str, Any] | None = None,
        metrics: Mapping[str, float] | None = None,
        tags: Mapping[str, str] | None = None,
    ) -> list[str]:
        """Log what a run does not have yet; what the training logged itself is left as it is.

        Returns:
            The names of the params and metrics that were missing.
        """
        from importlib import import_module

        client = self.client
        with translated(f"Run {run_id} cannot be filled in"):
            entities = import_module("mlflow.entities")
            data = client.get_run(run_id).data
            now = int(datetime.now(UTC).timestamp() * 1000)
            new_params = [
                entities.Param(name, _text(value)[:_LONGEST_PARAM])
                for name, value in (params or {}).items()
                if name not in data.params
            ]
            new_metrics = [
                entities.Metric(name, float(value), now, 0)
                for name, value in (metrics or {}).items()
                if name not in data.metrics
            ]
            new_tags = [entities.RunTag(name, value[:_LONGEST_TAG]) for name, value in (tags or {}).items()]
            for at in range(0, max(len(new_params), len(new_metrics), len(new_tags)), _BATCH):
                part = slice(at, at + _BATCH)
                client.log_batch(run_id, new_metrics[part], new_params[part], new_tags[part])
        return [item.key for item in (*new_params, *new_metrics)]

    def log_scripts(self, run_id: str, folder: Path) -> None:
        """Keep the scripts, requirements and source map with the run."""
        self._log_folder(run_id, folder, SCRIPTS_ARTIFACT)

    def log_model_folder(self, run_id: str, folder: Path) -> None:
        """Keep the whole model folder with the run: what ``resolve`` gives back."""
        self._log_folder(run_id, folder, MODEL_ARTIFACT)

    def log_text(self, run_id: str, path: Path) -> None:
        """Keep a log file with the run."""
        client = self.client
        with translated(f"{path.name} cannot be sent"):
            client.log_artifact(run_id, str(path), LOGS_ARTIFACT)

    def _log_folder(self, run_id: str, folder: Path, artifact: str) -> None:
        client = self.client
        with translated(f"The artifact {artifact!r} cannot be sent"):
            client.log_artifacts(run_id, str(folder), artifact)

    def run_url(self, run_id: str) -> str:
        """The run's page in the MLflow UI; for SQLite, as ``mlflow server`` on its default address shows it."""
        base = (
            self.uri.rstrip("/")
            if urlsplit(self.uri).scheme in ("http", "https")
            else "http://127.0.0.1:5000"
        )
        return f"{shown(base)}/#/experiments/{self.experiment_id}/runs/{run_id}"

    def ui_command(self) -> str:
        """The command that shows the runs; for a server, its address."""
        return f"mlflow server --backend-store-uri {self.uri}" if sqlite_path(self.uri) else shown(self.uri)

    # Models

    def register(
        self,
        name: str,
        run_id: str,
        *,
        tags: Mapping[str, str] | None = None,
        alias: str | None = "challenger",
    ) -> str:
        """Register a run's model as a new version and give it an alias; a run is registered once.

        Returns:
            The version.
        """
        return self.models.register(name, run_id, MODEL_ARTIFACT, tags=tags or {}, alias=alias).version

    def set_alias(self, name: str, alias: str, version: str) -> None:
        """Point an alias at a version; it leaves the version it pointed at."""
        self.models.set_alias(name, alias, version)

    def promote(self, name: str, version: str | None = None) -> RegisteredVersion:
        """Make a version (the challenger where None) the champion."""
        return self.models.promote(name, version)

    def demote(self, name: str) -> RegisteredVersion:
        """Make the champion before this one the champion again."""
        return self.models.demote(name)

    def resolve(self, uri: str, *, cache: Path) -> Path:
        """The model folder that ``models:/name@alias``, ``models:/name/version`` or ``runs:/id[/path]`` names.

        A folder on this machine is given as it is; one on a server is fetched into ``cache`` once.
        """
        return self.models.resolve(uri, MODEL_ARTIFACT, cache)


def _milliseconds(moment: datetime | None) -> int | None:
    return int(moment.timestamp() * 1000) if moment is not None else None


def _text(value: Any) -> str:
    if isinstance(value, str):
        return value
    try:
        return json.dumps(value)
    except (TypeError, ValueError):
        return str(value)


__all__ = ["MODEL_ARTIFACT", "SCRIPTS_ARTIFACT", "Tracking", "TrackingError"]
