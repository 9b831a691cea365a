"""Blobs: what is sent to Azure Machine Learning and what comes back, by the addresses that its jobs know them by."""

from __future__ import annotations

import re
import shutil
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from functools import lru_cache
from importlib import import_module
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from notebooked_dagster.errors import ConfigError, DataError, DeploymentConflictError
from notebooked_dagster.providers.cloud.storage import CloudStorage

from .session import AzureSession, code_of, package, translated

_ADDRESS = re.compile(
    r"(?i)azureml://(?P<workspace>subscriptions/[^/]+/resourcegroups/[^/]+/(providers/[^/]+/)?workspaces/[^/]+/)?"
    r"datastores/(?P<store>[^/]+)/paths/(?P<path>.+)"
)
_LEASE = 60
_PARALLEL = 4


class Storage(CloudStorage):
    """One folder of one blob datastore.

    Args:
        session: The workspace.
        datastore: The datastore's name.
        prefix: The folder in it.
    """

    def __init__(self, session: AzureSession, datastore: str, prefix: str) -> None:
        self._session = session
        self.datastore = datastore
        self.prefix = prefix.strip("/")
        self._container = lru_cache(maxsize=8)(self._connect)

    def uri(self, *parts: str) -> str:
        """The address of something in our folder."""
        path = "/".join(part for part in (self.prefix, *parts) if part)
        return f"azureml://datastores/{self.datastore}/paths/{path}"

    def long(self, uri: str) -> str:
        """The same place with its workspace, as models are registered from it; jobs know the short form as well."""
        store, path = self._split(uri)
        return f"azureml://{self._own()}datastores/{store}/paths/{path}"

    def url(self, uri: str) -> str:
        """The same place as a blob's address, which code assets are made from."""
        store, path = self._split(uri)
        return f"{self._container(store).url}/{path}"

    def account(self) -> tuple[str, str]:
        """The storage account and the container behind our datastore."""
        properties = self._described(self.datastore)
        return str(properties["accountName"]), str(properties["containerName"])

    def upload(self, path: Path, uri: str) -> None:
        """Send a file."""
        with translated(f"{uri} cannot be written"), path.open("rb") as stream:
            self._blob(uri).upload_blob(stream, overwrite=True, max_concurrency=_PARALLEL)

    def write(self, uri: str, content: bytes, *, new: bool = False) -> bool:
        """Write a blob; with ``new`` only where there is none. Returns whether it was written."""
        errors = package("azure.core.exceptions")
        with translated(f"{uri} cannot be written"):
            try:
                self._blob(uri).upload_blob(content, overwrite=not new)
            except errors.HttpResponseError as error:
                # A blob that somebody holds is told by its lease before it is told by its being there.
                if new and error.status_code in (409, 412):
                    return False
                raise
        return True

    def read(self, uri: str) -> bytes | None:
        """A blob's content; None where there is none."""
        errors = package("azure.core.exceptions")
        with translated(f"{uri} cannot be read"):
            try:
                return bytes(self._blob(uri).download_blob().readall())
            except errors.ResourceNotFoundError:
                return None

    def fetch(self, uri: str, target: Path) -> None:
        """Fetch a blob into a file. Raises DataError where there is none."""
        errors = package("azure.core.exceptions")
        target.parent.mkdir(parents=True, exist_ok=True)
        with translated(f"{uri} cannot be read"):
            try:
                with target.open("wb") as stream:
                    self._blob(uri).download_blob(max_concurrency=_PARALLEL).readinto(stream)
            except errors.ResourceNotFoundError as error:
                raise DataError(f"There is no {uri}.") from error

    def fetch_folder(self, uri: str, target: Path) -> None:
        """Fetch a folder, which appears only when it is whole. Raises DataError where there is none."""
        half = target.with_name(f".{target.name}.half")
        shutil.rmtree(half, ignore_errors=True)
        found = 0
        start = "/".join(("azureml://datastores", self._split(uri)[0], "paths", self._split(uri)[1], ""))
        for name in self._files(uri):
            relative = name.removeprefix(start)
            place = (half / relative).resolve()
            if not place.is_relative_to(half.resolve()):
                raise DataError(f"{uri} holds {relative!r}, which does not belong into one folder.")
            self.fetch(name, place)
            found += 1
        if not found:
            raise DataError(f"There is nothing at {uri}.")
        shutil.rmtree(target, ignore_errors=True)
        target.parent.mkdir(parents=True, exist_ok=True)
        half.rename(target)

    def tail(self, url: str, offset: int) -> bytes:
        """What a blob whose address carries its own permission has from ``offset`` on; empty where that is its end."""
        errors = package("azure.core.exceptions")
        with translated("A log cannot be read"):
            try:
                blob = package("azure.storage.blob").BlobClient.from_blob_url(url, **_patience())
                return bytes(blob.download_blob(offset=offset).readall())
            except errors.ResourceNotFoundError:
                return b""
            except errors.HttpResponseError as error:
                if error.status_code == 416 or code_of(error) == "InvalidRange":
                    return b""
                raise

    def names(self, uri: str) -> Iterator[str]:
        """The addresses of all blobs below one."""
        store, path = self._split(uri)
        start = f"azureml://datastores/{store}/paths/"
        with translated(f"{uri} cannot be listed"):
            for name in self._container(store).list_blob_names(name_starts_with=path.rstrip("/") + "/"):
                yield f"{start}{name}"

    def _files(self, uri: str) -> list[str]:
        """As ``names``, without the folders: a mount, and an account with a hierarchy, keep a blob for each."""
        names = list(self.names(uri))
        folders = {parent for name in names for parent in _parents(name)}
        return [name for name in names if name not in folders]

    def holds(self, uri: str) -> bool:
        """Whether there is a blob at an address, or anything below it."""
        return next(self.names(uri), None) is not None or self.read(uri) is not None

    def remove_below(self, uri: str, *, but: str | None = None) -> int:
        """Remove all blobs below an address, except one; returns how many there were."""
        errors = package("azure.core.exceptions")
        # Folders that are blobs can be removed when they are empty.
        found = sorted((name for name in self.names(uri) if name != but), reverse=True)
        with translated(f"{uri} cannot be removed"):
            for name in found:
                with suppress(errors.ResourceNotFoundError):
                    self._blob(name).delete_blob()
        return len(found)

    @contextmanager
    def lock(self, uri: str, said: str) -> Iterator[Callable[[], None]]:
        """Hold a blob's lease, which ends a minute after this process does, or is cut off.

        Yields:
            What makes sure that the lease is held still, before something that only its holder may do.

        Raises:
            DeploymentConflictError: Somebody else holds it; ``said`` is what is said of that.
        """
        errors = package("azure.core.exceptions")
        lease = None
        while lease is None:
            self.write(uri, b"", new=True)
            with translated(f"{uri} cannot be locked"):
                try:
                    lease = self._blob(uri).acquire_lease(lease_duration=_LEASE)
                except errors.ResourceNotFoundError:
                    # Whoever held it has removed it since.
                    continue
                except errors.HttpResponseError as error:
                    if error.status_code not in (409, 412):
                        raise
                    raise _taken(said) from error
        done = threading.Event()

        def renew() -> None:
            while not done.wait(_LEASE / 3):
                with suppress(errors.AzureError):
                    lease.renew()

        def hold() -> None:
            with translated(f"{uri} cannot be locked"):
                try:
                    lease.renew()
                except errors.HttpResponseError as error:
                    # One that has run out can be renewed until somebody else takes it.
                    if error.status_code not in (404, 409, 412):
                        raise
                    raise _taken(said) from error

        threading.Thread(target=renew, daemon=True).start()
        try:
            yield hold
        finally:
            done.set()
            with suppress(errors.AzureError):
                self._blob(uri).delete_blob(lease=lease)

    def _blob(self, uri: str) -> Any:
        store, path = self._split(uri)
        return self._container(store).get_blob_client(path)

    def _own(self) -> str:
        session = self._session
        return f"subscriptions/{session.subscription}/resourcegroups/{session.resource_group}/workspaces/{session.workspace_name}/"

    def _split(self, uri: str) -> tuple[str, str]:
        """Datastore and path; what another workspace has under the same name is not taken for ours."""
        match = _ADDRESS.fullmatch(uri)
        if match is not None and match["workspace"]:
            theirs = re.sub(r"(?i)providers/[^/]+/", "", match["workspace"])
            if theirs.lower() != self._own().lower():
                raise DataError(
                    f"{uri} is of another workspace than {self._session.workspace_name!r}.",
                    hint="Correct the section azure, or copy it to this workspace.",
                )
        return split(uri)

    def _described(self, store: str) -> dict[str, Any]:
        found = self._session.call(
            "GET", f"/datastores/{store}", what=f"The datastore {store!r} cannot be looked at", missing=True
        )
        if found is None:
            raise ConfigError(
                f"The workspace has no datastore {store!r}.",
                key="azure.datastore",
                hint="`az ml datastore list` prints what there is.",
            )
        properties: dict[str, Any] = found["properties"]
        if properties.get("datastoreType") != "AzureBlob":
            raise ConfigError(
                f"The datastore {store!r} is of the kind {properties.get('datastoreType')}; it has to be blobs.",
                key="azure.datastore",
                hint="Name another; every workspace has `workspaceblobstore`.",
            )
        return properties

    def _connect(self, store: str) -> Any:
        properties = self._described(store)
        address = account_url(
            str(properties["accountName"]),
            str(properties.get("endpoint") or "core.windows.net"),
            str(properties.get("protocol") or "https"),
        )
        with translated(f"The datastore {store!r} cannot be used"):
            return package("azure.storage.blob").ContainerClient(
                address, str(properties["containerName"]), credential=self._session.credential, **_patience()
            )


