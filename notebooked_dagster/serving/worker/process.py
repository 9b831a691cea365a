"""A worker's life: load, prove itself on the private socket, take the public one, drain, end."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import signal
import socket
import sys
import threading
import time
from collections.abc import Generator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import orjson
import uvicorn

from . import wire
from .app import Front
from .engine import Engine, Reply
from .metrics import Family, Metrics
from .model import load, read_metadata
from .tracing import tracing_of
from .traffic import Peer, Split
from .wire import Pool

log = logging.getLogger("notebooked.worker")

_STAT_TIMEOUT = 2.0
_ORPHAN_CHECK = 0.5


@dataclass(frozen=True, slots=True)
class Options:
    """What a worker is told on its command line, as one JSON object.

    Attributes:
        endpoint: The endpoint's name.
        version: The version served.
        model_dir: The model folder.
        socket: Its private socket; ``<socket>.fd`` passes listening sockets.
        size_limit: Largest body, in bytes.
        body_timeout: Seconds a client has to send its body.
        idle_timeout: Seconds after which a connection that has sent no complete request is closed.
        connection_limit: Connections at once; more get 503.
        predict_timeout: Seconds a prediction may take.
        peer_timeout: Seconds another version has to answer before the champion does.
        memory_limit: Address space in bytes; None for no limit.
        supervisor: Process id of the supervisor; a worker that loses it before it is ready serves nobody and ends.
        restarts: How often this version was restarted, for its metrics.
        labels: Lineage, shown at ``/version``.
    """

    endpoint: str
    version: str
    model_dir: str
    socket: str
    size_limit: int = 16 * 1024 * 1024
    body_timeout: float = 30.0
    idle_timeout: float = 15.0
    connection_limit: int = 1024
    predict_timeout: float = 60.0
    peer_timeout: float = 10.0
    memory_limit: int | None = None
    supervisor: int | None = None
    restarts: int = 0
    labels: dict[str, str] = field(default_factory=dict)


class _PublicServer(uvicorn.Server):
    """uvicorn on the shared listening socket; signals belong to the worker, which also closes idle connections."""

    def __init__(self, config: uvicorn.Config, idle_timeout: float) -> None:
        super().__init__(config)
        self._idle_timeout = idle_timeout
        self._idle_since: dict[Any, tuple[Any, float]] = {}

    @contextlib.contextmanager
    def capture_signals(self) -> Generator[None, None, None]:
        yield

    async def on_tick(self, counter: int) -> bool:
        if counter % 10 == 0:
            self._close_idle()
        return await super().on_tick(counter)

    def _close_idle(self) -> None:
        """uvicorn limits idle time after a reply, not the time a client takes to send its first headers."""
        now = time.monotonic()
        seen: dict[Any, tuple[Any, float]] = {}
        for connection in self.server_state.connections:
            cycle = getattr(connection, "cycle", None)
            if cycle is not None and not cycle.response_complete:
                continue
            # A busy client may be caught between two requests every time; its cycle is another one then.
            last_cycle, since = self._idle_since.get(connection, (cycle, now))
            seen[connection] = (cycle, since if last_cycle is cycle else now)
        self._idle_since = seen
        for connection, (_, since) in seen.items():
            if now - since > self._idle_timeout:
                connection.transport.close()

    def stop_accepting(self) -> None:
        """Leave new connections to the other processes on the socket; those that are open stay."""
        for server in self.servers:
            server.close()


class Worker:
    """One model version in one process."""

    def __init__(self, options: Options) -> None:
        self.options = options
        self.version = options.version
        self.metrics = Metrics(options.endpoint, options.version, restarts=options.restarts)
        self.split = Split(options.version)
        self.tracing = tracing_of(options.endpoint, options.version)
        self.draining = False
        self.successor: Peer | None = None
        self._unready: str | None = "The model is being loaded."
        folder = Path(options.model_dir)
        self.metadata = read_metadata(folder)
        self.engine = Engine(load(folder), self.metrics, time_limit=options.predict_timeout)
        self._public: socket.socket | None = None
        self._server: _PublicServer | None = None
        self._serving: asyncio.Task[None] | None = None
        self._earlier: set[asyncio.Task[None]] = set()
        self._ended = asyncio.Event()
        self._loop: asyncio.AbstractEventLoop

    @property
    def problem(self) -> str | None:
        """Why no prediction can be expected; None where one can."""
        return self._unready or self.engine.stuck

    async def run(self, ready: threading.Event) -> None:
        """Live until told to stop; ``ready`` is set once there is a private socket to be found by."""
        self._loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            self._loop.add_signal_handler(number, self._ended.set)
        path = Path(self.options.socket)
        self._unready = self.engine.smoke()
        # Before the socket that says it is ready: the supervisor hands over the public one as soon as it reads that.
        descriptors = wire.listen_descriptor(path.with_name(path.name + ".fd"))
        threading.Thread(
            target=wire.serve_descriptor, args=(descriptors, self._take, lambda: self._public), daemon=True
        ).start()
        server = await wire.listen(path, self._control)
        ready.set()
        log.info(
            "Version %s is %s", self.version, "ready" if self.problem is None else "loaded but not ready"
        )
        async with server:
            await self._ended.wait()
        await self._finish()
        if self.tracing is not None:
            await asyncio.to_thread(self.tracing.close)

    async def _control(self, header: wire.Header, body: bytes) -> tuple[wire.Header, bytes]:
        op = header.get("op")
        if op == "predict":
            reply = await self.engine.answer(body, header["content_type"], header["accept"])
            return {"status": reply.status, "content_type": reply.content_type}, reply.body
        if op == "status":
            return self._status(), b""
        if op == "stats":
            return {"families": self.metrics.snapshot()}, b""
        if op == "traffic":
            peers = {
                version: (int(peer["weight"]), Path(peer["socket"]))
                for version, peer in header["peers"].items()
            }
            self.split.set(peers)
            self.metrics.weight.set(header["weight"])
            return {}, b""
        if op == "release":
            self._release()
            self._follow(header.get("successor"))
            return {}, b""
        if op == "stop":
            self._loop.create_task(self._drain(float(header["grace"]), bool(header["leave"])))
            return {}, b""
        return {"error": f"unknown op {op!r}"}, b""

    def _status(self) -> wire.Header:
        return {
            "version": self.version,
            "pid": os.getpid(),
            "problem": self.problem,
            "accepting": self._server is not None and not self.draining,
            "draining": self.draining,
        }

    def _take(self, public: socket.socket) -> None:
        """Called in the descriptor thread; returns once requests are taken from the socket."""
        asyncio.run_coroutine_threadsafe(self._accept(public), self._loop).result(10)

    async def _accept(self, public: socket.socket) -> None:
        if self._server is not None and self._serving is not None:
            self._release()
            self._server.should_exit = True
            self._earlier.add(self._serving)
            self._serving.add_done_callback(self._earlier.discard)
        self.successor = None
        public.setblocking(False)
        self._public = public
        self.draining = False
        config = uvicorn.Config(
            Front(self),
            log_config=None,
            access_log=False,
            lifespan="off",
            ws="none",
            server_header=False,
            limit_concurrency=self.options.connection_limit,
            timeout_keep_alive=5,
            backlog=2048,
        )
        self._server = server = _PublicServer(config, self.options.idle_timeout)
        self._serving = self._loop.create_task(server.serve(sockets=[public.dup()]))
        while not server.started:
            if self._serving.done():
                self._serving.result()
                raise OSError("The public socket could not be served.")
            await asyncio.sleep(0.005)

    def _release(self) -> None:
        """Take no new connections; every reply from now on asks the client to reconnect elsewhere."""
        self.draining = True
        if self._server is not None:
            self._server.stop_accepting()
        if self._public is not None:
            self._public.close()
            self._public = None

    def _follow(self, successor: dict[str, Any] | None) -> None:
        """Hand what still comes over old connections to the version that serves now."""
        if successor is not None:
            self.successor = Peer(successor["version"], 100, Pool(Path(successor["socket"])))

    async def _drain(self, grace: float, leave: bool) -> None:
        """Finish what was begun, for at most ``grace`` seconds.

        A client may be about to use an idle connection: where something else serves from now on, those end by
        themselves. With ``leave`` nothing does, and they are closed at once.
        """
        self._release()
        deadline = time.monotonic() + grace
        while (server := self._server) is not None and time.monotonic() < deadline:
            if leave:
                server.should_exit = True
            if not server.server_state.connections:
                break
            await asyncio.sleep(0.05)
        self._ended.set()

    async def _finish(self) -> None:
        if self._server is None or self._serving is None:
            return
        self._server.should_exit = True
        with contextlib.suppress(asyncio.TimeoutError):
            await asyncio.wait_for(self._serving, 5)

    async def forward(self, peer: Peer, body: bytes, content_type: str, accept: str) -> Reply | None:
        """Let another version answer; None where it cannot be reached or is too slow."""
        header = {"op": "predict", "content_type": content_type, "accept": accept}
        try:
            answer, output = await peer.pool.exchange(header, body, timeout=self.options.peer_timeout)
        except (OSError, orjson.JSONDecodeError) as error:
            log.warning("Version %s did not answer: %s", peer.version, error or type(error).__name__)
            return None
        return Reply(answer["status"], output, answer["content_type"])

    async def peer_snapshots(self) -> list[list[Family]]:
        """The figures of the other versions; one that does not answer is left out."""
        found: list[list[Family]] = []
        for peer in self.split.peers:
            try:
                answer, _ = await peer.pool.exchange({"op": "stats"}, b"", timeout=_STAT_TIMEOUT)
                found.append(answer["families"])
            except OSError as error:
                log.warning("Version %s gave no figures: %s", peer.version, error or type(error).__name__)
        return found


def _end_as_orphan(supervisor: int, ready: threading.Event) -> None:
    """While the model loads, nobody but the supervisor that started this process knows of it."""
    while not ready.wait(_ORPHAN_CHECK):
        if os.getppid() != supervisor:
            log.error("The supervisor is gone; nobody waits for this worker.")
            os._exit(1)


def main(arguments: list[str]) -> int:
    """Run a worker; ``arguments`` is its options as one JSON object."""
    logging.basicConfig(
        level=logging.INFO, stream=sys.stderr, format="%(asctime)s %(levelname)s %(name)s: %(message)s"
    )
    options = Options(**orjson.loads(arguments[0]))
    if options.memory_limit is not None:
        import resource

        resource.setrlimit(resource.RLIMIT_AS, (options.memory_limit, options.memory_limit))

    ready = threading.Event()
    if options.supervisor is not None:
        threading.Thread(target=_end_as_orphan, args=(options.supervisor, ready), daemon=True).start()

    async def run() -> None:
        await Worker(options).run(ready)

    try:
        import uvloop
    except ImportError:
        asyncio.run(run())
    else:
        uvloop.run(run())
    return 0
