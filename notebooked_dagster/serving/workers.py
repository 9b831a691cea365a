"""One worker as its supervisor sees it: start it, wait until it is ready, ask it things, end it."""

from __future__ import annotations

import asyncio
import os
import secrets
import subprocess
import time
from pathlib import Path
from typing import Any

import orjson

from notebooked_dagster.errors import DeploymentError

from . import processes
from .state import EndpointRecord, ProcessIdentity, VersionRecord, model_dir, socket_dir, worker_log
from .worker import wire

SERVER = Path(__file__).resolve().parent / "server.py"
LOG_LIMIT = 20 * 1024 * 1024
_LAST_LINES = 30
_CALL_TIMEOUT = 5.0
# Of the run that happened to start the endpoint; the worker outlives it and must not report to it.
_FOREIGN_VARIABLES = (
    "MLFLOW_RUN_ID",
    "DAGSTER_RUN_JOB_NAME",
    "DAGSTER_PIPES_CONTEXT",
    "DAGSTER_PIPES_MESSAGES",
)


class Worker:
    """The process behind one version; started by this supervisor, or adopted from one that died."""

    def __init__(
        self,
        folder: Path,
        version: str,
        identity: ProcessIdentity,
        socket: Path,
        popen: subprocess.Popen[bytes] | None = None,
    ) -> None:
        self.version = version
        self.identity = identity
        self.socket = socket
        self._folder = folder
        self._popen = popen
        self.started_at = time.monotonic()

    @classmethod
    def start(cls, folder: Path, record: EndpointRecord, item: VersionRecord) -> Worker:
        """Start a process for a version. Raises DeploymentError where the interpreter cannot be started."""
        # A name of its own for each start: the same version's last process may still be draining.
        socket = socket_dir(folder) / f"v{item.version}-{secrets.token_hex(3)}.sock"
        model = model_dir(folder, item.version)
        options = {
            "endpoint": record.name,
            "version": item.version,
            "model_dir": str(model),
            "socket": str(socket),
            "size_limit": item.size_limit,
            "body_timeout": item.body_timeout,
            "idle_timeout": item.idle_timeout,
            "connection_limit": item.connection_limit,
            "predict_timeout": item.predict_timeout,
            "memory_limit": item.memory_limit,
            "supervisor": os.getpid(),
            "restarts": item.restarts,
            "labels": item.labels,
        }
        log = worker_log(folder, item.version)
        log.parent.mkdir(parents=True, exist_ok=True)
        environment = {k: v for k, v in os.environ.items() if k not in _FOREIGN_VARIABLES} | item.env
        environment.setdefault("PYTHONUNBUFFERED", "1")
        try:
            with log.open("ab") as stream:
                popen = subprocess.Popen(
                    [item.python, str(SERVER), orjson.dumps(options).decode()],
                    stdin=subprocess.DEVNULL,
                    stdout=stream,
                    stderr=stream,
                    cwd=model if model.is_dir() else folder,
                    env=environment,
                    start_new_session=True,
                    close_fds=True,
                )
        except OSError as error:
            raise DeploymentError(
                f"The worker of version {item.version} cannot be started: {error.strerror or error}.",
                path=item.python,
                hint="Check that the interpreter exists and that the disk has room for the log.",
            ) from error
        identity = processes.identify(popen.pid) or ProcessIdentity(pid=popen.pid, created=0.0)
        return cls(folder, item.version, identity, socket, popen)

    def poll(self) -> str | None:
        """How the process ended; None while it runs."""
        if self._popen is None:
            return None if processes.alive(self.identity) else "ended"
        code = self._popen.poll()
        if code is None:
            return None
        return f"was ended by signal {-code}" if code < 0 else f"exited with code {code}"

    async def wait_ready(self, timeout: float) -> None:
        """Wait until the model is loaded and has predicted its input example.

        Raises:
            DeploymentError: It ended, failed its smoke prediction, or took longer than ``timeout`` seconds. The
                message ends with the last lines of its log.
        """
        deadline = time.monotonic() + timeout
        while True:
            ended = self.poll()
            if ended is not None:
                raise self._failure(f"The worker of version {self.version} {ended} before it was ready.")
            try:
                status = await self.call({"op": "status"}, timeout=max(0.2, deadline - time.monotonic()))
            except OSError:
                status = None
            if status is not None:
                if status["problem"] is None:
                    return
                raise self._failure(f"Version {self.version} is not ready: {status['problem']}")
            if time.monotonic() >= deadline:
                raise self._failure(f"Version {self.version} was not ready within {timeout:g} s.")
            await asyncio.sleep(0.03)

    def _failure(self, message: str) -> DeploymentError:
        lines = last_lines(worker_log(self._folder, self.version))
        return DeploymentError(
            message,
            hint="The worker's last lines tell why; what served before still serves.",
            path=worker_log(self._folder, self.version),
            details={"version": self.version, "log": lines},
        )

    async def call(self, header: wire.Header, *, timeout: float = _CALL_TIMEOUT) -> dict[str, Any]:
        """One exchange on the private socket. Raises OSError."""
        reply, _ = await wire.exchange(self.socket, header, timeout=timeout)
        return reply

    async def accept(self, public: Any) -> None:
        """Let it take requests from the public socket. Raises OSError."""
        await asyncio.to_thread(wire.hand_over, _descriptor_socket(self.socket), public, timeout=15.0)

    async def held_socket(self) -> Any:
        """The public socket it holds; None where it has none or does not answer."""
        try:
            return await asyncio.to_thread(
                wire.take_over, _descriptor_socket(self.socket), timeout=_CALL_TIMEOUT
            )
        except OSError:
            return None

    async def stop(self, grace: float, *, leave: bool = False) -> None:
        """Drain it for at most ``grace`` seconds, then end it whatever it does; ``leave``: nothing follows it."""
        try:
            await self.call({"op": "stop", "grace": grace, "leave": leave})
            deadline = time.monotonic() + grace + 6
            while self.poll() is None and time.monotonic() < deadline:
                await asyncio.sleep(0.05)
        except OSError:
            pass  # It hangs or is gone already; both end below.
        self.kill()

    def kill(self) -> None:
        """End it now, with whatever it started."""
        processes.kill(self.identity)
        if self._popen is not None:
            self._popen.wait(5)
        for path in (self.socket, _descriptor_socket(self.socket)):
            path.unlink(missing_ok=True)


def last_lines(path: Path, count: int = _LAST_LINES) -> list[str]:
    """The end of a log; empty where there is none."""
    try:
        with path.open("rb") as stream:
            stream.seek(0, os.SEEK_END)
            stream.seek(max(0, stream.tell() - 64 * 1024))
            return stream.read().decode("utf-8", "replace").splitlines()[-count:]
    except OSError:
        return []


def _descriptor_socket(socket: Path) -> Path:
    return socket.with_name(socket.name + ".fd")
