"""The files of a run: what its steps printed, and what it left in its outputs folder; a cut link costs no byte twice."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path

from dagster import DagsterInstance
from dagster._core.storage.cloud_storage_compute_log_manager import CloudStorageComputeLogManager
from dagster._core.storage.compute_log_manager import ComputeIOType
from dagster._core.storage.local_compute_log_manager import LocalComputeLogManager

from notebooked_dagster.errors import DeviceError

from .ssh import Link, LinkCutError

_PIECE = 4 << 20
_LEAST = 64 << 10
_PIECE_SECONDS = 120
_LOGS = "compute_logs"
_OUTPUTS = "outputs"


class Luggage:
    """One run's.

    Args:
        instance: The central instance, whose compute log manager gets what was printed.
        run_id: The run.
        folder: Where the outputs go, under ``outputs``.
    """

    def __init__(self, instance: DagsterInstance, run_id: str, folder: Path) -> None:
        self._instance = instance
        self._run_id = run_id
        self._folder = folder
        self._piece = _PIECE

    @property
    def outputs(self) -> Path:
        """Where the outputs go."""
        return self._folder / _OUTPUTS

    def fetch_logs(self, link: Link, files: Mapping[str, int], *, last: bool = False) -> None:
        """Bring what the steps have printed so far.

        Args:
            link: To the device.
            files: The run's files there, with their sizes.
            last: Nothing more will come: what says so (``.complete``) is brought as well, and a cloud gets its copy.
        """
        folder = self._log_folder()
        for path, size in sorted(files.items()):
            top, _, name = path.partition("/")
            if top != _LOGS or "/" in name or not _below(path):
                continue
            if name.endswith(".complete"):
                if last:
                    folder.mkdir(parents=True, exist_ok=True)
                    (folder / name).touch()
                continue
            self._fetch(link, path, size, folder / name)
        if last:
            self._to_cloud(files)

    def fetch_all(self, link: Link, files: Mapping[str, int]) -> int:
        """Bring what is left of a run that has ended; returns how many outputs there are. Raises DeviceError."""
        self.fetch_logs(link, files, last=True)
        return self.fetch_outputs(link, files)

    def fetch_outputs(self, link: Link, files: Mapping[str, int]) -> int:
        """Bring what a run that has ended left; returns how many files. Raises DeviceError where one came damaged."""
        found = {
            path: size for path, size in files.items() if path.startswith(f"{_OUTPUTS}/") and _below(path)
        }
        for path, size in found.items():
            target = self._folder / path
            if target.exists():
                continue
            part = target.with_name(f".{target.name}.part")
            self._fetch(link, path, size, part)
            ours = hashlib.sha256()
            with part.open("rb") as stream:
                while piece := stream.read(_PIECE):
                    ours.update(piece)
            asked = {"run": self._run_id, "path": path, "offset": size, "digest": True}
            if link.ask("fetch", asked, timeout=600).header["sha256"] != ours.hexdigest():
                part.unlink()
                raise DeviceError(f"The output {path} came damaged.", hint="It is brought again.")
            part.rename(target)
        return len(found)

    def _fetch(self, link: Link, path: str, size: int, target: Path) -> None:
        target.parent.mkdir(parents=True, exist_ok=True)
        have = target.stat().st_size if target.exists() else 0
        if have > size:
            target.unlink()
            have = 0
        target.touch()
        while have < size:
            asked = {
                "run": self._run_id, "path": path, "offset": have, "limit": min(self._piece, size - have)
            }  # fmt: skip
            try:
                body = link.ask("fetch", asked, timeout=_PIECE_SECONDS).body
                self._piece = min(_PIECE, self._piece * 2)
            except LinkCutError as error:
                # What has come has come, and the next piece is one that this link may carry.
                _append(target, error.received.partition(b"\n")[2])
                self._piece = max(_LEAST, self._piece // 2)
                raise
            if not body:
                return
            _append(target, body)
            have += len(body)

    def _log_folder(self) -> Path:
        local = self._local()
        if local is None:
            return self._folder / _LOGS
        return Path(local.get_captured_local_path([self._run_id, _LOGS, "x"], "out")).parent

    def _local(self) -> LocalComputeLogManager | None:
        manager = self._instance.compute_log_manager
        if isinstance(manager, CloudStorageComputeLogManager):
            return manager.local_manager
        return manager if isinstance(manager, LocalComputeLogManager) else None

    def _to_cloud(self, files: Mapping[str, int]) -> None:
        manager = self._instance.compute_log_manager
        if not isinstance(manager, CloudStorageComputeLogManager):
            return
        for path in files:
            kind = {".out": ComputeIOType.STDOUT, ".err": ComputeIOType.STDERR}.get(Path(path).suffix)
            if path.startswith(f"{_LOGS}/") and kind is not None:
                manager.upload_to_cloud_storage([self._run_id, _LOGS, Path(path).stem], kind)


def _below(path: str) -> bool:
    """Whether a path that a device names stays below the folder it is put in."""
    return not any(part in ("", ".", "..") or "\0" in part for part in path.split("/"))


def _append(target: Path, body: bytes) -> None:
    with target.open("ab") as stream:
        stream.write(body)
