"""The daemon as a process, as systemd would start it, spoken to over its ports."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import mido
import mido.sockets
import pytest

from notebooked_dagster.errors import ConfigError
from notebooked_dagster.realtime.device import load_device
from notebooked_dagster.realtime.notify import notify, watchdog_interval
from notebooked_dagster.realtime.takes import finished, read_take

NOTE = mido.Message("note_on", note=60, velocity=64)
NOTEBOOKED = str(Path(sys.executable).with_name("notebooked"))
CONFIG = """
name: studio
gpio: mock
ports:
  - {{name: keys, kind: tcp, listen: {tcp}}}
  - {{name: "<b>synth</b>", kind: tcp, listen: {synth}}}
  - {{name: daw, kind: rtp, listen: {rtp}}}
clock: {{bpm: 96, to: daw, mtc: 25}}
record: {{ports: keys}}
sensors: [{{name: door, pin: 17}}]
daw: {{mmc: keys, mackie: keys, osc: {osc}, exchange: exchange}}
web: {{port: {web}}}
rules:
  - name: thru
    when: {{port: keys, type: [note_on, note_off]}}
    then: [{{forward: {{to: "<b>synth</b>", transpose: 12}}}}]
  - name: pedal
    when: {{type: control_change, control: 64}}
    then: [{{record: toggle}}, {{pin: {{number: 4, value: event}}}}]
