"""SageMakerProvider passes the contract, against a server of ours that follows SageMaker's published API."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from notebooked_dagster.providers.base import Experiment
from notebooked_dagster.providers.registry import get_provider
from tests.clouds.aws import AwsServer
from tests.contract.scripts import write_scripts
from tests.contract.suite import ProviderContract

ROLE = "arn:aws:iam::123456789012:role/SageMaker"


@pytest.fixture
def aws(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[AwsServer]:
    server = AwsServer(tmp_path / "aws")
    for name, value in server.environment().items():
        monkeypatch.setenv(name, value)
    monkeypatch.delenv("AWS_PROFILE", raising=False)
    server.s3().create_bucket(
        Bucket="ml-bucket", CreateBucketConfiguration={"LocationConstraint": "eu-central-1"}
    )
    yield server
    server.close()
    assert server.sagemaker.violations == []


class TestSageMaker(ProviderContract):
    @pytest.fixture
    def provider(self, tmp_path: Path, aws: AwsServer):
        return get_provider(
            "sagemaker",
            state_dir=tmp_path / "state",
            role_arn=ROLE,
            bucket="ml-bucket",
            poll=0.05,
            log_grace=3.0,
        )

    @pytest.fixture
    def experiment(self, tmp_path: Path) -> Experiment:
        return Experiment("sample", write_scripts(tmp_path / "scripts"))
