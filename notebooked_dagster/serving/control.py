"""Deploy, split, roll back, delete: what a provider or the command line asks of local endpoints.

::

    control = EndpointControl(Settings().state)
    control.deploy(DeploymentSpec("digits", model_dir=Path("model")))
    control.predict("digits", {"inputs": [[0.0] * 64]})
"""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, Protocol
from urllib.parse import urlsplit

import filelock
import httpx
import orjson

from notebooked_dagster import errors
from notebooked_dagster.core import tracing
from notebooked_dagster.core.environment import inherited
from notebooked_dagster.errors import (
    DeploymentConflictError,
    DeploymentError,
    EndpointNotFoundError,
    InvalidInputError,
    NotebookedError,
    ProviderError,
    StateError,
)

from . import processes, state
from .folders import checked_source, copy_model, keep_log_only, next_version, remapped
from .state import DeploymentSpec, EndpointRecord, EndpointState, Role, Status, VersionRecord
from .worker import wire

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,62}")
_CALL_TIMEOUT = 10.0
_START_TIMEOUT = 30.0
_MARGIN = 60.0


class Control(Protocol):
    """What a provider needs of whoever has its endpoints: the same whether they are here or on a device."""

    def deploy(self, spec: DeploymentSpec) -> EndpointState:
        """Serve a model folder."""

    def traffic(self, name: str, weights: Mapping[str, int]) -> EndpointState:
        """Set each version's share."""

    def rollback(self, name: str) -> EndpointState:
        """Serve the previous champion again."""

    def ensure(self, name: str, *, patience: float | None = None) -> EndpointState:
        """Bring an endpoint back."""

    def delete(self, name: str) -> list[str]:
        """Remove an endpoint; what is left, as sentences."""

    def get(self, name: str) -> EndpointState:
        """An endpoint as it stands now."""

    def list(self) -> list[EndpointState]:
        """All endpoints by name."""

    def predict(self, name: str, data: Any) -> Any:
        """Ask an endpoint."""

    def logs(self, name: str, version: str | None = None) -> Iterator[str]:
        """What a version wrote."""


