"""This machine: training in a supervised subprocess, serving through our own model server."""

from .provider import LocalProvider

__all__ = ["LocalProvider"]
