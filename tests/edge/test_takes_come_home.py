"""Takes come from a device's spool exactly once: over a real SSH server, and with everything that can be cut off cut off."""

from __future__ import annotations

import contextlib
import json
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import dagster as dg
import mido
import pytest
import yaml

from notebooked_dagster.components.takes import takes_definitions
from notebooked_dagster.edge import spool as device_side
from notebooked_dagster.edge import takes as module
from notebooked_dagster.edge.devices import Device
from notebooked_dagster.edge.ssh import Answer, Link
from notebooked_dagster.edge.takes import Fetched, fetch
from notebooked_dagster.errors import DeviceError, DeviceUnreachableError
from notebooked_dagster.realtime.takes import RECORDING, finish, finished, line, read_take
from tests.edge.edge_kit import LoopbackDevice

NAMES = ["2026-11-21T12-00-00.000-pi", "2026-11-21T12-00-01.000-pi"]


def record(spool: Path, name: str, notes: int = 20) -> Path:
    """A finished take."""
    (spool / RECORDING).mkdir(parents=True, exist_ok=True)
    log = spool / RECORDING / f"{name}.log"
    header = {"take": name, "device": "pi", "at": 0, "bpm": 120, "ports": ["keys"]}
    played = [mido.Message("note_on", note=number % 128) for number in range(notes)]
    log.write_bytes(
        line("take", header)
        + b"".join(line("midi", number, "keys", message.hex("")) for number, message in enumerate(played))
        + line("end", 10**9)
    )
    return finish(spool, log).folder


class Direct(Link):
    """The agent's commands without a network; a test may do something before and after each."""

    def __init__(self, state: Path) -> None:
        super().__init__(Device(name="pi", host="nowhere"), state)
        self.before: Callable[[int], object] = lambda number: None
        self.after: Callable[[int], object] = lambda number: None
        self.asked = 0

    def ask(self, command: str, request: Mapping[str, Any] | None = None, *, timeout: float = 60) -> Answer:
        self.asked += 1
        number = self.asked
        self.before(number)
        try:
            header, body = device_side.COMMANDS[command](json.loads(json.dumps(request)))
        except OSError as error:
            raise DeviceError(f"{error.strerror}: {error.filename}") from error
        self.after(number)
        return Answer(json.loads(json.dumps(header)), body)


def contents(spool: Path) -> dict[str, bytes]:
    return {
        path.relative_to(spool).as_posix(): path.read_bytes()
        for folder in finished(spool)
        for path in sorted(folder.iterdir())
    }


@pytest.fixture
def recorded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[], tuple[Path, dict[str, bytes]]]:
    """A spool with two takes, anew at each call."""
    monkeypatch.setattr(module, "_PIECE", 400)
    monkeypatch.setattr(module.os, "fsync", lambda handle: None)
    original = tmp_path / "original"
    for name in NAMES:
        record(original, name)
    count = iter(range(1000))

    def made() -> tuple[Path, dict[str, bytes]]:
        source = tmp_path / f"device-{next(count)}"
        shutil.copytree(original, source)
        return source, contents(source)

    return made


class Killed(BaseException):
    """The process ends where it is."""


@pytest.mark.parametrize("moment", ["before", "after"])
@pytest.mark.parametrize("end", [DeviceUnreachableError("gone"), Killed()])
def test_cut_off_anywhere_each_take_comes_once(
    tmp_path: Path, recorded: Callable[[], tuple[Path, dict[str, bytes]]], moment: str, end: BaseException
) -> None:
    number = 0
    while True:
        number += 1
        source, expected = recorded()
        host = tmp_path / f"host-{number}"
        link = Direct(tmp_path)

        def cut(at: int, where: int = number) -> None:
            if at == where:
                raise end

        setattr(link, moment, cut)
        brought: list[Path] = []
        with contextlib.suppress(Killed):
            brought += fetch(link, str(source), host).takes
        if link.asked < number:
            break
        brought += fetch(link, str(source), host).takes
        assert contents(host) == expected
        assert fetch(link, str(source), host) == Fetched()
        assert contents(source) == {}
        if isinstance(end, DeviceUnreachableError):
            assert sorted(path.name for path in brought) == NAMES
    assert number > 10


