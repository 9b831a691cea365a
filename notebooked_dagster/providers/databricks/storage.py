"""A volume of Unity Catalog: what is sent to Databricks and what comes back, through the Files API."""

from __future__ import annotations

import io
import shutil
import tarfile
from collections.abc import Iterator
from datetime import datetime
from email.utils import parsedate_to_datetime
from pathlib import Path
from typing import Any

from notebooked_dagster.errors import DataError
from notebooked_dagster.providers.cloud.storage import CloudStorage

from .session import DatabricksSession, code_of, translated

# Databricks writes the address of a file in a volume with one slash or with three; with three, everybody sees that it is one.
SCHEME = "dbfs://"


class Storage(CloudStorage):
    """One folder of one volume.

    Args:
        session: Credentials.
        catalog: The catalog.
        schema: The schema.
        volume: The volume; it has to exist.
        prefix: The folder in it.
    """

    complete = "complete"

    def __init__(
        self, session: DatabricksSession, catalog: str, schema: str, volume: str, prefix: str
    ) -> None:
        self._session = session
        self.catalog, self.schema, self.volume = catalog, schema, volume
        self.prefix = prefix.strip("/")
        self._made: set[str] = set()

    @property
    def _files(self) -> Any:
        return self._session.client.files

    def path(self, *parts: str) -> str:
        """Where something in our folder lies on a cluster's file system; the Files API has the same names."""
        top = ("/Volumes", self.catalog, self.schema, self.volume)
        return "/".join(part for part in (*top, self.prefix, *parts) if part)

    def uri(self, *parts: str) -> str:
        """The address of something in our folder."""
        return SCHEME + self.path(*parts)

    def upload(self, file: Path, path: str) -> None:
        """Send a file."""
        with translated(f"{path} cannot be written"):
            self._room(path)

            def send() -> None:
                with file.open("rb") as stream:
                    self._files.upload(path, stream, overwrite=True)

            self._session.again(send)

    def write(self, path: str, content: bytes) -> None:
        """Write a file."""
        with translated(f"{path} cannot be written"):
            self._room(path)
            self._session.again(lambda: self._files.upload(path, io.BytesIO(content), overwrite=True))

    def _room(self, path: str) -> None:
        folder = path.rpartition("/")[0]
        if folder not in self._made:
            self._session.again(lambda: self._files.create_directory(folder))
            self._made.add(folder)

    def read(self, path: str) -> bytes | None:
        """A file's content; None where there is none."""
        with translated(f"{path} cannot be read"):
            try:
                return self._session.again(lambda: bytes(self._files.download(path).contents.read()))
            except Exception as error:
                if code_of(error) == 404:
                    return None
                raise

    def written_at(self, path: str) -> datetime | None:
        """When a file was last written; None where there is none."""
        with translated(f"{path} cannot be looked at"):
            try:
                found = self._session.again(lambda: self._files.get_metadata(path))
            except Exception as error:
                if code_of(error) == 404:
                    return None
                raise
        return parsedate_to_datetime(found.last_modified)

    def remove(self, path: str) -> None:
        """Remove a file, where it is there."""
        with translated(f"{path} cannot be removed"):
            try:
                self._session.again(lambda: self._files.delete(path))
            except Exception as error:
                if code_of(error) != 404:
                    raise

    def fetch(self, path: str, target: Path) -> None:
        """Fetch a file. Raises DataError where there is none."""
        target.parent.mkdir(parents=True, exist_ok=True)

        def receive() -> None:
            with target.open("wb") as stream:
                shutil.copyfileobj(self._files.download(path).contents, stream)

        with translated(f"{path} cannot be read"):
            try:
                self._session.again(receive)
            except Exception as error:
                if code_of(error) == 404:
                    raise DataError(f"There is no {path}.") from error
                raise

    def holds_a_file(self, path: str) -> bool:
        """Whether an archive holds any file; only its start is read. Raises DataError where it is missing or damaged."""
        with translated(f"{path} cannot be read"):
            try:
                body = self._session.again(lambda: self._files.download(path).contents)
            except Exception as error:
                if code_of(error) == 404:
                    raise DataError(f"There is no {path}.") from error
                raise
            with body:
                try:
                    with tarfile.open(fileobj=body, mode="r|gz") as archive:
                        return any(member.isfile() for member in archive)
                except (tarfile.TarError, OSError, EOFError) as error:
                    # What `requests` and the SDK raise is an OSError too.
                    if type(error).__module__.startswith(("requests", "databricks")):
                        raise
                    raise DataError(f"{path} is damaged: {error}.") from error

    def holds(self, path: str) -> bool:
        """Whether there is a file or folder of this path."""
        if self.written_at(path) is not None:
            return True
        with translated(f"{path} cannot be looked at"):
            try:
                self._session.again(lambda: self._files.get_directory_metadata(path))
            except Exception as error:
                if code_of(error) == 404:
                    return False
                raise
        return True

    def names(self, path: str) -> list[str]:
        """The paths of all files below a folder; none where there is no such folder."""
        with translated(f"{path} cannot be listed"):
            return sorted(found for found, is_folder in self._walk(path) if not is_folder)

    def remove_below(self, path: str) -> None:
        """Remove a folder with all that is in it."""
        with translated(f"{path} cannot be removed"):
            for folder, is_folder in reversed(list(self._walk(path))):
                try:
                    act = self._files.delete_directory if is_folder else self._files.delete
                    self._session.again(lambda act=act, folder=folder: act(folder))  # type: ignore[misc]
                except Exception as error:
                    if code_of(error) != 404:
                        raise
        self._made = {folder for folder in self._made if not folder.startswith(path)}

    def _walk(self, path: str) -> Iterator[tuple[str, bool]]:
        """A folder and all that is below it, outermost first, and whether each is a folder."""
        try:
            entries = self._session.again(lambda: list(self._files.list_directory_contents(path)))
        except Exception as error:
            if code_of(error) == 404:
                return
            raise
        yield path, True
        for entry in entries:
            if entry.is_directory:
                yield from self._walk(entry.path.rstrip("/"))
            else:
                yield entry.path, False


def volume_path(uri: str) -> str:
    """The path of an address in a volume. Raises DataError where it is none."""
    path = uri.removeprefix(SCHEME).removeprefix("dbfs:")
    if not path.startswith("/Volumes/") or ".." in path.split("/"):
        raise DataError(
            f"{uri!r} is no address in a volume.",
            hint="One looks like dbfs:///Volumes/catalog/schema/volume/file.",
        )
    return path
