"""CI files for a project of notebooks, and the comparison of metrics that they show on a pull request."""

from .compare import Comparison, compare, read_metrics, render
from .generate import ACTIONS, PLATFORMS, PROVIDERS, WorkflowOptions, generate_workflow

__all__ = [
    "ACTIONS",
    "PLATFORMS",
    "PROVIDERS",
    "Comparison",
    "WorkflowOptions",
    "compare",
    "generate_workflow",
    "read_metrics",
    "render",
]
