"""A Vertex AI for a test, and a provider that finds it."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from notebooked_dagster.providers.registry import get_provider
from notebooked_dagster.providers.vertex import VertexProvider
from tests.clouds.gcp import ACCOUNT, PROJECT, REGION, GcpServer

BUCKET = "ml-bucket"


@contextmanager
def gcp_server(folder: Path) -> Iterator[GcpServer]:
    """A server with a bucket, and credentials that google.auth finds by its own chain."""
    server = GcpServer(folder)
    before = dict(os.environ)
    for name in ("GOOGLE_CLOUD_PROJECT", "GCLOUD_PROJECT", "STORAGE_EMULATOR_HOST"):
        os.environ.pop(name, None)
    credentials = folder / "credentials.json"
    credentials.write_text(json.dumps(_federated(server.url, folder)))
    os.environ.update({"GOOGLE_APPLICATION_CREDENTIALS": str(credentials), "NO_GCE_CHECK": "true"})
    try:
        server.gcs.make_bucket(BUCKET)
        yield server
    finally:
        os.environ.clear()
        os.environ.update(before)
        server.close()


def settings(server: GcpServer, **more: Any) -> dict[str, Any]:
    """A provider's, at a test's pace."""
    return {
        "project": PROJECT,
        "region": REGION,
        "bucket": BUCKET,
        "service_account": ACCOUNT,
        "endpoint_url": server.url,
        "poll": 0.05,
        "log_grace": 1.0,
        "claim": 8.0,
        **more,
    }


def vertex_provider(state: Path, server: GcpServer, **more: Any) -> VertexProvider:
    """A provider of a server."""
    provider = get_provider("vertex", state_dir=state, **settings(server, **more))
    assert isinstance(provider, VertexProvider)
    return provider


def _federated(url: str, folder: Path) -> dict[str, object]:
    """Credentials as those of a workload identity federation: a token of somebody else's, exchanged for one of Google's."""
    (folder / "subject-token").write_text("whoever runs the tests")
    return {
        "type": "external_account",
        # Of no pool there is: for one that is, google.auth asks Google in which regions its tokens may be used.
        "audience": "//iam.googleapis.com/nobody",
        "subject_token_type": "urn:ietf:params:oauth:token-type:jwt",
        "token_url": f"{url}/token",
        "credential_source": {"file": str(folder / "subject-token")},
    }
