"""One process an endpoint: it owns the public socket, starts the workers, and restarts them when they crash.

It is detached from whoever deployed: ``python -m notebooked_dagster.serving.supervisor FOLDER``. It is not in the
path of a request. When it dies the workers serve on; the next one takes the public socket over from them.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import logging
import os
import signal
import socket
import sys
import time
from collections.abc import Awaitable, Callable
from pathlib import Path

import filelock

from notebooked_dagster.errors import DeploymentError, EndpointNotFoundError, NotebookedError, StateError

from . import processes, state
from .state import EndpointRecord, Status, VersionRecord
from .worker import wire
from .workers import LOG_LIMIT, Worker

log = logging.getLogger("notebooked.supervisor")

_TICK = 0.25
_PING_EVERY = 5.0
_BACKOFF = (0.0, 0.5, 1.0, 2.0, 4.0, 8.0)
_STEADY_AFTER = 60.0
_BACKLOG = 2048
_PORT_PATIENCE = 1.0
_UNAVAILABLE = (
    b"HTTP/1.1 503 Service Unavailable\r\ncontent-type: application/json\r\ncontent-length: %d\r\n"
    b"retry-after: 30\r\nconnection: close\r\n\r\n%s"
)


class Supervisor:
    """The endpoint's state, its public socket and its workers."""

    def __init__(self, folder: Path, record: EndpointRecord) -> None:
        self.folder = folder
        self.record = record
        self.workers: dict[str, Worker] = {}
        self._public: socket.socket | None = None
        self._sorry: asyncio.Server | None = None
        self._change = asyncio.Lock()
        self._ended = asyncio.Event()
        self._retiring: set[asyncio.Task[None]] = set()
        self._crashes: dict[str, int] = {}
        self._heard: dict[str, float] = {}
        self._problems: dict[str, str] = {}
        self._pings: dict[str, asyncio.Task[None]] = {}
        self._reviving: dict[str, asyncio.Task[None]] = {}
        self._unsaved = False

    async def run(self) -> None:
        """Serve until deleted or told to end."""
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self._ended.set)
        self.record.supervisor = processes.identify(os.getpid())
        async with self._change:
            await self._recover()
        server = await wire.listen(state.control_socket(self.folder), self._control)
        async with server:
            watch = asyncio.create_task(self._watch())
            await self._ended.wait()
            watch.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await watch
        if self._retiring:
            await asyncio.wait(self._retiring, timeout=30)

    # Requests of EndpointControl

    async def _control(self, header: wire.Header, body: bytes) -> tuple[wire.Header, bytes]:
        operations: dict[str, Callable[[wire.Header], Awaitable[None]]] = {
            "deploy": self._deploy,
            "traffic": self._traffic,
            "rollback": self._rollback,
            "promote": self._promote,
            "delete": self._delete,
            "ensure": self._ensure,
        }
        op = str(header.get("op"))
        try:
            if op in operations:
                async with self._change:
                    await operations[op](header)
            elif op != "status":
                raise StateError(f"The supervisor does not know {op!r}; it is of another release.")
            if op != "delete" and (self._unsaved or not self._file_is_good()):
                self._save()
        except NotebookedError as error:
            log.warning("%s failed: %s", op, error)
            return {"error": {**error.to_dict(), "path": str(error.path) if error.path else None}}, b""
        except Exception as error:
            log.exception("%s failed", op)
            return {"error": {"error": "InternalError", "message": f"{type(error).__name__}: {error}"}}, b""
        alive = [version for version, worker in self.workers.items() if worker.poll() is None]
        return {"record": self.record.model_dump(mode="json"), "alive": alive, "pid": os.getpid()}, b""

    async def _deploy(self, header: wire.Header) -> None:
        """Start a version, prove it, and only then let traffic and state change."""
        item = VersionRecord.model_validate(header["version"])
        weight = int(header["weight"])
        public = await self._bind(header.get("host") or self.record.host, header.get("port"))

        def change(plan: EndpointRecord) -> None:
            plan.versions[item.version] = item
            plan.keep = int(header["keep"])
            if public is not None:
                plan.host, plan.port = public.getsockname()[:2]
            if plan.champion is None or weight >= 100:
                _crown(plan, item.version)
                plan.weights = {item.version: 100}
            else:
                plan.weights = {plan.champion: 100 - weight, item.version: weight}

        try:
            await self._apply(change, public)
        except BaseException:
            if public is not None and public is not self._public:
                public.close()
            raise

    async def _traffic(self, header: wire.Header) -> None:
        """Set shares; the version with all of the traffic becomes the champion."""
        weights: dict[str, int] = {str(k): int(v) for k, v in header["weights"].items()}
        for version in weights:
            self._known(version)
        if sum(weights.values()) != 100 or any(weight < 0 for weight in weights.values()):
            raise DeploymentError(
                f"The shares must add up to 100; {weights} add up to {sum(weights.values())}.",
                hint='For example {"1": 90, "2": 10}.',
            )
        whole = next((version for version, weight in weights.items() if weight == 100), None)

        def change(plan: EndpointRecord) -> None:
            if whole is not None:
                _crown(plan, whole)
            elif plan.champion not in weights:
                _crown(plan, max(weights, key=lambda version: weights[version]))
            plan.weights = weights

        await self._apply(change)

    async def _promote(self, header: wire.Header) -> None:
        version = str(header["version"])
        self._known(version)

        def change(plan: EndpointRecord) -> None:
            _crown(plan, version)
            plan.weights = {version: 100}

        await self._apply(change)

    async def _rollback(self, header: wire.Header) -> None:
        if not self.record.history:
            raise DeploymentError(
                f"Endpoint {self.record.name!r} has no previous version to go back to.",
                hint=(
                    "`notebooked endpoints` shows what is kept, also newer versions; "
                    f"`notebooked rollback {self.record.name} --to VERSION` serves one of them."
                ),
            )

        def change(plan: EndpointRecord) -> None:
            plan.champion = plan.history.pop()
            plan.weights = {plan.champion: 100}

        await self._apply(change)

    async def _apply(
        self, change: Callable[[EndpointRecord], None], public: socket.socket | None = None
    ) -> None:
        """Start what the change needs, prove it, then save and switch.

        The change is tried on a copy to learn what it needs, and made on a fresh copy once that is ready: a crash
        may have altered the record meanwhile.
        """
        trial = self.record.model_copy(deep=True)
        change(trial)
        started: list[tuple[Worker, VersionRecord]] = []
        try:
            for version in trial.weights:
                running = self.workers.get(version)
                if running is None or running.poll() is not None:
                    self._stop_reviving(version)
                    item = trial.versions[version]
                    started.append((await self._start_ready(item), item))
            before = self.record
            plan = before.model_copy(deep=True)
            change(plan)
            plan.versions.update({item.version: item for _, item in started})
            self._commit(plan)
        except BaseException:
            for worker, _ in started:
                worker.kill()
            raise
        for worker, _ in started:
            self._crashes.pop(worker.version, None)
            self.workers[worker.version] = worker
        await self._switch(before, public)

    async def _delete(self, header: wire.Header) -> None:
        """Close the public socket, let workers finish what is open, end them and this process."""
        await self._stop_sorry()
        if self._public is not None:
            self._public.close()
            self._public = None
        for version in list(self._reviving):
            self._stop_reviving(version)
        workers, self.workers = list(self.workers.values()), {}
        grace = {item.version: item.drain_timeout for item in self.record.versions.values()}
        await asyncio.gather(
            *(worker.stop(grace.get(worker.version, 10.0), leave=True) for worker in workers)
        )
        # After this reply: the caller reads it before the process goes.
        asyncio.get_running_loop().call_later(0.1, self._ended.set)

    async def _ensure(self, header: wire.Header) -> None:
        """Bring back what should serve and does not, also after it was given up; wait until it does, or for ``patience`` seconds."""
        if self._public is None and self.record.champion is not None:
            self._public = await self._bind(self.record.host, self.record.port)
        for version in self.record.weights:
            worker = self.workers.get(version)
            if worker is not None and worker.poll() is None:
                continue
            if version not in self._reviving:
                self._crashes.pop(version, None)
                self._start_reviving(version)
        if self._reviving:
            await asyncio.wait(list(self._reviving.values()), timeout=header.get("patience"))
        self._save()

    # Changing what serves

    async def _start_ready(self, item: VersionRecord) -> Worker:
        worker = Worker.start(self.folder, self.record, item)
        try:
            await worker.wait_ready(item.health_timeout)
        except BaseException:
            worker.kill()
            raise
        item.process = worker.identity
        item.socket = str(worker.socket)
        item.status = Status.HEALTHY
        item.message = ""
        self._heard[item.version] = time.monotonic()
        return worker

    def _commit(self, plan: EndpointRecord) -> None:
        """Make a plan the state, on disk first: what cannot be recorded does not happen."""
        plan.supervisor = self.record.supervisor
        state.write(self.folder, plan)
        self.record = plan

    async def _switch(self, before: EndpointRecord, public: socket.socket | None) -> None:
        """Move the traffic to what the record says. The new champion accepts before the old one lets go."""
        old_public = None
        if public is not None:
            old_public, self._public = self._public, public
        champion = self.record.champion
        assert champion is not None
        if champion != before.champion or public is not None:
            assert self._public is not None
            await self.workers[champion].accept(self._public)
            await self._stop_sorry()
        for version in list(self._reviving):
            if version not in self.record.weights:
                self._stop_reviving(version)
        await self._share_out()
        old = self.workers.get(before.champion or "")
        if old is not None and before.champion != champion:
            successor = {"version": champion, "socket": str(self.workers[champion].socket)}
            with contextlib.suppress(OSError):
                await old.call({"op": "release", "successor": successor})
        if old_public is not None:
            old_public.close()
        self._retire()
        self._prune()

    async def _share_out(self) -> None:
        """Tell the champion who else answers, and how much."""
        champion = self.record.champion
        for version, worker in self.workers.items():
            peers = {}
            if version == champion:
                peers = {
                    other: {"weight": weight, "socket": str(self.workers[other].socket)}
                    for other, weight in self.record.weights.items()
                    if other != version and other in self.workers
                }
            weight = self.record.weights.get(version, 0)
            try:
                await worker.call({"op": "traffic", "peers": peers, "weight": weight})
            except OSError as error:
                log.warning("Version %s did not take its share: %s", version, error)

    def _retire(self) -> None:
        """Drain and end the workers that take no part any more, beside whatever happens next."""
        for version, worker in list(self.workers.items()):
            item = self.record.versions.get(version)
            if version in self.record.weights:
                continue
            if item is not None and item.keep_warm and version in self.record.history[-1:]:
                continue
            del self.workers[version]
            self._retire_worker(worker)

    def _retire_worker(self, worker: Worker) -> None:
        item = self.record.versions.get(worker.version)
        task = asyncio.create_task(worker.stop(item.drain_timeout if item is not None else 10.0))
        self._retiring.add(task)
        task.add_done_callback(self._retiring.discard)

    def _prune(self) -> None:
        """Forget versions beyond those kept; their folders go once their workers have ended."""
        record = self.record
        idle = [version for version in record.versions if version not in record.weights]
        # Those that were champions are worth most; among them the latest.
        idle.sort(key=lambda version: (version in record.history, int(version)), reverse=True)
        gone = idle[record.keep :]
        if not gone:
            return
        for version in gone:
            del record.versions[version]
            record.history = [kept for kept in record.history if kept != version]
        # Before their folders go: a record must not name what is not there.
        self._save_or_remember()
        task = asyncio.create_task(self._remove_folders(gone))
        self._retiring.add(task)
        task.add_done_callback(self._retiring.discard)

    async def _remove_folders(self, versions: list[str]) -> None:
        import shutil

        others = [task for task in self._retiring if task is not asyncio.current_task()]
        if others:
            await asyncio.wait(others)
        for version in versions:
            await asyncio.to_thread(shutil.rmtree, self.folder / "versions" / version, True)

    def _known(self, version: str) -> VersionRecord:
        item = self.record.versions.get(version)
        if item is None:
            kept = ", ".join(sorted(self.record.versions, key=int)) or "none"
            raise DeploymentError(
                f"Endpoint {self.record.name!r} has no version {version!r}.", hint=f"It has: {kept}."
            )
        return item

    # The public socket

    async def _bind(self, host: str, port: int | None) -> socket.socket | None:
        """Listen on the wanted address; None where that is done already.

        Raises:
            DeploymentError: Another program holds the port.
        """
        with contextlib.suppress(OSError):
            host = str(socket.getaddrinfo(host, None, type=socket.SOCK_STREAM)[0][4][0])
        if self._public is not None:
            bound = self._public.getsockname()[:2]
            if host == self.record.host and port in (None, 0, bound[1]):
                return None
        wanted = port if port is not None else (self.record.port if self._public is None else 0)
        deadline = time.monotonic() + _PORT_PATIENCE
        while True:
            try:
                return _listening(host, wanted)
            except OSError as error:
                # A process that was just killed holds its sockets until its last thread has ended.
                if error.errno == errno.EADDRINUSE and time.monotonic() < deadline:
                    await asyncio.sleep(0.05)
                    continue
                holder = processes.listening_on(wanted) if wanted else ""
                raise DeploymentError(
                    f"Port {wanted} on {host} cannot be used: {error.strerror or error}"
                    + (f"; {holder} listens there." if holder else "."),
                    hint="Stop that program, or deploy with another port, or without one to get a free one.",
                    details={"host": host, "port": wanted},
                ) from error

    async def _start_sorry(self) -> None:
        """Answer 503 while nothing else can: a client that waits for ever learns nothing."""
        if self._sorry is not None or self._public is None:
            return
        message = b'{"error_code":"UNAVAILABLE","message":"The model server keeps failing; see its log."}\n'

        async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            with contextlib.suppress(
                OSError, TimeoutError, asyncio.IncompleteReadError, asyncio.LimitOverrunError
            ):
                await asyncio.wait_for(reader.readuntil(b"\r\n\r\n"), 5)
                writer.write(_UNAVAILABLE % (len(message), message))
                await writer.drain()
            writer.close()

        self._sorry = await asyncio.start_server(answer, sock=self._public.dup())

    async def _stop_sorry(self) -> None:
        if self._sorry is not None:
            self._sorry.close()
            self._sorry = None

    # Keeping it going

    async def _recover(self) -> None:
        """At start: adopt workers that live, take the public socket from one, start what is missing."""
        for version, item in self.record.versions.items():
            if item.process is not None and item.socket is not None and processes.alive(item.process):
                worker = Worker(self.folder, version, item.process, Path(item.socket))
                if version in self.record.weights:
                    self.workers[version] = worker
                    self._heard[version] = time.monotonic()
                    log.info("Adopted version %s, process %d", version, item.process.pid)
                else:
                    self._retire_worker(worker)
        await self._end_strays()
        for worker in self.workers.values():
            held = await worker.held_socket()
            if held is not None:
                self._public = held
                break
        if self.record.champion is None:
            return
        if self._public is None:
            try:
                self._public = await self._bind(self.record.host, self.record.port)
            except DeploymentError as error:
                # It stays to be asked: a deployment to another port, or `ensure` once this one is free, repairs it.
                log.error("%s", error)
                self._note(self.record.champion, Status.FAILED, error.message)
                return
        for version in self.record.weights:
            if version not in self.workers:
                self._start_reviving(version)
        champion = self.workers.get(self.record.champion)
        if champion is not None and self._public is not None:
            with contextlib.suppress(OSError):
                status = await champion.call({"op": "status"})
                if not status["accepting"]:
                    await champion.accept(self._public)
        await self._share_out()
        self._save_or_remember()

    async def _end_strays(self) -> None:
        """End workers that no record names: their supervisor died between starting them and writing that down."""
        named = {item.socket for item in self.record.versions.values()}
        for path in state.socket_dir(self.folder).glob("v*.sock"):
            if str(path) in named:
                continue
            try:
                await wire.exchange(path, {"op": "stop", "grace": 0.0, "leave": True}, timeout=5.0)
                log.info("Ended a stray worker at %s", path)
            except OSError:
                for left in (path, path.with_name(path.name + ".fd")):
                    left.unlink(missing_ok=True)

    async def _watch(self) -> None:
        truncated_at = 0.0
        while True:
            await asyncio.sleep(_TICK)
            try:
                for version in list(self.record.weights):
                    self._look_after(version)
                if time.monotonic() - truncated_at > 30:
                    truncated_at = time.monotonic()
                    self._truncate_logs()
            except Exception:
                # The watch must go on: without it a crash would go unnoticed for good.
                log.exception("The watch stumbled")

    def _look_after(self, version: str) -> None:
        worker = self.workers.get(version)
        if worker is None or version in self._reviving:
            return
        ended = worker.poll()
        if ended is None:
            limit = self.record.versions[version].hang_timeout
            self._ping(worker, limit)
            silent = time.monotonic() - self._heard.get(version, worker.started_at)
            problem = self._problems.pop(version, None)
            if silent < limit and problem is None:
                if time.monotonic() - worker.started_at > _STEADY_AFTER:
                    self._crashes.pop(version, None)
                return
            ended = f"was killed: {problem or f'it gave no sign of life for {silent:.0f} s.'}".rstrip(".")
        log.error("The worker of version %s %s", version, ended)
        self.record.versions[version].message = f"The worker {ended}."
        self._start_reviving(version)

    def _start_reviving(self, version: str) -> None:
        dead = self.workers.pop(version, None)
        if dead is not None:
            dead.kill()
        task = asyncio.create_task(self._revive(version))
        self._reviving[version] = task
        task.add_done_callback(lambda _: self._reviving.pop(version, None))

    def _stop_reviving(self, version: str) -> None:
        task = self._reviving.pop(version, None)
        if task is not None:
            task.cancel()

    def _ping(self, worker: Worker, limit: float) -> None:
        """Ask for a sign of life, unless one came lately or is awaited."""
        version = worker.version
        running = self._pings.get(version)
        last = self._heard.get(version, worker.started_at)
        if (running is not None and not running.done()) or time.monotonic() - last < min(
            _PING_EVERY, limit / 3
        ):
            return

        async def ping() -> None:
            try:
                status = await worker.call({"op": "status"}, timeout=limit)
            except OSError as error:
                log.warning("Version %s did not answer a ping: %s", version, error or type(error).__name__)
                return
            if self.workers.get(version) is worker:
                self._heard[version] = time.monotonic()
                if status["problem"] is not None:
                    self._problems[version] = str(status["problem"])

        self._pings[version] = asyncio.create_task(ping())

    async def _revive(self, version: str) -> None:
        """Start a version again, at once and then more and more slowly, until it is given up."""
        reason = self.record.versions[version].message
        limit = self.record.versions[version].restart_limit
        while (count := self._crashes.get(version, 0)) < limit:
            self._crashes[version] = count + 1
            self._note(version, Status.DEGRADED, f"{reason} Restart {count + 1} of {limit}.", restarts=1)
            await asyncio.sleep(_BACKOFF[min(count, len(_BACKOFF) - 1)])
            item = self.record.versions[version].model_copy(deep=True)
            try:
                worker = await self._start_ready(item)
            except (DeploymentError, OSError) as error:
                log.error("Version %s did not come back: %s", version, error)
                reason = error.message if isinstance(error, DeploymentError) else str(error)
                continue
            self.workers[version] = worker
            item.message = f"{reason} It was restarted.".strip()
            self.record.versions[version] = item
            self._save_or_remember()
            if await self._back_in_traffic(worker):
                return
        self._note(version, Status.FAILED, f"{reason} It was given up after {limit} restarts.")
        log.error("Version %s is given up: %s", version, self.record.versions[version].message)
        if version == self.record.champion:
            await self._start_sorry()
        await self._share_out()

    async def _back_in_traffic(self, worker: Worker) -> bool:
        try:
            if worker.version == self.record.champion and self._public is not None:
                await worker.accept(self._public)
                await self._stop_sorry()
        except OSError as error:
            log.error("Version %s did not take the public socket: %s", worker.version, error)
            self.workers.pop(worker.version, None)
            worker.kill()
            return False
        await self._share_out()
        return True

    def _note(self, version: str, status: Status, message: str, *, restarts: int = 0) -> None:
        item = self.record.versions[version]
        item.process = None
        item.status = status
        item.message = message.strip()
        item.restarts += restarts
        self._save_or_remember()

    def _truncate_logs(self) -> None:
        """A worker appends to its log for months: keep the last of what it wrote, in place."""
        for version in self.workers:
            path = state.worker_log(self.folder, version)
            if path.exists() and path.stat().st_size > LOG_LIMIT:
                path.with_suffix(".log.1").write_bytes(path.read_bytes()[-LOG_LIMIT:])
                os.truncate(path, 0)

    # State

    def _file_is_good(self) -> bool:
        try:
            return state.read(self.folder) is not None
        except StateError:
            return False

    def _save(self) -> None:
        state.write(self.folder, self.record)
        self._unsaved = False

    def _save_or_remember(self) -> None:
        """Keeping the model served matters more than recording it; the record is written when it can be."""
        try:
            self._save()
        except StateError as error:
            self._unsaved = True
            log.error("%s", error)


