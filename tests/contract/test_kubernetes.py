"""KubernetesProvider passes the contract, against a cluster of ours that follows the published API."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from notebooked_dagster.providers.base import Experiment
from tests.clouds.kube import KubeServer
from tests.clouds.kube_kit import kube_server, kubernetes_provider
from tests.contract.scripts import write_scripts
from tests.contract.suite import ProviderContract


class TestKubernetes(ProviderContract):
    @pytest.fixture
    def kube(self, tmp_path: Path) -> Iterator[KubeServer]:
        with kube_server(tmp_path / "kube") as server:
            yield server

    @pytest.fixture
    def provider(self, tmp_path: Path, kube: KubeServer):
        return kubernetes_provider(tmp_path / "state", kube)

    @pytest.fixture
    def experiment(self, tmp_path: Path) -> Experiment:
        return Experiment("sample", write_scripts(tmp_path / "scripts"))
