"""Where a project's things are, and how its providers and tracking are reached, for everything that Dagster runs."""

from __future__ import annotations

import os
from dataclasses import dataclass
from functools import cached_property, lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import BaseModel, SecretStr

from notebooked_dagster.config import ExperimentConfig, ProjectConfig, project_or_default
from notebooked_dagster.core.settings import Settings

if TYPE_CHECKING:
    from notebooked_dagster.providers.base import BaseProvider

_SECTION = {
    "local": "local",
    "sagemaker": "aws",
    "azure": "azure",
    "gcp": "gcp",
    "vertex": "gcp",
    "kubernetes": "kubernetes",
    "databricks": "databricks",
    "pi": "pi",
}


@dataclass(frozen=True)
class Workplace:
    """One project on one machine.

    Attributes:
        settings: The folders.
        project: ``config.yaml`` and what overrides it.
    """

    settings: Settings
    project: ProjectConfig

    @classmethod
    def here(cls) -> Workplace:
        """The project of the working folder, or of ``NOTEBOOKED_PROJECT_ROOT``."""
        return _workplace(Path.cwd(), _environment(), _stamp(_root(Path.cwd(), _environment())))

    @property
    def root(self) -> Path:
        """The project's folder."""
        return self.settings.root

    @property
    def project_id(self) -> str:
        """What tells this project's endpoints from others' at the same provider: config.yaml's `name`, or the folder's."""
        return self.project.name or self.root.name

    @property
    def state(self) -> Path:
        """The state folder."""
        return self.settings.state

    def notebook(self, config: ExperimentConfig) -> Path:
        """The notebook of an experiment, absolute."""
        return self.root / config.notebook.expanduser()

    def scripts(self, config: ExperimentConfig) -> Path:
        """The folder of an experiment's generated scripts."""
        return self.settings.scripts / config.name

    @cached_property
    def tracking_uri(self) -> str:
        """Where runs are logged: our variable, then config.yaml, then MLflow's variable, then SQLite."""
        if self.settings.tracking_uri:
            return self.settings.tracking_uri
        if self.project.mlflow.tracking_uri:
            return self.project.mlflow.tracking_uri
        if found := os.environ.get("MLFLOW_TRACKING_URI"):
            return found
        from notebooked_dagster.tracking import local_uri

        return local_uri(self.state)

    @property
    def tracking_environment(self) -> dict[str, str]:
        """Credentials of the tracking server, for the process that trains."""
        mlflow = self.project.mlflow
        found = {
            "MLFLOW_TRACKING_USERNAME": mlflow.username,
            "MLFLOW_TRACKING_PASSWORD": mlflow.password.get_secret_value() if mlflow.password else None,
            "MLFLOW_TRACKING_TOKEN": mlflow.token.get_secret_value() if mlflow.token else None,
        }
        return {name: value for name, value in found.items() if value}

    def provider(self, name: str) -> BaseProvider:
        """A provider with the settings of its section. See ``providers.registry.get_provider`` for the errors."""
        from notebooked_dagster.providers.registry import get_provider

        settings: dict[str, Any] = {}
        section = getattr(self.project, _SECTION[name]) if name in _SECTION else None
        if isinstance(section, BaseModel):
            settings = {field: _revealed(value) for field, value in section if value is not None}
        if name in _SECTION:
            settings["state_dir"] = self.state
            settings["tracking_uri"] = self.tracking_uri
            settings["tracking_required"] = self.project.mlflow.tracking_required
        return get_provider(name, **settings)


def _revealed(value: Any) -> Any:
    return value.get_secret_value() if isinstance(value, SecretStr) else value


def _environment() -> tuple[tuple[str, str], ...]:
    """What the settings and the configuration are made from: a thousand experiments ask for the same."""
    return tuple(
        sorted(item for item in os.environ.items() if item[0].startswith(("NOTEBOOKED_", "MLFLOW_")))
    )


@lru_cache(maxsize=8)
def _root(folder: Path, environment: tuple[tuple[str, str], ...]) -> Path:
    return Settings().root


def _stamp(root: Path) -> tuple[int, int] | None:
    try:
        facts = (root / "config.yaml").stat()
    except OSError:
        return None
    return (facts.st_mtime_ns, facts.st_size)


@lru_cache(maxsize=8)
def _workplace(
    folder: Path, environment: tuple[tuple[str, str], ...], stamp: tuple[int, int] | None
) -> Workplace:
    settings = Settings()
    return Workplace(settings, project_or_default(settings.root))
