"""A device on loopback: a real OpenSSH server of our own, and an instance that launches on it."""

from __future__ import annotations

import asyncio
import getpass
import json
import os
import random
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import textwrap
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path, PurePosixPath
from typing import Any

import dagster as dg
import psutil
import yaml
from dagster._core.code_pointer import FileCodePointer
from dagster._core.events.log import EventLogEntry
from dagster._core.origin import JobPythonOrigin, RepositoryPythonOrigin

from notebooked_dagster.edge import marks
from notebooked_dagster.edge.devices import Device, fleet_of
from notebooked_dagster.edge.journal import decode
from notebooked_dagster.edge.launcher import PiRunLauncher
from notebooked_dagster.edge.relay import DeviceRelay
from notebooked_dagster.edge.ssh import Link
from notebooked_dagster.edge.tending import Tending

SSHD = shutil.which("sshd") or next(
    (path for path in ("/usr/sbin/sshd", "/usr/local/sbin/sshd", "/sbin/sshd") if Path(path).exists()), None
)
#: ``user@host[:port]``: the same tests against real hardware.
REAL = "NOTEBOOKED_TEST_DEVICE"
JOBS = """
import os, pathlib, sys, tempfile, time
import dagster as dg

HERE = pathlib.Path(os.environ.get("EDGE_TEST_HERE", "/tmp"))


@dg.op
def talk(context):
    out = pathlib.Path(os.environ.get("NOTEBOOKED_EDGE_OUTPUTS") or tempfile.mkdtemp())
    print("printed on the device")
    for number in range(20):
        context.log.info("line %d", number)
    (out / "takes").mkdir()
    (out / "takes" / "one.bin").write_bytes(bytes(range(256)) * 4096)
    return os.environ.get("HANDED_OVER", "-")


@dg.op
def tell(context, told: str):
    context.log.info("handed over: %s; secret: %s", told, os.environ.get("HOST_SECRET", "-"))
    context.log_event(dg.AssetMaterialization("takes", metadata={"count": 1}))


@dg.job
def quick():
    tell(talk())


@dg.op(config_schema={"lines": int, "pause": float, "name": str})
def drip(context):
    (HERE / ("begun-" + context.op_config["name"])).write_text(str(os.getpid()))
    for number in range(context.op_config["lines"]):
        context.log.info("drip %d", number)
        time.sleep(context.op_config["pause"])


@dg.job
def slow():
    drip()


@dg.op
def bad():
    raise ValueError("the microphone is gone")


@dg.job
def failing():
    bad()


defs = dg.Definitions(jobs=[quick, slow, failing], executor=dg.in_process_executor)
"""


class LoopbackDevice:
    """An SSH server that stands for a Pi, its working folder, and how to reach it.

    Args:
        root: A folder of its own.
        name: What runs call it by.
        address: Where it listens.
        within: The command that runs it in a network of its own.
    """

    #: How many times as long it may take.
    slower = 1

    def __init__(
        self, root: Path, name: str = "pi", *, address: str = "127.0.0.1", within: Sequence[str] = ()
    ) -> None:
        assert SSHD is not None
        self.name = name
        self.root = root
        self.folder = root / "work"
        self.address = address
        #: Variables of its sessions, from its next start on.
        self.environment: dict[str, str] = {}
        self.process: subprocess.Popen[bytes] | None = None
        self._within = within
        root.mkdir(parents=True)
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.port = probe.getsockname()[1]
        for key in ("host", "login"):
            subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(root / key)], check=True)
        shutil.copy(root / "login.pub", root / "authorized_keys")
        (root / "sshd_config").write_text(
            textwrap.dedent(f"""
            Port {self.port}
            ListenAddress {address}
            HostKey {root}/host
            AuthorizedKeysFile {root}/authorized_keys
            PidFile none
            PasswordAuthentication no
            KbdInteractiveAuthentication no
            UsePAM no
            StrictModes no
            PermitRootLogin prohibit-password
            Subsystem sftp internal-sftp
            MaxStartups 100
            """)
        )

    def start(self) -> None:
        if os.getuid() == 0:
            # Debian's sshd wants it; its service makes it at boot.
            Path("/run/sshd").mkdir(mode=0o755, exist_ok=True)
        assert SSHD is not None
        told = " ".join(f"{name}={value}" for name, value in self.environment.items())
        options = ["-o", f"SetEnv={told}"] if told else []
        self.process = subprocess.Popen(
            [*self._within, SSHD, "-f", str(self.root / "sshd_config"), *options, "-D", "-e"],
            stderr=(self.root / "sshd.log").open("ab"),
        )
        until(lambda: self._answers(), 10, "sshd to answer")

    def cut(self) -> None:
        """The link goes: the server, and every session of its."""
        if self.process is None:
            return
        children = psutil.Process(self.process.pid).children(recursive=False)
        self.process.kill()
        self.process.wait()
        for child in children:
            # Only sshd's own processes: what a session started is the device's, and lives on as it does on a Pi.
            for process in (child, *_sshd_below(child)):
                try:
                    process.kill()
                except psutil.NoSuchProcess:
                    continue
        self.process = None

    def _answers(self) -> bool:
        with socket.socket() as probe:
            probe.settimeout(1)
            return probe.connect_ex((self.address, self.port)) == 0

    def config(self, **more: Any) -> dict[str, Any]:
        return {
            "name": self.name,
            "host": self.address,
            "user": getpass.getuser(),
            "port": self.port,
            "key": str(self.root / "login"),
            "host_key": " ".join((self.root / "host.pub").read_text().split()[:2]),
            "folder": str(self.folder),
            "python": sys.executable,
            "agent_python": sys.executable,
            "labels": ["studio"],
            "environment": ["EDGE_TEST_HERE"],
            **more,
        }

    def run_folder(self, run_id: str) -> Path:
        return self.folder / "runs" / run_id

    def read(self, run_id: str, name: str) -> bytes:
        """A file of a run's, as it lies on the device."""
        return (self.run_folder(run_id) / name).read_bytes()

    def journaled(self, run_id: str) -> list[str]:
        """What the device wrote down, in its order."""
        return events(self.read(run_id, "journal"))


