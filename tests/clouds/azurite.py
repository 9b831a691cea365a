"""Microsoft's own emulator of blob storage, where ``make test`` could install it: what our stand-in is held against."""

from __future__ import annotations

import base64
import json
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

from .tls import certificate

ACCOUNT = "devstoreaccount1"


class Token(NamedTuple):
    """As azure-core has it."""

    token: str
    expires_on: int


class Credential:
    """A token that says what Azurite looks at: who made it, for whom, and until when. It checks no signature."""

    def get_token(self, *scopes: str, **more: Any) -> Token:
        now = int(time.time())
        claims = {
            "aud": "https://storage.azure.com",
            "iss": "https://sts.windows.net/00000000-0000-0000-0000-000000000000/",
            "iat": now - 60,
            "nbf": now - 60,
            "exp": now + 3600,
        }
        parts = [_part({"typ": "JWT", "alg": "RS256"}), _part(claims), _part({"no": "signature"})]
        return Token(".".join(parts), now + 3600)


def program() -> Path | None:
    """Where it is; None where it is not installed."""
    own = Path(sys.prefix) / "azurite" / "node_modules" / ".bin" / "azurite-blob"
    found = str(own) if own.exists() else shutil.which("azurite-blob")
    return Path(found) if found else None


@contextmanager
def azurite(folder: Path) -> Iterator[tuple[str, Path]]:
    """Start it; host and port, and whom to trust."""
    found = program()
    assert found is not None
    folder.mkdir(parents=True, exist_ok=True)
    authority, chain, key = certificate(folder)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    process = subprocess.Popen(
        [
            str(found), "--inMemoryPersistence", "--silent", "--skipApiVersionCheck", "--disableTelemetry", "--oauth", "basic",
            "--blobHost", "127.0.0.1", "--blobPort", str(port), "--cert", str(chain), "--key", str(key),
        ],
        cwd=folder, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
    )  # fmt: skip
    try:
        deadline = time.monotonic() + 30
        while True:
            assert process.poll() is None
            assert time.monotonic() < deadline
            try:
                socket.create_connection(("127.0.0.1", port), 1).close()
                break
            except OSError:
                time.sleep(0.05)
        yield f"127.0.0.1:{port}", authority
    finally:
        process.kill()
        process.wait(10)


def _part(data: dict[str, Any]) -> str:
    return base64.urlsafe_b64encode(json.dumps(data).encode()).rstrip(b"=").decode()
