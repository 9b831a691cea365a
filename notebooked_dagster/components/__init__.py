"""The Dagster components that defs.yaml names."""

from .experiment import NotebookExperiment
from .project import NotebookedProject
from .takes import Takes

__all__ = ["NotebookExperiment", "NotebookedProject", "Takes"]
