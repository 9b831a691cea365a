"""Devices for the tests of the edge: on loopback, or the one that the environment names."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.edge.edge_kit import REAL, SSHD, LoopbackDevice, RealDevice, ScriptedWorker, Studio


@pytest.fixture(scope="session")
def real_address() -> str | None:
    """Of real hardware, where there is some; asked before the environment is made clean for a test."""
    return os.environ.get(REAL)


@pytest.fixture
def real_login() -> dict[str, Any]:
    """What ssh's own configuration does not say of it: nothing."""
    return {}


@pytest.fixture
def pi(tmp_path: Path, real_address: str | None) -> Iterator[LoopbackDevice]:
    """For what may be done to no real one: cut its link, fill its disk, change what lies there."""
    if real_address is not None:
        pytest.skip(f"only on loopback: breaks the device or its link, and {REAL} names a real one")
    if SSHD is None:
        pytest.skip("no OpenSSH server here (Debian: apt install openssh-server)")
    device = LoopbackDevice(tmp_path / "pi")
    device.start()
    yield device
    device.cut()


@pytest.fixture
def device(
    request: pytest.FixtureRequest, tmp_path: Path, real_address: str | None, real_login: dict[str, Any]
) -> Iterator[LoopbackDevice | RealDevice]:
    """For what may be done to any; the one on loopback where a test asks for that as well."""
    if real_address is None or "pi" in request.fixturenames:
        yield request.getfixturevalue("pi")
        return
    real = RealDevice(real_address, tmp_path / "real", **real_login)
    yield real
    real.close()


@pytest.fixture
def worker(tmp_path: Path, device: LoopbackDevice | RealDevice) -> ScriptedWorker:
    return ScriptedWorker(tmp_path / "worker", device if isinstance(device, RealDevice) else None)


@pytest.fixture
def studio(tmp_path: Path, device: LoopbackDevice | RealDevice, worker: ScriptedWorker) -> Iterator[Studio]:
    """One device, whose worker plays what the test says."""
    found = Studio(tmp_path / "host", [device.config(python=str(worker.python), capacity=4)])
    yield found
    found.instance.dispose()
