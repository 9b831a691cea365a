"""The daemon of an edge device: everything of this package, put together as ``device.yaml`` says.

One event loop, one task a duty. A duty that fails ends the daemon, and systemd starts it again: half a daemon that looks
alive is worse. What a take had on the disk is recovered at the next start.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import signal
import socket
import time
from collections import deque
from collections.abc import Coroutine, Mapping
from pathlib import Path
from typing import Any

import mido

from notebooked_dagster.errors import NotebookedError, PortError

from .clock import Clock
from .daw import mmc
from .daw.exchange import Exchange
from .daw.mackie import MackieControl
from .daw.mtc import follow
from .daw.osc import OscServer
from .device import DeviceConfig
from .dispatcher import Dispatcher
from .gpio import Pins, SensorLoop, pin_factory
from .handler import MidiHandler
from .messages import REAL_TIME, Event
from .network import Dagster, Mqtt, Osc, WebSockets, within
from .notify import notify, watchdog_interval
from .outlets import Outlet, Parcel, WayOut
from .player import play
from .recorder import Recorder
from .requests import RunRequests
from .takes import Take

log = logging.getLogger("notebooked.realtime")
_SHOWN = 30
_STALLED = 10.0
_FAREWELL = 3.0
_READY = 10.0


class Daemon:
    """Runs a device.

    Args:
        config: What it does.
        folder: What relative paths of the configuration are relative to.
    """

    def __init__(self, config: DeviceConfig, folder: Path) -> None:
        self.config = config
        self._folder = folder
        self.midi = MidiHandler([port.make() for port in config.ports], limit=config.queue)
        self.counters = self.midi.counters
        self._events: deque[str] = deque(maxlen=_SHOWN)
        self._stop = asyncio.Event()
        self._turned = time.monotonic()
        self._slowest: tuple[float, float] = (0.0, 0.0)
        self._tasks: list[asyncio.Task[None]] = []
        self._playing: set[asyncio.Task[None]] = set()
        self.web_address: tuple[str, int] | None = None
        factory = pin_factory(config.gpio) if config.gpio != "none" else None
        self.pin_factory = factory
        self._pins = Pins(factory) if factory is not None else None
        self._sensors = SensorLoop(config.sensors, factory) if config.sensors else None
        self.clock = self._make_clock()
        self.recorder = self._make_recorder()
        self.mackie = MackieControl() if config.daw.mackie is not None else None
        named = {name for rule in config.rules for name in rule.when.sensor or ()}
        self.osc_server = (
            OscServer(config.daw.osc_address, named) if config.daw.osc_address is not None else None
        )
        self.exchange = (
            Exchange(folder / config.daw.exchange, self._exchanged)
            if config.daw.exchange is not None
            else None
        )
        self._clients: list[Any] = []
        self.dispatcher = self._make_dispatcher()

    async def run(self) -> None:
        """Run until SIGTERM, SIGINT or ``stop``.

        Raises:
            PortError: A port, a pin or the page's address cannot be used.
        """
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            with contextlib.suppress(NotImplementedError, RuntimeError, ValueError):
                loop.add_signal_handler(number, self._stop.set)
        try:
            await self._open()
            status = f"STATUS={len(self.config.ports)} ports, {len(self.config.rules)} rules"
            await asyncio.to_thread(notify, "READY=1", status, wait=_READY)
            log.info("%s is ready", self.config.name)
            stopping = asyncio.create_task(self._stop.wait())
            done, _ = await asyncio.wait([stopping, *self._tasks], return_when=asyncio.FIRST_COMPLETED)
            stopping.cancel()
            for task in done - {stopping}:
                task.result()
                raise PortError(f"The duty {task.get_name()!r} ended by itself.")
        finally:
            notify("STOPPING=1")
            await self._close()

    def stop(self) -> None:
        """Ask it to end."""
        self._stop.set()

    def healthy(self) -> bool:
        """Whether events are being handled."""
        return len(self.midi.inbox) == 0 or time.monotonic() - self._turned < _STALLED

    def snapshot(self) -> dict[str, Any]:
        """The state as plain data: for the page, the metrics and whoever asks."""
        counters = self.counters
        recorder = self.recorder
        return {
            "device": self.config.name,
            "ports": [
                {"name": s.name, "kind": s.kind, "connected": s.connected, "detail": s.detail}
                for s in self.midi.states()
            ],
            "clock": self.clock.described() if self.clock is not None else None,
            "recorder": {
                "take": recorder.recording,
                "recorded": recorder.recorded,
                "lost": recorder.lost,
                "failed": recorder.failed,
                "takes": recorder.takes[-5:],
            }
            if recorder is not None
            else None,
            "requests": len(self.requests) if self.requests is not None else 0,
            "sensors": self._sensors.values() if self._sensors is not None else {},
            "pins": {
                str(number): value for number, value in (self._pins.values() if self._pins else {}).items()
            },
            "events": list(reversed(self._events)),
            "counters": {
                **{
                    name: _rows(getattr(counters, name))
                    for name in ("received", "handled", "dropped", "actions", "refused", "sent")
                },
                "waiting": counters.waiting(),
            },
            "slowest_ms": round(self._slowest[1] * 1e3, 3),
        }

    async def _open(self) -> None:
        if self.recorder is not None:
            await self.recorder.open()
        await self.midi.__aenter__()
        if self._sensors is not None:
            await self._sensors.open(self.midi.inbox)
        if self.osc_server is not None:
            await self.osc_server.open(self.midi.inbox)
        if self._osc is not None:
            for message in (action.osc for rule in self.config.rules for action in rule.then if action.osc):
                self._osc.prepare(message.peer)
        if self.clock is not None:
            await self.clock.open()
        self._duty("events", self._handle_events())
        self._duty("watchdog", self._look_after())
        for outlet in self._outlets.values():
            self._duty(outlet.kind, outlet.run())
        if self.exchange is not None:
            self._duty("exchange", self.exchange.run())
        if self.clock is not None and self.config.clock is not None and self.config.clock.mtc is not None:
            self._duty("time code", follow(self.clock, self.config.clock.mtc, self._to_clock_ports))
        if self.config.web.enabled:
            await self._serve_page()

    async def _close(self) -> None:
        for task in (*self._tasks, *self._playing):
            task.cancel()
        await asyncio.gather(*self._tasks, *self._playing, return_exceptions=True)
        if self.recorder is not None:
            await self.recorder.close()
        if self.clock is not None:
            await self.clock.close()
        await within(
            _FAREWELL,
            *(one for one in (self._sensors, self._pins, self.osc_server) if one is not None),
            *self._clients,
        )
        await self.midi.close()

    def _duty(self, name: str, work: Coroutine[Any, Any, None]) -> None:
        self._tasks.append(asyncio.create_task(work, name=name))

    async def _handle_events(self) -> None:
        inbox = self.midi.inbox
        while True:
            event = await inbox.get()
            if self.clock is not None:
                self.clock.hear(event)
            self._note(event)
            if event.message is not None:
                await self._hear_daw(event)
            await self.dispatcher.handle(event)
            now = time.monotonic()
            self._turned = now
            taken = now - event.at / 1e9
            if taken > self._slowest[1] or now - self._slowest[0] > 60:
                self._slowest = (now, taken)
            if event.message is None or event.message.type not in REAL_TIME:
                self._events.append(str(event))

    def _note(self, event: Event) -> None:
        recorder = self.recorder
        if recorder is not None:
            always = self.config.record is not None and self.config.record.always
            message = event.message
            wanted = (
                not self.config.record
                or not self.config.record.ports
                or event.source in self.config.record.ports
            )
            if (
                always
                and recorder.recording is None
                and wanted
                and message is not None
                and message.type not in REAL_TIME
            ):
                recorder.start()
            recorder.note(event)
            for gap in self.midi.inbox.take_gaps():
                recorder.gap(gap)

    async def _hear_daw(self, event: Event) -> None:
        message, daw = event.message, self.config.daw
        if self.mackie is not None and event.source == daw.mackie:
            for answer in self.mackie.hear(message):
                await self._send_quietly(event.source, answer)
        if event.source == daw.mmc:
            for command in mmc.parse(message):
                self._obey(command)

    def _obey(self, command: mmc.Mmc) -> None:
        clock = self.clock
        if clock is not None:
            if command.name in ("play", "deferred_play"):
                clock.resume()
            elif command.name in ("stop", "pause"):
                clock.stop()
            elif command.at is not None:
                # Song position counts sixteenths; where that is depends on the tempo.
                clock.locate(round(command.at.time * clock.bpm / 15))
        if self.recorder is not None:
            if command.name == "record_strobe":
                self.recorder.start()
            elif command.name in ("record_exit", "stop"):
                self.recorder.end()

    async def _look_after(self) -> None:
        """Signs of life for systemd, and tempo changes for the take."""
        interval = watchdog_interval()
        told = time.monotonic()
        while True:
            await asyncio.sleep(0.25)
            if self.recorder is not None and self.clock is not None:
                self.recorder.tempo(self.clock.bpm)
            if self.clock is not None and not self.clock.alive:
                raise PortError("The clock's process ended.", hint="The journal has its last words.")
            now = time.monotonic()
            # A sign only where work is done: a daemon whose rules hang is to be restarted.
            if interval is not None and now - told >= interval - 0.25 and self.healthy():
                notify("WATCHDOG=1")
                told = now

    async def _serve_page(self) -> None:
        import uvicorn

        from .page import page

        web = self.config.web
        family = socket.AF_INET6 if ":" in web.host else socket.AF_INET
        box = socket.socket(family, socket.SOCK_STREAM)
        box.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            box.bind((web.host, web.port))
            # At once: systemd is told that we are ready before the page's server has its first turn.
            box.listen()
        except OSError as error:
            box.close()
            raise PortError(
                f"The page cannot be served on {web.host}:{web.port}: {error.strerror}.",
                hint="Name another `web.port`, or set `web.enabled: false`.",
            ) from error
        self.web_address = box.getsockname()[:2]
        server = uvicorn.Server(
            uvicorn.Config(
                page(self.snapshot, self.healthy, web.host),
                log_level="warning", access_log=False, lifespan="off", timeout_graceful_shutdown=1,
            )
        )  # fmt: skip
        log.info("page on http://%s:%d", *self.web_address)
        self._duty("page", _serve(server, box))

    def _make_clock(self) -> Clock | None:
        told = self.config.clock
        if told is None:
            return None
        return Clock(
            told.targets(), bpm=told.bpm, follow=told.follow, priority=told.priority,
            send=self._to_clock_ports if told.to else None,
        )  # fmt: skip

    def _make_recorder(self) -> Recorder | None:
        told = self.config.record
        if told is None:
            return None

        def facts() -> Mapping[str, Any]:
            now = self.snapshot()
            return {"ports": now["ports"], "clock": now["clock"] or {}}

        return Recorder(
            self._folder / told.spool, self.config.name, ports=told.ports, facts=facts, idle=told.idle,
            finished=self._finished,
        )  # fmt: skip

    def _make_dispatcher(self) -> Dispatcher:
        config = self.config
        kinds = {action.kind for rule in config.rules for action in rule.then}
        self._outlets: dict[str, WayOut] = {}
        self.requests: RunRequests | None = None
        self._add_outlet("record", self._record)
        self._add_outlet("play", self._play)
        if "websocket" in kinds:
            self._add_client("websocket", WebSockets())
        if config.mqtt is not None:
            password = config.mqtt.password.get_secret_value() if config.mqtt.password else None
            self._add_client("mqtt", Mqtt(config.mqtt.host, config.mqtt.port, config.mqtt.username, password))
        if config.dagster is not None:
            token = config.dagster.token
            headers = {"Authorization": f"Bearer {token.get_secret_value()}"} if token else None
            client = Dagster(config.dagster.url, config.dagster.location, config.dagster.repository, headers)
            self._clients.append(client)
            self.requests = RunRequests(self._folder / config.dagster.spool, client.launch, self.counters)
            self._outlets["run"] = self.requests
        self._osc = Osc() if "osc" in kinds else None
        if self._osc is not None:
            self._clients.append(self._osc)
        return Dispatcher(
            config.rules, self.midi, self._outlets, clock=self.clock, pins=self._pins, osc=self._osc
        )

    def _add_client(self, kind: str, client: Any) -> None:
        self._clients.append(client)
        self._add_outlet(kind, client.deliver)

    def _add_outlet(self, kind: str, deliver: Any) -> None:
        self._outlets[kind] = Outlet(kind, deliver, self.counters)

    async def _record(self, parcel: Parcel) -> None:
        assert self.recorder is not None
        recording = self.recorder.recording is not None
        if parcel.what == "start" or (parcel.what == "toggle" and not recording):
            self.recorder.start()
        else:
            self.recorder.end()

    async def _finished(self, take: Take) -> None:
        if self.exchange is not None:
            await asyncio.to_thread(self.exchange.export, take)

    async def _play(self, parcel: Parcel) -> None:
        # Two files may sound together, so the outlet only starts them.
        self._start_playing(parcel.what.to, self._folder / parcel.what.file)

    async def _exchanged(self, path: Path) -> None:
        if self.config.daw.play_to is not None:
            await play(self.midi, self.config.daw.play_to, path)

    def _start_playing(self, port: str, path: Path) -> None:
        async def playing() -> None:
            try:
                await play(self.midi, port, path)
            except NotebookedError as error:
                log.warning("%s", error)

        task = asyncio.create_task(playing(), name=f"play-{path.name}")
        self._playing.add(task)
        task.add_done_callback(self._playing.discard)

    async def _to_clock_ports(self, message: mido.Message) -> None:
        assert self.config.clock is not None
        for name in self.config.clock.to:
            await self._send_quietly(name, message)

    async def _send_quietly(self, port: str, message: mido.Message) -> None:
        """Send what nobody has to miss: where nothing is connected it is counted."""
        try:
            await self.midi.send(port, message)
        except PortError:
            self.counters.refused["clock and DAW", f"nothing at {port}"] += 1


async def _serve(server: Any, box: socket.socket) -> None:
    # Signals are the daemon's own business.
    server.capture_signals = contextlib.nullcontext
    try:
        await server.serve(sockets=[box])
    except asyncio.CancelledError:
        server.should_exit = server.force_exit = True
        raise


def _rows(counter: Mapping[Any, int]) -> list[list[Any]]:
    return [[*(key if isinstance(key, tuple) else (key,)), count] for key, count in sorted(counter.items())]
