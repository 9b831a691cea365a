"""What an endpoint is, on disk and as values.

``<state>/endpoints/<name>/`` holds ``endpoint.json`` (this module), ``versions/<n>/model/`` (a copy of the model
folder), ``versions/<n>/worker.log``, ``supervisor.log`` and the locks.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from enum import StrEnum
from pathlib import Path
from typing import Any

import orjson
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from notebooked_dagster.core.files import write_atomic
from notebooked_dagster.errors import StateError

FORMAT = 1
STATE_FILE = "endpoint.json"
# sun_path holds 104 bytes on macOS and 108 on Linux; the longest name is `v<n>-<six>.sock.fd`.
_LONGEST_SOCKET_FOLDER = 80


class Status(StrEnum):
    """Where an endpoint or a version stands; the words of ``providers.base.EndpointStatus``."""

    CREATING = "creating"
    HEALTHY = "healthy"
    DEGRADED = "degraded"
    STOPPED = "stopped"
    FAILED = "failed"


class Role(StrEnum):
    """What a version is to its endpoint."""

    CHAMPION = "champion"
    CHALLENGER = "challenger"
    PREVIOUS = "previous"


@dataclass(frozen=True, slots=True)
class DeploymentSpec:
    """What to serve, and how.

    Attributes:
        endpoint: Letters, digits, ``_``, ``-`` and ``.``; made where it does not exist.
        model_dir: The model folder. It is copied, so it may go afterwards.
        code_dir: Scripts to serve the model with instead of those in its folder: the inference code may be newer.
        model_uri: What the deployment is known by; the folder's path where None.
        weight: 100 replaces what is served; less makes it the challenger with that share.
        host: Address to bind; the present one, or 127.0.0.1, where None.
        port: The port; the present one, or a free one, where None.
        python: The interpreter that runs the model; this one where None.
        env: Extra environment variables of the worker.
        labels: Lineage kept with the deployment.
        health_timeout: Seconds the new version has to load and to predict its input example.
        drain_timeout: Seconds the replaced version has to finish open requests.
        size_limit: Largest request body, in bytes.
        body_timeout: Seconds a client has to send its body.
        idle_timeout: Seconds after which a connection without a complete request is closed.
        connection_limit: Connections at once; more are answered 503.
        predict_timeout: Seconds a prediction may take; then 504, and the worker is restarted.
        hang_timeout: Seconds a worker may give no sign of life before it is restarted.
        restart_limit: Restarts in a row after which the worker is given up.
        memory_limit: Address space of the worker in bytes (``RLIMIT_AS``); None for no limit.
        keep: How many versions that serve no more are kept for rollback.
        keep_warm: Leave the replaced version loaded, so that a rollback takes no time.
    """

    endpoint: str
    model_dir: Path
    code_dir: Path | None = None
    model_uri: str | None = None
    weight: int = 100
    host: str | None = None
    port: int | None = None
    python: str | None = None
    env: Mapping[str, str] = field(default_factory=dict)
    labels: Mapping[str, str] = field(default_factory=dict)
    health_timeout: float = 120.0
    drain_timeout: float = 10.0
    size_limit: int = 16 * 1024 * 1024
    body_timeout: float = 30.0
    idle_timeout: float = 15.0
    connection_limit: int = 1024
    predict_timeout: float = 60.0
    hang_timeout: float = 60.0
    restart_limit: int = 6
    memory_limit: int | None = None
    keep: int = 3
    keep_warm: bool = False


@dataclass(frozen=True, slots=True)
class VersionState:
    """One version of an endpoint, as it stands now. ``pid`` is None where no process serves it."""

    version: str
    model_uri: str
    weight: int
    role: Role
    status: Status
    created_at: datetime
    labels: Mapping[str, str]
    model_dir: Path
    pid: int | None = None
    restarts: int = 0
    message: str = ""


@dataclass(frozen=True, slots=True)
class EndpointState:
    """An endpoint as it stands now; ``versions`` are ordered by number."""

    name: str
    host: str
    port: int
    status: Status
    versions: tuple[VersionState, ...] = ()
    message: str = ""
    supervisor_pid: int | None = None

    @property
    def url(self) -> str:
        """Takes ``POST /invocations``; a wildcard address is reached through loopback."""
        host = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(self.host, self.host)
        return f"http://{f'[{host}]' if ':' in host else host}:{self.port}"

    @property
    def champion(self) -> VersionState | None:
        """The version that answers by default."""
        return next((version for version in self.versions if version.role is Role.CHAMPION), None)


class ProcessIdentity(BaseModel):
    """A process id and when that process began, by which a recycled id is told from the process itself.

    Attributes:
        pid: The id.
        created: Seconds since boot where ``boot`` is known, else since 1970.
        boot: The id of the boot it was started in.
    """

    model_config = ConfigDict(extra="forbid")

    pid: int
    created: float
    boot: str = ""


class VersionRecord(BaseModel):
    """One version on disk."""

    model_config = ConfigDict(extra="forbid")

    version: str
    model_uri: str
    created_at: datetime = Field(default_factory=lambda: datetime.now(UTC))
    labels: dict[str, str] = Field(default_factory=dict)
    python: str
    env: dict[str, str] = Field(default_factory=dict)
    health_timeout: float = 120.0
    drain_timeout: float = 10.0
    size_limit: int = 16 * 1024 * 1024
    body_timeout: float = 30.0
    idle_timeout: float = 15.0
    connection_limit: int = 1024
    predict_timeout: float = 60.0
    hang_timeout: float = 60.0
    restart_limit: int = 6
    memory_limit: int | None = None
    keep_warm: bool = False
    process: ProcessIdentity | None = None
    socket: str | None = None
    restarts: int = 0
    status: Status = Status.CREATING
    message: str = ""


class EndpointRecord(BaseModel):
    """``endpoint.json``."""

    model_config = ConfigDict(extra="forbid")

    format: int = FORMAT
    name: str
    host: str = "127.0.0.1"
    port: int = 0
    next_version: int = 1
    champion: str | None = None
    weights: dict[str, int] = Field(default_factory=dict)
    history: list[str] = Field(default_factory=list)
    keep: int = 3
    versions: dict[str, VersionRecord] = Field(default_factory=dict)
    supervisor: ProcessIdentity | None = None

    def role(self, version: str) -> Role:
        """What a version is now."""
        if version == self.champion:
            return Role.CHAMPION
        return Role.CHALLENGER if version in self.weights else Role.PREVIOUS


def endpoints_dir(state_dir: Path) -> Path:
    """Where all endpoints of a state folder lie."""
    return state_dir / "endpoints"


def model_dir(folder: Path, version: str) -> Path:
    """The copy of a version's model folder."""
    return folder / "versions" / version / "model"


