"""S3: what is sent to SageMaker and what comes back."""

from __future__ import annotations

import tarfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from notebooked_dagster.errors import DataError
from notebooked_dagster.providers.cloud.storage import CloudStorage, bucket_and_key

from .session import AwsSession, code_of, translated

_GONE = ("NoSuchKey", "NoSuchBucket", "404", "NotFound")


class Storage(CloudStorage):
    """One folder of one bucket.

    Args:
        session: Credentials.
        bucket: The bucket; it has to exist.
        prefix: The folder in it.
    """

    def __init__(self, session: AwsSession, bucket: str, prefix: str) -> None:
        self._session = session
        self.bucket = bucket
        self.prefix = prefix.strip("/")

    @property
    def _s3(self) -> Any:
        return self._session.client("s3")

    def uri(self, *parts: str) -> str:
        """The address of something in our folder."""
        return "s3://" + "/".join(part for part in (self.bucket, self.prefix, *parts) if part)

    def upload(self, path: Path, uri: str) -> None:
        """Send a file."""
        bucket, key = split(uri)
        with translated(f"{uri} cannot be written"):
            self._s3.upload_file(str(path), bucket, key)

    def write(self, uri: str, content: bytes, *, new: bool = False) -> bool:
        """Write an object; with ``new`` only where there is none. Returns whether it was written."""
        bucket, key = split(uri)
        with translated(f"{uri} cannot be written"):
            try:
                extra = {"IfNoneMatch": "*"} if new else {}
                self._s3.put_object(Bucket=bucket, Key=key, Body=content, **extra)
            except _client_error() as error:
                if new and code_of(error) in ("PreconditionFailed", "ConditionalRequestConflict", "412"):
                    return False
                raise
        return True

    def read(self, uri: str) -> bytes | None:
        """An object's content; None where there is none."""
        bucket, key = split(uri)
        with translated(f"{uri} cannot be read"):
            try:
                return bytes(self._s3.get_object(Bucket=bucket, Key=key)["Body"].read())
            except _client_error() as error:
                if code_of(error) in _GONE:
                    return None
                raise

    def fetch(self, uri: str, target: Path) -> None:
        """Fetch an object into a file. Raises DataError where there is none."""
        bucket, key = split(uri)
        target.parent.mkdir(parents=True, exist_ok=True)
        with translated(f"{uri} cannot be read"):
            try:
                self._s3.download_file(bucket, key, str(target))
            except _client_error() as error:
                if code_of(error) in _GONE:
                    raise DataError(f"There is no {uri}.") from error
                raise

    def holds_a_file(self, uri: str) -> bool:
        """Whether an archive holds any file; only its start is read. Raises DataError where it is missing or damaged."""
        bucket, key = split(uri)
        with translated(f"{uri} cannot be read"):
            try:
                body = self._s3.get_object(Bucket=bucket, Key=key)["Body"]
            except _client_error() as error:
                if code_of(error) in _GONE:
                    raise DataError(f"There is no {uri}.") from error
                raise
            with body:
                try:
                    with tarfile.open(fileobj=body, mode="r|gz") as archive:
                        return any(member.isfile() for member in archive)
                except (tarfile.TarError, OSError, EOFError) as error:
                    raise DataError(f"{uri} is damaged: {error}.") from error

    def names(self, uri: str) -> Iterator[str]:
        """The addresses of all objects below one."""
        bucket, key = split(uri)
        with translated(f"{uri} cannot be listed"):
            for page in self._s3.get_paginator("list_objects_v2").paginate(
                Bucket=bucket, Prefix=key.rstrip("/") + "/"
            ):
                for item in page.get("Contents", ()):
                    yield f"s3://{bucket}/{item['Key']}"

    def holds(self, uri: str) -> bool:
        """Whether there is an object at an address, or any below it."""
        with translated(f"{uri} cannot be looked at"):
            return is_there(self._s3, uri)

    def remove_below(self, uri: str) -> int:
        """Remove all objects below an address; returns how many there were."""
        found = [split(name)[1] for name in self.names(uri)]
        with translated(f"{uri} cannot be removed"):
            for start in range(0, len(found), 1000):
                keys = [{"Key": key} for key in found[start : start + 1000]]
                self._s3.delete_objects(Bucket=split(uri)[0], Delete={"Objects": keys, "Quiet": True})
        return len(found)


def split(uri: str) -> tuple[str, str]:
    """Bucket and key. Raises DataError where it is no S3 address."""
    return bucket_and_key(uri, "s3", "S3")


def is_there(s3: Any, uri: str) -> bool:
    """Whether there is an object at an address, or any below it. Raises ClientError."""
    bucket, key = split(uri)
    try:
        if key and s3.head_object(Bucket=bucket, Key=key):
            return True
    except _client_error() as error:
        if code_of(error) not in _GONE:
            raise
    # `train-old/` is not below `train`.
    below = f"{key.rstrip('/')}/" if key else ""
    return bool(s3.list_objects_v2(Bucket=bucket, Prefix=below, MaxKeys=1)["KeyCount"])


def _client_error() -> type[Exception]:
    from botocore.exceptions import ClientError

    found: type[Exception] = ClientError
    return found
