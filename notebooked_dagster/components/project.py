"""``NotebookedProject``: every experiment of a ``config.yaml``."""

from __future__ import annotations

from functools import cached_property
from pathlib import Path

import dagster as dg

from notebooked_dagster.config import load_project
from notebooked_dagster.resources import Workplace

from .experiment import NotebookExperiment
from .graph import experiment_definitions
from .spec import ExperimentSpec


class NotebookedProject(dg.Component, dg.Model, dg.Resolvable):
    """The experiments that a ``config.yaml`` lists.

    .. code-block:: yaml

        type: notebooked_dagster.NotebookedProject
        attributes:
          config: config.yaml

    Attributes:
        config: Path of the file, relative to the project's folder.
    """

    config: str = "config.yaml"

    @property
    def file(self) -> Path:
        """The file, absolute."""
        return Workplace.here().root / self.config

    @cached_property
    def experiments(self) -> list[ExperimentSpec]:
        """What the file lists. Raises ConfigError with file, line and key."""
        return [NotebookExperiment(config, self.file).spec for config in load_project(self.file).experiments]

    def build_defs(self, context: dg.ComponentLoadContext) -> dg.Definitions:
        """The asset graphs of all of them."""
        return dg.Definitions.merge(*(experiment_definitions(spec) for spec in self.experiments))
