"""Archives that are the same bytes for the same content: scripts for training, a model with its code for serving."""

from __future__ import annotations

import gzip
import hashlib
import io
import shutil
import tarfile
from collections.abc import Mapping
from pathlib import Path

from notebooked_dagster.errors import DataError

LAUNCHER = "notebooked_launch.py"
JOB = "notebooked_job.json"
_HIDDEN = ("__pycache__",)


def write_archive(target: Path, folders: Mapping[str, Path], files: Mapping[str, bytes] | None = None) -> str:
    """Write a ``.tar.gz``.

    Args:
        target: The file.
        folders: What each folder of the archive is a copy of; ``""`` is its top.
        files: Further files by their path in the archive; they win over a folder's.

    Returns:
        The SHA-256 of the archive.
    """
    found: dict[str, Path | bytes] = {}
    for prefix, folder in folders.items():
        for path in sorted(folder.rglob("*")):
            relative = path.relative_to(folder)
            if path.is_file() and not any(part in _HIDDEN or part.startswith(".") for part in relative.parts):
                found[f"{prefix}/{relative.as_posix()}" if prefix else relative.as_posix()] = path
    found.update(files or {})
    target.parent.mkdir(parents=True, exist_ok=True)
    # No time and no name in gzip's header: what is sent is told by its hash.
    with (
        target.open("wb") as raw,
        gzip.GzipFile(filename="", fileobj=raw, mode="wb", mtime=0, compresslevel=6) as packed,
        tarfile.open(fileobj=packed, mode="w") as archive,
    ):
        for name in sorted(found):
            _add(archive, name, found[name])
    return digest(target)


def _add(archive: tarfile.TarFile, name: str, content: Path | bytes) -> None:
    entry = tarfile.TarInfo(name)
    entry.mode = 0o644
    if isinstance(content, bytes):
        entry.size = len(content)
        archive.addfile(entry, io.BytesIO(content))
        return
    entry.size = content.stat().st_size
    with content.open("rb") as stream:
        archive.addfile(entry, stream)


def unpack(archive: Path, target: Path) -> None:
    """Unpack an archive into a folder that appears only when it is whole.

    Raises:
        DataError: It is damaged, or holds what does not belong into one folder.
    """
    half = target.with_name(f".{target.name}.half")
    shutil.rmtree(half, ignore_errors=True)
    half.mkdir(parents=True)
    try:
        with tarfile.open(archive) as opened:
            opened.extractall(half, filter="data")
    except (tarfile.TarError, OSError, EOFError, ValueError) as error:
        shutil.rmtree(half, ignore_errors=True)
        raise DataError(f"The archive is damaged: {error}.", path=archive) from error
    shutil.rmtree(target, ignore_errors=True)
    half.rename(target)


def requirements(stage: str, *folders: Path) -> bytes:
    """What a stage (``train``, ``inference``) needs installed, by the first of the folders that says so; empty if none."""
    for folder in folders:
        for name in (f"requirements-{stage}.txt", "requirements.txt"):
            if (folder / name).is_file():
                return (folder / name).read_bytes()
    return b""


def digest(path: Path) -> str:
    """The SHA-256 of a file."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()