def account_url(account: str, endpoint: str, protocol: str) -> str:
    """Where an account's blobs are; an emulator has no name for each account, only a folder."""
    host = endpoint.partition(":")[0]
    if host == "localhost" or re.fullmatch(r"[\d.]+", host):
        return f"{protocol}://{endpoint}/{account}"
    return f"{protocol}://{account}.blob.{endpoint}"


def split(uri: str) -> tuple[str, str]:
    """Datastore and path. Raises DataError where it is no address in a datastore."""
    match = _ADDRESS.fullmatch(uri)
    if match is None:
        raise DataError(
            f"{uri!r} is no address in a datastore.",
            hint="One looks like azureml://datastores/workspaceblobstore/paths/folder/file.",
        )
    return match["store"], match["path"].strip("/")


def _taken(said: str) -> DeploymentConflictError:
    return DeploymentConflictError(said, hint="Wait until it is done, then deploy again.")


def _parents(name: str) -> list[str]:
    parts = name.split("/")
    return ["/".join(parts[:end]) for end in range(4, len(parts))]


def is_address(uri: str) -> bool:
    """Whether a job of Azure Machine Learning can read from there."""
    return urlsplit(uri).scheme in ("azureml", "https", "abfss", "wasbs", "adl")


def _patience() -> dict[str, Any]:
    retries = import_module("azure.storage.blob").ExponentialRetry(
        initial_backoff=1, increment_base=2, retry_total=3, random_jitter_range=1
    )
    return {"retry_policy": retries, "connection_timeout": 10, "read_timeout": 70}