def _listening(host: str, port: int) -> socket.socket:
    """A socket that listens; the system picks the port where it is 0. Raises OSError."""
    sock = socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET, socket.SOCK_STREAM)
    try:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        sock.bind((host, port))
        sock.listen(_BACKLOG)
    except OSError:
        sock.close()
        raise
    return sock


def _crown(plan: EndpointRecord, version: str) -> None:
    """Make a version the champion and remember the one before it."""
    if plan.champion is not None and plan.champion != version:
        plan.history = [kept for kept in plan.history if kept not in (version, plan.champion)]
        plan.history.append(plan.champion)
    plan.champion = version


def load_record(folder: Path) -> EndpointRecord:
    """The state to start from. Raises EndpointNotFoundError or StateError."""
    record = state.read(folder)
    if record is None:
        raise EndpointNotFoundError(f"There is no endpoint in {folder}.", path=folder)
    return record


def main(arguments: list[str]) -> int:
    """Supervise one endpoint; ends at once where another supervisor does so already."""
    folder = Path(arguments[0])
    logging.basicConfig(
        level=logging.INFO, stream=sys.stderr, format="%(asctime)s %(levelname)s %(name)s: %(message)s"
    )
    lock = filelock.FileLock(folder / "supervisor.lock")
    try:
        lock.acquire(timeout=0)
    except filelock.Timeout:
        log.info("Another supervisor looks after %s", folder)
        return 0
    with lock:
        try:
            state.make_socket_dir(folder)
            asyncio.run(Supervisor(folder, load_record(folder)).run())
        except NotebookedError as error:
            log.error("%s", error)
            return error.exit_code
        finally:
            state.control_socket(folder).unlink(missing_ok=True)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
