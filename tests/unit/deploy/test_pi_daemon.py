"""The unit of the edge daemon, judged by systemd's own tools, and the example beside it."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from notebooked_dagster.realtime.device import load_device

ROOT = Path(__file__).parents[3]
PI = ROOT / "deploy" / "pi"
UNIT = PI / "notebooked-edge.service"


def test_the_unit_is_right_and_leaves_little_open(tmp_path: Path) -> None:
    if shutil.which("systemd-analyze") is None:
        pytest.skip("no systemd-analyze on the path")
    # It judges the command as well, so it gets one that is there.
    text = UNIT.read_text().replace("/opt/notebooked/bin/notebooked", sys.executable)
    # gpiozero's lgpio factory reads both to know which Pi it is on; without it no pin opens.
    assert not re.search(r"^ProcSubset=pid|InaccessiblePaths=.*/proc", text, re.M)
    unit = tmp_path / UNIT.name
    unit.write_text(text)
    judged = subprocess.run(
        ["systemd-analyze", "verify", str(unit)], capture_output=True, text=True, check=False
    )
    assert [line for line in judged.stderr.splitlines() if "notebooked-edge" in line] == []
    scored = subprocess.run(
        ["systemd-analyze", "security", "--offline=true", "--no-pager", str(unit)],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    found = re.search(r"Overall exposure level for \S+: ([\d.]+)", scored.stdout)
    assert found is not None, scored.stdout + scored.stderr
    # 9.6 is a unit without any of it; what is left is sound, pins, network and real-time scheduling.
    assert float(found[1]) <= 2.0


def test_the_example_is_right(monkeypatch: pytest.MonkeyPatch) -> None:
    config = load_device(PI / "device.yaml.example")
    assert [rule.name for rule in config.rules] == ["thru", "foot starts and stops a take"]
    assert config.web.host == "127.0.0.1"


def test_everything_of_the_extra_installs_on_a_pi_from_wheels() -> None:
    from benchmarks.check_aarch64 import PINNED, judge, of_extra

    lock = (ROOT / "requirements" / "dev.lock").read_text()
    found = judge(of_extra("edge"), "3.11", "\n".join(PINNED.findall(lock)))
    if found.skipped:
        pytest.skip(found.skipped)
    assert found.missing == ()
    names = {text.partition("==")[0] for text in found.wheels}
    assert {
        "mido",
        "python-rtmidi",
        "gpiozero",
        "lgpio",
        "python-osc",
        "aiomqtt",
        "asyncssh",
        "dagster",
    } <= names
