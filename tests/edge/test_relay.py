"""A relay's rounds against a device that a test plays: what is asked, stored and told when something goes wrong."""

from __future__ import annotations

import hashlib
import os
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import dagster as dg
import pytest
from dagster import DagsterEvent, DagsterEventType

from notebooked_dagster.edge import holding, marks
from notebooked_dagster.edge import relay as module
from notebooked_dagster.edge.devices import Device
from notebooked_dagster.edge.homecoming import Homecoming
from notebooked_dagster.edge.journal import encode
from notebooked_dagster.edge.luggage import Luggage
from notebooked_dagster.edge.relay import DeviceRelay, Patience, silent_since
from notebooked_dagster.edge.ssh import Answer, LinkCutError
from notebooked_dagster.errors import DeviceError, DeviceUnreachableError
from tests.edge.edge_kit import until
from tests.edge.test_homecoming import always, journal, messages, nothing

UNREACHABLE = DeviceUnreachableError("pi cannot be reached")


class Pi:
    """The other end of the link."""

    def __init__(self) -> None:
        self.journals: dict[str, bytes] = {}
        self.states: dict[str, dict[str, Any]] = {}
        self.files: dict[str, bytes] = {}
        self.asked: list[tuple[str, Any]] = []
        self.problem: Exception | None = None

    def ask(self, command: str, request: dict[str, Any], *, timeout: float = 60) -> Answer:
        self.asked.append((command, request))
        problem, self.problem = self.problem, None
        if problem is not None:
            raise problem
        answer = getattr(self, command, None)
        return answer(request) if answer is not None else Answer({}, b"")

    def read(self, request: dict[str, Any]) -> Answer:
        found, body = {}, b""
        for run_id, offset in request["runs"].items():
            if run_id not in self.journals:
                found[run_id] = {"state": "absent", "size": 0}
                continue
            piece = self.journals[run_id][offset:]
            body += piece
            found[run_id] = {
                "state": "running", "size": len(self.journals[run_id]), "granted": True, "before": "us",
                "files": {}, "length": len(piece), **self.states.get(run_id, {}),
            }  # fmt: skip
        return Answer({"runs": found}, body)

    def commands(self, name: str) -> list[Any]:
        return [request for command, request in self.asked if command == name]


class Courier:
    """Gets runs there at once, unless a test says otherwise."""

    def __init__(self, pi: Pi) -> None:
        self.pi = pi
        self.delivered: list[str] = []
        self.refused = ""
        self.bring: Callable[..., None] = lambda run, device, link: None

    def deliver(self, run: dg.DagsterRun, device: Device, link: Any) -> bool:
        if self.refused:
            raise DeviceError("refused", details={"refused": self.refused})
        self.delivered.append(run.run_id)
        self.pi.journals[run.run_id] = b""
        return True


@pytest.fixture
def instance(tmp_path: Path) -> Iterator[dg.DagsterInstance]:
    settings = {"run_monitoring": {"enabled": True, "start_timeout_seconds": 90}}
    with dg.DagsterInstance.ephemeral(str(tmp_path), settings=settings) as found:
        yield found


@pytest.fixture
def pi(monkeypatch: pytest.MonkeyPatch) -> Pi:
    found = Pi()
    monkeypatch.setattr(module, "Link", lambda device, state, channel="": found)
    return found


@pytest.fixture
def courier(pi: Pi) -> Courier:
    return Courier(pi)


@pytest.fixture
def relay(instance: dg.DagsterInstance, tmp_path: Path, courier: Courier) -> DeviceRelay:
    return DeviceRelay(
        instance, Device(name="pi", host="a"), tmp_path / "state", "us", courier, Patience(deadline=100, retry=0.0)
    )  # fmt: skip


@pytest.fixture
def clocks(monkeypatch: pytest.MonkeyPatch) -> Callable[[float], None]:
    """Lets time pass for the relay, and not for who waits for it."""
    passed = [0.0]
    clock = SimpleNamespace(time=time.time, monotonic=lambda: time.monotonic() + passed[0])
    for user in (module, holding):
        monkeypatch.setattr(user, "time", clock)

    def go(seconds: float) -> None:
        passed[0] += seconds

    return go