def events(journal: bytes) -> list[str]:
    """The events in a journal's bytes."""
    return [record.data["event"] for record in decode(journal) if record.data["kind"] == "event"]


class RealDevice:
    """Real hardware, with all of a test in a folder of its own there, which goes with the test.

    Args:
        told: ``user@host[:port]``; ssh's own configuration says the rest.
        state: A folder of this host's.
        more: What the device's entry in ``edge.yaml`` has beyond that.
    """

    #: Than a machine that runs tests, with an environment to be made first.
    slower = 10

    def __init__(self, told: str, state: Path, **more: Any) -> None:
        user, _, rest = told.rpartition("@")
        host, _, port = rest.partition(":")
        self.name = "pi"
        self._login = {"host": host, **({"user": user} if user else {}), **more}
        self._login |= {"port": int(port)} if port else {}
        self._link = Link(fleet_of([{"name": self.name, **self._login}], state).devices[0], state)
        found = self._said("mktemp -d /var/tmp/notebooked-test.XXXXXX && command -v python3")
        root, self.python = found.decode().split()
        self.root = PurePosixPath(root)
        self.folder = self.root / "work"

    def close(self) -> None:
        """Remove what was put there."""
        self._said(f"rm -rf {shlex.quote(str(self.root))}")
        self._link.close()

    def config(self, **more: Any) -> dict[str, Any]:
        return {
            "name": self.name, "folder": str(self.folder), "labels": ["studio"], **self._login, **more
        }  # fmt: skip

    def read(self, run_id: str, name: str) -> bytes:
        """A file of a run's, as it lies on the device."""
        return self._said(f"cat {shlex.quote(str(self.folder / 'runs' / run_id / name))}")

    def journaled(self, run_id: str) -> list[str]:
        """What the device wrote down, in its order."""
        return events(self.read(run_id, "journal"))

    def put(self, source: Path, target: PurePosixPath) -> None:
        """Bring a folder's content there."""
        packed = subprocess.run(["tar", "-C", str(source), "-cf", "-", "."], capture_output=True, check=True)
        folder = shlex.quote(str(target))
        self._said(f"mkdir -p {folder} && tar -xf - -C {folder}", packed.stdout)

    def _said(self, command: str, data: bytes = b"") -> bytes:
        done = self._link.run(command, data)
        assert done.returncode == 0, done.stderr
        return done.stdout


def _sshd_below(process: psutil.Process) -> list[psutil.Process]:
    try:
        return [child for child in process.children(recursive=True) if child.name().startswith("sshd")]
    except psutil.NoSuchProcess:
        return []


