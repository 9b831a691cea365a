"""KubernetesProvider passes the contract of serving where KServe serves, against a cluster of ours."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from notebooked_dagster.providers.base import Experiment
from tests.clouds.kube import KubeServer
from tests.clouds.kube_kit import kserve_provider, kube_server
from tests.contract.scripts import write_model, write_scripts
from tests.contract.suite import ServingContract


class TestKServe(ServingContract):
    # Asked of Deployments: what is refused there is refused before anybody serves. Shares are in test_kubernetes_kserve.
    test_splitting_traffic = None
    test_shares_that_make_no_whole_are_refused = None
    test_bad_input_is_the_callers_error = None
    test_a_model_that_does_not_load_leaves_the_old_one = None

    @pytest.fixture
    def kube(self, tmp_path: Path) -> Iterator[KubeServer]:
        with kube_server(tmp_path / "kube") as server:
            yield server

    @pytest.fixture
    def provider(self, tmp_path: Path, kube: KubeServer):
        return kserve_provider(tmp_path / "state", kube)

    @pytest.fixture
    def experiment(self, tmp_path: Path) -> Experiment:
        return Experiment("sample", write_scripts(tmp_path / "scripts"))

    @pytest.fixture
    def models(self, experiment: Experiment, tmp_path: Path) -> list[str]:
        # How they are trained is no matter of who serves.
        return [
            write_model(experiment.scripts, tmp_path / f"model-{shift}", shift=shift) for shift in (0.0, 10.0)
        ]