def launched(instance: dg.DagsterInstance, **more: str) -> str:
    run = instance.create_run_for_job(nothing)
    tags = {
        marks.RELAY: marks.OPEN,
        marks.CHOSEN: "pi",
        marks.RUN: run.run_id,
        marks.LAUNCHED: str(time.time()),
    }
    instance.add_run_tags(run.run_id, {**tags, **more})
    instance.report_dagster_event(
        DagsterEvent(DagsterEventType.PIPELINE_STARTING.value, "nothing"), run.run_id
    )
    return run.run_id


def run(instance: dg.DagsterInstance, run_id: str) -> dg.DagsterRun:
    found = instance.get_run_by_id(run_id)
    assert found is not None
    return found


def test_an_event_is_stored_once_where_another_host_relayed_behind_a_lost_answer(
    instance: dg.DagsterInstance, relay: DeviceRelay, pi: Pi, tmp_path: Path
) -> None:
    run_id = launched(instance)
    whole = journal(run_id, "start", "one", "two")
    pi.journals[run_id] = journal(run_id)
    relay.step()
    pi.journals[run_id] = whole
    # The other host has the lease for a while; our take-over's answer is lost, and the next one says that it was ours.
    other = Homecoming(instance, run_id, tmp_path / "other")
    other.receive(whole)
    other.apply(always)
    pi.problem = UNREACHABLE
    relay.step()
    relay.step()
    assert [text for text in messages(instance, run_id) if text in ("start", "one", "two")] == [
        "start", "one", "two",
    ]  # fmt: skip


def test_code_is_on_its_way_while_the_others_are_seen_to(
    instance: dg.DagsterInstance,
    relay: DeviceRelay,
    pi: Pi,
    courier: Courier,
    clocks: Callable[[float], None],
) -> None:
    arrived, brought = threading.Event(), threading.Event()

    def bring(run: dg.DagsterRun, device: Device, link: Any) -> None:
        assert arrived.wait(30)
        courier.refused = ""
        brought.set()

    courier.bring, courier.refused = bring, "no-release"
    new, old = launched(instance), launched(instance)
    cancelled = launched(instance)
    pi.journals[old] = journal(old, "start")
    for _ in range(4):
        relay.step()
        clocks(40)
    assert "start" in messages(instance, old)
    said = [text for text in messages(instance, new) if "is on its way" in text]
    assert said, "run monitoring would give it up"
    instance.report_run_canceling(run(instance, cancelled))
    arrived.set()
    assert brought.wait(30)

    def gone() -> bool:
        clocks(2)
        relay.step()
        return courier.delivered == [new] and run(instance, cancelled).is_finished

    until(gone, 30, "the run to be started, and the other not to be")
    assert run(instance, cancelled).status is dg.DagsterRunStatus.CANCELED


def test_a_run_that_says_much_can_be_cancelled(
    instance: dg.DagsterInstance, relay: DeviceRelay, pi: Pi, monkeypatch: pytest.MonkeyPatch
) -> None:
    run_id = launched(instance)
    pi.journals[run_id] = journal(run_id, "start", "one")
    instance.report_run_canceling(run(instance, run_id))
    monkeypatch.setattr(module, "_before", lambda until: False)
    relay.step()
    relay.step()
    assert pi.commands("cancel") == [{"run": run_id}]
    # And the next question does not wait: there is something to store.
    assert [request["wait"] for request in pi.commands("read")] == [0, 0]


def test_every_run_is_the_first_one_in_turn(instance: dg.DagsterInstance, relay: DeviceRelay, pi: Pi) -> None:
    runs = [launched(instance) for _ in range(3)]
    pi.journals = {run_id: journal(run_id) for run_id in runs}
    for _ in range(3):
        relay.step()
    assert {next(iter(request["runs"])) for request in pi.commands("read")} == set(runs)


def test_a_run_that_rests_is_not_gone_through_again(
    instance: dg.DagsterInstance,
    relay: DeviceRelay,
    pi: Pi,
    monkeypatch: pytest.MonkeyPatch,
    clocks: Callable[[float], None],
) -> None:
    rests, other = launched(instance), launched(instance)
    pi.journals = {rests: journal(rests, "start"), other: journal(other, "start")}
    relay.step()
    counted: list[str] = []
    monkeypatch.setattr(type(instance), "all_logs", lambda self, run_id, **more: counted.append(run_id) or [])
    relay._tended[rests].rest(5)
    relay.step()
    clocks(6)
    relay.step()
    assert [rests in request["runs"] for request in pi.commands("read")] == [True, False, True]
    assert counted == []


