"""Where a project is; apart from its settings, so that a command may know it without loading pydantic."""

from __future__ import annotations

from pathlib import Path

_ROOT_MARKS = ("config.yaml", "workspace.yaml", "dagster.yaml", "assets", "pyproject.toml")


def find_project_root(start: Path) -> Path:
    """The nearest folder from ``start`` upwards that holds an ``assets`` folder or ``config.yaml`` beside a
    workspace; ``start`` itself where there is none.
    """
    start = start.resolve()
    for folder in (start, *start.parents):
        present = {mark for mark in _ROOT_MARKS if (folder / mark).exists()}
        if len(present) >= 2 and present & {"assets", "config.yaml"}:
            return folder
    return start
