"""Every error this project raises on purpose, and the exit code each one ends a command with.

::

    NotebookedError
    ├── UserError                          exit 1: something the user can put right
    │   ├── NotebookError                  a notebook cannot be used
    │   │   ├── NotebookReadError          missing, truncated, not JSON, not a notebook, wrong nbformat
    │   │   ├── CellSyntaxError            a cell does not parse as Python
    │   │   ├── NoTrainingCodeError        nothing in the notebook trains anything
    │   │   └── UnsupportedCellError       a cell does what production cannot promise (``%%bash``, ``x = !ls``)
    │   ├── ConfigError                    defs.yaml, config.yaml, the environment or an option is wrong
    │   ├── CodegenError                   scripts cannot be generated
    │   │   └── DriftError                 a generated script was edited by hand; nothing was overwritten
    │   ├── DataError                      a data file is missing or has the wrong shape
    │   ├── InvalidInputError              a prediction request does not match the model's signature
    │   ├── MissingPackageError            an optional dependency is not installed
    │   ├── GateError                      a metric gate or a check refused to let a model pass
    │   └── TrainingError                  the user's training code did not finish
    │       ├── TrainingFailedError        it raised or exited with a code other than 0
    │       ├── TrainingTimeoutError       it ran longer than its time limit
    │       ├── TrainingKilledError        a signal ended it (out of memory, kill -9)
    │       └── TrainingCancelledError     somebody asked for it to stop
    ├── ProviderError                      exit 2: a provider, a server or the network
    │   ├── EndpointNotFoundError          no endpoint of that name
    │   ├── JobNotFoundError               no training job of that id
    │   ├── DeploymentError                the new version never became healthy; the old one serves on
    │   ├── DeploymentConflictError        another deployment of the same endpoint is under way
    │   ├── StateError                     the provider's state on disk is damaged
    │   ├── TrackingError                  the tracking server cannot be reached or refused
    │   ├── CredentialsError               a cloud knows no credentials of ours, or they may not do this
    │   ├── QuotaError                     a cloud's quota or its machines are used up
    │   ├── DeviceError                    a device at the edge refused, or something is missing on it
    │   │   └── DeviceUnreachableError     no answer from a device; what runs there goes on
    │   ├── CapabilityError                the provider cannot do what was asked
    │   └── PortError                      a MIDI port, a pin or a network peer of an edge device cannot be used
    └── InternalError                      exit 3: a fault of this project
"""

from __future__ import annotations

import errno
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar

EXIT_OK = 0
EXIT_USER = 1
EXIT_PROVIDER = 2
EXIT_INTERNAL = 3


class NotebookedError(Exception):
    """The root of the tree.

    Args:
        message: One sentence that says what is wrong.
        hint: What to do about it, as an imperative sentence.
        path: The file it is about.
        cell: The 1-based number of the cell it is about, counted over all cells of the file.
        line: The 1-based line in that cell, or in ``path`` where ``cell`` is None.
        key: The configuration key it is about, dotted (``experiments[2].notebook``).
        details: Evidence for machines (``--json``): JSON-serialisable values only.
    """

    exit_code: ClassVar[int] = EXIT_INTERNAL

    def __init__(
        self,
        message: str,
        *,
        hint: str | None = None,
        path: Path | str | None = None,
        cell: int | None = None,
        line: int | None = None,
        key: str | None = None,
        details: Mapping[str, Any] | None = None,
    ) -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint
        self.path = Path(path) if path is not None else None
        self.cell = cell
        self.line = line
        self.key = key
        self.details: dict[str, Any] = dict(details or {})

    @property
    def where(self) -> str:
        """The place, as ``file, cell 3, line 2, key x.y``; empty where there is none."""
        parts: list[str] = []
        if self.path is not None:
            parts.append(str(self.path))
        if self.cell is not None:
            parts.append(f"cell {self.cell}")
        if self.line is not None:
            parts.append(f"line {self.line}")
        if self.key is not None:
            parts.append(f"key {self.key}")
        return ", ".join(parts)

    def __str__(self) -> str:
        text = f"{self.where}: {self.message}" if self.where else self.message
        return f"{text} {self.hint}" if self.hint else text

    def to_dict(self) -> dict[str, Any]:
        """The error as plain data for ``--json``."""
        data: dict[str, Any] = {
            "error": type(self).__name__,
            "message": self.message,
            "exit_code": self.exit_code,
        }
        for name in ("hint", "cell", "line", "key"):
            value = getattr(self, name)
            if value is not None:
                data[name] = value
        if self.path is not None:
            data["path"] = str(self.path)
        if self.details:
            data["details"] = self.details
        return data