def test_of_two_hosts_one_has_each_take(
    tmp_path: Path, recorded: Callable[[], tuple[Path, dict[str, bytes]]]
) -> None:
    number = 0
    while True:
        number += 1
        source, expected = recorded()
        ours, theirs = tmp_path / f"ours-{number}", tmp_path / f"theirs-{number}"
        link = Direct(tmp_path)

        def other(at: int, where: int = number, source: Path = source, theirs: Path = theirs) -> None:
            if at == where:
                fetch(Direct(tmp_path), str(source), theirs)

        link.before = other
        fetch(link, str(source), ours)
        if link.asked < number:
            break
        fetch(link, str(source), ours)
        mine, its = contents(ours), contents(theirs)
        assert mine.keys().isdisjoint(its)
        assert mine | its == expected
        assert not list((ours / module.INCOMING / "pi").iterdir())


def test_what_comes_damaged_comes_again(
    tmp_path: Path, recorded: Callable[[], tuple[Path, dict[str, bytes]]]
) -> None:
    source, expected = recorded()
    part = tmp_path / "host" / module.INCOMING / "pi" / NAMES[0]
    part.mkdir(parents=True)
    (part / "take.mid").write_bytes(b"rubbish")
    link = Direct(tmp_path)
    first = fetch(link, str(source), tmp_path / "host")
    assert [path.name for path in first.takes] == NAMES[1:]
    assert (first.left, "damaged" in first.problems[0]) == (1, True)
    assert [path.name for path in fetch(link, str(source), tmp_path / "host").takes] == NAMES[:1]
    assert contents(tmp_path / "host") == expected


def test_a_visit_is_bounded_and_goes_on_where_it_was(
    tmp_path: Path, recorded: Callable[[], tuple[Path, dict[str, bytes]]]
) -> None:
    source, expected = recorded()
    link = Direct(tmp_path)
    visits = 0
    while (found := fetch(link, str(source), tmp_path / "host", seconds=0.002)).left or not visits:
        visits += 1
        assert visits < 1000
    assert found.problems == ()
    assert contents(tmp_path / "host") == expected


def test_a_device_cannot_write_elsewhere(tmp_path: Path) -> None:
    class Hostile(Direct):
        def ask(
            self, command: str, request: Mapping[str, Any] | None = None, *, timeout: float = 60
        ) -> Answer:
            assert command == "takes"
            return Answer(
                {"takes": {"../../x": {"take.json": 1}, "y": {"../z": 1}, ".receiver": {"a": 1}}}, b""
            )

    found = fetch(Hostile(tmp_path), "/spool", tmp_path / "host")
    assert (found.takes, len(found.problems)) == ((), 3)
    assert [path.name for path in (tmp_path / "host").rglob("*") if path.is_file()] == [".receiver"]


def test_the_device_keeps_some_of_what_was_fetched(
    tmp_path: Path, recorded: Callable[[], tuple[Path, dict[str, bytes]]], monkeypatch: pytest.MonkeyPatch
) -> None:
    source, _ = recorded()
    monkeypatch.setattr(device_side, "_KEPT", 1)
    fetch(Direct(tmp_path), str(source), tmp_path / "host")
    kept = sorted(path.name for path in (source / ".fetched").iterdir())
    assert kept == [NAMES[1], f"{NAMES[1]}.json"]


def test_over_ssh_new_takes_become_partitions_and_a_silent_device_is_only_told(
    tmp_path: Path, pi: LoopbackDevice
) -> None:
    source = tmp_path / "device spool"
    folder = record(source, NAMES[0], notes=500)
    expected = contents(source)
    (tmp_path / "edge.yaml").write_text(yaml.safe_dump({"devices": [pi.config()]}))
    definitions = takes_definitions(
        tmp_path / "host", tmp_path / "state", device="pi", device_spool=str(source), root=tmp_path
    )
    (sensor,) = definitions.sensors or ()
    assert isinstance(sensor, dg.SensorDefinition)
    with dg.DagsterInstance.ephemeral() as instance:

        def tick() -> dg.SensorResult:
            found = sensor(dg.build_sensor_context(instance=instance, definitions=definitions))
            assert isinstance(found, dg.SensorResult)
            for request in found.dynamic_partitions_requests or ():
                instance.add_dynamic_partitions(request.partitions_def_name, request.partition_keys)
            return found

        (request,) = tick().run_requests or ()
        assert request.partition_key is not None
        assert request.partition_key.startswith(NAMES[0])
        assert contents(tmp_path / "host") == expected
        assert not folder.exists()
        record(source, NAMES[1])
        pi.cut()
        said = tick()
        assert [again.run_key for again in said.run_requests or ()] == [request.run_key]
    assert [read_take(folder).sidecar["messages"] for folder in finished(tmp_path / "host")] == [500]
