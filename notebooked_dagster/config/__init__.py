"""The configuration files people write, as pydantic models whose messages name file, key and line."""

from .experiment import (
    EndpointConfig,
    ExperimentConfig,
    LintSettings,
    MetricGate,
    ParityConfig,
    PartitionsConfig,
    PipesCheck,
    PipesConfig,
    ScheduleConfig,
)
from .loading import (
    check_unique,
    load_experiment,
    load_file,
    load_project,
    parse_experiment,
    project_or_default,
)
from .project import (
    AutomationSection,
    AwsSection,
    AzureSection,
    GcpSection,
    LocalSection,
    MlflowSection,
    ProjectConfig,
)
from .storage import StorageSection

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
    "PipesCheck",
    "PipesConfig",
    "ProjectConfig",
    "ScheduleConfig",
    "StorageSection",
    "check_unique",
    "load_experiment",
    "load_file",
    "load_project",
    "parse_experiment",
    "project_or_default",
]
