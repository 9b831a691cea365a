"""A Kubernetes for a test, and a provider that finds it."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import boto3

from notebooked_dagster.providers.kubernetes import KubernetesProvider
from notebooked_dagster.providers.registry import get_provider
from tests.clouds.kube import ACCOUNT, NAMESPACE, TOKEN, KubeServer

BUCKET = "ml-bucket"
_KEYS = {"AWS_ACCESS_KEY_ID": "test", "AWS_SECRET_ACCESS_KEY": "test"}


@contextmanager
def kube_server(folder: Path) -> Iterator[KubeServer]:
    """A cluster that this process's kubeconfig leads to, with a bucket; nothing it was sent or answered breaks a schema."""
    server = KubeServer(folder)
    before = dict(os.environ)
    for name in ("AWS_PROFILE", "KUBERNETES_SERVICE_HOST", "AWS_ENDPOINT_URL", "AWS_DEFAULT_REGION"):
        os.environ.pop(name, None)
    config = folder / "kubeconfig"
    config.write_text(json.dumps(_kubeconfig(server.url)))
    os.environ.update({"KUBECONFIG": str(config), **_KEYS})
    server.cluster.secrets["store-keys"] = dict(_KEYS)
    try:
        s3(server).create_bucket(Bucket=BUCKET)
        yield server
    finally:
        os.environ.clear()
        os.environ.update(before)
        server.close()
    assert server.cluster.violations == []


def s3(server: KubeServer) -> Any:
    """A client of its object store."""
    return boto3.client(
        "s3",
        endpoint_url=server.s3_url,
        region_name="us-east-1",
        aws_access_key_id="test",
        aws_secret_access_key="test",
    )


def settings(server: KubeServer, **more: Any) -> dict[str, Any]:
    """A provider's, at a test's pace."""
    storage = {
        "url": f"s3://{BUCKET}/notebooked",
        "endpoint_url": server.s3_url,
        "access_from": "store-keys",
    }
    return {
        "service_account": ACCOUNT,
        "storage": {**storage, **more.pop("storage", {})},
        "training": {"grace": 2, **more.pop("training", {})},
        "poll": 0.1,
        "log_grace": 0.3,
        **more,
    }


def kubernetes_provider(state: Path, server: KubeServer, **more: Any) -> KubernetesProvider:
    """A provider of a server."""
    provider = get_provider("kubernetes", state_dir=state, **settings(server, **more))
    assert isinstance(provider, KubernetesProvider)
    return provider


def kserve_provider(state: Path, server: KubeServer, **more: Any) -> KubernetesProvider:
    """A provider of a server on which KServe is installed, and serves."""
    server.cluster.kserve = server.cluster.light = True
    endpoint = {"operator": "kserve", "gateway": server.gateway_url, **more.pop("endpoint", {})}
    return kubernetes_provider(state, server, endpoint=endpoint, **more)


def _kubeconfig(url: str) -> dict[str, Any]:
    return {
        "apiVersion": "v1",
        "kind": "Config",
        "current-context": "test",
        "clusters": [{"name": "here", "cluster": {"server": url}}],
        "users": [{"name": "me", "user": {"token": TOKEN}}],
        "contexts": [{"name": "test", "context": {"cluster": "here", "user": "me", "namespace": NAMESPACE}}],
    }
