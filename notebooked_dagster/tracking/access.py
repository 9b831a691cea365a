"""The way to MLflow: imported late, quiet, quick to give up, and with errors of ours."""

from __future__ import annotations

import contextlib
import importlib
import logging
import os
import re
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit, urlunsplit

import filelock

from notebooked_dagster.core.collector import no_collections
from notebooked_dagster.errors import MissingPackageError, NotebookedError, TrackingError

_PROBE_TIMEOUT = 3.0
# MLflow's own are 120 s and 7 retries: minutes of silence when a server is down. The user's word wins.
_DEFAULTS = {
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "15",
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "2",
    "MLFLOW_HTTP_REQUEST_BACKOFF_FACTOR": "1",
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR": "false",
    "GIT_PYTHON_REFRESH": "quiet",
}
_NOISY = ("mlflow", "alembic", "git")
_SQLITE = "sqlite:///"


def local_uri(state_dir: Path) -> str:
    """The tracking URI of a state folder: SQLite in ``<state>/mlflow/mlflow.db``."""
    return f"{_SQLITE}{state_dir.resolve() / 'mlflow' / 'mlflow.db'}"


def http_defaults() -> dict[str, str]:
    """The settings that keep MLflow's client from hanging, for a process that has none of its own."""
    return {name: value for name, value in _DEFAULTS.items() if name not in os.environ}


def sqlite_path(uri: str) -> Path | None:
    """The database file of a SQLite URI; None for any other."""
    return Path(uri.removeprefix(_SQLITE).partition("?")[0]) if uri.startswith(_SQLITE) else None


def artifact_root(uri: str) -> str | None:
    """Where a new experiment keeps its artifacts; None where the server decides.

    Beside a SQLite file: MLflow's own default would be the working folder of whoever comes first.
    """
    path = sqlite_path(uri)
    return (path.resolve().parent / "artifacts").as_uri() if path is not None else None


def connect(uri: str) -> Any:
    """An ``MlflowClient``; the database is made or migrated first where the URI names a SQLite file.

    Raises:
        TrackingError: Nobody answers at the address, or the database cannot be used.
        MissingPackageError: MLflow, or its database part, is not installed.
    """
    probe(uri)
    # MLflow reads these when it is used; there is no other way to tell it.
    for name, value in http_defaults().items():
        os.environ[name] = value
    for name in _NOISY:
        logging.getLogger(name).setLevel(logging.WARNING)
    with translated(f"MLflow at {shown(uri)} cannot be used"), no_collections():
        client_class = importlib.import_module("mlflow.tracking").MlflowClient
        # MLflow sets its logger's level when it is imported.
        for name in _NOISY:
            logging.getLogger(name).setLevel(logging.WARNING)
        path = sqlite_path(uri)
        if path is None:
            return client_class(tracking_uri=uri, registry_uri=uri)
        path.parent.mkdir(parents=True, exist_ok=True)
        # Two processes that migrate one new file at once both fail.
        with filelock.FileLock(f"{path}.lock", timeout=120):
            client = client_class(tracking_uri=uri, registry_uri=uri)
            client.search_experiments(max_results=1)
            return client


def probe(uri: str) -> None:
    """Fail at once where nobody listens at a server's address; MLflow's client would try for minutes.

    Raises:
        TrackingError: Nobody does.
    """
    parts = urlsplit(uri)
    if parts.scheme not in ("http", "https") or parts.hostname is None:
        return
    try:
        port = parts.port or (443 if parts.scheme == "https" else 80)
        socket.create_connection((parts.hostname, port), timeout=_PROBE_TIMEOUT).close()
    except (OSError, ValueError) as error:
        raise TrackingError(
            f"The MLflow server at {shown(uri)} cannot be reached: {error}.",
            hint="Start it, or correct the tracking URI (MLFLOW_TRACKING_URI, `mlflow.tracking_uri`).",
        ) from error


def shown(uri: str) -> str:
    """A URI without credentials."""
    if "@" not in uri:
        return uri
    parts = urlsplit(uri)
    return urlunsplit(parts._replace(netloc=parts.netloc.rpartition("@")[2]))


@contextlib.contextmanager
def translated(what: str) -> Iterator[None]:
    """Turn whatever MLflow raises into TrackingError or MissingPackageError.

    MLflow's own exceptions, its HTTP library's, its database's and its file systems' have no common root.
    """
    try:
        yield
    except NotebookedError:
        raise
    except ImportError as error:
        raise MissingPackageError(
            f"{what}: the package {error.name or 'mlflow'!r} is not installed.",
            hint="`pip install 'notebooked-dagster[mlflow]'`.",
        ) from error
    except Exception as error:
        first = re.split(r"\n", str(error).strip(), maxsplit=1)[0]
        reason = re.sub(r"://[^/@\s]+@", "://", first)[:500].rstrip(".")
        raise TrackingError(
            f"{what}: {reason or type(error).__name__}.",
            details={"cause": type(error).__name__, "code": str(getattr(error, "error_code", ""))},
        ) from error
