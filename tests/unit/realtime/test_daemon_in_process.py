"""The daemon on this event loop, with ports that are only memory: what it does when something around it fails."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import mido

from notebooked_dagster.realtime.daemon import Daemon
from notebooked_dagster.realtime.device import DeviceConfig
from notebooked_dagster.realtime.takes import finished, read_take
from tests.unit.realtime.kit import eventually

NOTE = mido.Message("note_on", note=60, velocity=64)


@contextlib.asynccontextmanager
async def running(folder: Path, **config: Any) -> AsyncIterator[Daemon]:
    told = {
        "name": "pi",
        "ports": [{"name": "keys", "kind": "loopback"}],
        "web": {"enabled": False},
        **config,
    }
    daemon = Daemon(DeviceConfig.model_validate(told), folder)
    task = asyncio.create_task(daemon.run())
    try:
        await eventually(lambda: task.done() or daemon._tasks)
        yield daemon
    finally:
        daemon.stop()
        await task


async def test_folders_that_cannot_be_written_end_no_daemon_and_hold_up_no_note(tmp_path: Path) -> None:
    for name in ("takes", "exchange"):
        (tmp_path / name).write_text("a file stands where the folder should be")
    told = {"record": {"always": True}, "daw": {"exchange": "exchange"}}
    async with running(tmp_path, **told) as daemon:
        await daemon.midi.send("keys", NOTE)
        await eventually(lambda: daemon.recorder is not None and daemon.recorder.failed)
        await daemon.midi.send("keys", NOTE)
        await eventually(lambda: daemon.counters.handled["keys"] == 2)
        assert daemon.snapshot()["recorder"]["lost"] == 0
    assert daemon.snapshot()["recorder"]["lost"] == 2


async def test_the_first_note_of_a_take_waits_for_no_disk_and_the_last_take_is_given_out(
    tmp_path: Path,
) -> None:
    told = {"record": {"always": True}, "daw": {"exchange": "exchange"}}
    async with running(tmp_path, **told) as daemon:
        await daemon.midi.send("keys", NOTE)
        await eventually(lambda: daemon.counters.handled["keys"] == 1)
    (folder,) = finished(tmp_path / "takes")
    take = read_take(folder)
    assert take.sidecar["messages"] == 1
    assert (tmp_path / "exchange/out" / f"{take.name}.mid").read_bytes() == take.midi.read_bytes()