class EndpointControl:
    """The endpoints of one state folder. Holds nothing open; several may work on one folder at once.

    Args:
        state_dir: The project's state folder (``Settings().state``).
        wait: Seconds to wait for another change of the same endpoint before DeploymentConflictError.
        pass_environment: Names, or patterns such as ``AWS_*``, of variables of this process that servers inherit on top
            of the few that every process needs.
    """

    def __init__(self, state_dir: Path, *, wait: float = 0.0, pass_environment: Sequence[str] = ()) -> None:
        self._root = state.endpoints_dir(state_dir.resolve())
        self._wait = wait
        self._pass = tuple(pass_environment)

    def deploy(self, spec: DeploymentSpec) -> EndpointState:
        """Serve a model folder; traffic moves when the new version has loaded and predicted its input example.

        Raises:
            DeploymentError: The folder is missing, the port is taken, or the version never became ready (the last
                lines of its log are in ``details["log"]``). What was served before is still served.
            DeploymentConflictError: Another change of this endpoint is under way.
            StateError: The state is damaged or cannot be written.
        """
        source = checked_source(spec)
        folder = self._folder(spec.endpoint)
        with self._changing(spec.endpoint):
            record = self._begin(folder, spec)
            first = record.champion is None
            version = str(next_version(folder, record))
            try:
                copy_model(source, state.model_dir(folder, version), spec.code_dir)
                item = VersionRecord(
                    version=version,
                    model_uri=spec.model_uri or str(source),
                    labels=dict(spec.labels),
                    python=spec.python or sys.executable,
                    env=dict(spec.env),
                    health_timeout=spec.health_timeout,
                    drain_timeout=spec.drain_timeout,
                    size_limit=spec.size_limit,
                    body_timeout=spec.body_timeout,
                    idle_timeout=spec.idle_timeout,
                    connection_limit=spec.connection_limit,
                    predict_timeout=spec.predict_timeout,
                    hang_timeout=spec.hang_timeout,
                    restart_limit=spec.restart_limit,
                    memory_limit=spec.memory_limit,
                    keep_warm=spec.keep_warm,
                )
                self._start_supervisor(folder)
                return self._ask(
                    folder,
                    {
                        "op": "deploy",
                        "version": item.model_dump(mode="json"),
                        "weight": spec.weight,
                        "keep": spec.keep,
                        "host": spec.host,
                        "port": spec.port,
                    },
                    timeout=spec.health_timeout + _MARGIN,
                )
            except NotebookedError as error:
                _explain(error, state.model_dir(folder, version))
                if first:
                    self._remove(folder)
                else:
                    keep_log_only(folder / "versions" / version)
                raise

    def traffic(self, name: str, weights: Mapping[str, int]) -> EndpointState:
        """Set each version's share; they add up to 100. A version with all of it becomes the champion."""
        return self._change(name, {"op": "traffic", "weights": dict(weights)})

    def promote(self, name: str, version: str) -> EndpointState:
        """Give a version all of the traffic; the champion before it is kept for rollback."""
        return self._change(name, {"op": "promote", "version": version})

    def rollback(self, name: str) -> EndpointState:
        """Serve the previous champion again, once it has proved ready."""
        return self._change(name, {"op": "rollback"})

    def ensure(self, name: str, *, patience: float | None = None) -> EndpointState:
        """Bring an endpoint back to what its state says: after a crash, a kill, or a reboot.

        Args:
            name: Which.
            patience: Seconds after which it is left starting; as long as it takes where None.
        """
        return self._change(name, {"op": "ensure", "patience": patience})

    def delete(self, name: str) -> list[str]:
        """Finish open requests, end every process of the endpoint and remove its folder.

        Returns:
            What is left on purpose, as sentences.
        """
        folder = self._existing(name)
        with self._changing(name):
            try:
                record = state.read(folder)
            except StateError:
                record = None
            self._remove(folder)
        uris = sorted({item.model_uri for item in record.versions.values()}) if record is not None else []
        return [f"The model at {uri} is left." for uri in uris]

    def get(self, name: str) -> EndpointState:
        """An endpoint as it stands now.

        Raises:
            EndpointNotFoundError: There is none of that name.
            StateError: Its state is damaged and no supervisor runs that knows better.
        """
        folder = self._existing(name)
        try:
            return self._call(folder, {"op": "status"}, timeout=_CALL_TIMEOUT)
        except OSError:
            record = state.read(folder)
        if record is None:
            raise self._missing(name)
        return _unsupervised(folder, record)

    def list(self) -> list[EndpointState]:
        """All endpoints by name; one whose state is damaged is listed as failed, with the reason."""
        found = []
        folders = sorted(self._root.iterdir()) if self._root.is_dir() else []
        for folder in folders:
            if not folder.is_dir():
                continue
            try:
                found.append(self.get(folder.name))
            except EndpointNotFoundError:
                continue
            except NotebookedError as error:
                found.append(EndpointState(folder.name, "127.0.0.1", 0, Status.FAILED, (), str(error)))
        return found

    def predict(
        self, name: str, data: Any, *, headers: Mapping[str, str] | None = None, timeout: float = 60.0
    ) -> Any:
        """Send ``data`` as JSON to ``/invocations`` and return the parsed reply.

        Raises:
            InvalidInputError: The server refused the input (4xx); ``details`` has its column and row.
            ProviderError: It cannot be reached or failed (5xx).
        """
        url = self.get(name).url
        body = orjson.dumps(data, option=orjson.OPT_SERIALIZE_NUMPY)
        with tracing.span("POST /invocations", _request_attributes(name, url), client=True) as span:
            try:
                reply = self._http.post(
                    f"{url}/invocations",
                    content=body,
                    headers={"content-type": "application/json", **tracing.headers(), **(headers or {})},
                    timeout=timeout,
                )
            except httpx.HTTPError as error:
                raise ProviderError(
                    f"Endpoint {name!r} at {url} cannot be reached: {error or type(error).__name__}.",
                    hint="`notebooked endpoints` shows what it does, `notebooked logs NAME --endpoint` why; deploying again brings it back.",
                ) from error
            span.set("http.response.status_code", reply.status_code)
            if not reply.is_success:
                span.failed(str(reply.status_code))
        return answered(name, reply.status_code, reply.reason_phrase, reply.content)

    def logs(self, name: str, version: str | None = None) -> Iterator[str]:
        """What a version's worker wrote (the champion's where None), its tracebacks naming notebook cells."""
        folder = self._existing(name)
        if version is None:
            champion = self.get(name).champion
            version = champion.version if champion is not None else "1"
        path = state.worker_log(folder, version)
        if not path.is_file():
            raise ProviderError(f"Endpoint {name!r} has no log of version {version!r}.", path=path)
        text = path.read_text("utf-8", "replace")
        yield from remapped(text, state.model_dir(folder, version)).splitlines()

    # How it is done

    @cached_property
    def _http(self) -> httpx.Client:
        # A proxy for the outside world has no business between us and loopback; plain HTTP needs no certificates.
        return httpx.Client(trust_env=False, verify=False)

    def _folder(self, name: str) -> Path:
        check_name(name)
        return self._root / name

    def _existing(self, name: str) -> Path:
        folder = self._root / name
        if not _NAME.fullmatch(name) or not folder.is_dir():
            raise self._missing(name)
        return folder

    def _missing(self, name: str) -> EndpointNotFoundError:
        return EndpointNotFoundError(
            f"There is no endpoint {name!r}.", hint="`notebooked endpoints` lists what there is."
        )

    @contextlib.contextmanager
    def _changing(self, name: str) -> Iterator[None]:
        """One change of an endpoint at a time, over all processes. The lock goes with its holder."""
        self._root.mkdir(parents=True, exist_ok=True)
        lock = filelock.FileLock(self._root / f".{name}.lock")
        try:
            lock.acquire(timeout=self._wait)
        except filelock.Timeout:
            raise DeploymentConflictError(
                f"Another change of endpoint {name!r} is under way.",
                hint="Try again when it has finished.",
                path=self._root / name,
            ) from None
        try:
            yield
        finally:
            lock.release()

    def _begin(self, folder: Path, spec: DeploymentSpec) -> EndpointRecord:
        """The present record, or a new one on disk."""
        record = self._repaired(folder)
        if record is None:
            folder.mkdir(parents=True, exist_ok=True)
            folder.chmod(0o700)
            record = EndpointRecord(
                name=spec.endpoint, host=spec.host or "127.0.0.1", port=spec.port or 0, keep=spec.keep
            )
            state.write(folder, record)
        return record

    def _repaired(self, folder: Path) -> EndpointRecord | None:
        """The record; where it is damaged or gone, as a running supervisor rewrites it."""
        damage: StateError | None = None
        try:
            record = state.read(folder)
        except StateError as problem:
            record, damage = None, problem
        if record is not None or (damage is None and not folder.exists()):
            return record
        # A lost file is no new endpoint while something serves: a deployment that failed would take it down.
        try:
            self._call(folder, {"op": "status"}, timeout=_CALL_TIMEOUT)
        except OSError:
            if damage is not None:
                raise damage from None
            return None
        return state.read(folder)

    def _change(self, name: str, header: wire.Header) -> EndpointState:
        folder = self._existing(name)
        with self._changing(name):
            record = self._repaired(folder)
            if record is None:
                raise self._missing(name)
            slowest = max((item.health_timeout for item in record.versions.values()), default=0.0)
            self._start_supervisor(folder)
            return self._ask(folder, header, timeout=2 * slowest + _MARGIN)

    def _call(self, folder: Path, header: wire.Header, *, timeout: float) -> EndpointState:
        """Ask the supervisor. Raises OSError where none answers, and what the supervisor raised."""
        reply, _ = wire.call(state.control_socket(folder), header, timeout=timeout)
        if "error" in reply:
            raise errors.from_dict(reply["error"])
        record = EndpointRecord.model_validate(reply["record"])
        return state.view(folder, record, supervisor_pid=reply["pid"], alive=set(reply["alive"]))

    def _ask(self, folder: Path, header: wire.Header, *, timeout: float) -> EndpointState:
        """As ``_call``, where a supervisor has just answered. Raises ProviderError where it does not any more."""
        try:
            return self._call(folder, header, timeout=timeout)
        except OSError as error:
            raise ProviderError(
                f"The supervisor of endpoint {folder.name!r} went away during {header['op']!r}: "
                f"{error or type(error).__name__}.",
                hint="What served before still serves; try again.",
                path=folder / "supervisor.log",
            ) from error

    def _start_supervisor(self, folder: Path) -> None:
        """Make sure that a supervisor answers; it outlives this process."""
        if self._answers(folder):
            return
        state.make_socket_dir(folder)
        log = folder / "supervisor.log"
        with log.open("ab") as stream:
            popen = subprocess.Popen(
                [sys.executable, "-m", "notebooked_dagster.serving.supervisor", str(folder)],
                stdin=subprocess.DEVNULL,
                stdout=stream,
                stderr=stream,
                cwd=folder,
                env=self._environment(),
                start_new_session=True,
            )
        deadline = time.monotonic() + _START_TIMEOUT
        while not self._answers(folder):
            code = popen.poll()
            if code not in (None, 0) or time.monotonic() > deadline:
                raise _supervisor_failure(folder, code)
            time.sleep(0.02)

    def _environment(self) -> dict[str, str]:
        """What a supervisor and its workers inherit: no secrets of whoever happened to deploy."""
        # Where our own package is found is not a matter of what may be passed on.
        kept = {"PYTHONPATH": os.environ["PYTHONPATH"]} if "PYTHONPATH" in os.environ else {}
        return {**inherited(os.environ, self._pass), **kept, "PYTHONUNBUFFERED": "1"}

    def _answers(self, folder: Path) -> bool:
        try:
            wire.call(state.control_socket(folder), {"op": "status"}, timeout=_CALL_TIMEOUT)
        except OSError:
            return False
        return True

    def _remove(self, folder: Path) -> None:
        """End every process of an endpoint, whatever state it is in, and remove its folder."""
        with contextlib.suppress(StateError):
            record = state.read(folder)
            grace = (
                max((item.drain_timeout for item in record.versions.values()), default=0.0) if record else 0.0
            )
            with contextlib.suppress(OSError, NotebookedError):
                self._call(folder, {"op": "delete"}, timeout=grace + _MARGIN)
            if record is not None:
                self._end_processes(record)
        sockets = state.socket_dir(folder)
        # What a damaged state does not tell, the sockets do.
        for path in sockets.glob("*.sock"):
            op = (
                {"op": "delete"}
                if path.name == "control.sock"
                else {"op": "stop", "grace": 0.0, "leave": True}
            )
            with contextlib.suppress(OSError):
                wire.call(path, op, timeout=_CALL_TIMEOUT)
        shutil.rmtree(sockets, ignore_errors=True)
        shutil.rmtree(folder, ignore_errors=True)
        if folder.exists():
            raise StateError(
                "The endpoint is stopped, but its folder cannot be removed.",
                path=folder,
                hint="Remove it by hand.",
            )

    def _end_processes(self, record: EndpointRecord) -> None:
        deadline = time.monotonic() + 5
        while processes.alive(record.supervisor) and time.monotonic() < deadline:
            time.sleep(0.02)
        processes.kill(record.supervisor)
        for item in record.versions.values():
            processes.kill(item.process)


