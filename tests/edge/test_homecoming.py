"""Events into the central instance exactly once, wherever a relay dies. Without a device: the journal is made here."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path

import dagster as dg
import pytest
from dagster import DagsterEvent, DagsterEventType
from dagster._core.events.log import EventLogEntry
from dagster._serdes import serialize_value

from notebooked_dagster.edge.homecoming import Homecoming
from notebooked_dagster.edge.journal import encode

START, SUCCESS = DagsterEventType.PIPELINE_START, DagsterEventType.PIPELINE_SUCCESS


@dg.job
def nothing() -> None:
    pass


@pytest.fixture
def instance(tmp_path: Path) -> Iterator[dg.DagsterInstance]:
    with dg.DagsterInstance.ephemeral(str(tmp_path)) as found:
        yield found


@pytest.fixture
def run_id(instance: dg.DagsterInstance) -> str:
    run = instance.create_run_for_job(nothing)
    instance.report_dagster_event(
        DagsterEvent(DagsterEventType.PIPELINE_STARTING.value, "nothing"), run.run_id
    )
    return run.run_id


def journal(run_id: str, *texts: str, at: float | None = None) -> bytes:
    """Twice the same words at the same moment are two events."""
    pieces = [encode({"kind": "began", "n": 0, "m": 100.0, "host": time.time(), "boot": "x", "clock": 0})]
    for number, text in enumerate(texts, 1):
        kind = {"start": START, "success": SUCCESS}.get(text)
        event = DagsterEvent(kind.value, "nothing", message=text) if kind else None
        entry = EventLogEntry(None, 10, text, run_id, at or time.time(), None, "nothing", event)
        pieces.append(encode({"kind": "event", "n": number, "m": 100.0, "event": serialize_value(entry)}))
    return b"".join(pieces)


def messages(instance: dg.DagsterInstance, run_id: str) -> list[str]:
    return [entry.message for entry in instance.all_logs(run_id) if entry.message]


def always() -> bool:
    return True


@pytest.mark.parametrize("died_after", range(6))
def test_a_relay_that_died_after_any_event_is_gone_on_from(
    instance: dg.DagsterInstance, run_id: str, tmp_path: Path, died_after: int
) -> None:
    data = journal(run_id, "start", "same", "same", "same", "success", at=time.time())
    left = [died_after]

    def until_death() -> bool:
        left[0] -= 1
        return left[0] >= 0

    first = Homecoming(instance, run_id, tmp_path / "one")
    first.receive(data)
    first.apply(until_death)
    second = Homecoming(instance, run_id, tmp_path / "one")
    assert second.offset == len(data)
    second.apply(always)
    assert messages(instance, run_id) == ["start", "same", "same", "same", "success"]
    run = instance.get_run_by_id(run_id)
    assert run is not None
    assert run.status is dg.DagsterRunStatus.SUCCESS
    # Another host, which has nothing of it yet.
    third = Homecoming(instance, run_id, tmp_path / "two")
    third.receive(data)
    third.apply(always)
    assert messages(instance, run_id) == ["start", "same", "same", "same", "success"]


@pytest.mark.parametrize("more", [False, True], ids=["at the end", "in the middle"])
def test_a_status_that_a_dead_relay_owed_is_set(
    instance: dg.DagsterInstance, run_id: str, tmp_path: Path, more: bool
) -> None:
    data = journal(run_id, "start", "success", *(["after"] if more else []), at=time.time())
    first = Homecoming(instance, run_id, tmp_path)
    first.receive(data)
    calls = iter([True, True, True])
    with pytest.MonkeyPatch.context() as patch:
        # Killed between the event and what follows from it.
        patch.setattr(
            type(instance), "handle_new_event", lambda self, event: self.event_log_storage.store_event(event)
        )
        first.apply(lambda: next(calls, False))
    run = instance.get_run_by_id(run_id)
    assert run is not None
    assert not run.is_finished
    second = Homecoming(instance, run_id, tmp_path)
    second.apply(always)
    second.mend()
    run = instance.get_run_by_id(run_id)
    assert run is not None
    assert run.status is dg.DagsterRunStatus.SUCCESS
    assert messages(instance, run_id) == ["start", "success", *(["after"] if more else [])]


def test_a_piece_that_ends_in_a_record_is_kept_up_to_it(
    instance: dg.DagsterInstance, run_id: str, tmp_path: Path
) -> None:
    data = journal(run_id, "start", "one", "two")
    home = Homecoming(instance, run_id, tmp_path)
    home.receive(data[:-5])
    home.apply(always)
    assert messages(instance, run_id) == ["start", "one"]
    home.receive(data[home.offset :])
    home.apply(always)
    assert messages(instance, run_id) == ["start", "one", "two"]


def test_a_run_that_was_given_up_stays_so(instance: dg.DagsterInstance, run_id: str, tmp_path: Path) -> None:
    home = Homecoming(instance, run_id, tmp_path)
    data = journal(run_id, "start", "one", "success")
    home.receive(data)
    calls = iter([True, True, True])
    home.apply(lambda: next(calls, False))
    run = instance.get_run_by_id(run_id)
    assert run is not None
    instance.report_run_failed(run, "given up")
    home.apply(always)
    assert messages(instance, run_id) == ["start", "one", "given up"]
    run = instance.get_run_by_id(run_id)
    assert run is not None
    assert run.status is dg.DagsterRunStatus.FAILURE


def test_a_start_that_comes_after_a_cancellation_does_not_undo_it(
    instance: dg.DagsterInstance, run_id: str, tmp_path: Path
) -> None:
    run = instance.get_run_by_id(run_id)
    assert run is not None
    instance.report_run_canceling(run)
    home = Homecoming(instance, run_id, tmp_path)
    home.receive(journal(run_id, "start"))
    home.apply(always)
    run = instance.get_run_by_id(run_id)
    assert run is not None
    assert run.status is dg.DagsterRunStatus.CANCELING
    assert "start" in messages(instance, run_id)


@pytest.mark.parametrize("off", [-3600.0, 3600.0], ids=["behind", "ahead"])
def test_a_clock_that_is_an_hour_off_changes_neither_order_nor_number(
    instance: dg.DagsterInstance, run_id: str, tmp_path: Path, off: float
) -> None:
    before = time.time()
    data = journal(run_id, "start", "same", "same", "success", at=before + off)
    for host in ("one", "two"):
        home = Homecoming(instance, run_id, tmp_path / host)
        home.receive(data)
        home.apply(always)
    assert messages(instance, run_id) == ["start", "same", "same", "success"]
    entries = [entry for entry in instance.all_logs(run_id) if entry.message]
    assert all(before - 1 < entry.timestamp < time.time() + 1 for entry in entries)
    record = instance.get_run_record_by_id(run_id)
    assert record is not None
    assert record.start_time is not None
    assert record.end_time is not None
    assert before - 1 < record.start_time <= record.end_time < time.time() + 1
