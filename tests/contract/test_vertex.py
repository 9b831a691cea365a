"""VertexProvider passes the contract, against a server of ours that follows Vertex AI's published API."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from notebooked_dagster.providers.base import Experiment
from tests.clouds.gcp import GcpServer
from tests.clouds.gcp_kit import gcp_server, vertex_provider
from tests.contract.scripts import write_scripts
from tests.contract.suite import ProviderContract


class TestVertex(ProviderContract):
    @pytest.fixture
    def gcp(self, tmp_path: Path) -> Iterator[GcpServer]:
        with gcp_server(tmp_path / "gcp") as server:
            yield server

    @pytest.fixture
    def provider(self, tmp_path: Path, gcp: GcpServer):
        return vertex_provider(tmp_path / "state", gcp)

    @pytest.fixture
    def experiment(self, tmp_path: Path) -> Experiment:
        return Experiment("sample", write_scripts(tmp_path / "scripts"))
