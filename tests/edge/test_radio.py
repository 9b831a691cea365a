"""The device behind a bad radio link, in a network of its own: packets are lost and late, and the link goes for a while."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.edge.edge_kit import REAL, SSHD, LoopbackDevice, ScriptedWorker, Studio, until
from tests.edge.test_link_faults import SUCCESS, Relaying, came_home_once, lines
from tests.edge.wire import Wire, missing

CUT_SECONDS = "NOTEBOOKED_TEST_CUT_SECONDS"


@pytest.fixture(scope="session")
def cut_seconds() -> float:
    """How long the link is gone; asked before the environment is made clean for a test."""
    return float(os.environ.get(CUT_SECONDS, "8"))


@pytest.fixture(scope="session")
def no_wire() -> str | None:
    return missing()


@pytest.fixture
def wire(no_wire: str | None, real_address: str | None) -> Iterator[Wire]:
    if real_address is not None:
        pytest.skip(f"only on loopback: the network is the test's own, and {REAL} names a real device")
    if no_wire is not None:
        pytest.skip(no_wire)
    with Wire() as found:
        yield found


@pytest.fixture
def pi(tmp_path: Path, wire: Wire) -> Iterator[LoopbackDevice]:
    """At the other end of the wire, and nowhere else."""
    if SSHD is None:
        pytest.skip("no OpenSSH server here (Debian: apt install openssh-server)")
    device = LoopbackDevice(tmp_path / "pi", address=wire.address, within=wire.within)
    device.start()
    yield device
    device.cut()


def came_home_whole(studio: Studio, pi: LoopbackDevice, worker: ScriptedWorker, run_id: str) -> None:
    assert studio.status(run_id) is SUCCESS
    came_home_once(studio, pi, run_id)
    assert (studio.state / "runs" / run_id / "outputs/made.bin").read_bytes() == worker.made


def test_a_link_that_loses_one_packet_in_twenty_and_takes_200_ms(
    studio: Studio, pi: LoopbackDevice, worker: ScriptedWorker, wire: Wire
) -> None:
    worker.play(40, pause=0.05, size=100_000)
    wire.up.loss = wire.down.loss = 0.05
    wire.up.delay = wire.down.delay = 0.1
    run_id = studio.launch()
    studio.tend(120, run_id)
    came_home_whole(studio, pi, worker, run_id)
    assert wire.down.lost > 0


def test_a_link_that_is_bad_one_way_and_slow_the_other(
    studio: Studio, pi: LoopbackDevice, worker: ScriptedWorker, wire: Wire
) -> None:
    worker.play(40, pause=0.05, size=100_000)
    wire.up.loss, wire.up.delay = 0.15, 0.02
    wire.down.rate, wire.down.delay = 50_000, 0.1
    run_id = studio.launch()
    studio.tend(120, run_id)
    came_home_whole(studio, pi, worker, run_id)
    assert wire.up.lost > 0


def test_the_link_is_gone_in_the_middle_of_the_run_and_of_its_outputs(
    studio: Studio, pi: LoopbackDevice, worker: ScriptedWorker, wire: Wire, cut_seconds: float
) -> None:
    worker.play(60, pause=0.05, size=600_000)
    wire.down.rate = 200_000
    run_id = studio.launch()

    def gone() -> None:
        wire.cut()
        time.sleep(cut_seconds)
        wire.join()

    with Relaying(studio):
        until(lambda: lines(studio, run_id) > 5, 60, "the first lines", studio)
        before = len(pi.journaled(run_id))
        gone()
        assert len(pi.journaled(run_id)) > before + 20, "the run has waited for the link"
        until(lambda: lines(studio, run_id) == 60, 90 + cut_seconds, "the run's last line", studio)
        sent = wire.down.sent
        until(lambda: wire.down.sent > sent + 100_000, 60, "some of the output", studio)
        gone()
        assert wire.down.sent < sent + 600_000, "all of the output had come before"
        until(lambda: studio.is_home(run_id), 90 + cut_seconds, "the run to come home", studio)
    came_home_whole(studio, pi, worker, run_id)
    told = [text for text in studio.messages(run_id) if "is unreachable since" in text]
    # ssh itself is patient for 15 s; a shorter silence is nobody's business.
    assert bool(told) or cut_seconds < 30
