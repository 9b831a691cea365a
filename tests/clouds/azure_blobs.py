"""Blob storage, as much of its published REST API as the SDK uses here: block blobs, conditions, ranges, leases, lists."""

from __future__ import annotations

import re
import threading
import time
import uuid
from collections.abc import Mapping
from dataclasses import dataclass, field
from email.utils import formatdate
from urllib.parse import unquote
from xml.etree import ElementTree
from xml.sax.saxutils import escape

Reply = tuple[int, dict[str, str], bytes]
SIGNATURE = "c2lnbmVkLWJ5LXRoZS10ZXN0cw"


class BlobError(Exception):
    """An error that the service answers with."""

    def __init__(self, status: int, code: str, message: str = "") -> None:
        super().__init__(message or code)
        self.status, self.code = status, code


@dataclass
class Blob:
    """A blob, and who has it for himself."""

    content: bytes = b""
    modified: float = field(default_factory=time.time)
    lease: str = ""
    until: float = 0.0

    @property
    def etag(self) -> str:
        """Another one after each change."""
        return f'"0x{int(self.modified * 1e7):X}"'

    @property
    def leased(self) -> bool:
        """Whether somebody has it."""
        return bool(self.lease) and time.time() < self.until


class BlobStore:
    """One storage account."""

    def __init__(self) -> None:
        self.lock = threading.RLock()
        self.blobs: dict[tuple[str, str], Blob] = {}
        self._blocks: dict[tuple[str, str], dict[str, bytes]] = {}

    # For the rest of the server, without HTTP

    def put(self, container: str, name: str, content: bytes) -> None:
        """Write one."""
        with self.lock:
            self.blobs[container, name] = Blob(content)

    def append(self, container: str, name: str, content: bytes) -> None:
        """Add to one."""
        with self.lock:
            blob = self.blobs.setdefault((container, name), Blob())
            blob.content, blob.modified = blob.content + content, time.time()

    def below(self, container: str, prefix: str) -> dict[str, bytes]:
        """All at an address or below it."""
        with self.lock:
            return {
                name: blob.content
                for (where, name), blob in self.blobs.items()
                if where == container and (name == prefix or name.startswith(prefix.rstrip("/") + "/"))
            }

    # The service

    def answer(
        self,
        method: str,
        container: str,
        name: str,
        query: Mapping[str, str],
        headers: Mapping[str, str],
        body: bytes,
    ) -> Reply:
        """A request's reply; ``headers`` by their names in lower case."""
        try:
            with self.lock:
                if not name:
                    return self._list(container, query)
                kind = query.get("comp", "")
                if method == "PUT" and kind == "block":
                    self._blocks.setdefault((container, name), {})[query["blockid"]] = body
                    return 201, {}, b""
                if method == "PUT" and kind == "lease":
                    return self._lease(container, name, headers)
                if method == "PUT":
                    return self._put(container, name, kind, headers, body)
                if method in ("GET", "HEAD"):
                    return self._get(method, container, name, headers)
                return self._delete(container, name, headers)
        except BlobError as error:
            said = f'<?xml version="1.0" encoding="utf-8"?><Error><Code>{error.code}</Code><Message>{escape(str(error))}</Message></Error>'
            return (
                error.status,
                {"x-ms-error-code": error.code, "Content-Type": "application/xml"},
                said.encode(),
            )

    def _blob(self, container: str, name: str) -> Blob:
        if (container, name) not in self.blobs:
            raise BlobError(404, "BlobNotFound", "The specified blob does not exist.")
        return self.blobs[container, name]

    def _held(self, blob: Blob | None, headers: Mapping[str, str]) -> None:
        if blob is not None and blob.leased and headers.get("x-ms-lease-id") != blob.lease:
            raise BlobError(
                412,
                "LeaseIdMissing",
                "There is currently a lease on the blob and no lease ID was specified in the request.",
            )

    def _put(self, container: str, name: str, kind: str, headers: Mapping[str, str], body: bytes) -> Reply:
        known = self.blobs.get((container, name))
        if headers.get("if-none-match") == "*" and known is not None:
            raise BlobError(409, "BlobAlreadyExists", "The specified blob already exists.")
        self._held(known, headers)
        if kind == "blocklist":
            blocks = self._blocks.pop((container, name), {})
            wanted = [item.text or "" for item in ElementTree.fromstring(body)]
            if any(block not in blocks for block in wanted):
                raise BlobError(400, "InvalidBlockList", "The specified block list is invalid.")
            body = b"".join(blocks[block] for block in wanted)
        elif headers.get("x-ms-blob-type") != "BlockBlob":
            raise BlobError(
                400,
                "MissingRequiredHeader",
                "An HTTP header that's mandatory for this request is not specified.",
            )
        fresh = Blob(body)
        if known is not None:
            fresh.lease, fresh.until = known.lease, known.until
        self.blobs[container, name] = fresh
        return 201, self._facts(fresh), b""

    def _get(self, method: str, container: str, name: str, headers: Mapping[str, str]) -> Reply:
        blob = self._blob(container, name)
        facts = {
            **self._facts(blob),
            "x-ms-blob-type": "BlockBlob",
            "Content-Type": "application/octet-stream",
        }
        wanted = headers.get("x-ms-range") or headers.get("range")
        if method == "HEAD":
            return 200, {**facts, "Content-Length": str(len(blob.content))}, b""
        if wanted is None:
            return 200, facts, blob.content
        match = re.fullmatch(r"bytes=(\d+)-(\d*)", wanted)
        assert match is not None
        start, end = int(match[1]), int(match[2] or 2**60)
        if start >= len(blob.content):
            raise BlobError(
                416, "InvalidRange", "The range specified is invalid for the current size of the resource."
            )
        part = blob.content[start : end + 1]
        place = f"bytes {start}-{start + len(part) - 1}/{len(blob.content)}"
        return 206, {**facts, "Content-Range": place}, part

    def _delete(self, container: str, name: str, headers: Mapping[str, str]) -> Reply:
        self._held(self._blob(container, name), headers)
        del self.blobs[container, name]
        return 202, {}, b""

    def _lease(self, container: str, name: str, headers: Mapping[str, str]) -> Reply:
        blob, action = self._blob(container, name), headers["x-ms-lease-action"]
        if action == "acquire":
            if blob.leased:
                raise BlobError(409, "LeaseAlreadyPresent", "There is already a lease present.")
            blob.lease = headers.get("x-ms-proposed-lease-id") or str(uuid.uuid4())
        elif action == "break":
            blob.lease = ""
        elif headers.get("x-ms-lease-id") != blob.lease:
            raise BlobError(
                409,
                "LeaseIdMismatchWithLeaseOperation",
                "The lease ID specified did not match the lease ID for the blob.",
            )
        seconds = float(headers.get("x-ms-lease-duration") or 60)
        blob.until = 0.0 if action == "release" else time.time() + seconds
        status = {"acquire": 201, "break": 202}.get(action, 200)
        return status, {**self._facts(blob), "x-ms-lease-id": blob.lease, "x-ms-lease-time": "0"}, b""

    def _list(self, container: str, query: Mapping[str, str]) -> Reply:
        prefix, start = query.get("prefix", ""), int(query.get("marker") or 0)
        names = sorted(name for where, name in self.blobs if where == container and name.startswith(prefix))
        size = min(int(query.get("maxresults") or 5000), 50)
        page, following = names[start : start + size], str(start + size) if start + size < len(names) else ""
        items = "".join(
            f"<Blob><Name>{escape(name)}</Name><Properties><Content-Length>{len(self.blobs[container, name].content)}</Content-Length>"
            "<BlobType>BlockBlob</BlobType></Properties></Blob>"
            for name in page
        )
        text = (
            f'<?xml version="1.0" encoding="utf-8"?><EnumerationResults ServiceEndpoint="https://here/" ContainerName="{container}">'
            f"<Prefix>{escape(prefix)}</Prefix><Blobs>{items}</Blobs><NextMarker>{following}</NextMarker></EnumerationResults>"
        )
        return 200, {"Content-Type": "application/xml"}, text.encode()

    def _facts(self, blob: Blob) -> dict[str, str]:
        return {
            "ETag": blob.etag,
            "Last-Modified": formatdate(blob.modified, usegmt=True),
            "x-ms-version": "2025-01-05",
        }


def place_of(path: str) -> tuple[str, str]:
    """Container and name from a path without the account."""
    container, _, name = path.partition("/")
    return container, unquote(name)
