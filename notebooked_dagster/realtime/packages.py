"""The packages of the extra ``edge``, imported when they are needed, with a message that names the command."""

from __future__ import annotations

from importlib import import_module
from typing import Any

from notebooked_dagster.errors import MissingPackageError


def needed(module: str, package: str, what: str) -> Any:
    """Import a module of an optional package.

    Args:
        module: As one imports it.
        package: As one installs it.
        what: What it is needed for; the message starts with it.

    Raises:
        MissingPackageError: It is not installed, or a library of the system that it needs is not there.
    """
    try:
        return import_module(module)
    except ImportError as error:
        raise MissingPackageError(
            f"{what} needs {package}: {error}.",
            hint="Install it: pip install 'notebooked-dagster[edge]'.",
        ) from error
