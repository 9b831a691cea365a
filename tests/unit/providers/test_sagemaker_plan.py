"""``plan`` tells what would happen, and changes nothing."""

from __future__ import annotations

import dataclasses
import json
import re
from pathlib import Path

import boto3
import pytest

from notebooked_dagster.errors import CapabilityError
from notebooked_dagster.providers.base import Experiment, Plan
from notebooked_dagster.providers.registry import get_provider
from notebooked_dagster.providers.sagemaker import SageMakerProvider
from notebooked_dagster.providers.sagemaker.policy import CALLER_ACTIONS, trust_policy
from tests.clouds.aws import AwsServer
from tests.clouds.aws_models import service
from tests.clouds.kit import BUCKET, sagemaker_provider
from tests.contract.scripts import write_scripts


@pytest.fixture
def experiment(tmp_path: Path) -> Experiment:
    return Experiment("sample", write_scripts(tmp_path / "scripts"), timeout=3600)


def texts(plan: Plan, state: str) -> str:
    return "\n".join(item.text for item in plan.items if item.state == state)


def test_it_tells_files_container_and_cost(
    aws: AwsServer, provider: SageMakerProvider, experiment: Experiment, tmp_path: Path
) -> None:
    data = tmp_path / "numbers.txt"
    data.write_text("1 2 6")
    plan = provider.plan(dataclasses.replace(experiment, data_path=str(data), instance_count=2), "live")
    assert plan.files["train.py"] > 100
    assert plan.files[f"data: {data}"] == 5
    assert plan.facts["at most (USD, at the time limit)"] == 0.23
    assert "2026" in str(plan.facts["price as of"])
    assert "pytorch-training" in str(plan.facts["container"])
    assert "'live' would be made" in texts(plan, "new")
    assert f"bucket '{BUCKET}'" in texts(plan, "exists")
    json.dumps(plan.request)


def test_it_changes_nothing(aws: AwsServer, provider: SageMakerProvider, experiment: Experiment) -> None:
    provider.plan(experiment, "live")
    assert set(aws.sagemaker.calls) <= {"DescribeEndpoint"}
    assert "Contents" not in aws.s3().list_objects_v2(Bucket=BUCKET)
    assert provider.list_jobs() == []


def test_what_is_missing_is_named_with_what_to_do(
    aws: AwsServer, experiment: Experiment, tmp_path: Path
) -> None:
    plan = sagemaker_provider(
        tmp_path / "state", bucket="nowhere-bucket", role_arn="arn:aws:iam::123456789012:role/Nobody"
    ).plan(dataclasses.replace(experiment, data_path=f"s3://{BUCKET}/nothing.csv"))
    missing = texts(plan, "missing")
    assert "There is no bucket 'nowhere-bucket'" in missing
    assert "The role 'Nobody'" in missing
    assert f"There is nothing at s3://{BUCKET}/nothing.csv" in missing


def test_a_role_that_sagemaker_may_not_take_is_missing(
    aws: AwsServer, provider: SageMakerProvider, experiment: Experiment
) -> None:
    iam = boto3.client("iam")
    nobody = json.dumps(trust_policy()).replace("sagemaker.", "lambda.")
    iam.update_assume_role_policy(RoleName="SageMaker", PolicyDocument=nobody)
    assert "may not take the role" in texts(provider.plan(experiment), "missing")
    iam.update_assume_role_policy(RoleName="SageMaker", PolicyDocument=json.dumps(trust_policy()))
    assert "The role 'SageMaker', which SageMaker may take" in texts(provider.plan(experiment), "exists")


def test_permissions_that_the_caller_lacks_are_named(
    aws: AwsServer, provider: SageMakerProvider, experiment: Experiment
) -> None:
    assert "The caller's permissions" in texts(provider.plan(experiment), "exists")
    # Who has our own policy, and nothing else, lacks nothing.
    aws.policy = provider.plan(experiment).policies["caller"]
    assert "The caller's permissions" in texts(provider.plan(experiment), "exists")
    aws.denied.add("sagemaker:StopTrainingJob")
    assert "may not: sagemaker:StopTrainingJob" in texts(provider.plan(experiment), "missing")


def test_without_credentials_nothing_else_is_asked(
    aws: AwsServer, provider: SageMakerProvider, experiment: Experiment, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.delenv(name)
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", "/nonexistent")
    (item,) = provider.plan(experiment).items
    assert item.state == "missing"
    assert "credentials" in item.text.lower()


def test_secrets_of_the_environment_are_not_shown(
    aws: AwsServer, provider: SageMakerProvider, experiment: Experiment
) -> None:
    plan = provider.plan(dataclasses.replace(experiment, environment={"API_TOKEN": "s3cr3t", "LEVEL": "2"}))
    assert plan.request["Environment"] == {
        "API_TOKEN": "***",
        "LEVEL": "2",
        "NOTEBOOKED_EXPERIMENT": "sample",
    }


def test_the_policy_names_exactly_what_the_provider_calls() -> None:
    folder = Path(__file__).parents[3] / "notebooked_dagster" / "providers" / "sagemaker"
    source = "\n".join(path.read_text() for path in folder.glob("*.py"))
    known = {
        re.sub(r"(?<!^)(?=[A-Z])", "_", name).lower(): name for name in service("sagemaker").operation_names
    }
    called = {known[name] for name in re.findall(r"[.\"]([a-z]+(?:_[a-z]+)+)\b", source) if name in known}
    # Tags are given when things are made, which takes a permission of its own; invoking is another service's call.
    assert called | {"AddTags", "InvokeEndpoint"} == {action.partition(":")[2] for action in CALLER_ACTIONS}


def test_the_caller_may_hand_over_one_role_and_touch_only_ours(
    aws: AwsServer, provider: SageMakerProvider, experiment: Experiment
) -> None:
    policy = provider.plan(experiment).policies["caller"]
    by_id = {statement["Sid"]: statement for statement in policy["Statement"]}
    assert by_id["HandTheRoleToSageMaker"]["Resource"] == [provider.role]
    assert all("nbd-" in resource for resource in by_id["OurJobsAndEndpoints"]["Resource"])
    assert by_id["OurFolder"]["Resource"] == [f"arn:aws:s3:::{BUCKET}/notebooked/*"]


def test_a_provider_that_cannot_plan_says_so(tmp_path: Path, experiment: Experiment) -> None:
    with pytest.raises(CapabilityError):
        get_provider("local", state_dir=tmp_path).plan(experiment)
