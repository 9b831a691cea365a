"""A device without internet: what it installs from is chosen, downloaded and brought by this host. The index is a folder."""

from __future__ import annotations

import hashlib
import json
import platform
import subprocess
import sys
import zipfile
from pathlib import Path
from typing import Any

import pytest
import yaml
from click.testing import CliRunner

from notebooked_dagster.cli import main
from notebooked_dagster.edge.devices import Device, fleet_of
from notebooked_dagster.edge.wheels import wheels_for
from notebooked_dagster.errors import ConfigError, DeviceError
from tests.edge.edge_kit import LoopbackDevice

HERE = f"cp{sys.version_info.major}{sys.version_info.minor}"
PI = {"machine": "aarch64", "bits": 64, "python": "3.11.2", "libc": ["glibc", "2.36"]}


@pytest.fixture
def index(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """All that pip knows of."""
    folder = tmp_path / "index"
    folder.mkdir()
    monkeypatch.setenv("PIP_CONFIG_FILE", "/dev/null")
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(folder))
    return folder


def wheel(index: Path, name: str, tag: str, files: dict[str, str]) -> str:
    """Publish version 1.0 of a package for one platform; returns its hash as a lock file has it."""
    path = index / f"{name}-1.0-{tag}.whl"
    info = f"{name}-1.0.dist-info"
    about = {
        f"{info}/METADATA": f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n",
        f"{info}/WHEEL": f"Wheel-Version: 1.0\nRoot-Is-Purelib: false\nTag: {tag}\n",
        f"{info}/RECORD": "".join(f"{file},,\n" for file in files),
    }
    with zipfile.ZipFile(path, "w") as archive:
        for file, text in (files | about).items():
            archive.writestr(file, text)
    return f"--hash=sha256:{hashlib.sha256(path.read_bytes()).hexdigest()}"


def test_wheels_are_those_of_the_device_and_not_of_this_machine(index: Path, tmp_path: Path) -> None:
    ours = wheel(index, "tiny", f"{HERE}-{HERE}-manylinux_2_17_x86_64", {"tiny.py": "x = 1\n"})
    newer = wheel(index, "tiny", "cp311-cp311-manylinux_2_39_aarch64", {"tiny.py": "x = 2\n"})
    theirs = wheel(index, "tiny", "cp311-cp311-manylinux_2_28_aarch64", {"tiny.py": "x = 3\n"})
    pins = wheel(index, "pins", "py3-none-manylinux2014_aarch64", {"pins.py": ""})
    lock = tmp_path / "edge.lock"
    lock.write_text(
        f"# uv pip compile\ntiny==1.0 \\\n    {ours} \\\n    {newer} \\\n    {theirs}\n"
        f"pins==1.0 ; platform_machine == 'aarch64' and python_version < '3.12' \\\n    {pins}\n"
        f"absent==1.0 ; sys_platform == 'win32' or platform_machine == 'x86_64' \\\n    {pins}\n"
    )
    device = Device(name="studio-1", host="x", offline=True)
    found = wheels_for(lock, device, PI, tmp_path)
    assert sorted(path.name for path in found.iterdir()) == [
        "pins-1.0-py3-none-manylinux2014_aarch64.whl",
        "tiny-1.0-cp311-cp311-manylinux_2_28_aarch64.whl",
    ]
    narrow = wheel(index, "tiny", "cp311-cp311-linux_armv7l", {"tiny.py": "x = 4\n"})
    small = tmp_path / "small.lock"
    small.write_text(f"tiny==1.0 ; platform_machine == 'aarch64' {theirs} {narrow}\n")
    (path,) = wheels_for(small, device, {**PI, "bits": 32}, tmp_path).iterdir()
    assert path.name == "tiny-1.0-cp311-cp311-linux_armv7l.whl"
    for path in index.iterdir():
        path.unlink()
    assert wheels_for(lock, device, PI, tmp_path) == found
    with pytest.raises(
        DeviceError, match=r"studio-1 \(aarch64, Python 3.13, glibc 2.36\).*tiny==1.0"
    ) as error:
        wheels_for(lock, device.model_copy(update={"python_version": "3.13"}), PI, tmp_path)
    assert "python_version" in str(error.value.hint)
    with pytest.raises(DeviceError, match="an unknown C library"):
        wheels_for(lock, device, {**PI, "libc": ["", ""]}, tmp_path)


def test_a_wheel_that_is_not_the_one_of_the_lock_file_is_refused(index: Path, tmp_path: Path) -> None:
    wheel(index, "tiny", "py3-none-any", {"tiny.py": "x = 1\n"})
    lock = tmp_path / "edge.lock"
    lock.write_text(f"tiny==1.0 --hash=sha256:{'0' * 64}\n")
    with pytest.raises(DeviceError, match="DO NOT MATCH"):
        wheels_for(lock, Device(name="a", host="x", offline=True), PI, tmp_path)
    assert [path.name for path in (tmp_path / "wheels").iterdir()] == []


def test_a_device_without_internet_gets_uv_and_its_environment(
    index: Path, tmp_path: Path, pi: LoopbackDevice
) -> None:
    # A system that lets nobody linger without root, and not whoever runs the tests.
    binaries = tmp_path / "bin"
    binaries.mkdir()
    (binaries / "loginctl").write_text(
        "#!/bin/sh\necho 'Could not enable linger: Access denied' >&2\nexit 1\n"
    )
    (binaries / "loginctl").chmod(0o755)
    pi.environment = {
        "HOME": f"{tmp_path}/home", "PATH": f"{binaries}:/usr/bin:/bin", "UV_CACHE_DIR": f"{tmp_path}/cache",
        "UV_DEFAULT_INDEX": "http://127.0.0.1:9/simple",
    }  # fmt: skip
    (tmp_path / "home").mkdir()
    pi.cut()
    pi.start()
    native = f"manylinux_2_17_{platform.machine()}"
    uv = Path(sys.executable).with_name("uv")
    wheel(index, "uv", f"py3-none-{native}", {"uv-1.0.data/scripts/uv": f'#!/bin/sh\nexec {uv} "$@"\n'})
    pinned = wheel(index, "tiny", f"{HERE}-{HERE}-{native}", {"tiny.py": "x = 'brought'\n"})
    project = tmp_path / "project"
    project.mkdir()
    (project / "config.yaml").write_text("{}\n")
    (project / "edge.lock").write_text(f"tiny==1.0 {pinned}\n")
    (project / "edge.yaml").write_text(yaml.safe_dump({"devices": [pi.config(python=None, offline=True)]}))

    def said(*words: str) -> Any:
        done = CliRunner().invoke(main, ["--project", str(project), "edge", *words, "--json"])
        assert done.exit_code == 0, done.output
        assert ("sudo loginctl enable-linger" in done.stderr) == (words[0] == "provision")
        return json.loads(done.stdout)

    assert said("provision", "pi")["uv"] == f"{tmp_path}/home/.local/bin/uv"
    said("deploy", "pi")
    (python,) = (pi.folder / "environments").glob("*/bin/python")
    told = subprocess.run(
        [python, "-c", "import tiny; print(tiny.x)"], capture_output=True, text=True, check=True
    )
    assert told.stdout == "brought\n"


@pytest.mark.parametrize(
    ("more", "said"),
    [({"wheels": "/wheels"}, "Either `offline`"), ({"python_version": ">=3.11"}, "a number such as 3.11")],
)
def test_what_cannot_be_meant_is_refused(more: dict[str, Any], said: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=said):
        fleet_of([{"name": "a", "host": "b", "offline": True, **more}], tmp_path)
