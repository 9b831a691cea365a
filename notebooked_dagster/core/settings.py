"""Where a project keeps things, and the environment variables that move them."""

from __future__ import annotations

from functools import cached_property
from pathlib import Path

from pydantic import Field
from pydantic_settings import BaseSettings, SettingsConfigDict

from notebooked_dagster.errors import ConfigError

from .root import find_project_root


class Settings(BaseSettings):
    """Environment variables that start with ``NOTEBOOKED_``; read when constructed, never at import.

    Attributes:
        project_root: The project's folder. Found by walking up from the working folder where unset.
        state_dir: What the project makes and can make again; ``<root>/.notebooked`` where unset.
        assets_dir: The declarations; ``<root>/assets`` where unset.
        scripts_dir: The generated scripts, a folder an experiment; ``<root>/scripts`` where unset.
        tracking_uri: The MLflow tracking server; SQLite under the state folder where unset. MLflow's own
            ``MLFLOW_TRACKING_URI`` is honoured where this is unset.
    """

    # Set to nothing, as compose files and CI do for what nobody set, is not set: an empty path would be the project's folder.
    model_config = SettingsConfigDict(env_prefix="NOTEBOOKED_", extra="ignore", env_ignore_empty=True)

    project_root: Path = Field(default_factory=lambda: find_project_root(Path.cwd()))
    state_dir: Path | None = None
    assets_dir: Path | None = None
    scripts_dir: Path | None = None
    tracking_uri: str | None = None

    @cached_property
    def root(self) -> Path:
        """The project's folder, absolute."""
        root = self.project_root.expanduser().resolve()
        if not root.is_dir():
            raise ConfigError(
                "NOTEBOOKED_PROJECT_ROOT is not a folder.",
                path=root,
                hint="Point it at the folder that holds assets/ and dagster.yaml.",
            )
        return root

    @cached_property
    def state(self) -> Path:
        """The state folder, absolute. It may not exist yet."""
        return self._under_root(self.state_dir, ".notebooked")

    @cached_property
    def assets(self) -> Path:
        """The folder of declarations, absolute."""
        return self._under_root(self.assets_dir, "assets")

    @cached_property
    def scripts(self) -> Path:
        """The folder of generated scripts, absolute."""
        return self._under_root(self.scripts_dir, "scripts")

    def _under_root(self, value: Path | None, default: str) -> Path:
        chosen = value.expanduser() if value is not None else Path(default)
        return chosen if chosen.is_absolute() else self.root / chosen
