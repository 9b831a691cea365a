"""A run on a device against what it can be at best: ``ssh host true``, Dagster's own launcher, the database alone; and what
runs and the idle real-time daemon take of a 1 GB Pi's memory.

::

    python benchmarks/bench_edge.py [--rounds 5] [--events 2000]

The device is an OpenSSH server on loopback, so that the figures are what our part costs, without any radio. Launches
alternate, so that whatever else the machine does hits all of them; the figure is the median. Memory is the proportional set size
(PSS) of all processes of a run or of the daemon: what would be free without them, with shared pages shared out. Needs sshd.
"""

from __future__ import annotations

import argparse
import getpass
import logging
import os
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import psutil
from dagster._core.events.log import EventLogEntry
from dagster._core.launcher import DefaultRunLauncher, LaunchRunContext
from dagster._core.workspace.context import WorkspaceProcessContext
from dagster._core.workspace.load_target import PythonFileTarget
from dagster._serdes import serialize_value

sys.path.insert(0, str(Path(__file__).parents[1]))
from notebooked_dagster.edge import marks
from notebooked_dagster.edge.journal import Journal
from notebooked_dagster.edge.relay import DeviceRelay
from tests.edge.edge_kit import SSHD, BadLink, LoopbackDevice, ScriptedWorker, Studio, until


def measured(work: Callable[[], object]) -> float:
    began = time.perf_counter()
    work()
    return time.perf_counter() - began


def launches(root: Path, rounds: int) -> None:
    device = LoopbackDevice(root / "pi")
    device.start()
    studio = Studio(root / "host", [device.config(capacity=64)])
    link = studio.link(device.config())
    plain = [
        "ssh", "-F", "none", "-o", "HostKeyAlias=pi", "-p", str(device.port), "-i", str(device.root / "login"), "-o", "BatchMode=yes",
        "-o", f"UserKnownHostsFile={studio.state}/known_hosts/pi", f"{getpass.getuser()}@127.0.0.1", "true",
    ]  # fmt: skip
    found: dict[str, list[float]] = {}

    def note(name: str, seconds: float) -> None:
        found.setdefault(name, []).append(seconds)

    link.ask("hello")
    studio.tend(120, studio.launch("quick"))
    target = PythonFileTarget(str(studio.project / "jobs.py"), "defs", str(studio.project), "jobs")
    default = DefaultRunLauncher()
    default.register_instance(studio.instance)
    try:
        with WorkspaceProcessContext(studio.instance, target) as process:
            workspace = process.create_request_context()
            job = workspace.code_locations[0].get_repository("__repository__").get_full_job("quick")
            for _ in range(rounds):
                note(
                    "ssh host true, a new connection",
                    measured(lambda: subprocess.run(plain, check=True, capture_output=True)),
                )
                note("ssh host true, the shared connection", measured(lambda: link.run("true")))
                ours = studio.create("quick", {"notebooked/device": "pi"})
                note(
                    "notebooked: launched (the relay starts it)",
                    measured(lambda run_id=ours: studio.instance.launch_run(run_id, workspace=None)),  # type: ignore[misc,arg-type]
                )
                studio.tend(120, ours)
                theirs = studio.instance.create_run_for_job(
                    studio.definition("quick"),
                    remote_job_origin=job.get_remote_origin(),
                    job_code_origin=job.get_python_origin(),
                )
                context = LaunchRunContext(theirs, workspace)
                note("dagster: launched (default launcher)", measured(lambda: default.launch_run(context)))  # noqa: B023
                until(lambda run=theirs: studio.run(run.run_id).is_finished, 120, "Dagster's own run")  # type: ignore[misc]
                for name, run_id in (("notebooked", ours), ("dagster", theirs.run_id)):
                    stats = studio.instance.get_run_stats(run_id)
                    record = studio.instance.get_run_record_by_id(run_id)
                    assert record is not None
                    assert stats.start_time is not None
                    note(
                        f"{name}: from asked for to RUN_START",
                        stats.start_time - record.create_timestamp.timestamp(),
                    )
    finally:
        device.cut()
    print(f"{'launch latency':52} {'median':>9} {'least':>9}")
    for name, seconds in sorted(found.items(), key=lambda item: statistics.median(item[1])):
        print(f"{name:52} {statistics.median(seconds) * 1000:7.0f} ms {min(seconds) * 1000:7.0f} ms")


