"""How the environment names a real device: an OpenSSH server on loopback stands for it, and is reached as a real one is."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.edge.edge_kit import SSHD, LoopbackDevice, RealDevice, ScriptedWorker, Studio
from tests.edge.test_link_faults import SUCCESS, came_home_once


@pytest.fixture
def server(tmp_path: Path) -> Iterator[LoopbackDevice]:
    if SSHD is None:
        pytest.skip("no OpenSSH server here (Debian: apt install openssh-server)")
    found = LoopbackDevice(tmp_path / "server")
    found.start()
    yield found
    found.cut()


@pytest.fixture
def real_address(server: LoopbackDevice) -> str:
    login = server.config()
    return f"{login['user']}@{login['host']}:{login['port']}"


@pytest.fixture
def real_login(server: LoopbackDevice) -> dict[str, Any]:
    return {name: server.config()[name] for name in ("key", "host_key")}


def test_a_run_goes_to_the_named_device_which_is_left_as_it_was(
    studio: Studio, device: LoopbackDevice | RealDevice, worker: ScriptedWorker, server: LoopbackDevice
) -> None:
    assert isinstance(device, RealDevice)
    worker.play(10, size=100_000)
    run_id = studio.launch()
    studio.tend(60, run_id)
    assert studio.status(run_id) is SUCCESS
    came_home_once(studio, device, run_id)
    assert (studio.state / "runs" / run_id / "outputs/made.bin").read_bytes() == worker.made
    assert Path(device.root, "work/runs", run_id).is_dir()
    assert not server.folder.exists()
    device.close()
    assert not Path(device.root).exists()


def test_what_would_break_a_real_device_is_for_loopback_alone(request: pytest.FixtureRequest) -> None:
    with pytest.raises(pytest.skip.Exception, match="only on loopback"):
        request.getfixturevalue("pi")
