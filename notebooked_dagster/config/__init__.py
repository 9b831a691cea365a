"""The configuration files people write, as pydantic models whose messages name file, key and line."""

from .experiment import (
    EndpointConfig,
    ExperimentConfig,
    LintSettings,
    MetricGate,
    ParityConfig,
    PartitionsConfig,
    ScheduleConfig,
)
from .loading import check_unique, load_experiment, load_project, parse_experiment, project_or_default
from .project import (
    AutomationSection,
    AwsSection,
    AzureSection,
    GcpSection,
    LocalSection,
    MlflowSection,
    ProjectConfig,
)

__all__ = [
    "AutomationSection",
    "AwsSection",
    "AzureSection",
    "EndpointConfig",
    "ExperimentConfig",
    "GcpSection",
    "LintSettings",
    "LocalSection",
    "MetricGate",
    "MlflowSection",
    "ParityConfig",
    "PartitionsConfig",
    "ProjectConfig",
    "ScheduleConfig",
    "check_unique",
    "load_experiment",
    "load_project",
    "parse_experiment",
    "project_or_default",
]