def test_a_damaged_journal_is_fetched_anew_once_and_then_ends_its_run_alone(
    instance: dg.DagsterInstance, relay: DeviceRelay, pi: Pi
) -> None:
    damaged, whole = launched(instance), launched(instance)
    text = bytearray(journal(damaged, "start", "one", "two", "three"))
    text[text.index(b'"kind":"event"', text.index(b"one"))] ^= 1
    pi.journals = {damaged: bytes(text), whole: journal(whole, "start")}
    for _ in range(3):
        relay.step()
    found = run(instance, damaged)
    assert (found.status, found.tags[marks.RELAY]) == (dg.DagsterRunStatus.FAILURE, marks.CLOSED)
    assert [text for text in messages(instance, damaged) if text in ("start", "one", "two")] == [
        "start",
        "one",
    ]
    assert any("is damaged at byte" in said for said in messages(instance, damaged))
    assert pi.commands("cancel") == [{"run": damaged}]
    asked = [request["runs"][damaged] for request in pi.commands("read") if damaged in request["runs"]]
    assert asked == [0, 0]
    assert run(instance, whole).status is dg.DagsterRunStatus.STARTED


def test_a_device_cannot_speak_for_another_run(
    instance: dg.DagsterInstance, relay: DeviceRelay, pi: Pi
) -> None:
    ours = launched(instance)
    other = instance.create_run_for_job(nothing).run_id
    pi.journals[ours] = journal(other, "start", "success")
    for _ in range(3):
        relay.step()
    assert run(instance, other).status is dg.DagsterRunStatus.NOT_STARTED
    assert run(instance, ours).status is dg.DagsterRunStatus.FAILURE
    assert any(f"is an event of run {other}" in text for text in messages(instance, ours))


def test_a_database_that_refuses_one_run_is_asked_less_and_less_often(
    instance: dg.DagsterInstance,
    relay: DeviceRelay,
    pi: Pi,
    monkeypatch: pytest.MonkeyPatch,
    clocks: Callable[[float], None],
) -> None:
    relay._patience = Patience(retry=15.0)
    bad, good = launched(instance), launched(instance)
    pi.journals = {bad: journal(bad, "start"), good: journal(good, "start")}
    store = type(instance).handle_new_event

    def refusing(self: dg.DagsterInstance, event: Any, **more: Any) -> Any:
        if event.run_id == bad and event.message == "start":
            raise RuntimeError("no")
        return store(self, event, **more)

    monkeypatch.setattr(type(instance), "handle_new_event", refusing)
    for _ in range(20):
        relay.step()
        clocks(0.5)
    assert "start" in messages(instance, good)
    tries = sum(bad in request["runs"] for request in pi.commands("read"))
    assert tries <= 5
    assert sum("Relay of pi: no" in text for text in messages(instance, bad)) == 1


def test_a_new_run_on_a_device_that_was_silent_for_long_has_all_its_time(
    instance: dg.DagsterInstance, relay: DeviceRelay, pi: Pi, tmp_path: Path
) -> None:
    old = launched(instance, **{marks.LAUNCHED: str(time.time() - 500)})
    new = launched(instance)
    silence = tmp_path / "state/silent/pi"
    silence.parent.mkdir(parents=True)
    silence.write_text(f"{time.time() - 400}\nno\n")
    pi.problem = UNREACHABLE
    relay.step()
    assert run(instance, old).status is dg.DagsterRunStatus.FAILURE
    assert run(instance, new).status is dg.DagsterRunStatus.STARTING
    # Nobody has tried for a day: nobody knows.
    os.utime(silence, (0, 0))
    assert silent_since(tmp_path / "state", "pi") is None


def test_a_device_that_refuses_is_not_called_unreachable(
    instance: dg.DagsterInstance, relay: DeviceRelay, pi: Pi
) -> None:
    run_id = launched(instance)
    pi.problem = DeviceError("pi: No space left on device", details={"refused": "os"})
    relay.step()
    assert any("Device pi refuses us since" in text for text in messages(instance, run_id))