"""


def free_ports(count: int) -> list[int]:
    boxes = [socket.socket() for _ in range(count)]
    for box in boxes:
        box.bind(("127.0.0.1", 0))
    numbers = [int(box.getsockname()[1]) for box in boxes]
    for box in boxes:
        box.close()
    return numbers


class Running:
    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.tcp, self.synth, self.osc, self.web, self.rtp = free_ports(5)
        (folder / "device.yaml").write_text(
            CONFIG.format(tcp=self.tcp, synth=self.synth, osc=self.osc, web=self.web, rtp=self.rtp)
        )
        self.notes = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self.notes.bind(str(folder / "notify"))
        self.notes.settimeout(30)
        self.start()

    def start(self) -> None:
        self.process = subprocess.Popen(
            [NOTEBOOKED, "edge", "daemon", "--config", str(self.folder / "device.yaml")],
            env={**os.environ, "NOTIFY_SOCKET": str(self.folder / "notify"), "WATCHDOG_USEC": "1000000", "NOTEBOOKED_LOG_FORMAT": "json"},
            cwd=self.folder, stderr=(self.folder / "log").open("ab"),
        )  # fmt: skip
        while not self.notes.recv(4096).startswith(b"READY=1"):
            pass

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.web}"

    def state(self) -> dict[str, Any]:
        found: dict[str, Any] = httpx.get(f"{self.url}/state", timeout=30).json()
        return found

    def wait(self, check: Callable[[dict[str, Any]], Any]) -> dict[str, Any]:
        deadline = time.monotonic() + 60
        while not check(state := self.state()):
            assert time.monotonic() < deadline, state
            time.sleep(0.05)
        return state


@pytest.fixture(scope="module")
def daemon(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    running = Running(tmp_path_factory.mktemp("edge"))
    yield running
    running.process.kill()
    running.process.wait()
    running.notes.close()


def test_it_forwards_records_counts_and_tells(daemon: Running) -> None:
    keys = mido.sockets.connect("127.0.0.1", daemon.tcp)
    synth = mido.sockets.connect("127.0.0.1", daemon.synth)
    daemon.wait(lambda state: sum(port["connected"] for port in state["ports"]) == 2)
    keys.send(mido.Message("control_change", control=64, value=127))
    daemon.wait(lambda state: state["recorder"]["take"])
    for number in (60, 64, 67):
        keys.send(NOTE.copy(note=number))
        assert synth.receive() == NOTE.copy(note=number + 12)
        keys.send(mido.Message("note_off", note=number))
        assert synth.receive().type == "note_off"
    state = daemon.wait(lambda state: state["recorder"]["recorded"] >= 6)
    assert state["device"] == "studio"
    assert state["pins"] == {"4": 1}
    assert state["sensors"] == {"door": 0.0}
    keys.send(mido.Message("control_change", control=64, value=0))
    # A take is listed when it lies in the exchange folder.
    state = daemon.wait(lambda state: state["recorder"]["takes"])
    counters = state["counters"]
    assert counters["received"] == [["keys", 8]]
    assert counters["dropped"] == []
    assert ["pedal", "record", 2] in counters["actions"]
    assert counters["handled"] == [["keys", 8]]
    (folder,) = finished(daemon.folder / "takes")
    take = read_take(folder)
    assert take.sidecar["messages"] in (6, 7)
    assert take.sidecar["facts"]["clock"]["bpm"] == 96
    assert (daemon.folder / "exchange" / "out" / f"{take.name}.mid").read_bytes() == take.midi.read_bytes()
    # Machine control and the surface share the port.
    keys.send(mido.Message("sysex", data=(0x7F, 0x7F, 6, 2)))
    daemon.wait(lambda state: state["clock"]["running"])
    keys.send(mido.Message("sysex", data=(0x7F, 0x7F, 6, 1)))
    daemon.wait(lambda state: not state["clock"]["running"])
    keys.send(mido.Message("sysex", data=(0, 0, 0x66, 0x14, 0)))
    assert keys.receive().data[4] == 1
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as box:
        box.sendto(b"/fader\0\0,f\0\0\x3f\x00\x00\x00", ("127.0.0.1", daemon.osc))
    daemon.wait(lambda state: ["/fader", 1] in state["counters"]["received"])


def test_its_figures_are_prometheus_s(daemon: Running) -> None:
    from prometheus_client.parser import text_string_to_metric_families

    families = {
        family.name: family
        for family in text_string_to_metric_families(httpx.get(f"{daemon.url}/metrics").text)
    }
    assert families["notebooked_edge_bpm"].samples[0].value == 96
    assert {sample.labels["port"] for sample in families["notebooked_edge_port_connected"].samples} >= {
        "keys",
        "daw",
    }
    assert "notebooked_edge_clock_late_seconds" in families
    assert httpx.get(f"{daemon.url}/healthz").text == "ok\n"


def test_a_page_in_the_web_does_not_reach_it_by_a_name_of_its_own(daemon: Running) -> None:
    assert httpx.get(f"{daemon.url}/state", headers={"Host": "evil.example"}).status_code == 400
    assert "default-src 'none'" in httpx.get(daemon.url).headers["Content-Security-Policy"]


def test_systemd_hears_that_it_lives_and_that_it_stops_and_kill_9_leaves_a_take(daemon: Running) -> None:
    assert daemon.notes.recv(4096) == b"WATCHDOG=1"
    keys = mido.sockets.connect("127.0.0.1", daemon.tcp)
    keys.send(mido.Message("control_change", control=64, value=127))
    daemon.wait(lambda state: state["recorder"]["take"])
    for number in range(50):
        keys.send(NOTE.copy(note=number))
    daemon.wait(lambda state: state["counters"]["waiting"] == 0)
    time.sleep(1.1)
    daemon.process.send_signal(signal.SIGKILL)
    daemon.process.wait()
    before = len(list(finished(daemon.folder / "takes")))
    daemon.start()
    folders = list(finished(daemon.folder / "takes"))
    assert len(folders) == before + 1
    take = read_take(folders[-1])
    assert take.sidecar["complete"] is False
    # The pedal itself may come before the take starts or after.
    assert take.sidecar["messages"] in (50, 51)
    daemon.process.send_signal(signal.SIGTERM)
    assert daemon.process.wait(15) == 0
    lines = [json.loads(line) for line in (daemon.folder / "log").read_text().splitlines()]
    assert "studio is ready" in [line["message"] for line in lines]
    assert [line for line in lines if line["level"] == "error"] == []
    daemon.start()


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ("ports: [{name: a, kind: tcp}]", "either `listen` or `connect`"),
        ("ports: [{name: a, listen: 5004}]", "has neither"),
        ("ports: [{name: a, kind: tcp, listen: here}]", "no address"),
        ("ports: [{name: a, kind: rtp, listen: 65535}]", "there is none behind 65535"),
        ("ports: [{name: a}, {name: a}]", "two ports or sensors are called 'a'"),
        ("sensors: [{name: d, pin: 3}]", "write `gpio: lgpio`"),
        ("clock: {to: synth}", "clock.to names 'synth'"),
        ("clock: {bpm: 9000}", "less than or equal to 400"),
        ("rules: [{name: r, when: {}, then: [{run: {job: j}}]}]", "needs a section `dagster`"),
        ("rules: [{name: r, when: {}, then: [{forward: {to: x}}]}]", "the rule 'r' names 'x'"),
        ("rules: [{name: r, when: {}, then: [{pin: {number: 3}}]}]", "sets a pin"),
        ("mqtt: {host: h, password: secret1234}", "secret stands here in plain text"),
    ],
)
def test_a_wrong_configuration_says_what_and_where(tmp_path: Path, change: str, told: str) -> None:
    path = tmp_path / "device.yaml"
    path.write_text(f"name: pi\n{change}\n")
    with pytest.raises(ConfigError) as caught:
        load_device(path)
    assert told.lower() in str(caught.value).lower()
    assert caught.value.line is not None


def test_the_command_checks_without_starting(tmp_path: Path) -> None:
    (tmp_path / "device.yaml").write_text("name: pi\nports: [{name: a, kind: loopback}]\n")
    done = subprocess.run(
        [NOTEBOOKED, "edge", "daemon", "--check", "--config", str(tmp_path / "device.yaml")],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert (done.returncode, done.stderr) == (0, "")
    assert "1 ports, 0 rules" in done.stdout


def test_a_listener_that_does_not_read_holds_up_nobody(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as box:
        box.bind(str(tmp_path / "notify"))
        monkeypatch.setenv("NOTIFY_SOCKET", str(tmp_path / "notify"))
        assert notify("READY=1")
        while notify("WATCHDOG=1"):
            pass
        assert box.recv(100) == b"READY=1"


def test_nobody_is_told_where_nobody_listens(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("NOTIFY_SOCKET", raising=False)
    assert notify("READY=1") is False
    monkeypatch.setenv("NOTIFY_SOCKET", "@nobody-here")
    assert notify("READY=1") is False
    monkeypatch.setenv("WATCHDOG_USEC", "30000000")
    assert watchdog_interval() == 15
    monkeypatch.setenv("WATCHDOG_PID", "1")
    assert watchdog_interval() is None
