"""A SageMaker for a test, and a provider that finds it."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import boto3

from notebooked_dagster.providers.registry import get_provider
from notebooked_dagster.providers.sagemaker import SageMakerProvider
from notebooked_dagster.providers.sagemaker.policy import trust_policy
from tests.clouds.aws import REGION, AwsServer

ROLE = "arn:aws:iam::123456789012:role/SageMaker"
BUCKET = "ml-bucket"


@contextmanager
def aws_server(folder: Path) -> Iterator[AwsServer]:
    """A server with a bucket, which this process's SDK finds; no reply of it may break the published models."""
    server = AwsServer(folder)
    before = dict(os.environ)
    os.environ.pop("AWS_PROFILE", None)
    os.environ.update(server.environment())
    try:
        server.s3().create_bucket(Bucket=BUCKET, CreateBucketConfiguration={"LocationConstraint": REGION})
        trust = json.dumps(trust_policy())
        boto3.client("iam").create_role(RoleName=ROLE.rpartition("/")[2], AssumeRolePolicyDocument=trust)
        yield server
    finally:
        os.environ.clear()
        os.environ.update(before)
        server.close()
    assert server.sagemaker.violations == []


def sagemaker_provider(state: Path, **more: Any) -> SageMakerProvider:
    """A provider at a test's pace."""
    settings = {"role_arn": ROLE, "bucket": BUCKET, "poll": 0.05, "log_grace": 3.0, **more}
    provider = get_provider("sagemaker", state_dir=state, **settings)
    assert isinstance(provider, SageMakerProvider)
    return provider
