"""A SageMaker of ours, for every test of that provider."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from notebooked_dagster.providers.sagemaker import SageMakerProvider
from tests.clouds.aws import AwsServer
from tests.clouds.kit import aws_server, sagemaker_provider


@pytest.fixture
def aws(tmp_path: Path) -> Iterator[AwsServer]:
    with aws_server(tmp_path / "aws") as server:
        yield server


@pytest.fixture
def provider(tmp_path: Path, aws: AwsServer) -> SageMakerProvider:
    return sagemaker_provider(tmp_path / "state")
