"""``NotebookExperiment``: one notebook as an asset graph, declared in ``assets/<name>/defs.yaml``."""

from __future__ import annotations

import os
from collections.abc import Mapping
from functools import cached_property
from pathlib import Path
from typing import Any

import dagster as dg
from dagster.components.core.defs_module import find_defs_or_component_yaml
from pydantic import BaseModel, ModelWrapValidatorHandler, model_validator

from notebooked_dagster.config import ExperimentConfig, load_experiment, parse_experiment
from notebooked_dagster.resources import Workplace

from .descriptions import Descriptions
from .graph import experiment_definitions
from .spec import ExperimentSpec


class ExperimentAttributes(ExperimentConfig):
    """The schema of ``attributes`` in defs.yaml. The values are judged by ``notebooked_dagster.config``, which knows
    the file and its lines, and which fills in what comes from the environment first.
    """

    name: str = ""

    @model_validator(mode="wrap")
    @classmethod
    def _judged_later(
        cls, data: Any, handler: ModelWrapValidatorHandler[ExperimentAttributes]
    ) -> ExperimentAttributes:
        return cls.model_construct(**data) if isinstance(data, Mapping) else handler(data)


class ScaffoldParameters(BaseModel):
    """What ``dg scaffold defs notebooked_dagster.NotebookExperiment`` takes.

    Attributes:
        notebook: Path of the notebook, relative to the project's folder.
    """

    notebook: str | None = None


class ExperimentScaffolder(dg.Scaffolder[ScaffoldParameters]):
    """Writes a declaration that names its notebook."""

    @classmethod
    def get_scaffold_params(cls) -> type[ScaffoldParameters]:
        """What may be told."""
        return ScaffoldParameters

    def scaffold(self, request: dg.ScaffoldRequest[ScaffoldParameters]) -> None:
        """Write ``defs.yaml``."""
        told = request.params.notebook if request.params is not None else None
        dg.scaffold_component(request, {"notebook": told or f"notebooks/{request.target_path.name}.ipynb"})


@dg.scaffold_with(ExperimentScaffolder)
class NotebookExperiment(dg.Component):
    """A notebook, the scripts generated from it, the model trained from them, and the endpoint that serves it.

    .. code-block:: yaml

        type: notebooked_dagster.NotebookExperiment
        attributes:
          notebook: notebooks/experiments/wine.ipynb
          hyperparameters: {C: 0.5}
          metric_gate: {metric: accuracy, min: 0.9}
          schedule: "0 3 * * *"
    """

    def __init__(self, config: ExperimentConfig, declared_in: Path) -> None:
        self.config = config
        self.declared_in = declared_in

    @classmethod
    def get_model_cls(cls) -> type[BaseModel]:
        """The schema of the attributes."""
        return ExperimentAttributes

    @classmethod
    def load(cls, attributes: BaseModel | None, context: dg.ComponentLoadContext) -> NotebookExperiment:
        """Read the declaration. Raises ConfigError with file, line and key."""
        defaults = Workplace.here().project.defaults
        file = find_defs_or_component_yaml(context.path)
        if file is not None:
            index = getattr(context.component_path, "instance_key", None)
            return cls(load_experiment(file, os.environ, defaults, index=index), file)
        given = dict(attributes or {})
        return cls(parse_experiment(given, context.path, os.environ, defaults), context.path)

    @cached_property
    def spec(self) -> ExperimentSpec:
        """The experiment in this project."""
        place = Workplace.here()
        description = self.config.description
        if description is None:
            description = Descriptions.of(place.state).get(place.notebook(self.config))
        return ExperimentSpec(self.config, place, self.declared_in, description)

    def build_defs(self, context: dg.ComponentLoadContext) -> dg.Definitions:
        """The asset graph."""
        return experiment_definitions(self.spec)
