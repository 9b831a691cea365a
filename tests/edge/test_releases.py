"""Code as a release: what goes, what never goes, and how it gets there."""

from __future__ import annotations

import hashlib
import os
import shutil
from pathlib import Path

import pytest

from notebooked_dagster.edge import ssh
from notebooked_dagster.edge.devices import Device, fleet_of
from notebooked_dagster.edge.releases import bring, kept_release, make_release
from notebooked_dagster.edge.ssh import Link
from notebooked_dagster.errors import ConfigError, DeviceError, DeviceUnreachableError
from tests.edge.edge_kit import LoopbackDevice


@pytest.fixture
def project(tmp_path: Path) -> Path:
    root = tmp_path / "project"
    for path, text in {
        "assets/iris/defs.yaml": "type: x\n",
        "notebooks/a b 'c\".ipynb": "{}",
        "code.py": "x = 1\n",
        ".env": "PASSWORD=hunter2\n",
        ".env.local": "PASSWORD=hunter2\n",
        "dagster.yaml": "storage: postgres\n",
        "edge.yaml": "devices: []\n",
        "keys/pi.pem": "secret",
        ".notebooked/state": "made",
        "__pycache__/code.pyc": "made",
    }.items():
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        (root / path).write_text(text)
    return root


def link(pi: LoopbackDevice, tmp_path: Path, **more: object) -> tuple[Device, Link]:
    device = fleet_of([pi.config(**more)], tmp_path).devices[0]
    return device, Link(device, tmp_path / "state")


def test_code_goes_and_nothing_else(project: Path, tmp_path: Path) -> None:
    release = make_release(project, tmp_path / "state")
    assert sorted(release.files) == ["assets/iris/defs.yaml", "code.py", "notebooks/a b 'c\".ipynb"]
    assert make_release(project, tmp_path / "state") == release
    (project / "code.py").write_text("x = 2\n")
    other = make_release(project, tmp_path / "state")
    assert other.name != release.name
    # What a run was launched with is there, whatever has become of the project.
    kept = kept_release(release.name, tmp_path / "state")
    assert kept is not None
    assert (kept.code / "code.py").read_text() == "x = 1\n"


@pytest.mark.parametrize(
    ("lock", "brought"),
    [
        ("dagster==1.0  # via notebooked-dagster\n    # via notebooked-dagster\n", True),
        ("notebooked-dagster==1.0\n", False),
    ],
)
def test_a_project_that_has_this_package_installed_takes_it_along(
    project: Path, tmp_path: Path, lock: str, brought: bool
) -> None:
    (project / "workspace.yaml").write_text("load_from: [{python_module: notebooked_dagster.definitions}]\n")
    (project / "edge.lock").write_text(lock)
    release = make_release(project, tmp_path / "state")
    code = {path for path in release.files if path.startswith("notebooked_dagster/")}
    assert ("notebooked_dagster/definitions.py" in code) is brought
    assert all((release.code / path).is_file() for path in release.files)
    assert not any("__pycache__" in path for path in code)


