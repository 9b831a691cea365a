"""SageMakerProvider passes the contract, against a server of ours that follows SageMaker's published API."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from notebooked_dagster.providers.base import Experiment
from tests.clouds.aws import AwsServer
from tests.clouds.kit import aws_server, sagemaker_provider
from tests.contract.scripts import write_scripts
from tests.contract.suite import ProviderContract


class TestSageMaker(ProviderContract):
    @pytest.fixture
    def aws(self, tmp_path: Path) -> Iterator[AwsServer]:
        with aws_server(tmp_path / "aws") as server:
            yield server

    @pytest.fixture
    def provider(self, tmp_path: Path, aws: AwsServer):
        return sagemaker_provider(tmp_path / "state")

    @pytest.fixture
    def experiment(self, tmp_path: Path) -> Experiment:
        return Experiment("sample", write_scripts(tmp_path / "scripts"))
