"""A project's code as a release: named by its content, kept here as it was when the run was launched, brought to devices."""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import subprocess
import tempfile
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import notebooked_dagster
from notebooked_dagster.core.files import write_atomic
from notebooked_dagster.errors import ConfigError, DeviceError

from .devices import Device
from .ssh import Link
from .wheels import FOLDER, wheels_for

LOCK_FILES = (
    "requirements/edge.lock",
    "edge.lock",
    "requirements.lock",
    "requirements/server.lock",
    "requirements.txt",
)
_MANIFEST = "manifest.json"
_CODE = "code"
# Never code: what is made, what is the host's own, what may hold secrets.
_NOT_FOLDERS = frozenset({
    ".git", ".venv", "venv", ".notebooked", "__pycache__", "node_modules", ".mypy_cache", ".ruff_cache", ".pytest_cache",
    ".ipynb_checkpoints", ".ssh", ".aws", ".azure", ".gnupg", ".tox", "mlruns", "wheels",
})  # fmt: skip
_NOT_FILES = frozenset({"dagster.yaml", "edge.yaml", ".netrc", ".pgpass", "id_rsa", "id_ed25519", "id_ecdsa"})
_NOT_ENDINGS = (".pyc", ".pem", ".key", ".p12", ".tmp", ".db", ".sqlite")
_LARGEST = 200 * 1024 * 1024
_PACKAGE = "notebooked_dagster"
_KEPT_HERE = 5


@dataclass(frozen=True, slots=True)
class Release:
    """A release, as it is kept on this host.

    Attributes:
        name: The hash of its content.
        code: The folder with its files.
        files: Path -> SHA-256.
    """

    name: str
    code: Path
    files: Mapping[str, str]

    @property
    def lock(self) -> str | None:
        """The file that says what it needs."""
        return next((name for name in LOCK_FILES if name in self.files), None)

    def environment(self, device: Device) -> str | None:
        """The name of the environment it needs on a device: the same needs are the same environment."""
        if device.python is not None:
            return None
        if self.lock is None:
            raise ConfigError(
                "There is no lock file, so that nobody knows what the project needs on a device.",
                hint=f"Write one of {', '.join(LOCK_FILES)} (`uv pip compile`), or set `python` of the device.",
                details={"device": device.name},
            )
        told = f"{self.files[self.lock]} {device.python_version} {device.wheels}"
        return hashlib.sha256(told.encode()).hexdigest()[:16]


def make_release(project: Path, state: Path, *, spared: Collection[str] | None = None) -> Release:
    """The project's code as it is now, with this package where the project uses it and brings it by no other way.

    Args:
        project: Its folder.
        state: Where releases are kept: what a run was launched with has to be there when its device is reachable again.
        spared: The releases that runs wait with; the oldest of the others are forgotten. None: nothing is forgotten.

    Raises:
        ConfigError: The code is larger than any code is.
    """
    sources = {path: project / path for path in _paths(project)}
    if _lacks_package(sources):
        package = Path(notebooked_dagster.__file__).parent
        sources |= {f"{_PACKAGE}/{path}": package / path for path in _paths(package)}
    files, size = {}, 0
    for path, source in sources.items():
        content = source.read_bytes()
        size += len(content)
        if size > _LARGEST:
            raise ConfigError(
                f"The project's code is larger than {_LARGEST >> 20} MB.",
                path=source,
                hint="Keep data out of git's sight (.gitignore); a run on a device gets its data otherwise.",
            )
        files[path] = hashlib.sha256(content).hexdigest()
    told = "".join(f"{path}\0{digest}\0" for path, digest in sorted(files.items()))
    name = hashlib.sha256(told.encode()).hexdigest()[:20]
    found = kept_release(name, state)
    if found is None:
        found = _kept(sources, state / "releases" / name, name, files)
        if spared is not None:
            _forget_old(state / "releases", {name, *spared})
    else:
        os.utime(state / "releases" / name)
    return found


def kept_release(name: str, state: Path) -> Release | None:
    """A release that this host has kept."""
    folder = state / "releases" / name
    try:
        files = json.loads((folder / _MANIFEST).read_text())
    except (OSError, ValueError):
        return None
    return Release(name, folder / _CODE, files)