@pytest.mark.parametrize("how", ["rsync", "sftp"])
def test_a_release_gets_there_once_and_is_switched_at_once(
    project: Path, tmp_path: Path, pi: LoopbackDevice, how: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = shutil.which
    if how == "rsync" and found("rsync") is None:
        pytest.skip("no rsync here (Debian: apt install rsync)")
    if how == "sftp":
        monkeypatch.setattr(ssh.shutil, "which", lambda name: None if name == "rsync" else found(name))
    # A project may lie anywhere.
    device, there = link(pi, tmp_path / "my state, 100%h")
    state = tmp_path / "state"
    first = make_release(project, state)
    assert bring(first, device, there) == how
    assert bring(first, device, there) == "there"
    names = [first.name]
    for number in range(4):
        (project / "code.py").write_text(f"x = {number + 2}\n")
        release = make_release(project, state)
        bring(release, device, there, keep=2)
        names.append(release.name)
        assert str((pi.folder / "current").readlink()) == f"releases/{release.name}"
        assert (pi.folder / "current/code.py").read_text() == f"x = {number + 2}\n"
        assert (pi.folder / "current/notebooks/a b 'c\".ipynb").read_text() == "{}"
    assert sorted(path.name for path in (pi.folder / "releases").iterdir()) == sorted(names[-2:])
    pi.cut()
    with pytest.raises(DeviceUnreachableError, match="cannot be reached"):
        there.ask("hello")


def test_half_a_release_is_never_the_current_one(project: Path, tmp_path: Path, pi: LoopbackDevice) -> None:
    device, there = link(pi, tmp_path)
    release = make_release(project, tmp_path / "state")
    there.ask("hello")
    part = pi.folder / "releases" / f".{release.name}.part"
    part.mkdir(parents=True)
    (part / "code.py").write_text("half")
    with pytest.raises(DeviceError, match="did not come whole"):
        there.ask("activate", {"release": release.name, "files": dict(release.files)})
    assert not (pi.folder / "current").exists()
    bring(release, device, there)
    assert (pi.folder / "current/code.py").read_text() == "x = 1\n"


def test_the_environment_is_made_by_uv_from_the_lock_file_and_once(
    project: Path, tmp_path: Path, pi: LoopbackDevice, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A stand-in for uv: what is tested is how it is called, and how often."""
    binaries = tmp_path / "bin"
    binaries.mkdir()
    (binaries / "uv").write_text(
        f'#!/bin/sh\necho "$@" >> {tmp_path}/called\nfor last; do :; done\ntest "$1" != venv || mkdir -p "$last/bin"\n'
    )
    (binaries / "uv").chmod(0o755)
    pi.environment = {"PATH": f"{binaries}:/usr/bin:/bin"}
    pi.cut()
    pi.start()
    (project / "requirements.lock").write_text("dagster==1.13\n")
    device, there = link(pi, tmp_path, python=None, wheels="/wheels")
    release = make_release(project, tmp_path / "state")
    bring(release, device, there)
    (project / "code.py").write_text("x = 9\n")
    bring(make_release(project, tmp_path / "state"), device, there)
    called = (tmp_path / "called").read_text().splitlines()
    assert [line.split()[0] for line in called] == ["venv", "pip"]
    assert "--no-index --find-links /wheels -r" in called[1]
    assert called[1].endswith(f"releases/{release.name}/requirements.lock")


def test_without_a_lock_file_nothing_is_guessed(project: Path, tmp_path: Path) -> None:
    release = make_release(project, tmp_path / "state")
    with pytest.raises(ConfigError, match="no lock file"):
        release.environment(Device(name="a", host="b"))


def test_a_device_with_another_key_is_refused(tmp_path: Path, pi: LoopbackDevice) -> None:
    other = " ".join((pi.root / "login.pub").read_text().split()[:2])
    _, there = link(pi, tmp_path, host_key=other)
    with pytest.raises(DeviceError, match="does not prove to be the device") as caught:
        there.ask("hello")
    assert not isinstance(caught.value, DeviceUnreachableError)


def test_a_key_that_is_not_let_in_is_told_as_that(tmp_path: Path, pi: LoopbackDevice) -> None:
    _, there = link(pi, tmp_path, key=str(pi.root / "host"))
    with pytest.raises(DeviceError, match="does not let"):
        there.ask("hello")


def test_a_file_comes_in_pieces_and_only_from_the_run(tmp_path: Path, pi: LoopbackDevice) -> None:
    _, there = link(pi, tmp_path)
    there.ask("hello")
    folder = pi.folder / "runs/r1/outputs"
    folder.mkdir(parents=True)
    content = os.urandom(100_000)
    (folder / "x.bin").write_bytes(content)
    asked = {"run": "r1", "path": "outputs/x.bin", "offset": 90_000, "limit": 50_000}
    assert there.ask("fetch", asked).body == content[90_000:]
    told = there.ask("fetch", {**asked, "offset": 100_000, "digest": True}).header["sha256"]
    assert told == hashlib.sha256(content).hexdigest()
    for path in ("request.json", "outputs/../../../secret", "../r2/outputs/x"):
        with pytest.raises(DeviceError, match="no file of the run"):
            there.ask("fetch", {**asked, "path": path})
