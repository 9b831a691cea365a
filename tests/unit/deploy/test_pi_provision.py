"""The script that makes a fresh Raspberry Pi OS a device, run for real below another root."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

PI = Path(__file__).parents[3] / "deploy" / "pi"
SCRIPT = PI / "provision.sh"
EMULATED = Path(__file__).parents[2] / "edge" / "emulated_device.sh"
KEY = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIExample desk"


@pytest.fixture
def keys(tmp_path: Path) -> Path:
    path = tmp_path / "keys.pub"
    path.write_text(f"{KEY}\n\n{KEY}\n")
    return path


def provision(*arguments: object) -> list[str]:
    done = subprocess.run(
        [str(SCRIPT), *map(str, arguments)],
        capture_output=True,
        text=True,
        check=False,
        stdin=subprocess.DEVNULL,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout.splitlines()


def written(root: Path) -> dict[str, tuple[int, str]]:
    return {
        path.relative_to(root).as_posix(): (path.stat().st_mode & 0o777, path.read_text())
        for path in root.rglob("*")
        if path.is_file()
    }


def test_shellcheck_finds_nothing() -> None:
    shellcheck = Path(sys.executable).with_name("shellcheck")
    if not shellcheck.exists():
        pytest.skip("shellcheck has no wheel for this platform")
    done = subprocess.run([shellcheck, SCRIPT, EMULATED], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (0, "")


def test_it_writes_what_a_device_needs_and_a_second_time_nothing(tmp_path: Path, keys: Path) -> None:
    root = tmp_path / "root"
    said = provision("--root", root, "--key", keys)
    found = written(root)
    assert {path: mode for path, (mode, _) in found.items()} == {
        "etc/udev/rules.d/90-notebooked.rules": 0o644,
        "etc/security/limits.d/90-notebooked.conf": 0o644,
        "etc/systemd/system/notebooked-edge.service": 0o644,
        "etc/notebooked/device.yaml.example": 0o644,
        "var/lib/notebooked/.ssh/authorized_keys": 0o600,
    }
    # sshd trusts no keys that others could have written.
    assert (root / "var/lib/notebooked/.ssh").stat().st_mode & 0o777 == 0o700
    unit = (PI / "notebooked-edge.service").read_text()
    assert found["etc/systemd/system/notebooked-edge.service"][1] == unit
    assert found["var/lib/notebooked/.ssh/authorized_keys"][1] == f"{KEY}\n"
    ran = "\n".join(line.removeprefix("run: ") for line in said if line.startswith("run: "))
    for command in (
        "apt-get install -y --no-install-recommends rsync python3-venv alsa-utils",
        "useradd --system",
        "loginctl enable-linger notebooked",
        "/opt/notebooked-uv/bin/uv venv --python >=3.11,<3.13 /opt/notebooked",
        "notebooked-dagster[edge]",
        "--compile-bytecode",
        "udevadm control --reload",
    ):
        assert command in ran
    # What the unit starts is what is installed, as the user that is made.
    assert "ExecStart=/opt/notebooked/bin/notebooked " in unit
    lines = set(unit.splitlines())
    assert {"User=notebooked", "Group=notebooked", "SupplementaryGroups=audio gpio"} <= lines
    # A device that is allowed by its driver's name is allowed only where the driver is there when the unit starts.
    assert {"DeviceAllow=char-alsa rw", "Wants=modprobe@snd_seq.service"} <= lines
    assert "systemctl enable" not in ran
    # A key that somebody added stays; a device.yaml starts the daemon; nothing else is touched.
    other = root / "var/lib/notebooked/.ssh/authorized_keys"
    other.write_text(f"ssh-ed25519 AAAA other\n{KEY}\n")
    (root / "etc/notebooked/device.yaml").write_text("name: studio\n")
    before = {path: path.stat().st_mtime_ns for path in root.rglob("*") if path.is_file()}
    again = provision("--root", root, "--key", keys, "--package", "notebooked-dagster @ file:///w.whl")
    assert [line for line in again if line.startswith("write: ")] == []
    assert {path: path.stat().st_mtime_ns for path in root.rglob("*") if path.is_file()} == before
    assert "run: systemctl restart notebooked-edge" in again
    assert not any("udevadm" in line for line in again)
    assert any(line.endswith("notebooked-dagster[edge] @ file:///w.whl") for line in again)


def test_a_dry_run_touches_nothing_and_says_all_of_it(tmp_path: Path, keys: Path) -> None:
    root = tmp_path / "root"
    said = provision("--dry-run", "--root", root, "--key", keys)
    assert not root.exists()
    assert said == provision("--root", root, "--key", keys)


def test_without_a_key_nobody_could_log_in(tmp_path: Path) -> None:
    done = subprocess.run(
        [SCRIPT, "--root", tmp_path, "--key", tmp_path / "none"], capture_output=True, text=True, check=False
    )
    assert done.returncode == 1
    assert re.search("no public keys in .*/none", done.stderr)
    assert written(tmp_path) == {}
