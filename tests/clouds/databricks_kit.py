"""A Databricks workspace for a test, and a provider that finds it."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from notebooked_dagster.providers.databricks import DatabricksProvider
from notebooked_dagster.providers.registry import get_provider
from tests.clouds.databricks import CATALOG, SCHEMA, TOKEN, VOLUME, DatabricksServer


@contextmanager
def databricks_server(folder: Path) -> Iterator[DatabricksServer]:
    """A workspace, and a profile that the SDK finds by its own chain; nothing said may break the published API."""
    server = DatabricksServer(folder)
    before = dict(os.environ)
    for name in [name for name in os.environ if name.startswith("DATABRICKS_")]:
        del os.environ[name]
    profiles = folder / "databrickscfg"
    profiles.write_text(f"[tests]\nhost = {server.url}\ntoken = {TOKEN}\n")
    os.environ["DATABRICKS_CONFIG_FILE"] = str(profiles)
    try:
        yield server
    finally:
        os.environ.clear()
        os.environ.update(before)
        server.close()
    assert server.workspace.violations == []


def settings(**more: Any) -> dict[str, Any]:
    """A provider's, at a test's pace."""
    return {
        "profile": "tests",
        "catalog": CATALOG,
        "schema_name": SCHEMA,
        "volume": VOLUME,
        "training": {"node_type_id": "i3.xlarge"},
        "poll": 0.05,
        "log_grace": 1.0,
        **more,
    }


def databricks_provider(state: Path, **more: Any) -> DatabricksProvider:
    """A provider of the workspace."""
    provider = get_provider("databricks", state_dir=state, **settings(**more))
    assert isinstance(provider, DatabricksProvider)
    return provider