def relaying(root: Path, events: int) -> None:
    """A journal that lies ready, brought home; beside it, the same events put into the same database directly."""
    device, worker = LoopbackDevice(root / "pi"), ScriptedWorker(root / "worker")
    device.start()
    with BadLink(device.port) as link:
        config = device.config(python=str(worker.python), port=link.port)
        studio = Studio(root / "host", [config])
        run_id = studio.create("quick", {"notebooked/device": "pi"})
        worker.play(0)
        studio.instance.launch_run(run_id, workspace=None)  # type: ignore[arg-type]
        studio.tend(60, run_id)
        entries = [
            EventLogEntry(
                None, 20, f"line {number} of what a step says of itself", run_id, time.time(), "talk", "quick"
            )
            for number in range(events)
        ]
        journal = Journal(device.run_folder(run_id))
        for entry in entries:
            journal.append({"kind": "event", "event": serialize_value(entry)})
        journal.append({"kind": "exit", "code": 0, "why": "exit", "message": ""})
        size = journal.path.stat().st_size
        studio.instance.add_run_tags(run_id, {marks.RELAY: marks.OPEN})
        relay = DeviceRelay(
            studio.instance, studio.launcher.fleet().devices[0], studio.state, marks.host_id(studio.state), studio.launcher, studio.launcher.patience
        )  # fmt: skip
        other = studio.instance.create_run_for_job(studio.definition("quick")).run_id

        def directly(part: list[EventLogEntry]) -> float:
            began = time.perf_counter()
            for entry in part:
                studio.instance.handle_new_event(entry._replace(run_id=other))
            return time.perf_counter() - began

        # Half of it before, half of it after: the machine has other things to do as well.
        direct = directly(entries[: events // 2])
        before = link.down + link.up
        began = time.perf_counter()
        while not studio.is_home(run_id):
            relay.step()
        ours = time.perf_counter() - began
        wire = link.down + link.up - before
        direct += directly(entries[events // 2 :])
        relay.link.close()
    device.cut()
    print(f"\n{'relay, ' + str(events) + ' events, SQLite':52} {'events/s':>9}")
    print(f"{'notebooked: device to central instance':52} {events / ours:9.0f}")
    print(f"{'dagster: the same events into the database alone':52} {events / direct:9.0f}")
    print(f"{'ratio':52} {direct / ours:9.2f}")
    print(f"{'journal':52} {size / events:9.0f} bytes an event")
    print(f"{'on the wire':52} {wire / events:9.0f} bytes an event")


DAEMON = """
name: bench
ports: [{name: keys, kind: loopback}]
clock: {to: keys}
record: {ports: keys}
web: {port: 0}
"""


def pss(process: psutil.Process) -> tuple[float, int]:
    """MB of a process and all below it, and how many they are."""
    found = []
    for one in (process, *process.children(recursive=True)):
        try:
            found.append(one.memory_full_info().pss / 1e6)
        except psutil.NoSuchProcess:
            continue
    return sum(found), len(found)


def most(process: psutil.Process, until_ended: Callable[[], bool]) -> tuple[float, int]:
    """The most that it ever had."""
    found = (0.0, 0)
    while not until_ended():
        try:
            found = max(found, pss(process))
        except psutil.NoSuchProcess:
            break
        time.sleep(0.02)
    return found


def idle_daemon(root: Path) -> tuple[float, int]:
    """The real-time daemon with clock, recorder and page, when it has nothing to do."""
    root.mkdir()
    (root / "device.yaml").write_text(DAEMON)
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as notes:
        notes.bind(str(root / "notify"))
        notes.settimeout(120)
        command = [
            str(Path(sys.executable).with_name("notebooked")),
            "edge",
            "daemon",
            "--config",
            "device.yaml",
        ]
        process = subprocess.Popen(
            command, cwd=root, env={**os.environ, "NOTIFY_SOCKET": str(root / "notify")}
        )
        try:
            while not notes.recv(4096).startswith(b"READY=1"):
                pass
            time.sleep(2)
            return pss(psutil.Process(process.pid))
        finally:
            process.terminate()
            process.wait()


def memory(root: Path) -> None:
    device = LoopbackDevice(root / "pi")
    device.start()
    os.environ["EDGE_TEST_HERE"] = str(root)
    studio = Studio(root / "host", [device.config()])
    rows = [("the idle real-time daemon", *idle_daemon(root / "daemon"))]
    jobs = studio.project / "jobs.py"
    try:
        for executor in ("in_process", "multiprocess"):
            jobs.write_text(jobs.read_text().replace("executor=dg.in_process", f"executor=dg.{executor}"))
            config = {"ops": {"drip": {"config": {"lines": 20, "pause": 0.1, "name": executor}}}}
            run_id = studio.launch("slow", config)
            studio.start(run_id)
            process = keeper(device, run_id)
            rows.append((f"a run, executor {executor}", *most(process, lambda: not process.is_running())))  # noqa: B023
            studio.tend(120, run_id)
    finally:
        device.cut()
    print(f"\n{'memory on the device':52} {'PSS':>9}")
    for name, size, processes in rows:
        print(f"{name:52} {size:6.0f} MB in {processes} processes")


def keeper(device: LoopbackDevice, run_id: str) -> psutil.Process:
    """The process that a run's others are below."""
    found: list[psutil.Process] = []

    def there() -> bool:
        for one in psutil.process_iter(["cmdline"]):
            if (one.info["cmdline"] or [])[-2:] == ["keep", str(device.run_folder(run_id))]:
                found.append(one)
                return True
        return False

    until(there, 60, "the run's keeper")
    return found[0]


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--events", type=int, default=2000)
    arguments = parser.parse_args()
    if SSHD is None:
        sys.exit("There is no sshd here (Debian: apt install openssh-server).")
    logging.disable(logging.CRITICAL)
    with tempfile.TemporaryDirectory() as name:
        relaying(Path(name) / "relay", arguments.events)
        launches(Path(name) / "launch", arguments.rounds)
        memory(Path(name) / "memory")


if __name__ == "__main__":
    main()
