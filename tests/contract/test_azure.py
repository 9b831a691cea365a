"""AzureProvider passes the contract, against a server of ours that follows the published API of Azure Machine Learning."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from notebooked_dagster.providers.base import Experiment
from tests.clouds.azure import AzureServer
from tests.clouds.azure_kit import azure_provider, azure_server
from tests.contract.scripts import write_scripts
from tests.contract.suite import ProviderContract


class TestAzure(ProviderContract):
    @pytest.fixture
    def azure(self, tmp_path: Path) -> Iterator[AzureServer]:
        with azure_server(tmp_path / "azure") as server:
            yield server

    @pytest.fixture
    def provider(self, tmp_path: Path, azure: AzureServer):
        return azure_provider(tmp_path / "state", azure)

    @pytest.fixture
    def experiment(self, tmp_path: Path) -> Experiment:
        return Experiment("sample", write_scripts(tmp_path / "scripts"))
