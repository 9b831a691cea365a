"""The audit of a notebook: ``lint(analysis, config)`` and ``render(findings, notebook, format)``."""

from .audit import lint
from .catalogue import RULES, Rule
from .config import LintConfig, at_least
from .plugins import ENTRY_POINT_GROUP, LintPlugin
from .report import FORMATS, render, render_all

__all__ = [
    "ENTRY_POINT_GROUP",
    "FORMATS",
    "RULES",
    "LintConfig",
    "LintPlugin",
    "Rule",
    "at_least",
    "lint",
    "render",
    "render_all",
]
