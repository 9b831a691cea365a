"""Endpoints of SageMaker where a second look is needed: scaling, counts, names, and two who are at it. No container runs."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from notebooked_dagster.errors import (
    ConfigError,
    DeploymentConflictError,
    DeploymentError,
    EndpointNotFoundError,
    ProviderError,
)
from notebooked_dagster.providers.base import Experiment
from notebooked_dagster.providers.sagemaker import SageMakerProvider
from tests.clouds.aws import AwsServer
from tests.clouds.kit import BUCKET, sagemaker_provider
from tests.contract.scripts import write_scripts

SCALED = {"autoscaling": {"min": 2, "max": 4}, "kms_key": "key-1", "tags": {"team": "ml"}}


@pytest.fixture
def aws(aws: AwsServer, monkeypatch: pytest.MonkeyPatch) -> AwsServer:
    """Every version is healthy at once; ``sick`` names those that are not."""
    aws.sagemaker.pace = 0.0
    aws.sick = set()  # type: ignore[attr-defined]

    def serve(name: str, variant: dict[str, Any]) -> Any:
        healthy = variant["VariantName"] not in aws.sick  # type: ignore[attr-defined]
        return SimpleNamespace(stop=lambda: None) if healthy else None

    monkeypatch.setattr(aws.sagemaker, "_serve", serve)
    return aws


@pytest.fixture
def experiment(tmp_path: Path) -> Experiment:
    experiment = Experiment("sample", write_scripts(tmp_path / "scripts"))
    return dataclasses.replace(experiment, options={"endpoint": SCALED})


@pytest.fixture
def model(tmp_path: Path) -> str:
    folder = tmp_path / "model"
    folder.mkdir()
    (folder / "model.json").write_text("{}")
    return str(folder)


def config(aws: AwsServer, name: str = "nbd-live") -> dict[str, Any]:
    return aws.sagemaker.configs[aws.sagemaker.endpoints[name].config]


def target(version: int) -> str:
    return f"endpoint/nbd-live/variant/v{version}"


def test_a_deployment_that_fails_leaves_what_serves_scaled(
    aws: AwsServer, provider: SageMakerProvider, experiment: Experiment, model: str
) -> None:
    provider.deploy(experiment, model, "live")
    aws.sick.add("v2")  # type: ignore[attr-defined]
    with pytest.raises(DeploymentError):
        provider.deploy(experiment, model, "live")
    assert list(aws.sagemaker.targets) == list(aws.sagemaker.policies) == [target(1)]
    aws.sagemaker.fail("UpdateEndpoint", "quota")
    with pytest.raises(ProviderError):
        provider.deploy(experiment, model, "live")
    assert list(aws.sagemaker.targets) == list(aws.sagemaker.policies) == [target(1)]


def test_a_rollback_serves_as_the_version_was_deployed(
    aws: AwsServer, provider: SageMakerProvider, experiment: Experiment, model: str
) -> None:
    provider.deploy(experiment, model, "live")
    provider.deploy(dataclasses.replace(experiment, options={}), model, "live")
    assert aws.sagemaker.targets == {}
    provider.rollback("live")
    assert list(aws.sagemaker.targets) == [target(1)]
    assert aws.sagemaker.targets[target(1)]["MaxCapacity"] == 4
    assert config(aws)["KmsKeyId"] == "key-1"
    assert {"Key": "team", "Value": "ml"} in config(aws)["Tags"]


def test_a_version_that_stays_keeps_the_machines_it_has_grown_to(
    aws: AwsServer, provider: SageMakerProvider, experiment: Experiment, model: str
) -> None:
    provider.deploy(experiment, model, "live")
    aws.sagemaker.endpoints["nbd-live"].counts["v1"] = 4
    provider.deploy(experiment, model, "live", weight=20)
    counts = [
        (item["VariantName"], item["InitialInstanceCount"]) for item in config(aws)["ProductionVariants"]
    ]
    assert counts == [("v1", 4), ("v2", 2)]
    assert sorted(aws.sagemaker.targets) == [target(1), target(2)]


def test_a_deployment_that_was_overtaken_is_a_conflict_and_removes_nothing_of_the_others(
    aws: AwsServer,
    provider: SageMakerProvider,
    experiment: Experiment,
    model: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    provider.deploy(experiment, model, "live")
    other = sagemaker_provider(tmp_path / "another-machine")
    prepare = provider._hosting._prepare

    def overtaken(*given: Any) -> Any:
        document = prepare(*given)
        other.deploy(experiment, model, "live")
        # It tidied up, and left what was made in the meantime for the version that is newer than its own.
        assert "nbd-live-v3" in aws.sagemaker.models
        return document

    version = provider._hosting._reserve

    def second(*given: Any) -> str:
        # The other one has the lower number although it ends first.
        theirs = version(*given)
        monkeypatch.setattr(other._hosting, "_reserve", lambda *given: theirs)
        return version(*given)

    monkeypatch.setattr(provider._hosting, "_prepare", overtaken)
    monkeypatch.setattr(provider._hosting, "_reserve", second)
    with pytest.raises(DeploymentConflictError, match="another deployment"):
        provider.deploy(experiment, model, "live")
    assert {item.version for item in provider.endpoint("live").deployments} == {"1", "2"}
    assert sorted(aws.sagemaker.models) == ["nbd-live-v1", "nbd-live-v2"]


def test_a_deletion_that_was_interrupted_is_gone_on_with(
    aws: AwsServer, provider: SageMakerProvider, experiment: Experiment, model: str
) -> None:
    provider.deploy(experiment, model, "live")
    aws.sagemaker.fail("DeleteModel", "denied")
    with pytest.raises(ProviderError):
        provider.delete_endpoint("live")
    assert provider.list_endpoints() == []
    assert any(model in sentence for sentence in provider.delete_endpoint("live"))
    assert aws.sagemaker.models == aws.sagemaker.configs == aws.sagemaker.targets == {}
    assert "Contents" not in aws.s3().list_objects_v2(Bucket=BUCKET, Prefix="notebooked/endpoints/")
    with pytest.raises(EndpointNotFoundError):
        provider.delete_endpoint("live")


def test_an_endpoint_whose_name_sagemaker_cannot_tell_apart_is_another(
    aws: AwsServer, provider: SageMakerProvider, experiment: Experiment, model: str
) -> None:
    provider.deploy(experiment, model, "a_b")
    with pytest.raises(ConfigError, match="same endpoint as 'a_b'"):
        provider.deploy(experiment, model, "a-b")
    for ask in (provider.endpoint, provider.rollback, provider.delete_endpoint):
        with pytest.raises(EndpointNotFoundError):
            ask("a-b")
    assert [endpoint.name for endpoint in provider.list_endpoints()] == ["a_b"]


def test_the_longest_name_fits_what_is_made_for_it(
    aws: AwsServer, provider: SageMakerProvider, experiment: Experiment, model: str
) -> None:
    provider.deploy(experiment, model, "n" * 45)
    assert max(map(len, aws.sagemaker.configs)) <= 59  # room for a version of five digits
    with pytest.raises(ConfigError, match="cannot be the name"):
        provider.deploy(experiment, model, "n" * 46)


def test_how_traffic_moves_is_as_the_options_say(
    aws: AwsServer,
    provider: SageMakerProvider,
    experiment: Experiment,
    model: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    provider.deploy(experiment, model, "live")
    seen: list[dict[str, object]] = []
    update = aws.sagemaker.update_endpoint
    monkeypatch.setattr(aws.sagemaker, "update_endpoint", lambda p: (seen.append(p), update(p))[1])
    endpoint = {"strategy": "canary", "canary_percent": 20, "bake": 120, "alarms": ["errors"]}
    provider.deploy(dataclasses.replace(experiment, options={"endpoint": endpoint}), model, "live")
    policy = seen[0]["DeploymentConfig"]
    assert policy == {
        "BlueGreenUpdatePolicy": {
            "TrafficRoutingConfiguration": {
                "Type": "CANARY",
                "WaitIntervalInSeconds": 120,
                "CanarySize": {"Type": "CAPACITY_PERCENT", "Value": 20},
            }
        },
        "AutoRollbackConfiguration": {"Alarms": [{"AlarmName": "errors"}]},
    }


def test_autoscaling_follows_the_version_that_serves(
    aws: AwsServer, provider: SageMakerProvider, experiment: Experiment, model: str
) -> None:
    provider.deploy(dataclasses.replace(experiment, options={}), model, "live")
    scaled = dataclasses.replace(experiment, options={"endpoint": {"autoscaling": {"min": 2, "max": 4}}})
    provider.deploy(scaled, model, "live")
    assert list(aws.sagemaker.targets) == ["endpoint/nbd-live/variant/v2"]
    provider.deploy(scaled, model, "live")
    assert list(aws.sagemaker.targets) == list(aws.sagemaker.policies) == ["endpoint/nbd-live/variant/v3"]
    provider.delete_endpoint("live")
    assert aws.sagemaker.targets == {}


def test_a_serverless_endpoint_names_no_machine(
    aws: AwsServer, provider: SageMakerProvider, experiment: Experiment, model: str
) -> None:
    provider.deploy(
        dataclasses.replace(experiment, options={"endpoint": {"serverless": True}}), model, "less"
    )
    (variant,) = next(
        config["ProductionVariants"]
        for name, config in aws.sagemaker.configs.items()
        if name.startswith("nbd-less-")
    )
    assert variant["ServerlessConfig"] == {"MemorySizeInMB": 2048, "MaxConcurrency": 5}
    assert "InstanceType" not in variant


def test_an_endpoint_of_somebody_else_is_not_ours(
    aws: AwsServer, provider: SageMakerProvider, experiment: Experiment, model: str
) -> None:
    provider.deploy(experiment, model, "live")
    config = next(iter(aws.sagemaker.configs.values()))
    aws.sagemaker.create_endpoint_config({**config, "EndpointConfigName": "theirs", "Tags": []})
    aws.sagemaker.create_endpoint({"EndpointName": "nbd-theirs", "EndpointConfigName": "theirs"})
    assert [endpoint.name for endpoint in provider.list_endpoints()] == ["live"]
