"""Cloud Storage's JSON API over a folder: an object is a file, so that the folder is what Cloud Storage FUSE would mount.

What a container writes into the mount is an object with a generation of its own. Preconditions (``ifGenerationMatch``),
uploads in one request, as multipart or resumable, ranges and checksums are as the API documents them.
"""

from __future__ import annotations

import base64
import hashlib
import json
import re
import secrets
import shutil
import threading
import time
from dataclasses import dataclass
from email.parser import BytesParser
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import google_crc32c

_OBJECT = re.compile(r"(?:/download)?/storage/v1/b/(?P<bucket>[^/]+)/o(?:/(?P<name>.+))?")
_BUCKET = re.compile(r"/storage/v1/b/(?P<bucket>[^/]+)(?P<iam>/iam/testPermissions)?")
_UPLOAD = re.compile(r"(?:/resumable)?/upload/storage/v1/b/(?P<bucket>[^/]+)/o")


class StorageError(Exception):
    """What the API answers with instead."""

    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status, self.message = status, message


@dataclass
class Reply:
    """Status, headers, body."""

    status: int
    headers: dict[str, str]
    body: bytes


class Gcs:
    """All buckets, in one folder."""

    def __init__(self, root: Path, location: str) -> None:
        self.root, self._location = root, location.upper()
        self._lock = threading.RLock()
        self._generations: dict[Path, tuple[int, int, int]] = {}
        self._uploads: dict[str, tuple[str, str, dict[str, str]]] = {}
        self.denied: set[str] = set()

    def make_bucket(self, name: str) -> None:
        """A new bucket."""
        (self.root / name).mkdir(parents=True)

    def path(self, bucket: str, name: str) -> Path:
        """Where an object's content lies."""
        if not (self.root / bucket).is_dir():
            raise StorageError(404, "The specified bucket does not exist.")
        return self.root / bucket / name

    def names(self, bucket: str, prefix: str = "") -> list[str]:
        """The names of the objects of a bucket."""
        base = self.path(bucket, "")
        found = [
            path.relative_to(base).as_posix()
            for path in base.rglob("*")
            if path.is_file() and ".partial-" not in path.name
        ]
        return sorted(name for name in found if name.startswith(prefix))

    def put(self, bucket: str, name: str, content: bytes, match: str | None = None) -> Path:
        """Write an object, where its generation is the one asked for."""
        with self._lock:
            path = self.path(bucket, name)
            self._expect(path, match)
            path.parent.mkdir(parents=True, exist_ok=True)
            half = path.with_name(f".partial-{secrets.token_hex(4)}")
            half.write_bytes(content)
            half.replace(path)
            return path

    def remove(self, bucket: str, name: str, match: str | None = None) -> None:
        """Remove an object."""
        with self._lock:
            path = self.path(bucket, name)
            if not path.is_file():
                raise StorageError(404, f"No such object: {bucket}/{name}")
            self._expect(path, match)
            path.unlink()

    def _expect(self, path: Path, match: str | None) -> None:
        if match is None:
            return
        now = self._generation(path) if path.is_file() else 0
        if int(match) != now:
            raise StorageError(412, "At least one of the pre-conditions you specified did not hold.")

    def _generation(self, path: Path) -> int:
        """A number that changes with the content, whoever wrote it."""
        with self._lock:
            facts = path.stat()
            known = self._generations.get(path)
            if known is None or known[1:] != (facts.st_mtime_ns, facts.st_ino):
                known = (time.time_ns() // 1000, facts.st_mtime_ns, facts.st_ino)
                self._generations[path] = known
            return known[0]

    # HTTP

    def operation(self, method: str, path: str) -> str | None:
        """What a request is, for faults; None where it is none of ours."""
        if _UPLOAD.fullmatch(path):
            return "WriteObject"
        if match := _OBJECT.fullmatch(path):
            if method == "DELETE":
                return "DeleteObject"
            return "ReadObject" if match["name"] else "ListObjects"
        return "GetBucket" if _BUCKET.fullmatch(path) else None

    def answer(
        self, method: str, path: str, query: dict[str, str], headers: dict[str, str], body: bytes, url: str
    ) -> Reply:
        """Answer a request."""
        try:
            if match := _UPLOAD.fullmatch(path):
                return self._upload(method, match["bucket"], query, headers, body, url)
            if match := _OBJECT.fullmatch(path):
                bucket, name = match["bucket"], unquote(match["name"] or "")
                if not name:
                    return self._list(bucket, query)
                if method == "DELETE":
                    self.remove(bucket, name, query.get("ifGenerationMatch"))
                    return Reply(204, {}, b"")
                return self._get(bucket, name, query, headers)
            match = _BUCKET.fullmatch(path)
            assert match is not None
            self.path(match["bucket"], "")
            if match["iam"]:
                asked = query.get("permissions", "").split(",")
                allowed = [item for item in asked if item not in self.denied]
                return _json({"kind": "storage#testIamPermissionsResponse", "permissions": allowed})
            return _json(
                {
                    "kind": "storage#bucket",
                    "id": match["bucket"],
                    "name": match["bucket"],
                    "location": self._location,
                }
            )
        except StorageError as error:
            document = {
                "error": {
                    "code": error.status,
                    "message": error.message,
                    "errors": [{"message": error.message, "domain": "global", "reason": "notFound"}],
                }
            }
            return _json(document, error.status)

    def _describe(self, bucket: str, name: str) -> dict[str, Any]:
        path = self.path(bucket, name)
        content = path.read_bytes()
        moment = time.strftime("%Y-%m-%dT%H:%M:%S.000Z", time.gmtime(path.stat().st_mtime))
        return {
            "kind": "storage#object",
            "id": f"{bucket}/{name}/{self._generation(path)}",
            "name": name,
            "bucket": bucket,
            "generation": str(self._generation(path)),
            "metageneration": "1",
            "contentType": "application/octet-stream",
            "size": str(len(content)),
            "timeCreated": moment,
            "updated": moment,
            "md5Hash": base64.b64encode(hashlib.md5(content, usedforsecurity=False).digest()).decode(),
            "crc32c": base64.b64encode(google_crc32c.Checksum(content).digest()).decode(),
        }

    def _list(self, bucket: str, query: dict[str, str]) -> Reply:
        names = self.names(bucket, query.get("prefix", ""))
        start = int(query.get("pageToken", "0"))
        end = start + int(query.get("maxResults", "1000"))
        items = [self._describe(bucket, name) for name in names[start:end]]
        more = {"nextPageToken": str(end)} if end < len(names) else {}
        return _json({"kind": "storage#objects", **({"items": items} if items else {}), **more})

    def _get(self, bucket: str, name: str, query: dict[str, str], headers: dict[str, str]) -> Reply:
        path = self.path(bucket, name)
        if not path.is_file():
            raise StorageError(404, f"No such object: {bucket}/{name}")
        with self._lock:
            self._expect(path, query.get("ifGenerationMatch"))
            facts, content = self._describe(bucket, name), path.read_bytes()
        if query.get("alt") != "media":
            return _json(facts)
        found = {
            "Content-Type": "application/octet-stream",
            "X-Goog-Generation": facts["generation"],
            "X-Goog-Metageneration": "1",
            "X-Goog-Hash": f"crc32c={facts['crc32c']},md5={facts['md5Hash']}",
        }
        span = re.fullmatch(r"bytes=(\d+)-(\d*)", headers.get("range", ""))
        if span is None:
            return Reply(200, found, content)
        first = int(span[1])
        last = min(int(span[2]) if span[2] else len(content) - 1, len(content) - 1)
        if first >= len(content):
            return Reply(416, {"Content-Range": f"bytes */{len(content)}"}, b"")
        found["Content-Range"] = f"bytes {first}-{last}/{len(content)}"
        return Reply(206, found, content[first : last + 1])

    def _upload(
        self, method: str, bucket: str, query: dict[str, str], headers: dict[str, str], body: bytes, url: str
    ) -> Reply:
        match = query.get("ifGenerationMatch")
        kind = query.get("uploadType")
        if kind == "multipart":
            head = f"Content-Type: {headers['content-type']}\r\n\r\n".encode()
            about, content = BytesParser().parsebytes(head + body).get_payload()
            name = json.loads(about.get_payload(decode=True))["name"]
            self.put(bucket, name, content.get_payload(decode=True), match)
        elif kind == "media":
            name = query["name"]
            self.put(bucket, name, body, match)
        elif method == "POST":
            name = query.get("name") or json.loads(body)["name"]
            upload = secrets.token_hex(8)
            self._uploads[upload] = (bucket, name, query)
            place = f"{url}/upload/storage/v1/b/{bucket}/o?uploadType=resumable&upload_id={upload}"
            return Reply(200, {"Location": place}, b"")
        else:
            bucket, name, first = self._uploads[query["upload_id"]]
            self.put(bucket, name, body, first.get("ifGenerationMatch"))
        return _json(self._describe(bucket, name))

    def clear(self) -> None:
        """Remove everything."""
        shutil.rmtree(self.root, ignore_errors=True)


def _json(document: dict[str, Any], status: int = 200) -> Reply:
    return Reply(status, {"Content-Type": "application/json; charset=UTF-8"}, json.dumps(document).encode())