class Studio:
    """A project, its instance, and what Dagster's daemon does for them."""

    def __init__(self, root: Path, devices: list[dict[str, Any]], **config: Any) -> None:
        self.root = root
        self.project = root / "project"
        self.state = root / "state"
        self.project.mkdir(parents=True)
        (self.project / "jobs.py").write_text(JOBS)
        self.edge = self.project / "edge.yaml"
        self.declare(devices)
        (root / "home").mkdir()
        launcher = {
            "devices_file": str(self.edge),
            "project": str(self.project),
            "state_dir": str(self.state),
            "retry_seconds": 0.5,
            "wait_seconds": 1.0,
            "relay": False,
            **config,
        }
        (root / "home" / "dagster.yaml").write_text(
            yaml.safe_dump(
                {
                    "telemetry": {"enabled": False},
                    "run_monitoring": {"enabled": True, "start_timeout_seconds": 6},
                    "run_launcher": {
                        "module": "notebooked_dagster.edge.launcher",
                        "class": "PiRunLauncher",
                        "config": launcher,
                    },
                }
            )
        )
        self.instance = dg.DagsterInstance.from_config(str(root / "home"))

    def declare(self, devices: list[dict[str, Any]]) -> None:
        self.edge.write_text(yaml.safe_dump({"devices": devices}))

    @property
    def launcher(self) -> PiRunLauncher:
        launcher = self.instance.run_launcher
        assert isinstance(launcher, PiRunLauncher)
        return launcher

    def link(self, config: Mapping[str, Any]) -> Link:
        device: Device = fleet_of([config], self.project).devices[0]
        return Link(device, self.state)

    def create(self, job: str, tags: Mapping[str, str], config: Mapping[str, Any] | None = None) -> str:
        """A run as the UI makes one, up to the launch."""
        path = str(self.project / "jobs.py")
        pointer = FileCodePointer(path, "defs", str(self.project))
        run = self.instance.create_run_for_job(
            job_def=self.definition(job),
            run_config=config or {},
            tags=tags,
            job_code_origin=JobPythonOrigin(job, RepositoryPythonOrigin(sys.executable, pointer)),
        )
        return run.run_id

    def definition(self, job: str) -> dg.JobDefinition:
        return _loaded(str(self.project / "jobs.py")).get_job_def(job)

    def launch(self, job: str = "quick", config: Mapping[str, Any] | None = None, **tags: str) -> str:
        named = {f"notebooked/{name.replace('_', '-')}": value for name, value in tags.items()}
        run_id = self.create(job, named or {"notebooked/device": "pi"}, config)
        self.instance.launch_run(run_id, workspace=None)  # type: ignore[arg-type]
        return run_id

    def start(self, *run_ids: str) -> None:
        """What a relay does up to the start of runs, and no more."""
        relay = self.relay()
        until(
            lambda: bool(relay.step()) and all(self.run(found).tags.get(marks.STARTED) for found in run_ids),
            30,
            "the runs to be started",
            self,
        )

    def relay(self) -> DeviceRelay:
        """The relay of the first device, for a test that makes its steps."""
        launcher = self.launcher
        tending = Tending(self.instance, launcher)
        device = launcher.fleet().devices[0]
        return DeviceRelay(self.instance, device, self.state, tending.owner, tending, launcher.patience)

    def tend(self, seconds: float, *run_ids: str) -> None:
        """Relay in this process until the runs are home."""
        tending = Tending(self.instance, self.launcher)
        thread = threading.Thread(target=tending.run, args=(1e9,))
        thread.start()
        try:
            until(
                lambda: all(self.is_home(run_id) for run_id in run_ids),
                seconds,
                "the runs to come home",
                self,
            )
        finally:
            tending.stop.set()
            thread.join(90)

    def run(self, run_id: str) -> dg.DagsterRun:
        found = self.instance.get_run_by_id(run_id)
        assert found is not None
        return found

    def is_home(self, run_id: str) -> bool:
        return self.run(run_id).tags.get(marks.RELAY) == marks.CLOSED

    def status(self, run_id: str) -> dg.DagsterRunStatus:
        return self.run(run_id).status

    def messages(self, run_id: str) -> list[str]:
        return [entry.message for entry in self.instance.all_logs(run_id)]

    def entries(self, run_id: str) -> list[EventLogEntry]:
        return list(self.instance.all_logs(run_id))


def _loaded(path: str) -> dg.Definitions:
    namespace: dict[str, Any] = {"__name__": "edge_jobs", "__file__": path}
    exec(compile(Path(path).read_text(), path, "exec"), namespace)
    defs = namespace["defs"]
    assert isinstance(defs, dg.Definitions)
    return defs


def until(true: Callable[[], bool], seconds: float, what: str, studio: Studio | None = None) -> None:
    end = time.monotonic() + seconds
    while not true():
        if time.monotonic() > end:
            said = ""
            if studio is not None:
                runs = studio.instance.get_runs()
                said = "\n".join(
                    f"{run.run_id} {run.status} {run.tags}\n  "
                    + "\n  ".join(studio.messages(run.run_id)[-25:])
                    for run in runs
                )
            raise AssertionError(f"waited {seconds} s for {what}\n{said}")
        time.sleep(0.05)


def kill(pid: int) -> None:
    os.kill(pid, signal.SIGKILL)