def bring(release: Release, device: Device, link: Link, *, keep: int = 3) -> str:
    """Bring a release to a device and make it the current one, with its environment.

    Returns:
        How it went there: ``rsync``, ``sftp``, or ``there`` where it was.

    Raises:
        DeviceUnreachableError: The link went; the next attempt goes on where this one ended.
        DeviceError: The device refused.
    """
    with link.exclusive():
        return _brought(release, device, link, keep)


def _brought(release: Release, device: Device, link: Link, keep: int) -> str:
    there = link.ask("hello").header
    how = "there"
    if release.name not in there["releases"]:
        base = there["current"]
        how = link.copy(release.code, f"releases/.{release.name}.part", base=base)
    link.ask("activate", {"release": release.name, "files": dict(release.files), "keep": keep}, timeout=600)
    environment = release.environment(device)
    if environment is not None:
        assert release.lock is not None
        if device.offline and environment not in there["environments"]:
            link.copy(wheels_for(release.code / release.lock, device, there, link.state), FOLDER)
        try:
            link.ask(
                "environment",
                {
                    "release": release.name, "environment": environment, "lock": release.lock,
                    "wheels": FOLDER if device.offline else device.wheels, "version": device.python_version,
                },
                timeout=3600,
            )  # fmt: skip
        except DeviceError as error:
            if error.details.get("refused") == "no-uv":
                error.hint = f"`notebooked edge provision {device.name}` installs it."
            raise
    return how


def _paths(project: Path) -> Iterator[str]:
    """The files that are code: git's, where the project is git's; else all but what is known to be none."""
    for path in sorted(_listed(project)):
        parts = Path(path).parts
        if _NOT_FOLDERS.intersection(parts[:-1]) or parts[-1] in _NOT_FILES or parts[-1].startswith(".env"):
            continue
        if parts[-1].endswith(_NOT_ENDINGS):
            continue
        full = project / path
        if full.is_file() and not full.is_symlink():
            yield path


def _listed(project: Path) -> list[str]:
    if (project / ".git").exists() and shutil.which("git"):
        done = subprocess.run(
            ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
            cwd=project, capture_output=True, check=False,
        )  # fmt: skip
        if done.returncode == 0:
            return [os.fsdecode(name) for name in done.stdout.split(b"\0") if name]
    found = []
    for folder, folders, files in os.walk(project):
        folders[:] = [name for name in folders if name not in _NOT_FOLDERS]
        found += [(Path(folder) / name).relative_to(project).as_posix() for name in files]
    return found


def _lacks_package(sources: Mapping[str, Path]) -> bool:
    """Whether the project names this package, and neither has it in its folder nor in what its environment is made from."""
    if f"{_PACKAGE}/__init__.py" in sources:
        return False
    lock = next((sources[name] for name in LOCK_FILES if name in sources), None)
    if lock is not None and re.search(rb"^[^#\n]*notebooked[-_]dagster", lock.read_bytes(), re.MULTILINE):
        return False
    code = (path for path in sources.values() if path.suffix in {".py", ".yaml", ".yml", ".toml"})
    return any(_PACKAGE.encode() in path.read_bytes() for path in code)


def _kept(sources: Mapping[str, Path], folder: Path, name: str, files: Mapping[str, str]) -> Release:
    folder.parent.mkdir(parents=True, exist_ok=True)
    part = Path(tempfile.mkdtemp(prefix=f".{name}.", dir=folder.parent))
    for path, digest in files.items():
        target = part / _CODE / path
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(sources[path], target)
        if hashlib.sha256(target.read_bytes()).hexdigest() != digest:
            shutil.rmtree(part, ignore_errors=True)
            raise ConfigError(
                "The file changed while the project was read.", path=sources[path], hint="Launch again."
            )
    (part / _CODE).mkdir(exist_ok=True)
    write_atomic(part / _MANIFEST, json.dumps(dict(files)))
    try:
        part.rename(folder)
    except OSError:
        # Another process kept the same content first.
        shutil.rmtree(part, ignore_errors=True)
    return Release(name, folder / _CODE, files)


def _forget_old(folder: Path, spared: Collection[str]) -> None:
    found = [path for path in folder.iterdir() if (path / _MANIFEST).exists() and path.name not in spared]
    found.sort(key=lambda path: path.stat().st_mtime, reverse=True)
    for path in found[_KEPT_HERE:]:
        shutil.rmtree(path, ignore_errors=True)
