"""What brings endpoints back when a device has restarted, as a file for systemd. Started: tests/contract/test_pi.py."""

from __future__ import annotations

import json
import os
import shlex
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from notebooked_dagster.edge import boot, endpoints
from notebooked_dagster.edge.health import ENDPOINTS, Health
from notebooked_dagster.serving.control import EndpointControl, EndpointState, Status
from tests.unit.sensors.test_devices import HELLO


@pytest.fixture
def serving(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A device with an endpoint, in a folder that nobody would choose."""
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path / "runtime"))
    monkeypatch.setattr(boot, "lingers", lambda: True)
    (tmp_path / "runtime/systemd").mkdir(parents=True)
    (tmp_path / "runtime/systemd/private").touch()
    found = tmp_path / 'a "50 %" $HOME' / "serving"
    for folder in (found / "endpoints/echo", found.parent / "releases/r1"):
        folder.mkdir(parents=True)
    (found / "endpoints/echo/endpoint.json").touch()
    use(found, "r1")
    return found


def use(serving: Path, release: str) -> None:
    using = {"release": release, "environment": None, "python": "/bin/echo"}
    (serving / "using.json").write_text(json.dumps(using))


def unit_of(tmp_path: Path) -> Path | None:
    """The unit, where it is there and started with the user's others."""
    found = list((tmp_path / "config/systemd/user").glob("*.*"))
    for link in (tmp_path / "config/systemd/user/default.target.wants").glob("*"):
        assert link.is_symlink()
        assert [link.resolve()] == [path for path in found if path.suffix == ".service"]
        return link.resolve()
    return None


def test_the_unit_is_there_as_long_as_there_are_endpoints(serving: Path, tmp_path: Path) -> None:
    boot.arrange(serving)
    first = unit_of(tmp_path)
    assert first is not None
    use(serving, "r2")
    boot.arrange(serving)
    assert unit_of(tmp_path) == first
    assert "releases/r2" in first.read_text()
    (serving / "endpoints/echo/endpoint.json").unlink()
    boot.arrange(serving)
    assert unit_of(tmp_path) is None
    assert not first.exists()
    # Of nothing there is nothing to remove.
    boot.arrange(serving)


def test_systemd_reads_it_as_it_was_meant(serving: Path, tmp_path: Path) -> None:
    boot.arrange(serving)
    unit = unit_of(tmp_path)
    assert unit is not None
    (command,) = (line for line in unit.read_text().splitlines() if line.startswith("ExecStart="))
    words = shlex.split(command.removeprefix("ExecStart=").replace("$$", "$").replace("%%", "%"))
    assert words == [
        "/usr/bin/env", f"PYTHONPATH={serving.parent}/releases/r1", "/bin/echo", "-m",
        "notebooked_dagster.edge.endpoints", str(serving), "start",
    ]  # fmt: skip
    if shutil.which("systemd-analyze") is None:
        pytest.skip("no systemd-analyze on the path")
    judged = subprocess.run(
        ["systemd-analyze", "verify", "--user", str(unit)], capture_output=True, text=True, check=False
    )
    assert [line for line in judged.stderr.splitlines() if "notebooked" in line] == []


def test_one_that_cannot_be_brought_back_keeps_none_of_the_others(
    serving: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def ensure(self: EndpointControl, name: str, **_: Any) -> EndpointState:
        if name == "echo":
            raise OSError(28, os.strerror(28))
        return EndpointState(name, "127.0.0.1", 1, Status.HEALTHY, (), "")

    (serving / "endpoints/other").mkdir()
    (serving / "endpoints/other/endpoint.json").touch()
    monkeypatch.setattr(EndpointControl, "ensure", ensure)
    monkeypatch.setattr(sys, "argv", ["endpoints", str(serving), boot.START])
    assert endpoints.main() == 1
    assert "echo: [Errno 28] No space left on device" in capsys.readouterr().err
    assert [path.name for path in (serving / "held").iterdir()] == ["other.json"]


def test_the_doctor_says_what_is_missing(serving: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def said() -> tuple[bool, str]:
        health = Health({**HELLO, "endpoints": boot.told(serving)}, 0.1, 0.0)
        (found,) = (found for found in health.findings() if found.name == ENDPOINTS)
        return found.well, f"{found.message}. {found.fix}"

    assert said() == (False, "a restart does not bring its endpoints back: their unit is not there. "
                             "`notebooked deploy` writes it, where its disk has room.")  # fmt: skip
    boot.arrange(serving)
    assert said() == (True, "a restart brings its endpoints back. ")
    monkeypatch.setattr(boot, "lingers", lambda: False)
    assert "enable-linger" in said()[1]
    # Where there is no systemd, nothing is written, and the host's sensor is named.
    monkeypatch.setattr(boot, "has_manager", lambda: False)
    boot.arrange(serving)
    assert "endpoint_health" in said()[1]
    (serving / "endpoints/echo/endpoint.json").unlink()
    assert boot.told(serving) is None