def worker_log(folder: Path, version: str) -> Path:
    """What a version's worker writes."""
    return folder / "versions" / version / "worker.log"


def socket_dir(folder: Path) -> Path:
    """Where an endpoint's private sockets lie: its own folder, or a short one where that path is too long."""
    own = folder.resolve() / "run"
    if len(os.fsencode(own)) <= _LONGEST_SOCKET_FOLDER:
        return own
    digest = hashlib.sha256(os.fsencode(folder.resolve())).hexdigest()[:16]
    # Not $TMPDIR: two processes may see different ones, and on macOS it is long itself.
    return Path("/tmp") / f"notebooked-{os.getuid()}" / digest


def make_socket_dir(folder: Path) -> Path:
    """Make the folder of the private sockets, for this user only.

    Raises:
        StateError: Somebody else made it first.
    """
    path = socket_dir(folder)
    for made in (path.parent, path) if path.parent.name.startswith("notebooked-") else (path,):
        made.mkdir(mode=0o700, parents=True, exist_ok=True)
        facts = made.stat(follow_symlinks=False)
        if facts.st_uid != os.getuid() or made.is_symlink():
            raise StateError(
                "The folder for the endpoint's sockets belongs to somebody else.",
                path=made,
                hint="Remove it, or use a shorter state folder (NOTEBOOKED_STATE_DIR).",
            )
        made.chmod(0o700)
    return path


def control_socket(folder: Path) -> Path:
    """Where an endpoint's supervisor listens."""
    return socket_dir(folder) / "control.sock"


