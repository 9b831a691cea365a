"""Where runs are executed: beside the code location, in a container for each, or on devices, as one environment variable says.

::

    run_launcher:
      module: notebooked_dagster.resources.launcher
      class: ProjectRunLauncher
      config:
        kubernetes: {job_namespace: dagster}
        docker: {network: notebooked}

``dagster.yaml`` cannot say "if"; this class can, so that the same file serves a laptop and a cluster. Where the variable says
nothing, runs go to devices if an ``edge.yaml`` lies here, and are executed here if none does.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from importlib import import_module
from pathlib import Path
from typing import Any, Final

import yaml
from dagster import Field, Permissive
from dagster._config import UserConfigSchema
from dagster._core.launcher.base import RunLauncher
from dagster._serdes import ConfigurableClass, ConfigurableClassData

from notebooked_dagster.errors import ConfigError, MissingPackageError

VARIABLE: Final = "NOTEBOOKED_RUN_LAUNCHER"
_DEFAULT = "default"
# Module, class, and the extra that brings it.
_LAUNCHERS: Mapping[str, tuple[str, str, str]] = {
    "kubernetes": ("dagster_k8s", "K8sRunLauncher", "kubernetes"),
    "ecs": ("dagster_aws.ecs", "EcsRunLauncher", "aws"),
    "docker": ("dagster_docker", "DockerRunLauncher", "docker"),
    "pi": ("notebooked_dagster.edge.launcher", "PiRunLauncher", "edge"),
}


class ProjectRunLauncher(RunLauncher, ConfigurableClass):
    """Chooses the launcher; never an object itself, so that nothing of what the chosen one can do is lost on the way.

    Config: ``kubernetes``, ``ecs``, ``docker`` and ``pi``, each with what that launcher takes; only the chosen one's is read.
    """

    @classmethod
    def config_type(cls) -> UserConfigSchema:
        """Its configuration in ``dagster.yaml``."""
        return {name: Field(Permissive(), is_required=False) for name in _LAUNCHERS}  # type: ignore[no-untyped-call]

    @classmethod
    def from_config_value(  # type: ignore[override]
        cls, inst_data: ConfigurableClassData, config_value: Mapping[str, Any]
    ) -> RunLauncher:
        """The launcher.

        Raises:
            ConfigError: The variable names none.
            MissingPackageError: Its package is not installed.
        """
        name = os.environ.get(VARIABLE, "").strip().lower()
        if not name:
            # Devices were declared for runs to go there: the default launcher would execute those here, without a word.
            name = "pi" if Path("edge.yaml").exists() else _DEFAULT
        if name == _DEFAULT:
            from dagster._core.launcher import DefaultRunLauncher

            return DefaultRunLauncher(inst_data=inst_data)
        if name not in _LAUNCHERS:
            raise ConfigError(
                f"There is no run launcher {name!r}.",
                key=VARIABLE,
                hint=f"It is one of: {', '.join((_DEFAULT, *_LAUNCHERS))}.",
            )
        module, kind, extra = _LAUNCHERS[name]
        try:
            import_module(module)
        except ModuleNotFoundError as error:
            raise MissingPackageError(
                f"{VARIABLE}={name} needs the package {error.name!r}.",
                hint=f"`pip install 'notebooked-dagster[{extra}]'`, or unset the variable: runs are then executed here.",
            ) from error
        # By Dagster's own way: it checks the configuration and fills in what stands in the environment.
        chosen = ConfigurableClassData(module, kind, yaml.safe_dump(dict(config_value.get(name) or {})))
        return chosen.rehydrate(as_type=RunLauncher)  # type: ignore[type-abstract]
