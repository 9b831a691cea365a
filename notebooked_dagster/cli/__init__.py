"""The ``notebooked`` command. Importing it imports click and nothing else."""

from .app import main

__all__ = ["main"]
