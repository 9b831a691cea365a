"""Requests for runs outlive the host's absence and the device's power cut, and are one run each."""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from notebooked_dagster.errors import ProviderError
from notebooked_dagster.realtime import requests as module
from notebooked_dagster.realtime.messages import Counters, Event
from notebooked_dagster.realtime.outlets import Parcel
from notebooked_dagster.realtime.requests import RunRequests
from notebooked_dagster.realtime.rules import RunRequest
from tests.unit.realtime.kit import eventually


class Host:
    """A webserver that is away until told otherwise, and loses answers."""

    def __init__(self) -> None:
        self.there = False
        self.tries = 0
        self.runs: dict[str, str] = {}

    async def launch(self, rule: str, request: RunRequest, mark: str) -> None:
        self.tries += 1
        if not self.there:
            raise OSError("away")
        if request.job == "unknown":
            raise ProviderError("No such job.")
        self.runs.setdefault(mark, request.job)


def parcel(job: str) -> Parcel:
    return Parcel(
        "door", Event("door", 0, value=1.0), RunRequest(job=job, tags={"a": "b"}, config={"x": [1]})
    )


@contextlib.asynccontextmanager
async def serving(
    folder: Path, host: Host, counters: Counters, limit: int = 1000
) -> AsyncIterator[RunRequests]:
    requests = RunRequests(folder, host.launch, counters, limit)
    task = asyncio.create_task(requests.run())
    yield requests
    task.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await task


@pytest.fixture(autouse=True)
def soon(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_FIRST_PAUSE", 0.001)
    monkeypatch.setattr(module, "_LONGEST_PAUSE", 0.002)


async def test_they_wait_for_the_host_through_a_restart_and_each_is_one_run(tmp_path: Path) -> None:
    host, counters = Host(), Counters()
    async with serving(tmp_path / "spool", host, counters) as requests:
        for job in ("a", "unknown", "b"):
            requests.offer(parcel(job))
        # Longer than anybody's patience: nothing is given up.
        await eventually(lambda: host.tries > 10 and len(files(tmp_path)) == 3)
    # The device starts again, asked for another run before it has looked at its disk.
    host.there = True
    async with serving(tmp_path / "spool", host, counters) as requests:
        requests.offer(parcel("c"))
        await eventually(lambda: not len(requests) and not files(tmp_path))
    assert list(host.runs.values()) == ["a", "b", "c"]
    assert counters.actions["door", "run"] == 3
    assert counters.refused == {("door", "run: failed"): 1}


async def test_there_is_room_for_so_many_and_the_rest_is_counted(tmp_path: Path) -> None:
    host, counters = Host(), Counters()
    async with serving(tmp_path / "spool", host, counters, limit=2) as requests:
        for _ in range(5):
            requests.offer(parcel("a"))
        assert len(requests) == 2
        await asyncio.sleep(0)
    assert counters.refused == {("door", "run: queue full"): 3}
    # What had not reached the disk when the daemon was told to end has by now.
    assert len(files(tmp_path)) == 2


async def test_a_disk_that_takes_nothing_loses_no_run(tmp_path: Path) -> None:
    (tmp_path / "spool").write_text("no folder")
    host, counters = Host(), Counters()
    host.there = True
    async with serving(tmp_path / "spool", host, counters) as requests:
        requests.offer(parcel("a"))
        await eventually(lambda: host.runs)


async def test_a_file_that_is_no_request_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "spool").mkdir()
    (tmp_path / "spool" / "000000000001-x.json").write_text("{}")
    # Somebody's copy of a request: whole, but under no name of ours.
    copy = {"rule": "door", "request": {"job": "b"}, "mark": "m"}
    (tmp_path / "spool" / "copy-of-it.json").write_text(json.dumps(copy))
    host, counters = Host(), Counters()
    host.there = True
    async with serving(tmp_path / "spool", host, counters) as requests:
        requests.offer(parcel("a"))
        await eventually(lambda: host.runs)
        await eventually(lambda: len(files(tmp_path)) == 2)
    assert [path.name for path in files(tmp_path)] == ["000000000001-x.json", "copy-of-it.json"]


def files(folder: Path) -> list[Path]:
    return sorted((folder / "spool").glob("*.json"))