def _request_attributes(name: str, url: str) -> dict[str, str | int | None]:
    parts = urlsplit(url)
    return {
        "http.request.method": "POST",
        "url.full": f"{url}/invocations",
        "url.template": "/invocations",
        "server.address": parts.hostname,
        "server.port": parts.port,
        "notebooked.endpoint": name,
        "notebooked.provider": "local",
    }


def _unsupervised(folder: Path, record: EndpointRecord) -> EndpointState:
    alive = {item.version for item in record.versions.values() if processes.alive(item.process)}
    return state.view(folder, record, supervisor_pid=None, alive=alive)


def _explain(error: NotebookedError, model_dir: Path) -> None:
    """Rewrite the log lines of a failed deployment so that they name notebook cells."""
    lines = error.details.get("log")
    if lines:
        text = remapped("\n".join(lines), model_dir)
        error.details["log"] = text.splitlines()
        error.message = f"{error.message}\n{text}\n"


def _supervisor_failure(folder: Path, code: int | None) -> NotebookedError:
    from .workers import last_lines

    said = "did not answer in time" if code is None else f"ended with code {code}"
    lines = last_lines(folder / "supervisor.log")
    return DeploymentError(
        f"The supervisor of endpoint {folder.name!r} {said}: {lines[-1] if lines else 'it wrote nothing'}",
        path=folder / "supervisor.log",
        details={"log": lines},
    )


def check_name(name: str) -> None:
    """Raise DeploymentError where nothing can be called so."""
    if not _NAME.fullmatch(name):
        raise DeploymentError(
            f"{name!r} cannot name an endpoint.",
            hint="Use letters, digits, '_', '-' and '.', at most 63, starting with a letter or digit.",
        )


def answered(name: str, status: int, reason: str, content: bytes) -> Any:
    """What a server's reply says, or the error that it is; see ``EndpointControl.predict``."""
    try:
        answer = orjson.loads(content)
    except orjson.JSONDecodeError:
        answer = content.decode("utf-8", "replace")
    if 200 <= status < 300:
        return answer
    details = {"status": status, **(answer if isinstance(answer, dict) else {"body": answer})}
    message = str(details.get("message", reason))
    if 400 <= status < 500:
        raise InvalidInputError(message, details=details)
    raise ProviderError(f"Endpoint {name!r} answered {status}: {message}", details=details)


__all__ = [
    "Control",
    "DeploymentSpec",
    "EndpointControl",
    "EndpointState",
    "Role",
    "Status",
    "answered",
    "check_name",
]