def test_outputs_are_fetched_beside_the_relay_and_in_pieces_that_the_link_carries(
    instance: dg.DagsterInstance, relay: DeviceRelay, pi: Pi, clocks: Callable[[float], None], tmp_path: Path
) -> None:
    run_id = launched(instance)
    pi.journals[run_id] = journal(run_id, "start", "success") + encode(
        {"kind": "exit", "n": 3, "m": 100.0, "code": 0, "why": "exit"}
    )
    content = os.urandom(9 << 20)
    files = {"outputs/takes/a.bin": len(content), "outputs/../../../x": 5, "outputs//y": 5}
    pi.states[run_id] = {"state": "ended", "files": files}
    limits: list[int] = []

    def fetch(request: dict[str, Any]) -> Answer:
        assert request["path"] == "outputs/takes/a.bin"
        if request.get("digest"):
            return Answer({"sha256": hashlib.sha256(content).hexdigest()}, b"")
        limits.append(request["limit"])
        piece = content[request["offset"] : request["offset"] + request["limit"]]
        if len(limits) == 1:
            raise LinkCutError("cut", b'{"length": 1}\n' + piece[:1000], {})
        return Answer({}, piece)

    pi.fetch = fetch  # type: ignore[attr-defined]

    def home() -> bool:
        clocks(20)
        relay.step()
        return run(instance, run_id).tags[marks.RELAY] == marks.CLOSED

    until(home, 30, "the outputs")
    folder = tmp_path / "state/runs" / run_id
    assert (folder / "outputs/takes/a.bin").read_bytes() == content
    assert [path.name for path in folder.rglob("*") if path.is_file()] == ["journal", "a.bin"]
    assert limits[:2] == [4 << 20, 2 << 20]
    assert sum(limits[1:]) == len(content) - 1000
    assert not (tmp_path / "x").exists()


def test_what_a_device_calls_a_log_stays_in_its_folder(instance: dg.DagsterInstance, tmp_path: Path) -> None:
    pi = Pi()
    pi.fetch = lambda request: Answer({}, b"x")  # type: ignore[attr-defined]
    luggage = Luggage(instance, "r", tmp_path / "deep")
    luggage.fetch_logs(pi, {"compute_logs/..": 1, "compute_logs/": 1})  # type: ignore[arg-type]
    assert pi.asked == []


def test_an_event_whose_status_failed_is_not_stored_twice(
    instance: dg.DagsterInstance, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run_id = launched(instance)
    home = Homecoming(instance, run_id, tmp_path / "home")
    home.receive(journal(run_id, "start", "one", "success"))
    handle = instance.run_storage.handle_run_event
    failures = iter([True, False, True])

    def failing(*words: Any) -> None:
        if next(failures, False):
            raise RuntimeError("the database is away")
        handle(*words)

    monkeypatch.setattr(instance.run_storage, "handle_run_event", failing)
    for _ in range(2):
        with pytest.raises(RuntimeError):
            home.apply(always)
    home.apply(always)
    home.mend()
    assert [text for text in messages(instance, run_id) if text != ""][-3:] == ["start", "one", "success"]
    assert run(instance, run_id).status is dg.DagsterRunStatus.SUCCESS


def test_a_full_disk_on_the_host_costs_time_alone(
    instance: dg.DagsterInstance, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run_id = launched(instance)
    data = journal(run_id, "start", "one")
    home = Homecoming(instance, run_id, tmp_path / "home")
    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", lambda handle: (_ for _ in ()).throw(OSError(28, "No space left")))
        with pytest.raises(OSError, match="No space"):
            home.receive(data)
    assert (home.offset, (tmp_path / "home/journal").stat().st_size) == (0, 0)
    home.receive(data)
    home.apply(always)
    assert "one" in messages(instance, run_id)
    # What the disk has spoiled comes again.
    spoiled = bytearray(data)
    spoiled[30] ^= 1
    (tmp_path / "home/journal").write_bytes(bytes(spoiled))
    assert Homecoming(instance, run_id, tmp_path / "home").offset == 0


def test_a_record_that_is_missing_is_noticed(instance: dg.DagsterInstance, tmp_path: Path) -> None:
    run_id = launched(instance)
    records = journal(run_id, "start", "one", "two").splitlines(keepends=True)
    home = Homecoming(instance, run_id, tmp_path)
    home.receive(b"".join(records[:2] + records[3:]))
    with pytest.raises(module.JournalError, match="record 2 is missing"):
        home.apply(always)
    assert messages(instance, run_id)[-1:] == ["start"]


def test_patience_is_told_in_time_and_not_more_often(
    instance: dg.DagsterInstance, clocks: Callable[[float], None]
) -> None:
    run_id = launched(instance)
    hold = holding.Holding(instance)
    for _ in range(10):
        hold.hold(run(instance, run_id), "waiting")
        clocks(10)
    assert messages(instance, run_id).count("waiting") == 3
