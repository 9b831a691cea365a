"""Cloud Storage: what is sent to Vertex AI and what comes back."""

from __future__ import annotations

import tarfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from notebooked_dagster.errors import DataError
from notebooked_dagster.providers.cloud.storage import CloudStorage, bucket_and_key

from .session import TIMEOUT, GcpSession, code_of, translated

_CHUNK = 1 << 20


class Storage(CloudStorage):
    """One folder of one bucket.

    Args:
        session: Credentials.
        bucket: The bucket; it has to exist.
        prefix: The folder in it.
    """

    def __init__(self, session: GcpSession, bucket: str, prefix: str) -> None:
        self._session = session
        self.bucket = bucket
        self.prefix = prefix.strip("/")

    def uri(self, *parts: str) -> str:
        """The address of something in our folder."""
        return "gs://" + "/".join(part for part in (self.bucket, self.prefix, *parts) if part)

    def _blob(self, uri: str) -> Any:
        bucket, name = split(uri)
        return self._session.storage.bucket(bucket).blob(name)

    def upload(self, path: Path, uri: str) -> None:
        """Send a file."""
        with translated(f"{uri} cannot be written"):
            self._session.again(
                # The SDK's own retries have deadlines of minutes; ours end when somebody else is to decide.
                lambda: self._blob(uri).upload_from_filename(str(path), timeout=TIMEOUT, retry=None)
            )

    def write(self, uri: str, content: bytes, *, generation: int | None = None) -> int | None:
        """Write an object.

        Args:
            uri: Where.
            content: What.
            generation: Only where the object has this generation now; 0 for only where there is none.

        Returns:
            Its new generation; None where it has another one than was asked for.
        """
        blob = self._blob(uri)
        with translated(f"{uri} cannot be written"):
            try:
                self._session.again(
                    lambda: blob.upload_from_string(
                        content, if_generation_match=generation, timeout=TIMEOUT, retry=None
                    )
                )
            except Exception as error:
                if code_of(error) != 412:
                    raise
                return self._ours(uri, content) if generation is not None else None
        return int(blob.generation)

    def _ours(self, uri: str, content: bytes) -> int | None:
        """The generation of an object that was there: the reply to an earlier try of ours may have been lost."""
        found = self.versioned(uri)
        return found[1] if found is not None and found[0] == content else None

    def read(self, uri: str) -> bytes | None:
        """An object's content; None where there is none."""
        found = self.versioned(uri)
        return found[0] if found is not None else None

    def versioned(self, uri: str) -> tuple[bytes, int] | None:
        """An object's content and generation; None where there is none."""
        blob = self._blob(uri)
        with translated(f"{uri} cannot be read"):
            try:
                content = self._session.again(lambda: blob.download_as_bytes(timeout=TIMEOUT, retry=None))
            except Exception as error:
                if code_of(error) == 404:
                    return None
                raise
        return bytes(content), int(blob.generation or 0)

    def remove(self, uri: str, generation: int | None = None) -> None:
        """Remove an object, where it is there and of this generation."""
        with translated(f"{uri} cannot be removed"):
            try:
                self._session.again(
                    lambda: self._blob(uri).delete(
                        if_generation_match=generation, timeout=TIMEOUT, retry=None
                    )
                )
            except Exception as error:
                if code_of(error) not in (404, 412):
                    raise

    def fetch(self, uri: str, target: Path) -> None:
        """Fetch an object into a file. Raises DataError where there is none."""
        target.parent.mkdir(parents=True, exist_ok=True)
        with translated(f"{uri} cannot be read"):
            try:
                self._session.again(
                    lambda: self._blob(uri).download_to_filename(str(target), timeout=TIMEOUT, retry=None)
                )
            except Exception as error:
                if code_of(error) == 404:
                    raise DataError(f"There is no {uri}.") from error
                raise

    def holds_a_file(self, uri: str) -> bool:
        """Whether an archive holds any file; only its start is read. Raises DataError where it is missing or damaged."""
        with translated(f"{uri} cannot be read"):
            try:
                with (
                    self._blob(uri).open("rb", chunk_size=_CHUNK, timeout=TIMEOUT, retry=None) as body,
                    tarfile.open(fileobj=body, mode="r|gz") as archive,
                ):
                    return any(member.isfile() for member in archive)
            except (tarfile.TarError, OSError, EOFError) as error:
                # What `requests` raises is an OSError too.
                if type(error).__module__.startswith("requests"):
                    raise
                raise DataError(f"{uri} is damaged: {error}.") from error
            except Exception as error:
                if code_of(error) == 404:
                    raise DataError(f"There is no {uri}.") from error
                raise

    def holds(self, uri: str) -> bool:
        """Whether there is an object of this address, or any below it."""
        bucket, name = split(uri)
        with translated(f"{uri} cannot be looked at"):
            return self._session.again(
                lambda: (
                    (bool(name) and self._blob(uri).exists(timeout=TIMEOUT, retry=None))
                    or any(
                        self._session.storage.list_blobs(
                            bucket,
                            prefix=f"{name.rstrip('/')}/" if name else None,
                            max_results=1,
                            timeout=TIMEOUT,
                            retry=None,
                        )
                    )
                )
            )

    def names(self, uri: str) -> Iterator[str]:
        """The addresses of all objects below one."""
        bucket, name = split(uri)
        with translated(f"{uri} cannot be listed"):
            found = self._session.again(
                lambda: [
                    item.name
                    for item in self._session.storage.list_blobs(
                        bucket, prefix=name.rstrip("/") + "/", timeout=TIMEOUT, retry=None
                    )
                ]
            )
        yield from (f"gs://{bucket}/{item}" for item in found)

    def remove_below(self, uri: str) -> int:
        """Remove all objects below an address; returns how many there were."""
        found = list(self.names(uri))
        for name in found:
            self.remove(name)
        return len(found)


def split(uri: str) -> tuple[str, str]:
    """Bucket and name. Raises DataError where it is no address in Cloud Storage."""
    return bucket_and_key(uri, "gs", "Cloud Storage")
