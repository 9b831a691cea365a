"""Devices on loopback, for the tests of the edge."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.edge.edge_kit import SSHD, LoopbackDevice, ScriptedWorker, Studio


@pytest.fixture
def pi(tmp_path: Path) -> Iterator[LoopbackDevice]:
    if SSHD is None:
        pytest.skip("no OpenSSH server here (Debian: apt install openssh-server)")
    device = LoopbackDevice(tmp_path / "pi")
    device.start()
    yield device
    device.cut()


@pytest.fixture
def worker(tmp_path: Path) -> ScriptedWorker:
    return ScriptedWorker(tmp_path / "worker")


@pytest.fixture
def studio(tmp_path: Path, pi: LoopbackDevice, worker: ScriptedWorker) -> Iterator[Studio]:
    """One device, whose worker plays what the test says."""
    found = Studio(tmp_path / "host", [pi.config(python=str(worker.python), capacity=4)])
    yield found
    found.instance.dispose()
