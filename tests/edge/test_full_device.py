"""A device whose disk is really full: before a run, by its journal, by what it leaves."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.edge.edge_kit import LoopbackDevice, ScriptedWorker, Studio, until
from tests.edge.test_link_faults import FAILURE, SUCCESS, Relaying, came_home_once
from tests.small_disk import fill, small_disk


@pytest.fixture
def disk(pi: LoopbackDevice) -> Iterator[Path]:
    """All that the device has, and more than agent, release and reserve need."""
    with small_disk(pi.folder, "1m") as folder:
        yield folder


def test_a_run_starts_when_there_is_room(
    studio: Studio, pi: LoopbackDevice, worker: ScriptedWorker, disk: Path
) -> None:
    ballast = fill(disk)
    run_id = studio.launch()
    with Relaying(studio):
        until(
            lambda: any("refuses us since" in text for text in studio.messages(run_id)),
            40,
            "word of it",
            studio,
        )
        assert not pi.run_folder(run_id).exists()
        ballast.unlink()
        until(lambda: studio.is_home(run_id), 60, "the run to come home", studio)
    assert studio.status(run_id) is SUCCESS
    came_home_once(studio, pi, run_id)


@pytest.mark.parametrize("by", ["journal", "output"])
def test_a_run_that_fills_the_disk_fails_and_all_that_is_of_it_comes_home(
    studio: Studio, pi: LoopbackDevice, worker: ScriptedWorker, disk: Path, by: str
) -> None:
    worker.play(**({"lines": 150, "width": 8000} if by == "journal" else {"lines": 5, "size": 2_000_000}))
    failed = studio.launch()
    studio.tend(60, failed)
    assert studio.status(failed) is FAILURE
    assert any("ended with exit code 1" in text for text in studio.messages(failed))
    came_home_once(studio, pi, failed)
    there = pi.read(failed, "outputs/made.bin")
    assert (studio.state / "runs" / failed / "outputs/made.bin").read_bytes() == there
    assert shutil.disk_usage(disk).free < 300_000

    shutil.rmtree(pi.run_folder(failed))
    worker.play(5)
    following = studio.launch()
    studio.tend(60, following)
    assert studio.status(following) is SUCCESS
    came_home_once(studio, pi, following)
