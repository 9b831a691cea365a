"""CloudStorage: our folder in a cloud's storage, and what is done with it alike wherever that is."""

from __future__ import annotations

import json
import tempfile
from abc import ABC, abstractmethod
from collections.abc import Iterable
from pathlib import Path
from typing import Any, ClassVar
from urllib.parse import urlsplit

from notebooked_dagster.errors import DataError
from notebooked_dagster.tracking.lineage import data_hash

from .package import unpack


class CloudStorage(ABC):
    """One folder. A cloud's own says how a file is addressed, sent, read and listed there."""

    #: The file that says of data sent that all of it is there.
    complete: ClassVar[str] = ".complete"

    @abstractmethod
    def uri(self, *parts: str) -> str:
        """The address of something in our folder."""

    def path(self, *parts: str) -> str:
        """The same as the other methods take it, where that is not its address."""
        return self.uri(*parts)

    @abstractmethod
    def upload(self, file: Path, path: str, /) -> None:
        """Send a file."""

    @abstractmethod
    def write(self, path: str, content: bytes, /) -> object:
        """Write a file."""

    @abstractmethod
    def read(self, path: str, /) -> bytes | None:
        """A file's content; None where there is none."""

    @abstractmethod
    def fetch(self, path: str, target: Path, /) -> None:
        """Fetch a file. Raises DataError where there is none."""

    @abstractmethod
    def holds(self, path: str, /) -> bool:
        """Whether there is a file, or anything below it."""

    @abstractmethod
    def names(self, path: str, /) -> Iterable[str]:
        """The files below a folder."""

    @abstractmethod
    def remove_below(self, path: str, /) -> object:
        """Remove all files below a folder."""

    def upload_folder(self, folder: Path, path: str) -> None:
        """Send all files of a folder."""
        for file in sorted(item for item in folder.rglob("*") if item.is_file()):
            self.upload(file, f"{path}/{file.relative_to(folder).as_posix()}")

    def fetch_archive(self, path: str, target: Path) -> None:
        """Fetch and unpack an archive. Raises DataError where there is none, or it is damaged."""
        with tempfile.TemporaryDirectory() as folder:
            archive = Path(folder) / "fetched.tar.gz"
            self.fetch(path, archive)
            unpack(archive, target)

    def document(self, path: str) -> dict[str, Any] | None:
        """A JSON document; None where there is none, or none that is whole."""
        raw = self.read(path)
        try:
            found = json.loads(raw) if raw is not None else None
        except ValueError:
            return None
        return found if isinstance(found, dict) else None

    def put_data(self, data: Path) -> str:
        """Send a file or folder, unless the same content is there already; returns its path."""
        base = self.path("data", data_hash(data).partition(":")[2][:20])
        target = f"{base}/{data.name}" if data.is_file() else f"{base}/files"
        done = f"{base}/{self.complete}"
        if self.read(done) is None:
            if data.is_file():
                self.upload(data, target)
            else:
                self.upload_folder(data, target)
            self.write(done, str(data).encode())
        return target


def bucket_and_key(uri: str, scheme: str, where: str) -> tuple[str, str]:
    """The parts of an address such as ``gs://bucket/key``. Raises DataError where it is none."""
    parts = urlsplit(uri)
    if parts.scheme != scheme or not parts.netloc:
        raise DataError(
            f"{uri!r} is no address in {where}.", hint=f"One looks like {scheme}://bucket/folder/file."
        )
    return parts.netloc, parts.path.lstrip("/")
