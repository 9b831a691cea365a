"""The Dagster components that defs.yaml names."""

from .experiment import NotebookExperiment
from .project import NotebookedProject

__all__ = ["NotebookExperiment", "NotebookedProject"]
