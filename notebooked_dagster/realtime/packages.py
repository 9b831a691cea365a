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
    except ModuleNotFoundError as error:
        raise MissingPackageError(
            f"{what} needs {package}: {error}.",
            hint="Install it: pip install 'notebooked-dagster[edge]'.",
        ) from error
    except ImportError as error:
        raise MissingPackageError(
            f"{what} needs {package}, which cannot be loaded: {error}.",
            hint="Install the library that it names; on Raspberry Pi OS and Debian, `apt install alsa-utils` brings ALSA's.",
        ) from error
