"""An Azure for a test, and a provider that finds it."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from notebooked_dagster.providers.azure import AzureProvider
from notebooked_dagster.providers.registry import get_provider
from tests.clouds.azure import GROUP, WORKSPACE, AzureServer


@contextmanager
def azure_server(folder: Path) -> Iterator[AzureServer]:
    """A server with a workspace, which this process's SDK finds; no request or reply of it may break the published models."""
    server = AzureServer(folder)
    before = dict(os.environ)
    for name in [name for name in os.environ if name.startswith(("AZURE_", "IDENTITY_", "MSI_"))]:
        del os.environ[name]
    os.environ.update(server.environment())
    try:
        yield server
    finally:
        os.environ.clear()
        os.environ.update(before)
        server.close()
    assert server.ml.violations == []


def azure_provider(state: Path, server: AzureServer, **more: Any) -> AzureProvider:
    """A provider at a test's pace."""
    settings = {
        "resource_group": GROUP,
        "workspace": WORKSPACE,
        "endpoint_url": server.url,
        "poll": 0.05,
        "log_grace": 1.0,
        **more,
    }
    provider = get_provider("azure", state_dir=state, **settings)
    assert isinstance(provider, AzureProvider)
    return provider
