"""Turn the slices of a notebook into scripts that run without it.

``generate`` is pure: an analysis in, the text of files out. ``write_scripts`` puts them into a folder without ever
overwriting what somebody edited there.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from .generate import generate
from .model import GeneratedScripts, GenerateOptions, Hyperparameter, Origin, SourceMap

if TYPE_CHECKING:
    from .drift import DriftReport, WriteReport, report, write_scripts

__all__ = [
    "DriftReport",
    "GenerateOptions",
    "GeneratedScripts",
    "Hyperparameter",
    "Origin",
    "SourceMap",
    "WriteReport",
    "generate",
    "report",
    "write_scripts",
]


def __getattr__(name: str) -> Any:
    """What writes files is imported when it is asked for."""
    if name in ("DriftReport", "WriteReport", "report", "write_scripts"):
        from . import drift

        return getattr(drift, name)
    raise AttributeError(name)