def write(folder: Path, record: EndpointRecord) -> None:
    """Replace ``endpoint.json``; readable for its owner only, since a worker's environment may hold secrets.

    Raises:
        StateError: The disk is full or the folder is not writable; the file is as it was.
    """
    data = record.model_dump(mode="json")
    path = folder / STATE_FILE
    try:
        write_atomic(
            path, orjson.dumps({"checksum": _checksum(data), **data}, option=orjson.OPT_INDENT_2), mode=0o600
        )
    except OSError as error:
        raise StateError(
            f"The endpoint's state cannot be written: {error.strerror or error}.",
            path=path,
            hint="Make room on the disk or make the folder writable, then try again; nothing has changed.",
        ) from error


def read(folder: Path) -> EndpointRecord | None:
    """Read ``endpoint.json``; None where there is none.

    Raises:
        StateError: It is damaged, was changed by hand, or is of a newer format.
    """
    path = folder / STATE_FILE
    try:
        raw = path.read_bytes()
    except FileNotFoundError:
        return None
    except OSError as error:
        raise StateError(
            f"The endpoint's state cannot be read: {error.strerror or error}.", path=path
        ) from error
    try:
        data = orjson.loads(raw)
        if not isinstance(data, dict):
            raise TypeError("it is not a JSON object")
        checksum = data.pop("checksum", None)
        if data.get("format") != FORMAT:
            raise TypeError(f"its format is {data.get('format')!r}, this release reads {FORMAT}")
        if checksum != _checksum(data):
            raise TypeError("its checksum does not match: it was cut short or edited")
        return EndpointRecord.model_validate(data)
    except (orjson.JSONDecodeError, TypeError, ValidationError) as error:
        raise StateError(
            f"The endpoint's state is damaged: {error}.",
            path=path,
            hint=f"If it still serves, `notebooked endpoints` repairs it from the running supervisor; otherwise "
            f"`notebooked delete-endpoint {folder.name}` and deploy again. The models are in {folder / 'versions'}.",
        ) from error


def _checksum(data: dict[str, Any]) -> str:
    return hashlib.sha256(orjson.dumps(data, option=orjson.OPT_SORT_KEYS)).hexdigest()


def view(
    folder: Path, record: EndpointRecord, *, supervisor_pid: int | None, alive: set[str]
) -> EndpointState:
    """The public value of a record, given which versions have a live process."""
    versions = tuple(
        VersionState(
            version=item.version,
            model_uri=item.model_uri,
            weight=record.weights.get(item.version, 0),
            role=record.role(item.version),
            status=_version_status(item, record, item.version in alive),
            created_at=item.created_at,
            labels=dict(item.labels),
            model_dir=model_dir(folder, item.version),
            pid=item.process.pid if item.process is not None and item.version in alive else None,
            restarts=item.restarts,
            message=item.message,
        )
        for item in sorted(record.versions.values(), key=lambda item: int(item.version))
    )
    status, message = _endpoint_status(versions, supervisor_pid)
    return EndpointState(record.name, record.host, record.port, status, versions, message, supervisor_pid)


def _version_status(item: VersionRecord, record: EndpointRecord, alive: bool) -> Status:
    if record.role(item.version) is Role.PREVIOUS:
        return Status.HEALTHY if alive else Status.STOPPED
    if item.status is Status.HEALTHY and not alive:
        return Status.STOPPED
    return item.status


def _endpoint_status(versions: tuple[VersionState, ...], supervisor_pid: int | None) -> tuple[Status, str]:
    champion = next((item for item in versions if item.role is Role.CHAMPION), None)
    if champion is None:
        return Status.CREATING, "Nothing has been deployed yet."
    if champion.status is not Status.HEALTHY:
        return champion.status, champion.message or f"Version {champion.version} is {champion.status.value}."
    if supervisor_pid is None:
        return Status.DEGRADED, "The supervisor is gone: it serves, but a crash would not be repaired."
    for item in versions:
        if item.role is Role.CHALLENGER and item.status is not Status.HEALTHY:
            return Status.DEGRADED, f"Challenger {item.version} is {item.status.value}: {item.message}"
    return Status.HEALTHY, champion.message