class UserError(NotebookedError):
    """Something the user can put right."""

    exit_code = EXIT_USER


class NotebookError(UserError):
    """A notebook cannot be used."""


class NotebookReadError(NotebookError):
    """The file is missing, truncated, not JSON, or not a notebook of a version we read."""


class CellSyntaxError(NotebookError):
    """A cell does not parse as Python."""


class NoTrainingCodeError(NotebookError):
    """Nothing in the notebook trains anything."""


class UnsupportedCellError(NotebookError):
    """A cell does something production cannot promise."""


class ConfigError(UserError):
    """A configuration file, environment variable or option is wrong."""


class CodegenError(UserError):
    """Scripts cannot be generated from this notebook."""


class DriftError(CodegenError):
    """A generated script was edited by hand; nothing was overwritten."""


class DataError(UserError):
    """A data file is missing or has the wrong shape."""


class InvalidInputError(UserError):
    """A prediction request does not match the model's signature."""


class MissingPackageError(UserError):
    """An optional dependency is not installed."""


class GateError(UserError):
    """A metric gate or a blocking check refused to let a model pass."""


class TrainingError(UserError):
    """The user's training code did not finish."""


class TrainingFailedError(TrainingError):
    """Training raised, or exited with a code other than 0."""


class TrainingTimeoutError(TrainingError):
    """Training ran longer than its time limit."""


class TrainingKilledError(TrainingError):
    """A signal ended training."""


class TrainingCancelledError(TrainingError):
    """Somebody asked for training to stop."""


class ProviderError(NotebookedError):
    """A provider, a server or the network failed."""

    exit_code = EXIT_PROVIDER


class EndpointNotFoundError(ProviderError):
    """There is no endpoint of that name."""


class JobNotFoundError(ProviderError):
    """There is no training job of that id."""


class DeploymentError(ProviderError):
    """A new version never became healthy; the previous one serves on."""


class DeploymentConflictError(ProviderError):
    """Another deployment of the same endpoint is under way."""


class StateError(ProviderError):
    """A provider's state on disk is damaged."""


class TrackingError(ProviderError):
    """The tracking server cannot be reached or refused the request."""


class CredentialsError(ProviderError):
    """A cloud knows no credentials of ours, or they may not do what was asked."""


class QuotaError(ProviderError):
    """A cloud's quota is used up, or it has no machine of the kind left."""


class DeviceError(ProviderError):
    """A device at the edge refused what was asked, or lacks something it needs."""


class DeviceUnreachableError(DeviceError):
    """A device does not answer; what runs on it goes on."""


class CapabilityError(ProviderError):
    """The provider cannot do what was asked of it."""


class PortError(ProviderError):
    """A MIDI port, a pin or a network peer of an edge device cannot be used."""


class InternalError(NotebookedError):
    """A fault of this project."""

    exit_code = EXIT_INTERNAL


def from_dict(data: Mapping[str, Any]) -> NotebookedError:
    """The error that another process of ours raised, from its ``to_dict``; one of a class that is unknown here is internal."""
    kind = globals().get(str(data.get("error")))
    if not (isinstance(kind, type) and issubclass(kind, NotebookedError)):
        kind = InternalError
    return kind(
        str(data.get("message")), hint=data.get("hint"), path=data.get("path"), details=data.get("details")
    )


def from_os(problem: OSError) -> UserError:
    """What the operating system refused, as an error of the user's: the file's name and the reason."""
    reason = problem.strerror or str(problem) or type(problem).__name__
    return UserError(
        f"{reason}.",
        path=problem.filename if isinstance(problem.filename, str) else None,
        hint=_OS_HINTS.get(problem.errno or 0),
    )


_OS_HINTS = {
    errno.ENOSPC: "Free some space on that disk, then try again; `.notebooked/cache` can always be deleted.",
    errno.EDQUOT: "Free some space below the quota, then try again; `.notebooked/cache` can always be deleted.",
    errno.EROFS: "Mount it writable, or name another folder: NOTEBOOKED_STATE_DIR, NOTEBOOKED_SCRIPTS_DIR.",
    errno.EACCES: "Check the permissions of the file and of its folder.",
}
