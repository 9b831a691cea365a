"""What a device without internet installs from: wheels that this host downloads for its machine and its Python.

pip downloads them, so that what it is told of indexes, proxies and certificates holds; hashes of the lock file are checked here
and once more on the device. They are kept under ``wheels/`` of the state folder until others are needed.
"""

from __future__ import annotations

import hashlib
import importlib.util
import os
import shutil
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from packaging.requirements import InvalidRequirement, Requirement

from notebooked_dagster.errors import DeviceError, MissingPackageError

from .devices import Device

#: Where they go, in the device's working folder.
FOLDER = "wheels"
_KEPT_HERE = 3
# Of the oldest glibc that wheels are built for.
_OLDEST = 5
_LEGACY = {5: "manylinux1", 12: "manylinux2010", 17: "manylinux2014"}
# What a 32-bit system on a 64-bit kernel installs, as Raspberry Pi OS is on a Pi 4 and newer ones.
_NARROW = {"aarch64": "armv7l", "x86_64": "i686"}


def wheels_for(lock: Path, device: Device, there: Mapping[str, Any], state: Path) -> Path:
    """A folder with the wheels of all that a lock file names for a device.

    Args:
        lock: The file.
        device: The device.
        there: What its agent says of it.
        state: This host's folder for devices.

    Raises:
        DeviceError: There are none for it, or no index answers.
        MissingPackageError: There is no pip here.
    """
    target = _Target(device, there)
    needs = lock.read_text(encoding="utf-8")
    folder = state / FOLDER / hashlib.sha256(f"{needs}{target.options}".encode()).hexdigest()[:16]
    if folder.is_dir():
        os.utime(folder)
        return folder
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".", dir=folder.parent) as made:
        wanted, part = Path(made) / "wanted.txt", Path(made) / FOLDER
        lines = target.wanted(needs)
        wanted.write_text("\n".join(lines), encoding="utf-8")
        # A lock file with hashes names everything; else pip finds out what else is needed.
        complete = ["--no-deps"] if any("--hash" in line for line in lines) else []
        part.mkdir()
        _download([*complete, "-r", str(wanted)], target, part)
        try:
            part.rename(folder)
        except OSError:
            # For another device like this one, at the same time.
            if not folder.is_dir():
                raise
    _forget_old(folder.parent)
    return folder


def uv_for(device: Device, there: Mapping[str, Any], folder: Path) -> None:
    """Put the executable ``uv`` for a device into a folder. Raises as ``wheels_for``."""
    with tempfile.TemporaryDirectory() as made:
        _download(["--no-deps", "uv"], _Target(device, there), Path(made))
        (wheel,) = Path(made).glob("*.whl")
        with zipfile.ZipFile(wheel) as archive:
            name = next(name for name in archive.namelist() if name.endswith(".data/scripts/uv"))
            (folder / "uv").write_bytes(archive.read(name))
    (folder / "uv").chmod(0o755)


class _Target:
    """What a wheel has to fit.

    Args:
        device: The device.
        there: What its agent says of it.
    """

    def __init__(self, device: Device, there: Mapping[str, Any]) -> None:
        library, version = there["libc"]
        if library != "glibc":
            raise DeviceError(
                f"{device.name} has {library or 'an unknown C library'}, for which no wheels are chosen here.",
                hint="Put them into a folder there, and name it as `wheels` of the device instead of `offline`.",
            )
        self._full = device.python_version or str(there["python"])
        self._machine = there["machine"]
        self._python = ".".join(self._full.split(".")[:2])
        newest = int(version.split(".")[1])
        # pip takes each platform as it is written, and knows of no older ones that would do.
        levels = [f"manylinux_2_{minor}" for minor in range(newest, _OLDEST - 1, -1)]
        levels += [name for minor, name in _LEGACY.items() if minor <= newest]
        fits = self._machine if there["bits"] == 64 else _NARROW.get(self._machine, self._machine)
        platforms = [f"--platform={level}_{fits}" for level in (*levels, "linux")]
        self.options = ("--implementation=cp", f"--python-version={self._python}", *platforms)
        self.name = f"{device.name} ({fits}, Python {self._python}, glibc {version})"

    def wanted(self, lock: str) -> list[str]:
        """The lines of a lock file that hold there. pip would ask the conditions of this machine, so that they are asked here."""
        markers = {
            "implementation_name": "cpython", "platform_python_implementation": "CPython", "os_name": "posix",
            "platform_system": "Linux", "sys_platform": "linux", "platform_machine": self._machine,
            "python_version": self._python, "python_full_version": self._full, "implementation_version": self._full,
        }  # fmt: skip
        found = []
        for line in lock.replace("\\\n", " ").splitlines():
            text, _, hashes = line.partition(" --hash")
            try:
                requirement = Requirement(text.partition(" #")[0])
            except InvalidRequirement:
                # An option, a comment: pip's to read.
                found.append(line)
                continue
            if requirement.marker is None or requirement.marker.evaluate(markers):
                requirement.marker = None
                found.append(f"{requirement} --hash{hashes}" if hashes else str(requirement))
        return found


def _download(what: Sequence[str], target: _Target, folder: Path) -> None:
    if importlib.util.find_spec("pip") is None:
        raise MissingPackageError(
            f"pip downloads the wheels, and {sys.executable} has none.", hint="uv pip install pip"
        )
    command = [
        sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check", "--no-input",
        "--only-binary=:all:", *target.options, f"--dest={folder}", *what,
    ]  # fmt: skip
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise DeviceError(
            f"The wheels for {target.name} are not to be had: {done.stderr.strip()[-1000:]}",
            hint="Each package needs a wheel for that machine and Python; `python_version` of the device names another Python.",
        )


def _forget_old(folder: Path) -> None:
    found = [path for path in folder.iterdir() if not path.name.startswith(".")]
    for path in sorted(found, key=lambda path: path.stat().st_mtime)[:-_KEPT_HERE]:
        shutil.rmtree(path, ignore_errors=True)