#: Stands for the worker where a test is not about Dagster on the device: the events are real, made by the test beforehand,
#: and written by the real journal under the real keeper.
WORKER = """#!{python} -S
import json, os, pathlib, random, sys, time
sys.path[:0] = os.environ["PYTHONPATH"].split(os.pathsep)
from notebooked_edge.journal import Journal
folder = pathlib.Path(os.environ["NOTEBOOKED_EDGE_RUN"])
here = pathlib.Path({here!r})
script = json.loads((here / "script.json").read_text())
journal = Journal(folder)
(here / ("begun-" + folder.name)).write_text(str(os.getpid()))
(folder / "outputs" / "made.bin").write_bytes(random.Random(script["size"]).randbytes(script["size"]))
for event in script["events"]:
    if (folder / "cancel").exists():
        sys.exit(3)
    text = event.replace("RUN-ID", folder.name)
    if script["now"]:
        head, _, rest = text.partition('"timestamp": ')
        text = head + '"timestamp": ' + repr(time.time()) + rest[rest.index(","):]
    journal.append({{"kind": "event", "event": text}})
    time.sleep(script["pause"])
sys.exit(script["code"])
"""


class ScriptedWorker:
    """A device's interpreter that plays a run: so many log lines between a start and a success."""

    def __init__(self, here: Path, device: RealDevice | None = None) -> None:
        self.here = here
        #: What a run that is played leaves in its outputs; no link can make it smaller.
        self.made = b""
        self._device = device
        self._there: PurePosixPath = here if device is None else device.root / "worker"
        self.python = self._there / "python"
        here.mkdir(parents=True, exist_ok=True)
        interpreter = sys.executable if device is None else device.python
        (here / "python").write_text(WORKER.format(python=interpreter, here=str(self._there)))
        (here / "python").chmod(0o755)
        self.play(20)

    def play(
        self,
        lines: int,
        *,
        pause: float = 0.0,
        end: bool = True,
        code: int = 0,
        now: bool = True,
        size: int = 40,
        width: int = 0,
    ) -> None:
        from dagster import DagsterEvent, DagsterEventType
        from dagster._serdes import serialize_value

        def entry(text: str, kind: DagsterEventType | None = None) -> str:
            event = DagsterEvent(kind.value, "quick", message=text) if kind is not None else None
            found = EventLogEntry(None, 10, text, "RUN-ID", time.time(), None, "quick", event)
            return serialize_value(found)

        events = [entry("start", DagsterEventType.PIPELINE_START)]
        events += [entry(f"line {number}".ljust(width)) for number in range(lines)]
        if end:
            events += [entry("end", DagsterEventType.PIPELINE_SUCCESS), entry("after the end")]
        text = {"events": events, "pause": pause, "code": code, "now": now, "size": size}
        (self.here / "script.json").write_text(json.dumps(text))
        self.made = random.Random(size).randbytes(size)
        if self._device is not None:
            self._device.put(self.here, self._there)

    def pid(self, run_id: str) -> int:
        path = self.here / f"begun-{run_id}"
        until(lambda: path.exists() and bool(path.read_text()), 20, "the worker to begin")
        return int(path.read_text())


class BadLink:
    """A Wi-Fi: what passes comes late, and every so often the connection is gone. Counts what passed."""

    def __init__(self, port: int, *, latency: float = 0.0, cut_after: int | None = None) -> None:
        self.target = port
        self.latency = latency
        # Bytes that a connection lives for, and not seconds: how far those get depends on the machine.
        self.cut_after = cut_after
        self.cuts = 0
        self.up = 0
        self.down = 0
        self.port = 0
        self._loop = asyncio.new_event_loop()
        self._ready = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)

    def __enter__(self) -> BadLink:
        self._thread.start()
        assert self._ready.wait(10)
        return self

    def __exit__(self, *_: object) -> None:
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(10)

    def _run(self) -> None:
        asyncio.set_event_loop(self._loop)
        server = self._loop.run_until_complete(asyncio.start_server(self._carry, "127.0.0.1", 0))
        self.port = server.sockets[0].getsockname()[1]
        self._ready.set()
        self._loop.run_forever()
        server.close()
        for task in asyncio.all_tasks(self._loop):
            task.cancel()
        self._loop.run_until_complete(asyncio.sleep(0.05))
        self._loop.close()

    async def _carry(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            inner, outer = await asyncio.open_connection("127.0.0.1", self.target)
        except OSError:
            writer.transport.abort()
            return
        until = self.up + self.down + self.cut_after if self.cut_after is not None else None
        await asyncio.gather(self._pump(reader, outer, "up", until), self._pump(inner, writer, "down", until))

    async def _pump(
        self, source: asyncio.StreamReader, target: asyncio.StreamWriter, way: str, until: int | None
    ) -> None:
        try:
            while data := await source.read(65536):
                setattr(self, way, getattr(self, way) + len(data))
                if until is not None and self.up + self.down > until:
                    self.cuts += 1
                    return
                if self.latency:
                    await asyncio.sleep(self.latency)
                target.write(data)
                await target.drain()
        except OSError:
            pass
        finally:
            target.transport.abort()
