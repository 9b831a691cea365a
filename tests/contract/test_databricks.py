"""DatabricksProvider passes the contract, against a server of ours that follows Databricks' published API."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from notebooked_dagster.providers.base import Experiment
from tests.clouds.databricks import DatabricksServer
from tests.clouds.databricks_kit import databricks_provider, databricks_server
from tests.contract.scripts import write_scripts
from tests.contract.suite import ProviderContract


class TestDatabricks(ProviderContract):
    @pytest.fixture
    def databricks(self, tmp_path: Path) -> Iterator[DatabricksServer]:
        with databricks_server(tmp_path / "databricks") as server:
            yield server

    @pytest.fixture
    def provider(self, tmp_path: Path, databricks: DatabricksServer):
        return databricks_provider(tmp_path / "state")

    @pytest.fixture
    def experiment(self, tmp_path: Path) -> Experiment:
        return Experiment("sample", write_scripts(tmp_path / "scripts"))
