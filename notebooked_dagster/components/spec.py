"""Keys, labels and conditions of the assets of one experiment: everything that is known without running anything."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import dagster as dg

from notebooked_dagster.config import ExperimentConfig
from notebooked_dagster.resources import Workplace

_FRAMEWORK_KINDS = {
    "sagemaker": "sagemaker",
    "azure": "azureml",
    "gcp": "vertexai",
    "vertex": "vertexai",
    "kubernetes": "kubernetes",
    "databricks": "databricks",
}


@dataclass(frozen=True)
class ExperimentSpec:
    """One experiment in one project, as its assets need it.

    Attributes:
        config: The declaration.
        place: The project.
        declared_in: The file with the declaration.
        description: From the declaration, or the notebook's first Markdown cell.
    """

    config: ExperimentConfig
    place: Workplace
    declared_in: Path
    description: str = ""

    @property
    def name(self) -> str:
        """As Dagster takes it."""
        return self.config.key

    def key(self, part: str) -> dg.AssetKey:
        """The key of ``notebook``, ``training_code``, ``inference_code``, ``model`` or ``endpoint``."""
        return dg.AssetKey([self.name, part])

    @cached_property
    def notebook(self) -> Path:
        """The notebook, absolute."""
        return self.place.notebook(self.config)

    @cached_property
    def scripts(self) -> Path:
        """The folder of the generated scripts."""
        return self.place.scripts(self.config)

    @cached_property
    def tags(self) -> dict[str, str]:
        """Tags of every asset."""
        return {
            "notebooked/experiment": self.name,
            "notebooked/provider": self.config.provider,
            **self.config.tags,
        }

    @cached_property
    def partitions(self) -> dg.PartitionsDefinition[str] | None:
        """The model's partitions."""
        asked = self.config.partitions
        if asked is None:
            return None
        if asked.daily is not None:
            return dg.DailyPartitionsDefinition(start_date=asked.daily.isoformat(), timezone=asked.timezone)
        return dg.StaticPartitionsDefinition(list(asked.datasets))

    @property
    def endpoint_partitions(self) -> dg.PartitionsDefinition[str] | None:
        """One endpoint a data set; daily data has one endpoint, which serves the newest model."""
        asked = self.config.partitions
        return self.partitions if asked is not None and asked.daily is None else None

    def endpoint_name(self, partition: str | None = None) -> str:
        """The endpoint, or that of one of several data sets."""
        name = self.config.endpoint_name
        return (
            f"{name}-{partition}" if partition is not None and self.endpoint_partitions is not None else name
        )

    def asset(self, part: str, *, deps: list[Any] | None = None, **more: Any) -> dg.AssetSpec:
        """The specification of one of the assets, with the labels all of them have."""
        kinds = {*_kinds(part, self.config), *(self.config.kinds if part == "model" else ())}
        return dg.AssetSpec(
            self.key(part),
            deps=deps or [],
            group_name=self.name,
            owners=list(self.config.owners),
            kinds=set(sorted(kinds)[:3]),
            tags=self.tags,
            **more,
        )

    def automation(self, *, latest_only: bool = False) -> dg.AutomationCondition[Any] | None:
        """Ask for an asset when what it is made from *means* something else than before, not when it was made again.

        The scripts have none: edits are for the sensor ``notebook_changes``, and nobody else, to ask for
        (docs/decisions/0004-staleness.md).
        """
        return _condition(latest_only) if self.config.automation else None

    def places(self) -> Mapping[str, Any]:
        """Metadata that says where the declaration and the notebook lie."""
        return {
            "notebook": dg.MetadataValue.path(str(self.notebook)),
            "declared in": dg.MetadataValue.path(str(self.declared_in)),
            "provider": self.config.provider,
        }


def _kinds(part: str, config: ExperimentConfig) -> set[str]:
    if part == "notebook":
        return {"jupyter"}
    if part in ("training_code", "inference_code"):
        return {"python"}
    tracked = {"mlflow"} if config.tracking else set()
    where = {_FRAMEWORK_KINDS[config.provider]} if config.provider in _FRAMEWORK_KINDS else set()
    return where | (tracked if part == "model" else {"fastapi"} if not where else set())


_CONDITIONS: dict[bool, dg.AutomationCondition[Any]] = {}


def _condition(latest_only: bool) -> dg.AutomationCondition[Any]:
    # Conditions are values; a thousand experiments share the two there are.
    if latest_only not in _CONDITIONS:
        condition = dg.AutomationCondition
        changed = condition.any_deps_match(condition.data_version_changed()).with_label(
            "a dependency's code or data changed"
        )
        # A training that failed was handled: what failed is tried again when somebody mends it, not every tick.
        handled = (
            condition.newly_requested()
            | condition.newly_updated()
            | condition.initial_evaluation()
            | condition.execution_failed().newly_true()
        ).with_label("handled")
        wanted = (
            (condition.newly_missing() | changed).since(handled)
            & ~condition.any_deps_missing()
            & ~condition.any_deps_in_progress()
            & ~condition.in_progress()
            & condition.all_deps_blocking_checks_passed()
        )
        if latest_only:
            wanted = condition.in_latest_time_window() & wanted
        _CONDITIONS[latest_only] = wanted.with_label("notebooked: what it is made from changed")
    return _CONDITIONS[latest_only]
